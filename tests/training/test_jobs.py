"""`jobs/train.py` on a real Ray, on this machine."""

import subprocess
import sys
from pathlib import Path

import pytest

from batchcap.captioner.bundle import Bundle
from tests.conftest import DataSet
from tests.training.test_distribution import OPTIONS

ROOT = Path(__file__).parents[2]


def run_job(folder: Path, data_set: DataSet, **options: object) -> subprocess.CompletedProcess[str]:
    """Two workers; paths relative to a folder that no worker is in."""
    every = {
        "num-workers": 2,
        **{name: getattr(data_set, name) for name in ("data", "captions", "train_split", "dev_split")},
        "artifact_dir": "run",
        "cache_dir": "cache",
        **OPTIONS,
        **options,
    }
    arguments = [text for name, value in every.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


def test_two_workers_of_ray_make_a_bundle(data_set: DataSet, tmp_path: Path) -> None:
    done = run_job(tmp_path, data_set, scst_epochs=0)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    # Only the chief reports.
    assert done.stdout.count("stage xent") == 1
    assert done.stdout.endswith("the model is in run\n")
    assert Bundle.open(tmp_path / "run").config.embed_dim == OPTIONS["embed_dim"]


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({"captions": "nowhere.tsv"}, 1, "can't read the captions"),
        ({"init": "nowhere"}, 1, "no model at nowhere"),
        ({"train_cnn": "some"}, 2, "train_cnn"),
    ],
    ids=["found by the workers", "found here", "no such option"],
)
def test_what_can_not_work_is_said_so(
    data_set: DataSet, tmp_path: Path, options: dict[str, object], status: int, message: str
) -> None:
    done = run_job(tmp_path, data_set, **{"num-workers": 1, **options})
    assert done.returncode == status, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    if status == 1:
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_help_has_the_options_of_the_job_and_of_training() -> None:
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert "--num_workers" in done.stdout
    assert "--captions" in done.stdout
