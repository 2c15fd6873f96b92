"""Commands that read captions: search, sql."""

import os
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchcap.cli.common import (
    CatalogOption,
    DebugOption,
    JsonOption,
    Place,
    StoreOption,
    errors,
    json_value,
    print_json,
)
from batchcap.cli.selecting import (
    ImageFormatOption,
    MinConfidenceOption,
    ModelNameOption,
    SinceOption,
    TakenSinceOption,
    TakenUntilOption,
    UnderOption,
    WidthOption,
    caption_filter,
)
from batchcap.errors import UsageError

if TYPE_CHECKING:
    from batchcap.catalog import Catalog, Likeness, SearchResult


def search(
    query: Annotated[
        str,
        typer.Argument(
            help='Words; also "a phrase", begin*, -without, this OR that. Without any: by the options alone, '
            "newest first."
        ),
    ] = "",
    like: Annotated[
        str | None,
        typer.Option(
            help="Like this picture, a path or uri, most alike first; words and options choose among what."
        ),
    ] = None,
    since: SinceOption = None,
    taken_since: TakenSinceOption = None,
    taken_until: TakenUntilOption = None,
    model: ModelNameOption = None,
    min_confidence: MinConfidenceOption = None,
    under: UnderOption = None,
    width: WidthOption = None,
    image_format: ImageFormatOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Hits to show.")] = 20,
    offset: Annotated[int | None, typer.Option(min=0, help="Hits to skip.")] = None,
    page: Annotated[int | None, typer.Option(min=1, help="The so many-th --limit hits.")] = None,
    show: Annotated[
        bool, typer.Option("--open", help="Open the pictures found as a page in the browser.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Write that page to this file, not contact.html; opens it with --open only."),
    ] = None,
    store: StoreOption = None,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Find images by the words of their captions, or by their likeness to a picture, best first."""
    with errors(as_json, debug, writes=False):
        from batchcap.catalog import CaptionFilter, Catalog
        from batchcap.console import print_hits

        if offset is not None and page is not None:
            raise UsageError("give one of --offset and --page")
        where = caption_filter(
            since=since,
            taken_since=taken_since,
            taken_until=taken_until,
            model=model,
            min_confidence=min_confidence,
            under=under,
            width=width,
            image_format=image_format,
        )
        if like is None and not query.strip() and where == CaptionFilter():
            raise UsageError("give words to search for, or an option that says which captions are meant")
        skipped = (offset or 0) if page is None else (page - 1) * limit
        with Catalog.open(Place.of(store, catalog).catalog_url) as opened:
            if like is None:
                result = opened.search(query, limit=limit, offset=skipped, where=where)
            else:
                likeness = _likeness(opened, like)
                result = opened.search_like(likeness, query, limit=limit, offset=skipped, where=where)
        sheet = (output or Path("contact.html")) if show or output is not None else None
        if sheet is not None:
            title = query or "newest first" if like is None else f"like {like} {query}".strip()
            _write_sheet(sheet.absolute(), title, result, show)
        if as_json:
            written = {} if sheet is None else {"contact_sheet": str(sheet.absolute())}
            print_json({**asdict(result), **written})
        else:
            if sheet is None:
                print_hits(result.hits)
            else:
                print(sheet)
            shown = f"{skipped + 1:,}-{skipped + len(result.hits):,} of " if result.hits else ""
            print(f"{shown}{result.total:,} found", file=sys.stderr)


def _likeness(catalog: "Catalog", name: str) -> "Likeness":
    from batchcap.captioner.sources import open_source
    from batchcap.exchange.names import uri_of
    from batchcap.likeness import likeness_to

    # Not `--model`: that says here whose captions are meant.
    return likeness_to(catalog, uri_of(name), lambda: open_source(os.environ.get("BATCHCAP_MODEL") or None))


def _write_sheet(path: Path, title: str, result: "SearchResult", show: bool) -> None:
    from batchcap.contact_sheet import write_contact_sheet

    write_contact_sheet(path, title, result.hits, result.total)
    if show:
        import webbrowser

        if not webbrowser.open(path.as_uri()):
            raise UsageError(f"there is no browser to open {path} with; open it yourself")


def sql(
    query: Annotated[str | None, typer.Argument(help="One SELECT statement.")] = None,
    file: Annotated[Path | None, typer.Option(help="Read the statement from a file.")] = None,
    named: Annotated[str | None, typer.Option(help="Run a query that comes with batchcap.")] = None,
    list_named: Annotated[bool, typer.Option("--list", help="List the queries that come with it.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows to show.", show_default="all")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that the query may take.")] = 60.0,
    store: StoreOption = None,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Ask the catalog in SQL; read-only. The view `captions` has a row for each image file."""
    with errors(as_json, debug, writes=False):
        from batchcap.catalog import Catalog, named_queries
        from batchcap.console import print_rows

        if sum(given is not None for given in (query, file, named)) + list_named != 1:
            raise UsageError("give one of QUERY, --file, --named and --list")
        if list_named:
            described = [(name, found.description) for name, found in named_queries().items()]
            if as_json:
                print_json({"queries": [{"name": n, "description": d} for n, d in described]})
            else:
                print_rows(["name", "answers"], described)
            return
        if named is not None and named not in named_queries():
            raise UsageError(f"no query named {named}; --list shows them")
        statement = query if file is None else _read(file)
        with ExitStack() as opened:
            source = opened.enter_context(Catalog.open(Place.of(store, catalog).catalog_url))
            if named is not None:
                statement = source.named_queries()[named].sql
            result = opened.enter_context(source.query(statement or "", limit=limit, timeout_s=timeout))
            if as_json:
                print_json(
                    {"columns": result.columns, "rows": [list(map(json_value, row)) for row in result.rows]}
                )
            else:
                print_rows(result.columns, result.rows)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"can't read {file}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{file} is no text in UTF-8") from error
