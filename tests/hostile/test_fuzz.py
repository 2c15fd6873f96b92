"""The fuzzer: what it finds in 500 files, and that it finds harm where there is some."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile import hostile_files
from tests.hostile.fuzz import Findings, examine, mutations
from tests.hostile.mutations import mutate, pieces, with_checksums
from tests.hostile.odd import plain_png

# As a decoder in C may: by what a file starts with.
_HARM = """
import os
from PIL import Image

Image.init()
plugin, accept = Image.OPEN["JPEG"]
held = []

def accept_harm(start):
    if start.startswith(b"CRASH"):
        os.abort()
    while start.startswith(b"HANG"):
        pass
    if start.startswith(b"GROW"):
        held.append(bytearray(b"x") * 400_000_000)
    if start.startswith(b"BURST"):
        held.append(bytes(10**12))
    return accept(start)

Image.register_open("JPEG", plugin, accept_harm)
"""


def test_500_mutations_do_no_harm(tmp_path: Path) -> None:
    folder = tmp_path / "offenders"
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.fuzz", "--count", "500", "--seed", "1", "--folder", folder],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr or done.stdout
    found = json.loads(done.stdout)
    assert sum(found["outcomes"].values()) == found["count"] == 500
    # Most of them get past the first bytes, and some are good pictures still.
    assert found["outcomes"]["captioned"] > 50
    assert found["outcomes"]["unsupported"] < 200
    assert 0 < found["peak_mb"] < 1000
    assert not folder.exists()


def test_harm_is_found_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(_HARM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    good = plain_png()
    files = [good, b"CRASH", good, b"GROW", good, b"BURST", b"HANG", good]
    found = Findings()
    examine(files, found, timeout_s=1, max_memory_bytes=300_000_000, folder=tmp_path / "offenders")
    assert (found.crashes, found.hangs, found.over_memory, found.harm) == (1, 1, 2, 4)
    # What grew was decoded all the same; the others ended their decoder.
    assert found.outcomes == {"captioned": 4, "unsupported": 1, "out of memory": 1}
    assert found.peak_mb > 400
    kept = {path.name.split("-")[0]: path.read_bytes() for path in (tmp_path / "offenders").iterdir()}
    assert kept["crash"] == b"CRASH" and kept["hang"] == b"HANG"
    assert len(found.offenders) == 4


def test_the_same_seed_makes_the_same_files() -> None:
    assert list(mutations(20, seed=3)) == list(mutations(20, seed=3)) != list(mutations(20, seed=4))


def test_checksums_are_mended_and_pieces_are_the_whole() -> None:
    good = plain_png()
    assert with_checksums(good) == good
    damaged = good.replace(b"IHDR\x00\x00", b"IHDR\x00\x01")
    assert damaged != with_checksums(damaged) != good
    rng = random.Random(0)
    for file in hostile_files():
        data = file.data or b""
        assert b"".join(pieces(data)) == data, file.name
        assert b"".join(pieces(cut := data[: rng.randrange(len(data) + 1)])) == cut, file.name
        mutate(rng, [data])  # Nothing is too small or too broken for it.
