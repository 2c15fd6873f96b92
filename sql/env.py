"""Alembic's environment: runs the migrations on a connection that the caller opened, or prints their SQL.

There is no `alembic.ini`: `batchcap.catalog.migration` builds the configuration, opens the transaction
and holds the lock, so that a migration happens whole or not at all.
"""

from typing import Any

from alembic import context

from batchcap.catalog.tables import Base


def include_name(name: str | None, kind: str, parents: Any) -> bool:
    """Leaves out SQLite's full-text index and its shadow tables, which SQLAlchemy can't declare."""
    return not (kind == "table" and name is not None and name.startswith("caption_fts"))


def include_object(found: Any, name: str | None, kind: str, reflected: bool, other: Any) -> bool:
    """Leaves out PostgreSQL's full-text index, which the mapped classes know nothing of."""
    return name not in ("search_vector", "ix_shown_search_vector")


context.configure(
    # `sql/schema.py` has no connection and wants the SQL alone.
    connection=context.config.attributes.get("connection"),
    dialect_name=context.config.attributes.get("dialect_name"),
    target_metadata=Base.metadata,
    include_name=include_name,
    include_object=include_object,
    # SQLite can't alter most of a table; Alembic then makes a new one and copies the rows.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
