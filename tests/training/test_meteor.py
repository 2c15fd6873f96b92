"""METEOR against its own Java program, against values that it gave, and against the formula by hand."""

import gzip
import shutil
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from batchcap.errors import TrainingError
from model_training import meteor as meteor_module
from model_training.meteor import meteor, meteor_scores, meteor_tables
from tests.meteor_tables import write_tables

# A candidate and its references; all invented, in the form that both sides tokenize alike.
CORPUS = [
    ("a brown dog runs along the beach", ["a dog is running on wet sand near the sea", "the dog sprints"]),
    ("two kids play soccer", ["two children are playing football", "some children with a ball"]),
    ("a man climbs a steep wall", ["a climber scales a rock face", "the man is climbing a wall"]),
    ("a woman rides a bicycle in the street", ["a lady on a bike rides down the road"]),
    ("a cat sleeps on the sofa", ["a cat is asleep on a couch", "the cat lies on the couch"]),
    ("three men stand in front of a shop", ["three people are standing outside a store"]),
    ("a red car drives past the house", ["an automobile passes a home", "a car drives by a red house"]),
    ("a boy jumps into the pool", ["a young boy is jumping into a swimming pool", "a child jumps"]),
    ("people walk in the rain with umbrellas", ["a crowd of people walking with an umbrella"]),
    ("a horse is in a field", ["horses graze on the meadow", "a horse stands in a grassy field"]),
    ("a group of people at a table", ["several friends eat dinner around the table", "a family meal"]),
    ("the bird is flying over the water", ["a gull flies above the lake", "birds in the air"]),
    ("a black and white dog with a ball", ["a white and black dog carries a ball in its mouth"]),
    ("a girl in a pink dress", ["a girl wearing a pink dress smiles", "a little girl dressed in pink"]),
    ("a snowboarder in the air", ["a man on a snowboard jumps high in the air above the snow"]),
    ("an old man reads a newspaper on a bench", ["an elderly man sits on a bench reading the paper"]),
    ("a train at a station", ["the train arrives at the station", "passengers wait for a train"]),
    ("a child with a toy", ["kids are playing with toys", "a small boy holds a toy truck"]),
    ("a boat on the river", ["two boats float down a river", "a ship sails on the sea"]),
    ("the players celebrate a goal", ["football players are celebrating", "a team is happy"]),
    ("a dog a dog a dog", ["a dog"]),
    ("zebra", ["an elephant drinks"]),
    ("a dog on grass", ["a dog on grass"]),
    ("", ["a dog"]),
]
CANDIDATES = [candidate for candidate, _ in CORPUS]
REFERENCES = [references for _, references in CORPUS]

# Of several alignments that are equally good by the published rules, the Java program takes another here.
OTHER_ALIGNMENT = {
    "a horse is in a field",
    "a snowboarder in the air",
    "an old man reads a newspaper on a bench",
}

# What the Java program gives, to four digits, and for all of `CORPUS`.
GOLDEN = [0.1882, 0.6923, 0.3055, 0.2999, 0.2946, 0.1851, 0.4384, 0.3879, 0.1226, 0.3732, 0.0674, 0.0457]
GOLDEN += [0.2858, 0.3388, 0.1606, 0.2309, 0.2402, 0.1866, 0.1985, 0.2610, 0.3674, 0.0, 1.0, 0.0]
GOLDEN_TOTAL = 0.24799

needs_tables = pytest.mark.skipif(meteor_tables() is None, reason="needs the tables of pycocoevalcap")


