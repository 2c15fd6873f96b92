"""What several benchmarks need: photographs to measure on, and which code ran on which machine."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def make_photos(folder: Path, count: int = 1000) -> Path:
    """Crops of scikit-image's photographs as 640x480 JPEG."""
    import numpy as np
    from PIL import Image
    from skimage import data

    rng = np.random.default_rng(0)
    originals = [Image.fromarray(load()) for load in (data.astronaut, data.chelsea, data.coffee, data.rocket)]
    for number in range(count):
        image = originals[number % len(originals)]
        width, height = image.size
        left, top = rng.integers(0, width // 4), rng.integers(0, height // 4)
        crop = image.crop((left, top, left + width * 3 // 4, top + height * 3 // 4))
        crop.resize((640, 480)).save(folder / f"{number:05}.jpg", quality=85)
    return folder


def provenance() -> dict[str, Any]:
    """Which code on which machine."""
    import tensorflow as tf

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "commit": commit or "unknown",
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
    }
