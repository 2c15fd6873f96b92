"""Captioners of Hugging Face transformers (BLIP, GIT, ViT-GPT2), as the pipeline plans with them. No torch.

What loads and runs them is in `transformers_captioner`, which is imported by the workers alone.
"""

import dataclasses
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from batchcap.captioner.bundle_files import read_json
from batchcap.captioner.images import ImageSpec
from batchcap.captioner.transformers_files import (
    CONFIG,
    GENERATION,
    digests,
    find_model,
    refuse_foreign_code,
)
from batchcap.captioner.transformers_images import Preprocessing
from batchcap.errors import BundleError, UsageError

if TYPE_CHECKING:
    from batchcap.captioner.transformers_captioner import TransformersCaptioner

# Goes up when this adapter gives other captions for the same files and options.
ADAPTER_VERSION = 1

# By `model_type`: the class that captions, as `architectures` names it.
ARCHITECTURES = {
    "blip": "BlipForConditionalGeneration",
    "git": "GitForCausalLM",
    "vision-encoder-decoder": "VisionEncoderDecoderModel",
}

# Captions of photographs have 10 to 15 tokens; this cuts none but a decoder that has lost its way.
_MAX_NEW_TOKENS = 32


@dataclasses.dataclass(frozen=True, slots=True)
class DecodingOptions:
    """How captions are decoded. All else is as the model's own `generation_config.json` has it.

    Sampling is always off, whatever the model says: the same picture gets the same caption.

    Args:
        num_beams: 1 decodes greedily.
        max_new_tokens: tokens of a caption at most, its end included.
        min_new_tokens: the end may not come before so many; for measurements.
    """

    num_beams: int = 1
    max_new_tokens: int = _MAX_NEW_TOKENS
    min_new_tokens: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class TransformersSource:
    """A model of transformers on this disk, opened and checked; its weights are not read.

    Args:
        path: its folder.
        name: what people call it: its name on the hub, or that of the folder.
        architecture: the class of transformers that it is of.
        preprocessing: from pictures to the network's numbers.
        decoding: the decoding options in force.
    """

    path: Path
    name: str
    architecture: str
    preprocessing: Preprocessing
    decoding: DecodingOptions

    @classmethod
    def open(cls, model: str, *, num_beams: int | None = None, max_new_tokens: int | None = None) -> Self:
        """Opens a model, and downloads it first if it is on the Hugging Face hub and not yet here.

        Args:
            model: a folder, or a name on the hub.
            num_beams: instead of the model's own.
            max_new_tokens: instead of the model's own.

        Raises:
            BundleError: torch or transformers is missing, or the model is missing, damaged or of a kind that
                batchcap doesn't know.
            UsageError: more beams than the model has tokens.
        """
        require_libraries()
        folder = find_model(model)
        config = read_json(folder / CONFIG)
        architecture = _architecture(folder, config)
        refuse_foreign_code(folder)
        vocabulary_size = _vocabulary_size(config)
        if num_beams is not None and vocabulary_size is not None and num_beams > vocabulary_size:
            raise UsageError(f"--num-beams {num_beams} is more than the model has tokens, {vocabulary_size}")
        return cls(
            path=folder,
            name=folder.name if Path(model).expanduser().is_dir() else model,
            architecture=architecture,
            preprocessing=Preprocessing.read(folder),
            decoding=_decoding_options(folder, num_beams, max_new_tokens),
        )

    @property
    def image_spec(self) -> ImageSpec:
        """The pictures that the model takes."""
        return self.preprocessing.image_spec

    def describe(self) -> dict[str, Any]:
        """The model's configuration and decoding options, for the record."""
        return {
            "architecture": self.architecture,
            "config": read_json(self.path / CONFIG),
            "generation": dataclasses.asdict(self.decoding),
        }

    def files(self) -> list[str]:
        """The names of those files in its folder that a caption depends on.

        Raises:
            BundleError: a file can't be read.
        """
        return list(digests(self.path))

    def fingerprint(self) -> str:
        """The identity of the model: of all that changes a caption.

        The files count by their content, by the name that each has in the folder, and by nothing else: a
        copy elsewhere, or the same model in another machine's cache of the hub, has the same fingerprint. How
        it is that gigabytes of weights are not read at each run, `digests.sha256_of` says. What does not
        count: the versions of transformers and torch, and whether the network runs on a GPU, in half
        precision.

        Returns:
            sha256 in hex over the adapter's version, the decoding options and the sha256 of configuration,
            tokenizer, preprocessing and weights.

        Raises:
            BundleError: a file can't be read.
        """
        identity = {
            "adapter": ADAPTER_VERSION,
            "decoding": dataclasses.asdict(self.decoding),
            "files": digests(self.path),
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def load_captioner(self, *, batch_size: int, num_threads: int) -> "TransformersCaptioner":
        """Loads the network into this process; the first use of torch here.

        Args:
            batch_size: images that go through the network at once.
            num_threads: CPU threads of torch.

        Raises:
            BundleError: torch or transformers is missing, or the model is damaged.
        """
        require_libraries()
        try:
            from batchcap.captioner.transformers_captioner import TransformersCaptioner, use_cpu_threads
        except (ImportError, OSError) as error:
            # Installed, but without a library of the system, or of versions that don't go together.
            raise BundleError(f"torch and transformers can't be imported: {error}") from error

        use_cpu_threads(num_threads)
        captioner = TransformersCaptioner(self, batch_size=batch_size)
        captioner.warm_up()
        return captioner


def require_libraries() -> None:
    """Sees that torch and transformers are installed, without importing them: that takes seconds.

    Raises:
        BundleError: one of them isn't.
    """
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise BundleError(
            f"models of transformers need {' and '.join(missing)}: pip install 'batchcap[transformers]'"
        )


def _architecture(folder: Path, config: dict[str, Any]) -> str:
    if "format_version" in config:
        raise BundleError(f"{folder} is a model of batchcap's own: give it without hf:")
    model_type, named = config.get("model_type"), config.get("architectures")
    known = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if known is None or (named and named != [known]):
        found = ", ".join(map(str, named)) if isinstance(named, list) and named else model_type
        raise BundleError(
            f"{folder} is of an architecture that batchcap doesn't know, {found}; "
            f"it knows {', '.join(ARCHITECTURES.values())}"
        )
    return known


def _vocabulary_size(config: dict[str, Any]) -> int | None:
    """Tokens of the text decoder; None where the configuration leaves it at the library's default."""
    for part in (config, config.get("text_config"), config.get("decoder")):
        if isinstance(part, dict) and isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return None


def _decoding_options(folder: Path, num_beams: int | None, max_new_tokens: int | None) -> DecodingOptions:
    path = folder / GENERATION
    values = read_json(path) if path.is_file() else {}
    own_length = values.get("max_new_tokens")
    if own_length is None and values.get("max_length") is not None:
        own_length = values["max_length"]
        # It counts the token that starts the caption as well.
        own_length = own_length - 1 if isinstance(own_length, int) else own_length
    own_beams = values.get("num_beams")
    for name, value in (("num_beams", own_beams), ("max_new_tokens", own_length)):
        if value is not None and (type(value) is not int or value < 1):
            raise BundleError(f"{path} is damaged: {name} is {value!r}")
    return DecodingOptions(
        num_beams=num_beams or own_beams or 1,
        max_new_tokens=max_new_tokens or own_length or _MAX_NEW_TOKENS,
    )
