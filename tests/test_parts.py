"""Parts: the same rows in SQL and in Parquet, whatever dies in between."""

import dataclasses
import hashlib
import importlib
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcap import parts
from batchcap.catalog import Captioned, Catalog, ModelInfo, PartRow, Run
from batchcap.errors import StoreError
from batchcap.verify import verify_store
from tests.postgresql import EmptyCatalogs

MODEL = ModelInfo("f" * 64, "small")
SQL = """\
SELECT uri, text, caption.confidence, log_prob, token_count, caption.source, caption.fingerprint, model.name,
       width, height, format, image.size_bytes, taken_at, result.content_hash, run_id, caption.created_at,
       camera, latitude, longitude
FROM result JOIN caption ON caption.id = result.caption_id
JOIN image ON image.content_hash = result.content_hash
JOIN model ON model.fingerprint = caption.fingerprint ORDER BY result.id"""


def captioned(number: int) -> Captioned:
    return Captioned(
        uri=f"/photos/{number:05d}.jpg",
        size_bytes=100 + number,
        mtime_ns=number,
        etag=None,
        content_hash=f"hash {number}",
        width=640,
        height=480,
        format="JPEG",
        taken_at=None if number % 2 else datetime(2026, 1, 31, 9, 30, 0, number),
        text=f"dog {number} — “Zoë”",
        log_prob=-number / 3,
        confidence=None if number % 3 else 1 / (number + 3),
        token_count=number,
        camera=None if number % 2 else f"Zoë {number}",
        latitude=None if number % 3 else number / 7,
        longitude=None if number % 3 else -number / 3,
    )


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.db", mode="write") as opened:
        yield opened


@pytest.fixture
def store(catalog: Catalog, tmp_path: Path) -> parts.Store:
    return parts.open_store(tmp_path / "store", catalog.uuid)


@pytest.fixture
def run(catalog: Catalog) -> Iterator[Run]:
    with catalog.run(["/photos"], MODEL, {}) as running:
        yield running


def again(catalog: Catalog) -> Run:
    return catalog.run(["/photos"], MODEL, {})


