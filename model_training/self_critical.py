"""The last stage: draw captions, reward those that people would have agreed with.

Self-critical sequence training (Rennie et al., https://arxiv.org/abs/1612.00563) in the variant of Luo,
https://arxiv.org/abs/2003.09971: of several captions drawn for an image, each is compared with the mean of
the others, so that no caption has to be decoded for comparison alone. The reward is CIDEr-D. Captions are
scored with their end as a word: otherwise the best ones stop in the middle of a phrase.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from batchcap.captioner.decoding import State, StepwiseDecoder, any_shape
from batchcap.captioner.model import CaptionModel
from batchcap.captioner.tokenizer import END, PADDING, START, Tokenizer
from model_training.config import TrainConfig
from model_training.data_processing import ImageArrays, batches_per_epoch
from model_training.distillation import Teachers
from model_training.distribution import Replicas, own_rows
from model_training.metrics import CiderD, tokenize
from model_training.optimization import Optimizer, OptimizerConfig

# An end that is a word like others to the metric, and that no caption contains.
_END_WORD = "eos0"
# Captions longer than nearly all of people's are worth nothing, and cost most: they are cut.
_LENGTH_PERCENTILE = 95


@dataclass(frozen=True, slots=True, eq=False)
class ImageBatch:
    """What one step takes.

    Args:
        inputs: float16[B, P, C].
        rows: int[B], which images they are.
    """

    inputs: np.ndarray
    rows: np.ndarray


class SelfCriticalStage:
    """Raises the CIDEr-D of drawn captions by policy gradients.

    Args:
        model: the network.
        config: the run's options.
        train_set: the training images, with features.
        tokenizer: the vocabulary.
        replicas: where the steps run.
        teachers: whose predictions keep it from learning the training images by heart.
    """

    name = "scst"

    def __init__(
        self,
        model: CaptionModel,
        config: TrainConfig,
        train_set: ImageArrays,
        tokenizer: Tokenizer,
        replicas: Replicas,
        teachers: Teachers | None = None,
    ) -> None:
        self.epochs = config.scst_epochs
        self.steps_per_epoch = batches_per_epoch(
            len(train_set.images), batch_size=config.batch_size, captions_per_image=config.scst_samples
        )
        self._model = model
        self._config = config
        self._views = train_set.views
        self._tokenizer = tokenizer
        self._replicas = replicas
        self._teachers = teachers
        words = [len(tokenize(text)) for image in train_set.images for text in image.captions]
        longest = int(np.percentile(words, _LENGTH_PERCENTILE)) + 2  # with start and end
        self._length = min(max(longest, 3), model.config.sequence_length)
        self._reward = CiderD(
            [[f"{text} {_END_WORD}" for text in image.captions] for image in train_set.images]
        )
        self.optimizer = Optimizer(
            model.trainable_variables,
            [],
            replace(
                OptimizerConfig.of_run(
                    config, lr=config.scst_lr, total_steps=self.steps_per_epoch * config.scst_epochs
                ),
                warmup_steps=min(config.warmup_steps, self.steps_per_epoch),
            ),
        )
        self._draw = replicas.compile(self._draw_on_replica, reduced=False)
        self._step = replicas.compile(self._step_of_replica)

    def batches(self, rng: np.random.Generator, skip: int = 0) -> Iterator[ImageBatch]:
        """The batches of one epoch, without the first `skip`: every image once, in one of its views."""
        view = rng.integers(0, self._views.shape[1], len(self._views))
        order = rng.permutation(len(self._views))
        for rows in np.array_split(order, self.steps_per_epoch)[skip:]:
            yield ImageBatch(self._views[rows, view[rows]], rows)

    def step(self, batch: ImageBatch) -> dict[str, float]:
        """Trains on captions drawn for the images of a batch.

        Returns:
            Sums over the captions: `reward` (CIDEr-D times 100), `loss`, and `count`.
        """
        seed = tf.constant((self._config.seed, self.optimizer.steps), tf.int32)
        (inputs,) = self._replicas.split((batch.inputs,))
        drawn = self._draw(inputs, seed)
        token_ids = self._replicas.gather(drawn, len(batch.rows))
        length = np.count_nonzero(token_ids, axis=-1).max()
        # Few lengths, so that the step is traced for few shapes.
        token_ids = token_ids[:, :, : min(-(-length // 4) * 4, token_ids.shape[-1])]
        rewards = self._rewards(batch.rows, token_ids)
        samples = rewards.shape[1]
        advantages = (rewards - rewards.mean(1, keepdims=True)) * samples / (samples - 1)
        loss = self._step(
            *self._replicas.split((batch.inputs, token_ids, advantages.astype(np.float32))),
            tf.constant(np.count_nonzero(token_ids[:, :, 1:]), tf.float32),
        )
        return {
            "loss": float(loss) * rewards.size,
            "reward": 100 * float(rewards.sum()),
            "count": rewards.size,
        }

    def _rewards(self, rows: np.ndarray, token_ids: np.ndarray) -> np.ndarray:
        """float64[B, N], about 0 to 10, of int32[B, N, T]."""
        return np.array(
            [
                [self._reward.score(self._text(caption), row) / 100 for caption in captions]
                for row, captions in zip(rows, token_ids.tolist(), strict=True)
            ]
        )

    def _text(self, token_ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(token_ids)
        return f"{text} {_END_WORD}" if END in token_ids else text

    def _draw_on_replica(self, features: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        encoded = self._model.encode(tf.cast(features, tf.float32))
        return draw_captions(self._model, encoded, self._config.scst_samples, self._length, seed)

    def _step_of_replica(
        self, features: tf.Tensor, token_ids: tf.Tensor, advantages: tf.Tensor, count: tf.Tensor
    ) -> tf.Tensor:
        inputs, targets = token_ids[:, :, :-1], token_ids[:, :, 1:]
        is_token = tf.cast(targets != PADDING, tf.float32)
        features = tf.cast(features, tf.float32)
        with tf.GradientTape() as tape:
            encoded = self._model.encode(features, training=True)
            logits = tf.cast(self._model.decode(inputs, encoded, training=True), tf.float32)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
            loss = tf.reduce_sum(losses * is_token * advantages[:, :, None]) / count
            objective = loss
            if self._teachers is not None:
                taught = self._teachers.loss(features, inputs, logits, is_token)
                share = self._config.distillation
                objective = (1 - share) * loss + share * taught / count
        self.optimizer.apply(tape.gradient(objective, self.optimizer.variables))
        return loss


def draw_captions(
    model: CaptionModel, encoded: tf.Tensor, samples: int, length: int, seed: tf.Tensor
) -> tf.Tensor:
    """Draws captions word by word from the network's probabilities.

    Args:
        model: the network.
        encoded: float32[B, P, D], of its encoder.
        samples: N.
        length: L, tokens at most, start and end included.
        seed: int32[2]; the same seed draws the same captions.

    Returns:
        int32[B, N, L]: start, words, end, padding; a caption of L tokens may lack its end.
    """
    decoder = StepwiseDecoder(model, captions=samples, length=length)
    batch = tf.shape(encoded)[0]
    token_ids = tf.tile(
        tf.one_hot([[0]], length, on_value=START, off_value=PADDING, dtype=tf.int32), (batch, samples, 1)
    )
    is_done = tf.zeros((batch, samples), tf.bool)
    numbers = own_rows(lambda rows: tf.random.stateless_uniform((rows, samples, length), seed), encoded)

    def is_running(position: tf.Tensor, token_ids: tf.Tensor, is_done: tf.Tensor, state: State) -> tf.Tensor:
        return (position < length - 1) & ~tf.reduce_all(is_done)

    def advance(
        position: tf.Tensor, token_ids: tf.Tensor, is_done: tf.Tensor, state: State
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, State]:
        logits, state = decoder.step(tf.gather(token_ids, position, axis=2), position, state)
        token = tf.where(is_done, PADDING, _pick(logits + decoder.forbidden, numbers[:, :, position]))
        is_next = tf.range(length) == position + 1
        token_ids = tf.where(is_next, token[:, :, None], token_ids)
        return position + 1, token_ids, is_done | (token == END), state

    start = (tf.constant(0), token_ids, is_done, decoder.start(encoded))
    return tf.while_loop(is_running, advance, start, shape_invariants=any_shape(start))[1]


def _pick(logits: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    """The token at which the probabilities add up to a number.

    Unlike `tf.random.stateless_categorical` it picks the same whatever the number of threads and of rows.

    Args:
        logits: float32[B, N, V].
        numbers: float32[B, N], from 0 to less than 1.

    Returns:
        int32[B, N].
    """
    sums = tf.cumsum(tf.nn.softmax(logits), axis=-1)
    # Their last is 1 but for rounding.
    return tf.searchsorted(sums, numbers[:, :, None] * sums[:, :, -1:], side="right")[:, :, 0]
