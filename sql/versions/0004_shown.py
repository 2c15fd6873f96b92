"""Which captions are shown, and of how many files: what a search counts and ranks.

A caption is shown while it is the live one of an image that is at one location or more. To find that out,
a search would look up image and location of each of its hits, which lie all over the catalog. Triggers keep
it instead, so that whoever writes to the tables keeps it.

PostgreSQL's full-text index moves here: it then holds what can be found and nothing else, in rows that are
less than half as long, and a search reads this table alone.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

# SQLite's rowid is 64 bits wide whatever it is called, and only an INTEGER PRIMARY KEY is one.
ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")

SQLITE_FILL = """\
INSERT INTO shown (caption_id, files)
SELECT image.caption_id, count(*)
FROM location
JOIN image ON image.content_hash = location.content_hash
WHERE location.vanished_at IS NULL AND image.caption_id IS NOT NULL
GROUP BY image.caption_id
ORDER BY image.caption_id"""

# A trigger of SQLite knows no IF, so its statements say for themselves when there is something to do.
SQLITE_TRIGGERS = (
    """\
CREATE TRIGGER shown_location_ai AFTER INSERT ON location WHEN new.vanished_at IS NULL BEGIN
    INSERT INTO shown (caption_id, files)
    SELECT caption_id, 1 FROM image WHERE content_hash = new.content_hash AND caption_id IS NOT NULL
    ON CONFLICT (caption_id) DO UPDATE SET files = files + 1;
END""",
    """\
CREATE TRIGGER shown_location_ad AFTER DELETE ON location WHEN old.vanished_at IS NULL BEGIN
    DELETE FROM shown
    WHERE caption_id = (SELECT caption_id FROM image WHERE content_hash = old.content_hash) AND files = 1;
    UPDATE shown SET files = files - 1
    WHERE caption_id = (SELECT caption_id FROM image WHERE content_hash = old.content_hash);
END""",
    """\
CREATE TRIGGER shown_location_au AFTER UPDATE OF content_hash, vanished_at ON location
WHEN old.content_hash <> new.content_hash OR (old.vanished_at IS NULL) <> (new.vanished_at IS NULL) BEGIN
    DELETE FROM shown
    WHERE caption_id = (SELECT caption_id FROM image WHERE content_hash = old.content_hash) AND files = 1
      AND old.vanished_at IS NULL;
    UPDATE shown SET files = files - 1
    WHERE caption_id = (SELECT caption_id FROM image WHERE content_hash = old.content_hash)
      AND old.vanished_at IS NULL;
    INSERT INTO shown (caption_id, files)
    SELECT caption_id, 1 FROM image
    WHERE content_hash = new.content_hash AND caption_id IS NOT NULL AND new.vanished_at IS NULL
    ON CONFLICT (caption_id) DO UPDATE SET files = files + 1;
END""",
    """\
CREATE TRIGGER shown_image_au AFTER UPDATE OF caption_id ON image
WHEN old.caption_id IS NOT new.caption_id BEGIN
    DELETE FROM shown WHERE caption_id = old.caption_id;
    INSERT INTO shown (caption_id, files)
    SELECT new.caption_id, count(*) FROM location
    WHERE content_hash = new.content_hash AND vanished_at IS NULL AND new.caption_id IS NOT NULL
    GROUP BY content_hash
    ON CONFLICT (caption_id) DO UPDATE SET files = files + excluded.files;
END""",
)

POSTGRESQL_FILL = (
    "ALTER TABLE shown ADD COLUMN search_vector tsvector NOT NULL",
    """\
INSERT INTO shown (caption_id, files, search_vector)
SELECT caption.id, found.files, caption.search_vector
FROM (SELECT content_hash, count(*) AS files FROM location WHERE vanished_at IS NULL GROUP BY content_hash)
    AS found
JOIN image ON image.content_hash = found.content_hash
JOIN caption ON caption.id = image.caption_id
ORDER BY caption.id""",
    "CREATE INDEX ix_shown_search_vector ON shown USING gin (search_vector)",
    "ALTER TABLE caption DROP COLUMN search_vector",
)
# Once a statement and not once a row, for commits write many at a time. A function finds the catalog's tables
# whoever writes, and wherever he looks for his own. Its statements are planned anew each time: a plan that is
# kept from when a table was empty reads it from end to end for ever.
POSTGRESQL_TRIGGERS = (
    """\
CREATE FUNCTION batchcap_locations_changed() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT SET plan_cache_mode = 'force_custom_plan' AS $$
DECLARE
    more_of text[];
    more bigint[];
