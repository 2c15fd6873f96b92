"""What does it cost to find out what is left of a large collection, most of which is done?

Prints one JSON object: seconds and memory of the plan that a resumed run makes (scan, merge with the catalog,
what is missing), how many photographs were opened meanwhile, the commit and the machine. The files are tiny;
all but `--left` of them are in the catalog. The plan runs in a process of its own, as `index --dry-run` does.

    python benchmarks/resume.py [--files 1000000] [--left 0.01] [--rounds 3]

Making files and catalog takes about five minutes for a million on two cores.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from common import provenance

from batchcap.catalog import Captioned, Catalog, ModelInfo
from batchcap.collection import FileEntry, resolve_sources, scan
from batchcap.preview import preview_index
from batchcap.run_options import IndexOptions

_FILES_PER_FOLDER = 1000
_COMMIT_ROWS = 10_000
_MODEL = ModelInfo("f" * 64, "costless")


class NoCaptioner:
    """Says whose captions are looked for; nothing is captioned here."""

    name = _MODEL.name

    def fingerprint(self) -> str:
        """The fingerprint under which the catalog was filled."""
        return _MODEL.fingerprint


def main(
    files: Annotated[int, typer.Option(min=100)] = 1_000_000,
    left: Annotated[float, typer.Option(min=0, max=1, help="Share of the files that is not done.")] = 0.01,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    measure: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measures rounds of the plan."""
    if measure is not None:
        print(json.dumps(measure_plan(measure)))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_files(folder / "photos", files)
        done = files - round(files * left)
        with Catalog.open(url(folder), mode="write") as catalog:
            fill(catalog, folder / "photos", done)
        command = [sys.executable, __file__, "--measure", made]
        plans = []
        for _ in range(rounds):
            found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            plans.append(json.loads(found.stdout))
        catalog_bytes = (folder / "catalog.db").stat().st_size
    if any(plan["unchanged"] != done or plan["left"] != files - done for plan in plans):
        raise SystemExit(f"the plan is wrong: {plans}")
    print(
        json.dumps(
            {
                "benchmark": "resume",
                "files": files,
                "left": files - done,
                "catalog_mib": round(catalog_bytes / 2**20, 1),
                "plans": plans,
                **provenance(),
            }
        )
    )


def measure_plan(folder: Path) -> dict[str, Any]:
    """One plan, in this process."""
    opened = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal opened
        opened += event == "open" and str(arguments[0]).startswith(str(folder / "photos"))

    sys.addaudithook(count)
    started = time.perf_counter()
    preview = preview_index([str(folder / "photos")], url(folder), NoCaptioner(), IndexOptions())  # type: ignore[arg-type]
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "photographs_opened": opened,
        "unchanged": preview.unchanged,
        "left": preview.to_caption + preview.maybe_known,
    }


def url(folder: Path) -> str:
    """The catalog of a measurement."""
    return f"sqlite:///{folder / 'catalog.db'}"


def make_files(folder: Path, count: int) -> None:
    """Tiny files, a thousand to a folder."""
    for number in range(count):
        place = folder / f"{number // _FILES_PER_FOLDER:06}"
        if number % _FILES_PER_FOLDER == 0:
            place.mkdir(parents=True)
        with open(place / f"{number:09}.jpg", "w") as file:
            file.write(str(number))


def fill(catalog: Catalog, photos: Path, done: int) -> None:
    """Puts the first files into a catalog, as if they had been captioned."""
    with catalog.run([os.fspath(photos)], _MODEL, {}) as run:
        rows: list[Captioned] = []
        for number, entry in enumerate(_first(photos, done)):
            content = f"{number:064x}"
            known = (entry.uri, entry.size_bytes, entry.mtime_ns, entry.etag)
            text = f"a dog and {number % 97} people on a beach"
            rows.append(Captioned(*known, content, 640, 480, "jpeg", None, text, -9.0, 0.5, 10))
            if len(rows) == _COMMIT_ROWS:
                run.commit(rows)
                rows = []
        run.commit(rows)


def _first(photos: Path, count: int) -> Iterator[FileEntry]:
    return islice(scan(resolve_sources([os.fspath(photos)]), skipped=Counter()), count)


if __name__ == "__main__":
    typer.run(main)
