"""What options of the command make of a run, where the trainer's own tests don't show it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from batchcap.captioner.bundle import Bundle
from batchcap.captioner.config import CaptionerConfig
from model_training import train_model, training
from model_training.config import PRESETS, TrainConfig
from model_training.data_processing import AUGMENTED_VIEWS
from tests.conftest import DataSet
from tests.training.conftest import uncompiled
from tests.training.test_training import SHAPE, cache_of, run_command, train


@pytest.fixture(scope="module")
def plain(data_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a run with a frozen CNN, for what others are compared with or start from."""
    path = tmp_path_factory.mktemp("runs") / "plain"
    train(data_set, path, epochs=1, batch_size=75, compiled=False)
    return path


def config_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> TrainConfig:
    """The options of a run that is not started."""
    seen: list[TrainConfig] = []

    def remember(config: TrainConfig, report: object) -> Path:
        seen.append(config)
        return config.artifact_dir

    monkeypatch.setattr(training, "train", remember)
    result = CliRunner().invoke(train_model.app, ["--data", "d", "--captions", "c", *arguments])
    assert result.exit_code == 0, result.output
    return seen[0]


def test_the_defaults_are_those_of_the_original_and_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(monkeypatch)
    assert config == TrainConfig(Path("d"), Path("c"))
    assert config.captioner == CaptionerConfig()
    shape = config.captioner
    assert (shape.sequence_length, shape.embed_dim, shape.ff_dim) == (36, 512, 256)
    assert (shape.enc_heads, shape.dec_heads) == (2, 4)
    assert (config.batch_size, config.epochs, config.lr) == (128, 20, 0.001)
    assert config.artifact_dir == Path("./local_runs/default_run")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_a_shape_that_other_options_change(monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    shape = config_of(monkeypatch, "--preset", preset).captioner
    assert shape == CaptionerConfig(**PRESETS[preset])  # type: ignore[index]
    changed = config_of(monkeypatch, "--dec-heads", "3", "--preset", preset).captioner
    assert changed == replace(shape, dec_heads=3)


def test_one_dropout_stands_for_all_that_are_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = config_of(monkeypatch, "--dropout", "0.25", "--ff_dropout", "0.3").captioner
    dropouts = (shape.residual_dropout, shape.attention_dropout, shape.ff_dropout, shape.output_dropout)
    assert dropouts == (0.25, 0.25, 0.3, 0.25)


def test_mixed_precision_and_crops_end_in_a_bundle_like_others(data_set: DataSet, tmp_path: Path) -> None:
    # One step a stage.
    options = {"epochs": 1, "scst_epochs": 1, "batch_size": 75, "cache_dir": tmp_path / "cache"}
    train(data_set, tmp_path / "run", ["--mixed_precision", "--augment"], **options)
    weights = Bundle.open(tmp_path / "run").weights()
    assert all(np.isfinite(weight).all() for weight in weights.values())
    views = {np.load(path, mmap_mode="r").shape[1] for path in (tmp_path / "cache").glob("features-*.npy")}
    assert views == {AUGMENTED_VIEWS, 2}


def test_a_trained_cnn_is_part_of_the_bundle(data_set: DataSet, plain: Path, tmp_path: Path) -> None:
    options = {"epochs": 1, "train_cnn": "top", "lr": 0.01, "warmup_steps": 0, "batch_size": 75}
    train(data_set, tmp_path / "trained", **options, compiled=False)
    frozen, trained = (Bundle.open(path).weights() for path in (plain, tmp_path / "trained"))
    differs = {
        name for name in frozen if name.startswith("backbone") and (frozen[name] != trained[name]).any()
    }
    assert any("head_conv" in name for name in differs)
    assert not any("stem" in name for name in differs)


def test_a_bundle_to_start_from_gives_shape_words_and_weights(
    data_set: DataSet, plain: Path, tmp_path: Path
) -> None:
    first = Bundle.open(plain)
    cache = cache_of(data_set)
    before = sorted(cache.iterdir())
    arguments = [
        *("--data", data_set.data, "--captions", data_set.captions, "--init", plain),
        *("--train_split", data_set.train_split, "--dev_split", data_set.dev_split),
        *("--cache_dir", cache, "--epochs", 1, "--lr", 0, "--weight_decay", 0),
    ]

    def start(name: str, *more: object) -> object:
        every = [*arguments, "--artifact_dir", tmp_path / name, *more]
        with uncompiled():
            return CliRunner().invoke(train_model.app, list(map(str, every)))

    result = start("second")
    assert result.exit_code == 0, result.output
    # The CNN is the very same, although bundles round its weights: no features had to be computed.
    assert sorted(cache.iterdir()) == before
    second = Bundle.open(tmp_path / "second")
    assert second.config == first.config
    assert second.tokenizer.to_text() == first.tokenizer.to_text()
    # With a learning rate of zero it stays what it was.
    for name, weight in second.weights().items():
        np.testing.assert_array_equal(weight, first.weights()[name], err_msg=name)
    assert json.loads((tmp_path / "second" / "metrics.json").read_text())["stage"] == "init"

    result = start("third", "--embed_dim", 8)
    assert result.exit_code == 2
    assert "has another embed_dim; leave out of the options what --init decides" in result.stderr
    assert not (tmp_path / "third").exists()
    assert start("third", "--preset", "s").exit_code == 2
    result = start("third", "--num_beams", 1000)
    assert result.exit_code == 1
    assert "1000 beams are more than the 15 tokens of the vocabulary" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_count": 20}, "has other words"),
        ({"seq_length": 36}, "knows captions of"),
        ({"image_size": 96}, "has another CNN"),
        ({"backbone_weights": "none", "seed": 1}, "has another CNN"),
        ({"train_cnn": "top"}, "leave out --train_cnn"),
    ],
)
def test_teachers_that_see_or_say_other_things_are_refused(
    data_set: DataSet, plain: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    result = run_command(data_set, tmp_path / "run", teacher=plain, **options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_learns_from_teachers(data_set: DataSet, plain: Path, tmp_path: Path) -> None:
    """The teachers' share is all of the loss, so what comes out is another model than without them."""
    options = {"epochs": 1, "lr": 0.01, "warmup_steps": 0, "batch_size": 75}
    train(data_set, tmp_path / "alone", **options, compiled=False)
    more = ["--teacher", plain, "--teacher", plain, "--distillation", 1]
    train(data_set, tmp_path / "taught", more, **options, compiled=False)
    alone, taught = (Bundle.open(tmp_path / name).weights() for name in ("alone", "taught"))
    assert any((alone[name] != taught[name]).any() for name in alone)
    assert all(np.isfinite(weight).all() for weight in taught.values())
    kept = json.loads((tmp_path / "taught" / "training.json").read_text())
    assert kept["teachers"] == [str(plain)] * 2


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({"epochs": 0}, 2, "--epochs 0 leaves the network as it is drawn"),
        ({"init": "nowhere"}, 1, "no model at nowhere"),
        ({"text": "nowhere.tsv"}, 1, "can't read the captions"),
        ({"scst_samples": 1}, 2, "scst_samples"),
        ({"train_cnn": "some"}, 2, "train_cnn"),
        ({"teacher": "nowhere"}, 1, "no model at nowhere"),
    ],
)
def test_options_that_can_not_work_are_said_so(
    data_set: DataSet, tmp_path: Path, options: dict[str, object], status: int, message: str
) -> None:
    result = run_command(data_set, tmp_path / "run", **options)
    assert result.exit_code == status
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


class Stopped(Exception):
    """What ends a run when all is read."""


def test_captions_of_images_to_choose_on_are_not_read_as_text(
    data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text file may hold the very photographs that the run is judged on."""

    def stop(*_: object) -> None:
        raise Stopped

    monkeypatch.setattr(training, "CaptionModel", stop)

    def printed(text: Path) -> str:
        result = run_command(data_set, tmp_path / "run", text=text)
        assert isinstance(result.exception, Stopped)
        return result.stdout

    assert "12 captions to read; left out: nothing" in printed(data_set.texts)
    text = tmp_path / "more.tsv"
    text.write_text(
        "image\tcaption\na.jpg\tA red square\na.jpg\tsomething\nb.jpg\tA red circle\n", encoding="utf-8"
    )
    assert "1 captions to read; left out: 1 images that may be among those to choose on" in printed(text)


def test_the_shape_of_the_tests_is_no_default() -> None:
    """Otherwise these tests could not tell an option that is read from one that is forgotten."""
    defaults = CaptionerConfig()
    assert SHAPE["embed_dim"] != defaults.embed_dim
    assert SHAPE["seq_length"] != defaults.sequence_length
