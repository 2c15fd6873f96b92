"""Files are hashed in processes that may hang and be killed: a network drive may never answer."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from batchcap.captioner.images import ImageSpec
from batchcap.decoder_child import LoadedFile
from batchcap.loading import DEFAULT_DECODE_TIMEOUT_S, ImageLoader

_PROCESSES = 4
# Files that one process is given at a time.
_BATCH = 16


class FileHasher:
    """Several loaders that only hash, started as they are needed. A context manager.

    Args:
        spec: the pictures that the model takes.
        timeout_s: how long one file may take.
    """

    def __init__(self, spec: ImageSpec, timeout_s: float = DEFAULT_DECODE_TIMEOUT_S) -> None:
        # A loader starts its process with its first file.
        self._loaders = [ImageLoader(spec, timeout_s) for _ in range(_PROCESSES)]
        self._idle: SimpleQueue[ImageLoader] = SimpleQueue()
        for loader in self._loaders:
            self._idle.put(loader)
        self._pool = ThreadPoolExecutor(_PROCESSES, thread_name_prefix="hash-files")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # First, or the threads would wait for what hangs.
        for loader in self._loaders:
            loader.stop()
        self._pool.shutdown(cancel_futures=True)

    def hash_files(self, uris: Sequence[str]) -> list[LoadedFile]:
        """Hashes files; what comes of each is as `ImageLoader.hash` has it, in their order.

        Raises:
            PipelineError: no process can be started.
        """
        batches = [uris[start : start + _BATCH] for start in range(0, len(uris), _BATCH)]
        return [file for hashed in self._pool.map(self._hash, batches) for file in hashed]

    def _hash(self, uris: Sequence[str]) -> list[LoadedFile]:
        loader = self._idle.get()
        try:
            return loader.hash(uris)
        finally:
            self._idle.put(loader)
