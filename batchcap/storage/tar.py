"""Archives: the members of a `.tar` on a local disk, read where they are and never unpacked.

An archive is listed by going from header to header, over the content of its members. To read one, whoever
does so lists the archive once and remembers where each member begins, as long as the archive is what it was.

A damaged archive has the members before the damage; besides them it has an entry with its uri alone
(`tar:///shards/0.tar#`), so that the damage gets into the quarantine like that of any other file, with its
reason, until the archive is replaced. Compressed archives can't be read at any place but their beginning, and
are refused.
"""

import io
import os
import re
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import numpy as np

from batchcap.errors import ImageError, Reason
from batchcap.globs import Selection
from batchcap.storage.entries import FileEntry, SkipReason, skip_by_path
from batchcap.storage.sorting import sort_entries
from batchcap.storage.uris import path_to_uri

SUFFIX = ".tar"
COMPRESSED_SUFFIXES = tuple(f".tar.{name}" for name in ("bz2", "gz", "lz4", "xz", "zst")) + (
    ".tbz2",
    ".tgz",
    ".txz",
)
_SCHEME = "tar://"
# A header that holds more, such as a name of a gigabyte, is none.
_MAX_HEADER_BYTES = 1024**2
_MAX_INT64 = 2**63 - 1
# Archives whose members are remembered; a member takes 32 bytes, a shard has ten thousand.
_REMEMBERED = 4


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive that a user named.

    Args:
        path: absolute.
    """

    path: str

    @property
    def uri(self) -> str:
        """Where the archive is."""
        return path_to_uri(self.path)

    def __str__(self) -> str:
        return self.uri

    def entries(self, selection: Selection, skipped: Counter[str]) -> Iterator[FileEntry]:
        """The members that may be images, and the archive itself if it is damaged, sorted by uri.

        Nothing is raised: other archives may be whole.
        """
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            skipped[SkipReason.VANISHED] += 1
        except OSError:
            skipped[SkipReason.UNREADABLE_FILE] += 1
        else:
            yield from sort_entries(self._members(status, selection, skipped), skipped)

    def whole_prefixes(self) -> list[str]:
        """How the uris of its members begin."""
        return [member_uri(self.path, "")]

    def _members(
        self, status: os.stat_result, selection: Selection, skipped: Counter[str]
    ) -> Iterator[FileEntry]:
        try:
            for info in _read_headers(self.path):
                if info.isdir():
                    continue
                reason = _skip(info, selection)
                if reason is None:
                    etag = _etag(status, info.offset_data)
                    yield FileEntry(member_uri(self.path, info.name), info.size, _mtime_ns(info), etag)
                else:
                    skipped[reason] += 1
        except (ImageError, OSError):
            # Whoever reads it will say what is wrong.
            yield _whole(self.path, status)


def member_uri(path: str, member: str) -> str:
    """The uri of a member.

    Args:
        path: of the archive, absolute.
        member: its name as it stands in the archive; what isn't UTF-8 in it as lone surrogates.
    """
    return f"{_SCHEME}{_escape(path).replace('#', '%23')}#{_escape(member)}"


def split_uri(uri: str) -> tuple[str, str]:
    """The path of the archive and the name of the member."""
    path, _, member = uri.removeprefix(_SCHEME).partition("#")
    return os.fsdecode(unquote_to_bytes(path)), unquote_to_bytes(member).decode("utf-8", "surrogateescape")


def stat(uri: str) -> FileEntry:
    """A look at one member, or at the archive that is damaged.

    Raises:
        FileNotFoundError, NotADirectoryError: there is certainly no such member.
        OSError: it can't be told; so it is of what may stand behind the damage.
    """
    path, member = split_uri(uri)
    status, members = _members_of(path)
    if not member:
        if members.damage is None:
            raise FileNotFoundError("the archive is not damaged")
        return _whole(path, status)
    found = members.find(member)
    if found is None:
        if members.damage is None:
            raise FileNotFoundError("there is no such member in the archive")
        raise OSError(f"the archive is damaged: {members.damage.detail}")
    return FileEntry(uri, found.size_bytes, found.mtime_ns, _etag(status, found.offset))


def read_bytes(location: str, limit: int) -> bytes:
    """The content of a member, or `limit` + 1 bytes of one that is larger.

    Raises:
        ImageError: it is the archive itself, which is damaged.
        OSError: it can't be read.
    """
    path, member = split_uri(location)
    _, members = _members_of(path)
    if not member and members.damage is not None:
        raise ImageError(members.damage.reason, members.damage.detail)
    found = members.find(member)
    if found is None:
        raise FileNotFoundError("there is no such member in the archive")
    wanted = min(found.size_bytes, limit + 1)
    with open(path, "rb") as file:
        file.seek(found.offset)
        data = file.read(wanted)
    if len(data) < wanted:
        raise OSError("the archive was cut while it was read")
    return data


class _Member(NamedTuple):
    """Where a member's content is."""

    offset: int
    size_bytes: int
    mtime_ns: int


