"""What does a training step cost, and an epoch, against its decoder's steps alone and the original's way?

Prints one JSON object: seconds of each round, medians over the rounds of ratios within a round, the commit
and the machine. Everything is measured in every round, one after the other, so that a busy moment strikes
all of it.

    python benchmarks/training_step.py [--data DIR --captions FILE] [--images 240] [--rounds 3]

`step`: one step of our trainer against a plain one, in which every caption is a row of its own with its own
copy of the image's features, padded to the sequence length. `epoch`: an epoch as a run takes it, its views
read from the memory-mapped features by another thread, against the same steps on batches that are in memory.
`original`: the original system's way, in which every caption of every epoch has its picture read and decoded
and the CNN run again, against ours; `share` says where its time goes, each part measured alone.

A round takes about a minute on two cores.
"""

import csv
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
import typer
from common import make_photos, provenance

from batchcap.captioner.bundle import Bundle, write_bundle
from batchcap.captioner.captioner import random_weights
from batchcap.captioner.config import CaptionerConfig, GenerationConfig
from batchcap.captioner.model import CaptionModel
from batchcap.captioner.tokenizer import END, PADDING, START, Tokenizer
from model_training.config import TrainConfig
from model_training.cross_entropy import CAPTIONS_PER_IMAGE, CrossEntropyStage
from model_training.data_processing import TrainBatch, encode_captions, load_features, load_pixels
from model_training.datasets import CaptionedImage, read_dataset
from model_training.tracking import HISTORY
from model_training.training import train

# Tokens that the network reads of each caption of the one step: our batches are padded to much less than the
# sequence length.
_STEP_TOKENS = 24
# The CNN and the decoder of one step are short; their mean over so many steps counts.
_REPEATS = 2
# A run judges its epochs on some images; how many is nothing that is measured here.
_DEV_IMAGES = 2

Measures = dict[str, Callable[[], float]]


