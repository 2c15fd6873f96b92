"""The state of a run on disk, from which another process goes on as if nothing had happened.

One file, replaced as a whole: the variables of network and optimizer, bit for bit, and where the run stood.
Random numbers are part of it: dropout's seeds are variables, and the order of the data follows from the
run's seed and the epoch.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import safetensors
import safetensors.numpy

from batchcap.captioner.bundle_files import sync_folder, temporary
from batchcap.errors import TrainingError

CHECKPOINT = "checkpoint.safetensors"
_POSITION = "position"


def save_checkpoint(folder: Path, position: Mapping[str, Any], variables: Sequence[keras.Variable]) -> None:
    """Replaces the checkpoint of a run.

    Args:
        folder: the run's artifact_dir.
        position: where the run stands; plain JSON values.
        variables: everything that training changes, in an order that the next process can repeat.

    Raises:
        TrainingError: the file can't be written.
    """
    path = folder / CHECKPOINT
    staging = temporary(path)
    # Not ascontiguousarray, which makes a vector of a number.
    tensors = {
        _key(index): np.asarray(variable.numpy(), order="C") for index, variable in enumerate(variables)
    }
    try:
        safetensors.numpy.save_file(tensors, staging, metadata={_POSITION: json.dumps(position)})
        with open(staging, "rb") as file:
            os.fsync(file.fileno())
        os.replace(staging, path)
        sync_folder(folder)
    except (OSError, safetensors.SafetensorError) as error:
        staging.unlink(missing_ok=True)
        raise TrainingError(f"can't write the checkpoint {path}: {error}") from error


def read_position(folder: Path) -> dict[str, Any] | None:
    """Where a run stood at its last checkpoint; None if it has none.

    Raises:
        TrainingError: the checkpoint is damaged.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            position = json.loads((file.metadata() or {})[_POSITION])
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise damaged(path, error) from error
    if not isinstance(position, dict):
        raise damaged(path, "it does not say where the run stood")
    return position


def restore_checkpoint(folder: Path, variables: Sequence[keras.Variable]) -> None:
    """Fills in the variables of the checkpoint.

    Raises:
        TrainingError: the checkpoint is damaged, or of a network of another shape.
    """
    path = folder / CHECKPOINT
    try:
        tensors = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise damaged(path, error) from error
    shapes = {_key(index): tuple(variable.shape) for index, variable in enumerate(variables)}
    if shapes != {key: tensor.shape for key, tensor in tensors.items()}:
        raise damaged(path, "it is of a network of another shape")
    for index, variable in enumerate(variables):
        variable.assign(tensors[_key(index)])


def _key(index: int) -> str:
    return f"{index:05}"


def damaged(path: Path, reason: object) -> TrainingError:
    """The error for a checkpoint that can't be used."""
    return TrainingError(f"{path} is damaged: {reason}; start again with --overwrite")
