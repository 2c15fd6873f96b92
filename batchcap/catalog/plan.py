"""The plan: what of a scan is still to be captioned.

Scan and catalog are both sorted by uri, so one pass over both is enough, whatever their size; of the
catalog only pages are held, and of the scan one wave. Between two pages no transaction is open, so that a
run of days does not keep SQLite's log from being folded into the file.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection, case, exists, false, select
from sqlalchemy.orm import aliased

from batchcap.catalog.connection import Database
from batchcap.catalog.records import Wave
from batchcap.catalog.tables import Caption, Image, ImageVector, Location, Quarantine
from batchcap.errors import Reason

if TYPE_CHECKING:
    from batchcap.collection import FileEntry

# Rows of the catalog held at a time; the first page after a jump is small, for the next may be far away.
_PAGE_ROWS = 8192
_FIRST_PAGE_ROWS = 64
# Entries that are looked at together, so that what has their sizes is looked up in one query.
_CHUNK = 1000
# Locations with the sizes of a chunk that are looked at one by one. Photographs share their size with a few
# of ten million others; files of a fixed size, as scans have without compression, share it with all.
_MOST_OF_A_SIZE = 20_000
# A large collection is captioned before it is listed to its end: the first wave has so many files, or what is
# found in the time that Ray takes to start.
_FIRST_WAVE = 50_000
_FIRST_WAVE_S = 8.0
# Timeouts and crashes may be the machine's fault: they get this many attempts.
MAX_ATTEMPTS = 3
# The mtime of a location whose file nobody has looked at: no file has it, so the next plan has it hashed.
UNKNOWN_MTIME_NS = -(2**63)


class FileIdentity(Protocol):
    """What tells a file from its earlier self, in an entry of the scan as in a row of the catalog."""

    @property
    def uri(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def etag(self) -> str | None: ...


class LocationRow(NamedTuple):
    """A location and its live caption; what is said of the caption is None where there is none.

    `recaptioned`: the live caption is another model's, but the content has one of this model too.
    `lacks_vector`: the content has a caption of this model and no vector; false where nobody asks for that.
    """

    uri: str
    size_bytes: int
    mtime_ns: int
    etag: str | None
    vanished_at: datetime | None
    caption_id: int | None
    source: str | None
    fingerprint: str | None
    recaptioned: bool
    lacks_vector: bool


class QuarantineRow(NamedTuple):
    """A file in the quarantine."""

    uri: str
    size_bytes: int
    mtime_ns: int
    etag: str | None
    reason: str
    attempts: int


Row = TypeVar("Row", bound=FileIdentity)


def same_file(one: FileIdentity, other: FileIdentity) -> bool:
    """Whether the file at a location is what it was: by size, and by etag where both have one, else mtime."""
    if one.size_bytes != other.size_bytes:
        return False
    if one.etag is not None and other.etag is not None:
        return one.etag == other.etag
    return one.mtime_ns == other.mtime_ns


def may_retry(row: QuarantineRow, retry: Collection[Reason]) -> bool:
    """Whether a file in the quarantine that has not changed gets another attempt.

    Args:
        row: the file.
        retry: reasons that are to be tried again whatever they are.
    """
    reason = Reason(row.reason)
    if reason in retry or reason is Reason.IO_ERROR:
        return True
    return reason in (Reason.TIMEOUT, Reason.WORKER_CRASH) and row.attempts < MAX_ATTEMPTS


def plan_waves(
    database: Database,
    entries: "Iterable[FileEntry]",
    fingerprint: str,
    *,
    retry: Collection[Reason],
    recaption: bool,
    fill_vectors: bool,
    wave_size: int,
    on_todo: Callable[[], None] | None = None,
) -> "Iterator[Wave]":
    """Yields the work of a run in waves, of which the first may be smaller; see `Catalog.plan`."""
    if wave_size < 1:
        raise ValueError(f"wave_size must be at least 1, not {wave_size}")
    locations: _SortedRows[LocationRow] = _SortedRows(
        database, partial(_location_page, fingerprint=fingerprint, fill_vectors=fill_vectors)
    )
    quarantine: _SortedRows[QuarantineRow] = _SortedRows(database, _quarantine_page)
    wave, counted, is_first = Wave(), False, True
    # New files that look like one before them in the wave: they wait until that one is captioned.
    twins = _Twins()
    started = time.monotonic()
    ascending = _ascending(entries)
    while chunk := list(islice(ascending, _CHUNK)):
        likeness: _Likeness | None = None
        for entry in chunk:
            location, poison = locations.find(entry.uri), quarantine.find(entry.uri)
            counted = True
            there = location is not None and location.vanished_at is None
            done = there and location is not None and _is_captioned(entry, location)
            # A person's caption is never stale: no model outranks it.
            stale = done and location is not None and location.fingerprint not in (None, fingerprint)
            wave.stale += stale
            # It failed as another file and is what was captioned again: a look ends its quarantine.
            restored = done and poison is not None and not same_file(entry, poison)
            recaptions = stale and recaption
            # Another model's may be live: then it is that model's business, unless this one's is to be.
            fills = done and location is not None and location.lacks_vector and (recaptions or not stale)
            if done and not restored and not recaptions and not fills:
                wave.unchanged += 1
                continue
            if poison is not None and same_file(entry, poison) and not may_retry(poison, retry):
                wave.quarantined += 1
                continue
            wave.new += not there
            wave.changed += there and not recaptions and not fills
            if likeness is None:
                likeness = _find_likeness(database, chunk)
            if location is not None:
                # A file that changed, or came back, may hold what is known. One that is to be captioned again
                # is only hashed where this model's caption of it is known.
                maybe_known, same_size = not fills and (location.recaptioned or not recaptions), False
            else:
                maybe_known = entry.uri in likeness.uris
                same_size = entry.size_bytes in likeness.sizes
            where = wave.maybe_known if maybe_known else wave.same_size if same_size else wave.todo
            if where is wave.todo and location is None and twins.has(entry):
                where = twins.waiting
            where.append(entry)
            if on_todo is not None and where is wave.todo:
                on_todo()
            size = wave.size + len(twins.waiting)
            is_enough = is_first and size >= _FIRST_WAVE and time.monotonic() - started >= _FIRST_WAVE_S
            if size == wave_size or is_enough:
                yield wave
                wave, counted, is_first = Wave(same_size=twins.waiting), False, False
                twins = _Twins()
                # The caller has committed since: its images are known now.
                likeness = None
    if counted or wave.size:
        yield wave
    if twins.waiting:
        yield Wave(same_size=twins.waiting)


class _Twins:
    """Finds copies among the new files of one wave, as of a folder that was put aside for safety.

    Attributes:
        waiting: files that have the name and the size of one before them.
    """

    def __init__(self) -> None:
        self.waiting: list[FileEntry] = []
        # Hashes: of half a million files the names would take several times as much memory.
        self._seen: set[int] = set()

    def has(self, entry: "FileEntry") -> bool:
        """Whether a file before this one has its name and its size; if not, this one is before the others."""
        twin = hash((entry.size_bytes, _name(entry.uri)))
        if twin in self._seen:
            return True
        self._seen.add(twin)
        return False


def _is_captioned(entry: "FileEntry", location: LocationRow) -> bool:
    """Whether the file is what it was when its image was captioned."""
    return location.caption_id is not None and same_file(entry, location)


def _ascending(entries: "Iterable[FileEntry]") -> "Iterator[FileEntry]":
    """Drops the second of two entries of one uri; an order that would spoil the merge is an error."""
    last: str | None = None
    for entry in entries:
        if last is not None and entry.uri <= last:
            if entry.uri == last:
                continue
            raise ValueError(f"a scan must be sorted by uri, but {entry.uri!r} came after {last!r}")
        last = entry.uri
        yield entry


class _Likeness(NamedTuple):
    """What new files have in common with known images.

    `uris`: of files that have the size, and the name or the mtime, that a known one has somewhere.
    `sizes`: that some image has.
    """

    uris: set[str]
    sizes: set[int]


def _find_likeness(database: Database, entries: "Collection[FileEntry]") -> _Likeness:
    has_size = Image.size_bytes.in_({entry.size_bytes for entry in entries})
    with database.read() as connection:
        rows = connection.execute(
            select(Image.size_bytes, Location.uri, Location.mtime_ns)
            # Also what was at a location before its file changed: it has a size, and no location.
            .outerjoin(Location, Location.content_hash == Image.content_hash)
            .where(has_size)
            .limit(_MOST_OF_A_SIZE + 1)
        ).all()
        if len(rows) > _MOST_OF_A_SIZE:
            known = set(connection.scalars(select(Image.size_bytes).where(has_size).distinct()))
            return _Likeness({entry.uri for entry in entries if entry.size_bytes in known}, known)
    known = {size for size, _, _ in rows}
    named = {(size, _name(uri)) for size, uri, _ in rows if uri}
    timed = {(size, mtime_ns) for size, _, mtime_ns in rows}
    uris = {
        entry.uri
        for entry in entries
        if (entry.size_bytes, _name(entry.uri)) in named or (entry.size_bytes, entry.mtime_ns) in timed
    }
    return _Likeness(uris, known)


def _name(uri: str) -> str:
    return uri.rpartition("/")[2]


def _location_page(
    connection: Connection, first_uri: str, rows: int, *, fingerprint: str, fill_vectors: bool = False
) -> list[LocationRow]:
    """Locations from `first_uri` on, each with its live caption."""
    own = aliased(Caption)
    is_own = (own.content_hash == Location.content_hash) & (own.fingerprint == fingerprint)
    has_own = exists().where(is_own)
    has_vector = exists().where(ImageVector.caption_id == own.id)
    statement = (
        select(
            Location.uri,
            Location.size_bytes,
            Location.mtime_ns,
            Location.etag,
            Location.vanished_at,
            Image.caption_id,
            Caption.source,
            Caption.fingerprint,
            # Not looked up where the live caption is this model's own or a person's.
            case((Caption.fingerprint != fingerprint, has_own), else_=false()),
            exists().where(is_own, ~has_vector) if fill_vectors else false(),
        )
        .join(Image, Image.content_hash == Location.content_hash)
        .outerjoin(Caption, Caption.id == Image.caption_id)
        .where(Location.uri >= first_uri)
        .order_by(Location.uri)
        .limit(rows)
    )
    return [LocationRow(*row) for row in connection.execute(statement)]


def _quarantine_page(connection: Connection, first_uri: str, rows: int) -> list[QuarantineRow]:
    """Files of the quarantine from `first_uri` on."""
    statement = (
        select(
            Quarantine.uri,
            Quarantine.size_bytes,
            Quarantine.mtime_ns,
            Quarantine.etag,
            Quarantine.reason,
            Quarantine.attempts,
        )
        .where(Quarantine.uri >= first_uri)
        .order_by(Quarantine.uri)
        .limit(rows)
    )
    return [QuarantineRow(*row) for row in connection.execute(statement)]


class _SortedRows(Generic[Row]):
    """Finds rows by ascending uri, reading a sorted table page by page.

    It jumps over what nobody asks for: a scan of one folder reads that folder's part of the table.
    """

    def __init__(self, database: Database, page: Callable[[Connection, str, int], list[Row]]) -> None:
        self._database = database
        self._page = page
        self._rows: list[Row] = []
        self._position = 0
        self._found = 0
        self._page_rows = _FIRST_PAGE_ROWS
        # Nothing after this page: the table is read to its end.
        self._exhausted = False

    def find(self, uri: str) -> Row | None:
        """The row of this uri, or None. Each call must ask for a later uri than the one before."""
        self._skip_to(uri)
        if self._position == len(self._rows) and not self._exhausted:
            self._read_from(uri)
        if self._position < len(self._rows) and self._rows[self._position].uri == uri:
            self._found += 1
            return self._rows[self._position]
        return None

    def _skip_to(self, uri: str) -> None:
        while self._position < len(self._rows) and self._rows[self._position].uri < uri:
            self._position += 1

    def _read_from(self, uri: str) -> None:
        # Pages grow while most of their rows are asked for, as they are when a whole tree is scanned.
        dense = bool(self._rows) and 2 * self._found >= len(self._rows)
        self._page_rows = min(2 * self._page_rows, _PAGE_ROWS) if dense else _FIRST_PAGE_ROWS
        with self._database.read() as connection:
            self._rows = self._page(connection, uri, self._page_rows)
        self._position = self._found = 0
        self._exhausted = len(self._rows) < self._page_rows
