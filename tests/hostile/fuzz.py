"""Sends mutated pictures through the decoder until it crashes, hangs or takes a gigabyte.

::

    python -m tests.hostile.fuzz --count 200000 --seed 0

It prints one JSON object and leaves the files that did harm in a folder; exit status 1 if there were any. The
files are decoded in a child process under a limit of its address space. How long one takes is measured in the
processor's time, so that a busy machine makes no difference; only a file that waits is judged by the clock.
"""

import argparse
import contextlib
import json
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path

from batchcap.captioner.images import ImageSpec, decode, prepare
from batchcap.errors import ImageError, Reason
from tests.hostile.files import golden, hostile_files
from tests.hostile.mutations import mutate
from tests.hostile.odd import plain_png
from tests.jpeg_decoders import decode_with_all

# Larger ones teach nothing that smaller ones don't, and take longer.
_LARGEST_SEED_BYTES = 20_000
_START_TIMEOUT_S = 120.0
_START_CHILD = "from tests.hostile.fuzz import serve; serve()"
# A file that takes no processor's time may take so many times the limit.
_PATIENCE = 20
# Small, for most of the time is to go into decoding.
_SPEC = ImageSpec(16)
_EXPECTED = frozenset(
    {Reason.EMPTY, Reason.UNREADABLE, Reason.TRUNCATED, Reason.UNSUPPORTED, Reason.TOO_LARGE}
)


