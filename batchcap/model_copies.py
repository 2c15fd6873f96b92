"""A model on machines that don't have its folder: each machine of a cluster gets its files once.

The driver puts them into Ray's object store. The first worker of a machine that needs the model writes them
into a folder there, named after the model's fingerprint, and all others find them in it. Workers of a later
run remove what nobody has used for a day.
"""

import contextlib
import dataclasses
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import ray

from batchcap.captioner.images import ImageSpec
from batchcap.captioner.protocol import CaptionerProtocol, CaptionerSource, vector_size
from batchcap.errors import BundleError

# A copy that was used later than that is kept: the same model may be on its way here again.
_UNUSED_S = 24 * 3600.0
# How the name of a folder begins that is being removed.
_REMOVED = ".removed-"


@runtime_checkable
class FilesSource(CaptionerSource, Protocol):
    """A captioner that is loaded from the files of a folder; a dataclass, of which `path` is a field."""

    @property
    def path(self) -> Path:
        """The folder."""
        ...

    def files(self) -> list[str]:
        """The names of the files in it."""
        ...


@dataclasses.dataclass(frozen=True)
class TravellingSource:
    """A captioner whose files travel with it.

    Args:
        source: as it was opened on the driver's machine.
        model_fingerprint: of it.
        sizes: bytes of each file, by name.
        contents: uint8[bytes] of each file, in Ray's object store.
    """

    source: FilesSource
    model_fingerprint: str
    sizes: Mapping[str, int]
    contents: Mapping[str, "ray.ObjectRef[np.ndarray]"]

    @property
    def name(self) -> str:
        """What people call the model."""
        return self.source.name

    @property
    def image_spec(self) -> ImageSpec:
        """The pictures that the model takes."""
        return self.source.image_spec

    @property
    def vector_size(self) -> int | None:
        """Numbers of the vectors of images, if it gives any."""
        return vector_size(self.source)

    def fingerprint(self) -> str:
        """The fingerprint of the model."""
        return self.model_fingerprint

    def describe(self) -> dict[str, Any]:
        """The model's configuration, for the record."""
        return self.source.describe()

    def load_captioner(self, *, batch_size: int, num_threads: int) -> CaptionerProtocol:
        """Loads the captioner from this machine's copy, which is made first if need be.

        Raises:
            BundleError: the copy can't be written, or is damaged.
        """
        return self.copied().load_captioner(batch_size=batch_size, num_threads=num_threads)

    def copied(self) -> CaptionerSource:
        """The model as this machine has it; its copy is made first if need be.

        Raises:
            BundleError: it can't be written.
        """
        folder = copies_folder() / self.model_fingerprint
        try:
            remove_old_copies(folder.parent)
            # Never closed: it goes with the worker, however that ends.
            use_copy(folder, self.sizes, lambda name: ray.get(self.contents[name]))
        except OSError as error:
            raise BundleError(f"the model can't be copied to {folder}: {error}") from error
        copied: CaptionerSource = dataclasses.replace(self.source, path=folder)  # type: ignore[type-var]
        return copied


def let_travel(source: CaptionerSource, fingerprint: str) -> CaptionerSource:
    """Puts a model's files where every machine of the cluster gets them.

    Args:
        source: the model. One that isn't made of files goes as it is.
        fingerprint: of it.

    Raises:
        BundleError: a file can't be read.
    """
    if not isinstance(source, FilesSource):
        return source
    sizes, contents = {}, {}
    for name in source.files():
        try:
            # An array: a worker reads it where it lies in the object store, without a copy of its own.
            content = np.fromfile(source.path / name, np.uint8)
        except OSError as error:
            raise BundleError(f"{source.path / name} can't be read: {error}") from error
        sizes[name], contents[name] = len(content), ray.put(content)
    return TravellingSource(source, fingerprint, sizes, contents)


def copies_folder() -> Path:
    """Where this machine keeps copies of models; nobody else can write there.

    Raises:
        BundleError: it belongs to somebody else.
    """
    folder = Path(tempfile.gettempdir()) / f"batchcap-models-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or folder.is_symlink() or found.st_mode & 0o022:
        raise BundleError(f"{folder} is for copies of models, but others may write there; remove it")
    return folder


def use_copy(folder: Path, sizes: Mapping[str, int], content_of: Callable[[str], np.ndarray]) -> int:
    """Writes the files of a model that are missing in its copy; the first to come does, the others wait.

    Args:
        folder: of the copy.
        sizes: bytes of each file, by name.
        content_of: the content of a file by its name, as uint8[bytes].

    Returns:
        A descriptor: until it is closed, at the latest by the end of the process, the copy is in use.

    Raises:
        OSError: they can't be written.
    """
    in_use = _hold(folder)
    with open(folder / ".lock", "wb") as lock:
        # Let go when the file is closed, also by the end of a worker that is killed.
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name, size in sizes.items():
            path = folder / name
            if path.is_file() and path.stat().st_size == size:
                continue
            content_of(name).tofile(folder / ".tmp")
            os.replace(folder / ".tmp", path)
    return in_use


def remove_old_copies(folder: Path, now: float | None = None) -> None:
    """Removes the copies that no process uses and that none has begun to use for a day.

    Other processes may be at the same, or come for a copy that is just being removed: they write it again.

    Args:
        folder: of all copies.
        now: seconds since 1970; None for the clock's.

    Raises:
        OSError: the folder can't be read. A copy that can't be removed is left.
    """
    now = time.time() if now is None else now
    for copy in list(folder.iterdir()):
        # One without a name that anybody looks for: whoever began to remove it was killed.
        if copy.name.startswith(_REMOVED):
            shutil.rmtree(copy, ignore_errors=True)
            continue
        with contextlib.suppress(OSError):
            if now - copy.stat().st_mtime < _UNUSED_S or not copy.is_dir():
                continue
            descriptor = os.open(copy, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Whoever waits for the lock now finds that the folder has lost its name.
                removed = folder / f"{_REMOVED}{os.getpid()}-{copy.name}"
                if _is_still(descriptor, copy):
                    os.rename(copy, removed)
                    shutil.rmtree(removed, ignore_errors=True)
            finally:
                os.close(descriptor)


def _hold(folder: Path) -> int:
    """Makes the folder, if need be, and keeps it from being removed while the descriptor is open."""
    while True:
        folder.mkdir(exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if _is_still(descriptor, folder):
            os.utime(folder)
            return descriptor
        os.close(descriptor)


def _is_still(descriptor: int, folder: Path) -> bool:
    """Whether a folder that was opened still has its name."""
    try:
        named = os.stat(folder)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), named)
