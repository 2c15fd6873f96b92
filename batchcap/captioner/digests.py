"""The sha256 of large files, without reading them again each time. Imports nothing heavy."""

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from pathlib import Path

import platformdirs

# Hashing this much takes some 10 ms: not worth a file in the user's cache.
_WORTH_REMEMBERING_BYTES = 8 * 1024**2
# A file that has just been written can be written again without a change of its times, which are coarse.
_SETTLED_NS = 2_000_000_000
_SHA256 = re.compile(r"[0-9a-f]{64}")


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, in hex.

    A file of gigabytes is read once, not at every call:

    - in the cache of the Hugging Face hub, large files are stored under the sha256 that the hub gives them,
      and links lead there: the name is the answer;
    - any other file from 8 MiB on is hashed once, and the answer kept in the user's cache directory, beside
      the file's size, its inode and the times of its last changes. A file for which one of them differs is
      hashed again. (Copying over it with old times kept changes the time of its inode.)

    Raises:
        OSError: the file can't be read.
    """
    resolved = path.resolve(strict=True)
    if _is_hub_blob(resolved):
        return resolved.name
    identity = _identity(resolved)
    if identity["size_bytes"] < _WORTH_REMEMBERING_BYTES:
        return _hash(resolved)
    memory = _memory_of(resolved)
    digest = _recall(memory, identity)
    if digest is None:
        digest = _hash(resolved)
        is_settled = time.time_ns() - max(identity["mtime_ns"], identity["ctime_ns"]) > _SETTLED_NS
        if is_settled and _identity(resolved) == identity:
            _remember(memory, identity, digest)
    return digest


def _is_hub_blob(path: Path) -> bool:
    folder = path.parent
    return (
        folder.name == "blobs"
        and folder.parent.name.startswith("models--")
        and _SHA256.fullmatch(path.name) is not None
    )


def _identity(path: Path) -> dict[str, int]:
    status = path.stat()
    return {
        "size_bytes": status.st_size,
        "inode": status.st_ino,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
    }


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _memory_of(path: Path) -> Path:
    """Where the answer for a file is kept: one small file for each, so that nobody waits for a lock."""
    name = hashlib.sha256(os.fsencode(path)).hexdigest()
    return platformdirs.user_cache_path("batchcap", appauthor=False) / "sha256" / f"{name}.json"


def _recall(memory: Path, identity: dict[str, int]) -> str | None:
    """None where there is no answer, or one for another state of the file, or a damaged one."""
    try:
        kept = json.loads(memory.read_bytes())
        digest = kept.pop("sha256")
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return None
    is_good = kept == identity and isinstance(digest, str) and _SHA256.fullmatch(digest)
    return digest if is_good else None


def _remember(memory: Path, identity: dict[str, int], digest: str) -> None:
    # A cache that can't be written costs time, nothing else.
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=memory.parent)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump({**identity, "sha256": digest}, file)
            os.replace(temporary, memory)
        except BaseException:
            os.unlink(temporary)
            raise
