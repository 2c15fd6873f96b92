"""Parquet parts: an append-only log of what was captioned, written from SQL.

A store is a folder::

    store.json          which catalog it belongs to
    captions/           part-<first 8 of the run's uuid>-<number>.parquet

The catalog says what a part holds before it is written (`Catalog.assign_part`), and is told when it is on
disk (`Catalog.finish_part`). A run that dies in between leaves a pending part; the next run writes it
again, the same rows under the same name. A part appears whole or not at all, and is never overwritten, but
by what is left of it when `forget` has taken rows out (`Catalog.forget`), and where it is damaged
(`Catalog.reopen_part`): then the same, with one renaming.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchcap.errors import PartDamagedError, StoreError
from batchcap.publishing import PREFIX, publish, replace, sync_folder, temporary

if TYPE_CHECKING:
    from batchcap.catalog import Catalog, PartInfo, PartRow, Run

# What stands in a store's stamp.
_STORE_FORMAT = 1
SCHEMA_VERSION = 2

# The fields are those of `catalog.PartRow`, in its order. New ones come last, may be NULL, and are named in
# `_ADDED_FIELDS`: who reads parts of several versions finds the older columns in all of them.
PART_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("confidence", pa.float64()),
        pa.field("log_prob", pa.float64()),
        pa.field("token_count", pa.int32()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string()),
        pa.field("model", pa.string()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("format", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        # Local time of the camera, hence without a zone.
        pa.field("taken_at", pa.timestamp("us")),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("captioned_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("camera", pa.string()),
        # Degrees, north and east positive.
        pa.field("latitude", pa.float64()),
        pa.field("longitude", pa.float64()),
    ],
    metadata={"batchcap.schema_version": str(SCHEMA_VERSION)},
)
# What parts of version 1 do not have. The catalog may learn it later (`catalog.images`), and parts never.
_ADDED_FIELDS = ("camera", "latitude", "longitude")
_SCHEMAS = {
    "1": pa.schema([field for field in PART_SCHEMA if field.name not in _ADDED_FIELDS]),
    "2": PART_SCHEMA,
}

# Rows that are read from a part at a time.
_BATCH_ROWS = 5_000


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of parts that belongs to a catalog; opened by `open_store`."""

    path: Path
    catalog_uuid: str

    @property
    def captions(self) -> Path:
        """The folder of the parts."""
        return self.path / "captions"

    @property
    def stamp(self) -> Path:
        """The file that says which catalog the store belongs to."""
        return self.path / "store.json"


def open_store(path: str | os.PathLike[str], catalog_uuid: str) -> Store:
    """Opens a store, and makes and stamps it if it is new.

    Args:
        path: of the folder.
        catalog_uuid: `Catalog.uuid` of its catalog.

    Raises:
        StoreError: the store is another catalog's, or can't be read or made.
    """
    if "://" in os.fspath(path):
        raise StoreError(f"a remote store isn't supported yet: {os.fspath(path)}; name a local folder")
    store = Store(Path(path).expanduser().absolute(), catalog_uuid)
    stamp = store.stamp
    with _storage_errors(store.path):
        store.captions.mkdir(parents=True, exist_ok=True)
        if not stamp.exists():
            content = json.dumps({"format": _STORE_FORMAT, "catalog": catalog_uuid}) + "\n"
            written = temporary(stamp)
            try:
                written.write_text(content, encoding="utf-8")
                # Another process may be faster; the check below tells whose store it is then.
                publish(written, stamp)
            finally:
                written.unlink(missing_ok=True)
        owner = _owner(stamp)
    if owner != catalog_uuid:
        raise StoreError(
            f"the store at {store.path} belongs to another catalog ({owner}, not {catalog_uuid}); "
            "name that catalog, or another store; if that catalog is lost, make it again from Parquet: "
            "batchcap verify --rebuild"
        )
    return store


