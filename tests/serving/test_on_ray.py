"""`batchcap serve --ray`: the same server on Ray Serve, on a Ray of its own; and what KubeRay deploys."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import yaml
from typer.testing import CliRunner

from batchcap.captioner.bundle import Bundle
from batchcap.cli import app
from batchcap.errors import UsageError
from tests.cluster_driver import ENVIRONMENT
from tests.processes import descendants, ends
from tests.serving.conftest import Collection

pytest.importorskip("ray.serve")
from ray import serve
from ray.serve.schema import ServeDeploySchema

from batchcap.serving import on_ray

_WAIT_S = 300.0
RAYSERVICE = Path(__file__).parents[2] / "jobs" / "clusters" / "rayservice.yaml"


@dataclass(frozen=True)
class Deployed:
    """A server on Ray."""

    process: "subprocess.Popen[str]"
    url: str


@pytest.fixture(scope="module")
def deployed(
    collection: Collection, tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("on-ray")
    options = {"model": tiny_bundle.path, "catalog": collection.url, "store": folder, "decoders": 1}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    environment = os.environ | ENVIRONMENT | {"BATCHCAP_RUNTIME": "tensorflow"}
    with subprocess.Popen(
        [Path(sys.executable).with_name("batchcap"), "serve", "--ray", "--port", "0", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        children = []
        try:
            assert process.stdout is not None and process.stderr is not None
            url = process.stdout.readline().strip()
            assert url, process.stderr.read()
            children = descendants(process.pid)
            yield Deployed(process, url)
        finally:
            if process.poll() is None:
                for pid in (process.pid, *children):
                    os.kill(pid, signal.SIGKILL)


def post(url: str, photo: bytes) -> dict[str, Any]:
    request = Request(f"{url}/caption", photo, {"Content-Type": "image/jpeg"})
    with urlopen(request, timeout=_WAIT_S) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_line_of_the_readme_is_answered(deployed: Deployed, photo: bytes, tmp_path: Path) -> None:
    (tmp_path / "example.jpg").write_bytes(photo)
    command = ["curl", "-sS", "-X", "POST", "-F", "file=@example.jpg", f"{deployed.url}/caption"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["image"] == "example.jpg"
    # As it is when sent in the other way, beside others.
    with ThreadPoolExecutor(8) as threads:
        others = list(threads.map(lambda _: post(deployed.url, photo), range(8)))
    assert {other["caption"] for other in others} == {answer["caption"]}


def test_the_collection_is_shown(deployed: Deployed) -> None:
    with urlopen(f"{deployed.url}/search?q=dog", timeout=_WAIT_S) as answer:
        assert json.load(answer)["total"] == 3


def test_errors_have_their_form(deployed: Deployed) -> None:
    with pytest.raises(HTTPError) as raised:
        post(deployed.url, b"text")
    with raised.value as answer:
        assert (answer.status, json.load(answer)["error"]["reason"]) == (415, "unsupported")


def test_told_to_stop_it_is_gone(deployed: Deployed) -> None:
    """The last test with it."""
    children = descendants(deployed.process.pid)
    assert children
    deployed.process.send_signal(signal.SIGTERM)
    assert deployed.process.wait(_WAIT_S) == 0
    assert deployed.process.stderr is not None
    assert deployed.process.stderr.read().splitlines() == ["batchcap: starting Ray, loading the model"]
    assert all(ends(child, _WAIT_S) for child in children)
    port = int(deployed.url.rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()


# --- without a cluster ---


def test_the_service_of_kuberay_is_our_application(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, collection: Collection
) -> None:
    service = yaml.safe_load(RAYSERVICE.read_text(encoding="utf-8"))
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (described,) = config.applications
    assert described.import_path == f"{on_ray.__name__}:{on_ray.application.__name__}"
    assert described.route_prefix == "/"
    (tmp_path / "token").write_text("correct-horse-battery-staple")
    monkeypatch.setenv("BATCHCAP_CATALOG", collection.url)
    args = described.args | {"token_file": str(tmp_path / "token")}
    assert args.keys() == described.args.keys()
    assert isinstance(on_ray.application(args), serve.Application)
    # Where the file is mounted.
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    mounted = [mount["mountPath"] for mount in head["volumeMounts"]]
    assert str(Path(described.args["token_file"]).parent) in mounted
    with pytest.raises(UsageError, match="unknown beams"):
        on_ray.application({**args, "beams": 3})
    assert isinstance(on_ray.application({**args, "replicas": "0:2"}), serve.Application)
    for wrong in ("2:1", "0", "few"):
        with pytest.raises(UsageError, match=f"replicas {wrong}: give a number"):
            on_ray.application({**args, "replicas": wrong})


@pytest.mark.parametrize(
    ("nodes", "replicas", "gpus", "cpus"),
    [
        ([{"CPU": 8.0}], (1, 1), 0, 8.0),
        ([{"CPU": 8.0}], (1, 3), 0, 2.0),
        ([{"CPU": 4.0}, {"CPU": 8.0}], (1, 1), 0, 8.0),
        ([{"CPU": 2.0}], (1, 4), 0, 0.5),
        ([{"CPU": 8.0}, {"CPU": 8.0, "GPU": 2.0}], (1, 4), 1, 1.0),
    ],
)
def test_replicas_share_out_a_cluster(
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[dict[str, float]],
    replicas: tuple[int, int],
    gpus: float,
    cpus: float,
) -> None:
    described = [{"Alive": True, "Resources": node} for node in nodes]
    monkeypatch.setattr("ray.nodes", lambda: [*described, {"Alive": False, "Resources": {"GPU": 8.0}}])
    found = on_ray.share_out(*replicas)
    assert (found.fewest, found.most, found.gpus, found.cpus) == (*replicas, gpus, cpus)
    if gpus:
        with pytest.raises(UsageError, match="has 2 GPUs"):
            on_ray.share_out(3, 4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--replicas", "2"], "are for --ray"),
        (["--address", "auto"], "are for --ray"),
        (["--ray", "--replicas", "3:2"], "--replicas 3:2: give a number"),
        (["--ray", "--log-json", "log"], "--log-json is not for --ray"),
    ],
)
def test_options_that_do_not_go_together(words: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["serve", *words])
    assert done.exit_code == 2
    assert message in done.stderr
