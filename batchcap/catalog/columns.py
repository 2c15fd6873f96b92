"""What rows say of a file and its caption, under the same names in parts, exports and searches."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement

from batchcap.catalog.tables import Caption, Image, Model

_COLUMNS: dict[str, Any] = {
    "caption": Caption.text,
    "confidence": Caption.confidence,
    "log_prob": Caption.log_prob,
    "token_count": Caption.token_count,
    "source": Caption.source,
    "fingerprint": Caption.fingerprint,
    "model": Model.name,
    "width": Image.width,
    "height": Image.height,
    "format": Image.format,
    "size_bytes": Image.size_bytes,
    "taken_at": Image.taken_at,
    "content_hash": Image.content_hash,
    "captioned_at": Caption.created_at,
    "camera": Image.camera,
    "latitude": Image.latitude,
    "longitude": Image.longitude,
}


def columns_of(names: Iterable[str], **others: Any) -> list[ColumnElement[Any]]:
    """The columns of a row, each called as its field is.

    Args:
        names: of the fields, in their order.
        others: columns of more names, whose table is the statement's own.
    """
    known = _COLUMNS | others
    return [known[name].label(name) for name in names]
