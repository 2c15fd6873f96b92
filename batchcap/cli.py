"""The command line: parses, makes one call, prints, sets the exit status.

Exit status: 0 done; 3 done, but some files are in quarantine; 1 failed; 2 wrong usage; 130 interrupted.
"""

import io
import json
import math
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from urllib.parse import quote

import platformdirs
import typer

from batchcap.errors import BatchcapError, CatalogVersionError, Reason, UsageError

if TYPE_CHECKING:
    import numpy as np

    from batchcap.captioner.bundle import Bundle
    from batchcap.captioner.protocol import Caption

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Captions every image in a collection and makes the captions searchable with SQL.",
)

_QUARANTINED = 3
_INTERRUPTED = 130

StoreOption = Annotated[
    str | None,
    typer.Option(
        envvar="BATCHCAP_STORE",
        help="Folder of catalog and Parquet files.  [default: in your data directory]",
    ),
]
CatalogOption = Annotated[
    str | None,
    typer.Option(
        envvar="BATCHCAP_CATALOG", help="URL of the catalog.  [default: sqlite, catalog.db in the store]"
    ),
]
ModelOption = Annotated[
    Path | None,
    typer.Option(envvar="BATCHCAP_MODEL", help="Folder of a model.  [default: the one that ships]"),
]
BeamsOption = Annotated[int | None, typer.Option(min=1, help="Beams; 1 is greedy.  [default: the model's]")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a command finds catalog and Parquet files."""

    store: Path
    catalog_url: str

    @classmethod
    def of(cls, store: str | None, catalog: str | None) -> "_Place":
        if store is not None and "://" in store:
            raise UsageError(f"--store {store}: only local folders are supported so far")
        folder = (
            Path(store or platformdirs.user_data_dir("batchcap", appauthor=False)).expanduser().absolute()
        )
        # A URL: any name must come out of it as it went in.
        return cls(folder, catalog or f"sqlite:///{quote(str(folder / 'catalog.db'))}")


@app.command()
def index(
    source: Annotated[list[str], typer.Argument(help="Folders, files and globs.")],
    store: StoreOption = None,
    catalog: CatalogOption = None,
    model: ModelOption = None,
    num_beams: BeamsOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that go through the model at once.")] = 32,
    decode_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that one file may take.")] = 60.0,
    retry: Annotated[
        list[Reason] | None, typer.Option(help="Try the quarantined files with this reason again.")
    ] = None,
    recaption: Annotated[bool, typer.Option(help="Also caption what another model captioned.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Caption what is new or changed in a collection; run it again any time."""
    with _errors(as_json, debug):
        from batchcap.catalog import Catalog
        from batchcap.collection import resolve_sources
        from batchcap.console import ProgressBar, print_error, summary
        from batchcap.pipeline import IndexOptions, index_collection

        place = _Place.of(store, catalog)
        resolve_sources(source)  # a wrong SOURCE is told before a store is made for it
        bundle = _open_bundle(model, num_beams)
        options = IndexOptions(
            batch_size=batch_size,
            decode_timeout_s=decode_timeout,
            retry=tuple(retry or ()),
            recaption=recaption,
        )
        with Catalog.open(place.catalog_url, mode="write") as opened, ProgressBar() as progress:
            report = index_collection(source, opened, place.store, bundle, options=options, progress=progress)
        if as_json:
            # Not asdict(): it makes other counts of a Counter.
            values = {field.name: getattr(report, field.name) for field in fields(report)}
            _print_json({**values, "images_per_s": report.images_per_s})
        else:
            print(summary(report))
        if report.quarantined:
            if not as_json:
                count = sum(report.quarantined.values())
                print_error(f"{count:,} {'file' if count == 1 else 'files'} could not be captioned")
            raise typer.Exit(_QUARANTINED)


@app.command()
def caption(
    image: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: ModelOption = None,
    num_beams: BeamsOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Caption a few images at once, without a store."""
    with _errors(as_json, debug):
        from batchcap.console import on_one_line, print_error
        from batchcap.loading import ImageLoader

        for path in image:
            if not path.is_file():
                raise UsageError(f"{path} is no file")
        bundle = _open_bundle(model, num_beams)
        with ImageLoader(bundle.image_spec) as loader:
            loaded = loader.load([str(path) for path in image])
        captions = iter(_caption_all(bundle, [file.image.pixels for file in loaded if file.image]))
        found = [
            (path, file, next(captions) if file.image else None)
            for path, file in zip(image, loaded, strict=True)
        ]
        if as_json:
            _print_json(
                {
                    "captions": [
                        {"image": str(path), **_caption_fields(text)}
                        if text
                        else {"image": str(path), "reason": file.reason, "detail": file.detail}
                        for path, file, text in found
                    ]
                }
            )
        else:
            for path, file, text in found:
                if text:
                    print(f"{on_one_line(path)}\t{on_one_line(text.text)}")
                else:
                    print_error(f"{path}: {file.reason}: {file.detail}")
        if any(text is None for _, _, text in found):
            raise typer.Exit(_QUARANTINED)


@app.command(context_settings={"ignore_unknown_options": True})  # -word is a part of the query
def search(
    query: Annotated[str, typer.Argument(help='Words; also "a phrase", begin*, -without.')],
    limit: Annotated[int, typer.Option(min=1, help="Hits to show.")] = 20,
    offset: Annotated[int, typer.Option(min=0, help="Hits to skip.")] = 0,
    store: StoreOption = None,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Find images by the words of their captions, best first."""
    with _errors(as_json, debug):
        from batchcap.catalog import Catalog
        from batchcap.console import print_hits

        with Catalog.open(_Place.of(store, catalog).catalog_url) as opened:
            result = opened.search(query, limit=limit, offset=offset)
        if as_json:
            _print_json(asdict(result))
        else:
            print_hits(result.hits)
            shown = f"{offset + 1}-{offset + len(result.hits)} of " if result.hits else ""
            print(f"{shown}{result.total:,} found", file=sys.stderr)


@app.command()
def sql(
    query: Annotated[str | None, typer.Argument(help="One SELECT statement.")] = None,
    file: Annotated[Path | None, typer.Option(help="Read the statement from a file.")] = None,
    named: Annotated[str | None, typer.Option(help="Run a query that comes with batchcap.")] = None,
    list_named: Annotated[bool, typer.Option("--list", help="List the queries that come with it.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows to show.  [default: all]")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that the query may take.")] = 60.0,
    store: StoreOption = None,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Ask the catalog in SQL; read-only. The view `captions` has a row for each image file."""
    with _errors(as_json, debug):
        from batchcap.catalog import Catalog, named_queries
        from batchcap.console import print_rows

        if sum(given is not None for given in (query, file, named)) + list_named != 1:
            raise UsageError("give one of QUERY, --file, --named and --list")
        if list_named:
            described = [(name, found.description) for name, found in named_queries().items()]
            if as_json:
                _print_json({"queries": [{"name": n, "description": d} for n, d in described]})
            else:
                print_rows(["name", "answers"], described)
            return
        statement = query if query is not None else _statement(file, named)
        with (
            Catalog.open(_Place.of(store, catalog).catalog_url) as opened,
            opened.query(statement, limit=limit, timeout_s=timeout) as result,
        ):
            if as_json:
                _print_json(
                    {"columns": result.columns, "rows": [list(map(_json_value, row)) for row in result.rows]}
                )
            else:
                print_rows(result.columns, result.rows)


@app.command()
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
    with _errors(as_json, debug):
        from batchcap.catalog import Catalog
        from batchcap.console import print_quarantine, print_status

        with Catalog.open(_Place.of(store, catalog).catalog_url) as opened:
            if quarantine or reason:
                files = opened.quarantine(reason, limit=limit)
                if as_json:
                    _print_json({"quarantine": [asdict(bad) for bad in files]})
                else:
                    print_quarantine(files)
                return
            found = opened.status()
        if as_json:
            _print_json(asdict(found))
        else:
            print_status(found)


@app.command()
def migrate(
    store: StoreOption = None,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Bring an older catalog up to date; a copy of it is put aside first."""
    with _errors(as_json, debug):
        from batchcap.catalog import Catalog

        url = _Place.of(store, catalog).catalog_url
        migrated = False
        # Reading first: writing would make a catalog where there is none.
        try:
            Catalog.open(url).close()
        except CatalogVersionError:
            Catalog.open(url, mode="write").close()
            migrated = True
        if as_json:
            _print_json({"migrated": migrated})
        else:
            print("the catalog is up to date now" if migrated else "the catalog was up to date")


def _open_bundle(model: Path | None, num_beams: int | None) -> "Bundle":
    from batchcap.captioner.bundle import DEFAULT_BUNDLE, Bundle

    bundle = Bundle.open(model or DEFAULT_BUNDLE)
    if num_beams is None:
        return bundle
    if num_beams > bundle.config.vocabulary_size:
        raise UsageError(f"--num-beams {num_beams} is more than the model has words")
    return replace(bundle, generation=replace(bundle.generation, num_beams=num_beams))


def _caption_all(bundle: "Bundle", pixels: "list[np.ndarray]") -> "list[Caption]":
    if not pixels:
        return []
    from batchcap.captioner.quiet import quiet_stderr

    with quiet_stderr():
        from batchcap.captioner.captioner import Captioner

        captioner = Captioner(bundle, batch_size=min(32, len(pixels)))
        return captioner.caption(pixels)


def _statement(file: Path | None, named: str | None) -> str:
    from batchcap.catalog import named_queries

    if file is not None:
        try:
            return file.read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"can't read {file}: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"{file} is no text in UTF-8") from error
    try:
        return named_queries()[named or ""].sql
    except KeyError:
        raise UsageError(f"no query named {named}; --list shows them") from None


def _caption_fields(found: "Caption") -> dict[str, Any]:
    values = asdict(found)
    return {"caption": values.pop("text"), **values}


def _print_json(values: dict[str, Any]) -> None:
    # ASCII only: a name that is not valid UTF-8 can be written so, and any stdout takes it.
    print(json.dumps(values, default=_json_value))


def _json_value(value: object) -> object:
    """What JSON has no word for: blobs in hexadecimal, times in ISO 8601, infinity by its name."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


@contextmanager
def _errors(as_json: bool, debug: bool) -> Iterator[None]:
    """Turns errors into one line and an exit status."""
    try:
        yield
    except (typer.Exit, BrokenPipeError):
        # Not errors: we have set the exit status; whoever reads our output has seen enough.
        raise
    except BaseException as error:
        if debug:
            traceback.print_exc()
        match error:
            case BatchcapError():
                _fail(str(error), error.code, error.exit_status, as_json)
            case KeyboardInterrupt():
                # A second one ends us at once, without a word, however busy we are with cleaning up.
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                message = "interrupted; what was committed stays, run again to go on"
                _fail(message, "interrupted", _INTERRUPTED, as_json)
            case Exception():
                message = f"unexpected {type(error).__name__}: {error}; --debug shows where"
                _fail(message, BatchcapError.code, BatchcapError.exit_status, as_json)
            case _:
                raise


def _fail(message: str, code: str, status: int, as_json: bool) -> NoReturn:
    from batchcap.console import print_error

    print_error(message)
    if as_json:
        _print_json({"error": {"code": code, "message": message}})
    raise typer.Exit(status)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    """The command `batchcap`."""
    signal.signal(signal.SIGTERM, _interrupt)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that this terminal's encoding lacks is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    app()
