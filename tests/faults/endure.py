"""Kills runs over and over, at points and instants drawn from a seed, and looks what is left after each.

    python -m tests.faults.endure [--kills 100] [--images 3000] [--seed 0]

Each run is a process of its own that indexes small pictures with a captioner that costs nothing. Killed are
the driver, at a named point of the commit protocol or at any instant; one of its workers (the network, a
loader, a decoder); or the node, as far as there is one on this machine: Ray's raylet. The last
few files of a store are captioned without Ray. After each kill every
result must be once in SQL and at most once in Parquet; after the last plain run, every image once in both,
with nothing left over. When all images are done before the kills are, the next run starts a new store.
Prints one JSON line a kill, and one at the end; the exit status is 1 if anything was wrong.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from batchcap import parts
from batchcap.catalog import Catalog
from batchcap.verify import verify_store
from tests.conftest import make_photo
from tests.costless import Costless
from tests.faults.driver import POINTS, around, kill_at
from tests.processes import descendants, title

ROOT = Path(__file__).parents[2]
# What is killed how often. Node and workers take part of the run with them; the rest must see it through.
VICTIMS = {"point": 3, "driver": 4, "CaptionWorker": 2, "LoadImages": 1, "decoder_child": 1, "raylet": 1}
_RUN_TIMEOUT_S = 120


class Failed(Exception):
    """What was found is not what was promised."""


def index(photos: str, store: str, point: str) -> None:
    """One run, in this process; says on stdout when something was committed."""
    from batchcap.catalog import Run
    from batchcap.pipeline import index_collection
    from batchcap.run_options import IndexOptions

    around(Run, "commit", after=lambda *_: print("committed", flush=True))
    if point:
        kill_at(point)
    options = IndexOptions(batch_size=64, in_process_files=200)
    with Catalog.open(f"sqlite:///{store}/catalog.db", mode="write") as catalog:
        index_collection([photos], catalog, Path(store), Costless(), options=options)


def start(photos: Path, store: Path, point: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.faults.endure", "--index", str(photos), str(store), point]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def kill_once(draw: random.Random, photos: Path, store: Path) -> dict[str, Any]:
    """Starts a run, kills something of it, waits for its end, and says what was done."""
    (victim,) = draw.choices(list(VICTIMS), list(VICTIMS.values()))
    point = draw.choice(POINTS) if victim == "point" else ""
    commits, delay_s = draw.choice([0, 1, 1, 2, 3, 5]), draw.random() * 0.5
    run = start(photos, store, point)
    killed: str | None = None
    with run:
        assert run.stdout is not None
        if victim != "point":
            for _ in range(commits):
                run.stdout.readline()
            # Not waiting for anything: the instant is the point.
            time.sleep(delay_s if commits else 20 * delay_s)
            killed = kill(run.pid, victim, draw)
        try:
            run.wait(_RUN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            run.kill()
            raise Failed(f"the run hangs after {victim} was killed") from None
    return {"victim": point or victim, "after_commits": commits, "killed": killed, "status": run.returncode}


def kill(driver: int, victim: str, draw: random.Random) -> str | None:
    """Sends SIGKILL; says to whom, or None if it was not there."""
    if victim == "driver":
        os.kill(driver, signal.SIGKILL)
        return victim
    found = [(pid, name) for pid in descendants(driver) if victim in (name := title(pid))]
    if not found:
        return None
    pid, name = draw.choice(found)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return None
    return name[:40]


def look(store: Path) -> int:
    """What must hold after any kill; returns how many results there are."""
    if not (store / "catalog.db").exists():
        return 0
    in_sql, in_parquet = counts(store)
    if set(in_sql.values()) - {1} or set(in_parquet.values()) - {1}:
        raise Failed("a result is there more than once")
    if lost := in_parquet.keys() - in_sql.keys():
        raise Failed(f"in Parquet and not in SQL: {sorted(lost)[:3]}")
    # What was killed may have been writing.
    verify(store, allowed={"leftover"})
    return len(in_sql)


def verify(store: Path, allowed: set[str]) -> None:
    """What `batchcap verify` looks at, and nothing of it may be wrong but for what is allowed."""
    with Catalog.open(f"sqlite:///{store / 'catalog.db'}") as catalog:
        found = verify_store(catalog, store)
    if found.counts.keys() - allowed:
        raise Failed(str(found.error()))


def counts(store: Path) -> tuple[Counter[tuple[str, ...]], Counter[tuple[str, ...]]]:
    """(uri, content, caption) of the results in SQL, and in the Parquet files."""
    with Catalog.open(f"sqlite:///{store / 'catalog.db'}") as catalog:
        sql = "SELECT uri, result.content_hash, text FROM result JOIN caption ON caption.id = caption_id"
        with catalog.query(sql) as result:
            in_sql = Counter(tuple(row) for row in result.rows)
        table = parts.read_parts(parts.open_store(store, catalog.uuid))
    columns = (table[name].to_pylist() for name in ("uri", "content_hash", "caption"))
    return in_sql, Counter(zip(*columns, strict=True))


def finish(photos: Path, store: Path, images: int) -> None:
    """A plain run; then everything must be there, once, and nothing else."""
    with start(photos, store) as run:
        if run.wait(_RUN_TIMEOUT_S):
            raise Failed("the last run failed")
    in_sql, in_parquet = counts(store)
    if in_sql != in_parquet or len(in_sql) != images or set(in_sql.values()) != {1}:
        raise Failed(f"{len(in_sql)} results in SQL and {len(in_parquet)} in Parquet for {images} images")
    verify(store, allowed=set())
    with Catalog.open(f"sqlite:///{store / 'catalog.db'}") as catalog:
        status = catalog.status()
        known = set(status.parts)
        with catalog.query("SELECT name FROM part") as result:
            named = {name for (name,) in result.rows}
    found = {path.name for path in (store / "captions").iterdir()}
    if known != {"done"} or status.unsealed_rows or found != named:
        raise Failed(
            f"left over: {sorted(found ^ named)}, parts {status.parts}, {status.unsealed_rows} unsealed"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--index", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.index:
        index(*options.index)
        return 0
    draw = random.Random(options.seed)
    by_victim: Counter[str] = Counter()
    stores = 0
    with tempfile.TemporaryDirectory() as made:
        photos = Path(made, "photos")
        for number in range(options.images):
            make_photo(photos / f"{number // 500:03}" / f"{number:05}.png", number, (8, 6))
        store = Path(made, f"store-{stores}")
        try:
            for number in range(options.kills):
                if look(store) == options.images:
                    finish(photos, store, options.images)
                    stores += 1
                    store = Path(made, f"store-{stores}")
                done = kill_once(draw, photos, store)
                by_victim[done["victim"]] += 1
                print(
                    json.dumps({"kill": number, **done, "store": stores, "results": look(store)}), flush=True
                )
            finish(photos, store, options.images)
        except Failed as error:
            print(json.dumps({"seed": options.seed, "failed": str(error)}))
            return 1
    print(
        json.dumps({"kills": options.kills, "by_victim": dict(by_victim), "stores": stores + 1, "ok": True})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
