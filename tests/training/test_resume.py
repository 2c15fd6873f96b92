"""Runs that are cut short and go on, and folders that hold another run."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from batchcap.captioner.bundle import Bundle
from model_training import training
from model_training.checkpoint import CHECKPOINT
from model_training.tracking import TRAINING
from tests.conftest import DataSet
from tests.training.test_training import run_command, train

# Every stage, and all that draws random numbers.
OPTIONS = {
    "epochs": 2,
    "text_epochs": 1,
    "scst_epochs": 1,
    "patience": 0,
    "warmup_steps": 2,
    "residual_dropout": 0.1,
    "ema_momentum": 0.5,
    "scst_samples": 2,
}
# Steps of these runs: text 3, cross-entropy 2 * 5, self-critical 3. The first copy is made in the text stage.
COPIED = ("TextStage", 2)
CUTS = {"CrossEntropyStage": 7, "SelfCriticalStage": 2}


def options_of(data_set: DataSet) -> dict[str, object]:
    return {**OPTIONS, "text": data_set.texts}


class Cut(Exception):
    """What ends a run in the middle."""


def after_steps(
    monkeypatch: pytest.MonkeyPatch, stage: str, steps: int, happens: Callable[[], object]
) -> None:
    """Lets something happen in this stage after so many steps; each step is followed by a checkpoint."""
    whole = getattr(training, stage)

    class Watched(whole):  # type: ignore[misc, valid-type]
        done = 0

        def step(self, batch: object) -> dict[str, float]:
            if self.done == steps:
                happens()
            self.done += 1
            return whole.step(self, batch)  # type: ignore[no-any-return]

    monkeypatch.setattr(training, stage, Watched)
    monkeypatch.setattr(training, "CHECKPOINT_S", -1.0)


def cut() -> None:
    raise Cut


def history_of(path: Path) -> list[dict[str, str]]:
    """The rows of a run's epochs, none where the first is not done, without what differs by the clock."""
    if not (path / "history.csv").exists():
        return []
    with open(path / "history.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "train_s"} for row in csv.DictReader(file)]


def weights_of(path: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path / "weights.safetensors")


@pytest.fixture(scope="module")
def runs(data_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run, which began with --resume where there was nothing, as jobs do; and its first steps.

    These are what a kill would have left in the middle of its first epoch.
    """
    folder = tmp_path_factory.mktemp("runs")
    whole, start = folder / "run", folder / "start" / "run"
    with pytest.MonkeyPatch.context() as patch:

        def copy() -> None:
            shutil.copytree(whole, start)
            # The others, which go on from checkpoints, end as one that wrote none on its way.
            patch.setattr(training, "CHECKPOINT_S", 600.0)

        after_steps(patch, *COPIED, copy)
        train(data_set, whole, flags=["--resume"], **options_of(data_set))
    return whole, start


@pytest.fixture
def uninterrupted(runs: tuple[Path, Path]) -> Path:
    """The finished run."""
    return runs[0]


@pytest.fixture
def cut_short(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the run that ended in the middle of its first epoch."""
    return shutil.copytree(runs[1], tmp_path / "run")


def test_a_run_that_was_cut_short_in_every_stage_ends_as_if_it_had_not_been(
    data_set: DataSet, uninterrupted: Path, cut_short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cut_short
    expected = history_of(uninterrupted)
    assert history_of(path) == []
    for stage, steps in CUTS.items():
        with monkeypatch.context() as patch:
            after_steps(patch, stage, steps, cut)
            result = run_command(data_set, path, flags=["--resume"], **options_of(data_set))
            assert isinstance(result.exception, Cut), stage
        assert (path / CHECKPOINT).exists()
        # What was done before the cut is as it should be, so a difference says which stage made it.
        assert history_of(path)
        for row, wanted in zip(history_of(path), expected, strict=False):
            assert row.items() <= wanted.items(), stage
    train(data_set, path, flags=["--resume"], **options_of(data_set))
    weights = weights_of(uninterrupted)
    for name, weight in weights_of(path).items():
        np.testing.assert_array_equal(weight, weights[name], err_msg=name)
    assert history_of(path) == expected
    assert [row["stage"] for row in expected] == ["text", "xent", "xent", "scst"]


def test_a_finished_run_is_not_trained_again(data_set: DataSet, uninterrupted: Path) -> None:
    before = (uninterrupted / "weights.safetensors").stat()
    output = train(data_set, uninterrupted, flags=["--resume"], **options_of(data_set))
    assert "is finished" in output
    assert (uninterrupted / "weights.safetensors").stat().st_mtime_ns == before.st_mtime_ns


def test_a_run_that_knew_fewer_options_goes_on(
    data_set: DataSet, uninterrupted: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(uninterrupted, tmp_path / "run")
    options = json.loads((path / TRAINING).read_text())
    del options["teachers"]
    (path / TRAINING).write_text(json.dumps(options))
    assert "is finished" in train(data_set, path, flags=["--resume"], **options_of(data_set))


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ("{}", "training.json is damaged: "),
        *((text, "holds something that is no model") for text in ("", "{", "[]")),
    ],
)
def test_damaged_options_are_one_line(
    data_set: DataSet, uninterrupted: Path, tmp_path: Path, damaged: str, message: str
) -> None:
    path = shutil.copytree(uninterrupted, tmp_path / "run")
    (path / TRAINING).write_text(damaged)
    result = run_command(data_set, path, flags=["--resume"], **options_of(data_set))
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert message in line
    assert (path / TRAINING).read_text() == damaged


def test_resume_starts_a_run_where_there_is_none(uninterrupted: Path) -> None:
    """A job that is started again and again can always say --resume."""
    assert Bundle.open(uninterrupted).config.embed_dim == 16


def test_another_run_is_refused_and_stays(
    data_set: DataSet, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in uninterrupted.iterdir()}
    result = run_command(data_set, uninterrupted, **options_of(data_set))
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"train_model: {uninterrupted} holds another run; give --resume to go on with it, --overwrite to"
        " replace it, or another --artifact_dir"
    ]
    result = run_command(data_set, uninterrupted, flags=["--resume"], **options_of(data_set) | {"lr": 0.5})
    assert result.exit_code == 2
    assert "had other options: lr;" in result.stderr
    result = run_command(data_set, uninterrupted, flags=["--resume", "--overwrite"], epochs=1)
    assert result.exit_code == 2
    assert before == {path.name: path.read_bytes() for path in uninterrupted.iterdir()}


@pytest.fixture(scope="module")
def overwritten(
    data_set: DataSet, runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A run of another shape in the place of the finished one, which learns nothing; and what it printed."""
    path = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(runs[0], path)
    (path / "notes.txt").write_text("mine")
    (path / "calibration.json").write_text("{}")
    # With a learning rate of zero every epoch is as good as the first.
    options = {"epochs": 9, "patience": 2, "lr": 0.0, "weight_decay": 0.0, "batch_size": 75, "embed_dim": 8}
    return path, train(data_set, path, flags=["--overwrite"], **options, compiled=False)


def test_overwrite_replaces_a_run_whole(uninterrupted: Path, overwritten: tuple[Path, str]) -> None:
    path, _ = overwritten
    assert {row["stage"] for row in history_of(uninterrupted)} > {row["stage"] for row in history_of(path)}
    assert Bundle.open(path).config.embed_dim == 8
    assert json.loads((path / "training.json").read_text())["captioner"]["embed_dim"] == 8
    assert not (path / "calibration.json").exists()
    assert (path / "notes.txt").read_text() == "mine"


def test_training_stops_where_nothing_gets_better(overwritten: tuple[Path, str]) -> None:
    path, output = overwritten
    assert len(history_of(path)) == 3
    assert "no better CIDEr-D for 2 epochs" in output


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: safetensors.numpy.save_file({"a": np.zeros(3)}, path), "is damaged"),
        (
            lambda path: safetensors.numpy.save_file(
                {"00000": np.zeros(3)}, path, {"position": json.dumps({"run": {}, "tracker": {}})}
            ),
            "of a network of another shape",
        ),
        (
            lambda path: safetensors.numpy.save_file({"a": np.zeros(3)}, path, {"position": '{"run": 3}'}),
            "is damaged",
        ),
    ],
    ids=["cut", "empty", "of something else", "of another network", "of another version"],
)
def test_a_damaged_checkpoint_is_one_line(
    data_set: DataSet,
    cut_short: Path,
    damage: Callable[[Path], object],
    message: str,
) -> None:
    path = cut_short
    damage(path / CHECKPOINT)
    before = (path / CHECKPOINT).read_bytes()
    result = run_command(data_set, path, flags=["--resume"], **options_of(data_set))
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert message in line
    assert "--overwrite" in line
    assert (path / CHECKPOINT).read_bytes() == before
