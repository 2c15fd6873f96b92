"""The lock of a catalog in SQLite: one run, or one migration, at a time.

It is an advisory lock (`flock`) on a file beside the catalog. The kernel gives it back when its holder
dies, however it dies, so there is no stale lock to clear; the file itself stays, because removing it would
let two holders lock two files of one name. What the file says is for people only.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from batchcap.catalog.sqlite_file import os_error
from batchcap.errors import CatalogBusyError, CatalogError


@contextmanager
def catalog_lock(catalog: Path) -> Iterator[None]:
    """Holds the lock of the catalog at this path.

    A child process that is forked, and not started afresh, holds it too, until it ends.

    Raises:
        CatalogBusyError: someone else holds it; says who.
        CatalogError: the file can't be made or locked.
    """
    path = catalog.with_name(catalog.name + ".lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise CatalogError(os_error(error, path, "open the lock")) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CatalogBusyError(
                f"{_holder(descriptor)} is working on the catalog at {catalog}; wait for it to end or stop it"
            ) from None
        except OSError as error:
            raise CatalogError(os_error(error, path, "lock")) from error
        try:
            _sign(descriptor)
            yield
        finally:
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _sign(descriptor: int) -> None:
    """Writes who holds the lock. Not worth an error: a full disk shows soon enough, and better."""
    started = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
    signature = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(signature).encode(), 0)


def _holder(descriptor: int) -> str:
    """Who holds the lock, in words."""
    try:
        signature = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {signature['pid']} on {signature['host']} (since {signature['started']})"
    except (OSError, ValueError, KeyError, TypeError):
        # Its holder has just taken it and has not signed yet, or could not.
        return "another process"
