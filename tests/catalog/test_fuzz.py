"""Nonsense and hostile SQL, a little of each; `make hostile` sends more."""

import random
from itertools import islice
from pathlib import Path

from batchcap.catalog import Catalog
from tests.catalog import fuzz
from tests.postgresql import Server


def check(findings: fuzz.Findings) -> None:
    assert findings.wrong == []
    assert findings.outcomes["found something"] > 5
    assert findings.outcomes["answered"] > 5
    refused = findings.outcomes["only queries are allowed here, nothing that writes or sets"]
    assert refused > 20


def test_sqlite_withstands_it(tmp_path: Path) -> None:
    for folder in ("catalog", "outside"):
        (tmp_path / folder).mkdir()
    with fuzz.sqlite_catalog(tmp_path / "catalog") as (catalog, state):
        check(fuzz.fuzz(catalog, state, "sqlite", tmp_path / "outside", searches=150, statements=250, seed=8))


def test_postgresql_withstands_it(postgres_server: Server, tmp_path: Path) -> None:
    with fuzz.postgresql_catalog(postgres_server) as (catalog, state):
        check(fuzz.fuzz(catalog, state, "postgresql", tmp_path, searches=150, statements=250, seed=8))


def test_what_goes_wrong_is_found(tmp_path: Path) -> None:
    """A catalog that answers what it must not."""

    class Careless:
        def search(self, query: str) -> object:
            if "dog" in query:
                raise ValueError("two\nlines")
            return catalog.search(query[:-1])

        def query(self, sql: str, **options: object) -> object:
            (tmp_path / "outside" / "new").touch()
            return catalog.query(f"SELECT '{fuzz.SECRET}'")

    (tmp_path / "outside").mkdir()
    with fuzz.sqlite_catalog(tmp_path) as (catalog, _):
        careless: Catalog = Careless()  # type: ignore[assignment]
        wrong = " ".join(fuzz.fuzz_searches(careless, 200, 1).wrong)
        wrong += " ".join(fuzz.fuzz_statements(careless, "sqlite", 2, 1, tmp_path / "outside").wrong)
    for complaint in ("raised ValueError", "found", "wrote a file", "none of its business"):
        assert complaint in wrong


def test_the_same_seed_sends_the_same() -> None:
    for one in (
        lambda: fuzz.searches(random.Random(3)),
        lambda: fuzz.statements(random.Random(3), "sqlite", Path("/a"), Path("/b")),
    ):
        assert list(islice(one(), 200)) == list(islice(one(), 200))
