"""How close does a whole index run come to its captioner alone, and that to its CNN alone?

Prints one JSON object: rates in images/s of every round, the medians over rounds of their ratios within a
round, the commit and the machine. Each round measures everything one after the other, for every runtime of
the CNN that is installed, so that a busy moment strikes all of it. `cnn` and `captioner` have their pictures
in memory and all cores to themselves; `index` is a run into an empty store from its first commit to its last,
so without its start-up; `stage_share` is the share of that time in which each of its stages was busy.

    python benchmarks/index_throughput.py [--photos DIR] [--limit 5000] [--megapixels 12] [--model DIR]

A round takes about four minutes on two cores.
"""

import dataclasses
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import typer
from common import describe_photos, list_photos, measure_apart, median_ratio, prepare_photos, provenance

from batchcap.captioner.bundle import DEFAULT_BUNDLE, Bundle
from batchcap.captioner.images import decode_image
from batchcap.catalog import Catalog
from batchcap.pipeline import index_collection
from batchcap.run_options import IndexOptions
from batchcap.run_report import RunReport

_IN_MEMORY = 512
# The batches of the CNN alone and of the captioner alone are those of a run.
_BATCH_SIZE = IndexOptions().batch_size


def main(
    photos: Annotated[Path | None, typer.Option(help="Folder of photographs; made up without it.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Photographs; 1,000 if made up. A rate over few means little.")
    ] = None,
    megapixels: Annotated[float | None, typer.Option(help="Size of those made up; 640 x 480 if not.")] = None,
    model: Annotated[Path, typer.Option()] = DEFAULT_BUNDLE,
    num_beams: Annotated[list[int] | None, typer.Option(min=1, help="Default: 1 and 3.")] = None,
    runtime: Annotated[list[str] | None, typer.Option(help="Of the CNN; default: all installed.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    measure: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measures rounds of CNN alone, captioner alone and a whole run."""
    runtimes = runtime or installed_runtimes()
    beams = num_beams or [1, 3]
    with tempfile.TemporaryDirectory() as made:
        folder = prepare_photos(Path(made), photos=photos, limit=limit, megapixels=megapixels)
        if measure is not None:
            bundle = open_bundle(model, beams[0], runtimes[0])
            print(json.dumps(MEASURES[measure](folder, bundle)))
            return
        # By runtime and beams, of each round.
        measured: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for _ in range(rounds):
            for each_beams in beams:
                for each_runtime in runtimes:
                    options = ["--photos", folder, "--model", model]
                    options += ["--num-beams", each_beams, "--runtime", each_runtime]
                    found: dict[str, Any] = {}
                    for name in MEASURES:
                        found |= measure_apart(__file__, *options, "--measure", name)
                    measured.setdefault((each_runtime, each_beams), []).append(found)
        print(
            json.dumps(
                {
                    "benchmark": "index_throughput",
                    "model": Bundle.open(model).name,
                    "made_up": photos is None,
                    **describe_photos(folder),
                    "batch_size": _BATCH_SIZE,
                    "rounds": rounds,
                    "runs": [
                        {"runtime": runtime, "num_beams": num_beams, **summarise(found)}
                        for (runtime, num_beams), found in measured.items()
                    ],
                    **compare_runtimes(measured),
                    **provenance(),
                }
            )
        )


def summarise(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Rates and ratios of one runtime and one number of beams."""
    rates = {name: [found[name] for found in rounds] for name in ("cnn", "captioner", "index")}
    return {
        "images_per_s": {name: [round(rate, 1) for rate in values] for name, values in rates.items()},
        "captioner_to_cnn": median_ratio(rates["captioner"], rates["cnn"]),
        "index_to_captioner": median_ratio(rates["index"], rates["captioner"]),
        "stage_share": {
            stage: round(statistics.median(found["stage_share"][stage] for found in rounds), 3)
            for stage in rounds[0]["stage_share"]
        },
    }


def compare_runtimes(measured: dict[tuple[str, int], list[dict[str, Any]]]) -> dict[str, Any]:
    """End to end, how much faster openvino makes a run than tensorflow, by beams; nothing without either."""
    compared = {
        str(beams): median_ratio(
            [found["index"] for found in measured["openvino", beams]],
            [found["index"] for found in measured["tensorflow", beams]],
        )
        for runtime, beams in measured
        if runtime == "openvino" and ("tensorflow", beams) in measured
    }
    return {"openvino_to_tensorflow": compared} if compared else {}


def measure_memory(folder: Path, bundle: Bundle) -> dict[str, float]:
    """The CNN alone and the captioner alone, in this process, on pictures in memory."""
    import numpy as np

    from batchcap.captioner.captioner import Captioner

    captioner = Captioner(bundle, batch_size=_BATCH_SIZE)
    pixels = [decode_image(path.read_bytes(), bundle.image_spec) for path in list_photos(folder)[:_IN_MEMORY]]
    # The CNN's batches are full ones; what a last one lacks is made up from the first pictures.
    stacked = np.resize(np.stack(pixels), (-(-len(pixels) // _BATCH_SIZE) * _BATCH_SIZE, *pixels[0].shape))
    batches = np.split(stacked, len(stacked) // _BATCH_SIZE)
    return {
        "cnn": rate(lambda: [captioner.extract_features(batch) for batch in batches], len(stacked)),
        "captioner": rate(lambda: captioner.caption(pixels), len(pixels)),
    }


def measure_index(folder: Path, bundle: Bundle) -> dict[str, Any]:
    """A whole run into an empty store, from its first commit to its last."""
    with (
        tempfile.TemporaryDirectory() as store,
        Catalog.open(f"sqlite:///{store}/catalog.db", mode="write") as catalog,
    ):
        report = index_collection([str(folder)], catalog, Path(store), bundle)
    if report.images_per_s is None:
        raise SystemExit("too few photographs: the run had one commit")
    return {"index": report.images_per_s, "stage_share": stage_share(report)}


def stage_share(report: RunReport) -> dict[str, float]:
    """The share of the time in which each stage was busy; nothing where the report doesn't say."""
    shares = report.stages.shares if report.stages else {}
    return {name: round(share, 3) for name, share in shares.items()}


MEASURES: dict[str, Callable[[Path, Bundle], dict[str, Any]]] = {
    "memory": measure_memory,
    "index": measure_index,
}


def rate(work: Callable[[], object], images: int) -> float:
    """Images per second of the second call; the first warms up."""
    work()
    started = time.perf_counter()
    work()
    return images / (time.perf_counter() - started)


def installed_runtimes() -> list[str]:
    return ["tensorflow", *(["openvino"] if importlib.util.find_spec("openvino") else [])]


def open_bundle(model: Path, num_beams: int, runtime: str) -> Bundle:
    bundle = Bundle.open(model)
    generation = dataclasses.replace(bundle.generation, num_beams=num_beams)
    return dataclasses.replace(bundle, generation=generation, runtime=runtime)


if __name__ == "__main__":
    typer.run(main)
