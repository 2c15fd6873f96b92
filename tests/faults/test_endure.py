"""One of the kills of `make faults`, so that the script itself is known to work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_runs_that_are_killed_lose_nothing() -> None:
    command = [sys.executable, "-m", "tests.faults.endure", "--kills", "1", "--images", "100", "--seed", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    *kills, last = map(json.loads, done.stdout.splitlines())
    assert (len(kills), last["kills"], last["ok"]) == (1, 1, True)
