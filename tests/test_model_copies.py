"""A machine's copy of a model. That a copy captions as the model does, test_cluster.py finds out."""

import fcntl
import multiprocessing.pool
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchcap.errors import BundleError
from batchcap.model_copies import copies_folder, let_travel, remove_old_copies, use_copy
from tests.costless import Costless

FILES = {"config.json": b"{}", "weights.safetensors": bytes(range(256)) * 400, "README.md": b""}
SIZES = {name: len(content) for name, content in FILES.items()}


def test_files_are_written_once_whoever_comes(tmp_path: Path) -> None:
    asked: list[str] = []

    def content_of(name: str) -> np.ndarray:
        asked.append(name)
        return np.frombuffer(FILES[name], np.uint8)

    folder = tmp_path / "fingerprint"
    with multiprocessing.pool.ThreadPool(8) as pool:
        pool.map(lambda _: os.close(use_copy(folder, SIZES, content_of)), range(16))
    assert sorted(asked) == sorted(FILES)
    assert {path.name: path.read_bytes() for path in folder.glob("[!.]*")} == FILES


def test_what_a_cleaner_has_taken_is_written_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def content_of(name: str) -> np.ndarray:
        asked.append(name)
        return np.frombuffer(FILES[name], np.uint8)

    os.close(use_copy(tmp_path / "copy", SIZES, content_of))
    (tmp_path / "copy" / "config.json").unlink()
    (tmp_path / "copy" / "weights.safetensors").write_bytes(b"cut short")
    asked.clear()
    os.close(use_copy(tmp_path / "copy", SIZES, content_of))
    assert asked == ["config.json", "weights.safetensors"]
    assert (tmp_path / "copy" / "weights.safetensors").read_bytes() == FILES["weights.safetensors"]


def content(name: str) -> np.ndarray:
    return np.frombuffer(FILES[name], np.uint8)


def test_copies_that_nobody_used_for_a_day_are_removed(tmp_path: Path) -> None:
    in_use = {name: use_copy(tmp_path / name, SIZES, content) for name in ("old", "in use", "new")}
    used_at = (tmp_path / "old").stat().st_mtime
    for name in ("old", "new"):
        os.close(in_use[name])
    os.utime(tmp_path / "new", (used_at + 60, used_at + 60))
    # One whose removal was cut short, and something else.
    (tmp_path / ".removed-1-x" / "deep").mkdir(parents=True)
    (tmp_path / "notes.txt").touch()
    os.utime(tmp_path / "notes.txt", (0, 0))
    day = 24 * 3600
    remove_old_copies(tmp_path, used_at + day - 1)
    assert {path.name for path in tmp_path.iterdir()} == {"old", "in use", "new", "notes.txt"}
    remove_old_copies(tmp_path, used_at + day + 1)
    assert {path.name for path in tmp_path.iterdir()} == {"in use", "new", "notes.txt"}
    assert (tmp_path / "in use" / "config.json").read_bytes() == b"{}"
    os.close(in_use["in use"])
    # Whoever uses a copy makes it new again.
    os.close(use_copy(tmp_path / "new", SIZES, content))
    os.utime(tmp_path / "in use", (0, 0))
    remove_old_copies(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "notes.txt"}


def test_who_comes_for_a_copy_that_is_being_removed_writes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    os.close(use_copy(folder, SIZES, content))
    (folder / "README.md").unlink()
    flock, calls = fcntl.flock, []

    def removed_first(descriptor: Any, operation: int) -> None:
        calls.append(operation)
        if operation == fcntl.LOCK_SH and calls.count(operation) == 1:
            # The folder was opened, and is gone before it could be held.
            folder.rename(tmp_path / ".removed-2-copy")
            shutil.rmtree(tmp_path / ".removed-2-copy")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    os.close(use_copy(folder, SIZES, content))
    assert calls.count(fcntl.LOCK_SH) == 2
    assert {path.name: path.read_bytes() for path in folder.glob("[!.]*")} == FILES


def test_copies_are_where_nobody_else_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = copies_folder()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert copies_folder() == folder
    folder.chmod(0o777)
    with pytest.raises(BundleError, match="others may write there; remove it"):
        copies_folder()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(BundleError, match="others may write there; remove it"):
        copies_folder()


def test_a_captioner_without_files_goes_as_it_is() -> None:
    assert let_travel(Costless(), "f") == Costless()
