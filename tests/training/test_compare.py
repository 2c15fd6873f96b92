"""Training runs side by side."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from batchcap.errors import BatchcapError, TrainingError
from model_training import compare
from model_training.compare import read_history, summarize
from model_training.config import TrainConfig
from model_training.tracking import Tracker

EPOCHS: list[dict[str, Any]] = [
    {"epoch": 1, "stage": "text", "loss": 6.0, "train_s": 900},
    {"epoch": 2, "stage": "xent", "loss": 4.0, "dev_accuracy": 0.35, "dev_bleu_4": 0.20, "train_s": 1800},
    {"epoch": 3, "stage": "xent", "loss": 3.0, "dev_accuracy": 0.36, "dev_bleu_4": 0.19, "train_s": 1800},
]
for _row, _cider in zip(EPOCHS[1:], (50.5, 49.0), strict=True):
    _row["dev_cider_d"] = _cider
FLAT = {"epoch": 2, "dev_bleu_4": 0.25, "dev_cider_d": 60.0, "dev_accuracy": 0.4}
SCORED = [
    {"num_beams": 1, "bleu_4": 0.18, "cider_d": 47.0},
    {"num_beams": 3, "bleu_4": 0.21, "cider_d": 51.0},
    {"num_beams": 5, "bleu_4": 0.22, "cider_d": 52.0},
]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as the tracker leaves it, with weights."""
    path = tmp_path_factory.mktemp("runs") / "run"
    with Tracker(TrainConfig(path, path, artifact_dir=path), details={"parameters": 8593231}) as tracker:
        for row in EPOCHS:
            tracker.log_epoch(row)
    (path / "weights.safetensors").write_bytes(bytes(1_500_000))
    return path


@pytest.fixture
def run(tracked: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(tracked, tmp_path / "run")


def write_metrics(run: Path, metrics: object) -> None:
    (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")


def run_command(*arguments: object) -> Result:
    app = compare.typer.Typer()
    app.command()(compare.main)
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_run_is_summed_up(run: Path) -> None:
    found = summarize(run)
    assert (found.size_mb, found.parameters, found.embed_dim) == (1.5, 8593231, 512)
    assert (found.heads, found.layers, found.epochs) == ("2/4", "1/1", 3)
    # Of the epoch with the best CIDEr-D, although the other one's accuracy is better.
    assert (found.cider_d, found.bleu_4, found.accuracy) == (50.5, 0.20, 0.35)
    assert found.train_hours == pytest.approx(1.25)


@pytest.mark.parametrize(
    ("metrics", "cider_d", "bleu_4", "accuracy"),
    [
        (FLAT, 60.0, 0.25, 0.4),
        ({"dev.txt": SCORED}, 51.0, 0.21, 0.35),  # the bundle's own number of beams
        ({"val": SCORED[2:]}, 52.0, 0.22, 0.35),
        ({"test.txt": SCORED}, 50.5, 0.20, 0.35),  # scores on other images are not compared
        ({}, 50.5, 0.20, 0.35),
        ({"dev.txt": ["?", {}, {"cider_d": float("nan")}]}, 50.5, 0.20, 0.35),
    ],
)
def test_the_scores_of_the_bundle_come_first(
    run: Path, metrics: object, cider_d: float, bleu_4: float, accuracy: float
) -> None:
    write_metrics(run, metrics)
    found = summarize(run)
    assert (found.cider_d, found.bleu_4, found.accuracy) == (cider_d, bleu_4, accuracy)


def test_a_run_that_was_killed_early_can_be_compared(run: Path) -> None:
    (run / "weights.safetensors").unlink()
    lines = (run / "history.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "history.csv").write_text("".join(lines[:2]), encoding="utf-8")
    found = summarize(run)
    assert (found.epochs, found.cider_d, found.size_mb) == (1, None, None)
    assert "–" in run_command(run).stdout


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("training.json", None),
        ("training.json", "{"),
        ("training.json", "[]"),
        ("training.json", '{"epochs": 3}'),
        ("training.json", '{"captioner": 3}'),
        ("history.csv", None),
        ("history.csv", ""),
        ("history.csv", "epoch,loss\n"),
        ("history.csv", "name,size\na,1\n"),
        ("history.csv", "epoch,loss\n1,2,3\n"),
        ("history.csv", "epoch,loss\n1\n"),
        ("history.csv", b"epoch\n\xff\xfe\n"),
        ("metrics.json", "3"),
    ],
)
def test_a_damaged_file_is_named(run: Path, name: str, content: str | bytes | None) -> None:
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BatchcapError) as caught:
        summarize(run)
    assert str(run / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_runs_are_a_line_each_and_the_others_still_compared(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run_command(run, tmp_path / "empty", tmp_path / "nothing", "--plot", tmp_path / "bars.png")
    assert result.exit_code == 1
    first, second = result.stderr.splitlines()
    assert first.startswith(f"compare: {tmp_path / 'empty' / 'training.json'} is missing")
    assert second == f"compare: no run at {tmp_path / 'nothing'}; give the --artifact_dir of a train_model"
    for text in ("8.59 M", "1.5", "512", "2/4", "1/1", "0.200", "50.5", "0.350", "1.25"):
        assert text in result.stdout
    with Image.open(tmp_path / "bars.png") as image:
        assert image.format == "PNG"


def test_json_is_one_object_and_nothing_else(run: Path, tmp_path: Path) -> None:
    result = run_command(run, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["failed"] == {}
    assert found["runs"][0]["cider_d"] == 50.5
    result = run_command(run, tmp_path / "no", "--json")
    assert result.exit_code == 1
    assert list(json.loads(result.stdout)["failed"]) == [str(tmp_path / "no")]


def test_a_plot_that_can_not_be_had_is_one_line_below_the_table(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_command(run, "--plot", tmp_path / "no" / "bars.png")
    assert result.exit_code == 1
    assert "50.5" in result.stdout
    assert (
        result.stderr == f"compare: can't write {tmp_path / 'no' / 'bars.png'}: No such file or directory\n"
    )
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run_command(run, "--plot", tmp_path / "bars.png")
    assert result.exit_code == 1
    assert result.stderr == "compare: can't plot: matplotlib is missing; pip install 'batchcap[train]'\n"


def test_a_name_is_no_markup_and_no_row_is_cut(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.rename(tmp_path / "[red]run")
    # A path that is longer than its column would be broken.
    monkeypatch.chdir(tmp_path)
    result = run_command(Path("[red]run"))
    assert result.exit_code == 0
    assert "".join(result.stdout.split()).count("[red]run") == 1


def test_a_history_reads_as_it_was_logged(run: Path) -> None:
    assert read_history(run / "history.csv") == EPOCHS
    with pytest.raises(TrainingError):
        read_history(run / "no.csv")


def test_the_module_runs_and_stays_light(run: Path) -> None:
    code = "import sys, model_training.compare; print(*sys.modules.keys() & {'tensorflow', 'keras', 'wandb'})"
    light = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert light.stdout == "\n"
    command = [sys.executable, "-m", "model_training.compare", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "50.5" in done.stdout
