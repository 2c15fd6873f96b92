"""Image vectors: stored beside the captions that came out of the same pass, and compared one by one.

What is nearest is found by looking at all of a model's vectors, in blocks: exact, in bounded memory, and no
index that a run would have to keep up.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from sqlalchemy import Connection, case, func, literal, select, update
from sqlalchemy.orm import aliased

from batchcap.catalog.connection import Database
from batchcap.catalog.records import (
    Captioned,
    CaptionFilter,
    Likeness,
    SearchHit,
    SearchResult,
    VectorModel,
)
from batchcap.catalog.search import HIT_COLUMNS, Wanted
from batchcap.catalog.tables import Caption, ImageVector, Location, Model, Run

# As vectors are stored: see `captioner.protocol.stored_vector`.
DTYPE = "<f2"
# Vectors that are compared at a time: of 1,024 numbers they take 16 MB in single precision.
_BLOCK_ROWS = 4096
# The vectors have three good digits; what is equal shall be equal wherever in a block it stands.
_SCORE_DIGITS = 6
# Locations in one IN (...): below every database's limit of parameters.
_CHUNK = 500


def insert_vectors(
    database: Database,
    connection: Connection,
    rows: Sequence[Captioned],
    caption_ids: Mapping[str, int],
    fingerprint: str,
) -> None:
    """Stores the vectors of a commit, each once.

    Args:
        database: the catalog's.
        connection: in a write transaction.
        rows: of the commit.
        caption_ids: the number of the model's caption of each content, which is there.
        fingerprint: of the model.
    """
    vectors = [(caption_ids[row.content_hash], row.vector) for row in rows if row.vector is not None]
    if not vectors:
        return
    database.insert_rows(
        connection,
        database.insert(ImageVector).on_conflict_do_nothing(),
        [{"caption_id": caption_id, "vector": vector} for caption_id, vector in vectors],
        key="caption_id",
    )
    connection.execute(
        update(Model)
        .where(Model.fingerprint == fingerprint, Model.vector_size.is_(None))
        .values(vector_size=len(vectors[0][1]) // 2)
    )


def vector_models(database: Database) -> list[VectorModel]:
    """The models that have left vectors, that of the latest run first; see `Catalog.vector_models`."""
    # Not grouped by the configuration: PostgreSQL can't compare JSON.
    latest = (
        select(Run.fingerprint, func.max(Run.started_at).label("at")).group_by(Run.fingerprint).subquery()
    )
    statement = (
        select(Model.fingerprint, Model.name, Model.config, Model.vector_size, latest.c.at)
        .join(latest, latest.c.fingerprint == Model.fingerprint)
        .where(Model.vector_size.is_not(None))
    )
    with database.read() as connection:
        rows = connection.execute(statement).all()
    return [VectorModel(*row[:-1]) for row in sorted(rows, key=lambda row: row.at, reverse=True)]


def vectors_of(database: Database, content_hash: str) -> dict[str, bytes]:
    """The vectors of an image, by the fingerprint of the model."""
    statement = (
        select(Caption.fingerprint, ImageVector.vector)
        .join(ImageVector, ImageVector.caption_id == Caption.id)
        .where(Caption.content_hash == content_hash)
    )
    with database.read() as connection:
        return {row.fingerprint: row.vector for row in connection.execute(statement)}


def search_like(
    database: Database, likeness: Likeness, query: str, *, limit: int, offset: int, where: CaptionFilter
) -> SearchResult:
    """Finds locations by the likeness of their images, nearest first; see `Catalog.search_like`."""
    wanted = Wanted.of(database, query, where)
    if wanted is None:
        return SearchResult(0, [])
    nearest = _Nearest(likeness.vector, offset + limit)
    own = aliased(Caption)
    is_own = (own.content_hash == Location.content_hash) & (own.fingerprint == likeness.fingerprint)
    # Most often the live caption is this model's, and another need not be looked for.
    caption_id = case(
        (Caption.fingerprint == likeness.fingerprint, Caption.id),
        else_=select(own.id).where(is_own).correlate(Location).scalar_subquery(),
    )
    statement = (
        wanted.select(Location.uri, ImageVector.vector)
        .join(ImageVector, ImageVector.caption_id == caption_id)
        # Whatever another program may have done to one.
        .where(func.length(ImageVector.vector) == len(likeness.vector))
        # The rows come as they are asked for.
        .execution_options(yield_per=_BLOCK_ROWS)
    )
    if not wanted.has_words:
        # In the order in which runs caption, so that vectors are read nearly one after the other; and what is
        # below a folder is found by the key. Any other order would jump to and fro in all tables.
        statement = statement.order_by(Location.uri)
    if likeness.uri is not None:
        statement = statement.where(Location.uri != likeness.uri)
    with database.read() as connection:
        if wanted.has_words:
            database.expect_lookups(connection)
        for rows in connection.execute(statement, wanted.parameters).partitions():
            nearest.add(*zip(*rows, strict=True))
        page = nearest.best()[offset:]
        hits = {hit.uri: hit for hit in _hits(connection, wanted, [uri for _, uri in page])}
    scored = [replace(hits[uri], score=score) for score, uri in page]
    return SearchResult(nearest.count, scored)


def _hits(connection: Connection, wanted: Wanted, uris: Sequence[str]) -> Iterator[SearchHit]:
    statement = wanted.select(Location.uri, literal(0.0).label("score"), *HIT_COLUMNS).outerjoin(
        Model, Model.fingerprint == Caption.fingerprint
    )
    for start in range(0, len(uris), _CHUNK):
        chosen = statement.where(Location.uri.in_(uris[start : start + _CHUNK]))
        yield from wanted.hits(connection.execute(chosen, wanted.parameters))


class _Nearest:
    """The nearest of many vectors to one, of which it holds no more than it must.

    Args:
        vector: float16[D] of length one, as it is stored.
        count: how many are wanted.
    """

    def __init__(self, vector: bytes, count: int) -> None:
        import numpy as np

        self.count = 0
        self._vector = np.frombuffer(vector, DTYPE).astype(np.float32)
        self._wanted = count
        # By what sorts them: the score, negative, and the location.
        self._best: list[tuple[float, str]] = []
        self._worst = -2.0

    def add(self, uris: Sequence[str], vectors: Sequence[bytes]) -> None:
        """Compares some more."""
        import numpy as np

        block = np.frombuffer(b"".join(vectors), DTYPE).reshape(len(vectors), -1)
        scores = np.round(block.astype(np.float32) @ self._vector, _SCORE_DIGITS)
        self.count += len(uris)
        near = np.flatnonzero(scores >= self._worst)
        self._best += [(-float(scores[place]), uris[place]) for place in near.tolist()]
        if len(self._best) > 2 * self._wanted:
            self._best = heapq.nsmallest(self._wanted, self._best)
            self._worst = -self._best[-1][0]

    def best(self) -> list[tuple[float, str]]:
        """Scores and locations, the nearest first."""
        return [(-score, uri) for score, uri in heapq.nsmallest(self._wanted, self._best)]