@dataclass
class Findings:
    """What became of the files.

    Args:
        outcomes: how many were `captioned` and how many refused, by their reason.
        crashes: how many ended the decoder or made it raise what it should not.
        hangs: how many took longer than the limit.
        over_memory: how many made the decoder larger than the limit.
        peak_mb: the most memory that a decoder had, in 10^6 bytes.
        offenders: names of the files that were kept.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    crashes: int = 0
    hangs: int = 0
    over_memory: int = 0
    peak_mb: int = 0
    offenders: list[str] = field(default_factory=list)

    @property
    def harm(self) -> int:
        """How many files did harm."""
        return self.crashes + self.hangs + self.over_memory


class CrashedError(Exception):
    """The decoder is gone."""


class Decoder:
    """A child process that decodes one file after the other.

    Args:
        timeout_s: how long a file may take.
        max_memory_bytes: the limit; twice this on top of what it starts with is all it ever gets.
    """

    def __init__(self, timeout_s: float, max_memory_bytes: int) -> None:
        self._timeout_s = timeout_s
        ours, theirs = socket.socketpair()
        self._connection = Connection(ours.detach())
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _START_CHILD,
                    *map(str, (theirs.fileno(), timeout_s, max_memory_bytes)),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self._receive(_START_TIMEOUT_S)

    def decode(self, data: bytes) -> tuple[str, int]:
        """Decodes one file.

        Returns:
            What became of it, and the most memory that the process has had so far, in bytes.

        Raises:
            TimeoutError: it takes too long; the process is gone.
            CrashedError: it ended the process.
        """
        with contextlib.suppress(OSError):  # It is gone; receiving tells.
            self._connection.send_bytes(data)
        return self._receive(self._timeout_s * _PATIENCE)

    def _receive(self, patience_s: float) -> tuple[str, int]:
        try:
            if self._connection.poll(patience_s):
                return self._connection.recv()  # type: ignore[no-any-return]
        except (EOFError, OSError) as error:
            if self._process.wait() != -signal.SIGPROF:
                raise CrashedError from error
        raise TimeoutError

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.kill()
        self._process.wait()


def serve() -> None:
    """The child: arguments are the descriptor of its socket and the limits, in seconds and bytes."""
    connection, timeout_s = Connection(int(sys.argv[1])), float(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prepare()
    decode(plain_png(), _SPEC)
    # More than is allowed, so that what takes too much can be seen to, but not the whole machine.
    space = _address_space_bytes() + 2 * int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    connection.send(("ready", _peak_bytes()))
    while True:
        try:
            data = connection.recv_bytes()
        except EOFError:
            return
        # Its signal ends the process, whatever it is at.
        signal.setitimer(signal.ITIMER_PROF, timeout_s)
        outcome = _outcome(data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send((outcome, _peak_bytes()))


def _outcome(data: bytes) -> str:
    try:
        image = decode_with_all(data, _SPEC)
    except ImageError as error:
        if isinstance(error.__cause__, MemoryError):
            return "out of memory"
        return error.reason if error.reason in _EXPECTED else f"unexpected reason {error.reason}"
    except Exception as error:
        return f"unexpected {type(error).__name__}"
    good = image.pixels.shape == (16, 16, 3) and min(image.width, image.height) > 0
    return "captioned" if good else "unexpected picture"


def _address_space_bytes() -> int:
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[0]) if statm.exists() else 0
    return pages * resource.getpagesize()


def _peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        # Not what `getrusage` says: a child starts with the peak of its parent there.
        peak = status.read_text().partition("VmHWM:")[2].split()[0]
        return int(peak) * 1024
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_bytes if sys.platform == "darwin" else peak_bytes * 1024


def examine(
    files: Iterable[bytes],
    findings: Findings,
    *,
    timeout_s: float = 5.0,
    max_memory_bytes: int = 10**9,
    folder: Path,
) -> None:
    """Decodes files and watches what they do.

    Args:
        files: their bytes.
        findings: what is found is added to it as it is found.
        timeout_s: how long one may take.
        max_memory_bytes: how large the process that decodes them may become.
        folder: where the offenders are kept; made when there is one.
    """
    decoder: Decoder | None = None

    def keep(data: bytes, what: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{what}-{sha256(data).hexdigest()[:12]}"
        (folder / name).write_bytes(data)
        findings.offenders.append(name)

    try:
        for data in files:
            decoder = decoder or Decoder(timeout_s, max_memory_bytes)
            try:
                outcome, peak_bytes = decoder.decode(data)
            except (TimeoutError, CrashedError) as error:
                decoder.close()
                decoder = None
                hangs = isinstance(error, TimeoutError)
                findings.hangs += hangs
                findings.crashes += not hangs
                keep(data, "hang" if hangs else "crash")
                continue
            findings.outcomes[outcome] += 1
            findings.peak_mb = max(findings.peak_mb, peak_bytes // 10**6)
            if outcome.startswith("unexpected"):
                findings.crashes += 1
                keep(data, outcome.replace(" ", "-"))
            elif outcome == "out of memory" or peak_bytes > max_memory_bytes:
                findings.over_memory += 1
                keep(data, "memory")
                # Its peak would be held against all that follow.
                decoder.close()
                decoder = None
    finally:
        if decoder is not None:
            decoder.close()


def mutations(count: int, seed: int) -> Iterable[bytes]:
    """So many mutated files, the same for the same seed."""
    outcomes = golden()
    # What never was a picture seldom becomes one.
    seeds = {
        file.data
        for file in hostile_files()
        if file.data
        and len(file.data) <= _LARGEST_SEED_BYTES
        and (outcomes[file.name]["outcome"] == "captioned" or file.name.startswith(("huge/", "damaged/")))
    }
    rng = random.Random(seed)
    ordered = sorted(seeds)
    return (mutate(rng, ordered) for _ in range(count))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="files to decode")
    parser.add_argument("--seed", type=int, default=0, help="of the random changes")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds that one file may take")
    parser.add_argument("--memory-mb", type=int, default=1000, help="what decoding may take, in 10^6 bytes")
    parser.add_argument("--folder", type=Path, default=Path("fuzz"), help="where offenders are kept")
    options = parser.parse_args()
    start = time.perf_counter()
    findings = Findings()
    # Whoever has no more patience sees what was found so far.
    with contextlib.suppress(KeyboardInterrupt):
        examine(
            mutations(options.count, options.seed),
            findings,
            timeout_s=options.timeout,
            max_memory_bytes=options.memory_mb * 10**6,
            folder=options.folder,
        )
    elapsed_s = time.perf_counter() - start
    counts = {"count": options.count, "seed": options.seed, "elapsed_s": round(elapsed_s, 1)}
    print(json.dumps(counts | vars(findings)))
    if findings.harm:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
