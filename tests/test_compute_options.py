"""The options that say where a run runs, and on how much of it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from batchcap.balance import ComputeOptions
from batchcap.cli import app
from batchcap.cli.clusters import compute_options, refuse_catalog_that_goes
from batchcap.console import ProgressLines
from batchcap.errors import UsageError


def options_of(
    address: str | None = None,
    gpus_per_worker: float | None = None,
    workers: str | None = None,
    memory: str | None = None,
) -> ComputeOptions:
    return compute_options(address, gpus_per_worker, workers, memory, 10.0)


def test_nothing_given_is_one_machine() -> None:
    assert options_of() == ComputeOptions()


@pytest.mark.parametrize(("text", "workers"), [("4", (4, 4)), ("1:16", (1, 16)), ("2:2", (2, 2))])
def test_workers_are_a_number_or_two(text: str, workers: tuple[int, int]) -> None:
    assert options_of(workers=text).workers == workers


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("2g", 2 * 1024**3), ("0.5G", 1024**3 // 2), ("512MiB", 512 * 1024**2), ("200000000", 200_000_000)],
)
def test_memory_is_a_size(text: str, size_bytes: int) -> None:
    assert options_of(memory=text).object_store_bytes == size_bytes


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379", "head.example.com:6379", "[::1]:6379"])
def test_an_address_is_that_of_a_head(address: str) -> None:
    assert options_of(address).address == address


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda: options_of(workers="0"), "--workers 0: give a number, or the fewest and the most"),
        (lambda: options_of(workers="4:2"), "--workers 4:2"),
        (lambda: options_of(workers="-1"), "--workers -1"),
        (lambda: options_of(workers="all"), "--workers all"),
        (lambda: options_of(workers="1:"), "--workers 1:"),
        (lambda: options_of(memory="much"), "--memory much: give a size such as 512M or 4G"),
        (lambda: options_of(memory="64M"), "--memory 64M: at least 128M"),
        (lambda: options_of(memory="-2G"), "--memory -2G"),
        (
            lambda: options_of(gpus_per_worker=1.5),
            "--gpus-per-worker 1.5: a part of a GPU, or a whole number",
        ),
        (lambda: options_of("ray://head:10001"), "doesn't speak Ray Client; .* `batchcap submit` it"),
        (lambda: options_of("http://head:8265"), "that is where `batchcap submit` hands in jobs"),
        (lambda: options_of("head"), "give auto, or HOST:PORT of the cluster's head"),
        (lambda: options_of("head:99999"), "give auto, or HOST:PORT"),
        (lambda: options_of("local"), "give auto, or HOST:PORT"),
        (lambda: options_of(""), "give auto, or HOST:PORT"),
    ],
)
def test_what_makes_no_sense_is_refused(read: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read()


def test_cpus_are_those_of_one_machine() -> None:
    done = CliRunner().invoke(app, ["index", "/photos", "--cpus", "2", "--address", "auto"])
    assert done.exit_code == 2
    assert done.stderr.startswith("batchcap: --cpus is for one machine; on a cluster, --workers says")


def test_a_job_does_not_keep_its_catalog_on_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who joins a cluster from a terminal may: the file is on the machine in front of them."""
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    refuse_catalog_that_goes("sqlite:////photos/catalog.db", "auto")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    refuse_catalog_that_goes("sqlite:////photos/catalog.db", None)
    refuse_catalog_that_goes("postgresql+psycopg://me@db/captions", "auto")
    with pytest.raises(UsageError, match="would be gone with the cluster's head; give --catalog postgresql"):
        refuse_catalog_that_goes("sqlite+pysqlite:////photos/catalog.db", "auto")


def test_the_script_of_a_job_joins_the_cluster_that_it_is_of() -> None:
    """So the catalog in SQLite is refused; other options are those of `index`."""
    script = Path(__file__).parents[1] / "jobs" / "index_images.py"
    done = subprocess.run(
        [sys.executable, str(script), "/photos", "--store", "/captions", "--workers", "1:8"],
        env={**os.environ, "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("batchcap: a job's catalog in SQLite would be gone")
    assert len(done.stderr.splitlines()) == 1


def test_the_log_of_a_job_has_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now = iter([5.0, 20.0, 65.0, 80.0, 100.0])
    with ProgressLines(clock=lambda: next(now)) as lines:
        lines.plan(5000)
        # The first files stand for the start-up, so they count as done but not for the rate.
        for files, quarantined in ((100, 0), (150, 0), (1200, 2), (100, 0), (50, 0)):
            lines.advance(files, quarantined)
    assert capsys.readouterr().err.splitlines() == [
        "1,450 of 5,000 files, 22.5 images/s, 2 quarantined",
        "1,600 of 5,000 files, 15.8 images/s, 2 quarantined",
    ]
