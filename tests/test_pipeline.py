"""Whole runs: files in, captions in SQL and Parquet out.

Most have few files, which are captioned in this process; what Ray's workers may do otherwise has tests too.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from batchcap import parts
from batchcap.captioner.bundle import Bundle
from batchcap.captioner.captioner import Captioner
from batchcap.captioner.config import GenerationConfig
from batchcap.captioner.images import decode_image
from batchcap.captioner.protocol import CaptionerSource
from batchcap.catalog import Catalog, Failure, ModelInfo
from batchcap.decoder_child import LoadedFile
from batchcap.errors import CatalogBusyError, PipelineError, Reason, SourceError, SourceNotFoundError
from batchcap.hashing import FileHasher
from batchcap.in_process import InProcess
from batchcap.pipeline import _Breaker, index_collection
from batchcap.rebuild import rebuild_catalog
from batchcap.run_options import IndexOptions
from batchcap.run_report import Progress, RunReport
from batchcap.verify import verify_store
from tests.conftest import make_photo
from tests.costless import Costless, colour_vector
from tests.exif_blocks import WHOLE, saved, whole


class Watched(Progress):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.planned = self.done = self.quarantined = 0

    def plan(self, files: int) -> None:
        self.planned += files

    def advance(self, files: int, quarantined: int) -> None:
        self.done += files
        self.quarantined += quarantined


@dataclass
class Collection:
    """A folder of pictures, and the store with its captions."""

    photos: Path
    store: Path
    catalog: Catalog

    def index(self, captioner: CaptionerSource | None = None, **options: object) -> RunReport:
        """Runs, and checks what must be so after every run."""
        progress = Watched()
        report = index_collection(
            [str(self.photos)],
            self.catalog,
            self.store,
            captioner or Costless(),
            options=IndexOptions(**options),  # type: ignore[arg-type]
            progress=progress,
        )
        assert progress.planned == progress.done
        assert progress.quarantined == sum(report.quarantined.values())
        sql = (
            "SELECT uri, result.content_hash, text, fingerprint "
            "FROM result JOIN caption ON caption.id = caption_id"
        )
        assert self.log() == Counter(self.query(sql))
        assert set(self.log().values()) <= {1}
        return report

    def query(self, sql: str) -> list[tuple]:  # type: ignore[type-arg]
        with self.catalog.query(sql) as result:
            return list(result.rows)

    def captions(self) -> dict[str, str]:
        """The live captions, by the name of the file."""
        return {Path(uri).name: text for uri, text in self.query("SELECT uri, caption FROM captions")}

    def log(self) -> Counter[tuple[str, ...]]:
        """The rows of all Parquet parts."""
        table = parts.read_parts(parts.open_store(self.store, self.catalog.uuid))
        names = ("uri", "content_hash", "caption", "fingerprint")
        return Counter(zip(*(table[name].to_pylist() for name in names), strict=True))

    def expected(self, *names: str) -> dict[str, str]:
        """What the costless captioner says of these files."""
        captioner = Costless()
        return {
            name: captioner.caption_one(
                decode_image((self.photos / name).read_bytes(), captioner.image_spec)
            ).text
            for name in names
        }


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    """Three pictures, not yet captioned."""
    for number in range(3):
        make_photo(tmp_path / "photos" / f"{number}.png", number)
    with Catalog.open(f"sqlite:///{tmp_path / 'store' / 'catalog.db'}", mode="write") as catalog:
        yield Collection(tmp_path / "photos", tmp_path / "store", catalog)


def test_where_pictures_were_taken_may_be_left_out_and_comes_with_a_later_run(
    collection: Collection, tmp_path: Path
) -> None:
    (collection.photos / "0.png").write_bytes(saved("PNG", exif=b"Exif\0\0" + whole()))
    facts = "SELECT DISTINCT camera, latitude, longitude FROM captions WHERE camera IS NOT NULL"
    collection.index(gps=False)
    assert collection.query(facts) == [(WHOLE.camera, None, None)]
    opened = parts.open_store(collection.store, collection.catalog.uuid)
    assert set(parts.read_parts(opened)["latitude"].to_pylist()) == {None}
    collection.index(Costless("other"), recaption=True)
    assert collection.query(facts) == [(WHOLE.camera, WHOLE.latitude, WHOLE.longitude)]
    assert verify_store(collection.catalog, collection.store).findings == []
    collection.catalog.close()
    url = f"sqlite:///{collection.store / 'catalog.db'}"
    rebuild_catalog(url, collection.store, force=True)
    with Catalog.open(url) as rebuilt:
        with rebuilt.query(facts) as found:
            assert list(found.rows) == [(WHOLE.camera, WHOLE.latitude, WHOLE.longitude)]
        assert verify_store(rebuilt, collection.store).findings == []


def test_vectors_come_with_captions_unless_one_says_so_and_can_be_added(collection: Collection) -> None:
    stored = "SELECT uri, vector FROM image_vector JOIN result USING (caption_id) ORDER BY uri"
    assert collection.index(vectors="none").captioned == 3
    assert collection.query(stored) == [] and collection.catalog.vector_models() == []
    assert collection.index().unchanged == 3
    assert collection.query(stored) == []
    # A captioner without vectors has none to add.
    assert collection.index(Costless(vector_size=None), vectors="all").unchanged == 3
    assert collection.index(vectors="all").captioned == 3
    pixels = {
        str(path): decode_image(path.read_bytes(), Costless().image_spec)
        for path in sorted(collection.photos.iterdir())
    }
    assert collection.query(stored) == [
        (name, colour_vector(image).astype("<f2").tobytes()) for name, image in pixels.items()
    ]
    assert collection.index(vectors="all").unchanged == 3
    make_photo(collection.photos / "new.png", 9)
    assert collection.index().captioned == 1
    assert len(collection.query(stored)) == 4
    assert verify_store(collection.catalog, collection.store).findings == []


def test_the_report_says_where_the_time_went(collection: Collection) -> None:
    report = collection.index(batch_size=2)
    # Blocks of two files and of one: the one that is committed first starts the clock, whichever it is.
    assert report.captioned == 3
    assert report.timed_files in (1, 2)
    stages = report.stages
    assert stages is not None
    assert stages.resources.loaders >= stages.resources.caption_workers == 1
    assert min(stages.loading_s, stages.captioning_s, stages.committing_s) > 0
    # Nothing waits where the next batch is there before this one ends.
    assert stages.waiting_s >= 0
    assert stages.elapsed_s == report.captioning_s
    # One commit leaves nothing to measure; nor does none.
    make_photo(collection.photos / "more.png", 9)
    assert collection.index().stages is None
    assert collection.index().stages is None


def test_a_rebuilt_catalog_knows_what_was_captioned(collection: Collection) -> None:
    collection.index()
    before = collection.captions()
    collection.catalog.close()
    (collection.store / "catalog.db").unlink()
    url = f"sqlite:///{collection.store / 'catalog.db'}"
    assert rebuild_catalog(url, collection.store).rows == 3
    assert collection.captions() == before
    report = collection.index()
    assert (report.captioned, report.known, report.unchanged) == (0, 3, 0)
    assert collection.index().unchanged == 3
    # Of vectors it knows nothing, and gets them again.
    assert collection.catalog.vector_models() == []
    assert collection.index(vectors="all").captioned == 3
    assert [model.vector_size for model in collection.catalog.vector_models()] == [3]
    # A picture that was changed since is captioned, and so is a new one.
    make_photo(collection.photos / "0.png", 10)
    make_photo(collection.photos / "new.png", 11)
    assert collection.index().captioned == 2
    assert verify_store(collection.catalog, collection.store).findings == []


def test_what_was_captioned_is_kept_when_the_run_is_cut_short(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that follow closely are committed together, and also where nothing follows them any more."""
    monkeypatch.setattr("batchcap.pipeline._COMMIT_INTERVAL_S", 1e9)
    commits: list[int] = []

    class Interrupted(Progress):
        def advance(self, files: int, quarantined: int) -> None:
            commits.append(files)

    caption_files = InProcess.caption_files

    def interrupted(*args: object) -> Iterator[pa.Table]:
        yield from caption_files(*args)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(InProcess, "caption_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index_collection(
            [str(collection.photos)],
            collection.catalog,
            collection.store,
            Costless(),
            options=IndexOptions(batch_size=1),
            progress=Interrupted(),
        )
    monkeypatch.undo()
    # The first block at once, the second when the run was cut short.
    assert sorted(commits) == [1, 2]
    assert collection.index().unchanged == 3


