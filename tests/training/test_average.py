"""The mean of models is a model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from batchcap.captioner.bundle import Bundle, write_bundle
from batchcap.captioner.config import CaptionerConfig, GenerationConfig
from batchcap.captioner.model import CaptionModel
from batchcap.captioner.tokenizer import Tokenizer
from model_training import average
from tests.conftest import WORDS


@pytest.fixture(scope="module")
def write(tiny_config: CaptionerConfig) -> Callable[..., Path]:
    """Writes a bundle of random weights."""

    def write(path: Path, seed: int, words: list[str] = WORDS, **shape: int) -> Path:
        keras.utils.set_random_seed(seed)
        model = CaptionModel(replace(tiny_config, **shape))
        write_bundle(
            path,
            name=path.name,
            config=model.config,
            generation=GenerationConfig(2, 0.5),
            tokenizer=Tokenizer(words),
            weights={name: weight.numpy() for name, weight in model.weights_by_name().items()},
            half_precision=True,
        )
        return path

    return write


def run(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(average.main)
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_weights_are_the_mean(write: Callable[..., Path], tmp_path: Path) -> None:
    paths = [write(tmp_path / f"run{seed}", seed) for seed in range(3)]
    result = run(*paths, "--output", tmp_path / "mean")
    assert result.exit_code == 0, result.output
    mean = Bundle.open(tmp_path / "mean")
    assert mean.name == "mean" and mean.generation == GenerationConfig(2, 0.5)
    parts = [Bundle.open(path).weights() for path in paths]
    for name, weight in mean.weights().items():
        expected = np.mean([part[name] for part in parts], axis=0)
        np.testing.assert_allclose(weight, expected, rtol=1e-3, atol=1e-4, err_msg=name)
    assert "run0, run1, run2" in (tmp_path / "mean" / "README.md").read_text()


def test_what_has_no_mean_is_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    one, twin = write(tmp_path / "one", 0), write(tmp_path / "twin", 1)
    wide = write(tmp_path / "wide", 0, ff_dim=24)
    strange = write(tmp_path / "strange", 0, [*WORDS[:-1], "strange"])
    for arguments, status, message in [
        ((one,), 2, "give at least two"),
        ((one, wide), 2, "has another shape or other words"),
        ((one, strange), 2, "has another shape or other words"),
        ((one, tmp_path / "nowhere"), 1, "no model at"),
        ((one, twin, "--output", twin), 2, "choose another --output"),
        ((one, twin, "--output", wide), 1, "of another configuration"),
    ]:
        named = arguments if "--output" in arguments else (*arguments, "--output", tmp_path / "mean")
        result = run(*named)
        assert result.exit_code == status, result.output
        assert message in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "mean").exists()
    assert Bundle.open(twin).name == "twin"
