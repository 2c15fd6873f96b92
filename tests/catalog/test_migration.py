"""Catalogs of older versions, as their own migrations made them, and what becomes of their rows."""

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import create_engine

from batchcap import parts
from batchcap.catalog import Catalog, ModelInfo, migration
from batchcap.catalog.connection import open_database
from batchcap.errors import CatalogVersionError
from batchcap.verify import verify_store
from tests.postgresql import Server

UUID = "5f0d9a4e-0000-4000-8000-000000000001"
RUN = "aaaaaaaa-0000-4000-8000-000000000001"
NOW = "2026-02-01 10:00:00.000000"
F = "f" * 64
OLD = ModelInfo(F, "small", {"embed_dim": 8})
NEW = ModelInfo("0" * 64, "large", {"embed_dim": 16})

# What a run of the first version left: two pictures, a copy of one, a person's caption, a bad file.
ROWS = (
    f"INSERT INTO catalog VALUES (1, '{UUID}', '{NOW}', '0.1.0')",
    f"INSERT INTO model VALUES ('{F}', 'small', '{{}}', '{NOW}')",
    f"INSERT INTO run VALUES ('{RUN}', '[]', '{F}', '{{}}', '{NOW}', '{NOW}', 'done', '{{}}')",
    "INSERT INTO image VALUES ('one', 640, 480, 'jpeg', 100, '2024-06-01 12:00:00', NULL)",
    "INSERT INTO image VALUES ('two', 64, 48, 'png', 200, NULL, NULL)",
    f"INSERT INTO caption VALUES (1, 'one', 'model', '{F}', 'a dog', 'dog', -1, 0.5, 2, '{NOW}')",
    f"INSERT INTO caption VALUES (2, 'two', 'model', '{F}', 'a cat', 'cat', -1, 0.5, 2, '{NOW}')",
    f"INSERT INTO caption VALUES (3, 'two', 'human', NULL, 'Tom', 'tom', NULL, NULL, NULL, '{NOW}')",
    "UPDATE image SET caption_id = 1 WHERE content_hash = 'one'",
    "UPDATE image SET caption_id = 3 WHERE content_hash = 'two'",
    f"INSERT INTO location VALUES ('/photos/1.jpg', 'one', 100, 1, NULL, '{NOW}', NULL)",
    f"INSERT INTO location VALUES ('/photos/2.png', 'two', 200, 1, NULL, '{NOW}', NULL)",
    f"INSERT INTO location VALUES ('/photos/3.jpg', 'one', 100, 1, NULL, '{NOW}', NULL)",
    f"INSERT INTO result VALUES (1, '/photos/1.jpg', 'one', 1, '{RUN}', NULL, '{NOW}')",
    f"INSERT INTO result VALUES (2, '/photos/2.png', 'two', 2, '{RUN}', NULL, '{NOW}')",
    f"INSERT INTO result VALUES (3, '/photos/2.png', 'two', 3, '{RUN}', NULL, '{NOW}')",
    f"INSERT INTO result VALUES (4, '/photos/3.jpg', 'one', 1, '{RUN}', NULL, '{NOW}')",
    f"INSERT INTO quarantine VALUES ('/photos/bad.jpg', 1, 1, NULL, 'empty', 'none', 1, '{RUN}', '{NOW}')",
)
TABLES = ("catalog", "run", "caption", "location", "part", "result", "quarantine")


# Our own role, as an earlier version has made it.
READER = (
    "DO $$ BEGIN CREATE ROLE batchcap_reader NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
    "GRANT SELECT ON captions TO batchcap_reader",
)


@pytest.fixture(params=["sqlite 0001", "postgresql 0001"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A catalog of an old version with rows of the first in it, and somebody's own view upon ours."""
    database_name, version = request.param.split()
    if database_name == "postgresql":
        server: Server = request.getfixturevalue("postgres_server")
        url = server.url(server.new_database())
    else:
        url = f"sqlite:///{tmp_path}/catalog.db"
    database = open_database(url, writable=True)
    with database.write() as connection:
        command.upgrade(migration.alembic_config(connection), "0001")
        for statement in ROWS:
            connection.exec_driver_sql(statement)
        command.upgrade(migration.alembic_config(connection), version)
        connection.exec_driver_sql("CREATE VIEW my_dogs AS SELECT uri FROM captions WHERE caption = 'a dog'")
    if database_name == "postgresql":
        # The numbers that were given by hand.
        with database.write() as connection:
            for table in ("caption", "result"):
                connection.exec_driver_sql(
                    f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))"
                )
            for statement in READER:
                connection.exec_driver_sql(statement)
    database.close()
    return url


