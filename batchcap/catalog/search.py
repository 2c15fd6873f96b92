"""Full-text search over the live captions, by SQLite's FTS5."""

from typing import Any

from sqlalchemy import Float, Select, and_, bindparam, column, func, literal_column, select, table

from batchcap.catalog.connection import Database
from batchcap.catalog.records import SearchHit, SearchResult
from batchcap.catalog.tables import Caption, Image, Location
from batchcap.catalog.text import Term, highlight, parse_query

# In FTS5 the name of the table is also a hidden column: what MATCH and the ranking function speak of.
_INDEX = table("caption_fts", column("rowid"))
_INDEX_COLUMN: Any = literal_column("caption_fts")
# bm25() is the lower the better; a score is the other way round.
_SCORE = (-func.bm25(_INDEX_COLUMN, type_=Float())).label("score")


def search(database: Database, query: str, *, limit: int, offset: int) -> SearchResult:
    """Finds locations by their live caption, best first; see `Catalog.search`."""
    terms = parse_query(query)
    expression = match_expression(terms)
    if expression is None:
        return SearchResult(0, [])
    page = (
        _matching(
            Location.uri,
            Caption.text.label("caption"),
            Caption.confidence,
            Caption.source,
            Image.width,
            Image.height,
            _SCORE,
        )
        .order_by(_SCORE.desc(), Location.uri)
        .limit(limit)
        .offset(offset)
    )
    parameters = {"expression": expression}
    with database.read() as connection:
        total = connection.scalars(_matching(func.count()), parameters).one()
        rows = connection.execute(page, parameters).all()
    hits = [SearchHit(**row._mapping, spans=highlight(row.caption, terms)) for row in rows]
    return SearchResult(total, hits)


def match_expression(terms: list[Term]) -> str | None:
    """The terms in the language of FTS5, or None if nothing is asked for that could be found.

    Every word stands in double quotes, and a folded word holds letters and digits only, so that nothing
    of a query can be taken for an operator.
    """
    wanted: list[list[str]] = []
    for term in terms:
        if term.alternative:
            wanted[-1].append(_phrase(term))
        elif not term.negated:
            wanted.append([_phrase(term)])
    unwanted = [_phrase(term) for term in terms if term.negated]
    if not wanted:
        return None
    expression = " AND ".join(_any_of(phrases) for phrases in wanted)
    return f"({expression}) NOT ({' OR '.join(unwanted)})" if unwanted else expression


def _any_of(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"({' OR '.join(phrases)})"


def _phrase(term: Term) -> str:
    phrase = f'"{" ".join(term.stems)}"'
    return phrase if term.prefix is None else f'({phrase} OR "{term.prefix}"*)'


def _matching(*columns: Any) -> Select[Any]:
    """Columns of the locations whose live caption matches the parameter `expression`."""
    return (
        select(*columns)
        .select_from(_INDEX)
        .join(Caption, Caption.id == _INDEX.c.rowid)
        .join(Image, and_(Image.content_hash == Caption.content_hash, Image.caption_id == Caption.id))
        .join(Location, Location.content_hash == Image.content_hash)
        .where(_INDEX_COLUMN.match(bindparam("expression")), Location.vanished_at.is_(None))
    )
