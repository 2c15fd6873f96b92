import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from batchcap.captioner.calibration import Calibration, Signals
from batchcap.captioner.config import GenerationConfig
from batchcap.errors import BundleError

VALUES: dict[str, Any] = {
    "signals": {"mean_log_prob": 2.0, "entropy": -0.5},
    "intercept": 1.5,
    "threshold": 33.0,
    "rule": "a lower quartile",
    "auroc": 0.7,
    "ece": 0.04,
    "num_beams": 3,
    "length_penalty": 0.7,
}


def signals(**values: float) -> Signals:
    return Signals(**{**dict.fromkeys(Signals._fields, 0.0), **values})


def calibration(**changes: Any) -> Calibration:
    return Calibration(**{**VALUES, **changes})


@pytest.mark.parametrize(
    ("values", "logit"),
    [
        ({}, 1.5),
        ({"mean_log_prob": -2.0}, -2.5),
        ({"mean_log_prob": -0.5, "entropy": 3.0}, -1.0),
        # Signals without a weight don't count.
        ({"margin": 9.0, "token_count": 30.0, "has_ended": 1.0, "min_log_prob": -9.0}, 1.5),
    ],
    ids=str,
)
def test_confidence(values: dict[str, float], logit: float) -> None:
    assert calibration().confidence(signals(**values)) == pytest.approx(1 / (1 + math.exp(-logit)))


@pytest.mark.parametrize(("log_prob", "expected"), [(-1e6, 0.0), (1e6, 1.0)])
def test_confidence_far_out(log_prob: float, expected: float) -> None:
    """The exponential of the plain formula overflows there."""
    assert calibration().confidence(signals(mean_log_prob=log_prob)) == expected


@pytest.mark.parametrize("name", Signals._fields)
def test_confidence_rises_with_a_signal_of_positive_weight(name: str) -> None:
    positive, negative = calibration(signals={name: 0.5}), calibration(signals={name: -0.5})
    values = [signals(**{name: value}) for value in (-3, -1, 0, 0.1, 2)]
    rising = [positive.confidence(value) for value in values]
    assert rising == sorted(set(rising))
    falling = [negative.confidence(value) for value in values]
    assert falling == sorted(set(falling), reverse=True)
    assert all(0 < value < 1 for value in rising + falling)


def test_it_fits_the_decoding_it_was_fitted_for() -> None:
    fitted = calibration()
    assert fitted.fits(GenerationConfig(3, 0.7))
    assert not fitted.fits(GenerationConfig(4, 0.7))
    assert not fitted.fits(GenerationConfig(1, 0.7))
    assert not fitted.fits(GenerationConfig(3, 1.0))


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(calibration().to_values()))
    assert Calibration.load(path) == calibration()
    assert json.loads(path.read_text()) == VALUES
    # As a part of a bundle, it may be a key.
    assert hash(Calibration.load(path)) == hash(calibration())


@pytest.mark.parametrize(
    "changes",
    [
        {"signals": {"charm": 1.0}},
        {"signals": {"mean_log_prob": "steep"}},
        {"signals": {"mean_log_prob": True}},
        {"signals": {"mean_log_prob": math.inf}},
        {"signals": {"mean_log_prob": None}},
        {"signals": [["mean_log_prob", 1.0]]},
        {"signals": None},
        {"intercept": math.nan},
        {"intercept": "0"},
        {"intercept": 10**400},
        {"threshold": None},
        {"rule": 5},
        {"auroc": 1.5},
        {"ece": -0.1},
        {"num_beams": 0},
        {"num_beams": 2.5},
        {"length_penalty": [0.7]},
        {"surprise": 1},
        {"slope": 1.0},
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_and_the_file_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({**VALUES, **changes}))
    with pytest.raises(BundleError, match=r"calibration\.json is damaged") as caught:
        Calibration.load(path)
    assert len(str(caught.value).splitlines()) == 1


def test_an_unknown_signal_is_named(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({**VALUES, "signals": {"mean_log_prob": 1.0, "charm": 1.0}}))
    with pytest.raises(BundleError, match=r"calibration\.json.*'charm'.*mean_log_prob"):
        Calibration.load(path)


@pytest.mark.parametrize("name", VALUES)
def test_a_missing_value_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({key: value for key, value in VALUES.items() if key != name}))
    with pytest.raises(BundleError, match=rf"calibration\.json.*{name}"):
        Calibration.load(path)


def test_the_two_numbers_of_an_older_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text('{"slope": 1.0, "intercept": 0.5}')
    with pytest.raises(BundleError, match=r"calibration\.json"):
        Calibration.load(path)


def test_every_number_is_described() -> None:
    """The file is read by people as well."""
    fields = {field.name for field in dataclasses.fields(Calibration)}
    assert fields == set(VALUES)
    assert all(f"        {name}: " in (Calibration.__doc__ or "") for name in fields - {"signals"})
    assert all(f"        {name}: " in (Signals.__doc__ or "") for name in Signals._fields)
