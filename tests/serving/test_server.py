"""`batchcap serve` as a process of its own, with a network, over real connections."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from batchcap.captioner.bundle import DEFAULT_BUNDLE, Bundle
from batchcap.cli import app
from batchcap.errors import BatchcapError, UsageError
from batchcap.serving.options import ServingOptions
from batchcap.serving.server import serve
from tests.golden.make_captions import OUTPUT, crops
from tests.processes import descendants, ends
from tests.serving.conftest import Connect

_HEADER_TIMEOUT_S = 4.0
_MAX_BODY_BYTES = 1_000_000
_WAIT_S = 120.0


@dataclass(frozen=True)
class Server:
    """A running server, and what it is to say of a picture."""

    process: "subprocess.Popen[str]"
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=_WAIT_S)

    def get(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_WAIT_S)
        connection.request("GET", path)
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    def is_listening(self) -> bool:
        try:
            self.connect().close()
        except OSError:
            return False
        return True


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = {
        "port": 0,
        "num-beams": 1,
        "store": tmp_path_factory.mktemp("store"),
        "header-timeout": _HEADER_TIMEOUT_S,
        "keep-alive-timeout": _WAIT_S,
        "max-body-mb": _MAX_BODY_BYTES / 1e6,
        "decoders": 1,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with subprocess.Popen(
        [Path(sys.executable).with_name("batchcap"), "serve", *words],
        env=os.environ | {"TMPDIR": str(tmp_path_factory.mktemp("uploads"))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline()
            yield Server(process, int(url.rpartition(":")[2]))
        finally:
            process.kill()


def head(length: int) -> bytes:
    return (
        b"POST /caption HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"
        b"Content-Length: %d\r\n\r\n" % length
    )


def answer_of(connection: socket.socket) -> tuple[int, dict[str, object]]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, json.loads(response.read())


def test_the_line_of_the_original_is_answered(server: Server, tmp_path: Path) -> None:
    bundle = Bundle.open(DEFAULT_BUNDLE)
    picture = Image.fromarray(crops(bundle.image_spec.image_size, 2)[1])
    # Without loss, whatever its name says.
    picture.save(tmp_path / "example.jpg", "PNG")
    command = ["curl", "-sS", "-X", "POST", "-F", "file=@example.jpg", f"{server.url}/caption"]
    if shutil.which("curl"):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        answer = json.loads(done.stdout)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_WAIT_S)
        body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="example.jpg"\r\n\r\n'
        content_type = {"Content-Type": "multipart/form-data; boundary=b"}
        connection.request(
            "POST",
            "/caption",
            body + (tmp_path / "example.jpg").read_bytes() + b"\r\n--b--\r\n",
            content_type,
        )
        answer = json.loads(connection.getresponse().read())
        connection.close()
    text, log_prob = json.loads(OUTPUT.read_text(encoding="utf-8"))["1"][1]
    assert (answer["image"], answer["caption"]) == ("example.jpg", text)
    assert answer["log_prob"] == pytest.approx(log_prob, abs=1e-3)
    greedy = replace(bundle, generation=replace(bundle.generation, num_beams=1))
    assert (answer["model"], answer["fingerprint"]) == (bundle.name, greedy.fingerprint())


def test_heads_that_come_byte_by_byte_are_cut_off(server: Server, photo: bytes) -> None:
    with server.connect() as silent, server.connect() as slow, server.connect() as used:
        used.sendall(head(len(photo)) + photo)
        assert answer_of(used)[0] == 200
        # A second head on the same connection.
        used.sendall(b"GET / HT")
        slow.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-More: ")
        for connection in (silent, slow, used):
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1000) == b""
    assert json.loads(server.get("/readyz")) == {"status": "ok"}


def test_what_is_no_http_is_told_so(server: Server) -> None:
    for request in (b"\x16\x03\x01 hello\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000):
        with server.connect() as connection:
            connection.sendall(request)
            status, answer = answer_of(connection)
            assert status in (400, 431)
            assert answer["error"] == {"code": "usage", "message": "this is no HTTP request"}


def test_a_body_that_is_too_long_is_cut_off(server: Server, tmp_path: Path) -> None:
    """The client gets the answer although it has not stopped sending."""
    with server.connect() as connection:
        connection.sendall(head(10**12))
        assert answer_of(connection)[0] == 413
    chunked = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    with server.connect() as connection:
        connection.sendall(chunked)
        for _ in range(2 * _MAX_BODY_BYTES // 100_000):
            connection.sendall(b"186a0\r\n" + bytes(100_000) + b"\r\n")
        status, answer = answer_of(connection)
        assert (status, answer["error"]["code"]) == (413, "too_large")  # type: ignore[index]
        # And no more is read.
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_told_to_stop_it_answers_what_it_has_taken(server: Server, photo: bytes) -> None:
    """The last test of this file: the server is gone then.

    Of each kind a few: requests that are half sent; requests that stand in the buffers of the system when the
    signal comes, on connections that were used before and on new ones; and clients that have sent nothing,
    which hold up nobody.
    """
    count = 8
    children = descendants(server.process.pid)
    with ExitStack() as stack, ThreadPoolExecutor(3 * count) as threads:

        def connected() -> list[socket.socket]:
            return [stack.enter_context(server.connect()) for _ in range(count)]

        begun, used = connected(), connected()
        for connection in used:
            connection.sendall(head(len(photo)) + photo)
            assert answer_of(connection)[0] == 200
        for connection in begun:
            connection.sendall(head(len(photo)) + photo[:-1])
        while f"batchcap_queued_images {count}.0" not in server.get("/metrics"):
            pass
        idle = connected()
        # From here on the system alone takes what comes, until the server finds all of it at once.
        server.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, server.process.pid, os.WSTOPPED)
        new = connected()
        for connection in used + new:
            connection.sendall(head(len(photo)) + photo)
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGCONT)
        while server.is_listening():
            pass
        for connection in begun:
            connection.sendall(photo[-1:])
        answers = list(threads.map(answer_of, begun + used + new))
        assert [status for status, _ in answers] == [200] * 3 * count
        assert len({str(answer["caption"]) for _, answer in answers}) == 1
        # Before any client has closed its own end.
        for connection in idle:
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
        assert server.process.wait(_WAIT_S) == 0
    assert server.process.stderr is not None
    assert server.process.stderr.read().splitlines()[1:] == ["batchcap: loading the model"]
    assert all(ends(child, _WAIT_S) for child in children)


def test_a_port_that_is_taken(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"can't listen at 127.0.0.1 port {port}: .*--port"):
            serve(connect().app, ServingOptions(port=port))  # type: ignore[arg-type]


def test_a_server_that_can_not_start_says_so(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    application = connect().app
    monkeypatch.setattr("tempfile.tempdir", "/dev/null")
    with pytest.raises(BatchcapError, match="can't start"):
        serve(application, ServingOptions(port=0))  # type: ignore[arg-type]


def test_a_token_that_can_be_guessed_is_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("1234")
    done = CliRunner().invoke(app, ["serve", "--token-file", str(tmp_path / "token")])
    assert done.exit_code == 2
    assert "at least 16" in done.stderr


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("batchcap.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    done = CliRunner().invoke(app, ["serve"])
    assert done.exit_code == 2
    assert "pip install 'batchcap[serve]'" in done.stderr
