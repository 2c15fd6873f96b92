"""What a verification may find: every way in which catalog and Parquet parts can disagree."""

from dataclasses import dataclass
from enum import StrEnum

_REBUILD = "make it again from Parquet: batchcap verify --rebuild"
_REPAIR = "write it again from the catalog: batchcap verify --repair"
_RESTORE = f"put a copy of the catalog back, or {_REBUILD}"


class FindingKind(StrEnum):
    """A kind of disagreement, the gravest first. The values are for programs: never change one.

    `advice` says what to do about it.
    """

    # The database file itself is damaged; then nothing else was looked at.
    DATABASE = "database", _RESTORE
    # The store has another catalog's stamp, or one that can't be read.
    STAMP = "stamp", "name the catalog that belongs to the store, or put a copy of store.json back"
    PART_MISSING = "part_missing", f"put a copy of the file back, or {_REPAIR}"
    PART_DAMAGED = "part_damaged", f"put a copy of the file back, or {_REPAIR}"
    # The file has other rows than the catalog gave it.
    PART_ROWS = (
        "part_rows",
        f"put a copy of the file back; if the catalog is wrong, {_REBUILD} --force; if the file is, move it "
        f"away and {_REPAIR}",
    )
    # The rows are right, but another program wrote them anew.
    PART_BYTES = "part_bytes", f"put a copy of the file back, or {_REPAIR}"
    # One caption of one file is logged twice.
    DUPLICATE_RESULT = "duplicate_result", f"{_RESTORE} --force"
    # An image has two captions of one model.
    DUPLICATE_CAPTION = "duplicate_caption", f"{_RESTORE} --force"
    # The view `captions` shows what was never logged.
    NO_RESULT = "no_result", f"{_RESTORE} --force"
    # An image's live caption is not there, or is another image's.
    NO_LIVE_CAPTION = "no_live_caption", f"{_RESTORE} --force"
    # A row refers to another that is not there.
    REFERENCE = "reference", f"{_RESTORE} --force"
    # The full-text index has not the words of the captions, or counts other files than there are.
    FULL_TEXT = "full_text", f"{_RESTORE} --force"
    # A file in captions/ that the catalog doesn't know.
    ORPHAN = "orphan", "move the file away"
    # A temporary file whose writer has ended.
    LEFTOVER = "leftover", "remove the file, if no run is going on"

    advice: str

    def __new__(cls, value: str, advice: str) -> "FindingKind":
        member = str.__new__(cls, value)
        member._value_ = value
        member.advice = advice
        return member


@dataclass(frozen=True, slots=True)
class Finding:
    """One disagreement.

    Args:
        kind: of it.
        subject: the file, uri, content or row that it is about.
        detail: one line that says what was found.
    """

    kind: FindingKind
    subject: str
    detail: str
