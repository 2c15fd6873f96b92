"""METEOR 1.5 for English captions, in pure Python: the figure of the COCO caption evaluation, without Java.

A caption is aligned with each of its references: the same words, the same stems, synonyms, and phrases that
are known paraphrases. The score is a weighted F-mean of what is aligned, less a penalty for every break of
the order. Sources: Denkowski, Lavie, "Meteor Universal: Language Specific Translation Evaluation for Any
Target Language", WMT 2014 (formula, function words, parameters); the same, "Meteor 1.3: Automatic Metric for
Reliable Optimization and Evaluation of Machine Translation Systems", WMT 2011 (matchers, aligner).

The tables (WordNet's synonyms, function words, paraphrases) are 60 MB and not ours: they are read from an
installed `pycocoevalcap`, which is found but never imported. `tests/training/test_meteor.py` compares with
its Java program, which is followed where the papers leave a choice. About one caption in forty differs, by
0.01 to 0.05, mostly where alignments are equally good or the stemmers differ (`evening`, `university`); a
corpus differs by less than 0.001.
"""

import gzip
import importlib.util
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from itertools import compress
from operator import add
from pathlib import Path
from typing import NamedTuple

from snowballstemmer.english_stemmer import EnglishStemmer

from batchcap.errors import TrainingError
from model_training.metrics import check_captions, tokenize

__all__ = ["meteor", "meteor_scores", "meteor_tables"]

# The parameters for English, and the weights of the four matchers (Denkowski, Lavie 2014, table 1).
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.20, 0.60, 0.75
_EXACT, _STEM, _SYNONYM, _PARAPHRASE = range(4)
_WEIGHTS = (1.0, 0.6, 0.8, 0.6)

# Partial alignments that the search keeps.
_BEAM_SIZE = 40
# No phrase of the table of paraphrases has more words.
_MAX_PHRASE = 6
# Read at once of the table of paraphrases, unpacked.
_CHUNK_BYTES = 4 << 20

