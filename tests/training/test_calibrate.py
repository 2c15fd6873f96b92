"""The fit against known probabilities, the figures against their definitions, the command as a whole."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from batchcap.captioner.bundle import Bundle, write_bundle
from batchcap.captioner.calibration import Signals
from batchcap.captioner.captioner import Captioner
from batchcap.captioner.config import GenerationConfig
from batchcap.captioner.images import decode_image
from batchcap.errors import TrainingError
from model_training import calibrate
from model_training.calibrate import (
    auroc,
    expected_calibration_error,
    fit_calibration,
    fit_logistic,
    human_threshold,
    is_in_first_half,
    logistic,
    measure,
    reliability,
)
from model_training.metrics import cider_d_scores
from tests.conftest import DataSet, make_photo


def drawn(images: int = 40_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signals, known probabilities, and what came of them."""
    rng = np.random.default_rng(seed)
    signals = np.column_stack([rng.normal(-0.8, 0.2, images), rng.normal(11, 2.5, images)])
    probabilities = logistic(signals @ [5.0, -0.2] + 6.0)
    return signals, probabilities, rng.random(images) < probabilities


# --- the fit ---


def test_known_probabilities_are_recovered() -> None:
    signals, probabilities, acceptable = drawn()
    weights, intercept = fit_logistic(signals, acceptable)
    assert weights == pytest.approx([5.0, -0.2], rel=0.1)
    assert intercept == pytest.approx(6.0, rel=0.1)
    np.testing.assert_allclose(logistic(signals @ weights + intercept), probabilities, atol=0.02)


def test_the_fit_is_the_optimum() -> None:
    """Nothing near it has a larger posterior; the gradient by differences is zero."""
    signals, _, acceptable = drawn(300)
    weights, intercept = fit_logistic(signals, acceptable)

    def loss(weights: np.ndarray, intercept: float) -> float:
        logits = signals @ weights + intercept
        likelihood = np.where(acceptable, np.log(logistic(logits)), np.log(logistic(-logits))).sum()
        return 0.5 * ((weights * signals.std(0)) ** 2).sum() - likelihood

    best = loss(weights, intercept)
    for change in (1e-3, -1e-3):
        assert loss(weights, intercept + change) > best
        for index in range(2):
            assert loss(weights + change * (np.arange(2) == index), intercept) > best


def test_classes_without_overlap_leave_the_weights_finite() -> None:
    signals = np.linspace(-1, 1, 60)[:, None] * [[1.0, 1e6]]
    weights, intercept = fit_logistic(signals, signals[:, 0] > 0)
    assert np.isfinite([*weights, intercept]).all()
    probabilities = logistic(signals @ weights + intercept)
    assert (np.diff(probabilities) > 0).all()
    assert auroc(probabilities, signals[:, 0] > 0) == 1


def test_a_signal_that_does_not_vary_has_no_weight() -> None:
    signals, _, acceptable = drawn(500)
    alone = fit_logistic(signals, acceptable)
    weights, intercept = fit_logistic(np.column_stack([signals, np.full(500, 0.1)]), acceptable)
    assert weights[2] == 0
    assert weights[:2] == pytest.approx(alone[0])
    assert intercept == pytest.approx(alone[1])


@pytest.mark.parametrize("value", [True, False])
def test_captions_of_one_class_are_refused(value: bool) -> None:
    acceptable = np.full(30, value)
    with pytest.raises(TrainingError, match="all" if value else "none"):
        fit_logistic(np.random.default_rng(0).normal(size=(30, 2)), acceptable)
    with pytest.raises(TrainingError, match="all" if value else "none"):
        measure(np.linspace(0, 1, 30), acceptable)


# --- the figures ---


@pytest.mark.parametrize("digits", [1, 2, 9], ids="{} digits".format)
def test_auroc_is_the_share_of_pairs_in_order(digits: int) -> None:
    """Few digits make many ties."""
    rng = np.random.default_rng(digits)
    probabilities, acceptable = rng.random(150).round(digits), rng.random(150) < 0.3
    pairs = [
        (good > bad) + 0.5 * (good == bad)
        for good in probabilities[acceptable]
        for bad in probabilities[~acceptable]
    ]
    assert auroc(probabilities, acceptable) == pytest.approx(np.mean(pairs))
    assert auroc(-probabilities, acceptable) == pytest.approx(1 - np.mean(pairs))
    # It is of the order alone.
    assert auroc(probabilities**3, acceptable) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("count", [200, 203, 7])
