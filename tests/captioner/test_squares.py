"""Block by block or in one piece: the same pixels; and never a second picture as large as the first."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from batchcap.captioner import squares

SIZES = [(700, 500), (501, 702), (1, 3000), (3000, 1), (333, 1001), (1001, 333), (640, 640), (90, 2000)]


def picture(kind: str, size: tuple[int, int]) -> Image.Image:
    """Noise, so that no pixel may come from another place."""
    rng = np.random.default_rng(size[0])
    shape = size[::-1]
    match kind:
        case "I;16" | "I;16 with a transparent value":
            image = Image.fromarray(rng.integers(0, 65_536, shape, dtype=np.uint16))
            if kind != "I;16":
                image.info["transparency"] = int(np.asarray(image)[0, 0])
        case "I":
            image = Image.fromarray(rng.integers(-1000, 70_000, shape, dtype=np.int32))
        case "F":
            image = Image.fromarray(rng.normal(0.5, 0.3, shape).astype(np.float32))
        case "P":
            image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).convert("P")
            image.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
            image.info["transparency"] = rng.integers(0, 256, 256, dtype=np.uint8).tobytes()
        case "1":
            image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).convert("1")
        case "RGB with a transparent colour":
            image = Image.fromarray(rng.integers(0, 2, (*shape, 3), dtype=np.uint8) * 200)
            image.info["transparency"] = (200, 0, 200)
        case _:
            channels = len(Image.new(kind, (1, 1)).getbands())
            values = rng.integers(0, 256, (*shape, channels), dtype=np.uint8)
            image = Image.frombytes(kind, size, values.tobytes())
    return image


@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize(
    "kind",
    ["RGBA", "LA", "P", "CMYK", "1", "I", "F", "I;16"]
    + ["I;16 with a transparent value", "RGB with a transparent colour"],
)
def test_blocks_make_the_pixels_of_the_whole(kind: str, resize: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in SIZES:
        image = picture(kind, size)
        whole = squares.to_square(image, 32, resize)
        with monkeypatch.context() as patch:
            patch.setattr(squares, "_BLOCK_PIXELS", 900)
            patch.setattr(squares, "_CROPPED_WHOLE_PIXELS", 0)
            by_blocks = squares.to_square(image, 32, resize)
        assert by_blocks.mode == whole.mode
        difference = np.abs(np.asarray(by_blocks).astype(int) - np.asarray(whole))
        # Across and then down, where Pillow may do it the other way round.
        assert difference.max() <= (1 if resize == "crop" else 0), size


def test_a_single_float_beyond_1_counts_wherever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squares, "_BLOCK_PIXELS", 900)
    values = np.full((300, 300), 1.0, np.float32)
    assert np.asarray(squares.to_square(Image.fromarray(values), 32, "stretch")).min() == 255
    values[299, 0] = 1.5
    assert np.asarray(squares.to_square(Image.fromarray(values), 32, "stretch")).max() <= 2


_GROWTH = """
import sys
from PIL import Image
from batchcap.captioner.squares import to_square

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

image = Image.new(sys.argv[1], (6500, 6500), 1)
to_square(Image.new(sys.argv[1], (80, 80), 1), 32, sys.argv[2])
before = peak()
to_square(image, 32, sys.argv[2])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read as Linux writes it")
@pytest.mark.parametrize(("mode", "resize"), [("RGBA", "stretch"), ("F", "crop")])
def test_memory_does_not_grow_with_the_picture(mode: str, resize: str) -> None:
    """The picture itself takes 170 MB; in one piece it would take that several times more."""
    done = subprocess.run(
        [sys.executable, "-c", _GROWTH, mode, resize], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 110_000_000
