"""PostgreSQL: a catalog on a server, for several machines or people. Imported only where a URL names one.

What sorts text does so by code points, for every column has the collation "C". A run holds an advisory lock
on a connection of its own, which the server gives back when that connection ends, however it ends. No copy is
put aside before a migration: it happens in one transaction, and a server has backups of its own.
"""

import hashlib
import os
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import (
    URL,
    Connection,
    Float,
    bindparam,
    cast,
    create_engine,
    exists,
    func,
    literal_column,
    select,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError

from batchcap.catalog.connection import Database
from batchcap.catalog.findings import Finding, FindingKind
from batchcap.catalog.fulltext import EXPRESSION, FullText, Syntax
from batchcap.catalog.postgresql_query import READER, PostgresQuery
from batchcap.catalog.query import QueryResult
from batchcap.catalog.tables import Base, Caption, Shown
from batchcap.errors import CatalogBusyError, CatalogDamagedError, CatalogError, CatalogUnavailableError

if TYPE_CHECKING:
    from batchcap.catalog.connection import Insert

CONNECT_TIMEOUT_S = 10
# The first with columns that are computed of others, as the full-text index is.
_OLDEST_SERVER = 120_000
# How long a run waits for the lock: a server takes a moment to see that its holder has died.
_LOCK_TIMEOUT_MS = 1000
# How long a transaction that edits waits for one of a run, or for a migration.
EDIT_TIMEOUT_MS = 10_000
# The connection that holds the lock is idle for days. If its machine goes away, it is free in two minutes.
_LOCK_SETTINGS = {
    "lock_timeout": str(_LOCK_TIMEOUT_MS),
    "idle_session_timeout": "0",
    "tcp_keepalives_idle": "60",
    "tcp_keepalives_interval": "15",
    "tcp_keepalives_count": "4",
}
# PostgreSQL cuts an application's name at so many bytes.
_NAME_BYTES = 63
# Longer words are cut, in the index (by the migration) as here: PostgreSQL takes up to 2,046 bytes.
_WORD_LENGTH = 500

_VECTOR: Any = literal_column("shown.search_vector", postgresql.TSVECTOR())
_QUERY = cast(EXPRESSION, postgresql.TSQUERY())
_MATCHES = _VECTOR.bool_op("@@")(_QUERY)


# Who writes names rows by their keys. Plans of prepared statements are kept, and those that were made while a
# table was small would go on reading it from end to end when it no longer is.
_BY_INDEX = text(
    "SELECT set_config(name, 'off', true) "
    "FROM unnest(ARRAY['enable_seqscan', 'enable_hashjoin', 'enable_mergejoin']) AS name"
)

# Who searches. Compiling what the server thinks dear takes longer than it saves here; and a plan that is to
# do for any words, as prepared statements get one, takes all of them for rare.
_SEARCHING = text(
    "SELECT set_config('jit', 'off', true), set_config('plan_cache_mode', 'force_custom_plan', true)"
)


def _quoted(word: str) -> str:
    """A word as tsquery has it: taken as it is, and never for an operator."""
    return f"'{word[:_WORD_LENGTH]}'"


_TSQUERY = Syntax(
    both=" & ",
    either=" | ",
    without=" & !",
    phrase=lambda words: f"({' <-> '.join(map(_quoted, words))})",
    beginning=lambda letters: f"{_quoted(letters)}:*",
)


class PostgresDatabase(Database):
    """A database of a server, or one schema of it: the first of the search path.

    Args:
        url: with whatever options libpq has, such as `sslmode`.
        writable: whether transactions may write.

    Raises:
        CatalogError: the URL can't be meant so.
    """

    name = "postgresql"
    driver_error = psycopg.Error
    full_text = FullText(
        syntax=_TSQUERY,
        shown=Shown.__table__,
        caption_id=Shown.__table__.c.caption_id,
        matches=_MATCHES,
        lacks=~exists().where(Shown.caption_id == Caption.id, _MATCHES).correlate(Caption),
        # 2: divided by the number of words, as SQLite's does in effect.
        score=func.ts_rank(_VECTOR, _QUERY, 2, type_=Float()),
    )

    def __init__(self, url: URL, *, writable: bool) -> None:
        if url.get_driver_name() not in ("psycopg", "psycopg2") or "psycopg2" in url.drivername:
            raise CatalogError("PostgreSQL is used with psycopg 3; write postgresql+psycopg://…")
        if "@" in (url.host or ""):
            raise CatalogError("the catalog's URL has two @; write %40 for one in the password")
        if not url.database:
            raise CatalogError(
                "the catalog's URL names no database; write postgresql+psycopg://user@host/database"
            )
        url = url.set(drivername="postgresql+psycopg")
        defaults = {
            "application_name": "batchcap",
            "client_encoding": "utf8",
            "connect_timeout": str(CONNECT_TIMEOUT_S),
        }
        url = url.update_query_dict({name: of for name, of in defaults.items() if name not in url.query})
        # Asking for the type hstore would cost each connection a statement.
        engine = create_engine(url, pool_pre_ping=True, use_native_hstore=False)
        self._connect_options = dict(engine.dialect.create_connect_args(url)[1])
        super().__init__(
            _label(url),
            writable=writable,
            # One state of the catalog for all statements of a transaction.
            reader=engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True),
            # Here each statement sees what others have committed, which `Run` needs: of two runs that both
            # take themselves for the owner, the one that was taken over waits for the other, and sees it.
            writer=engine.execution_options(isolation_level="READ COMMITTED"),
        )

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """See `Database.write`."""
        with super().write() as connection:
            connection.execute(_BY_INDEX)
            yield connection

    def catalog_error(self, error: BaseException | None) -> CatalogError | None:
        """See `Database.catalog_error`."""
        if not isinstance(error, psycopg.Error) or _is_bug(error):
            return None
        return _database_error(error, self.label)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """An advisory lock on a connection of its own; see `Database.lock`."""
        with self.errors():
            with self.read() as reading:
                key = _lock_key(_schema(reading))
            connection = self._connect(application_name=_signature())
        # What is held ends with the connection.
        with closing(connection):
            with self.errors():
                for name, setting in _LOCK_SETTINGS.items():
                    # Through pg_settings: an older server doesn't know them all.
                    known = "SELECT set_config(name, %s, false) FROM pg_settings WHERE name = %s"
                    connection.execute(known, (setting, name))
                try:
                    connection.execute("SELECT pg_advisory_lock(%s)", (key,))
                except psycopg.errors.LockNotAvailable:
                    raise CatalogBusyError(
                        f"{_holder(connection, key)} is working on the catalog at {self.label}; "
                        "wait for it to end or stop it"
                    ) from None
            yield

    def fence(self, connection: Connection) -> None:
        """A lock that the UPDATE of `run` waits for with which every commit begins.

        Without it a commit could make a model's caption the live one of an image in the very moment in which
        a person's becomes it: an UPDATE that waits for a row looks at that row again, but not at others.
        """
        connection.execute(
            text("SELECT set_config('lock_timeout', :timeout, true)"), {"timeout": str(EDIT_TIMEOUT_MS)}
        )
        connection.execute(text("LOCK TABLE run IN SHARE ROW EXCLUSIVE MODE"))

    def expect_lookups(self, connection: Connection) -> None:
        """Sets what a search needs; see `Database.expect_lookups`."""
        connection.execute(_SEARCHING)

    def expect_many_rows(self, connection: Connection) -> None:
        """Nothing: how much memory there is for that is the server's business."""

    def wipe(self, connection: Connection) -> None:
        """Nothing: that is the server's, which vacuums its tables."""

    def scrub(self) -> None:
        """Nothing: see `wipe`."""

    def insert(self, table: type[Base]) -> postgresql.Insert:
        """PostgreSQL's INSERT."""
        return postgresql.insert(table)

    def insert_rows(
        self, connection: Connection, insert: "Insert", rows: Sequence[Mapping[str, Any]], *, key: str
    ) -> None:
        """One statement for all rows, which go as an array a column: half the time of one for each.

        ON CONFLICT can't change what the same statement has inserted, so a second row of a key has to wait
        for the next.
        """
        columns = [insert.table.c[name] for name in rows[0]]
        for turn in _turns(rows, key):
            arrays = [
                bindparam(None, [row[column.name] for row in turn], postgresql.ARRAY(column.type))
                for column in columns
            ]
            source = func.unnest(*arrays).table_valued(*(column.name for column in columns)).render_derived()
            connection.execute(insert.from_select([column.name for column in columns], select(source)))

    def query(self, sql: str, *, limit: int | None, timeout_s: float) -> QueryResult:
        """See `Database.query`; on a connection of its own."""
        with self.errors():
            return PostgresQuery(
                self._connect, sql, limit=limit, timeout_s=timeout_s, explain=self.catalog_error
            )

    def schema_version(self) -> str | None:
        """See `Database.schema_version`."""
        names = ("alembic_version", *Base.metadata.tables)
        with self.read() as connection:
            there = {
                name for name in names if connection.scalar(text("SELECT to_regclass(:name)"), {"name": name})
            }
            if not there:
                return None
            if not {"alembic_version", "catalog"} <= there:
                raise CatalogError(
                    f"the database at {self.label} has tables of something else: {', '.join(sorted(there))}; "
                    "name another, or a schema of its own: add ?options=-csearch_path%3Dbatchcap to the URL"
                )
            version = connection.scalar(text("SELECT version_num FROM alembic_version"))
        if version is None:
            raise CatalogError(f"the catalog at {self.label} has lost its version; restore a backup of it")
        return str(version)

    def damage(self) -> Iterator[Finding]:
        """Nothing: a server looks after its own storage, and its users can't."""
        return iter(())

    def contradictions(self) -> Iterator[Finding]:
        """The full-text index; references are the server's own business."""
        differs = text(
            "SELECT id FROM caption JOIN shown ON caption_id = id "
            "WHERE search_vector <> batchcap_search_vector(search_text) ORDER BY id"
        )
        with self.read() as connection:
            for caption_id in connection.scalars(differs):
                detail = "the index has other words than it"
                yield Finding(FindingKind.FULL_TEXT, f"caption {caption_id}", detail)

    def prepare(self) -> None:
        """Refuses a server or a database that can't hold a catalog."""
        statement = text(
            "SELECT current_setting('server_version_num')::int, current_setting('server_encoding'), "
            "current_schema()"
        )
        with self.read() as connection:
            version, encoding, schema = connection.execute(statement).one()
        if version < _OLDEST_SERVER:
            raise CatalogError(
                f"the server at {self.label} is PostgreSQL {version // 10_000}; "
                f"use {_OLDEST_SERVER // 10_000} or newer"
            )
        if encoding != "UTF8":
            raise CatalogError(
                f"the database at {self.label} has the encoding {encoding}; make one with ENCODING 'UTF8'"
            )
        if schema is None:
            raise CatalogError(
                f"the database at {self.label} has no schema of your search path; make it: CREATE SCHEMA …"
            )

    def put_copy_aside(self, version: str) -> None:
        """Nothing: see above."""

    def admit_readers(self) -> None:
        """Makes the role that queries are answered as, and grants it to read the catalog and no more."""
        with self.write() as connection:
            names = [*Base.metadata.tables, "captions"]
            (exists, is_ours, can_read) = connection.execute(
                text(_READER_STATE), {"role": READER, "names": names}
            ).one()
            schema = _schema(connection)
            tables = ", ".join(f"{schema}.{name}" for name in names)
            if not exists:
                exists = is_ours = _attempt(
                    connection, f"CREATE ROLE {READER} NOLOGIN", f"GRANT {READER} TO CURRENT_USER"
                )
            elif not is_ours:
                _attempt(connection, f"GRANT {READER} TO CURRENT_USER")
            if exists and not can_read:
                _attempt(
                    connection,
                    f"GRANT USAGE ON SCHEMA {schema} TO {READER}",
                    f"GRANT SELECT ON {tables} TO {READER}",
                )

    def _connect(self, **options: str) -> "psycopg.Connection[tuple[Any, ...]]":
        """A connection outside of the pool, in autocommit."""
        return psycopg.connect(**self._connect_options | options, autocommit=True)


