"""Captions that come from elsewhere than a run: a person's, or another model's that are imported.

They need no run, and may come while one goes on: a short transaction, which commits of a run wait for. Each
is logged like any other caption, and gets into Parquet when the next run seals what is in no part yet. What
people write belongs to one entry of the table of runs, the same for all of a catalog, and each import of a
model's captions to one of its own.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, case, func, insert, select, update

from batchcap.catalog.connection import Database
from batchcap.catalog.records import UNKNOWN_MODEL, ModelInfo, Uncertain
from batchcap.catalog.tables import Caption, CatalogInfo, Image, Location, Model, Result, Run, utc_now
from batchcap.catalog.text import search_text
from batchcap.errors import UsageError

# Captions of one transaction: a run that waits for it does not notice.
_CHUNK = 200
MAX_LENGTH = 5_000


class EditOutcome(StrEnum):
    """What became of a caption. The values are for programs: never change one."""

    WRITTEN = "written"
    # It was said before: by a person, and is the one that is shown; or in the same import.
    UNCHANGED = "unchanged"
    # The catalog has no such file.
    UNKNOWN = "unknown"
    VANISHED = "vanished"


@dataclass(frozen=True, slots=True)
class _Origin:
    """Who captions.

    Args:
        run_id: of the run that it is logged under.
        fingerprint: of the model; None for a person.
        only_new: see `Catalog.write_captions`.
    """

    run_id: str
    fingerprint: str | None
    only_new: bool


def one_caption(text: str) -> str:
    """A caption as it is kept: one line, without space at its ends.

    Raises:
        UsageError: it is empty, too long, or no text.
    """
    line = " ".join(text.split())
    if not line:
        raise UsageError("a caption can't be empty")
    if len(line) > MAX_LENGTH:
        raise UsageError(f"a caption has {MAX_LENGTH:,} characters at most, not {len(line):,}")
    if not _is_text(line):
        raise UsageError("a caption can't hold characters that control, or bytes that are no UTF-8")
    return line


def write_captions(
    database: Database,
    captions: Sequence[tuple[str, str]],
    model: ModelInfo | None,
    *,
    only_new: bool = False,
) -> list[EditOutcome]:
    """Writes captions, some in each transaction; see `Catalog.write_captions`."""
    lines = [(uri, one_caption(text)) for uri, text in captions]
    outcomes: list[EditOutcome] = []
    for start in range(0, len(lines), _CHUNK):
        with database.write() as connection:
            database.fence(connection)
            now = utc_now()
            origin = _begin(database, connection, model, only_new, now)
            found = [
                _write(connection, origin, uri, text, now) for uri, text in lines[start : start + _CHUNK]
            ]
            _count(connection, origin, found.count(EditOutcome.WRITTEN), now)
        outcomes += found
    return outcomes


def caption_image(database: Database, content_hash: str, text: str) -> EditOutcome:
    """Writes a person's caption of an image; see `Catalog.caption_image`."""
    line = one_caption(text)
    if not _is_text(content_hash):
        return EditOutcome.UNKNOWN
    with database.write() as connection:
        database.fence(connection)
        # In the transaction that writes: a file that was there before may hold another image by now.
        uri = connection.scalar(
            select(func.min(Location.uri)).where(
                Location.content_hash == content_hash, Location.vanished_at.is_(None)
            )
        )
        if uri is None:
            known = select(Image.content_hash).where(Image.content_hash == content_hash)
            return EditOutcome.UNKNOWN if connection.scalar(known) is None else EditOutcome.VANISHED
        now = utc_now()
        origin = _begin(database, connection, None, False, now)
        outcome = _write(connection, origin, uri, line, now)
        _count(connection, origin, int(outcome is EditOutcome.WRITTEN), now)
    return outcome