def test_ece_is_what_it_says(count: int) -> None:
    rng = np.random.default_rng(count)
    probabilities, acceptable = rng.random(count), rng.random(count) < 0.6
    ranked = sorted(zip(probabilities, acceptable, strict=True))
    expected, start = 0.0, 0
    for index in range(10):
        # The first bins take what is over.
        size = count // 10 + (index < count % 10)
        part = ranked[start : start + size]
        start += size
        if part:
            gap = abs(sum(p for p, _ in part) / size - sum(bool(a) for _, a in part) / size)
            expected += size / count * gap
    assert expected_calibration_error(probabilities, acceptable) == pytest.approx(expected)


def test_ece_of_plain_cases() -> None:
    half = np.arange(400) % 2 == 0
    assert expected_calibration_error(np.full(400, 0.5), half) == pytest.approx(0)
    assert expected_calibration_error(np.full(400, 0.9), half) == pytest.approx(0.4)
    assert expected_calibration_error(half.astype(float), half) == 0
    assert expected_calibration_error(half.astype(float), ~half) == 1


def test_right_probabilities_have_the_ece_of_chance() -> None:
    found = [measure(*drawn(500, seed)[1:]) for seed in range(20)]
    assert np.mean([each.ece for each in found]) == pytest.approx(
        np.mean([each.ece_if_perfect for each in found]), rel=0.15
    )
    # With more images there is less of it.
    assert measure(*drawn(20_000)[1:]).ece_if_perfect < 0.01 < found[0].ece_if_perfect


def test_the_bins_of_the_plot() -> None:
    _, probabilities, acceptable = drawn(1005)
    mean, share, count = reliability(probabilities, acceptable).T
    assert sorted(count) == [100] * 5 + [101] * 5
    assert (np.diff(mean) > 0).all()
    assert (count * mean).sum() == pytest.approx(probabilities.sum())
    assert (count * share).sum() == pytest.approx(acceptable.sum())


# --- what is acceptable ---

WORDS = ["dog", "cat", "ball", "beach", "sofa", "people", "grass", "street"]


def people(rng: np.random.Generator, about: int) -> tuple[str, ...]:
    """Three captions of one image: its subject among words of chance."""
    return tuple(
        f"{WORDS[about % 8]} {' '.join(rng.choice(WORDS, rng.integers(2, 6)))} {WORDS[about // 8 % 8]}"
        for _ in range(3)
    )


def test_the_threshold_is_the_lower_quartile_of_people() -> None:
    rng = np.random.default_rng(0)
    references = [people(rng, number) for number in range(40)]
    scores = []
    for left_out in range(3):
        others = [[t for i, t in enumerate(texts) if i != left_out] for texts in references]
        scores += cider_d_scores([texts[left_out] for texts in references], others)
    assert len(scores) == 120
    threshold = human_threshold(references)
    assert threshold == pytest.approx(np.quantile(scores, 0.25))
    assert np.mean(np.array(scores) > threshold) == pytest.approx(0.75, abs=0.01)


def test_images_with_few_captions_count_for_what_they_have() -> None:
    rng = np.random.default_rng(0)
    references: list[tuple[str, ...]] = [people(rng, number)[: 2 + number % 2] for number in range(40)]
    with_single = [*references, *[("zebra",)] * 5]
    assert human_threshold(with_single) > 0
    # Those with one caption change the frequencies of words, but add no score of zero.
    assert human_threshold(with_single) == pytest.approx(human_threshold(references), rel=0.2)
    with pytest.raises(TrainingError, match="no image has two captions"):
        human_threshold([("a dog",), ("a cat",)])


def test_the_halves() -> None:
    names = [f"{number}.jpg" for number in range(2000)]
    first = [is_in_first_half(name, 0) for name in names]
    assert 900 < sum(first) < 1100
    assert first == [is_in_first_half(name, 0) for name in names]
    other = [is_in_first_half(name, 1) for name in names]
    assert 900 < sum(a == b for a, b in zip(first, other, strict=True)) < 1100


class Captioned(NamedTuple):
    """What `fit_calibration` takes, but for the decoding options."""

    names: list[str]
    signals: list[Signals]
    texts: list[str]
    references: list[tuple[str, ...]]


def captioned(count: int = 400) -> Captioned:
    """Captions that are a person's with the probability that the first signals say, else nonsense."""
    rng = np.random.default_rng(1)
    signals, _, acceptable = drawn(count)
    references = [people(rng, number) for number in range(count)]
    rows = [Signals(log_prob, rng.random(), 1.0, 0.5, length, 1.0) for log_prob, length in signals.tolist()]
    texts = [
        texts[0] if good else "zebra" for texts, good in zip(references, acceptable.tolist(), strict=True)
    ]
    return Captioned([f"{number}.jpg" for number in range(count)], rows, texts, references)