def str_of(value: object) -> object:
    """A time as SQLite holds it, whatever PostgreSQL does; other values as they are."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat(" ", "microseconds")
    return value


def assert_equal_in_both(catalog: Catalog, store: parts.Store) -> None:
    """Every result is in exactly one part, as it is in SQL, and nothing else is there."""
    with catalog.query(SQL) as result:
        expected = [tuple(map(str_of, row)) for row in result.rows]
    text = [tuple(map(str_of, row.values())) for row in parts.read_parts(store).to_pylist()]
    # Within a part the order is SQL's; between the parts of two runs it is that of their random names.
    assert sorted(text, key=str) == sorted(expected, key=str)
    assert catalog.unsealed_count() == 0
    assert catalog.pending_parts() == []
    assert {path.name for path in store.captions.iterdir()} == {path.name for path in parts.part_paths(store)}


def test_the_schema_is_the_row_of_the_catalog() -> None:
    assert tuple(parts.PART_SCHEMA.names) == PartRow._fields


def test_seal_writes_every_row_once(catalog: Catalog, store: parts.Store, run: Run) -> None:
    run.commit([captioned(number) for number in range(7)])
    assert catalog.unsealed_count() == 7
    (part,) = parts.seal(catalog, store, run)
    assert part.name == f"part-{run.id[:8]}-00000.parquet"
    assert part.row_count == 7
    assert parts.seal(catalog, store, run) == []
    run.commit([captioned(number) for number in range(10)])
    (part,) = parts.seal(catalog, store, run)
    assert (part.name, part.row_count) == (f"part-{run.id[:8]}-00001.parquet", 3)
    assert_equal_in_both(catalog, store)
    with catalog.query("SELECT name, state, row_count, sha256 FROM part") as result:
        for name, state, row_count, sha256 in result.rows:
            content = (store.captions / name).read_bytes()
            assert (state, sha256) == ("done", hashlib.sha256(content).hexdigest())
            assert pq.read_metadata(store.captions / name).num_rows == row_count


def test_a_part_takes_the_oldest_rows_and_no_more_than_asked(
    catalog: Catalog, store: parts.Store, run: Run
) -> None:
    run.commit([captioned(number) for number in range(7)])
    sizes = [catalog.assign_part(run.id, rows=3).row_count for _ in range(3)]
    assert sizes == [3, 3, 1]
    assert catalog.assign_part(run.id, rows=3) is None
    first = catalog.pending_parts()[0]
    (rows,) = catalog.part_rows(first.name)
    assert [row.uri for row in rows] == [f"/photos/{number:05d}.jpg" for number in range(3)]
    parts.seal_pending(catalog, store)
    assert_equal_in_both(catalog, store)


def test_large_parts_are_written_in_batches(
    catalog: Catalog, store: parts.Store, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchcap.catalog.sealing._BATCH_ROWS", 4)
    run.commit([captioned(number) for number in range(10)])
    (part,) = parts.seal(catalog, store, run)
    assert pq.read_metadata(store.captions / part.name).num_row_groups == 3
    assert_equal_in_both(catalog, store)


def test_killed_before_the_file(catalog: Catalog, store: parts.Store) -> None:
    with again(catalog) as run:
        run.commit([captioned(number) for number in range(5)])
        part = catalog.assign_part(run.id)
    with again(catalog) as run:
        assert parts.seal_pending(catalog, store) == [part]
        # A row that came later is not in it.
        run.commit([captioned(5)])
        parts.seal(catalog, store, run)
    assert_equal_in_both(catalog, store)


def test_killed_between_the_file_and_the_catalog(
    catalog: Catalog, store: parts.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*arguments: object) -> None:
        raise Killed

    with pytest.raises(Killed), again(catalog) as run:
        run.commit([captioned(number) for number in range(5)])
        monkeypatch.setattr(catalog, "finish_part", die)
        parts.seal(catalog, store, run)
    monkeypatch.undo()
    (path,) = parts.part_paths(store)
    inode = path.stat().st_ino
    with again(catalog):
        parts.seal_pending(catalog, store)
    assert path.stat().st_ino == inode
    assert_equal_in_both(catalog, store)


def test_killed_while_writing(catalog: Catalog, store: parts.Store) -> None:
    with again(catalog) as run:
        run.commit([captioned(1)])
        part = catalog.assign_part(run.id)
    (store.captions / f".tmp-4711-{part.name}").write_bytes(b"PAR1 half")
    with again(catalog):
        parts.seal_pending(catalog, store)
    assert_equal_in_both(catalog, store)


def test_a_part_with_other_rows_is_not_overwritten(catalog: Catalog, store: parts.Store, run: Run) -> None:
    run.commit([captioned(1)])
    part = catalog.assign_part(run.id)
    path = store.captions / part.name
    pq.write_table(parts.PART_SCHEMA.empty_table(), path)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="other rows"):
        parts.seal_pending(catalog, store)
    assert path.read_bytes() == before
    assert catalog.pending_parts() == [part]


def test_without_hard_links(
    catalog: Catalog, store: parts.Store, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(source: object, target: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_link)
    run.commit([captioned(1)])
    (part,) = parts.seal(catalog, store, run)
    assert_equal_in_both(catalog, store)
    before = (store.captions / part.name).stat().st_ino
    parts._write(catalog, store, part)
    assert (store.captions / part.name).stat().st_ino == before


def test_other_files_in_the_folder_are_left_alone(catalog: Catalog, store: parts.Store, run: Run) -> None:
    strange = store.captions / "part-00000000-00000.parquet"
    pq.write_table(parts.PART_SCHEMA.empty_table(), strange)
    run.commit([captioned(1)])
    parts.seal_pending(catalog, store)
    parts.seal(catalog, store, run)
    assert strange.exists()
    assert parts.read_parts(store).num_rows == 1


def test_a_store_belongs_to_one_catalog(store: parts.Store, tmp_path: Path) -> None:
    assert parts.open_store(tmp_path / "store", store.catalog_uuid) == store
    with pytest.raises(StoreError, match="belongs to another catalog"):
        parts.open_store(tmp_path / "store", "another")
    assert [path.name for path in store.path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("stamp", ["", "[]", '{"format": 1}', "\x00"])
def test_a_damaged_stamp_is_refused(store: parts.Store, stamp: str) -> None:
    (store.path / "store.json").write_text(stamp)
    with pytest.raises(StoreError, match=r"store\.json is damaged"):
        parts.open_store(store.path, store.catalog_uuid)


def test_a_stamp_of_a_newer_batchcap_is_refused(store: parts.Store) -> None:
    (store.path / "store.json").write_text('{"format": 2, "catalog": "x"}')
    with pytest.raises(StoreError, match="install the newest"):
        parts.open_store(store.path, store.catalog_uuid)


def test_a_remote_store_is_refused(catalog: Catalog) -> None:
    with pytest.raises(StoreError, match="isn't supported yet"):
        parts.open_store("s3://bucket/photos", catalog.uuid)


def test_a_file_in_the_way_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="can't use"):
        parts.open_store(tmp_path / "file", catalog.uuid)


def test_damaged_and_foreign_parts_are_named(store: parts.Store) -> None:
    path = store.captions / "part-00000000-00000.parquet"
    path.write_bytes(b"not Parquet at all")
    with pytest.raises(StoreError, match="is damaged"):
        parts.read_parts(store)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(StoreError, match="schema version none"):
        parts.read_parts(store)
    newer = parts.PART_SCHEMA.with_metadata({"batchcap.schema_version": "3"})
    pq.write_table(newer.empty_table(), path)
    with pytest.raises(StoreError, match="install the newest"):
        parts.read_parts(store)


# What a commit may be given: any text that is valid UTF-8, and numbers as far as the columns reach.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
ROWS = st.builds(
    Captioned,
    uri=TEXTS,
    size_bytes=st.integers(0, 2**63 - 1),
    mtime_ns=st.integers(-(2**63), 2**63 - 1),
    etag=st.none() | TEXTS,
    content_hash=TEXTS,
    width=st.integers(1, 2**31 - 1),
    height=st.integers(1, 2**31 - 1),
    format=TEXTS,
    taken_at=st.none() | st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)),
    text=TEXTS,
    log_prob=st.none() | st.floats(max_value=0, allow_nan=False, allow_infinity=False),
    confidence=st.none() | st.floats(0, 1),
    token_count=st.none() | st.integers(0, 2**31 - 1),
    camera=st.none() | TEXTS,
    latitude=st.floats(-90, 90),
    longitude=st.floats(-180, 180),
)


@settings(max_examples=25, deadline=None)
@given(batch=st.lists(ROWS, max_size=10))
def test_any_row_comes_back_as_it_was(
    batch: list[Captioned], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("round_trip")
    check_round_trip(batch, f"sqlite:///{folder}/catalog.db", folder)


@settings(max_examples=10, deadline=None)
@given(batch=st.lists(ROWS, max_size=10))
def test_any_row_comes_back_from_postgresql_as_it_was(
    batch: list[Captioned], postgres_catalogs: EmptyCatalogs, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_round_trip(batch, postgres_catalogs.new(), tmp_path_factory.mktemp("round_trip"))


def check_round_trip(batch: list[Captioned], url: str, folder: Path) -> None:
    with Catalog.open(url, mode="write") as catalog:
        store = parts.open_store(folder, catalog.uuid)
        with again(catalog) as run:
            run.commit(batch)
            parts.seal(catalog, store, run)
        assert_equal_in_both(catalog, store)
        assert verify_store(catalog, folder).findings == []
    # The first of two rows of one content is the one that stays; a camera that it lacks is filled in.
    first = {row.content_hash: row for row in reversed(batch)}
    for row in batch:
        kept = first[row.content_hash]
        first[row.content_hash] = dataclasses.replace(
            kept, camera=row.camera if kept.camera is None else kept.camera
        )
    expected = {(row.uri, row.content_hash): first[row.content_hash] for row in batch}
    found = {(row["uri"], row["content_hash"]): row for row in parts.read_parts(store).to_pylist()}
    assert found.keys() == expected.keys()
    for key, row in found.items():
        names = (
            "width",
            "height",
            "format",
            "size_bytes",
            "taken_at",
            "log_prob",
            "confidence",
            "token_count",
            "camera",
            "latitude",
            "longitude",
        )
        assert all(row[name] == getattr(expected[key], name) for name in names)
        assert row["caption"] == expected[key].text


def test_an_empty_store_has_no_rows(store: parts.Store) -> None:
    assert parts.read_parts(store).num_rows == 0
    assert parts.read_parts(store).schema.equals(parts.PART_SCHEMA)


# What other programs make of the kinds of columns: text, whole numbers of 32 and 64 bits, numbers, times of a
# camera (local) and in UTC. Any of the pieces will do, for names change with their versions.
KINDS = {
    "duckdb": ("VARCHAR", "INTEGER", "BIGINT", "DOUBLE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE"),
    "pandas": ("str|object", "int32", "int64", "float64", "datetime64[us]", "datetime64[us, UTC]"),
    "polars": ("String", "Int32", "Int64", "Float64", "Datetime(us)", "Datetime(us, UTC)"),
    "pyarrow": ("string", "int32", "int64", "double", "timestamp[us]", "timestamp[us, tz=UTC]"),
}
OF_COLUMNS = ("caption", "width", "size_bytes", "confidence", "taken_at", "captioned_at")


def read_by(program: str, folder: Path) -> tuple[dict[str, str], list[tuple[object, ...]]]:
    """The types of the columns, and a few of each row, as another program reads the parts."""
    module = importlib.import_module(program)
    some = ["uri", "caption", "width", "confidence", "taken_at"]
    if program == "duckdb":
        with module.connect() as connection:
            table = connection.sql(f"SELECT * FROM '{folder}/*.parquet' ORDER BY uri")
            return dict(zip(table.columns, map(str, table.types), strict=True)), table.select(
                *some
            ).fetchall()
    if program == "polars":
        frame = module.read_parquet(f"{folder}/*.parquet").sort("uri")
        types = {
            name: str(kind).replace("time_unit=", "").replace("time_zone=", "").replace("'", "")
            for name, kind in frame.schema.items()
        }
        return {name: kind.replace(", None", "") for name, kind in types.items()}, frame.select(some).rows()
    if program == "pandas":
        frame = module.read_parquet(folder).sort_values("uri")
        rows = frame[some].astype(object).where(frame[some].notna(), None)
        return dict(frame.dtypes.astype(str)), list(rows.itertuples(index=False, name=None))
    table = pq.read_table(folder).sort_by("uri")
    types = {field.name: str(field.type) for field in table.schema}
    return types, [tuple(row.values()) for row in table.select(some).to_pylist()]


@pytest.mark.parametrize("program", KINDS)
def test_other_programs_read_parts_with_their_types(
    program: str, catalog: Catalog, store: parts.Store, run: Run
) -> None:
    for number in range(4):
        run.commit([captioned(number)])
        if number % 2:
            parts.seal(catalog, store, run)
    types, rows = read_by(program, store.captions)
    assert list(types) == parts.PART_SCHEMA.names
    for column, kinds in zip(OF_COLUMNS, KINDS[program], strict=True):
        assert types[column] in kinds.split("|"), column
    expected = [captioned(number) for number in range(4)]
    assert rows == [(row.uri, row.text, row.width, row.confidence, row.taken_at) for row in expected]


FIRST_VERSION = parts.PART_SCHEMA.names[:-3]


def as_version_1(path: Path) -> None:
    """Writes a part as the first version of batchcap did."""
    table = pq.read_table(path).select(FIRST_VERSION)
    pq.write_table(table.replace_schema_metadata({"batchcap.schema_version": "1"}), path, compression="zstd")


def test_parts_of_both_versions_are_read_together(
    catalog: Catalog, store: parts.Store, run: Run, tmp_path: Path
) -> None:
    blind = dict.fromkeys(("camera", "latitude", "longitude"))
    run.commit([dataclasses.replace(captioned(number), **blind) for number in range(3)])
    (old,) = parts.seal(catalog, store, run)
    run.commit([captioned(number) for number in range(6, 9)])
    (new,) = parts.seal(catalog, store, run)
    as_version_1(store.captions / old.name)
    catalog.finish_part(old.name, 3, parts.sha256_of(store.captions / old.name))

    table = parts.read_parts(store)
    assert table.schema.equals(parts.PART_SCHEMA)
    assert table["camera"].to_pylist() == [None] * 3 + ["Zoë 6", None, "Zoë 8"]
    assert_equal_in_both(catalog, store)
    assert verify_store(catalog, store.path).findings == []

    # As it is written again where a run was killed before the catalog knew of it, by the older batchcap.
    before = (store.captions / old.name).read_bytes()
    parts._write(catalog, store, old)
    assert (store.captions / old.name).read_bytes() == before

    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as connection:
        where = f"'{store.captions}/*.parquet'"
        query = f"SELECT uri, camera FROM read_parquet({where}, union_by_name = true) ORDER BY uri"
        assert connection.sql(query).fetchall() == [(row["uri"], row["camera"]) for row in table.to_pylist()]
        # Who asks for what was there before need not know of it.
        assert connection.sql(f"SELECT count(caption) FROM read_parquet({where})").fetchall() == [(6,)]

    # A part that claims to be of another version than its columns are.
    wrong = pq.read_table(store.captions / new.name)
    pq.write_table(wrong.replace_schema_metadata({"batchcap.schema_version": "1"}), store.captions / new.name)
    with pytest.raises(StoreError, match="other columns"):
        parts.read_parts(store)


def test_what_the_catalog_says_otherwise_than_a_part_is_found(
    catalog: Catalog, store: parts.Store, run: Run
) -> None:
    run.commit([captioned(6)])
    parts.seal(catalog, store, run)
    with catalog._database.write() as connection:
        connection.exec_driver_sql("UPDATE image SET camera = 'another'")
    (finding,) = verify_store(catalog, store.path).findings
    assert "camera is 'Zoë 6' in the file and 'another' in the catalog" in finding.detail
    with catalog._database.write() as connection:
        connection.exec_driver_sql("UPDATE image SET camera = NULL")
    (finding,) = verify_store(catalog, store.path).findings
    assert "camera is 'Zoë 6' in the file and None in the catalog" in finding.detail
