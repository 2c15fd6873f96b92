"""How many images a second do plan, Ray and commit take, when neither loading nor captioning costs anything?

Prints one JSON object: rates in images/s and the driver's memory in MiB for every tenth of the run, the sizes
of catalog and Parquet files in bytes an image, the commit and the machine. There are no files: the scan is a
list of names, the loading stage makes up a hash and one pixel for each, the captioner draws a caption. All
else is the run as it is: the plan's merge, two stages of actors, SQL transactions, Parquet parts.

    python benchmarks/simulation.py [--images 1000000] [--batch-size 1024]

A million takes about six minutes on two cores.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import typer
from common import provenance

from batchcap import pipeline, ray_runtime, stages
from batchcap.captioner.images import ImageSpec
from batchcap.captioner.protocol import Caption
from batchcap.catalog import Catalog
from batchcap.collection import FileEntry
from batchcap.pipeline import index_collection
from batchcap.run_options import IndexOptions
from batchcap.run_report import Progress

_FILES_PER_FOLDER = 10_000
_WORDS = (Path(__file__).parents[1] / "batchcap/models/default/vocabulary.txt").read_text().split()[4:4000]


def main(
    images: Annotated[int, typer.Option(min=1000)] = 1_000_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that a worker captions at once.")] = 1024,
    wave_size: Annotated[int, typer.Option(min=1, help="Images that are planned at once.")] = 500_000,
) -> None:
    """Runs over images that are not there."""
    watch = Watch(images // 10)
    options = IndexOptions(batch_size=batch_size, wave_size=wave_size)
    with (
        tempfile.TemporaryDirectory() as made,
        patch.object(pipeline, "scan", lambda *_, **__: entries(images)),
        patch.object(ray_runtime, "LoadImages", Simulated),
        Catalog.open(f"sqlite:///{made}/store/catalog.db", mode="write") as catalog,
    ):
        store = Path(made, "store")
        report = index_collection([made], catalog, store, Costless(), options=options, progress=watch)
        catalog_bytes = sum(path.stat().st_size for path in store.glob("catalog.db*"))
        parts_bytes = sum(path.stat().st_size for path in (store / "captions").iterdir())
    if report.captioned != images:
        raise SystemExit(f"{report.captioned} of {images} images are captioned")
    print(
        json.dumps(
            {
                "benchmark": "simulation",
                "images": images,
                "batch_size": batch_size,
                "images_per_s": round(report.images_per_s or 0.0, 1),
                "images_per_s_with_start": round(images / report.total_s, 1),
                "tenths": watch.tenths,
                "catalog_bytes_per_image": round(catalog_bytes / images),
                "parts_bytes_per_image": round(parts_bytes / images),
                "stage_share": {
                    name: round(share, 3)
                    for name, share in (report.stages.shares if report.stages else {}).items()
                },
                **provenance(),
            }
        )
    )


def entries(count: int) -> Iterator[FileEntry]:
    """A scan of files that are not there, sorted by uri."""
    for number in range(count):
        uri = f"/archive/{number // _FILES_PER_FOLDER:06}/{number:010}.jpg"
        yield FileEntry(uri, 100_000 + number * 7919 % 5_000_000, number)


class Watch(Progress):
    """Notes rate and memory of the driver for every tenth of the run."""

    def __init__(self, step: int) -> None:
        # A commit that crosses two borders leaves one note for both.
        self.tenths: list[dict[str, float]] = []
        self._step = self._border = step
        self._done = self._done_before = 0
        self._before = time.perf_counter()

    def advance(self, files: int, quarantined: int) -> None:
        """After a commit."""
        self._done += files
        if self._done < self._border:
            return
        self._border = (self._done // self._step + 1) * self._step
        now = time.perf_counter()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.tenths.append(
            {
                "images": self._done,
                "images_per_s": round((self._done - self._done_before) / (now - self._before), 1),
                "driver_mib": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
            }
        )
        self._before, self._done_before = now, self._done


class Simulated:
    """The loading stage, without files: hashes of their names, and one pixel each."""

    def __init__(self, *arguments: Any) -> None:
        """Takes whatever `LoadImages` does."""

    def __call__(self, files: pa.Table) -> pa.Table:
        """`FILE_SCHEMA` -> `LOADED_SCHEMA`."""
        count = len(files)
        columns = {
            "content_hash": [hashlib.sha256(uri.encode()).hexdigest() for uri in files["uri"].to_pylist()],
            "width": [640] * count,
            "height": [480] * count,
            "format": ["jpeg"] * count,
            "detail": [""] * count,
            "loading_s": [0.0] * count,
            "pixels": [content.encode() for content in ["rgb"] * count],
        }
        added = list(stages.LOADED_SCHEMA)[len(stages.FILE_SCHEMA) :]
        arrays = [pa.array(columns.get(field.name, [None] * count), field.type) for field in added]
        return pa.Table.from_arrays([*files.columns, *arrays], schema=stages.LOADED_SCHEMA)


@dataclass(frozen=True)
class Costless:
    """Captions of nine words drawn from the vocabulary."""

    name: str = "costless"
    image_spec: ImageSpec = ImageSpec(1)

    def fingerprint(self) -> str:
        """Of a model that there is not."""
        return self.name.ljust(64, "0")

    def describe(self) -> dict[str, Any]:
        """For the record."""
        return {"name": self.name}

    def load_captioner(self, *, batch_size: int, num_threads: int) -> "CostlessCaptioner":
        """What a worker holds."""
        return CostlessCaptioner(self.fingerprint(), self.image_spec)


@dataclass
class CostlessCaptioner:
    """What a worker loads of a `Costless`."""

    fingerprint: str
    image_spec: ImageSpec

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(os.getpid())

    def caption(self, images: Sequence[np.ndarray]) -> list[Caption]:
        """A caption an image, whatever it shows."""
        drawn = self._random.zipf(1.3, (len(images), 9)) % len(_WORDS)
        return [Caption(" ".join(_WORDS[word] for word in row), -9.5, 0.5, 10) for row in drawn.tolist()]


if __name__ == "__main__":
    typer.run(main)
