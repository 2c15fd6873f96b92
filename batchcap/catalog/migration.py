"""The version of a catalog: reading it, refusing what doesn't fit, creating and migrating.

Alembic does the work, but it is slow to import and needed only here, so a command that only reads looks
the version up itself.
"""

import shutil
import sqlite3
import uuid
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, update

import batchcap
from batchcap.catalog import tables
from batchcap.catalog.connection import (
    Database,
    database_error,
    insert,
    os_error,
    raw_connection,
    refuse_network_file_system,
)
from batchcap.catalog.lock import catalog_lock
from batchcap.catalog.resources import sql_directory
from batchcap.errors import CatalogError, CatalogVersionError

if TYPE_CHECKING:
    from alembic.config import Config

# The newest migration; a test compares it with the files. Versions are numbers of four digits.
SCHEMA_VERSION = "0001"


def require_current(path: Path) -> None:
    """Checks that a reader can use the catalog at this path.

    Raises:
        CatalogError: there is none.
        CatalogVersionError: it is older or newer than this batchcap.
    """
    version = schema_version(path)
    if version is None:
        raise CatalogError(f"no catalog at {path}; run `batchcap index` first")
    refuse_newer(path, version)
    if version < SCHEMA_VERSION:
        raise CatalogVersionError(
            f"the catalog at {path} has schema {version}, this batchcap needs {SCHEMA_VERSION}; "
            "run `batchcap migrate`"
        )


def make_current(path: Path) -> None:
    """Creates the catalog at this path, or migrates it, if it needs that. Its folder is made too.

    Raises:
        CatalogBusyError: it needs that, and a run is working on it.
        CatalogVersionError: it is newer than this batchcap.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CatalogError(os_error(error, path.parent, "make")) from error
    refuse_network_file_system(path.parent)
    if schema_version(path) == SCHEMA_VERSION:
        return
    with catalog_lock(path):
        # Look again: whoever held the lock until now may have done it.
        version = schema_version(path)
        if version is not None:
            refuse_newer(path, version)
        if version == SCHEMA_VERSION:
            return
        if version is not None:
            copy_aside(path, version)
        database = Database(path, writable=True)
        try:
            with database.write() as connection:
                upgrade(connection)
                if version is None:
                    info = {"id": 1, "uuid": str(uuid.uuid4()), "created_at": tables.utc_now()}
                    connection.execute(
                        insert(tables.CatalogInfo), {**info, "batchcap_version": batchcap.__version__}
                    )
                else:
                    connection.execute(
                        update(tables.CatalogInfo).values(batchcap_version=batchcap.__version__)
                    )
        finally:
            database.close()


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


def refuse_newer(path: Path, version: str) -> None:
    """Refuses a catalog that a newer batchcap made, and names the version to install.

    Raises:
        CatalogVersionError: it is newer.
    """
    if version <= SCHEMA_VERSION:
        return
    release = None
    try:
        with closing(raw_connection(path, "ro")) as connection:
            (release,) = connection.execute("SELECT batchcap_version FROM catalog").fetchone()
    except (sqlite3.Error, TypeError):
        # A later schema may keep it elsewhere; the refusal matters more than the advice.
        release = None
    raise CatalogVersionError(
        f"the catalog at {path} has schema {version}, this batchcap {batchcap.__version__} knows up to "
        f"{SCHEMA_VERSION}; install batchcap {f'{release} or newer' if release else 'in its newest version'}"
    )


def copy_aside(path: Path, version: str) -> Path:
    """Copies a catalog before it is migrated. The copy is whole, the log's content included.

    Returns:
        The path of the copy.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    copy = path.with_name(f"{path.name}.{version}-{stamp}")
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


def upgrade(connection: Connection) -> None:
    """Runs the migrations that are missing, in the transaction of `connection`."""
    from alembic import command

    command.upgrade(alembic_config(connection), "head")


def alembic_config(connection: Connection) -> "Config":
    """Alembic's configuration for this connection; there is no ini file."""
    from alembic.config import Config

    config = Config()
    # The value goes through ConfigParser's interpolation.
    config.set_main_option("script_location", str(sql_directory()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
