"""The body of a request -> files in a folder of ours, written as they arrive and cut off when too long."""

import asyncio
import itertools
import unicodedata
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from batchcap.serving.problems import BUSY, TIMEOUT, TOO_LARGE, UNSUPPORTED, Problem, usage

# The fields of a form that hold pictures.
_FIELDS = (b"file", b"files")
_MAX_NAME_LENGTH = 255
_NAMELESS = "upload"


@dataclass(frozen=True, slots=True)
class Upload:
    """One file that a client has sent.

    Args:
        name: that the client gives it; only ever shown.
        path: where its bytes are; the name there is ours.
    """

    name: str
    path: Path


async def small_body(request: Request, *, max_bytes: int, timeout_s: float) -> bytes:
    """A body that is held in memory.

    Args:
        request: nothing of its body is read yet.
        max_bytes: it may have.
        timeout_s: how long it may take to arrive.

    Raises:
        Problem: it is too long, takes too long or ends in the middle.
    """
    body = b""
    try:
        async with asyncio.timeout(timeout_s):
            async for piece in request.stream():
                body += piece
                if len(body) > max_bytes:
                    raise Problem(413, TOO_LARGE, f"the body has more than {max_bytes} bytes")
    except TimeoutError:
        raise Problem(408, TIMEOUT, f"the body took more than {timeout_s:g} s") from None
    except ClientDisconnect:
        raise usage("the body ends in the middle") from None
    return body


class Uploads:
    """Receives files into a folder.

    Args:
        folder: it exists, and nobody else writes there.
        max_body_bytes: of one request.
        max_stored_bytes: of all requests at once.
        body_timeout_s: how long a body may take to arrive.
    """

    def __init__(
        self, folder: Path, *, max_body_bytes: int, max_stored_bytes: int, body_timeout_s: float
    ) -> None:
        self._folder = folder
        self._max_body_bytes = max_body_bytes
        self._max_stored_bytes = max_stored_bytes
        self._body_timeout_s = body_timeout_s
        self._stored_bytes = 0
        self._numbers = itertools.count()

    @asynccontextmanager
    async def received(
        self, request: Request, *, max_files: int, admit: Callable[[], None]
    ) -> AsyncIterator[list[Upload]]:
        """Reads the body of a request, a form with files or one picture as it is, and forgets it at the end.

        Args:
            request: nothing of its body is read yet.
            max_files: of the request.
            admit: called before each file but the first is taken; raises if there is no room for it.

        Yields:
            The files, at least one, in their order.

        Raises:
            Problem: the body is no such thing, is too long, has too many files, or takes too long; or there
                is no room for it.
        """
        receiver = _Receiver(self._new_file, self._store, max_files, admit)
        try:
            await self._receive(request, receiver)
            yield receiver.uploads
        finally:
            receiver.discard()
            self._stored_bytes -= receiver.stored_bytes

    async def _receive(self, request: Request, receiver: "_Receiver") -> None:
        content_type, options = parse_options_header(request.headers.get("content-type"))
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Problem(415, UNSUPPORTED, "send the file as it is, without a Content-Encoding")
        self._check_declared_length(request)
        try:
            async with asyncio.timeout(self._body_timeout_s):
                if content_type == b"multipart/form-data":
                    await self._receive_form(request, receiver, options.get(b"boundary", b""))
                elif content_type.startswith(b"image/") or content_type == b"application/octet-stream":
                    await self._receive_raw(request, receiver)
                else:
                    raise Problem(
                        415,
                        UNSUPPORTED,
                        "send multipart/form-data with the field `file`, or a picture as image/* or "
                        "application/octet-stream",
                    )
            if not receiver.uploads:
                raise usage("there is no file in the field `file`")
        except TimeoutError:
            raise Problem(408, TIMEOUT, f"the body took more than {self._body_timeout_s:g} s") from None
        except ClientDisconnect:
            raise usage("the body ends in the middle") from None

    def _new_file(self) -> Path:
        return self._folder / f"{next(self._numbers)}"

    def _store(self, size_bytes: int) -> None:
        if self._stored_bytes + size_bytes > self._max_stored_bytes:
            raise Problem(429, BUSY, "too much is being sent; come back later", headers={"retry-after": "1"})
        self._stored_bytes += size_bytes

    def _check_declared_length(self, request: Request) -> None:
        declared = request.headers.get("content-length", "0")
        # h11 has seen to it that it is a number.
        if declared.isdecimal() and int(declared) > self._max_body_bytes:
            raise self._too_large()

    def _too_large(self) -> Problem:
        return Problem(413, TOO_LARGE, f"the body has more than {self._max_body_bytes} bytes")

    async def _receive_raw(self, request: Request, receiver: "_Receiver") -> None:
        receiver.begin(_NAMELESS)
        await self._feed(request, receiver.write)
        receiver.end()

    async def _receive_form(self, request: Request, receiver: "_Receiver", boundary: bytes) -> None:
        if not boundary:
            raise usage("the form names no boundary")
        form = _Form(receiver)
        try:
            parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": form.begin_part,
                    "on_header_field": form.header_field,
                    "on_header_value": form.header_value,
                    "on_header_end": form.end_header,
                    "on_headers_finished": form.end_headers,
                    "on_part_data": form.part_data,
                    "on_part_end": form.end_part,
                    "on_end": form.end,
                },
            )
            await self._feed(request, parser.write)
        except FormParserError as error:
            raise usage("the form can't be read: it is no multipart/form-data") from error
        if not form.has_ended:
            raise usage("the form ends in the middle")

    async def _feed(self, request: Request, write: Callable[[bytes], object]) -> None:
        """Hands over the body, piece by piece, until it is too long."""
        size_bytes = 0
        async for piece in request.stream():
            size_bytes += len(piece)
            if size_bytes > self._max_body_bytes:
                raise self._too_large()
            if piece:
                write(piece)


