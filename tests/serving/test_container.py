"""Dockerfile and compose.yaml: what they name is there. No test builds an image: it would need a registry."""

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from batchcap.cli import app
from tests.test_docs import commands_in

ROOT = Path(__file__).parents[2]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_the_image_is_made_of_files_there_are() -> None:
    lines = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    default = next(line.partition("=")[2] for line in lines if line.startswith("ARG MODEL="))
    ignored = (ROOT / ".dockerignore").read_text().split()
    for name in (name.replace("${MODEL}", default) for names in copied for name in names):
        assert (ROOT / name).exists(), name
        assert not [pattern for pattern in ignored if fnmatch.fnmatch(name, pattern)], name
    stages = [line.split()[-1] for line in lines if line.startswith("FROM ")]
    assert stages == ["wheel", "base", "gpu", "cpu"]
    # Whoever runs either is nobody special.
    (number,) = re.findall(r"useradd .*--uid (\d+)", "\n".join(lines))
    assert [line for line in lines if line.startswith("USER ")] == [f"USER {number}"] * 2
    assert lines[-1] == f"USER {number}"
    (command,) = [line for line in lines if line.startswith("CMD ")]
    check_command(json.loads(command.removeprefix("CMD ")))
    (entry,) = [line for line in lines if line.startswith("ENTRYPOINT ")]
    assert json.loads(entry.removeprefix("ENTRYPOINT ")) == ["batchcap"]
    assert any("/readyz" in line for line in lines if line.startswith("HEALTHCHECK "))


def test_the_services_run_commands_there_are() -> None:
    described = yaml.safe_load((ROOT / "compose.yaml").read_text())
    services = described["services"]
    assert services.keys() == {"serve", "index", "db"}
    for name in ("serve", "index"):
        check_command(services[name]["command"])
        assert services[name]["environment"]["BATCHCAP_CATALOG"].startswith("postgresql+psycopg://")
        assert services[name]["depends_on"] == {"db": {"condition": "service_healthy"}}
    # Nobody but this machine, and nobody without the token.
    assert services["serve"]["ports"] == ["127.0.0.1:8012:8012"]
    assert "--token-file" in services["serve"]["command"]
    named = {volume.partition(":")[0] for one in services.values() for volume in one["volumes"]}
    assert described["volumes"].keys() == {name for name in named if name.isalpha()}


def check_command(words: list[str]) -> None:
    name, *rest = words
    options = {word for word in rest if word.startswith("--")}
    assert options <= {each for option in COMMANDS[name].params for each in option.opts}


def test_what_is_shown_runs_the_image_with_commands_there_are() -> None:
    """Of `docker run`, what stands behind the image is a command of batchcap; without any it serves."""
    page = commands_in((ROOT / "docs" / "serving.md").read_text(encoding="utf-8"))[1]
    head = re.findall(r"^#   (docker .*?)(?: {3,}#.*)?$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    shown = [shlex.split(line) for line in (*page, *head) if line.startswith("docker run ")]
    assert len(shown) >= 3
    for words in shown:
        image = next(index for index, word in enumerate(words) if re.fullmatch(r"batchcap(:gpu)?", word))
        if words[image + 1 :]:
            check_command(words[image + 1 :])
        # Nobody but this machine is let in, and what is captioned outlives the container.
        assert words[image + 1 :] or "127.0.0.1:8012:8012" in words


def test_the_dockerfile_has_no_fault_that_a_linter_knows() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("there is no hadolint here")
    done = subprocess.run([program, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