def rows_of(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """All that the first version knew, and which version it is."""
    statements = {table: f"SELECT * FROM {table} ORDER BY 1" for table in TABLES}
    statements["image"] = (
        "SELECT content_hash, width, height, format, size_bytes, taken_at, caption_id FROM image ORDER BY 1"
    )
    # All but PostgreSQL's full-text index, which has moved.
    statements["caption"] = (
        "SELECT id, content_hash, source, fingerprint, text, search_text, log_prob, confidence, token_count, "
        "created_at FROM caption ORDER BY 1"
    )
    statements["model"] = "SELECT fingerprint, name, config, created_at FROM model ORDER BY 1"
    statements["my_dogs"] = "SELECT uri FROM my_dogs ORDER BY 1"
    statements["version"] = "SELECT version_num FROM alembic_version"
    engine = create_engine(url)
    with engine.begin() as connection:
        found = {
            name: [tuple(row) for row in connection.exec_driver_sql(statement)]
            for name, statement in statements.items()
        }
    engine.dispose()
    return found


def without_versions(rows: dict[str, list[tuple[Any, ...]]]) -> dict[str, list[tuple[Any, ...]]]:
    """Rows without what a migration is to change."""
    return {**rows, "version": [], "catalog": [row[:3] for row in rows["catalog"]]}


@pytest.mark.parametrize(
    "url",
    [
        f"{database} {version}"
        for database in ("sqlite", "postgresql")
        for version in ("0001", "0002", "0003")
    ],
    indirect=True,
)
def test_an_old_catalog_is_migrated_with_all_its_rows_and_goes_on(
    url: str, tmp_path: Path, entry: Callable[..., Any], captioned: Callable[..., Any]
) -> None:
    before = rows_of(url)
    ((version,),) = before["version"]
    assert version < migration.SCHEMA_VERSION
    with pytest.raises(CatalogVersionError, match=f"schema {version}.* run `batchcap migrate`"):
        Catalog.open(url)
    with Catalog.open(url, mode="write") as catalog:
        with catalog._database.write() as connection:
            command.check(migration.alembic_config(connection))
        assert without_versions(rows_of(url)) == without_versions(before)
        assert rows_of(url)["version"] == [(migration.SCHEMA_VERSION,)]

        # What was known is known, of which nobody read what the camera wrote.
        assert [hit.uri for hit in catalog.search("dogs").hits] == ["/photos/1.jpg", "/photos/3.jpg"]
        with catalog.query("SELECT count(*), count(camera), count(latitude) FROM captions") as found:
            assert list(found.rows) == [(3, 0, 0)]
        entries = [entry("/photos/1.jpg"), entry("/photos/2.png", 200), entry("/photos/4.jpg", 300)]
        (wave,) = catalog.plan(entries, OLD.fingerprint)
        assert (wave.unchanged, wave.todo) == (2, entries[2:])
        with catalog.query("SELECT caption_id, files FROM shown ORDER BY 1") as found:
            assert list(found.rows) == [(1, 2), (3, 1)]
        # Nor has any image a vector, also not one with a person's caption.
        with catalog.query("SELECT count(*) FROM image_vector") as found:
            assert list(found.rows) == [(0,)]
        (wave,) = catalog.plan(entries[:2], OLD.fingerprint, fill_vectors=True)
        assert wave.todo == entries[:2]

        # Until another model captions it: then it is read again, and what is known already stays.
        store = parts.open_store(tmp_path / "store", catalog.uuid)
        with catalog.run(["/photos"], NEW, {}) as run:
            parts.seal(catalog, store, run)
            place = {"camera": "Ace One", "latitude": 48.5, "longitude": -2.25}
            run.commit([replace(captioned("/photos/1.jpg", "a large dog", content="one"), **place)])
            run.commit([replace(captioned("/photos/1.jpg", content="one"), camera="another", latitude=1.0)])
            run.commit([captioned("/photos/1.jpg", content="one")])
            parts.seal(catalog, store, run)
        sql = "SELECT DISTINCT camera, latitude, longitude FROM captions WHERE content_hash = 'one'"
        with catalog.query(sql) as found:
            assert list(found.rows) == [("Ace One", 48.5, -2.25)]
        # The first part was written before, and says nothing of it: that is no contradiction.
        assert verify_store(catalog, store.path).findings == []
        assert [row["camera"] for row in parts.read_parts(store).to_pylist()] == [None] * 4 + ["Ace One"]


def test_a_migration_that_fails_midway_loses_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows_of(url)
    upgrade = migration.upgrade

    def fail(connection: Any) -> None:
        upgrade(connection)
        raise RuntimeError("a bug in a migration")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(migration, "upgrade", fail)
        Catalog.open(url, mode="write")
    assert rows_of(url) == before
    Catalog.open(url, mode="write").close()
    assert without_versions(rows_of(url)) == without_versions(before)


KILLED = """
import os, signal, sys
from batchcap.catalog import Catalog, migration

upgrade = migration.upgrade
def die(connection):
    upgrade(connection)
    os.kill(os.getpid(), signal.SIGKILL)
migration.upgrade = die
Catalog.open(sys.argv[1], mode="write")
"""


def test_a_kill_in_the_middle_of_a_migration_loses_nothing(url: str) -> None:
    before = rows_of(url)
    done = subprocess.run([sys.executable, "-c", KILLED, url], check=False)
    assert done.returncode == -signal.SIGKILL
    assert rows_of(url) == before
    with pytest.raises(CatalogVersionError, match="run `batchcap migrate`"):
        Catalog.open(url)
    with Catalog.open(url, mode="write") as catalog:
        assert catalog.status().images == 2
    assert without_versions(rows_of(url)) == without_versions(before)
