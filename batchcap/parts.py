"""Parquet parts: an append-only log of what was captioned, written from SQL.

A store is a folder::

    store.json          which catalog it belongs to
    captions/           part-<first 8 of the run's uuid>-<number>.parquet

The catalog says what a part holds before it is written (`Catalog.assign_part`), and is told when it is on
disk (`Catalog.finish_part`). A run that dies in between leaves a pending part; the next run writes it
again, the same rows under the same name. A part appears whole or not at all, and is never overwritten.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from batchcap.errors import StoreError

if TYPE_CHECKING:
    from batchcap.catalog import Catalog, PartInfo, Run

SCHEMA_VERSION = 1

# The fields are those of `catalog.PartRow`, in its order.
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
    ],
    metadata={"batchcap.schema_version": str(SCHEMA_VERSION)},
)

_TEMPORARY = ".tmp-"
# What file systems answer that have no hard links.
_NO_LINKS = frozenset((errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK))


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of parts that belongs to a catalog; opened by `open_store`."""

    path: Path
    catalog_uuid: str

    @property
    def captions(self) -> Path:
        """The folder of the parts."""
        return self.path / "captions"


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
    stamp = store.path / "store.json"
    with _storage_errors(store.path):
        store.captions.mkdir(parents=True, exist_ok=True)
        if not stamp.exists():
            content = json.dumps({"format": SCHEMA_VERSION, "catalog": catalog_uuid}) + "\n"
            temporary = stamp.with_name(f"{_TEMPORARY}{os.getpid()}-{stamp.name}")
            try:
                temporary.write_text(content, encoding="utf-8")
                # Another process may be faster; the check below tells whose store it is then.
                _publish(temporary, stamp)
            finally:
                temporary.unlink(missing_ok=True)
        owner = _owner(stamp)
    if owner != catalog_uuid:
        raise StoreError(
            f"the store at {store.path} belongs to another catalog ({owner}, not {catalog_uuid}); "
            "name that catalog, or another store"
        )
    return store


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

    It also removes what such a run had half-written. That is safe only for who holds the catalog.

    Raises:
        StoreError: a part can't be written, or is there with other rows.
    """
    with _storage_errors(store.captions):
        for leftover in store.captions.glob(f"{_TEMPORARY}*"):
            leftover.unlink(missing_ok=True)
    parts = catalog.pending_parts()
    for part in parts:
        _write(catalog, store, part)
    return parts


def part_paths(store: Store) -> list[Path]:
    """The files of the store's parts, sorted by name."""
    with _storage_errors(store.captions):
        return sorted(store.captions.glob("part-*.parquet"))


def read_parts(store: Store) -> pa.Table:
    """All rows of all parts. For what fits in memory; DuckDB and its like read the files as they are.

    Raises:
        StoreError: a part is damaged, or was written by a newer batchcap.
    """
    tables = [_read(path) for path in part_paths(store)]
    return pa.concat_tables(tables) if tables else PART_SCHEMA.empty_table()


def _write(catalog: "Catalog", store: Store, part: "PartInfo") -> None:
    """Writes a part, unless it is there already with the same rows, and tells the catalog."""
    path = store.captions / part.name
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
    with _storage_errors(path):
        try:
            row_count = 0
            with pq.ParquetWriter(temporary, PART_SCHEMA, compression="zstd") as writer:
                for rows in catalog.part_rows(part.name):
                    columns = zip(*rows, strict=True)
                    arrays = [
                        pa.array(values, field.type)
                        for values, field in zip(columns, PART_SCHEMA, strict=True)
                    ]
                    writer.write_table(pa.Table.from_arrays(arrays, schema=PART_SCHEMA))
                    row_count += len(rows)
            if not _publish(temporary, path) and not _read(path).equals(_read(temporary)):
                raise StoreError(
                    f"{path} is there already, with other rows than the catalog gave it; "
                    "move it away, then run again"
                )
        finally:
            temporary.unlink(missing_ok=True)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    catalog.finish_part(part.name, row_count, digest)


def _publish(temporary: Path, path: Path) -> bool:
    """Gives a finished file its name, durably, and never overwrites.

    Returns:
        False if the name is taken. The caller removes `temporary`.
    """
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    published = True
    try:
        os.link(temporary, path)
    except FileExistsError:
        published = False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Without hard links a look must do. Whoever writes here holds the catalog's lock, so nobody
        # comes between the look and the renaming.
        published = not path.exists()
        if published:
            temporary.rename(path)
    # Even if it was there: who made it may have died before this.
    _sync_folder(path.parent)
    return published


def _sync_folder(folder: Path) -> None:
    """Makes a new name in a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems can't do it for folders, and need not be told.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _read(path: Path) -> pa.Table:
    with _storage_errors(path):
        table = pq.read_table(path)
    version = (table.schema.metadata or {}).get(b"batchcap.schema_version", b"").decode()
    if version != str(SCHEMA_VERSION):
        raise StoreError(
            f"{path} has schema version {version or 'none'}, this batchcap reads {SCHEMA_VERSION}; "
            "install the newest batchcap, or move the file away if it is no part"
        )
    if not table.schema.equals(PART_SCHEMA):
        raise StoreError(f"{path} has other columns than a part of batchcap's; move it away")
    return table


def _owner(stamp: Path) -> str:
    """The catalog that a store's stamp names."""
    try:
        content = json.loads(stamp.read_text(encoding="utf-8"))
        format_version, owner = content["format"], content["catalog"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{stamp} is damaged; put a copy of it back") from error
    if format_version != SCHEMA_VERSION:
        raise StoreError(f"{stamp} has format {format_version}; install the newest batchcap")
    return str(owner)


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Turns errors of the disk, and of files that are no Parquet, into a StoreError."""
    try:
        yield
    except pa.ArrowInvalid as error:
        raise StoreError(
            f"{path} is damaged: {str(error).splitlines()[0]}; move it away, run again"
        ) from error
    except OSError as error:
        advice = (
            "free some space, then run again"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else ("check its permissions and the disk")
        )
        raise StoreError(f"can't use {path}: {error.strerror or error}; {advice}") from error
