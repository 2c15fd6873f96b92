"""The same application on Ray Serve, in as many processes as there is to do: `serve --ray`, and KubeRay.

Each replica is a whole server but for its port: application, decoders, and a captioner of its own, with a GPU
where there are some. Ray's proxies listen, and send each request to one of them.

Importing this module imports Ray.
"""

import os
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from batchcap.balance import ComputeOptions, read_range
from batchcap.captioner.protocol import CaptionerSource
from batchcap.captioner.quiet import quiet_stderr
from batchcap.errors import NoCatalogError, PipelineError, UsageError

# Sets what Ray reads when it is imported.
from batchcap.ray_start import one_line, start_ray  # isort: skip

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.exceptions import RayServeException

from batchcap.captioner.sources import open_source
from batchcap.catalog import Catalog
from batchcap.model_copies import TravellingSource, let_travel
from batchcap.serving.app import create_app
from batchcap.serving.model_loading import load_captioner
from batchcap.serving.options import ServingOptions, read_token
from batchcap.serving.server import listen, say_where

_NAME = "batchcap"
# Requests that a replica takes beyond its queue of pictures: pages, searches, and those that it refuses.
_OTHER_REQUESTS = 64
# What a replica has on a cluster of which nothing else is known.
_CPUS = 2.0
_QUIET = {"log_level": "ERROR", "enable_access_log": False}


@dataclass(frozen=True, slots=True)
class ReplicaOptions:
    """How many replicas there are, and what each has.

    Args:
        fewest: replicas.
        most: replicas; there are as many as are busy.
        gpus: of each; 0 is none.
        cpus: of each.
    """

    fewest: int = 1
    most: int = 1
    gpus: float = 0.0
    cpus: float = _CPUS


@dataclass(frozen=True, slots=True)
class _Told:
    """What a replica is told, wherever it is."""

    source: CaptionerSource
    catalog_url: str | None
    options: ServingOptions
    num_threads: int


def serve_on_ray(
    source: CaptionerSource,
    catalog_url: str | None,
    options: ServingOptions,
    *,
    address: str | None = None,
    replicas: tuple[int, int] = (1, 1),
) -> None:
    """Serves until SIGINT or SIGTERM; requests in flight are answered first.

    Args:
        source: the model; on a cluster its files are brought to every machine that needs them.
        catalog_url: of the collection, opened by each replica; None for captions alone.
        options: of the server. Limits of time for heads, of connections and of what is left unread are Ray's.
        address: of the cluster to join; None starts Ray on this machine.
        replicas: the fewest and the most.

    Raises:
        UsageError: the address can't be listened at, a replica has no room, or would not see the catalog.
        PipelineError: Ray can't be started, or a replica can't.
        ClusterError: the cluster can't be joined.
    """
    options = replace(options, port=_free_port(options))
    start_ray(ComputeOptions(address=address))
    stop = threading.Event()
    before = {}
    try:
        if catalog_url is not None and catalog_url.startswith("sqlite") and len(_nodes()) > 1:
            raise UsageError(
                "--catalog: the other nodes of the cluster see no file of this one; it takes PostgreSQL"
            )
        with quiet_stderr():
            if address is not None:
                source = let_travel(source, source.fingerprint())
            try:
                _deploy(source, catalog_url, options, share_out(*replicas), is_cluster=address is not None)
            except (RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
                raise PipelineError(f"Ray Serve can't start: {one_line(error)}") from error
        # Until now they end the process, as they should: a replica may have no room for a long time.
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda *_: stop.set())
        say_where(options.host, options.port, options)
        stop.wait()
    finally:
        with quiet_stderr():
            # The replicas answer what they have taken. What else a cluster serves is not ours.
            with suppress(RayServeException):  # there is nothing yet
                serve.delete(_NAME)
            if address is None:
                serve.shutdown()
            ray.shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)


def _deploy(
    source: CaptionerSource,
    catalog_url: str | None,
    options: ServingOptions,
    replicas: ReplicaOptions,
    *,
    is_cluster: bool,
) -> None:
    serve.start(
        proxy_location="EveryNode" if is_cluster else "HeadOnly",
        http_options={
            "host": options.host,
            "port": options.port,
            "keep_alive_timeout_s": max(1, round(options.keep_alive_s)),
        },
        logging_config=_QUIET,
    )
    bound = _bound(source, catalog_url, options, replicas)
    serve.run(bound, name=_NAME, route_prefix="/", logging_config=_QUIET)


