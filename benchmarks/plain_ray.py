"""How does `batchcap index` compare with the job that Ray Data's guide leads to, with the same weights?

Prints one JSON object: rates in images/s of every round, their ratio (the median over rounds of the ratio
within a round), the commit and the machine. The plain job is one chain, as a competent first user writes it:

    read_images(folder, size=...) -> map_batches(PlainCaptioner) -> write_parquet(folder)

Its network is the bundle's, traced with `tf.function`, and decodes batches greedily with the whole prefix at
each step. Ours is a whole run into an empty store, greedy, with a runtime of the CNN that it chooses itself;
it also does what the plain job doesn't: hashes, a quarantine, SQL. Each starts in a process of its own, and
for both the start-up is left out in the same way: files of all batches but the first, by the seconds from the
first finished batch to the last. `captions_same` is the share of photographs of which both say the same; Ray
reduces pictures in another way, so it isn't 1.

    python benchmarks/plain_ray.py [--photos DIR] [--limit 1000] [--model DIR] [--rounds 5]

A round takes about two minutes on two cores.
"""

import dataclasses
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import typer
from common import describe_photos, measure_apart, median_ratio, prepare_photos, provenance

from batchcap.captioner.bundle import DEFAULT_BUNDLE, Bundle
from batchcap.captioner.tokenizer import END, PADDING, START, UNKNOWN

_BATCH_SIZE = 32


class PlainCaptioner:
    """The actor of the plain job.

    Args:
        bundle: whose weights to take.
    """

    def __init__(self, bundle: Bundle) -> None:
        import tensorflow as tf

        from batchcap.captioner.captioner import load_model

        model = load_model(bundle)
        self.tokenizer = bundle.tokenizer
        self.length = bundle.config.sequence_length - 1
        size = bundle.image_spec.image_size
        # Traced once, whatever the number of images: Ray's batches aren't all full.
        self.encode = tf.function(
            lambda images: model.encode(model.extract_features(images)),
            input_signature=[tf.TensorSpec((None, size, size, 3), tf.uint8)],
        )
        self.decode = tf.function(
            lambda token_ids, encoded: model.decode(token_ids[:, None], encoded)[:, 0],
            input_signature=[
                tf.TensorSpec((None, self.length), tf.int32),
                tf.TensorSpec((None, model.feature_shape[0], bundle.config.embed_dim), tf.float32),
            ],
        )

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Adds the captions, and when they were finished, in seconds since 1970."""
        images = batch["image"]
        encoded = self.encode(images)
        token_ids = np.full((len(images), self.length + 1), PADDING, np.int32)
        token_ids[:, 0] = START
        is_done = np.zeros(len(images), bool)
        for position in range(self.length):
            logits = self.decode(token_ids[:, :-1], encoded).numpy()[:, position]
            logits[:, [PADDING, UNKNOWN, START]] = -np.inf
            token_ids[:, position + 1] = np.where(is_done, PADDING, logits.argmax(-1))
            is_done |= token_ids[:, position + 1] == END
            if is_done.all():
                break
        captions = [self.tokenizer.decode(row.tolist()) for row in token_ids]
        finished = np.full(len(images), time.time())
        return {"path": batch["path"], "caption": np.array(captions), "finished_at": finished}


def main(
    photos: Annotated[Path | None, typer.Option(help="Folder of photographs; made up without it.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Photographs; 1,000 if made up. A rate over few means little.")
    ] = None,
    model: Annotated[Path, typer.Option()] = DEFAULT_BUNDLE,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    measure: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measures rounds of the plain job and of ours."""
    with tempfile.TemporaryDirectory() as made:
        folder = prepare_photos(Path(made), photos=photos, limit=limit)
        if measure is not None:
            bundle = Bundle.open(model)
            greedy = dataclasses.replace(bundle.generation, num_beams=1)
            print(json.dumps(MEASURES[measure](folder, dataclasses.replace(bundle, generation=greedy))))
            return
        rates: dict[str, list[float]] = {name: [] for name in MEASURES}
        captions: dict[str, dict[str, str]] = {}
        for _ in range(rounds):
            for name in MEASURES:
                found = measure_apart(__file__, "--photos", folder, "--model", model, "--measure", name)
                rates[name].append(found["images_per_s"])
                captions[name] = found["captions"]
        if captions["plain"].keys() != captions["index"].keys():
            raise SystemExit("the two did not caption the same files")
        print(
            json.dumps(
                {
                    "benchmark": "plain_ray",
                    "model": Bundle.open(model).name,
                    "made_up": photos is None,
                    **describe_photos(folder),
                    "rounds": rounds,
                    "images_per_s": {
                        name: [round(rate, 1) for rate in values] for name, values in rates.items()
                    },
                    "index_to_plain": median_ratio(rates["index"], rates["plain"]),
                    "captions_same": round(
                        statistics.fmean(
                            text == captions["plain"][name] for name, text in captions["index"].items()
                        ),
                        3,
                    ),
                    **provenance(),
                }
            )
        )


def measure_plain(folder: Path, bundle: Bundle) -> dict[str, Any]:
    """The plain job."""
    import pyarrow.parquet as pq
    import ray
    import ray.data

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    size = bundle.image_spec.image_size
    with tempfile.TemporaryDirectory() as captions:
        (
            ray.data.read_images(str(folder), size=(size, size), mode="RGB", include_paths=True)
            .map_batches(
                PlainCaptioner,
                fn_constructor_args=(bundle,),
                batch_size=_BATCH_SIZE,
                compute=ray.data.ActorPoolStrategy(size=1),
                num_gpus=1 if ray.cluster_resources().get("GPU") else 0,
            )
            .write_parquet(captions)
        )
        rows = pq.read_table(captions).to_pylist()
    finished = sorted(row["finished_at"] for row in rows)
    timed = sum(moment > finished[0] for moment in finished)
    if not timed:
        raise SystemExit("too few photographs: the job had one batch")
    return {
        "images_per_s": timed / (finished[-1] - finished[0]),
        "captions": {Path(row["path"]).name: row["caption"] for row in rows},
    }


def measure_index(folder: Path, bundle: Bundle) -> dict[str, Any]:
    """A whole run into an empty store."""
    import pyarrow.parquet as pq

    from batchcap.catalog import Catalog
    from batchcap.pipeline import index_collection

    with tempfile.TemporaryDirectory() as store:
        with Catalog.open(f"sqlite:///{store}/catalog.db", mode="write") as catalog:
            report = index_collection([str(folder)], catalog, Path(store), bundle)
        if report.images_per_s is None:
            raise SystemExit("too few photographs: the run had one commit")
        rows = pq.read_table(Path(store) / "captions").to_pylist()
    captions = {Path(row["uri"]).name: row["caption"] for row in rows}
    return {"images_per_s": report.images_per_s, "captions": captions}


MEASURES: dict[str, Callable[[Path, Bundle], dict[str, Any]]] = {
    "plain": measure_plain,
    "index": measure_index,
}


if __name__ == "__main__":
    typer.run(main)
