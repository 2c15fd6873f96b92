"""The benchmark of decoding runs, as small as it gets, and says what it promises."""

import json
import subprocess
import sys
from pathlib import Path

from tests.jpeg_decoders import HAS_SIMPLEJPEG

ROOT = Path(__file__).parents[1]


def test_decode() -> None:
    options = "--sizes 32x32,90x60 --image-size 32 --rounds 2"
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "decode.py", *options.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() >= {"commit", "machine", "cpus", "pillow"}
    assert (found["benchmark"], found["image_size"], found["rounds"]) == ("decode", 32, 2)
    cases = found["cases"]
    assert [(case["format"], case["width"]) for case in cases] == [
        (image_format, width) for width in (32, 90) for image_format in ("jpeg", "png", "webp")
    ]
    for case in cases:
        ways = {"full", "pillow"}
        if HAS_SIMPLEJPEG and case["format"] == "jpeg":
            ways.add("simplejpeg")
            assert case["pillow_to_simplejpeg"] > 0 and case["full_to_simplejpeg"] > 0
        assert case["ms"].keys() == ways
        assert case["full_to_pillow"] > 0 and case["size_bytes"] > 0
