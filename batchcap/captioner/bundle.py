"""A trained model as a folder: its files, how they are checked, its fingerprint. No TensorFlow.

::

    config.json          format version, name, CaptionerConfig
    vocabulary.txt       a token a line, in the order of their ids
    weights.safetensors  every weight of the network, CNN included; matrices may be half precision
    generation.json      how captions are decoded unless told otherwise
    calibration.json     what turns a caption's log-probability into a confidence; may be missing
    metrics.json         scores, for people
    README.md            the model card
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import safetensors
import safetensors.numpy

from batchcap.captioner.config import CaptionerConfig, GenerationConfig
from batchcap.captioner.images import ImageSpec
from batchcap.captioner.tokenizer import Tokenizer
from batchcap.errors import BundleError

if TYPE_CHECKING:
    from batchcap.captioner.captioner import Captioner

FORMAT_VERSION = 1
DEFAULT_BUNDLE = Path(__file__).parent.parent / "models" / "default"

_T = TypeVar("_T")

_CONFIG = "config.json"
_VOCABULARY = "vocabulary.txt"
WEIGHTS = "weights.safetensors"
_GENERATION = "generation.json"
_CALIBRATION = "calibration.json"


@dataclasses.dataclass(frozen=True, slots=True)
class Calibration:
    """Turns a caption's mean log-probability into the probability that the caption is acceptable.

    Args:
        slope: of the logistic function.
        intercept: of the logistic function.

    Raises:
        ValueError: a value is no finite number.
    """

    slope: float
    intercept: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.slope) and math.isfinite(self.intercept)):
            raise ValueError("slope and intercept must be finite")

    def confidence(self, log_prob: float, token_count: int) -> float:
        """Platt scaling (Platt 1999) of the log-probability per token."""
        logit = self.slope * log_prob / max(token_count, 1) + self.intercept
        # The logistic function, in the form that can't overflow.
        return 0.5 * (1 + math.tanh(logit / 2))


@dataclasses.dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk, opened and checked; its weights are read only by `weights` and `fingerprint`.

    Args:
        path: the folder.
        name: what people call the model.
        config: the shape of the network.
        generation: the decoding options in force.
        calibration: None where the bundle has none.
        tokenizer: its vocabulary.
    """

    path: Path
    name: str
    config: CaptionerConfig
    generation: GenerationConfig
    calibration: Calibration | None
    tokenizer: Tokenizer

    @classmethod
    def open(cls, path: Path, *, generation: GenerationConfig | None = None) -> Self:
        """Opens a bundle.

        Args:
            path: the folder.
            generation: decoding options instead of the bundle's own.

        Raises:
            BundleError: a file is missing, damaged or of a newer format; the message names it.
        """
        if not path.is_dir():
            raise BundleError(f"no model at {path}; give the folder that train_model wrote")
        description = _read_json(path / _CONFIG)
        version = description.get("format_version")
        if not isinstance(version, int):
            raise BundleError(f"{path / _CONFIG} is damaged: it has no format_version")
        if version > FORMAT_VERSION:
            raise BundleError(f"{path} has format {version}, newer than {FORMAT_VERSION}; upgrade batchcap")
        try:
            config = _config_from_json(description["config"])
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{path / _CONFIG} is damaged: {error}") from error
        if generation is None:
            generation = _from_json(path / _GENERATION, GenerationConfig)
        calibration = None
        if (path / _CALIBRATION).exists():
            calibration = _from_json(path / _CALIBRATION, Calibration)
        try:
            tokenizer = Tokenizer.load(path / _VOCABULARY)
        except (OSError, ValueError) as error:
            raise BundleError(f"{path / _VOCABULARY} is missing or damaged: {error}") from error
        if tokenizer.vocabulary_size != config.vocabulary_size:
            raise BundleError(
                f"{path / _VOCABULARY} is damaged: {tokenizer.vocabulary_size} tokens, "
                f"where {_CONFIG} has {config.vocabulary_size}"
            )
        if not (path / WEIGHTS).is_file():
            raise BundleError(f"{path / WEIGHTS} is missing")
        return cls(path, str(description.get("name", path.name)), config, generation, calibration, tokenizer)

    @property
    def image_spec(self) -> ImageSpec:
        """The pictures that the model takes."""
        return self.config.image

    def describe(self) -> dict[str, Any]:
        """The model's configuration and decoding options, for the record."""
        return {
            "config": dataclasses.asdict(self.config),
            "generation": dataclasses.asdict(self.generation),
        }

    def load_captioner(self, *, batch_size: int, num_threads: int) -> "Captioner":
        """Loads the network into this process; the first use of TensorFlow here.

        Args:
            batch_size: images that go through the network at once.
            num_threads: CPU threads of TensorFlow.

        Raises:
            BundleError: the weights are damaged.
        """
        from batchcap.captioner.captioner import Captioner, use_cpu_threads

        use_cpu_threads(num_threads)
        captioner = Captioner(self, batch_size=batch_size)
        captioner.warm_up()
        return captioner

    def weights(self) -> dict[str, np.ndarray]:
        """Reads the weights, as float32.

        Raises:
            BundleError: the file is damaged.
        """
        try:
            stored = safetensors.numpy.load_file(self.path / WEIGHTS)
        except (OSError, safetensors.SafetensorError) as error:
            raise BundleError(f"{self.path / WEIGHTS} is damaged: {error}") from error
        return {name: weight.astype(np.float32) for name, weight in stored.items()}

    def fingerprint(self) -> str:
        """The identity of the model: of all that changes a caption.

        Returns:
            sha256 in hex over configuration, vocabulary, weights and the decoding options in force.

        Raises:
            BundleError: the weights can't be read.
        """
        digest = hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode())
        try:
            for name in (_VOCABULARY, WEIGHTS):
                with open(self.path / name, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise BundleError(f"{self.path / name} can't be read: {error}") from error
        return digest.hexdigest()


def write_bundle(
    path: Path,
    *,
    name: str,
    config: CaptionerConfig,
    generation: GenerationConfig,
    tokenizer: Tokenizer,
    weights: Mapping[str, np.ndarray],
    calibration: Calibration | None = None,
    metrics: Mapping[str, Any] | None = None,
    model_card: str = "",
    half_precision: bool = False,
) -> None:
    """Writes a bundle: whole or not at all, in place of an older bundle at the same path.

    Args:
        path: the folder; made, with its parents.
        name: what people call the model.
        config: the shape of the network.
        generation: the default decoding options.
        tokenizer: the vocabulary.
        weights: every weight of the network by its name.
        calibration: for the confidence, if there is one.
        metrics: scores, for people.
        model_card: Markdown.
        half_precision: store matrices as float16. Vectors stay float32: the variances of batch norm
            can be too small for a half.

    Raises:
        BundleError: the folder can't be written, or holds something that is no bundle.
    """
    if path.exists() and not may_be_replaced(path):
        raise BundleError(f"{path} holds something that is no model; choose another folder")
    stored = {
        key: np.ascontiguousarray(weight, np.float16 if half_precision and weight.ndim > 1 else np.float32)
        for key, weight in weights.items()
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            staging.chmod(0o755)
            _write_json(
                staging / _CONFIG,
                {"format_version": FORMAT_VERSION, "name": name, "config": dataclasses.asdict(config)},
            )
            _write_json(staging / _GENERATION, dataclasses.asdict(generation))
            if calibration is not None:
                _write_json(staging / _CALIBRATION, dataclasses.asdict(calibration))
            _write_json(staging / "metrics.json", metrics or {})
            (staging / "README.md").write_text(model_card, encoding="utf-8")
            tokenizer.save(staging / _VOCABULARY)
            # Not save_file, which makes the file unreadable for everybody else.
            (staging / WEIGHTS).write_bytes(safetensors.numpy.save(stored))
            # The older bundle is moved aside and not yet deleted: killed here, nothing is lost.
            older = staging.with_name(f"{staging.name}-older")
            if path.exists():
                os.replace(path, older)
            os.replace(staging, path)
            shutil.rmtree(older, ignore_errors=True)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise BundleError(f"can't write the model to {path}: {error.strerror or error}") from error


def may_be_replaced(path: Path) -> bool:
    """Whether this is an empty folder or a bundle; a `config.json` alone can be anybody's."""
    if not path.is_dir():
        return False
    try:
        return not any(path.iterdir()) or "format_version" in _read_json(path / _CONFIG)
    except (BundleError, OSError):
        return False


def _config_from_json(values: dict[str, Any]) -> CaptionerConfig:
    return CaptionerConfig(**{**values, "image": ImageSpec(**values["image"])})


def _from_json(path: Path, kind: type[_T]) -> _T:
    try:
        return kind(**_read_json(path))
    except (TypeError, ValueError) as error:
        raise BundleError(f"{path} is damaged: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is missing or damaged: {error}") from error
    if not isinstance(values, dict):
        raise BundleError(f"{path} is damaged: not a JSON object")
    return values


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