_READER_STATE = """\
SELECT role.oid IS NOT NULL,
       coalesce(pg_has_role(role.oid, 'MEMBER'), false),
       (SELECT bool_and(coalesce(has_table_privilege(role.oid, to_regclass(name), 'SELECT'), false))
        FROM unnest(CAST(:names AS text[])) AS name)
FROM (VALUES (1)) AS one LEFT JOIN pg_roles AS role ON role.rolname = :role"""


def _attempt(connection: Connection, *statements: str) -> bool:
    """Runs statements, all or none; False if this user may not, or another program was faster."""
    with suppress(DBAPIError), connection.begin_nested():
        for statement in statements:
            connection.exec_driver_sql(statement)
        return True
    return False


def _turns(rows: Sequence[Mapping[str, Any]], key: str) -> list[list[Mapping[str, Any]]]:
    """The rows in as few lists as no key is twice in, and those of one key in their order."""
    turns: list[list[Mapping[str, Any]]] = []
    met: Counter[Any] = Counter()
    for row in rows:
        if met[row[key]] == len(turns):
            turns.append([])
        turns[met[row[key]]].append(row)
        met[row[key]] += 1
    return turns


def _label(url: URL) -> str:
    """What people know a database by: no password, and no options, for these may hold one too."""
    host = url.host or url.query.get("host") or "localhost"
    place = host if isinstance(host, str) else ",".join(host)
    return f"postgresql://{place}{f':{url.port}' if url.port else ''}/{url.database}"


