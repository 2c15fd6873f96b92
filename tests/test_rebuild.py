"""The catalog again from its parts: all that they hold, and nothing lost on the way."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap import parts
from batchcap.catalog import Catalog
from batchcap.catalog.sqlite_lock import catalog_lock
from batchcap.errors import CatalogBusyError, CatalogError, NoCatalogError, StoreError
from batchcap.parts import stamped_owner
from batchcap.rebuild import RebuildReport, rebuild_catalog
from batchcap.verify import verify_store
from tests.postgresql import Server
from tests.stores import (
    LARGE,
    RESTORED,
    SMALL,
    captioned,
    copy_of,
    entry,
    execute,
    make_store,
    part_files,
    query,
    restored,
    url_of,
)


@pytest.fixture(scope="module")
def good_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("rebuild") / "store")


@pytest.fixture
def store(good_store: Path, tmp_path: Path) -> Path:
    return copy_of(good_store, tmp_path / "store")


def rebuild(store: Path, *, force: bool = False, skip_damaged: bool = False) -> RebuildReport:
    """Rebuilds, and checks what must be so after every rebuild."""
    report = rebuild_catalog(url_of(store), store, force=force, skip_damaged=skip_damaged)
    with Catalog.open(url_of(store)) as catalog:
        found = verify_store(catalog, store)
    assert (found.findings, found.parts, found.rows) == ([], report.parts, report.rows)
    assert not list(store.rglob(".tmp-*"))
    return report


def asides(store: Path) -> list[str]:
    return sorted(path.name for path in store.glob("*.replaced-*"))


def lose(store: Path) -> None:
    (store / "catalog.db").unlink()


def test_a_lost_catalog_is_there_again(store: Path, good_store: Path) -> None:
    lose(store)
    seen: list[int] = []
    report = rebuild_catalog(url_of(store), store, progress=seen.append)
    assert (report.parts, report.rows, report.aside, report.damaged) == (3, 12, None, [])
    assert seen == [5, 2, 5]
    assert restored(store) == restored(good_store)
    with Catalog.open(url_of(store)) as catalog:
        assert verify_store(catalog, store).findings == []
        assert [hit.uri for hit in catalog.search("rex").hits] == [f"/photos/{n}.jpg" for n in (0, 8, 9)]
        status = catalog.status()
        with catalog.query("SELECT count(*) FROM caption WHERE source = 'human'") as result:
            assert list(result.rows) == [(1,)]
    assert (status.unsealed_rows, status.quarantine, status.vanished) == (0, {}, 0)
    assert sorted(run.counts["restored"] for run in status.runs) == [5, 7]
    # The second part was sealed by a run that logged nothing: it is the first's now, whose rows it has.
    sql = "SELECT run_id FROM part ORDER BY id"
    (first,), (_,), (last,) = query(good_store, sql)
    assert query(store, sql) == [(first,), (first,), (last,)]
    assert asides(store) == []


def test_the_next_run_captions_nothing_of_what_is_restored(store: Path) -> None:
    lose(store)
    rebuild(store)
    sizes = dict(query(store, "SELECT uri, size_bytes FROM location"))
    contents = dict(query(store, "SELECT uri, content_hash FROM location"))
    entries = sorted(
        (entry(number, sizes[f"/photos/{number}.jpg"]) for number in range(10)), key=lambda e: e.uri
    )
    with Catalog.open(url_of(store), mode="write") as catalog:
        (wave,) = catalog.plan(entries, SMALL.fingerprint, recaption=True)
        assert (wave.todo, wave.maybe_known, wave.unchanged) == ([], entries, 0)
        with catalog.run(["/photos"], SMALL, {}) as run:
            assert run.commit_known([(file, contents[file.uri]) for file in wave.maybe_known]) == []
        (wave,) = catalog.plan(entries, SMALL.fingerprint)
        assert (wave.unchanged, wave.todo, wave.maybe_known) == (10, [], [])


# --- what is in the way ---


def test_a_good_catalog_is_not_replaced(store: Path) -> None:
    before = (store / "catalog.db").read_bytes()
    with pytest.raises(CatalogError, match="is not damaged; .* --force"):
        rebuild(store)
    assert (store / "catalog.db").read_bytes() == before
    assert asides(store) == []


def test_force_puts_a_good_catalog_aside_with_its_log(store: Path, good_store: Path) -> None:
    with closing(sqlite3.connect(store / "catalog.db")) as reader, reader:
        # As long as somebody reads, the log is not folded into the file.
        assert reader.execute("SELECT count(*) FROM quarantine").fetchone() == (1,)
        with closing(sqlite3.connect(store / "catalog.db", isolation_level=None)) as writer:
            writer.execute("DELETE FROM quarantine")
        assert (store / "catalog.db-wal").stat().st_size
        report = rebuild(store, force=True)
    assert restored(store) == restored(good_store)
    assert report.aside is not None
    with closing(sqlite3.connect(report.aside)) as old:
        assert old.execute("SELECT count(*) FROM quarantine").fetchone() == (0,)
        assert old.execute("SELECT count(*) FROM run").fetchone() == (3,)


def overwrite(store: Path) -> None:
    (store / "catalog.db").write_bytes(b"no database at all, but more than one hundred bytes of it. " * 50)


def fill_pages(store: Path) -> None:
    size = (store / "catalog.db").stat().st_size
    with (store / "catalog.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))


def empty(store: Path) -> None:
    (store / "catalog.db").write_bytes(b"")


def index_anew(store: Path) -> None:
    """What `index` leaves behind where the catalog is lost: it sees too late whose the store is."""
    lose(store)
    Catalog.open(url_of(store), mode="write").close()


@pytest.mark.parametrize("damage", [overwrite, fill_pages, empty, index_anew])
def test_what_is_no_catalog_any_more_is_put_aside(
    damage: Callable[[Path], None], store: Path, good_store: Path
) -> None:
    damage(store)
    content = (store / "catalog.db").read_bytes()
    report = rebuild(store)
    assert report.aside is not None
    assert report.aside.read_bytes() == content
    assert asides(store) == [report.aside.name]
    assert restored(store) == restored(good_store)


def test_somebody_elses_database_stays_where_it_is(store: Path) -> None:
    lose(store)
    execute(store, "CREATE TABLE account (id INTEGER)")
    with pytest.raises(CatalogError, match="no catalog of batchcap's"):
        rebuild(store)
    assert query(store, "SELECT count(*) FROM account") == [(0,)]


def test_a_log_without_its_database_is_not_taken_for_the_new_ones(store: Path, good_store: Path) -> None:
    lose(store)
    (store / "catalog.db-wal").write_bytes(b"the log of a lost catalog")
    rebuild(store)
    assert restored(store) == restored(good_store)
    (log,) = store.glob("*.replaced-*-wal")
    assert log.read_bytes() == b"the log of a lost catalog"


def test_a_run_is_not_disturbed(store: Path) -> None:
    with (
        Catalog.open(url_of(store), mode="write") as catalog,
        catalog.run(["/photos"], LARGE, {}),
        pytest.raises(CatalogBusyError),
    ):
        rebuild(store, force=True)
    lose(store)
    with catalog_lock(store / "catalog.db"), pytest.raises(CatalogBusyError):
        rebuild(store)


# --- what is missing or wrong in the store ---


def test_without_parts_nothing_is_made(store: Path, tmp_path: Path) -> None:
    before = (store / "catalog.db").read_bytes()
    with pytest.raises(StoreError, match="no Parquet file in"):
        rebuild_catalog(url_of(store), tmp_path / "nowhere", force=True)
    assert (store / "catalog.db").read_bytes() == before
    assert not (tmp_path / "nowhere").exists()


def test_without_a_stamp_the_store_gets_a_new_one(store: Path) -> None:
    lose(store)
    (store / "store.json").unlink()
    rebuild(store)
    ((identity,),) = query(store, "SELECT uuid FROM catalog")
    assert json.loads((store / "store.json").read_text())["catalog"] == str(UUID(identity))


def test_a_damaged_stamp_is_refused(store: Path) -> None:
    lose(store)
    (store / "store.json").write_text("{")
    with pytest.raises(StoreError, match=r"store\.json is damaged; .* remove it"):
        rebuild(store)


def test_damaged_parts_are_left_out_only_if_one_says_so(store: Path) -> None:
    damaged = part_files(store)[1]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    lose(store)
    with pytest.raises(
        StoreError, match=rf"1 of 3 Parquet files are damaged: {damaged.name}; .*--skip-damaged"
    ):
        rebuild(store)
    assert not (store / "catalog.db").exists()
    assert not list(store.glob(".tmp-*"))
    report = rebuild(store, skip_damaged=True)
    assert (report.parts, report.rows) == (2, 10)
    (moved,) = report.damaged
    assert (moved.parent, damaged.exists()) == (store / "damaged", False)
    # What it held is to be captioned again, and nothing else.
    entries = [entry(5, 105), entry(6, 106), entry(7, 103)]
    with Catalog.open(url_of(store)) as catalog:
        (wave,) = catalog.plan(entries, SMALL.fingerprint)
    assert (wave.todo, wave.maybe_known) == (entries[:2], entries[2:])


def test_of_damaged_parts_alone_nothing_is_made(store: Path) -> None:
    for path in part_files(store):
        path.write_bytes(b"PAR1")
    lose(store)
    with pytest.raises(StoreError, match="3 of 3 Parquet files are damaged"):
        rebuild(store, skip_damaged=True)
    assert not (store / "catalog.db").exists()


def add_part(store: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(
        change(pq.read_table(part_files(store)[0])), store / "captions/part-ffffffff-00000.parquet"
    )


def set_column(table: pa.Table, name: str, value: object) -> pa.Table:
    number = table.schema.get_field_index(name)
    field = table.schema.field(number)
    return table.set_column(number, field, pa.array([value] * table.num_rows, field.type))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table, "holds 5 rows that another part holds too"),
        (lambda table: table.slice(0, 0), "holds no rows"),
        (lambda table: table.select(["uri"]), "has other columns"),
        (lambda table: table.replace_schema_metadata({"batchcap.schema_version": "3"}), "install the newest"),
        (lambda table: set_column(table, "source", "oracle"), "holds what no catalog can"),
        (
            lambda table: set_column(set_column(table, "uri", "/other"), "caption", "a cow").slice(0, 1),
            "contradicts another Parquet file: row 1: caption is",
        ),
    ],
)
def test_a_part_that_can_not_belong_to_the_others(
    change: Callable[[pa.Table], pa.Table], message: str, store: Path
) -> None:
    add_part(store, change)
    before = (store / "catalog.db").read_bytes()
    with pytest.raises((CatalogError, StoreError), match=message):
        rebuild(store, force=True)
    assert (store / "catalog.db").read_bytes() == before
    assert not list(store.glob(".tmp-*"))


def test_what_a_killed_rebuild_left_is_cleared_away(store: Path) -> None:
    lose(store)
    for name in (".tmp-4999999-catalog.db", ".tmp-4999999-catalog.db-wal"):
        (store / name).write_bytes(b"half")
    rebuild(store)


def test_of_a_run_with_peoples_captions_alone_no_model_is_known(store: Path) -> None:
    for path in part_files(store)[1:]:
        path.unlink()
    path = part_files(store)[0]
    table = pq.read_table(path)
    for name, value in (("source", "human"), ("fingerprint", None), ("model", None)):
        table = set_column(table, name, value)
    pq.write_table(table, path)
    lose(store)
    rebuild(store)
    assert query(store, "SELECT fingerprint, name FROM model") == [("unknown", "unknown")]
    assert query(store, "SELECT count(*) FROM captions WHERE source = 'human'") == [(5,)]


# --- on a server ---


def test_a_catalog_in_postgresql_is_there_again(
    store: Path, good_store: Path, postgres_server: Server, postgres_url: str
) -> None:
    """Where there is no catalog yet, and where `index` has made an empty one."""
    nothing = postgres_server.url(postgres_server.new_database())
    # A row that two parts have: of the first nothing is there either.
    twice = store / "captions" / f"{part_files(store)[0].name[:-9]}99.parquet"
    twice.write_bytes(part_files(store)[2].read_bytes())
    with pytest.raises(CatalogError, match="holds 5 rows that another part holds too"):
        rebuild_catalog(nothing, store)
    with pytest.raises(NoCatalogError):
        Catalog.open(nothing)
    twice.unlink()
    shown = query(good_store, RESTORED[0])
    for url in (nothing, postgres_url):
        report = rebuild_catalog(url, store)
        assert (report.parts, report.rows, report.aside) == (3, 12, None)
        with Catalog.open(url) as catalog:
            assert catalog.uuid == stamped_owner(store)
            found = verify_store(catalog, store)
            assert (found.findings, found.parts, found.rows) == ([], 3, 12)
            assert [hit.uri for hit in catalog.search("rex").hits] == [f"/photos/{n}.jpg" for n in (0, 8, 9)]
            with catalog.query("SELECT uri, caption, source FROM captions ORDER BY uri") as result:
                assert [row[:2] for row in result.rows] == [(row[0], row[1]) for row in shown]
            status = catalog.status()
        assert sorted(run.counts["restored"] for run in status.runs) == [5, 7]
        # Once there is something, it is left alone.
        for force in (False, True):
            with pytest.raises(CatalogError, match="on a server none is put aside; make an empty database"):
                rebuild_catalog(url, store, force=force)
    with Catalog.open(postgres_url, mode="write") as catalog, catalog.run([], LARGE, {}) as run:
        run.commit([captioned(20, "a newer dog")])
        parts.seal(catalog, parts.open_store(store, catalog.uuid), run)
        assert verify_store(catalog, store).rows == 13
