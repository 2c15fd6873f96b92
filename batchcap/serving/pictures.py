"""Files of the collection as a client may see them: found by their content, never by a name it gives."""

import hashlib
import io
import os
import re
import stat
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image

from batchcap import storage
from batchcap.captioner.images import ImageSpec
from batchcap.catalog import Catalog, Picture
from batchcap.decoder_child import LoadedFile
from batchcap.errors import BatchcapError
from batchcap.serving.decoders import Decoders
from batchcap.serving.problems import NOT_FOUND, UNSUPPORTED, Problem
from batchcap.storage.uris import uri_to_path

THUMBNAIL_SIZE = 320
_QUALITY = 82
_HASH = re.compile(r"[0-9a-f]{64}")
# Of a file that has to be held in memory.
_MAX_REMOTE_BYTES = 64 * 2**20

# Types that browsers show, by the first bytes of a file. Never one that can hold a script, as SVG can.
_SIGNATURES = (
    ("image/jpeg", 0, b"\xff\xd8\xff"),
    ("image/png", 0, b"\x89PNG\r\n\x1a\n"),
    ("image/gif", 0, b"GIF87a"),
    ("image/gif", 0, b"GIF89a"),
    ("image/webp", 8, b"WEBP"),
    ("image/avif", 4, b"ftypavif"),
    ("image/bmp", 0, b"BM"),
)
_SIGNATURE_BYTES = 16


@dataclass(frozen=True, slots=True)
class Description:
    """What a client is told of a file before its bytes.

    Args:
        size_bytes: of it.
        media_type: of it.
        name: of the file, without folders.
    """

    size_bytes: int
    media_type: str
    name: str


@dataclass(frozen=True, slots=True)
class Original(Description):
    """A file that holds what its hash says, opened at its start; whoever has it closes it.

    Args:
        size_bytes: of it.
        media_type: by its first bytes.
        name: of the file, without folders.
        file: to be read.
    """

    file: BinaryIO


def check_hash(content_hash: str) -> str:
    """A hash as the catalog has it.

    Raises:
        Problem: it is something else; nobody is told more than of one that is unknown.
    """
    if not _HASH.fullmatch(content_hash):
        raise unknown_picture()
    return content_hash


def name_of(uri: str) -> str:
    """The name of a file, without its folders; of a member of an archive, without the archive."""
    member = uri.partition("#")[2] if uri.startswith("tar://") else uri
    return member.rpartition("/")[2] or uri


def find_picture(catalog: Catalog, content_hash: str) -> Picture:
    """What the catalog knows by a hash.

    Raises:
        Problem: nothing.
        CatalogError: it can't be read.
    """
    picture = catalog.gallery.picture(check_hash(content_hash))
    if picture is None:
        raise unknown_picture()
    return picture


def open_original(picture: Picture) -> Original:
    """Opens the first of a picture's files that still holds it.

    Raises:
        Problem: there is none, or it is of a type that browsers don't show.
    """
    for uri in picture.uris:
        file = _open_verified(uri, picture)
        if file is None:
            continue
        start = file.read(_SIGNATURE_BYTES)
        file.seek(0)
        if media_type := _type_of(start):
            return Original(picture.size_bytes, media_type, name_of(uri), file)
        file.close()
        raise _not_shown(picture)
    raise _gone()


def describe_original(picture: Picture) -> Description:
    """What `open_original` would say of a file, without reading it: whether it still is the one is not asked.

    Raises:
        Problem: there is none of that size, or it is of a type that browsers don't show.
    """
    for uri in picture.uris:
        if not _may_be_unchanged(uri, picture):
            continue
        try:
            media_type = _look_at_type(uri, picture)
        except (OSError, BatchcapError):
            continue
        if media_type is None:
            raise _not_shown(picture)
        return Description(picture.size_bytes, media_type, name_of(uri))
    raise _gone()


