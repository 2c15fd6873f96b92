"""The images of a commit: what their files say of them is written once, and completed later."""

from collections.abc import Sequence

from sqlalchemy import Connection, and_, func, or_

from batchcap.catalog.connection import Database
from batchcap.catalog.records import Captioned
from batchcap.catalog.sealing import PartRow
from batchcap.catalog.tables import Image

_COLUMNS = (
    *("content_hash", "width", "height", "format", "size_bytes", "taken_at"),
    *("camera", "latitude", "longitude"),
)


def insert_images(
    database: Database, connection: Connection, rows: Sequence[Captioned] | Sequence[PartRow]
) -> None:
    """Inserts the images that are not there yet.

    Of those that are, camera and place are filled in, once: an older batchcap did not read them, and a run
    may leave the place out. All else stays as it was first said.
    """
    statement = database.insert(Image)
    new = statement.excluded
    # Copies say the same, mostly.
    distinct = dict.fromkeys(tuple(getattr(row, name) for name in _COLUMNS) for row in rows)
    database.insert_rows(
        connection,
        statement.on_conflict_do_update(
            index_elements=[Image.content_hash],
            set_={
                "camera": func.coalesce(Image.camera, new.camera),
                "latitude": func.coalesce(Image.latitude, new.latitude),
                "longitude": func.coalesce(Image.longitude, new.longitude),
            },
            where=or_(
                and_(Image.camera.is_(None), new.camera.is_not(None)),
                and_(Image.latitude.is_(None), new.latitude.is_not(None)),
            ),
        ),
        [dict(zip(_COLUMNS, values, strict=True)) for values in distinct],
        key="content_hash",
    )
