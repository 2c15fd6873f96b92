"""Ranked hits of a full-text search: all are counted, the best shown, and each is looked up once."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Select, func, select, true
from sqlalchemy.sql.visitors import iterate

from batchcap.catalog.fulltext import FullText
from batchcap.catalog.tables import Caption, Image, Location, Model


def ranked_page(
    full_text: FullText,
    filters: Sequence[ColumnElement[bool]],
    columns: Sequence[Any],
    *,
    limit: int,
    offset: int,
) -> Select[Any]:
    """The best of the locations whose live caption answers the expression, and how many there are.

    A million captions have words that a third of them use, so of a hit no more is read than its caption's
    number, its location and its score; what is shown of it is read of the page alone.

    Args:
        full_text: how the database searches.
        filters: what else must hold of a location, its image and its live caption.
        columns: of `Caption`, `Image` and `Model`, to be shown.
        limit: hits on the page.
        offset: hits before it.

    Returns:
        Rows of `total`, `uri`, `score` and the columns, best first; one row without a uri if the page has
        none. Takes the parameter `expression`.
    """
    captions = full_text.captions if _speak_of_captions(filters) else full_text.index
    hits = (
        select(full_text.caption_id.label("caption_id"), Location.uri, full_text.score.label("score"))
        .select_from(captions)
        .join(Image, Image.caption_id == full_text.caption_id)
        .join(Location, Location.content_hash == Image.content_hash)
        .where(full_text.matches, *filters, Location.vanished_at.is_(None))
        .cte("hits")
    )
    best = [hits.c.score.desc(), hits.c.uri.asc()]
    page = select(hits).order_by(*best).limit(limit).offset(offset).subquery("page")
    counted = select(func.count().label("total")).select_from(hits).subquery("counted")
    return (
        select(counted.c.total, page.c.uri, page.c.score, *columns)
        .select_from(counted)
        .outerjoin(page, true())
        .outerjoin(Caption, Caption.id == page.c.caption_id)
        .outerjoin(Image, Image.caption_id == page.c.caption_id)
        .outerjoin(Model, Model.fingerprint == Caption.fingerprint)
        .order_by(page.c.score.desc(), page.c.uri.asc())
    )


def _speak_of_captions(filters: Sequence[ColumnElement[bool]]) -> bool:
    """Whether a condition is about a caption, and not only about its image or its location."""
    captions: FromClause = Caption.__table__
    return any(getattr(part, "table", None) is captions for one in filters for part in iterate(one))
