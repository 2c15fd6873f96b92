"""Captioning in this very process: for so few files that starting Ray would take longer than they do.

The two stages are those of Ray's workers. Loaders are threads here: they wait for their decoder processes,
which a bad picture may kill as ever, and the next blocks are decoded while the network runs.
"""

import os
import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import Self

# TensorFlow reads them when it is imported: no chatter, and not the whole memory of a GPU at once.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

import pyarrow as pa

from batchcap.balance import Resources, available_cpus, block_starts, share_out
from batchcap.captioner.protocol import CaptionerSource
from batchcap.captioner.quiet import quiet_stderr
from batchcap.errors import BatchcapError, PipelineError
from batchcap.run_options import IndexOptions
from batchcap.stages import CaptionWorker, LoadImages, cut_into_blocks


class InProcess:
    """Loaders and a network of this process's own, kept from wave to wave. A context manager.

    Args:
        captioner: what captions; loaded with the first files.
        fingerprint: its fingerprint, as the run has it.
        options: batch size and time limits.
    """

    def __init__(self, captioner: CaptionerSource, fingerprint: str, options: IndexOptions) -> None:
        self._captioner = captioner
        self._fingerprint = fingerprint
        self._options = options
        self._worker: CaptionWorker | None = None
        self._loaders: list[LoadImages] = []
        self._idle: SimpleQueue[LoadImages] = SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the decoders, at once, whatever they are at."""
        for loader in self._loaders:
            loader.close()

    def resources(self, files: int) -> Resources:
        """How the machine is shared out for so many files: one network has all CPUs, or the GPU."""
        cpus = min(available_cpus(), self._options.cpus or sys.maxsize)
        blocks = len(block_starts(files, self._options.batch_size))
        return Resources(1, 0, cpus, share_out(cpus, 0).loaders, cpus).limited_to(blocks)

    def caption_files(self, files: pa.Table) -> Generator[pa.Table, None, None]:
        """Loads and captions files.

        Args:
            files: of `FILE_SCHEMA`.

        Yields:
            Tables of `CAPTIONED_SCHEMA`, in the order of the files; every file is in one of them.

        Raises:
            PipelineError: the captioner failed.
        """
        resources = self.resources(len(files))
        blocks = iter(cut_into_blocks(files, self._options.batch_size))
        while len(self._loaders) < resources.loaders:
            options = self._options
            self._loaders.append(LoadImages(self._captioner, options.decode_timeout_s, options.gps))
            self._idle.put(self._loaders[-1])
        pool = ThreadPoolExecutor(resources.loaders, thread_name_prefix="load-images")
        try:
            # One block a loader, and as many that wait for the network: pixels don't pile up.
            pending: deque[Future[pa.Table]] = deque()
            for _ in range(2 * resources.loaders):
                self._submit_next(pool, blocks, pending)
            worker = self._load_worker(resources)
            while pending:
                loaded = pending.popleft().result()
                self._submit_next(pool, blocks, pending)
                yield worker(loaded)
        except BaseException as error:
            # Else the threads would wait for their decoders.
            self.close()
            if isinstance(error, Exception):
                message = f"captioning stopped: {_cause(error)}; run again to go on from here"
                raise PipelineError(message) from error
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _submit_next(
        self, pool: ThreadPoolExecutor, blocks: Iterator[pa.Table], pending: "deque[Future[pa.Table]]"
    ) -> None:
        block = next(blocks, None)
        if block is not None:
            pending.append(pool.submit(self._load, block))

    def _load(self, block: pa.Table) -> pa.Table:
        loader = self._idle.get()
        try:
            return loader(block)
        finally:
            self._idle.put(loader)

    def _load_worker(self, resources: Resources) -> CaptionWorker:
        if self._worker is None:
            # What TensorFlow says at its start is for nobody.
            with quiet_stderr():
                self._worker = CaptionWorker(
                    self._captioner,
                    self._fingerprint,
                    self._options.batch_size,
                    resources.threads_per_worker,
                    self._options.stores_vectors,
                )
        return self._worker


def _cause(error: Exception) -> str:
    """What went wrong, in one line; as Ray's workers have it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = lines[0] if lines else type(error).__name__
    return message if isinstance(error, BatchcapError) or not lines else f"{type(error).__name__}: {message}"
