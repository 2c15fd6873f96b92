"""Which files a run has to look at: SOURCE arguments -> a sorted stream of `FileEntry`.

`resolve_sources` checks what the user named, `scan` lists it. A location is known by its *uri*: the
absolute path of a local file, or a `file://` URI with percent-escapes if the path isn't valid UTF-8 (such
names exist on Linux, and neither SQL nor Parquet can hold them). `uri_to_path` leads back.

The stream is sorted by uri in plain code-point order, so that the catalog can merge it with its own rows,
and memory is bounded by the folders that are open at a time, not by the collection. Only local files are
known so far.
"""

import errno
import fnmatch
import glob
import heapq
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter, itemgetter
from urllib.parse import quote_from_bytes, unquote_to_bytes

from batchcap.errors import SourceError, SourceNotFoundError, UsageError

__all__ = ["IMAGE_SUFFIXES", "FileEntry", "SkipReason", "Source", "resolve_sources", "scan", "uri_to_path"]

# The names under which people keep pictures, in lower case. Whether a file really is one is found out when
# it is decoded; this only keeps a run from reading every video and text file to refuse it.
IMAGE_SUFFIXES = frozenset(
    {".jfif", ".jpe", ".jpeg", ".jpg"}
    | {".j2k", ".jp2", ".jpf", ".jpx"}
    | {".apng", ".gif", ".png", ".qoi", ".webp"}
    | {".avif", ".avifs", ".heic", ".heif", ".hif"}
    | {".bmp", ".dib", ".ico", ".pcx", ".psd", ".tga", ".tif", ".tiff"}
    | {".pbm", ".pgm", ".pnm", ".ppm"}
)

_SYSTEM_FILES = frozenset({".ds_store", "desktop.ini", "thumbs.db"})

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FILE_SCHEME = "file://"


class SkipReason(StrEnum):
    """Why `scan` left something out. Each member is the key of a count."""

    APPLEDOUBLE = "appledouble"  # `._*`: what macOS keeps beside a file on foreign disks
    BROKEN_LINK = "broken_link"
    HIDDEN = "hidden"  # a file or a whole folder whose name starts with a dot
    NOT_AN_IMAGE = "not_an_image"  # by its suffix
    SPECIAL_FILE = "special_file"  # a FIFO, socket or device
    SYMLINKED_FOLDER = "symlinked_folder"
    SYSTEM = "system"  # .DS_Store, Thumbs.db, desktop.ini
    UNREADABLE_FILE = "unreadable_file"  # its size and time can't be had
    UNREADABLE_FOLDER = "unreadable_folder"
    VANISHED = "vanished"  # between listing and a look at it


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file that may be an image.

    Args:
        uri: where it is; see the module's docstring.
        size_bytes: its size; of a symbolic link, the target's.
        mtime_ns: time of its last change in nanoseconds since 1970; of a symbolic link, the target's.
        etag: an object store's name for this version of the content; None for local files.
    """

    uri: str
    size_bytes: int
    mtime_ns: int
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """One thing to scan, checked and absolute; made by `resolve_sources`.

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
        return _path_to_uri(self.path)

    def __str__(self) -> str:
        return "/".join([self.uri.rstrip("/"), *self.pattern]) or "/"


def resolve_sources(sources: Sequence[str]) -> list[Source]:
    """Checks what a user named and makes it absolute.

    A source is a file, a folder or a glob (`*`, `?`, `[...]` within a name, `**` for any number of
    folders). A name that exists is taken literally, whatever characters it holds. What matches a glob is
    chosen like the content of a folder: hidden files and files that don't look like images are skipped,
    links to folders are not followed, and a folder that matches is taken whole. A file that is named
    itself is always taken, and a folder that is named itself may be a symbolic link.

    Args:
        sources: paths and globs, relative or absolute. The `file://` URIs that stand in the catalog are
            understood too.

    Returns:
        The sources in the order given, less duplicates and less those that another one contains.

    Raises:
        SourceNotFoundError: one does not exist.
        SourceError: one can't be read.
        UsageError: there is none, or one is not local.
    """
    if not sources:
        raise UsageError("no SOURCE given")
    resolved = list(dict.fromkeys(_resolve(source) for source in sources))
    whole_folders = {source.path for source in resolved if source.is_folder and not source.pattern}
    return [source for source in resolved if not _is_covered(source, whole_folders)]


