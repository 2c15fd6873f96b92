"""Parts that are damaged or gone are written again from the catalog, where that can vouch for their rows."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from batchcap import parts
from batchcap.catalog import Catalog
from batchcap.cli import app
from batchcap.errors import CatalogBusyError, StoreError, VerificationError
from batchcap.repair import RepairReport, repair_parts
from batchcap.verify import Verification, verify_store
from tests.stores import LARGE, captioned, copy_of, execute, make_store, part_files, restored, url_of


@pytest.fixture(scope="module")
def good_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("repair") / "store")


@pytest.fixture
def store(good_store: Path, tmp_path: Path) -> Path:
    return copy_of(good_store, tmp_path / "store")


def verify(store: Path) -> Verification:
    with Catalog.open(url_of(store)) as catalog:
        return verify_store(catalog, store)


def repair(store: Path) -> RepairReport:
    found = verify(store)
    with Catalog.open(url_of(store), mode="edit") as catalog:
        return repair_parts(catalog, store, found)


def content(paths: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


def batchcap(store: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["verify", *arguments, "--store", str(store)])


def test_what_is_damaged_or_gone_is_written_again(store: Path, good_store: Path) -> None:
    files = part_files(store)
    whole = content(files)
    files[0].write_bytes(whole[0][:-100])
    files[1].unlink()
    # The same rows, by another program.
    pq.write_table(pq.read_table(files[2]), files[2], compression="snappy")
    damaged = content([files[0], files[2]])
    assert dict(verify(store).counts) == {"part_damaged": 1, "part_missing": 1, "part_bytes": 1}

    done = batchcap(store, "--repair", "--json")
    answer = json.loads(done.stdout)
    assert (done.exit_code, answer["findings"], answer["rows"]) == (0, [], 12)
    assert answer["repaired"]["parts"] == [path.name for path in files]
    aside = [Path(path) for path in answer["repaired"]["aside"]]
    assert content(aside) == damaged and {path.parent for path in aside} == {store / "damaged"}
    # Byte for byte what had been written, and the catalog is what it was.
    assert content(files) == whole
    assert restored(store) == restored(good_store)
    assert not list(store.rglob(".tmp-*"))
    # There is nothing left to do.
    assert repair(store) == RepairReport()
    assert batchcap(store, "--repair").stdout == batchcap(store).stdout


def test_a_part_of_an_older_version_comes_back_as_one_of_today(store: Path) -> None:
    path = part_files(store)[0]
    table = pq.read_table(path).select(parts.PART_SCHEMA.names[:-3])
    pq.write_table(table.replace_schema_metadata({"batchcap.schema_version": "1"}), path)
    with Catalog.open(url_of(store), mode="edit") as catalog:
        catalog.finish_part(path.name, 5, parts.sha256_of(path))
    assert verify(store).findings == []
    path.write_bytes(path.read_bytes()[:-8])
    assert repair(store).parts == [path.name]
    assert verify(store).findings == []
    assert pq.read_schema(path).metadata[b"batchcap.schema_version"] == b"2"


def rewrite(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        path = part_files(store)[0]
        pq.write_table(change(pq.read_table(path)), path)

    return damage


def lose_a_row(store: Path) -> None:
    part_files(store)[0].unlink()
    execute(store, "DELETE FROM result WHERE id = 1")


LEFT = {
    "other rows": (rewrite(lambda table: table.slice(0, 4)), "part_rows"),
    "a newer version": (
        rewrite(lambda table: table.replace_schema_metadata({"batchcap.schema_version": "99"})),
        "part_damaged",
    ),
    "another program's": (rewrite(lambda table: table.select(["uri"])), "part_damaged"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_nobody_can_vouch_for_is_left(name: str, store: Path) -> None:
    damage, kind = LEFT[name]
    damage(store)
    before = content(part_files(store))
    done = batchcap(store, "--repair")
    assert done.exit_code == 1 and f"1 {kind}" in done.stderr
    assert content(part_files(store)) == before and not (store / "damaged").exists()
    assert verify(store).pending_parts == 0


def test_a_catalog_with_faults_repairs_nothing(store: Path) -> None:
    part_files(store)[0].unlink()
    execute(store, "UPDATE image SET caption_id = NULL WHERE content_hash = 'content 4'")
    with pytest.raises(VerificationError, match="the catalog has faults: 1 no_live_caption; "):
        repair(store)
    assert not part_files(store)[0].exists()


def test_a_part_of_which_the_catalog_lost_rows_is_left(store: Path) -> None:
    lose_a_row(store)
    found = Verification()
    for finding in verify(store).findings:
        # As if nothing else told of it.
        if finding.kind.value == "part_missing":
            found.add(finding)
    with Catalog.open(url_of(store), mode="edit") as catalog:
        assert repair_parts(catalog, store, found) == RepairReport()
    assert not part_files(store)[0].exists()


def test_it_keeps_off_from_a_run_and_from_another_store(store: Path, tmp_path: Path) -> None:
    part_files(store)[0].unlink()
    with Catalog.open(url_of(store), mode="write") as catalog:
        with catalog.run([], LARGE, {}), pytest.raises(CatalogBusyError):
            repair(store)
        elsewhere = tmp_path / "elsewhere"
        with pytest.raises(StoreError, match="are not in"):
            repair_parts(catalog, elsewhere, verify_store(catalog, elsewhere))
    assert not elsewhere.exists()
    # A run that was killed has left a part: it is written as well.
    with Catalog.open(url_of(store), mode="write") as catalog, catalog.run([], LARGE, {}) as run:
        run.commit([captioned(30, "a newer dog")])
        pending = catalog.assign_part(run.id)
        assert pending is not None
    assert repair(store).parts == [part_files(store)[0].name]
    assert (store / "captions" / pending.name).exists()
    assert batchcap(store, "--repair", "--rebuild").exit_code == 2


def test_a_file_that_can_not_be_read_is_left(store: Path) -> None:
    path = part_files(store)[0]
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root may read everything")
    assert repair(store) == RepairReport()
    assert stat.S_IMODE(path.stat().st_mode) == 0


def test_it_works_in_postgresql(postgres_url: str, tmp_path: Path) -> None:
    with Catalog.open(postgres_url, mode="write") as catalog:
        opened = parts.open_store(tmp_path / "store", catalog.uuid)
        with catalog.run(["/photos"], LARGE, {}) as run:
            run.commit([captioned(number, f"dog {number}") for number in range(5)])
            (part,) = parts.seal(catalog, opened, run)
        path = opened.captions / part.name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        found = verify_store(catalog, opened.path)
        assert repair_parts(catalog, opened.path, found).parts == [part.name]
        assert (path.read_bytes(), verify_store(catalog, opened.path).findings) == (whole, [])
