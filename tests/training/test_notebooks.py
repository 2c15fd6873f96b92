"""The notebooks: what is committed, and that they run on another bundle and other photographs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from batchcap.captioner.bundle import Bundle
from batchcap.captioner.protocol import Caption
from batchcap.errors import TrainingError, UsageError
from model_training.notebooks.examples import (
    COUNT,
    ROOT,
    Example,
    describe,
    load_examples,
    path_from,
    thumbnail,
)
from model_training.notebooks.make_notebooks import FOLDER, SIZES, make_notebook, sources
from tests.conftest import DataSet

MODULE = "model_training.notebooks.make_notebooks"


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def text_of(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def outputs_of(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def captions_of(notebook: dict[str, Any]) -> list[str]:
    """The descriptions below the photographs."""
    data = [output.get("data", {}) for output in outputs_of(notebook)]
    return [text_of(each["text/markdown"]) for each in data if "text/markdown" in each]


def pictures_of(notebook: dict[str, Any]) -> list[str]:
    data = [output.get("data", {}) for output in outputs_of(notebook)]
    return [text_of(each["image/jpeg"]) for each in data if "image/jpeg" in each]


def printed_by(notebook: dict[str, Any]) -> str:
    return "".join(text_of(output.get("text", "")) for output in outputs_of(notebook))


# --- as they are committed ---


@pytest.mark.parametrize("size", SIZES)
def test_a_notebook_is_what_the_template_makes(size: str) -> None:
    """So the three have the same code but for the bundle."""
    notebook = read(FOLDER / f"{size}.ipynb")
    found = [(cell["cell_type"], text_of(cell["source"])) for cell in notebook["cells"]]
    assert found == sources(make_notebook(size)), "run `make notebooks`"  # type: ignore[arg-type]


def test_the_three_differ_in_their_bundle_alone() -> None:
    code = [[text for kind, text in sources(make_notebook(size)) if kind == "code"] for size in SIZES]
    first, *others = zip(*code, strict=True)
    assert all(f'"BATCHCAP_{size.upper()}"' in text for size, text in zip(SIZES, first, strict=True))
    assert len({re.sub(r'^BUNDLE = path_from\(".+", ".+"\)$', "", text, flags=re.M) for text in first}) == 1
    assert all(len(set(cells)) == 1 for cells in others)


@pytest.mark.parametrize("size", SIZES)
def test_outputs_are_20_examples_and_no_error(size: str) -> None:
    path = FOLDER / f"{size}.ipynb"
    notebook = read(path)
    if not outputs_of(notebook):
        # There is no such model in the repository; the small one is.
        assert size != "small", "run `make notebooks`"
        return
    assert not any(output["output_type"] == "error" for output in outputs_of(notebook))
    assert not any(output.get("name") == "stderr" for output in outputs_of(notebook))
    assert len(pictures_of(notebook)) == len(captions_of(notebook)) == COUNT
    assert path.stat().st_size < 1_500_000
    # Nothing of the machine, and no photographs but the free ones.
    assert not re.search(r"/(home|root|tmp|work|Users|mnt)/", path.read_text(encoding="utf-8"))
    for example, caption in zip(load_examples(None, None, None), captions_of(notebook), strict=True):
        assert f"`{example.name}`: {example.shows}" in caption


# --- as they run ---


def test_they_run_on_other_bundles_and_photographs(
    tiny_bundle: Bundle, data_set: DataSet, tmp_path: Path
) -> None:
    """Side by side. Two of them: the third has the same code, as the tests above say."""
    ran = ("medium", "large")
    environment = {
        "BATCHCAP_SMALL": "nowhere",
        **{f"BATCHCAP_{size.upper()}": str(tiny_bundle.path) for size in ran},
        "BATCHCAP_PHOTOS": str(data_set.data),
        "BATCHCAP_CAPTIONS": str(data_set.captions),
        "BATCHCAP_SPLIT": str(data_set.dev_split),
        # What Jupyter keeps for itself.
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    done = run_module(tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert not outputs_of(read(tmp_path / "small.ipynb"))
    for size in ran:
        notebook = read(tmp_path / f"{size}.ipynb")
        assert not any(output["output_type"] == "error" for output in outputs_of(notebook))
        assert len(pictures_of(notebook)) == len(captions_of(notebook)) == 7
        assert "`16.png`\n- A red square ." in captions_of(notebook)[0]
        assert printed_by(notebook).startswith("tiny: efficientnet_lite0, ")
        assert re.search(r"CIDEr-D \d+\.\d on 7 photographs", printed_by(notebook))


def test_without_a_bundle_outputs_stay_while_the_code_is_the_same(tmp_path: Path) -> None:
    environment = {f"BATCHCAP_{size.upper()}": "nowhere" for size in SIZES}
    kept, stale = tmp_path / "small.ipynb", tmp_path / "medium.ipynb"
    for path, source in ((kept, None), (stale, "another = 1")):
        notebook = make_notebook(path.stem)  # type: ignore[arg-type]
        notebook.cells[1].outputs = [{"output_type": "stream", "name": "stdout", "text": "a dog\n"}]
        notebook.cells[1].source = source or notebook.cells[1].source
        path.write_text(json.dumps(notebook))
    done = run_module(tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert printed_by(read(kept)) == "a dog\n"
    assert outputs_of(read(stale)) == outputs_of(read(tmp_path / "large.ipynb")) == []
    assert done.stdout.count("no bundle at") == 3


def test_a_cell_that_fails_is_an_error_and_leaves_the_notebooks(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    environment = {f"BATCHCAP_{size.upper()}": "nowhere" for size in SIZES}
    environment |= {"BATCHCAP_SMALL": str(tmp_path / "empty")}
    done = run_module(tmp_path, environment)
    assert done.returncode == 1
    assert "BundleError" in done.stderr
    assert not list(tmp_path.glob("*.ipynb"))


def run_module(to: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", MODULE, "--to", str(to)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=240
    )


# --- their parts ---


def test_the_free_photographs_are_20_small_pictures() -> None:
    examples = load_examples(None, None, None)
    assert len({example.name for example in examples}) == COUNT
    assert all(example.shows and not example.references for example in examples)
    assert max(len(thumbnail(example)) for example in examples) < 40_000


def test_a_folder_gives_its_first_pictures(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("not a picture")
    for path in sorted(photos.iterdir()):
        (tmp_path / path.name).symlink_to(path)
    examples = load_examples(tmp_path, None, None)
    assert [example.name for example in examples] == [path.name for path in sorted(photos.iterdir())[:COUNT]]
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("not a picture")
    with pytest.raises(TrainingError, match="no photograph to caption"):
        load_examples(folder, None, None)


def test_captions_without_a_split_are_refused(data_set: DataSet) -> None:
    with pytest.raises(UsageError, match="no split of its own"):
        load_examples(data_set.data, data_set.captions, None)


def test_a_path_starts_in_the_repository_unless_it_is_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHCAP_SMALL", "runs/m1")
    assert path_from("BATCHCAP_SMALL", "other") == ROOT / "runs" / "m1"
    monkeypatch.setenv("BATCHCAP_SMALL", "/runs/m1")
    assert path_from("BATCHCAP_SMALL", "other") == Path("/runs/m1")
    monkeypatch.delenv("BATCHCAP_SMALL")
    assert path_from("BATCHCAP_SMALL", "other") == ROOT / "other"
    assert path_from("BATCHCAP_SMALL") is None


def test_a_description_says_what_is_known() -> None:
    example = Example("a.png", b"", references=("one <b>", "two"))
    text = describe(3, example, Caption("a dog & a cat", -4.5, 0.25, 6))
    assert text.splitlines() == [
        "**3. a dog &amp; a cat**  ",
        "log-probability -4.50 over 6 tokens, confidence 0.25  ",
        "`a.png`",
        "- one &lt;b&gt;",
        "- two",
    ]
    assert "confidence" not in describe(1, example, Caption("", -4.5, None, 1))
    assert "**1. (no word)**" in describe(1, example, Caption("", -4.5, None, 1))
