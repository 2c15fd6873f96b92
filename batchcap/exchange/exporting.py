"""Captions to files for other programs: one table of all, or a text or XMP file beside each picture."""

import csv
import io
import json
import os
import shutil
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from batchcap.catalog import CaptionFilter, Catalog, LiveCaption
from batchcap.collection import uri_to_path
from batchcap.errors import ExchangeError, UsageError
from batchcap.exchange import xmp
from batchcap.publishing import publish, replace, temporary

_COLUMNS = LiveCaption._fields
_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("confidence", pa.float64()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("model", pa.string()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("format", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("taken_at", pa.timestamp("us")),
        pa.field("captioned_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("camera", pa.string()),
        pa.field("latitude", pa.float64()),
        pa.field("longitude", pa.float64()),
    ]
)
# Folders that are remembered: captions come sorted by uri, hence folder by folder.
_FOLDERS = 16


class Sidecar(StrEnum):
    """What is written beside each picture."""

    TXT = "txt"
    XMP = "xmp"


@dataclass(slots=True)
class SidecarReport:
    """What became of the files beside the pictures.

    Args:
        written: made, or changed.
        unchanged: that said so already.
        kept: that say something which batchcap did not write, and were left as they are.
        not_local: pictures in archives, object stores and on web servers: nothing can be written beside them.
        failed: (path, what is wrong) of those that could not be written.
    """

    written: int = 0
    unchanged: int = 0
    kept: list[str] = field(default_factory=list)
    not_local: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)


class _Table(Protocol):
    def write(self, rows: Sequence[LiveCaption]) -> int: ...


def export_table(
    catalog: Catalog, path: Path, where: CaptionFilter, *, people_only: bool = False, overwrite: bool = False
) -> int:
    """Writes the captions that are shown to one file.

    Args:
        catalog: to read.
        path: of the file; its suffix says what it is: .csv, .jsonl, .parquet, or .tsv, which
            `train_model --captions` reads: the images' names, below the folder of the filter if it has one,
            and of several copies of an image the first.
        where: which captions.
        people_only: whether only those that people wrote.
        overwrite: whether the file may replace another.

    Returns:
        Rows written.

    Raises:
        UsageError: the suffix says nothing, the file is there already, or it can't be written.
    """
    table = _TABLES.get(path.suffix.lower())
    if table is None:
        raise UsageError(f"{path}: the name says what to write; give it one of {', '.join(_TABLES)}")
    try:
        if not overwrite and os.path.lexists(path):
            raise UsageError(f"{path} is there already; add --overwrite to replace it")
        written = temporary(path.absolute())
        count = 0
        try:
            with table(written, where.under) as opened:
                for batch in catalog.live_captions(where):
                    count += opened.write([row for row in batch if not people_only or row.source == "human"])
            if overwrite:
                replace(written, path.absolute())
            elif not publish(written, path.absolute()):
                raise UsageError(f"{path} was made by another program just now")
        finally:
            written.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror or error}") from error
    return count


def export_sidecars(
    catalog: Catalog,
    kind: Sidecar,
    where: CaptionFilter,
    *,
    people_only: bool = False,
    overwrite: bool = False,
) -> SidecarReport:
    """Writes each caption beside its picture.

    What is there already is replaced if it is a caption that the catalog has, or once had, of that picture;
    for then it was written by us, or nothing is lost. A text file is the caption alone (`a.jpg`: `a.txt`). Of
    an XMP file (`a.jpg.xmp`, or `a.xmp` if that is there and there is nothing else that it could be of) only
    the description is touched.

    Args:
        catalog: to read.
        kind: of files.
        where: which captions.
        people_only: whether only those that people wrote.
        overwrite: whether also what others wrote is replaced; of XMP the description alone.

    Raises:
        CatalogError: the catalog can't be read.
    """
    report = SidecarReport()
    write = _write_txt if kind is Sidecar.TXT else _write_xmp
    neighbours = _Neighbours()
    for batch in catalog.live_captions(where):
        rows = [row for row in batch if not people_only or row.source == "human"]
        said = catalog.all_texts({row.content_hash for row in rows})
        for row in rows:
            try:
                picture = Path(uri_to_path(row.uri))
            except UsageError:
                report.not_local += 1
                continue
            path = picture
            try:
                path = picture.with_suffix(".txt") if kind is Sidecar.TXT else neighbours.xmp_path(picture)
                neighbours.claim(path, picture)
                # Not the picture's folder, were it gone: nothing is made in its place.
                if not picture.exists():
                    raise ExchangeError("the picture is not there")
                outcome = write(path, row.caption, None if overwrite else said[row.content_hash])
            except OSError as error:
                report.failed.append((str(path), error.strerror or str(error)))
            except ExchangeError as error:
                report.failed.append((str(path), str(error)))
            else:
                report.written += outcome == "written"
                report.unchanged += outcome == "unchanged"
                if outcome == "kept":
                    report.kept.append(str(path))
    return report


def _write_txt(path: Path, caption: str, ours: set[str] | None) -> str:
    if path.is_file():
        there = path.read_bytes().decode("utf-8", "replace").strip()
        if there == caption:
            return "unchanged"
        if ours is not None and there not in ours:
            return "kept"
    elif os.path.lexists(path):
        raise ExchangeError("something else has that name")
    _put(path, f"{caption}\n".encode())
    return "written"