class Thumbnails:
    """Small JPEG files of pictures, made when they are asked for and kept in memory, the latest used.

    Args:
        timeout_s: how long one may take to decode.
        cache_bytes: of memory for all of them.
    """

    def __init__(self, *, timeout_s: float, cache_bytes: int) -> None:
        self._decoders = Decoders(ImageSpec(THUMBNAIL_SIZE, "crop"), count=1, timeout_s=timeout_s)
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._used_bytes = 0
        self._lock = threading.Lock()
        self._in_work: dict[str, Future[LoadedFile]] = {}

    def close(self) -> None:
        """Ends the process that decodes."""
        self._decoders.close()

    def cached(self, content_hash: str) -> bytes | None:
        """One that was made before."""
        with self._lock:
            found = self._cache.get(content_hash)
            if found is not None:
                self._cache.move_to_end(content_hash)
            return found

    def check(self, picture: Picture) -> None:
        """Sees whether there is something to make one of, without reading it.

        Raises:
            Problem: there is not.
        """
        if self.cached(picture.content_hash) is None and not any(
            _may_be_unchanged(uri, picture) for uri in picture.uris
        ):
            raise _gone()

    def make(self, picture: Picture) -> bytes:
        """Makes one, of the first of a picture's files that still holds it; waits for it.

        Raises:
            Problem: there is none.
        """
        if (cached := self.cached(picture.content_hash)) is not None:
            return cached
        for uri in picture.uris:
            if not _may_be_unchanged(uri, picture):
                continue
            # The decoder tells the hash of what it has read.
            loaded = self._load(picture.content_hash, uri)
            if loaded.content_hash == picture.content_hash and loaded.image is not None:
                return self._keep(picture.content_hash, _to_jpeg(loaded.image.pixels))
        raise _gone()

    def _load(self, content_hash: str, uri: str) -> LoadedFile:
        """Of several who ask for the same at once, one has it decoded."""
        with self._lock:
            future = self._in_work.get(content_hash)
            if future is None:
                future = self._in_work[content_hash] = self._decoders.submit(uri)
        try:
            return future.result()
        finally:
            with self._lock:
                self._in_work.pop(content_hash, None)

    def _keep(self, content_hash: str, data: bytes) -> bytes:
        with self._lock:
            self._used_bytes += len(data) - len(self._cache.get(content_hash, b""))
            self._cache[content_hash] = data
            self._cache.move_to_end(content_hash)
            while self._used_bytes > self._cache_bytes:
                _, dropped = self._cache.popitem(last=False)
                self._used_bytes -= len(dropped)
        return data


def _type_of(start: bytes) -> str | None:
    """The type of a file that begins so, if browsers show it."""
    for media_type, offset, signature in _SIGNATURES:
        if start.startswith(signature, offset):
            return media_type
    return None


def _look_at_type(uri: str, picture: Picture) -> str | None:
    """The type of a file; of one that is not on this disk by itself, as the catalog has it."""
    if storage.is_local(uri):
        # Not buffered, which would read more.
        with os.fdopen(os.open(uri_to_path(uri), os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
            return _type_of(file.read(_SIGNATURE_BYTES) or b"")
    if picture.size_bytes > _MAX_REMOTE_BYTES or storage.stat(uri).size_bytes != picture.size_bytes:
        raise _gone()
    media_type = f"image/{picture.format.lower()}"
    return media_type if media_type in {known for known, _, _ in _SIGNATURES} else None


def _to_jpeg(pixels: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=_QUALITY)
    return encoded.getvalue()


def _may_be_unchanged(uri: str, picture: Picture) -> bool:
    """Whether it is worth decoding; of what isn't local, its bytes alone tell."""
    if not storage.is_local(uri):
        return True
    try:
        status = os.stat(uri_to_path(uri))
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == picture.size_bytes


def _open_verified(uri: str, picture: Picture) -> BinaryIO | None:
    """A file, if it is the one that was captioned: by its size, then by its bytes."""
    try:
        return _open_local(uri, picture) if storage.is_local(uri) else _read_remote(uri, picture)
    except (OSError, BatchcapError):
        return None


def _open_local(uri: str, picture: Picture) -> BinaryIO | None:
    # A FIFO in its place must not make us wait.
    file = os.fdopen(os.open(uri_to_path(uri), os.O_RDONLY | os.O_NONBLOCK), "rb")
    try:
        status = os.fstat(file.fileno())
        if (
            stat.S_ISREG(status.st_mode)
            and status.st_size == picture.size_bytes
            and hashlib.file_digest(file, "sha256").hexdigest() == picture.content_hash
        ):
            file.seek(0)
            return file
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def _read_remote(uri: str, picture: Picture) -> BinaryIO | None:
    """A member of an archive, or what is not on this machine: it is held in memory."""
    if picture.size_bytes > _MAX_REMOTE_BYTES:
        return None
    data = storage.read_bytes(uri, picture.size_bytes)
    return io.BytesIO(data) if hashlib.sha256(data).hexdigest() == picture.content_hash else None


def _not_shown(picture: Picture) -> Problem:
    return Problem(415, UNSUPPORTED, f"browsers don't show {picture.format}; its thumbnail they do")


def unknown_picture() -> Problem:
    """Nothing has this hash, or nothing that is still somewhere."""
    return Problem(404, NOT_FOUND, "the catalog knows no picture with this hash")


def _gone() -> Problem:
    return Problem(
        404, NOT_FOUND, "the file of this picture is gone or has changed; run batchcap index again"
    )
