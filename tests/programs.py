"""Servers of other programs, which end with the process that started them, however that ends."""

import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

# The shell waits for its input to end, which it does when this process does.
_SCRIPT = '"$@" & server=$!; read -r _; kill -{signal} $server; wait $server'


@contextmanager
def running(
    command: Sequence[str | Path], *, ready: str, signal: str, **settings: Any
) -> Iterator[re.Match[str]]:
    """A program for as long as it is needed.

    Args:
        command: starts it; it stays in the foreground.
        ready: what it prints, to either stream, when it can be used; a regular expression.
        signal: ends it.
        settings: of its process.

    Yields:
        What matched `ready`.

    Raises:
        RuntimeError: it ended before it was ready.
    """
    process = subprocess.Popen(
        ["sh", "-c", _SCRIPT.format(signal=signal), "sh", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **settings,
    )
    said, found = [], None
    for line in process.stdout:
        said.append(line)
        if found := re.search(ready, line):
            break
    drain = Thread(target=process.stdout.read, daemon=True)
    drain.start()
    try:
        if not found:
            raise RuntimeError(f"{Path(command[0]).name} did not start: {''.join(said)}")
        yield found
    finally:
        process.stdin.close()
        process.wait()
        drain.join()
        process.stdout.close()
