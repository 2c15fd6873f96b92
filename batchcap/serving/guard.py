"""What every request passes before anything of it is read: who may ask, and by which name of this server.

A browser is the door by which a web page somewhere reaches servers on this machine. So the name in `Host`
must be one that no stranger's name server can point here, and whatever has effects must come from a page of
our own.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import time
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batchcap.serving.access_log import AccessLog
from batchcap.serving.metrics import Metrics
from batchcap.serving.options import ServingOptions, is_loopback
from batchcap.serving.problems import FORBIDDEN, UNAUTHORIZED, Problem, problem_of

SESSION_PATH = "/session"
SESSION_COOKIE = "batchcap_session"

# What needs no token, by the first part of the path: it shows nothing of anybody's.
_OPEN = frozenset({"healthz", "readyz", "static", SESSION_PATH.strip("/")})
# What shows nothing of the collection. All else does, whatever is added.
_PUBLIC = _OPEN | {"", "caption", "captions", "metrics", "openapi.json"}
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_METHODS = _SAFE_METHODS | {"POST", "PUT", "PATCH", "DELETE"}
# In the scope of a HEAD, which the application sees as a GET.
_IS_HEAD = "batchcap.is_head"

_SECURITY_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Not "no-referrer": browsers would call the origin of a form of our own null.
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
# After an answer that did not wait for the whole body: what the client still sends is dropped, or it would
# see a reset instead of the answer.
_LINGER_S = 2.0
_LINGER_BYTES = 64 * 2**20


class Guard:
    """The outermost layer of the application (ASGI).

    Args:
        app: what is inside.
        options: of the server.
        metrics: counts the answers.
        access_log: has a line of each.
    """

    def __init__(
        self, app: ASGIApp, *, options: ServingOptions, metrics: Metrics, access_log: AccessLog | None = None
    ) -> None:
        self._app = app
        self._options = options
        self._metrics = metrics
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        # Where our own server runs the application, that closes the connection before.
        answer = _Answer(scope, receive, send, send_timeout_s=2 * self._options.send_timeout_s)
        started = time.monotonic()
        if is_of_head := scope["method"] == "HEAD":
            # What answers GET answers HEAD; what it sends besides the head is dropped.
            scope = {**scope, "method": "GET", _IS_HEAD: True}
        try:
            if (refusal := self._refusal(scope)) is not None:
                await refusal(scope, answer.receive, answer.send)
            else:
                await self._app(scope, answer.receive, answer.send)
        except Exception as error:
            if answer.status is not None:
                # Half of an answer can't be taken back: the server closes the connection.
                raise
            await problem_of(error).response()(scope, answer.receive, answer.send)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = "HEAD" if is_of_head else scope["method"] if scope["method"] in _METHODS else "other"
            elapsed_s = time.monotonic() - started
            self._metrics.answered(method, route, answer.status or 0, elapsed_s)
            if self._access_log is not None:
                self._access_log.write(
                    client=(scope.get("client") or (None,))[0],
                    method=method,
                    path=scope["path"],
                    status=answer.status,
                    received_bytes=answer.received_bytes,
                    sent_bytes=answer.sent_bytes,
                    elapsed_s=round(elapsed_s, 4),
                )

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that goes no further."""
        headers = Headers(scope=scope)
        first = _first(scope["path"])
        try:
            self._check_host(headers.getlist("host"))
            if scope["method"] not in _SAFE_METHODS:
                _check_origin(headers)
            if first not in _PUBLIC and not self._options.shows_collection:
                raise Problem(
                    403,
                    FORBIDDEN,
                    "beyond this machine the collection is shown to holders of a token only; "
                    "start the server with --token-file",
                )
            if needs_token(scope["path"]) and not self.is_admitted(headers):
                if scope["method"] == "GET" and wants_html(headers):
                    return RedirectResponse(SESSION_PATH, 303)
                raise Problem(
                    401,
                    UNAUTHORIZED,
                    "send the token as `Authorization: Bearer TOKEN`",
                    headers={"www-authenticate": "Bearer"},
                )
        except Problem as problem:
            return problem.response()
        return None

    def _check_host(self, names: list[str]) -> None:
        name = _host_name(names[0]) if len(names) == 1 else ""
        # An address can't be pointed elsewhere; a name can.
        is_known = name in self._options.allowed_hosts or is_loopback(name)
        if not is_known and not self._options.is_private:
            is_known = name == self._options.host or _is_address(name)
        if not is_known:
            raise Problem(
                403, FORBIDDEN, "this server isn't known by that name; start it with --allowed-host NAME"
            )

    def is_admitted(self, headers: Headers) -> bool:
        """Whether a request carries the token, if one is asked for."""
        token = self._options.token
        if token is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return is_same(given.strip(), token)
        return is_same(_cookie(headers.get("cookie", "")), session_of(token))


