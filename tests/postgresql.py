"""A PostgreSQL server for the tests: its own, in a temporary folder, reached through a socket there."""

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from batchcap.catalog import Catalog
from batchcap.catalog.tables import Base
from tests import programs

# Nothing need survive a power failure.
_SETTINGS = {
    "autovacuum": "off",
    "fsync": "off",
    "full_page_writes": "off",
    "jit": "off",
    "listen_addresses": "",
    "max_connections": "40",
    "max_wal_senders": "0",
    "shared_buffers": "16MB",
    "synchronous_commit": "off",
    "wal_level": "minimal",
}
# The server's own order of text is that of a dictionary, so that a column which forgot its own is noticed.
_DICTIONARY = "LOCALE_PROVIDER icu ICU_LOCALE 'en-US'"


class Server:
    """A server that runs.

    Args:
        folder: where its socket is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def url(self, database: str, user: str = "postgres") -> str:
        """The URL of one of its databases."""
        return f"postgresql+psycopg://{user}@/{database}?host={self._folder}"

    def execute(self, *statements: str, database: str = "postgres") -> None:
        """Runs statements, each in a transaction of its own."""
        with psycopg.connect(
            host=str(self._folder), user="postgres", dbname=database, autocommit=True
        ) as own:
            for statement in statements:
                own.execute(statement.encode())

    def new_database(self, template: str | None = None) -> str:
        """Makes a database, a copy of `template` or empty; returns its name."""
        name = f"test_{next(self._numbers)}"
        if template is None:
            like = f"TEMPLATE template0 ENCODING 'UTF8' {_DICTIONARY}"
        else:
            like = f"TEMPLATE {template}"
        self.execute(f"CREATE DATABASE {name} {like}")
        return name


class EmptyCatalogs:
    """Empty catalogs, one after the other: emptying one takes a tenth of the time of making one.

    Args:
        server: to make it on.
    """

    def __init__(self, server: Server) -> None:
        database = server.new_database()
        self._url = server.url(database)
        with Catalog.open(self._url, mode="write"):
            pass
        self._connection = psycopg.connect(
            self._url.replace("+psycopg", ""), autocommit=True, options="-c lock_timeout=10s"
        )
        self._version, self._release = self._connection.execute(
            "SELECT version_num, batchcap_version FROM alembic_version, catalog"
        ).fetchone()

    def new(self) -> str:
        """The URL of an empty catalog; the one before is gone."""
        tables = ", ".join(name for name in Base.metadata.tables if name != "catalog")
        self._connection.execute(f"TRUNCATE {tables} RESTART IDENTITY".encode())
        self._connection.execute("UPDATE alembic_version SET version_num = %s", (self._version,))
        self._connection.execute("UPDATE catalog SET batchcap_version = %s", (self._release,))
        return self._url

    def close(self) -> None:
        """Ends the connection that empties it."""
        self._connection.close()


def missing() -> str | None:
    """Why there can be no server here; None if there can."""
    return None if _program("postgres") and _program("initdb") else "no PostgreSQL server is installed"


def _program(name: str) -> str | None:
    """A program of the server: on the PATH, or where Debian puts it, the newest first."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, reversed(debian))))


@contextmanager
def running_server() -> Iterator[Server]:
    """A server for as long as it is needed. It ends with this process, however that ends."""
    # Short, for the path of a socket may be.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    # It refuses to be run by root.
    account = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    os.chown(folder, account.pw_uid, account.pw_gid)
    as_user = (
        {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
    )
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    try:
        subprocess.run(
            [_program("initdb"), "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8"]
            + ["--no-sync", "--no-instructions"],
            cwd=folder,
            env=environment,
            check=True,
            capture_output=True,
            **as_user,
        )
        settings = [f"-c{name}={value}" for name, value in _SETTINGS.items()]
        command = [_program("postgres"), "-D", folder / "data", "-k", folder, *settings]
        with programs.running(
            command,
            ready="ready to accept connections",
            signal="QUIT",
            cwd=folder,
            env=environment,
            **as_user,
        ):
            yield Server(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
