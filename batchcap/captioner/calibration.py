"""From what decoding noticed about a caption to the probability that it is acceptable. No TensorFlow.

A caption is acceptable if people's captions of the image bear it out: if its CIDEr-D against them is above a
threshold that comes from the data set alone (`model_training.calibrate` says how, and fits the weights).
"""

import dataclasses
import math
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from batchcap.captioner.bundle_files import read_json
from batchcap.captioner.config import GenerationConfig
from batchcap.errors import BundleError


class Signals(NamedTuple):
    """What decoding noticed about one caption; logarithms are natural.

    Args:
        mean_log_prob: log-probability for each word and the end, 0 at most.
        margin: by how much its score, log_prob / token_count ** length_penalty, is above that of the second
            beam, 0 to 10; 0 where there is one beam.
        entropy: of the next-word distributions along the caption, their mean, in nats.
        min_log_prob: log-probability of the least likely word.
        token_count: words and end.
        has_ended: 1, or 0 for a caption that was cut at the greatest length.
    """

    mean_log_prob: float
    margin: float
    entropy: float
    min_log_prob: float
    token_count: float
    has_ended: float


@dataclasses.dataclass(frozen=True, slots=True)
class Calibration:
    """Logistic regression over signals, fitted for one bundle and one way of decoding.

    Args:
        signals: the weight of each signal that counts, by its name in `Signals`.
        intercept: of the logistic function.
        threshold: CIDEr-D (times 100) above which a caption was taken for acceptable.
        rule: where the threshold comes from, for people.
        auroc: area under the ROC curve, each image by a fit that has not seen it, 0 to 1.
        ece: expected calibration error, by the same fits, 0 to 1.
        num_beams: the beams that it was fitted with.
        length_penalty: the length penalty that it was fitted with.

    Raises:
        TypeError: a value of another type.
        ValueError: a signal that isn't known, or a value that can't be.
    """

    # No part of the hash, for it can be a dict.
    signals: Mapping[str, float] = dataclasses.field(hash=False)
    intercept: float
    threshold: float
    rule: str
    auroc: float
    ece: float
    num_beams: int
    length_penalty: float

    def __post_init__(self) -> None:
        # What a file holds can be anything.
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if not isinstance(values.pop("signals"), Mapping) or not isinstance(values.pop("rule"), str):
            raise TypeError("signals must be weights by name, and rule must be text")
        if unknown := sorted(self.signals.keys() - set(Signals._fields)):
            raise ValueError(f"unknown signals {unknown}; known are {', '.join(Signals._fields)}")
        for name, value in {**self.signals, **values}.items():
            # bool is a subclass of int, and JSON has NaN.
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number")
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite")
        if operator.index(self.num_beams) < 1:
            raise ValueError("num_beams must be at least 1")
        if not (0 <= self.auroc <= 1 and 0 <= self.ece <= 1):
            raise ValueError("auroc and ece must be between 0 and 1")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a `calibration.json`.

        Raises:
            BundleError: the file is damaged, or names a signal that isn't known; the message names it.
        """
        values = read_json(path)
        try:
            return cls(**values)
        except (TypeError, ValueError, OverflowError) as error:
            raise BundleError(f"{path} is damaged: {error}") from error

    def to_values(self) -> dict[str, Any]:
        """What a `calibration.json` has."""
        return dataclasses.asdict(self)

    def fits(self, generation: GenerationConfig) -> bool:
        """Whether captions that are decoded so are those that it was fitted on."""
        return (self.num_beams, self.length_penalty) == (generation.num_beams, generation.length_penalty)

    def confidence(self, signals: Signals) -> float:
        """The probability that a caption is acceptable, 0 to 1.

        Platt, "Probabilistic Outputs for Support Vector Machines", 1999, with several signals for the one
        margin there.
        """
        values = signals._asdict()
        logit = self.intercept + math.fsum(weight * values[name] for name, weight in self.signals.items())
        # The logistic function, in the form that can't overflow.
        return 0.5 * (1 + math.tanh(logit / 2))
