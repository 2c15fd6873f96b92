"""Sends nonsense to `search` and hostile SQL to `sql` until something happens that must not.

::

    python -m tests.catalog.fuzz --searches 10000 --statements 1000 --seed 0

It prints one JSON object a database; exit status 1 if anything went wrong. Each search must find exactly what
the naive one does. Each statement must be answered, or refused in one line; afterwards the catalog, the other
tables and the files around must be what they were, and nothing that was said may hold the secret that lies in
another file and in another table.
"""

import argparse
import hashlib
import json
import os
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from batchcap.catalog import Captioned, Catalog, ModelInfo
from batchcap.catalog.text import parse_query, search_text
from batchcap.errors import QueryError
from tests import postgresql

MODEL = ModelInfo("f" * 64, "small", {})
CAPTIONS = {
    "/beach": "a dog runs on a beach",
    "/bikes": "Two Bicycles lean on a wall.",
    "/cafe": "people in front of a Cafe\u0301 in Zürich",
    "/children": "three children are playing",
    "/dogs": "dogs, dogs, dogs",
    "/office": "the oﬃce of a straße",
}
# What a file and a table hold that no query may read.
SECRET = "canary-7f3a9c"  # no secret
# How long a statement may take: some of them would sleep for ever.
_TIMEOUT_S = 0.25
_SHOWN = 10

_WORDS = ["dog", "dogs", "beach", "a", "the", "bicycl", "CAFÉ", "zurich", "straße", "ﬁ", "3d", "", "ß", "run"]
_OPERATORS = ['"', "*", "-", "(", ")", ":", "^", "+", ",", " ", " AND ", " OR ", " NOT ", "NEAR(", "{", "}"]
_OPERATORS += [
    "'",
    ";",
    "--",
    "\x00",
    "\u0301",
    "caption_fts",
    "\ud800",
    "\\",
    "%",
    "&",
    "|",
    "!",
    "<->",
    ":*",
]
_OPERATORS += [
    "\u200b",
    "\u2028",
    "\ufeff",
    "\U00030000",
    "$1",
    "%s",
    "?",
    "/*",
    "*/",
    "\n",
    "\t",
    "``",
    "[",
    "]",
]


def searches(draw: random.Random) -> Iterator[str]:
    """Queries without end: words, operators of every search language, and anything that is a character."""

    def anything() -> str:
        return chr(draw.choice([draw.randrange(0x80), draw.randrange(0x3000), draw.randrange(0x110000)]))

    while True:
        pieces = draw.choices(_WORDS + _OPERATORS, k=draw.randint(0, 12))
        kind = draw.randrange(4)
        if kind == 0:
            pieces = [anything() for _ in range(draw.randint(0, 30))]
        elif kind == 1:
            pieces.insert(draw.randint(0, len(pieces)), anything())
        yield draw.choice(["", "", " "]).join(pieces)


def answers(query: str, caption: str) -> bool:
    """The naive search: every wanted term stands there, no unwanted one; of terms with OR between, one."""
    stems = search_text(caption).split()
    groups: list[bool] = []
    terms = parse_query(query)
    for term in terms:
        phrase = f" {' '.join(term.stems)} " in f" {' '.join(stems)} "
        begun = term.prefix is not None and any(token.startswith(term.prefix) for token in stems)
        holds = (phrase or begun) != term.negated
        if term.alternative:
            groups[-1] |= holds
        else:
            groups.append(holds)
    return any(not term.negated for term in terms) and all(groups)


# {file} is a file with the secret, {new} one that is not there.
_SQLITE = [
    "DELETE FROM location",
    "INSERT INTO model VALUES ('a', 'b', '{{}}', '')",
    "INSERT INTO caption_fts (caption_fts) VALUES ('delete-all')",
    "UPDATE location SET uri = 'x'",
    "REPLACE INTO catalog SELECT * FROM catalog",
    "DROP TABLE location",
    "CREATE TABLE t AS SELECT 1",
    "CREATE TEMP TABLE t (a)",
    "CREATE VIRTUAL TABLE temp.t USING fts5(a)",
    "ALTER TABLE location RENAME TO l",
    "ATTACH '{new}' AS other",
    "ATTACH DATABASE '{file}' AS other",
    "DETACH main",
    "VACUUM",
    "VACUUM INTO '{new}'",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA writable_schema = ON",
    "PRAGMA query_only(0)",
    "PRAGMA temp_store_directory = '{new}'",
    "PRAGMA main.user_version = 5",
    "SELECT * FROM pragma_journal_mode('delete')",
    "SELECT * FROM pragma_user_version(7)",
    "SELECT load_extension('{file}')",
    "SELECT readfile('{file}')",
    "SELECT writefile('{new}', 'x')",
    "SELECT edit('x', 'sh -c id')",
    "SELECT fts3_tokenizer('simple')",
    "SELECT fts3_tokenizer('simple', x'00')",
    "SELECT * FROM fsdir('/')",
    "SELECT zeroblob(1000000000)",
    "SELECT randomblob(1000000000)",
    "BEGIN IMMEDIATE",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "REINDEX",
    "ANALYZE",
    "WITH gone AS (SELECT 1) DELETE FROM location",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n",
    "SELECT * FROM captions",
    "SELECT uri FROM location WHERE uri = '{file}'",
    "EXPLAIN DELETE FROM location",
]
_POSTGRESQL = [
    "DELETE FROM location",
    "INSERT INTO model VALUES ('a', 'b', '{{}}', now())",
    "UPDATE location SET uri = 'x'",
    "MERGE INTO location USING location AS l ON true WHEN MATCHED THEN DELETE",
    "TRUNCATE location CASCADE",
    "DROP TABLE location CASCADE",
    "CREATE TABLE t (a int)",
    "CREATE TEMP TABLE t (a int)",
    "SELECT 1 AS a INTO t",
    "ALTER ROLE batchcap_reader SUPERUSER",
    "GRANT postgres TO batchcap_reader",
    "WITH gone AS (DELETE FROM location RETURNING 1) SELECT * FROM gone",
    "EXPLAIN ANALYZE DELETE FROM location",
    "EXPLAIN (ANALYZE) CREATE TABLE t AS SELECT 1",
    "COPY location TO '{new}'",
    "COPY location TO STDOUT",
    "COPY location TO PROGRAM 'touch {new}'",
    "COPY location FROM PROGRAM 'cat {file}'",
    "SELECT pg_read_file('{file}')",
    "SELECT pg_read_binary_file('{file}')",
    "SELECT pg_catalog.pg_read_file('{file}')",
    "SELECT * FROM pg_ls_dir('/')",
    "SELECT pg_stat_file('{file}')",
    "SELECT lo_import('{file}')",
    "SELECT lo_export(1, '{new}')",
    "SELECT lo_from_bytea(0, 'x')",
    "SELECT lo_put(1, 0, 'x')",
    "SELECT pg_sleep(60)",
    "SELECT pg_sleep_for('1 minute')",
    "SELECT count(pg_sleep(0.1)) FROM generate_series(1, 1000)",
    "SET ROLE postgres",
    "RESET ROLE",
    "SET SESSION AUTHORIZATION postgres",
    "SET statement_timeout TO 0",
    "SELECT set_config('role', 'none', false), pg_read_file('{file}')",
    "SELECT set_config('transaction_read_only', 'off', false)",
    "SELECT \"set_config\"('role', 'none', false)",
    "SELECT U&\"\\0073et_config\"('role', 'none', false)",
    "SELECT query_to_xml('SELECT set_' || 'config(''role'', ''none'', false)', true, true, '')",
    "SELECT table_to_xml('other_table', true, true, '')",
    "SELECT ts_stat('SELECT set_' || 'config(''role'', ''none'', false)')",
    "SELECT dblink('dbname=postgres', 'DROP TABLE location')",
    "DO $$ BEGIN DELETE FROM location; END $$",
    "CALL something()",
    "LOCK TABLE location",
    "SELECT * FROM location FOR UPDATE",
    "SELECT nextval('result_id_seq')",
    "SELECT setval('result_id_seq', 1)",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_try_advisory_xact_lock(1)",
    "SELECT pg_notify('a', 'b')",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()",
    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()",
    "SELECT pg_reload_conf()",
    "SELECT pg_switch_wal()",
    "SELECT pg_logical_emit_message(false, 'a', 'b')",
    "SELECT pg_create_restore_point('a')",
    "SELECT * FROM other_table",
    "SELECT secret FROM public.other_table",
    "SELECT public.run_text('SELECT secret FROM other_table')",
    "SELECT public.run_text('DELETE FROM location RETURNING uri')",
    "SELECT public.run_text('SELECT pg_read_file(''{file}'')')",
    "SELECT * FROM pg_authid",
    "SELECT * FROM pg_largeobject",
    "SELECT * FROM pg_hba_file_rules",
    "SELECT current_setting('data_directory')",
    "CREATE EXTENSION dblink",
    "LOAD '{file}'",
    "COMMIT",
    "ROLLBACK",
    "BEGIN READ WRITE",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "PREPARE p AS DELETE FROM location",
    "EXECUTE p",
    "LISTEN something",
    "VACUUM",
    "CHECKPOINT",
    "SELECT max(n) FROM generate_series(1, 100000000000) AS n",
    "SELECT * FROM captions",
    "SELECT uri FROM location WHERE uri = '{file}'",
]
_SOUP = ["SELECT", "DELETE", "FROM", "captions", "location", "caption", "run", "*", "uri", "count(*)", ","]
_SOUP += [
    "WITH",
    "x",
    "AS",
    "(",
    ")",
    "UPDATE",
    "SET",
    "WHERE",
    "1",
    "'a'",
    '"b"',
    ";",
    "--",
    "/*",
    "*/",
    "$$",
]
_SOUP += [
    "INSERT",
    "INTO",
    "VALUES",
    "PRAGMA",
    "ATTACH",
    "COPY",
    "EXPLAIN",
    "RETURNING",
    "NULL",
    "=",
    "::text",
]
_SOUP += [
    "DROP",
    "TABLE",
    "COMMIT",
    "ROLLBACK",
    "ROLE",
    "RESET",
    "?",
    "%s",
    ":a",
    "\\",
    "\x00",
    "é",
    "\ud800",
]
_HOSTILE = {"sqlite": _SQLITE, "postgresql": _POSTGRESQL}
_COMMENTS = [
    "/**/",
    "/* a */",
    "/* /* nested */ */",
    "-- a\n",
    "--\r\n",
    "/*",
    "*/",
    "--",
    "\x0b",
    "\xa0",
    "\u3000",
]
_ODD = ["\x00", "\ud800", "\u200b", "\ufeff", ";", "'", '"', "$$", "\\", "%", "%s", ":a", "?", "$1", ")", "("]
_ODD += ["E'\\x00'", "::regclass", "U&'\\0027'", "\u02bc", "\uff07", "\uff1b"]


def statements(draw: random.Random, database: str, file: Path, new: Path) -> Iterator[str]:
    """SQL without end that would write, set or read something, in every disguise.

    Args:
        draw: where chance comes from.
        database: whose SQL.
        file: what the statements try to read.
        new: what they try to write.
    """
    hostile = [sql.format(file=file, new=new) for sql in _HOSTILE[database]]
    changes: list[Callable[[str], str]] = [
        lambda sql: sql,
        lambda sql: "".join(draw.choice([letter.upper(), letter.lower()]) for letter in sql),
        lambda sql: _between(draw, sql, _COMMENTS),
        lambda sql: _between(draw, sql, _ODD),
        lambda sql: f"{draw.choice(_COMMENTS)}{sql}",
        lambda sql: f"{sql}{draw.choice([*_COMMENTS, *_ODD])}",
        lambda sql: f"{sql}; {draw.choice(hostile)}",
        lambda sql: f"SELECT 1; {sql}",
        lambda sql: f"SELECT 1 /* */; -- \n{sql};",
        lambda sql: f"({sql})",
        lambda sql: f"SELECT * FROM ({sql}) AS x",
        lambda sql: f"WITH x AS ({sql}) SELECT * FROM x",
        lambda sql: f"WITH x AS MATERIALIZED ({sql}) SELECT 1",
        lambda sql: f"SELECT ({sql})",
        lambda sql: f"SELECT CASE WHEN EXISTS ({sql}) THEN 1 END",
        lambda sql: f"{sql} UNION ALL {draw.choice(hostile)}",
        lambda sql: f"EXPLAIN {sql}",
        lambda sql: f"EXPLAIN (ANALYZE, VERBOSE) {sql}",
        lambda sql: f"EXPLAIN QUERY PLAN {sql}",
        lambda sql: f"VALUES (({sql}))",
        lambda sql: sql[: draw.randint(0, len(sql))],
        lambda sql: sql[draw.randint(0, len(sql)) :],
        lambda sql: " ".join(draw.sample(sql.split(), len(sql.split()))),
        # Letters of full width, which normalise to what they look like.
        lambda sql: "".join(
            chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" and draw.random() < 0.1 else letter
            for letter in sql
        ),
        lambda sql: re.sub(r"\b(\w+)\(", r'"\1"(', sql),
        lambda sql: re.sub(r"\b(\w)(\w+)\(", lambda m: f'U&"\\{ord(m[1]):04x}{m[2]}"(', sql),
    ]
    # Once each as it is.
    yield from hostile
    while True:
        if draw.random() < 0.2:
            start = draw.choice(["", "SELECT", "DELETE FROM location", "SELECT * FROM captions", "WITH"])
            yield draw.choice([" ", " ", ""]).join([start, *draw.choices(_SOUP, k=draw.randint(0, 5))])
            continue
        sql = draw.choice(hostile)
        for _ in range(draw.choice([1, 1, 2, 3])):
            sql = draw.choice(changes)(sql)
        yield sql


