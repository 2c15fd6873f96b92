"""`index_collection`: the run, from the files of a collection to captions in catalog and Parquet.

::

    scan -> Catalog.plan -> LoadImages (Ray, CPU) -> CaptionWorker (Ray, GPU or CPU) -> Run.commit -> seal

Pixels travel between the two Ray stages and never reach the driver, which is this process and the only
writer of results. Few files are captioned without Ray, by the same two stages in this process. A bad file
becomes a row with a reason, never an exception.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from batchcap import parts
from batchcap.balance import TIMINGS, StageTimes
from batchcap.captioner.protocol import CaptionerSource
from batchcap.catalog import (
    Captioned,
    Catalog,
    Failure,
    MissingFiles,
    ModelInfo,
    Run,
    UriList,
    Vanished,
    Wave,
)
from batchcap.collection import (
    FileEntry,
    ListFile,
    Query,
    is_gone,
    resolve_sources,
    scan,
    whole_folders,
)
from batchcap.decoder_child import LoadedFile
from batchcap.errors import CatalogUnavailableError, PipelineError, Reason, SourceError
from batchcap.globs import Selection
from batchcap.hashing import FileHasher
from batchcap.in_process import InProcess
from batchcap.ray_background import RayStart
from batchcap.run_options import IndexOptions
from batchcap.run_report import Progress, RunReport
from batchcap.stages import files_table

T = TypeVar("T")

_SEAL_ROWS = 50_000
_SEAL_INTERVAL_S = 600.0
# A commit costs a wait for the disk, however many rows it has: no more of them than a person would notice.
_COMMIT_INTERVAL_S = 0.25
# The storage has failed, not its files, if more than a fifth of the last 1,000 files can't be read.
_BREAKER_WINDOW = 1000
_BREAKER_SHARE = 0.2
# Between attempts at writing to a catalog that can't be reached: a database restarts within a minute.
_RETRY_DELAYS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
# So few files may always be gone: people delete most of a small folder.
_VANISH_FREELY = 20
_STAT_THREADS = 16
# Files that are hashed, or looked for, together.
_CHUNK = 256
# A size that is known makes a copy likely where one in five is one, or so few files are read for nothing.
_COPY_SHARE = 0.2
_MISS_FREELY = 1000


def index_collection(
    sources: Sequence[str | ListFile | Query],
    catalog: Catalog,
    store: Path,
    captioner: CaptionerSource,
    *,
    options: IndexOptions | None = None,
    progress: Progress | None = None,
) -> RunReport:
    """Captions what is new or changed in a collection.

    Args:
        sources: whatever `resolve_sources` takes.
        catalog: opened for writing.
        store: the folder of the Parquet parts; made if need be.
        captioner: what captions.
        options: how.
        progress: is told how far the run is.

    Returns:
        What was done.

    Raises:
        SourceNotFoundError: a source does not exist.
        SourceError: a source can't be read, or there is no image in any of them.
        CatalogBusyError: another run holds the catalog.
        CatalogError, StoreError: catalog or store can't be written.
        PipelineError: the run can't go on. What was committed stays, and the next run goes on from there.
        ClusterError: the cluster can't be reached, has no room, or its nodes don't see the sources.
    """
    options, progress = options or IndexOptions(), progress or Progress()
    resolved = resolve_sources(sources)
    opened_store = parts.open_store(store, catalog.uuid)
    model = ModelInfo(captioner.fingerprint(), captioner.name, captioner.describe())
    report = RunReport()
    started = time.monotonic()
    if options.compute.address is not None:
        from batchcap.ray_cluster import prepare_cluster

        captioner = prepare_cluster(resolved, captioner, model.fingerprint, options)
    with catalog.run([str(source) for source in sources], model, options.describe()) as run:
        report.run_id = run.id
        parts.seal_pending(catalog, opened_store)
        selection = Selection.of(options.include, options.exclude)
        with (
            RayStart(options) as ray_start,
            InProcess(captioner, model.fingerprint, options) as in_process,
            catalog.missing(whole_folders(resolved)) as missing,
        ):
            waves = catalog.plan(
                missing.watch(scan(resolved, skipped=report.skipped, selection=selection)),
                model.fingerprint,
                retry=options.retry,
                recaption=options.recaption,
                fill_vectors=options.fills_vectors(captioner),
                wave_size=options.wave_size,
                on_todo=ray_start.note_file,
            )
            indexing = _Indexing(
                catalog, opened_store, run, captioner, options, report, progress, ray_start, in_process
            )
            for wave in waves:
                indexing.index_wave(wave)
            indexing.seal()
            if not (options.allow_vanish and missing.uris):
                _require_images(sources, report)
            indexing.mark_vanished(missing)
    report.total_s = time.monotonic() - started
    progress.finish(report)
    return report


class _Indexing:
    """The state of a run while it goes from wave to wave."""

    def __init__(
        self,
        catalog: Catalog,
        store: parts.Store,
        run: Run,
        captioner: CaptionerSource,
        options: IndexOptions,
        report: RunReport,
        progress: Progress,
        ray_start: RayStart,
        in_process: InProcess,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._run = run
        self._captioner = captioner
        self._options = options
        self._report = report
        self._progress = progress
        self._ray_start = ray_start
        self._in_process = in_process
        self._breaker = _Breaker()
        self._sealed_at = time.monotonic()
        self._unsealed = catalog.unsealed_count()
        # As the first wave that needs Ray is shared out; so are the others, but for a small last one.
        self._stages: StageTimes | None = None
        self._first_commit_at: float | None = None
        self._latest_commit_at = -math.inf
        # Of the files that share only their size with a known one.
        self._copies = 0
        self._misses = 0

    def index_wave(self, wave: Wave) -> None:
        """Captions the files of one wave and commits them batch by batch."""
        self._report.unchanged += wave.unchanged
        self._report.still_quarantined += wave.quarantined
        if not self._options.recaption:
            self._report.stale += wave.stale
        self._progress.plan(wave.size)
        with FileHasher(self._captioner.image_spec, self._options.decode_timeout_s) as hasher:
            unknown = [
                *self._commit_known(wave.maybe_known, hasher),
                *self._commit_copies(wave.same_size, hasher),
            ]
        todo = sorted([*wave.todo, *unknown], key=lambda entry: entry.uri)
        if not todo:
            return
        files = files_table(todo)
        # A wave is captioned for minutes or hours, and entries are five times as large as their table.
        todo.clear()
        wave.todo.clear()
        wave.maybe_known.clear()
        wave.same_size.clear()
        unknown.clear()
        if self._ray_start.is_needed:
            self._caption_by_ray(files)
        else:
            self._stages = self._stages or StageTimes(self._in_process.resources(len(files)))
            with closing(self._in_process.caption_files(files)) as batches:
                self._commit_all(batches)

    def _caption_by_ray(self, files: pa.Table) -> None:
        self._in_process.close()
        self._ray_start.wait()
        # Ray takes seconds to import: only for a run that needs it.
        from batchcap.ray_runtime import caption_files, machine_resources

        resources = machine_resources(len(files), self._options)
        self._stages = self._stages or StageTimes(resources)
        with closing(
            caption_files(files, self._captioner, self._run.model.fingerprint, self._options, resources)
        ) as batches:
            self._commit_all(batches)

    def seal(self) -> None:
        """Writes what is not yet in Parquet."""

        def write() -> None:
            # An attempt that failed may have left a part.
            parts.seal_pending(self._catalog, self._store)
            parts.seal(self._catalog, self._store, self._run)

        _patiently(write)
        self._unsealed = 0
        self._sealed_at = time.monotonic()

    def mark_vanished(self, missing: MissingFiles) -> None:
        """Marks what is gone, unless it is so much that the storage is more likely to be gone.

        Raises:
            PipelineError: it is so much.
        """
        most = max(_VANISH_FREELY, missing.known // 2)

        def check(vanished: Vanished) -> None:
            if vanished.lost > most and not self._options.allow_vanish:
                raise PipelineError(
                    f"{vanished.lost:,} of {missing.known:,} files are gone: is a disk not there? None was "
                    "marked as vanished; if they are meant to be gone, run again with --allow-vanish"
                )

        # The scan may have left out what is there all the same: hidden, excluded, in a folder it can't read.
        with ThreadPoolExecutor(_STAT_THREADS) as pool, closing(UriList()) as gone:
            uris = iter(missing.uris)
            while chunk := list(islice(uris, _CHUNK)):
                for uri, is_missing in zip(chunk, pool.map(is_gone, chunk), strict=True):
                    if is_missing:
                        gone.append(uri)
            if not gone:
                return
            vanished = _patiently(lambda: self._run.vanish(gone, check))
        self._report.vanished = sum(vanished)
        self._report.moved = vanished.moved

    def _commit_known(self, entries: Sequence[FileEntry], hasher: FileHasher) -> list[FileEntry]:
        """Hashes files that may be moved, copied or merely touched; returns those that need a caption."""
        unknown: list[FileEntry] = []
        for start in range(0, len(entries), _CHUNK):
            chunk = entries[start : start + _CHUNK]
            files = list(zip(chunk, hasher.hash_files([entry.uri for entry in chunk]), strict=True))
            hashed = [(entry, file.content_hash) for entry, file in files if file.content_hash]
            # A file that can't be read goes on, so that one place decides what is wrong with it. One that
            # hung has had its time.
            unread = [entry for entry, file in files if not file.content_hash and file.reason is None]
            self._commit_results([], [_failure(entry, file) for entry, file in files if file.reason])
            to_caption = _patiently(
                partial(
                    self._run.commit_known,
                    hashed,
                    recaption=self._options.recaption,
                    fill_vectors=self._options.fills_vectors(self._captioner),
                )
            )
            unknown += [*unread, *to_caption]
            self._ray_start.note_file(len(unread) + len(to_caption))
            known = len(hashed) - len(to_caption)
            self._report.known += known
            self._progress.advance(known, 0)
            self._seal_if_due(known)
        return unknown

    def _commit_copies(self, entries: Sequence[FileEntry], hasher: FileHasher) -> list[FileEntry]:
        """As `_commit_known`, but of files whose size alone is known, and only while that finds copies."""
        unknown: list[FileEntry] = []
        for start in range(0, len(entries), _CHUNK):
            if self._misses > max(_MISS_FREELY, self._copies / _COPY_SHARE):
                self._ray_start.note_file(len(entries) - start)
                return [*unknown, *entries[start:]]
            chunk = entries[start : start + _CHUNK]
            misses = self._commit_known(chunk, hasher)
            self._copies += len(chunk) - len(misses)
            self._misses += len(misses)
            unknown += misses
        return unknown

    def _commit_all(self, batches: Iterable[pa.Table]) -> None:
        """Commits batches as they come: the first at once, those that follow closely together."""
        gathered: list[pa.Table] = []
        try:
            for batch in batches:
                gathered.append(batch)
                if time.monotonic() - self._latest_commit_at >= _COMMIT_INTERVAL_S:
                    self._commit(gathered)
        finally:
            # Whatever ended the run, what was captioned is kept.
            if gathered:
                self._commit(gathered)

    def _commit(self, gathered: list[pa.Table]) -> None:
        """Commits batches in one transaction; empties the list first, so that nobody tries a second time."""
        batches = gathered.copy()
        gathered.clear()
        started = time.monotonic()
        captioned, failures = _rows_of(batches)
        self._commit_results(captioned, failures)
        self._latest_commit_at = time.monotonic()
        if self._first_commit_at is None:
            self._first_commit_at = self._latest_commit_at
            return
        self._report.timed_files += len(captioned) + len(failures)
        self._report.captioning_s = self._latest_commit_at - self._first_commit_at
        if self._stages is not None:
            self._stages.add(batches, self._latest_commit_at - started)
            self._stages.elapsed_s = self._report.captioning_s
            self._report.stages = self._stages

    def _commit_results(self, captioned: Sequence[Captioned], failures: Sequence[Failure]) -> None:
        if not captioned and not failures:
            return
        _patiently(lambda: self._run.commit(captioned, failures))
        self._report.captioned += len(captioned)
        self._report.quarantined.update(failure.reason.value for failure in failures)
        self._progress.advance(len(captioned) + len(failures), len(failures))
        self._breaker.check(len(captioned), failures)
        self._seal_if_due(len(captioned))

    def _seal_if_due(self, committed: int) -> None:
        """Seals when enough rows have gathered, the `committed` ones included, or enough time has passed."""
        self._unsealed += committed
        is_late = time.monotonic() - self._sealed_at > _SEAL_INTERVAL_S
        if is_late or self._unsealed >= _SEAL_ROWS:
            self.seal()


def _patiently(write: Callable[[], T]) -> T:
    """Writes to the catalog, again and again for a minute while it can't be reached.

    What is written twice is there once: a commit whose answer was lost is no harm.

    Raises:
        CatalogUnavailableError: it still can't.
    """
    for delay_s in _RETRY_DELAYS_S:
        try:
            return write()
        except CatalogUnavailableError:
            time.sleep(delay_s)
    return write()


class _Breaker:
    """Stops a run whose storage has failed, before every file is in quarantine for it."""

    def __init__(self) -> None:
        self._latest: deque[bool] = deque(maxlen=_BREAKER_WINDOW)

    def check(self, captioned: int, failures: Sequence[Failure]) -> None:
        """Takes the outcome of a batch.

        Raises:
            PipelineError: too many of the latest files could not be read.
        """
        self._latest.extend([False] * captioned)
        # A network drive that is gone may answer nothing at all.
        self._latest.extend(failure.reason in (Reason.IO_ERROR, Reason.TIMEOUT) for failure in failures)
        unread = sum(self._latest)
        if unread > _BREAKER_SHARE * _BREAKER_WINDOW:
            raise PipelineError(
                f"{unread} of the last {len(self._latest)} files could not be read: the storage has failed, "
                "not the files; see that it is there and run again"
            )


def _rows_of(batches: Sequence[pa.Table]) -> tuple[list[Captioned], list[Failure]]:
    captioned, failures = [], []
    for batch in batches:
        for row in batch.drop_columns(list(TIMINGS)).to_pylist():
            reason, detail = row.pop("reason"), row.pop("detail")
            if reason:
                known = {name: row[name] for name in ("uri", "size_bytes", "mtime_ns", "etag")}
                failures.append(Failure(**known, reason=Reason(reason), detail=detail))
            else:
                captioned.append(Captioned(**row))
    return captioned, failures


def _failure(entry: FileEntry, file: LoadedFile) -> Failure:
    return Failure(
        entry.uri,
        entry.size_bytes,
        entry.mtime_ns,
        entry.etag,
        file.reason or Reason.IO_ERROR,
        file.detail,
    )


def _require_images(sources: Sequence[str | ListFile | Query], report: RunReport) -> None:
    """A source without a single image is a mistake that a person wants to hear of."""
    seen = (
        report.captioned
        + report.known
        + report.unchanged
        + report.still_quarantined
        + sum(report.quarantined.values())
    )
    if not seen:
        raise SourceError(f"no image in {', '.join(map(str, sources))}")
