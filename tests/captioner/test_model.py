import dataclasses

import numpy as np
import pytest

from batchcap.captioner.captioner import assign_weights
from batchcap.captioner.config import CaptionerConfig
from batchcap.captioner.model import CaptionModel
from tests.conftest import lively_weights


@pytest.fixture(scope="module")
def model(tiny_config: CaptionerConfig) -> CaptionModel:
    config = dataclasses.replace(tiny_config, enc_layers=2)
    model = CaptionModel(config)
    assign_weights(model, lively_weights(config, seed=3))
    return model


@pytest.fixture
def encoded(model: CaptionModel) -> np.ndarray:
    positions, channels = model.feature_shape
    features = np.random.default_rng(1).normal(size=(2, positions, channels)).astype(np.float32)
    return model.encode(features).numpy()


def random_tokens(model: CaptionModel, *shape: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, model.config.vocabulary_size, shape).astype(np.int32)


def test_shapes(model: CaptionModel, pixels: np.ndarray) -> None:
    config = model.config
    features = model.extract_features(pixels[:3])
    assert features.shape == (3, 4, 1280)  # 64 pixels / 32, squared
    assert model.encode(features).shape == (3, 4, config.embed_dim)
    logits = model(pixels[:3], random_tokens(model, 3, 5, 7))
    assert logits.shape == (3, 5, 7, config.vocabulary_size)
    # Logits, not probabilities.
    assert logits.numpy().min() < 0


def test_call_is_features_encode_decode(model: CaptionModel, pixels: np.ndarray) -> None:
    tokens = random_tokens(model, 2, 1, 5)
    stepwise = model.decode(tokens, model.encode(model.extract_features(pixels[:2])))
    np.testing.assert_allclose(model(pixels[:2], tokens).numpy(), stepwise.numpy(), atol=1e-5)


def test_no_token_sees_what_follows(model: CaptionModel, encoded: np.ndarray) -> None:
    length = model.config.sequence_length
    tokens = random_tokens(model, 2, 1, length)
    logits = model.decode(tokens, encoded).numpy()
    for changed in range(length):
        other = tokens.copy()
        other[:, :, changed] = (other[:, :, changed] + 1) % model.config.vocabulary_size
        difference = np.abs(model.decode(other, encoded).numpy() - logits).max(axis=(0, 1, 3))
        np.testing.assert_allclose(difference[:changed], 0, atol=1e-5)
        assert difference[changed] > 1e-2


def test_captions_of_an_image_do_not_see_each_other(model: CaptionModel, encoded: np.ndarray) -> None:
    tokens = random_tokens(model, 2, 3, 6)
    together = model.decode(tokens, encoded).numpy()
    for caption in range(3):
        alone = model.decode(tokens[:, caption : caption + 1], encoded).numpy()
        np.testing.assert_allclose(together[:, caption : caption + 1], alone, atol=1e-4)


def test_images_do_not_see_each_other(model: CaptionModel, encoded: np.ndarray) -> None:
    tokens = random_tokens(model, 2, 1, 6)
    together = model.decode(tokens, encoded).numpy()
    for image in range(2):
        alone = model.decode(tokens[image : image + 1], encoded[image : image + 1]).numpy()
        np.testing.assert_allclose(together[image : image + 1], alone, atol=1e-4)
    # and each of them is looked at
    swapped = model.decode(tokens, encoded[::-1]).numpy()
    assert np.abs(swapped - together).max() > 1e-2


def test_dropout_is_for_training_only(model: CaptionModel, encoded: np.ndarray) -> None:
    tokens = random_tokens(model, 2, 1, 6)
    once = model.decode(tokens, encoded).numpy()
    np.testing.assert_array_equal(model.decode(tokens, encoded).numpy(), once)
    assert np.abs(model.decode(tokens, encoded, training=True).numpy() - once).max() > 1e-2


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "efficientnet_b0"])
def test_weights_by_name(tiny_config: CaptionerConfig, backbone: str) -> None:
    """Names are unique, complete and the same for every model of a process: a bundle relies on them."""
    config = dataclasses.replace(tiny_config, backbone=backbone)  # type: ignore[arg-type]
    first, second = CaptionModel(config), CaptionModel(config)
    named = first.weights_by_name()
    shapes = {name: tuple(variable.shape) for name, variable in named.items()}
    assert shapes == {name: tuple(variable.shape) for name, variable in second.weights_by_name().items()}
    seeds = {id(v) for v in first.variables if "seed" in v.path}
    assert {id(v) for v in named.values()} == {id(v) for v in first.variables} - seeds
    assert len({id(v) for v in named.values()}) == len(named)


def test_the_weights_of_one_model_make_another_equal(model: CaptionModel, pixels: np.ndarray) -> None:
    other = CaptionModel(model.config)
    tokens = random_tokens(model, 1, 1, 5)
    assert np.abs(other(pixels[:1], tokens).numpy() - model(pixels[:1], tokens).numpy()).max() > 1e-2
    assign_weights(other, {name: variable.numpy() for name, variable in model.weights_by_name().items()})
    np.testing.assert_allclose(
        other(pixels[:1], tokens).numpy(), model(pixels[:1], tokens).numpy(), atol=1e-5
    )


def test_heads_as_wide_as_the_model_by_default(tiny_config: CaptionerConfig) -> None:
    config = dataclasses.replace(tiny_config, key_dim=None)
    named = CaptionModel(config).weights_by_name()
    width = config.embed_dim
    assert named["decoder0/self_attention/query/kernel"].shape == (width, config.dec_heads * width)
    assert named["encoder0/attention/output/kernel"].shape == (config.enc_heads * width, width)
