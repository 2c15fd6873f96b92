"""The first catalog.

A migration is frozen once released: it spells out its tables and imports nothing of batchcap.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

VIEW = """\
CREATE VIEW captions AS
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
       image.content_hash
FROM location
JOIN image ON image.content_hash = location.content_hash
JOIN caption ON caption.id = image.caption_id
LEFT JOIN model ON model.fingerprint = caption.fingerprint
WHERE location.vanished_at IS NULL"""

# The index keeps no text of its own ("external content"): the triggers must hand it the very text that
# it indexed, OLD and not NEW, or it is corrupt. `prefix` makes words cut after two or three letters fast.
# Cn are the letters younger than SQLite's own table of Unicode; without it they would be skipped.
FULL_TEXT = (
    """\
CREATE VIRTUAL TABLE caption_fts USING fts5(
    search_text,
    content='caption',
    content_rowid='id',
    tokenize="unicode61 remove_diacritics 2 categories 'L* N* Co Cn'",
    prefix='2 3'
)""",
    """\
CREATE TRIGGER caption_ai AFTER INSERT ON caption BEGIN
    INSERT INTO caption_fts (rowid, search_text) VALUES (new.id, new.search_text);
END""",
    """\
CREATE TRIGGER caption_ad AFTER DELETE ON caption BEGIN
    INSERT INTO caption_fts (caption_fts, rowid, search_text) VALUES ('delete', old.id, old.search_text);
END""",
    """\
CREATE TRIGGER caption_au AFTER UPDATE OF id, search_text ON caption BEGIN
    INSERT INTO caption_fts (caption_fts, rowid, search_text) VALUES ('delete', old.id, old.search_text);
    INSERT INTO caption_fts (rowid, search_text) VALUES (new.id, new.search_text);
END""",
)


def upgrade() -> None:
    """Creates the tables, their indexes, the full-text index and the view."""
    op.create_table(
        "catalog",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("uuid", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("batchcap_version", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_catalog"),
        sa.CheckConstraint("id = 1", name=op.f("ck_catalog_one_row")),
    )
    op.create_table(
        "model",
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_model"),
    )
    op.create_table(
        "run",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("source", sa.JSON, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("started_at", sa.DateTime, nullable=False),
        sa.Column("finished_at", sa.DateTime),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("counts", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_run"),
        sa.ForeignKeyConstraint(["fingerprint"], ["model.fingerprint"], name="fk_run_fingerprint"),
        sa.CheckConstraint(
            "state IN ('running', 'done', 'failed', 'interrupted')", name=op.f("ck_run_state")
        ),
    )
    op.create_index("ix_run_started_at", "run", ["started_at"])
    op.create_table(
        "image",
        sa.Column("content_hash", sa.Text, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("format", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("taken_at", sa.DateTime),
        sa.Column("caption_id", sa.Integer),
        sa.PrimaryKeyConstraint("content_hash", name="pk_image"),
        sa.ForeignKeyConstraint(["caption_id"], ["caption.id"], name="fk_image_caption_id"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_image_size_bytes", "image", ["size_bytes"])
    op.create_index("ix_image_caption_id", "image", ["caption_id"])
    op.create_table(
        "caption",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("content_hash", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("search_text", sa.Text, nullable=False),
        sa.Column("log_prob", sa.Double),
        sa.Column("confidence", sa.Double),
        sa.Column("token_count", sa.Integer),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_caption"),
        sa.ForeignKeyConstraint(["content_hash"], ["image.content_hash"], name="fk_caption_content_hash"),
        sa.ForeignKeyConstraint(["fingerprint"], ["model.fingerprint"], name="fk_caption_fingerprint"),
        sa.UniqueConstraint("content_hash", "fingerprint", name="uq_caption_content_hash"),
        sa.CheckConstraint("source IN ('model', 'human')", name=op.f("ck_caption_source")),
        sa.CheckConstraint(
            "(source = 'model') = (fingerprint IS NOT NULL)", name=op.f("ck_caption_fingerprint")
        ),
    )
    op.create_table(
        "location",
        sa.Column("uri", sa.Text, nullable=False),
        sa.Column("content_hash", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("mtime_ns", sa.BigInteger, nullable=False),
        sa.Column("etag", sa.Text),
        sa.Column("first_seen_at", sa.DateTime, nullable=False),
        sa.Column("vanished_at", sa.DateTime),
        sa.PrimaryKeyConstraint("uri", name="pk_location"),
        sa.ForeignKeyConstraint(["content_hash"], ["image.content_hash"], name="fk_location_content_hash"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_location_content_hash", "location", ["content_hash"])
    op.create_table(
        "part",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("row_count", sa.Integer, nullable=False),
        sa.Column("sha256", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_part"),
        sa.UniqueConstraint("name", name="uq_part_name"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_part_run_id"),
        sa.CheckConstraint("state IN ('pending', 'done')", name=op.f("ck_part_state")),
    )
    op.create_table(
        "result",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("uri", sa.Text, nullable=False),
        sa.Column("content_hash", sa.Text, nullable=False),
        sa.Column("caption_id", sa.Integer, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("part_id", sa.Integer),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_result"),
        sa.UniqueConstraint("caption_id", "uri", name="uq_result_caption_id"),
        sa.ForeignKeyConstraint(["caption_id"], ["caption.id"], name="fk_result_caption_id"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_result_run_id"),
        sa.ForeignKeyConstraint(["part_id"], ["part.id"], name="fk_result_part_id"),
    )
    op.create_index("ix_result_part_id", "result", ["part_id"])
    op.create_table(
        "quarantine",
        sa.Column("uri", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("mtime_ns", sa.BigInteger, nullable=False),
        sa.Column("etag", sa.Text),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("updated_at", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("uri", name="pk_quarantine"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_quarantine_run_id"),
        sa.CheckConstraint("attempts >= 1", name=op.f("ck_quarantine_attempts")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_quarantine_reason", "quarantine", ["reason"])
    for statement in FULL_TEXT:
        op.execute(statement)
    op.execute(VIEW)


def downgrade() -> None:
    """Refused: the copy that `migrate` put aside is the way back."""
    raise NotImplementedError("a catalog is not downgraded; use the copy that was put aside")
