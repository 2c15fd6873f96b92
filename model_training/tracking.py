"""The record of a training run: files in its folder, and the same on Weights & Biases where that is wanted.

::

    training.json  every option, and what else is known from the start
    history.csv    a row an epoch
    history.png    the same to look at; needs matplotlib
    samples.html   a few photographs with their captions over the epochs

The files are renewed after every epoch, so that a run that is killed leaves them too. The only module that
imports wandb.
"""

import csv
import dataclasses
import importlib.util
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from PIL import Image

from batchcap.captioner.bundle_files import BUNDLE_FILES, replace_file
from batchcap.errors import TrainingError
from model_training import plots
from model_training.config import TrainConfig
from model_training.samples import Gallery, Sample

TRAINING, HISTORY, PLOT, SAMPLES = "training.json", "history.csv", "history.png", "samples.html"

# What goes to W&B as the model: by name, for a checkpoint is larger than all of it and of no use there.
_ARTIFACT = (*sorted(BUNDLE_FILES), "dev.txt", TRAINING, HISTORY, PLOT, SAMPLES)
# What W&B shows as the score of a run: its best, not its last.
_HIGHER_IS_BETTER = ("accuracy", "dev_accuracy", "dev_bleu_4", "dev_cider_d")


def check_wandb(config: TrainConfig) -> None:
    """Looks whether W&B is there if the run wants it.

    Raises:
        TrainingError: it is not installed.
    """
    if config.wandb == "disabled":
        return
    spec = importlib.util.find_spec("wandb")
    # The folder `wandb` that earlier runs left behind looks like a package, but without a file of its own.
    if spec is None or spec.origin is None:
        raise TrainingError(f"--wandb {config.wandb} needs Weights & Biases; pip install 'batchcap[train]'")


@dataclasses.dataclass(frozen=True, slots=True)
class TrackerState:
    """What a resumed run goes on from: plain values, the same again after a way through JSON.

    Args:
        history: a row an epoch.
        samples: the sample captions so far; see `Gallery.rows`.
        wandb_run_id: None for a run that was never on W&B.
    """

    history: list[dict[str, float | str]] = dataclasses.field(default_factory=list)
    samples: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    wandb_run_id: str | None = None


