"""SQLite: opening it, its transactions, its errors. What another database does otherwise belongs here.

A catalog is a file in WAL mode: readers never wait for the run that writes, and see one state of it.
Python's driver opens transactions late and on its own terms, so it is told to keep out of it
(`isolation_level=None`), and the transactions begin here: `BEGIN` to read, `BEGIN IMMEDIATE` to write. The
latter takes the lock at once; a transaction that read first and then wanted it could only fail.
"""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import QueuePool

from batchcap.errors import CatalogError

__all__ = ["Database", "catalog_path", "database_error", "insert", "os_error"]

# How long a statement waits for another program's transaction.
BUSY_TIMEOUT_S = 10.0

# WAL keeps its index in shared memory, which these file systems can't share between machines.
# fmt: off
_NETWORK_FILE_SYSTEMS = frozenset((
    "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.gcsfuse", "fuse.glusterfs", "fuse.rclone",
    "fuse.s3fs", "fuse.sshfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2",
    "smb3", "smbfs",
))
# fmt: on


def catalog_path(url: str) -> Path:
    """The file that a catalog's URL names.

    Args:
        url: `sqlite:///relative.db` or `sqlite:////absolute.db`.

    Raises:
        CatalogError: no URL, another database, or a database that is no file.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise CatalogError(f"{url!r} is not a catalog's URL; write sqlite:///path/to/catalog.db") from None
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        raise CatalogError("PostgreSQL isn't supported yet; use sqlite:///path/to/catalog.db")
    if backend != "sqlite":
        raise CatalogError(f"{backend} isn't supported; use sqlite:///path/to/catalog.db")
    if not parsed.database or parsed.database == ":memory:" or parsed.query:
        raise CatalogError("a catalog is a file without options; use sqlite:///path/to/catalog.db")
    return Path(parsed.database).expanduser().absolute()


class Database:
    """One SQLite file: short read transactions, and write transactions that own it.

    Args:
        path: of the file; it must exist unless `writable`.
        writable: whether transactions may write. A reader can't, whatever SQL it sends.
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.path = path
        self.writable = writable
        self._engine: Engine = create_engine(
            URL.create("sqlite", database=str(path)),
            creator=self._connect,
            # The default for files; spelled out because short transactions shall not open files anew.
            poolclass=QueuePool,
        )
        event.listen(self._engine, "begin", _begin)
        # One engine, one pool: an option of the connection says which way the transaction begins.
        self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")

    def _connect(self) -> sqlite3.Connection:
        connection = raw_connection(self.path, "rwc" if self.writable else "ro")
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            if self.writable:
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

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read transaction: one state of the catalog. Keep it short, or the log grows behind it."""
        with self.errors(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A write transaction: whole at its end, or not at all."""
        if not self.writable:
            raise CatalogError(f"the catalog at {self.path} was opened for reading only")
        with self.errors(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns what the database says of the disk, of locks or of damage into a CatalogError.

        Errors of our own making, such as a violated constraint, stay what they are: they are bugs.
        """
        try:
            yield
        except DBAPIError as error:
            if not isinstance(error.orig, sqlite3.Error):
                raise
            if _is_bug(error.orig):
                raise
            raise database_error(error.orig, self.path) from error
        except sqlite3.Error as error:
            if _is_bug(error):
                raise
            raise database_error(error, self.path) from error

    def close(self) -> None:
        """Closes the connections. The last one to close folds the log into the file."""
        self._engine.dispose()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


def raw_connection(path: Path, mode: str) -> sqlite3.Connection:
    """A connection of Python's own driver, in autocommit.

    Args:
        path: of the file; any name is fine, `?`, `#` and `%` included.
        mode: SQLite's, "ro" or "rwc".
    """
    return sqlite3.connect(
        f"{path.as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        timeout=BUSY_TIMEOUT_S,
        # The pool hands a connection to one thread at a time.
        check_same_thread=False,
    )


def _is_bug(error: sqlite3.Error) -> bool:
    """Whether an error speaks of our own statements rather than of the world."""
    return isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError))


def database_error(error: sqlite3.Error, path: Path) -> CatalogError:
    """One line for a person: what is wrong and what to do.

    Args:
        error: what SQLite raised.
        path: of the catalog.
    """
    # The low byte of an extended code is the kind of error.
    match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF:
        case sqlite3.SQLITE_FULL:
            message = f"the disk is full: the catalog at {path} can't grow; free some space, then run again"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            message = (
                f"another program has kept the catalog at {path} locked for {BUSY_TIMEOUT_S:g} s; "
                "end it, then run again"
            )
        case sqlite3.SQLITE_CORRUPT:
            message = f"the catalog at {path} is damaged ({error}); put a copy of it back"
        case sqlite3.SQLITE_NOTADB:
            message = f"{path} is not an SQLite database; name another file as the catalog"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            message = f"the catalog at {path} can't be written: check the permissions of it and its folder"
        case sqlite3.SQLITE_CANTOPEN:
            message = f"the catalog at {path} can't be opened: check that it exists and its permissions"
        case sqlite3.SQLITE_IOERR:
            message = f"the disk failed under the catalog at {path} ({error}); check it, then run again"
        case _:
            message = f"the catalog at {path} can't be used: {error}"
    return CatalogError(message)


def os_error(error: OSError, path: Path, doing: str) -> str:
    """One line for a person: what could not be done with a file, why, and what to do.

    Args:
        error: what the operating system said.
        path: of the file or folder.
        doing: what was tried, such as "write".
    """
    advice = {
        errno.ENOSPC: "free some space, then run again",
        errno.EDQUOT: "free some space, then run again",
        errno.EACCES: "check its permissions",
        errno.EPERM: "check its permissions",
        errno.EROFS: "choose a place that can be written",
        errno.EIO: "check the disk",
    }.get(error.errno or 0, "check the path and the disk")
    return f"can't {doing} {path}: {error.strerror or error}; {advice}"


def refuse_network_file_system(folder: Path, *, mount_table: Path = Path("/proc/self/mounts")) -> None:
    """Refuses a folder on a network file system, as far as the system tells.

    Args:
        folder: where the catalog is to be; it exists.
        mount_table: what is mounted where. Only Linux has this file; elsewhere SQLite's own answer to
            `journal_mode = WAL` must do.

    Raises:
        CatalogError: it is on one of the known network file systems.
    """
    mounts: list[tuple[str, str]] = []
    with suppress(OSError):
        for line in mount_table.read_text(encoding="utf-8", errors="replace").splitlines():
            _, mount_point, kind, *_ = line.split(" ")
            mounts.append((mount_point.replace("\\040", " "), kind))
    real = os.path.realpath(folder)
    holding = [mount for mount in mounts if os.path.commonpath([mount[0], real]) == mount[0]]
    # The longest path is the innermost mount; of two on one path the later covers the earlier.
    kind = max(enumerate(holding), key=lambda item: (len(item[1][0]), item[0]))[1][1] if holding else ""
    if kind in _NETWORK_FILE_SYSTEMS:
        raise CatalogError(
            f"{folder} is on a network file system ({kind}), where SQLite isn't safe; "
            "name a file on a local disk as the catalog"
        )
