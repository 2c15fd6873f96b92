-- The catalog in PostgreSQL. Generated from the migrations by sql/schema.py: change those, not this.

CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

CREATE TABLE catalog (
    id INTEGER NOT NULL,
    uuid TEXT COLLATE "C" NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    batchcap_version TEXT COLLATE "C" NOT NULL,
    CONSTRAINT pk_catalog PRIMARY KEY (id),
    CONSTRAINT ck_catalog_one_row CHECK (id = 1)
);

CREATE TABLE model (
    fingerprint TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    config JSON NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_model PRIMARY KEY (fingerprint)
);

CREATE TABLE run (
    id TEXT COLLATE "C" NOT NULL,
    source JSON NOT NULL,
    fingerprint TEXT COLLATE "C" NOT NULL,
    options JSON NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE NOT NULL,
    finished_at TIMESTAMP WITH TIME ZONE,
    state TEXT COLLATE "C" NOT NULL,
    counts JSON NOT NULL,
    CONSTRAINT pk_run PRIMARY KEY (id),
    CONSTRAINT fk_run_fingerprint FOREIGN KEY(fingerprint) REFERENCES model (fingerprint),
    CONSTRAINT ck_run_state CHECK (state IN ('running', 'done', 'failed', 'interrupted'))
);

CREATE INDEX ix_run_started_at ON run (started_at);

CREATE TABLE image (
    content_hash TEXT COLLATE "C" NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    format TEXT COLLATE "C" NOT NULL,
    size_bytes BIGINT NOT NULL,
    taken_at TIMESTAMP WITHOUT TIME ZONE,
    caption_id BIGINT,
    CONSTRAINT pk_image PRIMARY KEY (content_hash)
);

CREATE INDEX ix_image_size_bytes ON image (size_bytes);

CREATE INDEX ix_image_caption_id ON image (caption_id);

CREATE TABLE caption (
    id BIGSERIAL NOT NULL,
    content_hash TEXT COLLATE "C" NOT NULL,
    source TEXT COLLATE "C" NOT NULL,
    fingerprint TEXT COLLATE "C",
    text TEXT COLLATE "C" NOT NULL,
    search_text TEXT COLLATE "C" NOT NULL,
    log_prob DOUBLE PRECISION,
    confidence DOUBLE PRECISION,
    token_count INTEGER,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_caption PRIMARY KEY (id),
    CONSTRAINT fk_caption_content_hash FOREIGN KEY(content_hash) REFERENCES image (content_hash),
    CONSTRAINT fk_caption_fingerprint FOREIGN KEY(fingerprint) REFERENCES model (fingerprint),
    CONSTRAINT uq_caption_content_hash UNIQUE (content_hash, fingerprint),
    CONSTRAINT ck_caption_source CHECK (source IN ('model', 'human')),
    CONSTRAINT ck_caption_fingerprint CHECK ((source = 'model') = (fingerprint IS NOT NULL))
);

CREATE TABLE location (
    uri TEXT COLLATE "C" NOT NULL,
    content_hash TEXT COLLATE "C" NOT NULL,
    size_bytes BIGINT NOT NULL,
    mtime_ns BIGINT NOT NULL,
    etag TEXT COLLATE "C",
    first_seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
    vanished_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_location PRIMARY KEY (uri),
    CONSTRAINT fk_location_content_hash FOREIGN KEY(content_hash) REFERENCES image (content_hash)
);

CREATE INDEX ix_location_content_hash ON location (content_hash);

CREATE TABLE part (
    id BIGSERIAL NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    run_id TEXT COLLATE "C" NOT NULL,
    state TEXT COLLATE "C" NOT NULL,
    row_count INTEGER NOT NULL,
    sha256 TEXT COLLATE "C",
    CONSTRAINT pk_part PRIMARY KEY (id),
    CONSTRAINT uq_part_name UNIQUE (name),
    CONSTRAINT fk_part_run_id FOREIGN KEY(run_id) REFERENCES run (id),
    CONSTRAINT ck_part_state CHECK (state IN ('pending', 'done'))
);

CREATE TABLE result (
    id BIGSERIAL NOT NULL,
    uri TEXT COLLATE "C" NOT NULL,
    content_hash TEXT COLLATE "C" NOT NULL,
    caption_id BIGINT NOT NULL,
    run_id TEXT COLLATE "C" NOT NULL,
    part_id BIGINT,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_result PRIMARY KEY (id),
    CONSTRAINT uq_result_caption_id UNIQUE (caption_id, uri),
    CONSTRAINT fk_result_caption_id FOREIGN KEY(caption_id) REFERENCES caption (id),
    CONSTRAINT fk_result_run_id FOREIGN KEY(run_id) REFERENCES run (id),
    CONSTRAINT fk_result_part_id FOREIGN KEY(part_id) REFERENCES part (id)
);

