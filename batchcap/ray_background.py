"""Ray's start, in the background and only if it is needed; importing this does not import Ray."""

import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from batchcap.balance import ComputeOptions
from batchcap.run_options import IndexOptions


class RayStart:
    """Starts Ray in the background, as soon as it is known that many files are to be captioned.

    It takes seconds to import and start, in which the plan goes on. A context manager: who leaves it early
    waits until Ray is there, and is not met by a start that is under way.

    Args:
        options: how many files can do without, and where Ray runs.
    """

    def __init__(self, options: IndexOptions) -> None:
        self._compute = options.compute
        # Who says where the run's processes run wants them there.
        self._without = options.in_process_files if self._compute == ComputeOptions() else 0
        self._files = 0
        self._begun = False
        self._done = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.wait()

    @property
    def is_needed(self) -> bool:
        """Whether there are so many files that Ray captions them; once it does, it captions the rest."""
        return self._files > self._without

    def note_file(self, count: int = 1) -> None:
        """Takes so many more files that are to be captioned."""
        self._files += count
        if self.is_needed and not self._begun:
            self._begun = True
            threading.Thread(target=self._start, name="start-ray", daemon=True).start()

    def wait(self) -> None:
        """Waits for the end of what has begun. Of errors hears who then asks for Ray."""
        if self._begun:
            self._done.wait()

    def _start(self) -> None:
        has_started = False
        try:
            with suppress(Exception):
                from batchcap.ray_start import start_ray

                has_started = start_ray(self._compute)
        finally:
            self._done.set()
        if has_started:
            # Linux ends Ray's processes together with the thread that started them.
            threading.Event().wait()
