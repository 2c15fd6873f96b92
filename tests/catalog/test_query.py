"""SQL by hand: everything that reads, nothing that writes, and one line for what is wrong."""

import sqlite3
from pathlib import Path

import pytest

from batchcap.catalog import Catalog
from batchcap.errors import QueryError


@pytest.fixture
def filled(catalog: Catalog, model, captioned) -> Catalog:
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned(f"/{number}") for number in range(10)])
    return catalog


def test_rows_are_read_as_they_are_asked_for(filled: Catalog) -> None:
    with filled.query("SELECT uri, confidence AS sure FROM captions ORDER BY uri") as result:
        assert result.columns == ["uri", "sure"]
        assert next(result.rows) == ("/0", 0.5)
        assert len(list(result.rows)) == 9


@pytest.mark.parametrize(("limit", "rows"), [(None, 10), (3, 3), (0, 0), (99, 10)])
def test_a_limit_ends_the_answer(filled: Catalog, limit: int | None, rows: int) -> None:
    with filled.query("SELECT * FROM captions", limit=limit) as result:
        assert len(list(result.rows)) == rows


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM caption_fts WHERE caption_fts MATCH 'dog'",
        "SELECT value FROM run, json_each(run.source)",
        "SELECT name FROM pragma_table_info('run')",
        "PRAGMA table_info(run)",
        "EXPLAIN QUERY PLAN SELECT * FROM captions",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 5) SELECT * FROM n",
        "SELECT cast(x'ff' AS TEXT)",
        "VALUES (1);",
        "-- a comment\nSELECT 1 /* and another */",
    ],
)
def test_what_reads_is_answered(filled: Catalog, sql: str) -> None:
    with filled.query(sql) as result:
        assert list(result.rows)


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO model VALUES ('a', 'b', '{}', '')",
        "UPDATE location SET uri = 'x'",
        "DELETE FROM location",
        "DROP TABLE location",
        "WITH gone AS (SELECT 1) DELETE FROM location",
        "EXPLAIN DELETE FROM location",
        "ATTACH '{folder}/other.db' AS other",
        "VACUUM",
        "VACUUM INTO '{folder}/other.db'",
        "CREATE TABLE t (a)",
        "CREATE TEMP TABLE t (a)",
        "CREATE VIRTUAL TABLE temp.t USING fts5(a)",
        "ALTER TABLE location RENAME TO l",
        "REINDEX",
        "ANALYZE",
        "BEGIN IMMEDIATE",
        "COMMIT",
        "SAVEPOINT s",
        "PRAGMA journal_mode",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA query_only = OFF",
        "PRAGMA writable_schema = ON",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA user_version = 5",
        "SELECT load_extension('x')",
        "SELECT fts3_tokenizer('simple')",
    ],
)
def test_what_writes_or_sets_is_refused(filled: Catalog, path: Path, sql: str) -> None:
    with pytest.raises(QueryError, match="only queries are allowed"):
        filled.query(sql.replace("{folder}", str(path.parent)))
    assert not (path.parent / "other.db").exists()
    assert filled.status().locations == 10


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT 1; SELECT 2", "more than one statement"),
        ("SELECT 1; DELETE FROM location", "more than one statement"),
        ("", "no query"),
        ("-- nothing", "no query"),
        ("SELEC 1", "syntax error"),
        ("SELECT nope FROM captions", "no such column: nope"),
        ("SELECT * FROM nope", "no such table: nope"),
        ("SELECT ?", "the query is wrong"),
        ("SELECT '\x00'", "the query is wrong"),
        ("SELECT '\ud800'", "the query is wrong"),
        ("UPDATE sqlite_master SET sql = ''", "may not be modified"),
        ("SELECT length(randomblob(100000000))", "over 67,108,864 bytes"),
        ("SELECT count(*) FROM caption_fts WHERE caption_fts MATCH '\"'", "unterminated string"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(filled: Catalog, sql: str, message: str) -> None:
    with pytest.raises(QueryError, match=message) as caught, filled.query(sql) as result:
        list(result.rows)
    assert "\n" not in str(caught.value)


def test_a_query_without_end_is_ended(filled: Catalog) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    with pytest.raises(QueryError, match=r"took over 0\.05 s"):
        filled.query(endless, timeout_s=0.05)


def test_an_error_in_mid_answer_is_one_too(filled: Catalog) -> None:
    with (
        filled.query(
            "SELECT abs(CASE uri WHEN '/5' THEN -9223372036854775807 - 1 END) FROM captions"
        ) as result,
        pytest.raises(QueryError, match="integer overflow"),
    ):
        list(result.rows)


def test_a_catalog_that_went_away_is_a_query_error(filled: Catalog, path: Path) -> None:
    for file in path.parent.glob("catalog.db*"):
        file.unlink()
    with pytest.raises(QueryError, match="can't be opened"):
        filled.query("SELECT 1 FROM location")


def test_a_query_sees_what_is_committed_meanwhile(filled: Catalog, path: Path) -> None:
    with filled.query("SELECT uri FROM location ORDER BY uri") as result:
        next(result.rows)
        plain = sqlite3.connect(path)
        plain.execute("UPDATE location SET vanished_at = 'now'")
        plain.commit()
        plain.close()
        assert len(list(result.rows)) == 9
