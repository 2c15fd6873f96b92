"""Greedy and beam search over a cache of keys and values, with fixed shapes.

Greedy search is beam search with one beam. Shapes: B images, N beams, L tokens of a caption at most
(start and end included), H heads of K, V `vocabulary_size`.
"""

from typing import NamedTuple, TypeAlias

import tensorflow as tf

from batchcap.captioner.config import GenerationConfig
from batchcap.captioner.model import CaptionModel
from batchcap.captioner.tokenizer import END, PADDING, START, UNKNOWN

# What no caption may contain: these three get no probability after the softmax.
_FORBIDDEN = (PADDING, UNKNOWN, START)
# Where a vocabulary has too few words for a second beam, the difference to it says nothing.
_MAX_MARGIN = 10.0


# Keys and values of each decoder block's self-attention, float32[B, N, H, L, K].
Caches: TypeAlias = list[tuple[tf.Tensor, tf.Tensor]]


class Generated(NamedTuple):
    """The best caption of each image.

    Args:
        token_ids: int32[B, L]: start, words, end, padding.
        log_prob: float32[B], natural logarithm of the caption's probability, its end included.
        token_count: int32[B], words and end; start does not count, it is given.
        margin: float32[B], by how much its score is above the second beam's, at most 10; 0 with one beam.
        entropy: float32[B], mean entropy in nats of the next-word distributions along the caption, as the
            network gives them, what no caption may contain included.
        min_log_prob: float32[B], natural logarithm of the probability of its least likely token.
    """

    token_ids: tf.Tensor
    log_prob: tf.Tensor
    token_count: tf.Tensor
    margin: tf.Tensor
    entropy: tf.Tensor
    min_log_prob: tf.Tensor


class _Beams(NamedTuple):
    """The N best captions so far of each image, the best first."""

    token_ids: tf.Tensor  # int32[B, N, L]
    log_prob: tf.Tensor  # float32[B, N]
    token_count: tf.Tensor  # int32[B, N]
    is_done: tf.Tensor  # bool[B, N]
    entropy: tf.Tensor  # float32[B, N], the sum over tokens
    min_log_prob: tf.Tensor  # float32[B, N]


class StepwiseDecoder:
    """The decoder of a network, one position of N captions of each image at a time.

    To be used inside a `tf.function`.

    Args:
        model: the network.
        encoded: float32[B, P, D], what its encoder gave.
    """

    def __init__(self, model: CaptionModel, encoded: tf.Tensor) -> None:
        self._model = model
        self._encoded = encoded
        self._image_keys_values = [
            block.cross_attention.project_keys_values(encoded) for block in model.decoder
        ]
        # To be added to logits or log-probabilities: float32[V], very low for what no caption may contain.
        self.forbidden = tf.reduce_max(tf.one_hot(_FORBIDDEN, model.config.vocabulary_size), axis=0) * -1e9

    def start(self, captions: int, length: int) -> Caches:
        """Empty caches for `captions` captions of an image, N, of at most `length` tokens, L."""
        config = self._model.config
        shape = (tf.shape(self._encoded)[0], captions, config.dec_heads, length, config.head_dim)
        return [(tf.zeros(shape, self._encoded.dtype),) * 2 for _ in self._model.decoder]

    def step(self, token_ids: tf.Tensor, position: tf.Tensor, caches: Caches) -> tuple[tf.Tensor, Caches]:
        """What may follow the newest token.

        Args:
            token_ids: int32[B, N, L], of which only the one at `position` is read.
            position: int32[].
            caches: filled below `position`.

        Returns:
            Logits float32[B, N, V], and the caches with `position` filled in.
        """
        newest = tf.gather(token_ids, position[None], axis=2)  # B, N, 1
        x = self._model.embed(newest, position[None])
        stepped: Caches = []
        for block, cache, keys_values in zip(
            self._model.decoder, caches, self._image_keys_values, strict=True
        ):
            x, cache = block.step(x, position, cache, keys_values)
            stepped.append(cache)
        return self._model.output_dense(x)[:, :, 0], stepped


