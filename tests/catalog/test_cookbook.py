"""The queries that come with batchcap: each answers, and the same on both databases."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from batchcap import parts
from batchcap.catalog import Catalog, named_queries
from batchcap.errors import Reason

NAMES = sorted(named_queries())


def fill(url: str, store: Path, model: Any, other_model: Any, make: Callable[..., Any], failure: Any) -> None:
    """A catalog in which each of the queries finds something."""
    # Whatever day it is where the database is.
    taken, now = datetime(2024, 6, 1, 12), datetime.now()
    with Catalog.open(url, mode="write") as catalog:
        with catalog.run(["/photos"], model, {}) as run:
            run.commit(
                [
                    replace(
                        make("/photos/a/1.jpg", "A dog, and two men on a beach."),
                        taken_at=taken,
                        camera="Ace One",
                        latitude=48.86,
                        longitude=2.30,
                    ),
                    replace(
                        make("/photos/a/2.jpg", "a red car", confidence=0.1),
                        camera="Ace One",
                        latitude=48.8584,
                        longitude=2.43,
                    ),
                    replace(
                        make("/photos/b/3.jpg", 'a "red car" \\ on a road', confidence=None),
                        camera="zoom",
                        latitude=48.8584,
                        longitude=2.44,
                    ),
                    make("/photos/b/4.jpg", "a red car", size_bytes=2_000_000),
                    make("/photos/b/5.jpg", "gone"),
                    *(
                        replace(
                            make(f"/photos/days/{day}.jpg", "a woman"), taken_at=now + timedelta(days=day)
                        )
                        for day in (-1, 0, 1)
                    ),
                    make("/photos/c/copy.jpg", content="hash of /photos/a/1.jpg"),
                ],
                [failure("/photos/a/bad.jpg", Reason.EMPTY), failure("/photos/a/worse.jpg", Reason.EMPTY)],
            )
            parts.seal(catalog, parts.open_store(store, catalog.uuid), run)
        with catalog.run(["/photos"], other_model, {}) as run:
            run.commit([make("/photos/a/1.jpg", "a cat on a beach", confidence=0.7)])
            run.vanish(["/photos/b/5.jpg"], lambda vanished: None)
        catalog.write_captions([("/photos/b/4.jpg", "my car")])


@pytest.fixture(scope="module")
def catalogs(
    empty_catalog: Path, postgres_server, tmp_path_factory, model, other_model, captioned, failure
) -> Iterator[list[Catalog]]:
    """The same in SQLite and in PostgreSQL."""
    folder = tmp_path_factory.mktemp("cookbook")
    urls = [
        f"sqlite:///{shutil.copy(empty_catalog, folder / 'catalog.db')}",
        postgres_server.url(postgres_server.new_database()),
    ]
    for url in urls:
        fill(url, folder / url.partition(":")[0], model, other_model, captioned, failure)
    with Catalog.open(urls[0]) as in_sqlite, Catalog.open(urls[1]) as in_postgresql:
        yield [in_sqlite, in_postgresql]


def answer(catalog: Catalog, name: str) -> tuple[list[str], list[list[Any]]]:
    """The columns, and the rows without what the clock says."""
    with catalog.query(catalog.named_queries()[name].sql) as result:
        clocks = [column.endswith(("_at", "_s")) for column in result.columns]
        rows = [
            [plain(value) for value, is_clock in zip(row, clocks, strict=True) if not is_clock]
            for row in result.rows
        ]
    return result.columns, rows


def plain(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal | int | float) else value


@pytest.mark.parametrize("name", NAMES)
def test_both_databases_answer_alike(catalogs: list[Catalog], name: str) -> None:
    in_sqlite, in_postgresql = (answer(catalog, name) for catalog in catalogs)
    # The one knows which day it is here.
    assert in_sqlite == in_postgresql or name == "on_this_day" and in_postgresql[1]
    assert in_sqlite[1], "nothing is found by it: give it something to find"


def test_each_says_what_it_answers() -> None:
    assert len(NAMES) >= 20
    for dialect in ("sqlite", "postgresql"):
        for name, query in named_queries(dialect).items():
            first = query.sql.splitlines()[0]
            assert first.startswith("-- ") and "?" in first, name
            assert query.sql.endswith(";\n"), name
            assert query.description == named_queries()[name].description
    # What PostgreSQL says otherwise is no query that SQLite lacks.
    assert sorted(named_queries("postgresql")) == NAMES


def test_what_some_of_them_say(catalogs: list[Catalog]) -> None:
    for catalog in catalogs:
        assert answer(catalog, "words")[1][0] == ["car", 3.0, "/photos/a/2.jpg"]
        assert answer(catalog, "corrections")[1] == [["my car", "small", "a red car", 0.5, "/photos/b/4.jpg"]]
        assert answer(catalog, "word_pairs")[1][0] == ["red car", 2.0]
        assert [row[0] for row in answer(catalog, "animals")[1]] == ["cat"]
        assert answer(catalog, "vehicles")[1] == [["car", 3.0, 0.1, "/photos/a/2.jpg"]]
        assert answer(catalog, "months")[1][0] == ["2024-06", 1.0, "/photos/a/1.jpg"]
        (different,) = answer(catalog, "disagreements")[1]
        assert different[1:3] == ["a cat on a beach", "A dog, and two men on a beach."]
        assert answer(catalog, "quarantine_folders")[1] == [
            ["/photos/a/", "empty", 2.0, 200.0, "/photos/a/bad.jpg"]
        ]
        assert [row[:2] for row in answer(catalog, "cameras")[1]] == [["Ace One", 2.0], ["zoom", 1.0]]
        # A degree of longitude is 73.2 km there: the one is 9.9 km away, the other 10.7.
        assert [row[0] for row in answer(catalog, "near")[1]] == [
            "/photos/a/1.jpg",
            "/photos/c/copy.jpg",
            "/photos/a/2.jpg",
        ]
        assert answer(catalog, "vanished")[1] == [["/photos/b/5.jpg", "gone", None]]
        assert [row[0] for row in answer(catalog, "latest_folder")[1]] == [
            "/photos/b/3.jpg",
            "/photos/b/4.jpg",
        ]
