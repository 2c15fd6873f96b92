"""What every command needs: its options, where catalog and store are, errors in one line, JSON."""

import json
import math
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from urllib.parse import quote

import platformdirs
import typer

from batchcap.errors import BatchcapError, UsageError

if TYPE_CHECKING:
    from batchcap.catalog import Catalog

# Exit statuses that no error has.
QUARANTINED = 3
INTERRUPTED = 130

StoreOption = Annotated[
    str | None,
    typer.Option(
        envvar="BATCHCAP_STORE",
        help="Folder of catalog and Parquet files.",
        show_default="in your data directory",
    ),
]
CatalogOption = Annotated[
    str | None,
    typer.Option(
        envvar="BATCHCAP_CATALOG",
        help="URL of the catalog: sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE.",
        show_default="sqlite, catalog.db in the store",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        envvar="BATCHCAP_MODEL",
        help="Folder of a model, or hf:NAME or hf:FOLDER for one of transformers.",
        show_default="the one that ships",
    ),
]
BeamsOption = Annotated[
    int | None, typer.Option(min=1, help="Beams; 1 is greedy.", show_default="the model's")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command finds catalog and Parquet files."""

    store: Path
    catalog_url: str

    @classmethod
    def of(cls, store: str | None, catalog: str | None) -> "Place":
        if store is not None and "://" in store:
            raise UsageError(f"--store {store}: only local folders are supported so far")
        folder = (
            Path(store or platformdirs.user_data_dir("batchcap", appauthor=False)).expanduser().absolute()
        )
        # A URL: any name must come out of it as it went in.
        return cls(folder, catalog or f"sqlite:///{quote(str(folder / 'catalog.db'))}")


@contextmanager
def writable_catalog(place: Place) -> "Iterator[Catalog]":
    """A catalog that is there, to write to it; an older one is not migrated for that."""
    from batchcap.catalog import Catalog

    with Catalog.open(place.catalog_url, mode="edit") as opened:
        yield opened


def print_json(values: dict[str, Any]) -> None:
    # ASCII only: a name that is not valid UTF-8 can be written so, and any stdout takes it.
    print(json.dumps(values, default=json_value))


def json_value(value: object) -> object:
    """What JSON has no word for: blobs in hexadecimal, times in ISO 8601, and so on."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, date | time):
        return value.isoformat()
    # PostgreSQL counts and sums in these.
    if isinstance(value, Decimal):
        value = int(value) if value.is_finite() and value == int(value) else float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | dict | float | int | list | str):
        return value
    return str(value)


@contextmanager
def errors(as_json: bool, debug: bool, *, writes: bool = True) -> Iterator[None]:
    """Turns errors into one line and an exit status.

    Args:
        as_json: whether the error is also an object on stdout.
        debug: whether the traceback is shown.
        writes: whether there may be something that stays if it is interrupted.
    """
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
                stays = "what was committed stays, run again to go on" if writes else "nothing was written"
                _fail(f"interrupted; {stays}", "interrupted", INTERRUPTED, as_json)
            case Exception():
                message = f"unexpected {type(error).__name__}: {error}; --debug shows where"
                _fail(message, BatchcapError.code, BatchcapError.exit_status, as_json)
            case _:
                raise


def _fail(message: str, code: str, status: int, as_json: bool) -> NoReturn:
    from batchcap.console import print_error

    print_error(message)
    if as_json:
        print_json({"error": {"code": code, "message": message}})
    raise typer.Exit(status)