def java_scores() -> tuple[list[float], float]:
    """What the program of `pycocoevalcap` gives: a score an image, and one for all."""
    lines = [" ||| ".join(("SCORE", *references, candidate)) for candidate, references in CORPUS]
    command = ["java", "-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    # It takes seconds to read its tables, so one process answers everything.
    with subprocess.Popen(
        command, cwd=meteor_tables(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdin is not None and program.stdout is not None
        watchdog = threading.Timer(300, program.kill)
        watchdog.start()
        try:
            statistics = []
            for line in lines:
                print(line, file=program.stdin, flush=True)
                statistics.append(program.stdout.readline().strip())
            print(" ||| ".join(("EVAL", *statistics)), file=program.stdin)
            program.stdin.close()
            *scores, total = map(float, program.stdout)
        finally:
            watchdog.cancel()
            program.stdin.close()
    assert program.returncode == 0
    return scores, total


@pytest.fixture(scope="module")
def own() -> tuple[list[float], float]:
    """What batchcap gives: a score an image, and one for all."""
    read = meteor_module._read_paraphrases
    with pytest.MonkeyPatch.context() as patch:
        # Both read the same of a table of 5 million pairs, which takes seconds.
        tables: list[dict[str, Counter[str]]] = []

        def read_once(*arguments: Any) -> dict[str, Counter[str]]:
            if not tables:
                tables.append(read(*arguments))
            return tables[0]

        patch.setattr(meteor_module, "_read_paraphrases", read_once)
        return meteor_scores(CANDIDATES, REFERENCES), meteor(CANDIDATES, REFERENCES)


def assert_equal_to_reference(own: tuple[list[float], float], scores: list[float], total: float) -> None:
    """To 1e-3 an image but for three; to 0.002 for the corpus."""
    own_scores, own_total = own
    differ = {
        candidate
        for candidate, one, other in zip(CANDIDATES, own_scores, scores, strict=True)
        if abs(one - other) > 1e-3
    }
    assert differ <= OTHER_ALIGNMENT
    assert own_scores == pytest.approx(scores, abs=0.05)
    assert own_total == pytest.approx(total, abs=0.002)


@needs_tables
@pytest.mark.skipif(shutil.which("java") is None, reason="needs java, to run the reference implementation")
def test_captions_score_as_the_java_program_says(own: tuple[list[float], float]) -> None:
    scores, total = java_scores()
    assert scores == pytest.approx(GOLDEN, abs=1e-4)
    assert_equal_to_reference(own, scores, total)


@needs_tables
def test_captions_score_as_the_java_program_once_said(own: tuple[list[float], float]) -> None:
    assert_equal_to_reference(own, GOLDEN, GOLDEN_TOTAL)


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_tables(tmp_path)
    monkeypatch.setattr(meteor_module, "meteor_tables", lambda: folder)
    return folder


def by_hand(precision: float, recall: float, fragmentation: float) -> float:
    return (1 - 0.6 * fragmentation**0.2) * precision * recall / (0.85 * precision + 0.15 * recall)


@pytest.mark.parametrize(
    ("candidate", "reference", "expected"),
    [
        # Content words weigh 0.75, function words 0.25.
        ("a dog", "a dog", 1.0),
        ("a dog", "the dog", by_hand(0.75, 0.75, 1)),
        ("dog cat", "cat dog", by_hand(1, 1, 1)),
        ("dog runs", "dog run", by_hand(0.8, 0.8, 0)),
        ("sofa", "couch", by_hand(0.8, 0.8, 0)),
        ("sofas", "couch", by_hand(0.8, 0.8, 0)),
        ("geese", "fowls", by_hand(0.8, 0.8, 0)),
        ("cat outside", "cat in front of", by_hand(0.8, (1 + 3 * 0.6) / 4, 0)),
        ("cat in front of", "cat outside", by_hand((1 + 3 * 0.6) / 4, 0.8, 0)),
        ("dog", "cat", 0.0),
    ],
)
def test_by_hand(tables: Path, candidate: str, reference: str, expected: float) -> None:
    assert meteor_scores([candidate], [[reference]]) == pytest.approx([expected])


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1000])
def test_the_table_is_read_whole_whatever_is_read_at_once(
    tables: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    with gzip.open(tables / "data" / "paraphrase-en.gz", "wt") as file:
        file.write("0.5\none dog\ntwo\n0.25\nthree\nfour\n0.125\nsix\nfive\n")
    monkeypatch.setattr(meteor_module, "_CHUNK_BYTES", chunk_bytes)
    # Each of three words of content, as a paraphrase of another, and one of them as a phrase.
    scores = meteor_scores(["two", "three", "five", "five"], [["one dog"], ["four"], ["six"], ["four"]])
    assert scores == pytest.approx([by_hand(0.6, 0.6, 0)] * 3 + [0.0])


def test_the_best_reference_counts_and_a_corpus_is_no_mean(tables: Path) -> None:
    assert meteor_scores(["dog"], [["cat", "dog", "cat"]]) == [1.0]
    # Three words of four, three of four, no break of the order.
    corpus = meteor(["dog dog dog", "cat"], [["dog dog dog"], ["sofa"]])
    assert corpus == pytest.approx(by_hand(3 / 4, 3 / 4, 0))
    assert corpus != pytest.approx((1 + 0) / 2)


def test_missing_and_damaged_tables_are_one_line(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tables / "data" / "paraphrase-en.gz").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="can't read METEOR's paraphrases"):
        meteor(["dog"], [["dog"]])
    monkeypatch.setattr(meteor_module, "meteor_tables", lambda: None)
    with pytest.raises(TrainingError, match="pip install pycocoevalcap"):
        meteor(["dog"], [["dog"]])
    with pytest.raises(ValueError, match="no captions to score"):
        meteor([], [])


def test_without_pycocoevalcap_there_are_no_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meteor_module.importlib.util, "find_spec", lambda name: None)
    assert meteor_tables() is None
