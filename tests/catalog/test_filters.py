"""Filters of a search: what each leaves, alone and with words, on both databases."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from batchcap.catalog import PEOPLE, CaptionFilter, Catalog, SearchHit, parse_time
from batchcap.cli.selecting import caption_filter
from batchcap.errors import UsageError
from batchcap.exchange.names import uri_of

TAKEN = datetime(2024, 6, 1, 12)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def catalog(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model, other_model, captioned
) -> Iterator[Catalog]:
    """Captions of two models; no test changes it."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('filtered')}/catalog.db"
    else:
        server = request.getfixturevalue("postgres_server")
        url = server.url(server.new_database())
    with Catalog.open(url, mode="write") as opened:
        with opened.run(["/"], model, {}) as run:
            run.commit(
                [
                    captioned("/a/1.jpg", "a dog", confidence=0.9),
                    replace(captioned("/a/b/2.png", "a dog and a cat"), format="png", taken_at=TAKEN),
                    replace(captioned("/ab/3.jpg", "a cat", confidence=None), width=2000, format="jpeg"),
                ]
            )
        with opened.run(["/"], other_model, {}) as run:
            run.commit([captioned("file:///a/4%E9.jpg", "a red dog", confidence=0.2)])
            run.commit(
                [captioned("/z", "gone"), captioned("tar:///t/100%25%23.tar#x/5.jpg", "in an archive")]
            )
            run.vanish(["/z"], lambda vanished: None)
        yield opened


MEMBER = "tar:///t/100%25%23.tar#x/5.jpg"
ALL = [MEMBER, "file:///a/4%E9.jpg", "/a/1.jpg", "/a/b/2.png", "/ab/3.jpg"]
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("query", "where", "uris"),
    [
        # Newest first, and those of one commit by their names.
        ("", CaptionFilter(since=LONG_AGO), ALL),
        ("", CaptionFilter(since=datetime(2200, 1, 1, tzinfo=UTC)), []),
        ("", CaptionFilter(), []),
        ("dog", CaptionFilter(since=LONG_AGO, under="/a/b"), ["/a/b/2.png"]),
        ("-cat", CaptionFilter(since=LONG_AGO), [MEMBER, "file:///a/4%E9.jpg", "/a/1.jpg"]),
        ('-"red dog" -cat', CaptionFilter(since=LONG_AGO), [MEMBER, "/a/1.jpg"]),
        ("!?", CaptionFilter(since=LONG_AGO), []),
        ("", CaptionFilter(under="/a"), ["file:///a/4%E9.jpg", "/a/1.jpg", "/a/b/2.png"]),
        ("", CaptionFilter(under="/a/"), ["file:///a/4%E9.jpg", "/a/1.jpg", "/a/b/2.png"]),
        ("", CaptionFilter(under="/a/1.jpg"), ["/a/1.jpg"]),
        ("", CaptionFilter(under="/"), ALL),
        ("", CaptionFilter(under="/t"), [MEMBER]),
        ("", CaptionFilter(under="/t/100%#.tar"), [MEMBER]),
        ("", CaptionFilter(under="/t/100%"), []),
        ("", CaptionFilter(under="tar:///t/100%25%23.tar#x"), [MEMBER]),
        ("", CaptionFilter(under="file:///a"), ["file:///a/4%E9.jpg"]),
        ("", CaptionFilter(under="/\ud800\0"), []),
        ("", CaptionFilter(model="large"), [MEMBER, "file:///a/4%E9.jpg"]),
        ("", CaptionFilter(model="f" * 12), ["/a/1.jpg", "/a/b/2.png", "/ab/3.jpg"]),
        ("", CaptionFilter(model="f" * 7), []),
        ("", CaptionFilter(model="%" * 12), []),
        ("", CaptionFilter(model="\ud800"), []),
        ("", CaptionFilter(model=PEOPLE), []),
        ("", CaptionFilter(min_confidence=0.5), [MEMBER, "/a/1.jpg", "/a/b/2.png"]),
        ("", CaptionFilter(min_width=2000), ["/ab/3.jpg"]),
        ("", CaptionFilter(format="JPEG"), [MEMBER, "file:///a/4%E9.jpg", "/a/1.jpg", "/ab/3.jpg"]),
        ("", CaptionFilter(format="png"), ["/a/b/2.png"]),
        ("", CaptionFilter(format="'; --\0"), []),
        ("", CaptionFilter(taken_since=TAKEN), ["/a/b/2.png"]),
        ("", CaptionFilter(taken_before=TAKEN), []),
        ("", CaptionFilter(taken_since=TAKEN, taken_before=TAKEN + timedelta(seconds=1)), ["/a/b/2.png"]),
    ],
)
def test_what_is_left(catalog: Catalog, query: str, where: CaptionFilter, uris: list[str]) -> None:
    result = catalog.search(query, where=where)
    assert [hit.uri for hit in result.hits] == uris
    assert result.total == len(uris)
    pages = [catalog.search(query, where=where, limit=1, offset=n).hits for n in range(len(uris) + 1)]
    assert [hit for page in pages for hit in page] == result.hits


