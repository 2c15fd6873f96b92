import dataclasses
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


def test_the_defaults_never_change() -> None:
    """They don't count in a fingerprint: with another default, two models could share one."""
    assert dataclasses.asdict(CaptionerConfig()) == {
        "backbone": "efficientnet_b1",
        "image": {
            "image_size": 224,
            "resize": "stretch",
            "max_pixels": 178_956_970,
            "max_bytes": 536_870_912,
        },
        "vocabulary_size": 10_000,
        "sequence_length": 36,
        "embed_dim": 512,
        "ff_dim": 256,
        "enc_heads": 2,
        "dec_heads": 4,
        "enc_layers": 1,
        "dec_layers": 1,
        "key_dim": None,
        "scale_embeddings": True,
        "residual_dropout": 0.0,
        "attention_dropout": 0.1,
        "ff_dropout": 0.3,
        "output_dropout": 0.5,
    }
    assert dataclasses.asdict(GenerationConfig()) == {
        "num_beams": 1,
        "length_penalty": 1.0,
        "max_length": None,
    }
