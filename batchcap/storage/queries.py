"""A list that a database makes: the first column of what an SQL query gives, row by row."""

import os
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from batchcap.errors import SourceError, SourceNotFoundError, UsageError
from batchcap.globs import Selection
from batchcap.storage.entries import FileEntry
from batchcap.storage.lists import named_entries

_ROWS_PER_FETCH = 8192


@dataclass(frozen=True, slots=True)
class Query:
    """A query that a user named.

    Args:
        statement: SQL, whose first column holds paths or URIs; relative ones are below `folder`.
        database: a URL of SQLAlchemy, such as `sqlite:///photos.db`.
        folder: by default the one that we are in.
    """

    statement: str
    database: str
    folder: str = ""

    @property
    def uri(self) -> str:
        """The database, without its password."""
        import sqlalchemy

        try:
            return sqlalchemy.make_url(self.database).render_as_string(hide_password=True)
        except sqlalchemy.exc.ArgumentError:
            return "a database"

    def __str__(self) -> str:
        return f"{self.uri} ({self.statement})"

    def resolved(self) -> "Query":
        """The query as it is, once its database has been reached.

        Raises:
            SourceNotFoundError: there is no such database.
            SourceError: it can't be reached.
            UsageError: the URL is none, or names a database whose driver is not installed.
        """
        with_folder = Query(self.statement, self.database, os.path.abspath(self.folder))
        for _ in with_folder._values("SELECT 1"):
            pass
        return with_folder

    def entries(self, selection: Selection, skipped: Counter[str]) -> Iterator[FileEntry]:
        """What the query names, sorted by uri; whatever its name, and whatever the selection.

        Raises:
            SourceError: the database refuses the query, or can't be read to the end.
        """
        return named_entries(self._values(self.statement), self.folder, skipped)

    def whole_prefixes(self) -> list[str]:
        """None: what a query leaves out may still be there."""
        return []

    def _values(self, statement: str) -> Generator[object, None, None]:
        import sqlalchemy

        try:
            url = sqlalchemy.make_url(self.database)
            if url.get_backend_name() == "sqlite" and url.database and not os.path.isfile(url.database):
                # SQLite would make an empty one.
                raise SourceNotFoundError(f"there is no database at {self.uri}")
            if url.drivername == "postgresql":
                url = url.set(drivername="postgresql+psycopg")
            engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
        except (sqlalchemy.exc.ArgumentError, ImportError) as error:
            raise UsageError(f"--database {self.uri} can't be used: {_short(error)}") from error
        options = {"stream_results": True, "yield_per": _ROWS_PER_FETCH, "no_parameters": True}
        try:
            # Without a commit: a query that writes has written nothing.
            with engine.connect().execution_options(**options) as connection:
                result = connection.exec_driver_sql(statement)
                if not result.returns_rows:
                    raise SourceError(f"{self.uri}: the query gives no rows")
                for row in result:
                    yield row[0]
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise SourceError(f"{self.uri} can't answer: {_short(error)}") from error
        finally:
            engine.dispose()


def _short(error: Exception) -> str:
    """What the database said, in one line, without the query and links that SQLAlchemy adds."""
    said = getattr(error, "orig", None) or error
    return " ".join(str(said).split())[:300]
