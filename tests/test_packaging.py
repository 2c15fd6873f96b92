"""Source distribution and wheel: what they carry, and that an installed batchcap works by itself."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import make_photo

ROOT = Path(__file__).parents[1]
_WAIT_S = 300
# What an installed batchcap must not see of this environment.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "BATCHCAP_"))
}


def run(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        words, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=_WAIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of this checkout."""
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", folder, cwd=ROOT)
    (path,) = folder.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made of the source distribution as it is unpacked: it must have all that a wheel needs."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*command, "--wheel-dir", folder, source, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel, and its dependencies from this environment."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    run(*command, "--no-deps", "--no-index", wheel, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    # Of folders that are named so, the .pth files are not read: not the one that leads to the checkout.
    paths = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in paths))
    return folder / "bin"


def test_the_wheel_carries_code_migrations_queries_and_the_model(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = set()
    for package in ("batchcap", "model_training", "sql"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(ROOT).as_posix()
                expected.add(f"batchcap/_{name}" if package == "sql" else name)
    assert {name for name in names if ".dist-info/" not in name} == expected
    # Of each kind one, should what is expected be little.
    assert {
        "batchcap/serving/static/page.js",
        "batchcap/serving/templates/base.html",
        "batchcap/_sql/env.py",
        "batchcap/_sql/queries/words.sql",
        "batchcap/models/default/weights.safetensors",
        "model_training/train_model.py",
    } <= names
    assert any(name.startswith("batchcap/_sql/versions/0001") for name in names)


def test_the_source_distribution_has_what_is_built_and_tested_with(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        *("LICENSE", "README.md", "CHANGELOG.md", "Makefile", "constraints.txt", "mkdocs.yml"),
        *("Dockerfile", "compose.yaml", "docs/tutorial.md", "docs/images/page.png", "jobs/train.py"),
        *("benchmarks/run_all.py", "examples/demo.py", "sql/schema/sqlite.sql", "tests/test_packaging.py"),
    } <= names
    tops = {name.partition("/")[0] for name in names}
    assert tops.isdisjoint({".venv", ".ci", ".git", "site", "demo", "build", "dist", "local_runs", "wandb"})


def test_an_installed_batchcap_indexes_searches_and_serves(installed: Path, tmp_path: Path) -> None:
    """By its own commands, with the model that ships, in a folder of its own."""
    where = run(installed / "python", "-c", "import batchcap; print(batchcap.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    photo = make_photo(tmp_path / "photos" / "one.jpg", 1)
    make_photo(tmp_path / "photos" / "two.png", 2)
    store = ("--store", "store")
    indexed = run(
        installed / "batchcap", "index", "photos", *store, "--num-beams", "1", "--json", cwd=tmp_path
    )
    done = json.loads(indexed)
    assert (done["captioned"], done["quarantined"]) == (2, {})
    words = json.loads(run(installed / "batchcap", "sql", "--named", "words", *store, "--json", cwd=tmp_path))
    word = next(word for word, *_ in words["rows"] if len(word) > 3)
    found = json.loads(run(installed / "batchcap", "search", word, *store, "--json", cwd=tmp_path))
    captions = {Path(hit["uri"]).name: hit["caption"] for hit in found["hits"]}
    assert captions
    with serving(installed / "batchcap", tmp_path) as url:
        request = urllib.request.Request(
            f"{url}/caption", photo.read_bytes(), {"Content-Type": "image/jpeg"}, method="POST"
        )
        answer = json.loads(urllib.request.urlopen(request, timeout=_WAIT_S).read())
        assert answer["caption"] == captions.get("one.jpg", answer["caption"])
        asked = urllib.request.Request(f"{url}/", headers={"Accept": "text/html"})
        assert b"/static/page.css" in urllib.request.urlopen(asked, timeout=_WAIT_S).read()
        assert urllib.request.urlopen(f"{url}/static/page.css", timeout=_WAIT_S).status == 200


@contextmanager
def serving(program: Path, folder: Path) -> Iterator[str]:
    """Serves a store until the end of the block, then has to end as if nothing had been."""
    with subprocess.Popen(
        [program, "serve", "--store", "store", "--port", "0", "--decoders", "1", "--num-beams", "1"],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None and server.stderr is not None
            if not (url := server.stdout.readline().strip()):
                raise RuntimeError(server.stderr.read())
            yield url
        finally:
            server.terminate()
            assert server.wait(_WAIT_S) == 0
