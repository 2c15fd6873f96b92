"""What another model would say, shown beside what is there, before anything is written."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from batchcap.captioner import sources
from batchcap.catalog import ModelInfo
from batchcap.cli import app
from batchcap.errors import PipelineError
from batchcap.preview import preview_index
from batchcap.run_options import IndexOptions
from batchcap.sampling import Sample
from tests.conftest import make_photo
from tests.costless import Costless
from tests.test_pipeline import Collection, collection  # noqa: F401

OTHER = Costless("other")


def sample(collection: Collection, size: int, captioner: Costless = OTHER, **options: object) -> Sample:  # noqa: F811
    url = f"sqlite:///{collection.store / 'catalog.db'}"
    chosen = IndexOptions(**options)  # type: ignore[arg-type]
    found = preview_index([str(collection.photos)], url, captioner, chosen, sample_size=size).sample
    assert found is not None
    return found


def content_of(folder: Path) -> dict[str, bytes]:
    # Whoever reads a SQLite file in WAL mode writes into the index of its log.
    return {
        str(path): hashlib.sha256(path.read_bytes()).digest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith("-shm")
    }


def test_old_and_new_captions_side_by_side(collection: Collection) -> None:  # noqa: F811
    photos = collection.photos
    (photos / "cut.png").write_bytes((photos / "2.png").read_bytes()[:-40])
    shutil.copy2(photos / "0.png", photos / "copy of 0.png")
    for number in range(3, 9):
        make_photo(photos / f"{number}.png", number)
    collection.index()
    old = collection.captions()
    collection.catalog.write_captions([(str(photos / "1.png"), "my own dog")])
    # The same size and time, and no picture any more.
    stat = (photos / "8.png").stat()
    (photos / "8.png").write_bytes(bytes(stat.st_size))
    os.utime(photos / "8.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    make_photo(photos / "new.png", 100)
    before = content_of(photos.parent)

    # Beside a run.
    with collection.catalog.run([], ModelInfo("f" * 64, "m"), {}):
        while_it_runs = content_of(photos.parent)
        every = sample(collection, 100, recaption=True)
        assert content_of(photos.parent) == while_it_runs

    # A person's caption stays, what is new has nothing to compare with, and a copy is the same picture.
    assert (every.model, every.of, every.known) == ("other", 9, 0)
    names = [Path(file.uri).name for file in every.files]
    assert names == ["0.png", *(f"{number}.png" for number in range(2, 9))]
    for name, file in zip(names, every.files, strict=True):
        assert (file.old_caption, file.old_model, file.old_confidence) == (old[name], "costless", 0.5)
        if name == "8.png":
            assert (file.caption, file.confidence, file.reason) == (None, None, "unsupported")
        else:
            assert file.caption == old[name].replace("costless", "other")
            assert (file.confidence, file.reason, file.detail) == (0.5, None, None)
    assert (every.same, every.failed, every.mean_confidence) == (0, {"unsupported": 1}, (0.5, 0.5))

    # Some of them: the same ones however often it is asked, and a larger sample has them too.
    few = sample(collection, 3, recaption=True)
    assert few == sample(collection, 3, recaption=True)
    assert (few.of, len(few.files)) == (9, 3)
    assert set(few.files) < set(sample(collection, 5, recaption=True).files) < set(every.files)
    third = sample(collection, 3, Costless("third"), recaption=True)
    assert [file.uri for file in third.files] == [file.uri for file in few.files]
    # The model of the captions that are there has nothing to say.
    assert sample(collection, 3, Costless(), recaption=True) == Sample("costless")

    with pytest.raises(PipelineError, match="the captioner is"):
        sample(collection, 3, Costless("other", fails=True), recaption=True)
    after = content_of(photos.parent)
    catalog = str(collection.store / "catalog.db")
    changed = {path for path in before | after if before.get(path) != after.get(path)}
    # Of the run beside it alone.
    assert changed <= {catalog, f"{catalog}-wal"}


def test_what_is_new_is_sampled_without_recaption(collection: Collection) -> None:  # noqa: F811
    # Before there is a catalog's row.
    assert [file.caption for file in sample(collection, 9, Costless()).files] == list(
        collection.expected("0.png", "1.png", "2.png").values()
    )
    collection.index()
    assert sample(collection, 9, Costless()) == Sample("costless")
    make_photo(collection.photos / "new.png", 7)
    (collection.photos / "0.png").rename(collection.photos / "moved.png")
    found = sample(collection, 9)
    assert (found.of, found.known, [Path(file.uri).name for file in found.files]) == (2, 1, ["new.png"])
    assert found.files[0].old_caption is None and (found.files[0].caption or "").startswith("other red")
    # Of another name and time, but of a known size.
    shutil.copy(collection.photos / "1.png", collection.photos / "copy.png")
    found = sample(collection, 9)
    assert (found.of, found.known, len(found.files)) == (3, 2, 1)


def batchcap(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["index", *map(str, arguments)])


def test_the_command_shows_it(
    collection: Collection,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collection.index()
    monkeypatch.setattr(sources, "open_source", lambda *args, **kwargs: OTHER)
    place = (collection.photos, "--store", collection.store)
    command = (*place, "--recaption", "--dry-run", "--sample", 2)

    done = batchcap(*command)
    assert done.exit_code == 0, done.output
    header, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert header == ["uri", "old caption", "by", "old confidence", "new caption", "confidence"]
    assert len(rows) == 2
    for uri, caption, model, old_confidence, new, confidence in rows:
        assert collection.captions()[Path(uri).name] == caption == new.replace("other", "costless")
        assert (model, old_confidence, confidence) == ("costless", "0.50", "0.50")
    assert done.stderr.splitlines()[-3:] == [
        "2 of 3 files, as other would caption them",
        "0 captions would stay the same",
        "mean confidence 0.50, of the new captions 0.50",
    ]

    page = tmp_path / "new.html"
    done = batchcap(*command, "--output", page, "--json")
    answer = json.loads(done.stdout)
    assert (answer["stale"], answer["sample"]["of"], len(answer["sample"]["files"])) == (3, 3, 2)
    assert [file["uri"] for file in answer["sample"]["files"]] == [row[0] for row in rows]
    html = page.read_text()
    assert html.count("<img ") == 2 and "What other would say" in html
    assert all(row[1] in html and f"<b>{row[4]}" in html for row in rows)
    assert batchcap(*command, "--output", page).stdout == f"{page}\n"
    page.write_text("my own")
    refused = batchcap(*command, "--output", page)
    assert (refused.exit_code, refused.stdout) == (2, "") and "is no contact sheet" in refused.stderr

    for arguments, words in (
        ((*place, "--sample", 2), "--sample goes with --dry-run"),
        ((*place, "--dry-run", "--output", page), "--output goes with --sample"),
    ):
        refused = batchcap(*arguments)
        assert (refused.exit_code, refused.stdout, refused.stderr) == (2, "", f"batchcap: {words}\n")
