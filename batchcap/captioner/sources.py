"""What `--model` and BATCHCAP_MODEL name: one of our bundles, or a model of another kind. Nothing heavy."""

import contextlib
from dataclasses import replace
from pathlib import Path

from batchcap.captioner.bundle import DEFAULT_BUNDLE, Bundle
from batchcap.captioner.bundle_files import CONFIG, read_json
from batchcap.captioner.protocol import CaptionerSource
from batchcap.captioner.transformers_source import TransformersSource
from batchcap.errors import BundleError, UsageError

_TRANSFORMERS = "hf:"


def open_source(model: str | None = None, *, num_beams: int | None = None) -> CaptionerSource:
    """Opens a captioner of any kind.

    Args:
        model: the folder of a bundle, `hf:` and a folder or a name on the Hugging Face hub, or None for the
            bundle that ships.
        num_beams: instead of the model's own.

    Raises:
        BundleError: the model is missing, damaged or of a kind that batchcap doesn't know.
        UsageError: more beams than the model has words.
    """
    if model is not None and model.startswith(_TRANSFORMERS):
        return TransformersSource.open(model.removeprefix(_TRANSFORMERS), num_beams=num_beams)
    path = DEFAULT_BUNDLE if model is None else Path(model)
    _refuse_transformers(path)
    bundle = Bundle.open(path)
    if num_beams is None:
        return bundle
    if num_beams > bundle.config.vocabulary_size:
        raise UsageError(f"--num-beams {num_beams} is more than the model has words")
    return replace(bundle, generation=replace(bundle.generation, num_beams=num_beams))


def _refuse_transformers(path: Path) -> None:
    """Tells who forgot the `hf:` so; what else is wrong with a folder, `Bundle.open` says."""
    with contextlib.suppress(BundleError):
        config = read_json(path / CONFIG)
        if "model_type" in config and "format_version" not in config:
            raise UsageError(f"{path} is a model of transformers: give it as {_TRANSFORMERS}{path}")
