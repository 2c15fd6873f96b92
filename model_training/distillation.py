"""Learning from finished models beside learning from people.

What people wrote says of each next word which one came; teachers say how likely each was. Several together
are right more often than each of them, and a network that learns from them keeps part of that, at its own
speed.
Hinton, Vinyals and Dean, https://arxiv.org/abs/1503.02531.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from batchcap.captioner.bundle import Bundle
from batchcap.captioner.captioner import assign_weights
from batchcap.captioner.model import CaptionModel
from batchcap.captioner.tokenizer import Tokenizer
from batchcap.errors import UsageError


class Teachers:
    """Networks that only predict.

    Args:
        models: with the CNN and the vocabulary of the network that learns from them.
    """

    def __init__(self, models: Sequence[CaptionModel]) -> None:
        self._models = tuple(models)

    def probabilities(self, features: tf.Tensor, token_ids: tf.Tensor) -> tf.Tensor:
        """The mean of their probabilities for the token after each.

        Args:
            features: float32[B, P, C], of the CNN.
            token_ids: int32[B, N, T].

        Returns:
            float32[B, N, T, V].
        """
        found = [
            tf.nn.softmax(tf.cast(model.decode(token_ids, model.encode(features)), tf.float32))
            for model in self._models
        ]
        return tf.stop_gradient(tf.add_n(found) / len(found))

    def loss(
        self, features: tf.Tensor, token_ids: tf.Tensor, logits: tf.Tensor, is_token: tf.Tensor
    ) -> tf.Tensor:
        """Cross-entropy of a network's predictions against theirs, added up over tokens.

        Args:
            features: float32[B, P, C], of the CNN.
            token_ids: int32[B, N, T].
            logits: float32[B, N, T, V], what the network gives for the token after each.
            is_token: float32[B, N, T], 0 where that is padding.

        Returns:
            float32[].
        """
        return tf.reduce_sum(soft_cross_entropy(self.probabilities(features, token_ids), logits) * is_token)


def open_teachers(paths: Sequence[Path], student: CaptionModel, tokenizer: Tokenizer) -> Teachers:
    """Loads bundles that a network can learn from.

    Args:
        paths: the bundles.
        student: the network, its CNN's weights filled in.
        tokenizer: its vocabulary.

    Raises:
        BundleError: one can't be read.
        UsageError: one has another vocabulary, or sees another thing in the same image.
    """
    models = []
    for path in paths:
        bundle = Bundle.open(path)
        if bundle.tokenizer.to_text() != tokenizer.to_text():
            raise UsageError(f"the teacher {path} has other words; it has to be trained on the same captions")
        if bundle.config.sequence_length < student.config.sequence_length:
            raise UsageError(
                f"the teacher {path} knows captions of {bundle.config.sequence_length} tokens only;"
                " lower --seq_length"
            )
        model = CaptionModel(bundle.config)
        assign_weights(model, bundle.weights())
        if not _sees_alike(model, student):
            raise UsageError(
                f"the teacher {path} has another CNN; it has to have the same --backbone, its weights and"
                " --image_size"
            )
        models.append(model)
    return Teachers(models)


def _sees_alike(teacher: CaptionModel, student: CaptionModel) -> bool:
    """Whether both CNNs make the same of an image."""
    one, other = teacher.config, student.config
    return (one.backbone, one.image) == (other.backbone, other.image) and all(
        np.array_equal(a.numpy(), b.numpy())
        for a, b in zip(teacher.backbone.weights, student.backbone.weights, strict=True)
    )


def soft_cross_entropy(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Cross-entropy against probabilities.

    Args:
        targets: float32[..., V].
        logits: float32[..., V].

    Returns:
        float32[...].
    """
    return tf.reduce_logsumexp(logits, -1) - tf.reduce_sum(targets * logits, -1)