class _Receiver:
    """Files as they arrive, one after the other."""

    def __init__(
        self,
        new_file: Callable[[], Path],
        store: Callable[[int], None],
        max_files: int,
        admit: Callable[[], None],
    ) -> None:
        self.uploads: list[Upload] = []
        self.stored_bytes = 0
        self._new_file = new_file
        self._store = store
        self._max_files = max_files
        self._admit = admit
        self._file: BinaryIO | None = None

    def begin(self, name: str) -> None:
        if len(self.uploads) == self._max_files:
            raise usage(f"more than {self._max_files} {'file' if self._max_files == 1 else 'files'}")
        if self.uploads:
            self._admit()
        self.uploads.append(Upload(name, self._new_file()))
        self._file = self.uploads[-1].path.open("xb")

    def write(self, data: bytes) -> None:
        if self._file is not None:
            self._store(len(data))
            self.stored_bytes += len(data)
            # Into the page cache: no slower than what asyncio does with a piece.
            self._file.write(data)

    def end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Forgets all that has arrived."""
        self.end()
        for upload in self.uploads:
            upload.path.unlink(missing_ok=True)


class _Form:
    """What a multipart parser finds -> files; what is in other fields is dropped."""

    def __init__(self, receiver: _Receiver) -> None:
        self.has_ended = False
        self._receiver = receiver
        self._field = b""
        self._value = b""
        self._disposition = b""

    def begin_part(self) -> None:
        self._disposition = b""

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def end_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if options.get(b"name") in _FIELDS:
            if b"filename" not in options:
                raise usage("the field `file` holds no file; with curl: -F file=@photo.jpg")
            self._receiver.begin(_shown_name(options[b"filename"]))

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self._receiver.write(data[start:end])

    def end_part(self) -> None:
        self._receiver.end()

    def end(self) -> None:
        self.has_ended = True


def _shown_name(name: bytes) -> str:
    """The last part of a file's name, in printable characters."""
    text = name.decode("utf-8", errors="replace").replace("\\", "/").rpartition("/")[2]
    printable = "".join(
        character for character in text if unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
    )
    return printable[:_MAX_NAME_LENGTH] or _NAMELESS
