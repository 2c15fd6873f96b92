"""From the rows of Parquet parts back to the tables.

Parts don't hold all that a catalog does. What is lost: the quarantine; when and with which options a run
ran, what it counted, and the runs that captioned nothing; the models' configurations; the files' times, and
which of them have vanished. A location has the content of the last row that names it; the live caption is a
person's, else the latest.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Connection,
    Update,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from batchcap.catalog.connection import Database
from batchcap.catalog.images import insert_images
from batchcap.catalog.plan import UNKNOWN_MTIME_NS
from batchcap.catalog.records import UNKNOWN_MODEL
from batchcap.catalog.sealing import PartRow
from batchcap.catalog.tables import Caption, Image, Location, Model, Part, Result, Run
from batchcap.catalog.text import search_text
from batchcap.errors import CatalogError

# What tells a caption that a person wrote from others.
_PERSONS_CAPTION = ("content_hash", "source", "text", "created_at")


@dataclass(slots=True)
class _RunSummary:
    """What its rows say of a run; `fingerprint` is that of its latest caption by a model."""

    fingerprint: str | None
    latest: datetime
    rows: int = 0

    def add(self, row: PartRow) -> None:
        if row.fingerprint is not None and (self.fingerprint is None or row.captioned_at >= self.latest):
            self.fingerprint = row.fingerprint
        self.latest = max(self.latest, row.captioned_at)
        self.rows += 1


class Restoring:
    """Fills an empty catalog, part by part.

    Args:
        database: the catalog.
        write: begins the write transaction of each part; that of the database, unless all parts go into one.
    """

    def __init__(
        self, database: Database, write: Callable[[], AbstractContextManager[Connection]] | None = None
    ) -> None:
        self._database = database
        self._write = write or database.write
        self._runs: dict[str, _RunSummary] = {}
        self._models: set[str] = set()
        self._last_run_of: dict[str, str] = {}

    def add_part(self, name: str, sha256: str, batches: Iterable[Sequence[PartRow]]) -> int:
        """Takes the rows of a part; see `Rebuild.add_part`."""
        count = 0
        try:
            with self._write() as connection:
                self._database.expect_many_rows(connection)
                part_id = 0
                for rows in batches:
                    self._add_models(connection, rows)
                    self._add_runs(connection, rows)
                    part_id = part_id or _begin_part(connection, name, sha256, rows[0].run_id)
                    _add_rows(self._database, connection, rows, part_id)
                    count += len(rows)
                    self._last_run_of[name] = rows[-1].run_id
                connection.execute(update(Part).where(Part.id == part_id).values(row_count=count))
                taken = connection.scalars(select(func.count()).where(Result.part_id == part_id)).one()
        except IntegrityError as error:
            raise CatalogError(f"{name} holds what no catalog can: {error.orig}; move it away") from error
        if taken != count:
            raise CatalogError(
                f"{name} holds {count - taken:,} rows that another part holds too; move one of the two away"
            )
        return count

    def finish(self) -> None:
        """Writes what only all rows together say."""
        with self._write() as connection:
            for run_id, summary in self._runs.items():
                connection.execute(
                    update(Run)
                    .where(Run.id == run_id)
                    .values(
                        fingerprint=summary.fingerprint or UNKNOWN_MODEL,
                        started_at=summary.latest,
                        finished_at=summary.latest,
                        counts={"restored": summary.rows},
                    )
                )
            unused = ~exists().where(Run.fingerprint == Model.fingerprint)
            connection.execute(delete(Model).where(Model.fingerprint == UNKNOWN_MODEL, unused))
            for name, last_run in self._last_run_of.items():
                # A part is named after the run that sealed it, be its rows another's.
                prefix = name.removeprefix("part-").partition("-")[0]
                sealed_by = next((run for run in self._runs if run.startswith(prefix)), last_run)
                connection.execute(update(Part).where(Part.name == name).values(run_id=sealed_by))

    def _add_models(self, connection: Connection, rows: Sequence[PartRow]) -> None:
        for row in rows:
            if row.fingerprint is not None and row.fingerprint not in self._models:
                _add_model(
                    self._database, connection, row.fingerprint, row.model or UNKNOWN_MODEL, row.captioned_at
                )
                self._models.add(row.fingerprint)

    def _add_runs(self, connection: Connection, rows: Sequence[PartRow]) -> None:
        for row in rows:
            if row.run_id not in self._runs:
                self._runs[row.run_id] = _RunSummary(row.fingerprint, row.captioned_at)
                if row.fingerprint is None:
                    _add_model(self._database, connection, UNKNOWN_MODEL, UNKNOWN_MODEL, row.captioned_at)
                values = {
                    "id": row.run_id,
                    "source": [],
                    "fingerprint": row.fingerprint or UNKNOWN_MODEL,
                    "options": {},
                    "started_at": row.captioned_at,
                    "state": "done",
                    "counts": {},
                }
                connection.execute(insert(Run), values)
            self._runs[row.run_id].add(row)


def _add_model(
    database: Database, connection: Connection, fingerprint: str, name: str, created_at: datetime
) -> None:
    values = {"fingerprint": fingerprint, "name": name, "config": {}, "created_at": created_at}
    connection.execute(database.insert(Model).on_conflict_do_nothing(), values)


def _begin_part(connection: Connection, name: str, sha256: str, run_id: str) -> int:
    values = {"name": name, "run_id": run_id, "state": "done", "row_count": 0, "sha256": sha256}
    connection.execute(insert(Part), values)
    return connection.scalars(select(Part.id).where(Part.name == name)).one()


def _add_rows(database: Database, connection: Connection, rows: Sequence[PartRow], part_id: int) -> None:
    insert_images(database, connection, rows)
    _add_captions(database, connection, rows)
    contents = sorted({row.content_hash for row in rows})
    connection.execute(_make_live(), [{"the_content": content} for content in contents])
    _upsert_locations(database, connection, rows)
    _log_results(database, connection, rows, part_id)


def _add_captions(database: Database, connection: Connection, rows: Sequence[PartRow]) -> None:
    captions = [
        {
            "content_hash": row.content_hash,
            "source": row.source,
            "fingerprint": row.fingerprint,
            "text": row.caption,
            "search_text": search_text(row.caption),
            "log_prob": row.log_prob,
            "confidence": row.confidence,
            "token_count": row.token_count,
            "created_at": row.captioned_at,
        }
        for row in rows
    ]
    by_models = [values for values in captions if values["source"] != "human"]
    if by_models:
        connection.execute(database.insert(Caption).on_conflict_do_nothing(), by_models)
    for values in captions:
        # No constraint knows a person's caption again that was logged for several files.
        if values["source"] == "human":
            same = (getattr(Caption, name) == values[name] for name in _PERSONS_CAPTION)
            if connection.scalar(select(Caption.id).where(*same)) is None:
                connection.execute(insert(Caption), values)


def _make_live() -> Update:
    """Makes a person's caption the live one of an image, else the latest."""
    live = (
        select(Caption.id)
        .where(Caption.content_hash == Image.content_hash)
        .order_by((Caption.source == "human").desc(), Caption.created_at.desc(), Caption.id.desc())
        .limit(1)
        .correlate(Image)
        .scalar_subquery()
    )
    return update(Image).where(Image.content_hash == bindparam("the_content")).values(caption_id=live)


