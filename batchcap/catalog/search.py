"""Full-text search over the live captions."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, literal, select

from batchcap.catalog.connection import Database
from batchcap.catalog.filters import conditions
from batchcap.catalog.fulltext import Syntax
from batchcap.catalog.ranking import ranked_page
from batchcap.catalog.records import CaptionFilter, SearchHit, SearchResult
from batchcap.catalog.tables import Caption, Image, Location, Model
from batchcap.catalog.text import Term, highlight, parse_query


def search(database: Database, query: str, *, limit: int, offset: int, where: CaptionFilter) -> SearchResult:
    """Finds locations by their live caption, best first; see `Catalog.search`."""
    terms = parse_query(query)
    full_text = database.full_text
    filters = conditions(where)
    columns = (
        Caption.text.label("caption"),
        Caption.confidence,
        Caption.source,
        Image.width,
        Image.height,
        Model.name.label("model"),
        Image.format,
        Image.taken_at,
        Caption.created_at.label("captioned_at"),
    )
    expression = match_expression(terms, full_text.syntax)
    if expression is not None:
        ranked = ranked_page(full_text, filters, columns, limit=limit, offset=offset)
        with database.read() as connection:
            rows = connection.execute(ranked, {"expression": expression}).all()
        total = rows[0].total
        found = [
            {name: value for name, value in row._mapping.items() if name != "total"}
            for row in rows
            if row.uri is not None
        ]
    elif filters and (terms or not query.strip()):
        # Filters alone, or with words that must not be there: nothing to rank by.
        parameters = {}
        if terms:
            filters.append(full_text.lacks)
            parameters["expression"] = unwanted_expression(terms, full_text.syntax)
        page = (
            _matching(filters, Location.uri, literal(0.0).label("score"), *columns)
            .outerjoin(Model, Model.fingerprint == Caption.fingerprint)
            .order_by(Caption.created_at.desc(), Location.uri.asc())
            .limit(limit)
            .offset(offset)
        )
        with database.read() as connection:
            total = connection.scalars(_matching(filters, func.count()), parameters).one()
            found = [dict(row._mapping) for row in connection.execute(page, parameters)]
    else:
        return SearchResult(0, [])
    hits = [SearchHit(**hit, spans=highlight(hit["caption"], terms)) for hit in found]
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


def _matching(filters: Sequence[ColumnElement[bool]], *columns: Any) -> Select[Any]:
    """Columns of the locations that have not vanished and for whose live caption the filters hold."""
    return (
        select(*columns)
        .select_from(Caption)
        .join(Image, and_(Image.content_hash == Caption.content_hash, Image.caption_id == Caption.id))
        .join(Location, Location.content_hash == Image.content_hash)
        .where(*filters, Location.vanished_at.is_(None))
    )
