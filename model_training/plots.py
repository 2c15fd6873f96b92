"""Pictures of training runs: the history of one, and several side by side.

Matplotlib is optional and slow to import, so it is imported late; only its objects are used, never pyplot,
whose figures are global and live on in a long run.
"""

import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MISSING = "matplotlib is missing; pip install 'batchcap[train]'"

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
_BLUE, _ORANGE, _GREEN, _PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
_GREY = "#666666"

# Of a stage: its name, and the tint behind its epochs.
_STAGES = {
    "text": ("text warm-up", "#E6EEF6"),
    "xent": ("cross-entropy", "#FFFFFF"),
    "scst": ("SCST", "#FBF0D9"),
}
# Title of a panel; its lines: key of the history, label, colour, factor.
_PANELS = (
    ("loss", (("loss", "train", _BLUE, 1), ("dev_loss", "dev", _ORANGE, 1))),
    ("next-token accuracy", (("accuracy", "train", _BLUE, 1), ("dev_accuracy", "dev", _ORANGE, 1))),
    (
        "scores on dev",
        (("dev_cider_d", "CIDEr-D", _GREEN, 1), ("dev_bleu_4", "BLEU-4 × 100", _PURPLE, 100)),
    ),
)
# SCST's loss is an advantage times a log-probability: on one axis with cross-entropy it says nothing.
_NOT_COMPARABLE = {("scst", "loss")}
_LONGEST_NAME = 40


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    spec = importlib.util.find_spec("matplotlib")
    # A folder of that name looks like a package, but without a file of its own.
    return spec is not None and spec.origin is not None


def history_figure(history: Sequence[Mapping[str, float | str]], title: str = "") -> "Figure":
    """Loss, accuracy and scores over the epochs of one run.

    Args:
        history: a row an epoch, in order; rows of different stages may have different keys. The axis counts
            rows, so that stages that each count from 1 stand one after the other.
        title: of the figure.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _new_figure(13, 4)
    # Names of runs are people's: a dollar sign in one is no formula.
    figure.suptitle(_shorten(title), parse_math=False)
    for position, (name, lines) in enumerate(_PANELS, start=1):
        axes = figure.add_subplot(1, len(_PANELS), position)
        axes.set_title(name, fontsize="medium")
        for key, label, colour, factor in lines:
            xs, ys = _points(history, key, factor)
            if xs:
                axes.plot(xs, ys, label=label, color=colour, marker="o", markersize=3, linewidth=1.5)
        if axes.lines:
            axes.legend(frameon=False, fontsize="small")
        else:
            _write_in_the_middle(axes, "nothing measured")
        if name == "scores on dev":
            _mark_best(axes, history)
        axes.set_xlabel("epoch")
        axes.set_xlim(0.5, max(len(history), 1) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _style(axes, grid="both")
    _mark_stages(figure, history)
    return figure


def bars_figure(runs: Mapping[str, Mapping[str, float | None]]) -> "Figure":
    """A panel of bars for each score, a bar for each run.

    Args:
        runs: the scores of each run, by its name. A run may lack a score (None); all have the same names of
            scores.
    """
    names = list(runs)
    scores = list(next(iter(runs.values()), {}))
    figure = _new_figure(max(3.5 * len(scores), 4), 1.2 + 0.4 * len(names))
    first: Axes | None = None
    for position, score in enumerate(scores, start=1):
        axes = figure.add_subplot(1, len(scores), position, sharey=first)
        values = [runs[name][score] for name in names]
        bars = axes.barh(range(len(names)), [value or 0 for value in values], color=_BLUE, height=0.6)
        axes.bar_label(bars, ["–" if value is None else f"{value:#.3g}" for value in values], padding=3)
        axes.set_title(score, fontsize="medium")
        axes.margins(x=0.2)  # room for the labels
        _style(axes, grid="x")
        if first is None:
            first = axes
            axes.set_yticks(range(len(names)), list(map(_shorten, names)), parse_math=False)
            axes.invert_yaxis()  # the first run on top, as in a table
        axes.label_outer()
    return figure


def to_png(figure: "Figure") -> bytes:
    """Draws a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _new_figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _points(
    history: Sequence[Mapping[str, float | str]], key: str, factor: float
) -> tuple[list[float], list[float]]:
    """A line through the rows that have a key, broken where a stage ends."""
    xs: list[float] = []
    ys: list[float] = []
    last_stage: object = None
    for number, row in enumerate(history, start=1):
        value, stage = row.get(key), row.get("stage")
        if not _is_number(value) or (stage, key) in _NOT_COMPARABLE:
            continue
        if xs and stage != last_stage:
            xs.append(math.nan)
            ys.append(math.nan)
        xs.append(number)
        ys.append(factor * value)
        last_stage = stage
    return xs, ys


def _mark_stages(figure: "Figure", history: Sequence[Mapping[str, float | str]]) -> None:
    """Tints the epochs of each stage, if there is more than one; names below, where no line is in the way."""
    from matplotlib.patches import Patch

    stages = [str(row.get("stage", "")) for row in history]
    if len(set(stages)) < 2:
        return
    for axes in figure.axes:
        start = 0.5
        for stage, rows in groupby(stages):
            end = start + len(list(rows))
            axes.axvspan(start, end, color=_STAGES.get(stage, ("", "#EEEEEE"))[1], linewidth=0, zorder=-2)
            if end < len(stages):
                axes.axvline(end, color=_GREY, linewidth=0.8, linestyle="--")
            start = end
    patches = [
        Patch(facecolor=tint, edgecolor=_GREY, linewidth=0.5, label=name)
        for stage, (name, tint) in _STAGES.items()
        if stage in stages
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)


def _mark_best(axes: "Axes", history: Sequence[Mapping[str, float | str]]) -> None:
    xs, ys = _points(history, "dev_cider_d", 1)
    points = [(y, x) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
    if points:
        y, x = max(points)
        axes.plot([x], [y], "o", markersize=8, markerfacecolor="none", markeredgecolor=_GREEN)
        axes.annotate(f"{y:.1f}", (x, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8)
        axes.margins(y=0.12)  # room for the number


def _write_in_the_middle(axes: "Axes", text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_GREY)


def _style(axes: "Axes", grid: Any) -> None:
    axes.grid(axis=grid, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _shorten(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
