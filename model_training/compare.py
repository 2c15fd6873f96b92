"""Training runs side by side: `python -m model_training.compare RUN… [--plot FILE.png] [--json]`.

Reads what the runs have left in their folders: training.json, history.csv and, where a bundle was written,
metrics.json. Nothing is computed again.
"""

import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from batchcap.captioner.bundle_files import METRICS, WEIGHTS, read_json
from batchcap.errors import BatchcapError, TrainingError
from model_training import plots
from model_training.tracking import HISTORY, TRAINING

# Wide enough for every column, where no terminal says how wide it is.
_WIDTH = 160


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run in a row; None is what it doesn't say.

    Args:
        run: its folder, as it was given.
        size_mb: of the weights on disk, in millions of bytes.
        parameters: of the network.
        embed_dim: width.
        heads: of encoder and decoder, as `5/5`.
        layers: of encoder and decoder.
        epochs: that were finished, in all stages.
        bleu_4: on dev, of the epoch with the best CIDEr-D, 0 to 1.
        cider_d: on dev, the best, times 100.
        accuracy: of the next token, on dev, at the same epoch.
        train_hours: spent in training steps.
    """

    run: str
    size_mb: float | None
    parameters: int | None
    embed_dim: int
    heads: str
    layers: str
    epochs: int
    bleu_4: float | None
    cider_d: float | None
    accuracy: float | None
    train_hours: float | None


def summarize(run: Path) -> RunSummary:
    """Reads one run.

    Raises:
        BundleError: one of its JSON files is missing or damaged; the message names it.
        TrainingError: so is its history, or there is no run.
    """
    if not run.is_dir():
        raise TrainingError(f"no run at {run}; give the --artifact_dir of a train_model")
    options = read_json(run / TRAINING)
    history = read_history(run / HISTORY)
    try:
        shape = options["captioner"]
        heads = f"{shape['enc_heads']}/{shape['dec_heads']}"
        layers = f"{shape['enc_layers']}/{shape['dec_layers']}"
        embed_dim = int(shape["embed_dim"])
        parameters = options.get("parameters")
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{run / TRAINING} is damaged: no {error} of the network") from error
    # A run that was killed in its first epochs has no bundle yet.
    metrics = read_json(run / METRICS) if (run / METRICS).exists() else {}
    scores = _best_scores(metrics, history, num_beams=options.get("num_beams"))
    seconds = [row["train_s"] for row in history if isinstance(row.get("train_s"), float)]
    weights = run / WEIGHTS
    return RunSummary(
        run=str(run),
        size_mb=weights.stat().st_size / 1e6 if weights.is_file() else None,
        parameters=parameters if isinstance(parameters, int) else None,
        embed_dim=embed_dim,
        heads=heads,
        layers=layers,
        epochs=len(history),
        bleu_4=_number(scores, "bleu_4"),
        cider_d=_number(scores, "cider_d"),
        accuracy=_number(scores, "accuracy"),
        train_hours=sum(seconds) / 3600 if seconds else None,
    )


def read_history(path: Path) -> list[dict[str, Any]]:
    """A row an epoch, with numbers as floats; a key that an epoch does not have is left out.

    Raises:
        TrainingError: the file is missing, damaged or has no row.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise TrainingError(f"{path} is missing or damaged: {' '.join(str(error).split())}") from error
    # More fields than columns are under None, fewer are None.
    if not rows or any(None in row or "epoch" not in row or None in row.values() for row in rows):
        raise TrainingError(f"{path} is damaged: not a table of epochs")
    return [{key: _value(text) for key, text in row.items() if text} for row in rows]


def _best_scores(
    metrics: Mapping[str, Any], history: Sequence[Mapping[str, Any]], *, num_beams: object
) -> dict[str, Any]:
    """BLEU-4, CIDEr-D and accuracy on dev: of the bundle where metrics.json has them, else of the history."""
    best = max(
        (row for row in history if _number(row, "dev_cider_d") is not None),
        key=lambda row: float(row["dev_cider_d"]),
        default={},
    )
    scores = {name: {**best, **metrics}.get(f"dev_{name}") for name in ("bleu_4", "cider_d", "accuracy")}
    # `evaluate --save` has put the scores of whole splits there, each with several numbers of beams.
    rows = [
        row
        for split, rows in metrics.items()
        if isinstance(rows, list) and ("dev" in split or "val" in split)
        for row in rows
        if isinstance(row, dict) and _number(row, "cider_d") is not None
    ]
    own = [row for row in rows if row.get("num_beams") == num_beams]
    chosen: dict[str, Any] = max(own or rows, key=lambda row: float(row["cider_d"]), default={})
    return scores | {name: chosen[name] for name in ("bleu_4", "cider_d") if name in chosen}


def main(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    plot: Annotated[Path | None, typer.Option(help="Draw their scores as bars into this PNG file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Compare training runs: size, shape, best scores on dev, hours. A run that can't be read is one line."""
    found: list[RunSummary] = []
    failed: dict[str, str] = {}
    for run in runs:
        try:
            found.append(summarize(run))
        except BatchcapError as error:
            failed[str(run)] = str(error)
            _print_error(error)
    if as_json:
        print(json.dumps({"runs": [asdict(summary) for summary in found], "failed": failed}))
    elif found:
        # Not cut to the 80 columns of a terminal that isn't there.
        Console(width=None if sys.stdout.isatty() else _WIDTH).print(_table(found))
    if plot is not None and found:
        try:
            _draw(found, plot)
        except BatchcapError as error:
            failed[str(plot)] = str(error)
            _print_error(error)
    if failed:
        raise typer.Exit(TrainingError.exit_status)


def _table(summaries: Sequence[RunSummary]) -> Table:
    table = Table()
    table.add_column("run", overflow="fold")
    # What is narrow is the name's trouble: numbers are never cut.
    for name in (
        *("MB", "parameters", "embed_dim", "heads", "layers", "epochs"),
        *("BLEU-4", "CIDEr-D", "accuracy", "hours"),
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for each in summaries:
        parameters = None if each.parameters is None else each.parameters / 1e6
        table.add_row(
            Text(each.run),
            _cell(each.size_mb, ".1f"),
            _cell(parameters, ".2f", " M"),
            str(each.embed_dim),
            each.heads,
            each.layers,
            str(each.epochs),
            _cell(each.bleu_4, ".3f"),
            _cell(each.cider_d, ".1f"),
            _cell(each.accuracy, ".3f"),
            _cell(each.train_hours, ".2f"),
        )
    return table


def _draw(summaries: Sequence[RunSummary], path: Path) -> None:
    if not plots.can_plot():
        raise TrainingError(f"can't plot: {plots.MISSING}")
    scores = {
        each.run: {
            "CIDEr-D": each.cider_d,
            "BLEU-4 × 100": None if each.bleu_4 is None else 100 * each.bleu_4,
            "next-token accuracy": each.accuracy,
        }
        for each in summaries
    }
    png = plots.to_png(plots.bars_figure(scores))
    try:
        path.write_bytes(png)
    except OSError as error:
        raise TrainingError(f"can't write {path}: {error.strerror or error}") from error


def _number(values: Mapping[str, Any], key: str) -> float | None:
    value = values.get(key)
    # A damaged score is as good as none.
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _cell(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}"


def _print_error(error: BatchcapError) -> None:
    print(f"compare: {error}", file=sys.stderr)


if __name__ == "__main__":
    typer.run(main)
