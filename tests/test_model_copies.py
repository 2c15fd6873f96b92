"""A machine's copy of a model. That a copy captions as the model does, test_cluster.py finds out."""

import multiprocessing.pool
import tempfile
from pathlib import Path

import numpy as np
import pytest

from batchcap.errors import BundleError
from batchcap.model_copies import copies_folder, let_travel, write_copy
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
        pool.map(lambda _: write_copy(folder, SIZES, content_of), range(16))
    assert sorted(asked) == sorted(FILES)
    assert {path.name: path.read_bytes() for path in folder.glob("[!.]*")} == FILES


def test_what_a_cleaner_has_taken_is_written_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def content_of(name: str) -> np.ndarray:
        asked.append(name)
        return np.frombuffer(FILES[name], np.uint8)

    write_copy(tmp_path / "copy", SIZES, content_of)
    (tmp_path / "copy" / "config.json").unlink()
    (tmp_path / "copy" / "weights.safetensors").write_bytes(b"cut short")
    asked.clear()
    write_copy(tmp_path / "copy", SIZES, content_of)
    assert asked == ["config.json", "weights.safetensors"]
    assert (tmp_path / "copy" / "weights.safetensors").read_bytes() == FILES["weights.safetensors"]


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