def test_a_hit_says_whose_caption_it_is_and_when(catalog: Catalog) -> None:
    (hit,) = catalog.search("", where=CaptionFilter(format="png")).hits
    assert (hit.model, hit.format, hit.taken_at, hit.score) == ("small", "png", TAKEN, 0.0)
    assert hit.captioned_at is not None and hit.captioned_at.utcoffset() == timedelta(0)


def test_a_snippet_is_around_what_was_found() -> None:
    caption = f"{'before ' * 40}the dog {'after ' * 40}".strip()
    start = caption.index("dog")
    hit = SearchHit("/a", caption, None, "human", 1, 1, 1.0, ((0, 6), (start, start + 3)))
    assert hit.snippet().caption.startswith("before before") and hit.snippet().caption.endswith("…")
    inside = replace(hit, spans=hit.spans[1:]).snippet(60)
    assert inside.caption.startswith("…") and inside.caption.endswith("…") and len(inside.caption) == 62
    assert "[dog]" in inside.highlighted()
    end = replace(hit, spans=((len(caption) - 5, len(caption)),)).snippet(60)
    assert end.highlighted().endswith("[after]") and len(end.caption) == 61
    short = replace(hit, caption="a dog", spans=((2, 5),))
    assert short.snippet() is short


NOW = datetime(2026, 3, 10, 15, 30).astimezone()


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-01-31", datetime(2026, 1, 31)),
        (" 2026-01-31 18:00 ", datetime(2026, 1, 31, 18)),
        ("2026-01-31T18:00:00+00:00", datetime(2026, 1, 31, 18, tzinfo=UTC)),
        ("today", datetime(2026, 3, 10)),
        ("Yesterday", datetime(2026, 3, 9)),
        ("7d", datetime(2026, 3, 3)),
        ("30 days", datetime(2026, 2, 8)),
    ],
)
def test_days_are_those_of_the_persons_own_clock(text: str, time: datetime) -> None:
    assert parse_time(text, "--since", NOW) == time.astimezone()


@pytest.mark.parametrize("text", ["", "soon", "31.1.2026", "2026-02-30", "99999d", "0001-01-01T00:00+23:59"])
def test_what_is_no_day_is_an_error(text: str) -> None:
    with pytest.raises(UsageError, match="--since .*: write a day as 2026-01-31"):
        parse_time(text, "--since", datetime(2, 1, 1, tzinfo=UTC))


def test_options_make_a_filter() -> None:
    where = caption_filter(
        taken_since="2024-06-01", taken_until="2024-06-01", image_format="JPG", under="/a//b/"
    )
    assert (where.taken_since, where.taken_before) == (datetime(2024, 6, 1), datetime(2024, 6, 2))
    assert (where.format, where.under, where.since) == ("jpeg", "/a/b", None)
    until = caption_filter(taken_until="2024-06-01 12:00").taken_before
    assert until == datetime(2024, 6, 1, 12, 0, 0, 1)
    assert caption_filter(taken_until="9999-12-31").taken_before == datetime.max


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        ("/a/b.jpg", "/a/b.jpg"),
        ("//a/../b.jpg", "/b.jpg"),
        ("/a/\udce9.jpg", "file:///a/%E9.jpg"),
        ("file:///a/%E9.jpg", "file:///a/%E9.jpg"),
        ("file:///a/b%20c.jpg", "/a/b c.jpg"),
        ("s3://bucket/key", "s3://bucket/key"),
    ],
)
def test_how_files_are_named(name: str, uri: str) -> None:
    assert uri_of(name) == uri
