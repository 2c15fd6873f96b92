"""What goes into the catalog and comes out of it: plain values, free of SQLAlchemy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from batchcap.errors import Reason

if TYPE_CHECKING:
    from batchcap.collection import FileEntry


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model of a run.

    Args:
        fingerprint: sha256 of configuration, vocabulary, weights and decoding options.
        name: what people call it.
        config: its configuration, kept for the record.
    """

    fingerprint: str
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Captioned:
    """A file that got a caption.

    Args:
        uri: the location.
        size_bytes: of the file.
        mtime_ns: of the file.
        etag: of the object, where the storage has one.
        content_hash: sha256 of the bytes, in hexadecimal.
        width: in pixels, upright.
        height: in pixels, upright.
        format: of the file, such as "JPEG".
        taken_at: when the picture was taken, local time of the camera, naive.
        text: the caption.
        log_prob: of the caption.
        confidence: between 0 and 1; None where the model is not calibrated.
        token_count: of the caption.
    """

    uri: str
    size_bytes: int
    mtime_ns: int
    etag: str | None
    content_hash: str
    width: int
    height: int
    format: str
    taken_at: datetime | None
    text: str
    log_prob: float | None
    confidence: float | None
    token_count: int | None


@dataclass(frozen=True, slots=True)
class Failure:
    """A file that could not be captioned; `detail` is one line that says what was found."""

    uri: str
    size_bytes: int
    mtime_ns: int
    etag: str | None
    reason: Reason
    detail: str


@dataclass(slots=True)
class Wave:
    """A bounded piece of the work of a run.

    Every entry of the scan is either in `todo` or `maybe_known`, or counted in `unchanged` or
    `quarantined`. The other counts look at the same entries from another side.

    Args:
        todo: to be captioned.
        maybe_known: to be hashed first: the content may have a caption already.
        unchanged: captioned before and the same since.
        quarantined: failed before, the same since, and not to be tried again.
        stale: captioned before, but by another model; with `recaption` they are in `todo` or
            `maybe_known`, otherwise nearly always in `unchanged`.
        new: in `todo` or `maybe_known`, and the catalog has no such location.
        changed: in `todo` or `maybe_known`, and the file or its image's caption is not what it was.
    """

    todo: "list[FileEntry]" = field(default_factory=list)
    maybe_known: "list[FileEntry]" = field(default_factory=list)
    unchanged: int = 0
    quarantined: int = 0
    stale: int = 0
    new: int = 0
    changed: int = 0


@dataclass(frozen=True, slots=True)
class PartInfo:
    """A Parquet part, named and given its rows."""

    name: str
    run_id: str
    row_count: int


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A location whose live caption answers a search.

    Args:
        uri: the location.
        caption: the live caption.
        confidence: between 0 and 1, or None.
        source: "model" or "human".
        width: in pixels.
        height: in pixels.
        score: the better, the higher; comparable within one search only.
        spans: where in `caption` the words of the query stand, as (start, end), ascending.
    """

    uri: str
    caption: str
    confidence: float | None
    source: str
    width: int
    height: int
    score: float
    spans: tuple[tuple[int, int], ...]

    def highlighted(self, before: str = "[", after: str = "]") -> str:
        """The caption with marks around the words of the query.

        Escape first if the marks are HTML: cut `caption` at `spans` instead.
        """
        pieces, end = [], 0
        for start, stop in self.spans:
            pieces += [self.caption[end:start], before, self.caption[start:stop], after]
            end = stop
        return "".join([*pieces, self.caption[end:]])


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One page of a search; `total` counts all hits."""

    total: int
    hits: list[SearchHit]


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One run, as the catalog remembers it."""

    id: str
    source: list[str]
    fingerprint: str
    state: str
    started_at: datetime
    finished_at: datetime | None
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class CaptionCount:
    """How many images have a live caption of one model, or of people (`fingerprint` and `model` None)."""

    source: str
    fingerprint: str | None
    model: str | None
    images: int


@dataclass(frozen=True, slots=True)
class Status:
    """What the catalog holds.

    Args:
        uuid: of the catalog.
        images: distinct contents.
        locations: paths that have not vanished.
        vanished: paths that have.
        captions: live captions by model.
        quarantine: files by reason.
        runs: the last few, newest first.
        unsealed_rows: results that are in no part yet.
        parts: parts by state.
    """

    uuid: str
    images: int
    locations: int
    vanished: int
    captions: tuple[CaptionCount, ...]
    quarantine: dict[str, int]
    runs: tuple[RunInfo, ...]
    unsealed_rows: int
    parts: dict[str, int]

    def stale(self, fingerprint: str) -> int:
        """Images whose live caption is of another model than `fingerprint`."""
        return sum(c.images for c in self.captions if c.source == "model" and c.fingerprint != fingerprint)


@dataclass(frozen=True, slots=True)
class QuarantinedFile:
    """A file that could not be captioned, as the catalog remembers it."""

    uri: str
    size_bytes: int
    reason: Reason
    detail: str
    attempts: int
    updated_at: datetime
