"""Fixtures of the captioner's tests."""

from pathlib import Path

import numpy as np
import pytest

from batchcap.captioner.bundle import Bundle
from batchcap.captioner.captioner import Captioner
from batchcap.captioner.images import decode_image


@pytest.fixture(scope="session")
def captioner(tiny_bundle: Bundle) -> Captioner:
    return Captioner(tiny_bundle, batch_size=4)


@pytest.fixture(scope="session")
def pixels(tiny_bundle: Bundle, photos: Path) -> np.ndarray:
    """uint8[40, 64, 64, 3]: the photos, decoded."""
    return np.stack(
        [decode_image(path.read_bytes(), tiny_bundle.image_spec) for path in sorted(photos.iterdir())]
    )
