"""`benchmarks/catalog_size.py` measures what it says, on both databases."""

from pathlib import Path

import pytest

from tests import postgresql
from tests.test_benchmarks import run_benchmark


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_sizes_are_of_an_image(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    options: list[object] = ["--rows", 600]
    if database == "postgresql":
        if reason := postgresql.missing():
            pytest.skip(reason)
        options += ["--catalog", request.getfixturevalue("postgres_url")]
    found = run_benchmark("catalog_size", options)
    assert (found["database"], found["rows"]) == (database, 600)
    assert found["committed_per_s"] > 0 < found["sealed_per_s"]
    # A hash alone takes 64 bytes in the catalog, and 32 where it is compressed.
    assert found["catalog_bytes_per_image"] > 64
    assert found["parquet_bytes_per_image"] > 32
    tables = found["bytes_per_image"]
    if database == "postgresql":
        assert tables.keys() == {"caption", "image", "location", "result"}
        assert {"table", "ix_caption_search_vector"} <= tables["caption"].keys()
    assert sum(sum(each.values()) for each in tables.values()) == pytest.approx(
        found["catalog_bytes_per_image"], rel=0.01
    )
