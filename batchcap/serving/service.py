"""What all requests share: model, decoders, catalog, and room for so many pictures."""

import asyncio
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from batchcap.captioner.protocol import Caption, CaptionerProtocol
from batchcap.catalog import Catalog
from batchcap.errors import ImageError, Reason
from batchcap.serving.batcher import Batcher
from batchcap.serving.decoders import Decoders
from batchcap.serving.metrics import Metrics
from batchcap.serving.options import ServingOptions
from batchcap.serving.pictures import Thumbnails
from batchcap.serving.problems import BUSY, NOT_FOUND, Problem
from batchcap.serving.uploads import Upload, Uploads

T = TypeVar("T")

# Threads that wait for the catalog and for disks; as many connections at most.
_BLOCKING_THREADS = 8
_MAX_RETRY_AFTER_S = 60
# Captions of people that wait to be written: each at most as long as another program may hold the catalog.
_MAX_WRITES = 8
# Of the largest size, on the disk at once.
_MAX_BODIES = 16


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What people are told of the model.

    Args:
        name: what people call it.
        fingerprint: the identity of all that changes a caption.
        num_beams: of its decoding; None where it has no such thing.
        config: its configuration, for the record.
    """

    name: str
    fingerprint: str
    num_beams: int | None
    config: dict[str, Any]


class Service:
    """Captions uploads, and asks the catalog without holding up the event loop; between `start` and `close`.

    Args:
        captioner: the loaded model; one thread uses it.
        model: what to say of it.
        catalog: the collection, or None.
        options: of the server.
    """

    def __init__(
        self,
        captioner: CaptionerProtocol,
        model: ModelFacts,
        catalog: Catalog | None,
        options: ServingOptions,
    ) -> None:
        self.model = model
        self.catalog = catalog
        self.options = options
        self.metrics = Metrics()
        self.is_ready = False
        self._captioner = captioner
        self._taken = 0
        self._writes = 0

    def start(self) -> None:
        """Starts threads, and makes a folder for uploads."""
        options = self.options
        spec = self._captioner.image_spec
        max_pixels = min(spec.max_pixels, options.max_pixels or spec.max_pixels)
        self._folder = tempfile.TemporaryDirectory(prefix="batchcap-uploads-")
        self.uploads = Uploads(
            Path(self._folder.name),
            max_body_bytes=options.max_body_bytes,
            max_stored_bytes=_MAX_BODIES * options.max_body_bytes,
            body_timeout_s=options.body_timeout_s,
        )
        self._decoders = Decoders(
            replace(spec, max_pixels=max_pixels), count=options.decoders, timeout_s=options.decode_timeout_s
        )
        for _ in range(options.decoders):
            # Its process starts now, not on the time of the first picture.
            self._decoders.submit(os.devnull)
        self._batcher = Batcher(
            self._captioner, batch_size=options.batch_size, on_batch=self.metrics.captioned
        )
        self.thumbnails = Thumbnails(
            timeout_s=options.decode_timeout_s, cache_bytes=options.thumbnail_cache_bytes
        )
        self._threads = ThreadPoolExecutor(_BLOCKING_THREADS, thread_name_prefix="catalog")
        # Whoever writes waits for a lock, one after the other, and keeps no reader waiting.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="edits")
        self.is_ready = True

    def close(self) -> None:
        """Ends them; nobody is waiting any more."""
        self.is_ready = False
        self._decoders.close()
        self._batcher.close()
        self.thumbnails.close()
        self._threads.shutdown(cancel_futures=True)
        self._writer.shutdown(cancel_futures=True)
        self._folder.cleanup()

    @property
    def can_caption(self) -> bool:
        """Whether a picture that comes now will be captioned."""
        return self.is_ready and self._batcher.is_alive

    def admit(self) -> None:
        """Takes a place in the queue for one picture, to be given back by `release`.

        Raises:
            Problem: there is none.
        """
        if self._taken >= self.options.max_queue:
            wait_s = math.ceil(self._taken * self._batcher.seconds_per_image)
            retry_after = str(min(max(wait_s, 1), _MAX_RETRY_AFTER_S))
            raise Problem(
                429,
                BUSY,
                f"{self._taken} pictures are waiting; come back later",
                headers={"retry-after": retry_after},
            )
        self._taken += 1
        self.metrics.queued(self._taken)

    def release(self, pictures: int) -> None:
        """Gives places in the queue back."""
        self._taken -= pictures
        self.metrics.queued(self._taken)

    async def caption(self, upload: Upload) -> Caption:
        """Captions one upload.

        Raises:
            ImageError: it can't be.
            TimeoutError: it takes longer than a request may.
            PipelineError: no decoder can be started.
        """
        async with asyncio.timeout(self.options.request_timeout_s):
            loaded = await asyncio.wrap_future(self._decoders.submit(str(upload.path)))
            if loaded.image is None:
                reason = loaded.reason or Reason.UNREADABLE
                self.metrics.failed(reason.value)
                raise ImageError(reason, loaded.detail)
            return await asyncio.wrap_future(self._batcher.submit(loaded.image.pixels))

    async def blocking(self, function: Callable[..., T], *arguments: Any) -> T:
        """Runs what waits for the catalog or a disk in a thread.

        Raises:
            TimeoutError: it takes longer than a request may.
        """
        async with asyncio.timeout(self.options.request_timeout_s):
            return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def writing(self, function: Callable[..., T], *arguments: Any) -> T:
        """Runs what writes to the catalog in the one thread for that.

        Raises:
            Problem: too many are waiting for it.
            TimeoutError: it takes longer than a request may; what has not begun by then is not done.
        """
        if self._writes == _MAX_WRITES:
            raise Problem(
                429, BUSY, "too many captions are waiting to be written", headers={"retry-after": "10"}
            )
        self._writes += 1
        try:
            async with asyncio.timeout(self.options.request_timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._writer, function, *arguments)
        finally:
            self._writes -= 1

    def required_catalog(self) -> Catalog:
        """The collection.

        Raises:
            Problem: there is none.
        """
        if self.catalog is None:
            raise Problem(404, NOT_FOUND, "there is no catalog here; run batchcap index, then start again")
        return self.catalog


class Remembered(Generic[T]):
    """What costs much to find out and may be a little old, found out once by all who ask at the same time.

    Args:
        find: finds it out.
        for_s: how old it may be, in seconds.
    """

    def __init__(self, find: Callable[[], T], *, for_s: float) -> None:
        self._find = find
        self._for_s = for_s
        self._lock = threading.Lock()
        self._found: tuple[float, T] | None = None

    def __call__(self) -> T:
        """What was found out at last, or just now."""
        with self._lock:
            now = time.monotonic()
            if self._found is None or now - self._found[0] >= self._for_s:
                # As old as the question, not as the answer.
                self._found = (now, self._find())
            return self._found[1]
