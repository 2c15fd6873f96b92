"""What a page of pictures asks of the catalog."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from batchcap.catalog import Captioned, Catalog, ModelInfo


def test_a_picture_is_found_by_its_content(
    catalog: Catalog, captioned: Callable[..., Captioned], model: ModelInfo, other_model: ModelInfo
) -> None:
    before = datetime.now(UTC)
    with catalog.run(["/photos"], model, {}) as run:
        run.commit([captioned("/b.jpg", "a dog", content="dog"), captioned("/c.jpg", "a cat", content="cat")])
        run.commit([captioned("/a.jpg", "a dog", content="dog")])
    with catalog.run(["/photos"], other_model, {"recaption": True}) as run:
        run.commit([captioned("/b.jpg", "a large dog", content="dog", confidence=None)])
    found = catalog.gallery.picture("dog")
    assert found is not None
    assert found.uris == ("/a.jpg", "/b.jpg")
    assert (found.caption, found.confidence, found.source) == ("a large dog", None, "model")
    assert (found.model, found.fingerprint) == (other_model.name, other_model.fingerprint)
    assert (found.width, found.height, found.format, found.size_bytes) == (640, 480, "JPEG", 100)
    assert before <= found.captioned_at <= datetime.now(UTC)
    assert catalog.gallery.picture("horse") is None


def test_pictures_are_found_by_their_locations(
    catalog: Catalog, captioned: Callable[..., Captioned], model: ModelInfo
) -> None:
    with catalog.run(["/photos"], model, {}) as run:
        run.commit(
            [captioned("/a.jpg", "a dog", content="dog"), captioned("/copy.jpg", "a dog", content="dog")]
        )
    found = catalog.gallery.at(["/copy.jpg", "/nowhere.jpg", "/a.jpg"])
    assert {uri: (picture.content_hash, picture.uris) for uri, picture in found.items()} == {
        "/a.jpg": ("dog", ("/a.jpg",)),
        "/copy.jpg": ("dog", ("/copy.jpg",)),
    }
    assert catalog.gallery.at([]) == {}


def test_a_picture_that_has_vanished_everywhere_is_not_shown(
    catalog: Catalog,
    captioned: Callable[..., Captioned],
    model: ModelInfo,
    other_program: Callable[..., None],
) -> None:
    with catalog.run(["/photos"], model, {}) as run:
        run.commit([captioned("/a.jpg", content="dog"), captioned("/b.jpg", content="dog")])
    other_program("UPDATE location SET vanished_at = '2026-01-31 09:30:00' WHERE uri = '/a.jpg'")
    found = catalog.gallery.picture("dog")
    assert found is not None and found.uris == ("/b.jpg",)
    assert catalog.gallery.at(["/a.jpg", "/b.jpg"]).keys() == {"/b.jpg"}
    other_program("UPDATE location SET vanished_at = '2026-01-31 09:30:00'")
    assert catalog.gallery.picture("dog") is None


def test_captions_are_counted_by_day(
    catalog: Catalog,
    captioned: Callable[..., Captioned],
    model: ModelInfo,
    other_program: Callable[..., None],
) -> None:
    assert catalog.gallery.captions_a_day(30) == []
    with catalog.run(["/photos"], model, {}) as run:
        run.commit([captioned(f"/{number}.jpg") for number in range(6)])
    times = ("2026-01-01 12:00:00", "2026-02-27 23:59:59", "2026-02-28 00:00:00", "2026-03-01 23:59:59")
    for number, time in enumerate(times, 1):
        other_program(f"UPDATE caption SET created_at = '{time}.000000+00' WHERE id = {number}")
    other_program(f"UPDATE caption SET created_at = '{times[-1]}.000000+00' WHERE id > 4")
    days = catalog.gallery.captions_a_day(4)
    first = datetime(2026, 2, 26, tzinfo=UTC).date()
    assert days == [(first + timedelta(days=n), count) for n, count in enumerate([0, 1, 1, 3])]