def _write_xmp(path: Path, caption: str, ours: set[str] | None) -> str:
    data = path.read_bytes() if path.exists() else None
    if data is not None:
        there = xmp.description(data)
        if there == caption:
            return "unchanged"
        if there is not None and ours is not None and there not in ours:
            return "kept"
    _put(path, xmp.with_description(data, caption))
    return "written"


def _put(path: Path, data: bytes) -> None:
    """Writes a file, whole or not at all; through a link, and with the rights of the one that it replaces."""
    target = Path(os.path.realpath(path))
    is_there = target.exists()
    written = temporary(target)
    try:
        written.write_bytes(data)
        if is_there:
            shutil.copymode(target, written)
            replace(written, target)
        elif not publish(written, target):
            raise ExchangeError("another program made it just now")
    finally:
        written.unlink(missing_ok=True)


@dataclass(slots=True)
class _Folder:
    """A folder: the suffixes that are there of each name, and the files that we have written."""

    suffixes: dict[str, set[str]] | None = None
    claimed: set[str] = field(default_factory=set)


class _Neighbours:
    """What else is in the folder of a picture; of the latest folders it is remembered."""

    def __init__(self) -> None:
        self._folders: OrderedDict[Path, _Folder] = OrderedDict()

    def claim(self, path: Path, picture: Path) -> None:
        """Notes whose a sidecar is: of `a.jpg` and `a.png`, the first's, whose it is also the next time.

        Raises:
            ExchangeError: it is another's already.
        """
        claimed = self._folder(path.parent).claimed
        if path.name in claimed:
            raise ExchangeError(f"it is another picture's already, not that of {picture.name}")
        claimed.add(path.name)

    def xmp_path(self, picture: Path) -> Path:
        """Where a picture's XMP sidecar is, or is to be."""
        full, short = picture.with_name(f"{picture.name}.xmp"), picture.with_suffix(".xmp")
        if full.exists() or not short.exists():
            return full
        # It may be of the raw picture of the same name.
        others = self._suffixes(picture.parent)[picture.stem] - {picture.suffix, ".xmp", ".txt"}
        return full if others else short

    def _suffixes(self, folder: Path) -> dict[str, set[str]]:
        known = self._folder(folder)
        if known.suffixes is None:
            known.suffixes = defaultdict(set)
            for path in folder.iterdir():
                known.suffixes[path.stem].add(path.suffix)
        return known.suffixes

    def _folder(self, folder: Path) -> _Folder:
        found = self._folders.setdefault(folder, _Folder())
        self._folders.move_to_end(folder)
        if len(self._folders) > _FOLDERS:
            self._folders.popitem(last=False)
        return found


# --- tables ---


class _TextTable:
    """A table of lines: one function says what a caption's line is, None for none."""

    def __init__(self, file: io.TextIOBase, name_below: str | None) -> None:
        self._file = file
        self._name_below = name_below

    def write(self, rows: Sequence[LiveCaption]) -> int:
        lines = [line for row in rows if (line := self.line(row)) is not None]
        self._file.write("".join(lines))
        return len(lines)

    def line(self, row: LiveCaption) -> str | None:
        raise NotImplementedError

    def header(self) -> str:
        return ""


class _Csv(_TextTable):
    def line(self, row: LiveCaption) -> str:
        return _csv_line([_csv_value(value) for value in row])

    def header(self) -> str:
        return _csv_line(_COLUMNS)


class _JsonLines(_TextTable):
    def line(self, row: LiveCaption) -> str:
        values = {name: _plain(value) for name, value in row._asdict().items()}
        return json.dumps(values, ensure_ascii=False) + "\n"


class _Tsv(_TextTable):
    """Columns image and caption: what `train_model --captions` reads."""

    def __init__(self, file: io.TextIOBase, name_below: str | None) -> None:
        super().__init__(file, name_below)
        self._seen: set[str] = set()

    def line(self, row: LiveCaption) -> str | None:
        name = row.uri
        if self._name_below is not None:
            name = name.removeprefix(self._name_below.rstrip("/") + "/")
        # Two copies of a picture could be learned from and judged on. And a line can't hold such a name.
        if row.content_hash in self._seen or len(f"{name} {row.caption}".splitlines()) != 1 or "\t" in name:
            return None
        self._seen.add(row.content_hash)
        return f"{name}\t{row.caption}\n"

    def header(self) -> str:
        return "image\tcaption\n"


class _Parquet:
    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer

    def write(self, rows: Sequence[LiveCaption]) -> int:
        if rows:
            columns = zip(*rows, strict=True)
            arrays = [pa.array(values, column.type) for values, column in zip(columns, _SCHEMA, strict=True)]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA))
        return len(rows)


@contextmanager
def _parquet(path: Path, name_below: str | None) -> Iterator[_Parquet]:
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        yield _Parquet(writer)


def _text(kind: type[_TextTable]) -> Any:
    @contextmanager
    def opened(path: Path, name_below: str | None) -> Iterator[_TextTable]:
        # A table of a spreadsheet or of JSON has its own line ends, on every system.
        with path.open("w", encoding="utf-8", newline="") as file:
            table = kind(file, name_below)
            file.write(table.header())
            yield table

    return opened


_TABLES: dict[str, Any] = {
    ".csv": _text(_Csv),
    ".jsonl": _text(_JsonLines),
    ".parquet": _parquet,
    ".tsv": _text(_Tsv),
}


def _csv_line(values: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def _csv_value(value: object) -> object:
    return "" if value is None else _plain(value)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        # The camera's has no zone.
        return (value if value.tzinfo is None else value.astimezone(UTC)).isoformat()
    return value
