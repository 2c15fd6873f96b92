"""The names of a bundle's files, and how single files of it are read and written. No TensorFlow."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchcap.errors import BundleError

CONFIG = "config.json"
VOCABULARY = "vocabulary.txt"
WEIGHTS = "weights.safetensors"
GENERATION = "generation.json"
CALIBRATION = "calibration.json"
METRICS = "metrics.json"
MODEL_CARD = "README.md"

# In the order in which `remove_bundle` deletes them: without weights nothing is a bundle any more, and
# CONFIG, by which a bundle is known, goes last, so that a removal that was cut short can be repeated.
BUNDLE_FILES = (WEIGHTS, CALIBRATION, GENERATION, METRICS, MODEL_CARD, VOCABULARY, CONFIG)


def temporary(path: Path) -> Path:
    """Where the new content of a file is written first; always the same name, so that nothing piles up."""
    return path.with_name(f".{path.name}.tmp")


def write_temporary(path: Path, content: bytes) -> None:
    """Writes the new content of a file beside it, down to the disk; `os.replace` then puts it in place.

    Raises:
        OSError: it can't be written.
    """
    with open(temporary(path), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Makes what was renamed and deleted in a folder last, before anything else is done there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Puts new content in a file's place: whole or not at all.

    Raises:
        OSError: it can't be written.
    """
    try:
        write_temporary(path, content)
        os.replace(temporary(path), path)
    finally:
        temporary(path).unlink(missing_ok=True)
    sync_folder(path.parent)


def to_json(values: Mapping[str, Any]) -> bytes:
    """Some values as a JSON file has them."""
    return (json.dumps(values, indent=2) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file of one JSON object.

    Raises:
        BundleError: it is missing or damaged; the message names it.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    # Brackets without end in a file that is none of ours.
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is missing or damaged: {error}") from error
    if not isinstance(values, dict):
        raise BundleError(f"{path} is damaged: not a JSON object")
    return values
