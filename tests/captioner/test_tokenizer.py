from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcap.captioner.tokenizer import END, PADDING, START, UNKNOWN, Tokenizer, standardize


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man's T-shirt , red .", "a mans tshirt red"),
        ("  two\tdogs\n run ", "two dogs run"),
        ("Größe 42", "größe 42"),
        ("no\u00a0break", "no break"),
        ("<start> <end>", "start end"),
        ("?!.", ""),
        ("", ""),
    ],
)
def test_standardize(text: str, expected: str) -> None:
    assert standardize(text) == expected


@given(st.text())
def test_standardize_twice_is_once(text: str) -> None:
    once = standardize(text)
    assert standardize(once) == once
    assert all(standardize(word) == word for word in once.split())


def test_vocabulary_is_by_frequency_then_alphabet() -> None:
    tokenizer = Tokenizer.from_captions(["A dog, a cat.", "a zebra and a dog", "bird"])
    assert tokenizer.encode("a dog and bird cat zebra", 8).tolist() == [START, 4, 5, 6, 7, 8, 9, END]


def test_order_of_captions_does_not_matter(tmp_path: Path) -> None:
    captions = ["b a", "c b", "d e", "e"]
    for name, order in (("1", captions), ("2", captions[::-1])):
        Tokenizer.from_captions(order).save(tmp_path / name)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_vocabulary_size_counts_the_special_tokens() -> None:
    tokenizer = Tokenizer.from_captions(["a a a b b c"], vocabulary_size=6)
    assert tokenizer.vocabulary_size == 6
    assert tokenizer.encode("a b c", 5).tolist() == [START, 4, 5, UNKNOWN, END]


def test_min_count_leaves_rare_words_out() -> None:
    tokenizer = Tokenizer.from_captions(["a a b b c"], min_count=2)
    assert tokenizer.decode(tokenizer.encode("a b c", 5)) == "a b <unk>"


def test_encode_pads() -> None:
    token_ids = Tokenizer(["dog"]).encode("Dog!", 6)
    assert token_ids.dtype == np.int32
    assert token_ids.tolist() == [START, 4, END, PADDING, PADDING, PADDING]


@pytest.mark.parametrize(
    ("sequence_length", "expected"),
    [
        (3, [START, 4, END]),
        (4, [START, 4, 5, END]),
        (5, [START, 4, 5, 6, END]),
        (6, [START, 4, 5, 6, END, PADDING]),
    ],
)
def test_encode_cuts_words_but_never_the_end(sequence_length: int, expected: list[int]) -> None:
    assert Tokenizer(["a", "b", "c"]).encode("a b c", sequence_length).tolist() == expected


def test_decode_stops_at_the_first_end() -> None:
    tokenizer = Tokenizer(["a", "b"])
    assert tokenizer.decode([START, 4, PADDING, UNKNOWN, END, 5, END]) == "a <unk>"
    assert tokenizer.decode([START, 4, 5]) == "a b"
    assert tokenizer.decode([START, END]) == ""


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_known_words_survive_the_round_trip(texts: list[str]) -> None:
    tokenizer = Tokenizer.from_captions(texts)
    for text in texts:
        words = standardize(text).split()
        assert tokenizer.decode(tokenizer.encode(text, len(words) + 2)) == standardize(text)


# Lone surrogates are no characters; UTF-8 can't hold them.
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=5))
def test_save_and_load(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "vocabulary.txt"
    tokenizer = Tokenizer.from_captions(texts)
    tokenizer.save(path)
    loaded = Tokenizer.load(path)
    assert loaded.vocabulary_size == tokenizer.vocabulary_size
    for text in texts:
        assert loaded.encode(text, 30).tolist() == tokenizer.encode(text, 30).tolist()


def test_the_file_has_a_token_a_line(tmp_path: Path) -> None:
    Tokenizer(["dog", "größe"]).save(tmp_path / "v")
    assert (tmp_path / "v").read_bytes() == "<pad>\n<unk>\n<start>\n<end>\ndog\ngröße\n".encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"dog\ncat\n",
        b"<pad>\n<unk>\n<start>\n",
        b"<unk>\n<pad>\n<start>\n<end>\ndog\n",
        b"<pad>\n<unk>\n<start>\n<end>\ndog\n\ncat\n",
        b"<pad>\n<unk>\n<start>\n<end>\ndog\ncat\ndog\n",
        b"<pad>\n<unk>\n<start>\n<end>\nDog\n",
        b"<pad>\n<unk>\n<start>\n<end>\ntwo words\n",
        b"<pad>\n<unk>\n<start>\n<end>\ndog \n",
        b"<pad>\n<unk>\n<start>\n<end>\n\xff\xfe\n",
    ],
)
def test_a_damaged_vocabulary_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "v").write_bytes(content)
    with pytest.raises(ValueError):
        Tokenizer.load(tmp_path / "v")
