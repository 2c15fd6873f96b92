"""Whether the catalog contradicts itself, found by reading alone.

Its constraints should make all of this impossible; a damaged file, or another program that wrote to it,
need not care. Every check is one statement, or bounded by what was there when it began, so that a run
which commits meanwhile is no finding.
"""

from collections.abc import Iterator

from sqlalchemy import Connection, exists, func, literal, or_, select

from batchcap.catalog.connection import Database
from batchcap.catalog.findings import Finding, FindingKind
from batchcap.catalog.tables import Caption, Image, Location, Result, Shown

# Rows that are fetched at a time, where each of them is a finding.
_FETCHED_ROWS = 1_000


def check(database: Database) -> Iterator[Finding]:
    """Yields what contradicts itself; see `Catalog.check`."""
    damage = list(database.damage())
    yield from damage
    if damage:
        return
    for find in (_duplicate_results, _duplicate_captions, _without_result, _without_caption, _shown):
        with database.read() as connection:
            yield from find(connection)
    yield from database.contradictions()


def _duplicate_results(connection: Connection) -> Iterator[Finding]:
    statement = (
        select(Result.caption_id, Result.uri, func.count())
        .group_by(Result.caption_id, Result.uri)
        .having(func.count() > 1)
    )
    for caption_id, uri, count in connection.execute(statement).yield_per(_FETCHED_ROWS):
        yield Finding(FindingKind.DUPLICATE_RESULT, uri, f"{count} results of caption {caption_id}")


def _duplicate_captions(connection: Connection) -> Iterator[Finding]:
    statement = (
        select(Caption.content_hash, Caption.fingerprint, func.count())
        # A person may say as much as they like.
        .where(Caption.fingerprint.is_not(None))
        .group_by(Caption.content_hash, Caption.fingerprint)
        .having(func.count() > 1)
    )
    for content, fingerprint, count in connection.execute(statement).yield_per(_FETCHED_ROWS):
        yield Finding(FindingKind.DUPLICATE_CAPTION, content, f"{count} captions of model {fingerprint}")


def _without_result(connection: Connection) -> Iterator[Finding]:
    """Rows of the view `captions` for which nothing was logged.

    Not of the live caption, which may have been given to the same content at another place: of any.
    """
    logged = (
        exists()
        .where(Caption.content_hash == Location.content_hash)
        .where(Result.caption_id == Caption.id, Result.uri == Location.uri)
    )
    statement = (
        select(Location.uri, Location.content_hash)
        .join(Image, Image.content_hash == Location.content_hash)
        .where(Location.vanished_at.is_(None), Image.caption_id.is_not(None), ~logged)
        .order_by(Location.uri)
    )
    for uri, content in connection.execute(statement).yield_per(_FETCHED_ROWS):
        yield Finding(FindingKind.NO_RESULT, uri, f"no result for the image {content}")


def _without_caption(connection: Connection) -> Iterator[Finding]:
    statement = (
        select(Image.content_hash, Image.caption_id)
        .outerjoin(Caption, Caption.id == Image.caption_id)
        .where(or_(Caption.id.is_(None), Caption.content_hash != Image.content_hash))
        .order_by(Image.content_hash)
    )
    for content, caption_id in connection.execute(statement).yield_per(_FETCHED_ROWS):
        detail = "it has none" if caption_id is None else f"caption {caption_id} is not its caption"
        yield Finding(FindingKind.NO_LIVE_CAPTION, content, detail)


def _shown(connection: Connection) -> Iterator[Finding]:
    """Captions of other numbers of files than `shown` has, by which searches count."""
    there = (
        select(Image.caption_id.label("caption_id"), func.count().label("files"))
        .join(Location, Location.content_hash == Image.content_hash)
        .where(Location.vanished_at.is_(None), Image.caption_id.is_not(None))
        .group_by(Image.caption_id)
        .subquery("there")
    )
    lacking = (
        select(there.c.caption_id, there.c.files, func.coalesce(Shown.files, 0).label("counted"))
        .outerjoin(Shown, Shown.caption_id == there.c.caption_id)
        .where(Shown.files.is_distinct_from(there.c.files))
        .order_by(there.c.caption_id)
    )
    surplus = (
        select(Shown.caption_id, literal(0).label("files"), Shown.files.label("counted"))
        .outerjoin(there, there.c.caption_id == Shown.caption_id)
        .where(there.c.files.is_(None))
        .order_by(Shown.caption_id)
    )
    for statement in (lacking, surplus):
        for caption_id, files, counted in connection.execute(statement).yield_per(_FETCHED_ROWS):
            detail = f"searches count {counted:,} files of it, and there are {files:,}"
            yield Finding(FindingKind.FULL_TEXT, f"caption {caption_id}", detail)
