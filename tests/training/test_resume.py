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
# Steps of these runs: text 3, cross-entropy 2 * 5, self-critical 3.
STAGES = {"TextStage": 2, "CrossEntropyStage": 7, "SelfCriticalStage": 2}


def options_of(data_set: DataSet) -> dict[str, object]:
    return {**OPTIONS, "text": data_set.texts}


class Cut(Exception):
    """What ends a run in the middle."""


def cut_after(monkeypatch: pytest.MonkeyPatch, stage: str, steps: int) -> None:
    """Lets a run end in this stage after so many steps; each step is followed by a checkpoint."""
    whole = getattr(training, stage)

    class Short(whole):  # type: ignore[misc, valid-type]
        done = 0

        def step(self, batch: object) -> dict[str, float]:
            if self.done == steps:
                raise Cut
            self.done += 1
            return whole.step(self, batch)  # type: ignore[no-any-return]

    monkeypatch.setattr(training, stage, Short)
    monkeypatch.setattr(training, "CHECKPOINT_S", -1.0)


def history_of(path: Path) -> list[dict[str, str]]:
    """The rows of a run's epochs, none where the first is not done, without what differs by the clock."""
    if not (path / "history.csv").exists():
        return []
    with open(path / "history.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "train_s"} for row in csv.DictReader(file)]


def weights_of(path: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path / "weights.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(data_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. It began with --resume where there was nothing, as jobs do."""
    path = tmp_path_factory.mktemp("runs") / "run"
    train(data_set, path, flags=["--resume"], **options_of(data_set))
    return path


def test_a_run_that_was_cut_short_in_every_stage_ends_as_if_it_had_not_been(
    data_set: DataSet, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    expected = history_of(uninterrupted)
    for number, (stage, steps) in enumerate(STAGES.items()):
        with monkeypatch.context() as patch:
            cut_after(patch, stage, steps)
            result = run_command(data_set, path, flags=["--resume"] if number else [], **options_of(data_set))
            assert isinstance(result.exception, Cut), stage
        assert (path / CHECKPOINT).exists()
        # What was done before the cut is as it should be, so a difference says which stage made it.
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


def test_overwrite_replaces_a_run_whole(data_set: DataSet, uninterrupted: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(uninterrupted, path)
    assert len(history_of(path)) == 4
    (path / "notes.txt").write_text("mine")
    (path / "calibration.json").write_text("{}")
    train(data_set, path, flags=["--overwrite"], epochs=1, embed_dim=8, compiled=False)
    assert len(history_of(path)) == 1
    assert Bundle.open(path).config.embed_dim == 8
    assert json.loads((path / "training.json").read_text())["captioner"]["embed_dim"] == 8
    assert not (path / "calibration.json").exists()
    assert (path / "notes.txt").read_text() == "mine"


@pytest.fixture(scope="module")
def cut_short(data_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended in the middle of its only epoch."""
    path = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        cut_after(patch, "CrossEntropyStage", 3)
        assert isinstance(run_command(data_set, path, epochs=1, compiled=False).exception, Cut)
    return path


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
    tmp_path: Path,
    damage: Callable[[Path], object],
    message: str,
) -> None:
    path = tmp_path / "run"
    shutil.copytree(cut_short, path)
    damage(path / CHECKPOINT)
    before = (path / CHECKPOINT).read_bytes()
    result = run_command(data_set, path, flags=["--resume"], epochs=1)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert message in line
    assert "--overwrite" in line
    assert (path / CHECKPOINT).read_bytes() == before


def test_training_stops_where_nothing_gets_better(data_set: DataSet, tmp_path: Path) -> None:
    # With a learning rate of zero every epoch is as good as the first.
    options = {"epochs": 9, "patience": 2, "lr": 0.0, "weight_decay": 0.0, "batch_size": 75}
    output = train(data_set, tmp_path / "run", **options, compiled=False)
    assert len(history_of(tmp_path / "run")) == 3
    assert "no better CIDEr-D for 2 epochs" in output
