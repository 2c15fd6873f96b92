"""A new catalog in the place of a lost or damaged one.

It is made in a temporary file beside its place. Only when it is whole does it get its name, and what had
that name is put aside first: at every instant the old catalog, the new one or the parts alone are there to
go on from. On a server, it is made in one transaction, and only where nothing is in its place.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import select, update

from batchcap.catalog.connection import Database
from batchcap.catalog.migration import SCHEMA_VERSION, create, fill
from batchcap.catalog.restoring import Restoring
from batchcap.catalog.sealing import PartRow, part_rows
from batchcap.catalog.sqlite import SqliteDatabase
from batchcap.catalog.sqlite_file import os_error, timestamp
from batchcap.catalog.tables import CatalogInfo, Run
from batchcap.errors import CatalogDamagedError, CatalogError
from batchcap.publishing import PREFIX, publish, sync_folder, temporary

# SQLite's own files beside a database: its log, and an index of that, which is made anew at need.
_LOG, _LOG_INDEX = "-wal", "-shm"


class Rebuild:
    """A catalog that is made again from its parts; a context manager, made by `Catalog.rebuild`.

    Entering takes the lock and begins an empty catalog. Leaving gives it its name; if by an error, nothing
    has changed.

    Attributes:
        path: of the catalog.
        aside: where that is now which had its place; None if there was nothing, or it is still there.
    """

    def __init__(self, path: Path, catalog_uuid: str, *, force: bool) -> None:
        self.path = path
        self.aside: Path | None = None
        self._uuid = catalog_uuid
        self._force = force
        self._held = ExitStack()
        self._database = SqliteDatabase(temporary(path), writable=True)
        self._restoring = Restoring(self._database)

    def __enter__(self) -> Self:
        with self._held:
            place = SqliteDatabase(self.path, writable=True)
            place.prepare()
            self._held.enter_context(place.lock())
            if not self._force:
                _refuse_good(self.path)
            # We hold the lock, so nobody writes these any more.
            for leftover in self.path.parent.glob(f"{PREFIX}*-{self.path.name}*"):
                leftover.unlink(missing_ok=True)
            self._held.callback(self._remove_temporary)
            create(self._database, self._uuid)
            self._held = self._held.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._held:
            if error is None:
                self._restoring.finish()
                self._publish()

    def add_part(self, name: str, sha256: str, batches: Iterable[Sequence[PartRow]]) -> int:
        """Takes the rows of a part, all or none; parts come in the order in which they were written.

        Args:
            name: of the file.
            sha256: of the file.
            batches: its rows, in their order.

        Returns:
            How many they were.

        Raises:
            CatalogError: the rows contradict themselves or those of another part, or can't be written.
        """
        return self._restoring.add_part(name, sha256, batches)

    def part_rows(self, name: str) -> Iterator[list[PartRow]]:
        """The rows of a part as the new catalog has them; see `Catalog.part_rows`."""
        return part_rows(self._database, name)

    def _publish(self) -> None:
        """Gives the new catalog its name."""
        self._database.checkpoint()
        self._database.close()
        try:
            self._put_aside()
            if not publish(self._database.path, self.path):
                raise CatalogError(f"{self.path} was made by another program just now; run again")
        except OSError as error:
            raise CatalogError(os_error(error, self.path, "replace")) from error

    def _put_aside(self) -> None:
        """Gives what is in the catalog's place another name, its log included."""
        aside = self.path.with_name(f"{self.path.name}.replaced-{timestamp()}")
        log, log_index = (self.path.with_name(self.path.name + suffix) for suffix in (_LOG, _LOG_INDEX))
        # A database without its log would be taken for a good one, and SQLite would believe a log without
        # its database. So the log is copied, the database renamed, and then the log removed.
        if log.exists() and log.stat().st_size:
            copy = aside.with_name(aside.name + _LOG)
            shutil.copyfile(log, copy)
            with copy.open("rb+") as file:
                os.fsync(file.fileno())
        if self.path.exists():
            self.path.rename(aside)
            sync_folder(self.path.parent)
            self.aside = aside
        log.unlink(missing_ok=True)
        log_index.unlink(missing_ok=True)

    def _remove_temporary(self) -> None:
        self._database.close()
        written = self._database.path
        for suffix in ("", _LOG, _LOG_INDEX):
            written.with_name(written.name + suffix).unlink(missing_ok=True)


class ServerRebuild:
    """A catalog on a server that is made again from its parts; as `Rebuild`, in one transaction.

    Attributes:
        aside: None: nothing is put aside, for nothing but an empty catalog is replaced.
    """

    aside: Path | None = None

    def __init__(self, database: Database, catalog_uuid: str) -> None:
        self._database = database
        self._uuid = catalog_uuid
        self._held = ExitStack()

    def __enter__(self) -> Self:
        with self._held:
            self._held.callback(self._database.close)
            self._database.prepare()
            self._held.enter_context(self._database.lock())
            version = self._database.schema_version()
            connection = self._held.enter_context(self._database.write())
            if version is None:
                fill(connection, self._uuid)
            elif version == SCHEMA_VERSION and connection.scalar(select(Run.id).limit(1)) is None:
                connection.execute(update(CatalogInfo).values(uuid=self._uuid))
            else:
                raise CatalogError(
                    f"there is a catalog at {self._database.label}, and on a server none is put aside; make "
                    "an empty database, or an empty schema, and name that"
                )
            self._connection = connection
            self._restoring = Restoring(self._database, lambda: nullcontext(connection))
            self._held = self._held.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with ExitStack() as held:
            # Told of an error, be it of `finish`, it ends the transaction without a trace.
            held.push(self._held)
            if error is None:
                self._restoring.finish()
            else:
                raise error
        self._database.admit_readers()
        self._database.close()

    def add_part(self, name: str, sha256: str, batches: Iterable[Sequence[PartRow]]) -> int:
        """See `Rebuild.add_part`."""
        return self._restoring.add_part(name, sha256, batches)

    def part_rows(self, name: str) -> Iterator[list[PartRow]]:
        """See `Rebuild.part_rows`."""
        return part_rows(self._database, name, lambda: nullcontext(self._connection))


def _refuse_good(path: Path) -> None:
    """Refuses to put aside a catalog that is neither damaged nor empty.

    Raises:
        CatalogError: there is such a catalog, or something else that is not damaged.
    """
    database = SqliteDatabase(path, writable=False)
    try:
        version = database.schema_version()
        if version is None:
            return
        with database.read() as connection:
            if connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one() != "ok":
                return
            # As `index` makes one where the catalog is lost, before it sees that the store is another's.
            if version == SCHEMA_VERSION and connection.scalar(select(Run.id).limit(1)) is None:
                return
    except CatalogDamagedError:
        return
    finally:
        database.close()
    raise CatalogError(
        f"the catalog at {path} is not damaged; to make it again nevertheless, add --force: the old one is "
        "put aside then, with all that it has and Parquet has not"
    )
