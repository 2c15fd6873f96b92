"""Commands that hand captions to other programs, and take theirs: export, import."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

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
from batchcap.errors import ExchangeError, UsageError

# Names that are listed; all are counted.
_LISTED = 10


def export(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A table: NAME.csv, NAME.jsonl, NAME.parquet, or NAME.tsv for `train_model --captions`."
        ),
    ] = None,
    sidecars: Annotated[
        str | None,
        typer.Option(
            metavar="txt|xmp",
            help="Instead: a file beside each picture; txt is the caption alone, of xmp only the description "
            "is touched.",
        ),
    ] = None,
    human: Annotated[bool, typer.Option("--human", help="Only what people wrote.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also replace what batchcap did not write.")
    ] = False,
    since: SinceOption = None,
    taken_since: TakenSinceOption = None,
    taken_until: TakenUntilOption = None,
    model: ModelNameOption = None,
    min_confidence: MinConfidenceOption = None,
    under: UnderOption = None,
    width: WidthOption = None,
    image_format: ImageFormatOption = None,
    store: StoreOption = None,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write the captions that are shown to a table, or beside the pictures."""
    with errors(as_json, debug):
        from batchcap.catalog import Catalog
        from batchcap.exchange.exporting import Sidecar, export_sidecars, export_table

        if (file is None) == (sidecars is None):
            raise UsageError("give a FILE to write, or --sidecars txt or --sidecars xmp")
        if sidecars not in (None, *Sidecar):
            raise UsageError(f"--sidecars {sidecars}: there are txt and xmp")
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
        with Catalog.open(Place.of(store, catalog).catalog_url) as opened:
            if file is not None:
                count = export_table(opened, file, where, people_only=human, overwrite=overwrite)
                if as_json:
                    print_json({"file": str(file.absolute()), "rows": count})
                else:
                    print(f"{count:,} caption{'s' * (count != 1)} written to {file}")
                return
            report = export_sidecars(
                opened, Sidecar(sidecars or ""), where, people_only=human, overwrite=overwrite
            )
        found = asdict(report) | {"failed": [{"file": name, "what": what} for name, what in report.failed]}
        kept = [f"{name}: not written by batchcap; --overwrite replaces it" for name in report.kept]
        failed = [f"{name}: {what}" for name, what in report.failed]
        summary = f"{report.written:,} written, {report.unchanged:,} unchanged, {len(kept):,} kept"
        if report.not_local:
            summary += f", {report.not_local:,} pictures that are no files of their own on this machine"
        error = ExchangeError(f"{len(failed):,} could not be written") if failed else None
        _print(found, summary, [*kept, *failed], error, as_json)


def import_(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Tables (.csv, .tsv, .jsonl) with the columns uri or image, and caption; .xmp sidecars, or "
            "folders of these.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="The captions are this model's, and not a person's, who has the last word."),
    ] = None,
    under: Annotated[
        str | None, typer.Option(help="Where relative names start, if not in the folder of the table.")
    ] = None,
    store: StoreOption = None,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Take captions from tables and sidecars, of files that are indexed.

    What was exported and comes back unchanged is nothing new. The next `index` writes them to Parquet too.
    """
    with errors(as_json, debug):
        from batchcap.catalog import PEOPLE, one_caption
        from batchcap.exchange.importing import import_captions

        if model is not None and one_caption(model) == PEOPLE:
            raise UsageError(f"--model {model}: people are no model; leave it out")
        for path in files:
            if not path.exists():
                raise UsageError(f"{path} does not exist")
        with writable_catalog(Place.of(store, catalog)) as opened:
            report = import_captions(opened, files, model=model, below=under)
        found = asdict(report) | {
            "left_out": [{"where": where, "what": what} for where, what in report.left_out]
        }
        unknown = [f"{uri}: the catalog knows no such file" for uri in report.unknown]
        left_out = [f"{where}: {what}" for where, what in report.left_out]
        summary = (
            f"{report.written:,} imported, {report.unchanged:,} known, {len(unknown):,} of unknown files"
        )
        nothing = (unknown or left_out) and not report.written and not report.unchanged
        error = ExchangeError("no caption could be imported; see --under") if nothing else None
        _print(found, summary, [*unknown, *left_out], error, as_json)


def _print(
    found: dict[str, Any], summary: str, lines: list[str], error: ExchangeError | None, as_json: bool
) -> None:
    from batchcap.console import print_error

    if as_json:
        failure = {} if error is None else {"error": {"code": error.code, "message": str(error)}}
        print_json({**found, **failure})
    else:
        print(summary)
        for line in lines[:_LISTED]:
            print_error(line)
        if len(lines) > _LISTED:
            print_error(f"and {len(lines) - _LISTED:,} more; --json lists them")
    if error is not None:
        print_error(str(error))
        raise typer.Exit(error.exit_status)
