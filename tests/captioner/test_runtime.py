"""The same network on every runtime, in every precision: the same features, the same captions."""

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator

import keras
import numpy as np
import pytest
import tensorflow as tf

from batchcap.captioner.backbone import build_backbone
from batchcap.captioner.bundle import Bundle, RuntimeName
from batchcap.captioner.captioner import Captioner, Precision
from batchcap.captioner.config import GenerationConfig
from batchcap.captioner.runtime import (
    RUNTIME_VARIABLE,
    compile_openvino,
    compile_tensorflow,
    freeze,
    has_gpu,
    resolve_runtime,
)
from batchcap.errors import BatchcapError, UsageError

HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(not HAS_OPENVINO, reason="openvino is not installed")
IMAGES = 24


@pytest.fixture
def no_variable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without what tests/conftest.py sets."""
    monkeypatch.delenv(RUNTIME_VARIABLE)
    yield


def captioner_on(bundle: Bundle, runtime: RuntimeName, num_beams: int = 3, **options: object) -> Captioner:
    changed = dataclasses.replace(bundle, runtime=runtime, generation=GenerationConfig(num_beams))
    return Captioner(changed, batch_size=8, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def on_tensorflow(tiny_bundle: Bundle) -> Callable[[int], Captioner]:
    """The captioner that others are compared with, by its number of beams."""
    return functools.cache(lambda num_beams: captioner_on(tiny_bundle, "tensorflow", num_beams))


@needs_openvino
def test_openvino_gives_the_same_features_and_captions(
    tiny_bundle: Bundle, on_tensorflow: Callable[[int], Captioner], pixels: np.ndarray
) -> None:
    expected = on_tensorflow(3)
    found = captioner_on(tiny_bundle, "openvino", num_threads=2)
    assert (found.runtime, expected.runtime) == ("openvino", "tensorflow")
    assert found.fingerprint == expected.fingerprint
    features = found.extract_features(pixels[:8])
    assert features.shape == (8, *found.model.feature_shape)
    np.testing.assert_allclose(features, expected.extract_features(pixels[:8]), atol=1e-3)
    np.testing.assert_allclose(found.image_vectors(pixels[:8]), expected.image_vectors(pixels[:8]), atol=4e-3)
    pairs = list(zip(found.caption(pixels[:IMAGES]), expected.caption(pixels[:IMAGES]), strict=True))
    assert all(caption.text == other.text for caption, other in pairs)
    np.testing.assert_allclose(*zip(*((c.log_prob, e.log_prob) for c, e in pairs), strict=True), atol=1e-3)


@needs_openvino
def test_openvino_runs_a_cnn_whose_activations_have_gradients_of_their_own() -> None:
    """The swish of EfficientNet B0 to B7."""
    cnn = build_backbone("efficientnet_b0", 32)
    signature = tf.TensorSpec((2, 32, 32, 3), tf.uint8)
    frozen = freeze(lambda pixels: cnn(pixels, training=False), cnn.variables)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    (found,) = compile_openvino(frozen, signature, 1)(pixels)
    (expected,) = compile_tensorflow(frozen, signature)(pixels)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


@needs_openvino
def test_what_openvino_can_not_run_is_told_in_one_line() -> None:
    signature = tf.TensorSpec((2,), tf.float32)
    with pytest.raises(BatchcapError, match=r"^OpenVINO can't run this network: .") as found:
        compile_openvino(lambda x: tf.numpy_function(np.sort, [x], tf.float32), signature, 1)
    assert "\n" not in str(found.value)


@needs_openvino
def test_openvino_is_taken_by_itself_on_a_cpu(no_variable: None) -> None:
    assert resolve_runtime("auto") == ("tensorflow" if has_gpu() else "openvino")


@pytest.mark.skipif(HAS_OPENVINO, reason="openvino is installed")
def test_openvino_is_asked_for_and_missing(no_variable: None) -> None:
    assert resolve_runtime("auto") == "tensorflow"
    with pytest.raises(UsageError, match=r"pip install 'batchcap\[openvino\]'"):
        resolve_runtime("openvino")


def test_the_environment_chooses_where_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.environ[RUNTIME_VARIABLE] == "tensorflow"
    assert resolve_runtime("auto") == "tensorflow"
    monkeypatch.setenv(RUNTIME_VARIABLE, "abacus")
    with pytest.raises(UsageError, match="BATCHCAP_RUNTIME=abacus is no runtime"):
        resolve_runtime("auto")
    assert resolve_runtime("tensorflow") == "tensorflow"


@pytest.mark.parametrize("num_beams", [1, 3])
def test_xla_changes_no_caption(
    tiny_bundle: Bundle, on_tensorflow: Callable[[int], Captioner], pixels: np.ndarray, num_beams: int
) -> None:
    """What a GPU does by default, on the CPU."""
    expected = on_tensorflow(num_beams).caption(pixels[:8])
    found = captioner_on(tiny_bundle, "tensorflow", num_beams, use_xla=True).caption(pixels[:8])
    assert [caption.text for caption in found] == [caption.text for caption in expected]
    np.testing.assert_allclose(
        [caption.log_prob for caption in found], [caption.log_prob for caption in expected], atol=1e-3
    )


@pytest.mark.parametrize(
    ("precision", "correlation", "same"), [("mixed_float16", 0.99, 6), ("mixed_bfloat16", 0.9, 1)]
)
def test_half_precision_is_near(
    tiny_bundle: Bundle,
    on_tensorflow: Callable[[int], Captioner],
    pixels: np.ndarray,
    precision: Precision,
    correlation: float,
    same: int,
) -> None:
    """What a GPU computes in, on the CPU. Captions of tiny random networks hang on little, so many differ."""
    expected = on_tensorflow(1)
    found = captioner_on(tiny_bundle, "tensorflow", 1, precision=precision)
    features = [captioner.extract_features(pixels[:8]).ravel() for captioner in (found, expected)]
    assert np.corrcoef(*features)[0, 1] > correlation
    pairs = list(zip(found.caption(pixels[:IMAGES]), expected.caption(pixels[:IMAGES]), strict=True))
    alike = [(c.log_prob, e.log_prob) for c, e in pairs if c.text == e.text]
    assert len(alike) >= same
    assert all(log_prob == pytest.approx(other, rel=0.2) for log_prob, other in alike)
    # The policy is the captioner's own.
    assert keras.config.dtype_policy().name == "float32"


def test_a_frozen_function_keeps_the_values_that_its_variables_had() -> None:
    frozen, other = keras.Variable(2.0), keras.Variable(10.0)
    function = freeze(lambda x: {"b": x * frozen + other, "a": x}, [frozen])
    compiled = compile_tensorflow(function, tf.TensorSpec((2,), tf.float32))
    frozen.assign(100.0)
    other.assign(20.0)
    # In the order of tf.nest: by key.
    first, second = (value.numpy().tolist() for value in compiled(np.float32([1, 3])))
    assert (first, second) == ([1, 3], [22, 26])
