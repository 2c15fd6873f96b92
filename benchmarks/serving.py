"""How much of its captioner's rate does `batchcap serve` keep, and how long does a client wait?

Prints one JSON object: rates in images/s of every round, the median over rounds of their ratio within a
round, waiting times, the commit and the machine. Each round measures both one after the other. `captioner`
has its pictures in memory, in batches as large as the clients are many; `served` are clients on this machine
that send files as fast as they are answered, so that decoding, HTTP and the clients themselves share the CPUs
with the network. `alone` is one client who waits for each answer.

    python benchmarks/serving.py [--photos DIR] [--limit 1000] [--clients 64] [--model DIR]

A round takes about half a minute on two cores.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import typer
from common import describe_photos, list_photos, median_ratio, prepare_photos, provenance

from batchcap.captioner.bundle import DEFAULT_BUNDLE, Bundle
from batchcap.captioner.images import decode_image

_ALONE = 32  # pictures of the one client
_TIMEOUT_S = 300


def main(
    photos: Annotated[Path | None, typer.Option(help="Folder of photographs; made up without it.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Photographs; 1,000 if made up.")] = None,
    model: Annotated[Path, typer.Option()] = DEFAULT_BUNDLE,
    num_beams: Annotated[int, typer.Option(min=1)] = 1,
    clients: Annotated[int, typer.Option(min=1)] = 64,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Measures rounds of the captioner alone, of many clients, and of one."""
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
        rates: dict[str, list[float]] = {"captioner": [], "served": []}
        waits: dict[str, list[float]] = {"served": [], "alone": []}
        with running_server(model, num_beams, clients) as port:
            captioner.caption(pixels[:clients])
            send(port, files[:clients], clients)
            for _ in range(rounds):
                started = time.perf_counter()
                captioner.caption(pixels)
                rates["captioner"].append(len(pixels) / (time.perf_counter() - started))
                started = time.perf_counter()
                waits["served"] += send(port, files, clients)
                rates["served"].append(len(files) / (time.perf_counter() - started))
                waits["alone"] += send(port, files[:_ALONE], 1)
        print(
            json.dumps(
                {
                    "benchmark": "serving",
                    "model": bundle.name,
                    "runtime": captioner.runtime,
                    "num_beams": num_beams,
                    "clients": clients,
                    "made_up": photos is None,
                    **describe_photos(folder),
                    "rounds": rounds,
                    "images_per_s": {name: [round(r, 1) for r in values] for name, values in rates.items()},
                    "served_to_captioner": median_ratio(rates["served"], rates["captioner"]),
                    "wait_ms": {name: summarise(values) for name, values in waits.items()},
                    **provenance(),
                }
            )
        )


@contextmanager
def running_server(model: Path, num_beams: int, clients: int) -> Iterator[int]:
    """A server of its own; its port."""
    with tempfile.TemporaryDirectory() as store:
        command = [Path(sys.executable).with_name("batchcap"), "serve", "--port", "0", "--store", store]
        command += ["--model", str(model), "--num-beams", str(num_beams), "--max-queue", str(2 * clients)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                url = process.stdout.readline() if process.stdout else ""
                if not url:
                    raise SystemExit(f"the server did not start:\n{process.stderr and process.stderr.read()}")
                yield int(url.rpartition(":")[2])
            finally:
                process.terminate()
                process.wait(_TIMEOUT_S)


def send(port: int, files: Sequence[bytes], clients: int) -> list[float]:
    """Sends files, each client one after the other; the seconds that each had to wait."""
    numbers = itertools.count()

    def client(_: int) -> list[float]:
        waited = []
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
        while (number := next(numbers)) < len(files):
            started = time.perf_counter()
            connection.request("POST", "/caption", files[number], {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise SystemExit(f"{answer.status}: {text.decode()}")
            waited.append(time.perf_counter() - started)
        connection.close()
        return waited

    with ThreadPoolExecutor(clients) as threads:
        return list(itertools.chain.from_iterable(threads.map(client, range(clients))))


def summarise(seconds: list[float]) -> dict[str, Any]:
    """Milliseconds: of the client in the middle, and of the slowest of twenty."""
    ordered = sorted(seconds)
    return {
        "median": round(1000 * statistics.median(ordered), 1),
        "p95": round(1000 * ordered[int(0.95 * (len(ordered) - 1))], 1),
    }


if __name__ == "__main__":
    typer.run(main)
