"""Fits a bundle's confidence: `python -m model_training.calibrate BUNDLE --data … --captions …`.

Captions the images as people will meet the bundle, decides which captions are acceptable, and fits the
probability of that. How good it is, halves of the images say: each is measured by a fit on the other, so that
no image has a part in what it measures. The bundle gets the fit on all of them, which knows twice as much.

**Acceptable** is a caption that agrees with what people wrote about the image at least as well as three
quarters of people's own captions do. In figures: each person's caption is scored by CIDEr-D against the
other captions of its image; the lower quartile of these scores is the threshold, and a caption of the model
is acceptable if its CIDEr-D against all captions of its image is above it. So the threshold comes from the
captions of the data set alone: it has never seen a model, and where people agree less it is lower.
"""

import hashlib
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

# TensorFlow reads it when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import typer

from batchcap.captioner.bundle import Bundle
from batchcap.captioner.bundle_files import CALIBRATION, replace_file, to_json
from batchcap.captioner.calibration import Calibration, Signals
from batchcap.captioner.config import GenerationConfig
from batchcap.errors import BatchcapError, BundleError, TrainingError
from model_training.datasets import CaptionedImage, Format, Subset, read_subset
from model_training.metrics import cider_d_scores
from model_training.pictures import decoded_chunks

# Fewer say nothing: a share of 25 images is known to 0.1 at best.
MIN_IMAGES = 50
BINS = 10
# Of people's captions, as many are below the threshold.
_QUANTILE = 0.25
_RULE = "lower quartile of CIDEr-D of people's captions, each against the others of its image"


@dataclass(frozen=True, slots=True)
class Measured:
    """How good a calibration is, on images that its fit has not seen.

    Args:
        auroc: area under the ROC curve, 0 to 1.
        ece: expected calibration error, 0 to 1.
        ece_if_perfect: what `ece` is on average where every probability is right, only because so many
            images are drawn and not more.
        probabilities: float64[I], the confidence of each caption.
        acceptable: bool[I], whether it was.
    """

    auroc: float
    ece: float
    ece_if_perfect: float
    probabilities: np.ndarray
    acceptable: np.ndarray


def human_threshold(references: Sequence[Sequence[str]]) -> float:
    """The lower quartile of people's own CIDEr-D, times 100.

    Args:
        references: for each image what people wrote about it. An image with one caption gives no score.

    Raises:
        TrainingError: no image has two captions.
    """
    scores: list[float] = []
    for left_out in range(max(map(len, references))):
        candidates, others, counted = [], [], []
        for texts in references:
            has_others = len(texts) > max(left_out, 1)
            # The others stay for their words' frequencies.
            candidates.append(texts[left_out] if has_others else "")
            others.append([*texts[:left_out], *texts[left_out + 1 :]] if has_others else texts)
            counted.append(has_others)
        found = cider_d_scores(candidates, others)
        scores += [score for score, counts in zip(found, counted, strict=True) if counts]
    if not scores:
        raise TrainingError("no image has two captions, so nothing says how well people agree")
    return float(np.quantile(scores, _QUANTILE))


def is_in_first_half(name: str, seed: int) -> bool:
    """Which half an image is in: by a hash of its name, so whatever other images there are."""
    return int(hashlib.sha256(f"{seed}:{name}".encode()).hexdigest(), 16) % 2 == 0


def fit_logistic(signals: np.ndarray, acceptable: np.ndarray) -> tuple[np.ndarray, float]:
    """Logistic regression by Newton's method, with the prior that a standardised weight is N(0, 1).

    Also known as iteratively reweighted least squares: Bishop, "Pattern Recognition and Machine Learning",
    2006, section 4.3.3, with the prior of section 4.5.1 by its mode. The prior keeps weights finite where
    the two classes can be told apart without an error; the intercept has none.

    Args:
        signals: float64[I, F]. One that doesn't vary gets the weight 0.
        acceptable: bool[I].

    Returns:
        float64[F], the weights of the signals as they are, not standardised; and the intercept.

    Raises:
        TrainingError: there are none of one class.
    """
    _check_both_classes(acceptable, "fit")
    mean, deviation = signals.mean(0), signals.std(0)
    deviation[deviation < 1e-9 * np.maximum(1, np.abs(mean))] = np.inf
    features = np.column_stack([(signals - mean) / deviation, np.ones(len(signals))])
    precision = np.ones(features.shape[1])
    precision[-1] = 0
    weights = np.zeros(features.shape[1])
    for _ in range(100):
        probability = logistic(features @ weights)
        gradient = features.T @ (probability - acceptable) + precision * weights
        curvature = probability * (1 - probability)
        hessian = (features * curvature[:, None]).T @ features + np.diag(precision)
        step = np.linalg.solve(hessian, gradient)
        # Far from the optimum a full step could overshoot; no logit moves by more than about 5 at once.
        weights -= step * min(1.0, 5.0 / np.abs(step).max())
        if np.abs(step).max() < 1e-9:
            break
    raw = weights[:-1] / deviation
    return raw, float(weights[-1] - raw @ mean)