def _schema(connection: Connection) -> str:
    """The schema, quoted, that the catalog is in or would be made in."""
    statement = text(
        "SELECT coalesce((SELECT relnamespace::regnamespace::text FROM pg_class "
        "WHERE oid = to_regclass('catalog')), quote_ident(current_schema()))"
    )
    return str(connection.scalar(statement))


def _lock_key(schema: str) -> int:
    """The number of the lock: int64, and hardly that of another program in the same database."""
    digest = hashlib.sha256(f"batchcap catalog in {schema}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)


def _signature() -> str:
    """Who holds the lock, as the connection's name, which everybody may read."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    # The host comes last, for it may be cut.
    return f"batchcap {os.getpid()} {started} {socket.gethostname()}".encode()[:_NAME_BYTES].decode(
        errors="ignore"
    )


def _holder(connection: "psycopg.Connection[tuple[Any, ...]]", key: int) -> str:
    """Who holds the lock, in words."""
    found = connection.execute(
        "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid) "
        "WHERE locktype = 'advisory' AND granted AND objsubid = 1 "
        "AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
        "AND (classid::bigint << 32) | objid::bigint = %s",
        (key,),
    ).fetchone()
    match str(found[0]).split(" ", 3) if found else []:
        case ["batchcap", pid, started, host]:
            return f"process {pid} on {host} (since {started.replace('T', ' ')})"
        case _:
            # It ended just now, or a pooler gave the connection another name.
            return "another process"


def _is_bug(error: psycopg.Error) -> bool:
    """Whether an error speaks of our own statements rather than of the world."""
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return False
    # The driver's own: of options of the URL, of a connection that fails; but also of values.
    if error.sqlstate is None:
        return isinstance(error, (psycopg.InterfaceError, psycopg.DataError))
    return isinstance(
        error, (psycopg.IntegrityError, psycopg.ProgrammingError, psycopg.DataError, psycopg.InterfaceError)
    )


def _database_error(error: psycopg.Error, label: str) -> CatalogError:
    """One line for a person: what is wrong and what to do."""
    said = " ".join((error.diag.message_primary or str(error)).split())
    match error.sqlstate:
        # Of the driver, which can't tell a server that starts again from a wrong address; of a server that
        # stops, starts or has no connection left.
        case None | "53300" | "57P01" | "57P02" | "57P03":
            return CatalogUnavailableError(
                f"can't reach the catalog at {label}: {said}; check server, address, user and password, "
                "then run again"
            )
        case "55P03":
            return CatalogUnavailableError(
                f"another program has kept the catalog at {label} locked for {EDIT_TIMEOUT_MS / 1000:g} s; "
                "try again later, or end it"
            )
        case "53100":
            message = f"the disk of the server at {label} is full; free some space, then run again"
        case "42501":
            message = f"the catalog at {label} can't be used by this user: {said}; have it granted"
        case "25006":
            message = f"the server at {label} is read-only, as a standby is; name the one that can be written"
        case "XX001" | "XX002":
            return CatalogDamagedError(f"the catalog at {label} is damaged ({said}); restore a backup of it")
        case _:
            message = f"the catalog at {label} can't be used: {said}"
    return CatalogError(message)
