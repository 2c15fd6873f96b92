"""SQL by hand: the answer to a query, whatever the database."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self


class QueryResult(ABC):
    """The answer to a query: `columns`, and `rows`, which are read as they are asked for.

    Close it, or use it as a context manager, unless it is read to its end. Reading rows may raise a
    QueryError too.
    """

    columns: list[str]
    rows: Iterator[tuple[Any, ...]]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Ends the query; rows that were not read are lost."""
