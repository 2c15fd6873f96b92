-- The catalog in SQLite. Generated from the migrations by sql/schema.py: change those, not this.

CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

CREATE TABLE catalog (
    id INTEGER NOT NULL,
    uuid TEXT NOT NULL,
    created_at DATETIME NOT NULL,
    batchcap_version TEXT NOT NULL,
    CONSTRAINT pk_catalog PRIMARY KEY (id),
    CONSTRAINT ck_catalog_one_row CHECK (id = 1)
);

CREATE TABLE model (
    fingerprint TEXT NOT NULL,
    name TEXT NOT NULL,
    config JSON NOT NULL,
    created_at DATETIME NOT NULL, vector_size INTEGER,
    CONSTRAINT pk_model PRIMARY KEY (fingerprint)
);

CREATE TABLE run (
    id TEXT NOT NULL,
    source JSON NOT NULL,
    fingerprint TEXT NOT NULL,
    options JSON NOT NULL,
    started_at DATETIME NOT NULL,
    finished_at DATETIME,
    state TEXT NOT NULL,
    counts JSON NOT NULL,
    CONSTRAINT pk_run PRIMARY KEY (id),
    CONSTRAINT fk_run_fingerprint FOREIGN KEY(fingerprint) REFERENCES model (fingerprint),
    CONSTRAINT ck_run_state CHECK (state IN ('running', 'done', 'failed', 'interrupted'))
);

CREATE INDEX ix_run_started_at ON run (started_at);

CREATE TABLE image (
    content_hash TEXT NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    format TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    taken_at DATETIME,
    caption_id INTEGER, camera TEXT, latitude DOUBLE, longitude DOUBLE,
    CONSTRAINT pk_image PRIMARY KEY (content_hash),
    CONSTRAINT fk_image_caption_id FOREIGN KEY(caption_id) REFERENCES caption (id)
)
 WITHOUT ROWID
;

CREATE INDEX ix_image_size_bytes ON image (size_bytes);

CREATE INDEX ix_image_caption_id ON image (caption_id);

CREATE TABLE caption (
    id INTEGER NOT NULL,
    content_hash TEXT NOT NULL,
    source TEXT NOT NULL,
    fingerprint TEXT,
    text TEXT NOT NULL,
    search_text TEXT NOT NULL,
    log_prob DOUBLE,
    confidence DOUBLE,
    token_count INTEGER,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_caption PRIMARY KEY (id),
    CONSTRAINT fk_caption_content_hash FOREIGN KEY(content_hash) REFERENCES image (content_hash),
    CONSTRAINT fk_caption_fingerprint FOREIGN KEY(fingerprint) REFERENCES model (fingerprint),
    CONSTRAINT uq_caption_content_hash UNIQUE (content_hash, fingerprint),
    CONSTRAINT ck_caption_source CHECK (source IN ('model', 'human')),
    CONSTRAINT ck_caption_fingerprint CHECK ((source = 'model') = (fingerprint IS NOT NULL))
);

CREATE TABLE location (
    uri TEXT NOT NULL,
    content_hash TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    mtime_ns BIGINT NOT NULL,
    etag TEXT,
    first_seen_at DATETIME NOT NULL,
    vanished_at DATETIME,
    CONSTRAINT pk_location PRIMARY KEY (uri),
    CONSTRAINT fk_location_content_hash FOREIGN KEY(content_hash) REFERENCES image (content_hash)
)
 WITHOUT ROWID
;

CREATE INDEX ix_location_content_hash ON location (content_hash);

CREATE TABLE part (
    id INTEGER NOT NULL,
    name TEXT NOT NULL,
    run_id TEXT NOT NULL,
    state TEXT NOT NULL,
    row_count INTEGER NOT NULL,
    sha256 TEXT,
    CONSTRAINT pk_part PRIMARY KEY (id),
    CONSTRAINT uq_part_name UNIQUE (name),
    CONSTRAINT fk_part_run_id FOREIGN KEY(run_id) REFERENCES run (id),
    CONSTRAINT ck_part_state CHECK (state IN ('pending', 'done'))
);

