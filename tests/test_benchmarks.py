"""The benchmarks run, as small as they get, and say what they promise; how fast anything is, no test asks."""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from batchcap.captioner.bundle import Bundle
from benchmarks import common, run_all
from benchmarks.table import ROWS, benchmarks_table
from tests.run_commands import run_commands

ROOT = Path(__file__).parents[1]
# A run that is timed has two commits: more photographs than a block has.
_MANY = "--limit 70"
# As small as each gets, by its name. These have parts of theirs run in processes of their own,
ON_RAY = {
    "index_throughput": f"{_MANY} --num-beams 1 --runtime tensorflow --model MODEL",
    "plain_ray": f"{_MANY} --model MODEL",
}
# and these are run in one process, since TensorFlow takes seconds to start.
IN_PROCESS = {
    "original_way": "--photos PHOTOS --limit 4 --original-images 3 --model MODEL",
    "decoder": "--batch-size 2 --uncached-batch-size 1 --num-beams 2 --beams-batch-size 2 --tokens 3"
    " --vocabulary-size 50 --embed-dim 16",
    "serving": "--photos PHOTOS --limit 8 --clients 4 --model MODEL --seconds 1 --requests 20",
    "training_step": "--data PHOTOS --captions CAPTIONS --images 8 --batch-size 10 --original-steps 1"
    " --vocabulary-size 100 --embed-dim 64 --dec-layers 1",
}

Result = dict[str, Any]


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where those that are run in one process have their temporary files."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def found(
    photos: Path, tiny_bundle: Bundle, temporary: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Result]:
    """What the benchmarks print."""
    # All captions of one length, that of a benchmark's own batch: each step of training is traced but once.
    lines = [f"{path.name}\t{' '.join(['dog', 'runs'] * 11)}" for path in sorted(photos.iterdir())]
    captions = tmp_path_factory.mktemp("captions") / "captions.tsv"
    captions.write_text("\n".join(["image\tcaption", *(line for line in lines for _ in range(5))]) + "\n")
    names = {"MODEL": str(tiny_bundle.path), "PHOTOS": str(photos), "CAPTIONS": str(captions)}

    def options_of(small: str) -> list[str]:
        return [names.get(word, word) for word in f"{small} --rounds 1".split()]

    commands = {
        name: shlex.join(["python", str(script_of(name)), *options_of(small)])
        for name, small in IN_PROCESS.items()
    }
    with ThreadPoolExecutor(2) as pool:
        printed = pool.submit(run_commands, list(commands.values()), ROOT, TMPDIR=str(temporary))
        results = {name: run_benchmark(name, options_of(small)) for name, small in ON_RAY.items()}
        return results | {name: read(name, printed.result()[line]) for name, line in commands.items()}


def script_of(name: str) -> Path:
    return ROOT / "benchmarks" / f"{name}.py"


