"""Pixels of many clients -> captions, in batches: a network takes little longer for many than for one."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from batchcap.captioner.protocol import Caption, CaptionerProtocol

# Of what a picture took, how much the latest batch counts.
_SMOOTHING = 0.2


class _Waiting(NamedTuple):
    pixels: np.ndarray
    caption: "Future[Caption]"


class Batcher:
    """One thread that runs a captioner on whatever is waiting.

    It never waits for a batch to fill: a picture that comes alone is captioned at once, and those that come
    meanwhile are the next batch. So batches are as large as the clients are many.

    Args:
        captioner: used by this thread alone.
        batch_size: pictures of one batch at most.
        on_batch: is told the size of each batch and the seconds it took.
    """

    def __init__(
        self,
        captioner: CaptionerProtocol,
        *,
        batch_size: int,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self._captioner = captioner
        self._batch_size = batch_size
        self._on_batch = on_batch
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        # What one picture takes, of late, in seconds.
        self.seconds_per_image = 0.0
        self._thread = threading.Thread(target=self._run, name="captioner", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it still captions."""
        return self._thread.is_alive()

    def submit(self, pixels: np.ndarray) -> "Future[Caption]":
        """Captions a picture, with others.

        Args:
            pixels: uint8[image_size, image_size, 3].

        Returns:
            Its caption, some time; cancelled before its batch begins, it costs nothing.
        """
        waiting = _Waiting(pixels, Future())
        self._waiting.put(waiting)
        return waiting.caption

    def close(self) -> None:
        """Captions what is waiting, then ends the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch, is_open = self._next_batch()
            batch = [waiting for waiting in batch if waiting.caption.set_running_or_notify_cancel()]
            if batch:
                self._caption(batch)

    def _next_batch(self) -> tuple[list[_Waiting], bool]:
        """What is waiting, at least one picture; and whether more may come."""
        batch: list[_Waiting] = []
        try:
            while len(batch) < self._batch_size:
                waiting = self._waiting.get(block=not batch)
                if waiting is None:
                    return batch, False
                batch.append(waiting)
        except queue.Empty:
            pass
        return batch, True

    def _caption(self, batch: list[_Waiting]) -> None:
        started = time.monotonic()
        try:
            captions = self._captioner.caption([waiting.pixels for waiting in batch])
            for waiting, caption in zip(batch, captions, strict=True):
                waiting.caption.set_result(caption)
        except Exception as error:
            # Of the whole batch: who is asked next finds the thread still there.
            for waiting in batch:
                if not waiting.caption.done():
                    waiting.caption.set_exception(error)
        elapsed_s = time.monotonic() - started
        latest = elapsed_s / len(batch)
        self.seconds_per_image += (latest - self.seconds_per_image) * (
            _SMOOTHING if self.seconds_per_image else 1.0
        )
        self._on_batch(len(batch), elapsed_s)
