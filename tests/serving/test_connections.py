"""Clients that hold connections: they are cut off, and their number has an upper limit."""

import asyncio
import http.client
import json
import select
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from batchcap.serving.app import create_app
from batchcap.serving.options import ServingOptions
from batchcap.serving.server import make_server
from tests.costless import Costless, CostlessCaptioner
from tests.serving.conftest import Collection, served

_WAIT_S = 60.0
_LIMIT_S = 0.5
_BODY = b"POST /caption HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"
_GET = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.fixture(scope="module")
def port(collection: Collection) -> Iterator[int]:
    """Of a server that has no patience."""
    limits = ("header_timeout_s", "body_timeout_s", "send_timeout_s", "keep_alive_s")
    with served(collection, **dict.fromkeys(limits, _LIMIT_S)) as url:
        yield int(url.rpartition(":")[2])


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=_WAIT_S)


def trickle(connection: socket.socket, start: bytes, piece: bytes = b"x") -> bytes:
    """Sends a start, then piece by piece, until the server closes the connection; what it has sent."""
    received = b""
    connection.sendall(start)
    connection.settimeout(_LIMIT_S / 10)
    # A server that cuts nobody off makes this fail, not last for ever.
    for _ in range(round(_WAIT_S / _LIMIT_S * 10)):
        try:
            if not (more := connection.recv(65536)):
                return received
            received += more
        except TimeoutError:
            with suppress(OSError):
                connection.sendall(piece)
        except ConnectionResetError:
            return received
    raise AssertionError("the server has not closed the connection")


def error_in(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize("start", [b"", b"GET", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-More: "])
def test_a_head_that_trickles_is_cut_off(port: int, start: bytes) -> None:
    with connected(port) as connection:
        assert trickle(connection, start) == b""


def test_who_sends_nothing_is_cut_off(port: int) -> None:
    with connected(port) as connection, suppress(ConnectionResetError):
        assert connection.recv(1) == b""


def test_a_body_that_trickles_is_cut_off(port: int) -> None:
    kinds = {
        _BODY + b"Content-Length: 1000\r\n\r\n": b"x",
        _BODY + b"Transfer-Encoding: chunked\r\n\r\n": b"1\r\nx\r\n",
        # Nobody reads it: the answer doesn't wait for it, and the connection ends with the answer.
        _GET + b"Content-Length: 1000\r\n\r\n": b"x",
    }

    def answer_to(start: bytes, piece: bytes) -> bytes:
        with connected(port) as connection:
            return trickle(connection, start, piece)

    with ThreadPoolExecutor(len(kinds)) as threads:
        *late, unread = threads.map(answer_to, kinds, kinds.values())
    assert [error_in(answer) for answer in late] == [(408, "timeout")] * 2
    assert unread.startswith(b"HTTP/1.1 200 ") and b"connection: close" in unread.lower()


def test_a_connection_without_a_next_request_is_closed(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(_GET + b"\r\n")
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.read() == b'{"status":"ok"}'
        assert connection.recv(1) == b""


def test_who_does_not_read_is_cut_off(port: int) -> None:
    with connected(port) as connection:
        # More than the buffers of the system hold.
        with suppress(ConnectionResetError):
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 1000)
        reset = select.poll()
        reset.register(connection, 0)
        assert reset.poll(_WAIT_S * 1000) != []


def test_who_was_let_in_when_the_server_stops_is_answered() -> None:
    """The system has taken the connection and the request, the loop has seen neither."""
    options = ServingOptions(decoders=1)
    server = make_server(create_app(CostlessCaptioner(Costless()), options=options), options)

    async def stop_at_once() -> bytes:
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            await server.startup([listener])
            with connected(listener.getsockname()[1]) as connection:
                connection.sendall(_GET + b"\r\n")
                await server.shutdown([listener])
                return connection.recv(65536)

    assert asyncio.run(stop_at_once()).startswith(b"HTTP/1.1 200 ")


def test_more_connections_than_there_may_be_are_refused(collection: Collection) -> None:
    with served(collection, max_connections=2, keep_alive_s=_WAIT_S) as url:
        port = int(url.rpartition(":")[2])
        clients = [http.client.HTTPConnection("127.0.0.1", port, timeout=_WAIT_S) for _ in range(2)]
        for client in clients:
            client.request("GET", "/healthz")
            assert client.getresponse().read() == b'{"status":"ok"}'
        with connected(port) as refused:
            # Whatever it asks.
            refused.sendall(_GET + b"\r\n")
            answer = b"".join(iter(lambda: refused.recv(65536), b""))
        assert error_in(answer) == (503, "busy")
        assert b"retry-after: 1\r\n" in answer.lower()
        # Those who are there stay.
        clients[0].request("GET", "/healthz")
        assert clients[0].getresponse().read() == b'{"status":"ok"}'
        for client in clients:
            client.close()
        # And there is room again, as soon as the server has noticed.
        while True:
            with connected(port) as last:
                last.sendall(_GET + b"Connection: close\r\n\r\n")
                if b"".join(iter(lambda: last.recv(65536), b"")).startswith(b"HTTP/1.1 200 "):
                    break
