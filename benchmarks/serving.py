"""What does `batchcap serve` keep of its captioner's rate, how long do clients wait, what if too many come?

Prints one JSON object: rates in images/s of every round, the median over rounds of their ratio within a
round, waiting times, answers by status, the commit and the machine. Each round measures both one after the
other. `captioner` has its pictures in memory, in batches as large as the clients are many; `served` are
clients on this machine that send files as fast as they are answered, so that decoding, HTTP and the clients
themselves share the CPUs with the network. `alone` is one client who waits for each answer, `overload` four
times as many as `served`, twice as many as have room in the queue, who don't come back later but at once.
`memory` is that of a server whose captioner costs nothing, over many requests: what it keeps of each would
show there.

    python benchmarks/serving.py [--photos DIR] [--limit 1000] [--clients 64] [--seconds 60] [--model DIR]

It takes about four minutes on two cores.
"""

import dataclasses
import http.client
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import typer
from common import describe_photos, list_photos, make_photos, median_ratio, prepare_photos, provenance
from scaling import CostlessCaptioner, descendants, kib_of

from batchcap.captioner.bundle import DEFAULT_BUNDLE, Bundle
from batchcap.captioner.images import decode_image

_ALONE = 32  # pictures of the one client
_OVERLOAD = 4  # times as many clients
_OVERLOAD_PART = 6  # of the seconds
_SAMPLES = 10  # of memory
_SMALL_MEGAPIXELS = 0.02  # of pictures that cost next to nothing
_TIMEOUT_S = 300


@dataclass(frozen=True)
class Server:
    """A server of its own."""

    process: "subprocess.Popen[str]"
    port: int


@dataclass(frozen=True)
class Sent:
    """What many clients have had.

    Args:
        waits_s: of those that got a caption.
        statuses: answers by their status; those that got none are "none".
        seconds: from the first request to the last answer.
    """

    waits_s: list[float]
    statuses: Counter[str]
    seconds: float

    @property
    def errors(self) -> int:
        """Of those who were to get a caption."""
        return self.statuses.total() - self.statuses["200"]


