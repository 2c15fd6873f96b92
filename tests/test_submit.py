"""What `submit` refuses before it asks a cluster, and what it says of clusters that refuse it.

Jobs that run are in test_cluster.py. Here Ray's own client speaks to servers that answer as a head may.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from batchcap.cli import app
from batchcap.cli.submitting import _arguments_of_job
from batchcap.errors import ClusterError, UsageError
from batchcap.submit import Jobs, JobState

CATALOG = "postgresql+psycopg://me@db/captions"
PLACE = ("--catalog", CATALOG, "--store", "/mnt/store")
NOBODY = ("--address", "http://127.0.0.1:9")


@contextlib.contextmanager
def head(status: int, answer: object) -> Iterator[str]:
    """A server that answers everything alike; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (401, "no token", "wants a token; put the cluster's into RAY_AUTH_TOKEN"),
        (403, "wrong token", "does not accept our token; put the cluster's into RAY_AUTH_TOKEN"),
        (200, {"ray_version": "1.13.0"}, "its Ray does not fit ours: Ray version 1.13.0 is running"),
        (404, "no such page", "its Ray does not fit ours"),
        (200, "<html>a router</html>", "is no job server of Ray's"),
        (500, "Traceback", "500 Server Error"),
    ],
)
def test_a_head_that_refuses_is_told_in_one_line(
    status: int, answer: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Neither may win over the address that is given.
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    with head(status, answer) as address, pytest.raises(ClusterError) as caught:
        Jobs(address)
    assert str(caught.value).startswith(f"the cluster at {address}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", "give http://HOST:8265"),
        ("head:6379", "give http://HOST:8265"),
        ("http://", "give http://HOST:8265"),
        ("http://head:high", "Port could not be cast"),
    ],
)
def test_an_address_that_takes_no_jobs_is_refused(address: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Jobs(address)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ((), 2, "give SOURCEs, or one of --follow, --status and --stop"),
        (("/mnt/photos", "--status", "job", *NOBODY), 2, "give SOURCEs, or one of --follow"),
        (("--stop", "a", "--status", "b", *NOBODY), 2, "give SOURCEs, or one of --follow"),
        (("--stop", "../../api", *NOBODY), 1, "no cluster answers at http://127.0.0.1:9"),
        (("/mnt/photos", *PLACE), 2, "give --address http://HOST:8265"),
        (("/mnt/photos", "--store", "/mnt/store", *NOBODY), 2, "a job needs --catalog postgresql"),
        (("/mnt/photos", *PLACE, "--catalog", "sqlite:////a.db", *NOBODY), 2, "would be gone with"),
        (("/mnt/photos", "--catalog", CATALOG, *NOBODY), 2, "a job needs --store: an absolute path"),
        (("/mnt/photos", *PLACE, "--store", "here", *NOBODY), 2, "a job needs --store: an absolute path"),
        (("photos", *PLACE, *NOBODY), 2, "photos is relative to a folder of this machine"),
        (("--list", "some.csv", *PLACE, *NOBODY), 2, "some.csv is relative to a folder of this machine"),
        (("/mnt/a", "--model", "runs/m1", *PLACE, *NOBODY), 2, "runs/m1 is relative to a folder of this"),
        (("/mnt/a", "--model", "/mnt/m1", *PLACE, *NOBODY), 1, "no cluster answers at http://127.0.0.1:9"),
        (
            ("/mnt/a", "--model", "hf:some/git", *PLACE, *NOBODY),
            1,
            "no cluster answers at http://127.0.0.1:9",
        ),
        (("--list", "/mnt/some.csv", *PLACE, *NOBODY), 1, "no cluster answers at http://127.0.0.1:9"),
        (("/mnt/a", "--report", "run.html", *PLACE, *NOBODY), 2, "--report run.html: a job would write it"),
        (("/mnt/a", "--log-json=run.jsonl", *PLACE, *NOBODY), 2, "--log-json run.jsonl: a job would write"),
        (
            ("/mnt/a", "--dry-run", "--sample", "9", "--output", "s3://bucket/a.html", *PLACE, *NOBODY),
            2,
            "give an absolute path on storage that outlives the cluster",
        ),
        (
            ("/mnt/a", "--report", "/mnt/run.html", "--log-json", "/mnt/run.jsonl", *PLACE, *NOBODY),
            1,
            "no cluster answers at http://127.0.0.1:9",
        ),
        (("s3://bucket/photos", *PLACE, *NOBODY), 1, "no cluster answers at http://127.0.0.1:9"),
        (("/mnt/photos", "--beams", "3", *PLACE, *NOBODY), 2, "No such option"),
        (("/mnt/photos", "--batch-size", "none", *PLACE, *NOBODY), 2, "--batch-size"),
        (("/mnt/photos", "--workers", "4", *PLACE, *NOBODY), 1, "no cluster answers at http://127.0.0.1:9"),
    ],
)
def test_what_can_not_work_is_refused_here(arguments: tuple[str, ...], status: int, message: str) -> None:
    done = CliRunner(env={"RAY_API_SERVER_ADDRESS": None}).invoke(app, ["submit", *arguments])
    assert done.exit_code == status, done.output
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_model_that_the_environment_names_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHCAP_MODEL", "/mnt/m1")
    handed_on = _arguments_of_job(["/mnt/a"], "/mnt/store", CATALOG)
    assert handed_on == ["/mnt/a", "--store", "/mnt/store", "--catalog", CATALOG, "--model", "/mnt/m1"]
    for given in (["--model", "/mnt/m2"], ["--model=/mnt/m2"]):
        assert _arguments_of_job(["/mnt/a", *given], "/mnt/store", CATALOG) == [
            *("/mnt/a", *given, "--store", "/mnt/store", "--catalog", CATALOG)
        ]
    monkeypatch.setenv("BATCHCAP_MODEL", "runs/m1")
    with pytest.raises(UsageError, match="runs/m1 is relative to a folder of this machine"):
        _arguments_of_job(["/mnt/a"], "/mnt/store", CATALOG)


def test_a_password_that_others_will_see_is_told_of() -> None:
    catalog = CATALOG.replace("me@", "me:secret@")
    arguments = ["submit", "/mnt/photos", *PLACE, "--catalog", catalog, *NOBODY]
    done = CliRunner().invoke(app, arguments)
    assert done.stderr.startswith("Ray's dashboard will show the catalog's password")
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    ("status", "exit_of_job", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", None, 1), ("STOPPED", None, 1), ("FAILED", -9, 1)],
)
def test_the_exit_status_is_that_of_the_job(status: str, exit_of_job: int | None, expected: int) -> None:
    assert JobState("job", status, "", exit_of_job).exit_status_to_show == expected


def test_a_name_that_is_none_of_a_job_s_is_refused() -> None:
    with head(200, {"ray_version": "2.60.0"}) as address:
        jobs = Jobs(address)
        with pytest.raises(UsageError, match="is no name of a job"):
            jobs.state("../../api/version")
