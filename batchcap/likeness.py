"""`likeness_to`: what others are to be like: an image's vector, out of the catalog or from the model."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from batchcap.captioner.bundle import Bundle
from batchcap.captioner.config import GenerationConfig
from batchcap.captioner.images import DEFAULT_MAX_BYTES
from batchcap.captioner.protocol import CaptionerSource, VectorCaptioner, stored_vector
from batchcap.captioner.quiet import quiet_stderr
from batchcap.catalog import Catalog, Likeness, VectorModel
from batchcap.errors import UsageError
from batchcap.loading import ImageLoader
from batchcap.storage import content_hash
from batchcap.storage.uris import printable


def likeness_to(catalog: Catalog, uri: str, open_captioner: Callable[[], CaptionerSource]) -> Likeness:
    """An image that others are to be like.

    Where its content has a vector in the catalog, that is taken, and no model is loaded.

    Args:
        catalog: whose images are meant.
        uri: of the image's file, known to the catalog or not.
        open_captioner: opens the model; asked only where it is needed.

    Raises:
        UsageError: the catalog has no vectors, or another model's; or the file is no picture.
        BundleError: the model can't be opened.
    """
    models = catalog.vector_models()
    if not models:
        raise UsageError(
            "the catalog holds no image vectors to compare: its captioner gives none, or was not asked for "
            "any; `batchcap index SOURCE --vectors all` adds them"
        )
    content = content_hash(uri, DEFAULT_MAX_BYTES)
    if content is None and (there := catalog.gallery.at([uri])):
        # Known, and out of reach at the moment.
        content = there[uri].content_hash
    known = catalog.vectors_of(content) if content is not None else {}
    for model in models:
        if model.fingerprint in known:
            return Likeness(model.fingerprint, known[model.fingerprint], uri)
    source = open_captioner()
    model = _model_of(source, models)
    return Likeness(model.fingerprint, _vector(source, uri), uri)


def _model_of(source: CaptionerSource, models: Sequence[VectorModel]) -> VectorModel:
    """The model of the catalog that a captioner is, or would be with other decoding options.

    Raises:
        UsageError: it is none of them.
    """
    for model in models:
        if _decoding_like(source, model).fingerprint() == model.fingerprint:
            return model
    raise UsageError(
        f"the catalog's image vectors are of the model {models[0].name} ({models[0].fingerprint[:12]}), and "
        f"{source.name} is not it; name its folder in BATCHCAP_MODEL"
    )


def _decoding_like(source: CaptionerSource, model: VectorModel) -> CaptionerSource:
    """A bundle with the decoding options of a model: they change captions, and no vector."""
    if isinstance(source, Bundle):
        with suppress(KeyError, TypeError, ValueError):
            return replace(source, generation=GenerationConfig(**model.config["generation"]))
    return source


def _vector(source: CaptionerSource, uri: str) -> bytes:
    with ImageLoader(source.image_spec) as loader:
        (loaded,) = loader.load([uri])
    if loaded.image is None:
        raise UsageError(f"{printable(uri)}: {loaded.reason}: {loaded.detail}")
    with quiet_stderr():
        captioner = _load(source)
        if not isinstance(captioner, VectorCaptioner):
            raise UsageError(f"the captioner {source.name} gives no image vectors")
        (vector,) = captioner.image_vectors([loaded.image.pixels])
    return stored_vector(vector)


def _load(source: CaptionerSource) -> object:
    if not isinstance(source, Bundle):
        return source.load_captioner(batch_size=1, num_threads=1)
    # Not `load_captioner`, whose warming up captions a picture.
    from batchcap.captioner.captioner import Captioner

    return Captioner(source, batch_size=1)
