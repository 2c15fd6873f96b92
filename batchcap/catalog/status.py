"""What the catalog holds, counted."""

from sqlalchemy import Connection, func, select
from sqlalchemy.orm import InstrumentedAttribute

from batchcap.catalog.connection import Database
from batchcap.catalog.records import CaptionCount, QuarantinedFile, RunInfo, Status
from batchcap.catalog.tables import (
    Caption,
    CatalogInfo,
    Image,
    Location,
    Model,
    Part,
    Quarantine,
    Result,
    Run,
)
from batchcap.errors import Reason

_RUNS = 5
_RUNS_WITH_PACE = 20


def catalog_uuid(database: Database) -> str:
    """The identity that the catalog was given when it was made."""
    with database.read() as connection:
        return connection.scalars(select(CatalogInfo.uuid)).one()


def read_status(database: Database) -> Status:
    """Counts what the catalog holds, all of it at one instant."""
    with database.read() as connection:
        locations, vanished = connection.execute(
            select(
                func.count() - func.count(Location.vanished_at), func.count(Location.vanished_at)
            ).select_from(Location)
        ).one()
        return Status(
            uuid=connection.scalars(select(CatalogInfo.uuid)).one(),
            images=connection.scalars(select(func.count()).select_from(Image)).one(),
            locations=locations,
            vanished=vanished,
            captions=_captions(connection),
            quarantine=_count_by(connection, Quarantine.reason),
            runs=_runs(connection),
            unsealed_rows=connection.scalars(select(func.count()).where(Result.part_id.is_(None))).one(),
            parts=_count_by(connection, Part.state),
        )


def read_quarantine(
    database: Database, reason: Reason | None, *, limit: int, offset: int
) -> list[QuarantinedFile]:
    """The files in the quarantine, by uri; see `Catalog.quarantine`."""
    statement = (
        select(
            Quarantine.uri,
            Quarantine.size_bytes,
            Quarantine.reason,
            Quarantine.detail,
            Quarantine.attempts,
            Quarantine.updated_at,
        )
        .order_by(Quarantine.uri)
        .limit(limit)
        .offset(offset)
    )
    if reason is not None:
        statement = statement.where(Quarantine.reason == reason.value)
    with database.read() as connection:
        return [
            QuarantinedFile(
                row.uri, row.size_bytes, Reason(row.reason), row.detail, row.attempts, row.updated_at
            )
            for row in connection.execute(statement)
        ]


def read_pace(database: Database, fingerprint: str, *, at_least: int) -> float | None:
    """Files a second of the latest run with a model; see `Catalog.pace`."""
    statement = (
        select(Run.counts, Run.started_at, Run.finished_at)
        .where(Run.fingerprint == fingerprint, Run.state == "done")
        .order_by(Run.started_at.desc())
        .limit(_RUNS_WITH_PACE)
    )
    with database.read() as connection:
        for counts, started_at, finished_at in connection.execute(statement):
            captioned = counts.get("captioned", 0)
            if captioned >= at_least and finished_at > started_at:
                return float(captioned / (finished_at - started_at).total_seconds())
    return None


def _captions(connection: Connection) -> tuple[CaptionCount, ...]:
    statement = (
        select(Caption.source, Caption.fingerprint, Model.name, func.count().label("images"))
        .select_from(Image)
        .join(Caption, Caption.id == Image.caption_id)
        .outerjoin(Model, Model.fingerprint == Caption.fingerprint)
        .group_by(Caption.source, Caption.fingerprint, Model.name)
        .order_by(func.count().desc(), Caption.fingerprint)
    )
    return tuple(CaptionCount(*row) for row in connection.execute(statement))


def _runs(connection: Connection) -> tuple[RunInfo, ...]:
    statement = select(
        Run.id, Run.source, Run.fingerprint, Run.state, Run.started_at, Run.finished_at, Run.counts
    ).order_by(Run.started_at.desc(), Run.id)
    return tuple(RunInfo(*row) for row in connection.execute(statement.limit(_RUNS)))


def _count_by(connection: Connection, column: InstrumentedAttribute[str]) -> dict[str, int]:
    statement = select(column, func.count()).group_by(column).order_by(column)
    return {row[0]: row[1] for row in connection.execute(statement)}