def scan(sources: Iterable[Source], *, skipped: Counter[str]) -> Iterator[FileEntry]:
    """Lists the files of some sources that may be images.

    Nothing is opened. Symbolic links to files are followed and keep their own path as uri; links to
    folders are not followed. A subfolder that can't be listed is no error: it is counted, and a count of
    `unreadable_folder` above zero means that the listing isn't whole.

    Args:
        sources: what `resolve_sources` returned.
        skipped: counts by `SkipReason` are added to it while the result is consumed. What two overlapping
            globs both skip counts twice.

    Yields:
        Each uri once, sorted in code-point order. `file://` URIs come last; they alone are held in memory.

    Raises:
        SourceError: a source that is a folder can't be listed.
    """
    sources = list(sources)
    named_files = sorted((source for source in sources if not source.is_folder), key=attrgetter("uri"))
    streams = [_list_named_files(named_files, skipped)]
    streams += [_list_tree(source, skipped) for source in sources if source.is_folder]
    previous = None
    for entry in heapq.merge(*map(_escaped_last, streams), key=attrgetter("uri")):
        if entry.uri != previous:
            yield entry
        previous = entry.uri


def uri_to_path(uri: str) -> str:
    """Turns the uri of a local file into a path for `open`.

    The path of a `file://` URI holds lone surrogates where its bytes aren't UTF-8, as everywhere in
    Python: hand it to the operating system, but don't print or store it.

    Raises:
        UsageError: the uri is neither an absolute path nor a `file://` URI.
    """
    if uri.startswith("/"):
        return uri
    if uri.startswith(_FILE_SCHEME + "/"):
        return os.fsdecode(unquote_to_bytes(uri.removeprefix(_FILE_SCHEME)))
    raise UsageError(f"{_printable(uri)}: only local files are supported so far")


