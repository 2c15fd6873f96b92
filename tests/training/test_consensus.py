"""Captions count by how far the others of their image agree with them."""

import numpy as np
import pytest

from model_training.consensus import caption_weights
from model_training.datasets import CaptionedImage
from model_training.metrics import CiderD

IMAGES = (
    CaptionedImage(
        "dogs.png",
        ("a dog runs on the grass", "a brown dog runs on grass", "the photographer forgot his lens cap"),
    ),
    CaptionedImage("cats.png", ("a cat sleeps on a chair", "a black cat lies on a chair")),
    CaptionedImage("sea.png", ("a boat on the sea",)),
    CaptionedImage("blue.png", ("nothing but blue to see", "somebody jumps into water")),
)


def test_agreement_is_the_score_against_the_others() -> None:
    metric = CiderD([image.captions for image in IMAGES])
    for row, image in enumerate(IMAGES):
        count = len(image.captions)
        for caption, agreement in zip(image.captions, metric.agreement(row), strict=True):
            # Against all of them, itself included, which it agrees with in full.
            expected = (metric.score(caption, row) * count - 1000) / max(count - 1, 1)
            assert agreement == pytest.approx(expected, abs=1e-6)


def test_captions_that_agree_count_more() -> None:
    dogs, cats, sea, blue = caption_weights(IMAGES, 1.0)
    assert dogs[0] > 1 and dogs[1] > 1 and dogs[2] < 0.2
    assert cats == pytest.approx(1)  # either is all that the other has
    # Nobody to agree with, and nobody who does.
    assert sea == pytest.approx(1) and blue == pytest.approx(1)


def test_consensus_mixes_with_counting_all_alike() -> None:
    whole, half = caption_weights(IMAGES, 1.0), caption_weights(IMAGES, 0.5)
    for of_whole, of_half, alike in zip(whole, half, caption_weights(IMAGES, 0.0), strict=True):
        assert alike.dtype == of_half.dtype == np.float32
        assert (alike == 1).all()
        assert of_half == pytest.approx((1 + of_whole) / 2)
        assert of_whole.mean() == pytest.approx(1)
