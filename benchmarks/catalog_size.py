"""What do an image's rows take, in the catalog and in Parquet, and how fast does the driver write them?

Prints one JSON object: bytes an image by table and index (of SQLite, of the whole file), bytes of Parquet,
rows a second committed in batches as a run has them and sealed, the commit and the machine. Nothing is
captioned: paths have 40 bytes, captions 8 to 13 words, no two images the same content.

    python benchmarks/catalog_size.py [--rows 200000] [--catalog postgresql+psycopg://USER@HOST/EMPTY_DATABASE]
"""

import hashlib
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from common import provenance

from batchcap import parts
from batchcap.catalog import Captioned, Catalog, ModelInfo, Run
from batchcap.collection import FileEntry

# As many as a run commits together where captions come fast.
COMMIT_ROWS = 512
SEAL_ROWS = 50_000
MODEL = ModelInfo("f" * 64, "made up")
_WORDS = (
    *("a", "the", "two", "three", "man", "woman", "boy", "girl", "child", "dog", "cat", "bird", "people"),
    *("group", "person", "red", "blue", "green", "black", "white", "brown", "small", "large", "young"),
    *("shirt", "hat", "dress", "ball", "bike", "car", "boat", "street", "beach", "grass", "snow", "water"),
    *("field", "park", "room", "table", "running", "sitting", "standing", "playing", "jumping", "walking"),
    *("wearing", "holding", "looking", "riding", "in", "on", "with", "at", "near", "behind"),
)


def random_words(rng: random.Random) -> str:
    """A caption of words that are all equally common."""
    return " ".join(rng.choices(_WORDS, k=rng.randint(8, 13)))


def main(
    rows: Annotated[int, typer.Option(min=1)] = 200_000,
    catalog: Annotated[str | None, typer.Option(help="Of an empty database; SQLite by default.")] = None,
    vector_size: Annotated[int, typer.Option(min=0, help="Numbers of an image vector; 0 for none.")] = 0,
) -> None:
    """Writes rows, and looks at what they take."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        url = catalog or f"sqlite:///{folder / 'catalog.db'}"
        commit_s, seal_s = write(url, folder, rows, vector_size=vector_size)
        parquet = sum(part.stat().st_size for part in folder.rglob("*.parquet"))
        sizes = tables_of(url) if catalog else {"whole": {"table": (folder / "catalog.db").stat().st_size}}
    if not vector_size:
        sizes.pop("image_vector", None)
    by_table = {
        name: {kind: round(size / rows, 1) for kind, size in each.items()} for name, each in sizes.items()
    }
    whole = sum(sum(each.values()) for each in sizes.values())
    print(
        json.dumps(
            {
                "benchmark": "catalog_size",
                "rounds": 1,
                "database": url.partition(":")[0].partition("+")[0],
                "rows": rows,
                "vector_size": vector_size,
                "commit_rows": COMMIT_ROWS,
                "committed_per_s": round(rows / commit_s, 1),
                "sealed_per_s": round(rows / seal_s, 1),
                "catalog_bytes_per_image": round(whole / rows, 1),
                "bytes_per_image": by_table,
                "parquet_bytes_per_image": round(parquet / rows, 1),
                **provenance(),
            }
        )
    )


def write(
    url: str,
    folder: Path,
    rows: int,
    write_caption: Callable[[random.Random], str] = random_words,
    *,
    vector_size: int = 0,
) -> tuple[float, float]:
    """Commits and seals rows; the seconds that each took."""
    commit_s = seal_s = 0.0
    with Catalog.open(url, mode="write") as catalog, catalog.run(["/mnt"], MODEL, {}) as run:
        store = parts.open_store(folder, catalog.uuid)
        unsealed = 0
        for batch in batches(rows, write_caption, vector_size=vector_size):
            started = time.perf_counter()
            run.commit(batch)
            commit_s += time.perf_counter() - started
            unsealed += len(batch)
            if unsealed >= SEAL_ROWS:
                seal_s += seal(catalog, store, run)
                unsealed = 0
        seal_s += seal(catalog, store, run)
    return commit_s, seal_s


def seal(catalog: Catalog, store: parts.Store, run: Run) -> float:
    """Writes a part; the seconds it took."""
    started = time.perf_counter()
    parts.seal(catalog, store, run)
    return time.perf_counter() - started


def batches(
    rows: int, write_caption: Callable[[random.Random], str], *, vector_size: int = 0
) -> Iterator[list[Captioned]]:
    """Rows as they are committed together."""
    made = captioned(write_caption, vector_size=vector_size)
    for start in range(0, rows, COMMIT_ROWS):
        yield list(islice(made, min(COMMIT_ROWS, rows - start)))


def captioned(
    write_caption: Callable[[random.Random], str] = random_words, *, start: int = 0, vector_size: int = 0
) -> Iterator[Captioned]:
    """Images without end, all different, in the order of their paths.

    Args:
        write_caption: makes the text of one.
        start: the number of the first; it has the same caption whatever `start` was.
        vector_size: numbers of its vector; 0 for none.
    """
    for number in itertools.count(start):
        rng = random.Random(number)
        file = entry(number)
        yield Captioned(
            uri=file.uri,
            size_bytes=file.size_bytes,
            mtime_ns=file.mtime_ns,
            etag=file.etag,
            content_hash=hashlib.sha256(str(number).encode()).hexdigest(),
            width=4032,
            height=3024,
            format="JPEG",
            taken_at=datetime(2023, 1 + number % 12, 1 + number % 28, number % 24, number % 60, number % 59),
            text=write_caption(rng),
            log_prob=-10 * rng.random(),
            confidence=rng.random(),
            token_count=12,
            vector=rng.randbytes(2 * vector_size) if vector_size else None,
        )


def entry(number: int) -> FileEntry:
    """The file of an image, as a scan finds it."""
    return FileEntry(
        uri=f"/mnt/photos/2023/{number // 1000:06}/IMG_{number:09}.jpg",
        size_bytes=500_000 + number * 7_919 % 4_500_000,
        mtime_ns=1_700_000_000_000_000_000 + number * 1_000_003,
    )


def tables_of(url: str) -> dict[str, dict[str, int]]:
    """Bytes of each table of PostgreSQL, and of each index of it; what is empty is left out."""
    import psycopg

    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        found = connection.execute(
            "SELECT owner.relname, 'table', pg_table_size(owner.oid) FROM pg_class AS owner "
            "WHERE owner.relkind = 'r' AND owner.relnamespace = 'public'::regnamespace "
            "UNION ALL SELECT owner.relname, part.relname, pg_relation_size(part.oid) FROM pg_index "
            "JOIN pg_class AS owner ON owner.oid = indrelid JOIN pg_class AS part ON part.oid = indexrelid "
            "WHERE owner.relnamespace = 'public'::regnamespace"
        ).fetchall()
    sizes: dict[str, dict[str, int]] = {}
    for table, kind, size_bytes in found:
        if table in ("caption", "image", "image_vector", "location", "result", "shown"):
            sizes.setdefault(table, {})[kind] = size_bytes
    return sizes


if __name__ == "__main__":
    typer.run(main)
