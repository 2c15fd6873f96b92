"""Search: what finds what, in which order, and that no query can break it."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, text, update

from batchcap.catalog import Catalog
from batchcap.catalog.tables import Caption, Image, Result
from batchcap.catalog.text import fold, parse_query, search_text, stem

CAPTIONS = {
    "/beach": "a dog runs on a beach",
    "/bikes": "Two Bicycles lean on a wall.",
    "/cafe": "people in front of a Cafe\u0301 in Zürich",
    "/children": "three children are playing",
    "/dogs": "dogs, dogs, dogs",
    "/office": "the oﬃce of a straße",
}


@pytest.fixture
def filled(catalog: Catalog, model, captioned) -> Catalog:
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned(uri, words) for uri, words in CAPTIONS.items()])
    return catalog


@pytest.mark.parametrize(
    ("query", "uris"),
    [
        ("dog", ["/dogs", "/beach"]),
        ("DOGS", ["/dogs", "/beach"]),
        ("dog beach", ["/beach"]),
        ("running dogs", ["/beach"]),
        ('"dog runs"', ["/beach"]),
        ('"runs dog"', []),
        ('"a beach', ["/beach"]),
        ("bicycle", ["/bikes"]),
        ("bicycl*", ["/bikes"]),
        ("bicycle*", ["/bikes"]),
        ("bic*", ["/bikes"]),
        ("child*", ["/children"]),
        ("dog -beach", ["/dogs"]),
        ('dog -"on a beach"', ["/dogs"]),
        ("dog -dogs", []),
        ("-dog", []),
        ("cafe", ["/cafe"]),
        ("CAFÉ", ["/cafe"]),
        ("zurich", ["/cafe"]),
        ("office strasse", ["/office"]),
        ("well-known", []),
        ("", []),
        ('"" - * ""', []),
        ("dog or cafe", []),
        ('dog "OR" cafe', []),
        ("dog OR cafe", ["/cafe", "/dogs", "/beach"]),
        ("dogs OR bicycles OR children", ["/children", "/bikes", "/dogs", "/beach"]),
        ("beach dog OR cafe", ["/beach"]),
        ("dog OR cafe beach", ["/beach"]),
        ('"front of" OR "dog runs"', ["/beach", "/cafe"]),
        ("child* OR bic*", ["/children", "/bikes"]),
        ("dog OR bicycle -beach", ["/bikes", "/dogs"]),
        ("dog OR -beach", ["/dogs"]),
        ("-beach OR dog", ["/dogs"]),
        ("OR dog OR", ["/dogs", "/beach"]),
        ('dog OR OR "" OR bicycle', ["/bikes", "/dogs", "/beach"]),
        ("(zebra OR dog) beach", ["/beach"]),
        ("OR", []),
        ("search_text:dog", []),
        ("NEAR(dog beach)", []),
        ("dog^2", []),
        ("dog') --", ["/dogs", "/beach"]),
        ("\x00dog\ud800", ["/dogs", "/beach"]),
    ],
)
def test_what_is_found(filled: Catalog, query: str, uris: list[str]) -> None:
    result = filled.search(query)
    assert [hit.uri for hit in result.hits] == uris
    assert result.total == len(uris)


@pytest.mark.parametrize("letter", ["\U00030000", "\U0001e900", "\u0904", "\u01c5"])
def test_letters_younger_than_sqlite_are_letters(filled: Catalog, model, captioned, letter: str) -> None:
    assert filled.search(f"{letter} dog").total == filled.search(f"{letter} -dog").total == 0
    with filled.run(["/"], model, {}) as run:
        run.commit([captioned("/letter", f"the letter {letter}")])
    assert [hit.uri for hit in filled.search(f"{letter} -dog").hits] == ["/letter"]


@pytest.mark.parametrize(
    ("query", "highlighted"),
    [
        ("bicycle", "Two [Bicycles] lean on a wall."),
        ("bic* leaning -dog", "Two [Bicycles] [lean] on a wall."),
        ('"front of" cafe', "people in [front] [of] a [Cafe\u0301] in Zürich"),
        ("strasse", "the oﬃce of a [straße]"),
    ],
)
def test_highlights_stand_in_the_text_as_it_was(filled: Catalog, query: str, highlighted: str) -> None:
    (hit,) = filled.search(query).hits
    assert hit.highlighted() == highlighted
    assert hit.highlighted("", "") == hit.caption


def test_more_of_the_alternatives_is_better_and_all_are_highlighted(filled: Catalog) -> None:
    hits = filled.search("people OR beach OR dog").hits
    assert [hit.highlighted() for hit in hits] == [
        "a [dog] runs on a [beach]",
        "[people] in front of a Cafe\u0301 in Zürich",
        "[dogs], [dogs], [dogs]",
    ]


def test_many_alternatives(filled: Catalog) -> None:
    query = " OR ".join([f"word{number}" for number in range(2000)] + ["bicycle"])
    assert [hit.uri for hit in filled.search(query).hits] == ["/bikes"]


def test_pages_and_scores(filled: Catalog) -> None:
    result = filled.search("a")
    assert result.total == 4
    pages = [filled.search("a", limit=1, offset=offset).hits[0] for offset in range(4)]
    assert pages == result.hits
    assert [hit.score for hit in result.hits] == sorted((hit.score for hit in result.hits), reverse=True)
    assert filled.search("a", offset=4).hits == []


def test_one_hit_a_location(filled: Catalog, model, entry) -> None:
    with filled.run(["/"], model, {}) as run:
        run.commit_known([(entry("/copy"), "hash of /beach")])
    assert [hit.uri for hit in filled.search("beach").hits] == ["/beach", "/copy"]


def integrity_check(catalog: Catalog) -> None:
    with catalog._database.write() as connection:
        connection.execute(text("INSERT INTO caption_fts (caption_fts, rank) VALUES ('integrity-check', 1)"))


def test_the_index_follows_the_table(filled: Catalog, model, captioned) -> None:
    integrity_check(filled)
    with filled.run(["/"], model, {}) as run:
        run.commit([captioned(uri, "something else") for uri in CAPTIONS])
    integrity_check(filled)
    with filled._database.write() as connection:
        connection.execute(update(Caption).where(Caption.text.like("%dog%")).values(search_text="cat"))
    integrity_check(filled)
    assert filled.search("dog").total == 0
    assert filled.search("cat").total == 2
    with filled._database.write() as connection:
        gone = Caption.text == CAPTIONS["/cafe"]
        connection.execute(update(Image).where(Image.content_hash == "hash of /cafe").values(caption_id=None))
        connection.execute(delete(Result).where(Result.uri == "/cafe"))
        connection.execute(delete(Caption).where(gone))
    integrity_check(filled)
    assert filled.search("cafe").total == 0


@pytest.fixture(scope="module")
def searched(empty_catalog: Path, tmp_path_factory: pytest.TempPathFactory, model, captioned):
    path = tmp_path_factory.mktemp("searched") / "catalog.db"
    path.write_bytes(empty_catalog.read_bytes())
    with Catalog.open(f"sqlite:///{path}", mode="write") as catalog:
        with catalog.run(["/"], model, {}) as run:
            run.commit([captioned(uri, words) for uri, words in CAPTIONS.items()])
        yield catalog


OPERATORS = ["dog", "beach", "a", '"', "*", "-", "(", ")", ":", "^", "+", ",", " ", " AND ", " OR ", " NOT "]
OPERATORS += ["NEAR", "{", "}", "'", ";", "--", "\x00", "é", "\u0301", "search_text", "caption_fts", "\ud800"]


@settings(max_examples=150, deadline=None)
@given(
    query=st.one_of(
        st.text(max_size=30),
        st.lists(st.sampled_from(OPERATORS), max_size=12).map("".join),
    )
)
def test_anything_is_a_query(searched: Catalog, query: str) -> None:
    result = searched.search(query)
    assert result.total == len(result.hits) <= len(CAPTIONS)
    for hit in result.hits:
        # The naive search: every wanted term stands there, and no unwanted one;
        # and of terms with OR between them, one.
        stems = search_text(hit.caption).split()
        groups: list[bool] = []
        for term in parse_query(query):
            phrase = f" {' '.join(term.stems)} " in f" {' '.join(stems)} "
            begun = term.prefix is not None and any(token.startswith(term.prefix) for token in stems)
            holds = (phrase or begun) != term.negated
            if term.alternative:
                groups[-1] |= holds
            else:
                groups.append(holds)
        assert all(groups)


@settings(max_examples=150, deadline=None)
@given(words=st.text(max_size=30))
def test_folding_is_done_after_once(words: str) -> None:
    assert fold(fold(words)) == fold(words)
    assert all(token.isalnum() for token in search_text(words).split())


def test_stems() -> None:
    assert stem("bicycles") == stem("bicycle") == "bicycl"
    assert search_text("The dogs' Café!") == "the dog cafe"
