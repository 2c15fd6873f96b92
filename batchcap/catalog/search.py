"""Full-text search over the live captions."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Select, and_, func, literal, select

from batchcap.catalog.connection import Database
from batchcap.catalog.filters import conditions
from batchcap.catalog.fulltext import Syntax
from batchcap.catalog.records import CaptionFilter, SearchHit, SearchResult
from batchcap.catalog.tables import Caption, Image, Location, Model
from batchcap.catalog.text import Term, highlight, parse_query


def search(database: Database, query: str, *, limit: int, offset: int, where: CaptionFilter) -> SearchResult:
    """Finds locations by their live caption, best first; see `Catalog.search`."""
    terms = parse_query(query)
    full_text = database.full_text
    filters = conditions(where)
    expression = match_expression(terms, full_text.syntax)
    captions: FromClause = full_text.captions
    score: ColumnElement[float] = full_text.score.label("score")
    order: list[ColumnElement[Any]] = [score.desc(), Location.uri.asc()]
    if expression is not None:
        filters.append(full_text.matches)
    elif filters and (terms or not query.strip()):
        # Filters alone, or with words that must not be there: nothing to rank by.
        captions, score = Caption.__table__, literal(0.0).label("score")
        order = [Caption.created_at.desc(), Location.uri.asc()]
        if terms:
            expression = unwanted_expression(terms, full_text.syntax)
            filters.append(full_text.lacks)
    else:
        return SearchResult(0, [])
    columns = (
        Location.uri,
        Caption.text.label("caption"),
        Caption.confidence,
        Caption.source,
        Image.width,
        Image.height,
        score,
        Model.name.label("model"),
        Image.format,
        Image.taken_at,
        Caption.created_at.label("captioned_at"),
    )
    page = (
        _matching(captions, filters, *columns)
        .outerjoin(Model, Model.fingerprint == Caption.fingerprint)
        .order_by(*order)
        .limit(limit)
        .offset(offset)
    )
    parameters = {} if expression is None else {"expression": expression}
    with database.read() as connection:
        total = connection.scalars(_matching(captions, filters, func.count()), parameters).one()
        rows = connection.execute(page, parameters).all()
    hits = [SearchHit(**row._mapping, spans=highlight(row.caption, terms)) for row in rows]
    return SearchResult(total, hits)


def match_expression(terms: list[Term], syntax: Syntax) -> str | None:
    """The terms in a database's syntax, or None if nothing is asked for that could be found."""
    wanted: list[list[str]] = []
    for term in terms:
        if term.alternative:
            wanted[-1].append(_phrase(term, syntax))
        elif not term.negated:
            wanted.append([_phrase(term, syntax)])
    if not wanted:
        return None
    expression = syntax.both.join(_any_of(phrases, syntax) for phrases in wanted)
    unwanted = unwanted_expression(terms, syntax)
    return f"({expression}){syntax.without}({unwanted})" if unwanted else expression


def unwanted_expression(terms: list[Term], syntax: Syntax) -> str:
    """What must not be there, in a database's syntax; empty if there is no such term."""
    return syntax.either.join(_phrase(term, syntax) for term in terms if term.negated)


def _any_of(phrases: list[str], syntax: Syntax) -> str:
    return phrases[0] if len(phrases) == 1 else f"({syntax.either.join(phrases)})"


def _phrase(term: Term, syntax: Syntax) -> str:
    phrase = syntax.phrase(term.stems)
    return phrase if term.prefix is None else f"({phrase}{syntax.either}{syntax.beginning(term.prefix)})"


def _matching(captions: FromClause, filters: Sequence[ColumnElement[bool]], *columns: Any) -> Select[Any]:
    """Columns of the locations that have not vanished and for whose live caption the filters hold."""
    return (
        select(*columns)
        .select_from(captions)
        .join(Image, and_(Image.content_hash == Caption.content_hash, Image.caption_id == Caption.id))
        .join(Location, Location.content_hash == Image.content_hash)
        .where(*filters, Location.vanished_at.is_(None))
    )
