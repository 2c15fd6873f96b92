"""What the catalog asks of a database. `sqlite` and `postgresql` answer it, each in its own words.

Nobody else knows which database it is: whatever one does otherwise than the other has a name here.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from sqlalchemy import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from batchcap.catalog.findings import Finding
from batchcap.catalog.fulltext import FullText
from batchcap.catalog.query import QueryResult
from batchcap.errors import CatalogError

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite

    from batchcap.catalog.tables import Base

    Insert: TypeAlias = postgresql.Insert | sqlite.Insert


class Database(ABC):
    """A database that holds a catalog, or may: short read transactions, and write transactions.

    Args:
        label: what people know it by; without a password.
        writable: whether transactions may write.
        reader: begins transactions that see one state of the catalog and can't write.
        writer: begins transactions that write.
    """

    # Its name, as of the folder of its named queries.
    name: ClassVar[str]
    # The base of what its driver raises.
    driver_error: ClassVar[type[Exception]]
    full_text: ClassVar[FullText]

    def __init__(self, label: str, *, writable: bool, reader: Engine, writer: Engine) -> None:
        self.label = label
        self.writable = writable
        self._reader = reader
        self._writer = writer

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read transaction: one state of the catalog. Keep it short: old states are kept behind it."""
        with self.errors(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A write transaction: whole at its end, or not at all."""
        if not self.writable:
            raise CatalogError(f"the catalog at {self.label} was opened for reading only")
        with self.errors(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns what the database says of the disk, the network, locks or damage into a CatalogError.

        Errors of our own making, such as a violated constraint, stay what they are: they are bugs.
        """
        try:
            yield
        except (DBAPIError, self.driver_error) as error:
            found = self.catalog_error(error.orig if isinstance(error, DBAPIError) else error)
            if found is None:
                raise
            raise found from error

    def close(self) -> None:
        """Closes the connections."""
        self._reader.dispose()

    @abstractmethod
    def catalog_error(self, error: BaseException | None) -> CatalogError | None:
        """One line for a person: what is wrong and what to do; None for a bug, or what isn't the driver's."""

    @abstractmethod
    def lock(self) -> AbstractContextManager[None]:
        """Holds the catalog for one run, or one migration, at a time. It is free when its holder dies.

        Raises:
            CatalogBusyError: someone else holds it; says who.
            CatalogError: it can't be locked.
        """

    @abstractmethod
    def fence(self, connection: Connection) -> None:
        """Keeps the commits of a run waiting until this write transaction ends; it sees all that was before.

        It waits itself for what is going on, in bounded time.

        Args:
            connection: in a write transaction that has done nothing yet.
        """

    @abstractmethod
    def wipe(self, connection: Connection) -> None:
        """Has what a write transaction deletes overwritten, as far as that is in our hands; then `scrub`."""

    @abstractmethod
    def scrub(self) -> None:
        """Removes what was deleted from indexes and logs too, as far as that is in our hands."""

    @abstractmethod
    def insert(self, table: "type[Base]") -> "Insert":
        """An INSERT that knows ON CONFLICT."""

    def insert_rows(
        self, connection: Connection, insert: "Insert", rows: Sequence[Mapping[str, Any]], *, key: str
    ) -> None:
        """Inserts rows, as if one after the other.

        Args:
            connection: in a write transaction.
            insert: of `Database.insert`, without values.
            rows: values by column, of the same columns all.
            key: the column by which two of the rows may meet in ON CONFLICT.
        """
        connection.execute(insert, rows)

    @abstractmethod
    def query(self, sql: str, *, limit: int | None, timeout_s: float) -> QueryResult:
        """Answers one SQL query by hand; see `Catalog.query`."""

    @abstractmethod
    def schema_version(self) -> str | None:
        """The version of the catalog; None if there is none yet. Nothing is written.

        Raises:
            CatalogError: it can't be read, or is something else.
        """

    @abstractmethod
    def damage(self) -> Iterator[Finding]:
        """What the database says of its own storage; if anything, nothing in it can be relied on."""

    @abstractmethod
    def contradictions(self) -> Iterator[Finding]:
        """References to what is not there, and where the full-text index differs from the captions."""

    @abstractmethod
    def prepare(self) -> None:
        """Makes room for a catalog, before one is looked for to be written.

        Raises:
            CatalogError: there can't be one here.
        """

    @abstractmethod
    def put_copy_aside(self, version: str) -> None:
        """Keeps a copy of the catalog as it is, if that is this database's way; before a migration.

        Args:
            version: of the catalog.

        Raises:
            CatalogError: there is no room for it.
        """

    @abstractmethod
    def admit_readers(self) -> None:
        """Sees to it that `query` can be used, as far as this user may; once there is a catalog."""


def open_database(url: str, *, writable: bool) -> Database:
    """The database that a catalog's URL names; nothing is connected to yet.

    Args:
        url: `sqlite:///relative.db`, `sqlite:////absolute.db` or `postgresql+psycopg://user@host/database`.
        writable: whether transactions may write.

    Raises:
        CatalogError: no URL, another database, or one whose driver is missing.
    """
    try:
        parsed = make_url(url)
    # The latter of a port that is no number.
    except (ArgumentError, ValueError):
        # It may hold a password.
        shown = "that" if "@" in url else repr(url)
        raise CatalogError(
            f"{shown} is not a catalog's URL; write sqlite:///path/to/catalog.db or "
            "postgresql+psycopg://user:password@host/database, with %40 for an @ in the password"
        ) from None
    match parsed.get_backend_name():
        case "sqlite":
            from batchcap.catalog.sqlite import SqliteDatabase

            return SqliteDatabase.of_url(parsed, writable=writable)
        case "postgresql":
            try:
                from batchcap.catalog.postgresql import PostgresDatabase
            except ImportError as error:
                if "psycopg" not in str(error) and "pq wrapper" not in str(error):
                    raise
                raise CatalogError("PostgreSQL needs its driver: pip install 'batchcap[postgres]'") from error
            return PostgresDatabase(parsed, writable=writable)
        case other:
            raise CatalogError(
                f"{other} isn't supported; use sqlite:///path/to/catalog.db or postgresql+psycopg://…"
            )
