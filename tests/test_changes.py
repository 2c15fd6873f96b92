"""A collection that changes between two runs: what is moved, copied, touched or gone costs no inference."""

import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchcap.catalog import Catalog, Run
from batchcap.errors import CatalogUnavailableError, PipelineError, SourceError
from batchcap.pipeline import _patiently, index_collection
from batchcap.preview import Preview, preview_index
from batchcap.run_options import IndexOptions
from batchcap.run_report import Progress
from tests.conftest import make_photo
from tests.costless import Costless
from tests.test_pipeline import Collection, collection  # noqa: F401


def preview(collection: Collection, **options: object) -> Preview:  # noqa: F811
    url = f"sqlite:///{collection.store / 'catalog.db'}"
    chosen = IndexOptions(**options)  # type: ignore[arg-type]
    return preview_index([str(collection.photos)], url, Costless(), chosen)


def test_a_year_in_the_life_of_a_collection(collection: Collection) -> None:  # noqa: F811
    photos = collection.photos
    for number in range(60):
        make_photo(photos / "2023" / f"{number}.jpg", 100 + number)
    (photos / "2023" / "bad.jpg").write_bytes(b"no picture")
    found = preview(collection)
    assert (found.to_caption, found.new, found.known, found.estimate_s) == (64, 64, 0, None)
    assert collection.index().captioned == 63

    # Renamed: hashed, known, and the old places are gone, the bad file's too.
    (photos / "2023").rename(photos / "2024")
    found = preview(collection)
    assert (found.to_caption, found.maybe_known, found.vanished, found.known) == (1, 60, 61, 64)
    report = collection.index()
    assert (report.captioned, report.known, report.unchanged) == (0, 60, 3)
    assert (report.vanished, report.moved) == (61, 60)
    assert set(collection.captions()) == {f"{number}.jpg" for number in range(60)} | {
        "0.png",
        "1.png",
        "2.png",
    }
    assert [Path(bad.uri).parent.name for bad in collection.catalog.quarantine()] == ["2024"]
    report = collection.index()
    assert (report.unchanged, report.still_quarantined, report.vanished) == (63, 1, 0)

    # Copied, and touched.
    shutil.copytree(photos / "2024", photos / "copy")
    for path in photos.glob("*.png"):
        os.utime(path, ns=(1, 1))
    report = collection.index()
    assert (report.captioned, report.known, report.unchanged, report.vanished) == (0, 63, 60, 0)

    # What is not looked at is not gone.
    report = collection.index(exclude=("copy",))
    assert (report.unchanged, report.skipped["excluded"], report.vanished) == (63, 1, 0)

    # A disk that is not there takes most of the files along: better to ask.
    (photos / "2024").rename(photos.with_name("2024"))
    (photos / "copy").rename(photos.with_name("copy"))
    with pytest.raises(PipelineError, match=r"120 of 125 files are gone.* --allow-vanish") as refused:
        collection.index()
    assert len(str(refused.value).splitlines()) == 1
    assert collection.catalog.status().vanished == 60
    assert preview(collection).vanished == 122
    shutil.rmtree(photos)
    photos.mkdir()
    with pytest.raises(SourceError, match="no image"):
        collection.index()
    assert collection.catalog.status().vanished == 60
    report = collection.index(allow_vanish=True)
    assert (report.vanished, collection.captions()) == (125, {})

    # It is back, and nothing was forgotten.
    photos.rmdir()
    photos.with_name("2024").rename(photos)
    report = collection.index()
    assert (report.captioned, report.known) == (0, 60)


@pytest.mark.parametrize("in_process_files", [0, 1000])
def test_copies_that_are_there_from_the_beginning_cost_nothing_either(
    collection: Collection,  # noqa: F811
    in_process_files: int,
) -> None:
    photos = collection.photos
    for number in range(20):
        make_photo(photos / "2023" / f"{number}.jpg", 100 + number)
    shutil.copytree(photos / "2023", photos / "backup" / "2023")
    # Of the same name and size, and yet another file: it says that it has other dots per inch.
    other = photos / "backup" / "2023" / "3.jpg"
    changed = bytearray(other.read_bytes())
    changed[15] ^= 1
    other.write_bytes(changed)
    found = preview(collection)
    assert (found.to_caption, found.maybe_known, found.new) == (23, 20, 43)
    report = collection.index(in_process_files=in_process_files)
    assert (report.captioned, report.known, report.quarantined) == (24, 19, {})
    assert len(collection.captions()) == 23
    assert collection.catalog.status().images == 24
    assert collection.index().unchanged == 43


class Hangs(Progress):
    """Lets a file hang as soon as the run has seen it, as on a network drive that is gone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def plan(self, files: int) -> None:
        self.path.rename(self.path.with_suffix(".away"))
        os.mkfifo(self.path)


def test_a_touched_file_that_hangs_costs_itself_alone(collection: Collection) -> None:  # noqa: F811
    collection.index()
    for path in collection.photos.glob("*.png"):
        os.utime(path, ns=(1, 1))
    bad = collection.photos / "1.png"
    options = IndexOptions(decode_timeout_s=1.0)
    report = index_collection(
        [str(collection.photos)],
        collection.catalog,
        collection.store,
        Costless(),
        options=options,
        progress=Hangs(bad),
    )
    assert (report.captioned, report.known, report.quarantined) == (0, 2, {"timeout": 1})
    (found,) = collection.catalog.quarantine()
    assert (found.uri, found.detail) == (str(bad), "reading it took more than 1 s")
    # Nothing is known of its content, so its caption stays; when it answers again, it is known.
    assert set(collection.captions()) == {"0.png", "1.png", "2.png"}
    bad.with_suffix(".away").rename(bad)
    report = collection.index()
    assert (report.captioned, report.known, report.unchanged) == (0, 1, 2)
    assert collection.catalog.quarantine() == []


def test_a_catalog_that_is_locked_for_a_while_is_waited_for(
    collection: Collection,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts: list[str] = []
    with closing(sqlite3.connect(collection.store / "catalog.db", isolation_level=None)) as other:
        commit = Run.commit

        def locked_at_first(run: Run, *arguments: Any) -> None:
            if not attempts:
                other.execute("BEGIN IMMEDIATE")
            try:
                commit(run, *arguments)
            except CatalogUnavailableError as error:
                attempts.append(str(error))
                if len(attempts) == 3:
                    other.execute("ROLLBACK")
                raise

        monkeypatch.setattr(Run, "commit", locked_at_first)
        monkeypatch.setattr("batchcap.pipeline._RETRY_DELAYS_S", (0.001,) * 5)
        # Its own wait is another test's.
        monkeypatch.setattr("batchcap.catalog.sqlite_file.BUSY_TIMEOUT_S", 0.01)
        with Catalog.open(f"sqlite:///{collection.store / 'catalog.db'}", mode="write") as catalog:
            assert replace(collection, catalog=catalog).index().captioned == 3
    assert len(attempts) == 3
    assert "locked" in attempts[0]


def test_a_catalog_that_stays_away_ends_the_run_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchcap.pipeline._RETRY_DELAYS_S", (0.001,) * 3)
    attempts = []

    def write() -> None:
        attempts.append(None)
        raise CatalogUnavailableError("the catalog is away")

    with pytest.raises(CatalogUnavailableError, match="away"):
        _patiently(write)
    assert len(attempts) == 4
