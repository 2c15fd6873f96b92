"""A run: the one writer of results, from the moment it takes the catalog to its end.

`Run.commit` is the commit point of the whole pipeline. Whatever it is given becomes visible in one
transaction, and giving it the same again changes nothing, so a run that was killed is simply run again.
"""

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    not_,
    select,
    update,
)
from sqlalchemy.orm import aliased

from batchcap.catalog import tables
from batchcap.catalog.connection import Database
from batchcap.catalog.images import insert_images
from batchcap.catalog.records import Captioned, Failure, ModelInfo
from batchcap.catalog.tables import Caption, Image, ImageVector, Location, Model, Quarantine, Result
from batchcap.catalog.text import search_text
from batchcap.catalog.vanishing import Vanished, mark_vanished
from batchcap.catalog.vectors import insert_vectors
from batchcap.errors import CatalogError, Reason

if TYPE_CHECKING:
    from batchcap.collection import FileEntry

# Values in one IN (...): below every database's limit of parameters.
_CHUNK = 1000
_DETAIL_LENGTH = 500
# These say nothing of what the file holds: it may still be what was captioned.
_NOT_OF_CONTENT = frozenset({Reason.IO_ERROR, Reason.TIMEOUT, Reason.WORKER_CRASH})


class Run:
    """One run; a context manager, made by `Catalog.run`.

    Entering takes the lock, marks what older runs left as interrupted, and writes the run's row. Leaving
    writes how it ended: done, failed, or interrupted if it was by KeyboardInterrupt and its like.
    """

    def __init__(
        self, database: Database, source: Sequence[str], model: ModelInfo, options: Mapping[str, Any]
    ) -> None:
        self.id = str(uuid.uuid4())
        self.model = model
        self._database = database
        self._source = list(source)
        self._options = dict(options)
        self._counts: Counter[str] = Counter()
        self._held = ExitStack()

    @property
    def counts(self) -> dict[str, int]:
        """What was committed so far: `captioned`, `known` and `failed` files, and what `count` added."""
        return dict(self._counts)

    def count(self, **counts: int) -> None:
        """Adds to the run's counts; they are stored with the next commit or at the end."""
        self._counts.update(counts)

    def __enter__(self) -> Self:
        self._held.enter_context(self._database.lock())
        try:
            now = tables.utc_now()
            with self._database.write() as connection:
                # We hold the lock, so whoever is still called running is not.
                connection.execute(
                    update(tables.Run)
                    .where(tables.Run.state == "running")
                    .values(state="interrupted", finished_at=now)
                )
                connection.execute(
                    self._database.insert(Model).on_conflict_do_nothing(),
                    {
                        "fingerprint": self.model.fingerprint,
                        "name": self.model.name,
                        "config": dict(self.model.config),
                        "created_at": now,
                    },
                )
                connection.execute(
                    insert(tables.Run),
                    {
                        "id": self.id,
                        "source": self._source,
                        "fingerprint": self.model.fingerprint,
                        "options": self._options,
                        "started_at": now,
                        "state": "running",
                        "counts": {},
                    },
                )
        except BaseException:
            self._held.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._held:
            if error is None:
                self._finish("done")
                return
            # The error that ended the run matters more than a second one; the next run sees that this
            # one did not end well, and marks it interrupted.
            with suppress(CatalogError):
                self._finish("failed" if isinstance(error, Exception) else "interrupted")

    def commit(self, captioned: Sequence[Captioned], failures: Sequence[Failure] = ()) -> None:
        """Stores captions and failures, all or none.

        It may hold the same content or the same location twice, and what was committed before. The model's
        caption becomes the live one of its image, unless a person's is. A caption that is there without its
        vector gets it.

        Raises:
            CatalogError: the run has lost the catalog to another, or the catalog can't be written.
        """
        now = tables.utc_now()
        counts = self._counts + Counter(captioned=len(captioned), failed=len(failures))
        with self._database.write() as connection:
            self._check_owner(connection, counts)
            if captioned:
                self._insert_captions(connection, captioned, now)
                contents = {row.content_hash for row in captioned}
                caption_ids = self._caption_ids(connection, contents, own=True)
                insert_vectors(self._database, connection, captioned, caption_ids, self.model.fingerprint)
                self._upsert_locations(
                    connection, [_location(row, row.content_hash, now) for row in captioned]
                )
                self._make_live(connection, contents)
                self._log_results(
                    connection, [(row.uri, row.content_hash) for row in captioned], caption_ids, now
                )
                _leave_quarantine(connection, [row.uri for row in captioned])
            if failures:
                self._enter_quarantine(connection, failures, now)
                _vanish_overwritten(connection, failures, now)
        self._counts = counts

    def commit_known(
        self,
        hashed: "Sequence[tuple[FileEntry, str]]",
        *,
        recaption: bool = False,
        fill_vectors: bool = False,
    ) -> "list[FileEntry]":
        """Stores files whose content has a caption already: no inference for what was moved or copied.

        Args:
            hashed: files with the sha256 of their bytes.
            recaption: whether another model's caption is not enough (a person's always is).
            fill_vectors: whether this model's caption is not enough without a vector of the image.

        Returns:
            The files that must be captioned, in the order given.

        Raises:
            CatalogError: the run has lost the catalog to another, or the catalog can't be written.
        """
        now = tables.utc_now()
        with self._database.write() as connection:
            contents = {content for _, content in hashed}
            captioned = self._with_caption(connection, contents, recaption, fill_vectors)
            known = [(entry, content) for entry, content in hashed if content in captioned]
            counts = self._counts + Counter(known=len(known))
            self._check_owner(connection, counts)
            if known:
                self._upsert_locations(
                    connection, [_location(entry, content, now) for entry, content in known]
                )
                if recaption:
                    self._make_live(connection, captioned)
                caption_ids = self._caption_ids(connection, captioned, own=False)
                self._log_results(
                    connection, [(entry.uri, content) for entry, content in known], caption_ids, now
                )
                _leave_quarantine(connection, [entry.uri for entry, _ in known])
        self._counts = counts
        return [entry for entry, content in hashed if content not in captioned]

    def vanish(self, uris: Iterable[str], check: Callable[[Vanished], None]) -> Vanished:
        """Marks files as vanished, all or none.

        Args:
            uris: of files that are no longer there; read twice.
            check: is told what would be marked; nothing is if it raises.

        Raises:
            CatalogError: the run has lost the catalog to another, or the catalog can't be written.
        """
        with self._database.write() as connection:
            # First, as in every commit: who edits meanwhile waits for this, or this for him.
            self._check_owner(connection, self._counts)
            vanished = mark_vanished(connection, uris, tables.utc_now())
            check(vanished)
            counts = self._counts + Counter(vanished=sum(vanished))
            self._check_owner(connection, counts)
        self._counts = counts
        return vanished

    def _finish(self, state: str) -> None:
        with self._database.write() as connection:
            self._check_owner(connection, self._counts)
            connection.execute(
                update(tables.Run)
                .where(tables.Run.id == self.id)
                .values(state=state, finished_at=tables.utc_now())
            )

    def _check_owner(self, connection: Connection, counts: Counter[str]) -> None:
        """Stores the counts, which only succeeds while this run is the one that owns the catalog."""
        owned = connection.execute(
            update(tables.Run)
            .where(tables.Run.id == self.id, tables.Run.state == "running")
            .values(counts=dict(counts))
        )
        if owned.rowcount != 1:
            raise CatalogError(
                f"this run no longer owns the catalog at {self._database.label}: another run took it over; "
                "nothing was written, run again"
            )

    def _insert_captions(self, connection: Connection, rows: Sequence[Captioned], now: datetime) -> None:
        insert_images(self._database, connection, rows)
        self._database.insert_rows(
            connection,
            self._database.insert(Caption).on_conflict_do_nothing(),
            [
                {
                    "content_hash": row.content_hash,
                    "source": "model",
                    "fingerprint": self.model.fingerprint,
                    "text": row.text,
                    "search_text": search_text(row.text),
                    "log_prob": row.log_prob,
                    "confidence": row.confidence,
                    "token_count": row.token_count,
                    "created_at": now,
                }
                for row in rows
            ],
            key="content_hash",
        )

    def _of_this_model(self) -> Any:
        """The condition: a caption of this run's model."""
        return and_(Caption.source == "model", Caption.fingerprint == self.model.fingerprint)

    def _make_live(self, connection: Connection, contents: set[str]) -> None:
        """Makes this model's caption the live one of these images, unless a person's is."""
        live = aliased(Caption)
        own = select(Caption.id).where(Caption.content_hash == Image.content_hash, self._of_this_model())
        # Not `WHERE EXISTS (own)`, of which a server makes a join, and may begin it with all captions.
        statement = (
            update(Image)
            .where(~exists().where(live.id == Image.caption_id, live.source == "human"))
            .values(caption_id=func.coalesce(own.scalar_subquery(), Image.caption_id))
        )
        for chunk in _chunks(sorted(contents)):
            connection.execute(statement.where(Image.content_hash.in_(chunk)))

    def _caption_ids(self, connection: Connection, contents: set[str], *, own: bool) -> dict[str, int]:
        """The number of this model's caption (`own`) of each content, or else of the live one."""
        content: Any = Caption.content_hash if own else Image.content_hash
        caption: Any = Caption.id if own else Image.caption_id
        captions = select(content, caption).where(self._of_this_model() if own else caption.is_not(None))
        caption_ids: dict[str, int] = {}
        for chunk in _chunks(sorted(contents)):
            for content_hash, caption_id in connection.execute(captions.where(content.in_(chunk))):
                caption_ids[content_hash] = caption_id
        return caption_ids

    def _log_results(
        self,
        connection: Connection,
        rows: Sequence[tuple[str, str]],
        caption_ids: Mapping[str, int],
        now: datetime,
    ) -> None:
        """Logs (uri, content) with the caption of the content."""
        self._database.insert_rows(
            connection,
            self._database.insert(Result).on_conflict_do_nothing(),
            [
                {
                    "uri": uri,
                    "content_hash": content_hash,
                    "caption_id": caption_ids[content_hash],
                    "run_id": self.id,
                    "created_at": now,
                }
                for uri, content_hash in rows
            ],
            key="uri",
        )

    def _upsert_locations(self, connection: Connection, rows: list[dict[str, Any]]) -> None:
        statement = self._database.insert(Location)
        columns = ("content_hash", "size_bytes", "mtime_ns", "etag", "vanished_at")
        self._database.insert_rows(
            connection,
            statement.on_conflict_do_update(
                index_elements=[Location.uri], set_={name: statement.excluded[name] for name in columns}
            ),
            rows,
            key="uri",
        )

    def _with_caption(
        self, connection: Connection, contents: set[str], recaption: bool, fill_vectors: bool
    ) -> set[str]:
        """Those of the contents that need no caption."""
        found: set[str] = set()
        statement = select(Image.content_hash).join(Caption, Caption.id == Image.caption_id)
        if recaption:
            of_this_model = (
                select(Caption.id)
                .where(Caption.content_hash == Image.content_hash, self._of_this_model())
                .correlate(Image)
                .exists()
            )
            statement = statement.where((Caption.source == "human") | of_this_model)
        if fill_vectors:
            own = aliased(Caption)
            lacks = exists().where(
                own.content_hash == Image.content_hash,
                own.fingerprint == self.model.fingerprint,
                ~exists().where(ImageVector.caption_id == own.id),
            )
            # As in the plan: what another model's caption shows is left as it is.
            is_others = (Caption.source == "model") & (Caption.fingerprint != self.model.fingerprint)
            statement = statement.where(~lacks if recaption else ~lacks | is_others)
        for chunk in _chunks(sorted(contents)):
            found.update(connection.scalars(statement.where(Image.content_hash.in_(chunk))))
        return found

    def _enter_quarantine(self, connection: Connection, failures: Sequence[Failure], now: datetime) -> None:
        statement = self._database.insert(Quarantine)
        new = statement.excluded
        same = _same_file(Quarantine, new.size_bytes, new.mtime_ns, new.etag)
        columns = ("size_bytes", "mtime_ns", "etag", "reason", "detail", "run_id", "updated_at")
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=[Quarantine.uri],
                set_={
                    **{name: new[name] for name in columns},
                    "attempts": case((same, Quarantine.attempts + 1), else_=1),
                },
            ),
            [
                {
                    "uri": row.uri,
                    "size_bytes": row.size_bytes,
                    "mtime_ns": row.mtime_ns,
                    "etag": row.etag,
                    "reason": row.reason.value,
                    "detail": one_line(row.detail),
                    "attempts": 1,
                    "run_id": self.id,
                    "updated_at": now,
                }
                for row in failures
            ],
        )