def stamped_owner(path: Path) -> str | None:
    """The catalog that a store's stamp names; None if there is no stamp. Nothing is made.

    Raises:
        StoreError: the stamp is damaged, or can't be read.
    """
    stamp = Store(path, "").stamp
    with _storage_errors(stamp):
        return _owner(stamp) if stamp.exists() else None


def seal(catalog: "Catalog", store: Store, run: "Run") -> "list[PartInfo]":
    """Puts all results that are in no part yet into parts.

    Returns:
        The new parts; empty if there was nothing to seal.

    Raises:
        StoreError: a part can't be written; it stays pending.
        CatalogError: the run no longer owns the catalog.
    """
    parts = []
    while (part := catalog.assign_part(run.id)) is not None:
        _write(catalog, store, part)
        parts.append(part)
    return parts


def seal_pending(catalog: "Catalog", store: Store) -> "list[PartInfo]":
    """Writes the parts that an earlier run named and did not finish; call it at the start of a run.

    So are those of which `Catalog.forget` took rows, and those that `Catalog.reopen_part` named.

    It also removes what such a run had half-written. That is safe only for who holds the catalog.

    Raises:
        StoreError: a part can't be written, or is there with other rows.
    """
    with _storage_errors(store.captions):
        for leftover in store.captions.glob(f"{PREFIX}*"):
            leftover.unlink(missing_ok=True)
    parts = catalog.pending_parts()
    for part in parts:
        _write(catalog, store, part)
    return parts


def part_paths(store: Store) -> list[Path]:
    """The files of the store's parts, sorted by name."""
    with _storage_errors(store.captions):
        return sorted(store.captions.glob("part-*.parquet"))


def all_files(store: Store) -> list[Path]:
    """Whatever is in the folder of the parts, sorted by name; nothing if there is no such folder."""
    with _storage_errors(store.captions):
        return sorted(store.captions.iterdir()) if store.captions.is_dir() else []


def read_parts(store: Store) -> pa.Table:
    """All rows of all parts. For what fits in memory; DuckDB and its like read the files as they are.

    What a part of an older version does not have is NULL.

    Raises:
        StoreError: a part is damaged, or was written by a newer batchcap.
    """
    tables = [_read(path) for path in part_paths(store)]
    return pa.concat_tables(tables) if tables else PART_SCHEMA.empty_table()


def read_part(path: Path) -> Iterator[pa.Table]:
    """The rows of a part in batches, in their order; of an older one with NULL in the columns that it lacks.

    Raises:
        PartDamagedError: the file is damaged.
        StoreError: it can't be read, or is no part of batchcap's.
    """
    with _storage_errors(path), pq.ParquetFile(path) as file:
        _require_part(path, file.schema_arrow)
        for batch in file.iter_batches(_BATCH_ROWS):
            batch.validate(full=True)  # Arrow reads text that is no UTF-8
            yield _as_current(pa.Table.from_batches([batch]))


