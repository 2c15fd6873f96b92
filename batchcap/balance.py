"""How a run shares out a machine or a cluster, and what became of it: where the time went, and what binds.

A run has three stages that work at the same time: loaders read and decode, caption workers run the network,
and the driver commits. The slowest one binds; the others wait for it.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from batchcap.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

# Few enough that a kill costs seconds of work, enough that Ray's own cost an image does not show.
_ROWS_PER_BLOCK = 64
# The first block is small, so that the first captions are seen early.
_FIRST_ROWS = 32
# Where there is no GPU: more threads than this don't make one network faster.
_THREADS_PER_WORKER = 4
# The columns in which blocks carry the seconds that they took; see `ray_runtime`.
TIMINGS = ("loading_s", "captioning_s", "waiting_s")


@dataclass(frozen=True, slots=True)
class ComputeOptions:
    """Where a run's processes run, and how many of what.

    Args:
        address: of the Ray cluster to join, as `ray.init` takes it; None starts Ray on this machine.
        gpus_per_worker: GPUs that each network gets; a part of one, or a whole number of them. 0 leaves them
            alone, None is 1 where there is any.
        workers: networks, the fewest and the most; None is as many as there is room for.
        object_store_bytes: what pixels on their way between processes may take; None leaves it to us on one
            machine, and to Ray on a cluster.
        wait_s: how long a cluster may take until it has room for a first network: an autoscaler starts
            machines only when somebody asks for them.
    """

    address: str | None = None
    gpus_per_worker: float | None = None
    workers: tuple[int, int] | None = None
    object_store_bytes: int | None = None
    wait_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Resources:
    """How the machine is shared out.

    Args:
        caption_workers: processes with a network each.
        gpus_per_worker: 0 where there is none.
        threads_per_worker: CPU threads of each network.
        loaders: processes that read and decode.
        cpus: of the machine.
    """

    caption_workers: int
    gpus_per_worker: float
    threads_per_worker: int
    loaders: int
    cpus: int

    @property
    def cpus_per_worker(self) -> float:
        """What Ray is told that a caption worker takes.

        Less than it does: an actor that finds no CPU left waits for ever, and so does a run whose actors took
        them all. All caption workers together take a quarter of the CPUs at most, and so do all loaders.
        """
        return min(0.5, self.cpus / 4 / self.caption_workers)

    @property
    def cpus_per_loader(self) -> float:
        """What Ray is told that a loader takes; never the same as a caption worker on a CPU.

        Ray fuses stages of equal resources into one process, which would then decode and caption by turns.
        """
        return min(0.2, self.cpus / 4 / self.loaders)

    def limited_to(self, blocks: int) -> "Resources":
        """The same for a run of so few blocks that not all processes would get one."""
        return replace(
            self, caption_workers=min(self.caption_workers, blocks), loaders=min(self.loaders, blocks)
        )

    def with_workers(self, count: int) -> "Resources":
        """The same with another number of networks; more of them have fewer threads each."""
        threads = min(self.threads_per_worker, max(1, self.cpus // count))
        return replace(self, caption_workers=count, threads_per_worker=threads)


@dataclass(frozen=True, slots=True)
class ClusterResources(Resources):
    """How a cluster is shared out; the numbers are those of all its nodes together.

    Args:
        nodes: how each of them is.
    """

    nodes: tuple[Resources, ...] = ()

    @property
    def cpus_per_worker(self) -> float:
        """As on the node where they have least, so that there is room for each where its GPU is."""
        planned = sum(node.caption_workers for node in self.nodes)
        least = min(node.cpus_per_worker for node in self.nodes if node.caption_workers)
        return least * min(1.0, planned / self.caption_workers)

    @property
    def cpus_per_loader(self) -> float:
        """As on the node where they have least."""
        return min(node.cpus_per_loader for node in self.nodes if node.loaders)


def available_cpus() -> int:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_to_cpus(count: int) -> None:
    """Keeps this process, and all that it will start, to so many of its CPUs; only Linux can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def read_range(name: str, text: str, *, least: int = 1) -> tuple[int, int]:
    """The fewest and the most of something.

    Args:
        name: of the option that says so.
        text: what it says: a number, or MIN:MAX.
        least: that the fewest may be.

    Raises:
        UsageError: it makes no sense.
    """
    found = re.fullmatch(r"(\d{1,6})(?::(\d{1,6}))?", text)
    fewest, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not least <= fewest <= most or not most:
        raise UsageError(f"{name} {text}: give a number, or the fewest and the most as 1:16")
    return fewest, most


