"""Hits of a full-text search: all are counted, the best are shown, and only those are looked up.

A million captions have words that a third of them use, so of a hit no more is read than its number, how many
files it is the caption of (`Shown`) and its score. Filters of images and locations need a look at these, too,
for each of the hits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Row,
    Select,
    case,
    func,
    literal,
    literal_column,
    select,
)
from sqlalchemy.sql.visitors import iterate

from batchcap.catalog.fulltext import FullText
from batchcap.catalog.tables import Caption, Image, Location, Model, Shown

# Of more hits than these the newest are ranked and come first; the others follow, newest first. Scoring costs
# far more than counting, and of so many that answer the same few words one is hardly better than another.
RANKED = 50_000


def count_hits(full_text: FullText | None, filters: Sequence[ColumnElement[bool]]) -> "Select[int, int]":
    """How many hits there are to be ranked, and of how many files they are the captions.

    Args:
        full_text: how the database searches; None counts all captions that are shown, whatever they say.
        filters: what else must hold of a file, its image and its caption.
    """
    found = Shown.__table__ if full_text is None else full_text.shown
    source, conditions, files = narrowed(found, filters)
    matches = [] if full_text is None else [full_text.matches]
    return (
        select(func.count(), func.coalesce(func.sum(files), 0))
        .select_from(source)
        .where(*matches, *conditions)
    )


def find_best(
    connection: Connection,
    full_text: FullText,
    filters: Sequence[ColumnElement[bool]],
    parameters: Mapping[str, str],
    columns: Sequence[Any],
    *,
    limit: int,
    offset: int,
) -> tuple[int, Sequence[Row[Any]]]:
    """A page of the files whose captions are hits, the best first, and how many files there are in all.

    Args:
        connection: in a read transaction.
        full_text: how the database searches.
        filters: what else must hold of a file, its image and its caption.
        parameters: `expression`, what is looked for.
        columns: of `Caption`, `Image` and `Model`, to be shown.
        limit: files on the page.
        offset: files before it.

    Returns:
        The number; rows of `uri`, `score` and the columns.
    """
    hits, total = connection.execute(count_hits(full_text, filters), parameters).one()
    if offset >= total:
        return total, []
    oldest = None
    if hits > RANKED:
        oldest = connection.scalar(_oldest_ranked(full_text, filters), parameters)
    page = _best_page(full_text, filters, columns, limit=limit, offset=offset, oldest=oldest)
    return total, connection.execute(page, parameters).all()


def _oldest_ranked(full_text: FullText, filters: Sequence[ColumnElement[bool]]) -> "Select[int]":
    """The number of the oldest of the newest `RANKED` hits, if there are so many."""
    source, conditions, _ = narrowed(full_text.shown, filters)
    return (
        select(full_text.caption_id)
        .select_from(source)
        .where(full_text.matches, *conditions)
        .order_by(full_text.caption_id.desc())
        .limit(1)
        .offset(RANKED - 1)
    )


def _best_page(
    full_text: FullText,
    filters: Sequence[ColumnElement[bool]],
    columns: Sequence[Any],
    *,
    limit: int,
    offset: int,
    oldest: int | None,
) -> Select[Any]:
    """See `find_best`; of hits that are older than `oldest` none is ranked."""
    source, conditions, _ = narrowed(full_text.shown, filters)
    score = full_text.score
    if oldest is not None:
        is_ranked = full_text.caption_id >= oldest
        if offset + limit <= RANKED:
            conditions = [*conditions, is_ranked]
        else:
            # A score is above 0.
            score = case((is_ranked, score), else_=0.0)
    # Each of these is the caption of one file of the page, or of one before it, at least.
    best = (
        select(full_text.caption_id.label("caption_id"), score.label("score"))
        .select_from(source)
        .where(full_text.matches, *conditions)
        .order_by(literal_column("score").desc(), literal_column("caption_id").desc())
        .limit(offset + limit)
        .subquery("best")
    )
    # With filters of files a caption is there once for each that answers them.
    once = select(best).distinct().subquery("once")
    return (
        select(Location.uri, once.c.score, *columns)
        .select_from(once)
        .join(Caption, Caption.id == once.c.caption_id)
        .join(Image, Image.caption_id == Caption.id)
        .join(Location, Location.content_hash == Image.content_hash)
        .outerjoin(Model, Model.fingerprint == Caption.fingerprint)
        .where(*filters, Location.vanished_at.is_(None))
        .order_by(once.c.score.desc(), once.c.caption_id.desc(), Location.uri.asc())
        .limit(limit)
        .offset(offset)
    )


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
