"""Which files a run has to look at: SOURCE arguments -> a sorted stream of `FileEntry`.

`resolve_sources` checks what the user named, `scan` lists it. Where files may be, and what their uris are, is
known by `batchcap.storage`.

The stream is sorted by uri in plain code-point order, so that the catalog can merge it with its own rows,
and memory is bounded by the folders that are open at a time, not by the collection.
"""

import glob
import heapq
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from operator import attrgetter

from batchcap import globs
from batchcap.errors import SourceError, SourceNotFoundError, UsageError
from batchcap.storage import SCHEMES, is_gone
from batchcap.storage.entries import (
    IMAGE_SUFFIXES,
    FileEntry,
    Listing,
    SkipReason,
    has_image_suffix,
    skip_by_name,
)
from batchcap.storage.lists import ListFile
from batchcap.storage.local import Source, list_named_files, match_files
from batchcap.storage.named import NamedFile
from batchcap.storage.queries import Query
from batchcap.storage.tar import COMPRESSED_SUFFIXES, SUFFIX, Archive
from batchcap.storage.uris import printable, scheme_of, uri_to_path

__all__ = [
    "IMAGE_SUFFIXES",
    "FileEntry",
    "ListFile",
    "Listing",
    "Query",
    "SkipReason",
    "Source",
    "is_gone",
    "resolve_sources",
    "scan",
    "uri_to_path",
    "whole_folders",
]

_ARCHIVE_SUFFIXES = (SUFFIX, *COMPRESSED_SUFFIXES)


def resolve_sources(sources: Sequence[str | ListFile | Query]) -> list[Listing]:
    """Checks what a user named and makes it absolute.

    A source is a file, a folder, a glob (`*`, `?`, `[...]` within a name, `**` for any number of folders), an
    archive (`.tar`), the URI of what is elsewhere, a list or a query. A name that exists is taken literally,
    whatever characters it holds. What matches a glob is chosen like the content of a folder: hidden files and
    files that don't look like images are skipped, links to folders are not followed, and a folder that
    matches is taken whole. A file that is named itself is always taken, and a folder that is named itself
    may be a symbolic link. An archive is opened if it is named itself or by a glob that ends in `.tar`, not
    where it merely lies in a folder.

    Args:
        sources: paths and globs, relative or absolute; `s3://`, `gs://` and `az://` prefixes and objects,
            `http://` and `https://` files; lists and queries. The other URIs that stand in the catalog are
            understood too.

    Returns:
        The sources in the order given, less duplicates and less those that another one contains.

    Raises:
        SourceNotFoundError: one does not exist.
        SourceError: one can't be read.
        UsageError: there is none, or one is of a kind that can't be read.
    """
    if not sources:
        raise UsageError("no SOURCE given")
    resolved = list(dict.fromkeys(chain.from_iterable(map(_resolve, sources))))
    whole_folders = {
        source.path for source in resolved if isinstance(source, Source) and source.whole_prefixes()
    }
    return [
        source
        for source in resolved
        if not isinstance(source, Source) or not _is_covered(source, whole_folders)
    ]


def scan(
    sources: Iterable[Listing], *, skipped: Counter[str], selection: globs.Selection | None = None
) -> Iterator[FileEntry]:
    """Lists the files of some sources that may be images.

    No local file is opened but archives and lists. Symbolic links to files are followed and keep their own
    path as uri; links to folders are not followed. A subfolder that can't be listed is no error: it is
    counted, and a count of `unreadable_folder` above zero means that the listing isn't whole.

    Args:
        sources: what `resolve_sources` returned.
        skipped: counts by `SkipReason` are added to it while the result is consumed. What two overlapping
            sources both skip counts twice.
        selection: which of the files below folders are wanted; a file that is named itself always is.

    Yields:
        Each uri once, sorted in code-point order. Local `file://` URIs alone are held in memory.

    Raises:
        SourceError: a source that is a folder can't be listed, or a list can't be read.
    """
    sources = list(sources)
    selection = selection or globs.Selection()
    files = [source for source in sources if isinstance(source, Source) and not source.is_folder]
    # Of archives there may be thousands. One is listed after the other: none has uris between another's.
    archives = [source for source in sources if isinstance(source, Archive)]
    archives.sort(key=Archive.whole_prefixes)
    grouped = {*files, *archives}
    streams = [source.entries(selection, skipped) for source in sources if source not in grouped]
    streams.append(list_named_files(sorted(files, key=attrgetter("uri")), skipped))
    streams.append(chain.from_iterable(archive.entries(selection, skipped) for archive in archives))
    previous = None
    for entry in heapq.merge(*streams, key=attrgetter("uri")):
        if entry.uri != previous:
            yield entry
        previous = entry.uri