def share_out(fewest: int, most: int) -> ReplicaOptions:
    """What each replica has of the cluster: a GPU where there are some, else its part of the CPUs.

    Args:
        fewest: replicas.
        most: replicas.

    Raises:
        UsageError: the fewest don't find room.
    """
    nodes = _nodes()
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    if gpus:
        if gpus < fewest:
            raise UsageError(f"--replicas {fewest}:{most}: the cluster has {gpus:g} GPUs, and each takes one")
        return ReplicaOptions(fewest, most, gpus=1.0, cpus=1.0)
    cpus = [node.get("CPU", 0.0) for node in nodes]
    share = int(min(max(cpus), sum(cpus) / most))
    # More replicas than CPUs share them all the same.
    return ReplicaOptions(fewest, most, cpus=float(share) if share else sum(cpus) / most)


def _nodes() -> list[dict[str, float]]:
    """What each node of the cluster has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def application(told: dict[str, Any]) -> serve.Application:
    """What a config file of Ray Serve deploys: `import_path: batchcap.serving.on_ray:application`.

    Args:
        told: its `args`; all may be missing. `model` and `num_beams` as for `batchcap serve`; `catalog`, a
            URL, or else BATCHCAP_CATALOG, or captions alone; `token_file`, the path of a token on every node;
            `allowed_hosts`; `replicas`, as MIN:MAX; `gpus`, of each replica, and `cpus`.

    Raises:
        UsageError: there is something else among them, or it makes no sense.
    """
    known = {"model", "num_beams", "catalog", "token_file", "allowed_hosts", "replicas", "gpus", "cpus"}
    if unknown := sorted(told.keys() - known):
        raise UsageError(f"args: unknown {unknown[0]}; there are {', '.join(sorted(known))}")
    catalog_url = told.get("catalog") or os.environ.get("BATCHCAP_CATALOG")
    token_file = told.get("token_file")
    # Ray Serve can do without any while nobody asks.
    fewest, most = read_range("replicas", str(told.get("replicas", 1)), least=0)
    return _bound(
        open_source(told.get("model"), num_beams=told.get("num_beams")),
        catalog_url,
        ServingOptions(
            # The proxies listen wherever the config file says.
            host="0.0.0.0",
            token=None if token_file is None else read_token(Path(token_file)),
            allowed_hosts=tuple(told.get("allowed_hosts", ())),
        ),
        ReplicaOptions(
            fewest,
            most,
            gpus=float(told.get("gpus", 0.0)),
            cpus=float(told.get("cpus", _CPUS)),
        ),
    )


def _bound(
    source: CaptionerSource, catalog_url: str | None, options: ServingOptions, replicas: ReplicaOptions
) -> serve.Application:
    told = _Told(source, catalog_url, options, num_threads=max(1, int(replicas.cpus)))

    # Within this function, so that it travels with what it is told.
    def build() -> FastAPI:
        return _make_app(told)

    deployed = serve.deployment(
        name=_NAME,
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        autoscaling_config={
            "min_replicas": replicas.fewest,
            "max_replicas": replicas.most,
            # With as many at once, a replica's batches are full.
            "target_ongoing_requests": options.batch_size,
        },
        # A replica says itself when its queue is full.
        max_ongoing_requests=options.max_queue + _OTHER_REQUESTS,
        graceful_shutdown_timeout_s=options.stop_timeout_s,
    )
    bound: serve.Application = deployed(serve.ingress(build)()).bind()
    return bound


def _make_app(told: _Told) -> FastAPI:
    """The application, in the process of a replica."""
    source = told.source.copied() if isinstance(told.source, TravellingSource) else told.source
    catalog = None
    if told.catalog_url is not None:
        with suppress(NoCatalogError):
            catalog = Catalog.open(told.catalog_url)
    description = source.describe()
    return create_app(
        load_captioner(source, batch_size=told.options.batch_size, num_threads=told.num_threads),
        catalog,
        name=source.name,
        num_beams=description.get("generation", {}).get("num_beams"),
        config=description,
        options=told.options,
    )


def _free_port(options: ServingOptions) -> int:
    """The port, if it is free, or any that is: Ray would not say that it is taken."""
    with listen(options) as listener:
        return int(listener.getsockname()[1])
