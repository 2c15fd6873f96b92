"""docs/serving.md: what it says is so."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from starlette.testclient import TestClient

from batchcap.cli import app
from tests.test_docs import NOT_RUN, commands_in

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OPTIONS = {name: option for option in COMMANDS["serve"].params for name in option.opts}


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_requests_of_the_page_are_answered(url: str, photo: bytes, tmp_path: Path) -> None:
    for name in ("example.jpg", "other.png"):
        (tmp_path / name).write_bytes(photo)
    commands, _ = commands_in(PAGE)
    assert len(commands) == 11
    assert all(command.startswith("curl ") and "http://localhost:8012" in command for command in commands)
    # One after the other, in one shell.
    script = "\n".join(
        line.replace("curl ", "curl -sS --fail ", 1).replace("http://localhost:8012", url) + "; echo"
        for line in commands
    )
    done = subprocess.run(["sh", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    form, raw, several, search, collection, *_ = map(json.loads, done.stdout.splitlines()[:5])
    assert form["image"] == "example.jpg" and raw["caption"] == form["caption"]
    assert [answer["image"] for answer in several["captions"]] == ["example.jpg", "other.png"]
    assert search["total"] == 1
    assert collection["images"] == 8
    example = json.loads(re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0])
    assert form.keys() == example.keys()


def test_all_options_are_on_the_page() -> None:
    table = PAGE.partition("## Options")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `--")]
    found = {
        name: default.strip().strip("`") for names, default in rows for name in re.findall(r"--[\w-]+", names)
    }
    assert found.keys() == OPTIONS.keys() - {"--debug"}
    for name, default in found.items():
        option = OPTIONS[name]
        if option.default not in (None, False) and not option.multiple:
            assert default == str(option.default), name


def test_the_codes_of_the_page_are_those_of_the_server(client: TestClient) -> None:
    paths = set(client.get("/openapi.json").json()["paths"])
    for path in ("/caption", "/captions", "/search", "/collection", "/healthz", "/readyz", "/metrics"):
        assert path in paths and path in PAGE
    for path in ("/pictures/{content_hash}", "/images/{content_hash}/caption"):
        assert path in paths and path.replace("{content_hash}", "HASH") in PAGE


def test_the_parameters_of_a_search_are_on_the_page(client: TestClient) -> None:
    table = PAGE.partition("The parameters of `/search`")[2].partition("`/search` answers")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    on_page = {name.strip(" `"): default.strip(" `") for name, default in rows}
    described = client.get("/openapi.json").json()["paths"]["/search"]["get"]["parameters"]
    assert on_page == {
        one["name"]: str(default) if (default := one["schema"].get("default")) is not None else ""
        for one in described
    }


def test_what_is_only_shown_takes_the_options_there_are() -> None:
    _, shown = commands_in(PAGE)
    assert sum(line.startswith(NOT_RUN) for line in shown) == 5
    for line in shown:
        if line.startswith("batchcap serve"):
            assert {word for word in shlex.split(line) if word.startswith("--")} <= OPTIONS.keys()
