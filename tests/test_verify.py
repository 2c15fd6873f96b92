"""Verification: whatever disagrees between catalog and Parquet is found, and named."""

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap import parts
from batchcap.catalog import Catalog, FindingKind
from batchcap.verify import Verification, verify_store
from tests.stores import LARGE, captioned, copy_of, execute, make_store, part_files, query, url_of

# More than any system gives to a process.
NOBODY = 4_999_999


@pytest.fixture(scope="module")
def good_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("verify") / "store")


@pytest.fixture
def store(good_store: Path, tmp_path: Path) -> Path:
    return copy_of(good_store, tmp_path / "store")


def verify(store: Path) -> Verification:
    with Catalog.open(url_of(store)) as catalog:
        return verify_store(catalog, store)


def test_what_agrees(store: Path) -> None:
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    seen: list[int] = []
    with Catalog.open(url_of(store)) as catalog:
        found = verify_store(catalog, store, progress=seen.append)
    assert (found.parts, found.rows, found.pending_parts, found.unsealed_rows) == (3, 12, 0, 0)
    assert found.findings == []
    assert found.error() is None
    assert seen == [5, 2, 5]
    assert before == {path: path.read_bytes() for path in before}


def test_a_run_goes_on_meanwhile(store: Path) -> None:
    with Catalog.open(url_of(store), mode="write") as catalog, catalog.run(["/photos"], LARGE, {}) as run:
        run.commit([captioned(number, "a new dog") for number in (20, 21)])
        pending = catalog.assign_part(run.id)
        assert pending is not None
        (store / "captions" / f".tmp-{os.getpid()}-{pending.name}").touch()
        run.commit([captioned(22, "a newer dog")])
        found = verify(store)
        assert (found.pending_parts, found.unsealed_rows, found.rows, found.findings) == (1, 1, 12, [])
        # It may be on disk already.
        (store / "captions" / pending.name).touch()
        assert verify(store).findings == []


# --- one thing wrong ---


def remove(store: Path) -> None:
    part_files(store)[1].unlink()


def cut(store: Path) -> None:
    path = part_files(store)[0]
    path.write_bytes(path.read_bytes()[:-100])


def rewrite(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        path = part_files(store)[0]
        pq.write_table(change(pq.read_table(path)), path)

    return damage


def say(*statements: str) -> Callable[[Path], None]:
    return lambda store: execute(store, *statements)


def another_row(table: str) -> tuple[str, ...]:
    """Takes a table's constraints away, as no program should."""
    return (
        "PRAGMA legacy_alter_table = ON",  # nor does it look at what else speaks of the table
        f"CREATE TABLE copy AS SELECT * FROM {table}",
        f"DROP TABLE {table}",
        f"ALTER TABLE copy RENAME TO {table}",
    )


def fill_page(store: Path) -> None:
    (root,), (size,) = (
        query(store, sql)[0]
        for sql in ("SELECT rootpage FROM sqlite_master WHERE name = 'location'", "PRAGMA page_size")
    )
    with (store / "catalog.db").open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)


def leave(name: str) -> Callable[[Path], None]:
    return lambda store: (store / name).touch()


def stamp(content: str) -> Callable[[Path], None]:
    return lambda store: (store / "store.json").write_text(content) and None


