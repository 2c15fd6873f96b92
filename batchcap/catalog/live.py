"""The live captions, file by file, for whoever takes them elsewhere; and what else was said of an image."""

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import select

from batchcap.catalog.columns import columns_of
from batchcap.catalog.connection import Database
from batchcap.catalog.filters import conditions
from batchcap.catalog.records import CaptionFilter
from batchcap.catalog.tables import Caption, Image, Location, Model

_BATCH_ROWS = 2_000
# Contents in one IN (...): below every database's limit of parameters.
_CHUNK = 500


class LiveCaption(NamedTuple):
    """A file with the caption that is shown of it: a row of the view `captions`."""

    uri: str
    caption: str
    confidence: float | None
    source: str
    model: str | None
    width: int
    height: int
    format: str
    size_bytes: int
    taken_at: datetime | None
    captioned_at: datetime
    content_hash: str
    camera: str | None
    latitude: float | None
    longitude: float | None


_LIVE = (
    select(*columns_of(LiveCaption._fields, uri=Location.uri))
    .join(Image, Image.content_hash == Location.content_hash)
    .join(Caption, Caption.id == Image.caption_id)
    .outerjoin(Model, Model.fingerprint == Caption.fingerprint)
    .where(Location.vanished_at.is_(None))
)


def live_captions(database: Database, where: CaptionFilter) -> Iterator[list[LiveCaption]]:
    """The live captions in batches, sorted by uri, with no transaction open in between."""
    statement = _LIVE.where(*conditions(where)).order_by(Location.uri).limit(_BATCH_ROWS)
    last = ""
    while True:
        with database.read() as connection:
            batch = [
                LiveCaption._make(row) for row in connection.execute(statement.where(Location.uri > last))
            ]
        if not batch:
            return
        last = batch[-1].uri
        yield batch


def captions_of(database: Database, uris: Sequence[str]) -> dict[str, LiveCaption]:
    """The live captions of some files, by uri, of those that have one."""
    found: dict[str, LiveCaption] = {}
    for start in range(0, len(uris), _CHUNK):
        with database.read() as connection:
            rows = connection.execute(_LIVE.where(Location.uri.in_(uris[start : start + _CHUNK])))
            found.update((row.uri, LiveCaption._make(row)) for row in rows)
    return found


def all_texts(database: Database, contents: Collection[str]) -> dict[str, set[str]]:
    """Whatever was said of each of these images, by anybody."""
    said: dict[str, set[str]] = {content: set() for content in contents}
    ordered = sorted(said)
    statement = select(Caption.content_hash, Caption.text)
    for start in range(0, len(ordered), _CHUNK):
        with database.read() as connection:
            chosen = statement.where(Caption.content_hash.in_(ordered[start : start + _CHUNK]))
            for content, text in connection.execute(chosen):
                said[content].add(text)
    return said


def files_named(database: Database, uri_without_suffix: str) -> list[str]:
    """The files that are called so but for their suffix, sorted: `/a/b` finds `/a/b.jpg`."""
    # The character after a dot is the slash.
    beginning = f"{uri_without_suffix}."
    statement = (
        select(Location.uri)
        .where(Location.uri >= beginning, Location.uri < f"{beginning[:-1]}/", Location.vanished_at.is_(None))
        .order_by(Location.uri)
    )
    with database.read() as connection:
        found = connection.scalars(statement).all()
    return [uri for uri in found if "." not in uri[len(beginning) :]]
