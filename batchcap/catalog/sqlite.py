"""SQLite: a catalog in a file, which needs no server.

The file is in WAL mode: readers never wait for the run that writes, and see one state of it. Python's driver
opens transactions late and on its own terms, so it is told to keep out of it (`isolation_level=None`), and
the transactions begin here: `BEGIN` to read, `BEGIN IMMEDIATE` to write. The latter takes the lock at once;
a transaction that read first and then wanted it could only fail.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import (
    URL,
    Connection,
    Float,
    column,
    create_engine,
    event,
    func,
    literal_column,
    select,
    table,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.pool import QueuePool

from batchcap.catalog.connection import Database
from batchcap.catalog.findings import Finding
from batchcap.catalog.fulltext import EXPRESSION, FullText, Syntax
from batchcap.catalog.query import QueryResult
from batchcap.catalog.sqlite_checks import damage, full_text, references
from batchcap.catalog.sqlite_file import (
    catalog_path,
    copy_aside,
    database_error,
    is_bug,
    os_error,
    raw_connection,
    refuse_network_file_system,
    schema_version,
)
from batchcap.catalog.sqlite_lock import catalog_lock
from batchcap.catalog.sqlite_query import SqliteQuery
from batchcap.catalog.tables import Base, Caption, Shown
from batchcap.errors import CatalogError

# Pages that a writer keeps in memory, and those that the log may hold before it is folded into the file.
_WRITER_CACHE_KIB = 64 * 1024
_WAL_PAGES = 16 * 1024
# So much of the file a search maps into its address space, at most.
_MAPPED_BYTES = 2**36

# In FTS5 the name of the table is also a hidden column: what MATCH and the ranking function speak of.
_INDEX = table("caption_fts", column("rowid"))
_INDEX_COLUMN: Any = literal_column("caption_fts")

# Every word stands in double quotes, so that nothing of a query can be taken for an operator.
_FTS5 = Syntax(
    both=" AND ",
    either=" OR ",
    without=" NOT ",
    phrase=lambda words: f'"{" ".join(words)}"',
    beginning=lambda letters: f'"{letters}"*',
)

# For transactions with very many rows.
_CACHE_KIB = 256 * 1024


class SqliteDatabase(Database):
    """One file.

    Args:
        path: of the file; it must exist unless `writable`.
        writable: whether transactions may write. A reader can't, whatever SQL it sends.
    """

    name = "sqlite"
    driver_error = sqlite3.Error
    full_text = FullText(
        syntax=_FTS5,
        shown=_INDEX.join(Shown.__table__, Shown.caption_id == _INDEX.c.rowid),
        caption_id=_INDEX.c.rowid,
        matches=_INDEX_COLUMN.match(EXPRESSION),
        lacks=Caption.id.not_in(select(_INDEX.c.rowid).where(_INDEX_COLUMN.match(EXPRESSION))),
        # bm25() is the lower the better; a score is the other way round.
        score=-func.bm25(_INDEX_COLUMN, type_=Float()),
    )

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.path = path
        engine = create_engine(
            URL.create("sqlite", database=str(path)),
            creator=self._connect,
            # The default for files; spelled out because short transactions shall not open files anew.
            poolclass=QueuePool,
        )
        event.listen(engine, "begin", _begin)
        # One engine, one pool: an option of the connection says which way the transaction begins.
        writer = engine.execution_options(begin="BEGIN IMMEDIATE")
        super().__init__(str(path), writable=writable, reader=engine, writer=writer)

    @classmethod
    def of_url(cls, url: URL, *, writable: bool) -> Self:
        """The database that a URL names.

        Raises:
            CatalogError: it names no file.
        """
        return cls(catalog_path(url), writable=writable)

    def _connect(self) -> sqlite3.Connection:
        connection = raw_connection(self.path, "rwc" if self.writable else "ro")
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            if self.writable:
                # Hashes land on pages all over the file. With SQLite's defaults, 2 MB and 4 MB, they are read
                # and written back again and again: half of a commit's time.
                connection.execute(f"PRAGMA cache_size = -{_WRITER_CACHE_KIB}")
                connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
                # A commit that was reported done survives a power failure, not only a crash.
                connection.execute("PRAGMA synchronous = FULL")
                (journal_mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
                if journal_mode != "wal":
                    raise CatalogError(
                        f"SQLite can't keep a write-ahead log at {self.path}; put the catalog on a local disk"
                    )
            else:
                connection.execute("PRAGMA query_only = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Closes the connections. The last one to close folds the log into the file."""
        super().close()

    def catalog_error(self, error: BaseException | None) -> CatalogError | None:
        """See `Database.catalog_error`."""
        if not isinstance(error, sqlite3.Error) or is_bug(error):
            return None
        return database_error(error, self.path)

    def lock(self) -> AbstractContextManager[None]:
        """A lock on a file beside the catalog; see `Database.lock`."""
        return catalog_lock(self.path)

    def fence(self, connection: Connection) -> None:
        """Nothing: there is one writer at a time."""

    def expect_lookups(self, connection: Connection) -> None:
        """Maps the file into memory: hits are all over it.

        Copying each page from the system's cache into a small one of our own would take as long as all the
        rest. Who reads the file from end to end has no use for it, and would seem to take as much memory.
        """
        connection.exec_driver_sql(f"PRAGMA mmap_size = {_MAPPED_BYTES}").close()

    def expect_many_rows(self, connection: Connection) -> None:
        """A large cache: a page that is held need not be read and written again for each row."""
        connection.exec_driver_sql(f"PRAGMA cache_size = -{_CACHE_KIB}").close()

    def wipe(self, connection: Connection) -> None:
        """Has zeros written over it; in the full-text index and in the log it stays until `scrub`."""
        connection.exec_driver_sql("PRAGMA secure_delete = ON").close()

    def scrub(self) -> None:
        """Writes the full-text index anew, and folds the log into the file, unless somebody reads it."""
        with self.write() as connection:
            self.wipe(connection)
            connection.exec_driver_sql("INSERT INTO caption_fts (caption_fts) VALUES ('optimize')")
        with self.errors(), self._reader.connect() as connection:
            cursor = connection.connection.cursor()  # outside of a transaction
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def insert(self, table: type[Base]) -> sqlite.Insert:
        """SQLite's INSERT."""
        return sqlite.insert(table)

    def query(self, sql: str, *, limit: int | None, timeout_s: float) -> QueryResult:
        """See `Database.query`; on a connection of its own."""
        return SqliteQuery(self.path, sql, limit=limit, timeout_s=timeout_s)

    def schema_version(self) -> str | None:
        """See `Database.schema_version`; a file that turns out to be something else stays untouched."""
        return schema_version(self.path)

    def damage(self) -> Iterator[Finding]:
        """Pages and rows that can't be as they are."""
        return damage(self)

    def contradictions(self) -> Iterator[Finding]:
        """See `Database.contradictions`."""
        with self.read() as connection:
            yield from references(connection)
        yield from full_text(self.path)

    def checkpoint(self) -> None:
        """Folds the whole log into the file, which then holds all by itself.

        Raises:
            CatalogError: somebody reads what is in the log.
        """
        with self.errors(), self._reader.connect() as connection:
            cursor = connection.connection.cursor()  # outside of a transaction
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            (busy, *_) = cursor.fetchone() or (True,)
        if busy:
            raise CatalogError(f"another program uses {self.path}; end it, then run again")

    def prepare(self) -> None:
        """Makes the file's folder, and refuses one on a network file system."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CatalogError(os_error(error, self.path.parent, "make")) from error
        refuse_network_file_system(self.path.parent)

    def put_copy_aside(self, version: str) -> None:
        """Copies the file."""
        copy_aside(self.path, version)

    def admit_readers(self) -> None:
        """Nothing: whoever can read the file can ask it."""


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))
