"""Our metrics against the reference implementation, run live, and against values known by hand."""

import math
import subprocess
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from model_training.metrics import bleu, cider_d, cider_d_scores, rouge_l, rouge_l_scores, tokenize

REFERENCES = [
    [
        "A brown dog runs along the beach.",
        "A dog running on wet sand near the sea.",
        "The dog is sprinting across a sandy beach, tongue out.",
    ],
    [
        "Two children are playing football in a park.",
        "Two kids chase a ball on the grass.",
    ],
    ["A man in a red t-shirt climbs a rock wall."],
    [
        "A woman's bicycle leans against a brick wall.",
        "A bicycle is parked by a wall of bricks.",
        "An old bike , parked",
        "A bike against the wall",
        "Bicycle",
    ],
]
CANDIDATES = [
    "a dog runs on the beach",
    "two children play with a ball in the park",
    "A man in a red t-shirt climbs a rock wall.",
    "a bicycle a bicycle a bicycle a bicycle against a wall",
]

# Few words, so that n-grams repeat, are clipped and are shared between images; punctuation among them.
captions = st.lists(st.sampled_from(["a", "A", "dog", "Dog's", "on", "the", "-", "beach.", "é", "10"])).map(
    " ".join
)
corpora = st.lists(st.tuples(captions, st.lists(captions, min_size=1, max_size=5)), min_size=1, max_size=6)


def joined(text: str) -> str:
    """The form that the reference implementation takes: tokens with a space between."""
    return " ".join(tokenize(text))


def reference_scores(
    candidates: list[str], references: list[list[str]], sigma: float = 6.0
) -> tuple[list[float], float, list[float]]:
    """BLEU-1..4, CIDEr-D and the CIDEr-D of each image, as `pycocoevalcap` has them."""
    gts = {i: [joined(text) for text in texts] for i, texts in enumerate(references)}
    res = {i: [joined(text)] for i, text in enumerate(candidates)}
    bleu_scores, _ = Bleu(4).compute_score(gts, res, verbose=0)
    cider_score, cider_image_scores = Cider(sigma=sigma).compute_score(gts, res)
    return bleu_scores, 100 * float(cider_score), [100 * float(score) for score in cider_image_scores]


def assert_equal_to_reference(candidates: list[str], references: list[list[str]], sigma: float = 6.0) -> None:
    """The metrics agree with `pycocoevalcap` to 1e-9."""
    bleu_scores, cider_score, cider_image_scores = reference_scores(candidates, references, sigma)
    assert bleu(candidates, references) == pytest.approx(bleu_scores, rel=1e-9, abs=1e-9)
    assert cider_d(candidates, references, sigma=sigma) == pytest.approx(cider_score, rel=1e-9, abs=1e-9)
    assert cider_d_scores(candidates, references, sigma=sigma) == pytest.approx(
        cider_image_scores, rel=1e-9, abs=1e-9
    )
    gts = {i: [joined(text) for text in texts] for i, texts in enumerate(references)}
    rouge_score, rouge_image_scores = Rouge().compute_score(
        gts, {i: [joined(text)] for i, text in enumerate(candidates)}
    )
    assert rouge_l(candidates, references) == pytest.approx(float(rouge_score), rel=1e-9, abs=1e-9)
    assert rouge_l_scores(candidates, references) == pytest.approx(list(rouge_image_scores), rel=1e-9)


@pytest.mark.parametrize("sigma", [6.0, 1.5])
def test_written_captions_score_as_the_reference_implementation_says(sigma: float) -> None:
    assert_equal_to_reference(CANDIDATES, REFERENCES, sigma)


@given(corpora)
def test_any_captions_score_as_the_reference_implementation_says(
    corpus: list[tuple[str, list[str]]],
) -> None:
    # The reference implementation fails on references that hold no word at all.
    assume(any(tokenize(text) for _, texts in corpus for text in texts))
    assert_equal_to_reference([candidate for candidate, _ in corpus], [texts for _, texts in corpus])


