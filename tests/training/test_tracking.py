"""The record of a training run, in its folder and on Weights & Biases."""

import csv
import errno
import json
import subprocess
import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from batchcap.captioner import bundle_files
from batchcap.errors import TrainingError
from model_training import plots, tracking
from model_training.config import TrainConfig
from model_training.samples import Sample
from model_training.tracking import Tracker, TrackerState, check_wandb
from tests.conftest import make_photo

TEXT = {"epoch": 1, "stage": "text", "loss": 5.0, "train_s": 1.5}
CROSS_ENTROPY = {"epoch": 2, "stage": "xent", "loss": 4.0, "dev_cider_d": np.float64(31.5)}


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def config_for(artifact_dir: Path, **options: object) -> TrainConfig:
    return TrainConfig(Path("images"), Path("captions.tsv"), artifact_dir=artifact_dir, **options)


def read_history(folder: Path) -> list[dict[str, str]]:
    with open(folder / "history.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def sample(path: Path, caption: str) -> Sample:
    return Sample(path.name, path, caption, ("A dog .",))


def through_json(state: TrackerState) -> TrackerState:
    """The way of a state through a checkpoint."""
    return TrackerState(**json.loads(json.dumps(tracking.dataclasses.asdict(state))))


def test_the_options_are_there_from_the_start(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    with Tracker(config_for(folder, epochs=7), details={"parameters": 8593231, "words": np.int64(3)}):
        assert [file.name for file in folder.iterdir()] == ["training.json"]
        options = json.loads((folder / "training.json").read_text())
    assert (options["epochs"], options["parameters"], options["words"]) == (7, 8593231, 3)
    assert options["captioner"]["embed_dim"] == 512
    assert options["artifact_dir"] == str(folder)


def test_the_files_are_renewed_after_every_epoch(tmp_path: Path) -> None:
    """So that a run that is killed at any time has them."""
    photo = make_photo(tmp_path / "dog.png", 1)
    with Tracker(config_for(tmp_path / "run")) as tracker:
        tracker.log_step(1, {"loss": 6.0})
        tracker.log_epoch(TEXT)
        assert read_history(tmp_path / "run") == [{key: str(value) for key, value in TEXT.items()}]
        first_plot = (tmp_path / "run" / "history.png").read_bytes()
        tracker.log_epoch(CROSS_ENTROPY)
        tracker.log_samples(2, [sample(photo, "a dog runs")])
        rows = read_history(tmp_path / "run")
        assert list(rows[0]) == ["epoch", "stage", "loss", "train_s", "dev_cider_d"]
        assert rows[1] == {
            **{"epoch": "2", "stage": "xent", "loss": "4.0", "train_s": "", "dev_cider_d": "31.5"}
        }
        assert (tmp_path / "run" / "history.png").read_bytes() != first_plot
        assert "a dog runs" in (tmp_path / "run" / "samples.html").read_text(encoding="utf-8")
        tracker.finish(tmp_path / "run")
    with Image.open(tmp_path / "run" / "history.png") as image:
        assert image.format == "PNG"
        assert 800 < image.width < 2000
        assert 300 < image.height < 1000
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [
        *("history.csv", "history.png", "samples.html", "training.json")
    ]


def test_a_resumed_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """What was logged after the checkpoint is gone, and comes again."""
    photo = make_photo(tmp_path / "dog.png", 1)
    config = config_for(tmp_path / "run")
    with Tracker(config) as tracker:
        tracker.log_epoch(TEXT)
        tracker.log_samples(1, [sample(photo, "a cat")])
        state = through_json(tracker.state())
        tracker.log_epoch(CROSS_ENTROPY)
        assert len(state.history) == 1
    with Tracker(config, resumed=state) as tracker:
        assert len(read_history(tmp_path / "run")) == 1
        tracker.log_epoch({**CROSS_ENTROPY, "loss": 3.0})
        tracker.log_samples(2, [sample(photo, "a dog")])
        assert [caption for _, caption in tracker.state().samples[0]["captions"]] == ["a cat", "a dog"]
    assert [row["loss"] for row in read_history(tmp_path / "run")] == ["5.0", "3.0"]
    page = (tmp_path / "run" / "samples.html").read_text(encoding="utf-8")
    assert "a cat" in page
    assert page.count("data:image/jpeg;base64") == 1


def test_a_disk_that_fills_up_is_one_line_and_leaves_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_temporary(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Tracker(config_for(tmp_path / "run")) as tracker:
        tracker.log_epoch(TEXT)
        monkeypatch.setattr(bundle_files, "write_temporary", write_temporary)
        with pytest.raises(TrainingError) as caught:
            tracker.log_epoch(CROSS_ENTROPY)
    assert str(caught.value) == f"can't write {tmp_path / 'run' / 'history.csv'}: No space left on device"
    assert len(read_history(tmp_path / "run")) == 1


def test_without_matplotlib_there_is_no_plot_and_one_line(tmp_path: Path, without_matplotlib: None) -> None:
    lines: list[str] = []
    with Tracker(config_for(tmp_path / "run"), report=lines.append) as tracker:
        tracker.log_epoch(TEXT)
        tracker.log_epoch(CROSS_ENTROPY)
        tracker.finish(tmp_path / "run")
    assert lines == ["no history.png: matplotlib is missing; pip install 'batchcap[train]'"]
    assert len(read_history(tmp_path / "run")) == 2
    assert not (tmp_path / "run" / "history.png").exists()


def test_a_broken_matplotlib_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*_: object) -> None:
        raise RuntimeError("no font\nfound")

    monkeypatch.setattr(plots, "history_figure", draw)
    lines: list[str] = []
    with Tracker(config_for(tmp_path / "run"), report=lines.append) as tracker:
        tracker.log_epoch(TEXT)
        tracker.log_epoch(CROSS_ENTROPY)
    assert lines == ["no history.png: no font found"]


@pytest.mark.parametrize("blocked", ["", "history.csv", "samples.html"])
def test_what_can_not_be_written_is_one_line(tmp_path: Path, blocked: str) -> None:
    folder = tmp_path / "run"
    if blocked:
        (folder / blocked / "full").mkdir(parents=True)  # no file can replace this
    else:
        folder.write_text("a file, where the folder should be")
    photo = make_photo(tmp_path / "dog.png", 1)
    with pytest.raises(TrainingError) as caught, Tracker(config_for(folder)) as tracker:
        tracker.log_epoch(TEXT)
        tracker.log_samples(1, [sample(photo, "a dog")])
    assert str(caught.value).startswith(f"can't write {folder / (blocked or 'training.json')}: ")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.tmp"))


def test_wandb_offline_has_a_run_and_the_model(tmp_path: Path, wandb_dir: Path) -> None:
    import wandb

    photo = make_photo(tmp_path / "dog.png", 1)
    folder = tmp_path / "my run"  # an artifact's name can't have the space
    before = set(threading.enumerate())
    lines: list[str] = []
    with Tracker(
        config_for(folder, wandb="offline"), details={"parameters": 12}, report=lines.append
    ) as tracker:
        (folder / "weights.safetensors").write_bytes(b"weights")
        (folder / "checkpoint.safetensors").write_bytes(b"state of the optimizer")
        tracker.log_step(1, {"loss": 6.0})
        tracker.log_epoch(TEXT)
        tracker.log_epoch(CROSS_ENTROPY)
        tracker.log_samples(2, [sample(photo, "a dog"), sample(tmp_path / "gone.png", "a cat")])
        run_id = tracker.state().wandb_run_id
        tracker.finish(folder)
    assert lines == []
    wandb.teardown()  # as at the end of the process: only now everything is on disk
    left = set(threading.enumerate()) - before
    assert not [thread.name for thread in left if not thread.daemon]
    (path,) = wandb_dir.rglob("*.wandb")
    assert path.name == f"run-{run_id}.wandb"
    # A log of records that are not compressed.
    record = path.read_bytes()
    for part in (
        *(b"train/loss", b"train/step", b"dev_cider_d", b"31.5", b"stage", b"xent", b"parameters"),
        *(b"my-run", b"history.csv", b"history.png", b"samples.html", b"weights.safetensors"),
    ):
        assert part in record, part
    assert b"checkpoint.safetensors" not in record
    (table,) = wandb_dir.rglob("samples_*.table.json")
    rows = json.loads(table.read_text())["data"]
    assert [(row[0], row[1], row[3]) for row in rows] == [(2, "dog.png", "a dog"), (2, "gone.png", "a cat")]


def test_a_resumed_run_is_the_same_on_wandb(tmp_path: Path, wandb_dir: Path) -> None:
    config = config_for(tmp_path / "run", wandb="offline")
    with Tracker(config) as tracker:
        tracker.log_epoch(TEXT)
        state = through_json(tracker.state())
    with Tracker(config, resumed=state) as tracker:
        tracker.log_epoch(CROSS_ENTROPY)
        assert tracker.state().wandb_run_id == state.wandb_run_id
    assert {path.name for path in wandb_dir.rglob("*.wandb")} == {f"run-{state.wandb_run_id}.wandb"}
    # A run that goes on without W&B doesn't forget where it was there.
    with Tracker(config_for(tmp_path / "run"), resumed=state) as tracker:
        assert tracker.state().wandb_run_id == state.wandb_run_id


def test_a_resumed_run_asks_wandb_for_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    asked: dict[str, object] = {}

    def init(**options: object) -> None:
        asked.update(options)
        raise wandb.errors.UsageError("api_key not configured (no-tty).\nCall wandb.login()")

    monkeypatch.setattr(wandb, "init", init)
    tracker = Tracker(config_for(tmp_path / "run", wandb="online"), resumed=TrackerState(wandb_run_id="r1"))
    with pytest.raises(TrainingError) as caught, tracker:
        pass
    assert (asked["id"], asked["resume"], asked["mode"]) == ("r1", "allow", "online")
    assert str(caught.value) == (
        "W&B can't start the run: api_key not configured (no-tty). Call wandb.login(); "
        "or give --wandb disabled"
    )
    assert not (tmp_path / "run").exists()


def test_a_wandb_that_dies_does_not_end_the_run(tmp_path: Path, wandb_dir: Path) -> None:
    lines: list[str] = []
    with Tracker(config_for(tmp_path / "run", wandb="offline"), report=lines.append) as tracker:
        tracker.log_step(1, {"loss": object()})  # type: ignore[dict-item]  # what W&B refuses
        tracker.log_epoch(TEXT)
    assert len(lines) == 1
    assert lines[0].startswith("W&B stopped, the run goes on without it: ")
    assert len(read_history(tmp_path / "run")) == 1


def test_disabled_leaves_nothing_and_imports_nothing(tmp_path: Path, wandb_dir: Path) -> None:
    code = f"""
from pathlib import Path
import sys
from model_training.config import TrainConfig
from model_training.tracking import Tracker, check_wandb
light = not sys.modules.keys() & {{"wandb", "matplotlib", "tensorflow", "keras"}}
config = TrainConfig(Path("a"), Path("b"), artifact_dir=Path({str(tmp_path / "run")!r}))
check_wandb(config)
with Tracker(config) as tracker:
    tracker.log_step(1, {{"loss": 1.0}})
    tracker.log_epoch({{"epoch": 1, "loss": 1.0}})
    tracker.finish(config.artifact_dir)
print(light, *sys.modules.keys() & {{"wandb", "matplotlib.pyplot"}})
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("True\n", "")
    assert not any(wandb_dir.iterdir())


@pytest.mark.parametrize("left_behind", [False, True], ids=["", "with the folder of an earlier run"])
def test_without_wandb_its_run_is_refused(monkeypatch: pytest.MonkeyPatch, left_behind: bool) -> None:
    spec = ModuleSpec("wandb", None, is_package=True) if left_behind else None
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: spec)
    check_wandb(config_for(Path("run")))
    with pytest.raises(TrainingError, match=r"--wandb offline needs .* pip install 'batchcap\[train\]'"):
        check_wandb(config_for(Path("run"), wandb="offline"))