CREATE INDEX ix_result_part_id ON result (part_id);

CREATE TABLE quarantine (
    uri TEXT COLLATE "C" NOT NULL,
    size_bytes BIGINT NOT NULL,
    mtime_ns BIGINT NOT NULL,
    etag TEXT COLLATE "C",
    reason TEXT COLLATE "C" NOT NULL,
    detail TEXT COLLATE "C" NOT NULL,
    attempts INTEGER NOT NULL,
    run_id TEXT COLLATE "C" NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_quarantine PRIMARY KEY (uri),
    CONSTRAINT fk_quarantine_run_id FOREIGN KEY(run_id) REFERENCES run (id),
    CONSTRAINT ck_quarantine_attempts CHECK (attempts >= 1)
);

CREATE INDEX ix_quarantine_reason ON quarantine (reason);

ALTER TABLE image ADD CONSTRAINT fk_image_caption_id FOREIGN KEY(caption_id) REFERENCES caption (id);

CREATE FUNCTION batchcap_search_vector(search_text text) RETURNS tsvector
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(string_agg(quote_literal(left(word, 500)) || ':' || place, ' '), '')::tsvector
    FROM unnest(string_to_array(search_text, ' ')) WITH ORDINALITY AS words (word, place)
$$;

ALTER TABLE caption
    ADD COLUMN search_vector tsvector GENERATED ALWAYS AS (batchcap_search_vector(search_text)) STORED;

CREATE INDEX ix_caption_search_vector ON caption USING gin (search_vector);

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
WHERE location.vanished_at IS NULL;

ALTER TABLE image ADD COLUMN camera TEXT COLLATE "C";

ALTER TABLE image ADD COLUMN latitude DOUBLE PRECISION;

ALTER TABLE image ADD COLUMN longitude DOUBLE PRECISION;

CREATE OR REPLACE VIEW captions AS
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
WHERE location.vanished_at IS NULL;

CREATE TABLE image_vector (
    caption_id BIGINT NOT NULL,
    vector BYTEA NOT NULL,
    CONSTRAINT pk_image_vector PRIMARY KEY (caption_id),
    CONSTRAINT fk_image_vector_caption_id FOREIGN KEY(caption_id) REFERENCES caption (id)
);

ALTER TABLE model ADD COLUMN vector_size INTEGER;

CREATE INDEX ix_caption_created_at ON caption (created_at);

CREATE TABLE shown (
    caption_id BIGINT NOT NULL,
    files INTEGER NOT NULL,
    CONSTRAINT pk_shown PRIMARY KEY (caption_id),
    CONSTRAINT fk_shown_caption_id FOREIGN KEY(caption_id) REFERENCES caption (id),
    CONSTRAINT ck_shown_files CHECK (files >= 1)
);

ALTER TABLE shown ADD COLUMN search_vector tsvector NOT NULL;

INSERT INTO shown (caption_id, files, search_vector)
SELECT caption.id, found.files, caption.search_vector
FROM (SELECT content_hash, count(*) AS files FROM location WHERE vanished_at IS NULL GROUP BY content_hash)
    AS found
JOIN image ON image.content_hash = found.content_hash
JOIN caption ON caption.id = image.caption_id
ORDER BY caption.id;

CREATE INDEX ix_shown_search_vector ON shown USING gin (search_vector);

ALTER TABLE caption DROP COLUMN search_vector;

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
END $$;

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
END $$;

CREATE FUNCTION batchcap_caption_changed() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE shown SET search_vector = batchcap_search_vector(NEW.search_text) WHERE caption_id = NEW.id;
    RETURN NULL;
END $$;

CREATE TRIGGER shown_location_ai AFTER INSERT ON location REFERENCING NEW TABLE AS new_rows
FOR EACH STATEMENT EXECUTE FUNCTION batchcap_locations_changed();

CREATE TRIGGER shown_location_ad AFTER DELETE ON location REFERENCING OLD TABLE AS old_rows
FOR EACH STATEMENT EXECUTE FUNCTION batchcap_locations_changed();

CREATE TRIGGER shown_location_au AFTER UPDATE ON location
REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
FOR EACH STATEMENT EXECUTE FUNCTION batchcap_locations_changed();

CREATE TRIGGER shown_image_au AFTER UPDATE ON image REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
FOR EACH STATEMENT EXECUTE FUNCTION batchcap_images_changed();

CREATE TRIGGER shown_caption_au AFTER UPDATE OF search_text ON caption
FOR EACH ROW EXECUTE FUNCTION batchcap_caption_changed();