def least_certain(database: Database, limit: int) -> list[Uncertain]:
    """Captions of models, the least certain first; see `Catalog.least_certain`."""
    uri = func.min(Location.uri)
    statement = (
        select(uri, Caption.text, Caption.confidence)
        .select_from(Image)
        .join(Caption, Caption.id == Image.caption_id)
        .join(Location, Location.content_hash == Image.content_hash)
        .where(Caption.source == "model", Location.vanished_at.is_(None))
        .group_by(Caption.id, Caption.text, Caption.confidence)
        # Of what is not known last, on every database.
        .order_by(case((Caption.confidence.is_(None), 1), else_=0), Caption.confidence, uri)
        .limit(limit)
    )
    with database.read() as connection:
        return [Uncertain(*row) for row in connection.execute(statement)]


def _begin(
    database: Database, connection: Connection, model: ModelInfo | None, only_new: bool, now: datetime
) -> _Origin:
    """Sees to it that model and run are there."""
    fingerprint = UNKNOWN_MODEL if model is None else model.fingerprint
    catalog = connection.scalars(select(CatalogInfo.uuid)).one()
    # The same for all that people write, also after the catalog was made again from Parquet.
    purpose = "people" if model is None else f"import of {fingerprint}"
    run_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"batchcap:{catalog}/{purpose}"))
    connection.execute(
        database.insert(Model).on_conflict_do_nothing(),
        {
            "fingerprint": fingerprint,
            "name": UNKNOWN_MODEL if model is None else model.name,
            "config": {} if model is None else dict(model.config),
            "created_at": now,
        },
    )
    connection.execute(
        database.insert(Run).on_conflict_do_nothing(),
        {
            "id": run_id,
            "source": [],
            "fingerprint": fingerprint,
            "options": {},
            "started_at": now,
            "finished_at": now,
            "state": "done",
            "counts": {},
        },
    )
    return _Origin(run_id, None if model is None else fingerprint, only_new)


def _write(connection: Connection, origin: _Origin, uri: str, text: str, now: datetime) -> EditOutcome:
    location = None
    if _is_text(uri):
        location = connection.execute(
            select(Location.content_hash, Location.vanished_at, Caption.source, Caption.text)
            .join(Image, Image.content_hash == Location.content_hash)
            .outerjoin(Caption, Caption.id == Image.caption_id)
            .where(Location.uri == uri)
        ).one_or_none()
    if location is None:
        return EditOutcome.UNKNOWN
    content, vanished_at, source, shown = location
    if vanished_at is not None:
        return EditOutcome.VANISHED
    is_persons = origin.fingerprint is None
    same = select(Caption.id).where(Caption.content_hash == content)
    if is_persons:
        if (source, shown) == ("human", text):
            return EditOutcome.UNCHANGED
        if origin.only_new and connection.scalar(same.where(Caption.text == text).limit(1)) is not None:
            return EditOutcome.UNCHANGED
    elif connection.scalar(same.where(Caption.fingerprint == origin.fingerprint)) is not None:
        return EditOutcome.UNCHANGED
    caption_id = connection.execute(
        insert(Caption).returning(Caption.id),
        {
            "content_hash": content,
            "source": "human" if is_persons else "model",
            "fingerprint": origin.fingerprint,
            "text": text,
            "search_text": search_text(text),
            "created_at": now,
        },
    ).scalar_one()
    if is_persons or source != "human":
        connection.execute(update(Image).where(Image.content_hash == content).values(caption_id=caption_id))
    log: dict[str, Any] = {
        "uri": uri,
        "content_hash": content,
        "caption_id": caption_id,
        "run_id": origin.run_id,
        "created_at": now,
    }
    connection.execute(insert(Result), log)
    return EditOutcome.WRITTEN


def _count(connection: Connection, origin: _Origin, written: int, now: datetime) -> None:
    run = Run.id == origin.run_id
    counts = dict(connection.scalars(select(Run.counts).where(run)).one())
    what = "edited" if origin.fingerprint is None else "imported"
    counts[what] = counts.get(what, 0) + written
    connection.execute(update(Run).where(run).values(counts=counts, finished_at=now))


def _is_text(text: str) -> bool:
    """Whether it is UTF-8 and has no character that controls; both databases and XML can hold it then."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return all(character >= " " and character not in "\x7f\ufffe\uffff" for character in text)
