"""The process in which pictures are read and decoded, so that a picture can cost no more than itself.

A C decoder that crashes takes its process with it, and one that hangs can't be stopped from inside. So the
loading worker keeps this child and talks to it over a socket: a request is a list of uris, answered by one
`LoadedFile` after the other, so that the worker knows which file it waits for. Pixels lie in memory that both
share: through the socket they would take as long as decoding a small picture does. The worker may kill it at
any moment.

It is started as a plain Python process, not by multiprocessing: forking a Ray worker copies locks of threads
that the child does not have, and spawning from one imports Ray again in the child.
"""

import hashlib
import mmap
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from multiprocessing.connection import Connection

import numpy as np

from batchcap.captioner.images import DecodedImage, ImageSpec, decode, prepare
from batchcap.errors import ImageError, Reason
from batchcap.storage import content_hash, read_bytes
from batchcap.storage.ahead import Reader

# Files of one request: so many images have room in the shared memory.
MAX_FILES = 64
_PARENT_CHECK_S = 1.0
# Four times what pixels may take (captioner/images.py). What tags and comments become in Python is bounded by
# nothing else: of each of their bytes there may be twenty then.
_MAX_MEMORY_BYTES = 4 * 2**30


@dataclass(frozen=True, slots=True)
class LoadedFile:
    """What became of one file: either an image or a reason.

    Args:
        content_hash: sha256 of the bytes, in hex; None where they could not be read or were too many.
        image: None where the file can't be captioned.
        reason: why it can't.
        detail: one line about it.
    """

    content_hash: str | None = None
    image: DecodedImage | None = None
    reason: Reason | None = None
    detail: str = ""


def load_file(
    location: str | bytes, spec: ImageSpec, read: Callable[[str | bytes, int], bytes] = read_bytes
) -> LoadedFile:
    """Reads, hashes and decodes one file; whatever is wrong with it becomes a reason.

    Args:
        location: the uri of a file, or the path of a local one.
        spec: the pictures that are wanted.
        read: as `storage.read_bytes`.
    """
    try:
        data = read(location, spec.max_bytes)
    except OSError as error:
        return LoadedFile(reason=Reason.IO_ERROR, detail=error.strerror or str(error))
    except ImageError as error:
        return LoadedFile(reason=error.reason, detail=error.detail)
    if len(data) > spec.max_bytes:
        return LoadedFile(reason=Reason.TOO_LARGE, detail=f"more than {spec.max_bytes} bytes")
    content_hash = hashlib.sha256(data).hexdigest()
    try:
        return LoadedFile(content_hash, decode(data, spec))
    except ImageError as error:
        return LoadedFile(content_hash, reason=error.reason, detail=error.detail)


def hash_file(
    location: str | bytes, spec: ImageSpec, read: Callable[[str | bytes, int], bytes] = read_bytes
) -> LoadedFile:
    """Reads and hashes one file; what can't be read has neither hash nor reason, which `load_file` gives.

    Args:
        location: the uri of a file, or the path of a local one.
        spec: the pictures that are wanted.
        read: as `storage.read_bytes`.
    """
    return LoadedFile(content_hash(location, spec.max_bytes, read))


# The arguments of a `DecodedImage` but its pixels.
Facts = tuple[int, int, str, datetime | None, str | None, float | None, float | None]
Message = tuple[str | None, Facts | None, Reason | None, str]


def to_message(loaded: LoadedFile) -> Message:
    """What goes through the socket: all but the pixels, in plain tuples, which take a third of the time."""
    image = loaded.image
    facts: Facts | None = None
    if image is not None:
        facts = (
            image.width,
            image.height,
            image.format,
            image.taken_at,
            image.camera,
            image.latitude,
            image.longitude,
        )
    return loaded.content_hash, facts, loaded.reason, loaded.detail


def from_message(message: Message, pixels: np.ndarray) -> LoadedFile:
    """The file again.

    Args:
        message: what `to_message` made of it.
        pixels: its row of the shared memory, which will be used again.
    """
    content_hash, facts, reason, detail = message
    return LoadedFile(content_hash, facts and DecodedImage(pixels.copy(), *facts), reason, detail)


def shared_bytes(spec: ImageSpec) -> int:
    """The size of the memory that holds the pixels of an answer."""
    return MAX_FILES * spec.image_size**2 * 3


def shared_pixels(memory: mmap.mmap, spec: ImageSpec) -> np.ndarray:
    """The shared memory as uint8[MAX_FILES, image_size, image_size, 3]."""
    return np.frombuffer(memory, np.uint8).reshape(MAX_FILES, spec.image_size, spec.image_size, 3)


def serve(connection: Connection, memory_fd: int) -> None:
    """Answers requests until the other side closes the connection.

    Args:
        connection: the first thing it brings is the spec, then come requests: at most `MAX_FILES` uris or
            paths, and whether they are only to be hashed. Each file is answered as `to_message` says.
        memory_fd: descriptor of the shared memory.
    """
    spec: ImageSpec = connection.recv()
    pixels = shared_pixels(mmap.mmap(memory_fd, shared_bytes(spec)), spec)
    # Not on the time of the first file, which is limited.
    prepare()
    connection.send("ready")
    reader = Reader()
    while True:
        try:
            locations, only_hash = connection.recv()
        except EOFError:
            return
        reader.begin(locations, spec.max_bytes)
        for row, location in enumerate(locations):
            loaded = (hash_file if only_hash else load_file)(location, spec, reader.read_bytes)
            if loaded.image is not None:
                pixels[row] = loaded.image.pixels
            connection.send(to_message(loaded))


def _limit_memory() -> None:
    """Whoever asks for more gets a MemoryError, or crashes; where the system doesn't count it, neither."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, _MAX_MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _exit_with_parent() -> None:
    """A child whose parent was killed while it decoded would otherwise go on."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os._exit(1)


def main() -> None:
    """The child: its arguments are the file descriptors of the socket and of the shared memory."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    # A picture that crashes it is no reason to write hundreds of megabytes.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory()
    serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
