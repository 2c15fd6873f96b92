"""The files of a model of Hugging Face transformers: where they lie and what must be there. No torch."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from batchcap.captioner.bundle_files import read_json
from batchcap.captioner.digests import sha256_of
from batchcap.captioner.transformers_images import PREPROCESSOR_FILES
from batchcap.errors import BundleError

CONFIG = "config.json"
GENERATION = "generation_config.json"
_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json")
_TOKENIZER_EXTRAS = ("tokenizer_config.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")
_SMALL_FILES = (CONFIG, GENERATION, *PREPROCESSOR_FILES, *_TOKENIZERS, *_TOKENIZER_EXTRAS)
_SHARD = re.compile(r"[\w.-]+\.safetensors", re.ASCII)
# A name on the hub, or an owner and a name.
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def find_model(model: str) -> Path:
    """The folder of a model: a local one, or one in the cache of the Hugging Face hub.

    What the cache has is used as it is, without a look at the network, so that a model stays the same until
    somebody fetches a newer one; only what isn't there is downloaded.

    Args:
        model: a folder, or a name on the hub, such as `Salesforce/blip-image-captioning-base`.

    Raises:
        BundleError: there is no such model, or it can't be downloaded, or a file of it is missing.
    """
    try:
        folder = Path(model).expanduser()
        is_local = model != "" and folder.is_dir()
    # A home that isn't known, a name that is too long, a folder that is somebody else's.
    except (OSError, RuntimeError) as error:
        raise BundleError(f"can't look for a model at {model}: {error}") from error
    if not is_local:
        if not _HUB_NAME.fullmatch(model) or model.startswith("."):
            raise BundleError(f"no model at {model}; give a folder or a name on the Hugging Face hub")
        folder = _fetch(model)
    missing = missing_part(folder)
    if missing is not None:
        raise BundleError(missing)
    return folder.absolute()


def missing_part(folder: Path) -> str | None:
    """Says what of a model isn't there, in a line for a person; None where all is."""
    if not (folder / CONFIG).is_file():
        return f"{folder} has no {CONFIG}: it holds no model of transformers"
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        return f"{folder} has no tokenizer: none of {', '.join(_TOKENIZERS)}"
    if not any((folder / name).is_file() for name in PREPROCESSOR_FILES):
        return f"{folder} has no {PREPROCESSOR_FILES[1]}: it says how pictures are to be resized"
    try:
        weights = weight_files(folder)
    except BundleError as error:
        return str(error)
    absent = [name for name in weights if not (folder / name).is_file()]
    return f"{folder / absent[0]} is missing" if absent else None


def weight_files(folder: Path) -> list[str]:
    """The names of the files that hold the weights, whether they are there or not.

    Raises:
        BundleError: the weights are no safetensors, or the list of their files is damaged.
    """
    if (folder / _WEIGHTS).is_file():
        return [_WEIGHTS]
    if not (folder / _WEIGHTS_INDEX).is_file():
        if any(folder.glob("*.bin")):
            raise BundleError(
                f"{folder} has its weights as a pickle, which can run any code, so it is not loaded; "
                f"save the model as {_WEIGHTS} first"
            )
        raise BundleError(f"{folder / _WEIGHTS} is missing")
    names = read_json(folder / _WEIGHTS_INDEX).get("weight_map")
    if not isinstance(names, Mapping) or not names:
        raise BundleError(f"{folder / _WEIGHTS_INDEX} is damaged: it has no weight_map")
    for name in names.values():
        # Of this folder: no path leads out of it.
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise BundleError(f"{folder / _WEIGHTS_INDEX} is damaged: {name!r} is no name of its weights")
    return [_WEIGHTS_INDEX, *sorted(set(names.values()))]


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file that a caption depends on, by name; the same wherever the folder lies.

    Raises:
        BundleError: a file can't be read.
    """
    names = [*(name for name in _SMALL_FILES if (folder / name).is_file()), *weight_files(folder)]
    try:
        return {name: sha256_of(folder / name) for name in sorted(names)}
    except OSError as error:
        raise BundleError(f"a file of the model in {folder} can't be read: {error}") from error


def refuse_foreign_code(folder: Path) -> None:
    """Refuses a model that comes with Python code of its own, which is never run.

    Raises:
        BundleError: it does.
    """
    for name in _SMALL_FILES:
        path = folder / name
        if name.endswith(".json") and path.is_file() and b'"auto_map"' in path.read_bytes():
            raise BundleError(f"{path} asks for code of its own (auto_map), which batchcap never runs")


def _fetch(name: str) -> Path:
    """The folder of a model in the cache of the hub; downloaded where the cache has it not, or in part."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the library is imported
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    wanted = [*_SMALL_FILES, _WEIGHTS, _WEIGHTS_INDEX, "model-*-of-*.safetensors"]
    try:
        cached = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        if missing_part(cached) is None:
            return cached
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise BundleError(f"{name} is no name of a model: {_one_line(error)}") from error
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except GatedRepoError as error:
        raise BundleError(
            f"the Hugging Face hub gives {name} only to those who have agreed to its terms; do so there, "
            "then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise BundleError(
            f"no model {name}: no such folder here, and the Hugging Face hub has none of that name, or a "
            "private one (`hf auth login`)"
        ) from error
    except Exception as error:
        # Errors of HTTP, of the disk and of the library's own: of many families.
        raise BundleError(
            f"can't fetch {name} from the Hugging Face hub ({_one_line(error)}); see that there is network, "
            "or give hf:FOLDER of a copy"
        ) from error


def _one_line(error: BaseException) -> str:
    lines = str(error).split("\n")
    return " ".join(lines[0].split()).rstrip(".") or type(error).__name__
