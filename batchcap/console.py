"""What the command line shows to people: progress, tables, summaries. Results themselves go to stdout."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from batchcap.catalog import QuarantinedFile, SearchHit, Status
from batchcap.pipeline import Progress, RunReport

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


def summary(report: RunReport) -> str:
    """What a run did, in a few lines."""
    done = [f"{report.captioned:,} captioned"]
    if report.images_per_s:
        done[0] += f" ({report.images_per_s:.1f} images/s)"
    if report.known:
        done.append(f"{report.known:,} moved, copied or touched")
    done.append(f"{report.unchanged:,} unchanged")
    lines = [", ".join(done) + f", {report.total_s:.1f} s"]
    if report.quarantined:
        lines.append(f"{_reasons(report.quarantined)} in quarantine: see batchcap status --quarantine")
    if report.still_quarantined:
        lines.append(f"{report.still_quarantined:,} in quarantine from earlier, not tried again")
    if report.stale:
        lines.append(f"{report.stale:,} captioned by another model: --recaption does them again")
    if report.skipped:
        lines.append(f"skipped: {_reasons(report.skipped)}")
    return "\n".join(lines)


def print_hits(hits: Sequence[SearchHit]) -> None:
    """Hits for a person: the caption with its found words marked, and where the picture is."""
    if not sys.stdout.isatty():
        for hit in hits:
            print(f"{on_one_line(hit.uri)}\t{on_one_line(hit.caption)}")
        return
    console = Console()
    for hit in hits:
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
