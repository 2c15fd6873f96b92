"""The Ray side of a run: sharing out the machine or the cluster, and the two stages that run in its workers.

Importing this module imports Ray, which is why `pipeline` does so only when there is something to caption.
"""

import copy
import gc
import math
import sys
import time
import warnings
from collections.abc import Generator
from contextlib import closing

# First: it sets what Ray reads when it is imported.
from batchcap.ray_start import one_line, start_ray

# isort: split

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import ray.exceptions

from batchcap.balance import (
    ComputeOptions,
    Resources,
    block_starts,
    rows_per_block,
    share_out,
)
from batchcap.captioner.protocol import CaptionerSource
from batchcap.errors import PipelineError
from batchcap.ray_cluster import alive_nodes, wait_for_room
from batchcap.run_options import IndexOptions
from batchcap.stages import CaptionWorker, LoadImages, cut_into_blocks

# Without any progress for at least so long, Ray Data gives up instead of waiting for ever; see `_patience_s`.
_NO_PROGRESS_TIMEOUT_S = 300
# Within this time Ray gives up a node that does not answer.
_NODE_LOSS_TIMEOUT_S = 90.0
# An actor that died is started again; what it was working on is tried once more, not for ever.
_MAX_RESTARTS = -1
_MAX_TASK_RETRIES = 1
# The files that are left are taken up once more after that, unless it is the second time that none was done.
_MAX_STANDSTILLS = 2
# Something killed a worker, or what it had made is gone: for instance the system, short of memory.
_LOSSES = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.OutOfMemoryError,
)


def machine_resources(files: int, options: IndexOptions) -> Resources:
    """How the machine, or the cluster, is shared out for so many files; starts Ray if need be.

    Raises:
        PipelineError: Ray can't be started, or the machine has too few GPUs for one network.
        ClusterError: the cluster can't be reached, or has no room for one network.
    """
    compute = options.compute
    start_ray(compute)
    if compute.address is None:
        available = ray.cluster_resources()
        cpus = min(int(available.get("CPU", 1)), options.cpus or sys.maxsize)
        resources = share_out(cpus, int(available.get("GPU", 0)), compute.gpus_per_worker)
        if not resources.caption_workers:
            raise PipelineError(
                f"this machine has too few GPUs for --gpus-per-worker {resources.gpus_per_worker:g}"
            )
    else:
        # A node with the last GPU may have been lost, or put away by an autoscaler since the wave before.
        resources = wait_for_room(compute, heeds_others=False)
    if compute.workers is not None:
        resources = resources.with_workers(compute.workers[1])
    return resources.limited_to(len(block_starts(files, options.batch_size)))


def caption_files(
    files: pa.Table,
    captioner: CaptionerSource,
    fingerprint: str,
    options: IndexOptions,
    resources: Resources | None = None,
) -> Generator[pa.Table, None, None]:
    """Loads and captions files in Ray's workers; what a lost worker or node was at is done again.

    Args:
        files: of `FILE_SCHEMA`.
        captioner: what captions.
        fingerprint: its fingerprint, as the run has it.
        options: batch size and time limits.
        resources: how the machine is shared out; by default as `machine_resources` says.

    Yields:
        Tables of `CAPTIONED_SCHEMA`, in the order in which they are finished; every file is in one of them.

    Raises:
        PipelineError: the captioner failed, or Ray did; or workers die of the same files again and again.
    """
    start_ray(options.compute)
    resources = resources or machine_resources(len(files), options)
    standstills = 0
    while True:
        nodes = alive_nodes()
        done: list[pa.ChunkedArray] = []
        try:
            with closing(_caption_once(files, captioner, fingerprint, options, resources)) as batches:
                for batch in batches:
                    done.append(batch["uri"])
                    yield batch
            return
        except PipelineError as error:
            standstills = 0 if done else standstills + 1
            if not _may_go_on(error.__cause__, nodes, standstills, options.compute):
                raise
        files = _without(files, done)
        if not files:
            return
        # Ray Data ends the workers of an execution that failed when nobody refers to it any more. Until then
        # they hold their CPUs and GPUs, of which there may be no others.
        gc.collect()
        resources = machine_resources(len(files), options)


def _may_go_on(
    cause: BaseException | None, nodes: set[str], standstills: int, compute: ComputeOptions
) -> bool:
    """Whether what failed may work when it is done again.

    Args:
        cause: of the failure.
        nodes: that there were before it.
        standstills: how many times in a row nothing was done before a failure.
        compute: where it failed.
    """
    # What our code raises would be raised again.
    if isinstance(cause, ray.exceptions.RayTaskError):
        return False
    # On a cluster even what doesn't look like it may come of a lost node, and then there is a new one to ask.
    if compute.address is not None and _has_lost_any(nodes):
        return True
    return isinstance(cause, _LOSSES) and standstills < _MAX_STANDSTILLS


