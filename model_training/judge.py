"""Judges an epoch on the dev images, by the loss and by the captions that the finished bundle would give."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from batchcap.captioner.config import GenerationConfig
from batchcap.captioner.decoding import generate
from batchcap.captioner.model import CaptionModel
from batchcap.captioner.tokenizer import Tokenizer
from model_training.data_processing import ImageArrays, encode_captions, padded_length
from model_training.losses import sums
from model_training.metrics import bleu, cider_d

_BATCH = 64


class Judge:
    """Scores a network on images of which it has seen none.

    Args:
        model: a network in single precision, as a bundle is loaded; weights are copied into it.
        tokenizer: its vocabulary.
        generation: the decoding options of the finished bundle.
        dev: pixels or features of the images.
    """

    def __init__(
        self, model: CaptionModel, tokenizer: Tokenizer, generation: GenerationConfig, dev: ImageArrays
    ) -> None:
        self.images = dev.images
        self._tokenizer = tokenizer
        self._dev = dev
        self._token_ids = encode_captions(dev.images, tokenizer, model.config.sequence_length)
        is_pixels = dev.views.dtype == np.uint8

        def features_of(inputs: tf.Tensor) -> tf.Tensor:
            features = model.extract_features(inputs) if is_pixels else inputs
            return tf.cast(features, tf.float32)

        def caption(inputs: tf.Tensor) -> tf.Tensor:
            return generate(model, model.encode(features_of(inputs)), generation).token_ids

        def lose(inputs: tf.Tensor, token_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            encoded = model.encode(features_of(inputs))
            found = sums(model, encoded, token_ids, label_smoothing=0.0, training=False)
            return found.loss, found.correct

        self._caption = tf.function(caption, reduce_retracing=True, autograph=False)
        self._lose = tf.function(lose, reduce_retracing=True, autograph=False)

    def captions(self) -> list[str]:
        """The caption of each dev image."""
        captions: list[str] = []
        for start in range(0, len(self.images), _BATCH):
            token_ids = self._caption(self._dev.views[start : start + _BATCH, 0]).numpy()
            captions += [self._tokenizer.decode(row) for row in token_ids.tolist()]
        return captions

    def score(self, captions: Sequence[str]) -> dict[str, float]:
        """Scores captions, and the likelihood of what people wrote.

        Returns:
            `dev_bleu_4` (0 to 1) and `dev_cider_d` (times 100) of the captions; `dev_loss` (nats a token,
            without label smoothing) and `dev_accuracy` of the next token.
        """
        references = [image.captions for image in self.images]
        loss, accuracy = self._likelihood()
        return {
            "dev_loss": loss,
            "dev_accuracy": accuracy,
            "dev_bleu_4": bleu(captions, references)[3],
            "dev_cider_d": cider_d(captions, references),
        }

    def _likelihood(self) -> tuple[float, float]:
        """Mean loss and accuracy over the tokens of all captions."""
        totals = np.zeros(3)
        for start in range(0, len(self._token_ids), _BATCH):
            token_ids = _stack(self._token_ids[start : start + _BATCH])
            loss, correct = self._lose(self._dev.views[start : start + _BATCH, 0], token_ids)
            totals += np.array([float(loss), float(correct), np.count_nonzero(token_ids[:, :, 1:])])
        return totals[0] / totals[2], totals[1] / totals[2]


def _stack(token_ids: Sequence[np.ndarray]) -> np.ndarray:
    """int32[captions, S] of each image -> int32[images, most captions, T], padded."""
    sequence_length = token_ids[0].shape[-1]
    shape = (len(token_ids), max(map(len, token_ids)), sequence_length)
    stacked = np.zeros(shape, np.int32)
    for row, of_image in zip(stacked, token_ids, strict=True):
        row[: len(of_image)] = of_image
    return stacked[:, :, : padded_length((stacked > 0).sum(-1).max(), sequence_length)]
