"""Captioned images on disk -> features and token ids in memory-mapped arrays.

Pictures go through `batchcap.captioner.images.decode_image` and captions through the `Tokenizer`, the very
code that captions collections later, so that training and serving can't drift apart.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from batchcap.captioner.images import ImageSpec, decode_image
from batchcap.captioner.model import CaptionModel
from batchcap.captioner.tokenizer import PADDING, Tokenizer
from batchcap.errors import ImageError, TrainingError
from model_training.datasets import CaptionedImage

# Caption lengths are padded to multiples of this, so that a training step is traced for few shapes.
_LENGTH_STEP = 4


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSet:
    """Images with the features of a frozen CNN.

    Args:
        images: those that could be decoded, in the order of `features`.
        features: float16[images, 2, P, C], memory-mapped; index 1 is the mirrored image.
        failed: name and reason of the images that could not be decoded.
    """

    images: tuple[CaptionedImage, ...]
    features: np.ndarray
    failed: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, eq=False)
class TrainBatch:
    """What one training step takes.

    Args:
        features: float16[B, P, C].
        token_ids: int32[B, N, T], start, words, end, padding.
    """

    features: np.ndarray
    token_ids: np.ndarray


def load_features(
    model: CaptionModel,
    images: Sequence[CaptionedImage],
    data: Path,
    cache_dir: Path,
    *,
    batch_size: int = 32,
) -> FeatureSet:
    """Runs the frozen CNN once over the images and their mirror images, or reads what an earlier run kept.

    Args:
        model: its CNN with its weights filled in.
        images: what to run it on.
        data: folder of the images.
        cache_dir: where features are kept, under a fingerprint of all that they depend on.
        batch_size: images that go through the CNN at once.

    Raises:
        TrainingError: no image can be decoded, or the cache can't be written or read.
    """
    spec = model.config.image
    folder = cache_dir / f"features-{_features_fingerprint(images, data, model)}"
    features_path, index_path = folder / "features.npy", folder / "index.json"
    try:
        if not index_path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _extract(model, images, data, spec, features_path, index_path, batch_size)
        index = json.loads(index_path.read_text(encoding="utf-8"))
        decoded = set(index["decoded"])
        if not decoded:
            raise TrainingError(f"none of the {len(images)} images in {data} can be decoded")
        features = np.load(features_path, mmap_mode="r")[: len(decoded)]
    except OSError as error:
        raise TrainingError(
            f"can't keep features in {cache_dir}: {error.strerror or error}; give another --cache_dir"
        ) from error
    kept = tuple(image for image in images if image.name in decoded)
    return FeatureSet(kept, features, tuple(map(tuple, index["failed"])))


def _extract(
    model: CaptionModel,
    images: Sequence[CaptionedImage],
    data: Path,
    spec: ImageSpec,
    features_path: Path,
    index_path: Path,
    batch_size: int,
) -> None:
    size = spec.image_size
    extract = tf.function(
        lambda pixels: tf.cast(model.extract_features(pixels), tf.float16),
        input_signature=[tf.TensorSpec((None, size, size, 3), tf.uint8)],
    )
    shape = (len(images), 2, *model.feature_shape)
    features = np.lib.format.open_memmap(features_path, mode="w+", dtype=np.float16, shape=shape)
    decoded: list[str] = []
    failed: list[tuple[str, str]] = []
    pending: list[np.ndarray] = []

    def flush() -> None:
        if pending:
            pixels = np.stack(pending)
            rows = slice(len(decoded) - len(pending), len(decoded))
            features[rows, 0] = extract(pixels).numpy()
            features[rows, 1] = extract(pixels[:, :, ::-1]).numpy()
            pending.clear()

    for image in images:
        try:
            pending.append(decode_image((data / image.name).read_bytes(), spec))
            decoded.append(image.name)
        except (ImageError, OSError) as error:
            failed.append((image.name, str(error)))
        if len(pending) == batch_size:
            flush()
    flush()
    features.flush()
    # Last: a folder without an index is an extraction that did not finish.
    index_path.write_text(json.dumps({"decoded": decoded, "failed": failed}), encoding="utf-8")


def _features_fingerprint(images: Sequence[CaptionedImage], data: Path, model: CaptionModel) -> str:
    def stat(name: str) -> tuple[int, int]:
        try:
            found = (data / name).stat()
        except OSError:
            return (-1, -1)
        return (found.st_size, found.st_mtime_ns)

    weights = hashlib.sha256()
    for weight in model.backbone.get_weights():
        weights.update(weight.tobytes())
    described = {
        "files": [(image.name, *stat(image.name)) for image in images],
        "data": str(data.resolve()),
        "backbone": model.config.backbone,
        "weights": weights.hexdigest(),
        "image": asdict(model.config.image),
    }
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def batches_per_epoch(images: int, *, batch_size: int, captions_per_image: int) -> int:
    """How many batches `train_batches` makes of so many images."""
    # Its pools are whole batches, so that only the last batch of the last pool can be smaller.
    return math.ceil(images / _images_per_batch(batch_size, captions_per_image))


def train_batches(
    features: FeatureSet,
    tokenizer: Tokenizer,
    *,
    sequence_length: int,
    batch_size: int,
    captions_per_image: int,
    rng: np.random.Generator,
) -> Iterator[TrainBatch]:
    """One epoch: every image once, with all its captions, so that it is encoded once for all of them.

    Images whose longest captions are alike share a batch, which keeps padding short. Half of the images,
    drawn anew each epoch, are mirrored.

    Args:
        features: the training images.
        tokenizer: turns their captions into ids.
        sequence_length: S; longer captions are cut.
        batch_size: captions in a batch, rounded down to whole images (one at least).
        captions_per_image: N; an image with fewer repeats some, one with more has N of them drawn.
        rng: decides order, mirroring and repeats.
    """
    drawn = (_draw(image.captions, captions_per_image, rng) for image in features.images)
    token_ids = np.array(
        [[tokenizer.encode(text, sequence_length) for text in captions] for captions in drawn]
    )  # images, N, S
    lengths = (token_ids != PADDING).sum(-1).max(-1)
    images_per_batch = _images_per_batch(batch_size, captions_per_image)
    order = rng.permutation(len(token_ids))
    # Sorting within large pools keeps the order random enough and the lengths of a batch alike.
    pool = images_per_batch * 32
    batches = []
    for start in range(0, len(order), pool):
        alike = sorted(order[start : start + pool], key=lambda image: lengths[image])
        batches += [alike[i : i + images_per_batch] for i in range(0, len(alike), images_per_batch)]
    for chosen in rng.permutation(len(batches)):
        rows = np.sort(batches[chosen])
        # One more than a multiple: the network reads all but the last token and predicts all but the first.
        steps = math.ceil((lengths[rows].max() - 1) / _LENGTH_STEP)
        length = min(sequence_length, steps * _LENGTH_STEP + 1)
        mirrored = rng.integers(0, 2, len(rows))
        yield TrainBatch(features.features[rows, mirrored], token_ids[rows, :, :length])


def _images_per_batch(batch_size: int, captions_per_image: int) -> int:
    return max(1, batch_size // captions_per_image)


def _draw(captions: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    if len(captions) >= count:
        return [captions[i] for i in rng.permutation(len(captions))[:count]]
    return [*captions, *(captions[i] for i in rng.integers(0, len(captions), count - len(captions)))]