def _upsert_locations(database: Database, connection: Connection, rows: Sequence[PartRow]) -> None:
    statement = database.insert(Location)
    new = statement.excluded
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[Location.uri],
            set_={
                "content_hash": new.content_hash,
                "size_bytes": new.size_bytes,
                "first_seen_at": case(
                    (Location.first_seen_at <= new.first_seen_at, Location.first_seen_at),
                    else_=new.first_seen_at,
                ),
            },
        ),
        [
            {
                "uri": row.uri,
                "content_hash": row.content_hash,
                "size_bytes": row.size_bytes,
                "mtime_ns": UNKNOWN_MTIME_NS,
                "first_seen_at": row.captioned_at,
            }
            for row in rows
        ],
    )


def _log_results(database: Database, connection: Connection, rows: Sequence[PartRow], part_id: int) -> None:
    """Logs each row with its caption, which is there by now."""
    the_time = bindparam("the_time", type_=Result.created_at.type)
    the_text: Any = bindparam("the_text", type_=Caption.text.type)
    the_fingerprint = bindparam("the_fingerprint", type_=Caption.fingerprint.type)
    caption = select(
        bindparam("the_uri", type_=Result.uri.type),
        Caption.content_hash,
        Caption.id,
        bindparam("the_run", type_=Result.run_id.type),
        literal(part_id),
        the_time,
    ).where(
        Caption.content_hash == bindparam("the_content"),
        Caption.source == bindparam("the_source"),
        Caption.fingerprint.is_not_distinct_from(the_fingerprint),
        (Caption.source == "model") | ((Caption.text == the_text) & (Caption.created_at == the_time)),
    )
    columns = ["uri", "content_hash", "caption_id", "run_id", "part_id", "created_at"]
    connection.execute(
        database.insert(Result).from_select(columns, caption).on_conflict_do_nothing(),
        [
            {
                "the_uri": row.uri,
                "the_run": row.run_id,
                "the_time": row.captioned_at,
                "the_content": row.content_hash,
                "the_source": row.source,
                "the_fingerprint": row.fingerprint,
                "the_text": row.caption,
            }
            for row in rows
        ],
    )
