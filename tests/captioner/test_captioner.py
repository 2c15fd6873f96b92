import dataclasses
from pathlib import Path

import numpy as np
import pytest

from batchcap.captioner.bundle import Bundle, write_bundle
from batchcap.captioner.calibration import Calibration, Signals
from batchcap.captioner.captioner import Captioner
from batchcap.captioner.config import GenerationConfig
from batchcap.captioner.protocol import Caption
from batchcap.errors import BundleError


def assert_same(captions: list[Caption], expected: list[Caption]) -> None:
    assert [(c.text, c.token_count) for c in captions] == [(e.text, e.token_count) for e in expected]
    np.testing.assert_allclose([c.log_prob for c in captions], [e.log_prob for e in expected], atol=1e-4)


def rewrite(bundle: Bundle, path: Path, **changes: object) -> Path:
    """A copy of a bundle with some of its parts changed."""
    parts: dict[str, object] = {
        "name": bundle.name,
        "config": bundle.config,
        "generation": bundle.generation,
        "tokenizer": bundle.tokenizer,
        "weights": bundle.weights(),
    }
    write_bundle(path, **{**parts, **changes})  # type: ignore[arg-type]
    return path


def test_captions_differ_from_image_to_image(captioner: Captioner, pixels: np.ndarray) -> None:
    """Other tests compare captions of the tiny bundle; were they all one, none of those could fail."""
    captions = captioner.caption(pixels)
    assert len({caption.text for caption in captions}) >= 20
    assert len({caption.token_count for caption in captions}) >= 4
    longest = captioner.bundle.config.sequence_length - 1
    assert any(caption.token_count < longest for caption in captions)
    assert any(len(caption.text.split()) == longest for caption in captions)


def test_what_a_caption_says(captioner: Captioner, pixels: np.ndarray) -> None:
    for caption in captioner.caption(pixels):
        words = caption.text.split()
        # The end counts; a caption cut at the greatest length has none.
        assert caption.token_count == min(len(words) + 1, captioner.bundle.config.sequence_length - 1)
        assert caption.log_prob < 0
        assert caption.confidence is None
        assert not set(words) & {"<pad>", "<unk>", "<start>", "<end>"}


@pytest.mark.parametrize("batch_size", [2, 8])
def test_the_size_of_a_batch_changes_nothing(
    tiny_bundle: Bundle, captioner: Captioner, pixels: np.ndarray, batch_size: int
) -> None:
    """Five images: the last batch is padded, with 8 the only one. And nothing is traced once it is made."""
    traced: list[tuple[int, ...]] = []

    class Counting(Captioner):
        def _encode(self, pixels):  # type: ignore[no-untyped-def]
            traced.append(tuple(pixels.shape))
            return super()._encode(pixels)

    other = Counting(tiny_bundle, batch_size=batch_size)
    size = tiny_bundle.image_spec.image_size
    assert traced == [(batch_size, size, size, 3)]
    assert_same(other.caption(pixels[:5]), captioner.caption(pixels[:5]))
    other.warm_up()
    for count in (1, 2, 9):
        assert_same(other.caption(pixels[:count]), captioner.caption(pixels[:count]))
    assert len(traced) == 1


def test_each_image_has_its_own_caption(captioner: Captioner, pixels: np.ndarray) -> None:
    captions = captioner.caption(pixels[:6])
    assert_same(captioner.caption(pixels[:6][::-1]), captions[::-1])
    assert_same([captioner.caption(pixels[i : i + 1])[0] for i in range(6)], captions)


def test_a_list_is_as_good_as_an_array(captioner: Captioner, pixels: np.ndarray) -> None:
    assert captioner.caption(list(pixels[:3])) == captioner.caption(pixels[:3])


def test_the_vectors_of_images(captioner: Captioner, pixels: np.ndarray) -> None:
    captions, vectors = captioner.caption_with_vectors(pixels)
    assert captions == captioner.caption(pixels)
    assert (vectors.dtype, vectors.shape) == (np.float16, (len(pixels), captioner.bundle.vector_size))
    np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float64), axis=1), 1.0, atol=2e-3)
    # By themselves, one by one and in any company, they are the same; and each image has its own.
    np.testing.assert_allclose(captioner.image_vectors(pixels[3:4]), vectors[3:4], atol=2e-3)
    encoded = np.asarray(captioner.model.encode(captioner.extract_features(pixels[:2]))).mean(1)
    np.testing.assert_allclose(vectors[:2], encoded / np.linalg.norm(encoded, axis=1)[:, None], atol=2e-3)
    assert len(np.unique(vectors, axis=0)) == len(pixels)


def test_no_images_no_captions(captioner: Captioner) -> None:
    assert captioner.image_vectors([]).shape == (0, captioner.bundle.vector_size)
    assert captioner.caption([]) == []


