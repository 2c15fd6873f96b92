"""How long does `batchcap index` take to its first caption, and how long where there is nothing to do?

Prints one JSON object: seconds from the start of the process to the first committed captions, to its end, and
of a second run over the same files; on Ray, as a large collection is captioned. `few_files` is a first run as
people have it: so few files are captioned without Ray. Each is a process of its own, with Ray and TensorFlow
not yet running; their files may be in the cache of the system. `parts` says when, in seconds from the start,
each part of the way to the first commit was done.

    python benchmarks/startup.py [--photos DIR] [--model DIR] [--rounds 3]
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from common import make_photos, provenance

_IMAGES = 128
# The parts of the way to the first commit: the call that ends each.
_PARTS = ("planned", "ray_started", "dataset_built", "first_commit")


def main(
    photos: Annotated[Path | None, typer.Option(help="Folder of photographs; made up without it.")] = None,
    model: Annotated[Path | None, typer.Option(help="Folder of a model; the default one without it.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Measures rounds of a first run and a second one."""
    with tempfile.TemporaryDirectory() as made:
        folder = photos or make_photos(Path(made), _IMAGES)
        found = [measure_round(folder, model) for _ in range(rounds)]
    names = ("first_commit", "first_run", "nothing_to_do", "few_files")
    print(
        json.dumps(
            {
                "benchmark": "startup",
                "seconds": {name: [round(each[name], 2) for each in found] for name in names},
                "median_s": {
                    name: round(statistics.median(each[name] for each in found), 2) for name in names
                },
                "parts": {
                    part: round(statistics.median(each["parts"][part] for each in found), 2)
                    for part in _PARTS
                },
                **provenance(),
            }
        )
    )


def measure_round(folder: Path, model: Path | None) -> dict[str, Any]:
    """A first run into an empty store, and a second one."""
    with tempfile.TemporaryDirectory() as store:
        arguments = ["index", str(folder), "--store", store]
        arguments += ["--model", str(model)] if model else []
        times = Path(store) / "times.json"
        started, first_run = run([sys.executable, __file__, *arguments], BENCHMARK_TIMES=str(times))
        parts = {name: at - started for name, at in json.loads(times.read_text()).items()}
        if missing := set(_PARTS) - parts.keys():
            raise SystemExit(f"the run did not come to {', '.join(sorted(missing))}")
        plain = [sys.executable, "-c", "from batchcap.cli import main; main()"]
        _, nothing_to_do = run([*plain, *arguments])
    with tempfile.TemporaryDirectory() as store:
        _, few_files = run([*plain, *arguments, "--store", store])
    return {
        "first_commit": parts["first_commit"],
        "first_run": first_run,
        "nothing_to_do": nothing_to_do,
        "few_files": few_files,
        "parts": parts,
    }


def run(command: list[str], **env: str) -> tuple[float, float]:
    """Runs a command; when it started (as `time.time` has it), and how many seconds it took."""
    started, clock = time.time(), time.perf_counter()
    subprocess.run(command, env=os.environ | env, stdout=subprocess.DEVNULL, check=True)
    return started, time.perf_counter() - clock


def run_watched(times: Path) -> None:
    """`batchcap` on Ray, with the arguments of this process, which notes when each part is first done."""
    from batchcap import cli, pipeline, run_options
    from batchcap.catalog import Run

    @dataclass(frozen=True, slots=True)
    class OnRay(run_options.IndexOptions):
        in_process_files: int = 0

    noted: dict[str, float] = {}

    def note_after(owner: Any, name: str, part: str) -> None:
        original = getattr(owner, name)

        def noting(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if part not in noted:
                noted[part] = time.time()
                times.write_text(json.dumps(noted))
            return result

        setattr(owner, name, noting)

    def wait_and_watch(start: Any) -> None:
        noted.setdefault("planned", time.time())
        wait(start)
        noted.setdefault("ray_started", time.time())
        from batchcap import ray_runtime

        note_after(ray_runtime, "build_dataset", "dataset_built")

    run_options.IndexOptions = OnRay  # type: ignore[misc]
    wait = pipeline.RayStart.wait
    pipeline.RayStart.wait = wait_and_watch  # type: ignore[method-assign]
    note_after(Run, "commit", "first_commit")
    cli.main()


if __name__ == "__main__":
    if "BENCHMARK_TIMES" in os.environ:
        run_watched(Path(os.environ["BENCHMARK_TIMES"]))
    else:
        typer.run(main)
