"""The files that start clusters: what of them can be checked without one."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import typer
import yaml

from batchcap.cli import app
from batchcap.cli.submitting import _parse_index
from tests.test_docs import commands_in

ROOT = Path(__file__).parents[1]
CLUSTERS = ROOT / "jobs" / "clusters"
LAUNCHER = CLUSTERS / "ray-cluster.yaml"
RAYJOB = CLUSTERS / "rayjob.yaml"
RAYSERVICE = CLUSTERS / "rayservice.yaml"

# As KubeRay's reference of ray.io/v1 names them; those that must be there are marked.
FIELDS = {
    "RayJob": {"apiVersion!", "kind!", "metadata!", "spec!"},
    "RayJobSpec": {
        *("entrypoint!", "rayClusterSpec!", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
        *("backoffLimit", "activeDeadlineSeconds", "submissionMode", "runtimeEnvYAML", "suspend"),
    },
    "RayService": {"apiVersion!", "kind!", "metadata!", "spec!"},
    "RayServiceSpec": {
        *("serveConfigV2", "rayClusterConfig", "serveService", "upgradeStrategy"),
        *("excludeHeadPodFromServeSvc", "rayClusterDeletionDelaySeconds"),
    },
    "RayClusterSpec": {
        *("headGroupSpec!", "workerGroupSpecs", "rayVersion", "enableInTreeAutoscaling"),
        "autoscalerOptions",
    },
    "AutoscalerOptions": {"idleTimeoutSeconds", "upscalingMode", "resources", "image", "imagePullPolicy"},
    "HeadGroupSpec": {"template!", "rayStartParams", "serviceType", "enableIngress"},
    "WorkerGroupSpec": {
        *("groupName!", "template!", "replicas", "minReplicas", "maxReplicas", "rayStartParams"),
        *("numOfHosts", "idleTimeoutSeconds", "suspend"),
    },
}


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def check(kind: str, values: dict[str, Any]) -> None:
    known = {name.rstrip("!") for name in FIELDS[kind]}
    needed = {name.rstrip("!") for name in FIELDS[kind] if name.endswith("!")}
    assert needed <= set(values) <= known, kind


def test_the_launcher_s_file_fits_ray_s_schema() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = load(LAUNCHER)
    jsonschema.validate(cluster, schema)
    # What the schema leaves open.
    types = cluster["available_node_types"]
    assert cluster["head_node_type"] in types
    assert max(kind.get("max_workers", 0) for kind in types.values()) <= cluster["max_workers"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "max_worker": 1}, schema)


def test_the_job_has_the_fields_of_kuberay() -> None:
    job = load(RAYJOB)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    check("RayJob", job)
    check("RayJobSpec", job["spec"])
    check_cluster(job["spec"]["rayClusterSpec"])


def test_the_service_has_the_fields_of_kuberay() -> None:
    service = load(RAYSERVICE)
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    check("RayService", service)
    check("RayServiceSpec", service["spec"])
    cluster = service["spec"]["rayClusterConfig"]
    check_cluster(cluster)
    # Nodes are asked at this port whether they serve.
    deployed = yaml.safe_load(service["spec"]["serveConfigV2"])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports["serve"] == deployed["http_options"]["port"]
    # What the operator calls the service.
    (application,) = deployed["applications"]
    assert f"{service['metadata']['name']}-serve-svc" in application["args"]["allowed_hosts"]


def check_cluster(cluster: dict[str, Any]) -> None:
    check("RayClusterSpec", cluster)
    check("AutoscalerOptions", cluster["autoscalerOptions"])
    check("HeadGroupSpec", cluster["headGroupSpec"])
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups[1:]:
        check("WorkerGroupSpec", group)
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in groups:
        # KubeRay hands them on as text.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        spec = group["template"]["spec"]
        (container,) = spec["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}
        # Kubernetes admits GPUs only so.
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_files_name_the_ray_that_is_tested() -> None:
    version = ray.__version__
    assert load(RAYJOB)["spec"]["rayClusterSpec"]["rayVersion"] == version
    assert load(RAYSERVICE)["spec"]["rayClusterConfig"]["rayVersion"] == version
    texts = "".join(path.read_text() for path in (LAUNCHER, RAYJOB, RAYSERVICE))
    named = re.findall(r"rayproject/ray:([\d.]+)-", texts)
    assert set(named) == {version}


def check_command(words: list[str]) -> list[str]:
    """Sees that a command has options that there are; its SOURCEs."""
    assert words[0] == "batchcap"
    if words[1] == "index":
        sources: list[str] = _parse_index(words[2:])["source"]
        return sources
    assert words[1] == "submit"
    options = typer.main.get_command(app).commands["submit"].make_context("submit", words[2:]).params  # type: ignore[attr-defined]
    handed_on = options["source"] or []
    assert options["address"].startswith("http://")
    assert (not handed_on) == any(options[name] for name in ("follow", "status", "stop"))
    return _parse_index(handed_on)["source"] if handed_on else []


def test_the_files_give_options_that_there_are() -> None:
    assert check_command(shlex.split(load(RAYJOB)["spec"]["entrypoint"])) == ["/mnt/photos"]
    comment = "\n".join(re.findall(r"^#   (.*)$", LAUNCHER.read_text(), re.MULTILINE))
    lines = comment.replace("\\\n", " ").splitlines()
    (submit,) = (shlex.split(line) for line in lines if line.startswith("batchcap submit"))
    assert check_command(submit) == ["/mnt/photos"]


def test_the_page_gives_options_that_there_are() -> None:
    run, shown = commands_in((ROOT / "docs" / "clusters.md").read_text(encoding="utf-8"))
    commands = [shlex.split(line) for line in shown if not line.startswith("#")]
    assert run == []
    assert len(commands) == 6
    for words in commands:
        check_command(words)