def logistic(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), in the form that can't overflow."""
    return 0.5 * (1 + np.tanh(logits / 2))


def auroc(probabilities: np.ndarray, acceptable: np.ndarray) -> float:
    """The probability that an acceptable caption has more confidence than one that isn't; ties count half.

    From the ranks of the acceptable ones: Hanley and McNeil, "The Meaning and Use of the Area under a
    Receiver Operating Characteristic (ROC) Curve", Radiology 143, 1982.

    Args:
        probabilities: float64[I].
        acceptable: bool[I], some of both classes.
    """
    _, inverse, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    good = int(acceptable.sum())
    bad = len(acceptable) - good
    return float((ranks[acceptable].sum() - good * (good + 1) / 2) / (good * bad))


def reliability(probabilities: np.ndarray, acceptable: np.ndarray) -> np.ndarray:
    """What was promised and what came, in bins of equally many captions, the least certain first.

    Args:
        probabilities: float64[I].
        acceptable: bool[I].

    Returns:
        float64[bins, 3]: mean probability, share of acceptable captions, number of captions; `BINS` rows, or
        fewer where there are fewer captions.
    """
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    return np.array([[probabilities[part].mean(), acceptable[part].mean(), len(part)] for part in parts])


def expected_calibration_error(probabilities: np.ndarray, acceptable: np.ndarray) -> float:
    """The mean over captions of |mean probability - share acceptable| in their bin of `reliability`.

    Naeini, Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015,
    with ten bins of equal count in place of equal width: no bin is empty or has a single caption.

    Args:
        probabilities: float64[I].
        acceptable: bool[I].
    """
    mean, share, count = reliability(probabilities, acceptable).T
    return float((count * np.abs(mean - share)).sum() / count.sum())


def measure(probabilities: np.ndarray, acceptable: np.ndarray) -> Measured:
    """Scores the confidence of captions.

    Args:
        probabilities: float64[I].
        acceptable: bool[I].

    Raises:
        TrainingError: there are none of one class.
    """
    _check_both_classes(acceptable, "measure")
    rng = np.random.default_rng(0)
    drawn = [
        expected_calibration_error(probabilities, rng.random(len(probabilities)) < probabilities)
        for _ in range(200)
    ]
    return Measured(
        auroc(probabilities, acceptable),
        expected_calibration_error(probabilities, acceptable),
        math.fsum(drawn) / len(drawn),
        probabilities,
        acceptable,
    )


def fit_calibration(
    names: Sequence[str],
    signals: Sequence[Signals],
    texts: Sequence[str],
    references: Sequence[Sequence[str]],
    generation: GenerationConfig,
    *,
    seed: int = 0,
) -> tuple[Calibration, Measured, dict[str, Any]]:
    """Decides which captions are acceptable, fits on all images and measures crosswise, half by half.

    That is cross-fitting with two folds, as scikit-learn's `CalibratedClassifierCV(ensemble=False)` does it.

    Args:
        names: of I images; they decide the halves.
        signals: of the model's caption of each.
        texts: the caption.
        references: what people wrote.
        generation: how the captions were decoded.
        seed: of the halves.

    Returns:
        The calibration, how good it is, and what there is to report of both. In the report, `halves` has the
        same figures of each half alone, by the fit on the other: with fewer images, there is more chance in
        them.

    Raises:
        TrainingError: there are fewer than `MIN_IMAGES` images, or captions are all alike.
    """
    _check_enough(len(names))
    threshold = human_threshold(references)
    acceptable = np.array(cider_d_scores(texts, references)) > threshold
    values = np.array(signals, np.float64)
    is_first = np.array([is_in_first_half(name, seed) for name in names])
    probabilities, halves = np.zeros(len(names)), []
    for half in (is_first, ~is_first):
        weights, intercept = fit_logistic(values[~half], acceptable[~half])
        probabilities[half] = logistic(values[half] @ weights + intercept)
        found = measure(probabilities[half], acceptable[half])
        halves.append({"images": len(found.acceptable), **_figures(found)})
    measured = measure(probabilities, acceptable)
    weights, intercept = fit_logistic(values, acceptable)
    calibration = Calibration(
        signals={name: float(w) for name, w in zip(Signals._fields, weights, strict=True) if w},
        intercept=intercept,
        threshold=threshold,
        rule=_RULE,
        auroc=measured.auroc,
        ece=measured.ece,
        num_beams=generation.num_beams,
        length_penalty=generation.length_penalty,
    )
    report = {**_figures(measured), "threshold": threshold, "halves": halves}
    return calibration, measured, report


