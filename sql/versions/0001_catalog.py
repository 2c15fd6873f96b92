"""The first catalog.

A migration is frozen once released: it spells out its tables and imports nothing of batchcap.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
# SQLite's rowid is 64 bits wide whatever it is called, and only an INTEGER PRIMARY KEY is one.
ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
INSTANT = sa.DateTime(timezone=True)

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
SQLITE_FULL_TEXT = (
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

# The words are taken as they are, whatever a server's own tokenizer thinks of letters and digits.
POSTGRESQL_FULL_TEXT = (
    """\
CREATE FUNCTION batchcap_search_vector(search_text text) RETURNS tsvector
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(string_agg(quote_literal(left(word, 500)) || ':' || place, ' '), '')::tsvector
    FROM unnest(string_to_array(search_text, ' ')) WITH ORDINALITY AS words (word, place)
$$""",
    """\
ALTER TABLE caption
    ADD COLUMN search_vector tsvector GENERATED ALWAYS AS (batchcap_search_vector(search_text)) STORED""",
    "CREATE INDEX ix_caption_search_vector ON caption USING gin (search_vector)",
)


def upgrade() -> None:
    """Creates the tables, their indexes, the full-text index and the view."""
    is_sqlite = op.get_context().dialect.name == "sqlite"
    # The two tables point at each other. SQLite can't add a key later; others can't name what isn't there.
    live_caption = sa.ForeignKeyConstraint(["caption_id"], ["caption.id"], name="fk_image_caption_id")
    op.create_table(
        "catalog",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("uuid", TEXT, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("batchcap_version", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_catalog"),
        sa.CheckConstraint("id = 1", name=op.f("ck_catalog_one_row")),
    )
    op.create_table(
        "model",
        sa.Column("fingerprint", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_model"),
    )
    op.create_table(
        "run",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("source", sa.JSON, nullable=False),
        sa.Column("fingerprint", TEXT, nullable=False),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("finished_at", INSTANT),
        sa.Column("state", TEXT, nullable=False),
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
        sa.Column("content_hash", TEXT, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("format", TEXT, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("taken_at", sa.DateTime),
        sa.Column("caption_id", ID),
        sa.PrimaryKeyConstraint("content_hash", name="pk_image"),
        *([live_caption] if is_sqlite else []),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_image_size_bytes", "image", ["size_bytes"])
    op.create_index("ix_image_caption_id", "image", ["caption_id"])
    op.create_table(
        "caption",
        sa.Column("id", ID, nullable=False),
        sa.Column("content_hash", TEXT, nullable=False),
        sa.Column("source", TEXT, nullable=False),
        sa.Column("fingerprint", TEXT),
        sa.Column("text", TEXT, nullable=False),
        sa.Column("search_text", TEXT, nullable=False),
        sa.Column("log_prob", sa.Double),
        sa.Column("confidence", sa.Double),
        sa.Column("token_count", sa.Integer),
        sa.Column("created_at", INSTANT, nullable=False),
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
        sa.Column("uri", TEXT, nullable=False),
        sa.Column("content_hash", TEXT, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("mtime_ns", sa.BigInteger, nullable=False),
        sa.Column("etag", TEXT),
        sa.Column("first_seen_at", INSTANT, nullable=False),
        sa.Column("vanished_at", INSTANT),
        sa.PrimaryKeyConstraint("uri", name="pk_location"),
        sa.ForeignKeyConstraint(["content_hash"], ["image.content_hash"], name="fk_location_content_hash"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_location_content_hash", "location", ["content_hash"])
    op.create_table(
        "part",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("row_count", sa.Integer, nullable=False),
        sa.Column("sha256", TEXT),
        sa.PrimaryKeyConstraint("id", name="pk_part"),
        sa.UniqueConstraint("name", name="uq_part_name"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_part_run_id"),
        sa.CheckConstraint("state IN ('pending', 'done')", name=op.f("ck_part_state")),
    )
    op.create_table(
        "result",
        sa.Column("id", ID, nullable=False),
        sa.Column("uri", TEXT, nullable=False),
        sa.Column("content_hash", TEXT, nullable=False),
        sa.Column("caption_id", ID, nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("part_id", ID),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_result"),
        sa.UniqueConstraint("caption_id", "uri", name="uq_result_caption_id"),
        sa.ForeignKeyConstraint(["caption_id"], ["caption.id"], name="fk_result_caption_id"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_result_run_id"),
        sa.ForeignKeyConstraint(["part_id"], ["part.id"], name="fk_result_part_id"),
    )
    op.create_index("ix_result_part_id", "result", ["part_id"])
    op.create_table(
        "quarantine",
        sa.Column("uri", TEXT, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("mtime_ns", sa.BigInteger, nullable=False),
        sa.Column("etag", TEXT),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("detail", TEXT, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("uri", name="pk_quarantine"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_quarantine_run_id"),
        sa.CheckConstraint("attempts >= 1", name=op.f("ck_quarantine_attempts")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_quarantine_reason", "quarantine", ["reason"])
    if not is_sqlite:
        op.create_foreign_key("fk_image_caption_id", "image", "caption", ["caption_id"], ["id"])
    for statement in SQLITE_FULL_TEXT if is_sqlite else POSTGRESQL_FULL_TEXT:
        op.execute(statement)
    op.execute(VIEW)


def downgrade() -> None:
    """Refused: a copy is the way back, of SQLite the one that `migrate` put aside."""
    raise NotImplementedError("a catalog is not downgraded; use a copy of it")
