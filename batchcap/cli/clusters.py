"""The options of a run that say where it runs, and how many of what; and what is refused there."""

import os
import re
from typing import Annotated

import typer

from batchcap.balance import ComputeOptions, read_range
from batchcap.errors import UsageError

AddressOption = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster to join: auto, or HOST:PORT of its head; this machine must be one of its nodes.",
        show_default="Ray starts here",
    ),
]
GpusPerWorkerOption = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="GPUs that each network gets, such as 0.5; 0: CPUs.",
        show_default="1 where there are any",
    ),
]
WorkersOption = Annotated[
    str | None,
    typer.Option(
        metavar="N|MIN:MAX",
        help="Networks, or the fewest and the most.",
        show_default="as many as have room",
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="What pixels on their way between processes may take, such as 4G; what the processes take comes "
        "on top.",
    ),
]
WaitOption = Annotated[
    float,
    typer.Option(
        min=0.0, help="Seconds to wait until the cluster has room; more where an autoscaler starts machines."
    ),
]

# What a model and its pixels need at least; Ray itself takes nothing below 75 MiB.
_LEAST_MEMORY_BYTES = 128 * 1024**2
_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
# Ray sets it for the command of a job, and only there.
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def compute_options(
    address: str | None,
    gpus_per_worker: float | None,
    workers: str | None,
    memory: str | None,
    wait_s: float,
) -> ComputeOptions:
    """Reads the options.

    Raises:
        UsageError: one makes no sense.
    """
    check_address(address)
    if gpus_per_worker is not None and gpus_per_worker > 1 and gpus_per_worker % 1:
        raise UsageError(f"--gpus-per-worker {gpus_per_worker:g}: a part of a GPU, or a whole number of them")
    return ComputeOptions(
        address,
        gpus_per_worker,
        None if workers is None else read_range("--workers", workers),
        None if memory is None else _read_size(memory),
        wait_s,
    )


def refuse_catalog_that_goes(catalog_url: str, address: str | None) -> None:
    """Refuses a catalog in a file of the cluster's head, as a job of the cluster would make one.

    The head's disk is gone when the cluster is. Who joins the cluster from a terminal has chosen the machine,
    and may keep it.

    Raises:
        UsageError: it is such a one.
    """
    if address is not None and _JOB_VARIABLE in os.environ and is_sqlite(catalog_url):
        raise UsageError(
            "a job's catalog in SQLite would be gone with the cluster's head; give --catalog "
            "postgresql+psycopg://USER@HOST/DATABASE"
        )


def is_sqlite(catalog_url: str) -> bool:
    """Whether a catalog is a file."""
    return catalog_url.partition(":")[0].partition("+")[0] == "sqlite"


def check_address(address: str | None) -> None:
    if address is None or address == "auto":
        return
    if address.startswith("ray://"):
        raise UsageError(
            f"--address {address}: batchcap doesn't speak Ray Client; run it on a machine of the cluster "
            "with --address auto, or `batchcap submit` it"
        )
    if address.startswith(("http://", "https://")):
        raise UsageError(
            f"--address {address}: that is where `batchcap submit` hands in jobs; here, auto or HOST:PORT"
        )
    port = re.fullmatch(r"[^/\s]+:(\d{1,5})", address)
    if port is None or not 0 < int(port[1]) < 65536:
        raise UsageError(f"--address {address}: give auto, or HOST:PORT of the cluster's head (often 6379)")


def _read_size(text: str) -> int:
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)([kmgt]?)(?:i?b)?", text.lower())
    if found is None:
        raise UsageError(f"--memory {text}: give a size such as 512M or 4G")
    size_bytes = int(float(found[1]) * _UNITS[found[2]])
    if size_bytes < _LEAST_MEMORY_BYTES:
        raise UsageError(f"--memory {text}: at least {_LEAST_MEMORY_BYTES // 1024**2}M")
    return size_bytes
