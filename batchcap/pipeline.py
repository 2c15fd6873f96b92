"""`index_collection`: the run, from the files of a collection to captions in catalog and Parquet.

::

    scan -> Catalog.plan -> LoadImages (Ray, CPU) -> CaptionWorker (Ray, GPU or CPU) -> Run.commit -> seal

Pixels travel between the two Ray stages and never reach the driver, which is this process and the only
writer of results. A bad file becomes a row with a reason, never an exception.
"""

import hashlib
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchcap import parts
from batchcap.captioner.protocol import CaptionerSource
from batchcap.catalog import Captioned, Catalog, Failure, ModelInfo, Run, Wave
from batchcap.collection import FileEntry, resolve_sources, scan, uri_to_path
from batchcap.errors import PipelineError, Reason, SourceError
from batchcap.loading import DEFAULT_DECODE_TIMEOUT_S

_SEAL_ROWS = 50_000
_SEAL_INTERVAL_S = 600.0
# The storage has failed, not its files, if more than a fifth of the last 1,000 files can't be read.
_BREAKER_WINDOW = 1000
_BREAKER_SHARE = 0.2
_HASHING_THREADS = 4
_HASHING_CHUNK = 256


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """How a collection is indexed.

    Args:
        batch_size: images that go through the network at once.
        decode_timeout_s: how long reading and decoding one file may take.
        retry: reasons of the quarantine whose files are tried again though they have not changed.
        recaption: whether files whose caption is another model's are captioned again.
        wave_size: files that are planned at once.
    """

    batch_size: int = 32
    decode_timeout_s: float = DEFAULT_DECODE_TIMEOUT_S
    retry: tuple[Reason, ...] = ()
    recaption: bool = False
    wave_size: int = 500_000


@dataclass(slots=True)
class RunReport:
    """What a run did.

    Args:
        run_id: None until the run has taken the catalog.
        captioned: files that got a caption from the model.
        known: files whose content has a caption already: they were moved, copied or merely touched.
        unchanged: files that were done already.
        quarantined: files that this run put into quarantine, by reason.
        still_quarantined: files that are in quarantine from earlier and were not tried again.
        stale: files that keep the caption of another model.
        skipped: names that the scan left out, by reason.
        timed_files: files that were committed after the first batch, hence without the start-up.
        captioning_s: seconds in which they were.
        total_s: seconds of the whole run.
    """

    run_id: str | None = None
    captioned: int = 0
    known: int = 0
    unchanged: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    still_quarantined: int = 0
    stale: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    timed_files: int = 0
    captioning_s: float = 0.0
    total_s: float = 0.0

    @property
    def images_per_s(self) -> float | None:
        """Files per second between the first and the last commit; None where there was one commit."""
        return self.timed_files / self.captioning_s if self.captioning_s else None


class Progress:
    """What a run tells whoever watches it; this one ignores it."""

    def plan(self, files: int) -> None:
        """So many more files are to be looked at."""

    def advance(self, files: int, quarantined: int) -> None:
        """So many more files are done, and so many of them are in quarantine."""


