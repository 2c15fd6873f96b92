"""The five presets, as large as they are: built, written, loaded again."""

import functools
import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import batchcap.captioner.model
from batchcap.captioner.backbone import build_backbone
from batchcap.captioner.bundle import Bundle, write_bundle
from batchcap.captioner.bundle_files import WEIGHTS
from batchcap.captioner.captioner import assign_weights, load_model
from batchcap.captioner.config import CaptionerConfig, GenerationConfig
from batchcap.captioner.decoding import generate
from batchcap.captioner.images import ImageSpec
from batchcap.captioner.model import CaptionModel
from batchcap.captioner.tokenizer import Tokenizer
from docs.generate import bundle_sizes, transformer_size
from model_training.config import PRESETS, Preset

PAGE = (Path(__file__).parents[2] / "docs" / "presets.md").read_text(encoding="utf-8")


def page_row(preset: str) -> list[str]:
    """The cells of a preset in docs/presets.md."""
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{preset}` |")]
    return [cell.strip().replace(",", "") for cell in row.strip("|").split("|")]


def assert_every_cache_gives_the_same_captions(model: CaptionModel, images: np.ndarray) -> None:
    """And the log-probabilities that the network gives them when it sees them whole."""
    encoded = model.encode(model.extract_features(images))
    for num_beams in (1, 3):
        generation = GenerationConfig(num_beams, max_length=6)
        absorbed, keys_values = (
            generate(model, encoded, generation, cache_kind=kind) for kind in ("absorbed", "keys_values")
        )
        tokens = absorbed.token_ids.numpy()
        np.testing.assert_array_equal(tokens, keys_values.token_ids.numpy())
        np.testing.assert_allclose(absorbed.log_prob, keys_values.log_prob, atol=1e-4)
        log_probs = ops.log_softmax(model.decode(tokens[:, None, :-1], encoded)).numpy()[:, 0]
        chosen = np.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[:, :, 0]
        is_token = np.arange(tokens.shape[1] - 1) < absorbed.token_count.numpy()[:, None]
        np.testing.assert_allclose(absorbed.log_prob, (chosen * is_token).sum(-1), atol=1e-4)


@pytest.fixture(scope="module", autouse=True)
def _cnn_is_built_once() -> Iterator[None]:
    """All presets have the same one, which takes longer to build than all else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batchcap.captioner.model, "build_backbone", functools.cache(build_backbone))
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that doesn't stay: pytest keeps those of its last runs, and here are 200 MB in each."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_what_the_page_says_and_survives_its_bundle(preset: Preset, folder: Path) -> None:
    # Fewer pixels make the CNN cheap, and no weight depends on them.
    config = CaptionerConfig(**PRESETS[preset], image=ImageSpec(64))  # type: ignore[arg-type]
    assert config.vocabulary_size == 10_000
    keras.utils.set_random_seed(1)
    model = CaptionModel(config)
    # As a bundle stores them, so that nothing is lost on the way.
    stored = {
        name: variable.numpy().astype(np.float16 if len(variable.shape) > 1 else np.float32)
        for name, variable in model.weights_by_name().items()
    }
    assign_weights(model, stored)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    token_ids = rng.integers(0, config.vocabulary_size, (2, 1, 4), dtype=np.int32)
    expected = model(images, token_ids).numpy()
    # The CNN is one and the same object below: what is loaded must come from the bundle.
    for name, variable in model.weights_by_name().items():
        if name.startswith("backbone/"):
            variable.assign(ops.zeros_like(variable))
    del model, variable
    gc.collect()

    words = [f"word{number}" for number in range(config.vocabulary_size - 4)]
    path = folder / preset
    write_bundle(
        path,
        name=preset,
        config=config,
        generation=GenerationConfig(),
        tokenizer=Tokenizer(words),
        weights=stored,
        half_precision=True,
    )
    bundle = Bundle.open(path)
    loaded = load_model(bundle)
    np.testing.assert_array_equal(loaded(images, token_ids).numpy(), expected)
    assert_every_cache_gives_the_same_captions(loaded, images)

    _, embed_dim, heads, head_dim, ff_dim, tokens, cnn, transformer, together, mb, _ = page_row(preset)
    assert [int(embed_dim), int(head_dim), int(ff_dim)] == [config.embed_dim, config.head_dim, config.ff_dim]
    assert heads == f"{config.enc_heads} + {config.dec_heads}"
    assert int(tokens) == config.vocabulary_size
    of_cnn, of_transformer = bundle_sizes(bundle)
    assert of_transformer == transformer_size(config, channels=1280)
    for cell, size in {cnn: of_cnn, transformer: of_transformer, together: of_cnn + of_transformer}.items():
        assert cell == f"{size.parameters / 1e6:.2f} M"
    assert float(mb) == pytest.approx((path / WEIGHTS).stat().st_size / 1e6, rel=0.01)