class _Members:
    """The files in an archive by name; of two with one name the last, as when it is unpacked.

    Names are known by a hash of eight bytes: a million of them stay small, and one pair in 10^19 is alike.
    """

    def __init__(self, headers: Iterable[tarfile.TarInfo]) -> None:
        self.damage: ImageError | None = None
        rows = array("q")
        keys = array("Q")
        try:
            for info in headers:
                if info.isreg() and not info.issparse():
                    keys.append(_key(info.name))
                    rows.extend((info.offset_data, info.size, _mtime_ns(info)))
        except ImageError as error:
            self.damage = error
        unsorted = np.frombuffer(keys, np.uint64) if keys else np.empty(0, np.uint64)
        order = np.argsort(unsorted, kind="stable")
        self._keys = unsorted[order]
        self._rows = np.array(rows, np.int64).reshape(-1, 3)[order]

    def find(self, name: str) -> _Member | None:
        """The member of this name."""
        key = np.uint64(_key(name))
        last = int(np.searchsorted(self._keys, key, side="right")) - 1
        if last < 0 or self._keys[last] != key:
            return None
        return _Member(*self._rows[last].tolist())


def _members_of(path: str) -> tuple[os.stat_result, _Members]:
    status = os.stat(path)
    return status, _remembered(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=_REMEMBERED)
def _remembered(path: str, inode: int, size_bytes: int, mtime_ns: int) -> _Members:
    """The members of an archive; the other arguments say that it is what it was."""
    return _Members(_read_headers(path))


class _HeaderReader(io.BufferedReader):
    """A file of which only small pieces are read, whatever a damaged header says of the next one."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError("a header is too large")
        return super().read(size)


def _read_headers(path: str) -> Iterator[tarfile.TarInfo]:
    """The headers of an archive, in their order.

    `TarFile` itself takes the first damaged header for the end; this tells the two apart.

    Raises:
        ImageError: the archive is damaged there.
        OSError: it can't be read.
    """
    with _HeaderReader(io.FileIO(path)) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if not size_bytes:
            raise ImageError(Reason.EMPTY, "the archive is empty")
        archive, last = None, "its beginning"
        offset = 0
        while True:
            file.seek(offset)
            block = file.read(tarfile.BLOCKSIZE)
            if len(block) < tarfile.BLOCKSIZE:
                # Whoever writes an archive to its end writes blocks of zeros there.
                raise ImageError(Reason.TRUNCATED, f"the archive ends after {last}")
            if not any(block):
                return
            try:
                file.seek(offset)
                if archive is None:
                    archive = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="surrogateescape")
                    file.seek(offset)
                info = tarfile.TarInfo.fromtarfile(archive)
            except (tarfile.TarError, ArithmeticError, RecursionError, ValueError):
                what = "no tar archive" if archive is None else f"the archive is damaged after {last}"
                raise ImageError(Reason.UNREADABLE, what) from None
            # tarfile leaves there where the next header is.
            if info.size < 0 or archive.offset <= offset:
                raise ImageError(Reason.UNREADABLE, f"the archive is damaged after {last}")
            if info.isreg() and info.offset_data + info.size > size_bytes:
                raise ImageError(Reason.TRUNCATED, f"the archive ends within {info.name!a}")
            offset, last = archive.offset, ascii(info.name)
            yield info


def _skip(info: tarfile.TarInfo, selection: Selection) -> SkipReason | None:
    """Why a member is passed by."""
    if reason := skip_by_path(info.name, selection):
        return reason
    if info.issym() or info.islnk():
        return SkipReason.LINK
    return None if info.isreg() and not info.issparse() else SkipReason.SPECIAL_FILE


def _whole(path: str, status: os.stat_result) -> FileEntry:
    """The entry of an archive that is damaged."""
    return FileEntry(member_uri(path, ""), status.st_size, status.st_mtime_ns)


def _etag(status: os.stat_result, offset: int) -> str:
    """Changes with the archive: its headers say nothing of the content of its members."""
    return f"{status.st_mtime_ns:x}-{status.st_size:x}-{offset:x}"


def _mtime_ns(info: tarfile.TarInfo) -> int:
    try:
        return max(-_MAX_INT64, min(_MAX_INT64, int(info.mtime * 1_000_000_000)))
    except (OverflowError, ValueError):  # infinity, or no number
        return 0


def _key(name: str) -> int:
    digest = blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _escape(text: str) -> str:
    """What can't stand in a uri, or would be taken for an escape, as `%XX`."""
    return re.sub(
        "[%\udc80-\udcff]",
        lambda found: "%25" if found[0] == "%" else f"%{ord(found[0]) - 0xDC00:02X}",
        text,
    )
