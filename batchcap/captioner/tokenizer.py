"""Captions <-> token ids, by a vocabulary of whole words. Nothing here imports TensorFlow."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np

PADDING, UNKNOWN, START, END = range(4)
_SPECIAL_TOKENS = ("<pad>", "<unk>", "<start>", "<end>")

_PUNCTUATION = str.maketrans("", "", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def standardize(text: str) -> str:
    """Lower case, punctuation stripped, single spaces: the only form in which a caption is a caption.

    >>> standardize("A man's T-shirt , red .")
    'a mans tshirt red'
    """
    return " ".join(text.lower().translate(_PUNCTUATION).split())


class Tokenizer:
    """Splits standardized captions at spaces and maps words to ids.

    Ids 0 to 3 are padding, unknown, start and end; words follow, the most frequent first.

    Args:
        words: the vocabulary without the special tokens, each word once, in the order of their ids.

    Raises:
        ValueError: a word is empty, repeated, or not in the form that `standardize` gives.
    """

    def __init__(self, words: Sequence[str]) -> None:
        for word in words:
            if not word or standardize(word) != word or " " in word:
                raise ValueError(f"{word!r} is not a standardized word")
        self._tokens = (*_SPECIAL_TOKENS, *words)
        self._ids = {token: token_id for token_id, token in enumerate(self._tokens)}
        if len(self._ids) != len(self._tokens):
            raise ValueError("a word stands in the vocabulary twice")

    @classmethod
    def from_captions(
        cls, captions: Iterable[str], *, vocabulary_size: int = 10_000, min_count: int = 1
    ) -> Self:
        """Builds the vocabulary from captions: the most frequent words, ties in alphabetical order.

        Args:
            captions: texts, standardized or not.
            vocabulary_size: at most so many ids, the four special ones included.
            min_count: words seen less often are left out.
        """
        counts = Counter(word for caption in captions for word in standardize(caption).split())
        frequent = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        return cls([word for _, word in frequent[: max(0, vocabulary_size - len(_SPECIAL_TOKENS))]])

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a `vocabulary.txt`: UTF-8, a token a line, the special tokens first.

        Raises:
            ValueError: the file is not such a vocabulary.
        """
        tokens = path.read_text(encoding="utf-8").split("\n")
        if tokens and tokens[-1] == "":
            tokens.pop()
        if tuple(tokens[: len(_SPECIAL_TOKENS)]) != _SPECIAL_TOKENS:
            raise ValueError(f"does not begin with {', '.join(_SPECIAL_TOKENS)}")
        return cls(tokens[len(_SPECIAL_TOKENS) :])

    def save(self, path: Path) -> None:
        """Writes the vocabulary as `load` reads it."""
        path.write_text(self.to_text(), encoding="utf-8")

    def to_text(self) -> str:
        """The content of a `vocabulary.txt`."""
        return "".join(f"{token}\n" for token in self._tokens)

    @property
    def vocabulary_size(self) -> int:
        """The number of ids, special ones included."""
        return len(self._tokens)

    def encode(self, text: str, sequence_length: int) -> np.ndarray:
        """Turns a caption into ids: start, words, end, padding.

        Args:
            text: a caption, standardized or not.
            sequence_length: the length of the result; words that don't fit between start and end are cut.

        Returns:
            int32[sequence_length].
        """
        words = standardize(text).split()[: sequence_length - 2]
        token_ids = np.full(sequence_length, PADDING, dtype=np.int32)
        token_ids[0] = START
        token_ids[1 : len(words) + 1] = [self._ids.get(word, UNKNOWN) for word in words]
        token_ids[len(words) + 1] = END
        return token_ids

    def decode(self, token_ids: Iterable[int]) -> str:
        """Turns ids into text: what stands before the first end, without start and padding."""
        words = []
        for token_id in token_ids:
            if token_id == END:
                break
            if token_id not in (PADDING, START):
                words.append(self._tokens[token_id])
        return " ".join(words)