def _path_to_uri(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        return _FILE_SCHEME + quote_from_bytes(os.fsencode(path))
    return path


def _printable(text: str) -> str:
    """The text as it is, or escaped where it would break a message of one line."""
    return text if text.isprintable() else repr(text)


# --- what the user named ---


def _resolve(source: str) -> Source:
    if source.startswith(_FILE_SCHEME):
        return _resolve_existing(uri_to_path(source), source)
    if _SCHEME.match(source):
        raise UsageError(f"{_printable(source)}: only local sources are supported so far")
    # Literal first: `holiday [2024]` is a folder more often than a glob.
    if glob.has_magic(source) and not os.path.lexists(source):
        return _resolve_glob(source)
    return _resolve_existing(source, source)


def _resolve_existing(path: str, name: str) -> Source:
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
        if is_folder:
            os.scandir(path).close()
    except (FileNotFoundError, NotADirectoryError):
        what = "is a link to nothing" if os.path.islink(path) else "does not exist"
        raise SourceNotFoundError(f"{_printable(name)} {what}") from None
    except ValueError:  # a NUL in the name
        raise SourceNotFoundError(f"{_printable(name)} does not exist") from None
    except OSError as error:
        raise SourceError(f"{_printable(name)} can't be read: {error.strerror}") from error
    return Source(_absolute(path), is_folder)


def _resolve_glob(source: str) -> Source:
    folder = "/" if source.startswith("/") else ""
    parts = [part for part in source.split("/") if part not in ("", ".")]
    while parts and (not glob.has_magic(parts[0]) or os.path.lexists(os.path.join(folder, parts[0]))):
        folder = os.path.join(folder, parts.pop(0))
    if ".." in parts:
        raise UsageError(f"{_printable(source)}: '..' can't follow a wildcard")
    base = _resolve_existing(folder or ".", folder or ".")
    # The names before the first `**` are soon looked up; what comes after would need a walk of its own.
    at_once = parts[: parts.index("**")] if "**" in parts else parts
    if not base.is_folder or not _any_match(base.path, at_once):
        raise SourceNotFoundError(f"{_printable(source)} matches nothing")
    pattern = tuple(parts)
    # `folder/**` is the folder itself.
    return base if _start(pattern) is None else Source(base.path, True, pattern)


def _any_match(folder: str, parts: Sequence[str]) -> bool:
    return not parts or any(True for _ in glob.iglob("/".join(parts), root_dir=folder))


def _absolute(path: str) -> str:
    absolute = os.path.abspath(path)
    # abspath strikes `link/..` out as text, which names another folder if `link` is a symbolic link.
    if not os.path.exists(absolute) or not os.path.samefile(absolute, path):
        absolute = os.path.realpath(path)
    # POSIX lets a path start with exactly two slashes. One file must not have two uris.
    return "/" + absolute.lstrip("/")


def _is_covered(source: Source, whole_folders: set[str]) -> bool:
    """Whether the scan of one of these folders gives all that this source would."""
    if source.pattern and source.path in whole_folders:
        return True
    path, is_folder = source.path, source.is_folder
    if not whole_folders or (not is_folder and not _has_image_suffix(os.path.basename(path))):
        return False
    # Upwards as long as a scan from above would come down this way.
    while path != "/":
        folder, name = os.path.split(path)
        if _skip_by_name(name, is_folder=is_folder) or (is_folder and os.path.islink(path)):
            return False
        if folder in whole_folders:
            return True
        path, is_folder = folder, True
    return False


# --- globs ---

# Where in a pattern the next name may stand: the indices of its parts. Empty: no name can match any more.
# None: everything does, because a folder above matched the whole pattern.
_State = frozenset[int] | None
_NOTHING: frozenset[int] = frozenset()


def _start(pattern: tuple[str, ...]) -> _State:
    return _with_empty_matches(pattern, {0})


def _enter(pattern: tuple[str, ...], state: _State, name: str, *, is_folder: bool) -> _State:
    """The state below the folder `name`; for a file None if it matches, else the empty state."""
    if state is None:
        return None
    if not is_folder:
        last = len(pattern) - 1
        return None if last in state and fnmatch.fnmatchcase(name, pattern[last]) else _NOTHING
    following = set()
    for index in state:
        if pattern[index] == "**":
            following.add(index)
        elif fnmatch.fnmatchcase(name, pattern[index]):
            following.add(index + 1)
    return _with_empty_matches(pattern, following)


def _with_empty_matches(pattern: tuple[str, ...], indices: set[int]) -> _State:
    """Adds what follows each `**`, since that may stand for no folder at all."""
    for index, part in enumerate(pattern):
        if index in indices and part == "**":
            indices.add(index + 1)
    return None if len(pattern) in indices else frozenset(indices)


# --- listing ---

# The key by which it is sorted (a folder's name ends in a slash), the entry, and the state of the glob in it.
_Pending = tuple[str, os.DirEntry[str], _State]


def _list_tree(source: Source, skipped: Counter[str]) -> Iterator[FileEntry]:
    """All files of a folder or glob, in the order of their paths.

    A stack of listings instead of recursion: a path may have more folders than Python has frames.
    """
    pattern = source.pattern
    try:
        levels = [_list_folder(source.path, pattern, _start(pattern), skipped)]
    except OSError as error:
        raise SourceError(f"{_printable(source.uri)} can't be read: {error.strerror}") from error
    while levels:
        if not levels[-1]:
            levels.pop()
            continue
        key, entry, state = levels[-1].pop()
        if key.endswith("/"):
            try:
                levels.append(_list_folder(entry.path, pattern, state, skipped))
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


def _list_folder(path: str, pattern: tuple[str, ...], state: _State, skipped: Counter[str]) -> list[_Pending]:
    """What to visit in a folder, the last first.

    Between them "a-b/x" and "a/x" stand in the order of whole paths, not of names: "-" sorts before "/".
    """
    pending: list[_Pending] = []
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            below = _enter(pattern, state, name, is_folder=is_folder)
            if below == _NOTHING:
                continue
            if reason := _skip_by_name(name, is_folder=is_folder):
                skipped[reason] += 1
            elif entry.is_file(follow_symlinks=False) and not _has_image_suffix(name):
                # Decided here, without a call of stat for each file that is no image.
                skipped[SkipReason.NOT_AN_IMAGE] += 1
            else:
                pending.append((name + "/" if is_folder else name, entry, below))
    pending.sort(key=itemgetter(0), reverse=True)
    return pending


def _examine(entry: os.DirEntry[str]) -> FileEntry | SkipReason:
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return SkipReason.UNREADABLE_FILE
        return SkipReason.BROKEN_LINK if entry.is_symlink() else SkipReason.VANISHED
    if stat.S_ISDIR(status.st_mode):
        return SkipReason.SYMLINKED_FOLDER
    if not stat.S_ISREG(status.st_mode):
        return SkipReason.SPECIAL_FILE
    if not _has_image_suffix(entry.name):
        return SkipReason.NOT_AN_IMAGE
    return _file_entry(entry.path, status)


def _list_named_files(sources: Iterable[Source], skipped: Counter[str]) -> Iterator[FileEntry]:
    for source in sources:
        try:
            status = os.stat(source.path)
        except FileNotFoundError:
            skipped[SkipReason.VANISHED] += 1
        except OSError:
            skipped[SkipReason.UNREADABLE_FILE] += 1
        else:
            if stat.S_ISREG(status.st_mode):
                yield _file_entry(source.path, status)
            else:
                skipped[SkipReason.SPECIAL_FILE] += 1


def _escaped_last(entries: Iterable[FileEntry]) -> Iterator[FileEntry]:
    """Moves the `file://` URIs behind the plain paths, where they belong in code-point order."""
    escaped = []
    for entry in entries:
        if entry.uri.startswith(_FILE_SCHEME):
            escaped.append(entry)
        else:
            yield entry
    escaped.sort(key=attrgetter("uri"))
    yield from escaped


def _file_entry(path: str, status: os.stat_result) -> FileEntry:
    return FileEntry(_path_to_uri(path), status.st_size, status.st_mtime_ns)


def _has_image_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _skip_by_name(name: str, *, is_folder: bool) -> SkipReason | None:
    if not is_folder:
        if name.lower() in _SYSTEM_FILES:
            return SkipReason.SYSTEM
        if name.startswith("._"):
            return SkipReason.APPLEDOUBLE
    return SkipReason.HIDDEN if name.startswith(".") else None