def whole_folders(sources: Iterable[Listing]) -> list[str]:
    """How the uris begin of which a scan of these sources finds all that there are; none begins another.

    They end in a slash, or in the `#` of an archive. A local folder has two where its path is valid UTF-8:
    the second is that of files whose own names aren't.
    """
    outermost: list[str] = []
    for prefix in sorted(prefix for source in sources for prefix in source.whole_prefixes()):
        # A hidden folder may be named beside one that it is in; then it follows it here.
        if not outermost or not prefix.startswith(outermost[-1]):
            outermost.append(prefix)
    return outermost


# --- what the user named ---


def _resolve(source: str | ListFile | Query) -> list[Listing]:
    if isinstance(source, ListFile | Query):
        return [source.resolved()]
    scheme = scheme_of(source)
    if scheme not in (None, "file", "tar") and source.lower().endswith(_ARCHIVE_SUFFIXES):
        raise UsageError(f"{printable(source)} is an archive; archives can be read on local disks only")
    match scheme:
        case None:
            pass
        case "file":
            return [_resolve_existing(uri_to_path(source), source)]
        case "s3" | "gs" | "az":
            from batchcap.storage import objects

            return [objects.resolve(source)]
        case _ if scheme in SCHEMES:
            return [NamedFile.resolve(source)]
        case _:
            raise UsageError(f"{printable(source)} is of a kind that can't be read")
    # Literal first: `holiday [2024]` is a folder more often than a glob.
    if glob.has_magic(source) and not os.path.lexists(source):
        return _resolve_glob(source)
    return [_resolve_existing(source, source)]


def _resolve_existing(path: str, name: str) -> Source | Archive:
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
        if is_folder:
            os.scandir(path).close()
    except (FileNotFoundError, NotADirectoryError):
        what = "is a link to nothing" if os.path.islink(path) else "does not exist"
        raise SourceNotFoundError(f"{printable(name)} {what}") from None
    except ValueError:  # a NUL in the name
        raise SourceNotFoundError(f"{printable(name)} does not exist") from None
    except OSError as error:
        raise SourceError(f"{printable(name)} can't be read: {error.strerror}") from error
    if not is_folder and path.lower().endswith(_ARCHIVE_SUFFIXES):
        return _archive(path, name)
    return Source(_absolute(path), is_folder)


def _archive(path: str, name: str) -> Archive:
    if not path.lower().endswith(SUFFIX):
        raise UsageError(
            f"{printable(name)} is compressed and can only be read from its beginning; make a .tar of it"
        )
    return Archive(_absolute(path))


def _resolve_glob(source: str) -> list[Listing]:
    folder = "/" if source.startswith("/") else ""
    parts = [part for part in source.split("/") if part not in ("", ".")]
    while parts and (not glob.has_magic(parts[0]) or os.path.lexists(os.path.join(folder, parts[0]))):
        folder = os.path.join(folder, parts.pop(0))
    if ".." in parts:
        raise UsageError(f"{printable(source)}: '..' can't follow a wildcard")
    base = _resolve_existing(folder or ".", folder or ".")
    # The names before the first `**` are soon looked up; what comes after would need a walk of its own.
    at_once = parts[: parts.index("**")] if "**" in parts else parts
    if isinstance(base, Archive) or not base.is_folder or not _any_match(base.path, at_once):
        raise SourceNotFoundError(f"{printable(source)} matches nothing")
    pattern = tuple(parts)
    # `folder/**` is the folder itself.
    if globs.start(pattern) is None:
        return [base]
    matching = Source(base.path, True, pattern)
    if pattern[-1].lower().endswith(_ARCHIVE_SUFFIXES):
        return [_archive(path, path) for path in sorted(match_files(matching, _ARCHIVE_SUFFIXES))]
    return [matching]


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
    if not whole_folders or (not is_folder and not has_image_suffix(os.path.basename(path))):
        return False
    # Upwards as long as a scan from above would come down this way.
    while path != "/":
        folder, name = os.path.split(path)
        if skip_by_name(name, is_folder=is_folder) or (is_folder and os.path.islink(path)):
            return False
        if folder in whole_folders:
            return True
        path, is_folder = folder, True
    return False
