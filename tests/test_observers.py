"""Watching a run: the log, the metrics, the timeline, and the page made of it."""

import json
import re
import sys
import urllib.request
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from batchcap.balance import Resources, StageTimes
from batchcap.catalog import Captioned, Catalog, Failure, ModelInfo
from batchcap.errors import PipelineError, Reason, UsageError
from batchcap.observers import JsonLog, Metrics, Observers, Point, Timeline
from batchcap.report import write_report
from batchcap.run_report import RunReport
from tests.conftest import make_photo


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def events(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_log_of_a_run_that_ends_well(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "log.jsonl"
    with JsonLog(path, clock) as log:
        log.plan(100)
        log.advance(10, 1)  # too early for a line
        clock.now += 6
        log.advance(20, 0)
        # On disk at once: who looks while it runs sees it.
        assert [event["event"] for event in events(path)] == ["started", "progress"]
        log.finish(RunReport(captioned=30, skipped=Counter(hidden=2)))
    _, progress, finished = events(path)
    assert progress.items() >= {"planned": 100, "done": 30, "quarantined": 1, "elapsed_s": 6.0}.items()
    assert finished.items() >= {"event": "finished", "captioned": 30, "skipped": {"hidden": 2}}.items()
    # A second run goes on below.
    with JsonLog(path, clock):
        pass
    assert [event["event"] for event in events(path)] == ["started", "progress", "finished", "started"]


def test_the_log_of_a_run_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with pytest.raises(PipelineError), JsonLog(path) as log:
        log.advance(5, 0)
        raise PipelineError("the storage has failed")
    failed = events(path)[-1]
    assert failed.items() >= {"event": "failed", "message": "the storage has failed", "done": 5}.items()


def test_a_log_that_can_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't write the log"), JsonLog(tmp_path / "no" / "log.jsonl"):
        pytest.fail("entered")


def read_metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return {
        name: float(value) for name, value in (line.split() for line in lines if not line.startswith("#"))
    }


def test_metrics_are_served_while_the_run_lasts() -> None:
    with Metrics(0) as metrics:
        metrics.plan(100)
        metrics.advance(30, 2)
        found = read_metrics(metrics.port)
        assert found["batchcap_files_planned_total"] == 100
        assert found["batchcap_files_done_total"] == 30
        assert found["batchcap_files_quarantined_total"] == 2
        assert found["batchcap_last_commit_timestamp_seconds"] > 1.7e9
        with pytest.raises(UsageError, match=f"--metrics-port {metrics.port}"), Metrics(metrics.port):
            pytest.fail("the port is taken")
    with pytest.raises(OSError):
        read_metrics(metrics.port)


def test_metrics_without_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(UsageError, match=r"pip install 'batchcap\[cluster\]'"), Metrics(0):
        pytest.fail("entered")


def test_a_timeline_stays_small_and_keeps_the_whole_run() -> None:
    clock = Clock()
    timeline = Timeline(clock)
    for _ in range(20_000):
        clock.now += 0.25
        timeline.advance(10, 0)
    timeline.finish(RunReport())
    assert len(timeline.points) < 1100
    assert timeline.points[0] == Point(0.0, 0)
    assert timeline.points[-1] == Point(5000.0, 200_000)
    assert all(earlier.elapsed_s <= later.elapsed_s for earlier, later in pairwise(timeline.points))


def test_observers_all_hear_of_it_and_are_left(tmp_path: Path) -> None:
    log, timeline = JsonLog(tmp_path / "log.jsonl"), Timeline()
    with pytest.raises(PipelineError), Observers([timeline, log]) as observers:
        observers.plan(3)
        observers.advance(3, 1)
        raise PipelineError("over")
    assert timeline.points[-1].done == 3
    assert events(tmp_path / "log.jsonl")[-1]["event"] == "failed"
    # One that can't be entered keeps none of the others open.
    with (
        pytest.raises(UsageError),
        Observers([JsonLog(tmp_path / "log.jsonl"), JsonLog(tmp_path / "no" / "x")]),
    ):
        pytest.fail("entered")


class Page(HTMLParser):
    """What a report shows; a tag that is not closed as it was opened is an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.alts: list[str] = []
        self.text = ""
        self.scripts = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        found = dict(attrs)
        if tag == "img":
            assert (found["src"] or "").startswith("data:image/jpeg;base64,")
            self.alts.append(found["alt"] or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_of_a_run(tmp_path: Path) -> None:
    photo = make_photo(tmp_path / "a.jpg", 1)
    known = (100, 1, None)
    text = 'a "dog" <script>alert(1)</script> & a cat'
    with Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}", mode="write") as catalog:
        with catalog.run(["<photos>"], ModelInfo("f" * 64, "small"), {}) as run:
            run.commit(
                [
                    Captioned(str(photo), *known, "1", 80, 60, "jpeg", None, text, -1.0, 0.5, 3),
                    Captioned(
                        str(tmp_path / "gone.jpg"), *known, "2", 8, 6, "jpeg", None, "gone", -1.0, None, 3
                    ),
                ],
                [Failure(f"/b<{number}>.jpg", *known, Reason.TRUNCATED, "cut & off") for number in range(3)],
            )
        stages = StageTimes(Resources(1, 0, 2, 2, 2))
        stages.elapsed_s = 2.0
        report = RunReport(
            run_id=run.id, captioned=2, quarantined=Counter(truncated=3), total_s=9.5, stages=stages
        )
        points = [Point(0.0, 0), Point(5.0, 2), Point(9.5, 5)]
        path = tmp_path / "report.html"
        path.write_text("an older one")
        write_report(path, report, catalog, ["<photos>"], points)
        page = Page(path.read_text())
        assert page.scripts == 0
        assert page.alts == [text]  # the other picture is not there, its caption is
        for shown in (
            "<photos>",
            text,
            "gone",
            "(50%)",
            "/b<2>.jpg",
            "cut & off",
            "truncated (3)",
            "1 images/s",
        ):
            assert shown in page.text, shown
        assert re.search(r'points="[\d., ]+"', path.read_text())
        assert not [left for left in tmp_path.iterdir() if left.name.startswith("tmp")]
        with pytest.raises(UsageError, match="can't write the report"):
            write_report(tmp_path / "no" / "report.html", report, catalog, ["photos"], points)
        # A run with nothing to do has a page as well.
        with catalog.run(["/"], ModelInfo("f" * 64, "small"), {}) as run:
            pass
        write_report(
            path, RunReport(run_id=run.id, unchanged=2), catalog, ["/"], [Point(0.0, 0), Point(0.1, 0)]
        )
        assert Page(path.read_text()).alts == []


def test_samples_are_of_the_latest_run_alone_and_spread_over_it(tmp_path: Path) -> None:
    with Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}", mode="write") as catalog:
        for first in (0, 1000):
            with catalog.run(["/"], ModelInfo("f" * 64, "small"), {}) as run:
                run.commit(
                    [
                        Captioned(f"/{n:05}", 1, 1, None, str(n), 8, 6, "png", None, f"a {n}", -1.0, None, 3)
                        for n in range(first, first + 1000)
                    ]
                )
        found = [int(sample.uri[1:]) for sample in catalog.sample_captions(run.id, 1000, 10)]
        assert found == list(range(1000, 2000, 100))
        assert catalog.sample_captions(run.id, 0, 10) == []
