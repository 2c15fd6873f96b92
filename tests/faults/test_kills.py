"""A run that is killed, at any point: afterwards a plain run ends with every image exactly once."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from batchcap import parts
from batchcap.captioner.images import decode_image
from batchcap.catalog import Catalog
from batchcap.pipeline import index_collection
from batchcap.verify import Verification, verify_store
from tests.conftest import make_photo
from tests.costless import Costless
from tests.processes import ends

DRIVER = Path(__file__).with_name("driver.py")
# Four blocks of rows, hence four commits.
FILES = 200


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(FILES):
        make_photo(folder / f"{number:03}.png", number, (16, 12))
    return folder


@pytest.fixture(scope="module")
def undisturbed(pictures: Path) -> dict[str, str]:
    """The caption of each picture, by its uri."""
    captioner = Costless()
    paths = sorted(pictures.iterdir())
    captions = captioner.caption([decode_image(path.read_bytes(), captioner.image_spec) for path in paths])
    found = {str(path): caption.text for path, caption in zip(paths, captions, strict=True)}
    # Otherwise nobody would notice that two have changed places.
    assert len(set(found.values())) == FILES
    return found


def run(
    *fault: str, pictures: Path, store: Path, arguments: tuple[str, ...] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    """`batchcap index` with a fault, see `driver.py`."""
    command = [sys.executable, str(DRIVER), *fault, "--", "index", str(pictures), "--store", str(store)]
    return subprocess.run(
        [*command, *arguments],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def counts(store: Path) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]:
    """(uri, caption) of the results in SQL, and in the Parquet files."""
    with Catalog.open(f"sqlite:///{store / 'catalog.db'}") as catalog:
        sql = "SELECT uri, text FROM result JOIN caption ON caption.id = caption_id"
        with catalog.query(sql) as result:
            in_sql = Counter((uri, text) for uri, text in result.rows)
        table = parts.read_parts(parts.open_store(store, catalog.uuid))
    return in_sql, Counter(zip(table["uri"].to_pylist(), table["caption"].to_pylist(), strict=True))


def verified(store: Path) -> Verification:
    with Catalog.open(f"sqlite:///{store / 'catalog.db'}") as catalog:
        return verify_store(catalog, store)


def check_unfinished(store: Path) -> int:
    """What must hold after any kill; returns how many results there are."""
    in_sql, in_parquet = counts(store)
    assert set(in_sql.values()) <= {1}
    assert set(in_parquet.values()) <= {1}
    assert in_parquet.keys() <= in_sql.keys()
    # The killed run may have been writing a part.
    assert set(verified(store).counts) <= {"leftover"}
    return len(in_sql)


def check_finished(store: Path, expected: dict[str, str]) -> None:
    in_sql, in_parquet = counts(store)
    assert in_sql == in_parquet == Counter(expected.items())
    found = verified(store)
    assert (found.rows, found.findings) == (len(expected), [])
    with Catalog.open(f"sqlite:///{store / 'catalog.db'}") as catalog:
        status = catalog.status()
    assert status.unsealed_rows == 0
    assert set(status.parts) == {"done"}
    assert status.runs[0].state == "done"
    assert {run.state for run in status.runs[1:]} == {"interrupted"}
    names = {path.name for path in (store / "captions").iterdir()}
    assert names == {path.name for path in (store / "captions").glob("part-*.parquet")}


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory, pictures: Path, undisturbed: dict[str, str]) -> Path:
    """A store with every caption in SQL and none in Parquet, after runs that were stopped in all ways."""
    folder = tmp_path_factory.mktemp("killed")
    store = folder / "store"
    options = {"pictures": pictures, "store": store}
    done = []

    on_ray = {"ON_RAY": "1", "DESCENDANTS": str(folder / "pids")}
    killed = run("kill-at", "second-commit", **options, **on_ray)  # type: ignore[arg-type]
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done.append(check_unfinished(store))
    descendants: dict[str, str] = json.loads((folder / "pids").read_text())
    assert any("CaptionWorker" in title for title in descendants.values())
    # Ray's two agents, which hold nothing, give up after a minute; all else goes at once.
    others = {pid: title for pid, title in descendants.items() if not title.endswith("Agent")}
    assert not {title for pid, title in others.items() if not ends(int(pid), within_s=40)}

    interrupted = run("signal", "SIGINT", **options)  # type: ignore[arg-type]
    assert interrupted.returncode == 130
    assert interrupted.stdout == ""
    assert interrupted.stderr == "batchcap: interrupted; what was committed stays, run again to go on\n"
    done.append(check_unfinished(store))

    # Ray has a handler of its own.
    terminated = run("signal", "SIGTERM", **options, arguments=("--json",), ON_RAY="1")  # type: ignore[arg-type]
    assert terminated.returncode == 130
    assert json.loads(terminated.stdout)["error"]["code"] == "interrupted"
    assert terminated.stderr.count("\n") == 1
    done.append(check_unfinished(store))
    # Each of them left something done, and something to do.
    assert 0 < done[0] < done[1] < done[2] < FILES

    killed = run("kill-at", "naming-a-part", **options)  # type: ignore[arg-type]
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert check_unfinished(store) == FILES
    assert not list((store / "captions").iterdir())
    return store


POINTS = ("naming-a-part", "writing-a-part", "publishing-a-part", "part-published", "part-finished")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("point", POINTS)
def test_every_image_is_there_once_after_a_kill(
    point: str,
    committed: Path,
    pictures: Path,
    undisturbed: dict[str, str],
    tmp_path: Path,
) -> None:
    store = shutil.copytree(committed, tmp_path / "store")
    options = {"pictures": pictures, "store": store}
    killed = run("kill-at", point, **options)  # type: ignore[arg-type]
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert check_unfinished(store) == FILES

    with Catalog.open(f"sqlite:///{store / 'catalog.db'}", mode="write") as catalog:
        again = index_collection([str(pictures)], catalog, store, Costless())
    assert (again.captioned, again.unchanged, again.quarantined) == (0, FILES, {})
    check_finished(store, undisturbed)


def test_an_interrupted_dry_run_has_written_nothing_and_says_so(pictures: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    sample = ("--dry-run", "--sample", str(FILES))
    stopped = run("signal-early", "SIGINT", pictures=pictures, store=store, arguments=sample)
    assert (stopped.returncode, stopped.stdout) == (130, "")
    assert stopped.stderr == "batchcap: interrupted; nothing was written\n"
    stopped = run("signal-early", "SIGTERM", pictures=pictures, store=store, arguments=(*sample, "--json"))
    assert stopped.returncode == 130
    error = {"code": "interrupted", "message": "interrupted; nothing was written"}
    assert json.loads(stopped.stdout) == {"error": error}
    assert not store.exists()
