"""What a network is trained to make small: losses of its predictions, and how far two passes differ."""

from typing import NamedTuple

import tensorflow as tf

from batchcap.captioner.model import CaptionModel
from batchcap.captioner.tokenizer import PADDING


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
