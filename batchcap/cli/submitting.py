"""The command that hands a run to a Ray cluster: submit."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from urllib.parse import urlsplit

import typer

from batchcap.cli.clusters import is_sqlite
from batchcap.cli.common import (
    INTERRUPTED,
    CatalogOption,
    DebugOption,
    JsonOption,
    StoreOption,
    errors,
    print_json,
)
from batchcap.cli.indexing import index
from batchcap.errors import UsageError

if TYPE_CHECKING:
    from batchcap.submit import Jobs


def submit(
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE... [OPTIONS of index]",
            help="As the cluster's nodes name them: absolute paths; also --list and --model.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="Of the cluster's head: http://HOST:8265."),
    ] = None,
    store: StoreOption = None,
    catalog: CatalogOption = None,
    wait: Annotated[bool, typer.Option(help="Show the job's log until it ends.")] = True,
    follow: Annotated[str | None, typer.Option(metavar="JOB", help="Show the log of a job, again.")] = None,
    status: Annotated[str | None, typer.Option(metavar="JOB", help="Say how far a job is.")] = None,
    stop: Annotated[str | None, typer.Option(metavar="JOB", help="End a job.")] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run index on a Ray cluster, as a job there, and show its log.

    The options of index are handed on. Ctrl-C ends the showing, not the job. Submitted again, the same goes
    on where a job ended.
    """
    with errors(as_json, debug):
        arguments = source or []
        if (not arguments) + sum(job is None for job in (follow, status, stop)) != 3:
            raise UsageError("give SOURCEs, or one of --follow, --status and --stop with a job's name")
        if address is None:
            raise UsageError("give --address http://HOST:8265, where the cluster's head takes jobs")
        if arguments:
            arguments = _arguments_of_job(arguments, store, catalog)
        from batchcap.submit import Jobs

        jobs = Jobs(address)
        if status is not None or stop is not None:
            state = jobs.state(status) if status is not None else jobs.stop(stop or "")
            if as_json:
                print_json(asdict(state))
            else:
                print(f"{state.job_id} {state.status.lower()}: {state.message}")
            return
        if follow is not None:
            _show(jobs, follow, as_json)
        job_id = jobs.submit(arguments)
        if wait:
            _show(jobs, job_id, as_json, is_new=True)
        if as_json:
            print_json(asdict(jobs.state(job_id)))
        else:
            print(job_id)


def _show(jobs: "Jobs", job_id: str, as_json: bool, *, is_new: bool = False) -> NoReturn:
    """Shows a job's log, and ends with its exit status."""
    # On stdout there is nothing but JSON, if that is asked for.
    log = sys.stderr if as_json else sys.stdout
    try:
        if is_new:
            _say(f"job {job_id} is submitted to {jobs.address}")
        state = jobs.follow(job_id, lambda text: print(text, end="", file=log, flush=True))
    except KeyboardInterrupt:
        again = f"batchcap submit --address {jobs.address}"
        _say(f"job {job_id} goes on; `{again} --follow {job_id}` shows it, `--stop {job_id}` ends it")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json(asdict(state))
    if state.status != "SUCCEEDED":
        _say(f"job {job_id} {state.status.lower()}: {state.message}")
    raise typer.Exit(state.exit_status_to_show)


def _arguments_of_job(arguments: list[str], store: str | None, catalog: str | None) -> list[str]:
    """Checks here what would fail there, and adds where catalog and store are.

    Raises:
        UsageError: it would fail there.
    """
    if catalog is None or is_sqlite(catalog):
        raise UsageError(
            "a job needs --catalog postgresql+psycopg://USER@HOST/DATABASE: a catalog in SQLite would be "
            "gone with the cluster's head"
        )
    if store is None or not store.startswith("/"):
        raise UsageError("a job needs --store: an absolute path on storage that outlives the cluster")
    if urlsplit(catalog).password is not None:
        _say("Ray's dashboard will show the catalog's password; a .pgpass file on the head hides it")
    given = [*arguments, "--store", store, "--catalog", catalog]
    parsed = _parse_index(given)
    model = parsed["model"]
    # Else the job would take the model that ships: it does not see this environment.
    if model is not None and not any(each.partition("=")[0] == "--model" for each in arguments):
        given += ["--model", model]
    models = [model] if model is not None and not model.startswith("hf:") else []
    for name in [*(parsed["source"] or ()), *(parsed["lists"] or ()), *models]:
        if not name.startswith("/") and "://" not in name:
            raise UsageError(f"{name} is relative to a folder of this machine: give the path that nodes know")
    for option in ("--report", "--log-json", "--output"):
        path = parsed[option.removeprefix("--").replace("-", "_")]
        if path is not None and not path.is_absolute():
            raise UsageError(
                f"{option} {path}: a job would write it into a folder that goes with it; give an absolute "
                "path on storage that outlives the cluster"
            )
    return given


def _parse_index(arguments: list[str]) -> dict[str, Any]:
    """What `index` would make of its arguments, by the names of its parameters.

    Raises:
        UsageError: they are wrong.
    """
    parser = typer.Typer(add_completion=False)
    parser.command()(index)
    try:
        with typer.main.get_command(parser).make_context("index", list(arguments)) as context:
            return dict(context.params)
    except Exception as error:
        # Of click, which typer has one of its own of, depending on its version.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        raise UsageError(message()) from error


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
