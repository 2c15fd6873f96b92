"""What goes into the catalog and comes out of it: plain values, free of SQLAlchemy."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
        camera: make and model.
        latitude: where the picture was taken, in degrees, north positive.
        longitude: in degrees, east positive; None if and only if the latitude is.
        vector: of the image, as the model sees it: float16[D], little-endian, of length one; None of a
            captioner that gives none.
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
    camera: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    vector: bytes | None = None


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

    Every entry of the scan is in `todo`, `maybe_known` or `same_size`, or counted in `unchanged` or
    `quarantined`. The other counts look at the same entries from another side.

    Args:
        todo: to be captioned.
        maybe_known: to be hashed first: the content may have a caption already.
        same_size: new, and an image of their size is known, but under another name and of another time: in a
            small collection they are copies; of ten million photographs nearly each shares its size. Also
            those that have name and size of another new file, of the wave before.
        unchanged: captioned before and the same since.
        quarantined: failed before, the same since, and not to be tried again.
        stale: captioned before, but by another model; with `recaption` they are in `todo` or
            `maybe_known`, otherwise nearly always in `unchanged`.
        new: in one of the three lists, and the catalog has no such location.
        changed: in `todo` or `maybe_known`, and the file or its image's caption is not what it was.
    """

    todo: "list[FileEntry]" = field(default_factory=list)
    maybe_known: "list[FileEntry]" = field(default_factory=list)
    same_size: "list[FileEntry]" = field(default_factory=list)
    unchanged: int = 0
    quarantined: int = 0
    stale: int = 0
    new: int = 0
    changed: int = 0

    @property
    def size(self) -> int:
        """Files in the three lists."""
        return len(self.todo) + len(self.maybe_known) + len(self.same_size)


@dataclass(frozen=True, slots=True)
class PartInfo:
    """A Parquet part, named and given its rows.

    Args:
        name: of the file.
        run_id: the run that named it.
        row_count: rows that it was given.
        sha256: of the file, once it is on disk; None while the part is pending.
        supersedes: sha256 of the file that a pending part replaces, because rows of it were forgotten, or
            because it is damaged.
    """

    name: str
    run_id: str
    row_count: int
    sha256: str | None = None
    supersedes: str | None = None


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was erased of a file.

    Args:
        results: lines of the log.
        captions: that nothing else has.
        parts: Parquet files that held some of it.
        elsewhere: other files of the same content, which keep their captions.
    """

    results: int
    captions: int
    parts: int
    elsewhere: int


# What stands for people where a model is named.
PEOPLE = "people"
# Fingerprint and name of the model of a run of which nothing but people's captions is known.
UNKNOWN_MODEL = "unknown"


@dataclass(frozen=True, slots=True)
class CaptionFilter:
    """Which live captions are meant; what is None says nothing.

    Args:
        since: of an aware time: made then or later.
        taken_since: pictures taken then or later, by the camera's own clock (naive).
        taken_before: pictures taken before then, by the camera's own clock (naive).
        model: the name of the model that made it, or the beginning of its fingerprint; `PEOPLE` for those
            that people wrote.
        min_confidence: at least so sure; a person always is, a model that isn't calibrated never.
        under: of this location, or below it: a uri, with or without a slash at its end.
        min_width: of the picture, in pixels.
        format: of the file, such as `jpeg`, in any case.
    """

    since: datetime | None = None
    taken_since: datetime | None = None
    taken_before: datetime | None = None
    model: str | None = None
    min_confidence: float | None = None
    under: str | None = None
    min_width: int | None = None
    format: str | None = None


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
        score: the better, the higher; comparable within one search only. 0 where no words were asked for. By
            likeness: the cosine of the angle between the two images' vectors, at most 1.
        spans: where in `caption` the words of the query stand, as (start, end), ascending.
        model: the name of the model that made the caption; None for a person's.
        format: of the file, such as `jpeg`.
        taken_at: when the picture was taken, local time of the camera, naive; if that is known.
        captioned_at: when the caption was made.
        camera: make and model, if that is known.
        latitude: where the picture was taken, in degrees, north positive.
        longitude: in degrees, east positive; None if and only if the latitude is.
    """

    uri: str
    caption: str
    confidence: float | None
    source: str
    width: int
    height: int
    score: float
    spans: tuple[tuple[int, int], ...]
    model: str | None = None
    format: str | None = None
    taken_at: datetime | None = None
    captioned_at: datetime | None = None
    camera: str | None = None
    latitude: float | None = None
    longitude: float | None = None

    def highlighted(self, before: str = "[", after: str = "]") -> str:
        """The caption with marks around the words of the query.

        Escape first if the marks are HTML: cut `caption` at `spans` instead.
        """
        pieces, end = [], 0
        for start, stop in self.spans:
            pieces += [self.caption[end:start], before, self.caption[start:stop], after]
            end = stop
        return "".join([*pieces, self.caption[end:]])

    def snippet(self, length: int = 160) -> "SearchHit":
        """The same hit with what of its caption is around the first words found, at most so many characters.

        Most captions are shorter, and stay as they are.
        """
        if len(self.caption) <= length:
            return self
        first = self.spans[0][0] if self.spans else 0
        # A third of it before the words, but no room left empty at the end.
        start = max(0, min(first - length // 3, len(self.caption) - length))
        end = min(len(self.caption), start + length)
        before, after = "…" * (start > 0), "…" * (end < len(self.caption))
        moved = len(before) - start
        spans = tuple((a + moved, b + moved) for a, b in self.spans if start <= a and b <= end)
        return replace(self, caption=f"{before}{self.caption[start:end]}{after}", spans=spans)


@dataclass(frozen=True, slots=True)
class VectorModel:
    """A model that has left vectors in the catalog.

    Args:
        fingerprint: of the model.
        name: what people call it.
        config: its configuration, as it was when it first captioned.
        vector_size: numbers of a vector.
    """

    fingerprint: str
    name: str
    config: Mapping[str, Any]
    vector_size: int


@dataclass(frozen=True, slots=True)
class Likeness:
    """An image that others are to be like.

    Args:
        fingerprint: of the model whose vectors are compared.
        vector: of the image: float16[D], little-endian.
        uri: a location that is no answer, for it is what was asked; None where there is none.
    """

    fingerprint: str
    vector: bytes
    uri: str | None = None


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One page of a search; `total` counts all hits."""

    total: int
    hits: list[SearchHit]


@dataclass(frozen=True, slots=True)
class Uncertain:
    """An image that a person should look at: one of its locations, and the model's caption."""

    uri: str
    caption: str
    confidence: float | None


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
