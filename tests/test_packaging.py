"""The wheel: what an installed batchcap has, and that it works away from the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, ROOT], check=True, timeout=300)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_carries_code_migrations_queries_and_the_model(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "batchcap/cli/__init__.py",
        "batchcap/serving/static/page.js",
        "batchcap/serving/templates/base.html",
        "batchcap/_sql/env.py",
        "batchcap/models/default/weights.safetensors",
        "model_training/train_model.py",
    } <= names
    assert any(name.startswith("batchcap/_sql/versions/0001") for name in names)
    assert any(name.startswith("batchcap/_sql/queries/") for name in names)
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"batchcap", "model_training"}


def test_an_installed_wheel_finds_its_parts(wheel: Path, tmp_path: Path) -> None:
    """Unpacked into a folder of its own, with the dependencies of this environment but not the checkout."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = (
        "import batchcap, sys; from batchcap.catalog import Catalog, named_queries; "
        "from batchcap.captioner.bundle import DEFAULT_BUNDLE, Bundle; "
        f"assert batchcap.__file__.startswith({str(tmp_path)!r}), batchcap.__file__; "
        "assert named_queries(); Bundle.open(DEFAULT_BUNDLE).fingerprint(); "
        f"Catalog.open('sqlite:///{tmp_path}/catalog.db', mode='write').close(); print('works')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "works\n", done.stderr
