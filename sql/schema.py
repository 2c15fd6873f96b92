"""Writes `sql/schema/sqlite.sql` and `postgresql.sql`: what the migrations make, for people to read.

python sql/schema.py            writes them
python sql/schema.py --check    exits with 1 if one is out of date

Of SQLite it is the schema as the migrations leave it; of PostgreSQL, for which no server need be here, what
they do, one after the other.
"""

import io
import re
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from alembic import command

from batchcap.catalog import Catalog
from batchcap.catalog.migration import alembic_config

FOLDER = Path(__file__).resolve().parent / "schema"
_HEADER = "-- The catalog in {}. Generated from the migrations by sql/schema.py: change those, not this.\n"
# What Alembic says between the statements, and how it keeps its own record.
_NOT_SCHEMA = re.compile(
    r"(?m)^(?:BEGIN|COMMIT|(?:INSERT INTO|UPDATE) alembic_version .*);\n+|^-- Running .*\n+"
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
    return _HEADER.format("SQLite") + "".join(f"\n{sql};\n" for sql in tidy)


def postgresql_schema() -> str:
    """The SQL that the migrations send to PostgreSQL."""
    config = alembic_config(None)
    config.attributes["dialect_name"] = "postgresql"
    config.output_buffer = io.StringIO()
    command.upgrade(config, "head", sql=True)
    statements = _NOT_SCHEMA.sub("", config.output_buffer.getvalue())
    tidy = "\n".join(line.rstrip() for line in statements.expandtabs(4).splitlines())
    return f"{_HEADER.format('PostgreSQL')}\n{tidy.strip()}\n"


SCHEMAS = {FOLDER / "sqlite.sql": sqlite_schema, FOLDER / "postgresql.sql": postgresql_schema}


def main(arguments: list[str]) -> int:
    """Writes the files, or with `--check` compares them; returns the exit status."""
    out_of_date = 0
    for file, make in SCHEMAS.items():
        schema = make()
        if arguments == ["--check"]:
            out_of_date |= not file.exists() or file.read_text(encoding="utf-8") != schema
        else:
            file.parent.mkdir(exist_ok=True)
            file.write_text(schema, encoding="utf-8")
    return int(out_of_date)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
