"""The report of a run: one HTML page that needs nothing else, `index --report FILE`."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby, pairwise
from pathlib import Path
from string import Template

from batchcap.catalog import CaptionedFile, Catalog, FailedFile
from batchcap.errors import UsageError
from batchcap.observers import Point
from batchcap.run_report import RunReport
from batchcap.thumbnails import thumbnails

_SAMPLES = 24
_THUMBNAIL_SIZE = 160
_FAILURES = 500
_CHART = (800, 160)  # width and height
# Points of the curve: each is the mean rate of its share of the time.
_CHART_POINTS = 100

_PAGE = Template("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>batchcap: $source</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
dl { display: grid; grid-template-columns: max-content auto; gap: 0 1.5rem; }
dd { margin: 0; }
svg { width: 100%; height: auto; background: #f4f4f4; }
ul.captions { display: grid; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); gap: 1rem; }
ul.captions { list-style: none; padding: 0; }
td, th { text-align: left; vertical-align: top; padding-right: 1rem; overflow-wrap: anywhere; }
small { color: #555; overflow-wrap: anywhere; }
</style>
<h1>$source</h1>
<p>Run $run_id</p>
<h2>Files</h2>
<dl>$counts</dl>
<h2>Images per second</h2>
$chart
<p>$stages</p>
<h2>Captions</h2>
<ul class="captions">$captions</ul>
<h2>In quarantine</h2>
$failures
</html>
""")


def write_report(
    path: Path, report: RunReport, catalog: Catalog, sources: Sequence[str], points: Sequence[Point]
) -> None:
    """Writes the page; what was there under its name is replaced, whole.

    Args:
        path: of the page.
        report: what the run did.
        catalog: what it left.
        sources: what was indexed, as the user wrote it.
        points: how far it was when.

    Raises:
        UsageError: the page can't be written.
        CatalogError: the catalog can't be read.
    """
    run_id = report.run_id or ""
    captions = catalog.sample_captions(run_id, report.captioned + report.known, _SAMPLES)
    page = _PAGE.substitute(
        source=escape(" ".join(sources)),
        run_id=escape(run_id),
        counts=_counts(report),
        chart=_chart(points),
        stages=_stages(report),
        captions="".join(_captions(captions)),
        failures=_failures(catalog.failed_files(run_id, _FAILURES)),
    )
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="backslashreplace", dir=path.absolute().parent, delete=False
        ) as file:
            file.write(page)
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    except OSError as error:
        raise UsageError(f"can't write the report {path}: {error.strerror}") from error


def _counts(report: RunReport) -> str:
    rows = [
        ("captioned", report.captioned),
        ("moved, copied or touched", report.known),
        ("unchanged", report.unchanged),
        ("put into quarantine", sum(report.quarantined.values())),
        ("in quarantine from earlier", report.still_quarantined),
        ("captioned by another model", report.stale),
        ("vanished", report.vanished),
        ("skipped", sum(report.skipped.values())),
    ]
    seconds = f"<dt>seconds</dt><dd>{report.total_s:,.1f}</dd>"
    return "".join(f"<dt>{name}</dt><dd>{count:,}</dd>" for name, count in rows) + seconds


def _stages(report: RunReport) -> str:
    if report.stages is None or not report.stages.elapsed_s:
        return ""
    shares = ", ".join(f"{name} {share:.0%}" for name, share in report.stages.shares.items())
    return f"The slowest stage is {escape(report.stages.binds)}. Busy: {shares}."


def _chart(points: Sequence[Point]) -> str:
    """The rate over time as a curve."""
    width, height = _CHART
    rates = [
        (later.elapsed_s, (later.done - earlier.done) / (later.elapsed_s - earlier.elapsed_s))
        for earlier, later in pairwise(_thin_out(points))
        if later.elapsed_s > earlier.elapsed_s
    ]
    if not rates:
        return "<p>Nothing was captioned.</p>"
    last, highest = rates[-1][0], max(rate for _, rate in rates) or 1.0
    curve = " ".join(f"{x / last * width:.1f},{height - y / highest * (height - 20):.1f}" for x, y in rates)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="up to {highest:,.0f} images per second">'
        f'<polyline fill="none" stroke="#06c" stroke-width="2" points="{curve}"/>'
        f'<text x="4" y="16" font-size="14">{highest:,.0f} images/s</text></svg>'
    )


def _thin_out(points: Sequence[Point]) -> list[Point]:
    """At most so many points as the chart shows, evenly in time."""
    interval_s = points[-1].elapsed_s / _CHART_POINTS
    kept = [points[0]]
    for point in points[1:]:
        if point.elapsed_s - kept[-1].elapsed_s >= interval_s:
            kept.append(point)
    return kept


def _captions(captions: Sequence[CaptionedFile]) -> Iterable[str]:
    pictures = thumbnails([caption.uri for caption in captions], _THUMBNAIL_SIZE)
    for caption, data in zip(captions, pictures, strict=True):
        picture = "" if data is None else f'<img src="{data}" alt="{escape(caption.caption)}"><br>'
        confidence = "" if caption.confidence is None else f" ({caption.confidence:.0%})"
        place = f"<small>{escape(caption.uri)}</small>"
        yield f"<li>{picture}{escape(caption.caption)}{confidence}<br>{place}</li>"


def _failures(failures: Sequence[FailedFile]) -> str:
    if not failures:
        return "<p>Nothing.</p>"
    tables = []
    for reason, files in groupby(failures, lambda failed: failed.reason):
        rows = [f"<tr><td>{escape(file.uri)}<td>{escape(file.detail)}" for file in files]
        tables.append(f"<h3>{reason} ({len(rows):,})</h3><table>{''.join(rows)}</table>")
    return "".join(tables)
