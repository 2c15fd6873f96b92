"""The README: every command in it runs, and what it shows is what comes out."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from examples.demo import PHOTOS, find_photos
from tests.conftest import DataSet

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent


def commands() -> list[str]:
    """The commands of the README's shell blocks, in their order."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_the_first_two_commands_are_demo_and_test() -> None:
    assert [command.split()[:2] for command in commands()[:2]] == [["make", "demo"], ["make", "test"]]
    assert README.index("make test") < 500


def test_ci_runs_what_make_is_told() -> None:
    """`make test` is a part of `make check`; a test that ran it would run itself."""
    ci = (ROOT / ".ci" / "run").read_text()
    assert "make check" in ci and "make demo" in ci


def test_every_other_command_runs(data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the README, as a reader would, in a folder that has what it speaks of."""
    (tmp_path / "photos").mkdir()
    for name in PHOTOS:
        shutil.copy2(find_photos() / name, tmp_path / "photos")
    shutil.copytree(data_set.captions.parent, tmp_path / "flickr8k")
    env = os.environ | {"BATCHCAP_STORE": str(tmp_path / "store"), "PATH": f"{BIN}:{os.environ['PATH']}"}
    output = {}
    for command in commands():
        words = shlex.split(command, comments=True)
        if words[0] == "make":
            continue
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        output[command] = done.stdout
    assert len(output) == 9
    printed = next(text for command, text in output.items() if command.startswith("batchcap caption"))
    assert printed.startswith("photos/chelsea.png\t")


def test_the_captions_it_shows_are_those_of_the_model_that_ships() -> None:
    from batchcap.captioner.captioner import Captioner
    from batchcap.captioner.images import decode_image

    captioner = Captioner.load(batch_size=len(PHOTOS))
    pixels = [decode_image((find_photos() / name).read_bytes(), captioner.image_spec) for name in PHOTOS]
    for name, caption in zip(PHOTOS, captioner.caption(pixels), strict=True):
        assert re.search(rf"{re.escape(name)}.*{re.escape(caption.text)}", README), f"{name}: {caption.text}"


def test_the_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
