"""`batchcap forget`, killed while a part is replaced; tests/test_forgetting.py has all points."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from batchcap import parts
from batchcap.catalog import Captioned, Catalog, ModelInfo
from batchcap.verify import verify_store

DRIVER = Path(__file__).with_name("driver.py")
MODEL = ModelInfo("f" * 64, "small")


@pytest.mark.parametrize("point", ["replacing-a-part", "part-replaced"])
def test_the_next_run_does_the_rest(tmp_path: Path, point: str) -> None:
    url = f"sqlite:///{tmp_path / 'catalog.db'}"
    with Catalog.open(url, mode="write") as catalog, catalog.run([], MODEL, {}) as run:
        run.commit(
            [
                Captioned(uri, 1, 1, None, uri, 30, 20, "png", None, f"the picture {uri}", -1.0, 0.5, 3)
                for uri in ("/a", "/b", "/c")
            ]
        )
        parts.seal(catalog, parts.open_store(tmp_path, catalog.uuid), run)
    command = [sys.executable, DRIVER, "kill-at", point, "--", "forget", "/b", "--store", tmp_path]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    with Catalog.open(url, mode="write") as catalog:
        store = parts.open_store(tmp_path, catalog.uuid)
        in_between = verify_store(catalog, tmp_path)
        assert set(in_between.counts) <= {"leftover"} and in_between.pending_parts == 1
        # Whole before as after, and nothing twice.
        uris = parts.read_parts(store)["uri"].to_pylist()
        assert uris == (["/a", "/b", "/c"] if point == "replacing-a-part" else ["/a", "/c"])
        with catalog.run([], MODEL, {}):
            parts.seal_pending(catalog, store)
        found = verify_store(catalog, tmp_path)
        assert (found.findings, found.rows, found.pending_parts) == ([], 2, 0)
        assert parts.read_parts(store)["uri"].to_pylist() == ["/a", "/c"]
        assert not list(tmp_path.rglob(".tmp-*"))
