"""Picture files -> what a captioner takes, as training, scoring and calibration read them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from batchcap.captioner.images import ImageSpec, decode_image
from batchcap.errors import ImageError

# Decoded pictures that are in memory at once.
CHUNK = 256


def decode_file(path: Path, spec: ImageSpec) -> np.ndarray | str:
    """uint8[image_size, image_size, 3], or the reason why there is none."""
    try:
        return decode_image(path.read_bytes(), spec)
    except (ImageError, OSError) as error:
        return str(error)


def decoded_chunks(data: Path, names: Sequence[str], spec: ImageSpec) -> Iterator[dict[str, np.ndarray]]:
    """The pictures by name, a few at a time; those that can't be decoded are left out.

    Args:
        data: their folder.
        names: in the order in which they come.
        spec: what is to be made of them.
    """
    for start in range(0, len(names), CHUNK):
        chunk = {name: decode_file(data / name, spec) for name in names[start : start + CHUNK]}
        decoded = {name: found for name, found in chunk.items() if not isinstance(found, str)}
        if decoded:
            yield decoded
