"""`CaptionFilter` in SQL: which live captions are meant, for searches and exports."""

from typing import Any
from urllib.parse import quote

from sqlalchemy import ColumnElement, false, func, or_, select

from batchcap.catalog.records import PEOPLE, CaptionFilter
from batchcap.catalog.tables import Caption, Image, Location, Model

# So much of a fingerprint names a model; `status` shows twelve digits.
_FINGERPRINT_DIGITS = 8


def conditions(where: CaptionFilter) -> list[ColumnElement[bool]]:
    """What must hold of a location, its image and its live caption; nothing for a filter without any."""
    found: list[ColumnElement[bool]] = []
    if where.since is not None:
        found.append(Caption.created_at >= where.since)
    if where.taken_since is not None:
        found.append(Image.taken_at >= where.taken_since)
    if where.taken_before is not None:
        found.append(Image.taken_at < where.taken_before)
    if where.model is not None:
        found.append(_by(where.model))
    if where.min_confidence is not None:
        # What a person says is certain.
        found.append(or_(Caption.source == "human", Caption.confidence >= where.min_confidence))
    if where.under is not None:
        found.append(_below(where.under))
    if where.min_width is not None:
        found.append(Image.width >= where.min_width)
    if where.format is not None:
        found.append(_equals(func.lower(Image.format), where.format.lower()))
    return found


def _by(model: str) -> ColumnElement[bool]:
    if model == PEOPLE:
        return Caption.source == "human"
    named = _equals(Model.name, model)
    if len(model) >= _FINGERPRINT_DIGITS and _is_storable(model):
        named = or_(named, Model.fingerprint.startswith(model, autoescape=True))
    return Caption.fingerprint.in_(select(Model.fingerprint).where(named))


def _below(uri: str) -> ColumnElement[bool]:
    """A location itself, or what is below it: ranges, which the primary key finds."""
    if not _is_storable(uri):
        return false()
    folder = uri.rstrip("/")
    prefixes = [f"{folder}/"]
    if "://" not in uri:
        archive = folder.replace("%", "%25").replace("#", "%23")
        # Files whose own names are no UTF-8; archives in that folder; the members, if it is one itself.
        prefixes += [f"file://{quote(folder)}/", f"tar://{archive}/", f"tar://{archive}#"]
    ranges = [(Location.uri >= prefix) & (Location.uri < _after(prefix)) for prefix in prefixes]
    return or_(Location.uri == uri, *ranges)


def _after(prefix: str) -> str:
    """The first text, by code points, that is after all that begin so."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def _equals(column: Any, value: str) -> ColumnElement[bool]:
    return column == value if _is_storable(value) else false()


def _is_storable(text: str) -> bool:
    """Whether a database could hold it, hence have something equal to it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
