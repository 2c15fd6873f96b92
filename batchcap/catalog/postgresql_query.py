"""SQL by hand on PostgreSQL: any question, no changes.

Four things stand between a query and what it may not do. The transaction is read-only. It is answered as a
role that may read the catalog's tables and nothing else, whatever the user may who connected. The statement
goes to the server by the extended protocol, which takes one at a time, and as that of a cursor, which must be
a query. And the few functions are refused that would set something, the role above all, or that run SQL which
they are given as text, where the former could be hidden; for these alone the text itself is looked at.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import psycopg

from batchcap.catalog.query import QueryResult
from batchcap.errors import CatalogError, QueryError

# The role that queries are answered as.
READER = "batchcap_reader"

_FETCHED_ROWS = 1000
_LEADING = re.compile(r"(?:\s|\(|--[^\n]*(?:\n|$)|/\*.*?\*/)*", re.DOTALL)
# fmt: off
_STATEMENTS = frozenset((
    "abort", "alter", "analyse", "analyze", "begin", "call", "checkpoint", "close", "cluster", "comment",
    "commit", "copy", "create", "deallocate", "declare", "delete", "discard", "do", "drop", "end", "execute",
    "fetch", "grant", "import", "insert", "listen", "load", "lock", "merge", "move", "notify", "prepare",
    "reassign", "refresh", "reindex", "release", "reset", "revoke", "rollback", "savepoint", "security",
    "set", "show", "start", "truncate", "unlisten", "update", "vacuum",
))
# fmt: on
# They set something or run SQL that they are given as text. A quoted name with escapes could hide one.
_FUNCTIONS_REFUSED = re.compile(
    r"set_config|pg_(?:try_)?advisory_\w+|pg_notify|\w+_to_xml\w*|ts_stat|ts_rewrite|dblink\w*|crosstab\w*"
    r"|connectby|xpath_table|lo_\w+|u&\"",
    re.ASCII,
)
# A read-only transaction, no privilege.
_REFUSED_CODES = ("25006", "42501")
_REFUSED_WORDS = re.compile(
    rf'data-modifying|INTO is not allowed|at or near "(?:{"|".join(sorted(_STATEMENTS))})"', re.IGNORECASE
)


class PostgresQuery(QueryResult):
    """A query on a connection of its own.

    Args:
        connect: makes a connection, which is closed with the query.
        sql: one statement.
        limit: rows to give at most; None for all.
        timeout_s: how long PostgreSQL may work on it. The time that the reader takes is not counted.
        explain: turns what the driver raises into an error for people; None where it is the query's fault.

    Raises:
        QueryError: the statement is wrong or refused, or took too long; reading rows may raise it too.
    """

    def __init__(
        self,
        connect: "Callable[[], psycopg.Connection[tuple[Any, ...]]]",
        sql: str,
        *,
        limit: int | None,
        timeout_s: float,
        explain: Callable[[BaseException], CatalogError | None],
    ) -> None:
        self._explain = explain
        self._timeout_s = timeout_s
        self._left_s = timeout_s
        keyword = _look_at(sql)
        self._connection = connect()
        # No cursor of the server takes an EXPLAIN; `prepare` makes it go by the extended protocol.
        is_explain = keyword == "explain"
        self._cursor: psycopg.Cursor[Any] | psycopg.ServerCursor[Any] = (
            self._connection.cursor() if is_explain else self._connection.cursor("query")
        )
        try:
            self._begin()
            with self._working():
                if is_explain:
                    self._cursor.execute(sql.encode(), prepare=True)
                else:
                    self._cursor.execute(sql.encode())
        except BaseException:
            self.close()
            raise
        self.columns = [column.name for column in self._cursor.description or ()]
        self.rows = islice(self._read(), limit)

    def close(self) -> None:
        """Ends the query; rows that were not read are lost."""
        # The transaction is over, whatever becomes of the cursor.
        self._connection.close()
        self._cursor.close()

    def _begin(self) -> None:
        """Begins a transaction that can only read, as the role that can only read."""
        self._connection.autocommit = False
        self._connection.read_only = True
        try:
            self._connection.execute("SET LOCAL timezone TO 'UTC'")
            self._connection.execute(f"SET LOCAL ROLE {READER}".encode())
        except psycopg.Error as error:
            if error.sqlstate not in ("22023", "42501", "42704"):
                raise self._query_error(error) from error
            user = self._connection.info.user
            raise QueryError(
                f"SQL is answered here as the role {READER}, which {user} can't take: have an administrator "
                f"run CREATE ROLE {READER} NOLOGIN (if there is none) and GRANT {READER} TO {user}, "
                "then run `batchcap migrate` as the owner of the catalog"
            ) from error

    def _read(self) -> Iterator[tuple[Any, ...]]:
        while True:
            with self._working():
                rows = self._cursor.fetchmany(_FETCHED_ROWS)
            yield from rows
            if len(rows) < _FETCHED_ROWS:
                self.close()
                return

    @contextmanager
    def _working(self) -> Iterator[None]:
        """While PostgreSQL works: its clock runs, and its errors become a QueryError."""
        left_ms = max(1, round(self._left_s * 1000))
        started = time.monotonic()
        try:
            self._connection.execute(f"SET LOCAL statement_timeout TO {left_ms}".encode())
            started = time.monotonic()
            yield
        except psycopg.Error as error:
            raise self._query_error(error) from error
        finally:
            self._left_s -= time.monotonic() - started

    def _query_error(self, error: psycopg.Error) -> QueryError:
        said = " ".join((error.diag.message_primary or str(error)).split())
        if error.sqlstate in _REFUSED_CODES or _REFUSED_WORDS.search(said):
            return _refusal(said)
        if error.sqlstate == "57014":
            return QueryError(f"the query took over {self._timeout_s:g} s; narrow it or allow it more time")
        if "multiple commands" in said:
            return QueryError("that is more than one statement; give one at a time")
        known = self._explain(error)
        # Of a server that can't go on; all else is what was asked.
        if known is not None and (error.sqlstate is None or error.sqlstate[:2] in ("53", "57", "58", "XX")):
            return QueryError(str(known))
        return QueryError(f"the query is wrong: {said}")


def _refusal(what: str) -> QueryError:
    return QueryError(f"only queries are allowed here, nothing that writes or sets: {what}")


def _look_at(sql: str) -> str:
    """The first word of a statement, in lower case.

    Raises:
        QueryError: there is none, it begins what is no query, or a function is named that is refused.
    """
    if "\0" in sql:
        raise QueryError("the query is wrong: it holds a NUL character")
    try:
        sql.encode()
    except UnicodeEncodeError as error:
        raise QueryError(f"the query is wrong: {error.reason}") from error
    rest = sql[_LEADING.match(sql).end() :]  # type: ignore[union-attr]  # it matches the empty string too
    word = re.match(r"\w*", rest)
    keyword = word.group().lower() if word else ""
    if not rest.strip("; \t\r\n"):
        raise QueryError("there is no query in that; write one SELECT statement")
    if keyword in _STATEMENTS:
        raise _refusal(keyword.upper())
    if refused := _FUNCTIONS_REFUSED.search(sql.lower()):
        raise _refusal(refused.group())
    return keyword
