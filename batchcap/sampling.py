"""What a model would say of some of the files that it would caption: `index --dry-run --sample`.

Nothing is written: the files are captioned in this process, and what comes of it is only given back. Which
files are in a sample follows from their contents, where the catalog knows these, else from where they are:
asked again, or with a third model, the same pictures are shown.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from heapq import heappush, heappushpop
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any

from batchcap.captioner.protocol import CaptionerSource
from batchcap.catalog import Catalog, LiveCaption, Wave
from batchcap.collection import FileEntry
from batchcap.contact_sheet import SheetItem, write_sheet
from batchcap.in_process import InProcess
from batchcap.run_options import IndexOptions
from batchcap.run_report import Progress
from batchcap.stages import files_table

# Files whose captions are held at a time, to be drawn or not.
_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class SampledFile:
    """A file with the caption that it has and the one that it would get.

    Args:
        uri: the location.
        old_caption: that is shown now; None where there is none.
        old_model: the name of the model that made it.
        old_confidence: between 0 and 1; None where that model is not calibrated.
        caption: that the model would give; None for a file that can't be captioned.
        confidence: between 0 and 1; None where the model is not calibrated.
        reason: why there is no caption.
        detail: one line about that.
    """

    uri: str
    old_caption: str | None
    old_model: str | None
    old_confidence: float | None
    caption: str | None
    confidence: float | None
    reason: str | None = None
    detail: str | None = None


@dataclass(slots=True)
class Sample:
    """A model's captions of a sample.

    Args:
        model: its name.
        of: the files that the sample was drawn from.
        known: files that were drawn and are left out, since their content has a caption already: a run would
            find that out before it captions them.
        files: the sample, sorted by uri.
    """

    model: str
    of: int = 0
    known: int = 0
    files: list[SampledFile] = field(default_factory=list)

    @property
    def same(self) -> int:
        """Files whose caption would stay as it is."""
        return sum(file.caption is not None and file.caption == file.old_caption for file in self.files)

    @property
    def failed(self) -> Counter[str]:
        """Files that can't be captioned, by reason."""
        return Counter(file.reason for file in self.files if file.reason is not None)

    @property
    def mean_confidence(self) -> tuple[float | None, float | None]:
        """Of the old captions and of the new ones; None where any of these has none."""
        new = [file for file in self.files if file.caption is not None]
        return _mean([file.old_confidence for file in new]), _mean([file.confidence for file in new])


class Sampler:
    """Draws a sample from the waves of a plan, and captions it.

    Args:
        size: files to draw at most.
        recaption: whether those are drawn that another model captioned; else those without a caption.
    """

    def __init__(self, size: int, *, recaption: bool) -> None:
        self._size = size
        self._recaption = recaption
        self._of = 0
        # Those with the smallest keys; the largest of them lies on top of the heap.
        self._drawn: dict[int, tuple[FileEntry, LiveCaption | None]] = {}
        self._heap: list[int] = []

    def add(self, catalog: Catalog, wave: Wave) -> None:
        """Draws from a wave."""
        if not self._recaption:
            for entry in chain(wave.todo, wave.maybe_known, wave.same_size):
                self._offer(entry.uri, entry, None)
            return
        for start in range(0, len(wave.todo), _CHUNK):
            chunk = wave.todo[start : start + _CHUNK]
            # What the catalog doesn't know is new, and has no caption to compare with.
            shown = catalog.captions_of([entry.uri for entry in chunk])
            for entry in chunk:
                if old := shown.get(entry.uri):
                    self._offer(old.content_hash, entry, old)

    def _offer(self, identity: str, entry: FileEntry, old: LiveCaption | None) -> None:
        self._of += 1
        key = int.from_bytes(hashlib.sha256(identity.encode()).digest())
        # A copy of a picture is the same picture.
        if key in self._drawn:
            return
        if len(self._heap) < self._size:
            heappush(self._heap, -key)
        elif (dropped := -heappushpop(self._heap, -key)) == key:
            return
        else:
            del self._drawn[dropped]
        self._drawn[key] = entry, old

    def caption(
        self, catalog: Catalog, captioner: CaptionerSource, options: IndexOptions, progress: Progress
    ) -> Sample:
        """Captions what was drawn, here.

        Args:
            catalog: opened in any mode; only read.
            captioner: the model.
            options: batch size, time limits and CPUs.
            progress: is told how far it is.

        Raises:
            PipelineError: the captioner failed.
        """
        sample = Sample(captioner.name, self._of)
        drawn = sorted(self._drawn.values(), key=lambda each: each[0].uri)
        if not drawn:
            return sample
        progress.plan(len(drawn))
        rows: list[dict[str, Any]] = []
        files = files_table([entry for entry, _ in drawn])
        with (
            InProcess(captioner, captioner.fingerprint(), options) as stages,
            closing(stages.caption_files(files)) as batches,
        ):
            for batch in batches:
                rows += batch.to_pylist()
                progress.advance(len(batch), len(batch) - batch["reason"].null_count)
        known = set() if self._recaption else _captioned(catalog, [row["content_hash"] for row in rows])
        for row, (_, old) in zip(rows, drawn, strict=True):
            if row["content_hash"] in known:
                sample.known += 1
                continue
            sample.files.append(
                SampledFile(
                    uri=row["uri"],
                    old_caption=old and old.caption,
                    old_model=old and old.model,
                    old_confidence=old and old.confidence,
                    caption=row["text"],
                    confidence=row["confidence"],
                    reason=row["reason"],
                    detail=row["detail"] or None,
                )
            )
        return sample


def write_sample(path: Path, sample: Sample) -> None:
    """Writes a page of the pictures with both captions.

    Raises:
        UsageError: there is a file that is no page of ours, or it can't be written.
    """
    items = [SheetItem(file.uri, file.caption or "", _described(file, sample.model)) for file in sample.files]
    shown = f"{len(items):,} of {sample.of:,}"
    write_sheet(path, f"What {sample.model} would say", shown, items)


def _described(file: SampledFile, model: str) -> str:
    lines = []
    if file.old_caption is not None:
        lines.append(_line(file.old_caption, file.old_model, file.old_confidence))
    if file.caption is None:
        lines.append(f"<small>{escape(f'{file.reason}: {file.detail}')}</small>")
    else:
        lines.append(f"<b>{_line(file.caption, model, file.confidence)}</b>")
    return "<br>".join(lines)


def _line(caption: str, model: str | None, confidence: float | None) -> str:
    sure = "" if confidence is None else f" {confidence:.2f}"
    return f"{escape(caption)} <small>{escape(model or '')}{sure}</small>"


def _captioned(catalog: Catalog, contents: Sequence[str | None]) -> set[str]:
    """Those of some contents that have a caption."""
    said = catalog.all_texts({content for content in contents if content is not None})
    return {content for content, texts in said.items() if texts}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