def run_benchmark(name: str, options: Sequence[object]) -> Result:
    """Its one JSON object."""
    done = subprocess.run(
        [sys.executable, str(script_of(name)), *map(str, options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return read(name, done.stdout)


def read(name: str, printed: str) -> Result:
    """What a benchmark printed, with what all of them say."""
    result: Result = json.loads(printed)
    assert result["benchmark"] == name
    assert result["rounds"] == 1
    assert result.keys() >= {"commit", "machine", "cpus", "processor", "memory_gib", "python", "tensorflow"}
    return result


def test_index_throughput(found: dict[str, Result]) -> None:
    result = found["index_throughput"]
    assert (result["images"], result["image_width"], result["image_height"]) == (70, 640, 480)
    (run,) = result["runs"]
    assert (run["runtime"], run["num_beams"]) == ("tensorflow", 1)
    assert {name: len(rates) for name, rates in run["images_per_s"].items()} == {
        "cnn": 1,
        "captioner": 1,
        "index": 1,
    }
    assert run.keys() >= {"captioner_to_cnn", "index_to_captioner", "stage_share"}
    # Nothing to compare with.
    assert "openvino_to_tensorflow" not in result


def test_plain_ray(found: dict[str, Result]) -> None:
    result = found["plain_ray"]
    assert result["images"] == 70
    assert result["images_per_s"].keys() == {"plain", "index"}
    (plain,), (index,) = result["images_per_s"].values()
    assert result["index_to_plain"] == pytest.approx(index / plain, rel=0.1)
    assert 0 <= result["captions_same"] <= 1


def test_original_way(found: dict[str, Result]) -> None:
    result = found["original_way"]
    assert (result["images"], result["original_images"], result["captions_same"]) == (4, 3, 3)
    assert len(result["images_per_s"]) == 4
    assert result["ours_to_original_files"] > 0 < result["ours_to_original_pixels"]


def test_decoder(found: dict[str, Result]) -> None:
    result = found["decoder"]
    assert (result["vocabulary_size"], result["embed_dim"], result["key_dim"]) == (50, 16, 16)
    assert [(run["attention"], run["batch_size"], run["num_beams"]) for run in result["runs"]] == [
        ("uncached", 1, 1),
        ("eager", 1, 1),
        ("keys_values", 2, 1),
        ("keys_values", 2, 2),
        ("absorbed", 2, 1),
        ("absorbed", 2, 2),
    ]
    assert result["absorbed_to_keys_values"].keys() == {"batch 2, beams 1", "batch 2, beams 2"}
    assert result["absorbed_to_uncached"].keys() == result["absorbed_to_eager"].keys() == {"batch 2"}
    assert result["cost_to_greedy"]["absorbed"].keys() == {"beams 2"}
    assert result["captions_same"] == 1


def test_serving(found: dict[str, Result]) -> None:
    result = found["serving"]
    assert (result["images"], result["clients"], result["num_beams"]) == (8, 4, 1)
    (captioner,), (served,) = (result["images_per_s"][name] for name in ("captioner", "served"))
    assert result["served_to_captioner"] == pytest.approx(served / captioner, rel=0.1)
    assert all(0 < wait["median"] <= wait["p95"] <= wait["p99"] for wait in result["wait_ms"].values())
    assert (result["answers"].keys(), result["errors"]) == ({"200"}, 0)
    overload = result["overload"]
    assert overload["survived"]
    assert overload["answers"].keys() == {"200", "429"}
    memory = result["memory"]
    assert memory["answers"] == {"200": 22}
    assert all(len(rss) == 11 and min(rss) > 0 for rss in memory["rss_mib"].values())
    assert memory["slope_bytes_per_request"].keys() == memory["rss_mib"].keys()


def test_the_table_has_a_row_for_every_question(found: dict[str, Result], tmp_path: Path) -> None:
    stages = {"loading": 0.25, "captioning": 0.75}
    index = found["index_throughput"]
    with_openvino = {
        **index,
        "runs": [{**run, "runtime": "openvino", "stage_share": stages} for run in index["runs"]],
        "openvino_to_tensorflow": {"1": 1.5},
    }
    for name, result in {
        **found,
        "index_throughput-12mp": with_openvino,
        "new": {"benchmark": "new"},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    head, rule, *rows, blank, others = benchmarks_table(tmp_path).splitlines()
    assert {line.count("|") for line in (head, rule, *rows)} == {5}
    assert all(f"`{index['commit']}`" in row for row in rows)
    assert len(rows) == 3 + 4 + 1 + 1 + 2 + 4 + 1
    assert "| captioning 75%, loading 25% |" in rows[5]
    assert "| 1.50 times TensorFlow's rate, greedy |" in rows[6]
    # What nobody wrote a row for is not passed over in silence.
    assert (blank, others) == ("", "Measured as well, in `benchmarks/results`: `new`.")


def test_decoding_has_a_row_for_the_largest_photograph_of_a_camera(tmp_path: Path) -> None:
    cases = [
        {"format": image_format, "width": width, "height": 3000, "megapixels": width * 0.003}
        | {"size_bytes": 4_000_000, "ms": {"full": 180.0, "pillow": 50.0}}
        for image_format, width in (("jpeg", 4000), ("jpeg", 400), ("jpeg", 8000), ("png", 4000))
    ]
    result = {"benchmark": "decode", "image_size": 224, "cases": cases, **common.provenance()}
    (tmp_path / "decode.json").write_text(json.dumps(result))
    row = benchmarks_table(tmp_path).splitlines()[-1]
    assert "a JPEG of 4000 x 3000 pixels and 4.0 MB to 224 x 224, one thread" in row
    assert "| 50 ms without it, 180 ms by plain Pillow |" in row


def test_rows_of_what_other_tests_run(tmp_path: Path) -> None:
    """Their scripts have tests of their own; here are values of the form that these print."""
    rates = {"ours": [80.0], "blip": [0.8], "git": [2.0], "vit_gpt2": [2.5]}
    memory = {"driver": {"processes": 1, "rss": 300.2, "pss": 250.0}}
    for result in (
        {
            "benchmark": "other_captioners",
            "tokens": 12,
            "captioners": {name: {"images_per_s": found} for name, found in rates.items()},
            "ours_to": {"blip": 100.0, "git": 40.0, "vit_gpt2": 32.0},
        },
        {
            "benchmark": "scaling",
            "runs": {
                "100000": [{"ms_per_image": 0.71, "memory_mib": memory}],
                "1000": [{"ms_per_image": 0.7, "memory_mib": memory}],
            },
        },
        {
            "benchmark": "startup",
            "median_s": {"first_commit": 14.25, "few_files": 9.5, "nothing_to_do": 0.7},
        },
        {
            "benchmark": "resume",
            "files": 1_000_000,
            "left": 10_000,
            "plans": [{"seconds": 17.59, "peak_mib": 612.4, "photographs_opened": 0}],
        },
        {
            "benchmark": "catalog_million",
            "database": "postgresql",
            "rows": 1_000_000,
            "search_ms": {
                "to_100": {"p50": 2.2, "p95": 9.6},
                "to_10000": {},
                "more": {"p50": 220, "p95": 1234},
            },
            "plan_s": 12.34,
        },
        {
            "benchmark": "readers",
            "database": "sqlite",
            "rows": 1000,
            "readers": 4,
            "wait_ms": {"alone": {"p99": 10}, "work": {"p99": 12.4}, "run": {"p99": 13.6}},
        },
    ):
        (tmp_path / f"{result['benchmark']}.json").write_text(json.dumps({**result, **common.provenance()}))
    _, _, others, scaling, memory_row, startup, resume, search, plan, readers = benchmarks_table(
        tmp_path
    ).splitlines()
    assert (
        "| 100 times BLIP-base (0.8 images/s), 40 times GIT-base (2.0 images/s), 32 times ViT-GPT2" in others
    )
    assert "| 0.70 ms an image of 1,000, 0.71 ms an image of 100,000 |" in scaling
    assert "100,000 files" in memory_row
    assert "| driver 300 MiB |" in memory_row
    assert (
        "| 14.2 s on Ray; 9.5 s to the end of a run of 128 files, which does without; 0.7 s where" in startup
    )
    assert "1,000,000 tiny files, of which 10,000 are not done" in resume
    assert "| 18 s, 612 MiB, 0 photographs opened |" in resume
    assert "1,000,000 captions in PostgreSQL" in search
    assert "| up to 100 hits 2 ms (one of twenty 10 ms); more 220 ms (one of twenty 1,234 ms) |" in search
    assert "| 12.3 s |" in plan
    assert "| one search of a hundred takes 14 ms beside a run, 12 ms beside other work |" in readers
    skipped = {"benchmark": "other_captioners", "skipped": "torch not installed"}
    (tmp_path / "other_captioners.json").write_text(json.dumps(skipped))
    assert "BLIP" not in benchmarks_table(tmp_path)


def test_a_table_of_no_results_says_so(tmp_path: Path) -> None:
    assert benchmarks_table(tmp_path) == "No results are kept yet; `make bench` makes them.\n"


def test_every_script_is_run() -> None:
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"common", "run_all", "table"}
    runs = run_all.list_runs()
    assert {script for script, *_ in runs.values()} == scripts
    assert runs.keys() >= scripts
    assert ROWS.keys() >= (ON_RAY | IN_PROCESS).keys()


def test_an_unknown_benchmark_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "run_all.py"), "decodr"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "no benchmark decodr" in done.stderr


def test_photographs_are_made_as_large_as_a_camera_s(tmp_path: Path) -> None:
    common.make_photos(tmp_path, 2, megapixels=1.2)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    with Image.open(tmp_path / "00001.jpg") as image:
        assert image.size == (1265, 949)
    # Two or three bits a pixel, as photographs have.
    assert all(0.2 < size / 1.2e6 < 0.5 for size in sizes)
    with pytest.raises(SystemExit, match="leave out --photos"):
        common.prepare_photos(tmp_path, photos=tmp_path, limit=None, megapixels=1.2)


def test_the_median_is_of_ratios_within_rounds() -> None:
    # Of medians it would be 2 / 3.
    assert common.median_ratio([1.0, 2.0, 30.0], [2.0, 4.0, 3.0]) == 0.5


def test_training_step(found: dict[str, Result]) -> None:
    result = found["training_step"]
    assert (result["images"], result["words"]) == (8, 100)
    parts = {"epoch", "steps", "step", "plain_step", "features", "original"}
    assert result["seconds"].keys() == parts | {"original_decoding", "original_cnn"}
    assert all(len(rounds) == 1 for rounds in result["seconds"].values())
    assert (result["step"]["captions"], result["epoch"]["captions"]) == (10, 40)
    assert result["step"].keys() >= {"ours_s_per_96_captions", "plain_s_per_96_captions", "plain_to_ours"}
    assert result["epoch"].keys() >= {"captions_per_s", "epoch_to_steps"}
    original = result["original"]
    assert original["captions"] == 10
    assert original.keys() >= {"ours_to_original", "ours_with_features_over_10_epochs_to_original"}
    assert original["share"].keys() == {"decoding", "cnn", "decoder"}


def test_nothing_is_left_behind(found: dict[str, Result], temporary: Path) -> None:
    assert list(temporary.iterdir()) == []
