"""Locations -> pixels, in a process that may crash or hang without taking anything else along."""

import mmap
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

from batchcap.captioner.images import ImageSpec
from batchcap.decoder_child import MAX_FILES, LoadedFile, from_message, shared_bytes, shared_pixels
from batchcap.errors import PipelineError, Reason

DEFAULT_DECODE_TIMEOUT_S = 60.0
_START_TIMEOUT_S = 120.0
_START_CHILD = "from batchcap.decoder_child import main; main()"


class ImageLoader:
    """Loads files in a child process that is killed and replaced when it crashes or takes too long.

    A batch goes to the child at once, and the child answers file by file. If it dies or is late, the file
    that it was at is tried once more, in a new child that no other file can have harmed; if that fails too,
    this file alone has failed.

    Args:
        spec: the pictures that the model takes.
        decode_timeout_s: how long one file may take.
    """

    def __init__(self, spec: ImageSpec, decode_timeout_s: float = DEFAULT_DECODE_TIMEOUT_S) -> None:
        self._spec = spec
        self._decode_timeout_s = decode_timeout_s
        self._child: _Child | None = None
        self._is_stopped = False

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

    def load(self, locations: Sequence[str | bytes]) -> list[LoadedFile]:
        """Reads and decodes files.

        Args:
            locations: uris of files, or paths of local ones.

        Returns:
            What became of each, in their order; never an exception for a bad file.

        Raises:
            PipelineError: it was stopped.
        """
        return self._in_requests(locations, only_hash=False)

    def hash(self, locations: Sequence[str | bytes]) -> list[LoadedFile]:
        """Reads and hashes files, and decodes none.

        Args:
            locations: uris of files, or paths of local ones.

        Returns:
            The hash of each, in their order; a reason for one that took too long or ended the child. What
            can't be read otherwise has neither: `load` says what is wrong with it.

        Raises:
            PipelineError: it was stopped.
        """
        return self._in_requests(locations, only_hash=True)

    def close(self) -> None:
        """Ends the child; one that is needed again is started again."""
        self._end_child()

    def stop(self) -> None:
        """Ends the child for good; another thread may do it while this one loads files."""
        self._is_stopped = True
        self._end_child()

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()

    def _in_requests(self, locations: Sequence[str | bytes], *, only_hash: bool) -> list[LoadedFile]:
        loaded: list[LoadedFile] = []
        for start in range(0, len(locations), MAX_FILES):
            loaded += self._load(locations[start : start + MAX_FILES], only_hash)
        return loaded

    def _load(self, locations: Sequence[str | bytes], only_hash: bool) -> list[LoadedFile]:
        """Loads or hashes at most `MAX_FILES` files."""
        loaded: list[LoadedFile] = []
        is_second_try = False
        while len(loaded) < len(locations):
            found, failure = self._request(locations[len(loaded) :], only_hash)
            loaded += found
            if failure is not None and is_second_try and not found:
                loaded.append(failure)
                failure = None
            is_second_try = failure is not None
        return loaded

    def _request(
        self, locations: Sequence[str | bytes], only_hash: bool
    ) -> tuple[list[LoadedFile], LoadedFile | None]:
        """Sends one request.

        Returns:
            What was answered, and what is wrong with the file after the last answer, unless all is well: then
            the child is gone.
        """
        child = self._child
        if child is None and not self._is_stopped:
            child = self._child = _Child(self._spec)
        # Asked again: the one who stops it may have come while the child started.
        if child is None or self._is_stopped:
            self._end_child()
            raise PipelineError("loading was stopped")
        found: list[LoadedFile] = []
        doing = "reading" if only_hash else "reading and decoding"
        try:
            child.connection.send((list(locations), only_hash))
            while len(found) < len(locations):
                if not child.connection.poll(self._decode_timeout_s):
                    raise TimeoutError
                found.append(child.take(row=len(found)))
        except TimeoutError:
            self._end_child()
            detail = f"{doing} it took more than {self._decode_timeout_s:g} s"
            return found, LoadedFile(reason=Reason.TIMEOUT, detail=detail)
        except (EOFError, OSError):
            self._end_child()
            detail = f"{doing.rpartition(' ')[2]} it crashed the decoder"
            return found, LoadedFile(reason=Reason.WORKER_CRASH, detail=detail)
        except BaseException:
            self._end_child()
            raise
        return found, None


class _Child:
    """A running decoder process, the connection to it, and the memory in which it leaves pixels.

    Each has a memory of its own: what one that is to be killed may still write meets nobody.
    """

    def __init__(self, spec: ImageSpec) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())
        memory_fd = _anonymous_file()
        try:
            os.ftruncate(memory_fd, shared_bytes(spec))
            self.pixels = shared_pixels(mmap.mmap(memory_fd, shared_bytes(spec)), spec)
            with theirs:
                descriptors = [theirs.fileno(), memory_fd]
                self._process = subprocess.Popen(
                    # Not `-m`: classes that the child sends must not be of its `__main__`.
                    [sys.executable, "-c", _START_CHILD, *map(str, descriptors)],
                    pass_fds=descriptors,
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
        finally:
            os.close(memory_fd)  # both have it mapped

    def take(self, row: int) -> LoadedFile:
        """The next answer."""
        return from_message(self.connection.recv(), self.pixels[row])

    def kill(self) -> None:
        """Ends the process; it may be dead already, or not even started."""
        # First, for its end wakes a thread that waits for its answer.
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.connection.close()


def _anonymous_file() -> int:
    """The descriptor of a file without a name; in memory where the system can do that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("pixels")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
