"""What several benchmarks need: photographs, processes and ratios, and which code ran on which machine."""

import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from batchcap.balance import available_cpus

# What is reported beside the code's own commit, where it is installed.
_LIBRARIES = ("tensorflow", "ray", "openvino")


def make_photos(folder: Path, count: int = 1000, *, megapixels: float | None = None) -> Path:
    """Crops of scikit-image's photographs as JPEG, no two alike.

    Args:
        folder: where to; it exists.
        count: how many.
        megapixels: as large as a camera's, of 4 x 3, with a sensor's noise: a JPEG has two or three bits a
            pixel of them, as of a phone's photographs. None makes them 640 x 480, without noise.
    """
    import numpy as np
    from PIL import Image
    from skimage import data

    rng = np.random.default_rng(0)
    originals = [Image.fromarray(load()) for load in (data.astronaut, data.chelsea, data.coffee, data.rocket)]
    height = 480 if megapixels is None else round((megapixels * 1e6 * 3 / 4) ** 0.5)
    size = (height * 4 // 3, height)
    noise = None if megapixels is None else rng.normal(0, 8, (size[1], size[0], 1)).astype(np.int16)

    def make(number: int, left: int, top: int) -> None:
        image = originals[number % len(originals)]
        crop = image.crop((left, top, left + image.width * 3 // 4, top + image.height * 3 // 4)).resize(size)
        if noise is None:
            crop.save(folder / f"{number:05}.jpg", quality=85)
            return
        noisy = np.asarray(crop) + np.roll(noise, 997 * number)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05}.jpg", quality=88)

    corners = [
        (number, *(int(rng.integers(0, side // 4)) for side in originals[number % len(originals)].size))
        for number in range(count)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(make, *zip(*corners, strict=True)))
    return folder


def prepare_photos(
    folder: Path, *, photos: Path | None, limit: int | None, megapixels: float | None = None
) -> Path:
    """The folder to measure on: `photos` itself, links to some of it, or photographs that are made up.

    Args:
        folder: for what is made; it exists.
        photos: a folder of photographs; None makes some up.
        limit: how many; None is all of `photos`, or 1,000.
        megapixels: size of those made up; see `make_photos`.
    """
    if photos is None:
        return make_photos(folder, limit or 1000, megapixels=megapixels)
    if megapixels is not None:
        raise SystemExit("--megapixels is for photographs that are made up; leave out --photos")
    if limit is None:
        return photos
    for number, path in enumerate(list_photos(photos)[:limit]):
        (folder / f"{number:06}{path.suffix}").symlink_to(path.resolve())
    return folder


def list_photos(folder: Path) -> list[Path]:
    """The pictures that a run would find in a folder, in its order."""
    from batchcap.collection import resolve_sources, scan, uri_to_path

    found = scan(resolve_sources([str(folder)]), skipped=Counter())
    return [Path(os.fsdecode(uri_to_path(entry.uri))) for entry in found]


def describe_photos(folder: Path) -> dict[str, Any]:
    """How many photographs, and how large the one in the middle is."""
    from PIL import Image

    paths = list_photos(folder)
    with Image.open(paths[len(paths) // 2]) as image:
        width, height = image.size
    sizes = [path.stat().st_size for path in paths]
    return {
        "images": len(paths),
        "image_width": width,
        "image_height": height,
        "image_size_bytes": round(statistics.median(sizes)),
    }


def measure_apart(script: str, *arguments: object) -> Any:
    """What a script prints as JSON on its last line, run in a process of its own."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median over rounds of the ratio within a round: what made a round slow made both slow."""
    ratios = [above / below for above, below in zip(numerators, denominators, strict=True)]
    return round(statistics.median(ratios), 3)


def provenance() -> dict[str, Any]:
    """Which code on which machine."""
    return {
        "commit": _commit(),
        "cpus": available_cpus(),
        "processor": _processor(),
        "gpus": _gpus(),
        "machine": platform.machine(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3),
        "python": platform.python_version(),
        **{library: version for library in _LIBRARIES if (version := _version(library))},
    }


def _commit() -> str:
    """The commit, and whether code differs from it; what benchmarks write themselves doesn't count."""
    here = Path(__file__).parent
    try:
        commit = _output(["git", "-C", here, "rev-parse", "--short", "HEAD"])
        own = [":(exclude,top)benchmarks/results", ":(exclude,top)README.md"]
        status = ["git", "-C", here, "status", "--porcelain", "--untracked-files=no", "--", ":(top)", *own]
        return f"{commit}-dirty" if _output(status) else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _gpus() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    try:
        return _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]).splitlines()
    except subprocess.CalledProcessError:
        return []


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(command: Sequence[object]) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return done.stdout.strip()
