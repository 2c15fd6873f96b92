"""Search: what finds what, in which order, and that no query can break it."""

import random
import re
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, event, text, update

from batchcap.catalog import CaptionFilter, Catalog
from batchcap.catalog.tables import Caption, Image, Result
from batchcap.catalog.text import LETTER, fold, search_text, stem
from tests.catalog.fuzz import CAPTIONS, answers


@pytest.fixture
def filled(catalog: Catalog, model, captioned) -> Catalog:
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned(uri, words) for uri, words in CAPTIONS.items()])
    return catalog


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def searched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model, captioned
) -> Iterator[Catalog]:
    """The same, and no test changes it."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('searched')}/catalog.db"
    else:
        server = request.getfixturevalue("postgres_server")
        url = server.url(server.new_database())
    with Catalog.open(url, mode="write") as catalog:
        with catalog.run(["/"], model, {}) as run:
            run.commit([captioned(uri, words) for uri, words in CAPTIONS.items()])
        yield catalog


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
        ("\u19b2dog", ["/dogs", "/beach"]),
    ],
)
def test_what_is_found(searched: Catalog, query: str, uris: list[str]) -> None:
    result = searched.search(query)
    found = [hit.uri for hit in result.hits]
    # Which of them is best is each database's own judgement.
    assert found == uris if searched._database.name == "sqlite" else sorted(found) == sorted(uris)
    assert result.total == len(uris)


@pytest.mark.parametrize("letter", ["\U00030000", "\U0001e900", "\u0904", "\u01c5"])
def test_letters_younger_than_sqlite_are_letters(filled: Catalog, model, captioned, letter: str) -> None:
    assert filled.search(f"{letter} dog").total == filled.search(f"{letter} -dog").total == 0
    with filled.run(["/"], model, {}) as run:
        run.commit([captioned("/letter", f"the letter {letter}")])
    assert [hit.uri for hit in filled.search(f"{letter} -dog").hits] == ["/letter"]


def test_sqlite_passes_over_no_letter(empty_catalog: Path) -> None:
    """All that stand in a search text, each a text of its own, in an index as the catalog's."""
    with (
        closing(sqlite3.connect(empty_catalog)) as catalog,
        closing(sqlite3.connect(":memory:")) as connection,
    ):
        (definition,) = catalog.execute("SELECT sql FROM sqlite_master WHERE name = 'caption_fts'").fetchone()
        connection.execute("CREATE TABLE caption (id INTEGER PRIMARY KEY, search_text TEXT)")
        connection.execute(definition)
        letters = [
            match.start() for match in re.finditer(LETTER, "".join(map(chr, range(sys.maxunicode + 1))))
        ]
        connection.executemany(
            "INSERT INTO caption_fts (rowid, search_text) VALUES (?, ?)",
            ((code, chr(code)) for code in letters),
        )
        assert len(letters) > 100_000
        passed_over = "SELECT id FROM caption_fts_docsize WHERE sz = x'00'"
        assert [chr(code) for (code,) in connection.execute(passed_over)] == []


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


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)  # another order elsewhere
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
    if catalog._database.name != "sqlite":
        return  # PostgreSQL computes the index of the row itself
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


def phrase(words: list[str]) -> str:
    return f'"{" ".join(words)}"'


def test_each_database_finds_the_same(
    empty_catalog: Path, postgres_url: str, tmp_path: Path, model, captioned
) -> None:
    """Questions drawn from words that hide nothing from a tokenizer, and from some that would."""
    draw = random.Random(20)
    odd = ["3d", "1e5", "007", "x86", "²", "café", "ﬁg", "\U00030000", "ab" * 1100, "it's", "a-b", "e.g."]
    words = ["dog", "dogs", "run", "running", "beach", "red", "two", "people", "the", "a", *odd]
    batch = [
        captioned(f"/{number:03}", " ".join(draw.choices(words, k=draw.randint(1, 9))))
        for number in range(300)
    ]

    def term() -> str:
        word = draw.choice(words)
        form = draw.choice([word, word, f"{word[: draw.randint(1, 3)]}*", phrase(draw.choices(words, k=2))])
        return draw.choice(["", "", "", "-"]) + form

    filters = [
        CaptionFilter(),
        CaptionFilter(under="/0"),
        CaptionFilter(min_confidence=0.5),
        CaptionFilter(format="jpeg", min_width=640),
        CaptionFilter(model=model.name),
        CaptionFilter(under="/099", since=datetime(2020, 1, 1, tzinfo=UTC)),
    ]
    queries = [
        (
            draw.choice([" ", " ", " OR "]).join(term() for _ in range(draw.randint(0, 4))),
            draw.choice(filters),
        )
        for _ in range(200)
    ]
    found = []
    for url in (f"sqlite:///{shutil.copy(empty_catalog, tmp_path / 'catalog.db')}", postgres_url):
        with Catalog.open(url, mode="write") as catalog:
            with catalog.run(["/"], model, {}) as run:
                run.commit(batch)
            results = [catalog.search(query, limit=300, where=where) for query, where in queries]
            found.append([(result.total, sorted(hit.uri for hit in result.hits)) for result in results])
    assert found[0] == found[1]
    # And there is something to find.
    assert sum(total > 0 for total, _ in found[0]) > 100


def test_readers_are_not_disturbed_by_a_run(catalog: Catalog, url: str, model, captioned) -> None:
    """Four readers ask all the time, while a run commits: each answer is that after some commit.

    None of them waits for a lock: it would be an error.
    """
    ended = Event()
    no_patience = "PRAGMA busy_timeout = 0" if url.startswith("sqlite") else "SET lock_timeout = 1"

    def totals() -> list[int]:
        found = []
        with Catalog.open(url) as reader:
            event.listen(reader._database._reader, "connect", lambda own, _: own.execute(no_patience))
            while not ended.is_set() or not found:
                result = reader.search("dog", limit=1000)
                assert result.total == len(result.hits)
                found.append(result.total)
        return found

    with ThreadPoolExecutor(4) as readers, catalog.run(["/"], model, {}) as run:
        asked = [readers.submit(totals) for _ in range(4)]
        try:
            for number in range(20):
                run.commit([captioned(f"/{number}/{file}") for file in range(10)])
        finally:
            ended.set()
        for answer in asked:
            seen = answer.result()
            assert seen == sorted(seen) and all(total % 10 == 0 for total in seen)


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
    # The naive search finds the same.
    assert {hit.uri for hit in result.hits} == {
        uri for uri, words in CAPTIONS.items() if answers(query, words)
    }


@settings(max_examples=150, deadline=None)
@given(words=st.text(max_size=30))
def test_folding_is_done_after_once(words: str) -> None:
    assert fold(fold(words)) == fold(words)
    assert all(token.isalnum() for token in search_text(words).split())


def test_stems() -> None:
    assert stem("bicycles") == stem("bicycle") == "bicycl"
    assert search_text("The dogs' Café!") == "the dog cafe"
