"""batchcap: captions every image in a collection and makes the captions searchable with SQL.

The public names below are imported when they are first used: some of them bring TensorFlow along, and
importing `batchcap` should cost nothing.

Example::

    from batchcap import Captioner, decode_image

    captioner = Captioner.load()
    pixels = decode_image(open("dog.jpg", "rb").read(), captioner.image_spec)
    print(captioner.caption([pixels])[0].text)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchcap.captioner.bundle import Bundle
    from batchcap.captioner.captioner import Captioner
    from batchcap.captioner.config import CaptionerConfig, GenerationConfig
    from batchcap.captioner.images import ImageSpec, decode_image
    from batchcap.captioner.model import CaptionModel
    from batchcap.captioner.protocol import Caption
    from batchcap.captioner.tokenizer import Tokenizer
    from batchcap.catalog import Catalog
    from batchcap.collection import resolve_sources, scan
    from batchcap.errors import BatchcapError
    from batchcap.pipeline import index_collection
    from batchcap.run_options import IndexOptions
    from batchcap.run_report import RunReport

__version__ = "0.1.0"

__all__ = [
    "BatchcapError",
    "Bundle",
    "Caption",
    "CaptionModel",
    "Captioner",
    "CaptionerConfig",
    "Catalog",
    "GenerationConfig",
    "ImageSpec",
    "IndexOptions",
    "RunReport",
    "Tokenizer",
    "decode_image",
    "index_collection",
    "resolve_sources",
    "scan",
]

_MODULES = {
    "BatchcapError": "batchcap.errors",
    "Bundle": "batchcap.captioner.bundle",
    "Caption": "batchcap.captioner.protocol",
    "CaptionModel": "batchcap.captioner.model",
    "Captioner": "batchcap.captioner.captioner",
    "CaptionerConfig": "batchcap.captioner.config",
    "Catalog": "batchcap.catalog",
    "GenerationConfig": "batchcap.captioner.config",
    "ImageSpec": "batchcap.captioner.images",
    "IndexOptions": "batchcap.run_options",
    "RunReport": "batchcap.run_report",
    "Tokenizer": "batchcap.captioner.tokenizer",
    "decode_image": "batchcap.captioner.images",
    "index_collection": "batchcap.pipeline",
    "resolve_sources": "batchcap.collection",
    "scan": "batchcap.collection",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'batchcap' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
