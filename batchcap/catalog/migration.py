"""The version of a catalog: reading it, refusing what doesn't fit, creating and migrating.

Alembic does the work, but it is slow to import and needed only here, so a command that only reads looks
the version up itself.
"""

import sys
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import DBAPIError

import batchcap
from batchcap.catalog import tables
from batchcap.catalog.connection import Database
from batchcap.catalog.resources import sql_directory
from batchcap.errors import CatalogError, CatalogVersionError, NoCatalogError

if TYPE_CHECKING:
    from alembic.config import Config

# The newest migration; a test compares it with the files. Versions are numbers of four digits.
SCHEMA_VERSION = "0004"


def require_current(database: Database) -> None:
    """Checks that a reader can use the catalog in this database.

    Raises:
        CatalogError: there is none.
        CatalogVersionError: it is older or newer than this batchcap.
    """
    version = database.schema_version()
    if version is None:
        raise NoCatalogError(
            f"no catalog at {database.label}; run `batchcap index` first or, if it is lost, "
            "`batchcap verify --rebuild`"
        )
    refuse_newer(database, version)
    if version < SCHEMA_VERSION:
        raise CatalogVersionError(
            f"the catalog at {database.label} has schema {version}, this batchcap needs {SCHEMA_VERSION}; "
            "run `batchcap migrate`"
        )


def make_current(database: Database) -> None:
    """Creates the catalog in this database, or migrates it, if it needs that.

    Args:
        database: opened for writing.

    Raises:
        CatalogBusyError: it needs that, and a run is working on it.
        CatalogVersionError: it is newer than this batchcap.
    """
    database.prepare()
    if database.schema_version() != SCHEMA_VERSION:
        with database.lock():
            # Look again: whoever held the lock until now may have done it.
            version = database.schema_version()
            if version is None:
                create(database, str(uuid.uuid4()))
            elif version != SCHEMA_VERSION:
                refuse_newer(database, version)
                database.put_copy_aside(version)
                with database.write() as connection:
                    upgrade(connection)
                    release = {"batchcap_version": batchcap.__version__}
                    connection.execute(update(tables.CatalogInfo).values(release))
    database.admit_readers()


def create(database: Database, catalog_uuid: str) -> None:
    """Makes an empty catalog of an empty database, in one transaction.

    Args:
        database: opened for writing.
        catalog_uuid: the identity of the catalog.
    """
    with database.write() as connection:
        fill(connection, catalog_uuid)


def fill(connection: Connection, catalog_uuid: str) -> None:
    """Makes an empty catalog, in the transaction of `connection`; see `create`."""
    info = {"id": 1, "uuid": catalog_uuid, "created_at": tables.utc_now()}
    upgrade(connection)
    connection.execute(insert(tables.CatalogInfo), {**info, "batchcap_version": batchcap.__version__})


def refuse_newer(database: Database, version: str) -> None:
    """Refuses a catalog that a newer batchcap made, and names the version to install.

    Raises:
        CatalogVersionError: it is newer.
    """
    if version <= SCHEMA_VERSION:
        return
    release = None
    # A later schema may keep it elsewhere; the refusal matters more than the advice.
    with suppress(CatalogError, DBAPIError), database.read() as connection:
        release = connection.scalar(select(tables.CatalogInfo.batchcap_version))
    raise CatalogVersionError(
        f"the catalog at {database.label} has schema {version}, this batchcap {batchcap.__version__} knows "
        f"up to {SCHEMA_VERSION}; install batchcap "
        + (f"{release} or newer" if release else "in its newest version")
    )


def upgrade(connection: Connection) -> None:
    """Runs the migrations that are missing, in the transaction of `connection`."""
    from alembic import command

    command.upgrade(alembic_config(connection), "head")


def alembic_config(connection: Connection | None) -> "Config":
    """Alembic's configuration for this connection, or for none; there is no ini file."""
    from alembic.config import Config

    # By default it writes where stdout was when it was imported, which may be closed by now.
    config = Config(stdout=sys.stdout)
    # The value goes through ConfigParser's interpolation.
    config.set_main_option("script_location", str(sql_directory()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