# WordNet's rules of detachment: the first that leads to a known word gives its base form. Source: the manual
# page morphy(7WN) of WordNet 3.
_DETACHMENTS = (
    *(("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man")),
    *(("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    *(("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
)

_Words = Sequence[str]


def meteor_tables() -> Path | None:
    """The folder of METEOR's tables in an installed `pycocoevalcap`; None where there is none."""
    found = importlib.util.find_spec("pycocoevalcap")
    for place in (found.submodule_search_locations or ()) if found else ():
        folder = Path(place) / "meteor"
        if (folder / "meteor-1.5.jar").is_file() and (folder / "data" / "paraphrase-en.gz").is_file():
            return folder
    return None


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """METEOR of a corpus, as papers on captions print it.

    What is counted of all images, each with its best reference, is added up before the formula is applied:
    this is not the mean of `meteor_scores`.

    Args:
        candidates: one caption an image.
        references: for each image its reference captions, at least one.

    Returns:
        0 to 1.

    Raises:
        ValueError: there is nothing to score, or references are missing.
        TrainingError: the tables are missing or damaged.
    """
    total = _Statistics()
    for statistics in _score_images(candidates, references):
        total = _Statistics(*map(add, total, statistics))
    return total.score()


def meteor_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """METEOR of each image, with the best of its references.

    Args:
        candidates: one caption an image.
        references: for each image its reference captions, at least one.

    Returns:
        One score an image, 0 to 1.

    Raises:
        ValueError: there is nothing to score, or references are missing.
        TrainingError: the tables are missing or damaged.
    """
    return [statistics.score() for statistics in _score_images(candidates, references)]


class _Statistics(NamedTuple):
    """What the formula needs of an alignment; those of several images add up.

    A content word weighs delta and a function word 1 - delta; if aligned, times the weight of its matcher.
    """

    candidate_aligned: float = 0.0
    candidate_weight: float = 0.0
    reference_aligned: float = 0.0
    reference_weight: float = 0.0
    aligned_words: float = 0.0  # the mean of both sides
    chunks: int = 0  # 0 where all words are aligned in one chunk, for there is nothing to punish

    def score(self) -> float:
        """(1 - penalty) * F-mean, 0 to 1 (Denkowski, Lavie 2014, section 2)."""
        if not self.aligned_words:
            return 0.0
        precision = self.candidate_aligned / self.candidate_weight
        recall = self.reference_aligned / self.reference_weight
        f_mean = precision * recall / (_ALPHA * precision + (1 - _ALPHA) * recall)
        penalty: float = _GAMMA * (self.chunks / self.aligned_words) ** _BETA
        return (1 - penalty) * f_mean


def _score_images(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[_Statistics]:
    check_captions(candidates, references)
    folder = meteor_tables()
    if folder is None:
        raise TrainingError("METEOR needs the tables of pycocoevalcap; pip install pycocoevalcap")
    candidate_words = [tokenize(text) for text in candidates]
    reference_words = [[tokenize(text) for text in texts] for texts in references]
    paraphrases = _read_paraphrases(
        folder,
        {phrase for words in candidate_words for phrase in _phrases(words).values()},
        {phrase for each in reference_words for words in each for phrase in _phrases(words).values()},
    )
    matcher = _Matcher(_read_tables(folder), paraphrases)
    return [
        # The first of the best.
        max((matcher.compare(words, other) for other in others), key=_Statistics.score)
        for words, others in zip(candidate_words, reference_words, strict=True)
    ]


def _phrases(words: _Words) -> dict[tuple[int, int], str]:
    """Every phrase that may have a paraphrase, by its first word and its length."""
    return {
        (start, length): " ".join(words[start : start + length])
        for start in range(len(words))
        for length in range(1, min(_MAX_PHRASE, len(words) - start) + 1)
    }


class _Match(NamedTuple):
    """Words of a candidate that mean the same as words of a reference."""

    start: int
    length: int
    reference_start: int
    reference_length: int
    matcher: int

    def positions(self) -> range:
        return range(self.start, self.start + self.length)

    def reference_positions(self) -> range:
        return range(self.reference_start, self.reference_start + self.reference_length)


class _Matcher:
    """Finds what can be aligned, and compares a candidate with a reference.

    Args:
        tables: of English.
        paraphrases: of each phrase those that matter.
    """

    def __init__(self, tables: "_Tables", paraphrases: Mapping[str, Counter[str]]) -> None:
        self._tables = tables
        self._paraphrases = paraphrases
        self._stem = lru_cache(maxsize=None)(EnglishStemmer().stemWord)
        self._meanings = lru_cache(maxsize=None)(tables.meanings)

    def compare(self, candidate: _Words, reference: _Words) -> _Statistics:
        chosen = _align(candidate, reference, list(self._matches(candidate, reference)))
        weights, reference_weights = self._weights(candidate), self._weights(reference)
        aligned = sum(match.length for match in chosen)
        reference_aligned = sum(match.reference_length for match in chosen)
        chunks = _count_chunks(chosen)
        if (aligned, reference_aligned, chunks) == (len(candidate), len(reference), 1):
            chunks = 0
        return _Statistics(
            sum(_WEIGHTS[match.matcher] * weights[place] for match in chosen for place in match.positions()),
            sum(weights),
            sum(
                _WEIGHTS[match.matcher] * reference_weights[place]
                for match in chosen
                for place in match.reference_positions()
            ),
            sum(reference_weights),
            (aligned + reference_aligned) / 2,
            chunks,
        )

    def _weights(self, words: _Words) -> list[float]:
        return [1 - _DELTA if word in self._tables.function_words else _DELTA for word in words]

    def _matches(self, candidate: _Words, reference: _Words) -> Iterator[_Match]:
        """All that could be aligned, the strongest matcher first."""
        for matcher, is_same in ((_EXACT, str.__eq__), (_STEM, self._same_stem), (_SYNONYM, self._synonyms)):
            for place, word in enumerate(candidate):
                for reference_place, reference_word in enumerate(reference):
                    if (matcher == _EXACT or word != reference_word) and is_same(word, reference_word):
                        yield _Match(place, 1, reference_place, 1, matcher)
        reference_phrases = _phrases(reference)
        for (start, length), phrase in _phrases(candidate).items():
            if paraphrases := self._paraphrases.get(phrase):
                for (reference_start, reference_length), other in reference_phrases.items():
                    # A pair that the table has both ways competes with itself, as in the reference.
                    for _ in range(paraphrases[other]):
                        yield _Match(start, length, reference_start, reference_length, _PARAPHRASE)

    def _same_stem(self, word: str, other: str) -> bool:
        return bool(self._stem(word) == self._stem(other))

    def _synonyms(self, word: str, other: str) -> bool:
        return not self._meanings(word).isdisjoint(self._meanings(other))


class _Path(NamedTuple):
    """A partial alignment: what the search has made of the reference up to some word."""

    gain: int = 0
    chunks: int = 0  # without the one that is open
    open_end: int = -1  # the word of the candidate that would prolong the open chunk; -1 if none is open
    next_reference: int = 0  # the first word of the reference that is free
    used: int = 0  # words of the candidate, as bits
    matches: tuple[_Match, ...] = ()

    def take(self, match: _Match) -> "_Path":
        return _Path(
            self.gain + _gain(match),
            self.chunks + (self.open_end not in (-1, match.start)),
            match.start + match.length,
            match.reference_start + match.reference_length,
            self.used | _bits(match),
            (*self.matches, match),
        )

    def close_chunk(self) -> "_Path":
        return self._replace(chunks=self.chunks + (self.open_end != -1), open_end=-1)

    def rank(self) -> tuple[int, int]:
        return -self.gain, self.chunks


def _gain(match: _Match) -> int:
    """The words that a match covers, by its weight.

    The reference implementation adds up whole numbers and drops the fractions: a single stem or synonym that
    competes with others counts for nothing, so that it is aligned only where that makes no new chunk.
    """
    weight = _WEIGHTS[match.matcher]
    return int(weight * match.length) + int(weight * match.reference_length)


def _bits(match: _Match) -> int:
    return ((1 << match.length) - 1) << match.start


def _align(candidate: _Words, reference: _Words, matches: Sequence[_Match]) -> tuple[_Match, ...]:
    """Chooses matches so that each word is in one at most (Denkowski, Lavie 2011, section 2).

    A beam search goes through the reference word by word; it wants the most words covered, and then the
    fewest chunks. What competes with nothing is always taken.
    """
    covers, reference_covers = [0] * len(candidate), [0] * len(reference)
    starting: list[list[_Match]] = [[] for _ in reference]
    for match in matches:
        starting[match.reference_start].append(match)
        for place in match.positions():
            covers[place] += 1
        for place in match.reference_positions():
            reference_covers[place] += 1
    paths = [_Path()]
    for place, here in enumerate(starting):
        is_fixed = any(
            all(covers[each] == 1 for each in match.positions())
            and all(reference_covers[each] == 1 for each in match.reference_positions())
            for match in here
        )
        extended = []
        for path in paths:
            if path.next_reference > place:
                extended.append(path)
                continue
            extended += [path.take(match) for match in here if not path.used & _bits(match)]
            if not is_fixed:
                extended.append(path.close_chunk())
        # Sorted only where some must go: among equals, what was found first wins.
        paths = sorted(extended, key=_Path.rank)[:_BEAM_SIZE] if len(extended) > _BEAM_SIZE else extended
    return min((path.close_chunk() for path in paths), key=_Path.rank).matches


def _count_chunks(matches: Sequence[_Match]) -> int:
    """The runs of matches, ascending in the reference, that follow each other without a gap on both sides."""
    ends = {(match.start + match.length, match.reference_start + match.reference_length) for match in matches}
    return sum((match.start, match.reference_start) not in ends for match in matches)


class _Tables(NamedTuple):
    """What is known of English words."""

    function_words: frozenset[str]
    synsets: dict[str, str]  # numbers of WordNet's sets of synonyms, with blanks between
    base_forms: dict[str, list[str]]  # of irregular forms

    def meanings(self, word: str) -> frozenset[str]:
        """The sets of synonyms of a word and of its base form."""
        bases = self.base_forms.get(word, [])
        if not bases and len(word) > 2:
            detached = (word.removesuffix(end) + new for end, new in _DETACHMENTS if word.endswith(end))
            bases = [base for base in detached if base in self.synsets][:1]
        return frozenset(number for each in (word, *bases) for number in self.synsets.get(each, "").split())


@cache
def _read_tables(folder: Path) -> _Tables:
    names = ("function/english.words", "synonym/english.synsets", "synonym/english.exceptions")
    try:
        with zipfile.ZipFile(folder / "meteor-1.5.jar") as jar:
            function_words, synsets, exceptions = (jar.read(name).decode().split("\n") for name in names)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise TrainingError(f"can't read METEOR's tables in {folder}: {error}") from error
    base_forms: dict[str, list[str]] = {}
    # In both, a line has a word and the next one what belongs to it.
    for base, forms in zip(exceptions[::2], exceptions[1::2], strict=False):
        for form in forms.split():
            base_forms.setdefault(form, []).append(base)
    return _Tables(
        frozenset(function_words), dict(zip(synsets[::2], synsets[1::2], strict=False)), base_forms
    )


def _read_paraphrases(folder: Path, candidates: set[str], references: set[str]) -> dict[str, Counter[str]]:
    """The paraphrases of the candidates' phrases that are among the references' phrases.

    Of the 5 million pairs in the table, which hold both ways, a few thousand can matter; only these are kept.
    """
    wanted = {phrase.encode("utf-8", "replace") for phrase in candidates}
    known = {phrase.encode("utf-8", "replace") for phrase in references}
    either = wanted | known
    paraphrases: dict[str, Counter[str]] = {}
    try:
        with gzip.open(folder / "data" / "paraphrase-en.gz") as file:
            for phrases, others in _read_pairs(file):
                # Nearly all pairs are passed over, by `map` and `compress` in a third of a loop's time.
                likely = compress(zip(phrases, others, strict=True), map(either.__contains__, phrases))
                for phrase, other in likely:
                    if other in either:
                        for one, two in ((phrase, other), (other, phrase)):
                            if one in wanted and two in known:
                                paraphrases.setdefault(one.decode(), Counter())[two.decode()] += 1
    except (OSError, EOFError, ValueError) as error:
        raise TrainingError(f"can't read METEOR's paraphrases in {folder}: {error}") from error
    return paraphrases


def _read_pairs(file: gzip.GzipFile) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Phrases and the paraphrase of each, some ten thousand at once."""
    lines: list[bytes] = []
    rest = b""
    while chunk := file.read(_CHUNK_BYTES):
        *whole, rest = (rest + chunk).split(b"\n")
        lines += whole
        # Three lines each: probability, phrase, its paraphrase.
        end = len(lines) // 3 * 3
        yield lines[1:end:3], lines[2:end:3]
        lines = lines[end:]
