"""Writes `sql/schema/sqlite.sql`: the schema as the migrations leave it, for people to read.

python sql/schema.py            writes it
python sql/schema.py --check    exits with 1 if it is out of date
"""

import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from batchcap.catalog import Catalog

SCHEMA_FILE = Path(__file__).resolve().parent / "schema" / "sqlite.sql"
_HEADER = (
    "-- The catalog in SQLite. Generated from the migrations by sql/schema.py: change those, not this.\n"
)


def sqlite_schema() -> str:
    """The SQL of a new catalog, in the order in which the migrations made it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "catalog.db"
        Catalog.open(f"sqlite:///{path}", mode="write").close()
        with closing(sqlite3.connect(path)) as connection:
            # What has no SQL is made by SQLite itself; what begins with caption_fts_ by FTS5.
            statements = connection.execute(
                r"SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'caption\_fts\_%' "
                r"ESCAPE '\' ORDER BY rowid"
            ).fetchall()
    tidy = ("\n".join(line.rstrip() for line in sql.expandtabs(4).splitlines()) for (sql,) in statements)
    return _HEADER + "".join(f"\n{sql};\n" for sql in tidy)


def main(arguments: list[str]) -> int:
    """Writes the file, or with `--check` compares it; returns the exit status."""
    schema = sqlite_schema()
    if arguments == ["--check"]:
        current = SCHEMA_FILE.read_text(encoding="utf-8") if SCHEMA_FILE.exists() else ""
        return int(current != schema)
    SCHEMA_FILE.parent.mkdir(exist_ok=True)
    SCHEMA_FILE.write_text(schema, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
