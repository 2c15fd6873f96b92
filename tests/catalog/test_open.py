"""Opening: what is made, migrated or refused, and what a damaged file gets."""

import json
import runpy
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory

import batchcap
from batchcap.catalog import Catalog, migration, named_queries, sqlite_file
from batchcap.catalog.resources import sql_directory
from batchcap.errors import CatalogBusyError, CatalogError, CatalogVersionError
from tests.postgresql import Server


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as plain:
        for statement in statements:
            plain.execute(statement)
        plain.commit()


def test_writing_makes_a_catalog_and_its_folder(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new folder/100% of #1?.db".replace("?", "")
    with Catalog.open(url, mode="write") as catalog:
        uuid = catalog.uuid
    with Catalog.open(url) as catalog:
        assert catalog.uuid == uuid
        assert catalog.status().images == 0
    assert (tmp_path / "new folder" / "100% of #1.db").exists()


def test_an_empty_file_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "catalog.db").touch()
    with pytest.raises(CatalogError, match="no catalog"):
        Catalog.open(f"sqlite:///{tmp_path}/catalog.db")
    Catalog.open(f"sqlite:///{tmp_path}/catalog.db", mode="write").close()


def test_reading_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no catalog at .* run `batchcap index` first"):
        Catalog.open(f"sqlite:///{tmp_path}/catalog.db")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql+psycopg2://user:secret@host/db", r"write postgresql\+psycopg://"),
        ("postgresql+psycopg://user:secret@more@host/db", "write %40 for one"),
        ("postgresql+psycopg://user:secret@host:port/db", "that is not a catalog's URL"),
        ("postgresql:/user:secret@host/db", "that is not a catalog's URL"),
        ("postgresql+psycopg://user:secret@host", "names no database"),
        (
            "postgresql+psycopg://user:secret@/db?host=/nowhere",
            "can't reach the catalog at postgresql:///nowhere/db",
        ),
        (
            "postgresql+psycopg://user:secret@/db?host=/nowhere&sslmode=x",
            "can't reach .* invalid sslmode",
        ),
        ("postgresql+psycopg://user:secret@/db?host=/nowhere&verbose=1", "invalid connection option"),
        ("mysql://host/db", "mysql isn't supported"),
        ("/photos/catalog.db", "is not a catalog's URL"),
        ("sqlite://", "a catalog is a file"),
        ("sqlite:///:memory:", "a catalog is a file"),
        ("sqlite:///catalog.db?mode=ro", "a catalog is a file"),
    ],
)
def test_other_urls_are_refused(url: str, message: str) -> None:
    with pytest.raises(CatalogError, match=message) as caught:
        Catalog.open(url)
    assert "secret" not in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "batchcap.catalog.postgresql", raising=False)
    monkeypatch.delitem(sys.modules, "batchcap.catalog.postgresql_query", raising=False)
    with pytest.raises(CatalogError, match=r"pip install 'batchcap\[postgres\]'"):
        Catalog.open("postgresql+psycopg://user:secret@host/db")


def test_reading_can_not_write(url: str) -> None:
    with Catalog.open(url) as catalog, pytest.raises(CatalogError, match="reading only"):
        catalog.finish_part("part-00000000-00000.parquet", 1, "")


def test_the_migrations_make_what_the_classes_say(catalog: Catalog) -> None:
    with catalog._database.write() as connected:
        command.check(migration.alembic_config(connected))


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)  # it is about the scripts
def test_the_newest_migration_is_the_version_that_is_asked_for(catalog: Catalog) -> None:
    with catalog._database.read() as connected:
        script = ScriptDirectory.from_config(migration.alembic_config(connected))
    assert script.get_current_head() == migration.SCHEMA_VERSION


def test_the_printed_schemas_are_up_to_date() -> None:
    schemas = runpy.run_path(str(sql_directory() / "schema.py"))["SCHEMAS"]
    assert [file.name for file in schemas] == ["sqlite.sql", "postgresql.sql"]
    for file, make in schemas.items():
        assert file.read_text(encoding="utf-8") == make(), "run python sql/schema.py"