def _check_enough(count: int) -> None:
    if count < MIN_IMAGES:
        raise TrainingError(f"{count} images are too few to calibrate on; give at least {MIN_IMAGES}")


def _check_both_classes(acceptable: np.ndarray, use: str) -> None:
    if acceptable.all() or not acceptable.any():
        found = "all" if acceptable.all() else "none"
        raise TrainingError(
            f"{found} of the {len(acceptable)} captions to {use} on are acceptable; give more"
        )


def _figures(measured: Measured) -> dict[str, float]:
    return {
        "auroc": measured.auroc,
        "ece": measured.ece,
        "ece_if_perfect": measured.ece_if_perfect,
        "acceptable": float(measured.acceptable.mean()),
    }


def caption_with_signals(
    bundle: Bundle, data: Path, images: Sequence[CaptionedImage]
) -> dict[str, tuple[str, Signals]]:
    """Captions the images that can be decoded; text and signals by the image's name."""
    from batchcap.captioner.captioner import Captioner

    captioner = Captioner(bundle)
    found: dict[str, tuple[str, Signals]] = {}
    for decoded in decoded_chunks(data, [image.name for image in images], captioner.image_spec):
        captions = captioner.caption_with_signals(list(decoded.values()))
        found |= {
            name: (caption.text, signals) for name, (caption, signals) in zip(decoded, captions, strict=True)
        }
    return found


def plot_reliability(measured: Measured, path: Path) -> bool:
    """Draws what was promised against what came; the bars of the points are 95 % of chance.

    Args:
        measured: probabilities and what was acceptable.
        path: of the PNG.

    Returns:
        Whether it was drawn: False without matplotlib.

    Raises:
        OSError: the file can't be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    mean, share, count = reliability(measured.probabilities, measured.acceptable).T
    chance = 1.96 * np.sqrt(mean * (1 - mean) / count)
    top.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="perfect")
    top.errorbar(mean, share, yerr=chance, fmt="o-", capsize=2, label=f"{len(mean)} bins of equal count")
    top.set(ylabel="share of acceptable captions", xlim=(0, 1), ylim=(-0.02, 1.02))
    top.set_title(
        f"{len(measured.acceptable):,} images, each held out: AUROC {measured.auroc:.3f}, "
        f"ECE {measured.ece:.3f}\n(a perfect confidence: ECE {measured.ece_if_perfect:.3f} on so many)",
        fontsize="medium",
    )
    top.legend(loc="upper left", frameon=False)
    bottom.hist(measured.probabilities, bins=40, range=(0, 1), color="0.6")
    bottom.set(xlabel="confidence", ylabel="captions")
    figure.savefig(path, dpi=120)
    return True


def main(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    data: Annotated[Path, typer.Option(help="Folder of the images.")],
    captions: Annotated[Path, typer.Option(help="File of captions.")],
    format: Annotated[Format, typer.Option(help="Of the captions.")] = "auto",
    split: Annotated[Path | None, typer.Option(help="Names of the images to calibrate on.")] = None,
    subset: Annotated[
        Subset | None, typer.Option(help="Of the captions' own split.", show_default="val")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the halves to measure on.")] = 0,
    limit: Annotated[int, typer.Option(help="Images; 0 for all.", min=0)] = 0,
) -> None:
    """Give a bundle its confidence, from captioned images that it was not trained on."""
    try:
        opened = Bundle.open(bundle)
        images, summary = read_subset(captions, format=format, split=split, subset=subset, limit=limit)
        _check_enough(len(images))
        print(summary, file=sys.stderr)
        found = caption_with_signals(opened, data, images)
        if not found:
            raise TrainingError(f"none of the {len(images):,} images in {data} can be decoded")
        texts, signals = zip(*found.values(), strict=True)
        references = {image.name: image.captions for image in images}
        calibration, measured, report = fit_calibration(
            list(found), signals, texts, [references[name] for name in found], opened.generation, seed=seed
        )
        try:
            replace_file(bundle / CALIBRATION, to_json(calibration.to_values()))
            if not plot_reliability(measured, bundle / "calibration.png"):
                print("no plot: matplotlib is not installed", file=sys.stderr)
        except OSError as error:
            raise BundleError(
                f"can't write the calibration to {bundle}: {error.strerror or error}"
            ) from error
        failed = len(images) - len(found)
        print(json.dumps({"images": len(found), "failed": failed, **report, **calibration.to_values()}))
    except BatchcapError as error:
        print(f"calibrate: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_status) from error


if __name__ == "__main__":
    typer.run(main)
