"""Files that the catalog knows and a scan did not find."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, select, union

from batchcap.catalog.connection import Database
from batchcap.catalog.tables import Location, Quarantine

if TYPE_CHECKING:
    from batchcap.collection import FileEntry

_PAGE_ROWS = 8192
# Beyond it, a list of uris goes to disk.
_MAX_MEMORY_BYTES = 4 * 1024**2


class UriList:
    """Uris that may be very many: in memory while they are few, then in a temporary file."""

    def __init__(self) -> None:
        self._lines = tempfile.SpooledTemporaryFile(_MAX_MEMORY_BYTES, "w+t", encoding="utf-8")  # noqa: SIM115
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        self._lines.seek(0)
        # A uri may hold a line break: hence JSON.
        yield from map(json.loads, self._lines)

    def append(self, uri: str) -> None:
        """Adds one; not while somebody iterates."""
        self._lines.write(json.dumps(uri) + "\n")
        self._count += 1

    def close(self) -> None:
        """Gives memory and file back."""
        self._lines.close()


class MissingFiles:
    """Compares a sorted scan, as it passes by, with what the catalog knows below the same folders.

    Only pages of the catalog are held, and no transaction is open between two of them. A context manager.

    Args:
        database: the catalog.
        folders: how the uris begin of which the scan finds whatever there is; none begins another.
    """

    def __init__(self, database: Database, folders: Sequence[str]) -> None:
        self._known_uris = (uri for folder in sorted(folders) for uri in _known_below(database, folder))
        self._next: str | None = None
        self.known = 0
        self.uris = UriList()

    def __enter__(self) -> "MissingFiles":
        return self

    def __exit__(self, *error: object) -> None:
        self.uris.close()

    def watch(self, entries: "Iterable[FileEntry]") -> "Iterator[FileEntry]":
        """Passes a scan through. Only after its end, `uris` is whole: what the catalog knows and it had not.

        Args:
            entries: sorted by uri.
        """
        self._advance()
        for entry in entries:
            while self._next is not None and self._next < entry.uri:
                self.uris.append(self._next)
                self._advance()
            if self._next == entry.uri:
                self._advance()
            yield entry
        while self._next is not None:
            self.uris.append(self._next)
            self._advance()

    def _advance(self) -> None:
        self._next = next(self._known_uris, None)
        self.known += self._next is not None


def _known_below(database: Database, folder: str) -> Iterator[str]:
    """The locations that have not vanished, and the files in quarantine, sorted by uri.

    Args:
        database: the catalog.
        folder: how these uris begin.
    """
    # With the character after the last one of `folder`: every uri below it is between the two.
    end = folder[:-1] + chr(ord(folder[-1]) + 1)
    after: str | None = None
    while True:

        def in_page(column: ColumnElement[str], after: str | None = after) -> ColumnElement[bool]:
            # An archive that is damaged has a row whose uri is no longer than that.
            return (column >= folder if after is None else column > after) & (column < end)

        page = union(
            select(Location.uri).where(in_page(Location.uri.expression), Location.vanished_at.is_(None)),
            select(Quarantine.uri).where(in_page(Quarantine.uri.expression)),
        )
        with database.read() as connection:
            uris = list(connection.scalars(page.order_by("uri").limit(_PAGE_ROWS)))
        yield from uris
        if len(uris) < _PAGE_ROWS:
            return
        after = uris[-1]
