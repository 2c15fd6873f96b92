"""Captioned images on disk -> pixels, features and token ids in memory-mapped arrays.

Pictures go through `batchcap.captioner.images.decode_image` and captions through the `Tokenizer`, the very
code that captions collections later, so that training and serving can't drift apart. Both steps are kept in
a cache under a fingerprint of all that they depend on: the files, and for features the CNN's weights.
"""

import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from batchcap.captioner.images import ImageSpec
from batchcap.captioner.model import CaptionModel
from batchcap.captioner.tokenizer import PADDING, Tokenizer
from batchcap.errors import TrainingError
from model_training.augmentation import random_crops
from model_training.datasets import CaptionedImage
from model_training.pictures import CHUNK, decode_file

# Views of an image that a frozen CNN sees with --augment: the whole, its mirror image, six random crops.
AUGMENTED_VIEWS = 8
PLAIN_VIEWS = 2
# Caption lengths are padded to multiples of this, so that a training step is traced for few shapes.
_LENGTH_STEP = 4

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, eq=False)
class ImageArrays:
    """Decoded images, or what a frozen CNN makes of them.

    Args:
        images: those that could be decoded, in the order of `views`.
        views: uint8[images, 1, image_size, image_size, 3] or float16[images, V, P, C], memory-mapped; of V
            views, 0 is the image and 1 its mirror image.
        failed: name and reason of the images that could not be decoded.
        fingerprint: of all that `views` depends on.
    """

    images: tuple[CaptionedImage, ...]
    views: np.ndarray
    failed: tuple[tuple[str, str], ...]
    fingerprint: str


@dataclass(frozen=True, slots=True, eq=False)
class TrainBatch:
    """Captions with their images, for one training step.

    Args:
        inputs: uint8[B, W, image_size, image_size, 3] or float16[B, W, P, C], W views of each image.
        token_ids: int32[B, N, T], start, words, end, padding.
        weights: float32[B, N], how much each caption counts; 1 on average.
    """

    inputs: np.ndarray
    token_ids: np.ndarray
    weights: np.ndarray


def load_pixels(
    images: Sequence[CaptionedImage], data: Path, spec: ImageSpec, cache_dir: Path
) -> ImageArrays:
    """Decodes images once, or reads what an earlier run kept.

    Args:
        images: what to decode.
        data: their folder.
        spec: what `decode_image` is to make of them.
        cache_dir: where the pixels are kept.

    Raises:
        TrainingError: no image can be decoded, or the cache can't be written or read.
    """
    described = {
        "files": [(image.name, *_stat(data / image.name)) for image in images],
        "data": str(data.resolve()),
        "image": asdict(spec),
    }
    fingerprint = _digest(described)
    pixels_path = cache_dir / f"pixels-{fingerprint}.npy"
    index_path = pixels_path.with_suffix(".json")
    try:
        if not index_path.exists():
            cache_dir.mkdir(parents=True, exist_ok=True)
            with _staged(pixels_path) as staging:
                index = _decode_all(images, data, spec, staging)
            # Last: pixels without an index are not finished.
            with _staged(index_path) as staging:
                staging.write_text(json.dumps(index), encoding="utf-8")
        index = json.loads(index_path.read_text(encoding="utf-8"))
        decoded = set(index["decoded"])
        if not decoded:
            raise TrainingError(f"none of the {len(images)} images in {data} can be decoded")
        pixels = np.load(pixels_path, mmap_mode="r")[: len(decoded), None]
    except (OSError, ValueError, KeyError) as error:
        raise _cache_error(cache_dir, error) from error
    kept = tuple(image for image in images if image.name in decoded)
    return ImageArrays(kept, pixels, tuple(map(tuple, index["failed"])), fingerprint)


def load_features(
    model: CaptionModel,
    pixels: ImageArrays,
    cache_dir: Path,
    *,
    views: int = PLAIN_VIEWS,
    batch_size: int = 32,
) -> ImageArrays:
    """Runs the frozen CNN once over views of the images, or reads what an earlier run kept.

    Args:
        model: its CNN with its weights filled in.
        pixels: what to run it on, from `load_pixels`.
        cache_dir: where features are kept.
        views: V; from the third on they are random crops, always the same for the same images.
        batch_size: images that go through the CNN at once.

    Raises:
        TrainingError: the cache can't be written or read.
    """
    weights = hashlib.sha256()
    for weight in model.backbone.get_weights():
        weights.update(weight.tobytes())
    described = {
        "pixels": pixels.fingerprint,
        "backbone": model.config.backbone,
        "weights": weights.hexdigest(),
        "views": views,
    }
    fingerprint = _digest(described)
    path = cache_dir / f"features-{fingerprint}.npy"
    try:
        if not path.exists():
            cache_dir.mkdir(parents=True, exist_ok=True)
            with _staged(path) as staging:
                _extract(model, pixels.views, staging, views, batch_size)
        features = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise _cache_error(cache_dir, error) from error
    return ImageArrays(pixels.images, features, pixels.failed, fingerprint)


@contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """A file to write that gets its name when it is complete, whoever else writes the same."""
    staging = path.with_name(f".{uuid.uuid4().hex}-{path.name}")
    try:
        yield staging
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def _decode_all(
    images: Sequence[CaptionedImage], data: Path, spec: ImageSpec, path: Path
) -> dict[str, list[Any]]:
    """Writes uint8[images, H, W, 3], its first rows filled in.

    Returns:
        `decoded`, the names in the order of the rows, and `failed`, names and reasons.
    """
    size = spec.image_size
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(len(images), size, size, 3))
    decoded: list[str] = []
    failed: list[tuple[str, str]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # In pieces: what is decoded but not yet written is in memory.
        for start in range(0, len(images), CHUNK):
            piece = images[start : start + CHUNK]
            for image, found in zip(
                piece, pool.map(lambda image: decode_file(data / image.name, spec), piece), strict=True
            ):
                if isinstance(found, str):
                    failed.append((image.name, found))
                else:
                    pixels[len(decoded)] = found
                    decoded.append(image.name)
    pixels.flush()
    return {"decoded": decoded, "failed": failed}


def _extract(model: CaptionModel, pixels: np.ndarray, path: Path, views: int, batch_size: int) -> None:
    """Writes float16[images, views, P, C]."""
    size = model.config.image.image_size
    extract = tf.function(
        lambda images: tf.cast(model.extract_features(images), tf.float16),
        input_signature=[tf.TensorSpec((None, size, size, 3), tf.float32)],
        autograph=False,
    )
    shape = (len(pixels), views, *model.feature_shape)
    features = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    for start in range(0, len(pixels), batch_size):
        rows = slice(start, start + batch_size)
        images = pixels[rows, 0].astype(np.float32)
        for view in range(views):
            if view == 0:
                seen = images
            elif view == 1:
                seen = images[:, :, ::-1]
            else:
                seen = random_crops(images, seed=(start, view))
            features[rows, view] = extract(seen).numpy()
    features.flush()


def _stat(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (-1, -1)
    return (found.st_size, found.st_mtime_ns)


def _digest(described: object) -> str:
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def _cache_error(cache_dir: Path, error: Exception) -> TrainingError:
    reason = getattr(error, "strerror", None) or error
    return TrainingError(
        f"can't keep images and features in {cache_dir}: {reason}; give another --cache_dir, or empty it"
    )


def encode_captions(
    images: Sequence[CaptionedImage], tokenizer: Tokenizer, sequence_length: int
) -> list[np.ndarray]:
    """int32[captions, S] for each image; longer captions are cut."""
    return [
        np.array([tokenizer.encode(text, sequence_length) for text in image.captions], np.int32)
        for image in images
    ]


def batches_per_epoch(images: int, *, batch_size: int, captions_per_image: int) -> int:
    """How many batches `train_batches` makes of so many images."""
    # Its pools are whole batches, so that only the last batch of the last pool can be smaller.
    return math.ceil(images / _images_per_batch(batch_size, captions_per_image))


def train_batches(
    views: np.ndarray,
    token_ids: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
    *,
    batch_size: int,
    captions_per_image: int,
    rng: np.random.Generator,
    views_per_image: int = 1,
    skip: int = 0,
) -> Iterator[TrainBatch]:
    """One epoch: every image once, with all its captions, so that it is encoded once for all of them.

    Images whose longest captions are alike share a batch, which keeps padding short. In which of its views
    an image is shown is drawn anew each epoch.

    Args:
        views: [images, V, ...], see `ImageArrays`.
        token_ids: of each image, int32[captions, S].
        weights: of each image, float32[captions].
        batch_size: captions in a batch, rounded down to whole images (one at least).
        captions_per_image: N; an image with fewer repeats some, one with more has N of them drawn.
        rng: decides order, views and repeats; the same generator gives the same epoch.
        views_per_image: W; the same view may be drawn twice.
        skip: leave out so many batches of the beginning.
    """
    drawn = [_draw(len(ids), captions_per_image, rng) for ids in token_ids]
    chosen = np.stack([ids[captions] for ids, captions in zip(token_ids, drawn, strict=True)])  # images, N, S
    chosen_weights = np.stack([of[captions] for of, captions in zip(weights, drawn, strict=True)])
    lengths = (chosen != PADDING).sum(-1).max(-1)
    view = rng.integers(0, views.shape[1], (len(chosen), views_per_image))
    images_per_batch = _images_per_batch(batch_size, captions_per_image)
    batches = alike_batches(lengths, images_per_batch, rng)
    for rows in batches[skip:]:
        rows = np.sort(rows)
        length = padded_length(lengths[rows].max(), chosen.shape[-1])
        yield TrainBatch(views[rows[:, None], view[rows]], chosen[rows, :, :length], chosen_weights[rows])


def alike_batches(lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The indices of `lengths` in random batches, each of indices of much the same length.

    Args:
        lengths: int[items].
        batch_size: items of a batch; the last one may have fewer.
        rng: decides.
    """
    order = rng.permutation(len(lengths))
    # Sorting within large pools keeps the order random enough and the lengths of a batch alike.
    pool = batch_size * 32
    batches = []
    for start in range(0, len(order), pool):
        pooled = order[start : start + pool]
        alike = pooled[np.argsort(lengths[pooled], kind="stable")]
        batches += [alike[i : i + batch_size] for i in range(0, len(alike), batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def padded_length(longest: int, sequence_length: int) -> int:
    """Tokens to which the captions of a batch are padded."""
    # One more than a multiple: the network reads all but the last token and predicts all but the first.
    return min(sequence_length, math.ceil((int(longest) - 1) / _LENGTH_STEP) * _LENGTH_STEP + 1)


def prefetch(items: Iterable[_T]) -> Iterator[_T]:
    """Yields the items (none of them None), the next one read by another thread while this one is used."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as reader:
        pending = reader.submit(next, iterator, None)
        while (item := pending.result()) is not None:
            pending = reader.submit(next, iterator, None)
            yield item


def _images_per_batch(batch_size: int, captions_per_image: int) -> int:
    return max(1, batch_size // captions_per_image)


def _draw(available: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `count` captions: all that are there, and some of them again where they are too few."""
    if available >= count:
        return rng.permutation(available)[:count]
    return np.concatenate([np.arange(available), rng.integers(0, available, count - available)])
