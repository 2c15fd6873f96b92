"""Can people find the photo? Captions go into a catalog, and what others wrote of each image searches in it.

The catalog is a real one in a temporary folder, and the search is that of `batchcap search`: what is scored
is what people get. An image counts as found when it is among the first hits; equal scores stand in the order
of names, as they do there.
"""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from batchcap.catalog import Captioned, Catalog, ModelInfo
from batchcap.errors import TrainingError
from model_training.metrics import tokenize

__all__ = ["RANKS", "retrieval"]

# An image is found if it is among so many first hits.
RANKS = (1, 5, 10)

_MODEL = ModelInfo("0" * 64, "scored")


def retrieval(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Searches for every image by every caption that people wrote of it.

    A query is any of the words of a caption, joined by `OR`: hardly an image has them all. The search ranks
    by BM25, so that rare words count more.

    Args:
        captions: of the model, by the image's name.
        references: what people wrote, by the image's name; those of other images are left out.

    Returns:
        `recall_at_1`, `recall_at_5` and `recall_at_10`: the share of queries that find their image among the
        first so many hits, 0 to 1; `queries`: their number. Captions without a word are no queries.

    Raises:
        CatalogError: the temporary catalog can't be written or read.
        TrainingError: there is no query, or no folder for temporary files.
    """
    queries = [
        (name, " OR ".join(words))
        for name in captions
        for words in map(tokenize, references.get(name, ()))
        if words
    ]
    if not queries:
        raise TrainingError("there is no caption to search with")
    found = dict.fromkeys(RANKS, 0)
    try:
        folder = tempfile.TemporaryDirectory(prefix="batchcap-retrieval-")
    except OSError as error:
        raise TrainingError(f"can't make a temporary catalog: {error}") from error
    with folder as path, Catalog.open(f"sqlite:///{Path(path) / 'catalog.db'}", mode="write") as catalog:
        with catalog.run([], _MODEL, {}) as run:
            run.commit([_row(name, text) for name, text in captions.items()])
        for name, query in queries:
            hits = [hit.uri for hit in catalog.search(query, limit=max(RANKS)).hits]
            for rank in RANKS:
                found[rank] += name in hits[:rank]
    return {f"recall_at_{rank}": count / len(queries) for rank, count in found.items()} | {
        "queries": len(queries)
    }


def _row(name: str, text: str) -> Captioned:
    """A result as a run commits it; what search never looks at is made up."""
    content_hash = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return Captioned(name, 1, 0, None, content_hash, 1, 1, "JPEG", None, text, None, None, 1)
