"""Teaches a CNN the words of captions: `python -m model_training.tune_cnn BACKBONE OUTPUT --data … …`.

ImageNet's classes have a hundred breeds of dogs, but no man, woman or child, and nothing of what they do.
Here the CNN learns to tell from a photograph which words people's captions of it have: a logistic regression
a word, over the mean of its grid. `--backbone_weights` takes the result, and the features of the tuned CNN
are computed once and cached as those of any other that stays as it is.

First the regression is fitted on the CNN as it came, then both together: with a head of random weights, the
first gradients would spoil what the CNN has learnt (Kumar et al., https://arxiv.org/abs/2202.10054). The
CNN's beginning, which sees edges and textures and costs most, stays as it is. Against learning a few thousand
photographs by heart, it sees crops of them and mixtures of two (mixup: Zhang et al.,
https://arxiv.org/abs/1710.09412), and what is kept is the moving average of the weights.
"""

import math
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

# TensorFlow reads it when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
import typer

from batchcap.captioner.backbone import build_backbone
from batchcap.captioner.config import Backbone
from batchcap.captioner.images import ImageSpec
from batchcap.captioner.tokenizer import standardize
from batchcap.errors import BatchcapError, TrainingError, UsageError
from model_training.augmentation import crop, random_boxes
from model_training.data_processing import ImageArrays, load_pixels, prefetch
from model_training.datasets import CaptionedImage, Format, read_dataset
from model_training.fine_tuning import freeze_beginning
from model_training.optimization import Optimizer, OptimizerConfig
from model_training.pretrained import load_backbone_weights, write_backbone_weights

# A word is worth learning if the captions of so large a share of the images have it: of rarer ones there is
# too little to learn from, and those that nearly every image has say nothing.
_RAREST, _COMMONEST = 0.01, 0.5
# Of the regression: by itself it takes more steps, which cost next to nothing.
_HEAD_LR, _HEAD_EPOCHS, _HEAD_BATCH = 1e-3, 15, 64
_DROPOUT = 0.3
# Of both together. The head learns faster than the CNN by this factor.
_HEAD_SPEED = 5.0
_WARMUP_STEPS = 100
_WEIGHT_DECAY = 0.01
_CLIP_NORM = 5.0
# The moving average of the weights goes back so far.
_AVERAGED_EPOCHS = 0.8
# The average of a weight that stays as it is differs from it by rounding: less of a gain is none.
_ROUNDING = 1e-4
# The shares of two mixed photographs come from a beta distribution with this parameter, twice.
_MIXUP = 0.4


@dataclass(frozen=True, slots=True)
class Score:
    """How well words are told on images of which nothing was learnt.

    Args:
        loss: nats an image, the sum of the binary cross-entropies of all words.
        precision: mean average precision over the words, 0 to 1.
    """

    loss: float
    precision: float


def content_words(images: Sequence[CaptionedImage]) -> list[str]:
    """The words worth learning, in alphabetical order.

    Raises:
        TrainingError: there are none.
    """
    counts = Counter(word for image in images for word in set().union(*map(_words_of, image.captions)))
    rarest, commonest = _RAREST * len(images), _COMMONEST * len(images)
    words = sorted(word for word, count in counts.items() if rarest <= count <= commonest)
    if not words:
        raise TrainingError(f"no word stands in the captions of 1 % to 50 % of the {len(images)} images")
    return words


def word_shares(images: Sequence[CaptionedImage], words: Sequence[str]) -> np.ndarray:
    """float32[I, W]: the share of an image's captions that have a word."""
    columns = {word: column for column, word in enumerate(words)}
    shares = np.zeros((len(images), len(words)), np.float32)
    for row, image in zip(shares, images, strict=True):
        for caption in image.captions:
            for word in columns.keys() & _words_of(caption):
                row[columns[word]] += 1 / len(image.captions)
    return shares


