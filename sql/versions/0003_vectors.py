"""Where an image lies among others, as its captioner sees it, and an index for the newest captions.

Captions that are there already have no vector; `index --vectors all` gives them theirs.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

# SQLite's rowid is 64 bits wide whatever it is called, and only an INTEGER PRIMARY KEY is one.
ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Adds a table, a column, which rewrites no rows, and the index."""
    # By the caption and not by content and model, which are both its own: 8 bytes for 128, rows in the order
    # in which they come, and no index beside the table.
    op.create_table(
        "image_vector",
        sa.Column("caption_id", ID, autoincrement=False, nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("caption_id", name="pk_image_vector"),
        sa.ForeignKeyConstraint(["caption_id"], ["caption.id"], name="fk_image_vector_caption_id"),
    )
    op.add_column("model", sa.Column("vector_size", sa.Integer))
    op.create_index("ix_caption_created_at", "caption", ["created_at"])


def downgrade() -> None:
    """Refused: a copy is the way back, of SQLite the one that `migrate` put aside."""
    raise NotImplementedError("a catalog is not downgraded; use a copy of it")
