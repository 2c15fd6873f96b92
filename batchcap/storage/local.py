"""Local files: listed folder by folder, each known by its absolute path."""

import errno
import os
import stat as stat_module
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import NamedTuple
from urllib.parse import quote_from_bytes

from batchcap import globs
from batchcap.errors import SourceError
from batchcap.storage.entries import FileEntry, SkipReason, has_image_suffix, skip_by_name
from batchcap.storage.uris import FILE_SCHEME, path_to_uri, printable, uri_to_path


@dataclass(frozen=True, slots=True)
class Source:
    """A file or folder to scan, checked and absolute; made by `resolve_sources`.

    Args:
        path: a file, or the folder below which to look.
        is_folder: which of the two.
        pattern: the parts of a glob that files below the folder must match; none takes them all.
    """

    path: str
    is_folder: bool
    pattern: tuple[str, ...] = ()

    @property
    def uri(self) -> str:
        """The location of the file or folder."""
        return path_to_uri(self.path)

    def __str__(self) -> str:
        return "/".join([self.uri.rstrip("/"), *self.pattern]) or "/"

    def entries(self, selection: globs.Selection, skipped: Counter[str]) -> Iterator[FileEntry]:
        """What may be an image, sorted by uri; `file://` URIs come last, they alone are held in memory."""
        found = _list_tree(self, selection, skipped) if self.is_folder else list_named_files([self], skipped)
        return _escaped_last(found)

    def whole_prefixes(self) -> list[str]:
        """How the uris below a folder begin: two where its path is valid UTF-8.

        The second is that of files whose own names aren't.
        """
        if not self.is_folder or self.pattern:
            return []
        folder = self.path.rstrip("/") + "/"
        escaped = FILE_SCHEME + quote_from_bytes(os.fsencode(folder))
        return [escaped, folder] if path_to_uri(folder) == folder else [escaped]


def stat(uri: str) -> FileEntry:
    """A look at one file.

    Raises:
        FileNotFoundError, NotADirectoryError: there is certainly no file.
        OSError: it can't be told.
    """
    status = os.stat(uri_to_path(uri))
    if not stat_module.S_ISREG(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, "no regular file")
    return FileEntry(uri, status.st_size, status.st_mtime_ns)


def read_bytes(location: str | bytes, limit: int) -> bytes:
    """The content of a file, or `limit` + 1 bytes of one that is larger.

    Args:
        location: a uri, or any path.
        limit: how much is wanted at most.
    """
    path = (
        uri_to_path(location) if isinstance(location, str) and location.startswith(FILE_SCHEME) else location
    )
    with open(path, "rb") as file:
        # One byte more than allowed tells a file that is too large, however large it is.
        return file.read(limit + 1)


class _Where(NamedTuple):
    """How far the source's own glob and the selection are matched."""

    glob: globs.GlobState
    selection: globs.SelectionState


# The key by which it is sorted (a folder's name ends in a slash), the entry, and what is matched there.
_Pending = tuple[str, os.DirEntry[str], _Where]


def _list_tree(source: Source, selection: globs.Selection, skipped: Counter[str]) -> Iterator[FileEntry]:
    """All files of a folder or glob, in the order of their paths.

    A stack of listings instead of recursion: a path may have more folders than Python has frames.
    """
    top = _Where(globs.start(source.pattern) if source.pattern else None, selection.start())
    try:
        levels = [_list_folder(source.path, source.pattern, selection, top, skipped)]
    except OSError as error:
        raise SourceError(f"{printable(source.uri)} can't be read: {error.strerror}") from error
    while levels:
        if not levels[-1]:
            levels.pop()
            continue
        key, entry, where = levels[-1].pop()
        if key.endswith("/"):
            try:
                levels.append(_list_folder(entry.path, source.pattern, selection, where, skipped))
            except (FileNotFoundError, NotADirectoryError):
                skipped[SkipReason.VANISHED] += 1
            except OSError:
                skipped[SkipReason.UNREADABLE_FOLDER] += 1
        else:
            found = _examine(entry)
            if isinstance(found, FileEntry):
                yield found
            else:
                skipped[found] += 1


