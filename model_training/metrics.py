"""How good captions are: corpus BLEU, ROUGE-L and CIDEr-D, in pure Python; METEOR is in `meteor.py`.

All follow the COCO caption evaluation code (`pycocoevalcap`), whose figures are the ones that papers
print, to the last digits; `tests/training/test_metrics.py` compares them live. That code needs Java to
tokenize; here `tokenize` does it.

Throughout, `candidates[i]` is the caption of image i and `references[i]` what people wrote about it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from batchcap.captioner.tokenizer import standardize

__all__ = [
    "CiderD",
    "bleu",
    "check_captions",
    "cider_d",
    "cider_d_scores",
    "rouge_l",
    "rouge_l_scores",
    "tokenize",
]

_NGram = tuple[str, ...]

# CIDEr averages over n-grams of 1 to 4 words (Vedantam et al. 2015, section 4).
_CIDER_MAX_N = 4

# How much more recall counts in ROUGE-L than precision.
_ROUGE_BETA = 1.2

# The COCO evaluation code adds these to the counts, so that an n-gram precision without one match is tiny
# rather than zero. Published figures contain them, hence so do ours.
_BLEU_TINY = 1e-15
_BLEU_SMALL = 1e-9


def tokenize(text: str) -> list[str]:
    """Splits a caption into words as the captioner's tokenizer does: lower case, punctuation deleted.

    Published figures are usually made with Stanford's PTB tokenizer. That one differs:

    * it splits clitics and possessives: "dog's" gives "dog 's", here "dogs";
    * it keeps hyphens within a word: "t-shirt" stays as it is, here it becomes "tshirt";
    * it keeps symbols such as "&", "$" and "%" as words of their own;
    * it knows punctuation beyond ASCII, which here stays part of its word.

    Args:
        text: a caption as a person or a model wrote it.

    Returns:
        Its words in lower case; none if it holds nothing but punctuation and blanks.
    """
    return standardize(text).split()


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]], max_n: int = 4) -> list[float]:
    """Corpus BLEU-1 to BLEU-`max_n`.

    BLEU-n is the geometric mean of the clipped n-gram precisions of orders 1 to n, taken over the whole
    corpus, times the brevity penalty `min(1, exp(1 - r / c))`; c is the length of all candidates and r
    that of the references, of which for each image the closest in length counts (the shorter on a tie).
    Source: Papineni, Roukos, Ward, Zhu, "BLEU: a Method for Automatic Evaluation of Machine Translation",
    ACL 2002, section 2.3.

    Args:
        candidates: one caption an image.
        references: for each image its reference captions, at least one.
        max_n: the longest n-gram.

    Returns:
        `max_n` values from 0 to 1, BLEU-1 first.

    Raises:
        ValueError: `max_n` is below 1, there is nothing to score, or references are missing.
    """
    if max_n < 1:
        raise ValueError(f"max_n must be at least 1, not {max_n}")
    check_captions(candidates, references)
    candidate_length = reference_length = 0
    matches = [0] * max_n
    totals = [0] * max_n
    for candidate, image_references in zip(candidates, references, strict=True):
        words = tokenize(candidate)
        reference_words = [tokenize(reference) for reference in image_references]
        candidate_length += len(words)
        reference_length += min(
            (len(reference) for reference in reference_words),
            key=lambda length: (abs(length - len(words)), length),
        )
        for order in range(max_n):
            counts = _count_ngrams(words, order + 1)
            # `|` keeps the larger count of each n-gram, `&` the smaller: this is the clipping.
            ceiling: Counter[_NGram] = Counter()
            for reference in reference_words:
                ceiling |= _count_ngrams(reference, order + 1)
            matches[order] += (counts & ceiling).total()
            totals[order] += counts.total()

    length_ratio = (candidate_length + _BLEU_TINY) / (reference_length + _BLEU_SMALL)
    penalty = math.exp(1 - 1 / length_ratio) if length_ratio < 1 else 1.0
    scores = []
    product = 1.0
    for order in range(max_n):
        product *= (matches[order] + _BLEU_TINY) / (totals[order] + _BLEU_SMALL)
        scores.append(penalty * product ** (1 / (order + 1)))
    return scores


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L of a corpus: the mean of `rouge_l_scores`.

    Args:
        candidates: one caption an image.
        references: for each image its reference captions, at least one.

    Returns:
        0 to 1.

    Raises:
        ValueError: there is nothing to score, or references are missing.
    """
    scores = rouge_l_scores(candidates, references)
    return math.fsum(scores) / len(scores)


