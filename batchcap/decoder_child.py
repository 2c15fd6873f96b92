"""The process in which pictures are read and decoded, so that a picture can cost no more than itself.

A C decoder that crashes takes its process with it, and one that hangs can't be stopped from inside. So the
loading worker keeps this child and talks to it over a socket: a request is a list of paths, the answer a
list of `LoadedFile`. The worker may kill it at any moment.

It is started as a plain Python process, not by multiprocessing: forking a Ray worker copies locks of threads
that the child does not have, and spawning from one imports Ray again in the child.
"""

import hashlib
import os
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

from batchcap.captioner.images import DecodedImage, ImageSpec, decode
from batchcap.errors import ImageError, Reason

_PARENT_CHECK_S = 1.0


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


def load_file(path: str | bytes, spec: ImageSpec) -> LoadedFile:
    """Reads, hashes and decodes one file; whatever is wrong with it becomes a reason."""
    try:
        with open(path, "rb") as file:
            # One byte more than allowed tells a file that is too large, however large it is.
            data = file.read(spec.max_bytes + 1)
    except OSError as error:
        return LoadedFile(reason=Reason.IO_ERROR, detail=error.strerror or str(error))
    if len(data) > spec.max_bytes:
        return LoadedFile(reason=Reason.TOO_LARGE, detail=f"more than {spec.max_bytes} bytes")
    content_hash = hashlib.sha256(data).hexdigest()
    try:
        return LoadedFile(content_hash, decode(data, spec))
    except ImageError as error:
        return LoadedFile(content_hash, reason=error.reason, detail=error.detail)


def serve(connection: Connection) -> None:
    """Answers requests until the other side closes the connection."""
    spec: ImageSpec = connection.recv()
    connection.send("ready")
    while True:
        try:
            paths = connection.recv()
        except EOFError:
            return
        connection.send([load_file(path, spec) for path in paths])


def _exit_with_parent() -> None:
    """A child whose parent was killed while it decoded would otherwise go on."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os._exit(1)


def main() -> None:
    """The child: its one argument is the number of the socket's file descriptor."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    serve(Connection(int(sys.argv[1])))