def _list_folder(
    path: str, pattern: tuple[str, ...], selection: globs.Selection, where: _Where, skipped: Counter[str]
) -> list[_Pending]:
    """What to visit in a folder, the last first.

    Between them "a-b/x" and "a/x" stand in the order of whole paths, not of names: "-" sorts before "/".
    """
    pending: list[_Pending] = []
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            below = globs.enter(pattern, where.glob, name, is_folder=is_folder)
            if below == globs.NOTHING:
                continue
            if reason := skip_by_name(name, is_folder=is_folder):
                skipped[reason] += 1
            elif entry.is_file(follow_symlinks=False) and not has_image_suffix(name):
                # Decided here, without a call of stat for each file that is no image.
                skipped[SkipReason.NOT_AN_IMAGE] += 1
            elif (wanted := selection.enter(where.selection, name, is_folder=is_folder)) is None:
                skipped[SkipReason.EXCLUDED] += 1
            else:
                pending.append((name + "/" if is_folder else name, entry, _Where(below, wanted)))
    pending.sort(key=itemgetter(0), reverse=True)
    return pending


def _examine(entry: os.DirEntry[str]) -> FileEntry | SkipReason:
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return SkipReason.UNREADABLE_FILE
        return SkipReason.BROKEN_LINK if entry.is_symlink() else SkipReason.VANISHED
    if stat_module.S_ISDIR(status.st_mode):
        return SkipReason.SYMLINKED_FOLDER
    if not stat_module.S_ISREG(status.st_mode):
        return SkipReason.SPECIAL_FILE
    if not has_image_suffix(entry.name):
        return SkipReason.NOT_AN_IMAGE
    return _file_entry(entry.path, status)


def list_named_files(sources: Iterable[Source], skipped: Counter[str]) -> Iterator[FileEntry]:
    """The entries of files, in the order given."""
    for source in sources:
        try:
            status = os.stat(source.path)
        except FileNotFoundError:
            skipped[SkipReason.VANISHED] += 1
        except OSError:
            skipped[SkipReason.UNREADABLE_FILE] += 1
        else:
            if stat_module.S_ISREG(status.st_mode):
                yield _file_entry(source.path, status)
            else:
                skipped[SkipReason.SPECIAL_FILE] += 1


def _escaped_last(entries: Iterable[FileEntry]) -> Iterator[FileEntry]:
    """Moves the `file://` URIs behind the plain paths, where they belong in code-point order."""
    escaped = []
    for entry in entries:
        if entry.uri.startswith(FILE_SCHEME):
            escaped.append(entry)
        else:
            yield entry
    escaped.sort(key=attrgetter("uri"))
    yield from escaped


def _file_entry(path: str, status: os.stat_result) -> FileEntry:
    return FileEntry(path_to_uri(path), status.st_size, status.st_mtime_ns)


def match_files(source: Source, suffixes: tuple[str, ...]) -> list[str]:
    """The paths of files that match a glob themselves and have one of some suffixes, in no order.

    Raises:
        SourceError: a folder can't be listed.
    """
    found: list[str] = []
    folders: list[tuple[str, globs.GlobState]] = [(source.path, globs.start(source.pattern))]
    while folders:
        path, state = folders.pop()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    below = globs.enter(source.pattern, state, entry.name, is_folder=is_folder)
                    if below == globs.NOTHING or skip_by_name(entry.name, is_folder=is_folder):
                        continue
                    if is_folder:
                        folders.append((entry.path, below))
                    elif entry.name.lower().endswith(suffixes) and entry.is_file():
                        found.append(entry.path)
        except OSError as error:
            raise SourceError(f"{printable(path_to_uri(path))} can't be read: {error.strerror}") from error
    return found
