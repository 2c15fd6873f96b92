"""Servers on loopback: a web server, and two that speak as much of S3 and GCS as reading and listing need.

They are real servers, which real clients talk to over a socket. (moto would be one more, but its boto needs
an older python-dateutil than the rest.) A listing has two keys a page, so that nearly every one has several.
"""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_PAGE_KEYS = 2
_TIME_S = 1_600_000_000


class Server(ThreadingHTTPServer):
    """Serves from memory.

    Attributes:
        files: content by path (`/a.jpg`), of the S3 server by bucket and key (`/bucket/a.jpg`).
        failing: how often a path answers with this status before it answers as it should; -1 is always.
        requests: methods and paths that were asked for.
        changed_s: when the files were changed, in seconds since 1970.
    """

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.files: dict[str, bytes] = {}
        self.failing: dict[str, list[int]] = {}
        self.requests: Counter[tuple[str, str]] = Counter()
        self.changed_s = _TIME_S

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no news."""

    def fails(self, path: str) -> int | None:
        """The status with which this request fails."""
        if path not in self.failing:
            return None
        left, status = self.failing[path]
        if left == 0:
            return None
        self.failing[path][0] -= 1
        return status


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_file(self, content: bytes) -> None:
        headers = {
            "ETag": f'"{hashlib.md5(content).hexdigest()}"',
            "Last-Modified": formatdate(self.server.changed_s, usegmt=True),
        }
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            piece = content[int(start) : int(end) + 1 if end else None]
            content_range = f"bytes {start}-{int(start) + len(piece) - 1}/{len(content)}"
            self.answer(206, piece, Content_Range=content_range, **headers)
        else:
            self.answer(200, content, **headers)

    def listed(self, bucket: str, prefix: str, delimiter: str) -> dict[str, bool]:
        """The keys of a bucket and the beginnings that they share, sorted; which of the two each is."""
        found: dict[str, bool] = {}
        for name in sorted(self.server.files):
            if name.startswith(f"/{bucket}/{prefix}"):
                key = name.removeprefix(f"/{bucket}/")
                head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
                found[prefix + head + cut if cut else key] = bool(cut)
        return found


class WebHandler(_Handler):
    """A web server; some paths have manners of their own."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests[self.command, path] += 1
        content = self.server.files.get(path)
        if status := self.server.fails(path):
            self.answer(status)
        elif path.startswith("/to/"):
            self.answer(302, Location=self.path.removeprefix("/to"))
        elif path == "/loop":
            self.answer(302, Location="/loop")
        elif path == "/elsewhere":
            self.answer(302, Location="file:///etc/hosts")
        elif content is None:
            self.answer(404)
        elif path.startswith("/nohead/") and self.command == "HEAD":
            self.answer(405)
        elif path.startswith("/bare/"):
            # Neither etag nor time nor size.
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else content)
            self.close_connection = True
        elif path.startswith("/cut/"):
            self.answer(200, content[: len(content) // 2], Content_Length=str(len(content)))
            self.close_connection = True
        else:
            self.answer_file(content)


class S3Handler(_Handler):
    """GET and HEAD of objects, HEAD of buckets, ListObjectsV2; its keys can't be signed wrongly."""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path, query = unquote(address.path), parse_qs(address.query, keep_blank_values=True)
        self.server.requests[self.command, path] += 1
        bucket, _, key = path.lstrip("/").partition("/")
        if status := self.server.fails(path):
            names = {403: "AccessDenied", 503: "SlowDown"}
            self._fail(status, names.get(status, "InternalError"))
        elif not any(name.startswith(f"/{bucket}/") for name in self.server.files):
            self._fail(404, "NoSuchBucket")
        elif key:
            content = self.server.files.get(path)
            self._fail(404, "NoSuchKey") if content is None else self.answer_file(content)
        elif self.command == "HEAD":
            self.answer(200)
        else:
            self._list(bucket, {name: values[0] for name, values in query.items()})

    def _fail(self, status: int, code: str) -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
        self.answer(status, body.encode(), Content_Type="application/xml")

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        found = self.listed(bucket, prefix, delimiter)
        after = query.get("continuation-token", "")
        rest = [name for name in found if name > after]
        page = rest[: min(_PAGE_KEYS, int(query.get("max-keys", 1000)))]
        more = len(page) < len(rest)
        sizes = {name: len(self.server.files.get(f"/{bucket}/{name}", b"")) for name in page}
        changed = datetime.fromtimestamp(self.server.changed_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.500Z")
        items = "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            if found[name]
            else f"<Contents><Key>{escape(name)}</Key><Size>{sizes[name]}</Size>"
            f"<LastModified>{changed}</LastModified><ETag>x</ETag></Contents>"
            for name in page
        )
        body = (
            f"<?xml version='1.0'?><ListBucketResult><Name>{bucket}</Name><KeyCount>{len(page)}</KeyCount>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>"
            + (f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else "")
            + f"{items}</ListBucketResult>"
        )
        self.answer(200, body.encode(), Content_Type="application/xml")


class GcsHandler(_Handler):
    """Reading and listing in the JSON that Google Cloud Storage speaks."""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        # /storage/v1/b/BUCKET/o/KEY
        _, _, _, _, bucket, *rest = map(unquote, address.path.split("/"))
        path = f"/{bucket}/{rest[1]}" if len(rest) > 1 else f"/{bucket}"
        self.server.requests[self.command, path] += 1
        if status := self.server.fails(path):
            self.answer(status)
        elif len(rest) > 1:
            content = self.server.files.get(path)
            if content is None:
                self.answer(404)
            elif query.get("alt") == "media":
                self.answer_file(content)
            else:
                self._json(self._described(bucket, rest[1]))
        elif not any(name.startswith(f"/{bucket}/") for name in self.server.files):
            self.answer(404)
        elif rest:
            self._list(bucket, query)
        else:
            self._json({"kind": "storage#bucket", "id": bucket, "name": bucket})

    def _json(self, values: dict[str, object]) -> None:
        self.answer(200, json.dumps(values).encode(), Content_Type="application/json")

    def _described(self, bucket: str, key: str) -> dict[str, object]:
        changed = datetime.fromtimestamp(self.server.changed_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.500Z")
        size = str(len(self.server.files[f"/{bucket}/{key}"]))
        return {"kind": "storage#object", "bucket": bucket, "name": key, "size": size, "updated": changed}

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        found = self.listed(bucket, query.get("prefix", ""), query.get("delimiter", ""))
        rest = [name for name in found if name > query.get("pageToken", "")]
        page = rest[:_PAGE_KEYS]
        answer: dict[str, object] = {
            "kind": "storage#objects",
            "items": [self._described(bucket, name) for name in page if not found[name]],
            "prefixes": [name for name in page if found[name]],
        }
        self._json(answer | ({"nextPageToken": page[-1]} if len(page) < len(rest) else {}))


@contextmanager
def running(handler: Callable[..., BaseHTTPRequestHandler] | type[_Handler]) -> Iterator[Server]:
    """A server that runs until the end of the block."""
    with Server(handler) as server:  # type: ignore[arg-type]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
