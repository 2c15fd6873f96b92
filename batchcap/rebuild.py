"""`rebuild_catalog`: the catalog again from its Parquet parts, where its database is lost or damaged.

The new catalog has every row of every part, and the identity that the store's stamp names; it appears only
when it was compared with the parts. What it can't have, `catalog.restoring` lists. Files whose
caption is restored are not captioned again: the next run reads each once, to see that it is still the same.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import pyarrow.compute as pc

from batchcap.catalog import Catalog, PartRow
from batchcap.errors import PartDamagedError, StoreError
from batchcap.parts import Store, damaged_path, open_store, part_paths, read_part, sha256_of, stamped_owner
from batchcap.verify import compare_part


@dataclass(slots=True)
class RebuildReport:
    """What was made.

    Args:
        parts: from which the catalog was made.
        rows: that they hold.
        aside: where that is now which had the catalog's place; None if nothing had.
        damaged: where the damaged parts are now that were left out.
    """

    parts: int = 0
    rows: int = 0
    aside: Path | None = None
    damaged: list[Path] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Part:
    """A part that can be read to its end; `latest` is when the last of its captions was made."""

    path: Path
    latest: datetime


def rebuild_catalog(
    url: str,
    store: Path,
    *,
    force: bool = False,
    skip_damaged: bool = False,
    progress: Callable[[int], None] | None = None,
) -> RebuildReport:
    """Makes a catalog again from the parts of its store.

    Args:
        url: of the catalog.
        store: the folder of the Parquet parts.
        force: whether also a catalog is replaced that is neither damaged nor empty. It is put aside in any
            case, and has results that were not yet in Parquet.
        skip_damaged: whether damaged parts are left out, and moved into the store's folder `damaged`; their
            files will be captioned again.
        progress: is told of each number of rows that were restored.

    Returns:
        What was made.

    Raises:
        CatalogBusyError: a run has the catalog.
        CatalogError: there is a catalog that needs no rebuilding, or the new one can't be written.
        StoreError: there are no parts, or some are damaged or contradict each other. Nothing has changed.
    """
    report = RebuildReport()
    # Without a stamp nobody knows the old identity; the store gets the new one's.
    identity = stamped_owner(store) or str(uuid4())
    opened = Store(store, identity)
    if not part_paths(opened):
        raise StoreError(f"there is no Parquet file in {opened.captions} to make a catalog from; see --store")
    with Catalog.rebuild(url, identity, force=force) as rebuild:
        # Under the lock: no run adds to the parts now.
        good, damaged = _inspect(opened)
        if damaged and not (skip_damaged and good):
            names = ", ".join([path.name for path in damaged[:3]] + ["…"] * (len(damaged) > 3))
            raise StoreError(
                f"{len(damaged)} of {len(good) + len(damaged)} Parquet files are damaged: {names}; put "
                "copies of them back, or add --skip-damaged: what they hold will be captioned again"
            )
        for part in _in_order(good):
            path = part.path
            rows = rebuild.add_part(path.name, sha256_of(path), _rows_of(path, progress))
            _, difference = compare_part(path, rebuild.part_rows(path.name))
            if difference is not None:
                raise StoreError(
                    f"{path} contradicts another Parquet file: {difference}; move one of them away"
                )
            report.parts += 1
            report.rows += rows
    report.aside = rebuild.aside
    open_store(store, identity)
    report.damaged = [_move_away(opened, path) for path in damaged]
    return report


def _inspect(store: Store) -> tuple[list[_Part], list[Path]]:
    """Reads all parts: those that are good, and those that are damaged."""
    good, damaged = [], []
    for path in part_paths(store):
        latest: datetime | None = None
        try:
            for table in read_part(path):
                newest = pc.max(table["captioned_at"]).as_py()
                latest = newest if latest is None else max(latest, newest)
        except PartDamagedError:
            damaged.append(path)
            continue
        if latest is None:
            raise StoreError(f"{path} holds no rows; move it away")
        good.append(_Part(path, latest))
    return good, damaged


def _in_order(good: list[_Part]) -> list[_Part]:
    """Parts in the order in which they were written, as far as they tell.

    A run numbers its parts; of two runs that one was later which made the later captions.
    """
    latest_of_run: dict[str, datetime] = {}
    for part in good:
        run = _run_of(part)
        latest_of_run[run] = max(part.latest, latest_of_run.get(run, part.latest))
    return sorted(good, key=lambda part: (latest_of_run[_run_of(part)], part.path.name))


def _run_of(part: _Part) -> str:
    return part.path.name.rpartition("-")[0]


def _rows_of(path: Path, progress: Callable[[int], None] | None) -> Iterator[list[PartRow]]:
    for table in read_part(path):
        columns = (column.to_pylist() for column in table.columns)
        yield [PartRow._make(values) for values in zip(*columns, strict=True)]
        if progress is not None:
            progress(table.num_rows)


def _move_away(store: Store, path: Path) -> Path:
    target = damaged_path(store, path)
    try:
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    except OSError as error:
        raise StoreError(f"can't move {path} to {target}: {error.strerror}; move it by hand") from error
    return target
