"""The README and the tutorial: every command in them runs, and what they show is what comes out."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from batchcap.captioner.bundle import DEFAULT_BUNDLE, Bundle
from batchcap.catalog import Catalog
from examples.demo import PHOTOS, find_photos
from tests.conftest import DataSet
from tests.meteor_tables import write_package
from tests.run_commands import run_commands
from tests.test_docs import commands_in

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


def commands(page: str = README) -> list[str]:
    """The commands of a page's shell blocks, in their order."""
    return [line for line in commands_in(page)[0] if line.strip()]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, data_set: DataSet) -> Path:
    """A folder that has what the README speaks of."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "photos").mkdir()
    for name in PHOTOS:
        shutil.copy2(find_photos() / name, folder / "photos")
    shutil.copytree(data_set.captions.parent, folder / "flickr8k")
    write_package(folder)
    return folder


@pytest.fixture(scope="module")
def printed(reader: Path) -> dict[str, str]:
    """What every command prints, but for those of make: the tutorial's in their order, then the README's."""
    wanted = [command for page in (TUTORIAL, README) for command in commands(page)]
    # What both say is run once.
    unique = [command for command in dict.fromkeys(wanted) if shlex.split(command)[0] != "make"]
    return run_commands(unique, reader, BATCHCAP_STORE=str(reader / "store"))


def test_the_first_two_commands_are_demo_and_test() -> None:
    assert [command.split()[:2] for command in commands()[:2]] == [["make", "demo"], ["make", "test"]]
    assert README.index("make test") < 500


def test_ci_runs_what_make_is_told() -> None:
    """`make test` is a part of `make check`; a test that ran it would run itself."""
    ci = (ROOT / ".ci" / "run").read_text()
    assert "make check" in ci and "make demo" in ci


def test_every_other_command_runs(printed: dict[str, str], reader: Path) -> None:
    assert len(printed) == 27
    assert printed["batchcap search cat"].count("chelsea.png") == 1
    assert (reader / "found.html").exists() and (reader / "photos" / "chelsea.png.xmp").exists()
    caption = next(text for command, text in printed.items() if command.startswith("batchcap caption"))
    assert caption.startswith("photos/chelsea.png\t")


def test_what_the_tutorial_shows_is_what_is_found(printed: dict[str, str]) -> None:
    shown = re.findall(r"^/home/me/photos/(\S+) +(.*)$", TUTORIAL, re.MULTILINE)
    found = [line.split("\t") for line in printed["batchcap search dog"].splitlines() if "\t" in line]
    assert shown == [(Path(uri).name, caption) for uri, caption in found]


def test_the_captions_it_shows_are_those_of_the_model_that_ships(
    printed: dict[str, str], reader: Path
) -> None:
    """Those that its first command left in the catalog; its last one captions with another model."""
    sql = "SELECT uri, text FROM result JOIN caption ON caption.id = caption_id WHERE fingerprint = '{}'"
    with (
        Catalog.open(f"sqlite:///{reader / 'store' / 'catalog.db'}") as catalog,
        catalog.query(sql.format(Bundle.open(DEFAULT_BUNDLE).fingerprint())) as result,
    ):
        captions = {Path(uri).name: text for uri, text in result.rows}
    assert captions.keys() == set(PHOTOS)
    for name, caption in captions.items():
        assert re.search(rf"{re.escape(name)}.*{re.escape(caption)}", README), f"{name}: {caption}"
