"""The live captions, read for other programs."""

import pytest

from batchcap.catalog import CaptionFilter, Catalog, LiveCaption, live


def test_batches_are_sorted_and_whole(
    catalog: Catalog, model, captioned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_BATCH_ROWS", 3)
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned(f"/{name}", f"a {name}") for name in "gfedcba"])
        run.vanish(["/d"], lambda vanished: None)
    catalog.write_captions([("/a", "Rex")])
    batches = list(catalog.live_captions())
    assert [[row.uri for row in batch] for batch in batches] == [["/a", "/b", "/c"], ["/e", "/f", "/g"]]
    first = batches[0][0]
    assert isinstance(first, LiveCaption)
    assert (first.caption, first.source, first.model, first.confidence) == ("Rex", "human", None, None)
    assert [row.uri for batch in catalog.live_captions(CaptionFilter(under="/b")) for row in batch] == ["/b"]
    assert list(catalog.live_captions(CaptionFilter(under="/x"))) == []


def test_what_was_ever_said(catalog: Catalog, model, captioned) -> None:
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned("/a", "a dog"), captioned("/b", "a cat")])
    catalog.write_captions([("/a", "Rex")])
    contents = ["hash of /a", "hash of /b", *map(str, range(600))]
    said = catalog.all_texts(contents)
    assert len(said) == 602 and said["599"] == set()
    assert (said["hash of /a"], said["hash of /b"]) == ({"a dog", "Rex"}, {"a cat"})


def test_files_of_one_name(catalog: Catalog, model, captioned) -> None:
    names = ["/a.jpg", "/a.png", "/a.tar.png", "/a/b.jpg", "/ab.jpg", "/a"]
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned(name) for name in names])
    assert catalog.files_named("/a") == ["/a.jpg", "/a.png"]
    assert catalog.files_named("/a.tar") == ["/a.tar.png"]
    assert catalog.files_named("/%") == []
