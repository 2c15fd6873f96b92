"""Fixtures of the tests of training."""

import gc
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def keep_wandb_in(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Makes a folder where W&B is to keep everything."""
    folder.mkdir()
    for variable in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        patch.setenv(variable, str(folder))


@contextmanager
def uncompiled() -> Iterator[None]:
    """TensorFlow compiles nothing here: the few steps that a test takes are sooner done than compiled."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@pytest.fixture
def wandb_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where W&B keeps everything in a test; its process and its threads end with the test."""
    path = tmp_path / "wandb"
    keep_wandb_in(path, monkeypatch)
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield path
    if "wandb" in sys.modules:
        with warnings.catch_warnings():
            # Its artifacts leave their temporary folders to the garbage collector.
            warnings.simplefilter("ignore", ResourceWarning)
            sys.modules["wandb"].teardown()
            gc.collect()
