"""Lists: files that name what to look at, one a row; Parquet, CSV, or text with one path a line.

A list may be long and in any order: it is sorted in temporary files, then each file is looked at. What a list
no longer names is not gone.
"""

import csv
import os
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

from batchcap.errors import SourceError, SourceNotFoundError, UsageError
from batchcap.globs import Selection
from batchcap.storage import SCHEMES, look
from batchcap.storage.entries import FileEntry, SkipReason
from batchcap.storage.sorting import sort_entries
from batchcap.storage.uris import FILE_SCHEME, absolute_uri, path_to_uri, printable, scheme_of, uri_to_path

# What a column of locations is called where nobody says; the first that is there.
DEFAULT_COLUMNS = ("uri", "path", "url")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_PARQUET_SUFFIXES = (".parquet", ".pq")
_ROWS_PER_BATCH = 8192
# Files that are looked at together, for each look may be an answer of a server.
_LOOKING_THREADS = 16
_CHUNK = 256
# Looks in a row that fail. A look that fails takes seconds: who has ten million of them ahead wants to know.
_MOST_UNTOLD = 200


@dataclass(frozen=True, slots=True)
class ListFile:
    """A list that a user named.

    Args:
        path: of the list: `.parquet`, `.csv` (or `.tsv`) with a header, anything else text.
        column: that holds paths or URIs; None where it is called `uri`, `path` or `url`, or is the only one.
    """

    path: str
    column: str | None = None

    @property
    def uri(self) -> str:
        """Where the list is."""
        return path_to_uri(os.path.abspath(self.path))

    def __str__(self) -> str:
        return self.uri if self.column is None else f"{self.uri} (column {self.column})"

    def resolved(self) -> "ListFile":
        """The list with its path absolute and its column known.

        Raises:
            SourceNotFoundError: there is no such file.
            SourceError: it can't be read.
            UsageError: it has no such column.
        """
        path = os.path.abspath(self.path)
        try:
            if not os.path.isfile(path):
                raise SourceNotFoundError(f"{printable(self.path)} is no file")
            column = _choose_column(_columns(path), self.column, self.path)
        except (OSError, ValueError, csv.Error) as error:
            raise _unreadable(self.path, error) from error
        return ListFile(path, column)

    def entries(self, selection: Selection, skipped: Counter[str]) -> Iterator[FileEntry]:
        """What the list names, sorted by uri; whatever its name, and whatever the selection.

        Files that are not there are counted as `missing`. Of one whose storage won't tell there is an entry
        all the same, so that it gets into the quarantine.

        Raises:
            SourceError: the list can't be read to its end.
        """
        try:
            yield from named_entries(_values(self.path, self.column), os.path.dirname(self.path), skipped)
        except (OSError, ValueError, csv.Error) as error:
            raise _unreadable(self.path, error) from error

    def whole_prefixes(self) -> list[str]:
        """None: what a list leaves out may still be there."""
        return []


def named_entries(
    values: Iterable[object], folder: str, skipped: Counter[str]
) -> Generator[FileEntry, None, None]:
    """What some paths and URIs lead to, sorted by uri.

    Args:
        values: in any order; what is no text or twice there is counted.
        folder: below which relative paths are.
        skipped: counts by `SkipReason`.

    Raises:
        SourceError: the storage has failed, not its files.
    """
    uris = sort_entries((FileEntry(uri, 0, 0) for uri in _uris(values, folder, skipped)), skipped)
    pool = ThreadPoolExecutor(_LOOKING_THREADS, "look-at-files")
    untold = 0
    try:
        while chunk := [entry.uri for entry in islice(uris, _CHUNK)]:
            for uri, found in zip(chunk, pool.map(look, chunk), strict=True):
                untold = untold + 1 if found == FileEntry(uri, 0, 0) else 0
                if untold == _MOST_UNTOLD:
                    raise SourceError(
                        f"{untold} files in a row can't be looked at, the last of them {printable(uri)}: see "
                        "that their storage can be reached and run again"
                    )
                if isinstance(found, FileEntry):
                    yield found
                else:
                    skipped[found] += 1
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        uris.close()


def _uris(values: Iterable[object], folder: str, skipped: Counter[str]) -> Iterator[str]:
    for value in values:
        found = _location(value, folder)
        if isinstance(found, SkipReason):
            skipped[found] += 1
        else:
            yield found


def _location(value: object, folder: str) -> str | SkipReason:
    """The uri that a value of a list stands for."""
    if isinstance(value, bytes):
        value = os.fsdecode(value)
    if not isinstance(value, str) or not value.strip():
        return SkipReason.BLANK
    scheme = scheme_of(value)
    if "\0" in value:
        return SkipReason.MISSING
    if scheme not in (None, "file"):
        if scheme not in SCHEMES:
            return SkipReason.UNKNOWN_SCHEME
        # What is no UTF-8 has no URI, and so there is nothing at it.
        return scheme + value[len(scheme) :] if _is_utf8(value) else SkipReason.MISSING
    if scheme == "file":
        if not value.startswith(FILE_SCHEME + "/"):
            return SkipReason.UNKNOWN_SCHEME
        value = uri_to_path(value)
    path = os.path.join(folder, value)
    # As text, `link/..` would be struck out, which names another folder if `link` is a symbolic link.
    return absolute_uri(os.path.realpath(path) if ".." in path.split("/") else path)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _columns(path: str) -> list[str] | None:
    """The names of a list's columns; None where it is text."""
    if _kind(path) in _PARQUET_SUFFIXES:
        from pyarrow import parquet

        return list(parquet.read_schema(path).names)
    if _kind(path) in _DELIMITERS:
        with closing(_csv_rows(path)) as rows:
            return next(rows, [])
    with open(path, "rb"):
        return None


def _choose_column(columns: list[str] | None, wanted: str | None, name: str) -> str | None:
    if columns is None:
        if wanted is not None:
            raise UsageError(f"{printable(name)} is text, one path a line; it has no column {wanted!a}")
        return None
    if wanted is None:
        named = [column for column in DEFAULT_COLUMNS if column in columns]
        if len(columns) != 1 and not named:
            raise UsageError(
                f"{printable(name)}: say with --column where the paths are; there are {_enumerated(columns)}"
            )
        return named[0] if named else columns[0]
    if wanted not in columns:
        raise UsageError(f"{printable(name)} has no column {wanted!a}, but {_enumerated(columns)}")
    return wanted


def _enumerated(columns: list[str]) -> str:
    return ", ".join(map(ascii, columns[:20])) or "none"


def _values(path: str, column: str | None) -> Iterator[object]:
    """What stands in a list's column, row by row."""
    if column is None:
        yield from _lines(path)
    elif _kind(path) in _PARQUET_SUFFIXES:
        yield from _parquet_values(path, column)
    else:
        with closing(_csv_rows(path)) as rows:
            place = next(rows, [column]).index(column)
            for row in rows:
                yield row[place] if place < len(row) else None


def _lines(path: str) -> Iterator[str]:
    # A name may hold any byte but these; an editor may have put a mark at the beginning.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for line in file:
            yield line.rstrip("\r\n")


def _csv_rows(path: str) -> Generator[list[str], None, None]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        yield from csv.reader(file, delimiter=_DELIMITERS[_kind(path)], strict=True)


def _parquet_values(path: str, column: str) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS_PER_BATCH, columns=[column]):
            yield from batch.column(0).to_pylist()


def _unreadable(name: str, error: Exception) -> SourceError:
    what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return SourceError(f"{printable(name)} can't be read as a list: {' '.join(what.split())[:300]}")