def as_table(rows: "Sequence[PartRow]") -> pa.Table:
    """Rows of the catalog as a part holds them; at least one."""
    arrays = [
        pa.array(values, field.type)
        for values, field in zip(zip(*rows, strict=True), PART_SCHEMA, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=PART_SCHEMA)


def as_far_as_known(expected: pa.Table, found: pa.Table) -> pa.Table:
    """Rows of the catalog without what it has learned of their images after they were put into a part.

    Args:
        expected: the rows as the catalog has them.
        found: the rows as the part has them.
    """
    if len(expected) != len(found):
        return expected
    for name in _ADDED_FIELDS:
        number = expected.schema.get_field_index(name)
        values = pc.if_else(found[name].is_null(), None, expected[name])
        expected = expected.set_column(number, expected.schema.field(number), values)
    return expected


def damaged_path(store: Store, path: Path) -> Path:
    """Where a damaged part is kept: those are not troubled by it who read the parts' folder as it is."""
    return store.path / "damaged" / f"{path.name}.{datetime.now(UTC):%Y%m%dT%H%M%S%f}"


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal.

    Raises:
        StoreError: it can't be read.
    """
    with _storage_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(catalog: "Catalog", store: Store, part: "PartInfo") -> None:
    """Writes a part, unless it is there already with the same rows, and tells the catalog."""
    path = store.captions / part.name
    if not part.row_count:
        # All that it held was forgotten.
        with _storage_errors(path):
            _require_superseded(path, part)
            path.unlink(missing_ok=True)
            sync_folder(path.parent)
        catalog.drop_part(part.name)
        return
    written = temporary(path)
    with _storage_errors(path):
        try:
            row_count = 0
            with pq.ParquetWriter(written, PART_SCHEMA, compression="zstd") as writer:
                for rows in catalog.part_rows(part.name):
                    writer.write_table(as_table(rows))
                    row_count += len(rows)
            if not publish(written, path) and (
                # What is to be replaced may be damaged, and is not read.
                _is_superseded(path, part) or not _read(path).equals(_read(written))
            ):
                _require_superseded(path, part)
                replace(written, path)
        finally:
            written.unlink(missing_ok=True)
    catalog.finish_part(part.name, row_count, sha256_of(path))


def _require_superseded(path: Path, part: "PartInfo") -> None:
    """Refuses to touch a file but the very one that the part replaces.

    Raises:
        StoreError: it is another.
    """
    if path.exists() and not _is_superseded(path, part):
        raise StoreError(
            f"{path} is there already, with other rows than the catalog gave it; move it away, then run again"
        )


def _is_superseded(path: Path, part: "PartInfo") -> bool:
    return part.supersedes is not None and sha256_of(path) == part.supersedes


def _read(path: Path) -> pa.Table:
    with _storage_errors(path):
        table = pq.read_table(path)
    _require_part(path, table.schema)
    return _as_current(table)


def _as_current(table: pa.Table) -> pa.Table:
    """Rows of a part of any version as `PART_SCHEMA`."""
    lacking = [field for field in PART_SCHEMA if field.name not in table.schema.names]
    nothing = [pa.nulls(table.num_rows, field.type) for field in lacking]
    return pa.Table.from_arrays([*table.columns, *nothing], schema=PART_SCHEMA)


def _require_part(path: Path, schema: pa.Schema) -> None:
    version = (schema.metadata or {}).get(b"batchcap.schema_version", b"").decode(errors="replace")
    if version not in _SCHEMAS:
        raise StoreError(
            f"{path} has schema version {version or 'none'}, this batchcap reads up to {SCHEMA_VERSION}; "
            "install the newest batchcap, or move the file away if it is no part"
        )
    if not schema.equals(_SCHEMAS[version]):
        raise StoreError(f"{path} has other columns than a part of batchcap's; move it away")


def _owner(stamp: Path) -> str:
    """The catalog that a store's stamp names."""
    try:
        content = json.loads(stamp.read_text(encoding="utf-8"))
        format_version, owner = content["format"], content["catalog"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{stamp} is damaged; put a copy of it back, or remove it if no other catalog can be the store's"
        ) from error
    if format_version != _STORE_FORMAT:
        raise StoreError(f"{stamp} has format {format_version}; install the newest batchcap")
    return str(owner)


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Turns errors of the disk, and of files that are no Parquet, into a StoreError."""
    try:
        yield
    except pa.ArrowException as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno is None:  # Arrow's own, of what it has read
            raise _damaged(path, error) from error
        advice = (
            "free some space, then run again"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else ("check its permissions and the disk")
        )
        raise StoreError(f"can't use {path}: {error.strerror or error}; {advice}") from error


def _damaged(path: Path, error: Exception) -> PartDamagedError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return PartDamagedError(
        f"{path} is damaged: {reason}; put a copy of it back, or move it away and run again"
    )
