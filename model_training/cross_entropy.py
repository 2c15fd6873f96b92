"""The main stage: predict each next word of what people wrote.

With `consistency`, every batch makes two passes, which see other views of the images and drop other units,
and which are to predict the same: R-Drop (Liang et al., https://arxiv.org/abs/2106.14448). With `consensus`,
captions that others agree with count more; see `consensus`. With teachers, the network also learns what they
predict; see `distillation`.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from batchcap.captioner.model import CaptionModel
from batchcap.captioner.tokenizer import PADDING
from model_training.augmentation import crop, random_boxes
from model_training.config import TrainConfig
from model_training.data_processing import TrainBatch, batches_per_epoch, train_batches
from model_training.distillation import Teachers
from model_training.distribution import Replicas, own_rows
from model_training.optimization import Optimizer, OptimizerConfig

# Training data sets have five captions an image; more are drawn from, fewer are repeated.
CAPTIONS_PER_IMAGE = 5


class CrossEntropyStage:
    """Masked cross-entropy over the captions of each image, which is encoded once for all of them.

    Args:
        model: the network.
        config: the run's options.
        views: pixels or features of the training images, see `ImageArrays`.
        token_ids: of each image, int32[captions, S].
        replicas: where the steps run.
        teachers: whom to learn from as well.
        weights: of each image, float32[captions], how much they count; None for all alike.
    """

    name = "xent"

    def __init__(
        self,
        model: CaptionModel,
        config: TrainConfig,
        views: np.ndarray,
        token_ids: Sequence[np.ndarray],
        replicas: Replicas,
        teachers: Teachers | None = None,
        weights: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.epochs = config.epochs
        self.steps_per_epoch = batches_per_epoch(
            len(views), batch_size=config.batch_size, captions_per_image=CAPTIONS_PER_IMAGE
        )
        self._model = model
        self._config = config
        self._views = views
        self._token_ids = token_ids
        self._weights = weights or [np.ones(len(ids), np.float32) for ids in token_ids]
        self._replicas = replicas
        self._teachers = teachers
        self._trains_cnn = config.train_cnn != "none"
        self.optimizer = Optimizer(
            model.trainable_variables,
            model.backbone.trainable_variables,
            OptimizerConfig.of_run(config, lr=config.lr, total_steps=self.steps_per_epoch * config.epochs),
        )
        self._step = replicas.compile(self._step_of_replica)

    def batches(self, rng: np.random.Generator, skip: int = 0) -> Iterator[TrainBatch]:
        """The batches of one epoch, without the first `skip`."""
        return train_batches(
            self._views,
            self._token_ids,
            self._weights,
            batch_size=self._config.batch_size,
            captions_per_image=CAPTIONS_PER_IMAGE,
            rng=rng,
            views_per_image=2 if self._config.consistency else 1,
            skip=skip,
        )

    def step(self, batch: TrainBatch) -> dict[str, float]:
        """Trains on a batch.

        Returns:
            Sums over its tokens: `loss`, `accuracy` (next tokens that are the likeliest), and `count`.
        """
        count = int(np.count_nonzero(batch.token_ids[:, :, 1:]))
        # The same for every replica, and a different one in every step.
        seed = (self._config.seed, self.optimizer.steps)
        loss, correct = self._step(
            *self._replicas.split((batch.inputs, batch.token_ids, batch.weights)),
            tf.constant(count, tf.float32),
            tf.constant(seed, tf.int32),
        )
        return {"loss": float(loss), "accuracy": float(correct), "count": count}

    def _step_of_replica(
        self,
        inputs: tf.Tensor,
        token_ids: tf.Tensor,
        weights: tf.Tensor,
        count: tf.Tensor,
        seed: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        views = inputs.shape[1]
        rows = tf.reshape(inputs, (-1, *inputs.shape[2:]))  # the views of an image follow each other
        token_ids, weights = (tf.repeat(of_image, views, axis=0) for of_image in (token_ids, weights))
        with tf.GradientTape() as tape:
            features = self._see(rows, seed)
            found = sums(
                self._model,
                self._model.encode(features, training=True),
                token_ids,
                weights,
                label_smoothing=self._config.label_smoothing,
                training=True,
            )
            loss, correct = found.loss / views, found.correct / views
            objective = loss
            if self._teachers is not None:
                taught = self._teachers.loss(features, token_ids[:, :, :-1], found.logits, found.is_token)
                share = self._config.distillation
                objective = (1 - share) * loss + share * taught / views
            if self._config.consistency:
                objective += self._config.consistency * disagreement(found.logits, found.is_token)
            mean = objective / count
        self.optimizer.apply(tape.gradient(mean, self.optimizer.variables))
        return loss, correct

    def _see(self, inputs: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Features float32[B, P, C] of features, or of pixels, which are mirrored or cropped first."""
        if not self._trains_cnn:
            return tf.cast(inputs, tf.float32)
        pixels = tf.cast(inputs, tf.float32)
        if self._config.augment:
            pixels = crop(pixels, own_rows(lambda rows: random_boxes(rows, seed=seed), pixels))
        else:
            coins = own_rows(lambda rows: tf.random.stateless_uniform((rows, 1, 1, 1), seed), pixels)
            pixels = tf.where(coins < 0.5, pixels, pixels[:, :, ::-1])
        return self._model.extract_features(pixels)


