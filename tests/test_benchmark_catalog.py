"""The benchmarks of the catalog measure what they say, on both databases."""

from pathlib import Path

import pytest

from tests import postgresql
from tests.test_benchmarks import run_benchmark


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> tuple[str, list[object]]:
    """A database, and the options that name it."""
    if request.param == "sqlite":
        return "sqlite", []
    if reason := postgresql.missing():
        pytest.skip(reason)
    server: postgresql.Server = request.getfixturevalue("postgres_server")
    return "postgresql", ["--catalog", server.url(server.new_database())]


def test_sizes_are_of_an_image(database: tuple[str, list[object]]) -> None:
    name, options = database
    found = run_benchmark("catalog_size", ["--rows", 600, *options])
    assert (found["database"], found["rows"]) == (name, 600)
    assert found["committed_per_s"] > 0 < found["sealed_per_s"]
    # A hash alone takes 64 bytes in the catalog, and 32 where it is compressed.
    assert found["catalog_bytes_per_image"] > 64
    assert found["parquet_bytes_per_image"] > 32
    tables = found["bytes_per_image"]
    if name == "postgresql":
        assert tables.keys() == {"caption", "image", "location", "result", "shown"}
        assert {"table", "ix_shown_search_vector"} <= tables["shown"].keys()
    assert sum(sum(each.values()) for each in tables.values()) == pytest.approx(
        found["catalog_bytes_per_image"], rel=0.01
    )


def test_a_load_goes_on_and_is_asked(database: tuple[str, list[object]], tmp_path: Path) -> None:
    name, options = database
    options = [*options, "--rows", 700, "--folder", tmp_path, "--queries", 8]
    with pytest.raises(AssertionError, match="0 of 700 rows are there; call again"):
        run_benchmark("catalog_million", [*options, "--load-s", 0])
    captions = tmp_path / "captions.tsv"
    captions.write_text("image\tcaption\n" + "".join(f"{n}.jpg\tdog number{n} runs\n" for n in range(300)))
    options = [*options, "--captions", captions]
    found = run_benchmark("catalog_million", options)
    assert (found["database"], found["rows"], found["captions"]) == (name, 700, "captions.tsv")
    assert found["committed_per_s"] >= found["loaded_per_s"] > 0
    assert min(found[of] for of in ("catalog_bytes_per_image", "parquet_bytes_per_image", "plan_s")) > 0
    searches = found["search_ms"]
    assert searches["to_100"]["queries"] == searches["to_10000"]["queries"] == 8
    assert searches["more"] == {}
    assert found["p95_to_goal"].keys() == {"to_100", "to_10000"}
    assert 0 < searches["to_100"]["p50"] <= searches["to_100"]["p95"] <= searches["to_100"]["slowest"]["ms"]
    # Nothing is loaded again.
    assert run_benchmark("catalog_million", options)["committed_per_s"] == found["committed_per_s"]


def test_readers_search_beside_a_run() -> None:
    found = run_benchmark("readers", ["--rows", 600, "--seconds", 0.2])
    assert (found["database"], found["readers"], found["errors"]) == ("sqlite", 4, [])
    assert found["wait_ms"].keys() == {"alone", "work", "run"}
    assert found["wait_ms"]["run"]["committed_per_s"] > 0
    assert all(0 < each["p50"] <= each["p99"] <= each["longest"] for each in found["wait_ms"].values())
    assert found["run_to_work"].keys() == {"p50", "p99"}
