import keras
import numpy as np
import pytest

from batchcap.captioner.attention import MultiHeadAttention

B, T, S, D, H = 2, 5, 7, 12, 3


def pair(key_dim: int) -> tuple[MultiHeadAttention, keras.layers.MultiHeadAttention]:
    """Ours and Keras's, with the same random weights, biases included."""
    ours = MultiHeadAttention(H, key_dim, D, name="attention")
    ours.build((None, T, D), (None, S, D))
    theirs = keras.layers.MultiHeadAttention(H, key_dim)
    theirs.build((None, T, D), (None, S, D))
    rng = np.random.default_rng(key_dim)
    weights = [rng.normal(0, 0.5, weight.shape).astype(np.float32) for weight in ours.weights]
    ours.set_weights(weights)
    # Both keep query, key, value, output, each as kernel and bias; Keras with heads apart.
    ordered = [ours.query_dense, ours.key_dense, ours.value_dense, ours.output_dense]
    values = [weight.numpy() for dense in ordered for weight in (dense.kernel, dense.bias)]
    theirs.set_weights([v.reshape(w.shape) for v, w in zip(values, theirs.get_weights(), strict=True)])
    return ours, theirs


@pytest.fixture
def inputs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(B, T, D)).astype(np.float32), rng.normal(size=(B, S, D)).astype(np.float32)


@pytest.mark.parametrize("key_dim", [D, 4, 1])
def test_equals_keras(key_dim: int, inputs: tuple[np.ndarray, np.ndarray]) -> None:
    ours, theirs = pair(key_dim)
    x, context = inputs
    np.testing.assert_allclose(ours(x, context).numpy(), theirs(x, context).numpy(), atol=1e-5)


@pytest.mark.parametrize("key_dim", [D, 4])
def test_equals_keras_with_a_mask(key_dim: int, inputs: tuple[np.ndarray, np.ndarray]) -> None:
    ours, theirs = pair(key_dim)
    x, context = inputs
    mask = np.random.default_rng(1).random((B, T, S)) < 0.6
    mask[:, :, 0] = True  # Keras and we differ where nothing may be seen, which never happens.
    expected = theirs(x, context, attention_mask=mask).numpy()
    np.testing.assert_allclose(ours(x, context, attention_mask=mask[:, None]).numpy(), expected, atol=1e-5)
    assert np.abs(expected - ours(x, context).numpy()).max() > 1e-2


def test_equals_keras_with_a_causal_mask(inputs: tuple[np.ndarray, np.ndarray]) -> None:
    ours, theirs = pair(4)
    x, _ = inputs
    expected = theirs(x, x, use_causal_mask=True).numpy()
    causal = np.tril(np.ones((T, T), bool))
    np.testing.assert_allclose(ours(x, x, attention_mask=causal).numpy(), expected, atol=1e-5)


def test_masked_positions_have_no_influence(inputs: tuple[np.ndarray, np.ndarray]) -> None:
    ours, _ = pair(4)
    x, context = inputs
    seen = np.arange(S) < 4
    changed = np.where(seen[:, None], context, 100.0).astype(np.float32)
    np.testing.assert_array_equal(
        ours(x, context, attention_mask=seen).numpy(), ours(x, changed, attention_mask=seen).numpy()
    )


def test_dropout_is_for_training_only(inputs: tuple[np.ndarray, np.ndarray]) -> None:
    attention = MultiHeadAttention(H, 4, D, dropout=0.5, name="attention")
    x, context = inputs
    once, twice = attention(x, context).numpy(), attention(x, context).numpy()
    np.testing.assert_array_equal(once, twice)
    assert np.abs(attention(x, context, training=True).numpy() - once).max() > 1e-4
