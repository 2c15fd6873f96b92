"""The first stage, where there is text without images: learn to write captions before learning to look.

In place of an image, the decoder attends to a few words of the very caption that it has to write: their
embeddings stand where vectors of the image will stand. So it learns the language of captions, and to put
what it attends to into a sentence, from far more captions than there are images with captions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import keras
import numpy as np
import tensorflow as tf

from batchcap.captioner.model import CaptionModel
from batchcap.captioner.tokenizer import PADDING, Tokenizer
from model_training.config import TrainConfig
from model_training.data_processing import alike_batches, padded_length
from model_training.distribution import Replicas, own_rows
from model_training.losses import sums
from model_training.optimization import Optimizer, OptimizerConfig

# Of a caption's words, the share that is shown, and how many at most.
_SHOWN_SHARE = 0.5
_SHOWN_WORDS = 8
# The most frequent tokens say nothing of an image ("a", "in", "the") and are never shown.
_FUNCTION_WORDS = 60
# Vectors of images will not be exact either.
_NOISE = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class TextBatch:
    """What one step takes.

    Args:
        token_ids: int32[B, T], start, words, end, padding.
        shown: int32[B, W], words of the caption, in no order; padding where there are fewer.
    """

    token_ids: np.ndarray
    shown: np.ndarray


class TextStage:
    """Captions from some of their own words.

    Args:
        model: the network; its CNN and encoder have no part in this.
        config: the run's options.
        texts: captions.
        tokenizer: the vocabulary.
        replicas: where the steps run.
    """

    name = "text"

    def __init__(
        self,
        model: CaptionModel,
        config: TrainConfig,
        texts: Sequence[str],
        tokenizer: Tokenizer,
        replicas: Replicas,
    ) -> None:
        self.epochs = config.text_epochs
        self._token_ids = np.array(
            [tokenizer.encode(text, model.config.sequence_length) for text in texts], np.int32
        )
        self._lengths = (self._token_ids != PADDING).sum(-1)
        self.steps_per_epoch = -(-len(texts) // config.batch_size)
        self._is_never_shown = _frequent(self._token_ids, tokenizer.vocabulary_size)
        self._model = model
        self._config = config
        self._replicas = replicas
        trained = [model.token_embedding, model.position_embedding, *model.decoder, model.output_dense]
        self.optimizer = Optimizer(
            [weight for layer in trained for weight in layer.trainable_weights],
            [],
            # No average: it is not judged, and the next stage goes on from the latest weights.
            replace(
                OptimizerConfig.of_run(
                    config, lr=config.lr, total_steps=self.steps_per_epoch * config.text_epochs
                ),
                ema_momentum=0.0,
            ),
        )
        # As the last layer norm of the encoder does to the image's vectors.
        self._norm = keras.layers.LayerNormalization(center=False, scale=False)
        self._step = replicas.compile(self._step_of_replica)

    def batches(self, rng: np.random.Generator, skip: int = 0) -> Iterator[TextBatch]:
        """The batches of one epoch, without the first `skip`."""
        shown = np.where(
            self._is_never_shown[self._token_ids] | (rng.random(self._token_ids.shape) >= _SHOWN_SHARE),
            PADDING,
            self._token_ids,
        )
        # The attention knows no order; the largest ids first puts padding last.
        shown = -np.sort(-shown, axis=-1)[:, :_SHOWN_WORDS]
        for rows in alike_batches(self._lengths, self._config.batch_size, rng)[skip:]:
            length = padded_length(self._lengths[rows].max(), self._token_ids.shape[-1])
            yield TextBatch(self._token_ids[rows, :length], shown[rows])

    def step(self, batch: TextBatch) -> dict[str, float]:
        """Trains on a batch.

        Returns:
            Sums over its tokens: `loss`, `accuracy`, and `count`.
        """
        count = int(np.count_nonzero(batch.token_ids[:, 1:]))
        seed = tf.constant((self._config.seed, self.optimizer.steps), tf.int32)
        loss, correct = self._step(
            *self._replicas.split((batch.token_ids, batch.shown)), tf.constant(count, tf.float32), seed
        )
        return {"loss": float(loss), "accuracy": float(correct), "count": count}

    def _step_of_replica(
        self, token_ids: tf.Tensor, shown: tf.Tensor, count: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            found = sums(
                self._model,
                self._show(shown, seed),
                token_ids[:, None],  # one caption an image
                label_smoothing=self._config.label_smoothing,
                training=True,
            )
            mean_loss = found.loss / count
        self.optimizer.apply(tape.gradient(mean_loss, self.optimizer.variables))
        return found.loss, found.correct

    def _show(self, shown: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """int32[B, W] -> [B, W, D], in place of an image's vectors; zeros (and noise) for padding."""
        vectors = self._norm(self._model.token_embedding(shown))
        vectors *= tf.cast(shown != PADDING, vectors.dtype)[:, :, None]

        def draw(rows: tf.Tensor) -> tf.Tensor:
            shape = tf.concat([[rows], tf.shape(vectors)[1:]], 0)
            return tf.random.stateless_normal(shape, seed, dtype=vectors.dtype)

        return vectors + _NOISE * own_rows(draw, vectors)


def _frequent(token_ids: np.ndarray, vocabulary_size: int) -> np.ndarray:
    """bool[V]: special tokens and the most frequent words."""
    counts = np.bincount(token_ids.ravel(), minlength=vocabulary_size)
    is_frequent = np.zeros(vocabulary_size, bool)
    is_frequent[np.argsort(-counts, kind="stable")[: min(_FUNCTION_WORDS, vocabulary_size // 10)]] = True
    is_frequent[:4] = True
    return is_frequent
