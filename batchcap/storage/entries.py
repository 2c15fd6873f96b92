"""What listing finds: a `FileEntry` for each file that may be an image, and counts by `SkipReason`."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from batchcap import globs

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


class SkipReason(StrEnum):
    """Why `scan` left something out. Each member is the key of a count."""

    APPLEDOUBLE = "appledouble"  # `._*`: what macOS keeps beside a file on foreign disks
    BLANK = "blank"  # a row of a list that names nothing
    BROKEN_LINK = "broken_link"
    DUPLICATE = "duplicate"  # a row of a list, or a member of an archive that a later one replaces
    EXCLUDED = "excluded"  # a file or a whole folder that the selection leaves out
    HIDDEN = "hidden"  # a file or a whole folder whose name starts with a dot
    LINK = "link"  # within an archive
    MISSING = "missing"  # a list names it, and it is not there
    NOT_AN_IMAGE = "not_an_image"  # by its suffix
    SPECIAL_FILE = "special_file"  # a FIFO, socket or device; in a list also a folder
    SYMLINKED_FOLDER = "symlinked_folder"
    SYSTEM = "system"  # .DS_Store, Thumbs.db, desktop.ini
    UNKNOWN_SCHEME = "unknown_scheme"  # a list has a URI of a kind that we can't read
    UNREADABLE_FILE = "unreadable_file"  # its size and time can't be had
    UNREADABLE_FOLDER = "unreadable_folder"
    VANISHED = "vanished"  # between listing and a look at it


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file that may be an image.

    Args:
        uri: where it is; see `batchcap.storage`.
        size_bytes: its size; of a symbolic link, the target's. 0 where a web server doesn't say.
        mtime_ns: time of its last change in nanoseconds since 1970; of a symbolic link, the target's.
        etag: the storage's name for this version of the content; None for local files.
    """

    uri: str
    size_bytes: int
    mtime_ns: int
    etag: str | None = None


class Listing(Protocol):
    """Something that a user named, checked, and what there is to look at in it."""

    @property
    def uri(self) -> str:
        """Where it is."""

    def entries(self, selection: globs.Selection, skipped: Counter[str]) -> Iterator[FileEntry]:
        """What may be an image, sorted by uri in code-point order.

        Args:
            selection: which of the files below a folder are wanted.
            skipped: counts by `SkipReason` are added to it while the result is consumed.

        Raises:
            SourceError: it can't be listed at all.
        """

    def whole_prefixes(self) -> list[str]:
        """How the uris begin of which `entries` gives all that there are; none for a single file."""


def has_image_suffix(name: str) -> bool:
    """Whether a file is called like a picture."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def skip_by_name(name: str, *, is_folder: bool) -> SkipReason | None:
    """Why something of this name is passed by, wherever it is."""
    if not is_folder:
        if name.lower() in _SYSTEM_FILES:
            return SkipReason.SYSTEM
        if name.startswith("._"):
            return SkipReason.APPLEDOUBLE
    return SkipReason.HIDDEN if name.startswith(".") else None


def skip_by_path(path: str, selection: globs.Selection) -> SkipReason | None:
    """Why a file is passed by whose folders are only names, as in an archive; as below a real folder.

    Args:
        path: its names with slashes between them, relative to the source.
        selection: which files are wanted.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    state = selection.start()
    for index, part in enumerate(parts):
        is_folder = index < len(parts) - 1
        if reason := skip_by_name(part, is_folder=is_folder):
            return reason
        if not is_folder and not has_image_suffix(part):
            return SkipReason.NOT_AN_IMAGE
        entered = selection.enter(state, part, is_folder=is_folder)
        if entered is None:
            return SkipReason.EXCLUDED
        state = entered
    return None if parts else SkipReason.NOT_AN_IMAGE