CREATE TABLE result (
    id INTEGER NOT NULL,
    uri TEXT NOT NULL,
    content_hash TEXT NOT NULL,
    caption_id INTEGER NOT NULL,
    run_id TEXT NOT NULL,
    part_id INTEGER,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_result PRIMARY KEY (id),
    CONSTRAINT uq_result_caption_id UNIQUE (caption_id, uri),
    CONSTRAINT fk_result_caption_id FOREIGN KEY(caption_id) REFERENCES caption (id),
    CONSTRAINT fk_result_run_id FOREIGN KEY(run_id) REFERENCES run (id),
    CONSTRAINT fk_result_part_id FOREIGN KEY(part_id) REFERENCES part (id)
);

CREATE INDEX ix_result_part_id ON result (part_id);

CREATE TABLE quarantine (
    uri TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    mtime_ns BIGINT NOT NULL,
    etag TEXT,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    run_id TEXT NOT NULL,
    updated_at DATETIME NOT NULL,
    CONSTRAINT pk_quarantine PRIMARY KEY (uri),
    CONSTRAINT fk_quarantine_run_id FOREIGN KEY(run_id) REFERENCES run (id),
    CONSTRAINT ck_quarantine_attempts CHECK (attempts >= 1)
)
 WITHOUT ROWID
;

CREATE INDEX ix_quarantine_reason ON quarantine (reason);

CREATE VIRTUAL TABLE caption_fts USING fts5(
    search_text,
    content='caption',
    content_rowid='id',
    tokenize="unicode61 remove_diacritics 2 categories 'L* N* Co Cn'",
    prefix='2 3'
);

CREATE TRIGGER caption_ai AFTER INSERT ON caption BEGIN
    INSERT INTO caption_fts (rowid, search_text) VALUES (new.id, new.search_text);
END;

CREATE TRIGGER caption_ad AFTER DELETE ON caption BEGIN
    INSERT INTO caption_fts (caption_fts, rowid, search_text) VALUES ('delete', old.id, old.search_text);
END;

CREATE TRIGGER caption_au AFTER UPDATE OF id, search_text ON caption BEGIN
    INSERT INTO caption_fts (caption_fts, rowid, search_text) VALUES ('delete', old.id, old.search_text);
    INSERT INTO caption_fts (rowid, search_text) VALUES (new.id, new.search_text);
END;

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
    caption_id INTEGER NOT NULL,
    vector BLOB NOT NULL,
    CONSTRAINT pk_image_vector PRIMARY KEY (caption_id),
    CONSTRAINT fk_image_vector_caption_id FOREIGN KEY(caption_id) REFERENCES caption (id)
);

CREATE INDEX ix_caption_created_at ON caption (created_at);

CREATE TABLE shown (
    caption_id INTEGER NOT NULL,
    files INTEGER NOT NULL,
    CONSTRAINT pk_shown PRIMARY KEY (caption_id),
    CONSTRAINT fk_shown_caption_id FOREIGN KEY(caption_id) REFERENCES caption (id),
    CONSTRAINT ck_shown_files CHECK (files >= 1)
);

CREATE TRIGGER shown_location_ai AFTER INSERT ON location WHEN new.vanished_at IS NULL BEGIN
    INSERT INTO shown (caption_id, files)
    SELECT caption_id, 1 FROM image WHERE content_hash = new.content_hash AND caption_id IS NOT NULL
    ON CONFLICT (caption_id) DO UPDATE SET files = files + 1;
END;

CREATE TRIGGER shown_location_ad AFTER DELETE ON location WHEN old.vanished_at IS NULL BEGIN
    DELETE FROM shown
    WHERE caption_id = (SELECT caption_id FROM image WHERE content_hash = old.content_hash) AND files = 1;
    UPDATE shown SET files = files - 1
    WHERE caption_id = (SELECT caption_id FROM image WHERE content_hash = old.content_hash);
END;

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
END;

CREATE TRIGGER shown_image_au AFTER UPDATE OF caption_id ON image
WHEN old.caption_id IS NOT new.caption_id BEGIN
    DELETE FROM shown WHERE caption_id = old.caption_id;
    INSERT INTO shown (caption_id, files)
    SELECT new.caption_id, count(*) FROM location
    WHERE content_hash = new.content_hash AND vanished_at IS NULL AND new.caption_id IS NOT NULL
    GROUP BY content_hash
    ON CONFLICT (caption_id) DO UPDATE SET files = files + excluded.files;
END;
