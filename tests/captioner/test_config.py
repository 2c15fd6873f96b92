from typing import Any

import pytest

from batchcap.captioner.config import CaptionerConfig, GenerationConfig
from batchcap.captioner.images import ImageSpec


@pytest.mark.parametrize(
    "wrong",
    [
        {"backbone": "resnet50"},
        {"embed_dim": 0},
        {"ff_dim": 0},
        {"enc_heads": 0},
        {"dec_heads": -1},
        {"enc_layers": 0},
        {"dec_layers": 0},
        {"key_dim": 0},
        {"vocabulary_size": 4},
        {"sequence_length": 2},
        {"attention_dropout": 1.0},
        {"ff_dropout": -0.1},
        {"output_dropout": float("nan")},
    ],
    ids=str,
)
def test_a_network_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        CaptionerConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"num_beams": 0}, {"max_length": 2}], ids=str)
def test_a_search_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        GenerationConfig(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"image_size": 0}, {"max_pixels": 0}, {"max_bytes": -1}, {"resize": "pad"}], ids=str
)
def test_pictures_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        ImageSpec(**wrong)


def test_head_dim() -> None:
    """The original gives every head the whole width."""
    assert CaptionerConfig(embed_dim=64).head_dim == 64
    assert CaptionerConfig(embed_dim=64, key_dim=16).head_dim == 16