BEGIN
    IF TG_OP = 'INSERT' THEN
        SELECT array_agg(content_hash), array_agg(files) INTO more_of, more FROM (
            SELECT content_hash, count(*) AS files FROM new_rows
            WHERE vanished_at IS NULL GROUP BY content_hash
        ) AS changed;
    ELSIF TG_OP = 'DELETE' THEN
        SELECT array_agg(content_hash), array_agg(-files) INTO more_of, more FROM (
            SELECT content_hash, count(*) AS files FROM old_rows
            WHERE vanished_at IS NULL GROUP BY content_hash
        ) AS changed;
    ELSE
        SELECT array_agg(content_hash), array_agg(files) INTO more_of, more FROM (
            SELECT content_hash, sum(files)::bigint AS files
            FROM (
                SELECT content_hash, 1 AS files FROM new_rows WHERE vanished_at IS NULL
                UNION ALL SELECT content_hash, -1 FROM old_rows WHERE vanished_at IS NULL
            ) AS one
            GROUP BY content_hash HAVING sum(files) <> 0
        ) AS changed;
    END IF;
    IF more_of IS NULL THEN
        RETURN NULL;
    END IF;
    DELETE FROM shown USING unnest(more_of, more) AS changed (content_hash, files), image
    WHERE changed.files < 0 AND image.content_hash = changed.content_hash
      AND shown.caption_id = image.caption_id AND shown.files + changed.files <= 0;
    UPDATE shown SET files = shown.files + changed.files
    FROM unnest(more_of, more) AS changed (content_hash, files), image
    WHERE changed.files < 0 AND image.content_hash = changed.content_hash
      AND shown.caption_id = image.caption_id;
    INSERT INTO shown (caption_id, files, search_vector)
    SELECT caption.id, changed.files, batchcap_search_vector(caption.search_text)
    FROM unnest(more_of, more) AS changed (content_hash, files)
    JOIN image ON image.content_hash = changed.content_hash
    JOIN caption ON caption.id = image.caption_id
    WHERE changed.files > 0
    ON CONFLICT (caption_id) DO UPDATE SET files = shown.files + excluded.files;
    RETURN NULL;
END $$""",
    """\
CREATE FUNCTION batchcap_images_changed() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT SET plan_cache_mode = 'force_custom_plan' AS $$
DECLARE
    hidden bigint[];
    live bigint[];
    live_of text[];
BEGIN
    SELECT array_agg(caption_id) INTO hidden FROM (
        SELECT caption_id FROM old_rows EXCEPT SELECT caption_id FROM new_rows
    ) AS before;
    SELECT array_agg(caption_id), array_agg(content_hash) INTO live, live_of FROM (
        SELECT caption_id, content_hash FROM new_rows EXCEPT SELECT caption_id, content_hash FROM old_rows
    ) AS after;
    DELETE FROM shown WHERE caption_id = ANY (hidden);
    INSERT INTO shown (caption_id, files, search_vector)
    SELECT caption.id, found.files, batchcap_search_vector(caption.search_text)
    FROM unnest(live, live_of) AS changed (caption_id, content_hash)
    JOIN caption ON caption.id = changed.caption_id
    CROSS JOIN LATERAL (
        SELECT count(*) AS files FROM location
        WHERE location.content_hash = changed.content_hash AND vanished_at IS NULL
    ) AS found
    WHERE found.files > 0
    ON CONFLICT (caption_id) DO UPDATE SET files = shown.files + excluded.files;
    RETURN NULL;
END $$""",
    """\
CREATE FUNCTION batchcap_caption_changed() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE shown SET search_vector = batchcap_search_vector(NEW.search_text) WHERE caption_id = NEW.id;
    RETURN NULL;
END $$""",
    """\
CREATE TRIGGER shown_location_ai AFTER INSERT ON location REFERENCING NEW TABLE AS new_rows
FOR EACH STATEMENT EXECUTE FUNCTION batchcap_locations_changed()""",
    """\
CREATE TRIGGER shown_location_ad AFTER DELETE ON location REFERENCING OLD TABLE AS old_rows
FOR EACH STATEMENT EXECUTE FUNCTION batchcap_locations_changed()""",
    """\
CREATE TRIGGER shown_location_au AFTER UPDATE ON location
REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
FOR EACH STATEMENT EXECUTE FUNCTION batchcap_locations_changed()""",
    """\
CREATE TRIGGER shown_image_au AFTER UPDATE ON image REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
FOR EACH STATEMENT EXECUTE FUNCTION batchcap_images_changed()""",
    """\
CREATE TRIGGER shown_caption_au AFTER UPDATE OF search_text ON caption
FOR EACH ROW EXECUTE FUNCTION batchcap_caption_changed()""",
)


def upgrade() -> None:
    """Adds the table, filled, and what keeps it."""
    is_sqlite = op.get_context().dialect.name == "sqlite"
    op.create_table(
        "shown",
        sa.Column("caption_id", ID, autoincrement=False, nullable=False),
        sa.Column("files", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("caption_id", name="pk_shown"),
        sa.ForeignKeyConstraint(["caption_id"], ["caption.id"], name="fk_shown_caption_id"),
        sa.CheckConstraint("files >= 1", name=op.f("ck_shown_files")),
    )
    of_sqlite, of_postgresql = (SQLITE_FILL, *SQLITE_TRIGGERS), (*POSTGRESQL_FILL, *POSTGRESQL_TRIGGERS)
    for statement in of_sqlite if is_sqlite else of_postgresql:
        op.execute(statement)


def downgrade() -> None:
    """Refused: a copy is the way back, of SQLite the one that `migrate` put aside."""
    raise NotImplementedError("a catalog is not downgraded; use a copy of it")