def touch(path: Path, ns: int = 10**18) -> None:
    os.utime(path, ns=(ns, ns))


@pytest.mark.usefixtures("local_ray")
def test_ray_captions_as_the_captioner_does_and_another_model_does_it_again(
    collection: Collection, tiny_bundle: Bundle, photos: Path
) -> None:
    """With beams that are not the bundle's own: a worker gets them with it."""
    collection.photos = photos
    names = [file.name for file in sorted(photos.iterdir())]
    report = collection.index(batch_size=8, in_process_files=0)
    assert (report.captioned, report.known, report.unchanged, report.stale) == (40, 0, 0, 0)
    costless = collection.expected(*names)
    assert collection.captions() == costless

    beams = replace(tiny_bundle, generation=GenerationConfig(num_beams=3))
    report = collection.index(beams)
    assert (report.captioned, report.unchanged, report.stale) == (0, 40, 40)
    assert collection.captions() == costless

    report = collection.index(beams, recaption=True, batch_size=8, in_process_files=39)
    assert (report.captioned, report.unchanged, report.stale) == (40, 0, 0)
    pixels = [decode_image((photos / name).read_bytes(), beams.image_spec) for name in names]
    found, vectors = Captioner(beams, batch_size=8).caption_with_vectors(pixels)
    assert collection.captions() == {name: caption.text for name, caption in zip(names, found, strict=True)}
    stored = (
        "SELECT vector FROM image_vector JOIN caption ON id = caption_id JOIN location USING (content_hash) "
        f"WHERE fingerprint = '{beams.fingerprint()}' ORDER BY uri"
    )
    found_vectors = np.frombuffer(b"".join(vector for (vector,) in collection.query(stored)), "<f2")
    np.testing.assert_allclose(found_vectors.reshape(40, -1), vectors, atol=4e-3)
    # History is kept, in both.
    assert collection.query("SELECT count(*), count(DISTINCT fingerprint) FROM caption") == [(80, 2)]
    assert sum(collection.log().values()) == 80
    assert collection.index(beams).stale == 0


