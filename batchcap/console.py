"""What the command line shows to people: progress, tables, summaries. Results themselves go to stdout."""

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from batchcap.balance import StageTimes
from batchcap.catalog import QuarantinedFile, SearchHit, Status
from batchcap.preview import Preview
from batchcap.rebuild import RebuildReport
from batchcap.run_report import Progress, RunReport
from batchcap.sampling import Sample
from batchcap.verify import Verification

# Between two lines of `ProgressLines`.
_LINE_INTERVAL_S = 30.0
# What would break a line, move the cursor, or can't be encoded.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class ProgressBar(Progress):
    """A progress bar on stderr; silent where stderr is no terminal. A context manager."""

    def __init__(self) -> None:
        self._bar = RichProgress(
            TextColumn("captioning"),
            BarColumn(),
            TaskProgressColumn(show_speed=False),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[quarantined]}"),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("", total=None, rate="", quarantined="")
        self._planned = self._quarantined = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def plan(self, files: int) -> None:
        self._planned += files
        self._bar.update(self._task, total=self._planned)

    def advance(self, files: int, quarantined: int) -> None:
        self._quarantined += quarantined
        speed = self._bar.tasks[0].speed
        self._bar.update(
            self._task,
            advance=files,
            rate=f"{speed:.1f} images/s" if speed else "",
            quarantined=f"{self._quarantined} quarantined" if self._quarantined else "",
        )


class ProgressLines(ProgressBar):
    """A progress bar where stderr is a terminal; else a line now and then, for who reads the log of a job.

    Args:
        clock: seconds that only go up.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._done = self._first = 0
        self._began_at = self._printed_at = 0.0

    def advance(self, files: int, quarantined: int) -> None:
        super().advance(files, quarantined)
        now = self._clock()
        if not self._done:
            # When the first come, the start-up is over: from here on counts the time.
            self._first = files
            self._began_at = self._printed_at = now
        self._done += files
        if sys.stderr.isatty() or now - self._printed_at < _LINE_INTERVAL_S:
            return
        self._printed_at = now
        rate = (self._done - self._first) / (now - self._began_at)
        bad = f", {self._quarantined:,} quarantined" if self._quarantined else ""
        print(
            f"{self._done:,} of {self._planned:,} files, {rate:.1f} images/s{bad}",
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def counting_rows(doing: str) -> Iterator[Callable[[int], None]]:
    """Shows on stderr how many rows are done; silent where stderr is no terminal.

    Args:
        doing: what is done with them.

    Yields:
        What is to be told of each number of rows.
    """
    with RichProgress(
        TextColumn(doing),
        TextColumn("{task.completed:,.0f} rows"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda rows: bar.advance(task, rows)


def summary(report: RunReport) -> str:
    """What a run did, in a few lines."""
    done = [f"{report.captioned:,} captioned"]
    if report.images_per_s:
        done[0] += f" ({report.images_per_s:.1f} images/s)"
    if report.known:
        done.append(f"{report.known:,} moved, copied or touched")
    done.append(f"{report.unchanged:,} unchanged")
    lines = [", ".join(done) + f", {report.total_s:.1f} s"]
    if report.stages is not None and report.stages.elapsed_s:
        lines.append(_stages(report.stages))
    if report.quarantined:
        lines.append(f"{_reasons(report.quarantined)} in quarantine: see batchcap status --quarantine")
    if report.still_quarantined:
        lines.append(f"{report.still_quarantined:,} in quarantine from earlier, not tried again")
    if report.stale:
        lines.append(f"{report.stale:,} captioned by another model: --recaption does them again")
    if report.vanished:
        moved = f", {report.moved:,} of them moved" if report.moved else ""
        lines.append(f"{report.vanished:,} vanished{moved}")
    if report.skipped:
        lines.append(f"skipped: {_reasons(report.skipped)}")
    return "\n".join(lines)


def preview_summary(preview: Preview) -> str:
    """What a run would do, in a few lines."""
    first = f"{preview.to_caption:,} to caption"
    if preview.estimate_s is not None:
        first += f" (about {timedelta(seconds=round(preview.estimate_s))} at the pace of the latest run)"
    lines = [
        f"{first}, {preview.maybe_known:,} to hash first: moved or copied?",
        f"of these {preview.new:,} new, {preview.changed:,} changed; {preview.unchanged:,} unchanged",
    ]
    if preview.quarantined:
        lines.append(f"{preview.quarantined:,} in quarantine, not to be tried again")
    if preview.stale:
        lines.append(f"{preview.stale:,} captioned by another model")
    if preview.vanished:
        lines.append(f"{preview.vanished:,} of {preview.known:,} known files are gone")
    if preview.skipped:
        lines.append(f"skipped: {_reasons(preview.skipped)}")
    return "\n".join(lines)


def print_sample(sample: Sample) -> None:
    """Old and new captions side by side; a file that can't be captioned has its reason there."""
    has_old = any(file.old_caption is not None for file in sample.files)
    rows = []
    for file in sample.files:
        old = [file.old_caption, file.old_model, _two_digits(file.old_confidence)] if has_old else []
        new = file.caption if file.reason is None else f"{file.reason}: {file.detail}"
        rows.append([file.uri, *old, new, _two_digits(file.confidence)])
    old_columns = ["old caption", "by", "old confidence"] if has_old else []
    print_rows(["uri", *old_columns, "new caption", "confidence"], rows)


