"""The two ways to attend over a cache, against the layer that they are prepared from."""

import numpy as np
import pytest
import tensorflow as tf

from batchcap.captioner.attention import MultiHeadAttention
from batchcap.captioner.cached_attention import (
    AbsorbedAttention,
    CachedAttention,
    KeysValuesAttention,
    cheaper,
    prepare,
)

R, Q, S, D, H = 4, 3, 7, 12, 3
# As wide as the network, wide enough to fold, the last that is not, narrow, one.
KEY_DIMS = [D, 7, 6, 4, 1]


@pytest.fixture(params=KEY_DIMS)
def layer(request: pytest.FixtureRequest) -> MultiHeadAttention:
    """With random weights, biases included."""
    layer = MultiHeadAttention(H, request.param, D, name="attention")
    layer.build((None, Q, D), (None, S, D))
    rng = np.random.default_rng(request.param)
    layer.set_weights([rng.normal(0, 0.5, weight.shape).astype(np.float32) for weight in layer.weights])
    return layer


@pytest.fixture
def inputs() -> tuple[tf.Tensor, tf.Tensor]:
    rng = np.random.default_rng(0)
    shapes = (R, Q, D), (R, S, D)
    x, context = (tf.constant(rng.normal(size=shape), tf.float32) for shape in shapes)
    return x, context


@pytest.mark.parametrize("way", [KeysValuesAttention, AbsorbedAttention])
def test_equals_the_layer(
    way: type[CachedAttention], layer: MultiHeadAttention, inputs: tuple[tf.Tensor, tf.Tensor]
) -> None:
    x, context = inputs
    cached = way(layer)
    found = cached.attend(x, cached.project(context))
    np.testing.assert_allclose(found, layer(x, context), atol=1e-5)
    mask = tf.range(S) < 3
    masked = cached.attend(x, cached.project(context), mask=mask)
    np.testing.assert_allclose(masked, layer(x, context, attention_mask=mask), atol=1e-5)
    assert np.abs(masked - found).max() > 1e-2


@pytest.mark.parametrize("way", [KeysValuesAttention, AbsorbedAttention])
def test_what_is_kept_can_be_kept_piece_by_piece(
    way: type[CachedAttention], layer: MultiHeadAttention, inputs: tuple[tf.Tensor, tf.Tensor]
) -> None:
    _, context = inputs
    cached = way(layer)
    pieces = [cached.project(context[:, :0]), cached.project(context[:, :4]), cached.project(context[:, 4:])]
    for whole, *parts in zip(cached.project(context), *pieces, strict=True):
        np.testing.assert_allclose(tf.concat(parts, axis=-2), whole, atol=1e-5)


def test_absorbed_keeps_the_input_alone(
    layer: MultiHeadAttention, inputs: tuple[tf.Tensor, tf.Tensor]
) -> None:
    (kept,) = AbsorbedAttention(layer).project(inputs[1])
    assert kept is inputs[1]


def test_prepared_outside_of_a_function_it_stays_as_it_was(
    layer: MultiHeadAttention, inputs: tuple[tf.Tensor, tf.Tensor]
) -> None:
    x, context = inputs
    cached = AbsorbedAttention(layer)
    before = cached.attend(x, cached.project(context)).numpy()
    layer.set_weights([weight * 2 for weight in layer.get_weights()])
    np.testing.assert_array_equal(cached.attend(x, cached.project(context)), before)
    # Inside, it follows the variables.
    follow = tf.function(lambda: AbsorbedAttention(layer).attend(x, (context,)))
    doubled = follow().numpy()
    layer.set_weights([weight / 2 for weight in layer.get_weights()])
    np.testing.assert_allclose(follow(), before, atol=1e-5)
    assert np.abs(doubled - before).max() > 1e-2


def multiplications(
    way: str, *, heads: int, key_dim: int, width: int, cached: list[int], projected: int
) -> int:
    """Counted one by one: of each query with so many cached positions, and of each position projected."""
    total = 0
    for length in cached:
        for _ in range(heads):
            if way == "keys_values":
                total += width * key_dim + length * key_dim + length * key_dim + key_dim * width
            else:
                absorbed = min(width * width, width * key_dim + key_dim * width)
                total += absorbed + length * width + length * width + absorbed
    if way == "keys_values":
        total += projected * 2 * width * heads * key_dim
    return total


@pytest.mark.parametrize("is_self", [True, False])
@pytest.mark.parametrize("key_dim", [64, 160, 320])
@pytest.mark.parametrize("queries", [1, 3, 5])
def test_the_cheaper_way_is_the_one_with_fewer_multiplications(
    is_self: bool, key_dim: int, queries: int
) -> None:
    steps, length = 12, 49
    cached = [step + 1 if is_self else length for step in range(steps) for _ in range(queries)]
    projected = steps * queries if is_self else length
    counts = {
        way: multiplications(way, heads=5, key_dim=key_dim, width=320, cached=cached, projected=projected)
        for way in ("absorbed", "keys_values")
    }
    found = cheaper(
        embed_dim=320,
        num_heads=5,
        key_dim=key_dim,
        length=length,
        queries=queries,
        steps=steps,
        is_self=is_self,
    )
    assert found == min(counts, key=counts.__getitem__)


def test_which_way_is_cheaper_depends_on_the_configuration() -> None:
    shape = {"embed_dim": 512, "num_heads": 4, "length": 49, "queries": 1, "steps": 12}
    # The original's heads are as wide as the network.
    assert cheaper(key_dim=512, is_self=True, **shape) == "absorbed"
    assert cheaper(key_dim=512, is_self=False, **shape) == "absorbed"
    # Narrow ones: each token is projected by itself, the image's vectors for all tokens at once.
    assert cheaper(key_dim=128, is_self=True, **shape) == "keys_values"
    assert cheaper(key_dim=128, is_self=False, **shape) == "absorbed"
    assert cheaper(key_dim=128, is_self=False, **{**shape, "queries": 5}) == "keys_values"


def test_prepare_takes_the_cheaper_way_unless_told() -> None:
    layer = MultiHeadAttention(H, D, D, name="attention")
    layer.build((None, Q, D), (None, S, D))
    given = {"length": S, "queries": 1, "steps": 12, "is_self": False}
    assert isinstance(prepare(layer, kind=None, **given), AbsorbedAttention)  # type: ignore[arg-type]
    assert isinstance(prepare(layer, kind="keys_values", **given), KeysValuesAttention)  # type: ignore[arg-type]
