"""What the camera wrote into a picture: its make and model, and where it was.

Images that are there already have NULL in the new columns.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

# New columns come last: who reads by position still finds what was there, and PostgreSQL, which replaces no
# view by another with other columns before its own, need not drop what people have built upon it.
VIEW = """\
VIEW captions AS
SELECT location.uri,
       caption.text AS caption,
       caption.confidence,
       image.width,
       image.height,
       image.format,
       image.size_bytes,
       image.taken_at,
       model.name AS model,
       caption.source,
       caption.created_at AS captioned_at,
       image.content_hash,
       image.camera,
       image.latitude,
       image.longitude
FROM location
JOIN image ON image.content_hash = location.content_hash
JOIN caption ON caption.id = image.caption_id
LEFT JOIN model ON model.fingerprint = caption.fingerprint
WHERE location.vanished_at IS NULL"""


def upgrade() -> None:
    """Adds the columns, which rewrites no rows, and shows them in the view."""
    is_sqlite = op.get_context().dialect.name == "sqlite"
    if is_sqlite:
        op.execute("DROP VIEW captions")
    op.add_column("image", sa.Column("camera", TEXT))
    op.add_column("image", sa.Column("latitude", sa.Double))
    op.add_column("image", sa.Column("longitude", sa.Double))
    op.execute(f"CREATE {VIEW}" if is_sqlite else f"CREATE OR REPLACE {VIEW}")


def downgrade() -> None:
    """Refused: a copy is the way back, of SQLite the one that `migrate` put aside."""
    raise NotImplementedError("a catalog is not downgraded; use a copy of it")
