"""A trained model as a folder: its files, how they are checked, its fingerprint. No TensorFlow.

::

    config.json          format version, name, CaptionerConfig
    vocabulary.txt       a token a line, in the order of their ids
    weights.safetensors  every weight of the network, CNN included; matrices may be half precision
    generation.json      how captions are decoded unless told otherwise
    calibration.json     what turns signals of decoding into a confidence; may be missing
    metrics.json         scores, for people
    README.md            the model card
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import safetensors
import safetensors.numpy

from batchcap.captioner.bundle_files import (
    BUNDLE_FILES,
    CALIBRATION,
    CONFIG,
    GENERATION,
    METRICS,
    MODEL_CARD,
    VOCABULARY,
    WEIGHTS,
    read_json,
    sync_folder,
    temporary,
    to_json,
    write_temporary,
)
from batchcap.captioner.calibration import Calibration
from batchcap.captioner.config import CaptionerConfig, GenerationConfig
from batchcap.captioner.images import ImageSpec
from batchcap.captioner.tokenizer import Tokenizer
from batchcap.errors import BundleError

if TYPE_CHECKING:
    from batchcap.captioner.captioner import Captioner

FORMAT_VERSION = 1
# What runs the network; `auto` is what is fastest here. Captions are the same but for rounding.
RuntimeName = Literal["auto", "tensorflow", "openvino"]
DEFAULT_BUNDLE = Path(__file__).parent.parent / "models" / "default"

# What a training run writes into its folder before anything else.
_RUN = "training.json"


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
        runtime: what is to run the network; no part of the model, so neither of its fingerprint.
    """

    path: Path
    name: str
    config: CaptionerConfig
    generation: GenerationConfig
    calibration: Calibration | None
    tokenizer: Tokenizer
    runtime: RuntimeName = "auto"

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
        name, config = _read_config(path)
        if generation is None:
            values = read_json(path / GENERATION)
            try:
                generation = GenerationConfig(**values)
            except (TypeError, ValueError) as error:
                raise BundleError(f"{path / GENERATION} is damaged: {error}") from error
        calibration = None
        if (path / CALIBRATION).exists():
            calibration = Calibration.load(path / CALIBRATION)
        try:
            tokenizer = Tokenizer.load(path / VOCABULARY)
        except (OSError, ValueError) as error:
            raise BundleError(f"{path / VOCABULARY} is missing or damaged: {error}") from error
        if tokenizer.vocabulary_size != config.vocabulary_size:
            raise BundleError(
                f"{path / VOCABULARY} is damaged: {tokenizer.vocabulary_size} tokens, "
                f"where {CONFIG} has {config.vocabulary_size}"
            )
        if not (path / WEIGHTS).is_file():
            raise BundleError(f"{path / WEIGHTS} is missing")
        return cls(path, name, config, generation, calibration, tokenizer)

    @property
    def image_spec(self) -> ImageSpec:
        """The pictures that the model takes."""
        return self.config.image

    @property
    def vector_size(self) -> int:
        """Numbers of the vector that its captioner gives of an image."""
        return self.config.embed_dim

    def describe(self) -> dict[str, Any]:
        """The model's configuration and decoding options, for the record."""
        return {
            "config": dataclasses.asdict(self.config),
            "generation": dataclasses.asdict(self.generation),
        }

    def files(self) -> list[str]:
        """The names of its files in its folder."""
        return [name for name in BUNDLE_FILES if (self.path / name).is_file()]

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
        captioner = Captioner(self, batch_size=batch_size, num_threads=num_threads)
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

        What is at its default doesn't count, so that an option that a later version adds leaves the
        fingerprints of older bundles as they are, and the captions they made fresh.

        Returns:
            sha256 in hex over configuration, vocabulary, weights and the decoding options in force.

        Raises:
            BundleError: the weights can't be read.
        """
        options = {"config": _not_default(self.config), "generation": _not_default(self.generation)}
        digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
        try:
            for name in (VOCABULARY, WEIGHTS):
                with open(self.path / name, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise BundleError(f"{self.path / name} can't be read: {error}") from error
        return digest.hexdigest()


def as_stored(weight: np.ndarray, *, half_precision: bool) -> np.ndarray:
    """A weight as a bundle keeps it.

    Args:
        weight: float32[...].
        half_precision: matrices become float16. Vectors stay float32: the variances of batch norm can be
            too small for a half.
    """
    dtype = np.float16 if half_precision and weight.ndim > 1 else np.float32
    # Not ascontiguousarray, which makes a vector of a number: EfficientNet's normalization has one.
    return np.asarray(weight, dtype, order="C")


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
    """Writes the files of a bundle into a folder that may hold others, a training run's above all.

    An older bundle of the same configuration and vocabulary is replaced, as from epoch to epoch. Killed at
    any moment, this leaves the older bundle (it may have lost its calibration), the new one, or one that
    `Bundle.open` refuses and that the next `write_bundle` completes; only metrics and model card, which are
    for people, may for that moment be the older ones beside new weights.

    Args:
        path: the folder; made, with its parents.
        name: what people call the model.
        config: the shape of the network.
        generation: the default decoding options.
        tokenizer: the vocabulary.
        weights: every weight of the network by its name.
        calibration: for the confidence, if there is one; an older one goes, for it fits other weights.
        metrics: scores, for people.
        model_card: Markdown.
        half_precision: see `as_stored`.

    Raises:
        BundleError: the folder can't be written, or it holds something that is no bundle, or a bundle that
            is damaged or of another configuration or vocabulary.
    """
    if path.exists() and not may_be_replaced(path):
        raise BundleError(f"{path} holds something that is no model; choose another folder")
    replaces = holds_bundle_of(path, config, tokenizer)
    stored = {key: as_stored(weight, half_precision=half_precision) for key, weight in weights.items()}
    described = {"format_version": FORMAT_VERSION, "name": name, "config": dataclasses.asdict(config)}
    contents = {
        CONFIG: to_json(described),
        VOCABULARY: tokenizer.to_text().encode(),
        GENERATION: to_json(dataclasses.asdict(generation)),
        WEIGHTS: safetensors.numpy.save(stored),
        METRICS: to_json(metrics or {}),
        MODEL_CARD: model_card.encode(),
    }
    if calibration is not None:
        contents[CALIBRATION] = to_json(calibration.to_values())
    is_new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        try:
            # All of them first: where the disk is full, nothing has changed yet.
            for file, content in contents.items():
                write_temporary(path / file, content)
            _put_in_place(path, contents, replaces=replaces)
        finally:
            for file in contents:
                temporary(path / file).unlink(missing_ok=True)
            if is_new:
                with contextlib.suppress(OSError):  # It isn't empty: all went well.
                    path.rmdir()
    except OSError as error:
        raise BundleError(f"can't write the model to {path}: {error.strerror or error}") from error


def _put_in_place(path: Path, contents: Mapping[str, bytes], *, replaces: bool) -> None:
    """Renames the temporary files, in an order in which no two of different models make a bundle."""
    # It says what the older weights' log-probabilities are worth.
    (path / CALIBRATION).unlink(missing_ok=True)
    if replaces:
        # Other decoding options must not meet the older weights, nor the older ones the new weights.
        if _read_bytes(path / GENERATION) != contents[GENERATION]:
            (path / GENERATION).unlink(missing_ok=True)
        order = [WEIGHTS, GENERATION, CONFIG, VOCABULARY, METRICS, MODEL_CARD, CALIBRATION]
    else:
        # Without weights nothing is a bundle; by CONFIG the next write knows whose files these are.
        order = [CONFIG, GENERATION, VOCABULARY, METRICS, MODEL_CARD, CALIBRATION, WEIGHTS]
    for file in filter(contents.__contains__, order):
        if file == WEIGHTS:
            sync_folder(path)
        os.replace(temporary(path / file), path / file)
        if file == WEIGHTS:
            sync_folder(path)
    sync_folder(path)


def remove_bundle(path: Path) -> None:
    """Deletes the files of a bundle and leaves all else in its folder, and the folder, as they are.

    Cut short, it leaves what `Bundle.open` refuses, and can be called again.

    Args:
        path: the folder; there may be none, or no bundle in it.

    Raises:
        BundleError: a file can't be deleted, or the folder holds something that is no bundle.
    """
    if not path.exists():
        return
    if not may_be_replaced(path):
        raise BundleError(f"{path} holds something that is no model; choose another folder")
    try:
        for file in BUNDLE_FILES:
            (path / file).unlink(missing_ok=True)
            temporary(path / file).unlink(missing_ok=True)
            if file == WEIGHTS:
                sync_folder(path)
    except OSError as error:
        raise BundleError(f"can't delete the model in {path}: {error.strerror or error}") from error


def may_be_replaced(path: Path) -> bool:
    """Whether a bundle may be written into this folder: it is empty, or a bundle's or a training run's.

    A `config.json` alone can be anybody's, so it must have a bundle's `format_version`. Whether the bundle
    there is of the same configuration is not asked here; `write_bundle` refuses another.
    """
    if not path.is_dir():
        return False
    try:
        if {file.name for file in path.iterdir()} <= {temporary(path / file).name for file in BUNDLE_FILES}:
            return True
        if (path / _RUN).exists():
            read_json(path / _RUN)
            return True
        return "format_version" in read_json(path / CONFIG)
    except (BundleError, OSError):
        return False


def holds_bundle_of(path: Path, config: CaptionerConfig, tokenizer: Tokenizer) -> bool:
    """Whether there is a bundle of this configuration and vocabulary, rather than none.

    What a write that was cut short has left is none: it has no weights. But it must fit as well. To be asked
    before hours of training; `write_bundle` asks again.

    Args:
        path: the folder; there may be none.
        config: of the bundle that is to be written there.
        tokenizer: its vocabulary.

    Raises:
        BundleError: there is a bundle that is damaged or of another configuration or vocabulary.
    """
    has_weights = (path / WEIGHTS).exists()
    reason = None
    try:
        if (has_weights or (path / CONFIG).exists()) and _read_config(path)[1] != config:
            reason = "of another configuration"
        elif has_weights or (path / VOCABULARY).exists():
            text = (path / VOCABULARY).read_text(encoding="utf-8")
            reason = None if text == tokenizer.to_text() else "of another vocabulary"
    except BundleError as error:
        reason = f"that can't be read ({error})"
    except (OSError, ValueError) as error:
        reason = f"that can't be read ({path / VOCABULARY} is missing or damaged: {error})"
    if reason is not None:
        raise BundleError(f"{path} holds a model {reason}; choose another folder or delete it")
    return has_weights


def _read_config(path: Path) -> tuple[str, CaptionerConfig]:
    """The name of a bundle, and the shape of its network."""
    description = read_json(path / CONFIG)
    version = description.get("format_version")
    if not isinstance(version, int):
        raise BundleError(f"{path / CONFIG} is damaged: it has no format_version")
    if version > FORMAT_VERSION:
        raise BundleError(f"{path} has format {version}, newer than {FORMAT_VERSION}; upgrade batchcap")
    try:
        values = description["config"]
        config = CaptionerConfig(**{**values, "image": ImageSpec(**values["image"])})
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path / CONFIG} is damaged: {error}") from error
    return str(description.get("name", path.name)), config


def _not_default(options: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults; of a field that is a dataclass, the same."""
    values = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if value != default:
            values[field.name] = _not_default(value) if dataclasses.is_dataclass(value) else value
    return values


def _read_bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