def share_out(cpus: int, gpus: int, gpus_per_worker: float | None = None) -> Resources:
    """One network a GPU, or else one for every few CPUs, and loaders beside them.

    Without a GPU, networks have threads for all CPUs and there are loaders for most of them as well: small
    pictures leave the CPUs to the network, large ones take them from it, and who gets how much the operating
    system decides from one moment to the next. With GPUs, the CPUs are there to decode, but for one a GPU
    that feeds it and one for the driver.

    Args:
        cpus: of the machine.
        gpus: of the machine.
        gpus_per_worker: as in `ComputeOptions`.

    Returns:
        Without a network where there are too few GPUs for one.
    """
    each = (1 if gpus else 0) if gpus_per_worker is None else gpus_per_worker
    if each:
        # So many networks share each GPU, or each has several: never parts of two.
        networks = gpus * int(1 / each + 1e-9) if each < 1 else int(gpus // each)
        loaders = max(1, cpus // 2, cpus - networks - 1)
        return Resources(networks, each, max(1, cpus // max(1, networks)), loaders, cpus)
    workers = max(1, cpus // _THREADS_PER_WORKER)
    loaders = max(min(2, cpus), cpus * 3 // 4)
    return Resources(workers, 0, max(1, cpus // workers), loaders, cpus)


def share_out_cluster(
    nodes: Iterable[tuple[int, int]], gpus_per_worker: float | None = None
) -> ClusterResources:
    """Every node as if it were alone; but where some have GPUs, the networks are there, and the others load.

    Args:
        nodes: CPUs and GPUs of each.
        gpus_per_worker: as in `ComputeOptions`.

    Returns:
        Without networks or without loaders where the nodes have no room for one.
    """
    # A node without CPUs runs nothing of ours: heads of clusters are often set up so.
    working = [(cpus, gpus) for cpus, gpus in nodes if cpus]
    each = gpus_per_worker
    if each is None:
        each = 1 if any(gpus for _, gpus in working) else 0
    shares = tuple(share_out(cpus, gpus, each) for cpus, gpus in working)
    return _sum_of(shares, each)


def _sum_of(shares: Sequence[Resources], gpus_per_worker: float) -> ClusterResources:
    return ClusterResources(
        caption_workers=sum(share.caption_workers for share in shares),
        gpus_per_worker=gpus_per_worker,
        threads_per_worker=min((s.threads_per_worker for s in shares if s.caption_workers), default=1),
        loaders=sum(share.loaders for share in shares),
        cpus=sum(share.cpus for share in shares),
        nodes=tuple(shares),
    )


def rows_per_block(batch_size: int) -> int:
    """Images that travel together: a whole number of batches, so that no batch is padded for nothing."""
    return batch_size * max(1, _ROWS_PER_BLOCK // batch_size)


def block_starts(rows: int, batch_size: int) -> list[int]:
    """Where the blocks of a run begin."""
    first = min(batch_size, _FIRST_ROWS)
    return [0, *range(first, rows, rows_per_block(batch_size))]


@dataclass(slots=True)
class StageTimes:
    """Where the time of a run went, from its first commit to its last.

    Args:
        resources: how the machine was shared out.
        loading_s: seconds that the loaders have worked, all together.
        captioning_s: seconds that the caption workers have worked, all together.
        waiting_s: seconds that the caption workers have waited for pixels, all together.
        committing_s: seconds in which the driver wrote to the catalog and to Parquet.
        elapsed_s: seconds that passed.
    """

    resources: Resources
    loading_s: float = 0.0
    captioning_s: float = 0.0
    waiting_s: float = 0.0
    committing_s: float = 0.0
    elapsed_s: float = 0.0

    def add(self, batches: "Iterable[pa.Table]", committing_s: float) -> None:
        """Adds what batches say that they took, and what committing them did."""
        for batch in batches:
            for name in TIMINGS:
                setattr(self, name, getattr(self, name) + sum(batch[name].to_pylist()))
        self.committing_s += committing_s

    def describe(self) -> dict[str, Any]:
        """All of it as numbers and names, for programs."""
        return {**asdict(self), "shares": self.shares, "binds": self.binds}

    @property
    def shares(self) -> dict[str, float]:
        """The share of the time in which each stage was busy, 0 to 1, by its name."""
        processes_s = {
            "loading": (self.loading_s, self.resources.loaders),
            "captioning": (self.captioning_s, self.resources.caption_workers),
            "committing": (self.committing_s, 1),
        }
        if not self.elapsed_s:
            return dict.fromkeys(processes_s, 0.0)
        # What was loaded ahead of the first commit counts with what came after it: never more than all.
        return {name: min(1.0, s / count / self.elapsed_s) for name, (s, count) in processes_s.items()}

    @property
    def binds(self) -> str:
        """The stage that was busy for most of the time: if it were faster, so would the run be."""
        return max(self.shares.items(), key=lambda stage: stage[1])[0]
