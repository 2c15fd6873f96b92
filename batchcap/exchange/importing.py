"""Captions from other programs: tables (CSV, TSV, JSON Lines) and XMP sidecars."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from batchcap.catalog import Catalog, EditOutcome, ModelInfo, one_caption
from batchcap.errors import ExchangeError, UsageError
from batchcap.exchange import xmp
from batchcap.exchange.names import uri_of

# What the columns are called, by us and by others.
_NAMES = ("uri", "image", "file_name", "filename", "file", "path")
_CAPTIONS = ("caption", "text", "description")


class FoundCaption(NamedTuple):
    """A caption and the files that it may be of: the first that the catalog knows."""

    uris: tuple[str, ...]
    text: str


@dataclass(slots=True)
class ImportReport:
    """What became of the captions.

    Args:
        written: new ones.
        unchanged: that were there already.
        unknown: names of files that the catalog does not know.
        left_out: (where, what is wrong) of what is no caption.
    """

    written: int = 0
    unchanged: int = 0
    unknown: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def import_captions(
    catalog: Catalog, files: Sequence[Path], *, model: str | None = None, below: str | None = None
) -> ImportReport:
    """Reads captions, and writes those of files that the catalog knows.

    Args:
        catalog: opened for writing.
        files: .csv, .tsv, .jsonl and .xmp, and folders whose .xmp files are read, all of them.
        model: the name of the model whose captions they are; None for a person's.
        below: the folder that relative names in a table start from; None for that of the table.

    Raises:
        ExchangeError: a table can't be read; nothing was written.
        UsageError: a file is of no known kind.
    """
    report = ImportReport()
    rows: list[tuple[str, str]] = []
    for path in files:
        if path.is_dir() or path.suffix.lower() == ".xmp":
            found = _of_sidecars(catalog, path, report)
        else:
            found = _of_table(path, below, report)
        for caption in found:
            rows += [(uri, caption.text) for uri in caption.uris]
    info = None if model is None else _imported_model(model, rows)
    for (uri, _), outcome in zip(rows, catalog.write_captions(rows, info, only_new=True), strict=True):
        report.written += outcome is EditOutcome.WRITTEN
        report.unchanged += outcome is EditOutcome.UNCHANGED
        if outcome in (EditOutcome.UNKNOWN, EditOutcome.VANISHED):
            report.unknown.append(uri)
    return report


def _imported_model(name: str, rows: Iterable[tuple[str, str]]) -> ModelInfo:
    """A model that is known by its captions alone: the same ones again are nothing new."""
    digest = hashlib.sha256(json.dumps(["import", name, sorted(set(rows))]).encode())
    return ModelInfo(digest.hexdigest(), name, {"imported": True})


def _of_table(path: Path, below: str | None, report: ImportReport) -> Iterator[FoundCaption]:
    reader = {".csv": _csv, ".tsv": _tsv, ".jsonl": _json_lines}.get(path.suffix.lower())
    if reader is None:
        raise UsageError(
            f"{path}: only .csv, .tsv, .jsonl and .xmp files, and folders of these, are imported"
        )
    folder = os.fspath(path.absolute().parent) if below is None else below
    try:
        text = path.read_bytes().decode("utf-8-sig")
        for line, name, caption in reader(text):
            if not name:
                report.left_out.append((f"{path}, line {line}", "it names no file"))
            elif (found := _caption(caption, f"{path}, line {line}", report)) is not None:
                yield FoundCaption((uri_of(name, folder),), found)
    except OSError as error:
        raise ExchangeError(f"can't read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ExchangeError(f"{path} is no text in UTF-8: {error.reason}") from error
    except (ValueError, csv.Error, RecursionError) as error:
        raise ExchangeError(f"{path} is damaged: {' '.join(str(error).split())}") from error


def _caption(text: object, where: str, report: ImportReport) -> str | None:
    try:
        return one_caption(text if isinstance(text, str) else "")
    except UsageError as error:
        report.left_out.append((where, str(error)))
        return None


def _csv(text: str) -> Iterator[tuple[int, str, object]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    yield from _rows(reader, lambda: reader.line_num)


def _tsv(text: str) -> Iterator[tuple[int, str, object]]:
    lines = [line.removesuffix("\r").split("\t") for line in text.split("\n")]
    numbers = iter(range(1, len(lines) + 2))
    yield from _rows(iter(lines), lambda: next(numbers))


def _rows(rows: Iterator[list[str]], line_number: Any) -> Iterator[tuple[int, str, object]]:
    columns = [column.strip().lower() for column in next(rows, [])]
    line_number()
    name = next((columns.index(known) for known in _NAMES if known in columns), None)
    caption = next((columns.index(known) for known in _CAPTIONS if known in columns), None)
    if name is None or caption is None:
        raise ValueError(f"its first line must name the columns {_NAMES[0]} and {_CAPTIONS[0]}")
    for row in rows:
        line = line_number()
        if len(row) > max(name, caption):
            yield line, row[name], row[caption]
        elif any(row):
            yield line, "", ""


def _json_lines(text: str) -> Iterator[tuple[int, str, object]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"line {number} is no object")
        name = next((values[known] for known in _NAMES if isinstance(values.get(known), str)), "")
        yield number, name, next((values[known] for known in _CAPTIONS if known in values), None)


def _of_sidecars(catalog: Catalog, path: Path, report: ImportReport) -> Iterator[FoundCaption]:
    sidecars = sorted(path.rglob("*.[xX][mM][pP]")) if path.is_dir() else [path]
    for sidecar in sidecars:
        try:
            text = xmp.description(sidecar.read_bytes())
        except OSError as error:
            report.left_out.append((str(sidecar), error.strerror or str(error)))
            continue
        except ExchangeError as error:
            report.left_out.append((str(sidecar), str(error)))
            continue
        if text is None:
            report.left_out.append((str(sidecar), "it has no description"))
        elif (found := _caption(text, str(sidecar), report)) is not None:
            # `a.jpg.xmp` is of `a.jpg`; `a.xmp` of whatever is called so.
            named = uri_of(str(sidecar.with_suffix("")))
            yield FoundCaption(tuple(catalog.files_named(named)) or (named,), found)
