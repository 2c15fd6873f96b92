"""What the pipeline knows of a captioner. Whatever has these three members can caption a collection."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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


class CaptionerSource(Protocol):
    """What a run is given: enough to plan, and a way for each worker to load the captioner.

    It is sent to the workers, so it should be small: a path, not weights. `batchcap.captioner.bundle.Bundle`
    is the usual one; `batchcap.captioner.sources.open_source` opens any that the command line names.
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
