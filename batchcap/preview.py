"""What `index` would do, without doing it: `--dry-run`. Starts neither Ray nor TensorFlow, writes nothing."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from batchcap.captioner.protocol import CaptionerSource
from batchcap.catalog import Catalog
from batchcap.collection import ListFile, Query, is_gone, resolve_sources, scan, whole_folders
from batchcap.errors import NoCatalogError
from batchcap.globs import Selection
from batchcap.run_options import IndexOptions

# A run of fewer files says more of Ray's start than of the machine.
_MIN_FILES = 200


@dataclass(slots=True)
class Preview:
    """What there is to do.

    Args:
        to_caption: files that the model would caption.
        maybe_known: files that would be hashed first, and captioned only if their content is new.
        new: files at places that the catalog does not know.
        changed: files that are not what they were.
        unchanged: files that are done.
        quarantined: files in quarantine that would not be tried again.
        stale: files that another model captioned.
        vanished: files that are gone.
        known: files that the catalog knows below the same folders.
        skipped: names that the scan leaves out, by reason.
        estimate_s: seconds that captioning would take at the pace of the latest run with this model, its
            start included; None where there was none.
    """

    to_caption: int = 0
    maybe_known: int = 0
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    quarantined: int = 0
    stale: int = 0
    vanished: int = 0
    known: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    estimate_s: float | None = None


def preview_index(
    sources: Sequence[str | ListFile | Query],
    catalog_url: str,
    captioner: CaptionerSource,
    options: IndexOptions,
) -> Preview:
    """Plans a run.

    Args:
        sources: whatever `resolve_sources` takes.
        catalog_url: of the catalog; one that does not exist counts as empty.
        captioner: what would caption.
        options: as the run would have them.

    Raises:
        SourceNotFoundError, SourceError: as in a run.
        CatalogError: the catalog can't be read.
    """
    preview = Preview()
    fingerprint = captioner.fingerprint()
    resolved = resolve_sources(sources)
    selection = Selection.of(options.include, options.exclude)
    with _open_or_empty(catalog_url) as catalog, catalog.missing(whole_folders(resolved)) as missing:
        entries = missing.watch(scan(resolved, skipped=preview.skipped, selection=selection))
        for wave in catalog.plan(
            entries,
            fingerprint,
            retry=options.retry,
            recaption=options.recaption,
            fill_vectors=options.fills_vectors(captioner),
            wave_size=options.wave_size,
        ):
            preview.to_caption += len(wave.todo)
            preview.maybe_known += len(wave.maybe_known)
            for count in ("new", "changed", "unchanged", "quarantined", "stale"):
                setattr(preview, count, getattr(preview, count) + getattr(wave, count))
        preview.vanished = sum(map(is_gone, missing.uris))
        preview.known = missing.known
        pace = catalog.pace(fingerprint, at_least=_MIN_FILES)
    if pace is not None:
        preview.estimate_s = preview.to_caption / pace
    return preview


@contextmanager
def _open_or_empty(url: str) -> Iterator[Catalog]:
    """The catalog to read, or an empty one for as long as it is needed."""
    try:
        opened = Catalog.open(url)
    except NoCatalogError:
        with (
            TemporaryDirectory() as folder,
            Catalog.open(f"sqlite:///{Path(folder) / 'catalog.db'}", mode="write") as empty,
        ):
            yield empty
        return
    with opened:
        yield opened
