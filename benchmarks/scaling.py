"""What does an image cost, and how much memory does a run take, as the collection grows?

Prints one JSON object. The captioner costs nothing, so that all else shows: scan, plan, reading, decoding of
tiny pictures, Ray, SQL and Parquet. Each size is a whole run into an empty store, in a process of its own.
`ms_per_image` is from the first commit to the last, hence without the start-up; `cpu_ms_per_image` is the CPU
time of all processes in between. Memory is in MiB: `rss` as the system counts it, with what is shared counted
in each process; `pss` with that divided among those who share it. Linux only.

    python benchmarks/scaling.py [--files 1000 --files 10000 --files 100000] [--rounds 1]
"""

import io
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import measure_apart, median_ratio, provenance
from PIL import Image

from batchcap.captioner.images import ImageSpec
from batchcap.captioner.protocol import Caption
from batchcap.catalog import Catalog
from batchcap.pipeline import index_collection
from batchcap.run_options import IndexOptions
from batchcap.run_report import Progress

_FILES_PER_FOLDER = 1000
# Between two looks at the memory of all processes, each of which takes some milliseconds.
_SAMPLE_INTERVAL_S = 2.0
_KINDS = {"LoadImages": "loader", "decoder_child": "decoder", "CaptionWorker": "caption_worker"}


def main(
    files: Annotated[list[int] | None, typer.Option(min=1, help="Files of a collection.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 1,
    measure: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measures runs over collections of several sizes."""
    if measure is not None:
        print(json.dumps(measure_run(measure)))
        return
    found: dict[int, list[dict[str, Any]]] = {size: [] for size in files or [1000, 10_000, 100_000]}
    for _ in range(rounds):
        for size, runs in found.items():
            runs.append(measure_apart(__file__, "--measure", size))
    print(
        json.dumps(
            {
                "benchmark": "scaling",
                "rounds": rounds,
                "runs": {str(size): runs for size, runs in found.items()},
                "cost_to_size_before": compare_sizes(found),
                **provenance(),
            }
        )
    )


def compare_sizes(found: dict[int, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """What an image costs in a collection, against what it costs in the one before.

    Args:
        found: the runs of each round, by how many files they had.
    """
    sizes = list(found)
    return {
        f"{larger} to {smaller}": {
            name: median_ratio([run[name] for run in found[larger]], [run[name] for run in found[smaller]])
            for name in ("ms_per_image", "cpu_ms_per_image")
        }
        for smaller, larger in zip(sizes, sizes[1:], strict=False)
    }


def measure_run(files: int) -> dict[str, Any]:
    """One run over so many files."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder, "photos"), files)
        with Catalog.open(f"sqlite:///{folder}/store/catalog.db", mode="write") as catalog:
            started = time.perf_counter()
            report = index_collection(
                [f"{folder}/photos"],
                catalog,
                Path(folder, "store"),
                Costless(),
                # However few they are: what is measured is Ray, too.
                options=IndexOptions(in_process_files=0),
                progress=watch,
            )
    if report.captioned != files or not report.timed_files:
        raise SystemExit(f"{report.captioned} of {files} files captioned: too few, or copies among them")
    return {
        "seconds": {
            "plan": round(watch.planned_at - started, 3),
            "start_up": round(watch.first_at - watch.planned_at, 3),
            "captioning": round(report.captioning_s, 3),
            "whole": round(report.total_s, 3),
        },
        "ms_per_image": round(1000 * report.captioning_s / report.timed_files, 4),
        "cpu_ms_per_image": round(1000 * watch.cpu_s / report.timed_files, 4),
        "memory_mib": {kind: found.describe() for kind, found in sorted(watch.memory.items())},
        "stage_share": {name: round(share, 3) for name, share in report.stages.shares.items()},
    }


def make_files(folder: Path, count: int) -> None:
    """Tiny JPEG files, no two with the same content: a number stands behind the picture.

    Nor do all have the same size, for photographs don't, and files of a known size may be copies.
    """
    encoded = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((32, 32)).save(encoded, "JPEG")
    for number in range(count):
        below = folder / f"{number // _FILES_PER_FOLDER:04}"
        below.mkdir(parents=True, exist_ok=True)
        behind = number.to_bytes(8, "big") + bytes(number % 997)
        (below / f"{number:07}.jpg").write_bytes(encoded.getvalue() + behind)


@dataclass
class Memory:
    """The memory of the processes of one kind."""

    processes: set[int] = field(default_factory=set)
    rss: float = 0.0
    pss: float = 0.0

    def describe(self) -> dict[str, float]:
        """How many there were, and the most that one of them took, in MiB."""
        return {"processes": len(self.processes), "rss": round(self.rss, 1), "pss": round(self.pss, 1)}


class Watch(Progress):
    """Looks at this process and its descendants after commits."""

    def __init__(self) -> None:
        self.planned_at = self.first_at = self._sampled_at = 0.0
        self.memory: dict[str, Memory] = defaultdict(Memory)
        self._cpu_at_first: dict[int, float] = {}
        self._cpu: dict[int, float] = {}

    @property
    def cpu_s(self) -> float:
        """CPU time of all processes from the first commit on."""
        return sum(seconds - self._cpu_at_first.get(pid, 0.0) for pid, seconds in self._cpu.items())

    def plan(self, files: int) -> None:
        """Ray is yet to start."""
        self.planned_at = time.perf_counter()

    def advance(self, files: int, quarantined: int) -> None:
        """After a commit."""
        now = time.perf_counter()
        pids = [os.getpid(), *descendants(os.getpid())]
        for pid in pids:
            self._cpu[pid] = cpu_seconds(pid) or self._cpu.get(pid, 0.0)
        if not self.first_at:
            self.first_at = now
            self._cpu_at_first = dict(self._cpu)
        if now - self._sampled_at > _SAMPLE_INTERVAL_S:
            self._sampled_at = now
            for pid in pids:
                self._sample(pid)

    def _sample(self, pid: int) -> None:
        try:
            title = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
            status = Path(f"/proc/{pid}/status").read_text()
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:  # it has ended
            return
        kind = "driver" if pid == os.getpid() else "ray"
        kind = next((name for part, name in _KINDS.items() if part in title), kind)
        found = self.memory[kind]
        found.processes.add(pid)
        found.rss = max(found.rss, kib_of("VmHWM:", status) / 1024)
        found.pss = max(found.pss, kib_of("Pss:", rollup) / 1024)


def kib_of(name: str, text: str) -> int:
    """The value of one line of a file in /proc; 0 where there is no such line, as of a dead process."""
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(name)), 0)


def cpu_seconds(pid: int) -> float | None:
    """User and system time of a process; None if it has ended."""
    try:
        values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """The children of a process, and theirs."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


class Costless:
    """The source of a captioner that costs nothing."""

    name = "costless"
    image_spec = ImageSpec(32)

    def fingerprint(self) -> str:
        return CostlessCaptioner.fingerprint

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}

    def load_captioner(self, *, batch_size: int, num_threads: int) -> "CostlessCaptioner":
        return CostlessCaptioner()


class CostlessCaptioner:
    """What a worker loads of `Costless`."""

    fingerprint = "c" * 64
    image_spec = ImageSpec(32)

    def caption(self, images: Sequence[np.ndarray]) -> list[Caption]:
        return [Caption("two dogs run over the green grass after a red ball", -5.0, 0.5, 12) for _ in images]


if __name__ == "__main__":
    typer.run(main)