def mean_average_precision(scores: np.ndarray, is_there: np.ndarray) -> float:
    """How far on top the images with a word stand where all are sorted by its score; the mean over words.

    Args:
        scores: float[I, W].
        is_there: bool[I, W]; a word that no image has doesn't count.

    Returns:
        0 to 1; 0 where no word counts.
    """
    found = []
    for column in np.flatnonzero(is_there.any(0)):
        hits = is_there[np.argsort(-scores[:, column], kind="stable"), column]
        found.append((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())
    return float(np.mean(found)) if found else 0.0


class WordTuner:
    """A CNN with a logistic regression on it.

    Args:
        backbone: the CNN, its weights filled in.
        train_set: pixels to learn from.
        dev_set: pixels to judge on.
        words: to learn.
        seed: of order, crops and dropout.
    """

    def __init__(
        self,
        backbone: keras.Model,
        train_set: ImageArrays,
        dev_set: ImageArrays,
        words: Sequence[str],
        *,
        seed: int = 0,
    ) -> None:
        self.backbone = backbone
        self._pixels, self._dev_pixels = train_set.views[:, 0], dev_set.views[:, 0]
        self._shares, self._dev_shares = (word_shares(s.images, words) for s in (train_set, dev_set))
        self._seed = seed
        self._head = keras.layers.Dense(len(words), name="words")
        self._head.build((None, backbone.output_shape[-1]))
        mean = np.clip(self._shares.mean(0), 1e-4, 1 - 1e-4)
        self._head.bias.assign(np.log(mean / (1 - mean)))
        self._dropout = keras.layers.Dropout(_DROPOUT, seed=seed)
        self._see = tf.function(self._means, autograph=False)

    def fit_head(self) -> Score:
        """Fits the regression on the CNN as it is, on each image and its mirror image."""
        views = np.stack(
            [
                np.concatenate([self._see(batch) for batch in self._plain(self._pixels, mirrored)])
                for mirrored in (False, True)
            ]
        )
        steps = _HEAD_EPOCHS * math.ceil(len(self._pixels) / _HEAD_BATCH)
        optimizer = Optimizer(
            self._head.trainable_variables,
            [],
            OptimizerConfig(_HEAD_LR, steps, warmup_steps=min(_WARMUP_STEPS, steps // 2), weight_decay=1e-4),
        )

        def fit(features: tf.Tensor, shares: tf.Tensor) -> None:
            with tf.GradientTape() as tape:
                loss = self._loss(features, shares)
            optimizer.apply(tape.gradient(loss, optimizer.variables))

        step = tf.function(fit, autograph=False, reduce_retracing=True)
        rng = np.random.default_rng((self._seed, 0))
        for _ in range(_HEAD_EPOCHS):
            for rows in _batches(len(self._pixels), _HEAD_BATCH, rng):
                step(views[rng.integers(0, 2, len(rows)), rows], self._shares[rows])
        return self.score()

    def tune(self, *, epochs: int, lr: float, batch_size: int) -> Iterator[tuple[float, Score]]:
        """Trains CNN and regression.

        Args:
            epochs: passes over the images, each time in other crops and mixtures.
            lr: peak learning rate of the CNN.
            batch_size: images a step.

        Yields:
            After every epoch the mean loss of its steps, and how well words are told then. Until the next
            epoch begins, CNN and regression have the averages of their weights, which were judged.

        Raises:
            TrainingError: the loss is no longer finite.
        """
        freeze_beginning(self.backbone)
        trained = self.backbone.trainable_variables
        steps = epochs * math.ceil(len(self._pixels) / batch_size)
        optimizer = Optimizer(
            [*self._head.trainable_variables, *trained],
            trained,
            OptimizerConfig(
                lr * _HEAD_SPEED,
                steps,
                warmup_steps=min(_WARMUP_STEPS, steps // 2),
                weight_decay=_WEIGHT_DECAY,
                clip_norm=_CLIP_NORM,
                ema_momentum=max(0.0, 1 - 1 / (_AVERAGED_EPOCHS * steps / epochs)),
                cnn_lr=1 / _HEAD_SPEED,
            ),
        )

        def train(pixels: tf.Tensor, shares: tf.Tensor, mix: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
            cropped = crop(pixels, random_boxes(tf.shape(pixels)[0], seed=seed))
            with tf.GradientTape() as tape:
                loss = self._loss(
                    self._means(_mixed(cropped, mix[:, None, None, None])), _mixed(shares, mix[:, None])
                )
            optimizer.apply(tape.gradient(loss, optimizer.variables))
            return loss

        step = tf.function(train, autograph=False, reduce_retracing=True)
        for epoch in range(1, epochs + 1):
            rng = np.random.default_rng((self._seed, epoch))
            order = _batches(len(self._pixels), batch_size, rng)
            losses = []
            for number, (pixels, rows) in enumerate(prefetch((self._pixels[rows], rows) for rows in order)):
                seed = tf.constant((self._seed + epoch, number), tf.int32)
                mix = rng.beta(_MIXUP, _MIXUP, len(rows)).astype(np.float32)
                losses.append(float(step(pixels, self._shares[rows], mix, seed)))
                if not math.isfinite(losses[-1]):
                    raise TrainingError(f"the loss is {losses[-1]} in epoch {epoch}; lower --lr")
            latest = [variable.numpy() for variable in optimizer.variables]
            optimizer.copy_averaged(optimizer.variables)
            yield float(np.mean(losses)), self.score()
            for variable, value in zip(optimizer.variables, latest, strict=True):
                variable.assign(value)

    def score(self) -> Score:
        """Judges on the dev images."""
        logits = np.concatenate([self._head(self._see(batch)) for batch in self._plain(self._dev_pixels)])
        losses = tf.nn.sigmoid_cross_entropy_with_logits(self._dev_shares, logits)
        # At least two of five people say it.
        return Score(
            float(tf.reduce_mean(tf.reduce_sum(losses, -1))),
            mean_average_precision(logits, self._dev_shares >= 0.4),
        )

    def _means(self, pixels: tf.Tensor) -> tf.Tensor:
        """[B, image_size, image_size, 3] -> float32[B, C], the mean of the grid."""
        return tf.reduce_mean(self.backbone(tf.cast(pixels, tf.float32), training=False), (1, 2))

    def _loss(self, features: tf.Tensor, shares: tf.Tensor) -> tf.Tensor:
        logits = self._head(self._dropout(features, training=True))
        return tf.reduce_mean(tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(shares, logits), -1))

    def _plain(self, pixels: np.ndarray, mirrored: bool = False) -> Iterator[np.ndarray]:
        for start in range(0, len(pixels), _HEAD_BATCH):
            batch = pixels[start : start + _HEAD_BATCH]
            yield batch[:, :, ::-1] if mirrored else batch


def _batches(images: int, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The images in random batches; sorted, for they lie on disk in this order."""
    order = rng.permutation(images)
    return [np.sort(order[start : start + batch_size]) for start in range(0, images, batch_size)]


def _mixed(values: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """[B, ...], each mixed with the one before it, of which 1 - `share` comes."""
    values = tf.cast(values, tf.float32)
    return share * values + (1 - share) * tf.roll(values, 1, axis=0)


def _words_of(caption: str) -> set[str]:
    return set(standardize(caption).split())


def main(
    backbone: Annotated[Backbone, typer.Argument(help="The CNN.")],
    output: Annotated[Path, typer.Argument(help="The file to write, .safetensors.")],
    data: Annotated[Path, typer.Option(help="Folder of the images.")],
    captions: Annotated[Path, typer.Option(help="File of captions.")],
    format: Annotated[Format, typer.Option(help="Of the captions.")] = "auto",
    train_split: Annotated[Path | None, typer.Option(help="Names of the images to learn from.")] = None,
    dev_split: Annotated[Path | None, typer.Option(help="Names of the images to choose on.")] = None,
    dev_share: Annotated[float, typer.Option(help="Of the images, if nothing else splits them.")] = 0.05,
    limit: Annotated[int, typer.Option(help="Images of each split; 0 for all.", min=0)] = 0,
    cache_dir: Annotated[Path, typer.Option(help="Keeps pixels for later runs.")] = Path("local_runs/cache"),
    backbone_weights: Annotated[
        str, typer.Option(help="To start from: imagenet, none, or a file.")
    ] = "imagenet",
    image_size: Annotated[int, typer.Option(help="Pixels.", min=32)] = 224,
    epochs: Annotated[int, typer.Option(help="Passes over the images.", min=1)] = 5,
    batch_size: Annotated[int, typer.Option(help="Images a step.", min=1)] = 24,
    lr: Annotated[float, typer.Option(help="Peak learning rate.", min=0.0)] = 1e-4,
    seed: Annotated[int, typer.Option(help="Of order, crops, dropout, split.", min=0)] = 0,
) -> None:
    """Teach a CNN the words of captions, before a captioner is trained on its features."""
    try:
        _check_output(output)
        dataset = read_dataset(
            captions,
            format=format,
            train_split=train_split,
            dev_split=dev_split,
            dev_share=dev_share,
            seed=seed,
            limit=limit,
        )
        print(dataset.summary, flush=True)
        words = content_words(dataset.train)
        keras.utils.set_random_seed(seed)
        cnn = build_backbone(backbone, image_size)
        load_backbone_weights(cnn, backbone, backbone_weights)
        train_set, dev_set = (
            load_pixels(images, data, ImageSpec(image_size), cache_dir)
            for images in (dataset.train, dataset.dev)
        )
        for name, reason in (*train_set.failed, *dev_set.failed):
            print(f"left out {name}: {reason}")
        tuner = WordTuner(cnn, train_set, dev_set, words, seed=seed)
        best = tuner.fit_head()
        print(f"{len(words)} words; as it came: {_said(best)}", flush=True)
        is_written = False
        tuned = tuner.tune(epochs=epochs, lr=lr, batch_size=batch_size)
        for epoch, (loss, score) in enumerate(tuned, start=1):
            print(f"epoch {epoch}: loss {loss:.3f}; {_said(score)}", flush=True)
            if score.loss < (1 - _ROUNDING) * best.loss:
                best, is_written = score, True
                write_backbone_weights(cnn, output)
        if not is_written:
            raise TrainingError(
                "no epoch was better than the CNN as it came; lower --lr, or give more images"
            )
        print(f"the weights are in {output}: {_said(best)}")
    except KeyboardInterrupt:
        print("tune_cnn: interrupted", file=sys.stderr)
        raise typer.Exit(130) from None
    except BatchcapError as error:
        print(f"tune_cnn: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_status) from error


def _check_output(output: Path) -> None:
    """Refuses what could not be written or read, before it takes minutes to find out.

    Raises:
        UsageError: it is no such file.
    """
    if output.suffix != ".safetensors":
        raise UsageError(f"{output} must end in .safetensors, by which --backbone_weights knows it")
    if not output.parent.is_dir():
        raise UsageError(f"there is no folder {output.parent}; make it, or name another file")


def _said(score: Score) -> str:
    return f"dev loss {score.loss:.3f}, mean average precision {score.precision:.3f}"


if __name__ == "__main__":
    typer.run(main)
