"""Commands by which people say what a picture shows: edit."""

import sys
from collections import Counter
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
from batchcap.errors import CatalogError, UsageError

if TYPE_CHECKING:
    from batchcap.catalog import Catalog, EditOutcome

_HELP = "Enter keeps it; or write another; s skips, o opens the picture, q ends."


def edit(
    uri: Annotated[str | None, typer.Argument(help="The image file.")] = None,
    text: Annotated[str | None, typer.Argument(help="What it shows.")] = None,
    review: Annotated[
        bool, typer.Option("--review", help="Go through captions, the least certain first; in a terminal.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Captions to review at most.")] = 20,
    store: StoreOption = None,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Caption an image yourself; no model overrides that, and search finds it at once.

    What was said before is kept. The next `index` writes your captions to Parquet too.
    """
    with errors(as_json, debug):
        from batchcap.exchange.names import uri_of

        place = Place.of(store, catalog)
        if review:
            if uri is not None or text is not None:
                raise UsageError("--review chooses the images itself: give no URI and no TEXT with it")
            if not sys.stdin.isatty():
                raise UsageError("--review asks a person, in a terminal; to write one caption: edit URI TEXT")
            with writable_catalog(place) as opened:
                counts = _review(opened, limit)
            if as_json:
                print_json(dict(counts))
            else:
                print(
                    f"{counts['kept']:,} kept, {counts['written']:,} written, {counts['skipped']:,} skipped"
                )
            return
        if uri is None or text is None:
            raise UsageError('give URI and "TEXT", or --review')
        named = uri_of(uri)
        with writable_catalog(place) as opened:
            outcome = _write(opened, named, text)
        if as_json:
            print_json({"uri": named, "outcome": outcome.value})
        else:
            print("written" if outcome.value == "written" else "that was its caption already")


def _write(catalog: "Catalog", uri: str, text: str) -> "EditOutcome":
    from batchcap.catalog import EditOutcome

    (outcome,) = catalog.write_captions([(uri, text)])
    if outcome is EditOutcome.UNKNOWN:
        raise CatalogError(f"the catalog knows no file {uri}; index it first")
    if outcome is EditOutcome.VANISHED:
        raise CatalogError(f"{uri} is gone from its place; index that folder if it is back")
    return outcome


def _review(catalog: "Catalog", limit: int) -> Counter[str]:
    """Asks about one caption after the other; what is answered is written at once."""
    from batchcap.collection import uri_to_path
    from batchcap.console import on_one_line, print_error
    from batchcap.storage import is_local

    counts = Counter(kept=0, written=0, skipped=0)
    doubtful = catalog.least_certain(limit)
    if doubtful:
        print(_HELP, file=sys.stderr)
    for number, image in enumerate(doubtful, start=1):
        sure = "" if image.confidence is None else f" ({image.confidence:.0%} sure)"
        print(f"\n{number}/{len(doubtful)}  {on_one_line(image.uri)}", file=sys.stderr)
        print(f"  {on_one_line(image.caption)}{sure}", file=sys.stderr)
        while (answer := _ask()) is not None:
            if answer == "o":
                if is_local(image.uri):
                    typer.launch(uri_to_path(image.uri))
                else:
                    print_error(f"{on_one_line(image.uri)} is not on a disk of this machine")
                continue
            if answer == "s":
                counts["skipped"] += 1
                break
            try:
                _write(catalog, image.uri, answer or image.caption)
            except UsageError as error:
                print_error(str(error))
                continue
            counts["written" if answer else "kept"] += 1
            break
        else:
            break
    return counts


def _ask() -> str | None:
    """An answer; None at the end of them. Not `input`, whose prompt would go where JSON is expected."""
    print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return None if not line or line.strip() == "q" else line.strip()
