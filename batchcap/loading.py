"""Locations -> pixels, in a process that may crash or hang without taking anything else along."""

import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

from batchcap.captioner.images import ImageSpec
from batchcap.decoder_child import LoadedFile
from batchcap.errors import PipelineError, Reason

DEFAULT_DECODE_TIMEOUT_S = 60.0
_START_TIMEOUT_S = 120.0
_START_CHILD = "from batchcap.decoder_child import main; main()"


class ImageLoader:
    """Loads files in a child process that is killed and replaced when it crashes or takes too long.

    A batch goes to the child at once. If the child dies or is late, the batch goes again file by file, and
    the culprit alone fails.

    Args:
        spec: the pictures that the model takes.
        decode_timeout_s: how long one file may take.
    """

    def __init__(self, spec: ImageSpec, decode_timeout_s: float = DEFAULT_DECODE_TIMEOUT_S) -> None:
        self._spec = spec
        self._decode_timeout_s = decode_timeout_s
        self._child: _Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Ray drops its workers without a word to them.
        self.close()

    def load(self, paths: Sequence[str | bytes]) -> list[LoadedFile]:
        """Reads and decodes files.

        Args:
            paths: of local files.

        Returns:
            What became of each, in their order; never an exception for a bad file.
        """
        if not paths:
            return []
        try:
            return self._request(paths)
        except (EOFError, OSError, TimeoutError) as error:
            if len(paths) > 1:
                return [loaded for path in paths for loaded in self.load([path])]
            if isinstance(error, TimeoutError):
                detail = f"reading and decoding it took more than {self._decode_timeout_s:g} s"
                return [LoadedFile(reason=Reason.TIMEOUT, detail=detail)]
            return [LoadedFile(reason=Reason.WORKER_CRASH, detail="decoding it crashed the decoder")]

    def close(self) -> None:
        """Ends the child."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _request(self, paths: Sequence[str | bytes]) -> list[LoadedFile]:
        """Sends one request; without a good answer in time the child is killed and the error raised."""
        if self._child is None:
            self._child = _Child(self._spec)
        connection = self._child.connection
        try:
            connection.send(list(paths))
            # The whole batch gets the time of one file: files are fast, and a slow batch is tried one by one.
            if not connection.poll(self._decode_timeout_s):
                raise TimeoutError
            loaded: list[LoadedFile] = connection.recv()
        except BaseException:
            self.close()
            raise
        return loaded


class _Child:
    """A running decoder process and the connection to it."""

    def __init__(self, spec: ImageSpec) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())
        try:
            with theirs:
                self._process = subprocess.Popen(
                    # Not `-m`: classes that the child sends must not be of its `__main__`.
                    [sys.executable, "-c", _START_CHILD, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    # The C libraries write warnings about damaged files there.
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            self.connection.send(spec)
            if not self.connection.poll(_START_TIMEOUT_S):
                raise TimeoutError
            self.connection.recv()
        except (EOFError, OSError) as error:
            # Not the fault of any picture: without this, every one of them would be quarantined.
            self.kill()
            raise PipelineError("the process that decodes pictures can't be started") from error

    def kill(self) -> None:
        """Ends the process; it may be dead already, or not even started."""
        self.connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
