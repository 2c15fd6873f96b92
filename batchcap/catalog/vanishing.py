"""Marking files as vanished: they leave the view `captions` and the quarantine, and nothing is deleted."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice
from typing import NamedTuple

from sqlalchemy import Connection, delete, exists, func, select, update
from sqlalchemy.orm import aliased

from batchcap.catalog.tables import Location, Quarantine

# Uris in one IN (...): below every database's limit of parameters.
_CHUNK = 1000


class Vanished(NamedTuple):
    """Files that are no longer there.

    Args:
        moved: locations that were marked, and whose content is at another location.
        lost: locations that were marked, and whose content is nowhere else.
        quarantined: files that left the quarantine.
    """

    moved: int
    lost: int
    quarantined: int


def mark_vanished(connection: Connection, uris: Iterable[str], now: datetime) -> Vanished:
    """Marks locations as vanished and takes files out of the quarantine.

    Args:
        connection: in a write transaction.
        uris: of the files; read twice.
        now: when they were found to be missing.
    """
    marked = quarantined = 0
    for chunk in _chunks(uris):
        marked += connection.execute(
            update(Location)
            .where(Location.uri.in_(chunk), Location.vanished_at.is_(None))
            .values(vanished_at=now)
        ).rowcount
        quarantined += connection.execute(delete(Quarantine).where(Quarantine.uri.in_(chunk))).rowcount
    # Only now: of two copies that vanished together, neither is the other's survivor.
    elsewhere = aliased(Location)
    survives = exists().where(
        elsewhere.content_hash == Location.content_hash, elsewhere.vanished_at.is_(None)
    )
    lost = sum(
        connection.scalars(
            select(func.count()).where(Location.uri.in_(chunk), Location.vanished_at == now, ~survives)
        ).one()
        for chunk in _chunks(uris)
    )
    return Vanished(marked - lost, lost, quarantined)


def _chunks(uris: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(uris)
    while chunk := list(islice(remaining, _CHUNK)):
        yield chunk
