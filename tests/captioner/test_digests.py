"""The sha256 of files: right, also where it is not computed."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from batchcap.captioner.digests import sha256_of

LARGE = 9 * 1024**2
LONG_AGO = 1_600_000_000
FALSE = "0" * 64


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Instead of the user's own cache."""
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: tmp_path / "cache")
    # The time of a file's inode can't be set, but the clock's reading can: here every file has settled.
    monkeypatch.setattr("time.time_ns", lambda: 2**62)
    return tmp_path / "cache"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_file(path: Path, first: bytes = b"a", size: int = LARGE) -> Path:
    path.write_bytes(first + bytes(size - 1))
    return path


def falsify(cache: Path) -> None:
    """Makes what is remembered of the one file wrong: whoever answers so has not read the file."""
    (memory,) = cache.rglob("*.json")
    memory.write_text(json.dumps(json.loads(memory.read_text()) | {"sha256": FALSE}))


def test_a_large_file_is_read_once(tmp_path: Path, cache: Path) -> None:
    path = make_file(tmp_path / "weights")
    assert sha256_of(path) == digest(path)
    falsify(cache)
    assert sha256_of(path) == FALSE
    (tmp_path / "link").symlink_to(path)
    assert sha256_of(tmp_path / "link") == FALSE


def test_a_small_file_is_always_read(tmp_path: Path, cache: Path) -> None:
    path = make_file(tmp_path / "config", size=100)
    assert sha256_of(path) == digest(path)
    assert not cache.exists()


def test_a_changed_file_is_read_again(tmp_path: Path, cache: Path) -> None:
    path = make_file(tmp_path / "weights")
    os.utime(path, (LONG_AGO, LONG_AGO))
    sha256_of(path)
    falsify(cache)
    make_file(path, b"b")
    os.utime(path, (LONG_AGO, LONG_AGO))  # as a copy that keeps times would leave it
    assert sha256_of(path) == digest(path) != FALSE
    other = make_file(tmp_path / "other", b"c")
    os.utime(other, (LONG_AGO, LONG_AGO))
    falsify(cache)
    os.replace(other, path)
    assert sha256_of(path) == digest(path)


def test_a_file_that_is_still_being_written_is_not_remembered(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_file(tmp_path / "weights")
    monkeypatch.setattr("time.time_ns", lambda: path.stat().st_mtime_ns + 1_000)
    assert sha256_of(path) == digest(path)
    assert not cache.exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", "no JSON", '{"sha256": 1}', "[" * 10_000])
def test_a_damaged_memory_is_replaced(content: str, tmp_path: Path, cache: Path) -> None:
    path = make_file(tmp_path / "weights")
    sha256_of(path)
    (memory,) = cache.rglob("*.json")
    good = memory.read_text()
    memory.write_text(content)
    assert sha256_of(path) == digest(path)
    assert memory.read_text() == good
    assert list(memory.parent.iterdir()) == [memory]


def test_a_cache_that_can_not_be_written_is_done_without(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file where a folder should be")
    path = make_file(tmp_path / "weights")
    assert sha256_of(path) == digest(path)


def test_the_hub_has_named_its_large_files(tmp_path: Path) -> None:
    path = make_file(tmp_path / "weights")
    blobs = tmp_path / "models--an--example" / "blobs"
    blobs.mkdir(parents=True)
    shutil.copy(path, blobs / digest(path))
    assert sha256_of(blobs / digest(path)) == digest(path)
    # Nobody reads it: it may be of gigabytes.
    (blobs / FALSE).touch()
    (tmp_path / "link").symlink_to(blobs / FALSE)
    assert sha256_of(tmp_path / "link") == FALSE
    # Small files have another kind of name there, and elsewhere a name says nothing.
    small = make_file(blobs / ("a" * 40), size=10)
    assert sha256_of(small) == digest(small)
    elsewhere = make_file(tmp_path / FALSE, size=10)
    assert sha256_of(elsewhere) == digest(elsewhere)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sha256_of(tmp_path / "nothing")