def index_collection(
    sources: Sequence[str],
    catalog: Catalog,
    store: Path,
    captioner: CaptionerSource,
    *,
    options: IndexOptions | None = None,
    progress: Progress | None = None,
) -> RunReport:
    """Captions what is new or changed in a collection.

    Args:
        sources: folders, files and globs.
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
    """
    options = options or IndexOptions()
    resolved = resolve_sources(sources)
    opened_store = parts.open_store(store, catalog.uuid)
    model = ModelInfo(captioner.fingerprint(), captioner.name, captioner.describe())
    report = RunReport()
    started = time.monotonic()
    with catalog.run(list(sources), model, _for_the_record(options)) as run:
        report.run_id = run.id
        parts.seal_pending(catalog, opened_store)
        waves = catalog.plan(
            scan(resolved, skipped=report.skipped),
            model.fingerprint,
            retry=options.retry,
            recaption=options.recaption,
            wave_size=options.wave_size,
        )
        indexing = _Indexing(catalog, opened_store, run, captioner, options, report, progress or Progress())
        for wave in waves:
            indexing.index_wave(wave)
        indexing.seal()
        _require_images(sources, report)
    report.total_s = time.monotonic() - started
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
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._run = run
        self._captioner = captioner
        self._options = options
        self._report = report
        self._progress = progress
        self._breaker = _Breaker()
        self._sealed_at = time.monotonic()
        self._unsealed = catalog.unsealed_count()
        self._first_commit_at: float | None = None

    def index_wave(self, wave: Wave) -> None:
        """Captions the files of one wave and commits them batch by batch."""
        self._report.unchanged += wave.unchanged
        self._report.still_quarantined += wave.quarantined
        if not self._options.recaption:
            self._report.stale += wave.stale
        self._progress.plan(len(wave.todo) + len(wave.maybe_known))
        todo = sorted([*wave.todo, *self._commit_known(wave.maybe_known)], key=lambda entry: entry.uri)
        if not todo:
            return
        # Ray takes seconds to import and start: only for a run that needs it.
        from batchcap.ray_runtime import caption_files

        with closing(
            caption_files(todo, self._captioner, self._run.model.fingerprint, self._options)
        ) as batches:
            for batch in batches:
                self._commit(batch)

    def seal(self) -> None:
        """Writes what is not yet in Parquet."""
        parts.seal(self._catalog, self._store, self._run)
        self._unsealed = 0
        self._sealed_at = time.monotonic()

    def _commit_known(self, entries: Sequence[FileEntry]) -> list[FileEntry]:
        """Hashes files that may be moved, copied or merely touched; returns those that need a caption."""
        unknown: list[FileEntry] = []
        with ThreadPoolExecutor(_HASHING_THREADS) as pool:
            for start in range(0, len(entries), _HASHING_CHUNK):
                chunk = entries[start : start + _HASHING_CHUNK]
                hashes = list(pool.map(_hash_file, chunk))
                hashed = [(entry, digest) for entry, digest in zip(chunk, hashes, strict=True) if digest]
                # A file that can't be read goes on, so that one place decides what is wrong with it.
                unknown += [entry for entry, digest in zip(chunk, hashes, strict=True) if not digest]
                to_caption = self._run.commit_known(hashed, recaption=self._options.recaption)
                unknown += to_caption
                known = len(hashed) - len(to_caption)
                self._report.known += known
                self._progress.advance(known, 0)
                self._seal_if_due(known)
        return unknown

    def _commit(self, batch: pa.Table) -> None:
        captioned, failures = _rows_of(batch)
        self._run.commit(captioned, failures)
        now = time.monotonic()
        if self._first_commit_at is None:
            self._first_commit_at = now
        else:
            self._report.timed_files += len(captioned) + len(failures)
            self._report.captioning_s = now - self._first_commit_at
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
        self._latest.extend(failure.reason is Reason.IO_ERROR for failure in failures)
        unread = sum(self._latest)
        if unread > _BREAKER_SHARE * _BREAKER_WINDOW:
            raise PipelineError(
                f"{unread} of the last {len(self._latest)} files could not be read: the storage has failed, "
                "not the files; see that it is there and run again"
            )


def _rows_of(batch: pa.Table) -> tuple[list[Captioned], list[Failure]]:
    captioned, failures = [], []
    for row in batch.to_pylist():
        if row["reason"]:
            failures.append(
                Failure(
                    uri=row["uri"],
                    size_bytes=row["size_bytes"],
                    mtime_ns=row["mtime_ns"],
                    etag=row["etag"],
                    reason=Reason(row["reason"]),
                    detail=row["detail"],
                )
            )
        else:
            del row["reason"], row["detail"]
            captioned.append(Captioned(**row))
    return captioned, failures


def _hash_file(entry: FileEntry) -> str | None:
    try:
        with open(uri_to_path(entry.uri), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _require_images(sources: Sequence[str], report: RunReport) -> None:
    """A source without a single image is a mistake that a person wants to hear of."""
    seen = (
        report.captioned
        + report.known
        + report.unchanged
        + report.still_quarantined
        + sum(report.quarantined.values())
    )
    if not seen:
        raise SourceError(f"no image in {', '.join(sources)}")


def _for_the_record(options: IndexOptions) -> dict[str, Any]:
    return {**asdict(options), "retry": [reason.value for reason in options.retry]}