def needs_token(path: str) -> bool:
    """Whether what is asked for is for holders of the token alone, if there is one."""
    return _first(path) not in _OPEN


def _first(path: str) -> str:
    return path.lstrip("/").partition("/")[0]


def wants_html(headers: Headers) -> bool:
    """Whether a browser asks for a page, rather than a program for JSON."""
    return "text/html" in headers.get("accept", "")


def is_head(scope: Scope) -> bool:
    """Whether only the head of the answer is wanted, so that its body need not be made."""
    return _IS_HEAD in scope


def is_same(given: str, secret: str) -> bool:
    """Whether two texts are equal, in a time that tells nothing of the secret."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode())


def session_of(token: str) -> str:
    """What a browser keeps in the place of the token, which no cookie shall hold."""
    return hmac.new(token.encode(), b"batchcap session", hashlib.sha256).hexdigest()


def _check_origin(headers: Headers) -> None:
    """Refuses what a browser sends on behalf of another site; programs send neither header."""
    origin = headers.get("origin")
    is_ours = origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower() != ""
    if not is_ours or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise Problem(403, FORBIDDEN, "this comes from a page of another site")


def _host_name(host: str) -> str:
    """The name in a Host header, without the port; empty where it has none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _cookie(header: str) -> str:
    try:
        morsel = SimpleCookie(header).get(SESSION_COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


class _Answer:
    """Sends one answer: with the headers of all, in bounded time, and so that the client can read it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, send_timeout_s: float) -> None:
        headers = Headers(scope=scope)
        self.status: int | None = None
        self._is_head = scope["method"] == "HEAD"
        # A page's script and style are asked for anew, but not sent anew.
        self._cache_control = "no-cache" if scope["path"].startswith("/static/") else "no-store"
        self._receive = receive
        self._send = send
        # Of one piece of the answer.
        self._send_timeout_s = send_timeout_s
        self._has_whole_body = (
            "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"
        )
        self._is_last = False
        # Of bodies.
        self.received_bytes = 0
        self.sent_bytes = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self.received_bytes += len(message.get("body", b""))
        self._has_whole_body = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._add_headers(MutableHeaders(scope=message))
        elif self._is_head:
            message = {**message, "body": b""}
        self.sent_bytes += len(message.get("body", b""))
        is_end = message["type"] == "http.response.body" and not message.get("more_body", False)
        if is_end and self._is_last and not self._has_whole_body:
            # All of the answer is on its way before the connection is closed behind it.
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        async with asyncio.timeout(self._send_timeout_s):
            await self._send(message)

    def _add_headers(self, headers: MutableHeaders) -> None:
        for name, value in _SECURITY_HEADERS.items():
            headers.setdefault(name, value)
        headers.setdefault("cache-control", self._cache_control)
        if not self._has_whole_body:
            # Nobody reads the rest of the body, nor says when it is late; and what follows it could not be
            # told from it.
            self._is_last = True
            headers["connection"] = "close"

    async def _linger(self) -> None:
        size_bytes = 0
        try:
            async with asyncio.timeout(_LINGER_S):
                while not self._has_whole_body and size_bytes < _LINGER_BYTES:
                    size_bytes += len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass
