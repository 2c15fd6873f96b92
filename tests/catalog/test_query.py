"""SQL by hand: everything that reads, nothing that writes, and one line for what is wrong."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchcap.catalog import Catalog, ModelInfo
from batchcap.cli.common import json_value
from batchcap.errors import CatalogError, QueryError
from tests.postgresql import Server

SQLITE = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
POSTGRESQL = pytest.mark.parametrize("url", ["postgresql"], indirect=True)


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


@pytest.fixture(scope="module")
def asked(postgres_server: Server, model, captioned) -> Iterator[Catalog]:
    """A catalog in PostgreSQL that no test changes, beside a table and a function that are not ours."""
    database = postgres_server.new_database()
    postgres_server.execute(
        "CREATE TABLE other_table (secret int)",
        "CREATE FUNCTION run_text(sql text) RETURNS text LANGUAGE plpgsql AS "
        "$$ DECLARE said text; BEGIN EXECUTE sql INTO said; RETURN said; END $$",
        database=database,
    )
    with (
        Catalog.open(postgres_server.url(database), mode="write") as catalog,
        catalog.run(["/"], model, {}) as run,
    ):
        run.commit([captioned(f"/{number}") for number in range(10)])
        yield catalog


@pytest.mark.parametrize(("limit", "rows"), [(None, 10), (3, 3), (0, 0), (99, 10)])
def test_a_limit_ends_the_answer(filled: Catalog, limit: int | None, rows: int) -> None:
    with filled.query("SELECT * FROM captions", limit=limit) as result:
        assert len(list(result.rows)) == rows


@SQLITE
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
        "SELECT count(*) FROM shown WHERE search_vector @@ 'dog'",
        "SELECT json_array_elements(source) FROM run",
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'run'",
        "EXPLAIN SELECT * FROM captions",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT * FROM n",
        "VALUES (1);",
        "TABLE captions",
        "(SELECT 1) UNION ALL (SELECT 2)",
        "-- a comment\nSELECT 1 /* and another */",
        "SELECT '100 %s' -- %",
        "SELECT ARRAY[1, NULL], NULL, now(), 'NaN'::numeric, 'x'::bytea, gen_random_uuid(), '1 h'::interval",
    ],
)
def test_what_reads_is_answered_by_postgresql(asked: Catalog, sql: str) -> None:
    with asked.query(sql) as result:
        rows = list(result.rows)
        assert rows and {len(row) for row in rows} == {len(result.columns)}
    json.dumps(rows, default=json_value)


@SQLITE
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
    "sql",
    [
        "INSERT INTO model VALUES ('a', 'b', '{}', now())",
        "UPDATE location SET uri = 'x'",
        "DELETE FROM location",
        "TRUNCATE location CASCADE",
        "DROP TABLE location",
        "WITH gone AS (DELETE FROM location RETURNING 1) SELECT * FROM gone",
        "WITH gone AS (SELECT 1) DELETE FROM location",
        "EXPLAIN ANALYZE DELETE FROM location",
        "EXPLAIN (ANALYZE) CREATE TABLE t AS SELECT 1",
        "SELECT 1 AS a INTO t",
        "CREATE TEMP TABLE t (a int)",
        "ALTER TABLE location RENAME TO l",
        "VACUUM",
        "ANALYZE",
        "COMMIT",
        "BEGIN READ WRITE",
        "/* a comment */ SET ROLE postgres",
        "-- a comment\nRESET ROLE",
        "SET SESSION AUTHORIZATION postgres",
        "SET statement_timeout TO 0",
        "DO $$ BEGIN DELETE FROM location; END $$",
        "CALL something()",
        "COPY location TO '/tmp/location'",
        "COPY location FROM PROGRAM 'id'",
        "COPY location TO STDOUT",
        "LOCK TABLE location",
        "LISTEN something",
        "SELECT * FROM location FOR UPDATE",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT * FROM pg_ls_dir('/')",
        "SELECT lo_import('/etc/passwd')",
        "SELECT lo_creat(-1)",
        "SELECT * FROM pg_authid",
        "SELECT * FROM public.other_table",
        "SELECT nextval('result_id_seq')",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()",
        "SELECT pg_reload_conf()",
        "SELECT pg_advisory_lock(1)",
        "SELECT set_config('role', 'none', false), pg_read_file('/etc/passwd')",
        "SELECT \"set_config\"('transaction_read_only', 'off', false)",
        "SELECT U&\"\\0073et_config\"('role', 'none', false)",
        "SELECT query_to_xml('SELECT set_' || 'config(''role'', ''none'', false)', true, true, '')",
        "SELECT ts_stat('SELECT set_' || 'config(''role'', ''none'', false)')",
    ],
)
def test_what_writes_or_sets_is_refused_by_postgresql(asked: Catalog, sql: str) -> None:
    with pytest.raises(QueryError, match="only queries are allowed") as caught, asked.query(sql) as result:
        list(result.rows)
    assert "\n" not in str(caught.value)
    assert asked.status().locations == 10


def test_a_query_can_not_write_even_through_a_function_that_runs_text(asked: Catalog) -> None:
    with asked.query("SELECT current_user, current_setting('transaction_read_only')") as result:
        assert list(result.rows) == [("batchcap_reader", "on")]
    set_config = "public.run_text('SELECT set_' || 'config(''{}'', ''{}'', false)')"
    for attempt in (
        "public.run_text('DELETE FROM location RETURNING uri')",
        f"{set_config.format('role', 'none')}, public.run_text('DELETE FROM location RETURNING uri')",
        f"{set_config.format('transaction_read_only', 'off')}",
    ):
        with (
            pytest.raises(QueryError, match="read-only|read-write|permission denied") as caught,
            asked.query(f"SELECT {attempt}") as result,
        ):
            list(result.rows)
        assert "\n" not in str(caught.value)
    assert asked.status().locations == 10


@POSTGRESQL
def test_where_the_role_can_not_be_used_nothing_is_answered(
    filled: Catalog, postgres_server: Server, url: str
) -> None:
    database = url.partition("?")[0].rpartition("/")[2]
    postgres_server.execute(
        "DROP ROLE IF EXISTS guest",
        "CREATE ROLE guest LOGIN",
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO guest",
        database=database,
    )
    with Catalog.open(url.replace("postgres@", "guest@")) as catalog:
        assert catalog.search("dog").total == 10
        with pytest.raises(QueryError, match="GRANT batchcap_reader TO guest"):
            catalog.query("SELECT 1")
        postgres_server.execute("GRANT batchcap_reader TO guest")
        with catalog.query("SELECT count(*) FROM captions") as result:
            assert list(result.rows) == [(10,)]
    with (
        Catalog.open(url.replace("postgres@", "guest@"), mode="write") as catalog,
        pytest.raises(CatalogError, match="permission denied"),
        catalog.run(["/"], ModelInfo("f" * 64, "small"), {}),
    ):
        pass
    postgres_server.execute("DROP OWNED BY guest", "DROP ROLE guest", database=database)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT 1; SELECT 2", "more than one statement"),
        ("SELECT 1; DELETE FROM location", "more than one statement"),
        ("", "no query"),
        ("-- nothing", "no query"),
        (" ; ", "no query"),
        ("SELEC 1", "syntax error"),
        ("SELECT nope FROM captions", 'column "nope" does not exist'),
        ("SELECT * FROM nope", 'relation "nope" does not exist'),
        ("SELECT ?", "the query is wrong"),
        ("SELECT $1", "the query is wrong"),
        ("SELECT '\x00'", "NUL"),
        ("SELECT '\ud800'", "the query is wrong"),
        ("SELECT 1 / 0", "division by zero"),
        ("SELECT 'infinity'::timestamptz", "the query is wrong"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_by_postgresql(asked: Catalog, sql: str, message: str) -> None:
    with pytest.raises(QueryError, match=message) as caught, asked.query(sql) as result:
        list(result.rows)
    assert "\n" not in str(caught.value)


@SQLITE
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
    with (
        pytest.raises(QueryError, match=r"took over 0\.05 s"),
        filled.query(endless, timeout_s=0.05) as result,
    ):
        list(result.rows)


@POSTGRESQL
def test_the_clock_runs_while_the_server_works_and_not_while_rows_are_read(filled: Catalog) -> None:
    many = "SELECT n FROM generate_series(1, 5000) AS n"
    with filled.query(many, timeout_s=30.0) as result:
        assert [row for (row,) in result.rows] == list(range(1, 5001))
    slow = "SELECT pg_sleep(CASE n WHEN 4000 THEN 60 ELSE 0 END) FROM generate_series(1, 5000) AS n"
    with filled.query(slow, timeout_s=0.3) as result, pytest.raises(QueryError, match=r"took over 0\.3 s"):
        list(result.rows)


def test_an_error_in_mid_answer_is_one_too(filled: Catalog) -> None:
    with (
        filled.query(
            "SELECT abs(CASE uri WHEN '/5' THEN -9223372036854775807 - 1 END) FROM captions ORDER BY uri"
        ) as result,
        pytest.raises(QueryError, match="integer overflow|out of range"),
    ):
        list(result.rows)


@SQLITE
def test_a_catalog_that_went_away_is_a_query_error(filled: Catalog, path: Path) -> None:
    for file in path.parent.glob("catalog.db*"):
        file.unlink()
    with pytest.raises(QueryError, match="can't be opened"):
        filled.query("SELECT 1 FROM location")


def test_a_query_hinders_no_writer_and_no_writer_a_query(filled: Catalog, other_program) -> None:
    with filled.query("SELECT uri FROM location ORDER BY uri") as result:
        next(result.rows)
        other_program("UPDATE location SET vanished_at = '2026-01-01 00:00:00'")
        assert len(list(result.rows)) == 9