def sample_summary(sample: Sample) -> str:
    """How large a sample is, and how it differs from what there is."""
    lines = [f"{len(sample.files):,} of {_count(sample.of, 'file')}, as {sample.model} would caption them"]
    if any(file.old_caption is not None for file in sample.files):
        lines.append(f"{_count(sample.same, 'caption')} would stay the same")
        old, new = sample.mean_confidence
        if old is not None and new is not None:
            lines.append(f"mean confidence {old:.2f}, of the new captions {new:.2f}")
    if sample.failed:
        lines.append(f"can't be captioned: {_reasons(sample.failed)}")
    if sample.known:
        lines.append(f"{sample.known:,} left out: they are moved or copied, and have a caption")
    return "\n".join(lines)


def _two_digits(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def _stages(stages: StageTimes) -> str:
    """Which stage binds, and how much of the time each was busy."""
    shares, resources = stages.shares, stages.resources
    loaders = _count(resources.loaders, "loader")
    workers = _count(resources.caption_workers, "network")
    threads = _count(resources.threads_per_worker, "thread")
    gpus = f" on {resources.gpus_per_worker:g} GPU" if resources.gpus_per_worker != 1 else " on a GPU"
    each = gpus if resources.gpus_per_worker else f" with {threads}"
    if resources.caption_workers > 1:
        each += " each"
    return (
        f"{stages.binds} binds: {loaders} busy {shares['loading']:.0%}, {workers}{each} busy "
        f"{shares['captioning']:.0%}, committing {shares['committing']:.0%} of the time"
    )


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def print_hits(hits: Sequence[SearchHit]) -> None:
    """Hits for a person: the caption with its found words marked, and where the picture is."""
    if not sys.stdout.isatty():
        for hit in hits:
            print(f"{on_one_line(hit.uri)}\t{on_one_line(hit.caption)}")
        return
    console = Console()
    for hit in map(SearchHit.snippet, hits):
        caption = Text(hit.caption)
        for start, end in hit.spans:
            caption.stylize("bold green", start, end)
        console.print(caption, Text(f"  {on_one_line(hit.uri)}", style="dim"), sep="\n")


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on a terminal, tab-separated values elsewhere."""
    if not sys.stdout.isatty():
        print("\t".join(map(on_one_line, columns)))
        for row in rows:
            print("\t".join("" if value is None else on_one_line(value) for value in row))
        return
    table = Table()
    for column in columns:
        table.add_column(Text(on_one_line(column)))
    for row in rows:
        table.add_row(*(Text("" if value is None else on_one_line(value)) for value in row))
    Console().print(table)


def print_status(status: Status) -> None:
    """What a catalog holds."""
    vanished = f" ({status.vanished:,} vanished)" if status.vanished else ""
    print(f"{status.images:,} images in {status.locations:,} files{vanished}")
    for count in status.captions:
        model = "people" if count.model is None else f"{count.model} ({(count.fingerprint or '')[:12]})"
        print(f"{count.images:,} captions by {model}")
    if status.quarantine:
        print(f"in quarantine: {_reasons(status.quarantine)}")
    parts = ", ".join(f"{count:,} {state}" for state, count in sorted(status.parts.items())) or "none"
    print(f"Parquet parts: {parts}; {status.unsealed_rows:,} rows not yet in a part")
    if status.runs:
        print("latest runs:")
    for run in status.runs:
        counts = ", ".join(f"{count:,} {name}" for name, count in run.counts.items()) or "nothing to do"
        sources = " ".join(map(on_one_line, run.source))
        print(f"  {run.started_at:%Y-%m-%d %H:%M:%S} UTC  {run.state}  {sources}  {counts}")


def print_quarantine(files: Sequence[QuarantinedFile]) -> None:
    """The bad files, with what is wrong with each."""
    print_rows(["reason", "uri", "detail"], [(file.reason, file.uri, file.detail) for file in files])


def print_verification(found: Verification) -> None:
    """What was compared, and a line for each disagreement."""
    print(f"{_count(found.parts, 'Parquet file')} compared, {_count(found.rows, 'row')} equal")
    if found.pending_parts or found.unsealed_rows:
        print(
            f"not yet in Parquet: {_count(found.pending_parts, 'file')} to be written, "
            f"{_count(found.unsealed_rows, 'row')} in none; the next run writes them"
        )
    if found.findings:
        print_rows(
            ["finding", "where", "what"],
            [(finding.kind.value, finding.subject, finding.detail) for finding in found.findings],
        )
    hidden = sum(found.counts.values()) - len(found.findings)
    if hidden:
        print(f"and {hidden:,} more of these kinds")


def print_rebuild(report: RebuildReport) -> None:
    """What a catalog was made of, and where the old one is."""
    print(f"made again from {_count(report.parts, 'Parquet file')} with {_count(report.rows, 'row')}")
    if report.aside is not None:
        print(f"the old catalog is {on_one_line(report.aside)} now")
    for path in report.damaged:
        print(f"left out, for it is damaged: {on_one_line(path)}; what it held will be captioned again")
    print("the next `batchcap index` reads each file once, to see that it is what was captioned")


def print_error(message: str) -> None:
    """One line on stderr, whatever the message quotes."""
    print(f"batchcap: {_escape(message)}", file=sys.stderr)


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))


def on_one_line(value: object) -> str:
    """A value as text that stays on its line and leaves a terminal alone; what doesn't is escaped.

    Backslashes are doubled, so that nothing is lost.
    """
    return _escape(str(value).replace("\\", "\\\\"))


def _escape(text: str) -> str:
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
