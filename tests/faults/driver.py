"""Runs the command line with one thing done to it: `python driver.py FAULT ARGUMENT -- batchcap's arguments`.

kill-at POINT        dies of SIGKILL at the point; writes its descendants to $DESCENDANTS first
signal SIGTERM       sends itself the signal after the first commit
signal-early SIGINT  sends itself the signal after the first captions, before any commit
none -               nothing
watch FILE           writes there what was imported and which files were opened; takes several command
                     lines, the next one after another --, each of which must succeed

All but `watch` caption with the costless captioner: what captions is nothing to them, and a network takes a
worker many seconds to build. Only where $DESCENDANTS are asked for, its workers load TensorFlow. Where there
is $ON_RAY, Ray captions however few the files are.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

from batchcap import cli, run_options
from batchcap.captioner import sources
from batchcap.catalog import Catalog, Rebuild, Run

TESTS = str(Path(__file__).parents[1])


@dataclass(frozen=True, slots=True)
class OnRay(run_options.IndexOptions):
    in_process_files: int = 0


def caption_on_ray() -> None:
    run_options.IndexOptions = OnRay  # type: ignore[misc]


def caption_at_no_cost() -> None:
    """In this process and in Ray's workers, which have its environment."""
    sys.path.insert(0, TESTS)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [TESTS, os.environ.get("PYTHONPATH")]))
    from costless import Costless

    captioner = Costless(loads_tensorflow="DESCENDANTS" in os.environ)
    sources.open_source = lambda *args, **kwargs: captioner


def die() -> NoReturn:
    if "DESCENDANTS" in os.environ:
        from processes import descendants, title

        found = {pid: title(pid) for pid in descendants(os.getpid())}
        Path(os.environ["DESCENDANTS"]).write_text(json.dumps(found))
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def around(
    owner: Any,
    name: str,
    *,
    before: Callable[..., Any] | None = None,
    after: Callable[..., Any] | None = None,
) -> None:
    """Has something done before or after each call of a method or function."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(*args)
        result = original(*args, **kwargs)
        if after is not None:
            after(*args)
        return result

    setattr(owner, name, wrapped)


def is_part(source: Any, target: Any) -> bool:
    return str(target).endswith(".parquet")


def is_catalog(source: Any, target: Any) -> bool:
    return str(target).endswith("catalog.db")


def is_aside(source: Any, target: Any) -> bool:
    return ".replaced-" in str(target)


# Where the commit protocol may be cut, in its order.
POINTS = (
    "second-commit",
    "commit-done",
    "naming-a-part",
    "part-named",
    "writing-a-part",
    "publishing-a-part",
    "part-published",
    "finishing-a-part",
    "part-finished",
    "ending",
)


def kill_at(point: str) -> None:
    commits: list[None] = []

    def second(*args: Any) -> None:
        commits.append(None)
        if len(commits) == 2:
            die()

    match point:
        case "second-commit":
            around(Run, "commit", before=second)
        case "commit-done":
            around(Run, "commit", after=lambda *args: die())
        case "naming-a-part":
            around(Catalog, "assign_part", before=lambda *args: die())
        case "part-named":
            around(Catalog, "assign_part", after=lambda *args: die())
        case "writing-a-part":
            around(Catalog, "part_rows", before=lambda *args: die())
        case "publishing-a-part":
            around(os, "link", before=lambda *args: is_part(*args) and die())
        case "part-published":
            around(os, "link", after=lambda *args: is_part(*args) and die())
        case "finishing-a-part":
            around(Catalog, "finish_part", before=lambda *args: die())
        case "part-finished":
            around(Catalog, "finish_part", after=lambda *args: die())
        case "ending":
            around(Run, "_finish", before=lambda *args: die())
        case "replacing-a-part":
            around(os, "replace", before=lambda *args: is_part(*args) and die())
        case "part-replaced":
            around(os, "replace", after=lambda *args: is_part(*args) and die())
        case "part-reopened":
            around(Catalog, "reopen_part", after=lambda *args: die())
        case "part-restored":
            around(Rebuild, "add_part", after=lambda *args: die())
        case "catalog-put-aside":
            around(os, "rename", after=lambda *args: is_aside(*args) and die())
        case "catalog-published":
            around(os, "link", after=lambda *args: is_catalog(*args) and die())
        case _:
            raise ValueError(point)


def watch(report: str, arguments: list[str]) -> None:
    opened: list[str] = []

    def note(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            opened.append(os.fsdecode(args[0]) if isinstance(args[0], str | bytes) else "")

    sys.addaudithook(note)
    *earlier, last = [list(line) for is_end, line in groupby(arguments, "--".__eq__) if not is_end]
    try:
        for line in earlier:
            run_one(line)
        sys.argv[1:] = last
        cli.main()
    finally:
        found = {"opened": list(opened), "modules": sorted(sys.modules)}
        Path(report).write_text(json.dumps(found))


def run_one(arguments: list[str]) -> None:
    """One command line of several."""
    sys.argv[1:] = arguments
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            sys.exit(f"{arguments} ended with exit status {end.code}")


def main() -> None:
    fault, argument, separator, *arguments = sys.argv[1:]
    if separator != "--":
        raise ValueError("-- must follow the fault and its argument")
    sys.argv = ["batchcap", *arguments]
    if fault != "watch":
        caption_at_no_cost()
    if "ON_RAY" in os.environ:
        caption_on_ray()
    match fault:
        case "none":
            pass
        case "kill-at":
            kill_at(argument)
        case "signal" | "signal-early":
            from batchcap.stages import CaptionWorker

            number = signal.Signals[argument]
            # Tests that a shell runs in the background inherit that SIGINT is ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            owner, name = (Run, "commit") if fault == "signal" else (CaptionWorker, "__call__")
            around(owner, name, after=lambda *args: os.kill(os.getpid(), number))
        case "watch":
            watch(argument, arguments)
            return
        case _:
            raise ValueError(fault)
    cli.main()


if __name__ == "__main__":
    main()
