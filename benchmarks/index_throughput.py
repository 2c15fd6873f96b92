"""How close does a whole index run come to its captioner alone, and that to its CNN alone?

Prints one JSON object: the rates in images/s, their ratios, the commit and the machine. Each round measures
all three one after the other, in processes of their own, so that a busy moment strikes all of them.

    python benchmarks/index_throughput.py [--photos DIR] [--model DIR] [--num-beams 1] [--rounds 3]
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import typer
from common import make_photos, provenance

from batchcap.captioner.bundle import DEFAULT_BUNDLE, Bundle
from batchcap.captioner.images import decode_image
from batchcap.catalog import Catalog
from batchcap.collection import resolve_sources, scan, uri_to_path

_IN_MEMORY = 512
_BATCH_SIZE = 32


def main(
    photos: Annotated[Path | None, typer.Option(help="Folder of photographs; made up without it.")] = None,
    model: Annotated[Path, typer.Option()] = DEFAULT_BUNDLE,
    num_beams: Annotated[int, typer.Option(min=1)] = 1,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    measure: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measures rounds of CNN alone, captioner alone and a whole run."""
    with tempfile.TemporaryDirectory() as made:
        folder = photos or make_photos(Path(made))
        if measure is not None:
            print(json.dumps(MEASURES[measure](folder, open_bundle(model, num_beams))))
            return
        rates: dict[str, list[float]] = {name: [] for name in MEASURES}
        for _ in range(rounds):
            for name in MEASURES:
                command = [sys.executable, __file__, "--photos", folder, "--model", model]
                command += ["--num-beams", str(num_beams), "--measure", name]
                done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
                rates[name].append(json.loads(done.stdout.splitlines()[-1]))
        median = {name: statistics.median(values) for name, values in rates.items()}
        print(
            json.dumps(
                {
                    "benchmark": "index_throughput",
                    "images": count_photos(folder),
                    "num_beams": num_beams,
                    "images_per_s": {
                        name: [round(rate, 1) for rate in values] for name, values in rates.items()
                    },
                    "captioner_to_cnn": round(median["captioner"] / median["cnn"], 3),
                    "index_to_captioner": round(median["index"] / median["captioner"], 3),
                    **provenance(),
                }
            )
        )


def measure_cnn(folder: Path, bundle: Bundle) -> float:
    """The CNN alone, on pictures in memory."""
    import numpy as np
    import tensorflow as tf

    from batchcap.captioner.captioner import load_model

    network = load_model(bundle)
    size = bundle.image_spec.image_size
    extract = tf.function(
        network.extract_features, input_signature=[tf.TensorSpec((_BATCH_SIZE, size, size, 3), tf.uint8)]
    )
    pixels = np.stack(read_pixels(folder, bundle))
    batches = [pixels[i : i + _BATCH_SIZE] for i in range(0, len(pixels) - _BATCH_SIZE + 1, _BATCH_SIZE)]
    return rate(lambda: [extract(batch).numpy() for batch in batches], _BATCH_SIZE * len(batches))


def measure_captioner(folder: Path, bundle: Bundle) -> float:
    """The captioner in this process, on pictures in memory."""
    from batchcap.captioner.captioner import Captioner

    captioner = Captioner(bundle, batch_size=_BATCH_SIZE)
    pixels = read_pixels(folder, bundle)
    return rate(lambda: captioner.caption(pixels), len(pixels))


def measure_index(folder: Path, bundle: Bundle) -> float:
    """A whole run into an empty store, from its first commit to its last."""
    from batchcap.pipeline import index_collection

    with (
        tempfile.TemporaryDirectory() as store,
        Catalog.open(f"sqlite:///{store}/catalog.db", mode="write") as catalog,
    ):
        report = index_collection([str(folder)], catalog, Path(store), bundle)
    if report.images_per_s is None:
        raise SystemExit("too few photographs: the run had one commit")
    return report.images_per_s


MEASURES: dict[str, Callable[[Path, Bundle], float]] = {
    "cnn": measure_cnn,
    "captioner": measure_captioner,
    "index": measure_index,
}


def rate(work: Callable[[], object], images: int) -> float:
    """Images per second of the second call; the first warms up."""
    work()
    started = time.perf_counter()
    work()
    return images / (time.perf_counter() - started)


def open_bundle(model: Path, num_beams: int) -> Bundle:
    bundle = Bundle.open(model)
    return replace(bundle, generation=replace(bundle.generation, num_beams=num_beams))


def read_pixels(folder: Path, bundle: Bundle) -> list[Any]:
    entries = list(scan(resolve_sources([str(folder)]), skipped=Counter()))
    paths = [Path(uri_to_path(entry.uri)) for entry in entries[:_IN_MEMORY]]
    return [decode_image(path.read_bytes(), bundle.image_spec) for path in paths]


def count_photos(folder: Path) -> int:
    return sum(1 for _ in scan(resolve_sources([str(folder)]), skipped=Counter()))


if __name__ == "__main__":
    typer.run(main)