def _without(files: pa.Table, done: list[pa.ChunkedArray]) -> pa.Table:
    """The files that are not among those."""
    uris = pa.chunked_array([chunk for array in done for chunk in array.chunks], pa.string())
    return files.filter(pc.invert(pc.is_in(files["uri"], value_set=uris))).combine_chunks()


def _has_lost_any(nodes: set[str]) -> bool:
    """Whether one of them is gone; Ray notices it some time after what was on it fails."""
    deadline = time.monotonic() + _NODE_LOSS_TIMEOUT_S
    while not nodes - alive_nodes():
        if time.monotonic() > deadline:
            return False
        time.sleep(1.0)
    return True


def _caption_once(
    files: pa.Table,
    captioner: CaptionerSource,
    fingerprint: str,
    options: IndexOptions,
    resources: Resources,
) -> Generator[pa.Table, None, None]:
    dataset = build_dataset(files, captioner, fingerprint, options, resources)
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    except Exception as error:
        # Ray's own errors are of many families, and a worker's exception comes as what it was.
        raise PipelineError(f"captioning stopped: {one_line(error)}; run again to go on from here") from error
    finally:
        # Who stops early must not leave workers behind. Ray Data leaves it to the garbage collector, and has
        # no public way to say it; this one ends the execution, whatever its name.
        dataset._synchronize_progress_bar()


def build_dataset(
    files: pa.Table,
    captioner: CaptionerSource,
    fingerprint: str,
    options: IndexOptions,
    resources: Resources,
) -> ray.data.Dataset:
    """The two stages over a table of files; nothing runs before its batches are asked for.

    Args:
        files: of `FILE_SCHEMA`.
        captioner: what captions.
        fingerprint: its fingerprint, as the run has it.
        options: batch size and time limits.
        resources: how the machine is shared out.

    Returns:
        Rows of `CAPTIONED_SCHEMA`.
    """
    blocks = cut_into_blocks(files, options.batch_size)
    loaders, caption_workers = _pools(resources, options.compute, len(blocks))
    with warnings.catch_warnings():
        # `max_restarts` and `max_task_retries` have no other way in until Ray 2.64.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        dataset: ray.data.Dataset = (
            # Not `from_arrow`: it has a worker look at each block, seconds to start and a task a block.
            ray.data.from_blocks(blocks)
            .map_batches(
                LoadImages,
                batch_size=None,
                batch_format="pyarrow",
                fn_constructor_args=(captioner, options.decode_timeout_s, options.gps),
                compute=loaders,
                num_cpus=resources.cpus_per_loader,
                max_restarts=_MAX_RESTARTS,
                max_task_retries=_MAX_TASK_RETRIES,
            )
            .map_batches(
                CaptionWorker,
                # A block at once, as it comes: with a size, Ray would gather blocks until they reach it.
                batch_size=None,
                batch_format="pyarrow",
                fn_constructor_args=(
                    captioner,
                    fingerprint,
                    options.batch_size,
                    resources.threads_per_worker,
                    options.stores_vectors,
                ),
                compute=caption_workers,
                num_cpus=resources.cpus_per_worker,
                num_gpus=resources.gpus_per_worker,
                max_restarts=_MAX_RESTARTS,
                max_task_retries=_MAX_TASK_RETRIES,
            )
        )
    # Set here and not for the process: whoever calls us from a program has settings of their own.
    dataset.context.enable_progress_bars = False
    dataset.context.max_errored_blocks = 0
    dataset.context.execution_no_progress_timeout_s = _patience_s(
        options.decode_timeout_s, rows_per_block(options.batch_size)
    )
    if options.compute.address is not None and options.compute.object_store_bytes is not None:
        # Ray's own on this machine is made of that size; that of a cluster belongs to others as well.
        execution = copy.copy(dataset.context.execution_options)
        execution.resource_limits = ray.data.ExecutionResources.for_limits(
            object_store_memory=options.compute.object_store_bytes
        )
        dataset.context.execution_options = execution
    return dataset


def _pools(
    resources: Resources, compute: ComputeOptions, blocks: int
) -> tuple[ray.data.ActorPoolStrategy, ray.data.ActorPoolStrategy]:
    """How many loaders and caption workers there are; where the latter may become more, so may the former."""
    if compute.workers is None:
        return (
            ray.data.ActorPoolStrategy(size=resources.loaders),
            ray.data.ActorPoolStrategy(size=resources.caption_workers),
        )
    fewest = min(compute.workers[0], resources.caption_workers)
    most_loaders = min(blocks, resources.loaders * math.ceil(resources.caption_workers / fewest))
    return (
        ray.data.ActorPoolStrategy(min_size=resources.loaders, max_size=most_loaders),
        ray.data.ActorPoolStrategy(min_size=fewest, max_size=resources.caption_workers),
    )


def _patience_s(decode_timeout_s: float, block_rows: int) -> int:
    """How long a run may stand still: longer than a block takes of which every file hangs.

    Such a block is tried at once and then file by file, and none of its rows is seen before the last.
    """
    return max(_NO_PROGRESS_TIMEOUT_S, math.ceil(2 * (block_rows + 1) * decode_timeout_s))
