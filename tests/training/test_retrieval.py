"""Retrieval: people's captions search in a real catalog for the images that they are of."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from batchcap.captioner.bundle import Bundle
from batchcap.errors import TrainingError
from model_training import evaluate
from model_training.retrieval import retrieval
from tests.conftest import DataSet

CAPTIONS = {"dog.jpg": "a dog runs on the beach", "cat.jpg": "a cat sleeps on a sofa", "car.jpg": "a red car"}


def test_what_is_described_alike_is_found_first() -> None:
    references = {
        "dog.jpg": ["Two dogs are running in the sand.", "A beach!"],
        "cat.jpg": ["cats that sleep"],
        "car.jpg": ["a zebra"],
        "other.jpg": ["a dog"],
    }
    # Three of four find their image first. The zebra finds whatever has an "a", most of it not red cars.
    scores = retrieval(CAPTIONS, references)
    assert scores["queries"] == 4
    assert scores["recall_at_1"] >= 0.75
    assert scores["recall_at_5"] == scores["recall_at_10"] == 1.0


def test_captions_that_say_something_else_find_nothing() -> None:
    scores = retrieval(CAPTIONS, {"dog.jpg": ["mountain lake"], "cat.jpg": ["red car"], "car.jpg": ["..."]})
    assert scores == {"recall_at_1": 0, "recall_at_5": 0, "recall_at_10": 0, "queries": 2}


def test_ranks_are_counted_one_by_one() -> None:
    captions = {f"{number:02}.jpg": "a dog" for number in range(12)}
    # Equal captions stand in the order of names: found at the ranks 1 to 12, and the last two not at all.
    scores = retrieval(captions, {name: ["dog"] for name in captions})
    assert scores == pytest.approx(
        {"recall_at_1": 1 / 12, "recall_at_5": 5 / 12, "recall_at_10": 10 / 12, "queries": 12}
    )


def test_without_a_query_there_is_nothing_to_score() -> None:
    with pytest.raises(TrainingError, match="no caption to search with"):
        retrieval(CAPTIONS, {"dog.jpg": ["!"]})


@pytest.mark.parametrize("has_tables", [True, False])
def test_the_evaluation_reports_all_scores(
    data_set: DataSet, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, has_tables: bool
) -> None:
    monkeypatch.setattr(evaluate, "meteor_tables", lambda: Path() if has_tables else None)
    monkeypatch.setattr(evaluate, "meteor", lambda texts, truth: 0.5)
    arguments = [tiny_bundle.path, "--data", data_set.data, "--captions", data_set.captions]
    arguments += ["--split", data_set.dev_split, "--retrieval"]
    result = CliRunner().invoke(evaluate.app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)
    assert {"bleu_1", "bleu_4", "rouge_l", "cider_d", "recall_at_1", "recall_at_10"} <= scores.keys()
    assert scores["queries"] == 14
    assert scores.get("meteor") == (0.5 if has_tables else None)
    assert ("pip install pycocoevalcap" in result.stderr) != has_tables


def test_bad_input_is_one_line(data_set: DataSet, tiny_bundle: Bundle, tmp_path: Path) -> None:
    good = {"--data": data_set.data, "--captions": data_set.captions, "--split": data_set.dev_split}
    for bad, message in (
        ({"--data": tmp_path / "no"}, "is no folder"),
        ({"--samples": tmp_path / "no" / "samples.json"}, "there is no folder"),
        ({"--captions": tmp_path / "no.tsv"}, "can't read the captions"),
        ({"--split": tmp_path / "no.txt"}, "can't read the split"),
    ):
        options = [str(part) for option in {**good, **bad}.items() for part in option]
        result = CliRunner().invoke(evaluate.app, [str(tiny_bundle.path), *options])
        assert result.exit_code in (1, 2)
        (line,) = result.stderr.splitlines()
        assert line.startswith("evaluate: ")
        assert message in line


def test_help_says_what_the_scores_are() -> None:
    output = CliRunner().invoke(evaluate.app, ["--help"]).output
    assert "METEOR" in output
    assert "--retrieval" in output
