"""Web servers: single files by `http://` and `https://`."""

import http.client
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from functools import cache
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import quote, urlsplit

import batchcap
from batchcap.storage.entries import FileEntry

T = TypeVar("T")

# Together less than a file may take by default, so that a server that is away is told from a file that hangs.
_TIMEOUT_S = 10.0
_READ_S = 40.0
# Between attempts; a server that asks for more patience gets no more than the last.
_RETRY_DELAYS_S = (0.5, 2.0)
_CHUNK_BYTES = 1024**2
_GONE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
# URLs that are signed for GET alone answer HEAD with 403.
_NO_HEAD = (HTTPStatus.FORBIDDEN, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED)
_PASSING = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
# What stays as it is in a URL: people write spaces and letters of their own, but also escapes.
_SAFE = "%/:?#[]@!$&'()*+,;=~-._"


class _PassingError(OSError):
    """What may work in a second."""


def stat(uri: str) -> FileEntry:
    """Asks for the headers of a file.

    Where a server says neither etag nor time, it counts as changed at every look.

    Raises:
        FileNotFoundError: the server says that there is none.
        OSError: it can't be told.
    """
    return _retried(lambda: _stat(uri))


def read_bytes(location: str, limit: int) -> bytes:
    """The content of a file, or `limit` + 1 bytes of one that is larger.

    Raises:
        OSError: it can't be read, after a few attempts.
    """
    return _retried(lambda: _read(location, limit))


def _stat(uri: str) -> FileEntry:
    try:
        with _asked(uri, "HEAD") as response:
            return _entry(uri, response)
    except urllib.error.HTTPError as error:
        if error.code not in _NO_HEAD:
            raise _error_of(error) from None
    with _asked(uri, "GET") as response:
        return _entry(uri, response)


def _read(uri: str, limit: int) -> bytes:
    deadline = time.monotonic() + _READ_S
    data = bytearray()
    with _asked(uri, "GET") as response:
        length = response.length
        while len(data) <= limit:
            chunk = response.read1(min(_CHUNK_BYTES, limit + 1 - len(data)))
            if not chunk:
                break
            data += chunk
            if time.monotonic() > deadline:
                raise OSError(f"the server took more than {_READ_S:g} s")
        # `read1` does not say that the connection was cut.
        if length is not None and len(data) < min(length, limit + 1):
            raise _PassingError("the connection was closed before the end")
    return bytes(data)


def _entry(uri: str, response: http.client.HTTPResponse) -> FileEntry:
    headers = response.headers
    size = headers.get("Content-Length", "")
    etag = headers.get("ETag")
    try:
        mtime_ns = int(parsedate_to_datetime(headers["Last-Modified"]).timestamp()) * 1_000_000_000
    except (KeyError, OverflowError, TypeError, ValueError):
        # With an etag, nobody looks at it.
        mtime_ns = 0 if etag else time.time_ns()
    return FileEntry(uri, int(size) if size.isdecimal() else 0, mtime_ns, etag)


@contextmanager
def _asked(uri: str, method: str) -> Iterator[http.client.HTTPResponse]:
    """The answer of a server that has the file.

    Raises:
        HTTPError: it has not, or does not know HEAD.
        OSError: whatever else goes wrong.
    """
    request = _request(uri, method)
    try:
        with _opener().open(request, timeout=_TIMEOUT_S) as response:
            yield response
    except urllib.error.HTTPError as error:
        error.close()
        if method == "HEAD":
            raise
        raise _error_of(error) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, socket.gaierror) and error.reason.errno == socket.EAI_NONAME:
            raise FileNotFoundError("there is no such server") from None
        raise _PassingError(f"the server can't be reached: {error.reason}") from None
    except (TimeoutError, ConnectionError, http.client.IncompleteRead) as error:
        raise _PassingError(f"the server does not answer: {error}") from None
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"the server's answer makes no sense: {error!r}") from None


def _request(uri: str, method: str) -> urllib.request.Request:
    headers = {"User-Agent": f"batchcap/{batchcap.__version__}"}
    try:
        address = urlsplit(uri)
        # Asking for a port that is no number raises, too.
        # A password would stand in the catalog.
        if address.hostname and address.port != 0 and address.username is None:
            return urllib.request.Request(quote(uri, safe=_SAFE), method=method, headers=headers)
    except ValueError:
        pass
    raise FileNotFoundError("it is no URL of a file")


def _error_of(error: urllib.error.HTTPError) -> OSError:
    if error.code in _GONE:
        return FileNotFoundError("the server has no such file")
    message = f"the server says {error.code} {error.reason}"
    return _PassingError(message) if error.code in _PASSING else OSError(message)


def _retried(attempt: Callable[[], T]) -> T:
    for delay_s in _RETRY_DELAYS_S:
        try:
            return attempt()
        except _PassingError:
            time.sleep(delay_s)
    return attempt()


@cache
def _opener() -> urllib.request.OpenerDirector:
    """What follows redirects, but not to `ftp:` or `file:`, and uses the proxies of the environment."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener
