"""Entries in any order -> entries sorted by uri, each once, in memory that doesn't grow with them."""

import sqlite3
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import closing

from batchcap.errors import SourceError
from batchcap.storage.entries import FileEntry, SkipReason

# Beyond it, SQLite keeps entries, and what it sorts, in temporary files. Ten million entries take about two
# gigabytes of disk.
_MAX_MEMORY_KIB = 32 * 1024


def sort_entries(entries: Iterable[FileEntry], skipped: Counter[str]) -> Generator[FileEntry, None, None]:
    """Sorts entries by uri in code-point order; of several with one uri the last stays.

    Args:
        entries: read to their end before the first one is given back.
        skipped: the others are counted there.

    Raises:
        SourceError: there is no room for temporary files.
    """
    # Without a name: a database of its own, in files that nobody else sees and that go with it.
    with closing(sqlite3.connect("", isolation_level=None, check_same_thread=False)) as database:
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("PRAGMA temp_store = FILE")
        database.execute(f"PRAGMA cache_size = -{_MAX_MEMORY_KIB}")
        try:
            # SQLite compares text by its bytes in UTF-8, which is the order of code points.
            database.execute("CREATE TABLE entry (uri TEXT, size_bytes INTEGER, mtime_ns INTEGER, etag TEXT)")
            database.execute("BEGIN")
            database.executemany(
                "INSERT INTO entry VALUES (?, ?, ?, ?)",
                ((entry.uri, entry.size_bytes, entry.mtime_ns, entry.etag) for entry in entries),
            )
            database.execute("COMMIT")
            latest: FileEntry | None = None
            for row in database.execute(
                "SELECT uri, size_bytes, mtime_ns, etag FROM entry ORDER BY uri, rowid"
            ):
                entry = FileEntry(*row)
                if latest is not None and latest.uri == entry.uri:
                    skipped[SkipReason.DUPLICATE] += 1
                elif latest is not None:
                    yield latest
                latest = entry
            if latest is not None:
                yield latest
        except sqlite3.Error as error:
            raise SourceError(f"what was listed can't be sorted in temporary files: {error}") from error
