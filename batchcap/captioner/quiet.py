"""Keeps what C++ libraries write to stderr away from people; what goes wrong arrives as an exception."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Sends this process's stderr nowhere, C++ code's included: TensorFlow and Ray greet people there.

    Both take no setting that would stop it. Use it around what starts them, and around nothing else.
    """
    if sys.stderr is None:  # started with it closed: there is nobody to disturb
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