def rouge_l_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-L of each image, by the longest words in common, in order, with gaps allowed.

    Precision P is the length of that subsequence over the candidate's, recall R over the reference's, each
    the best of all references, even of two different ones; `(1 + beta^2) P R / (R + beta^2 P)`.
    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", ACL workshop 2004, section 3.1;
    beta = 1.2 and the best of each are the COCO evaluation code's.

    Args:
        candidates: one caption an image.
        references: for each image its reference captions, at least one.

    Returns:
        One score an image, 0 to 1.

    Raises:
        ValueError: there is nothing to score, or references are missing.
    """
    check_captions(candidates, references)
    scores = []
    for candidate, texts in zip(candidates, references, strict=True):
        # The reference code takes a caption without words for one empty word.
        words = tokenize(candidate) or [""]
        others = [tokenize(text) or [""] for text in texts]
        common = [_common_length(words, other) for other in others]
        precision = max(common) / len(words)
        recall = max(length / len(other) for length, other in zip(common, others, strict=True))
        weight = _ROUGE_BETA**2
        scores.append((1 + weight) * precision * recall / (recall + weight * precision) if recall else 0.0)
    return scores


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]], *, sigma: float = 6.0) -> float:
    """CIDEr-D of a corpus, in the scale of the tables in papers: about 50 for a small model on Flickr8k.

    This is 100 times what `pycocoevalcap`'s `Cider` returns (50.7 here is 0.507 there). That class bears
    the name of plain CIDEr but computes the D variant: see its `cider_scorer.py`, which clips the
    candidate's weights, applies the gaussian penalty on lengths and multiplies by 10.

    Args:
        candidates: one caption an image.
        references: for each image its reference captions, at least one. Document frequencies come from
            these, so a score depends on the whole set and scores of different sets can't be compared.
        sigma: width of the gaussian penalty, in words of difference in length.

    Returns:
        The mean of `cider_d_scores`: from 0 to 1000. It is 0 for a single image, since every n-gram of
        its references is then in all documents and weighs nothing.

    Raises:
        ValueError: `sigma` isn't positive, there is nothing to score, or references are missing.
    """
    scores = cider_d_scores(candidates, references, sigma=sigma)
    return math.fsum(scores) / len(scores)


def cider_d_scores(
    candidates: Sequence[str], references: Sequence[Sequence[str]], *, sigma: float = 6.0
) -> list[float]:
    """CIDEr-D of each image, in the scale of `cider_d`.

    For n from 1 to 4 a caption is a vector of tf-idf weights, one for each n-gram: its count times
    `log(images / images with the n-gram in a reference)`. A candidate c and a reference s score
    `exp(-(len c - len s)^2 / (2 sigma^2)) * min(c, s) . s / (|c| |s|)`; the mean over references and over n,
    times 10, is the image's CIDEr-D.
    Source: Vedantam, Zitnick, Parikh, "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015,
    sections 4 and 7.

    Args:
        candidates: one caption an image.
        references: for each image its reference captions, at least one.
        sigma: width of the gaussian penalty, in words of difference in length.

    Returns:
        One score an image, from 0 to 1000.

    Raises:
        ValueError: `sigma` isn't positive, there is nothing to score, or references are missing.
    """
    check_captions(candidates, references)
    scorer = CiderD(references, sigma=sigma)
    return [scorer.score(candidate, row) for row, candidate in enumerate(candidates)]


class CiderD:
    """CIDEr-D of single captions against the references of a fixed set; see `cider_d_scores`.

    Args:
        references: for each image its reference captions, at least one.
        sigma: width of the gaussian penalty, in words of difference in length.

    Raises:
        ValueError: `sigma` isn't positive.
    """

    def __init__(self, references: Sequence[Sequence[str]], *, sigma: float = 6.0) -> None:
        if not sigma > 0:
            raise ValueError(f"sigma must be positive, not {sigma}")
        self._sigma = sigma
        counted = [[_count_all_ngrams(text) for text in texts] for texts in references]
        document_frequency = Counter(
            ngram for of_image in counted for ngram in {n for counts in of_image for n in counts}
        )
        self._log_images = math.log(len(references))
        self._inverse_frequency = {
            ngram: self._log_images - math.log(df) for ngram, df in document_frequency.items()
        }
        self._references = [[self._vector(counts) for counts in of_image] for of_image in counted]

    def score(self, candidate: str, row: int) -> float:
        """The score of a caption of the image `references[row]`, from 0 to 1000."""
        vector = self._vector(_count_all_ngrams(candidate))
        references = self._references[row]
        total = math.fsum(_similarity(vector, reference, self._sigma) for reference in references)
        # 10 is CIDEr-D's own factor, 100 leads to the scale of the tables.
        return 100 * 10 * total / len(references)

    def agreement(self, row: int) -> list[float]:
        """The score of each reference of an image against the others, from 0 to 1000; 0 without others."""
        references = self._references[row]
        return [
            100
            * 10
            * sum(_similarity(one, other, self._sigma) for other in references if other is not one)
            / max(len(references) - 1, 1)
            for one in references
        ]

    def _vector(self, counts: Counter[_NGram]) -> "_TfIdf":
        return _tf_idf(counts, self._inverse_frequency, self._log_images)


@dataclass(frozen=True, slots=True)
class _TfIdf:
    """A caption as tf-idf vectors."""

    weights: dict[_NGram, float]
    norms: list[float]  # of the n-grams of 1 word, 2 words and so on
    bigram_count: int


def _tf_idf(counts: Counter[_NGram], inverse_frequency: dict[_NGram, float], log_images: float) -> _TfIdf:
    # An n-gram that no reference has counts as if one had it: log(images / 1).
    weights = {ngram: count * inverse_frequency.get(ngram, log_images) for ngram, count in counts.items()}
    squares = [0.0] * _CIDER_MAX_N
    bigram_count = 0
    for ngram, weight in weights.items():
        squares[len(ngram) - 1] += weight * weight
        if len(ngram) == 2:
            bigram_count += counts[ngram]
    return _TfIdf(weights, [math.sqrt(square) for square in squares], bigram_count)


def _similarity(candidate: _TfIdf, reference: _TfIdf, sigma: float) -> float:
    """The mean over n of the clipped cosine, with the penalty on lengths: 0 to 1."""
    products = [0.0] * _CIDER_MAX_N
    for ngram, weight in candidate.weights.items():
        reference_weight = reference.weights.get(ngram)
        if reference_weight:
            products[len(ngram) - 1] += min(weight, reference_weight) * reference_weight
    cosine_sum = sum(
        product / (candidate_norm * reference_norm)
        for product, candidate_norm, reference_norm in zip(
            products, candidate.norms, reference.norms, strict=True
        )
        if product
    )
    # The reference code takes the number of bigrams for the length. It is the number of words less one,
    # so differences agree, but that captions of no word and of one word are equally long.
    difference = candidate.bigram_count - reference.bigram_count
    return cosine_sum / _CIDER_MAX_N * math.exp(-(difference**2) / (2 * sigma**2))


def _common_length(words: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence, by dynamic programming, a row at a time."""
    row = [0] * (len(other) + 1)
    for word in words:
        diagonal = 0
        for place, other_word in enumerate(other, start=1):
            above = row[place]
            row[place] = diagonal + 1 if word == other_word else max(above, row[place - 1])
            diagonal = above
    return row[-1]


def _count_all_ngrams(text: str) -> Counter[_NGram]:
    words = tokenize(text)
    return Counter(ngram for order in range(_CIDER_MAX_N) for ngram in _ngrams(words, order + 1))


def _count_ngrams(words: Sequence[str], order: int) -> Counter[_NGram]:
    return Counter(_ngrams(words, order))


def _ngrams(words: Sequence[str], order: int) -> Iterable[_NGram]:
    """All runs of `order` words; none if there are fewer words."""
    return zip(*(words[start:] for start in range(order)), strict=False)


def check_captions(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Refuses what no metric can score.

    Raises:
        ValueError: there is nothing to score, or references are missing.
    """
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates, but references for {len(references)} images")
    if not candidates:
        raise ValueError("there are no captions to score")
    for index, texts in enumerate(references):
        # A lone string is a sequence of strings too: of its letters.
        if isinstance(texts, str):
            raise ValueError(f"the references of image {index} must be a sequence of captions, not a string")
        if not texts:
            raise ValueError(f"image {index} has no reference caption")
