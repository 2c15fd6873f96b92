"""Hits of a full-text search: all are counted, and the best are found.

A million captions have words that a third of them use, so of a hit no more is read than its number, how many
files it is the caption of (`Shown`) and its score. Filters of images and locations need a look at these, too,
for each of the hits.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, FromClause, Select, func, literal, select, true
from sqlalchemy.sql.visitors import iterate

from batchcap.catalog.fulltext import FullText
from batchcap.catalog.tables import Caption, Image, Location, Shown

# Of more hits than these the newest are ranked and come first; the others follow, newest first. Scoring costs
# far more than counting, and of so many that answer the same few words one is hardly better than another.
RANKED = 50_000


class Hits(NamedTuple):
    """What a search has found.

    Args:
        files: of how many files its hits are the captions.
        scores: of the best captions, by their numbers, the best first.
    """

    files: int
    scores: dict[int, float]


def find_best(
    connection: Connection,
    full_text: FullText,
    filters: Sequence[ColumnElement[bool]],
    parameters: Mapping[str, str],
    count: int,
) -> Hits:
    """The best captions that answer the expression; where they are equally good, as they came.

    Args:
        connection: in a read transaction.
        full_text: how the database searches.
        filters: what else must hold of a file, its image and its caption.
        parameters: `expression`, what is looked for.
        count: how many of the files are wanted, at most; the captions have at least so many.
    """
    rows = connection.execute(_ranked(full_text, filters, min(count, RANKED)), parameters).all()
    hits, files, oldest = rows[0][:3]
    scores = {row.caption_id: row.score for row in rows if row.caption_id is not None}
    if hits < RANKED:
        return Hits(files, scores)
    files = connection.execute(count_hits(full_text, filters), parameters).one()[0]
    if count > RANKED:
        others = _older_than(oldest, full_text, filters, count - RANKED)
        scores |= dict.fromkeys(connection.scalars(others, parameters), 0.0)
    return Hits(files, scores)


def count_hits(full_text: FullText | None, filters: Sequence[ColumnElement[bool]]) -> Select[Any]:
    """The number of files whose captions are hits.

    Args:
        full_text: how the database searches; None counts what is shown of all files, whatever it says.
        filters: what else must hold of a file, its image and its caption.
    """
    found = Shown.__table__ if full_text is None else full_text.shown
    source, conditions, files = narrowed(found, filters)
    matches = [] if full_text is None else [full_text.matches]
    return select(func.coalesce(func.sum(files), 0)).select_from(source).where(*matches, *conditions)


def narrowed(
    found: FromClause, filters: Sequence[ColumnElement[bool]], *columns: ColumnElement[Any]
) -> tuple[FromClause, list[ColumnElement[bool]], ColumnElement[int]]:
    """What to read for filters and columns: as few tables as they speak of.

    Args:
        found: the table `Shown`, by itself or joined with an index.
        filters: what must hold of a file, its image and its caption.
        columns: of a caption, and of what is looked up by it.

    Returns:
        The tables; the conditions; and the files of a row, which is a caption, or one of its files if these
        are filtered too.
    """
    tables = {getattr(part, "table", None) for one in (*filters, *columns) for part in iterate(one)}
    if Caption.__table__ in tables:
        found = found.join(Caption.__table__, Caption.id == Shown.caption_id)
    if tables.isdisjoint((Image.__table__, Location.__table__)):
        return found, list(filters), Shown.__table__.c.files
    found = found.join(Image.__table__, Image.caption_id == Shown.caption_id)
    found = found.join(Location.__table__, Location.content_hash == Image.content_hash)
    return found, [*filters, Location.vanished_at.is_(None)], literal(1)


def _ranked(full_text: FullText, filters: Sequence[ColumnElement[bool]], limit: int) -> Select[Any]:
    """The best of the newest hits.

    Returns:
        Rows of what is true of all of the newest: how many hits and files there are, and the number of the
        oldest; then the number of one of the best and its score, NULL if there is none.
    """
    source, conditions, files = narrowed(full_text.shown, filters)
    newest = (
        select(full_text.caption_id.label("caption_id"), files.label("files"), full_text.score.label("score"))
        .select_from(source)
        .where(full_text.matches, *conditions)
        .order_by(full_text.caption_id.desc())
        .limit(RANKED)
        .cte("newest")
    )
    counted = select(
        func.count().label("hits"),
        func.coalesce(func.sum(newest.c.files), 0).label("files"),
        func.min(newest.c.caption_id).label("oldest"),
    ).subquery("counted")
    # With filters of files a caption is there once for each that answers them.
    best = (
        select(newest.c.caption_id, newest.c.score)
        .distinct()
        .order_by(newest.c.score.desc(), newest.c.caption_id.asc())
        .limit(limit)
        .subquery("best")
    )
    return (
        select(counted, best.c.caption_id, best.c.score)
        .select_from(counted)
        .outerjoin(best, true())
        .order_by(best.c.score.desc(), best.c.caption_id.asc())
    )


def _older_than(
    caption_id: int, full_text: FullText, filters: Sequence[ColumnElement[bool]], limit: int
) -> Select[Any]:
    """The numbers of hits that are older, the newest first."""
    source, conditions, _ = narrowed(full_text.shown, filters)
    return (
        select(full_text.caption_id)
        .distinct()
        .select_from(source)
        .where(full_text.matches, *conditions, full_text.caption_id < caption_id)
        .order_by(full_text.caption_id.desc())
        .limit(limit)
    )
