"""The folder of a training run: what may be in it when a run starts, and what is cleared away.

It holds the run's own files beside those of the bundle; nothing else in it is ever touched.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from batchcap.captioner.bundle import may_be_replaced, remove_bundle
from batchcap.captioner.bundle_files import BUNDLE_FILES
from batchcap.errors import TrainingError, UsageError
from model_training.checkpoint import CHECKPOINT
from model_training.config import TrainConfig
from model_training.tracking import HISTORY, PLOT, SAMPLES, TRAINING

DEV_NAMES = "dev.txt"
_OF_RUNS = (DEV_NAMES, HISTORY, PLOT, SAMPLES, CHECKPOINT)
# Options that may differ when a run goes on: they change nothing of its result.
_FREE = {"resume", "overwrite", "cache_dir", "artifact_dir", "wandb", "wandb_project"}


def check_folder(config: TrainConfig) -> None:
    """Refuses a folder that the run must not write into.

    Raises:
        TrainingError: it holds another run or model, or something else altogether.
        UsageError: the run to go on with had other options.
    """
    folder = config.artifact_dir
    if not folder.exists():
        return
    if not may_be_replaced(folder):
        raise TrainingError(f"{folder} holds something that is no model; choose another --artifact_dir")
    # A run that failed before its first result has left nothing to protect but its options.
    if not any((folder / name).exists() for name in (HISTORY, CHECKPOINT, *BUNDLE_FILES)):
        return
    if config.resume:
        _check_options(config)
    elif not config.overwrite:
        raise TrainingError(
            f"{folder} holds another run; give --resume to go on with it, --overwrite to replace it,"
            " or another --artifact_dir"
        )


def clear_folder(folder: Path) -> None:
    """Deletes what another run has left, but for `training.json`, which the new one has written by now."""
    remove_bundle(folder)
    try:
        for name in _OF_RUNS:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise TrainingError(f"can't clear {folder}: {error.strerror or error}") from error


def _check_options(config: TrainConfig) -> None:
    path = config.artifact_dir / TRAINING
    if not path.exists():
        return
    # A run that began before there was an option did what its default says.
    defaults = _options(TrainConfig(config.data, config.captions))
    del defaults["data"], defaults["captions"]
    try:
        before = defaults | json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name, value in _options(config).items() if before[name] != value]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is damaged: {error}; start again with --overwrite") from error
    if changed:
        raise UsageError(
            f"the run in {config.artifact_dir} had other options: {', '.join(changed)}; give the same, or"
            " --overwrite"
        )


def _options(config: TrainConfig) -> dict[str, Any]:
    """The options that decide the result, as JSON has them."""
    options = {name: value for name, value in dataclasses.asdict(config).items() if name not in _FREE}
    return json.loads(json.dumps(options, default=str))  # type: ignore[no-any-return]
