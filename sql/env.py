"""Alembic's environment: runs the migrations on a connection that the caller opened.

There is no `alembic.ini`: `batchcap.catalog.migration` builds the configuration, opens the transaction
and holds the lock, so that a migration happens whole or not at all.
"""

from typing import Any

from alembic import context

from batchcap.catalog.tables import Base


def include_name(name: str | None, kind: str, parents: Any) -> bool:
    """Leaves out the full-text index and its shadow tables, which SQLAlchemy can't declare."""
    return not (kind == "table" and name is not None and name.startswith("caption_fts"))


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    include_name=include_name,
    # SQLite can't alter most of a table; Alembic then makes a new one and copies the rows.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
