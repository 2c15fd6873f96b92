"""The command line: parses, makes one call, prints, sets the exit status.

Exit status: 0 done; 3 done, but some files are in quarantine; 1 failed; 2 wrong usage; 130 interrupted.
Each command is a function of one of the modules here, which are grouped by what they are for.
"""

import io
import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from batchcap.cli.asking import search, sql
from batchcap.cli.editing import edit
from batchcap.cli.exchanging import export, import_
from batchcap.cli.indexing import caption, index
from batchcap.cli.serving import serve
from batchcap.cli.submitting import submit
from batchcap.cli.upkeep import forget, migrate, status, verify

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Captions every image in a collection and makes the captions searchable with SQL.",
)
app.command()(index)
app.command()(caption)
app.command(context_settings={"ignore_unknown_options": True})(search)  # -word is a part of the query
app.command()(sql)
app.command()(edit)
app.command()(export)
app.command("import")(import_)
app.command()(status)
app.command()(verify)
app.command()(forget)
app.command()(migrate)
app.command()(serve)
app.command(context_settings={"ignore_unknown_options": True})(submit)  # those of index


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    """The command `batchcap`."""
    signal.signal(signal.SIGTERM, _interrupt)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that this terminal's encoding lacks is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    app()
