"""`serve --log-json`: a line an answer, and nothing that is nobody's business."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from batchcap.errors import UsageError
from batchcap.serving.access_log import AccessLog
from batchcap.serving.app import create_app
from batchcap.serving.options import ServingOptions
from tests.costless import Costless, CostlessCaptioner
from tests.serving.conftest import TOKEN


def client_that_logs(path: Path) -> TestClient:
    app = create_app(
        CostlessCaptioner(Costless()),
        options=ServingOptions(decoders=1, token=TOKEN),
        access_log=AccessLog(path),
    )
    return TestClient(app, base_url="http://127.0.0.1:8012", headers={"authorization": f"Bearer {TOKEN}"})


def test_every_answer_has_a_line(tmp_path: Path, photo: bytes) -> None:
    path = tmp_path / "access.jsonl"
    path.write_text("{}\n")
    with client_that_logs(path) as client:
        image = {"content-type": "image/jpeg"}
        captioned = client.post("/caption", content=photo, headers=image)
        client.post("/caption", content=b"", headers=image)
        client.get("/search?q=something+private")
        client.get("/metrics", headers={"authorization": "Bearer wrong"})
        health = client.head("/healthz")
    kept, *lines = map(json.loads, path.read_text().splitlines())
    assert kept == {}
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("POST", "/caption", 200),
        ("POST", "/caption", 400),
        ("GET", "/search", 404),
        ("GET", "/metrics", 401),
        ("HEAD", "/healthz", 200),
    ]
    assert (lines[0]["received_bytes"], lines[0]["sent_bytes"]) == (len(photo), len(captioned.content))
    assert lines[4]["sent_bytes"] == len(health.content) == 0
    for line in lines:
        assert line["client"] == "testclient" and line["elapsed_s"] >= 0
        assert abs((datetime.now(UTC) - datetime.fromisoformat(line["time"])).total_seconds()) < 600
    assert "private" not in path.read_text() and "wrong" not in path.read_text()


def test_a_full_disk_costs_lines_not_answers(caplog: pytest.LogCaptureFixture) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    with client_that_logs(Path("/dev/full")) as client:
        assert [client.get("/").status_code for _ in range(3)] == [200] * 3
    # Said once.
    assert [record.getMessage() for record in caplog.records if "log" in record.getMessage()] == [
        "can't write the log /dev/full: [Errno 28] No space left on device"
    ]


def test_a_log_that_can_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't write the log .*: Is a directory"):
        AccessLog(tmp_path)
