"""The benchmarks run, as small as they get, and say what they promise; how fast anything is, no test asks."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_training_step(photos: Path, tmp_path: Path) -> None:
    # All captions of one length, that of the benchmark's own batch: each step is traced but once.
    names = sorted(path.name for path in photos.iterdir())
    lines = [f"{name}\t{' '.join(['dog', 'runs'] * 11)}" for name in names for _ in range(5)]
    captions = tmp_path / "captions.tsv"
    captions.write_text("\n".join(["image\tcaption", *lines]) + "\n")
    sizes = "--images 8 --rounds 1 --batch-size 10 --original-steps 1"
    shape = "--vocabulary-size 100 --embed-dim 64 --dec-layers 1"
    script = ROOT / "benchmarks" / "training_step.py"
    command = [sys.executable, script, "--data", photos, "--captions", captions]
    done = subprocess.run(
        [*map(str, command), *sizes.split(), *shape.split()],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["benchmark"] == "training_step"
    assert (found["images"], found["words"], found["rounds"]) == (8, 100, 1)
    assert found.keys() >= {"commit", "machine", "cpus", "embed_dim"}
    parts = {"epoch", "steps", "step", "plain_step", "features", "original"}
    assert found["seconds"].keys() == parts | {"original_decoding", "original_cnn"}
    assert all(len(rounds) == 1 for rounds in found["seconds"].values())
    assert (found["step"]["captions"], found["epoch"]["captions"]) == (10, 40)
    assert found["step"].keys() >= {"ours_s_per_96_captions", "plain_s_per_96_captions", "plain_to_ours"}
    assert found["epoch"].keys() >= {"captions_per_s", "epoch_to_steps"}
    original = found["original"]
    assert original["captions"] == 10
    assert original.keys() >= {"ours_to_original", "ours_with_features_over_10_epochs_to_original"}
    assert original["share"].keys() == {"decoding", "cnn", "decoder"}
    # It leaves nothing behind.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.tsv"]
