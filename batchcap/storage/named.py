"""A single file that isn't local and that a user named."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from batchcap.errors import SourceError, SourceNotFoundError
from batchcap.globs import Selection
from batchcap.storage import look, stat
from batchcap.storage.entries import FileEntry
from batchcap.storage.uris import printable


@dataclass(frozen=True, slots=True)
class NamedFile:
    """Taken whatever its name is, as a local one is.

    Args:
        uri: where it is.
    """

    uri: str

    def __str__(self) -> str:
        return self.uri

    @classmethod
    def resolve(cls, uri: str) -> "NamedFile":
        """Looks whether it is there.

        Raises:
            SourceNotFoundError: it is not.
            SourceError: that can't be told.
        """
        try:
            stat(uri)
        except (FileNotFoundError, NotADirectoryError):
            raise SourceNotFoundError(f"{printable(uri)} does not exist") from None
        except OSError as error:
            raise SourceError(f"{printable(uri)} can't be read: {error.strerror or error}") from error
        return cls(uri)

    def entries(self, selection: Selection, skipped: Counter[str]) -> Iterator[FileEntry]:
        """Its entry, unless it has vanished."""
        found = look(self.uri)
        if isinstance(found, FileEntry):
            yield found
        else:
            skipped[found] += 1

    def whole_prefixes(self) -> list[str]:
        """None."""
        return []