def test_files_that_change(collection: Collection) -> None:
    photos = collection.photos
    assert collection.index().captioned == 3
    assert collection.captions() == collection.expected("0.png", "1.png", "2.png")
    before = collection.captions()

    # Another time alone costs no caption; nor does a new place.
    touch(photos / "0.png")
    shutil.copy(photos / "1.png", photos / "copy.png")
    (photos / "2.png").rename(photos / "moved.png")
    report = collection.index()
    assert (report.captioned, report.known, report.unchanged) == (0, 3, 1)
    moved = before.pop("2.png")
    assert collection.captions() == {**before, "copy.png": before["1.png"], "moved.png": moved}
    assert (report.vanished, report.moved) == (1, 1)
    report = collection.index()
    assert (report.captioned, report.known, report.unchanged) == (0, 0, 4)

    # Other content does cost one, be it of the same size.
    Image.new("RGB", (64, 64), "red").save(photos / "0.png")
    size_bytes = (photos / "1.png").stat().st_size
    make_photo(photos / "1.png", 77)
    os.truncate(photos / "1.png", max(size_bytes, (photos / "1.png").stat().st_size))
    report = collection.index()
    assert (report.captioned, report.known, report.unchanged) == (2, 0, 2)
    assert collection.captions()["0.png"] == "costless red 255 green 0 blue 0"
    assert collection.captions()["1.png"] == collection.expected("1.png")["1.png"] != before["1.png"]
    assert collection.captions()["copy.png"] == before["1.png"]


