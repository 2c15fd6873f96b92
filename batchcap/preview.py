"""What `index` would do, without doing it: `--dry-run`. Writes nothing, and never starts Ray.

Only a sample of what would be captioned is captioned, if one is asked for.
"""

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
from batchcap.run_report import Progress
from batchcap.sampling import Sample, Sampler

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
        sample: what the model would say of some of the files, if it was asked.
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
    sample: Sample | None = None


def preview_index(
    sources: Sequence[str | ListFile | Query],
    catalog_url: str,
    captioner: CaptionerSource,
    options: IndexOptions,
    *,
    sample_size: int = 0,
    progress: Progress | None = None,
) -> Preview:
    """Plans a run.

    Args:
        sources: whatever `resolve_sources` takes.
        catalog_url: of the catalog; one that does not exist counts as empty.
        captioner: what would caption.
        options: as the run would have them.
        sample_size: files that are captioned at most, to be looked at: with `recaption` of those that another
            model captioned, else of those without a caption.
        progress: is told how far the sample is.

    Raises:
        SourceNotFoundError, SourceError: as in a run.
        CatalogError: the catalog can't be read.
        PipelineError: the captioner failed.
    """
    preview = Preview()
    fingerprint = captioner.fingerprint()
    resolved = resolve_sources(sources)
    selection = Selection.of(options.include, options.exclude)
    sampler = Sampler(sample_size, recaption=options.recaption) if sample_size else None
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
            preview.maybe_known += len(wave.maybe_known) + len(wave.same_size)
            for count in ("new", "changed", "unchanged", "quarantined", "stale"):
                setattr(preview, count, getattr(preview, count) + getattr(wave, count))
            if sampler is not None:
                sampler.add(catalog, wave)
        preview.vanished = sum(map(is_gone, missing.uris))
        preview.known = missing.known
        pace = catalog.pace(fingerprint, at_least=_MIN_FILES)
        if sampler is not None:
            preview.sample = sampler.caption(catalog, captioner, options, progress or Progress())
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
