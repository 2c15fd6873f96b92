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


def named_queries(database: str = "sqlite") -> dict[str, NamedQuery]:
    """The named queries by name, sorted.

    Args:
        database: whose SQL they are in. What it can't say in SQLite's words is in a folder of its name.
    """
    folder = sql_directory() / "queries"
    files = {file.stem: file for where in (folder, folder / database) for file in sorted(where.glob("*.sql"))}
    queries = {}
    for name, file in files.items():
        sql = file.read_text(encoding="utf-8")
        description = sql.partition("\n")[0].removeprefix("--").strip()
        queries[name] = NamedQuery(name, description, sql)
    return queries
