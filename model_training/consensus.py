"""How much each caption of an image counts.

People see different things in the same photograph, and name them differently. A caption that nobody else
would have written teaches little about other photographs, and the network can only learn it by heart. So
captions may count by how far the others of their image agree with them: the weighted cross-entropy of
consensus-based sequence training (Phan, Henter, Miyao and Satoh, https://arxiv.org/abs/1712.09532).
"""

from collections.abc import Sequence

import numpy as np

from model_training.datasets import CaptionedImage
from model_training.metrics import CiderD


def caption_weights(images: Sequence[CaptionedImage], consensus: float) -> list[np.ndarray]:
    """How much the captions of each image count; 1 on average over the captions of an image.

    Args:
        images: with their captions.
        consensus: 0 counts all alike; 1 in proportion to each caption's CIDEr-D against the others of its
            image; what lies between mixes the two.

    Returns:
        Of each image, float32[captions].
    """
    metric = CiderD([image.captions for image in images])
    return [_weights(np.array(metric.agreement(row)), consensus) for row in range(len(images))]


def _weights(agreement: np.ndarray, consensus: float) -> np.ndarray:
    mean = agreement.mean()
    # No two captions have a word in common, or there is one caption only.
    relative = agreement / mean if mean > 0 else np.ones_like(agreement)
    return (1 - consensus + consensus * relative).astype(np.float32)
