"""Erasing what is known of a file: the catalog's half, one transaction.

The parts that held rows of it are pending afterwards, with the rows that are left. Whoever writes pending
parts (`parts.seal_pending`: this command, or the next run) replaces their files.
"""

from sqlalchemy import Connection, delete, exists, func, select, update
from sqlalchemy.orm import aliased

from batchcap.catalog.connection import Database
from batchcap.catalog.records import Forgotten
from batchcap.catalog.tables import Caption, Image, ImageVector, Location, Part, Quarantine, Result
from batchcap.errors import CatalogError


def forget(database: Database, uri: str) -> Forgotten:
    """Erases a file's captions; see `Catalog.forget`. The caller holds the lock; no part is pending."""
    with database.write() as connection:
        database.fence(connection)
        database.wipe(connection)
        contents = set(connection.scalars(select(Result.content_hash).where(Result.uri == uri)))
        contents |= set(connection.scalars(select(Location.content_hash).where(Location.uri == uri)))
        bad = connection.execute(delete(Quarantine).where(Quarantine.uri == uri)).rowcount
        if not contents and not bad:
            raise CatalogError(f"the catalog at {database.label} knows no file {uri}")
        parts = _take_out_of_parts(connection, uri)
        connection.execute(delete(Location).where(Location.uri == uri))
        others = {content: _locations(connection, content) for content in sorted(contents)}
        for content, uris in others.items():
            if uris:
                _log_elsewhere(connection, content, uri, uris[0])
        results = connection.execute(delete(Result).where(Result.uri == uri)).rowcount
        captions = sum(_erase(connection, content) for content, uris in others.items() if not uris)
    return Forgotten(results, captions, parts, sum(map(len, others.values())))


def _take_out_of_parts(connection: Connection, uri: str) -> int:
    """Makes the parts pending that hold rows of a file; their sha256 says which file is to be replaced."""
    taken = (
        select(Result.part_id, func.count().label("rows"))
        .where(Result.uri == uri, Result.part_id.is_not(None))
        .group_by(Result.part_id)
    )
    counts = connection.execute(taken).all()
    for part_id, rows in counts:
        connection.execute(
            update(Part).where(Part.id == part_id).values(state="pending", row_count=Part.row_count - rows)
        )
    return len(counts)


def _locations(connection: Connection, content: str) -> list[str]:
    """Where a content is, or was: places that are there come first."""
    statement = select(Location.uri).where(Location.content_hash == content)
    return list(connection.scalars(statement.order_by(Location.vanished_at.is_not(None), Location.uri)))


def _log_elsewhere(connection: Connection, content: str, uri: str, other: str) -> None:
    """Logs captions of a content for another of its files which are logged for this file alone.

    As a person's is that was written at it. Without a line, a catalog that is made again from Parquet would
    lack it.
    """
    elsewhere = aliased(Result)
    connection.execute(
        update(Result)
        .where(
            Result.uri == uri,
            Result.content_hash == content,
            ~exists().where(elsewhere.caption_id == Result.caption_id, elsewhere.uri != uri),
        )
        .values(uri=other, part_id=None)
    )


def _erase(connection: Connection, content: str) -> int:
    """Erases the captions of a content that is nowhere else, and the image, unless the log has more of it.

    It has where another file had this content once, and has another now: these lines are not ours to take.
    """
    is_logged = exists().where(Result.caption_id == Caption.id)
    live = (
        select(Caption.id)
        .where(Caption.content_hash == content, is_logged)
        .order_by((Caption.source == "human").desc(), Caption.created_at.desc(), Caption.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    connection.execute(update(Image).where(Image.content_hash == content).values(caption_id=live))
    is_erased = (Caption.content_hash == content) & ~is_logged
    vectors = ImageVector.caption_id.in_(select(Caption.id).where(is_erased))
    connection.execute(delete(ImageVector).where(vectors))
    erased = connection.execute(delete(Caption).where(is_erased)).rowcount
    connection.execute(delete(Image).where(Image.content_hash == content, Image.caption_id.is_(None)))
    return erased
