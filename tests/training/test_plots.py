"""Pictures of training runs, by what stands on their axes."""

import io
import math
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_training.plots import bars_figure, can_plot, history_figure, to_png

THREE_STAGES: list[dict[str, Any]] = [
    {"epoch": 1, "stage": "text", "loss": 6.0, "accuracy": 0.1},
    {"epoch": 2, "stage": "xent", "loss": 4.0, "accuracy": 0.3, "dev_loss": 3.9, "dev_accuracy": 0.31},
    {"epoch": 3, "stage": "xent", "loss": 3.0, "accuracy": 0.4, "dev_bleu_4": 0.2, "dev_cider_d": 47.0},
    {"epoch": 4, "stage": "scst", "loss": -0.01, "reward": 0.5, "dev_bleu_4": 0.21, "dev_cider_d": 52.5},
]


def lines(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    """The labelled lines, without the points that break them."""
    found = {}
    for line in axes.lines:
        xs, ys = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
        if not str(line.get_label()).startswith("_"):
            found[str(line.get_label())] = (xs[~np.isnan(ys)].tolist(), ys[~np.isnan(ys)].tolist())
    return found


def test_the_history_has_its_lines() -> None:
    figure = history_figure(THREE_STAGES, "one")
    loss, accuracy, scores = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["loss", "next-token accuracy", "scores on dev"]
    # The loss of SCST is none that could be compared.
    assert lines(loss) == {"train": ([1, 2, 3], [6.0, 4.0, 3.0]), "dev": ([2], [3.9])}
    assert lines(accuracy) == {"train": ([1, 2, 3], [0.1, 0.3, 0.4]), "dev": ([2], [0.31])}
    assert lines(scores) == {"CIDEr-D": ([3, 4], [47.0, 52.5]), "BLEU-4 × 100": ([3, 4], [20.0, 21.0])}
    assert [text.get_text() for text in scores.texts] == ["52.5"]
    assert figure.get_suptitle() == "one"


def test_stages_are_marked_and_part_the_lines() -> None:
    figure = history_figure(THREE_STAGES)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["text warm-up", "cross-entropy", "SCST"]
    for axes in figure.axes:
        bounds = [patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches]
        assert [(round(box.x0, 3), round(box.x1, 3)) for box in bounds] == [
            (0.5, 1.5),
            (1.5, 3.5),
            (3.5, 4.5),
        ]
    train = figure.axes[0].lines[0]
    assert np.isnan(np.asarray(train.get_ydata(), float)).tolist() == [False, True, False, False]


def test_one_stage_needs_no_mark() -> None:
    figure = history_figure(THREE_STAGES[1:3])
    assert not figure.legends
    assert not any(axes.patches for axes in figure.axes)


@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"epoch": 1, "stage": "text"}],
        [{"epoch": 1, "loss": math.nan, "accuracy": math.inf, "dev_cider_d": "?"}],
        THREE_STAGES[:1],
        [{"epoch": 1, "stage": "new $stage$", "loss": 1.0}, {"epoch": 2, "stage": "text", "loss": 1.0}],
        [{"epoch": n, "stage": "xent", "loss": 1.0, "dev_cider_d": 5.0} for n in range(200)],
    ],
)
def test_any_history_can_be_drawn(history: list[dict[str, Any]]) -> None:
    png = to_png(history_figure(history, "$\\frac{run$ " + "x" * 200))
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        assert (800 < image.width < 2000, 300 < image.height < 1000) == (True, True)


def test_what_was_never_measured_says_so() -> None:
    scores = history_figure(THREE_STAGES[:1]).axes[2]
    assert [text.get_text() for text in scores.texts] == ["nothing measured"]


def test_bars_are_the_scores_of_the_runs() -> None:
    figure = bars_figure(
        {
            "runs/$a": {"CIDEr-D": 47.0, "accuracy": 0.4},
            "runs/b": {"CIDEr-D": 52.5, "accuracy": None},
        }
    )
    assert [axes.get_title() for axes in figure.axes] == ["CIDEr-D", "accuracy"]
    widths = [[bar.get_width() for bar in axes.patches] for axes in figure.axes]
    assert widths == [[47.0, 52.5], [0.4, 0]]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["runs/$a", "runs/b"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["0.400", "–"]
    assert to_png(figure).startswith(b"\x89PNG")
    assert to_png(bars_figure({})).startswith(b"\x89PNG")


def test_no_figure_is_kept() -> None:
    """Pyplot would keep every figure, and warn after twenty."""
    for _ in range(3):
        history_figure(THREE_STAGES)
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_whether_there_is_a_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_plot()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not can_plot()
