"""A rebuild that is killed, at any point: all is still there, and the next rebuild ends well."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from batchcap.catalog import Catalog
from batchcap.rebuild import rebuild_catalog
from batchcap.verify import verify_store
from tests.stores import copy_of, make_store, query, restored, url_of

DRIVER = Path(__file__).with_name("driver.py")


@pytest.fixture(scope="module")
def good_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("rebuild") / "store")


@pytest.mark.parametrize("point", ["part-restored", "catalog-put-aside", "catalog-published"])
def test_nothing_is_lost_by_a_kill(point: str, good_store: Path, tmp_path: Path) -> None:
    store = copy_of(good_store, tmp_path / "store")
    arguments = ("verify", "--rebuild", "--force", "--store", store)
    killed = subprocess.run(
        [sys.executable, DRIVER, "kill-at", point, "--", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    # The catalog with all that it had has its name, or another.
    asides = list(store.glob("*.replaced-*"))
    assert len(asides) == (point != "part-restored")
    for path in asides or [store / "catalog.db"]:
        assert path.read_bytes() == (good_store / "catalog.db").read_bytes()
    # What has its name is whole.
    assert (store / "catalog.db").exists() == (point != "catalog-put-aside")
    if (store / "catalog.db").exists():
        with Catalog.open(url_of(store)) as catalog:
            found = verify_store(catalog, store)
        assert (set(found.counts), found.rows) == ({"leftover"}, 12)

    report = rebuild_catalog(url_of(store), store, force=True)
    assert (report.parts, report.rows) == (3, 12)
    assert restored(store) == restored(good_store)
    with Catalog.open(url_of(store)) as catalog:
        assert verify_store(catalog, store).findings == []
    assert query(store, "SELECT count(*) FROM quarantine") == [(0,)]
