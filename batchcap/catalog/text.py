"""Words: how a caption is folded and stemmed for search, and how a query is read.

Both sides of a search go through the same functions, in Python, so that every database finds the same. The
database's own tokenizer sees nothing but letters and digits, in lower case and without accents.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import NamedTuple

from snowballstemmer.english_stemmer import EnglishStemmer

# A letter or a digit. What SQLite's tokenizer passes over is none, so that every database finds the same:
# vowels and tones of New Tai Lue and two signs of Vedic, which were marks in the Unicode that it has.
LETTER = r"[^\W_\u19b0-\u19c0\u19c8\u19c9\u1cf2\u1cf3]"
# Letters and digits, with the marks that may follow them in decomposed text.
_WORD = re.compile(rf"{LETTER}(?:{LETTER}|[\u0300-\u036f])*")
_TOKEN = re.compile(rf"{LETTER}+")
# A query: -"a phrase", or -word*; whatever else is there is skipped.
_TERM = re.compile(r'(?P<minus>(?<!\S)-)?(?:"(?P<phrase>[^"]*)"?|(?P<word>[^\s"]+))')

# The class itself and not `snowballstemmer.stemmer()`, which takes another implementation where one is
# installed: what is indexed must not depend on that. It keeps the word it works on, hence the lock.
_stemmer = EnglishStemmer()
_stemmer_lock = Lock()


class Word(NamedTuple):
    """A word of a text: where it stands, and its stems (most often one)."""

    start: int
    end: int
    folded: tuple[str, ...]
    stems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Term:
    """One condition of a query.

    Args:
        stems: what must stand there, in this order; never empty.
        prefix: the folded beginning of a word, for `word*`; it may be met in place of the last stem.
        negated: whether it must not stand there.
        alternative: whether the term before it would do as well; neither of them is negated then.
    """

    stems: tuple[str, ...]
    prefix: str | None = None
    negated: bool = False
    alternative: bool = False


def fold(text: str) -> str:
    """Text without case, accents and typographic variants: "Café" -> "cafe", "ﬁ" -> "fi", "ß" -> "ss"."""
    # Compatibility forms may hide capitals, and folding may bring new marks, hence twice.
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(character for character in folded if not unicodedata.combining(character))


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """The stem of a folded English word: "bicycles" -> "bicycl"."""
    with _stemmer_lock:
        return str(_stemmer.stemWord(word))


@lru_cache(maxsize=65_536)
def _forms(word: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The folded forms of a word as it is written, most often one, and their stems.

    Captions have few words, and folding takes several times as long as inserting a row.
    """
    folded = tuple(_TOKEN.findall(fold(word)))
    return folded, tuple(map(stem, folded))


def words(text: str) -> Iterator[Word]:
    """The words of a text, in order."""
    for match in _WORD.finditer(text):
        folded, stems = _forms(match.group())
        if folded:
            yield Word(match.start(), match.end(), folded, stems)


def search_text(text: str) -> str:
    """What is indexed of a caption: its stems, separated by spaces."""
    return " ".join(token for word in _WORD.findall(text) for token in _forms(word)[1])


def parse_query(query: str) -> list[Term]:
    """Reads a query: words and "phrases" that must all be there, `begin*`, and `-word` that must not.

    Between two of them `OR`, in capitals, says that one will do: `red dog OR cat` is red and a dog or a cat.
    Anything is a query; what makes no sense in it is skipped, such as an `OR` at the end or beside `-word`.
    """
    terms: list[Term] = []
    after_or = False
    for match in _TERM.finditer(query):
        phrase = match["phrase"]
        if match.group() == "OR":
            after_or = True
            continue
        found = list(words(match["word"] if phrase is None else phrase))
        if not found:
            continue
        stems = tuple(token for word in found for token in word.stems)
        # Where a word is cut its stem is a guess, so the letters as they are must do as well.
        cut = phrase is None and match["word"].endswith("*") and len(stems) == 1
        negated = match["minus"] is not None
        alternative = after_or and not negated and bool(terms) and not terms[-1].negated
        terms.append(Term(stems, found[-1].folded[-1] if cut else None, negated, alternative))
        after_or = False
    return terms


def highlight(caption: str, terms: list[Term]) -> tuple[tuple[int, int], ...]:
    """Where the words of a query stand in a caption.

    Args:
        caption: as it is shown.
        terms: of the query; negated ones are left out.

    Returns:
        (start, end) of each word, ascending.
    """
    wanted = {token for term in terms if not term.negated for token in term.stems}
    prefixes = tuple(term.prefix for term in terms if term.prefix is not None and not term.negated)
    return tuple(
        (word.start, word.end)
        for word in words(caption)
        if not wanted.isdisjoint(word.stems) or any(token.startswith(prefixes) for token in word.folded)
    )
