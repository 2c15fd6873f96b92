"""The command line: parses, makes one call, prints, sets the exit status.

Exit status: 0 done; 3 done, but some files are in quarantine; 1 failed; 2 wrong usage; 130 interrupted.
"""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import platformdirs
import typer

from batchcap.errors import BatchcapError, Reason, UsageError

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
    Path | None,
    typer.Option(
        envvar="BATCHCAP_STORE", help="Folder of catalog and Parquet files.  [default: in your data directory]"
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
    def of(cls, store: Path | None, catalog: str | None) -> "_Place":
        if store is not None and "://" in str(store).replace(":/", "://", 1):
            raise UsageError(f"--store {store}: only local folders are supported so far")
        folder = (store or Path(platformdirs.user_data_dir("batchcap", appauthor=False))).absolute()
        return cls(folder, catalog or f"sqlite:///{folder / 'catalog.db'}")


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

        signal.signal(signal.SIGTERM, _interrupt)
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
            _print_json({**asdict(report), "images_per_s": report.images_per_s})
        else:
            print(summary(report))
        if report.quarantined:
            if not as_json:
                print_error(f"{sum(report.quarantined.values())} files could not be captioned")
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
        from batchcap.captioner.images import DecodedImage
        from batchcap.console import print_error
        from batchcap.loading import ImageLoader

        for path in image:
            if not path.is_file():
                raise UsageError(f"{path} is no file")
        bundle = _open_bundle(model, num_beams)
        with ImageLoader(bundle.image_spec) as loader:
            loaded = loader.load([str(path) for path in image])
        decoded: list[DecodedImage] = [file.image for file in loaded if file.image is not None]
        captions = iter(())
        if decoded:
            from batchcap.captioner.captioner import Captioner

            captioner = Captioner(bundle, batch_size=min(32, len(decoded)))
            captions = iter(captioner.caption([file.pixels for file in decoded]))
        results: list[dict[str, Any]] = []
        for path, file in zip(image, loaded, strict=True):
            if file.image is not None:
                results.append({"image": str(path), **_caption_fields(next(captions))})
            else:
                results.append({"image": str(path), "reason": file.reason, "detail": file.detail})
        if as_json:
            _print_json({"captions": results})
        else:
            for result in results:
                if "caption" in result:
                    print(f"{result['image']}\t{result['caption']}")
                else:
                    print_error(f"{result['image']}: {result['reason']}: {result['detail']}")
        if len(decoded) < len(image):
            raise typer.Exit(_QUARANTINED)


@app.command()
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
        statement = query or _statement(file, named)
        with (
            Catalog.open(_Place.of(store, catalog).catalog_url) as opened,
            opened.query(statement, limit=limit, timeout_s=timeout) as result,
        ):
            if as_json:
                _print_json({"columns": result.columns, "rows": list(result.rows)})
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
def migrate(store: StoreOption = None, catalog: CatalogOption = None, debug: DebugOption = False) -> None:
    """Bring an older catalog up to date; a copy of it is put aside first."""
    with _errors(False, debug):
        from batchcap.catalog import Catalog

        with Catalog.open(_Place.of(store, catalog).catalog_url, mode="write"):
            print("the catalog is up to date")


def _open_bundle(model: Path | None, num_beams: int | None) -> Any:
    from dataclasses import replace

    from batchcap.captioner.bundle import DEFAULT_BUNDLE, Bundle

    bundle = Bundle.open(model or DEFAULT_BUNDLE)
    if num_beams is not None:
        bundle = replace(bundle, generation=replace(bundle.generation, num_beams=num_beams))
    return bundle


def _statement(file: Path | None, named: str | None) -> str:
    from batchcap.catalog import named_queries

    if file is not None:
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UsageError(f"can't read {file}: {error}") from error
    try:
        return named_queries()[named or ""].sql
    except KeyError:
        raise UsageError(f"no query named {named}; --list shows them") from None


def _caption_fields(found: Any) -> dict[str, Any]:
    fields = asdict(found)
    return {"caption": fields.pop("text"), **fields}


def _print_json(values: dict[str, Any]) -> None:
    print(json.dumps(values, default=str, ensure_ascii=False))


@contextmanager
def _errors(as_json: bool, debug: bool) -> Iterator[None]:
    """Turns errors into one line and an exit status."""
    try:
        yield
    except BatchcapError as error:
        if debug:
            raise
        _fail(str(error), error.code, error.exit_status, as_json)
    except KeyboardInterrupt:
        if debug:
            raise
        _fail("interrupted; what was committed stays, run again to go on", "interrupted", _INTERRUPTED, as_json)


def _fail(message: str, code: str, status: int, as_json: bool) -> NoReturn:
    print(f"batchcap: {message}", file=sys.stderr)
    if as_json:
        _print_json({"error": {"code": code, "message": message}})
    raise typer.Exit(status)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    """The command `batchcap`."""
    app()