ONE_THING = {
    "no part": (remove, "part_missing", "2 rows are in the catalog alone"),
    "part cut short": (cut, "part_damaged", "is damaged"),
    "no part of ours": (rewrite(lambda table: table.select(["uri"])), "part_damaged", "other columns"),
    "part lacks a row": (
        rewrite(lambda table: table.slice(0, 4)),
        "part_rows",
        "row 5: /photos/4.jpg is only in the catalog",
    ),
    "part has a row more": (
        rewrite(lambda table: pa.concat_tables([table, table.slice(2, 1)])),
        "part_rows",
        "row 6 (/photos/2.jpg) is only in the file",
    ),
    "another caption in SQL": (
        say("UPDATE caption SET text = 'a cow' WHERE id = 3"),
        "part_rows",
        "row 3: caption is 'a dog, number 2 — “Zoë”' in the file and 'a cow' in the catalog",
    ),
    "another count in SQL": (
        say("UPDATE part SET row_count = 6 WHERE id = 1"),
        "part_rows",
        "it has 5 rows, the catalog's table `part` says 6",
    ),
    "part written by another program": (rewrite(lambda table: table), "part_bytes", "sha256"),
    "unknown part": (leave("captions/part-00000000-00000.parquet"), "orphan", "knows no such part"),
    "other file": (leave("captions/notes.txt"), "orphan", "knows no such part"),
    "killed while writing": (leave(f"captions/.tmp-{NOBODY}-part-0-00000.parquet"), "leftover", "nobody"),
    "killed while making": (leave(f".tmp-{NOBODY}-catalog.db"), "leftover", "nobody"),
    "temporary, but not ours": (leave("captions/.tmp-x"), "leftover", "nobody"),
    "another's stamp": (stamp('{"format": 1, "catalog": "another"}'), "stamp", "the catalog another"),
    "damaged stamp": (stamp("{"), "stamp", "is damaged"),
    "result twice": (
        say(
            *another_row("result"),
            "INSERT INTO result SELECT id + 100, uri, content_hash, caption_id, run_id, NULL, created_at "
            "FROM result WHERE id = 1",
        ),
        "duplicate_result",
        "2 results of caption 1",
    ),
    "caption twice": (
        say(
            *another_row("caption"),
            "CREATE UNIQUE INDEX id ON caption (id)",  # what refers to it insists on that
            "INSERT INTO caption SELECT 100, content_hash, source, fingerprint, text, search_text, log_prob, "
            "confidence, token_count, created_at FROM caption WHERE id = 1",
            "INSERT INTO caption_fts (rowid, search_text) SELECT id, search_text FROM caption WHERE id = 100",
        ),
        "duplicate_caption",
        f"2 captions of model {'5' * 64}",
    ),
    "location without result": (
        say("INSERT INTO location VALUES ('/new', 'content 1', 101, 1, NULL, '2026-01-01 00:00:00', NULL)"),
        "no_result",
        "no result for the image content 1",
    ),
    "no live caption": (
        say("UPDATE image SET caption_id = NULL WHERE content_hash = 'content 4'"),
        "no_live_caption",
        "it has none",
    ),
    "live caption is gone": (
        say("UPDATE image SET caption_id = 99 WHERE content_hash = 'content 4'"),
        "no_live_caption",
        "caption 99",
    ),
    "live caption of another image": (
        say("UPDATE image SET caption_id = 1 WHERE content_hash = 'content 4'"),
        "no_live_caption",
        "caption 1 is not its caption",
    ),
    "location without image": (
        say("UPDATE location SET content_hash = 'gone' WHERE uri = '/photos/4.jpg'"),
        "reference",
        "a row of image that is not there",
    ),
    "caption not indexed": (
        say(
            "INSERT INTO caption_fts (caption_fts, rowid, search_text) "
            "SELECT 'delete', id, search_text FROM caption WHERE id = 1"
        ),
        "full_text",
        "can't be found",
    ),
    "indexed, but gone": (
        say("INSERT INTO caption_fts (rowid, search_text) VALUES (99, 'dog')"),
        "full_text",
        "it is in the index, but not there",
    ),
    "word not indexed": (
        say("DROP TRIGGER caption_au", "UPDATE caption SET search_text = search_text || ' cow' WHERE id = 1"),
        "full_text",
        "found 0 times in the index and 1 times in the captions",
    ),
    "words in another order": (
        say("DROP TRIGGER caption_au", "UPDATE caption SET search_text = 'zoe a dog number 0' WHERE id = 1"),
        "full_text",
        "found elsewhere",
    ),
    "damaged index": (
        say("UPDATE caption_fts_data SET block = x'ffffffffffffffff' WHERE id > 10"),
        "full_text",
        "it can't be read",
    ),
    "more files counted than there are": (
        say("UPDATE shown SET files = 7 WHERE caption_id = 5"),
        "full_text",
        "searches count 7 files of it, and there are 1",
    ),
    "not counted": (
        say("DELETE FROM shown WHERE caption_id = 5"),
        "full_text",
        "searches count 0 files of it, and there are 1",
    ),
    "counted, but not the live caption": (
        say(
            "INSERT INTO shown SELECT min(id), 1 FROM caption WHERE id NOT IN (SELECT caption_id FROM image)"
        ),
        "full_text",
        "searches count 1 files of it, and there are 0",
    ),
    "damaged database": (fill_page, "database", ""),
}


