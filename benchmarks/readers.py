"""Does a run keep those waiting who search?

Four processes search all the time: alone, beside a process that only computes, and beside a run that commits
as fast as it can. Prints one JSON object: how long they waited, what went wrong (nothing may), and the waits
beside a run to those beside mere work: what is left is the catalog's own doing.

    python benchmarks/readers.py [--rows 100000] [--catalog postgresql+psycopg://USER@HOST/EMPTY_DATABASE]
"""

import json
import multiprocessing
import random
import statistics
import tempfile
import time
from itertools import islice
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Annotated, Any

import catalog_size
import typer
from catalog_million import sentences
from common import provenance

from batchcap.catalog import Catalog

_READERS = 4
_QUERIES = 200
# How long a process may take to begin, and to end.
_PATIENCE_S = 120
# Forks a process that has imported all, and opened nothing.
_PROCESSES = multiprocessing.get_context("forkserver")


def main(
    rows: Annotated[int, typer.Option(min=1, help="That are there when it begins.")] = 100_000,
    seconds: Annotated[float, typer.Option(help="Of each of the three.")] = 20,
    catalog: Annotated[str | None, typer.Option(help="Of an empty database; SQLite by default.")] = None,
) -> None:
    """Lets readers search."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        url = catalog or f"sqlite:///{folder / 'catalog.db'}"
        catalog_size.write(url, folder, rows, sentences(None))
        found = measure(url, rows, seconds)
    print(
        json.dumps(
            {
                "benchmark": "readers",
                "rounds": 1,
                "database": url.partition(":")[0].partition("+")[0],
                "rows": rows,
                "readers": _READERS,
                "errors": sorted({error for each in found.values() for error in each.pop("errors")}),
                "wait_ms": found,
                "run_to_work": {
                    share: round(found["run"][share] / found["work"][share], 3) for share in ("p50", "p99")
                },
                **provenance(),
            }
        )
    )


def measure(url: str, rows: int, seconds: float) -> dict[str, dict[str, Any]]:
    """How long readers wait, by what is done beside them.

    Args:
        url: of the catalog.
        rows: that were there at the beginning.
        seconds: to search for, each time.
    """
    beside = {"alone": None, "work": compute, "run": commit}
    ends, answers = [_PROCESSES.Event() for _ in beside], _PROCESSES.Queue()
    # The first to have come this far wait for the last.
    ready = _PROCESSES.Barrier(_READERS + 1)
    readers = [
        _PROCESSES.Process(target=read, args=(url, rows, seed, ready, ends, answers), daemon=True)
        for seed in range(_READERS)
    ]
    for reader in readers:
        reader.start()
    found = {}
    for (name, other), ended in zip(beside.items(), ends, strict=True):
        if other is not None:
            begun = _PROCESSES.Event()
            arguments = (url, rows, begun, ended, answers)
            _PROCESSES.Process(target=other, args=arguments, daemon=True).start()
            begun.wait(_PATIENCE_S)
        ready.wait(_PATIENCE_S)
        time.sleep(seconds)
        ended.set()
        said = [answers.get(timeout=_PATIENCE_S) for _ in range(_READERS + (other is not None))]
        found[name] = summary(said, seconds)
    for reader in readers:
        reader.join()
    return found


def summary(said: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What all processes said of one time, together."""
    waits = sorted(wait for each in said for wait in each.get("waits", ()))
    return {
        "searches": len(waits),
        "p50": round(statistics.median(waits), 2),
        "p99": round(waits[int(len(waits) * 0.99)], 2),
        "longest": round(waits[-1], 2),
        "committed_per_s": round(sum(each.get("committed", 0) for each in said) / seconds, 1),
        "errors": [error for each in said for error in each.get("errors", ())],
    }


def read(url: str, rows: int, seed: int, ready: Barrier, ends: list[Event], answers: Any) -> None:
    """Searches, time and again, until each end; says how long each took, and what went wrong."""
    rng, write_caption = random.Random(seed), sentences(None)
    queries = [
        # Two words of a caption that is there: most find ten to a thousand.
        " ".join(rng.sample(write_caption(random.Random(rng.randrange(rows))).split(), 2))
        for _ in range(_QUERIES)
    ]
    with Catalog.open(url) as catalog:
        catalog.search(queries[0])
        for ended in ends:
            waits: list[float] = []
            errors: list[str] = []
            ready.wait(_PATIENCE_S)
            while not ended.is_set() or not waits:
                started = time.perf_counter()
                try:
                    catalog.search(rng.choice(queries))
                except Exception as error:
                    errors.append(repr(error))
                waits.append((time.perf_counter() - started) * 1000)
            answers.put({"waits": waits, "errors": errors})


def commit(url: str, rows: int, begun: Event, ended: Event, answers: Any) -> None:
    """Commits other images until it is told to end."""
    committed = 0
    made = catalog_size.captioned(sentences(None), start=rows)
    with Catalog.open(url, mode="write") as catalog, catalog.run(["/mnt"], catalog_size.MODEL, {}) as run:
        while not ended.is_set():
            batch = list(islice(made, catalog_size.COMMIT_ROWS))
            run.commit(batch)
            committed += len(batch)
            begun.set()
    answers.put({"committed": committed})


def compute(url: str, rows: int, begun: Event, ended: Event, answers: Any) -> None:
    """Makes such captions, and keeps them to itself."""
    made = catalog_size.captioned(sentences(None), start=rows)
    begun.set()
    while not ended.is_set():
        next(made)
    answers.put({})


if __name__ == "__main__":
    typer.run(main)