def test_a_catalog_in_postgresql(collection: Collection, postgres_url: str, tmp_path: Path) -> None:
    with Catalog.open(postgres_url, mode="write") as catalog:
        collection = Collection(collection.photos, tmp_path / "another store", catalog)
        (collection.photos / "bad.png").touch()
        first = collection.index()
        assert (first.captioned, first.quarantined) == (3, {"empty": 1})
        assert collection.captions() == collection.expected("0.png", "1.png", "2.png")
        (collection.photos / "0.png").rename(collection.photos / "moved.png")
        make_photo(collection.photos / "1.png", 7)
        second = collection.index()
        assert (second.captioned, second.known, second.unchanged) == (1, 1, 1)
        assert collection.captions() == collection.expected("moved.png", "1.png", "2.png")
        assert catalog.search("costless").total == 3


def test_bad_files_and_their_repair(collection: Collection) -> None:
    photos = collection.photos
    whole = make_photo(photos / "cut.jpg", 5, (400, 300)).read_bytes()
    (photos / "cut.jpg").write_bytes(whole[:2000])
    (photos / "empty.jpg").touch()
    (photos / "text.jpg").write_text("no picture at all")
    report = collection.index()
    assert report.captioned == 3
    assert report.quarantined == {"truncated": 1, "empty": 1, "unsupported": 1}
    assert {Path(bad.uri).name: bad.reason.value for bad in collection.catalog.quarantine()} == {
        "cut.jpg": "truncated",
        "empty.jpg": "empty",
        "text.jpg": "unsupported",
    }

    report = collection.index()
    assert (report.captioned, report.still_quarantined, dict(report.quarantined)) == (0, 3, {})

    (photos / "cut.jpg").write_bytes(whole)
    report = collection.index(retry=(Reason.UNSUPPORTED,))
    assert (report.captioned, report.still_quarantined) == (1, 1)
    assert report.quarantined == {"unsupported": 1}
    assert collection.captions() == collection.expected("0.png", "1.png", "2.png", "cut.jpg")
    attempts = {Path(bad.uri).name: bad.attempts for bad in collection.catalog.quarantine()}
    assert attempts == {"empty.jpg": 1, "text.jpg": 2}


@pytest.mark.usefixtures("local_ray", "poison")
def test_poison_costs_itself_alone_and_is_tried_three_times(collection: Collection) -> None:
    """Whoever loads it: Ray's workers, then this process."""
    (collection.photos / "crash.jpg").write_bytes(b"CRASHME")
    (collection.photos / "hang.jpg").write_bytes(b"HANGME!")
    report = collection.index(decode_timeout_s=2, in_process_files=4)
    assert report.captioned == 3
    assert report.quarantined == {"worker_crash": 1, "timeout": 1}
    assert collection.captions() == collection.expected("0.png", "1.png", "2.png")
    for attempts in (2, 3):
        report = collection.index(decode_timeout_s=2)
        assert report.quarantined == {"worker_crash": 1, "timeout": 1}
        assert [bad.attempts for bad in collection.catalog.quarantine()] == [attempts, attempts]
    report = collection.index()
    assert (report.still_quarantined, dict(report.quarantined)) == (2, {})


def test_storage_that_goes_away_stops_the_run(collection: Collection) -> None:
    assert collection.index().captioned == 3
    photos, away = collection.photos, collection.photos.with_name("away")
    picture = (photos / "0.png").read_bytes()
    for number in range(300):
        (photos / f"more{number:03}.png").write_bytes(picture + bytes(number + 1))

    class GoneWhenPlanned(Progress):
        def plan(self, files: int) -> None:
            photos.rename(away)

    with pytest.raises(
        PipelineError, match=r"of the last \d+ files could not be read: the storage has failed"
    ):
        index_collection(
            [str(photos)], collection.catalog, collection.store, Costless(), progress=GoneWhenPlanned()
        )
    status = collection.catalog.status()
    assert (status.locations, status.vanished, status.runs[0].state) == (3, 0, "failed")
    assert set(status.quarantine) == {"io_error"}

    away.rename(photos)
    report = collection.index()
    assert (report.captioned, report.unchanged, dict(report.quarantined)) == (300, 3, {})
    assert not collection.catalog.quarantine()


def failures(reason: Reason, count: int) -> list[Failure]:
    return [Failure(f"/{number}", 1, 1, None, reason, "") for number in range(count)]


