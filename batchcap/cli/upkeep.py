"""Commands that look after catalog and store: status, verify, forget, migrate."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from batchcap.cli.common import (
    CatalogOption,
    DebugOption,
    JsonOption,
    Place,
    StoreOption,
    errors,
    print_json,
    writable_catalog,
)
from batchcap.errors import CatalogVersionError, Reason, UsageError

if TYPE_CHECKING:
    from batchcap.repair import RepairReport
    from batchcap.verify import Verification


def status(
    quarantine: Annotated[bool, typer.Option("--quarantine", help="List the bad files.")] = False,
    reason: Annotated[Reason | None, typer.Option(help="Of these, only those with this reason.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Bad files to list.")] = 100,
    store: StoreOption = None,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what the catalog holds."""
    with errors(as_json, debug, writes=False):
        from batchcap.catalog import Catalog
        from batchcap.console import print_quarantine, print_status

        with Catalog.open(Place.of(store, catalog).catalog_url) as opened:
            if quarantine or reason:
                files = opened.quarantine(reason, limit=limit)
                if as_json:
                    print_json({"quarantine": [asdict(bad) for bad in files]})
                else:
                    print_quarantine(files)
                return
            found = opened.status()
        if as_json:
            print_json(asdict(found))
        else:
            print_status(found)


def verify(
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Make the catalog again from the Parquet files; the old one is kept."),
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Write damaged and lost Parquet files again from the catalog, which has their rows; damaged "
            "ones are kept in the store's folder `damaged`.",
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --rebuild: even if the catalog is not damaged.")
    ] = False,
    skip_damaged: Annotated[
        bool,
        typer.Option(
            "--skip-damaged",
            help="With --rebuild: leave out damaged Parquet files; what they hold is captioned again.",
        ),
    ] = False,
    store: StoreOption = None,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare catalog and Parquet files, row by row; changes nothing without --rebuild or --repair."""
    with errors(as_json, debug, writes=rebuild or repair):
        place = Place.of(store, catalog)
        if rebuild and repair:
            raise UsageError("give one of --rebuild and --repair")
        if rebuild:
            _rebuild(place, force, skip_damaged, as_json)
            return
        if force or skip_damaged:
            raise UsageError("--force and --skip-damaged go with --rebuild")
        from batchcap.catalog import Catalog
        from batchcap.console import counting_rows, print_error, print_repair, print_verification
        from batchcap.verify import verify_store

        with Catalog.open(place.catalog_url) as opened, counting_rows("comparing") as progress:
            found = verify_store(opened, place.store, progress=progress)
        repaired = _repair(place, found) if repair and found.findings else None
        if repaired is not None and repaired.parts:
            with Catalog.open(place.catalog_url) as opened, counting_rows("comparing") as progress:
                found = verify_store(opened, place.store, progress=progress)
        error = found.error()
        if not as_json:
            if repaired is not None:
                print_repair(repaired)
            print_verification(found)
            if error is not None:
                raise error
            return
        failure = {} if error is None else {"error": {"code": error.code, "message": str(error)}}
        repairs = {} if repaired is None else {"repaired": asdict(repaired)}
        print_json({**asdict(found), "counts": dict(found.counts), **repairs, **failure})
        if error is not None:
            print_error(str(error))
            raise typer.Exit(error.exit_status)


def _repair(place: Place, found: "Verification") -> "RepairReport":
    from batchcap.repair import repair_parts

    with writable_catalog(place) as opened:
        return repair_parts(opened, place.store, found)


def _rebuild(place: Place, force: bool, skip_damaged: bool, as_json: bool) -> None:
    from batchcap.console import counting_rows, print_rebuild
    from batchcap.rebuild import rebuild_catalog

    with counting_rows("restoring") as progress:
        report = rebuild_catalog(
            place.catalog_url, place.store, force=force, skip_damaged=skip_damaged, progress=progress
        )
    if as_json:
        print_json(asdict(report))
    else:
        print_rebuild(report)


def forget(
    uri: Annotated[str, typer.Argument(help="The image file.")],
    store: StoreOption = None,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Erase what catalog and Parquet files say of an image file; the file itself stays as it is.

    The next `index` of its folder captions it again, unless it is gone or excluded. Copies of the same
    picture keep their captions: forget each of them. Old catalogs that were put aside are not looked at.
    """
    with errors(as_json, debug):
        from batchcap.exchange.names import uri_of
        from batchcap.forgetting import forget_file

        place = Place.of(store, catalog)
        named = uri_of(uri)
        with writable_catalog(place) as opened:
            found = forget_file(opened, place.store, named)
        if as_json:
            print_json({"uri": named, **asdict(found)})
            return
        print(f"forgotten: captions: {found.captions:,}; Parquet files written anew: {found.parts:,}")
        if found.elsewhere:
            print(f"{found.elsewhere:,} other files have the same content, and keep their captions")


def migrate(
    store: StoreOption = None,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Bring an older catalog up to date; a copy of a file is put aside first."""
    with errors(as_json, debug):
        from batchcap.catalog import Catalog

        url = Place.of(store, catalog).catalog_url
        migrated = False
        # Reading first: writing would make a catalog where there is none.
        try:
            Catalog.open(url).close()
        except CatalogVersionError:
            migrated = True
        # Also where it was up to date: in PostgreSQL, rights may be missing that can be granted now.
        Catalog.open(url, mode="write").close()
        if as_json:
            print_json({"migrated": migrated})
        else:
            print("the catalog is up to date now" if migrated else "the catalog was up to date")