def _between(draw: random.Random, sql: str, pieces: Sequence[str]) -> str:
    at = draw.randint(0, len(sql))
    return f"{sql[:at]}{draw.choice(pieces)}{sql[at:]}"


@dataclass
class Findings:
    """What became of the inputs.

    Args:
        outcomes: how many were answered, and how many refused, by the beginning of what was said.
        wrong: what was answered, raised or done that should not have been.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def fill(catalog: Catalog) -> None:
    """Puts `CAPTIONS` into a catalog."""
    with catalog.run(["/"], MODEL, {}) as run:
        run.commit(
            [
                Captioned(uri, 100, 1, None, f"hash of {uri}", 640, 480, "JPEG", None, caption, -3.5, 0.5, 6)
                for uri, caption in CAPTIONS.items()
            ]
        )


def fuzz_searches(catalog: Catalog, count: int, seed: int) -> Findings:
    """Asks a catalog with `CAPTIONS`."""
    findings = Findings()
    queries = searches(random.Random(seed))
    for _ in range(count):
        query = next(queries)
        try:
            result = catalog.search(query)
        except Exception as error:
            findings.wrong.append(f"search {query!r} raised {error!r}")
            continue
        found = {hit.uri for hit in result.hits}
        expected = {uri for uri, caption in CAPTIONS.items() if answers(query, caption)}
        if found != expected or result.total != len(expected):
            findings.wrong.append(f"search {query!r} found {found}, not {expected}")
        findings.outcomes["found something" if found else "found nothing"] += 1
    return findings


def fuzz_statements(catalog: Catalog, database: str, count: int, seed: int, folder: Path) -> Findings:
    """Asks a catalog by hand.

    Args:
        catalog: open.
        database: its name.
        count: statements.
        seed: of chance.
        folder: where the file with the secret is put; whoever runs the database can read and write it.
    """
    file, new = folder / "other.txt", folder / "new"
    file.write_text(SECRET)
    file.chmod(0o644)
    findings = Findings()
    hostile = statements(random.Random(seed), database, file, new)
    for _ in range(count):
        sql = next(hostile)
        try:
            with catalog.query(sql, limit=5, timeout_s=_TIMEOUT_S) as result:
                said = repr(list(result.rows))
            findings.outcomes["answered"] += 1
        except QueryError as error:
            said = str(error)
            findings.outcomes[re.split(r"[:;(]| \d", said)[0]] += 1
            if "\n" in said:
                findings.wrong.append(f"{sql!r} was refused in several lines: {said!r}")
        except Exception as error:
            findings.wrong.append(f"{sql!r} raised {error!r}")
            continue
        if SECRET in said:
            findings.wrong.append(f"{sql!r} read what is none of its business")
        if os.listdir(folder) != [file.name] or file.read_text() != SECRET:
            findings.wrong.append(f"{sql!r} wrote a file")
            new.unlink(missing_ok=True)
    return findings


@contextmanager
def sqlite_catalog(folder: Path) -> Iterator[tuple[Catalog, Callable[[], str]]]:
    """A filled catalog, and what tells whether anything was written."""
    path = folder / "catalog.db"
    with Catalog.open(f"sqlite:///{path}", mode="write") as catalog:
        fill(catalog)

    def state() -> str:
        files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
        # A reader makes and removes them.
        return repr(sorted(item for item in files.items() if not item[0].endswith(("-wal", "-shm"))))

    with Catalog.open(f"sqlite:///{path}") as catalog:
        yield catalog, state


@contextmanager
def postgresql_catalog(server: postgresql.Server) -> Iterator[tuple[Catalog, Callable[[], str]]]:
    """The same in PostgreSQL, beside a table and a function that are not ours."""
    import psycopg

    database = server.new_database()
    server.execute(
        "CREATE TABLE other_table (secret text)",
        f"INSERT INTO other_table VALUES ('{SECRET}')",
        "CREATE FUNCTION run_text(sql text) RETURNS text LANGUAGE plpgsql AS "
        "$$ DECLARE said text; BEGIN EXECUTE sql INTO said; RETURN said; END $$",
        database=database,
    )
    url = server.url(database)
    with Catalog.open(url, mode="write") as catalog:
        fill(catalog)

    def state() -> str:
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            names = connection.execute("SELECT oid::regclass::text FROM pg_class ORDER BY 1").fetchall()
            watched = [
                "pg_authid",
                "pg_auth_members",
                "pg_db_role_setting",
                "pg_largeobject_metadata",
                "pg_proc",
            ]
            watched += [
                "catalog",
                "model",
                "run",
                "image",
                "location",
                "caption",
                "result",
                "part",
                "other_table",
            ]
            rows = {
                name: connection.execute(f"SELECT t::text FROM {name} AS t ORDER BY 1".encode()).fetchall()
                for name in watched
            }
            rows["sequences"] = connection.execute(
                "SELECT sequencename, last_value FROM pg_sequences"
            ).fetchall()
            locks = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchall()
        return repr((names, rows, locks))

    with Catalog.open(url) as catalog:
        yield catalog, state


def fuzz(
    catalog: Catalog,
    state: Callable[[], str],
    database: str,
    folder: Path,
    *,
    searches: int,
    statements: int,
    seed: int,
) -> Findings:
    """Both, and whether anything was written."""
    before = state()
    findings = fuzz_searches(catalog, searches, seed)
    asked = fuzz_statements(catalog, database, statements, seed, folder)
    findings.outcomes += asked.outcomes
    findings.wrong += asked.wrong
    if state() != before:
        findings.wrong.append("something was written")
    return findings


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--searches", type=int, default=10_000)
    parser.add_argument("--statements", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    failed = False
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as outside:
        folder = Path(outside)
        # The server is another user.
        folder.chmod(0o777)

        def report(database: str, findings: Findings) -> None:
            nonlocal failed
            failed |= bool(findings.wrong)
            wrong = {"wrong": len(findings.wrong), "examples": findings.wrong[:_SHOWN]}
            print(
                json.dumps({"database": database, **options, "outcomes": findings.outcomes, **wrong}),
                flush=True,
            )

        with sqlite_catalog(Path(made)) as (catalog, state):
            report("sqlite", fuzz(catalog, state, "sqlite", folder, **options))
        if reason := postgresql.missing():
            print(f"PostgreSQL is left out: {reason}", file=sys.stderr)
            return failed
        with postgresql.running_server() as server, postgresql_catalog(server) as (catalog, state):
            report("postgresql", fuzz(catalog, state, "postgresql", folder, **options))
    return failed


if __name__ == "__main__":
    sys.exit(main())