def one_line(text: str) -> str:
    """A message as the catalog keeps it: one line, not too long, and text whatever it quotes."""
    line = " ".join(text.split())
    shortened = line if len(line) <= _DETAIL_LENGTH else line[: _DETAIL_LENGTH - 1] + "…"
    # PostgreSQL has no place for a NUL.
    return shortened.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def _location(file: "FileEntry | Captioned", content: str, now: datetime) -> dict[str, Any]:
    return {
        "uri": file.uri,
        "content_hash": content,
        "size_bytes": file.size_bytes,
        "mtime_ns": file.mtime_ns,
        "etag": file.etag,
        "first_seen_at": now,
        "vanished_at": None,
    }


def _same_file(
    row: type[Location] | type[Quarantine],
    size_bytes: ColumnElement[Any],
    mtime_ns: ColumnElement[Any],
    etag: ColumnElement[Any],
) -> ColumnElement[bool]:
    """`plan.same_file` in SQL: by size, and by etag where both have one, else by mtime."""
    return and_(row.size_bytes == size_bytes, func.coalesce(row.etag == etag, row.mtime_ns == mtime_ns))


def _vanish_overwritten(connection: Connection, failures: Sequence[Failure], now: datetime) -> None:
    """Marks locations as vanished whose content was replaced by one that can't be captioned."""
    overwritten = [
        {
            "the_uri": row.uri,
            "the_size": row.size_bytes,
            "the_mtime": row.mtime_ns,
            "the_etag": row.etag,
        }
        for row in failures
        if row.reason not in _NOT_OF_CONTENT
    ]
    if not overwritten:
        return
    same = _same_file(
        Location,
        bindparam("the_size", type_=Location.size_bytes.type),
        bindparam("the_mtime", type_=Location.mtime_ns.type),
        bindparam("the_etag", type_=Location.etag.type),
    )
    connection.execute(
        update(Location)
        .where(Location.uri == bindparam("the_uri"), Location.vanished_at.is_(None), not_(same))
        .values(vanished_at=now),
        overwritten,
    )


def _leave_quarantine(connection: Connection, uris: Sequence[str]) -> None:
    for chunk in _chunks(uris):
        connection.execute(delete(Quarantine).where(Quarantine.uri.in_(chunk)))


def _chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    """Values in portions that fit into one IN (...)."""
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]
