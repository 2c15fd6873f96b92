"""What searches count by: captions that are shown and their files, whoever writes what in which order."""

import random
from collections.abc import Callable, Iterator

import pytest

from batchcap.catalog import CaptionFilter, Catalog, ModelInfo, ranking
from batchcap.errors import CatalogError

URIS = [f"/{number}" for number in range(12)]
CONTENTS = [f"content {number}" for number in range(6)]


def shown(catalog: Catalog) -> dict[str, int]:
    """Captions that are found, and of how many files each is."""
    sql = "SELECT caption.text, shown.files FROM shown JOIN caption ON caption.id = shown.caption_id"
    with catalog.query(sql) as result:
        return dict(result.rows)


@pytest.fixture
def filled(catalog: Catalog, model, captioned) -> Catalog:
    """Two images, of which one is at two places."""
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned("/a", "a dog"), captioned("/b", "a cat", content="hash of /b")])
        run.commit([captioned("/copy of b", "a cat", content="hash of /b")])
    return catalog


def test_a_copy_is_another_file(filled: Catalog, model, captioned, entry) -> None:
    assert shown(filled) == {"a dog": 1, "a cat": 2}
    with filled.run(["/"], model, {}) as run:
        run.commit_known([(entry("/third"), "hash of /b")])
        run.commit([captioned("/a", "a dog")])
    assert shown(filled) == {"a dog": 1, "a cat": 3}
    assert filled.search("cat").total == 3


def test_what_has_vanished_is_found_no_more_and_again_when_it_is_back(filled: Catalog, model, entry) -> None:
    with filled.run(["/"], model, {}) as run:
        run.vanish(["/a", "/b"], lambda vanished: None)
        assert shown(filled) == {"a cat": 1}
        assert filled.search("dog").total == 0
        run.commit_known([(entry("/a"), "hash of /a")])
    assert shown(filled) == {"a dog": 1, "a cat": 1}


def test_nothing_is_counted_of_what_is_taken_back(filled: Catalog, model) -> None:
    def refuse(vanished: object) -> None:
        raise CatalogError("too many")

    with filled.run(["/"], model, {}) as run, pytest.raises(CatalogError):
        run.vanish(["/a", "/b"], refuse)
    assert shown(filled) == {"a dog": 1, "a cat": 2}


def test_another_image_at_the_same_place(filled: Catalog, model, captioned) -> None:
    with filled.run(["/"], model, {}) as run:
        run.commit([captioned("/b", "a cow", content="new")])
    assert shown(filled) == {"a dog": 1, "a cat": 1, "a cow": 1}


def test_another_caption_of_the_same_image(filled: Catalog, other_model, captioned) -> None:
    filled.write_captions([("/b", "Minka")])
    assert shown(filled) == {"a dog": 1, "Minka": 2}
    with filled.run(["/"], other_model, {}) as run:
        run.commit([captioned("/a", "a hound"), captioned("/b", "a lion", content="hash of /b")])
    assert shown(filled) == {"a hound": 1, "Minka": 2}


def test_what_was_forgotten(filled: Catalog) -> None:
    filled.forget("/b")
    assert shown(filled) == {"a dog": 1, "a cat": 1}
    filled.forget("/copy of b")
    filled.forget("/a")
    assert shown(filled) == {}
    assert list(filled.check()) == []


def test_whoever_writes(filled: Catalog, other_program: Callable[..., None]) -> None:
    other_program(
        "UPDATE location SET content_hash = 'hash of /a' WHERE uri = '/b'",
        "UPDATE location SET vanished_at = CURRENT_TIMESTAMP WHERE uri = '/copy of b'",
        "UPDATE caption SET search_text = 'a hound' WHERE text = 'a dog'",
    )
    assert shown(filled) == {"a dog": 2}
    assert filled.search("hounds").total == 2
    other_program("UPDATE image SET caption_id = NULL", "DELETE FROM location")
    assert shown(filled) == {}


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_the_view_and_searches_agree(
    catalog: Catalog, model: ModelInfo, other_model: ModelInfo, captioned, entry, seed: int
) -> None:
    draw = random.Random(seed)

    def batch() -> Iterator[object]:
        for uri in draw.choices(URIS, k=draw.randint(1, 5)):
            content = draw.choice(CONTENTS)
            yield captioned(uri, f"a dog, {draw.choice(['red', 'blue'])}", content=content)

    def commit(run) -> None:
        run.commit(list(batch()))

    def commit_known(run) -> None:
        hashed = [(entry(draw.choice(URIS)), draw.choice(CONTENTS)) for _ in range(4)]
        run.commit_known(hashed, recaption=draw.random() < 0.5)

    def vanish(run) -> None:
        run.vanish(draw.sample(URIS, 4), lambda vanished: None)

    def write(run) -> None:
        catalog.write_captions([(draw.choice(URIS), f"a person's dog {draw.randint(0, 9)}")])

    for turn in range(25):
        if turn % 5 == 4:
            known = [hit.uri for hit in catalog.search("", where=CaptionFilter(min_width=1)).hits]
            if known:
                catalog.forget(draw.choice(known))
        with catalog.run(["/"], draw.choice([model, other_model]), {}) as run:
            for _ in range(3):
                draw.choice([commit, commit_known, vanish, write])(run)
        with catalog.query("SELECT uri FROM captions ORDER BY uri") as result:
            uris = [uri for (uri,) in result.rows]
        found = catalog.search("dog", limit=100)
        assert found.total == len(found.hits) == len(uris)
        assert sorted(hit.uri for hit in found.hits) == uris
        assert [f for f in catalog.check() if f.subject.startswith("caption")] == []


def test_of_very_many_hits_the_newest_are_ranked(
    catalog: Catalog, model, captioned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "RANKED", 4)
    texts = ["dog", "dog and two cats", "dog on a beach", "dog", "dog and a cat on a long beach", "dog runs"]
    with catalog.run(["/"], model, {}) as run:
        for number, text in enumerate(texts):
            run.commit(
                [
                    captioned(f"/{number}", text),
                    captioned(f"/copy of {number}", text, content=f"hash of /{number}"),
                ]
            )
    found = catalog.search("dog", limit=100)
    uris = [hit.uri for hit in found.hits]
    # The shorter the better: numbers 2 to 5, then the others, newest first; a file and its copy together.
    assert uris == [f"/{copy}{number}" for number in (3, 5, 2, 4, 1, 0) for copy in ("", "copy of ")]
    assert found.total == 12
    for limit in (1, 5, 7):
        pages = [catalog.search("dog", limit=limit, offset=offset) for offset in range(0, 12, limit)]
        assert [hit.uri for page in pages for hit in page.hits] == uris
        assert {page.total for page in pages} == {12}
    assert catalog.search("dog", offset=12).hits == []
    # Also among the files of a filter, which are counted one by one.
    files = catalog.search("dog", limit=100, where=CaptionFilter(under="/copy of 3", min_width=1))
    assert [hit.uri for hit in files.hits] == ["/copy of 3"]
    wide = catalog.search("dog", limit=100, where=CaptionFilter(min_width=1))
    assert sorted(hit.uri for hit in wide.hits) == sorted(uris)
    pages = [catalog.search("dog", limit=5, offset=at, where=CaptionFilter(min_width=1)) for at in (0, 5, 10)]
    assert [hit.uri for page in pages for hit in page.hits] == [hit.uri for hit in wide.hits]
