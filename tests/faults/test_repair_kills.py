"""`batchcap verify --repair`, killed while a damaged part is replaced."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from batchcap import parts
from batchcap.catalog import Catalog
from batchcap.verify import verify_store
from tests.stores import SMALL, make_store, part_files, restored, url_of

DRIVER = Path(__file__).with_name("driver.py")


@pytest.mark.parametrize("point", ["part-reopened", "replacing-a-part", "part-replaced"])
def test_the_next_run_does_the_rest(tmp_path: Path, point: str) -> None:
    store = make_store(tmp_path / "store")
    before = restored(store)
    path = part_files(store)[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    command = [sys.executable, DRIVER, "kill-at", point, "--", "verify", "--repair", "--store", store]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    # Damaged before, whole after; the catalog knows that it is still to be written.
    assert path.read_bytes() == (whole if point == "part-replaced" else whole[:-100])
    (aside,) = (store / "damaged").iterdir()
    assert aside.read_bytes() == whole[:-100]
    with Catalog.open(url_of(store), mode="write") as catalog:
        in_between = verify_store(catalog, store)
        assert set(in_between.counts) <= {"leftover"} and in_between.pending_parts == 1
        with catalog.run([], SMALL, {}):
            parts.seal_pending(catalog, parts.open_store(store, catalog.uuid))
        found = verify_store(catalog, store)
        assert (found.findings, found.rows, found.pending_parts) == ([], 12, 0)
    assert (path.read_bytes(), restored(store)) == (whole, before)
    assert not list(store.rglob(".tmp-*"))
