"""`POST /caption` and `POST /captions`: what is answered to pictures, good and bad, many and few."""

import asyncio
import io
import json
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.requests import Request
from starlette.testclient import TestClient

from batchcap.captioner.images import ImageSpec, decode_image
from batchcap.captioner.protocol import Caption
from batchcap.serving.batcher import Batcher
from batchcap.serving.problems import Problem
from batchcap.serving.uploads import Uploads
from tests.conftest import _POISON
from tests.costless import Costless
from tests.hostile import golden, hostile_files
from tests.hostile.pictures import colour_names
from tests.serving.conftest import Connect, error_of

STATUS = {"empty": 400, "too_large": 413, "unsupported": 415, "unreadable": 422, "truncated": 422}


class Gated:
    """Captions when it is let, and notes the sizes of its batches."""

    fingerprint = "9" * 64
    image_spec = ImageSpec(32)

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.has_begun = threading.Event()
        self.gate = threading.Event()

    def caption(self, images: Sequence[np.ndarray]) -> list[Caption]:
        self.sizes.append(len(images))
        self.has_begun.set()
        self.gate.wait(60)
        return [Caption(f"of {image[0, 0, 0]}", -1.0, None, 2) for image in images]


class Broken(Gated):
    def caption(self, images: Sequence[np.ndarray]) -> list[Caption]:
        raise ValueError("out of memory in /srv/secret.py")


@pytest.fixture
def gated() -> Iterator[Gated]:
    captioner = Gated()
    yield captioner
    captioner.gate.set()


def expected(data: bytes) -> str:
    return Costless().caption_one(decode_image(data, Costless().image_spec)).text


def post(client: TestClient, data: bytes, name: str = "example.jpg") -> Any:
    return client.post("/caption", files={"file": (name, data)})


def test_a_form_is_answered_as_the_original_did_and_more(client: TestClient, photo: bytes) -> None:
    answer = post(client, photo)
    assert answer.status_code == 200
    found = answer.json()
    assert found.pop("elapsed_s") > 0
    assert found == {
        "image": "example.jpg",
        "caption": expected(photo),
        "confidence": 0.5,
        "log_prob": -1.5,
        "token_count": 7,
        "model": "costless",
        "fingerprint": "costless".ljust(64, "0"),
    }


@pytest.mark.parametrize("content_type", ["image/jpeg", "image/x-anything", "application/octet-stream"])
def test_a_picture_may_be_the_body(client: TestClient, photo: bytes, content_type: str) -> None:
    answer = client.post("/caption", content=photo, headers={"content-type": content_type})
    assert answer.json()["caption"] == expected(photo)
    assert answer.json()["image"] == "upload"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\dog.jpg", "dog.jpg"),
        ("dog \U0001f436.jpg", "dog \U0001f436.jpg"),
        ("line\u2028break\x07.jpg", "linebreak.jpg"),
        ("x" * 400, "x" * 255),
        ("/", "upload"),
    ],
)
def test_the_name_of_a_file_is_only_shown(client: TestClient, photo: bytes, name: str, shown: str) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n%s\r\n--b--\r\n' % (
        name.replace("\\", "\\\\").encode(),
        photo,
    )
    answer = client.post(
        "/caption", content=body, headers={"content-type": "multipart/form-data; boundary=b"}
    )
    assert answer.json()["image"] == shown


def test_several_files_get_a_caption_or_an_error_each(client: TestClient, photo: bytes) -> None:
    files = [("file", ("a.jpg", photo)), ("file", ("b.jpg", b"")), ("files", ("c.jpg", b"text"))]
    answer = client.post("/captions", files=files)
    assert answer.status_code == 200
    good, empty, text = answer.json()["captions"]
    assert (good["image"], good["caption"]) == ("a.jpg", expected(photo))
    assert (empty["image"], empty["error"]["code"], empty["error"]["reason"]) == ("b.jpg", "image", "empty")
    assert text["error"]["reason"] == "unsupported"


@pytest.mark.parametrize(
    ("content_type", "body", "outcome"),
    [
        ("text/plain", b"hello", (415, "unsupported")),
        ("application/x-www-form-urlencoded", b"file=hello", (415, "unsupported")),
        ("multipart/form-data", b"", (400, "usage")),
        ("multipart/form-data; boundary=b", b"nonsense", (400, "usage")),
        ("multipart/form-data; boundary=" + "b" * 300, b"", (400, "usage")),
        ("multipart/form-data; boundary=b", b"--b--\r\n", (400, "usage")),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nhalf',
            (400, "usage"),
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nno file\r\n--b--\r\n',
            (400, "usage"),
        ),
        (
            "multipart/form-data; boundary=b",
            b"--b\r\nX-Long: " + b"x" * 20_000 + b"\r\n\r\n\r\n--b--\r\n",
            (400, "usage"),
        ),
        ("image/jpeg", b"", (400, "image")),
    ],
)
def test_a_body_that_makes_no_sense(
    client: TestClient, content_type: str, body: bytes, outcome: tuple[int, str]
) -> None:
    answer = client.post("/caption", content=body, headers={"content-type": content_type})
    assert error_of(answer) == outcome


