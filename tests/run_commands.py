"""Runs commands one after the other in one process, since Ray and TensorFlow take seconds to start.

As a program it reads command lines from standard input, as a JSON list, and prints what each printed, as a
JSON object. One that fails ends it, with what it printed on standard error.
"""

import contextlib
import io
import json
import os
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path


def run_commands(commands: Sequence[str], folder: Path, **env: str) -> dict[str, str]:
    """Runs commands in a process of their own, in a folder; what each printed."""
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(commands),
        cwd=folder,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=300 * len(commands),
    )
    assert done.returncode == 0, done.stderr
    output: dict[str, str] = json.loads(done.stdout)
    return output


def _run(command: str) -> str:
    """What a command of the installed package, `python -m MODULE` or `python FILE`, prints."""
    words = shlex.split(command, comments=True)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            if words[:2] == ["python", "-m"]:
                sys.argv = words[2:]
                runpy.run_module(words[2], run_name="__main__", alter_sys=True)
            elif words[0] == "python":
                sys.argv = words[1:]
                with _found_in(Path(words[1]).parent):
                    runpy.run_path(words[1], run_name="__main__")
            else:
                sys.argv = words
                (script,) = entry_points(group="console_scripts", name=words[0])
                script.load()()
        except SystemExit as end:
            if end.code:
                sys.exit(f"{command}\n{output.getvalue()}\nexit status {end.code}")
    return output.getvalue()


@contextlib.contextmanager
def _found_in(folder: Path) -> Iterator[None]:
    """Modules are looked for in a folder, as in that of a script that is run."""
    before = sys.path[0]
    sys.path[0] = str(folder)
    try:
        yield
    finally:
        sys.path[0] = before


if __name__ == "__main__":
    # As `python -m` has it; here it would be the folder of this file.
    sys.path[0] = ""
    print(json.dumps({command: _run(command) for command in json.load(sys.stdin)}))
