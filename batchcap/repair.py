"""`repair_parts`: Parquet parts that are damaged or gone, written again from the catalog.

As with everything that gets into Parquet, the catalog comes first: from one transaction on the part is
pending, and the sha256 of the damaged file says what may be replaced. Then it is written beside it and takes
its place by one renaming, and the catalog is told. Killed in between, the next run, or the next repair, does
the rest.
"""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from batchcap.catalog import Catalog, FindingKind, PartInfo
from batchcap.errors import PartDamagedError, StoreError, VerificationError
from batchcap.parts import Store, damaged_path, open_store, read_part, seal_pending, sha256_of, stamped_owner
from batchcap.verify import Verification, check_part

_OF_PARTS = {FindingKind.PART_MISSING, FindingKind.PART_DAMAGED, FindingKind.PART_BYTES}
# What says nothing of the rows that the catalog gave its parts.
_HARMLESS = _OF_PARTS | {
    FindingKind.PART_ROWS,
    FindingKind.FULL_TEXT,
    FindingKind.ORPHAN,
    FindingKind.LEFTOVER,
}


@dataclass(slots=True)
class RepairReport:
    """What was written again.

    Args:
        parts: the names of the parts.
        aside: where the damaged files are now.
    """

    parts: list[str] = field(default_factory=list)
    aside: list[Path] = field(default_factory=list)


def repair_parts(catalog: Catalog, store: Path, found: Verification) -> RepairReport:
    """Writes parts again whose file is damaged, gone or not the one that was written.

    A file that holds other rows than the catalog gave it is left: which of the two is right nobody knows. So
    is one that another version of batchcap, or another program, has written in a way of its own.

    Args:
        catalog: opened to edit or to write.
        store: the folder of its Parquet parts.
        found: what `verify_store` has found of them.

    Raises:
        VerificationError: the catalog itself has faults, so that it can't vouch for its rows.
        CatalogBusyError: a run holds the catalog.
        StoreError: the store is not this catalog's, or can't be written.
    """
    _refuse_faults(found)
    report = RepairReport()
    names = {Path(finding.subject).name for finding in found.findings if finding.kind in _OF_PARTS}
    with catalog.lock():
        if stamped_owner(store) is None:
            raise StoreError(f"the Parquet files of this catalog are not in {store}; see --store")
        opened = open_store(store, catalog.uuid)
        seal_pending(catalog, opened)
        for part in catalog.parts():
            if part.name in names and _can_be_repaired(catalog, opened, part):
                path = opened.captions / part.name
                report.aside += _keep(opened, path)
                catalog.reopen_part(part.name, sha256_of(path) if path.exists() else None)
                seal_pending(catalog, opened)
                report.parts.append(part.name)
    return report


def _refuse_faults(found: Verification) -> None:
    # Each once, in the order in which they were found.
    faults = dict.fromkeys(finding.kind for finding in found.findings if finding.kind not in _HARMLESS)
    if faults:
        counts = ", ".join(f"{found.counts[kind.value]:,} {kind.value}" for kind in faults)
        advice = min(faults, key=list(FindingKind).index).advice
        raise VerificationError(f"nothing was written again, for the catalog has faults: {counts}; {advice}")


def _can_be_repaired(catalog: Catalog, store: Store, part: PartInfo) -> bool:
    """Whether the file is wrong still, now that nobody else writes, and the catalog has all of its rows."""
    _, finding = check_part(catalog, store, part)
    if finding is None or finding.kind not in _OF_PARTS:
        return False
    if finding.kind is FindingKind.PART_DAMAGED and not _is_damaged(store.captions / part.name):
        return False
    return sum(map(len, catalog.part_rows(part.name))) == part.row_count


def _is_damaged(path: Path) -> bool:
    """Whether a file that can't be read is damaged, and not of another version, or out of reach."""
    try:
        for _ in read_part(path):
            pass
    except PartDamagedError:
        return True
    except StoreError:
        return False
    return False


def _keep(store: Store, path: Path) -> list[Path]:
    """Gives a damaged file, if there is one, a second name where nobody reads it for a part."""
    if not path.exists():
        return []
    target = damaged_path(store, path)
    try:
        target.parent.mkdir(exist_ok=True)
        try:
            os.link(path, target)
        except OSError:
            # Some file systems have no hard links.
            shutil.copyfile(path, target)
    except OSError as error:
        raise StoreError(f"can't keep {path} as {target}: {error.strerror}; move it away by hand") from error
    return [target]