def test_breaker() -> None:
    breaker = _Breaker()
    breaker.check(0, failures(Reason.TRUNCATED, 1000))
    breaker.check(0, failures(Reason.IO_ERROR, 100))
    breaker.check(0, failures(Reason.TIMEOUT, 100))
    with pytest.raises(PipelineError, match="201 of the last 1000"):
        breaker.check(0, failures(Reason.IO_ERROR, 1))
    # What is long ago is forgotten.
    breaker = _Breaker()
    for _ in range(3):
        breaker.check(900, failures(Reason.IO_ERROR, 150))


def test_names_of_all_kinds(collection: Collection) -> None:
    shutil.rmtree(collection.photos)
    names = ["new\nline.png", "emoji \U0001f436.png", "tab\t.png", "back\\slash.png", "100%.png", "a?b#c.png"]
    raw = os.fsencode(collection.photos) + b"/latin-\xe9.png"
    for number, name in enumerate(names):
        make_photo(collection.photos / name, number)
    os.rename(make_photo(collection.photos / "latin.png", 9), raw)
    report = collection.index()
    assert report.captioned == len(names) + 1
    uris = {uri for (uri,) in collection.query("SELECT uri FROM captions")}
    assert uris == {
        *(str(collection.photos / name) for name in names),
        f"file://{collection.photos}/latin-%E9.png",
    }
    assert collection.index().unchanged == len(names) + 1


def test_seals_when_enough_has_gathered(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchcap.pipeline._SEAL_ROWS", 2)
    collection.index(wave_size=2)
    states = collection.query("SELECT row_count, state FROM part ORDER BY id")
    assert states == [(2, "done"), (1, "done")]


def test_one_run_at_a_time(collection: Collection) -> None:
    with (
        collection.catalog.run([], ModelInfo("f" * 64, "other"), {}),
        pytest.raises(CatalogBusyError, match=f"process {os.getpid()} on .* is working on the catalog"),
    ):
        collection.index()
    assert collection.index().captioned == 3


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda folder: None, SourceNotFoundError, "does not exist"),
        (lambda folder: folder.mkdir(), SourceError, "no image in"),
    ],
)
def test_sources_without_images(
    collection: Collection, make: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    shutil.rmtree(collection.photos)
    make(collection.photos)
    with pytest.raises(error, match=message):
        collection.index()


def test_copies_are_sealed_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that recognises a million moved files must not keep them all from Parquet until its end."""
    monkeypatch.setattr("batchcap.pipeline._SEAL_ROWS", 3)
    photos, store = tmp_path / "photos", tmp_path / "store"
    original = make_photo(photos / "0.png", 1)
    with Catalog.open(f"sqlite:///{store / 'catalog.db'}", mode="write") as catalog:
        collection = Collection(photos, store, catalog)
        collection.index()
        for number in range(1, 10):
            shutil.copy(original, photos / f"{number}.png")
        report = collection.index(wave_size=3)
        assert (report.captioned, report.known) == (0, 9)
        assert catalog.status().parts == {"done": 4}


def test_equal_sizes_are_looked_into_while_there_are_copies(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all files have one size, they must not all be read twice."""
    hashed: list[str] = []

    class NotingHasher(FileHasher):
        def hash_files(self, uris: Sequence[str]) -> list[LoadedFile]:
            hashed.extend(uris)
            return super().hash_files(uris)

    monkeypatch.setattr("batchcap.pipeline.FileHasher", NotingHasher)
    monkeypatch.setattr("batchcap.pipeline._CHUNK", 2)
    monkeypatch.setattr("batchcap.pipeline._MISS_FREELY", 3)
    os.truncate(collection.photos / "0.png", 100_000)
    collection.index()
    assert not hashed
    for number in range(10, 20):
        path = make_photo(collection.photos / f"{number}.png", number)
        os.truncate(path, 100_000)
    shutil.copy(collection.photos / "0.png", collection.photos / "99.png")
    report = collection.index()
    # The copy comes too late; it costs a caption and is right all the same.
    assert [Path(uri).name for uri in hashed] == ["10.png", "11.png", "12.png", "13.png"]
    assert (report.captioned, report.known) == (11, 0)
    assert collection.captions()["99.png"] == collection.captions()["0.png"]