@given(corpora)
def test_scores_stay_in_their_ranges(corpus: list[tuple[str, list[str]]]) -> None:
    candidates = [candidate for candidate, _ in corpus]
    references = [texts for _, texts in corpus]
    assert all(0 <= score <= 1 for score in bleu(candidates, references))
    assert all(0 <= score <= 1 + 1e-9 for score in rouge_l_scores(candidates, references))
    assert all(0 <= score <= 1000 + 1e-9 for score in cider_d_scores(candidates, references))


def test_bleu_by_hand() -> None:
    # All 5 words are in the reference of 6 words; the other is further off in length.
    scores = bleu(["the cat sat the mat"], [["the cat sat on the mat", "x"]], max_n=1)
    assert scores == pytest.approx([math.exp(-1 / 5)])
    scores = bleu(["the the the the the"], [["the cat on the mat"]], max_n=2)
    assert scores[0] == pytest.approx(2 / 5), "the count of a word is clipped to its count in a reference"


def test_bleu_takes_the_shorter_of_two_equally_close_references() -> None:
    # The candidate has 3 words; references of 2 and 4 are equally close, and 2 means no penalty.
    assert bleu(["a b c"], [["a b c d", "a b"]], max_n=1) == pytest.approx([1.0])


def test_rouge_l_by_hand() -> None:
    # "the sat on mat" is in both in that order: 4 of 5 words here, 4 of 6 there.
    precision, recall = 4 / 5, 4 / 6
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l_scores(["the dog sat on mat"], [["the cat sat on the mat"]]) == pytest.approx([expected])


def test_rouge_l_takes_precision_and_recall_from_the_reference_that_is_best_for_each() -> None:
    # The first has all words of the candidate, the second has no other.
    assert rouge_l(["a b"], [["a x b y", "b"]]) == pytest.approx(1.0)


def test_a_perfect_caption() -> None:
    references = [["a dog runs on the beach"], ["two cats sleep on a bed"]]
    candidates = [texts[0] for texts in references]
    assert bleu(candidates, references) == pytest.approx([1, 1, 1, 1])
    assert rouge_l(candidates, references) == pytest.approx(1)
    assert cider_d(candidates, references) == pytest.approx(1000)


def test_an_empty_candidate_scores_nothing() -> None:
    assert bleu([""], [["a dog"]]) == [0, 0, 0, 0]
    assert rouge_l([""], [["a dog"]]) == 0
    assert cider_d_scores(["", "a cat"], [["a dog"], ["a cat"]])[0] == 0
    assert_equal_to_reference(["", "a cat"], [["a dog"], ["a cat"]])


def test_a_single_image_has_no_cider() -> None:
    assert cider_d(["a dog"], [["a dog"]]) == 0


def test_bleu_returns_as_many_values_as_asked() -> None:
    assert bleu(CANDIDATES, REFERENCES, max_n=2) == bleu(CANDIDATES, REFERENCES)[:2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A dog's  T-shirt, (red)!", ["a", "dogs", "tshirt", "red"]),
        ("ÉCLAIR\tau\nchocolat", ["éclair", "au", "chocolat"]),
        ("snake_case & $5", ["snakecase", "5"]),
        (" ... ", []),
        ("", []),
    ],
)
def test_tokenize(text: str, words: list[str]) -> None:
    assert tokenize(text) == words


@given(st.text())
def test_tokenize_is_idempotent(text: str) -> None:
    assert tokenize(joined(text)) == tokenize(text)


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        (["a"], [], "1 candidates, but references for 0 images"),
        ([], [], "no captions to score"),
        (["a"], [[]], "image 0 has no reference"),
        (["a", "b"], [["a"], "b"], "references of image 1 must be a sequence"),
    ],
)
def test_what_can_not_be_scored_is_refused(
    candidates: list[str], references: list[list[str]], message: str
) -> None:
    for metric in (bleu, rouge_l, cider_d, cider_d_scores):
        with pytest.raises(ValueError, match=message):
            metric(candidates, references)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match="max_n"):
        bleu(["a"], [["a"]], max_n=0)
    for sigma in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="sigma"):
            cider_d(["a"], [["a"]], sigma=sigma)


def test_importing_the_metrics_loads_no_heavy_library() -> None:
    code = "import sys, model_training.metrics; print({'tensorflow', 'keras', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
