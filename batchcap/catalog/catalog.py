"""The catalog: the one object that the pipeline, the command line and the server hold."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from batchcap.catalog.checks import check
from batchcap.catalog.connection import Database, open_database
from batchcap.catalog.editing import EditOutcome, caption_image, least_certain, write_captions
from batchcap.catalog.findings import Finding
from batchcap.catalog.forgetting import forget
from batchcap.catalog.gallery import Gallery
from batchcap.catalog.live import LiveCaption, all_texts, captions_of, files_named, live_captions
from batchcap.catalog.migration import make_current, require_current
from batchcap.catalog.missing import MissingFiles
from batchcap.catalog.plan import plan_waves
from batchcap.catalog.query import QueryResult
from batchcap.catalog.rebuild import Rebuild, ServerRebuild
from batchcap.catalog.records import (
    CaptionFilter,
    Forgotten,
    Likeness,
    ModelInfo,
    PartInfo,
    QuarantinedFile,
    SearchResult,
    Status,
    Uncertain,
    VectorModel,
    Wave,
)
from batchcap.catalog.resources import NamedQuery, named_queries
from batchcap.catalog.run import Run
from batchcap.catalog.run_facts import CaptionedFile, FailedFile, failed_files, sample_captions
from batchcap.catalog.sealing import (
    PART_ROWS,
    PartRow,
    all_parts,
    assign_part,
    drop_part,
    finish_part,
    part_rows,
    pending_parts,
    reopen_part,
    unsealed_count,
)
from batchcap.catalog.search import search
from batchcap.catalog.sqlite import SqliteDatabase
from batchcap.catalog.status import catalog_uuid, read_pace, read_quarantine, read_status
from batchcap.catalog.vectors import search_like, vector_models, vectors_of
from batchcap.errors import Reason

if TYPE_CHECKING:
    from batchcap.collection import FileEntry


class Catalog:
    """Images, locations and captions in SQL; a context manager, opened by `Catalog.open`.

    Every method may raise a CatalogError, whose one line says what is wrong and what to do.

    Example:
        >>> with Catalog.open("sqlite:////photos/catalog.db") as catalog:
        ...     for hit in catalog.search('"red boat" -dog').hits:
        ...         print(hit.uri, hit.highlighted())
    """

    def __init__(self, database: Database, url: str) -> None:
        self._database = database
        self._url = url

    @classmethod
    def open(cls, url: str, *, mode: Literal["read", "edit", "write"] = "read") -> Self:
        """Opens a catalog.

        Args:
            url: `sqlite:////absolute/path/to/catalog.db`, or `postgresql+psycopg://user@host/database` with
                whatever options PostgreSQL's connections have, such as `?sslmode=verify-full`.
            mode: "read" can't change anything. "edit" may write, but not make or migrate a catalog. "write"
                makes one where there is none, and migrates an older; of a file, a copy is put aside first.

        Raises:
            CatalogError: there is none to read or edit, or it can't be opened.
            CatalogVersionError: it is older (to read or edit) or newer than this batchcap.
            CatalogBusyError: it must be made or migrated, and a run is working on it.
        """
        database = open_database(url, writable=mode != "read")
        try:
            if mode == "write":
                make_current(database)
            else:
                require_current(database)
        except BaseException:
            database.close()
            raise
        return cls(database, url)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the catalog."""
        self._database.close()

    def to_edit(self) -> "Catalog":
        """The same catalog, opened anew: for a moment in which a reader must write.

        Raises:
            CatalogVersionError: it was migrated meanwhile.
            CatalogError: it can't be opened.
        """
        return Catalog.open(self._url, mode="edit")

    @cached_property
    def uuid(self) -> str:
        """The catalog's identity, given when it was made; its store carries the same."""
        return catalog_uuid(self._database)

    @cached_property
    def gallery(self) -> Gallery:
        """What a page that shows pictures asks."""
        return Gallery(self._database)

    def run(self, source: Sequence[str], model: ModelInfo, options: Mapping[str, Any]) -> Run:
        """A run, to be entered with `with`: only then does it take the catalog.

        Args:
            source: what is indexed, as the user wrote it.
            model: the model that captions.
            options: what else the run was told; kept for the record, as JSON.

        Raises:
            CatalogBusyError: on entering: another run has the catalog; says who.
        """
        return Run(self._database, source, model, options)

    def plan(
        self,
        entries: "Iterable[FileEntry]",
        fingerprint: str,
        *,
        retry: Collection[Reason] = (),
        recaption: bool = False,
        fill_vectors: bool = False,
        wave_size: int = 500_000,
        on_todo: Callable[[], None] | None = None,
    ) -> Iterator[Wave]:
        """Divides a scan into what is to be captioned and what is done, in one pass and bounded memory.

        The scan is read as waves are asked for, and what was committed in between is seen.

        Args:
            entries: the scan, sorted by uri.
            fingerprint: of the model that captions.
            retry: reasons for which files in the quarantine are tried again although they have not changed.
                `io_error` always is, `timeout` and `worker_crash` up to three attempts.
            recaption: whether files with another model's caption are captioned again.
            fill_vectors: whether files are that this model captioned without leaving a vector of the image.
            wave_size: files that are to be captioned or hashed, of one wave, at most.
            on_todo: called for each file that must be captioned, as soon as it is known; its wave is whole
                only later.

        Yields:
            Waves; the last may hold counts only. None if there are no entries.

        Raises:
            ValueError: the scan is not sorted.
        """
        return plan_waves(
            self._database,
            entries,
            fingerprint,
            retry=retry,
            recaption=recaption,
            fill_vectors=fill_vectors,
            wave_size=wave_size,
            on_todo=on_todo,
        )

    def missing(self, folders: Sequence[str]) -> MissingFiles:
        """Finds files that the catalog knows and a scan does not; see `MissingFiles`.

        Args:
            folders: how the uris begin of which the scan finds all that there are; none begins another.
        """
        return MissingFiles(self._database, folders)

    def search(
        self, query: str = "", *, limit: int = 20, offset: int = 0, where: CaptionFilter | None = None
    ) -> SearchResult:
        """Finds locations by words of their live caption, best first; by filters alone, newest first.

        Args:
            query: words that must all be there, in any form ("dogs" finds "dog"); `"a phrase"`; `begin*`;
                `-word` for what must not be there; `OR` between two of which one will do. Anything is a
                query; one without a word finds nothing, unless there is a filter.
            limit: hits to return at most.
            offset: hits to skip.
            where: what else must hold.
        """
        return search(self._database, query, limit=limit, offset=offset, where=where or CaptionFilter())

    def search_like(
        self,
        likeness: Likeness,
        query: str = "",
        *,
        limit: int = 20,
        offset: int = 0,
        where: CaptionFilter | None = None,
    ) -> SearchResult:
        """Finds locations by the likeness of their images to one, nearest first.

        All vectors of the model are looked at, but those that words and filters leave out.

        Args:
            likeness: the image, and the model in whose eyes others are like it; see `vector_models`.
            query: words as `search` takes them; the order is by likeness all the same.
            limit: hits to return at most.
            offset: hits to skip.
            where: what else must hold.
        """
        where = where or CaptionFilter()
        return search_like(self._database, likeness, query, limit=limit, offset=offset, where=where)

    def vector_models(self) -> list[VectorModel]:
        """The models that have left vectors of images, that of the latest run first."""
        return vector_models(self._database)

    def vectors_of(self, content_hash: str) -> dict[str, bytes]:
        """The vectors of an image, by the fingerprint of the model; empty if there are none.

        Args:
            content_hash: sha256 of the bytes, in hexadecimal.
        """
        return vectors_of(self._database, content_hash)

    def write_captions(
        self,
        captions: Sequence[tuple[str, str]],
        model: ModelInfo | None = None,
        *,
        only_new: bool = False,
    ) -> list[EditOutcome]:
        """Writes captions of files that are known, at once and beside a run, if there is one.

        A person's caption becomes the live one of its image, whatever was; a model's unless a person's is.
        What was said before stays, as history.

        Args:
            captions: uri and text of each.
            model: whose they are; None for a person.
            only_new: whether of a person's only those count that nobody has said of that image, no model
                either: what was exported and comes back is not a person's for that.

        Returns:
            What became of each, in their order. Where there are many, some are written in each transaction.

        Raises:
            UsageError: one is no caption; nothing was written.
        """
        return write_captions(self._database, captions, model, only_new=only_new)

    def caption_image(self, content_hash: str, text: str) -> EditOutcome:
        """Writes a person's caption of an image, wherever that is; see `write_captions`.

        Args:
            content_hash: sha256 of the bytes, in hexadecimal.
            text: the caption.

        Returns:
            VANISHED also of an image that was overwritten: what matters is that it is nowhere now.

        Raises:
            UsageError: it is no caption.
        """
        return caption_image(self._database, content_hash, text)

    def least_certain(self, limit: int) -> list[Uncertain]:
        """Images with a model's caption, the least certain first; those without a confidence come last."""
        return least_certain(self._database, limit)

    def live_captions(self, where: CaptionFilter | None = None) -> Iterator[list[LiveCaption]]:
        """The captions that are shown, in batches, sorted by uri; not those of files that have vanished."""
        return live_captions(self._database, where or CaptionFilter())

    def captions_of(self, uris: Sequence[str]) -> dict[str, LiveCaption]:
        """The captions that are shown of some files, by uri; not of those that have vanished."""
        return captions_of(self._database, uris)

    def all_texts(self, contents: Collection[str]) -> dict[str, set[str]]:
        """Whatever was said of images, by models and people, now or earlier; by content."""
        return all_texts(self._database, contents)

    def files_named(self, uri_without_suffix: str) -> list[str]:
        """The files that are called so but for their suffix, sorted: `/a/b` finds `/a/b.jpg`."""
        return files_named(self._database, uri_without_suffix)

    def query(self, sql: str, *, limit: int | None = None, timeout_s: float = 60.0) -> QueryResult:
        """Answers one SQL query; whatever would write is refused.

        Args:
            sql: one statement.
            limit: rows to give at most; None for all.
            timeout_s: how long the database may work on it.

        Raises:
            QueryError: the statement is wrong or refused, or took too long.
        """
        return self._database.query(sql, limit=limit, timeout_s=timeout_s)

    def named_queries(self) -> dict[str, NamedQuery]:
        """The queries that come with batchcap, by name, in the SQL of this catalog's database."""
        return named_queries(self._database.name)

    def status(self) -> Status:
        """Counts what the catalog holds."""
        return read_status(self._database)

    def quarantine(
        self, reason: Reason | None = None, *, limit: int = 100, offset: int = 0
    ) -> list[QuarantinedFile]:
        """The files that could not be captioned, sorted by uri.

        Args:
            reason: only these; None for all.
            limit: files to return at most.
            offset: files to skip.
        """
        return read_quarantine(self._database, reason, limit=limit, offset=offset)

    def pace(self, fingerprint: str, *, at_least: int) -> float | None:
        """Files a second of the latest run with a model that captioned enough of them; None if none did.

        Args:
            fingerprint: of the model.
            at_least: files that a run must have captioned for its pace to say something.
        """
        return read_pace(self._database, fingerprint, at_least=at_least)

    def sample_captions(self, run_id: str, committed: int, count: int) -> list[CaptionedFile]:
        """Some of the captions of the latest run, which committed so many, from its first to its last."""
        return sample_captions(self._database, run_id, committed, count)

    def failed_files(self, run_id: str, limit: int) -> list[FailedFile]:
        """Files that a run put into quarantine, by reason and uri; at most `limit`."""
        return failed_files(self._database, run_id, limit)

    def unsealed_count(self) -> int:
        """How many results are in no Parquet part yet."""
        return unsealed_count(self._database)

    def assign_part(self, run_id: str, *, rows: int = PART_ROWS) -> PartInfo | None:
        """Names a part and gives it the oldest unsealed results, at most `rows`; None if there are none."""
        return assign_part(self._database, run_id, rows=rows)

    def pending_parts(self) -> list[PartInfo]:
        """The parts whose file may be missing, oldest first."""
        return pending_parts(self._database)

    def parts(self) -> list[PartInfo]:
        """All parts, oldest first."""
        return all_parts(self._database)

    def part_rows(self, name: str) -> Iterator[list[PartRow]]:
        """The rows of a part in batches; the same rows in the same order, however often it is asked."""
        return part_rows(self._database, name)

    def finish_part(self, name: str, row_count: int, sha256: str) -> None:
        """Notes that a part is on disk, whole."""
        finish_part(self._database, name, row_count, sha256)

    def reopen_part(self, name: str, supersedes: str | None) -> None:
        """Makes a part pending whose file is damaged, or gone; under `lock`, and then it must be written.

        Args:
            name: of the part.
            supersedes: sha256 of the file as it is, which alone may be replaced; None if there is none.
        """
        reopen_part(self._database, name, supersedes)

    def drop_part(self, name: str) -> None:
        """Notes that a part is gone of which all rows were forgotten."""
        drop_part(self._database, name)

    def lock(self) -> AbstractContextManager[None]:
        """Holds the catalog, as a run does.

        Raises:
            CatalogBusyError: a run has it; says who.
        """
        return self._database.lock()

    def forget(self, uri: str) -> Forgotten:
        """Erases a file, its captions and its lines in the log; under `lock`, and when no part is pending.

        Parts that held some of it are pending then, and must be written. Captions stay that another file of
        the same content has too.

        Raises:
            CatalogError: there is no such file.
        """
        return forget(self._database, uri)

    def scrub(self) -> None:
        """Removes what was forgotten from the database's own indexes and logs, as far as that is possible."""
        self._database.scrub()

    def check(self) -> Iterator[Finding]:
        """Finds what contradicts itself in the catalog; nothing is written, and a run may go on meanwhile.

        If the database itself is damaged, that is the only finding: nothing in it can be relied on.
        """
        return check(self._database)

    @staticmethod
    def rebuild(url: str, catalog_uuid: str, *, force: bool = False) -> Rebuild | ServerRebuild:
        """A catalog made again from its parts, to be entered with `with`; it appears at the end, whole.

        What is in its place is put aside, not deleted; on a server there may be nothing but an empty catalog.

        Args:
            url: of the catalog.
            catalog_uuid: the identity that the store's stamp names.
            force: whether also a catalog may be replaced that is neither damaged nor empty.

        Raises:
            CatalogBusyError: on entering: a run has the catalog; says who.
            CatalogError: on entering: there is a catalog that is neither damaged nor empty.
        """
        database = open_database(url, writable=True)
        if isinstance(database, SqliteDatabase):
            database.close()
            return Rebuild(database.path, catalog_uuid, force=force)
        return ServerRebuild(database, catalog_uuid)
