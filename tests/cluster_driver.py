"""What the tests of clusters need Ray for, in one process and on one cluster: `python cluster_driver.py`.

Reads from standard input, as JSON: `photos`, `many` (folders of pictures), `model` (a bundle's folder),
`catalog` (URL of an empty catalog in PostgreSQL, or null) and `folder` (for stores). Prints what each step
found, as one JSON object; what is printed on the way goes to standard error.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
# What is run by `batchcap` as a job must be found.
ENVIRONMENT = {
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # On a busy machine its processes take their time; by default a node whose agent needs 30 s ends itself.
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_health_check_timeout_ms": "60000",
    # A node that is gone is asked several times before Ray believes it: more often than every three seconds.
    "RAY_health_check_period_ms": "500",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_worker_niceness": "0",
    # A stopped job has nothing to save here.
    "RAY_JOB_STOP_WAIT_TIME_S": "1",
}
NODE = {
    "num_cpus": 2,
    "object_store_memory": 160 * 1024**2,
    # Any that is free. The agent of another Ray on this machine has the usual port, and one that gets none
    # goes on without taking jobs.
    "dashboard_agent_listen_port": 0,
}


def run(*arguments: object) -> dict[str, Any]:
    """What a command of `batchcap` prints, and its exit status, in this process: Ray is imported once."""
    from batchcap import cli

    sys.argv = ["batchcap", *map(str, arguments)]
    status = 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            cli.main()
        except SystemExit as end:
            status = end.code
    found = {"status": status, "stdout": out.getvalue(), "stderr": err.getvalue()}
    print(arguments, found, file=sys.stderr, flush=True)
    return found


@contextlib.contextmanager
def running_cluster() -> Iterator[tuple[Any, str]]:
    """A head with two CPUs, and where it takes jobs. It is gone afterwards, with all that was left behind."""
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="rc-")  # short, for the paths of sockets must be
    os.environ.update(ENVIRONMENT, TMPDIR=folder)
    tempfile.tempdir = None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cluster = None
    try:
        cluster = Cluster(
            initialize_head=True, head_node_args={**NODE, "include_dashboard": True, "dashboard_port": port}
        )
        yield cluster, f"http://127.0.0.1:{port}"
    finally:
        import ray

        ray.shutdown()
        if cluster is not None:
            cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def hand_in(given: dict[str, Any], jobs: str) -> dict[str, Any]:
    """Jobs: one that runs to its end, and one that waits for a GPU, is left, asked for, and stopped."""
    place = ("--store", given["folder"] + "/jobs", "--catalog", given["catalog"], "--address", jobs)
    model = ("--model", given["model"], "--batch-size", "8")
    found = {"done": run("submit", given["photos"], *place, *model, "--workers", "1:2")}
    waiting = ("--gpus-per-worker", "1", "--wait-for-nodes", "600")
    command = ["batchcap", "submit", given["photos"], *place, *model, *waiting]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell runs in the background inherits that it is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        first = process.stderr.readline()
        job = first.split()[1]
        # Following begins right after this line; wherever it is interrupted, the job goes on.
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=300)[1]
    finally:
        process.kill()
        process.wait()
    found["left"] = {"status": process.returncode, "stderr": first + rest, "job": job}
    found["asked"] = run("submit", "--status", job, "--address", jobs)
    found["stopped"] = run("submit", "--stop", job, "--address", jobs)
    found["asked again"] = run("submit", "--status", job, "--address", jobs, "--json")
    found["followed"] = run("submit", "--follow", job, "--address", jobs)
    found["unknown"] = run("submit", "--status", "raysubmit_none", "--address", jobs)
    return found


def lose_a_node(given: dict[str, Any], cluster: Any, node: Any) -> dict[str, Any]:
    """A run whose second node is killed after the first commit; again, if it failed."""
    import costless
    import ray

    from batchcap.captioner import sources
    from batchcap.catalog import Run

    ray.cloudpickle.register_pickle_by_value(costless)
    sources.open_source = lambda *args, **kwargs: costless.Costless()
    killed: list[None] = []
    commit: Callable[..., None] = Run.commit

    def commit_and_kill(*args: Any) -> None:
        commit(*args)
        if not killed:
            killed.append(None)
            cluster.remove_node(node, allow_graceful=False)

    Run.commit = commit_and_kill
    command = ("index", given["many"], "--store", given["folder"] + "/lossy", "--batch-size", "8", "--json")
    runs = [run(*command, "--address", cluster.address)]
    if runs[0]["status"]:
        runs.append(run(*command, "--address", cluster.address))
    verified = run("verify", "--store", given["folder"] + "/lossy", "--json")
    return {"killed": len(killed), "runs": runs, "verified": verified}


def main() -> None:
    given = json.load(sys.stdin)
    steps: dict[str, Any] = {}
    with running_cluster() as (cluster, jobs):
        import ray

        from batchcap.errors import BatchcapError
        from batchcap.ray_cluster import ask_nodes

        if given["catalog"] is not None:
            steps["jobs"] = hand_in(given, jobs)
        index = ("index", given["photos"], "--model", given["model"], "--batch-size", "8", "--json")
        address = ("--address", cluster.address)
        wanting = ("--gpus-per-worker", "1", "--wait-for-nodes", "0")
        nowhere = ("--store", given["folder"] + "/none")
        steps["no head"] = run(*index, "--address", jobs.removeprefix("http://"), *nowhere)
        steps["no room"] = run(*index, *address, *wanting, *nowhere)
        if given["catalog"] is None:
            steps["one node"] = run(*index, *address, "--store", given["folder"] + "/one")
        node = cluster.add_node(**NODE)
        cluster.wait_for_nodes()
        steps["two nodes"] = run(*index, *address, "--memory", "256M", "--store", given["folder"] + "/two")
        copies = Path(os.environ["TMPDIR"]).glob("batchcap-models-*/*/weights.safetensors")
        steps["copies"] = [path.stat().st_size for path in copies]
        try:
            ask_nodes([given["photos"], "/no/such/folder"])
        except BatchcapError as error:
            steps["blind node"] = str(error)
        # What fails on one is told of the first that is asked.
        steps["nodes"] = [n["NodeManagerHostname"] for n in ray.nodes() if n["Alive"]]
        steps["lost"] = lose_a_node(given, cluster, node)
    print(json.dumps(steps))


if __name__ == "__main__":
    main()
