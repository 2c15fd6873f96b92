"""What decoding is said to take is what it takes, and nobody is let to take more."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from batchcap.captioner import images
from batchcap.captioner.images import ImageSpec, decode
from batchcap.captioner.memory import decoding_bytes
from batchcap.errors import ImageError, Reason
from tests.hostile import by_hand
from tests.hostile.pictures import HAS_AVIF, HAS_HEIF, heic, quarters, saved

# Each file in a process of its own, forked from one that has decoded nothing large: memory that was free
# before would be used without a trace.
_MEASURE = """
import io, json, os, sys
from pathlib import Path
from PIL import Image
from batchcap.captioner import images, squares
from batchcap.captioner.memory import decoding_bytes

# What becomes of the decoded picture is not what is measured.
squares._BLOCK_PIXELS = 100_000

def memory(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))

images.prepare()
for path in map(Path, sys.argv[1:]):
    sys.stdout.flush()
    if os.fork() == 0:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            said = decoding_bytes(image, data)
        before = memory("VmRSS")
        images.decode(data, images.ImageSpec(224))
        print(json.dumps([path.name, said, memory("VmHWM") - before]), flush=True)
        os._exit(0)
    os.wait()
"""
_SIZE = (1600, 1200)


def large_files() -> dict[str, bytes]:
    """Of each kind of decoder one, as costly as it gets."""
    rgb = Image.linear_gradient("L").resize(_SIZE).convert("RGB")
    rgba = rgb.copy()
    rgba.putalpha(100)
    files = {
        "png": saved(rgb, "PNG", compress_level=1),
        "webp": saved(rgb, "WEBP", method=0),
        "jpeg2000": saved(rgb, "JPEG2000", num_resolutions=3),
        "qoi": by_hand.qoi(*_SIZE, b"\xfd" * (_SIZE[0] * _SIZE[1] // 62 + 1)),
        "progressive": saved(rgb, "JPEG", progressive=True, subsampling="4:4:4"),
        "tiff of one strip": saved(rgb, "TIFF", compression="tiff_lzw", strip_size=2**30),
    }
    if HAS_AVIF:
        files["avif with alpha"] = saved(rgba, "AVIF", speed=10, subsampling="4:4:4")
    if HAS_HEIF:
        files["heif"] = heic(rgb, quality=50)
        files["heif in full colour"] = heic(rgb, quality=50, chroma=444)
    return files


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read as Linux writes it")
def test_decoding_takes_no_more_than_it_is_said_to(tmp_path: Path) -> None:
    files = large_files()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *(tmp_path / name for name in files)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = {name: counts for name, *counts in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == files.keys()
    # Not by the size of the picture: buffers, threads, what it is scaled down to.
    fixed_bytes = 12_000_000
    assert {name: (said, took) for name, (said, took) in found.items() if took > said + fixed_bytes} == {}
    # Nor is it said to take much more than it does: pictures would be refused for nothing.
    assert {name: (said, took) for name, (said, took) in found.items() if said > 2 * took + fixed_bytes} == {}


def opened(data: bytes) -> Image.Image:
    images.prepare()
    return Image.open(io.BytesIO(data))


def said(data: bytes) -> int:
    return decoding_bytes(opened(data), data)


def test_a_jpeg_of_several_scans_is_held_whole() -> None:
    """Two bytes for each coefficient, wherever the first scan does not make the whole picture."""
    size = 1000 * 800
    one_scan = by_hand.jpeg_header(1000, 800)
    assert said(one_scan) == 4 * size
    assert said(by_hand.jpeg_header(1000, 800, marker=0xC2)) == (4 + 6) * size
    assert said(one_scan.replace(b"\xff\xda\x00\x0c\x03", b"\xff\xda\x00\x08\x01")) == (4 + 6) * size
    # Scaled down, the picture is smaller, but not the coefficients.
    half = saved(quarters().resize((1000, 800)), "JPEG", progressive=True, subsampling="4:2:0")
    image = opened(half)
    image.draft(None, (100, 100))
    assert decoding_bytes(image, half) == 4 * 125 * 100 + 3 * size


@pytest.mark.parametrize(
    ("tags", "block"),
    [
        ([], 100 * 80),
        ([(278, 4, [8])], 100 * 8),
        ([(322, 4, [640]), (323, 4, [320])], 640 * 320),
        ([(258, 3, [16] * 3), (262, 3, [2]), (277, 3, [3])], 100 * 80 * 6),
        ([(258, 3, [8] * 3), (262, 3, [2]), (277, 3, [3]), (284, 3, [2])], 100 * 80),
    ],
)
def test_a_block_of_a_tiff_is_unpacked_whole(tags: list[by_hand.Tag], block: int) -> None:
    own = 100 * 80 * (4 if len(tags) > 2 else 1)
    packed = by_hand.grey_tiff(100, 80, (259, 3, [5]), *tags, pixels=bytes(10))
    assert said(packed) == own + block


def test_rows_of_a_pixel_cost_their_pointers() -> None:
    data = saved(Image.new("RGB", (1, 1000)), "PNG")
    assert said(data) == 1000 * (4 + 8) + 16
    wide = saved(Image.new("RGB", (1000, 1)), "PNG")
    # And a row of all pixels is there three times.
    assert said(wide) == 1000 * (4 + 16)


def test_the_limit_is_said_in_the_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_MAX_DECODING_BYTES", 17 * 96 * 64 - 1)
    data = saved(quarters(), "WEBP")
    with pytest.raises(ImageError, match="decoding 96 x 64 pixels of webp takes 0.0 GB") as caught:
        decode(data, ImageSpec(32))
    assert caught.value.reason is Reason.TOO_LARGE
    monkeypatch.setattr(images, "_MAX_DECODING_BYTES", 17 * 96 * 64)
    assert decode(data, ImageSpec(32)).format == "webp"


@pytest.mark.parametrize("options", [{}, {"no_jp2": True}, {"tile_size": (32, 32)}])
def test_a_large_jpeg_2000_is_reduced(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(quarters().resize((400, 320)), "JPEG2000", **options)
    whole = decode(data, ImageSpec(16))
    monkeypatch.setattr(images, "_MAX_DECODING_BYTES", 20 * 400 * 320 // 4)
    reduced = decode(data, ImageSpec(16))
    assert (reduced.width, reduced.height) == (400, 320)
    difference = abs(reduced.pixels.astype(int) - whole.pixels)
    assert 0 < difference.mean() < 4, "it was not reduced, or to something else"