BEAMS = GenerationConfig(3, 0.7)


def test_a_calibration_from_scores() -> None:
    every = captioned()
    calibration, measured, report = fit_calibration(*every, BEAMS)
    assert calibration.fits(BEAMS)
    # What doesn't vary is left out.
    assert set(calibration.signals) == {"mean_log_prob", "margin", "token_count"}
    assert calibration.signals["mean_log_prob"] == pytest.approx(5.0, abs=1.5)
    assert calibration.threshold == report["threshold"] == human_threshold(every.references)
    assert (calibration.auroc, calibration.ece) == (measured.auroc, measured.ece)
    assert calibration.auroc > 0.7
    assert calibration.ece < 0.1
    assert len(measured.probabilities) == sum(half["images"] for half in report["halves"]) == 400
    # The captioner's own arithmetic with the fit on all, which is near those on halves.
    confidences = [calibration.confidence(signals) for signals in every.signals]
    np.testing.assert_allclose(confidences, measured.probabilities, atol=0.15)
    weights, intercept = fit_logistic(np.array(every.signals), measured.acceptable)
    assert confidences == pytest.approx(logistic(np.array(every.signals) @ weights + intercept).tolist())


def test_no_image_has_a_part_in_what_it_measures() -> None:
    """Where captions of one half are others, the probabilities of that half stay, and the others change."""
    every = captioned()
    _, measured, _ = fit_calibration(*every, BEAMS)
    is_first = np.array([is_in_first_half(name, 0) for name in every.names])
    spoilt = [
        "zebra" if first and number % 3 == 0 else text
        for number, (first, text) in enumerate(zip(is_first, every.texts, strict=True))
    ]
    _, other, _ = fit_calibration(*every._replace(texts=spoilt), BEAMS)
    assert (measured.acceptable != other.acceptable)[is_first].any()
    np.testing.assert_array_equal(measured.probabilities[is_first], other.probabilities[is_first])
    assert (measured.probabilities != other.probabilities)[~is_first].all()


def test_the_order_of_the_images_changes_nothing() -> None:
    every = captioned()
    backwards = Captioned(*(values[::-1] for values in every))
    one, other = (fit_calibration(*each, BEAMS)[0] for each in (every, backwards))
    assert one.signals == pytest.approx(other.signals)
    assert (one.intercept, one.auroc, one.ece) == pytest.approx((other.intercept, other.auroc, other.ece))


def test_too_few_images_are_refused() -> None:
    with pytest.raises(TrainingError, match="49 images are too few"):
        fit_calibration(*captioned(49), BEAMS)


# --- the command ---


def run(*arguments: object) -> Result:
    app = calibrate.typer.Typer()
    app.command()(calibrate.main)
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def collection(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """70 pictures, one of them broken; of two in three, people wrote what the tiny model says."""
    folder = tmp_path_factory.mktemp("collection")
    data = folder / "images"
    files = [make_photo(data / f"{number:02}.png", number) for number in range(70)]
    captioner = Captioner(tiny_bundle, batch_size=10)
    pixels = [decode_image(path.read_bytes(), tiny_bundle.image_spec) for path in files]
    lines = ["image\tcaption"]
    for number, (path, caption) in enumerate(zip(files, captioner.caption(pixels), strict=True)):
        text = caption.text if number % 3 else f"zebra {number} in a zoo {number % 7}"
        lines += [f"{path.name}\t{text} here", f"{path.name}\tthere {text}"]
    files[-1].write_bytes(b"not a picture")
    (folder / "captions.tsv").write_text("\n".join(lines) + "\n")
    (folder / "dev.txt").write_text("".join(f"{path.name}\n" for path in files))
    captions, names = folder / "captions.tsv", folder / "dev.txt"
    return DataSet(data, captions, names, names, captions)


def write_copy(bundle: Bundle, folder: Path) -> Path:
    """A copy of a bundle, with two beams."""
    write_bundle(
        folder / "bundle",
        name="tiny",
        config=bundle.config,
        generation=GenerationConfig(num_beams=2),
        tokenizer=bundle.tokenizer,
        weights=bundle.weights(),
    )
    return folder / "bundle"


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return write_copy(tiny_bundle, tmp_path)


@pytest.fixture(scope="module")
def calibrated(
    tiny_bundle: Bundle, collection: DataSet, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Result]:
    """A bundle that the command has calibrated, and what came of the command."""
    bundle = write_copy(tiny_bundle, tmp_path_factory.mktemp("calibrated"))
    return bundle, run(*arguments(bundle, collection))


def arguments(bundle: Path, data_set: DataSet, **changes: object) -> list[object]:
    options = {"data": data_set.data, "captions": data_set.captions, "split": data_set.dev_split, **changes}
    return [bundle, *(word for name, value in options.items() for word in (f"--{name}", value))]


def test_a_bundle_gets_its_confidence(
    calibrated: tuple[Path, Result], bundle: Path, collection: DataSet
) -> None:
    before = Bundle.open(bundle).fingerprint()
    bundle, result = calibrated
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["images"], report["failed"]) == (69, 1)
    opened = Bundle.open(bundle)
    assert opened.calibration is not None
    assert opened.calibration.to_values().items() <= report.items()
    assert "lower quartile" in opened.calibration.rule
    assert opened.fingerprint() == before, "that of a copy which is not calibrated"
    assert not [path.name for path in bundle.iterdir() if path.name.startswith(".")]
    captioner = Captioner(opened, batch_size=4)
    pixels = [
        decode_image((collection.data / f"{number:02}.png").read_bytes(), opened.image_spec)
        for number in range(4)
    ]
    for caption, signals in captioner.caption_with_signals(pixels):
        assert caption.confidence == opened.calibration.confidence(signals)
        assert 0 < caption.confidence < 1


