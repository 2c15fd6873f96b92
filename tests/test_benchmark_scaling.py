"""The benchmarks of start-up, scaling and memory run, as small as they get, and say what they promise."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from batchcap.captioner.bundle import Bundle
from benchmarks.table import ROWS

ROOT = Path(__file__).parents[1]


def run_benchmark(name: str, *arguments: object) -> dict[str, Any]:
    """What a benchmark prints."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["benchmark"] == name
    assert found.keys() >= {"commit", "machine", "cpus"}
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_scaling() -> None:
    found = run_benchmark("scaling", "--files", 100)
    assert found["runs"].keys() == {"100"}
    (run,) = found["runs"]["100"]
    assert run["seconds"].keys() == {"plan", "start_up", "captioning", "whole"}
    assert run["ms_per_image"] > 0
    assert run["cpu_ms_per_image"] > 0
    memory = run["memory_mib"]
    assert memory.keys() >= {"driver", "caption_worker", "ray"}
    assert all(kind["rss"] >= kind["pss"] > 0 and kind["processes"] > 0 for kind in memory.values())
    assert run["stage_share"].keys() == {"loading", "captioning", "committing"}
    assert found["cost_to_size_before"] == {}


def test_a_size_is_compared_with_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    scaling = importlib.import_module("benchmarks.scaling")

    def runs(*ms: float) -> list[dict[str, float]]:
        return [{"ms_per_image": each, "cpu_ms_per_image": 10 * each} for each in ms]

    found = {10: runs(1.0, 2.0, 4.0), 100: runs(2.0, 2.0, 2.0), 1000: runs(6.0, 2.0, 20.0)}
    assert scaling.compare_sizes(found) == {
        # Medians of ratios within a round.
        "100 to 10": {"ms_per_image": 1.0, "cpu_ms_per_image": 1.0},
        "1000 to 100": {"ms_per_image": 3.0, "cpu_ms_per_image": 3.0},
    }


def test_simulation() -> None:
    """Of 1,000 images that are not there, on Ray: fewer would do without."""
    found = run_benchmark("simulation", "--images", 1000, "--batch-size", 100)
    assert found["images"] == 1000
    assert found["images_per_s_with_start"] > 0
    assert all(tenth["driver_mib"] > 0 for tenth in found["tenths"])
    assert len(found["tenths"]) > 1
    (row,) = ROWS["simulation"](found)
    assert "images/s; the driver holds" in row.answer


def test_startup(photos: Path, tiny_bundle: Bundle) -> None:
    arguments = ("--photos", photos, "--model", tiny_bundle.path, "--rounds", 1)
    found = run_benchmark("startup", *arguments)
    assert found["seconds"].keys() == {"first_commit", "first_run", "nothing_to_do", "few_files"}
    assert all(len(rounds) == 1 for rounds in found["seconds"].values())
    assert found["seconds"]["first_commit"] < found["seconds"]["first_run"]
    parts = found["parts"]
    assert list(parts) == ["planned", "ray_started", "dataset_built", "first_commit"]
    assert list(parts.values()) == sorted(parts.values())