class Sums(NamedTuple):
    """Sums over the tokens after start and before padding, and what they are of.

    Args:
        loss: float32[].
        correct: float32[], predictions that are right.
        logits: float32[B, N, T - 1, V].
        is_token: float32[B, N, T - 1], 0 for padding.
    """

    loss: tf.Tensor
    correct: tf.Tensor
    logits: tf.Tensor
    is_token: tf.Tensor


def sums(
    model: CaptionModel,
    encoded: tf.Tensor,
    token_ids: tf.Tensor,
    weights: tf.Tensor | None = None,
    *,
    label_smoothing: float,
    training: bool,
) -> Sums:
    """Loss and right predictions.

    Args:
        model: the network.
        encoded: float32[B, P, D], what the decoder attends to.
        token_ids: int32[B, N, T].
        weights: float32[B, N], how much the loss of each caption counts; all alike where there are none.
        label_smoothing: see `smoothed_cross_entropy`.
        training: whether dropout is on.
    """
    inputs, targets = token_ids[:, :, :-1], token_ids[:, :, 1:]
    is_token = tf.cast(targets != PADDING, tf.float32)
    # In mixed precision the network gives bfloat16, too coarse for a softmax over a vocabulary.
    logits = tf.cast(model.decode(inputs, encoded, training=training), tf.float32)
    losses = smoothed_cross_entropy(targets, logits, label_smoothing)
    is_correct = tf.cast(tf.argmax(logits, -1, output_type=tf.int32) == targets, tf.float32)
    counted = is_token if weights is None else is_token * weights[:, :, None]
    return Sums(tf.reduce_sum(losses * counted), tf.reduce_sum(is_correct * is_token), logits, is_token)


def disagreement(logits: tf.Tensor, is_token: tf.Tensor) -> tf.Tensor:
    """How much two passes differ: half the sum of both Kullback-Leibler divergences, added up over tokens.

    Args:
        logits: float32[2 B, N, T, V], the two passes of an image one after the other.
        is_token: float32[2 B, N, T], 0 for padding.

    Returns:
        float32[].
    """
    log_probs = tf.nn.log_softmax(logits)
    one, other = log_probs[::2], log_probs[1::2]
    divergences = 0.5 * tf.reduce_sum((tf.exp(one) - tf.exp(other)) * (one - other), -1)
    return tf.reduce_sum(divergences * is_token[::2])


def smoothed_cross_entropy(targets: tf.Tensor, logits: tf.Tensor, label_smoothing: float) -> tf.Tensor:
    """Sparse categorical cross-entropy with label smoothing.

    Szegedy et al., https://arxiv.org/abs/1512.00567, section 7.

    Args:
        targets: int32[...].
        logits: float32[..., V].
        label_smoothing: probability spread evenly over all V.

    Returns:
        float32[...].
    """
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    if not label_smoothing:
        return losses
    # mean over V of -log p, without a second softmax.
    spread = tf.reduce_logsumexp(logits, -1) - tf.reduce_mean(logits, -1)
    return (1 - label_smoothing) * losses + label_smoothing * spread