def test_the_plot_is_a_picture(calibrated: tuple[Path, Result]) -> None:
    pytest.importorskip("matplotlib")
    bundle, _ = calibrated
    assert (bundle / "calibration.png").read_bytes().startswith(b"\x89PNG")


def test_it_can_be_done_again_on_other_halves_and_without_matplotlib(
    calibrated: tuple[Path, Result], collection: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    first, before = calibrated
    bundle = tmp_path / "bundle"
    shutil.copytree(first, bundle, ignore=shutil.ignore_patterns("calibration.png"))
    result = run(*arguments(bundle, collection, seed=1))
    assert result.exit_code == 0
    assert result.stderr.splitlines()[-1] == "no plot: matplotlib is not installed"
    again, first_time = json.loads(result.stdout), json.loads(before.stdout)
    # All images are fitted on, whatever the halves.
    assert again["intercept"] == first_time["intercept"]
    assert again["halves"] != first_time["halves"]
    calibration = Bundle.open(bundle).calibration
    assert calibration is not None
    assert (calibration.intercept, calibration.ece) == (again["intercept"], again["ece"])
    assert not (bundle / "calibration.png").exists()


def _few(bundle: Path, collection: DataSet, folder: Path) -> tuple[list[Any], str]:
    return arguments(bundle, collection, limit=49), "49 images are too few"


def _few_whole(bundle: Path, collection: DataSet, folder: Path) -> tuple[list[Any], str]:
    for number in range(40):
        (folder / f"{number:02}.png").write_bytes((collection.data / f"{number:02}.png").read_bytes())
    return arguments(bundle, collection, data=folder), "40 images are too few"


def _no_images(bundle: Path, collection: DataSet, folder: Path) -> tuple[list[Any], str]:
    return arguments(bundle, collection, data=folder), "none of the 70 images"


def _no_bundle(bundle: Path, collection: DataSet, folder: Path) -> tuple[list[Any], str]:
    return arguments(folder, collection), "config.json is missing"


def _no_captions(bundle: Path, collection: DataSet, folder: Path) -> tuple[list[Any], str]:
    return arguments(bundle, collection, captions=folder / "no.tsv"), "can't read the captions"


def _all_nonsense(bundle: Path, collection: DataSet, folder: Path) -> tuple[list[Any], str]:
    lines = [f"{number:02}.png\tzebra {number} {n} zoo" for number in range(70) for n in (1, 2)]
    (folder / "captions.tsv").write_text("\n".join(["image\tcaption", *lines]))
    return arguments(bundle, collection, captions=folder / "captions.tsv"), "none of the"


@pytest.mark.parametrize("case", [_few, _few_whole, _no_images, _no_bundle, _no_captions, _all_nonsense])
def test_bad_input_is_one_line(
    bundle: Path,
    collection: DataSet,
    tmp_path: Path,
    case: Callable[[Path, DataSet, Path], tuple[list[Any], str]],
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    words, message = case(bundle, collection, folder)
    result = run(*words)
    assert result.exit_code == 1
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("calibrate: ")
    assert message in last
    assert "Traceback" not in result.stderr
    assert not (bundle / "calibration.json").exists()
