"""How a file appears: whole or not at all, durably, and in the place of another only where that is meant.

It is written under a temporary name that says which process writes it, and then given its own.
"""

import errno
import os
from pathlib import Path

PREFIX = ".tmp-"
# What file systems answer that have no hard links.
_NO_LINKS = frozenset((errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK))


def temporary(path: Path) -> Path:
    """Where this process writes a file before it is published at `path`."""
    return path.with_name(f"{PREFIX}{os.getpid()}-{path.name}")


def publish(written: Path, path: Path) -> bool:
    """Gives a finished file its name, durably, and never overwrites.

    Args:
        written: the file under its temporary name; the caller removes it, if it is still there.
        path: its name.

    Returns:
        False if the name is taken.
    """
    with written.open("rb+") as file:
        os.fsync(file.fileno())
    published = True
    try:
        os.link(written, path)
    except FileExistsError:
        published = False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Without hard links a look must do. Whoever writes here holds the catalog's lock, so nobody
        # comes between the look and the renaming.
        published = not path.exists()
        if published:
            written.rename(path)
    # Even if it was there: who made it may have died before this.
    sync_folder(path.parent)
    return published


def replace(written: Path, path: Path) -> None:
    """Gives a finished file its name, durably; what has that name now is gone, and was there until then.

    Args:
        written: the file under its temporary name.
        path: its name.
    """
    with written.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(written, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a new name in a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems can't do it for folders, and need not be told.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def leftovers(folder: Path) -> list[Path]:
    """Temporary files in a folder whose writer has ended, sorted.

    The number of a process is given again some day: a leftover may be missed, a file in use is never named.
    """
    return sorted(path for path in folder.glob(f"{PREFIX}*") if not _is_being_written(path))


def _is_being_written(path: Path) -> bool:
    number = path.name.removeprefix(PREFIX).partition("-")[0]
    # No process has a longer number, and no number at all was not written by us.
    if not (number.isdecimal() and number.isascii() and len(number) < 10):
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's process
    return True
