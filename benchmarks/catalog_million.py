"""Is a catalog of a million captions still fast?

Prints one JSON object: captions a second through the commits of a run, bytes a caption on disk, the seconds
of a plan that finds nothing to do, and how long searches take, by how much they find: the count of all hits
and the first page of 20, in a process that has the catalog open. Nothing is captioned: words are made up, and
as unevenly common as those of a language (Zipf's law), or those of `--captions`.

    python benchmarks/catalog_million.py [--rows 1000000] [--captions FILE.tsv]
    python benchmarks/catalog_million.py --catalog postgresql+psycopg://USER@HOST/EMPTY_DATABASE

With `--folder` what was made is kept there (PostgreSQL: in the database), and a call that is ended, or was
given no more than `--load-s` seconds, is gone on from.
"""

import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import accumulate, islice
from pathlib import Path
from typing import Annotated, Any

import catalog_size
import typer
from common import provenance

from batchcap import parts
from batchcap.catalog import Catalog

# Queries by how much they find, and how long 95 of 100 of them may take.
GROUPS = {"to_100": (1, 100), "to_10000": (101, 10_000), "more": (10_001, 2**63)}
GOALS_MS = {"to_100": 50, "to_10000": 50, "more": 500}
_PAGE = 20
_VOCABULARY = 5000
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprtvz" for vowel in "aeiou"]


