"""The file of a SQLite catalog: its name, raw connections to it, its errors, its version, a copy of it."""

import errno
import os
import shutil
import sqlite3
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import URL

from batchcap.errors import CatalogDamagedError, CatalogError, CatalogUnavailableError

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


def catalog_path(url: URL) -> Path:
    """The file that a catalog's URL names.

    Args:
        url: `sqlite:///relative.db` or `sqlite:////absolute.db`.

    Raises:
        CatalogError: it names no file.
    """
    if not url.database or url.database == ":memory:" or url.query:
        raise CatalogError("a catalog is a file without options; use sqlite:///path/to/catalog.db")
    return Path(url.database).expanduser().absolute()


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


def is_bug(error: sqlite3.Error) -> bool:
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
            return CatalogUnavailableError(
                f"another program has kept the catalog at {path} locked for {BUSY_TIMEOUT_S:g} s; "
                "end it, then run again"
            )
        case sqlite3.SQLITE_CORRUPT:
            return CatalogDamagedError(
                f"the catalog at {path} is damaged ({error}); put a copy of it back, or make it again from "
                "the Parquet files: batchcap verify --rebuild"
            )
        case sqlite3.SQLITE_NOTADB:
            return CatalogDamagedError(
                f"{path} is not an SQLite database; name another file as the catalog or, if it was one, make "
                "it again from the Parquet files: batchcap verify --rebuild"
            )
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


def schema_version(path: Path) -> str | None:
    """The version of the catalog at this path; None if there is no file or nothing in it yet.

    Nothing is written, so that a file which turns out to be something else stays untouched.

    Raises:
        CatalogError: it can't be read, or is something else.
    """
    try:
        if not path.exists() or path.stat().st_size == 0:
            return None
    except OSError as error:
        raise CatalogError(os_error(error, path, "read")) from error
    try:
        with closing(raw_connection(path, "ro")) as connection:
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
            if not names:
                return None
            if not {"alembic_version", "catalog"} <= names:
                raise CatalogError(f"{path} is an SQLite database but no catalog of batchcap's")
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error as error:
        raise database_error(error, path) from error
    if row is None:
        raise CatalogError(f"the catalog at {path} has lost its version; put a copy of it back")
    return str(row[0])


def copy_aside(path: Path, version: str) -> Path:
    """Copies a catalog before it is migrated. The copy is whole, the log's content included.

    Returns:
        The path of the copy.
    """
    copy = path.with_name(f"{path.name}.{version}-{timestamp()}")
    try:
        free = shutil.disk_usage(path.parent).free
        if free < 2 * path.stat().st_size:
            raise CatalogError(
                f"the disk is too full to migrate {path}: a copy of it is made first; free some space"
            )
        with closing(raw_connection(path, "ro")) as source, closing(raw_connection(copy, "rwc")) as target:
            source.backup(target)
    except sqlite3.Error as error:
        raise database_error(error, copy) from error
    except OSError as error:
        raise CatalogError(os_error(error, copy, "write")) from error
    return copy


def timestamp() -> str:
    """The time now, as a part of a file's name that no other file has."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
