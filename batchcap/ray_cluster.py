"""What a run needs of a Ray cluster before it begins: a way in, room for a network, nodes with the images.

Each of these is found out within seconds and told in one line. Without it, a run would wait for machines that
nobody starts, or find out file by file that a node lacks a disk.
"""

import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

# First: it sets what Ray reads when it is imported.
from batchcap.ray_start import one_line, start_ray

# isort: split

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from batchcap import __version__
from batchcap.balance import ComputeOptions, Resources, share_out_cluster
from batchcap.captioner.protocol import CaptionerSource
from batchcap.collection import Listing, scan, uri_to_path
from batchcap.errors import ClusterError
from batchcap.globs import Selection
from batchcap.model_copies import let_travel
from batchcap.run_options import IndexOptions
from batchcap.storage import is_local
from batchcap.storage.tar import split_uri
from batchcap.storage.uris import scheme_of

# A machine that answers does so at once.
_CONNECT_TIMEOUT_S = 10.0
# A head speaks gRPC, which is HTTP/2: the client's greeting, and its settings, which are none.
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
# A node starts a process to answer, which imports Ray and batchcap.
_ANSWER_TIMEOUT_S = 120.0
_POLL_INTERVAL_S = 0.5


def prepare_cluster(
    sources: Sequence[Listing], captioner: CaptionerSource, fingerprint: str, options: IndexOptions
) -> CaptionerSource:
    """Joins the cluster and sees that the run can go on there.

    Args:
        sources: what is to be captioned.
        captioner: what captions.
        fingerprint: of it.
        options: of the run.

    Returns:
        The captioner, as workers on any machine can load it.

    Raises:
        ClusterError: the cluster can't be joined, has no room for a network, or a node of it lacks a source
            or this version of batchcap.
    """
    compute = options.compute
    check_address(compute.address or "")
    start_ray(compute)
    wait_for_room(compute, heeds_others=True)
    selection = Selection.of(options.include, options.exclude)
    ask_nodes(list(_landmarks(sources, selection)))
    return let_travel(captioner, fingerprint)


def check_address(address: str) -> None:
    """Finds out whether a head listens there: where another program does, Ray would wait for ever.

    Raises:
        ClusterError: none does.
    """
    if address == "auto" or os.environ.get("RAY_USE_TLS", "0") not in ("0", "false"):
        return
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S) as connection:
            connection.sendall(_HTTP2_GREETING)
            answer = connection.recv(4)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ClusterError(f"no cluster answers at {address}: {reason}; see that its head runs") from error
    # The fourth byte of a frame is its type, and the first frame says the server's settings.
    if answer[3:] != b"\x04":
        raise ClusterError(f"what answers at {address} is no head of a Ray cluster; its port often is 6379")


def wait_for_room(compute: ComputeOptions, *, heeds_others: bool) -> Resources:
    """Waits until a network and a loader have room, and asks an autoscaler for it meanwhile.

    Args:
        compute: what a network takes, and how long to wait.
        heeds_others: whether the room must be free. Once a run is under way, what takes it may be the run's
            own processes, which are about to end.

    Returns:
        How the nodes that there are then are shared out.

    Raises:
        ClusterError: there is no room within `compute.wait_s`.
    """
    deadline = time.monotonic() + compute.wait_s
    resources = _share_out_nodes(compute)
    lack = _what_lacks(resources, compute, heeds_others)
    if lack is None:
        return resources
    with _asking_for_room(compute):
        while lack is not None:
            if time.monotonic() >= deadline:
                raise ClusterError(lack)
            time.sleep(_POLL_INTERVAL_S)
            resources = _share_out_nodes(compute)
            lack = _what_lacks(resources, compute, heeds_others)
    return resources


@contextmanager
def _asking_for_room(compute: ComputeOptions) -> Iterator[None]:
    """Has an autoscaler start a node for one network; to clusters without one it is nothing."""
    from ray.autoscaler.sdk import request_resources

    request_resources(
        bundles=[{"CPU": 1, **({"GPU": compute.gpus_per_worker} if compute.gpus_per_worker else {})}]
    )
    try:
        yield
    finally:
        # From here on, the run's own processes say what it needs.
        request_resources(bundles=[])


def _share_out_nodes(compute: ComputeOptions) -> Resources:
    """How the nodes of now are shared out; maybe without room for a network."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in alive]
    return share_out_cluster(nodes, compute.gpus_per_worker)


def _what_lacks(resources: Resources, compute: ComputeOptions, heeds_others: bool) -> str | None:
    """Why no network can start now; None if one can."""
    if not resources.caption_workers or not resources.loaders:
        wanted = f"{compute.gpus_per_worker:g} GPU and a CPU" if compute.gpus_per_worker else "a CPU"
        return (
            f"no node of the cluster at {compute.address} has room for a network, which takes {wanted}; add "
            "nodes, ask for less with --gpus-per-worker, or wait for an autoscaler with --wait-for-nodes"
        )
    if not heeds_others:
        return None
    free = ray.available_resources()
    if free.get("GPU", 0) < resources.gpus_per_worker:
        return f"others use all GPUs of the cluster at {compute.address}; run again later"
    if free.get("CPU", 0) < resources.cpus_per_worker + resources.cpus_per_loader:
        return f"others use all CPUs of the cluster at {compute.address}; run again later"
    return None


def alive_nodes() -> set[str]:
    """The nodes that Ray has not given up."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def ask_nodes(paths: Sequence[str]) -> None:
    """Asks every node that may load images whether it sees some files and folders.

    Args:
        paths: of what is on this machine.

    Raises:
        ClusterError: one doesn't see them, lacks batchcap, or does not answer.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    answers = [
        _look_for.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(list(paths))
        for node in nodes
    ]
    deadline = time.monotonic() + _ANSWER_TIMEOUT_S
    for node, answer in zip(nodes, answers, strict=True):
        name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        try:
            version, missing = ray.get(answer, timeout=max(0.0, deadline - time.monotonic()))
        except ray.exceptions.GetTimeoutError as error:
            raise ClusterError(f"{name} did not answer within {_ANSWER_TIMEOUT_S:g} s") from error
        except ray.exceptions.RayError as error:
            is_gone = isinstance(error, ray.exceptions.TaskUnschedulableError)
            if is_gone or node["NodeID"] not in alive_nodes():
                continue  # it is gone, so it will load nothing
            raise ClusterError(f"{name} can't run batchcap: {one_line(error)}") from error
        if version != __version__:
            raise ClusterError(f"{name} has batchcap {version}, this one is {__version__}: install the same")
        if missing:
            raise ClusterError(
                f"{name} sees no {missing[0]}: every node must have the images under the same path, on "
                "shared storage"
            )


@ray.remote(num_cpus=0, max_retries=0)
def _look_for(paths: Sequence[str]) -> tuple[str, list[str]]:
    """Runs on a node: its version of batchcap, and which of the paths are not there."""
    return __version__, [path for path in paths if not os.path.exists(path)]


def _landmarks(sources: Sequence[Listing], selection: Selection) -> Iterator[str]:
    """Each source and a file in it: where a disk is not mounted, its folder may be there all the same."""
    for source in sources:
        files = islice(scan([source], skipped=Counter(), selection=selection), 1)
        for uri in [source.uri, *(entry.uri for entry in files)]:
            if scheme_of(uri) == "tar":
                yield split_uri(uri)[0]
            elif is_local(uri):
                yield uri_to_path(uri)
            # What is not on a disk every node has the same way to.