def main(
    rows: Annotated[int, typer.Option(min=1)] = 1_000_000,
    catalog: Annotated[str | None, typer.Option(help="Of a database; SQLite by default.")] = None,
    captions: Annotated[
        Path | None, typer.Option(help="Captions to draw from: a table, tabs between columns, the last's.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="For what is made; it is kept.")] = None,
    load_s: Annotated[float, typer.Option(help="End after so many seconds if rows are missing.")] = 1e9,
    queries: Annotated[int, typer.Option(min=1, help="In each group, at most.")] = 200,
    search_s: Annotated[float, typer.Option(help="For the searches, about.")] = 120,
) -> None:
    """Loads a catalog, and asks it."""
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = catalog or f"sqlite:///{place.absolute() / 'catalog.db'}"
        write_caption = sentences(captions)
        progress = load(url, place, rows, write_caption, load_s)
        if progress["rows"] < rows:
            raise SystemExit(f"{progress['rows']:,} of {rows:,} rows are there; call again")
        size = catalog_bytes(url, place)
        plan_s = time_plan(url, rows)
        found = time_searches(url, rows, write_caption, queries, search_s)
    parquet = progress["parquet_bytes"]
    print(
        json.dumps(
            {
                "benchmark": "catalog_million",
                "rounds": 1,
                "database": url.partition(":")[0].partition("+")[0],
                "rows": rows,
                "captions": "made up" if captions is None else captions.name,
                "commit_rows": catalog_size.COMMIT_ROWS,
                "committed_per_s": round(rows / progress["commit_s"], 1),
                "loaded_per_s": round(rows / (progress["commit_s"] + progress["seal_s"]), 1),
                "last_to_first_commits": last_to_first(progress["commits_per_s"]),
                "catalog_bytes_per_image": round(size / rows, 1),
                "parquet_bytes_per_image": round(parquet / rows, 1),
                "plan_s": round(plan_s, 2),
                "plan_us_per_file": round(plan_s / rows * 1e6, 2),
                "search_ms": found,
                "goals_ms": GOALS_MS,
                "p95_to_goal": {
                    name: round(each["p95"] / GOALS_MS[name], 3) for name, each in found.items() if each
                },
                **provenance(),
            }
        )
    )


def sentences(captions: Path | None) -> Callable[[random.Random], str]:
    """What writes a caption: one of a file, or words of which the n-th has about 1/n of the first's share."""
    if captions is not None:
        lines = captions.read_text(encoding="utf-8").splitlines()[1:]
        texts = [line.rpartition("\t")[2] for line in lines]
        return lambda rng: rng.choice(texts)
    spoken = ("".join(parts) for parts in itertools.product(_SYLLABLES, repeat=3))
    words = random.Random(0).sample(list(islice(spoken, 200_000)), _VOCABULARY)
    # Mandelbrot's offset: no word makes up more than a few percent of all.
    shares = list(accumulate(1 / (rank + 3) for rank in range(_VOCABULARY)))
    return lambda rng: " ".join(rng.choices(words, cum_weights=shares, k=rng.randint(8, 13)))


def load(
    url: str, folder: Path, rows: int, write_caption: Callable[[random.Random], str], load_s: float
) -> dict[str, Any]:
    """Commits and seals the rows that are missing; what that took, over all calls."""
    notes = folder / "progress.json"
    progress: dict[str, Any] = {"rows": 0, "commit_s": 0.0, "seal_s": 0.0, "commits_per_s": []}
    if notes.exists():
        progress = json.loads(notes.read_text(encoding="utf-8"))
    if progress["rows"] >= rows:
        return progress
    deadline = time.perf_counter() + load_s
    with (
        Catalog.open(url, mode="write") as catalog,
        catalog.run(["/mnt"], catalog_size.MODEL, {}) as run,
    ):
        store = parts.open_store(folder, catalog.uuid)
        made = catalog_size.captioned(write_caption, start=progress["rows"])
        while progress["rows"] < rows and time.perf_counter() < deadline:
            wanted = min(catalog_size.SEAL_ROWS, rows - progress["rows"])
            commit_s = 0.0
            for start in range(0, wanted, catalog_size.COMMIT_ROWS):
                batch = list(islice(made, min(catalog_size.COMMIT_ROWS, wanted - start)))
                started = time.perf_counter()
                run.commit(batch)
                commit_s += time.perf_counter() - started
            progress["commit_s"] += commit_s
            progress["commits_per_s"].append(round(wanted / commit_s, 1))
            progress["seal_s"] += catalog_size.seal(catalog, store, run)
            # What is committed beyond this note, by a call that was killed, is committed again: no change.
            progress["rows"] += wanted
            progress["parquet_bytes"] = sum(part.stat().st_size for part in folder.rglob("*.parquet"))
            notes.write_text(json.dumps(progress), encoding="utf-8")
    return progress


def last_to_first(rates: Sequence[float]) -> float:
    """How fast the last fifth of the commits was, to the first fifth: what growing costs."""
    fifth = max(1, len(rates) // 5)
    return round(statistics.mean(rates[-fifth:]) / statistics.mean(rates[:fifth]), 3)


def catalog_bytes(url: str, folder: Path) -> int:
    """What the catalog takes on disk, its indexes included."""
    if url.startswith("sqlite"):
        return sum(path.stat().st_size for path in folder.glob("catalog.db*"))
    return sum(sum(each.values()) for each in catalog_size.tables_of(url).values())


def time_plan(url: str, rows: int) -> float:
    """Seconds that a plan takes over all files, none of which has changed."""
    with Catalog.open(url) as catalog:
        started = time.perf_counter()
        waves = list(catalog.plan(map(catalog_size.entry, range(rows)), catalog_size.MODEL.fingerprint))
        took_s = time.perf_counter() - started
    if sum(wave.unchanged for wave in waves) != rows:
        raise SystemExit("the plan found something to do: the catalog holds other files")
    return took_s


def time_searches(
    url: str, rows: int, write_caption: Callable[[random.Random], str], count: int, search_s: float
) -> dict[str, Any]:
    """How long searches take, by how much they find; no more is asked once every group has its queries."""
    # Nothing finds more than there is.
    findable = [name for name, (least, _) in GROUPS.items() if least <= rows]
    took: dict[str, list[tuple[float, int, str]]] = {name: [] for name in GROUPS}
    deadline = time.perf_counter() + search_s
    with Catalog.open(url) as catalog:
        for query in questions(write_caption, rows):
            if time.perf_counter() > deadline or all(len(took[name]) >= count for name in findable):
                break
            started = time.perf_counter()
            total = catalog.search(query, limit=_PAGE).total
            took_ms = (time.perf_counter() - started) * 1000
            for name, (least, most) in GROUPS.items():
                if least <= total <= most and len(took[name]) < count:
                    took[name].append((took_ms, total, query))
    return {name: summary(each) for name, each in took.items()}


def summary(searches: list[tuple[float, int, str]]) -> dict[str, Any]:
    """Times of searches, and the slowest of them."""
    if not searches:
        return {}
    times = sorted(took_ms for took_ms, _, _ in searches)
    slowest_ms, total, query = max(searches)
    return {
        "queries": len(times),
        "p50": round(statistics.median(times), 2),
        "p95": round(times[min(len(times) - 1, int(len(times) * 0.95))], 2),
        "slowest": {"query": query, "hits": total, "ms": round(slowest_ms, 2)},
        "median_hits": int(statistics.median(total for _, total, _ in searches)),
    }


def questions(write_caption: Callable[[random.Random], str], rows: int) -> Iterator[str]:
    """What people might ask of these captions, without end: of every kind of query, words as they come."""
    rng = random.Random(1)
    while True:
        # Of a caption that is there.
        words = write_caption(random.Random(rng.randrange(rows))).replace('"', "").split()
        start = rng.randrange(max(1, len(words) - 2))
        one, two, three = (rng.choice(words) for _ in range(3))
        yield rng.choice(
            [
                one,
                one,
                f"{one} {two}",
                f"{one} {two}",
                f"{one} {two} {three}",
                f'"{" ".join(words[start : start + 2])}"',
                f'"{" ".join(words[start : start + 3])}"',
                f"{one[:4]}*",
                f"{one} -{two}",
                f"{one} OR {two}",
            ]
        )


if __name__ == "__main__":
    typer.run(main)
