"""Whatever decodes pictures for people makes of the hostile ones what the golden table says."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from batchcap.captioner.images import ImageSpec, decode_image
from batchcap.cli import app
from batchcap.collection import uri_to_path
from batchcap.errors import ImageError
from tests.costless import Costless
from tests.hostile import golden, hostile_files, make_hostile
from tests.hostile.pictures import HAS_AVIF, HAS_HEIF, colour_names
from tests.jpeg_decoders import decode_with_all

SPEC = ImageSpec(32)
GOLDEN = golden()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The folder, and what becomes of each file that could be made in it."""
    folder = tmp_path_factory.mktemp("hostile")
    return folder, {file.name: GOLDEN[file.name] for file in make_hostile(folder)}


@pytest.fixture
def _costless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchcap.captioner.sources.open_source", lambda *args, **options: Costless())


def batchcap(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def expected_caption(folder: Path, name: str) -> str:
    pixels = decode_image((folder / name).read_bytes(), Costless().image_spec)
    return Costless().caption_one(pixels).text


def test_the_table_is_complete(hostile: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    """All that can be made stands in it, and all that stands in it can be made somewhere."""
    _, outcomes = hostile
    assert len(outcomes) > 300
    missing = {name for name in GOLDEN if name not in outcomes}
    if HAS_AVIF and HAS_HEIF:
        assert missing <= {"places/unreadable.png", os.fsdecode(b"names/latin-\xe9.png")}


def test_each_picture_is_decoded_as_the_table_says() -> None:
    found, expected = {}, {}
    for file in hostile_files():
        outcome = GOLDEN[file.name]
        if outcome["outcome"] == "skipped":
            continue
        expected[file.name] = outcome
        try:
            image = decode_with_all(file.data or b"", SPEC)
        except ImageError as error:
            assert error.detail and "\n" not in error.detail
            found[file.name] = {"outcome": "quarantined", "reason": error.reason}
        else:
            found[file.name] = {
                "outcome": "captioned",
                "format": image.format,
                "width": image.width,
                "height": image.height,
                "colours": colour_names(image.pixels),
            }
    assert found == expected


@pytest.mark.usefixtures("_costless")
def test_index_captions_all_that_can_be(
    hostile: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path
) -> None:
    folder, outcomes = hostile
    store = ("--store", tmp_path / "store", "--json")
    done = batchcap("index", folder, *store)
    assert done.exit_code == 3, done.output
    report = json.loads(done.stdout)

    def reasons(outcome: str) -> Counter[str]:
        return Counter(found["reason"] for found in outcomes.values() if found["outcome"] == outcome)

    assert report["quarantined"] == reasons("quarantined")
    assert report["skipped"] == reasons("skipped")

    status = json.loads(batchcap("status", "--quarantine", "--limit", 1000, *store).stdout)
    assert {name_of(folder, bad["uri"]): bad["reason"] for bad in status["quarantine"]} == {
        name: found["reason"] for name, found in outcomes.items() if found["outcome"] == "quarantined"
    }
    rows = json.loads(
        batchcap("sql", "SELECT uri, format, width, height, caption FROM captions", *store).stdout
    )
    assert {name_of(folder, uri): tuple(row) for uri, *row in rows["rows"]} == {
        name: (found["format"], found["width"], found["height"], expected_caption(folder, name))
        for name, found in outcomes.items()
        if found["outcome"] == "captioned"
    }


def name_of(folder: Path, uri: str) -> str:
    return os.path.relpath(uri_to_path(uri), folder)


@pytest.mark.usefixtures("_costless")
def test_caption_agrees(hostile: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    folder, outcomes = hostile
    named = {name: found for name, found in outcomes.items() if found["outcome"] != "skipped"}
    done = batchcap("caption", *(folder / name for name in named), "--json")
    assert done.exit_code == 3, done.output
    captions = {os.path.relpath(one["image"], folder): one for one in json.loads(done.stdout)["captions"]}
    assert {name: one.get("reason") or one["caption"] for name, one in captions.items()} == {
        name: found["reason"] if found["outcome"] == "quarantined" else expected_caption(folder, name)
        for name, found in named.items()
    }
