"""Runs the application: one process, one event loop, one model."""

import asyncio
import json
import logging
import socket
import sys
from typing import Any, ClassVar

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from batchcap.errors import BatchcapError, UsageError
from batchcap.serving.options import ServingOptions

_KEEP_ALIVE_S = 5
_MAX_HEAD_BYTES = 16 * 1024
_BACKLOG = 1024


def serve(app: FastAPI, options: ServingOptions) -> None:
    """Serves until SIGINT or SIGTERM; requests in flight are answered first.

    Args:
        app: of `create_app`.
        options: the same as the application's.

    Raises:
        UsageError: the address can't be listened at.
        BatchcapError: its threads or its folder can't be made.
    """
    with _listen(options) as listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        config = uvicorn.Config(
            app,
            http=TimedProtocol.within(options.header_timeout_s),
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(options.stop_timeout_s)),
            h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
            backlog=_BACKLOG,
        )
        # Or anybody could fill the log with what is no HTTP.
        logging.getLogger("uvicorn").setLevel(logging.ERROR)
        print(f"http://{shown}:{port}", flush=True)
        if not options.shows_collection:
            print(
                "batchcap: beyond this machine captions only; with --token-file the collection too",
                file=sys.stderr,
            )
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            pass  # uvicorn has stopped in order, then passes the signal on
        except SystemExit as error:
            # It has a status of its own for this.
            raise BatchcapError("the server can't start; what is wrong stands above") from error


def _listen(options: ServingOptions) -> socket.socket:
    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((options.host, options.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UsageError(
            f"can't listen at {options.host} port {options.port}: {error.strerror or error}; "
            "name others with --host and --port"
        ) from error


class TimedProtocol(H11Protocol):
    """The protocol of uvicorn, but heads must arrive in time, and what is no HTTP is told so in JSON.

    From the first byte that may belong to a head until it is whole, not from byte to byte: uvicorn would wait
    for ever for a client that sends one now and then.
    """

    header_timeout_s: ClassVar[float] = 10.0
    _deadline: asyncio.TimerHandle | None = None

    @classmethod
    def within(cls, header_timeout_s: float) -> "type[TimedProtocol]":
        """The protocol with another limit: uvicorn makes the instances."""
        return type(cls.__name__, (cls,), {"header_timeout_s": header_timeout_s})

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def send_400_response(self, msg: str) -> None:
        body = json.dumps({"error": {"code": UsageError.code, "message": "this is no HTTP request"}}).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        for event in (
            h11.Response(status_code=400, headers=list(headers.items())),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_watching()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.header_timeout_s, self._cut)

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cut(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.transport.abort()