def test_an_older_catalog_is_refused_by_readers_and_migrated_by_writers(
    url: str, path: Path, other_program, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Catalog.open(url) as catalog:
        uuid = catalog.uuid
    # The shortest way to an older catalog is to call it older; `test_migration.py` has a real one.
    other_program("UPDATE alembic_version SET version_num = '0000'")
    with pytest.raises(CatalogVersionError, match="run `batchcap migrate`"):
        Catalog.open(url)
    monkeypatch.setattr(
        migration,
        "upgrade",
        lambda opened: opened.exec_driver_sql(
            f"UPDATE alembic_version SET version_num = '{migration.SCHEMA_VERSION}'"
        ),
    )
    with Catalog.open(url, mode="write") as catalog:
        assert catalog.uuid == uuid
        if catalog._database.name == "postgresql":
            return  # a server has backups of its own
    (copy,) = path.parent.glob("catalog.db.0000-*")
    with closing(sqlite3.connect(copy)) as plain:
        assert plain.execute("SELECT version_num FROM alembic_version").fetchall() == [("0000",)]
        assert plain.execute("SELECT uuid FROM catalog").fetchall() == [(uuid,)]


def test_a_migration_that_fails_leaves_the_catalog_as_it_was(
    url: str, other_program, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_program("UPDATE alembic_version SET version_num = '0000'")

    def fail(opened: object) -> None:
        opened.exec_driver_sql("DROP VIEW captions")  # type: ignore[attr-defined]
        raise RuntimeError("a bug in a migration")

    monkeypatch.setattr(migration, "upgrade", fail)
    with pytest.raises(RuntimeError):
        Catalog.open(url, mode="write")
    other_program(f"UPDATE alembic_version SET version_num = '{migration.SCHEMA_VERSION}'")
    with Catalog.open(url) as catalog, catalog.query("SELECT count(*) FROM captions") as result:
        assert list(result.rows) == [(0,)]


@pytest.mark.parametrize("mode", ["read", "write"])
def test_a_newer_catalog_is_refused_with_the_version_to_install(url: str, other_program, mode: str) -> None:
    other_program(
        "UPDATE alembic_version SET version_num = '0099'",
        "UPDATE catalog SET batchcap_version = '7.1.0'",
    )
    with pytest.raises(CatalogVersionError, match=r"schema 0099.*install batchcap 7\.1\.0 or newer"):
        Catalog.open(url, mode=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["read", "write"])
def test_a_foreign_database_is_not_touched(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "accounts.db"
    execute(path, "CREATE TABLE account (id INTEGER)")
    before = path.read_bytes()
    with pytest.raises(CatalogError, match="no catalog of batchcap's"):
        Catalog.open(f"sqlite:///{path}", mode=mode)  # type: ignore[arg-type]
    assert path.read_bytes() == before


def test_databases_that_can_hold_no_catalog_are_refused_and_not_touched(postgres_server: Server) -> None:
    foreign = postgres_server.new_database()
    postgres_server.execute("CREATE TABLE run (id int)", database=foreign)
    latin = "latin_1"
    postgres_server.execute(
        f"CREATE DATABASE {latin} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C' LOCALE_PROVIDER libc"
    )
    for mode in ("read", "write"):
        with pytest.raises(CatalogError, match="tables of something else: run; name another, or a schema"):
            Catalog.open(postgres_server.url(foreign), mode=mode)  # type: ignore[arg-type]
    with pytest.raises(CatalogError, match="has the encoding LATIN1"):
        Catalog.open(postgres_server.url(latin), mode="write")
    with pytest.raises(CatalogError, match='database "nowhere" does not exist'):
        Catalog.open(postgres_server.url("nowhere"))
    empty = postgres_server.new_database()
    with pytest.raises(CatalogError, match="no catalog at .* run `batchcap index` first"):
        Catalog.open(postgres_server.url(empty))
    # A schema of its own, beside what is not ours.
    postgres_server.execute("CREATE SCHEMA photos", database=foreign)
    url = postgres_server.url(foreign) + "&options=-csearch_path%3Dphotos"
    with Catalog.open(url, mode="write") as catalog, catalog.query("SELECT count(*) FROM captions") as result:
        assert list(result.rows) == [(0,)]


@pytest.mark.parametrize("mode", ["read", "write"])
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "catalog.db"
    path.write_bytes(b"a letter to my aunt, of more than one hundred bytes. " * 50)
    with pytest.raises(CatalogError, match="is not an SQLite database"):
        Catalog.open(f"sqlite:///{path}", mode=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_damaged_catalog_is_named_as_such(catalog: Catalog, path: Path, captioned) -> None:
    execute(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with (
        pytest.raises(CatalogError, match="is damaged"),
        Catalog.open(f"sqlite:///{path}") as damaged,
    ):
        damaged.status()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_catalog_in_use_by_another_program_is_named_as_such(
    path: Path, model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT_S", 0.0)
    with Catalog.open(f"sqlite:///{path}", mode="write") as catalog, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CatalogError, match="locked"), catalog.run(["/"], model, {}):
            pass


def test_a_migration_waits_for_no_run(catalog: Catalog, url: str, other_program, model) -> None:
    with catalog.run(["/"], model, {}):
        other_program("UPDATE alembic_version SET version_num = '0000'")
        with pytest.raises(CatalogBusyError):
            Catalog.open(url, mode="write")


def test_network_file_systems_are_refused(tmp_path: Path) -> None:
    local = tmp_path / "a disk"
    local.mkdir()
    escaped = str(local).replace(" ", "\\040")
    table = tmp_path / "mounts"
    table.write_text(
        f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n/dev/sdb {escaped} ext4 rw 0 0\n"
    )
    sqlite_file.refuse_network_file_system(local, mount_table=table)
    sqlite_file.refuse_network_file_system(tmp_path, mount_table=tmp_path / "of another system")
    with pytest.raises(CatalogError, match=r"network file system \(nfs4\)"):
        sqlite_file.refuse_network_file_system(tmp_path, mount_table=table)


def test_named_queries_answer(catalog: Catalog, model, captioned, failure) -> None:
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned("/a", content="one"), captioned("/b", content="one")], [failure("/c")])
    queries = catalog.named_queries()
    # The others have rows of their own to be asked about: test_cookbook.py.
    about_these = {"duplicates", "least_certain", "quarantine", "runs"}
    assert queries.keys() > about_these
    assert {name: of.description for name, of in queries.items()} == {
        name: of.description for name, of in named_queries().items()
    }
    assert all(query.description.endswith((".", "?")) for query in queries.values())
    for query in (queries[name] for name in sorted(about_these)):
        with catalog.query(query.sql) as result:
            assert list(result.rows), query.name


def test_importing_the_catalog_is_cheap() -> None:
    code = "import json, sys, batchcap.catalog; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        text=True,
        cwd=Path(batchcap.__file__).parents[1],
    )
    loaded = set(json.loads(done.stdout))
    assert loaded.isdisjoint({"alembic", "ray", "tensorflow", "keras", "pyarrow", "numpy", "PIL"})