@pytest.mark.parametrize("name", ONE_THING)
def test_one_thing_wrong_is_one_kind_of_finding(name: str, store: Path) -> None:
    damage, kind, detail = ONE_THING[name]
    damage(store)
    found = verify(store)
    assert {finding.kind.value for finding in found.findings} == {kind} == set(found.counts)
    assert any(detail in finding.detail for finding in found.findings), found.findings
    assert all(finding.subject and "\n" not in finding.detail for finding in found.findings)
    error = found.error()
    assert error is not None
    assert str(error) == (
        f"catalog and Parquet files disagree: {found.counts[kind]} {kind}; {FindingKind(kind).advice}"
    )


def test_every_kind_has_a_case() -> None:
    assert {kind for _, kind, _ in ONE_THING.values()} == {kind.value for kind in FindingKind}
    assert all(kind.advice for kind in FindingKind)


def test_the_gravest_comes_first_in_the_error(store: Path) -> None:
    (store / "captions" / "notes.txt").touch()
    part_files(store)[1].unlink()
    error = verify(store).error()
    assert str(error) == (
        "catalog and Parquet files disagree: 1 part_missing, 1 orphan; put a copy of the file back, or write "
        "it again from the catalog: batchcap verify --repair"
    )


def test_many_findings_are_counted_and_not_all_listed(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchcap.verify._LISTED", 2)
    execute(store, "UPDATE image SET caption_id = NULL")
    found = verify(store)
    assert (found.counts["no_live_caption"], len(found.findings)) == (8, 2)


def test_batches_of_any_size(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchcap.catalog.sealing._BATCH_ROWS", 2)
    monkeypatch.setattr("batchcap.catalog.sqlite_checks._BATCH_ROWS", 2)
    monkeypatch.setattr(parts, "_BATCH_ROWS", 3)
    found = verify(store)
    assert (found.rows, found.findings) == (12, [])
    execute(store, "UPDATE caption SET text = 'a cow' WHERE text LIKE 'a dog, number 4%'")
    found = verify(store)
    assert found.rows == 4 + 2 + 5
    assert found.findings[0].detail.startswith("row 5: caption is")


def test_letters_that_the_index_takes_apart_are_no_finding(store: Path) -> None:
    # SQLite's idea of a letter is older than Python's.
    execute(store, "UPDATE caption SET search_text = 'a\u19b0b \u19b1 Ä' WHERE id = 1")
    assert verify(store).findings == []


def test_the_index_itself_sees_no_fault_where_we_see_none(store: Path) -> None:
    with closing(sqlite3.connect(store / "catalog.db")) as connection:
        connection.execute("INSERT INTO caption_fts (caption_fts, rank) VALUES ('integrity-check', 1)")


def test_a_catalog_without_a_store(store: Path) -> None:
    with Catalog.open(f"sqlite:///{store / 'new.db'}", mode="write") as catalog:
        assert verify_store(catalog, store / "nowhere").findings == []
    assert not (store / "nowhere").exists()
    assert json.loads((store / "store.json").read_text())["catalog"] != catalog.uuid


def test_a_catalog_in_postgresql_is_verified(postgres_url: str, tmp_path: Path) -> None:
    with Catalog.open(postgres_url, mode="write") as catalog:
        store = parts.open_store(tmp_path / "store", catalog.uuid)
        with catalog.run(["/photos"], LARGE, {}) as run:
            run.commit([captioned(number, f"dog {number}") for number in range(5)])
            parts.seal(catalog, store, run)
        found = verify_store(catalog, store.path)
        assert (found.parts, found.rows, found.findings) == (1, 5, [])
        with catalog._database.write() as connection:
            connection.exec_driver_sql("DELETE FROM result WHERE uri = '/photos/3.jpg'")
        kinds = {finding.kind for finding in verify_store(catalog, store.path).findings}
        assert FindingKind.NO_RESULT in kinds and len(kinds) > 1