def test_a_compressed_body_is_refused(client: TestClient, photo: bytes) -> None:
    headers = {"content-type": "image/jpeg", "content-encoding": "gzip"}
    assert error_of(client.post("/caption", content=photo, headers=headers)) == (415, "unsupported")


def test_parameters_without_effect_are_refused(client: TestClient, photo: bytes) -> None:
    files = {"file": photo}
    assert client.post("/caption?num_beams=3", files=files).status_code == 200
    for query in ("num_beams=5", "num_beams=x", "alternatives=2"):
        assert error_of(client.post(f"/caption?{query}", files=files)) == (400, "usage")


def test_too_many_files(connect: Connect, photo: bytes) -> None:
    files = [("file", ("a.jpg", photo))] * 3
    client = connect(max_files=2)
    assert error_of(client.post("/caption", files=files[:2])) == (400, "usage")
    assert error_of(client.post("/captions", files=files)) == (400, "usage")
    assert len(client.post("/captions", files=files[:2]).json()["captions"]) == 2


def ask(client: TestClient, receive: Callable[[], Awaitable[Any]]) -> tuple[list[Any], list[int]]:
    """Sends a picture piece by piece, which the test client can't.

    Returns:
        What the application sends, and how many pieces it had received by then.
    """
    sent: list[Any] = []
    received: list[int] = [0]
    headers = {"host": "127.0.0.1", "content-type": "image/jpeg", "transfer-encoding": "chunked"}
    scope: Any = {
        "type": "http",
        "method": "POST",
        "path": "/caption",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }

    async def counted() -> Any:
        received[-1] += 1
        return await receive()

    async def send(message: Any) -> None:
        sent.append(message)
        received.append(received[-1])

    asyncio.run(client.app(scope, counted, send))  # type: ignore[arg-type]
    return sent, received


def test_a_body_that_is_too_long_is_cut(connect: Connect, photo: bytes) -> None:
    client = connect(max_body_bytes=len(photo) + 300)
    assert post(client, photo).status_code == 200
    # By what its head says.
    assert error_of(post(client, bytes(len(photo) + 300))) == (413, "too_large")

    async def receive() -> Any:
        return {"type": "http.request", "body": bytes(2**20), "more_body": True}

    # By counting.
    (start, body, end), received = ask(client, receive)
    assert start["status"] == 413
    assert (b"connection", b"close") in start["headers"]
    assert json.loads(body["body"])["error"]["code"] == "too_large"
    assert body["more_body"] and not end["more_body"]
    # The rest is dropped, but not for ever.
    assert received[0] == 1 < received[-1] <= 66


def test_all_that_is_being_sent_has_an_upper_limit(tmp_path: Path, photo: bytes) -> None:
    uploads = Uploads(tmp_path, max_body_bytes=100, max_stored_bytes=150, body_timeout_s=60)

    def request() -> Request:
        async def receive() -> Any:
            return {"type": "http.request", "body": bytes(100)}

        return Request({"type": "http", "headers": [(b"content-type", b"image/jpeg")]}, receive)

    async def send_two() -> None:
        async with uploads.received(request(), max_files=1, admit=lambda: None):
            with pytest.raises(Problem, match="busy"):
                async with uploads.received(request(), max_files=1, admit=lambda: None):
                    pass
        for _ in range(3):
            async with uploads.received(request(), max_files=1, admit=lambda: None) as (upload,):
                assert upload.path.read_bytes() == bytes(100)

    asyncio.run(send_two())
    assert list(tmp_path.iterdir()) == []


def test_a_picture_of_too_many_pixels(connect: Connect) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (200, 100)).save(buffer, "PNG")
    answer = post(connect(max_pixels=19_999), buffer.getvalue())
    assert error_of(answer) == (413, "image")
    assert answer.json()["error"]["reason"] == "too_large"
    assert post(connect(max_pixels=20_000), buffer.getvalue()).status_code == 200


def test_a_body_that_does_not_come(connect: Connect) -> None:
    """The client has sent the head, then nothing: only time tells."""
    is_late = asyncio.Event()

    async def receive() -> Any:
        if is_late.is_set():
            return {"type": "http.disconnect"}
        is_late.set()
        return await asyncio.Event().wait()

    (start, body, _), _ = ask(connect(body_timeout_s=0.05), receive)
    assert start["status"] == 408
    assert json.loads(body["body"])["error"]["code"] == "timeout"


class Quarters(Gated):
    """Says the colours of a picture's quarters, as the golden table has them."""

    def caption(self, images: Sequence[np.ndarray]) -> list[Caption]:
        return [Caption(" ".join(colour_names(image)), -1.0, None, 4) for image in images]


