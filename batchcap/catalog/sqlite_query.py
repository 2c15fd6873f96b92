"""SQL by hand on SQLite: any question, no changes.

The connection can't write: the file is opened read-only, and an authorizer lets through what reads and
nothing else, so that no statement reaches another file either (ATTACH, VACUUM INTO).
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from batchcap.catalog.query import QueryResult
from batchcap.catalog.sqlite_file import database_error, raw_connection
from batchcap.errors import QueryError

# Pragmas that only tell. `data_version` is what FTS5 asks for by itself.
# fmt: off
_PRAGMAS = frozenset((
    "collation_list", "compile_options", "data_version", "database_list", "foreign_key_list",
    "function_list", "index_info", "index_list", "index_xinfo", "pragma_list", "table_info", "table_list",
    "table_xinfo",
))
# fmt: on
# One loads code, the other tells an address in memory.
_FUNCTIONS_REFUSED = frozenset(("load_extension", "fts3_tokenizer"))
# What goes wrong with the file or the disk, and not because of what was asked.
# fmt: off
_NOT_THE_QUERY = frozenset((
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY,
))
# fmt: on
# No value may be longer, so that `randomblob(1000000000)` does not fill the memory.
_MAX_VALUE_BYTES = 64 * 1024 * 1024
# Steps of SQLite's machine between two looks at the clock: well under a millisecond.
_STEPS = 10_000


class SqliteQuery(QueryResult):
    """A query on a connection of its own.

    Args:
        path: of the catalog.
        sql: one statement.
        limit: rows to give at most; None for all.
        timeout_s: how long SQLite may work on it. The time that the reader takes is not counted.

    Raises:
        QueryError: the statement is wrong or refused, or took too long; reading rows may raise it too.
    """

    def __init__(self, path: Path, sql: str, *, limit: int | None, timeout_s: float) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._left_s = timeout_s
        self._deadline = 0.0
        self._refused = False
        with self._working():
            self._connection = raw_connection(path, "ro")
        try:
            self._restrict()
            with self._working():
                self._cursor = self._connection.execute(sql)
            if self._cursor.description is None:
                raise QueryError("there is no query in that; write one SELECT statement")
        except BaseException:
            self.close()
            raise
        self.columns: list[str] = [description[0] for description in self._cursor.description]
        self.rows: Iterator[tuple[Any, ...]] = islice(self._read(), limit)

    def close(self) -> None:
        """Ends the query; rows that were not read are lost."""
        self._connection.close()

    def _restrict(self) -> None:
        self._connection.set_authorizer(self._authorize)
        self._connection.set_progress_handler(lambda: time.monotonic() > self._deadline, _STEPS)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
        # A cast may make text that is no UTF-8; a query shall not fail for one such value.
        self._connection.text_factory = lambda data: data.decode("utf-8", "replace")

    def _read(self) -> Iterator[tuple[Any, ...]]:
        while True:
            with self._working():
                row = self._cursor.fetchone()
            if row is None:
                self.close()
                return
            yield row

    @contextmanager
    def _working(self) -> Iterator[None]:
        """While SQLite works: its clock runs, and its errors become a QueryError."""
        started = time.monotonic()
        self._deadline = started + self._left_s
        try:
            yield
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            raise self._query_error(error) from error
        finally:
            self._left_s -= time.monotonic() - started

    def _query_error(self, error: Exception) -> QueryError:
        # The code alone won't do: after SQLite has read the schema it may say SQLITE_SCHEMA of any mistake.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if self._refused:
            return QueryError(f"only queries are allowed here, nothing that writes or sets: {error}")
        if code == sqlite3.SQLITE_INTERRUPT:
            return QueryError(f"the query took over {self._timeout_s:g} s; narrow it or allow it more time")
        if code == sqlite3.SQLITE_TOOBIG:
            return QueryError(f"a value of the query is over {_MAX_VALUE_BYTES:,} bytes; shorten it")
        if code in _NOT_THE_QUERY and isinstance(error, sqlite3.Error):
            return QueryError(str(database_error(error, self._path)))
        if "one statement at a time" in str(error):
            return QueryError("that is more than one statement; give one at a time")
        return QueryError(f"the query is wrong: {error}")

    def _authorize(
        self, action: int, name: str | None, detail: str | None, database: str | None, trigger: str | None
    ) -> int:
        """Whether a statement may do this; asked by SQLite while it compiles one."""
        if _only_reads(action, name, detail):
            return sqlite3.SQLITE_OK
        self._refused = True
        return sqlite3.SQLITE_DENY


def _only_reads(action: int, name: str | None, detail: str | None) -> bool:
    match action:
        case sqlite3.SQLITE_SELECT | sqlite3.SQLITE_READ | sqlite3.SQLITE_RECURSIVE:
            return True
        case sqlite3.SQLITE_FUNCTION:
            return detail not in _FUNCTIONS_REFUSED
        case sqlite3.SQLITE_PRAGMA:
            return name is not None and name.lower() in _PRAGMAS
        case sqlite3.SQLITE_UPDATE:
            # SQLite asks for this when it sets up a virtual table, such as the full-text index or json_each.
            # It refuses by itself a statement that says so, and the file can't be written anyway.
            return name == "sqlite_master"
        case _:
            return False
