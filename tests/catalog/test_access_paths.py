"""How SQLite finds the rows: no statement of a run or a search reads a large table from end to end."""

import re
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, create_engine, event, text

from batchcap import parts
from batchcap.catalog import CaptionFilter, Catalog, Likeness

# A handful of rows at most. The full-text index is always "scanned": by its own means.
SMALL = {"alembic_version", "catalog", "model", "part", "run", "caption_fts"}
# Of a statement's own: what is on a page, or before it.
PAGES = {"anon_1", "best", "counted", "newest"}
YESTERDAY = datetime.now(UTC) - timedelta(days=1)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_large_tables_are_only_read_by_index(catalog: Catalog, path: Path, model, captioned, failure, entry):
    statements: dict[str, object] = {}

    def note(connection, cursor, statement, parameters, context, executemany) -> None:
        statements[statement] = parameters[0] if executemany else parameters

    event.listen(Engine, "before_cursor_execute", note)
    try:
        with catalog.run(["/"], model, {}) as run:
            run.commit([captioned("/a")], [failure("/b")])
            run.commit_known([(entry("/c"), "hash of /a")], recaption=True)
            run.commit_known([(entry("/d"), "hash of /a")])
            list(catalog.plan([entry("/a"), entry("/e")], model.fingerprint))
            catalog.search('dog -cat "on a" be*')
            catalog.gallery.picture("hash of /a")
            catalog.gallery.at(["/a", "/c"])
            catalog.search("dog", where=CaptionFilter(under="/a"))
            # By likeness: all vectors are looked at, one after the other, but where words leave few.
            vector = np.ones(8, "<f2").tobytes()
            catalog.search_like(Likeness(model.fingerprint, vector), "dog", where=CaptionFilter(under="/a"))
            catalog.vectors_of("hash of /a")
            catalog.vector_models()
            run.commit([replace(captioned("/v"), vector=vector)])
            list(catalog.plan([entry("/a")], model.fingerprint, fill_vectors=True))
            # Lists, newest first: a page is read off an index, whatever is filtered by.
            newest = [
                CaptionFilter(since=YESTERDAY),
                CaptionFilter(format="jpeg"),
                CaptionFilter(model="small"),
            ]
            before = set(statements)
            for where in newest:
                catalog.search("", where=where)
            counted = {s for s in set(statements) - before if s.startswith("SELECT coalesce(sum")}
            catalog.write_captions([("/a", "Rex")])
            list(catalog.live_captions(CaptionFilter(under="/a")))
            catalog.all_texts({"hash of /a"})
            catalog.files_named("/a")
            catalog.unsealed_count()
            parts.seal(catalog, parts.open_store(path.parent, catalog.uuid), run)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    explained = {}
    # Without this file's statistics, as a new catalog is.
    copy = shutil.copy(path, path.with_name("copy.db"))
    with closing(sqlite3.connect(copy)) as plain:
        for statement, parameters in statements.items():
            if statement.startswith(("SELECT", "INSERT", "UPDATE", "DELETE")):
                steps = plain.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
                explained[statement] = [detail for *_, detail in steps]
    assert len(explained) > 20
    # How many a list has in all takes a look at each; what it shows does not.
    explained = {s: steps for s, steps in explained.items() if s not in counted}
    scans = {
        (statement, step)
        for statement, steps in explained.items()
        for step in steps
        if (scan := re.match(r"SCAN (\w+)", step)) and scan[1] not in SMALL | PAGES
    }
    assert scans == set()
    # Pages and parts come in the order of an index: nothing large is sorted. Search ranks its hits.
    assert [
        s for s, steps in explained.items() if "USE TEMP B-TREE FOR ORDER BY" in steps and "bm25" not in s
    ] == []


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_commits_cost_no_more_as_the_catalog_grows(url: str, model, captioned) -> None:
    """PostgreSQL keeps plans, and those of a new catalog are made while its tables are empty."""

    def rows_read() -> int:
        # What a connection has read is counted when it ends.
        engine = create_engine(url)
        with engine.connect() as connection:
            counted = text(
                "SELECT (SELECT sum(seq_tup_read) FROM pg_stat_user_tables) "
                "+ (SELECT sum(idx_scan + idx_tup_read) FROM pg_stat_user_indexes)"
            )
            found = int(connection.scalar(counted))
        engine.dispose()
        return found

    read = [rows_read()]
    for turn in range(3):
        with Catalog.open(url, mode="write") as catalog, catalog.run(["/"], model, {}) as run:
            for batch in range(10):
                run.commit([captioned(f"/{turn}/{batch}/{number}") for number in range(50)])
        read.append(rows_read())
    first, _, third = (after - before for before, after in pairwise(read))
    assert 50 * 10 < third < 1.5 * first
