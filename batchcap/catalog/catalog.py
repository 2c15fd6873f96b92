"""The catalog: the one object that the pipeline, the command line and the server hold."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from batchcap.catalog.connection import Database, catalog_path
from batchcap.catalog.migration import make_current, require_current
from batchcap.catalog.plan import plan_waves
from batchcap.catalog.query import QueryResult
from batchcap.catalog.records import (
    ModelInfo,
    PartInfo,
    QuarantinedFile,
    SearchResult,
    Status,
    Wave,
)
from batchcap.catalog.run import Run
from batchcap.catalog.sealing import (
    PART_ROWS,
    PartRow,
    assign_part,
    finish_part,
    part_rows,
    pending_parts,
    unsealed_count,
)
from batchcap.catalog.search import search
from batchcap.catalog.status import catalog_uuid, read_quarantine, read_status
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

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str, *, mode: Literal["read", "write"] = "read") -> Self:
        """Opens a catalog.

        Args:
            url: `sqlite:////absolute/path/to/catalog.db`.
            mode: "read" can't change anything. "write" makes a catalog where there is none, and migrates an
                older one, with a copy of it put aside first.

        Raises:
            CatalogError: there is none to read, or it can't be opened.
            CatalogVersionError: it is older (to read) or newer than this batchcap.
            CatalogBusyError: it must be made or migrated, and a run is working on it.
        """
        path = catalog_path(url)
        if mode == "write":
            make_current(path)
        else:
            require_current(path)
        return cls(Database(path, writable=mode == "write"))

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

    @cached_property
    def uuid(self) -> str:
        """The catalog's identity, given when it was made; its store carries the same."""
        return catalog_uuid(self._database)

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
        wave_size: int = 500_000,
    ) -> Iterator[Wave]:
        """Divides a scan into what is to be captioned and what is done, in one pass and bounded memory.

        The scan is read as waves are asked for, and what was committed in between is seen.

        Args:
            entries: the scan, sorted by uri.
            fingerprint: of the model that captions.
            retry: reasons for which files in the quarantine are tried again although they have not changed.
                `io_error` always is, `timeout` and `worker_crash` up to three attempts.
            recaption: whether files with another model's caption are captioned again.
            wave_size: files in `todo` and `maybe_known` of one wave, together, at most.

        Yields:
            Waves; the last may hold counts only. None if there are no entries.

        Raises:
            ValueError: the scan is not sorted.
        """
        return plan_waves(
            self._database, entries, fingerprint, retry=retry, recaption=recaption, wave_size=wave_size
        )

    def search(self, query: str, *, limit: int = 20, offset: int = 0) -> SearchResult:
        """Finds locations by words of their live caption, best first.

        Args:
            query: words that must all be there, in any form ("dogs" finds "dog"); `"a phrase"`; `begin*`;
                `-word` for what must not be there. Anything is a query; one without a word finds nothing.
            limit: hits to return at most.
            offset: hits to skip.
        """
        return search(self._database, query, limit=limit, offset=offset)

    def query(self, sql: str, *, limit: int | None = None, timeout_s: float = 60.0) -> QueryResult:
        """Answers one SQL query; whatever would write is refused.

        Args:
            sql: one statement.
            limit: rows to give at most; None for all.
            timeout_s: how long the database may work on it.

        Raises:
            QueryError: the statement is wrong or refused, or took too long.
        """
        return QueryResult(self._database.path, sql, limit=limit, timeout_s=timeout_s)

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

    def unsealed_count(self) -> int:
        """How many results are in no Parquet part yet."""
        return unsealed_count(self._database)

    def assign_part(self, run_id: str, *, rows: int = PART_ROWS) -> PartInfo | None:
        """Names a part and gives it the oldest unsealed results, at most `rows`; None if there are none."""
        return assign_part(self._database, run_id, rows=rows)

    def pending_parts(self) -> list[PartInfo]:
        """The parts whose file may be missing, oldest first."""
        return pending_parts(self._database)

    def part_rows(self, name: str) -> Iterator[list[PartRow]]:
        """The rows of a part in batches; the same rows in the same order, however often it is asked."""
        return part_rows(self._database, name)

    def finish_part(self, name: str, row_count: int, sha256: str) -> None:
        """Notes that a part is on disk, whole."""
        finish_part(self._database, name, row_count, sha256)