def test_half_precision(
    tiny_bundle: Bundle, captioner: Captioner, pixels: np.ndarray, tmp_path: Path
) -> None:
    path = rewrite(tiny_bundle, tmp_path / "half", half_precision=True)
    size = (path / "weights.safetensors").stat().st_size
    assert size < 0.6 * (tiny_bundle.path / "weights.safetensors").stat().st_size
    half = Captioner.load(path, batch_size=4)
    assert {str(variable.dtype) for variable in half.model.weights_by_name().values()} == {"float32"}
    captions, expected = half.caption(pixels[:20]), captioner.caption(pixels[:20])
    # Halves are good to three digits; few captions hang on less.
    assert sum(c.text == e.text for c, e in zip(captions, expected, strict=True)) >= 15
    assert half.fingerprint != captioner.fingerprint


def calibration(generation: GenerationConfig, **weights: float) -> Calibration:
    return Calibration(
        signals=weights,
        intercept=1.5,
        threshold=33.0,
        rule="",
        auroc=0.7,
        ece=0.04,
        num_beams=generation.num_beams,
        length_penalty=generation.length_penalty,
    )


def test_calibration_and_options_in_place_of_the_bundles(
    tiny_bundle: Bundle, captioner: Captioner, pixels: np.ndarray, tmp_path: Path
) -> None:
    beams = GenerationConfig(num_beams=2, length_penalty=0.7, max_length=4)
    path = rewrite(tiny_bundle, tmp_path / "calibrated", calibration=calibration(beams, mean_log_prob=2.0))
    short = Captioner.load(path, generation=beams, batch_size=4)
    assert short.fingerprint != captioner.fingerprint
    for caption in short.caption(pixels[:8]):
        assert caption.token_count <= 3
        expected = 1 / (1 + np.exp(-(2.0 * caption.log_prob / caption.token_count + 1.5)))
        assert caption.confidence == pytest.approx(expected)


def test_saved_and_loaded_again(
    tiny_bundle: Bundle, captioner: Captioner, pixels: np.ndarray, tmp_path: Path
) -> None:
    """With a calibration for another decoding; which is another, `test_calibration.py` says."""
    weights = {name: variable.numpy() for name, variable in captioner.model.weights_by_name().items()}
    beams = GenerationConfig(num_beams=2, length_penalty=0.7)
    assert beams != captioner.bundle.generation
    calibrated = {"weights": weights, "calibration": calibration(beams, mean_log_prob=2.0)}
    loaded = Captioner.load(rewrite(tiny_bundle, tmp_path / "copy", **calibrated), batch_size=4)
    captions = loaded.caption(pixels[:8])
    assert captions == captioner.caption(pixels[:8])
    assert {caption.confidence for caption in captions} == {None}
    assert loaded.fingerprint == captioner.fingerprint == tiny_bundle.fingerprint()


@pytest.mark.parametrize("num_beams", [1, 3])
def test_signals_belong_to_their_captions(captioner: Captioner, pixels: np.ndarray, num_beams: int) -> None:
    bundle = dataclasses.replace(captioner.bundle, generation=GenerationConfig(num_beams))
    if bundle.generation != captioner.bundle.generation:
        captioner = Captioner(bundle, batch_size=4)
    found = captioner.caption_with_signals(pixels[:10])
    assert [caption for caption, _ in found] == captioner.caption(pixels[:10])
    longest = bundle.config.sequence_length - 1
    for caption, signals in found:
        assert isinstance(signals, Signals)
        assert signals.mean_log_prob == caption.log_prob / caption.token_count
        assert signals.token_count == caption.token_count
        assert signals.min_log_prob <= signals.mean_log_prob < 0
        assert 0 < signals.entropy < np.log(bundle.config.vocabulary_size)
        assert signals.has_ended == (len(caption.text.split()) < longest)
        assert signals.margin == 0 if num_beams == 1 else signals.margin >= 0
    assert {signals.has_ended for _, signals in found} == {0.0, 1.0}


def test_weights_that_do_not_fit(tiny_bundle: Bundle, tmp_path: Path) -> None:
    weights = tiny_bundle.weights()
    weights["output/kernel"] = weights["output/kernel"].T.copy()
    with pytest.raises(BundleError, match=r"weights\.safetensors.*output/kernel has shape"):
        Captioner.load(rewrite(tiny_bundle, tmp_path / "bad", weights=weights))


def test_weights_of_another_network(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Some are missing, others unknown."""
    weights = tiny_bundle.weights()
    del weights["output/kernel"]
    config = dataclasses.replace(tiny_bundle.config, dec_layers=1)
    path = rewrite(tiny_bundle, tmp_path / "other", config=config, weights=weights)
    with pytest.raises(
        BundleError, match=r"weights\.safetensors.*missing weights \['output/kernel'\].*decoder1"
    ):
        Captioner.load(path)
