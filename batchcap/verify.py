"""`verify_store`: catalog and Parquet parts against each other, row by row. Nothing is written.

It may go on beside a run: a part must be there, and be right, once the catalog says that it is done; what
the catalog still has to write is counted. Of parts, catalog and scan only batches are held.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import pyarrow as pa

from batchcap.catalog import Catalog, Finding, FindingKind, PartInfo, PartRow
from batchcap.errors import StoreError, VerificationError
from batchcap.parts import (
    PART_SCHEMA,
    Store,
    all_files,
    as_far_as_known,
    as_table,
    read_part,
    sha256_of,
    stamped_owner,
)
from batchcap.publishing import PREFIX, leftovers

# Findings of one kind that are listed; all are counted.
_LISTED = 1_000


@dataclass(slots=True)
class Verification:
    """What was compared, and what disagrees.

    Args:
        parts: that the catalog calls done, all of which were compared.
        rows: equal in catalog and Parquet.
        pending_parts: that a run has still to write, or the next run has.
        unsealed_rows: results that are in no part yet.
        counts: findings by kind.
        findings: the first 1,000 of each kind, the gravest kinds first.
    """

    parts: int = 0
    rows: int = 0
    pending_parts: int = 0
    unsealed_rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        """Counts a finding, and keeps it unless there are very many of its kind."""
        self.counts[finding.kind.value] += 1
        if self.counts[finding.kind.value] <= _LISTED:
            self.findings.append(finding)

    def error(self) -> VerificationError | None:
        """What to tell people in one line; None if all agree."""
        if not self.findings:
            return None
        kinds = [kind for kind in FindingKind if self.counts[kind.value]]
        counts = ", ".join(f"{self.counts[kind.value]:,} {kind.value}" for kind in kinds)
        # What is grave may be the cause of the rest, so its advice comes first and alone.
        return VerificationError(f"catalog and Parquet files disagree: {counts}; {kinds[0].advice}")


def verify_store(
    catalog: Catalog, store: Path, *, progress: Callable[[int], None] | None = None
) -> Verification:
    """Compares a catalog with its store.

    Args:
        catalog: opened in any mode.
        store: the folder of the Parquet parts.
        progress: is told of each number of rows that were compared.

    Returns:
        What was found. Damage is a finding, not an error.

    Raises:
        CatalogError: the catalog can't be read.
    """
    found = Verification()
    for finding in catalog.check():
        found.add(finding)
    if found.counts[FindingKind.DATABASE.value]:
        return found
    opened = Store(store, catalog.uuid)
    for finding in _stray_files(catalog, opened):
        found.add(finding)
    for part in catalog.parts():
        _add_part(found, catalog, opened, part, progress or (lambda rows: None))
    found.unsealed_rows = catalog.unsealed_count()
    found.findings.sort(key=lambda finding: list(FindingKind).index(finding.kind))
    return found


def compare_part(
    path: Path, rows: Iterable[Sequence[PartRow]], progress: Callable[[int], None] = lambda rows: None
) -> tuple[int, str | None]:
    """Compares the rows of a part with those of a catalog.

    Args:
        path: of the part.
        rows: of the catalog, in batches.
        progress: is told of each number of rows that were compared.

    Returns:
        How many rows are equal before the first that differs, and in one line how that differs, or None.

    Raises:
        PartDamagedError: the part is damaged.
        StoreError: it can't be read, or is no part of batchcap's.
    """
    equal = 0
    in_file = _Rows(read_part(path))
    for batch in rows:
        found = in_file.take(len(batch))
        expected = as_table(batch)
        # Mostly they are equal as they are.
        if not (found.equals(expected) or found.equals(expected := as_far_as_known(expected, found))):
            before, difference = _first_difference(found, expected)
            return equal + before, f"row {equal + before + 1}: {difference}"
        equal += len(batch)
        progress(len(batch))
    surplus = in_file.take(1)
    if surplus.num_rows:
        return equal, f"row {equal + 1} ({surplus['uri'][0].as_py()}) is only in the file"
    return equal, None


def check_part(
    catalog: Catalog, store: Store, part: PartInfo, progress: Callable[[int], None] = lambda rows: None
) -> tuple[int, Finding | None]:
    """Compares a part that is done with what the catalog says of it.

    Returns:
        How many rows are equal, and what is wrong; None if nothing is.

    Raises:
        CatalogError: the catalog can't be read.
    """
    path = store.captions / part.name
    try:
        is_as_written = sha256_of(path) == part.sha256
        rows, difference = compare_part(path, catalog.part_rows(part.name), progress)
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            detail = f"{part.row_count:,} rows are in the catalog alone"
            return 0, Finding(FindingKind.PART_MISSING, str(path), detail)
        return 0, Finding(FindingKind.PART_DAMAGED, str(path), str(error))
    if difference is None and rows != part.row_count:
        difference = f"it has {rows:,} rows, the catalog's table `part` says {part.row_count:,}"
    if difference is not None:
        return rows, Finding(FindingKind.PART_ROWS, str(path), difference)
    if not is_as_written:
        return rows, Finding(FindingKind.PART_BYTES, str(path), "its sha256 is not the recorded one")
    return rows, None


def _add_part(
    found: Verification, catalog: Catalog, store: Store, part: PartInfo, progress: Callable[[int], None]
) -> None:
    """Compares a part and adds what was found; again if rows of it were forgotten meanwhile."""
    current: PartInfo | None = part
    while current is not None and current.sha256 is not None:
        rows, wrong = check_part(catalog, store, current, progress)
        if wrong is None:
            break
        compared = current
        current = next((known for known in catalog.parts() if known.name == part.name), None)
        if current == compared:
            break
    else:
        found.pending_parts += current is not None
        return
    found.parts += 1
    found.rows += rows
    if wrong is not None:
        found.add(wrong)


def _stray_files(catalog: Catalog, store: Store) -> Iterator[Finding]:
    """The stamp, and files that should not be there."""
    try:
        owner = stamped_owner(store.path)
    except StoreError as error:
        yield Finding(FindingKind.STAMP, str(store.stamp), str(error))
    else:
        if owner not in (None, catalog.uuid):
            detail = f"it belongs to the catalog {owner}, not to {catalog.uuid}"
            yield Finding(FindingKind.STAMP, str(store.stamp), detail)
    # The files first: a run names a part in the catalog before it writes it.
    files = all_files(store)
    known = {part.name for part in catalog.parts()}
    for path in files:
        if path.name not in known and not path.name.startswith(PREFIX):
            yield Finding(FindingKind.ORPHAN, str(path), "the catalog knows no such part")
    for folder in (store.path, store.captions):
        for path in leftovers(folder):
            yield Finding(FindingKind.LEFTOVER, str(path), "nobody writes it any more")


def _first_difference(found: pa.Table, expected: pa.Table) -> tuple[int, str]:
    """How many rows are equal at the start of two tables that differ, and how the next one differs."""
    for number, (one, other) in enumerate(zip_longest(found.to_pylist(), expected.to_pylist())):
        if one is None or other is None:
            row, place = (other, "catalog") if one is None else (one, "file")
            return number, f"{row['uri']} is only in the {place}"
        for name in PART_SCHEMA.names:
            if one[name] != other[name]:
                return number, f"{name} is {one[name]!r} in the file and {other[name]!r} in the catalog"
    raise AssertionError("the tables are equal")


class _Rows:
    """Takes as many rows as are asked for from batches of any size."""

    def __init__(self, batches: Iterator[pa.Table]) -> None:
        self._batches = batches
        self._left = PART_SCHEMA.empty_table()

    def take(self, rows: int) -> pa.Table:
        """The next rows; fewer at the end."""
        while self._left.num_rows < rows and (batch := next(self._batches, None)) is not None:
            self._left = pa.concat_tables([self._left, batch])
        taken = self._left.slice(0, rows)
        self._left = self._left.slice(rows)
        return taken
