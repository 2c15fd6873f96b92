"""Runs on a real Ray cluster of two nodes, and jobs that are handed to it; all of it once, in one process."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from batchcap.captioner.bundle import Bundle
from batchcap.captioner.bundle_files import WEIGHTS
from tests import postgresql
from tests.conftest import make_photo
from tests.processes import descendants
from tests.stores import query

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

DRIVER = Path(__file__).with_name("cluster_driver.py")
MANY = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def given(request: pytest.FixtureRequest, folder: Path, photos: Path, tiny_bundle: Bundle) -> dict[str, Any]:
    """What the driver is given."""
    many = folder / "many"
    for number in range(MANY):
        make_photo(many / f"{number:03}.jpg", number, (40, 30))
    catalogs = None if postgresql.missing() else request.getfixturevalue("postgres_catalogs")
    return {
        "photos": str(photos),
        "many": str(many),
        "model": str(tiny_bundle.path),
        "catalog": catalogs and catalogs.new(),
        "folder": str(folder),
    }


@pytest.fixture(scope="module")
def steps(given: dict[str, Any]) -> dict[str, Any]:
    """What happened on the cluster, step by step."""
    driver = subprocess.Popen(
        [sys.executable, str(DRIVER)],
        env={**os.environ, "BATCHCAP_RUNTIME": "tensorflow"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        stdout, stderr = driver.communicate(json.dumps(given), timeout=900)
    finally:
        if driver.poll() is None:
            # It had no time to end the cluster.
            for pid in [driver.pid, *descendants(driver.pid)]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            driver.wait()
    # Shown where a test fails.
    print(stderr, file=sys.stderr)
    assert driver.returncode == 0, stderr
    found: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return found


# What a run has found, but for what differs from run to run.
FOUND = "SELECT uri, caption, confidence, content_hash, model FROM captions ORDER BY uri"


def test_two_nodes_give_the_rows_of_one(
    steps: dict[str, Any], given: dict[str, Any], folder: Path, photos: Path
) -> None:
    assert len(steps["nodes"]) == 2
    assert steps["two nodes"]["status"] == 0
    report = json.loads(steps["two nodes"]["stdout"])
    assert report["captioned"] == 40
    resources = report["stages"]["resources"]
    assert (resources["caption_workers"], resources["cpus"], len(resources["nodes"])) == (2, 4, 2)
    two = query(folder / "two", FOUND)
    assert [row[0] for row in two] == [str(path) for path in sorted(photos.iterdir())]
    if given["catalog"] is None:
        assert query(folder / "one", FOUND) == two
        return
    # The job ran when there was one.
    import psycopg

    with psycopg.connect(given["catalog"].replace("+psycopg", "")) as connection:
        assert connection.execute(FOUND).fetchall() == two


def test_a_machine_gets_a_model_once(steps: dict[str, Any], tiny_bundle: Bundle) -> None:
    """Both nodes are on this one."""
    assert steps["copies"] == [(tiny_bundle.path / WEIGHTS).stat().st_size]


def test_a_lost_node_costs_nothing(steps: dict[str, Any], folder: Path) -> None:
    lost = steps["lost"]
    assert lost["killed"] == 1
    assert [run["status"] for run in lost["runs"]] == [0], lost["runs"][0]["stderr"]
    assert json.loads(lost["runs"][0]["stdout"])["captioned"] == MANY
    # Each image once, in SQL and in Parquet.
    uris = [str(path) for path in sorted((folder / "many").iterdir())]
    assert [uri for (uri,) in query(folder / "lossy", "SELECT uri FROM result ORDER BY uri")] == uris
    assert [row[0] for row in query(folder / "lossy", FOUND)] == uris
    parts = sorted((folder / "lossy" / "captions").rglob("*.parquet"))
    assert sorted(uri for part in parts for uri in pq.read_table(part)["uri"].to_pylist()) == uris
    assert lost["verified"]["status"] == 0
    assert json.loads(lost["verified"]["stdout"])["rows"] == MANY


def test_what_a_cluster_lacks_is_said_in_one_line(steps: dict[str, Any]) -> None:
    for step, text in (("no room", "no node of the cluster"), ("no head", "is no head of a Ray cluster")):
        assert steps[step]["status"] == 1
        assert error_of(steps[step])["code"] == "cluster"
        assert in_one_line(steps[step], text)
    name = steps["nodes"][0]
    assert steps["blind node"].startswith(f"node {name} (")
    assert "sees no /no/such/folder: every node must have the images" in steps["blind node"]


def error_of(step: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = json.loads(step["stdout"])["error"]
    return found


def in_one_line(step: dict[str, Any], text: str) -> bool:
    return len(step["stderr"].splitlines()) == 1 and text in step["stderr"]


@pytest.fixture(scope="module")
def jobs(steps: dict[str, Any]) -> dict[str, Any]:
    if "jobs" not in steps:
        pytest.skip(postgresql.missing() or "")
    found: dict[str, Any] = steps["jobs"]
    return found


def test_a_submitted_run_shows_its_log_and_has_its_status(jobs: dict[str, Any]) -> None:
    done = jobs["done"]
    assert done["status"] == 0
    assert "\n40 captioned (" in done["stdout"]
    assert in_one_line(done, " is submitted to http://127.0.0.1:")


def test_who_stops_following_leaves_the_job_alone(jobs: dict[str, Any]) -> None:
    left, asked = jobs["left"], jobs["asked"]
    assert left["status"] == 130
    assert f"job {left['job']} goes on; `batchcap submit --address http://" in left["stderr"]
    assert "Traceback" not in left["stderr"]
    assert asked["status"] == 0
    assert asked["stdout"].startswith((f"{left['job']} pending: ", f"{left['job']} running: "))


def test_a_job_can_be_stopped(jobs: dict[str, Any]) -> None:
    job = jobs["left"]["job"]
    assert jobs["stopped"]["status"] == 0
    assert jobs["stopped"]["stdout"].startswith(f"{job} stopped: ")
    assert json.loads(jobs["asked again"]["stdout"])["status"] == "STOPPED"
    assert jobs["followed"]["status"] == 1
    assert in_one_line(jobs["followed"], f"job {job} stopped: ")


def test_an_unknown_job_is_told_so(jobs: dict[str, Any]) -> None:
    assert jobs["unknown"]["status"] == 1
    assert in_one_line(jobs["unknown"], "there is no such job")
