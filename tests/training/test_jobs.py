"""`jobs/train.py` on a real Ray, on this machine."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from batchcap.captioner.bundle import Bundle
from tests.conftest import DataSet
from tests.training.test_distribution import OPTIONS

ROOT = Path(__file__).parents[2]
JOB = ROOT / "jobs" / "train.py"
# Runs the job once for each list of arguments, in one process: to import Ray takes longer than most of them.
_ONE_BY_ONE = """
import contextlib, io, json, runpy, sys

for sys.argv in json.load(sys.stdin):
    status = 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            status = end.code
    print(json.dumps({"status": status, "stdout": out.getvalue(), "stderr": err.getvalue()}))
"""


def arguments_of(data_set: DataSet, **options: object) -> list[str]:
    """Two workers; paths relative to a folder that no worker is in."""
    every = {
        "num-workers": 2,
        **{name: getattr(data_set, name) for name in ("data", "captions", "train_split", "dev_split")},
        "artifact_dir": "run",
        "cache_dir": "cache",
        **OPTIONS,
        **options,
    }
    return [str(JOB), *(text for name, value in every.items() for text in (f"--{name}", str(value)))]


def run_python(folder: Path, arguments: Sequence[str], **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, **more)


def test_two_workers_of_ray_make_a_bundle(data_set: DataSet, tmp_path: Path) -> None:
    done = run_python(tmp_path, arguments_of(data_set, scst_epochs=0))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    # Only the chief reports.
    assert done.stdout.count("stage xent") == 1
    assert done.stdout.endswith("the model is in run\n")
    assert Bundle.open(tmp_path / "run").config.embed_dim == OPTIONS["embed_dim"]


# What can't work, the exit status and a part of the message; the last is found by the workers.
WRONG: dict[str, tuple[dict[str, object], int, str]] = {
    "no such option": ({"train_cnn": "some"}, 2, "train_cnn"),
    "found here": ({"init": "nowhere"}, 1, "no model at nowhere"),
    "found by the workers": ({"captions": "nowhere.tsv"}, 1, "can't read the captions"),
}


@pytest.fixture(scope="module")
def ended(data_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """How the wrong ones end, and what the help says."""
    folder = tmp_path_factory.mktemp("jobs")
    lines = [[str(JOB), "--help"]]
    lines += [arguments_of(data_set, **{"num-workers": 1, **options}) for options, _, _ in WRONG.values()]
    done = run_python(folder, ["-c", _ONE_BY_ONE], input=json.dumps(lines))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert not (folder / "run").exists()
    return dict(zip(["help", *WRONG], map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("wrong", WRONG)
def test_what_can_not_work_is_said_so(ended: dict[str, dict[str, Any]], wrong: str) -> None:
    _, status, message = WRONG[wrong]
    found = ended[wrong]
    assert found["status"] == status
    assert message in found["stderr"]
    assert "Traceback" not in found["stderr"]
    if status == 1:
        assert len(found["stderr"].splitlines()) == 1


def test_the_help_has_the_options_of_the_job_and_of_training(ended: dict[str, dict[str, Any]]) -> None:
    assert ended["help"]["status"] == 0
    assert "--num_workers" in ended["help"]["stdout"]
    assert "--captions" in ended["help"]["stdout"]
