"""Where the folder `sql` is: migrations and named queries, in a checkout or in an installed wheel."""

from dataclasses import dataclass
from pathlib import Path

import batchcap
from batchcap.errors import CatalogError


def sql_directory() -> Path:
    """The folder of migrations and named queries.

    Raises:
        CatalogError: the installation lacks it.
    """
    package = Path(batchcap.__file__).resolve().parent
    for folder in (package / "_sql", package.parent / "sql"):
        if (folder / "env.py").is_file():
            return folder
    raise CatalogError(f"the migrations are missing from {package}; install batchcap again")


@dataclass(frozen=True, slots=True)
class NamedQuery:
    """A query that comes with batchcap; `description` is the first line of its file."""

    name: str
    description: str
    sql: str


def named_queries() -> dict[str, NamedQuery]:
    """The named queries by name, sorted."""
    queries = {}
    for file in sorted((sql_directory() / "queries").glob("*.sql")):
        sql = file.read_text(encoding="utf-8")
        description = sql.partition("\n")[0].removeprefix("--").strip()
        queries[file.stem] = NamedQuery(file.stem, description, sql)
    return queries
