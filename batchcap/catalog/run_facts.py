"""What one run left in the catalog, for its report."""

from typing import NamedTuple

from sqlalchemy import func, select

from batchcap.catalog.connection import Database
from batchcap.catalog.tables import Caption, Quarantine, Result
from batchcap.errors import Reason


class CaptionedFile(NamedTuple):
    """A file and the caption that a run gave it."""

    uri: str
    caption: str
    confidence: float | None


class FailedFile(NamedTuple):
    """A file that a run put into quarantine."""

    uri: str
    reason: Reason
    detail: str


def sample_captions(database: Database, run_id: str, committed: int, count: int) -> list[CaptionedFile]:
    """Some of the captions of the latest run, evenly from its first to its last.

    Args:
        database: the catalog.
        run_id: the run.
        committed: results that it committed: being the only writer, it has the last ids.
        count: how many to take at most.
    """
    with database.read() as connection:
        last = connection.scalar(select(func.max(Result.id)))
        if last is None or not committed:
            return []
        step = max(1, committed // count)
        statement = (
            select(Result.uri, Caption.text, Caption.confidence)
            .join(Caption, Caption.id == Result.caption_id)
            .where(
                Result.id.in_(range(max(1, last - committed + 1), last + 1, step)), Result.run_id == run_id
            )
            .order_by(Result.id)
            .limit(count)
        )
        return [CaptionedFile(*row) for row in connection.execute(statement)]


def failed_files(database: Database, run_id: str, limit: int) -> list[FailedFile]:
    """Files that a run put into quarantine, by reason and uri."""
    statement = (
        select(Quarantine.uri, Quarantine.reason, Quarantine.detail)
        .where(Quarantine.run_id == run_id)
        .order_by(Quarantine.reason, Quarantine.uri)
        .limit(limit)
    )
    with database.read() as connection:
        return [FailedFile(row.uri, Reason(row.reason), row.detail) for row in connection.execute(statement)]
