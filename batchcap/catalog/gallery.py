"""What a page that shows pictures asks: by content or location, what was said of one, captions a day."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sqlalchemy import and_, case, func, select

from batchcap.catalog.connection import Database
from batchcap.catalog.records import UNKNOWN_MODEL
from batchcap.catalog.tables import Caption, Image, Location, Model

# Of one content: every one of them may be gone from the disk.
_MAX_LOCATIONS = 20
# People may say of a picture as much as they like.
_MAX_SAID = 50
# To choose from.
_MAX_MODELS = 50


@dataclass(frozen=True, slots=True)
class Picture:
    """An image with its live caption, at its locations.

    Args:
        content_hash: sha256 of the bytes, in hexadecimal.
        uris: where it is; those that have not vanished, at most twenty, sorted.
        size_bytes: of the file.
        width: in pixels, upright.
        height: in pixels, upright.
        format: by its content, such as "jpeg".
        taken_at: when the picture was taken, local time of the camera, naive.
        caption: the live one.
        confidence: between 0 and 1, or None.
        source: "model" or "human".
        model: what people call it; None of a person's caption.
        fingerprint: of the model; None of a person's caption.
        captioned_at: when the caption was made.
    """

    content_hash: str
    uris: tuple[str, ...]
    size_bytes: int
    width: int
    height: int
    format: str
    taken_at: datetime | None
    caption: str
    confidence: float | None
    source: str
    model: str | None
    fingerprint: str | None
    captioned_at: datetime


@dataclass(frozen=True, slots=True)
class Said:
    """One of the captions that an image has had.

    Args:
        caption: what was said.
        source: "model" or "human".
        model: what people call it; None of a person's caption.
        fingerprint: of the model; None of a person's caption.
        confidence: between 0 and 1, or None.
        captioned_at: when.
        is_live: whether it is the one that is shown.
    """

    caption: str
    source: str
    model: str | None
    fingerprint: str | None
    confidence: float | None
    captioned_at: datetime
    is_live: bool


class Gallery:
    """Pictures of a catalog; read only."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def picture(self, content_hash: str) -> Picture | None:
        """An image that is still somewhere; None if there is no such."""
        with self._database.read() as connection:
            uris = connection.scalars(
                select(Location.uri)
                .where(Location.content_hash == content_hash, Location.vanished_at.is_(None))
                .order_by(Location.uri)
                .limit(_MAX_LOCATIONS)
            ).all()
            row = connection.execute(_pictures().where(Image.content_hash == content_hash)).one_or_none()
        return Picture(row.content_hash, tuple(uris), *row[1:]) if row is not None and uris else None

    def at(self, uris: Sequence[str]) -> dict[str, Picture]:
        """The images at some locations, each with this location alone; what has vanished is left out.

        Args:
            uris: a page of them.
        """
        statement = (
            _pictures()
            .add_columns(Location.uri)
            .join(Location, Location.content_hash == Image.content_hash)
            .where(Location.uri.in_(uris), Location.vanished_at.is_(None))
        )
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        return {row.uri: Picture(row.content_hash, (row.uri,), *row[1:-1]) for row in rows}

    def history(self, content_hash: str) -> list[Said]:
        """What was said of an image, the latest first, at most fifty.

        Args:
            content_hash: sha256 of the bytes, in hexadecimal.
        """
        statement = (
            select(
                Caption.text,
                Caption.source,
                Model.name,
                Caption.fingerprint,
                Caption.confidence,
                Caption.created_at,
                Caption.id == Image.caption_id,
            )
            .join(Image, Image.content_hash == Caption.content_hash)
            .outerjoin(Model, Model.fingerprint == Caption.fingerprint)
            .where(Caption.content_hash == content_hash)
            .order_by(Caption.created_at.desc(), Caption.id.desc())
            .limit(_MAX_SAID)
        )
        with self._database.read() as connection:
            return [Said(*row[:-1], is_live=bool(row[-1])) for row in connection.execute(statement)]

    def models(self) -> list[str]:
        """The names of the models that have captioned, at most fifty."""
        statement = (
            select(Model.name)
            .distinct()
            .where(Model.fingerprint != UNKNOWN_MODEL)
            .order_by(Model.name)
            .limit(_MAX_MODELS)
        )
        with self._database.read() as connection:
            return list(connection.scalars(statement))

    def captions_a_day(self, days: int) -> list[tuple[date, int]]:
        """How many captions were made on each of some days (UTC), up to that of the latest; oldest first.

        Args:
            days: how many. Empty without a caption.
        """
        with self._database.read() as connection:
            latest = connection.scalar(select(Caption.created_at).order_by(Caption.id.desc()).limit(1))
            if latest is None:
                return []
            midnight = datetime.combine(latest.astimezone(UTC), time(), UTC)
            starts = [midnight - timedelta(days=ago) for ago in range(days)]
            # Comparisons mean the same in every database; functions of dates don't.
            ago = case(*((Caption.created_at >= start, ago) for ago, start in enumerate(starts))).label("ago")
            recent = select(ago).where(Caption.created_at >= starts[-1]).subquery()
            rows = connection.execute(select(recent.c.ago, func.count()).group_by(recent.c.ago))
            counts = {row.ago: row[1] for row in rows}
        return [(start.date(), counts.get(ago, 0)) for ago, start in reversed(list(enumerate(starts)))]


def _pictures() -> Any:
    """Images with their live caption; the columns in the order of `Picture`, without its uris."""
    return (
        select(
            Image.content_hash,
            Image.size_bytes,
            Image.width,
            Image.height,
            Image.format,
            Image.taken_at,
            Caption.text,
            Caption.confidence,
            Caption.source,
            Model.name,
            Caption.fingerprint,
            Caption.created_at,
        )
        .join(Caption, and_(Caption.id == Image.caption_id, Caption.content_hash == Image.content_hash))
        .outerjoin(Model, Model.fingerprint == Caption.fingerprint)
    )