def main(
    photos: Annotated[Path | None, typer.Option(help="Folder of photographs; made up without it.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Photographs; 1,000 if made up.")] = None,
    model: Annotated[Path, typer.Option()] = DEFAULT_BUNDLE,
    num_beams: Annotated[int, typer.Option(min=1)] = 1,
    clients: Annotated[int, typer.Option(min=1)] = 64,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of the clients, all rounds together.")] = 60.0,
    requests: Annotated[int, typer.Option(min=0, help="Of the measurement of memory; 0: none.")] = 20_000,
    serve_costless: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Measures rounds of the captioner alone, of many clients, and of one; then too many; then memory."""
    if serve_costless:
        run_costless_server()
        return
    from batchcap.captioner.captioner import Captioner

    bundle = Bundle.open(model)
    bundle = dataclasses.replace(
        bundle, generation=dataclasses.replace(bundle.generation, num_beams=num_beams)
    )
    captioner = Captioner(bundle, batch_size=clients)
    with tempfile.TemporaryDirectory() as made:
        folder = prepare_photos(Path(made), photos=photos, limit=limit)
        files = [path.read_bytes() for path in list_photos(folder)]
        pixels = [decode_image(data, bundle.image_spec) for data in files]
        described = describe_photos(folder)
    rates: dict[str, list[float]] = {"captioner": [], "served": []}
    waits: dict[str, list[float]] = {"served": [], "alone": []}
    statuses: Counter[str] = Counter()
    options = ("--model", model, "--num-beams", num_beams, "--max-queue", 2 * clients)
    options += ("--max-connections", 2 * _OVERLOAD * clients)
    with running_server("serve", *options) as server:
        captioner.caption(pixels[:clients])
        send(server.port, files, clients, lambda number: number < clients)
        for _ in range(rounds):
            started = time.perf_counter()
            captioner.caption(pixels)
            rates["captioner"].append(len(pixels) / (time.perf_counter() - started))
            sent = send_for(server.port, files, clients, seconds / rounds)
            rates["served"].append(len(sent.waits_s) / sent.seconds)
            waits["served"] += sent.waits_s
            statuses += sent.statuses
            waits["alone"] += send(server.port, files, 1, lambda number: number < _ALONE).waits_s
        overload = send_for(server.port, files, _OVERLOAD * clients, seconds / _OVERLOAD_PART)
        after = send(server.port, files, 1, lambda number: number < 1)
        survived = server.process.poll() is None and after.errors == 0
    print(
        json.dumps(
            {
                "benchmark": "serving",
                "model": bundle.name,
                "runtime": captioner.runtime,
                "num_beams": num_beams,
                "clients": clients,
                "made_up": photos is None,
                **described,
                "rounds": rounds,
                "seconds": seconds,
                "images_per_s": {name: [round(r, 1) for r in values] for name, values in rates.items()},
                "served_to_captioner": median_ratio(rates["served"], rates["captioner"]),
                "answers": dict(statuses),
                "errors": statuses.total() - statuses["200"],
                "wait_ms": {name: summarise(values) for name, values in waits.items()},
                "overload": {
                    "clients": _OVERLOAD * clients,
                    "answers": dict(overload.statuses),
                    "images_per_s": round(len(overload.waits_s) / overload.seconds, 1),
                    "survived": survived,
                },
                "memory": measure_memory(requests) if requests and sys.platform == "linux" else None,
                **provenance(),
            }
        )
    )


@contextmanager
def running_server(*command: object) -> Iterator[Server]:
    """A server of its own: of `batchcap`, or of this script."""
    program = [Path(sys.executable).with_name("batchcap")]
    if command[0] != "serve":
        program = [sys.executable, __file__]
    with tempfile.TemporaryDirectory() as store:
        words = [*program, *map(str, command)]
        if command[0] == "serve":
            words += ["--port", "0", "--store", store]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                url = process.stdout.readline() if process.stdout else ""
                if not url:
                    raise SystemExit(f"the server did not start:\n{process.stderr and process.stderr.read()}")
                yield Server(process, int(url.rpartition(":")[2]))
            finally:
                process.terminate()
                process.wait(_TIMEOUT_S)


def run_costless_server() -> None:
    """Serves with a captioner that costs nothing, on any port that is free."""
    from batchcap.serving.app import create_app
    from batchcap.serving.options import ServingOptions
    from batchcap.serving.server import serve

    options = ServingOptions(port=0)
    serve(create_app(CostlessCaptioner(), options=options), options)


def send_for(port: int, files: Sequence[bytes], clients: int, seconds: float) -> Sent:
    """Sends files, again and again, each client one after the other, for so long."""
    end = time.perf_counter() + seconds
    return send(port, files, clients, lambda _: time.perf_counter() < end)


def send(port: int, files: Sequence[bytes], clients: int, goes_on: Callable[[int], bool]) -> Sent:
    """Sends files, each client one after the other.

    Args:
        port: of the server.
        files: from the first, and again.
        clients: at once.
        goes_on: whether the request of this number, counted over all clients, is sent.
    """
    numbers = itertools.count()

    def client(_: int) -> tuple[list[float], Counter[str]]:
        waits_s: list[float] = []
        statuses: Counter[str] = Counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
        while goes_on(number := next(numbers)):
            data = files[number % len(files)]
            started = time.perf_counter()
            try:
                connection.request("POST", "/caption", data, {"Content-Type": "image/jpeg"})
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                statuses["none"] += 1
                connection.close()
                continue
            statuses[str(answer.status)] += 1
            if answer.status == 200:
                waits_s.append(time.perf_counter() - started)
        connection.close()
        return waits_s, statuses

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        found = list(threads.map(client, range(clients)))
    elapsed_s = time.perf_counter() - started
    waits_s = list(itertools.chain.from_iterable(waits for waits, _ in found))
    return Sent(waits_s, sum((statuses for _, statuses in found), Counter()), elapsed_s)


def measure_memory(requests: int) -> dict[str, Any]:
    """Memory of a server that captions at no cost: after a first tenth, and after each of the requests."""
    step = max(1, requests // _SAMPLES)
    rss_mib: dict[str, list[float]] = {"server": [], "decoders": []}
    answers: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as made:
        folder = make_photos(Path(made), 64, megapixels=_SMALL_MEGAPIXELS)
        files = [path.read_bytes() for path in list_photos(folder)]
    with running_server("--serve-costless") as server:
        pid = server.process.pid
        for _ in range(1 + _SAMPLES):
            answers += send(server.port, files, 16, lambda number: number < step).statuses
            rss_mib["server"].append(_rss_mib(pid))
            rss_mib["decoders"].append(sum(map(_rss_mib, descendants(pid))))
    counts = step * np.arange(1 + _SAMPLES)
    slopes = {name: np.polyfit(counts, values, 1)[0] * 2**20 for name, values in rss_mib.items()}
    return {
        "requests": requests,
        "answers": dict(answers),
        "rss_mib": {name: [round(value, 1) for value in values] for name, values in rss_mib.items()},
        "slope_bytes_per_request": {name: round(float(slope), 1) for name, slope in slopes.items()},
    }


def _rss_mib(pid: int) -> float:
    return kib_of("VmRSS", Path(f"/proc/{pid}/status").read_text()) / 1024


def summarise(seconds: list[float]) -> dict[str, Any]:
    """Milliseconds: of the client in the middle, and of the slowest of twenty and of a hundred."""
    ordered = sorted(seconds)
    return {
        "median": round(1000 * statistics.median(ordered), 1),
        "p95": round(1000 * ordered[int(0.95 * (len(ordered) - 1))], 1),
        "p99": round(1000 * ordered[int(0.99 * (len(ordered) - 1))], 1),
    }


if __name__ == "__main__":
    typer.run(main)
