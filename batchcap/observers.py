"""Watching a run from elsewhere: a log of JSON lines, metrics for Prometheus, a timeline for its report."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from batchcap.errors import UsageError
from batchcap.run_report import Progress, RunReport

# Between two lines of the log: a day's run makes a few megabytes.
_LOG_INTERVAL_S = 5.0
# Of the record's points there are at most twice as many; then every second one is dropped.
_MAX_POINTS = 500


class Observers(Progress):
    """Tells several watchers, in their order."""

    def __init__(self, watchers: Sequence[Progress]) -> None:
        self._watchers = watchers
        self._entered = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for watcher in self._watchers:
                stack.enter_context(watcher)
            self._entered = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered.__exit__(kind, error, traceback)

    def plan(self, files: int) -> None:
        for watcher in self._watchers:
            watcher.plan(files)

    def advance(self, files: int, quarantined: int) -> None:
        for watcher in self._watchers:
            watcher.advance(files, quarantined)

    def finish(self, report: RunReport) -> None:
        for watcher in self._watchers:
            watcher.finish(report)


class JsonLog(Progress):
    """Appends JSON objects to a file, one a line: `started`, `progress` now and then, `finished` or `failed`.

    Args:
        path: of the file; what is in it stays.
        clock: seconds that only go up.

    Raises:
        UsageError: on entering: the file can't be written.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._planned = self._done = self._quarantined = 0
        self._started_at = self._logged_at = 0.0
        self._file: TextIO

    def __enter__(self) -> Self:
        try:
            # Line by line: who follows the file sees whole lines, and a kill loses none.
            self._file = self._path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise UsageError(f"can't write the log {self._path}: {error.strerror}") from error
        self._started_at = self._logged_at = self._clock()
        self._write("started")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._file:
            if error is not None:
                self._write("failed", error=type(error).__name__, message=str(error), **self._counts())

    def plan(self, files: int) -> None:
        self._planned += files

    def advance(self, files: int, quarantined: int) -> None:
        self._done += files
        self._quarantined += quarantined
        now = self._clock()
        if now - self._logged_at >= _LOG_INTERVAL_S:
            self._logged_at = now
            self._write("progress", **self._counts())

    def finish(self, report: RunReport) -> None:
        self._write("finished", **report.describe())

    def _counts(self) -> dict[str, Any]:
        return {
            "planned": self._planned,
            "done": self._done,
            "quarantined": self._quarantined,
            "elapsed_s": round(self._clock() - self._started_at, 3),
        }

    def _write(self, event: str, **values: Any) -> None:
        self._file.write(json.dumps({"time": datetime.now(UTC).isoformat(), "event": event, **values}) + "\n")


class Metrics(Progress):
    """Serves counts of the run to Prometheus, on loopback, for as long as it is entered.

    Args:
        port: 0 for any that is free; see `port`.

    Raises:
        UsageError: on entering: the port is taken, or prometheus_client is not installed.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self._stop = ExitStack()

    def __enter__(self) -> Self:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
        except ImportError:
            message = "--metrics-port needs prometheus-client: pip install 'batchcap[cluster]'"
            raise UsageError(message) from None
        registry = CollectorRegistry()
        self._planned = Counter("batchcap_files_planned", "Files to be looked at.", registry=registry)
        self._done = Counter("batchcap_files_done", "Files that are done.", registry=registry)
        self._quarantined = Counter(
            "batchcap_files_quarantined", "Files put in quarantine.", registry=registry
        )
        self._committed_at = Gauge(
            "batchcap_last_commit_timestamp_seconds", "When results were last committed.", registry=registry
        )
        try:
            server, thread = start_http_server(self.port, addr="127.0.0.1", registry=registry)
        except OSError as error:
            raise UsageError(f"--metrics-port {self.port}: {error.strerror}; name another") from error
        self.port = server.server_port
        self._stop.callback(thread.join)
        self._stop.callback(server.server_close)
        self._stop.callback(server.shutdown)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.close()

    def plan(self, files: int) -> None:
        self._planned.inc(files)

    def advance(self, files: int, quarantined: int) -> None:
        self._done.inc(files)
        self._quarantined.inc(quarantined)
        self._committed_at.set_to_current_time()


@dataclass(frozen=True, slots=True)
class Point:
    """How far a run was.

    Args:
        elapsed_s: since its start.
        done: files.
    """

    elapsed_s: float
    done: int


class Timeline(Progress):
    """Remembers how far a run was when, in bounded memory.

    Args:
        clock: seconds that only go up.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started_at = clock()
        self._done = 0
        self._interval_s = 0.0
        self.points = [Point(0.0, 0)]

    def advance(self, files: int, quarantined: int) -> None:
        self._done += files
        now = self._clock() - self._started_at
        if now - self.points[-1].elapsed_s < self._interval_s:
            return
        self.points.append(Point(now, self._done))
        if len(self.points) > 2 * _MAX_POINTS:
            self.points = self.points[::2]
            self._interval_s = now / _MAX_POINTS

    def finish(self, report: RunReport) -> None:
        self.points.append(Point(self._clock() - self._started_at, self._done))