def generate(model: CaptionModel, encoded: tf.Tensor, generation: GenerationConfig) -> Generated:
    """Decodes captions; to be called inside a `tf.function`.

    Beams are ranked by log_prob / token_count ** length_penalty (Wu et al.,
    https://arxiv.org/abs/1609.08144, section 7, in the simpler form without the constant 5). A beam that
    has ended keeps its place and its score; the search stops when every beam of every image has ended,
    or at `max_length`.

    Args:
        model: the network.
        encoded: float32[B, P, D], what its encoder gave.
        generation: beams, length penalty, maximum length.

    Returns:
        The best caption of each image.
    """
    batch = tf.shape(encoded)[0]
    num_beams = generation.num_beams
    max_length = min(generation.max_length or model.config.sequence_length, model.config.sequence_length)
    decoder = StepwiseDecoder(model, encoded)

    position = tf.constant(0)
    beams = _start(batch, num_beams, max_length)
    caches = decoder.start(num_beams, max_length)

    def is_running(position: tf.Tensor, beams: _Beams, caches: Caches) -> tf.Tensor:
        return (position < max_length - 1) & ~tf.reduce_all(beams.is_done)

    def advance(position: tf.Tensor, beams: _Beams, caches: Caches) -> tuple[tf.Tensor, _Beams, Caches]:
        logits, stepped = decoder.step(beams.token_ids, position, caches)
        log_probs = tf.nn.log_softmax(logits, axis=-1)
        entropy = -tf.reduce_sum(tf.exp(log_probs) * log_probs, axis=-1)
        beams, parents = _extend(beams, log_probs + decoder.forbidden, entropy, position, generation)
        if num_beams > 1:
            stepped = [
                (tf.gather(keys, parents, batch_dims=1), tf.gather(values, parents, batch_dims=1))
                for keys, values in stepped
            ]
        return position + 1, beams, stepped

    _, beams, _ = tf.while_loop(is_running, advance, (position, beams, caches))
    token_count = tf.cast(beams.token_count, tf.float32)
    score = beams.log_prob / token_count**generation.length_penalty
    margin = score[:, 0] - score[:, 1] if num_beams > 1 else tf.zeros_like(score[:, 0])
    return Generated(
        token_ids=beams.token_ids[:, 0],
        log_prob=beams.log_prob[:, 0],
        token_count=beams.token_count[:, 0],
        margin=tf.minimum(margin, _MAX_MARGIN),
        entropy=beams.entropy[:, 0] / token_count[:, 0],
        min_log_prob=beams.min_log_prob[:, 0],
    )


def _start(batch: tf.Tensor, num_beams: int, max_length: int) -> _Beams:
    """One live beam an image; the others are impossible until the first step fills them."""
    start = tf.one_hot([0], max_length, on_value=START, off_value=PADDING, dtype=tf.int32)  # 1, L
    log_prob = tf.one_hot([0], num_beams, on_value=0.0, off_value=-1e9)  # 1, N
    return _Beams(
        token_ids=tf.tile(start[None], (batch, num_beams, 1)),
        log_prob=tf.tile(log_prob, (batch, 1)),
        token_count=tf.zeros((batch, num_beams), tf.int32),
        is_done=tf.zeros((batch, num_beams), tf.bool),
        entropy=tf.zeros((batch, num_beams)),
        min_log_prob=tf.zeros((batch, num_beams)),
    )


def _extend(
    beams: _Beams,
    log_probs: tf.Tensor,
    entropy: tf.Tensor,
    position: tf.Tensor,
    generation: GenerationConfig,
) -> tuple[_Beams, tf.Tensor]:
    """Each beam's N best next tokens, and of these N * N candidates the N best.

    Args:
        beams: the captions so far.
        log_probs: float32[B, N, V], of the next token.
        entropy: float32[B, N], of its distribution.
        position: int32[], the index of the newest token.
        generation: beams and length penalty.

    Returns:
        The beams with one more token, and int32[B, N]: the beam that each of them continues.
    """
    num_beams = generation.num_beams
    best, tokens = tf.math.top_k(log_probs, k=num_beams)  # B, N, N
    # A beam that is done has one candidate: itself, with padding.
    itself = tf.one_hot(0, num_beams, on_value=0.0, off_value=-1e9)
    is_done = beams.is_done[:, :, None]
    added = tf.where(is_done, itself, best)
    candidate_log_prob = beams.log_prob[:, :, None] + added
    candidate_token = tf.where(is_done, PADDING, tokens)
    candidate_count = beams.token_count[:, :, None] + tf.where(is_done, 0, tf.ones_like(tokens))

    def flat(candidates: tf.Tensor) -> tf.Tensor:
        return tf.reshape(candidates, (-1, num_beams * num_beams))

    score = candidate_log_prob / tf.cast(candidate_count, tf.float32) ** generation.length_penalty
    _, chosen = tf.math.top_k(flat(score), k=num_beams)  # B, N
    parents = chosen // num_beams

    def of_parent(kept: tf.Tensor) -> tf.Tensor:
        return tf.gather(kept, parents, batch_dims=1)

    token = tf.gather(flat(candidate_token), chosen, batch_dims=1)
    is_next = tf.range(tf.shape(beams.token_ids)[2]) == position + 1
    return _Beams(
        token_ids=tf.where(is_next, token[:, :, None], of_parent(beams.token_ids)),
        log_prob=tf.gather(flat(candidate_log_prob), chosen, batch_dims=1),
        token_count=tf.gather(flat(candidate_count), chosen, batch_dims=1),
        is_done=of_parent(beams.is_done) | (token == END),
        entropy=of_parent(beams.entropy + tf.where(beams.is_done, 0.0, entropy)),
        # Of a beam that is done, 0 is added.
        min_log_prob=tf.minimum(of_parent(beams.min_log_prob), tf.gather(flat(added), chosen, batch_dims=1)),
    ), parents
