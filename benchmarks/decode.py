"""How long does a picture take from its bytes to a model's pixels, and what do draft and simplejpeg save?

Prints one JSON object: for every format and size the milliseconds an image, on one thread, in each of the
ways, and their ratios, with the commit and the machine. Each round decodes in all ways one after the other,
so that a busy moment strikes all of them.

    python benchmarks/decode.py [--sizes 224x224,4000x3000] [--formats jpeg,png,webp] [--rounds 5]

The ways are `full`, Pillow at the picture's full size, then reduced; `pillow`, batchcap without extras, which
has JPEG files scaled while they are decoded; and for these `simplejpeg`, batchcap with the extra `fast`.
"""

import io
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import typer
from common import provenance
from PIL import Image

from batchcap.captioner.images import ImageSpec, decode
from batchcap.captioner.jpeg import default_decoder

# What cameras, phones and programs commonly write.
_OPTIONS: dict[str, dict[str, Any]] = {
    "jpeg": {"quality": 90},
    "png": {"compress_level": 3},
    "webp": {"quality": 80, "method": 2},
}
# A round decodes a picture until it comes to so many megapixels, but no more often than that.
_MEGAPIXELS_A_ROUND, _MOST_A_ROUND = 4, 50


def main(
    sizes: Annotated[
        str, typer.Option(help="Of the pictures.")
    ] = "224x224,512x384,1632x1224,4000x3000,8000x6000",
    formats: Annotated[str, typer.Option(help="Of the files.")] = "jpeg,png,webp",
    image_size: Annotated[int, typer.Option(min=1, help="Of the model.")] = 224,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Decodes pictures of several formats and sizes."""
    spec = ImageSpec(image_size)
    cases = []
    for size in sizes.split(","):
        width, height = map(int, size.split("x"))
        photo = make_photo(width, height)
        for image_format in formats.split(","):
            buffer = io.BytesIO()
            photo.save(buffer, image_format, **_OPTIONS[image_format])
            cases.append(measure(buffer.getvalue(), image_format, (width, height), spec, rounds))
    libraries = ["pillow", "simplejpeg"] if default_decoder() == "simplejpeg" else ["pillow"]
    print(
        json.dumps(
            {
                "benchmark": "decode",
                "image_size": image_size,
                "rounds": rounds,
                "cases": cases,
                **{name: version(name) for name in libraries},
                **provenance(),
            }
        )
    )


def measure(
    data: bytes, image_format: str, size: tuple[int, int], spec: ImageSpec, rounds: int
) -> dict[str, Any]:
    """Milliseconds an image in each way, and the ratios of the ways: medians over the rounds."""
    ways: dict[str, Callable[[], object]] = {
        "full": lambda: decode_full(data, spec),
        "pillow": lambda: decode(data, spec, "pillow"),
    }
    if image_format == "jpeg" and default_decoder() == "simplejpeg":
        ways["simplejpeg"] = lambda: decode(data, spec, "simplejpeg")
    megapixels = size[0] * size[1] / 1e6
    count = min(_MOST_A_ROUND, max(1, round(_MEGAPIXELS_A_ROUND / megapixels)))
    for way in ways.values():
        way()
    ms: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            ms[name].append(time_ms(way, count))
    return {
        "format": image_format,
        "width": size[0],
        "height": size[1],
        "megapixels": round(megapixels, 3),
        "size_bytes": len(data),
        "ms": {name: round(statistics.median(values), 3) for name, values in ms.items()},
        **{
            f"{slow}_to_{fast}": ratio(ms[slow], ms[fast])
            for slow, fast in (("full", "pillow"), ("pillow", "simplejpeg"), ("full", "simplejpeg"))
            if fast in ms
        },
    }


def decode_full(data: bytes, spec: ImageSpec) -> np.ndarray:
    """As anybody would with Pillow, the cheap first reduction included."""
    with Image.open(io.BytesIO(data)) as image:
        size = (spec.image_size, spec.image_size)
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0))


def make_photo(width: int, height: int) -> Image.Image:
    """A photograph enlarged, with noise on it: without, its files would be smaller than any camera's."""
    from skimage import data

    enlarged = Image.fromarray(data.coffee()).resize((width, height), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).integers(-6, 7, (height, width, 3), dtype=np.int8)
    return Image.fromarray(np.clip(np.asarray(enlarged, np.int16) + noise, 0, 255).astype(np.uint8))


def time_ms(work: Callable[[], object], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - started) * 1000 / count


def ratio(slow: list[float], fast: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(slow, fast, strict=True)), 3)


if __name__ == "__main__":
    typer.run(main)
