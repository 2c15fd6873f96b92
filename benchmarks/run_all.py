"""Runs every benchmark and keeps what each found in benchmarks/results: `make bench`.

    python benchmarks/run_all.py [NAME ...]

A benchmark that fails leaves its older result as it is and doesn't keep the others from running.
`python docs/generate.py` puts the results into the README.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

HERE = Path(__file__).parent
# Files that are no benchmarks.
_OTHERS = {"common", "run_all", "table"}
# Runs beside the one with all options at their defaults, by the name of their result.
_VARIANTS = {
    "index_throughput-12mp": ["index_throughput", "--megapixels", "12", "--limit", "300", "--num-beams", "1"],
    "simulation-10m": ["simulation", "--images", "10000000"],
    "decoder-default-model": ["decoder", "--model", "batchcap/models/default", "--uncached-batch-size", "8"],
}


def list_runs() -> dict[str, list[str]]:
    """Script and options of every run, by the name of its result."""
    scripts = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in _OTHERS)
    return dict(sorted(({script: [script] for script in scripts} | _VARIANTS).items()))


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Of results; all of them by default.")] = None,
) -> None:
    """Runs benchmarks, one after the other."""
    runs = list_runs()
    if unknown := sorted(set(names or []) - runs.keys()):
        raise typer.BadParameter(f"no benchmark {', '.join(unknown)}; there are {', '.join(runs)}")
    failed = []
    for name in names or runs:
        script, *options = runs[name]
        print(f"{name} ...", flush=True)
        started = time.monotonic()
        command = [sys.executable, str(HERE / f"{script}.py"), *options]
        done = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            failed.append(name)
            continue
        result = json.loads(done.stdout.splitlines()[-1])
        (HERE / "results").mkdir(exist_ok=True)
        text = json.dumps(result, indent=2) + "\n"
        (HERE / "results" / f"{name}.json").write_text(text, encoding="utf-8")
        print(f"{name}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; the table has their older results, if any")


if __name__ == "__main__":
    typer.run(main)
