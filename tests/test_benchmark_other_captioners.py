"""benchmarks/other_captioners.py runs, as small as it gets; how fast anything is, no test asks."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
_MISSING = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]


def run(tmp_path: Path, code: str, *arguments: str) -> dict[str, Any]:
    """Runs the script in a process of its own, after some code."""
    script = ROOT / "benchmarks" / "other_captioners.py"
    command = f"import runpy, sys\n{code}\nsys.argv = {[str(script), *arguments]!r}\n"
    command += (
        f"sys.path.insert(0, {str(script.parent)!r})\nrunpy.run_path({str(script)!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["benchmark"] == "other_captioners"
    return found


@pytest.mark.skipif(bool(_MISSING), reason=f"{' and '.join(_MISSING)} not installed")
def test_all_captioners_are_measured(tmp_path: Path) -> None:
    found = run(tmp_path, "", "--shrink", "--rounds", "1", "--images", "3", "--tokens", "3")
    assert (found["images"], found["tokens"], found["rounds"]) == (3, 3, 1)
    assert found.keys() >= {"commit", "machine", "cpus", "torch", "transformers"}
    assert found["ours_to"].keys() == {"blip", "git", "vit_gpt2"}
    captioners = found["captioners"]
    assert list(captioners) == ["ours", "blip", "git", "vit_gpt2"]
    for captioner in captioners.values():
        assert len(captioner["images_per_s"]) == 1
        assert captioner["batch_size"] == 1
        assert captioner["parameters"] > 100_000
    # The others decode what they are told, ours at most that.
    assert all(captioners[name]["tokens_decoded"] == 3 for name in found["ours_to"])
    assert captioners["ours"]["steps_decoded"] <= 3
    # It leaves no model behind; torch makes a folder of its own, empty.
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_without_the_libraries_it_is_skipped(tmp_path: Path) -> None:
    found = run(tmp_path, "sys.modules['torch'] = None")
    assert found.keys() == {"benchmark", "skipped"}
    assert found["skipped"].startswith("torch") and "batchcap[transformers]" in found["skipped"]
