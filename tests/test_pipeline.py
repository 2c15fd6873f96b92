"""Whole runs: files in, captions in SQL and Parquet out, on real Ray."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image

from batchcap import parts
from batchcap.captioner.bundle import Bundle
from batchcap.captioner.captioner import Captioner
from batchcap.captioner.config import GenerationConfig
from batchcap.captioner.images import decode_image
from batchcap.captioner.protocol import CaptionerSource
from batchcap.catalog import Catalog, Failure, ModelInfo
from batchcap.errors import CatalogBusyError, PipelineError, Reason, SourceError, SourceNotFoundError
from batchcap.pipeline import IndexOptions, Progress, RunReport, _Breaker, index_collection
from tests.conftest import make_photo
from tests.costless import Costless

pytestmark = pytest.mark.usefixtures("local_ray")


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


def touch(path: Path, ns: int = 10**18) -> None:
    os.utime(path, ns=(ns, ns))


def test_ray_captions_as_the_captioner_does_and_another_model_does_it_again(
    collection: Collection, tiny_bundle: Bundle, photos: Path
) -> None:
    collection.photos = photos

    def in_process(bundle: Bundle) -> dict[str, str]:
        files = sorted(photos.iterdir())
        pixels = [decode_image(file.read_bytes(), bundle.image_spec) for file in files]
        found = Captioner(bundle, batch_size=8).caption(pixels)
        return {file.name: caption.text for file, caption in zip(files, found, strict=True)}

    greedy = in_process(tiny_bundle)
    report = collection.index(tiny_bundle, batch_size=8)
    assert (report.captioned, report.known, report.unchanged, report.stale) == (40, 0, 0, 0)
    assert collection.captions() == greedy

    beams = replace(tiny_bundle, generation=GenerationConfig(num_beams=3))
    report = collection.index(beams)
    assert (report.captioned, report.unchanged, report.stale) == (0, 40, 40)
    assert collection.captions() == greedy

    report = collection.index(beams, recaption=True, batch_size=8)
    assert (report.captioned, report.unchanged, report.stale) == (40, 0, 0)
    assert collection.captions() == in_process(beams)
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
    assert collection.captions() == {**before, "copy.png": before["1.png"], "moved.png": before["2.png"]}
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


def test_poison_costs_itself_alone_and_is_tried_three_times(collection: Collection) -> None:
    (collection.photos / "crash.jpg").write_bytes(b"CRASHME")
    (collection.photos / "hang.jpg").write_bytes(b"HANGME!")
    report = collection.index(decode_timeout_s=2)
    assert report.captioned == 3
    assert report.quarantined == {"worker_crash": 1, "timeout": 1}
    assert collection.captions() == collection.expected("0.png", "1.png", "2.png")
    for attempts in (2, 3):
        report = collection.index(decode_timeout_s=0.5)
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
    breaker.check(0, failures(Reason.IO_ERROR, 200))
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


def test_damaged_weights_are_named(collection: Collection, tiny_bundle: Bundle, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_bundle.path, tmp_path / "damaged")
    weights = path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(PipelineError) as caught:
        collection.index(Bundle.open(path))
    message = str(caught.value)
    assert str(weights) in message
    assert "damaged" in message
    assert "\n" not in message
    assert collection.catalog.status().runs[0].state == "failed"


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
