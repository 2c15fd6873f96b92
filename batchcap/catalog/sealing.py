"""Sealing, the catalog's half: which results belong to which Parquet part.

A part is named, and given its rows, in one transaction, before anything is written to disk. From then on
its content is fixed: whoever writes the file, and however often, writes the same rows in the same order.
Only `catalog.forgetting` takes rows out of a part, which is pending again then, as is one whose file is
damaged; the file that it supersedes is known by its sha256.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, case, delete, func, insert, literal, select, update

from batchcap.catalog.columns import columns_of
from batchcap.catalog.connection import Database
from batchcap.catalog.records import PartInfo
from batchcap.catalog.tables import Caption, Image, Model, Part, Result, Run
from batchcap.errors import CatalogError

# Results that make a part; also the number after which a run seals one.
PART_ROWS = 50_000
_BATCH_ROWS = 5_000


class PartRow(NamedTuple):
    """One row of a part, in the order of the Parquet schema."""

    uri: str
    caption: str
    confidence: float | None
    log_prob: float | None
    token_count: int | None
    source: str
    fingerprint: str | None
    model: str | None
    width: int
    height: int
    format: str
    size_bytes: int
    taken_at: datetime | None
    content_hash: str
    run_id: str
    captioned_at: datetime
    camera: str | None
    latitude: float | None
    longitude: float | None


def unsealed_count(database: Database) -> int:
    """How many results are in no part yet."""
    with database.read() as connection:
        return connection.scalars(select(func.count()).where(Result.part_id.is_(None))).one()


def assign_part(database: Database, run_id: str, *, rows: int = PART_ROWS) -> PartInfo | None:
    """Names a part and gives it the oldest unsealed results.

    Args:
        database: the catalog.
        run_id: the run that seals; it must be running.
        rows: at most so many.

    Returns:
        The part, now pending; None if there is nothing to seal.

    Raises:
        CatalogError: the run is not running.
    """
    unsealed = select(Result.id).where(Result.part_id.is_(None)).order_by(Result.id).limit(rows)
    prefix = f"part-{run_id[:8]}-"
    with database.write() as connection:
        state = connection.scalar(select(Run.state).where(Run.id == run_id).with_for_update())
        if state != "running":
            raise CatalogError(f"run {run_id} is {state or 'unknown'} and can't seal a part; run again")
        if connection.scalar(unsealed.limit(1)) is None:
            return None
        # Counted by name and not by run: should two runs share eight digits, their parts still don't.
        sequence = connection.scalars(
            select(func.count()).select_from(Part).where(Part.name.startswith(prefix, autoescape=True))
        ).one()
        name = f"{prefix}{sequence:05d}.parquet"
        connection.execute(insert(Part).values(name=name, run_id=run_id, state="pending", row_count=0))
        part_id = connection.scalars(select(Part.id).where(Part.name == name)).one()
        # What is counted is what was taken: a person may write a caption at this very moment.
        count = connection.execute(
            update(Result).where(Result.id.in_(unsealed)).values(part_id=part_id)
        ).rowcount
        connection.execute(update(Part).where(Part.id == part_id).values(row_count=count))
    return PartInfo(name, run_id, count)


def pending_parts(database: Database) -> list[PartInfo]:
    """The parts whose file may be missing, oldest first."""
    statement = select(Part.name, Part.run_id, Part.row_count, literal(None), Part.sha256)
    with database.read() as connection:
        pending = connection.execute(statement.where(Part.state == "pending").order_by(Part.id))
        return [PartInfo(*row) for row in pending]


def all_parts(database: Database) -> list[PartInfo]:
    """All parts, oldest first; those that are on disk have their sha256."""
    sha256 = case((Part.state == "done", func.coalesce(Part.sha256, "")))
    with database.read() as connection:
        rows = connection.execute(select(Part.name, Part.run_id, Part.row_count, sha256).order_by(Part.id))
        return [PartInfo(*row) for row in rows]


def part_rows(
    database: Database,
    name: str,
    read: Callable[[], AbstractContextManager[Connection]] | None = None,
) -> Iterator[list[PartRow]]:
    """The rows of a part in batches, ordered by the result's id, with no transaction open in between.

    Args:
        database: the catalog.
        name: of the part.
        read: begins the transaction of each batch; that of the database, unless another sees the rows alone.

    Raises:
        CatalogError: there is no such part.
    """
    read = read or database.read
    with read() as connection:
        part_id = connection.scalar(select(Part.id).where(Part.name == name))
    if part_id is None:
        raise CatalogError(f"the catalog at {database.label} knows no part {name}")
    statement = (
        select(Result.id, *columns_of(PartRow._fields, uri=Result.uri, run_id=Result.run_id))
        .join(Caption, Caption.id == Result.caption_id)
        .join(Image, Image.content_hash == Result.content_hash)
        .outerjoin(Model, Model.fingerprint == Caption.fingerprint)
        .where(Result.part_id == part_id)
        .order_by(Result.id)
        .limit(_BATCH_ROWS)
    )
    last = 0
    while True:
        with read() as connection:
            batch = connection.execute(statement.where(Result.id > last)).all()
        if not batch:
            return
        last = batch[-1][0]
        yield [PartRow._make(row[1:]) for row in batch]


def reopen_part(database: Database, name: str, supersedes: str | None) -> None:
    """Makes a part pending again whose file is damaged or gone.

    Args:
        database: the catalog; the caller holds its lock.
        name: of the part.
        supersedes: sha256 of the file as it is, which may be replaced; None if there is none.
    """
    with database.write() as connection:
        connection.execute(update(Part).where(Part.name == name).values(state="pending", sha256=supersedes))


def drop_part(database: Database, name: str) -> None:
    """Forgets a part that has no rows left, once its file is gone."""
    with database.write() as connection:
        connection.execute(
            delete(Part).where(Part.name == name, Part.state == "pending", Part.row_count == 0)
        )


def finish_part(database: Database, name: str, row_count: int, sha256: str) -> None:
    """Notes that a part is on disk.

    Raises:
        CatalogError: the catalog knows no such part, or gave it another number of rows.
    """
    with database.write() as connection:
        expected = connection.scalar(select(Part.row_count).where(Part.name == name))
        if expected != row_count:
            raise CatalogError(
                f"{name} holds {row_count} rows, but the catalog at {database.label} "
                + (f"gave it {expected}" if expected is not None else "knows no such part")
            )
        connection.execute(update(Part).where(Part.name == name).values(state="done", sha256=sha256))