def test_hostile_pictures_are_their_senders_doing(connect: Connect) -> None:
    client = connect(Quarters(), decoders=2)
    files = [file for file in hostile_files() if golden()[file.name]["outcome"] != "skipped"]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda file: post(client, file.data or b""), files))
    found, wanted = {}, {}
    for file, answer in zip(files, answers, strict=True):
        outcome = golden()[file.name]
        if outcome["outcome"] == "captioned":
            wanted[file.name] = (200, " ".join(outcome["colours"]))
            found[file.name] = (answer.status_code, answer.json().get("caption"))
        else:
            wanted[file.name] = (STATUS[outcome["reason"]], outcome["reason"])
            assert error_of(answer) == (answer.status_code, "image")
            found[file.name] = (answer.status_code, answer.json()["error"]["reason"])
    assert found == wanted
    assert {status for status, _ in found.values()} == {200, *STATUS.values()}


def test_poison_costs_nobody_else_anything(
    connect: Connect, photo: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_POISON)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    client = connect(decode_timeout_s=1.0)
    crash = post(client, b"CRASHME")
    assert error_of(crash) == (422, "image")
    assert crash.json()["error"]["reason"] == "worker_crash"
    assert post(client, photo).json()["caption"] == expected(photo)
    files = [("file", ("good.jpg", photo)), ("file", ("hangs.jpg", b"HANGME"))]
    good, hangs = client.post("/captions", files=files).json()["captions"]
    assert good["caption"] == expected(photo)
    assert hangs["error"]["reason"] == "timeout"
    assert client.get("/readyz").status_code == 200


def test_who_comes_to_a_full_queue_comes_back(connect: Connect, photo: bytes, gated: Gated) -> None:
    client = connect(gated, max_queue=2)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(post, client, photo)
        assert gated.has_begun.wait(60)
        # Of two there is room for one.
        files = [("file", ("a.jpg", photo))] * 2
        refused = client.post("/captions", files=files)
        assert error_of(refused) == (429, "busy")
        assert int(refused.headers["retry-after"]) >= 1
        gated.gate.set()
        assert first.result(60).status_code == 200
    assert client.post("/captions", files=files).status_code == 200
    assert "batchcap_queued_images 0.0" in client.get("/metrics").text


def test_an_answer_that_takes_too_long(connect: Connect, photo: bytes, gated: Gated) -> None:
    client = connect(gated, request_timeout_s=0.5)
    assert error_of(post(client, photo)) == (504, "timeout")
    gated.gate.set()


def test_a_model_that_fails_says_nothing_of_itself(connect: Connect, photo: bytes) -> None:
    client = connect(Broken())
    assert error_of(post(client, photo)) == (500, "error")
    # Only the batch has failed.
    assert client.get("/readyz").status_code == 200


def test_no_upload_is_left(connect: Connect, photo: bytes, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    client = connect()
    post(client, photo)
    post(client, b"")
    client.post("/captions", files=[("file", photo), ("file", photo)])
    client.post("/caption", files=[("file", photo), ("file", photo)])
    (folder,) = tmp_path.iterdir()
    assert list(folder.iterdir()) == []


def test_metrics_count_pictures_and_answers(connect: Connect, photo: bytes) -> None:
    client = connect()
    post(client, photo)
    post(client, b"")
    client.get("/no/such/path")
    text = client.get("/metrics").text
    for line in (
        'batchcap_requests_total{method="POST",route="/caption",status="200"} 1.0',
        'batchcap_requests_total{method="POST",route="/caption",status="400"} 1.0',
        'batchcap_requests_total{method="GET",route="other",status="404"} 1.0',
        "batchcap_captions_total 1.0",
        'batchcap_failures_total{reason="empty"} 1.0',
    ):
        assert line in text.splitlines()


# --- the batcher ---


def pixels(value: int) -> np.ndarray:
    return np.full((32, 32, 3), value, np.uint8)


def test_what_comes_meanwhile_is_the_next_batch(gated: Gated) -> None:
    told: list[int] = []
    batcher = Batcher(gated, batch_size=4, on_batch=lambda size, elapsed_s: told.append(size))
    # Alone, at once.
    first = batcher.submit(pixels(0))
    assert gated.has_begun.wait(60)
    others = [batcher.submit(pixels(number)) for number in range(1, 7)]
    others[2].cancel()
    gated.gate.set()
    assert first.result(60).text == "of 0"
    assert [one.result(60).text for one in others if not one.cancelled()] == [
        f"of {number}" for number in (1, 2, 4, 5, 6)
    ]
    batcher.close()
    assert gated.sizes == told == [1, 3, 2]
    assert batcher.seconds_per_image > 0
    assert not batcher.is_alive


def test_what_waits_when_the_batcher_is_closed_is_captioned(gated: Gated) -> None:
    batcher = Batcher(gated, batch_size=2)
    futures = [batcher.submit(pixels(number)) for number in range(5)]
    gated.gate.set()
    batcher.close()
    assert [future.result(0).text for future in futures] == [f"of {number}" for number in range(5)]


def test_a_batch_that_fails_fails_alone() -> None:
    captioner = Broken()
    batcher = Batcher(captioner, batch_size=2)
    with pytest.raises(ValueError, match="out of memory"):
        batcher.submit(pixels(1)).result(60)
    assert batcher.is_alive
    batcher.close()
