"""A captioner that costs nothing: for tests of the pipeline, which must not care what captions.

Ray's workers can't import the tests: `local_ray` sends them this module, `faults/driver.py` tells them where
it is.
"""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from batchcap.captioner.images import ImageSpec
from batchcap.captioner.protocol import Caption


@dataclass(frozen=True)
class Costless:
    """Describes a picture by its mean colour.

    Args:
        name: of the model, and the first word of its captions.
        deaths: a file to which a worker adds its process id, in a line, before it dies of SIGKILL.
        dies: how many of them do so instead of captioning, if there is such a file.
        fails: whether it raises instead of captioning.
        loads_tensorflow: whether its workers do, as those of a network.
        vector_size: 3, or None for one that gives no vectors of images.
    """

    name: str = "costless"
    deaths: Path | None = None
    dies: int = 1
    fails: bool = False
    loads_tensorflow: bool = False
    vector_size: int | None = 3

    @property
    def image_spec(self) -> ImageSpec:
        return ImageSpec(32)

    def fingerprint(self) -> str:
        return self.name.ljust(64, "0")

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}

    def load_captioner(self, *, batch_size: int, num_threads: int) -> "CostlessCaptioner":
        if self.loads_tensorflow:
            import tensorflow as tf

            # Its threads start with its first operation.
            tf.random.normal((100, 100)).numpy()
        return CostlessCaptioner(self) if self.vector_size is None else CostlessVectorCaptioner(self)

    def caption(self, images: Sequence[np.ndarray]) -> list[Caption]:
        if self.fails:
            raise ValueError("the captioner is\nout of words")
        if self.deaths is not None:
            with self.deaths.open("a+") as deaths:
                deaths.seek(0)
                if len(deaths.readlines()) < self.dies:
                    print(os.getpid(), file=deaths, flush=True)
                    os.kill(os.getpid(), signal.SIGKILL)
        return [self.caption_one(image) for image in images]

    def caption_one(self, pixels: np.ndarray) -> Caption:
        red, green, blue = (round(float(mean)) for mean in pixels.mean((0, 1)))
        return Caption(f"{self.name} red {red} green {green} blue {blue}", -1.5, 0.5, 7)


def colour_vector(pixels: np.ndarray) -> np.ndarray:
    """Float16[3], of length one: pictures of like hue are alike."""
    means = pixels.mean((0, 1)) + 1.0
    return (means / np.linalg.norm(means)).astype(np.float16)


@dataclass(frozen=True)
class CostlessCaptioner:
    """What a worker loads of a `Costless`."""

    source: Costless

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint()

    @property
    def image_spec(self) -> ImageSpec:
        return self.source.image_spec

    def caption(self, images: Sequence[np.ndarray]) -> list[Caption]:
        return self.source.caption(images)


class CostlessVectorCaptioner(CostlessCaptioner):
    """One that also says how alike pictures are."""

    def caption_with_vectors(self, images: Sequence[np.ndarray]) -> tuple[list[Caption], np.ndarray]:
        return self.caption(images), self.image_vectors(images)

    def image_vectors(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([colour_vector(image) for image in images])
