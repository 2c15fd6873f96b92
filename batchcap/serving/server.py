"""Runs the application: one process, one event loop, one model."""

import asyncio
import json
import logging
import socket
import struct
import sys
from typing import Any, ClassVar

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from batchcap.errors import BatchcapError, UsageError
from batchcap.serving.options import ServingOptions
from batchcap.serving.problems import BUSY

_MAX_HEAD_BYTES = 16 * 1024
_BACKLOG = 1024
# Connections beyond the limit that are told so; still more are closed without waiting for them to hear it.
_MAX_REFUSED = 64
_LINGER_S = 1.0
# When the server stops: for connections that the loop has not seen, and for requests that it has not read.
_LAST_ROUNDS = 10
_LAST_ROUND_S = 0.005
_LAST_HEAD_S = 0.2


def serve(app: FastAPI, options: ServingOptions) -> None:
    """Serves until SIGINT or SIGTERM; requests in flight are answered first.

    Args:
        app: of `create_app`.
        options: the same as the application's.

    Raises:
        UsageError: the address can't be listened at.
        BatchcapError: its threads or its folder can't be made.
    """
    with listen(options) as listener:
        # Or anybody could fill the log with what is no HTTP.
        logging.getLogger("uvicorn").setLevel(logging.ERROR)
        host, port = listener.getsockname()[:2]
        say_where(host, port, options)
        try:
            make_server(app, options).run(sockets=[listener])
        except KeyboardInterrupt:
            pass  # uvicorn has stopped in order, then passes the signal on
        except SystemExit as error:
            # It has a status of its own for this.
            raise BatchcapError("the server can't start; what is wrong stands above") from error


def make_server(app: FastAPI, options: ServingOptions) -> uvicorn.Server:
    """What serves the application; `run` is given the sockets to listen at.

    Args:
        app: of `create_app`.
        options: the same as the application's.
    """
    return _Server(
        uvicorn.Config(
            app,
            http=TimedProtocol.within(options),
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=max(1, round(options.stop_timeout_s)),
            h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
            backlog=_BACKLOG,
        )
    )


def say_where(host: str, port: int, options: ServingOptions) -> None:
    """Prints the address of the server, and what it will not show there."""
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{port}", flush=True)
    if not options.shows_collection:
        print(
            "batchcap: beyond this machine captions only; with --token-file the collection too",
            file=sys.stderr,
        )


def listen(options: ServingOptions) -> socket.socket:
    """A socket that listens.

    Raises:
        UsageError: the address can't be listened at.
    """
    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((options.host, options.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UsageError(
            f"can't listen at {options.host} port {options.port}: {error.strerror or error}; "
            "name others with --host and --port"
        ) from error


class _Server(uvicorn.Server):
    """The server of uvicorn, but nobody whom the system has let in is sent away when it stops."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Who connects is first let in by the system, then taken by the loop: once more all who wait.
        for _ in range(_LAST_ROUNDS):
            await asyncio.sleep(_LAST_ROUND_S)
        await super().shutdown(sockets)


class TimedProtocol(H11Protocol):
    """The protocol of uvicorn, but nobody holds a connection for ever; what is no HTTP is told so in JSON.

    A head must arrive in time: from the first byte that may belong to it until it is whole, not from byte to
    byte, for uvicorn would wait for ever for a client that sends one now and then. What is sent must be read
    in time. (Bodies are the application's affair.) And there may be so many connections, no more.
    """

    options: ClassVar[ServingOptions] = ServingOptions()
    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _is_refused = False
    _is_stopping = False

    @classmethod
    def within(cls, options: ServingOptions) -> "type[TimedProtocol]":
        """The protocol with other limits: uvicorn makes the instances."""
        return type(cls.__name__, (cls,), {"options": options})

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # Not uvicorn's, which knows whole seconds only.
        self.timeout_keep_alive = self.options.keep_alive_s  # type: ignore[assignment]
        # Any byte that the client leaves unread counts.
        transport.set_write_buffer_limits(0)
        if len(self.connections) > self.options.max_connections:
            self._refuse()
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        super().data_received(data)
        self._watch()
        if self._is_stopping and not self._is_between_requests():
            self._end_after_this()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.options.send_timeout_s, self._reset)

    def resume_writing(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def shutdown(self) -> None:
        """Answers what has come, and what is on its way: a request may be here that nobody has read yet."""
        self._is_stopping = True
        if self._is_between_requests():
            self.loop.call_later(_LAST_HEAD_S, self._end_after_this)
        else:
            self._end_after_this()

    def send_400_response(self, msg: str) -> None:
        self._answer(400, UsageError.code, "this is no HTTP request")
        self.transport.close()

    def _refuse(self) -> None:
        self._is_refused = True
        self._answer(503, BUSY, "too many connections; come back later", **{"retry-after": "1"})
        if len(self.connections) > self.options.max_connections + _MAX_REFUSED:
            self.transport.close()
        else:
            # What the client is sending is dropped, or it might see a reset instead of the answer.
            self.transport.write_eof()
            self._head = self.loop.call_later(_LINGER_S, self.transport.abort)

    def _answer(self, status: int, code: str, message: str, **headers: str) -> None:
        """Answers in the place of the application."""
        body = json.dumps({"error": {"code": code, "message": message}}).encode()
        headers |= {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        for event in (
            h11.Response(status_code=status, headers=list(headers.items())),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")

    def _is_between_requests(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def _end_after_this(self) -> None:
        """Closes the connection, after the request that is being answered if there is one."""
        if not self.transport.is_closing() and not self._is_refused:
            super().shutdown()

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_watching()
        elif self._head is None:
            self._head = self.loop.call_later(self.options.header_timeout_s, self._cut)

    def _reset(self) -> None:
        """Closes the connection, and has the system forget what a client has not read."""
        connection = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _stop_watching(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _cut(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.transport.abort()
