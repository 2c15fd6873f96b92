"""Full-text search over the live captions."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Select, and_, func, literal, select

from batchcap.catalog.connection import Database
from batchcap.catalog.filters import conditions
from batchcap.catalog.fulltext import Syntax
from batchcap.catalog.records import CaptionFilter, SearchHit, SearchResult
from batchcap.catalog.tables import Caption, Image, Location, Model
from batchcap.catalog.text import Term, highlight, parse_query

_BEGINNING = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of the live captions, by words and filters.

    Args:
        terms: the words.
        captions: the captions, joined with the full-text index if words are looked for in it.
        filters: what must hold of a caption, its image and its location.
        parameters: of the filters.
        has_words: whether there is a word that must be there, hence something to rank by.
    """

    terms: list[Term]
    captions: FromClause
    filters: list[ColumnElement[bool]]
    parameters: Mapping[str, str]
    has_words: bool

    @classmethod
    def of(cls, database: Database, query: str, where: CaptionFilter) -> "Wanted | None":
        """Reads a query; None if it says something, but nothing that could be found."""
        terms, full_text, filters = parse_query(query), database.full_text, conditions(where)
        expression = match_expression(terms, full_text.syntax)
        if expression is not None:
            filters.append(full_text.matches)
            return cls(terms, full_text.captions, filters, {"expression": expression}, True)
        if terms:
            # Words alone that must not be there.
            filters.append(full_text.lacks)
            unwanted = {"expression": unwanted_expression(terms, full_text.syntax)}
            return cls(terms, Caption.__table__, filters, unwanted, False)
        return None if query.strip() else cls([], Caption.__table__, filters, {}, False)

    def select(self, *columns: Any) -> Select[Any]:
        """Columns of the locations that have not vanished and for whose live caption the filters hold."""
        return (
            select(*columns)
            .select_from(self.captions)
            .join(Image, and_(Image.content_hash == Caption.content_hash, Image.caption_id == Caption.id))
            .join(Location, Location.content_hash == Image.content_hash)
            .where(*self.filters, Location.vanished_at.is_(None))
        )

    def hits(self, connection: Connection, statement: Select[Any]) -> list[SearchHit]:
        """What a statement of `hit_columns` finds."""
        rows = connection.execute(statement, self.parameters).all()
        return [SearchHit(**row._mapping, spans=highlight(row.caption, self.terms)) for row in rows]


def search(database: Database, query: str, *, limit: int, offset: int, where: CaptionFilter) -> SearchResult:
    """Finds locations by their live caption, best first; see `Catalog.search`."""
    wanted = Wanted.of(database, query, where)
    if wanted is None or not (wanted.has_words or conditions(where)):
        return SearchResult(0, [])
    if wanted.has_words:
        score = database.full_text.score.label("score")
        order: list[ColumnElement[Any]] = [score.desc(), Location.uri.asc()]
    else:
        # Nothing to rank by.
        score = literal(0.0).label("score")
        order = [Caption.created_at.desc(), Location.uri.asc()]
    # True of all, and makes SQLite read a list off the index by time, up to the end of the page; else it
    # would look at all captions and sort them. Below a folder are fewer, and another index finds them.
    is_list = not wanted.has_words and where.under is None
    page = (
        wanted.select(*hit_columns(score))
        .where(*([Caption.created_at >= _BEGINNING] if is_list else []))
        .outerjoin(Model, Model.fingerprint == Caption.fingerprint)
        .order_by(*order)
        .limit(limit)
        .offset(offset)
    )
    with database.read() as connection:
        total = connection.scalars(wanted.select(func.count()), wanted.parameters).one()
        return SearchResult(total, wanted.hits(connection, page))


def hit_columns(score: ColumnElement[float]) -> tuple[ColumnElement[Any], ...]:
    """What is said of a hit, but for its spans."""
    return (
        Location.uri.label("uri"),
        Caption.text.label("caption"),
        Caption.confidence.label("confidence"),
        Caption.source.label("source"),
        Image.width.label("width"),
        Image.height.label("height"),
        score,
        Model.name.label("model"),
        Image.format.label("format"),
        Image.taken_at.label("taken_at"),
        Caption.created_at.label("captioned_at"),
        Image.camera.label("camera"),
        Image.latitude.label("latitude"),
        Image.longitude.label("longitude"),
    )


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
