"""What the pipeline knows of a captioner. Whatever has these three members can caption a collection."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from batchcap.captioner.images import ImageSpec


@dataclass(frozen=True, slots=True)
class Caption:
    """The caption of one image.

    Args:
        text: one line; of batchcap's own models lower case and without punctuation.
        log_prob: natural logarithm of the probability that the model gives the caption, its end included.
        confidence: the probability that the caption is acceptable, 0 to 1; None where the model has no
            calibration, or one that was fitted for other decoding options.
        token_count: tokens, the end included; of batchcap's own models each but the end is a word.
    """

    text: str
    log_prob: float
    confidence: float | None
    token_count: int


class CaptionerProtocol(Protocol):
    """A captioner, as the pipeline sees it."""

    @property
    def fingerprint(self) -> str:
        """The identity of all that changes a caption: model, weights, decoding options."""
        ...

    @property
    def image_spec(self) -> ImageSpec:
        """The pictures that the captioner takes."""
        ...

    def caption(self, images: Sequence[np.ndarray]) -> list[Caption]:
        """Captions any number of uint8[image_size, image_size, 3], in their order."""
        ...


@runtime_checkable
class VectorCaptioner(CaptionerProtocol, Protocol):
    """A captioner that also says where images lie among others: then they can be searched by likeness."""

    def caption_with_vectors(self, images: Sequence[np.ndarray]) -> tuple[list[Caption], np.ndarray]:
        """Captions as `caption` does, and float16[N, D], a vector of length one an image."""
        ...

    def image_vectors(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """The vectors alone, float16[N, D]."""
        ...


class CaptionerSource(Protocol):
    """What a run is given: enough to plan, and a way for each worker to load the captioner.

    It is sent to the workers, so it should be small: a path, not weights. `batchcap.captioner.bundle.Bundle`
    is the usual one; `batchcap.captioner.sources.open_source` opens any that the command line names. It has
    a `vector_size` as well, if its captioner is a `VectorCaptioner`: the D of its vectors.
    """

    @property
    def name(self) -> str:
        """What people call the model."""
        ...

    @property
    def image_spec(self) -> ImageSpec:
        """The pictures that the captioner takes."""
        ...

    def fingerprint(self) -> str:
        """The fingerprint of the captioner that `load_captioner` gives."""
        ...

    def describe(self) -> dict[str, Any]:
        """The model's configuration, for the record."""
        ...

    def load_captioner(self, *, batch_size: int, num_threads: int) -> CaptionerProtocol:
        """Loads the captioner, ready to run; called once in each worker, before anything else runs there.

        Args:
            batch_size: images that will be captioned at once.
            num_threads: CPU threads that the captioner may use.
        """
        ...


def vector_size(source: CaptionerSource) -> int | None:
    """Numbers of the vectors that a source's captioner gives of images; None if it gives none."""
    size: int | None = getattr(source, "vector_size", None)
    return size


def stored_vector(vector: np.ndarray) -> bytes:
    """A vector, float[D], as the catalog holds it: float16, little-endian."""
    return vector.astype("<f2").tobytes()
