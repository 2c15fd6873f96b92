"""Where files are: one module for each kind of place, and the few things that everybody asks of them all.

A *uri* says where a file is, and which module knows about it:

=====================================  ===========================================================
`/photos/a.jpg`, `file:///caf%E9.jpg`  `local`: an absolute path, escaped only if it isn't UTF-8
`tar:///shards/0.tar#dog.jpg`          `tar`: a member of an archive on a local disk
`s3://bucket/key`, `gs://`, `az://`    `objects`: an object; keys are not escaped
`http://…`, `https://…`                `web`: whatever a web server answers
=====================================  ===========================================================

Each of these modules is a `Backend`; all but `local` are imported by whoever meets their scheme. Beside them
stand the `Listing` classes, which are what `resolve_sources` makes of what a user named.
"""

import hashlib
from collections.abc import Callable
from typing import Protocol

from batchcap.errors import ImageError, UsageError
from batchcap.storage import local
from batchcap.storage.entries import FileEntry, SkipReason
from batchcap.storage.uris import printable, scheme_of, uri_to_path

SCHEMES = frozenset({"az", "file", "gs", "http", "https", "s3", "tar"})


class Backend(Protocol):
    """What a module knows about the files of its schemes."""

    def stat(self, uri: str) -> FileEntry:
        """A look at one file.

        Raises:
            FileNotFoundError, NotADirectoryError: there is certainly no file.
            OSError: it can't be told.
        """

    def read_bytes(self, location: str, limit: int) -> bytes:
        """The content of a file; of one that has more than `limit` bytes, `limit` + 1 of them.

        What may work in a second is tried again here.

        Raises:
            ImageError: what is there can't be a picture.
            OSError: it can't be read.
        """


def read_bytes(location: str | bytes, limit: int) -> bytes:
    """The content of a file; of one that has more than `limit` bytes, `limit` + 1 of them.

    Args:
        location: a uri, or any path.
        limit: how much is wanted at most.

    Raises:
        ImageError: what is there can't be a picture.
        OSError: it can't be read.
    """
    if isinstance(location, bytes) or is_local(location):
        return local.read_bytes(location, limit)
    return _backend(location).read_bytes(location, limit)


def content_hash(
    location: str | bytes, limit: int, read: Callable[[str | bytes, int], bytes] = read_bytes
) -> str | None:
    """The sha256 of a file's bytes, in hexadecimal; None where they can't be read.

    Args:
        location: a uri, or any path.
        limit: what is larger has none either, unless it is local, where it costs no memory.
        read: as `read_bytes`, of what isn't local.
    """
    try:
        if isinstance(location, bytes) or is_local(location):
            path = location if isinstance(location, bytes) else uri_to_path(location)
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        data = read(location, limit)
    except (OSError, ImageError):
        return None
    return hashlib.sha256(data).hexdigest() if len(data) <= limit else None


def stat(uri: str) -> FileEntry:
    """A look at one file.

    Raises:
        FileNotFoundError, NotADirectoryError: there is certainly no file.
        OSError: it can't be told.
    """
    return _backend(uri).stat(uri)


def is_gone(uri: str) -> bool:
    """Whether there is certainly no file at a location: a disk that fails says nothing of its files."""
    try:
        stat(uri)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def look(uri: str) -> FileEntry | SkipReason:
    """The entry of a file that somebody named; if the storage won't tell, whoever reads it will hear why."""
    try:
        return stat(uri)
    except (FileNotFoundError, NotADirectoryError):
        return SkipReason.MISSING
    except OSError:
        return FileEntry(uri, 0, 0)


def is_local(location: str) -> bool:
    """Whether it is a path or the uri of a local file."""
    return scheme_of(location) in (None, "file")


def _backend(uri: str) -> Backend:
    match scheme_of(uri):
        case None | "file":
            return local
        case "tar":
            from batchcap.storage import tar

            return tar
        case "s3" | "gs" | "az":
            from batchcap.storage import objects

            return objects
        case "http" | "https":
            from batchcap.storage import web

            return web
    raise UsageError(f"{printable(uri)} is of a kind that can't be read")