def main(
    data: Annotated[Path | None, typer.Option(help="Folder of photographs; made up without it.")] = None,
    captions: Annotated[Path | None, typer.Option(help="Captions of these photographs.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Images to train on, five captions each.")] = 240,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    batch_size: Annotated[int, typer.Option(min=CAPTIONS_PER_IMAGE, help="Captions of a step.")] = 96,
    original_steps: Annotated[int, typer.Option(min=1, help="Steps of the original's way a round.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs that share the cost of features.")] = 10,
    vocabulary_size: Annotated[int, typer.Option(min=5)] = 2900,
    embed_dim: Annotated[int, typer.Option(min=64, help="In heads of 64.")] = 384,
    dec_layers: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Measures training in rounds."""
    if (data is None) != (captions is None):
        raise typer.BadParameter("--data and --captions belong together; give both or neither")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if data is None or captions is None:
            data, captions = make_data(folder, images + _DEV_IMAGES)
        found = read_dataset(captions)
        everything = [*found.train, *found.dev]
        train_images = everything[: min(images, len(everything) - _DEV_IMAGES)]
        dev_images = everything[len(train_images) :][:_DEV_IMAGES]
        bundle = make_bundle(folder / "initial", everything, vocabulary_size, embed_dim, dec_layers)
        config = TrainConfig(
            data=data,
            captions=captions,
            train_split=write_names(folder / "train.txt", train_images),
            dev_split=write_names(folder / "dev.txt", dev_images),
            artifact_dir=folder / "run",
            # With it the vocabulary has its size however few the images are.
            init=bundle.path,
            captioner=bundle.config,
            cache_dir=folder / "cache",
            # In the first one the run traces its step.
            epochs=rounds + 1,
            batch_size=batch_size,
            patience=0,
            num_beams=1,
        )
        seconds = run_rounds(
            config,
            lambda model, stage: make_measures(config, bundle, train_images, model, stage, original_steps),
        )
    print(
        json.dumps(
            {
                "benchmark": "training_step",
                "images": len(train_images),
                "words": bundle.config.vocabulary_size,
                "embed_dim": embed_dim,
                "dec_layers": dec_layers,
                "rounds": rounds,
                "seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
                **compare(seconds, len(train_images), captions_per_step(batch_size), original_steps, epochs),
                **provenance(),
            }
        )
    )


def run_rounds(
    config: TrainConfig, make_measures: Callable[[CaptionModel, CrossEntropyStage], Measures]
) -> dict[str, list[float]]:
    """Seconds of each round, of the epochs of a real run and, after each epoch, of all else."""
    made: list[tuple[CaptionModel, CrossEntropyStage]] = []
    measures: Measures = {}
    seconds: dict[str, list[float]] = {}

    def make_stage(model: CaptionModel, *arguments: Any, **options: Any) -> CrossEntropyStage:
        stage = CrossEntropyStage(model, *arguments, **options)
        made.append((model, stage))
        return stage

    def hear(line: str) -> None:
        if line.startswith("left out"):
            raise SystemExit(f"{line}; rates would count it")
        found = re.match(r"epoch (\d+) ", line)
        # Epoch 0 is the network that the run starts from, and in epoch 1 it traces its step.
        if found and int(found[1]) == 1:
            measures.update(make_measures(*made[0]))
        elif found and int(found[1]) > 1:
            for name, measure in measures.items():
                seconds.setdefault(name, []).append(measure())

    # The steps alone are to be those of the run, of the same network and compiled once.
    with patch("model_training.training.CrossEntropyStage", make_stage):
        folder = train(config, report=hear)
    with open(folder / HISTORY, encoding="utf-8", newline="") as history:
        epochs = [float(row["train_s"]) for row in csv.DictReader(history) if int(row["epoch"]) > 1]
    return {"epoch": epochs, **seconds}


def compare(
    seconds: dict[str, list[float]], images: int, per_step: int, original_steps: int, epochs: int
) -> dict[str, Any]:
    """What the seconds say.

    Args:
        seconds: of each round, by what was measured.
        images: of an epoch.
        per_step: captions of a step.
        original_steps: steps of the original's way in a round.
        epochs: that share the one-time cost of features.
    """
    captions = images * CAPTIONS_PER_IMAGE
    rounds = [dict(zip(seconds, values, strict=True)) for values in zip(*seconds.values(), strict=True)]

    def median(value: Callable[[dict[str, float]], float]) -> float:
        return round(statistics.median(map(value, rounds)), 3)

    def original_rate(s: dict[str, float]) -> float:
        return original_steps * per_step / s["original"]

    def our_rate(s: dict[str, float]) -> float:
        return captions / s["epoch"]

    def our_rate_with_features(s: dict[str, float]) -> float:
        return captions * epochs / (s["epoch"] * epochs + s["features"])

    # Seconds of the original's way for the captions of one step.
    parts: dict[str, Callable[[dict[str, float]], float]] = {
        "decoding": lambda s: s["original_decoding"] / original_steps,
        "cnn": lambda s: s["original_cnn"],
        "decoder": lambda s: s["plain_step"],
    }

    def all_parts(s: dict[str, float]) -> float:
        return sum(part(s) for part in parts.values())

    return {
        "step": {
            "captions": per_step,
            "ours_s_per_96_captions": median(lambda s: s["step"] * 96 / per_step),
            "plain_s_per_96_captions": median(lambda s: s["plain_step"] * 96 / per_step),
            "plain_to_ours": median(lambda s: s["plain_step"] / s["step"]),
        },
        "epoch": {
            "captions": captions,
            "captions_per_s": median(our_rate),
            "epoch_to_steps": median(lambda s: s["epoch"] / s["steps"]),
        },
        "original": {
            "captions": original_steps * per_step,
            "captions_per_s": median(original_rate),
            "ours_to_original": median(lambda s: our_rate(s) / original_rate(s)),
            f"ours_with_features_over_{epochs}_epochs_to_original": median(
                lambda s: our_rate_with_features(s) / original_rate(s)
            ),
            "share": {
                name: median(lambda s, part=part: part(s) / all_parts(s)) for name, part in parts.items()
            },
            # Near 1 where none of them waits for another, as on a CPU, which is busy with one or the other.
            "parts_alone_to_whole": median(lambda s: all_parts(s) * original_steps / s["original"]),
        },
    }


def make_measures(
    config: TrainConfig,
    bundle: Bundle,
    images: Sequence[CaptionedImage],
    model: CaptionModel,
    stage: CrossEntropyStage,
    original_steps: int,
) -> Measures:
    """All that is measured beside the epochs of a run, with its network and its stage, warmed up."""
    spec = bundle.config.image

    def features_from_nothing() -> None:
        with tempfile.TemporaryDirectory() as empty:
            load_features(model, load_pixels(images, config.data, spec, Path(empty)), Path(empty))

    batches = list(stage.batches(np.random.default_rng(0)))
    one_batch = make_batch(bundle.config, model.feature_shape, config.batch_size)

    plain_step = compile_plain_step(model)
    rows = (
        np.repeat(one_batch.inputs[:, 0], CAPTIONS_PER_IMAGE, axis=0).astype(np.float32),
        pad(one_batch.token_ids.reshape(-1, one_batch.token_ids.shape[-1]), bundle.config.sequence_length),
    )

    paths = [str(config.data / image.name) for image in images for _ in range(CAPTIONS_PER_IMAGE)]
    token_ids = encode_captions(images, bundle.tokenizer, bundle.config.sequence_length)
    # Repeated where an image has fewer captions, and where all of them make less than the steps take.
    captions = np.concatenate([np.resize(ids, (CAPTIONS_PER_IMAGE, ids.shape[-1])) for ids in token_ids])
    drawn = np.resize(np.random.default_rng(0).permutation(len(paths)), original_steps * len(rows[0]))
    pipeline = read_rows([paths[row] for row in drawn], captions[drawn], spec.image_size, len(rows[0]))
    extract = tf.function(model.extract_features)
    decoded, _ = next(iter(pipeline))

    def original() -> None:
        for pictures, ids in pipeline:
            float(plain_step(extract(pictures), ids)[0])

    for batch in [one_batch, *{batch.token_ids.shape: batch for batch in batches}.values()]:
        stage.step(batch)
    plain_step(extract(decoded), rows[1])

    return {
        # First, as near as can be to the epoch that it is compared with.
        "steps": lambda: time_of(lambda: [stage.step(batch) for batch in batches]),
        "step": lambda: time_of(lambda: stage.step(one_batch), _REPEATS),
        "plain_step": lambda: time_of(lambda: float(plain_step(*rows)[0]), _REPEATS),
        "features": lambda: time_of(features_from_nothing),
        "original": lambda: time_of(original),
        "original_decoding": lambda: time_of(lambda: [len(ids) for _, ids in pipeline]),
        "original_cnn": lambda: time_of(lambda: extract(decoded).numpy(), _REPEATS),
    }


def compile_plain_step(model: CaptionModel) -> Callable[[Any, Any], tuple[tf.Tensor, tf.Tensor]]:
    """A step as one writes it from Keras's image captioning example, for the same network and optimizer.

    Every row is a caption with features of its own: float[B, P, C] and int32[B, S].
    """
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.01, global_clipnorm=1.0)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(features: tf.Tensor, token_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        inputs, targets = token_ids[:, :-1], token_ids[:, 1:]
        mask = tf.cast(targets != PADDING, tf.float32)
        with tf.GradientTape() as tape:
            encoded = model.encode(features, training=True)
            logits = model.decode(inputs[:, None], encoded, training=True)[:, 0]
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
            loss = tf.reduce_sum(losses * mask) / tf.reduce_sum(mask)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        is_correct = tf.cast(tf.argmax(logits, -1, output_type=tf.int32) == targets, tf.float32)
        return loss, tf.reduce_sum(is_correct * mask) / tf.reduce_sum(mask)

    return step  # type: ignore[no-any-return]


def read_rows(paths: Sequence[str], token_ids: np.ndarray, size: int, batch_size: int) -> tf.data.Dataset:
    """Batches of float32[B, size, size, 3] and int32[B, S], a picture decoded for every caption."""

    def read(path: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.image.resize(image, (size, size)), ids

    rows = tf.data.Dataset.from_tensor_slices((list(paths), token_ids)).shuffle(len(paths))
    rows = rows.map(read, num_parallel_calls=tf.data.AUTOTUNE)
    return rows.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def make_batch(config: CaptionerConfig, feature_shape: tuple[int, int], batch_size: int) -> TrainBatch:
    """Random captions of random features, padded to `_STEP_TOKENS` and one more, which is predicted only."""
    rng = np.random.default_rng(0)
    count = captions_per_step(batch_size) // CAPTIONS_PER_IMAGE
    inputs = rng.random((count, 1, *feature_shape), np.float32).astype(np.float16)
    length = min(_STEP_TOKENS + 1, config.sequence_length)
    token_ids = rng.integers(END + 1, config.vocabulary_size, (count, CAPTIONS_PER_IMAGE, length), np.int32)
    token_ids[..., 0] = START
    ends = rng.integers(length // 2, length, (count, CAPTIONS_PER_IMAGE, 1))
    positions = np.arange(length)
    token_ids = np.where(positions < ends, token_ids, np.where(positions == ends, END, PADDING))
    return TrainBatch(inputs, token_ids.astype(np.int32), np.ones(token_ids.shape[:2], np.float32))


def make_bundle(
    path: Path, images: Sequence[CaptionedImage], vocabulary_size: int, embed_dim: int, dec_layers: int
) -> Bundle:
    """An untrained network of the wanted shape, for the words of the captions and made-up ones."""
    texts = (caption for image in images for caption in image.captions)
    tokenizer = Tokenizer.from_captions(texts, vocabulary_size=vocabulary_size)
    missing = vocabulary_size - tokenizer.vocabulary_size
    words = tokenizer.to_text().split()[END + 1 :]
    tokenizer = Tokenizer([*words, *(f"unused{number}" for number in range(missing))])
    config = CaptionerConfig(
        backbone="efficientnet_lite0",
        vocabulary_size=vocabulary_size,
        embed_dim=embed_dim,
        ff_dim=2 * embed_dim,
        enc_heads=embed_dim // 64,
        dec_heads=embed_dim // 64,
        dec_layers=dec_layers,
        key_dim=64,
        residual_dropout=0.2,
    )
    write_bundle(
        path,
        name="initial",
        config=config,
        generation=GenerationConfig(),
        tokenizer=tokenizer,
        weights=random_weights(config),
    )
    return Bundle.open(path)


def make_data(folder: Path, count: int) -> tuple[Path, Path]:
    """Photographs, and five captions of some random words for each; as long as people's are."""
    data = folder / "photos"
    data.mkdir()
    rng = np.random.default_rng(0)
    lines = ["image\tcaption"]
    for path in sorted(make_photos(data, count).iterdir()):
        for length in rng.normal(11, 3.5, CAPTIONS_PER_IMAGE).round().clip(4, 30):
            words = rng.zipf(1.3, int(length)) % 10_000
            lines.append(f"{path.name}\t{' '.join(f'word{word}' for word in words)}")
    captions = folder / "captions.tsv"
    captions.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return data, captions


def write_names(path: Path, images: Sequence[CaptionedImage]) -> Path:
    path.write_text("".join(f"{image.name}\n" for image in images), encoding="utf-8")
    return path


def captions_per_step(batch_size: int) -> int:
    """Our steps take whole images."""
    return batch_size // CAPTIONS_PER_IMAGE * CAPTIONS_PER_IMAGE


def pad(token_ids: np.ndarray, length: int) -> np.ndarray:
    return np.pad(token_ids, [(0, 0), (0, length - token_ids.shape[-1])], constant_values=PADDING)


def time_of(work: Callable[[], object], repeats: int = 1) -> float:
    """Seconds of one call, the mean of some."""
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - started) / repeats


if __name__ == "__main__":
    typer.run(main)
