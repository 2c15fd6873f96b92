"""Image vectors: stored once, with the caption; and what is nearest to one, on both databases."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from batchcap.catalog import Captioned, CaptionFilter, Catalog, Likeness, ModelInfo, VectorModel, vectors

SIZE = 8


def vector(*numbers: float) -> bytes:
    padded = np.array([*numbers, *[0.0] * (SIZE - len(numbers))])
    return (padded / np.linalg.norm(padded)).astype("<f2").tobytes()


def rows(catalog: Catalog, sql: str) -> list[tuple]:
    with catalog.query(sql) as found:
        return list(found.rows)


STORED = (
    "SELECT content_hash, count(*) FROM image_vector JOIN caption ON id = caption_id GROUP BY 1 ORDER BY 1"
)
ANGLES = {"/a/0": 0.0, "/a/1": 0.2, "/b/2": 0.4, "/b/3": 0.6, "/b/4": 2.0}


@pytest.fixture
def filled(catalog: Catalog, model: ModelInfo, captioned) -> Iterator[Catalog]:
    """Five images around a circle, a copy of one, one without a vector, and one that is gone."""

    def at(uri: str, angle: float, **options: object) -> Captioned:
        made = captioned(uri, f"a dog {uri[-1]}" if uri < "/b/3" else "a cat", **options)
        return replace(made, vector=vector(np.cos(angle), np.sin(angle)))

    with catalog.run(["/"], model, {}) as run:
        run.commit([at(uri, angle) for uri, angle in ANGLES.items()])
        run.commit([at("/c/copy", 0.2, content="hash of /a/1"), at("/gone", 0.1), captioned("/no/vector")])
        run.vanish(["/gone"], lambda vanished: None)
    yield catalog


@pytest.fixture
def likeness(model: ModelInfo) -> Likeness:
    return Likeness(model.fingerprint, vector(1.0))


def found(catalog: Catalog, likeness: Likeness, query: str = "", **options: object) -> list[str]:
    result = catalog.search_like(likeness, query, **options)
    assert result.total >= len(result.hits)
    return [hit.uri for hit in result.hits]


NEAREST = ["/a/0", "/a/1", "/c/copy", "/b/2", "/b/3", "/b/4"]


def test_what_is_most_alike_comes_first(filled: Catalog, likeness: Likeness) -> None:
    result = filled.search_like(likeness)
    assert [hit.uri for hit in result.hits] == NEAREST and result.total == 6
    angles = [ANGLES.get(hit.uri, 0.2) for hit in result.hits]
    assert [hit.score for hit in result.hits] == pytest.approx(np.cos(angles).tolist(), abs=2e-3)
    assert (result.hits[0].caption, result.hits[0].model) == ("a dog 0", "small")
    pages = [found(filled, likeness, limit=2, offset=n) for n in (0, 2, 4, 6)]
    assert [uri for page in pages for uri in page] == NEAREST
    # What was asked is no answer, but a copy of it is.
    one = Likeness(likeness.fingerprint, filled.vectors_of("hash of /a/1")[likeness.fingerprint], "/a/1")
    assert found(filled, one, limit=2) == ["/c/copy", "/a/0"]


@pytest.mark.parametrize(
    ("query", "where", "uris"),
    [
        ("cat", CaptionFilter(), ["/b/3", "/b/4"]),
        ("dogs -1", CaptionFilter(), ["/a/0", "/b/2"]),
        ("-dog", CaptionFilter(), ["/b/3", "/b/4"]),
        ("", CaptionFilter(under="/b"), ["/b/2", "/b/3", "/b/4"]),
        ("cat", CaptionFilter(under="/b/4"), ["/b/4"]),
        ("", CaptionFilter(min_width=10_000), []),
        ("!?", CaptionFilter(), []),
    ],
)
def test_words_and_filters_say_among_which(
    filled: Catalog, likeness: Likeness, query: str, where: CaptionFilter, uris: list[str]
) -> None:
    assert found(filled, likeness, query, where=where) == uris
    hits = filled.search_like(likeness, query, where=where).hits
    assert {bool(hit.spans) for hit in hits} <= {"cat" in query or "dogs" in query}


def test_a_vector_is_stored_once_and_edits_leave_it_alone(
    filled: Catalog, likeness: Likeness, model: ModelInfo, other_model: ModelInfo, captioned
) -> None:
    before = rows(filled, STORED)
    assert [count for _, count in before] == [1] * 6
    filled.write_captions([("/a/0", "Rex")])
    assert found(filled, likeness, "rex") == ["/a/0"]
    with filled.run(["/"], model, {}) as run:
        # Again, and with another vector, which can't be: the same model sees the same.
        run.commit([replace(captioned("/a/0", content="hash of /a/0"), vector=vector(0.0, 1.0))])
    assert rows(filled, STORED) == before
    assert filled.vectors_of("hash of /a/0") == {model.fingerprint: vector(1.0)}
    # Another model has its own, of another size.
    own = np.ones(4, "<f2").tobytes()
    with filled.run(["/"], other_model, {}) as run:
        run.commit([replace(captioned("/a/0", content="hash of /a/0"), vector=own)])
    assert filled.vectors_of("hash of /a/0") == {model.fingerprint: vector(1.0), other_model.fingerprint: own}
    assert filled.vector_models() == [
        VectorModel(other_model.fingerprint, "large", {"embed_dim": 16}, 4),
        VectorModel(model.fingerprint, "small", {"embed_dim": 8}, SIZE),
    ]
    assert found(filled, Likeness(other_model.fingerprint, own)) == ["/a/0"]
    assert found(filled, likeness) == NEAREST


def test_what_has_no_vector_gets_it_if_one_says_so(
    filled: Catalog, likeness: Likeness, model: ModelInfo, other_model: ModelInfo, captioned, entry
) -> None:
    entries = [entry("/a/0"), entry("/no/vector")]
    (wave,) = filled.plan(entries, model.fingerprint)
    assert (wave.unchanged, wave.todo, wave.maybe_known) == (2, [], [])
    (wave,) = filled.plan(entries, model.fingerprint, fill_vectors=True)
    assert (wave.unchanged, wave.todo, wave.new, wave.changed) == (1, entries[1:], 0, 0)
    # A copy of it is known, and captioned all the same.
    with filled.run(["/"], model, {}) as run:
        hashed = [(entry("/copy"), "hash of /no/vector"), (entry("/other"), "hash of /a/0")]
        assert run.commit_known(hashed, fill_vectors=True) == [hashed[0][0]]
        run.vanish(["/other"], lambda vanished: None)
    logged = rows(filled, "SELECT count(*) FROM result")
    with filled.run(["/"], model, {}) as run:
        run.commit([replace(captioned("/no/vector", "never used"), vector=vector(1.0))])
    assert rows(filled, "SELECT count(*) FROM result") == logged
    assert found(filled, likeness, limit=3) == ["/a/0", "/no/vector", "/a/1"]
    assert filled.search("never").total == 0
    (wave,) = filled.plan(entries, model.fingerprint, fill_vectors=True)
    assert wave.unchanged == 2
    # What shows another model's caption is left alone, until it is to show this one's.
    for captioning in (model, other_model):
        with filled.run(["/"], captioning, {}) as run:
            run.commit([captioned("/late")])
    late = [entry("/late")]
    (wave,) = filled.plan(late, model.fingerprint, fill_vectors=True)
    assert (wave.unchanged, wave.stale) == (1, 1)
    (wave,) = filled.plan(late, model.fingerprint, fill_vectors=True, recaption=True)
    assert wave.todo == late
    with filled.run(["/"], model, {}) as run:
        hashed = [(late[0], "hash of /late")]
        assert run.commit_known(hashed, fill_vectors=True) == []
        assert run.commit_known(hashed, fill_vectors=True, recaption=True) == late


def test_in_blocks_it_is_what_numpy_finds_at_once(
    catalog: Catalog, model: ModelInfo, captioned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "_BLOCK_ROWS", 7)
    rng = np.random.default_rng(0)
    stored = [vector(*rng.normal(size=SIZE)) for _ in range(50)]
    names = [f"/{number:02}" for number in range(50)]
    with catalog.run(["/"], model, {}) as run:
        run.commit([replace(captioned(n), vector=v) for n, v in zip(names, stored, strict=True)])
    matrix = np.frombuffer(b"".join(stored), "<f2").reshape(50, SIZE).astype(np.float64)
    for offset in (0, 5, 45):
        result = catalog.search_like(Likeness(model.fingerprint, stored[3]), limit=9, offset=offset)
        expected = np.argsort(-(matrix @ matrix[3]), kind="stable")[offset : offset + 9]
        assert [hit.uri for hit in result.hits] == [names[number] for number in expected]
        assert result.total == 50
