"""Files -> pixels, in child processes that may crash or hang: what `index` decodes with, for a server."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

from batchcap.captioner.images import ImageSpec
from batchcap.decoder_child import LoadedFile
from batchcap.loading import ImageLoader


class Decoders:
    """A few threads, each with a decoding process of its own that is started when it is first needed.

    A file that crashes its process or takes too long costs the next file of that thread a new process.

    Args:
        spec: the pixels that are wanted.
        count: of threads, and of processes.
        timeout_s: how long one file may take; it is tried twice.
    """

    def __init__(self, spec: ImageSpec, *, count: int, timeout_s: float) -> None:
        self._spec = spec
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="decoder")
        self._own = threading.local()
        self._loaders: list[ImageLoader] = []

    def submit(self, location: str) -> Future[LoadedFile]:
        """Decodes one file, by its path or uri, as soon as a process is free; no exception for a bad file."""
        return self._threads.submit(self._load, location)

    def close(self) -> None:
        """Waits for what is being decoded, and ends the processes."""
        self._threads.shutdown(cancel_futures=True)
        for loader in self._loaders:
            loader.close()

    def _load(self, location: str) -> LoadedFile:
        loader: ImageLoader | None = getattr(self._own, "loader", None)
        if loader is None:
            loader = self._own.loader = ImageLoader(self._spec, self._timeout_s)
            self._loaders.append(loader)
        (loaded,) = loader.load([location])
        return loaded
