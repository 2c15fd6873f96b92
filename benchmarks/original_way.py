"""How much faster are captions in batches than in the original's way, with the same weights?

Prints one JSON object: rates in images/s of every round, medians over the rounds of ratios within a round,
the commit and the machine. The original's way is that of Keras's image captioning example: one picture at a
time through eager calls, greedily, the whole padded prefix through the decoder again at every step. Ours is
`Captioner.caption`, greedy, in its own batches.

`files`: both start from the files and read and decode them; the original with TensorFlow's own operations,
ours with `decode_image` in as many threads as there are cores. `pixels`: the same without the reading, that
is the networks alone. Both ways must make the same captions of the same pixels, or nothing is printed;
`captions_same` counts them. Their start-up is left out.

    python benchmarks/original_way.py [--photos DIR] [--model DIR] [--original-images 30] [--rounds 5]

A round takes about half a minute on two cores.
"""

import dataclasses
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# As batchcap has it; here TensorFlow is imported first.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
import tensorflow as tf
import typer
from common import describe_photos, list_photos, median_ratio, prepare_photos, provenance

from batchcap.captioner.bundle import DEFAULT_BUNDLE, Bundle
from batchcap.captioner.captioner import Captioner, load_model
from batchcap.captioner.images import decode_image
from batchcap.captioner.tokenizer import END, PADDING, START, UNKNOWN

# Two tokens may be as likely to within rounding, and a caption goes on differently from there: seldom.
_MAY_DIFFER = 0.1


class OriginalWay:
    """Captions one picture at a time, as a reader of Keras's image captioning example writes it.

    Args:
        bundle: whose weights to take.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.model = load_model(bundle)
        self.tokenizer = bundle.tokenizer
        self.size = bundle.image_spec.image_size

    def read(self, path: Path) -> tf.Tensor:
        """uint8[1, image_size, image_size, 3]."""
        image = tf.io.decode_image(tf.io.read_file(str(path)), channels=3, expand_animations=False)
        resized = tf.image.resize(image, (self.size, self.size))
        return tf.cast(resized, tf.uint8)[None]

    def caption(self, image: tf.Tensor) -> str:
        """Greedy search; as in ours, padding, start and the unknown word are not among the choices."""
        encoded = self.model.encode(self.model.extract_features(image))
        length = self.model.config.sequence_length - 1
        token_ids = np.full((1, 1, length), PADDING, np.int32)
        words = []
        token = START
        for position in range(length):
            token_ids[0, 0, position] = token
            logits = self.model.decode(token_ids, encoded).numpy()[0, 0, position]
            logits[[PADDING, UNKNOWN, START]] = -np.inf
            token = int(np.argmax(logits))
            if token == END:
                break
            words.append(token)
        return self.tokenizer.decode(words)


def main(
    photos: Annotated[Path | None, typer.Option(help="Folder of photographs; made up without it.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Photographs that ours takes a round.")] = 512,
    original_images: Annotated[int, typer.Option(min=1, help="Those that the original takes.")] = 30,
    model: Annotated[Path, typer.Option()] = DEFAULT_BUNDLE,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Measures rounds of the original's way and ours."""
    bundle = Bundle.open(model)
    bundle = dataclasses.replace(bundle, generation=dataclasses.replace(bundle.generation, num_beams=1))
    with tempfile.TemporaryDirectory() as made:
        folder = prepare_photos(Path(made), photos=photos, limit=limit)
        paths = list_photos(folder)
        original, captioner = OriginalWay(bundle), Captioner(bundle)
        original.caption(original.read(paths[0]))
        captioner.warm_up()
        # Images a second of each round, by what was measured.
        rates: dict[str, list[float]] = {}
        captions_same = 0
        for _ in range(rounds):
            subset = paths[:original_images]
            pictures, captions, measured = measure_original(original, subset)
            # The same pixels, so that decoding can't make a difference.
            ours = captioner.caption([picture.numpy()[0] for picture in pictures])
            captions_same = sum(a == b.text for a, b in zip(captions, ours, strict=True))
            if captions_same < (1 - _MAY_DIFFER) * len(captions):
                raise SystemExit(f"only {captions_same} of {len(captions)} captions are the same")
            for name, value in {**measured, **measure_ours(captioner, paths)}.items():
                rates.setdefault(name, []).append(value)
        print(
            json.dumps(
                {
                    "benchmark": "original_way",
                    "model": bundle.name,
                    "made_up": photos is None,
                    **describe_photos(folder),
                    "batch_size": captioner.batch_size,
                    "original_images": len(subset),
                    "captions_same": captions_same,
                    "rounds": rounds,
                    "images_per_s": {
                        name: [round(rate, 2) for rate in values] for name, values in rates.items()
                    },
                    **{
                        f"ours_to_original_{start}": median_ratio(
                            rates[f"ours_{start}"], rates[f"original_{start}"]
                        )
                        for start in ("files", "pixels")
                    },
                    **provenance(),
                }
            )
        )


def measure_original(
    original: OriginalWay, paths: list[Path]
) -> tuple[list[tf.Tensor], list[str], dict[str, float]]:
    """The pictures that it read, their captions, and its rates in images/s."""
    pictures, captions = [], []
    reading_s = captioning_s = 0.0
    for path in paths:
        started = time.perf_counter()
        pictures.append(original.read(path))
        read = time.perf_counter()
        captions.append(original.caption(pictures[-1]))
        reading_s += read - started
        captioning_s += time.perf_counter() - read
    return pictures, captions, to_rates("original", len(paths), reading_s, captioning_s)


def measure_ours(captioner: Captioner, paths: list[Path]) -> dict[str, float]:
    """Our rates in images/s."""
    started = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pixels = list(pool.map(lambda path: decode_image(path.read_bytes(), captioner.image_spec), paths))
    read = time.perf_counter()
    captioner.caption(pixels)
    return to_rates("ours", len(paths), read - started, time.perf_counter() - read)


def to_rates(whose: str, images: int, reading_s: float, captioning_s: float) -> dict[str, float]:
    return {
        f"{whose}_files": images / (reading_s + captioning_s),
        f"{whose}_pixels": images / captioning_s,
    }


if __name__ == "__main__":
    typer.run(main)
