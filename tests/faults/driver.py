"""Runs the command line with one thing done to it: `python driver.py FAULT ARGUMENT -- batchcap's arguments`.

kill-at POINT        dies of SIGKILL at the point; writes its descendants to $DESCENDANTS first
signal SIGTERM       sends itself the signal after the first commit
watch FILE           writes there what was imported and which files were opened
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from batchcap import cli
from batchcap.catalog import Catalog, Run


def die() -> NoReturn:
    if "DESCENDANTS" in os.environ:
        sys.path.insert(0, str(Path(__file__).parents[1]))
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


def kill_at(point: str) -> None:
    commits: list[None] = []

    def second(*args: Any) -> None:
        commits.append(None)
        if len(commits) == 2:
            die()

    match point:
        case "second-commit":
            around(Run, "commit", before=second)
        case "naming-a-part":
            around(Catalog, "assign_part", before=lambda *args: die())
        case "writing-a-part":
            around(Catalog, "part_rows", before=lambda *args: die())
        case "publishing-a-part":
            around(os, "link", before=lambda *args: is_part(*args) and die())
        case "part-published":
            around(os, "link", after=lambda *args: is_part(*args) and die())
        case "part-finished":
            around(Catalog, "finish_part", after=lambda *args: die())
        case _:
            raise ValueError(point)


def watch(report: str) -> None:
    opened: list[str] = []

    def note(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            opened.append(os.fsdecode(args[0]) if isinstance(args[0], str | bytes) else "")

    sys.addaudithook(note)
    try:
        cli.main()
    finally:
        found = {"opened": list(opened), "modules": sorted(sys.modules)}
        Path(report).write_text(json.dumps(found))


def main() -> None:
    fault, argument, separator, *arguments = sys.argv[1:]
    if separator != "--":
        raise ValueError("-- must follow the fault and its argument")
    sys.argv = ["batchcap", *arguments]
    match fault:
        case "kill-at":
            kill_at(argument)
        case "signal":
            number = signal.Signals[argument]
            # Tests that a shell runs in the background inherit that SIGINT is ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            around(Run, "commit", after=lambda *args: os.kill(os.getpid(), number))
        case "watch":
            watch(argument)
            return
        case _:
            raise ValueError(fault)
    cli.main()


if __name__ == "__main__":
    main()
