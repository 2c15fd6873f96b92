"""Image vectors: stored beside the captions that came out of the same pass, and compared one by one.

What is nearest is found by looking at all of a model's vectors, in blocks: exact, in bounded memory, and no
index that a run would have to keep up.
"""

import heapq
from collections.abc import Mapping, Sequence

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    case,
    func,
    select,
    update,
)
from sqlalchemy.orm import aliased

from batchcap.catalog.connection import Database
from batchcap.catalog.ranking import narrowed
from batchcap.catalog.records import (
    Captioned,
    CaptionFilter,
    Likeness,
    SearchResult,
    VectorModel,
)
from batchcap.catalog.search import Wanted
from batchcap.catalog.tables import Caption, ImageVector, Location, Model, Run, Shown

# As vectors are stored: see `captioner.protocol.stored_vector`.
DTYPE = "<f2"
# Vectors that are compared at a time: of 1,024 numbers they take 16 MB in single precision.
_BLOCK_ROWS = 4096
# The vectors have three good digits; what is equal shall be equal wherever in a block it stands.
_SCORE_DIGITS = 6


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
    # One more, for the picture itself may be among them.
    nearest = _Nearest(likeness.vector, offset + limit + 1)
    itself = 0
    with database.read() as connection:
        if wanted.has_words:
            database.expect_lookups(connection)
        # The rows come as they are asked for.
        vectors = _vectors(wanted, likeness).execution_options(yield_per=_BLOCK_ROWS)
        for rows in connection.execute(vectors, wanted.parameters).partitions():
            nearest.add(*zip(*rows, strict=True))
        if likeness.uri is not None:
            is_itself = _vectors(wanted, likeness, Location.uri == likeness.uri)
            itself = len(connection.execute(is_itself, wanted.parameters).all())
        hits = wanted.page(connection, nearest.best(), limit=limit, offset=offset, without=likeness.uri)
    return SearchResult(nearest.files - itself, hits)


def _vectors(wanted: Wanted, likeness: Likeness, *also: ColumnElement[bool]) -> "Select[int, int, bytes]":
    """What is shown of images and has the wanted words, with the vectors that one model has given them.

    Returns:
        Rows of the caption's number, how many files it is of, and the vector.
    """
    own = aliased(Caption)
    is_own = (own.content_hash == Caption.content_hash) & (own.fingerprint == likeness.fingerprint)
    # Most often the caption that is shown is this model's, and another need not be looked for.
    caption_id = case(
        (Caption.fingerprint == likeness.fingerprint, Caption.id),
        else_=select(own.id).where(is_own).correlate(Caption).scalar_subquery(),
    )
    found: FromClause = wanted.full_text.shown if wanted.has_words else Shown.__table__
    source, conditions, files = narrowed(found, [*wanted.filters, *also], caption_id)
    statement = (
        select(Shown.caption_id, files.label("files"), ImageVector.vector)
        .select_from(source)
        .join(ImageVector, ImageVector.caption_id == caption_id)
        .where(*([wanted.full_text.matches] if wanted.has_words else []), *conditions)
        # Whatever another program may have done to one.
        .where(func.length(ImageVector.vector) == len(likeness.vector))
    )
    if wanted.has_words:
        return statement
    # Captions in the order in which runs wrote them, so that vectors are read one after the other; files of a
    # folder in theirs, so that they are found by the key. Any other would jump to and fro in all tables.
    return statement.order_by(Shown.caption_id if files is Shown.__table__.c.files else Location.uri)


class _Nearest:
    """The nearest of many vectors to one, of which it holds no more than it must.

    Args:
        vector: float16[D] of length one, as it is stored.
        count: how many are wanted.

    Attributes:
        files: of how many the vectors were.
    """

    def __init__(self, vector: bytes, count: int) -> None:
        import numpy as np

        self.files = 0
        self._vector = np.frombuffer(vector, DTYPE).astype(np.float32)
        self._wanted = count
        # By what sorts them: the score, negative, and the caption's number.
        self._best: list[tuple[float, int]] = []
        self._worst = -2.0

    def add(self, caption_ids: Sequence[int], files: Sequence[int], vectors: Sequence[bytes]) -> None:
        """Compares some more."""
        import numpy as np

        block = np.frombuffer(b"".join(vectors), DTYPE).reshape(len(vectors), -1)
        scores = np.round(block.astype(np.float32) @ self._vector, _SCORE_DIGITS)
        self.files += sum(files)
        near = np.flatnonzero(scores >= self._worst)
        self._best += [(-float(scores[place]), caption_ids[place]) for place in near.tolist()]
        if len(self._best) > 2 * self._wanted:
            self._best = heapq.nsmallest(self._wanted, set(self._best))
            if len(self._best) == self._wanted:
                self._worst = -self._best[-1][0]

    def best(self) -> dict[int, float]:
        """Captions and their scores, the nearest first."""
        # A caption is there once for each of its files, where these are filtered.
        nearest = heapq.nsmallest(self._wanted, set(self._best))
        return {caption_id: -score for score, caption_id in nearest}
