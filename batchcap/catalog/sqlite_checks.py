"""What only SQLite can tell of a catalog's file: damage, broken references, an index that differs."""

import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from sqlalchemy import Connection

from batchcap.catalog.connection import Database
from batchcap.catalog.findings import Finding, FindingKind
from batchcap.catalog.sqlite_file import database_error, raw_connection
from batchcap.errors import CatalogDamagedError

_BATCH_ROWS = 5_000

# A word and how often it stands where: equal sums mean equal places, but for an accident.
_WORDS = """\
SELECT term, count(*), sum(doc * ("offset" + 1)) FROM temp.word WHERE doc <= ? GROUP BY term"""
_WORD_TABLE = "CREATE VIRTUAL TABLE temp.word USING fts5vocab(main, caption_fts, instance)"


def damage(database: Database) -> Iterator[Finding]:
    """What SQLite says of its own file: pages and rows that can't be as they are."""
    try:
        with database.read() as connection:
            for (line,) in connection.exec_driver_sql("PRAGMA quick_check"):
                if line != "ok":
                    yield Finding(FindingKind.DATABASE, database.label, " ".join(str(line).split()))
    except CatalogDamagedError as error:
        yield Finding(FindingKind.DATABASE, database.label, str(error))


def references(connection: Connection) -> Iterator[Finding]:
    """References to what is not there."""
    # Live captions are looked at elsewhere, and more closely; what is shown follows from them.
    for table, row, parent, _ in connection.exec_driver_sql("PRAGMA foreign_key_check"):
        if table not in ("image", "shown"):
            detail = f"it refers to a row of {parent} that is not there"
            yield Finding(FindingKind.REFERENCE, f"{table} {row}" if row is not None else table, detail)


def full_text(path: Path) -> Iterator[Finding]:
    """Compares the full-text index with the captions.

    FTS5's own check writes, if only a lock that keeps a run waiting. So the captions are indexed again, a
    batch at a time and in memory, and the words of both indexes are counted.
    """
    try:
        with closing(raw_connection(path, "ro")) as connection:
            wrong_documents = False
            for finding in _documents(connection):
                wrong_documents = True
                yield finding
            if not wrong_documents:
                yield from _words(connection)
    except sqlite3.Error as error:
        found = database_error(error, path)
        if not isinstance(found, CatalogDamagedError):
            raise found from error
        yield Finding(FindingKind.FULL_TEXT, "caption_fts", f"it can't be read: {error}")


def _documents(connection: sqlite3.Connection) -> Iterator[Finding]:
    """Captions that the index lacks, and what it has instead."""
    lacking = """\
        SELECT id FROM caption
        WHERE NOT EXISTS (SELECT 1 FROM caption_fts_docsize AS known WHERE known.id = caption.id)
        ORDER BY id"""
    for (caption_id,) in connection.execute(lacking):
        yield Finding(FindingKind.FULL_TEXT, f"caption {caption_id}", "it can't be found by its words")
    surplus = """\
        SELECT id FROM caption_fts_docsize AS known
        WHERE NOT EXISTS (SELECT 1 FROM caption WHERE caption.id = known.id)
        ORDER BY id"""
    for (caption_id,) in connection.execute(surplus):
        yield Finding(FindingKind.FULL_TEXT, f"caption {caption_id}", "it is in the index, but not there")


def _words(connection: sqlite3.Connection) -> Iterator[Finding]:
    """Words that the index has elsewhere than the captions have them."""
    (last,) = connection.execute("SELECT coalesce(max(id), 0) FROM caption").fetchone()
    (definition,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'caption_fts'").fetchone()
    # A language has few words, so by word: how often the captions have it and the index, and where.
    words: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as again:
        again.execute(definition)
        again.execute(_WORD_TABLE)
        read = "SELECT id, search_text FROM caption WHERE id > ? AND id <= ? ORDER BY id LIMIT ?"
        first = 0
        while batch := connection.execute(read, (first, last, _BATCH_ROWS)).fetchall():
            first = batch[-1][0]
            again.execute("BEGIN")
            again.executemany("INSERT INTO caption_fts (rowid, search_text) VALUES (?, ?)", batch)
            again.execute("COMMIT")
            for word, count, places in again.execute(_WORDS, (last,)):
                words[word][0] += count
                words[word][2] += places
            again.execute("INSERT INTO caption_fts (caption_fts) VALUES ('delete-all')")
    connection.execute(_WORD_TABLE)
    for word, count, places in connection.execute(_WORDS, (last,)):
        words[word][1] += count
        words[word][2] -= places
    for word, (in_captions, in_index, places) in sorted(words.items()):
        if in_captions != in_index:
            detail = f"found {in_index:,} times in the index and {in_captions:,} times in the captions"
            yield Finding(FindingKind.FULL_TEXT, f"word {word}", detail)
        elif places:
            yield Finding(FindingKind.FULL_TEXT, f"word {word}", "found elsewhere than the captions have it")
