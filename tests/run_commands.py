"""Runs commands one after the other in this process, since TensorFlow takes seconds to import.

Reads command lines from standard input, as a JSON list, and prints what each printed, as a JSON object. One
that fails ends it, with what it printed on standard error.
"""

import contextlib
import io
import json
import runpy
import shlex
import sys
from importlib.metadata import entry_points


def run(command: str) -> str:
    """What a command of the installed package, or `python -m MODULE`, prints."""
    words = shlex.split(command)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            if words[:2] == ["python", "-m"]:
                sys.argv = words[2:]
                runpy.run_module(words[2], run_name="__main__", alter_sys=True)
            else:
                sys.argv = words
                (script,) = entry_points(group="console_scripts", name=words[0])
                script.load()()
        except SystemExit as end:
            if end.code:
                sys.exit(f"{command}\n{output.getvalue()}\nexit status {end.code}")
    return output.getvalue()


def main() -> None:
    # As `python -m` has it; here it would be the folder of this file.
    sys.path[0] = ""
    print(json.dumps({command: run(command) for command in json.load(sys.stdin)}))


if __name__ == "__main__":
    main()
