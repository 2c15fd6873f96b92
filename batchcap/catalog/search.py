"""Full-text search over the live captions."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Row, Select, and_, select

from batchcap.catalog.columns import columns_of
from batchcap.catalog.connection import Database
from batchcap.catalog.filters import conditions
from batchcap.catalog.fulltext import FullText, Syntax
from batchcap.catalog.ranking import count_hits, find_best
from batchcap.catalog.records import CaptionFilter, SearchHit, SearchResult
from batchcap.catalog.tables import Caption, Image, Location, Model, Shown
from batchcap.catalog.text import Term, highlight, parse_query

# What is said of a hit, but for its score and its spans.
_SAID = (
    *("uri", "caption", "confidence", "source", "width", "height", "model", "format", "taken_at"),
    *("captioned_at", "camera", "latitude", "longitude"),
)
_HIT_COLUMNS = columns_of(_SAID, uri=Location.uri)
# Captions in one IN (...): below every database's limit of parameters.
_CHUNK = 500
_BEGINNING = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of the live captions, by words and filters.

    Args:
        terms: the words.
        full_text: how the database searches.
        filters: what must hold of a caption, its image and its location besides the words that must be there.
        parameters: of `select`.
        has_words: whether there is a word that must be there, hence something to rank by.
    """

    terms: list[Term]
    full_text: FullText
    filters: list[ColumnElement[bool]]
    parameters: Mapping[str, str]
    has_words: bool

    @classmethod
    def of(cls, database: Database, query: str, where: CaptionFilter) -> "Wanted | None":
        """Reads a query; None if it says something, but nothing that could be found."""
        terms, full_text, filters = parse_query(query), database.full_text, conditions(where)
        expression = match_expression(terms, full_text.syntax)
        if expression is not None:
            return cls(terms, full_text, filters, {"expression": expression}, True)
        if terms:
            # Words alone that must not be there.
            unwanted = {"expression": unwanted_expression(terms, full_text.syntax)}
            return cls(terms, full_text, [*filters, full_text.lacks], unwanted, False)
        return None if query.strip() else cls([], full_text, filters, {}, False)

    def select(self, *columns: Any) -> Select[Any]:
        """Columns of the locations that have not vanished and for whose live caption all of it holds."""
        captions: FromClause = Caption.__table__
        if self.has_words:
            captions = self.full_text.shown.join(captions, Caption.id == Shown.caption_id)
        return (
            select(*columns)
            .select_from(captions)
            .join(Image, and_(Image.content_hash == Caption.content_hash, Image.caption_id == Caption.id))
            .join(Location, Location.content_hash == Image.content_hash)
            .where(*([self.full_text.matches] if self.has_words else []))
            .where(*self.filters, Location.vanished_at.is_(None))
        )

    def page(
        self,
        connection: Connection,
        scores: Mapping[int, float],
        *,
        limit: int,
        offset: int,
        without: str | None = None,
    ) -> list[SearchHit]:
        """What is said of the files of captions, caption by caption.

        Args:
            connection: in a read transaction.
            scores: of captions that are shown and have the words, by their numbers and in their order.
            limit: files on the page.
            offset: files before it.
            without: the uri of a file that is none of them.
        """
        # That the words are there is known.
        statement = (
            replace(self, has_words=False)
            .select(Caption.id.label("caption_id"), *_HIT_COLUMNS)
            .outerjoin(Model, Model.fingerprint == Caption.fingerprint)
        )
        caption_ids = list(scores)
        rows: list[Row[Any]] = []
        for start in range(0, len(caption_ids), _CHUNK):
            chosen = statement.where(Caption.id.in_(caption_ids[start : start + _CHUNK]))
            rows += connection.execute(chosen, self.parameters)
        files = [row for row in rows if row.uri != without]
        order = {caption_id: place for place, caption_id in enumerate(caption_ids)}
        files.sort(key=lambda row: (order[row.caption_id], row.uri))
        return [self.hit(row, scores[row.caption_id]) for row in files[offset : offset + limit]]

    def hit(self, row: Row[Any], score: float) -> SearchHit:
        """A row of `caption_id` and `_HIT_COLUMNS`, with the words that were found marked."""
        said: dict[str, Any] = dict(zip(_SAID, row[1:], strict=True))
        return SearchHit(**said, score=score, spans=highlight(row.caption, self.terms))


def search(database: Database, query: str, *, limit: int, offset: int, where: CaptionFilter) -> SearchResult:
    """Finds locations by their live caption, best first; see `Catalog.search`."""
    wanted = Wanted.of(database, query, where)
    if wanted is None or not (wanted.has_words or conditions(where)):
        return SearchResult(0, [])
    if wanted.has_words:
        return _ranked(database, wanted, limit=limit, offset=offset)
    return _listed(database, wanted, limit=limit, offset=offset, reads_by_time=where.under is None)


def _ranked(database: Database, wanted: Wanted, *, limit: int, offset: int) -> SearchResult:
    """The best, by the words."""
    with database.read() as connection:
        database.expect_lookups(connection)
        hits = find_best(connection, wanted.full_text, wanted.filters, wanted.parameters, offset + limit)
        if offset >= hits.files:
            # Behind the last page: nothing of those before it need be looked up.
            return SearchResult(hits.files, [])
        return SearchResult(hits.files, wanted.page(connection, hits.scores, limit=limit, offset=offset))


def _listed(
    database: Database, wanted: Wanted, *, limit: int, offset: int, reads_by_time: bool
) -> SearchResult:
    """The newest captions: there is nothing to rank by.

    With `reads_by_time` SQLite reads the index by time, up to the end of the page; else it would look at all
    captions and sort them. Below a folder are fewer, and another index finds them.
    """
    page = (
        wanted.select(Caption.id, *_HIT_COLUMNS)
        # True of all.
        .where(*([Caption.created_at >= _BEGINNING] if reads_by_time else []))
        .outerjoin(Model, Model.fingerprint == Caption.fingerprint)
        .order_by(Caption.created_at.desc(), Location.uri.asc())
        .limit(limit)
        .offset(offset)
    )
    with database.read() as connection:
        total = connection.execute(count_hits(None, wanted.filters), wanted.parameters).one()[0]
        return SearchResult(
            total, [wanted.hit(row, 0.0) for row in connection.execute(page, wanted.parameters)]
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
