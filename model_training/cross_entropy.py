"""The main stage: predict each next word of what people wrote.

With `consistency`, every batch makes two passes, which see other views of the images and drop other units,
and which are to predict the same: R-Drop (Liang et al., https://arxiv.org/abs/2106.14448). With `consensus`,
captions that others agree with count more; see `consensus`. With teachers, the network also learns what they
predict; see `distillation`.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from batchcap.captioner.model import CaptionModel
from model_training.augmentation import crop, random_boxes
from model_training.config import TrainConfig
from model_training.data_processing import TrainBatch, batches_per_epoch, train_batches
from model_training.distillation import Teachers
from model_training.distribution import Replicas, own_rows
from model_training.losses import disagreement, sums
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
        # Each token once, however many views an image has.
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