class Tracker:
    """Keeps the record of one run; a context manager.

    Args:
        config: the run's options; its `artifact_dir` is the folder of the files.
        details: what else belongs to the options, as the number of parameters.
        resumed: the state in a checkpoint, for a run that goes on.
        report: takes a line for people now and then.

    Raises:
        TrainingError: on entering, W&B can't start the run; on entering or later, a file can't be written.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        details: Mapping[str, Any] = {},
        resumed: TrackerState | None = None,
        report: Callable[[str], None] = print,
    ) -> None:
        self._config = config
        self._name = config.artifact_dir.resolve().name
        self._options = json.loads(json.dumps({**dataclasses.asdict(config), **details}, default=_json_value))
        self._report = report
        state = resumed or TrackerState()
        self._history = [dict(row) for row in state.history]
        self._gallery = Gallery.from_rows(state.samples)
        self._wandb_run_id = state.wandb_run_id
        self._wandb_run: Any = None
        self._sends = False
        self._plots = True
        self._defined: set[str] = set()

    def __enter__(self) -> Self:
        # W&B first: where it can't start, there is no run and there should be no folder.
        self._start_wandb()
        try:
            self._put(TRAINING, json.dumps(self._options, indent=2) + "\n")
            if not plots.can_plot():
                self._plots = False
                self._report(f"no {PLOT}: {plots.MISSING}")
            if self._history:
                self._put_history()
            if self._gallery:
                self._put(SAMPLES, self._gallery.page(self._name))
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._wandb_run is not None:
            self._sends = True
            self._send(lambda run: run.finish(exit_code=0 if error is None else 1))
            self._wandb_run = None

    @property
    def takes_steps(self) -> bool:
        """Whether anything becomes of `log_step`."""
        return self._sends

    def log_step(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the values of one training step; they go to W&B only, as `train/loss` and so on."""
        if self._sends:
            row = {f"train/{key.removeprefix('train/')}": value for key, value in values.items()}
            self._send(lambda run: run.log({"train/step": step, **row}))

    def log_epoch(self, scores: Mapping[str, float | str]) -> None:
        """Takes the scores of one epoch; keys may differ from epoch to epoch, numbers may be NumPy's."""
        row = {key: _plain(value) for key, value in scores.items()}
        self._history.append(row)
        self._put_history()
        for key in row.keys() - self._defined - {"epoch", "stage"}:
            self._send(partial(_define_metric, key))
            self._defined.add(key)
        self._send(lambda run: run.log(row))

    def log_samples(self, epoch: int, samples: Sequence[Sample]) -> None:
        """Takes what the network says of a few photographs after an epoch."""
        self._gallery.add(epoch, samples)
        self._put(SAMPLES, self._gallery.page(self._name))
        self._send(lambda run: run.log({"epoch": epoch, "samples": self._table(epoch, samples)}))

    def state(self) -> TrackerState:
        """What a checkpoint keeps, for `resumed` of another tracker."""
        return TrackerState([dict(row) for row in self._history], self._gallery.rows(), self._wandb_run_id)

    def finish(self, artifact_dir: Path) -> None:
        """Hands the finished bundle and the files of the run to W&B, as one model."""
        self._send(lambda run: self._log_artifact(run, artifact_dir))

    def _start_wandb(self) -> None:
        if self._config.wandb == "disabled":
            return
        try:
            # Only now: without tracking, nothing of W&B is imported, written or asked for.
            import wandb

            self._wandb_run = wandb.init(
                project=self._config.wandb_project,
                name=self._name,
                mode=self._config.wandb,
                config=self._options,
                id=self._wandb_run_id,
                resume="allow" if self._wandb_run_id is not None else None,
            )
            self._wandb_run_id = self._wandb_run.id
            # Steps and epochs are axes of their own: W&B's counter only ever rises, also in a run that
            # goes on from a checkpoint behind it.
            self._wandb_run.define_metric("train/*", step_metric="train/step")
        except Exception as error:  # No login, no network, a wrong project: W&B has a class for each.
            raise TrainingError(
                f"W&B can't start the run: {_one_line(error)}; or give --wandb disabled"
            ) from error
        self._sends = True

    def _send(self, send: Callable[[Any], object]) -> None:
        """Hands something to W&B; where that fails the run goes on, for its files have everything."""
        if not self._sends:
            return
        try:
            send(self._wandb_run)
        except Exception as error:  # Its own process died, its disk is full, a value that it refuses.
            self._sends = False
            self._report(f"W&B stopped, the run goes on without it: {_one_line(error)}")

    def _table(self, epoch: int, samples: Sequence[Sample]) -> Any:
        import wandb

        table = wandb.Table(columns=["epoch", "name", "image", "caption", "references"])
        for sample in samples:
            thumbnail, picture = self._gallery.thumbnail(sample.name), None
            if thumbnail is not None:
                with Image.open(io.BytesIO(thumbnail)) as image:
                    picture = wandb.Image(image, caption=sample.caption, file_type="jpg")
            table.add_data(epoch, sample.name, picture, sample.caption, "\n".join(sample.references))
        return table

    def _log_artifact(self, run: Any, artifact_dir: Path) -> None:
        import wandb

        # W&B takes no other characters in the name of an artifact.
        artifact = wandb.Artifact(re.sub(r"[^A-Za-z0-9_.-]", "-", self._name) or "model", type="model")
        for name in _ARTIFACT:
            if (artifact_dir / name).is_file():
                artifact.add_file(str(artifact_dir / name), name=name)
        run.log_artifact(artifact)

    def _put_history(self) -> None:
        columns = list(dict.fromkeys(key for row in self._history for key in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=columns)
        writer.writeheader()
        writer.writerows(self._history)
        self._put(HISTORY, text.getvalue())
        if self._plots:
            try:
                png = plots.to_png(plots.history_figure(self._history, self._name))
            except Exception as error:  # A broken matplotlib is no reason to lose hours of training.
                self._plots = False
                self._report(f"no {PLOT}: {_one_line(error)}")
            else:
                self._put(PLOT, png)

    def _put(self, name: str, content: str | bytes) -> None:
        # Names of files need not be UTF-8; on the page they are to be seen, not to be used.
        data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
        write_run_file(self._config.artifact_dir / name, data)


class SilentTracker(Tracker):
    """Keeps no record, for those workers of a cluster that are not its chief."""

    def __enter__(self) -> Self:
        return self

    def log_epoch(self, scores: Mapping[str, float | str]) -> None:
        """Forgets the scores."""

    def log_samples(self, epoch: int, samples: Sequence[Sample]) -> None:
        """Forgets the samples."""


def write_run_file(path: Path, content: bytes) -> None:
    """Writes a file of a run, whole or not at all; its folder is made.

    Raises:
        TrainingError: it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    except OSError as error:
        raise TrainingError(f"can't write {path}: {error.strerror or error}") from error


def _define_metric(key: str, run: Any) -> None:
    run.define_metric(key, step_metric="epoch", summary="max" if key in _HIGHER_IS_BETTER else None)


def _json_value(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def _plain(value: Any) -> float | str:
    """NumPy's and TensorFlow's numbers as Python's, which JSON and CSV know."""
    if isinstance(value, str):
        return value
    if hasattr(value, "item"):
        value = value.item()
    return value if isinstance(value, int) else float(value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
