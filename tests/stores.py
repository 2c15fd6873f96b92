"""A small store that has seen everything which a catalog and its parts can hold; made without Ray."""

import shutil
import sqlite3
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

from batchcap import parts
from batchcap.catalog import Captioned, Catalog, Failure, ModelInfo
from batchcap.collection import FileEntry
from batchcap.errors import Reason

SMALL = ModelInfo("5" * 64, "small", {"embed_dim": 8})
LARGE = ModelInfo("1" * 64, "large", {"embed_dim": 16})


def captioned(number: int, text: str, content: str | None = None) -> Captioned:
    return Captioned(
        uri=f"/photos/{number}.jpg",
        size_bytes=100 + number,
        mtime_ns=number,
        etag=None,
        content_hash=content or f"content {number}",
        width=640,
        height=480,
        format="JPEG",
        taken_at=None if number % 2 else datetime(2026, 1, 31, 9, 30, 0, number),
        text=text,
        log_prob=-number / 3,
        confidence=None if number % 3 else 1 / (number + 3),
        token_count=number,
        camera=None if number % 2 else f"Ace {number}",
        latitude=None if number % 3 else number / 7,
        longitude=None if number % 3 else -number / 3,
    )


def entry(number: int, size_bytes: int) -> FileEntry:
    return FileEntry(f"/photos/{number}.jpg", size_bytes, number, None)


def url_of(store: Path) -> str:
    return f"sqlite:///{store / 'catalog.db'}"


def make_store(store: Path) -> Path:
    """Three parts of four runs by two models, a person's caption, copies, and an overwritten file."""
    with Catalog.open(url_of(store), mode="write") as catalog:
        opened = parts.open_store(store, catalog.uuid)
        with catalog.run(["/photos"], SMALL, {}) as run:
            run.commit([captioned(n, f"a dog, number {n} — “Zoë”") for n in range(5)])
            parts.seal(catalog, opened, run)
            # These were not sealed when the run was killed.
            run.commit([captioned(n, f"two cats, number {n}") for n in (5, 6)])
        with catalog.run(["/photos"], LARGE, {}) as run:
            parts.seal(catalog, opened, run)
        execute(
            store,
            "INSERT INTO caption (content_hash, source, text, search_text, created_at) "
            "VALUES ('content 0', 'human', 'Rex, my dog', 'rex my dog', '2026-02-01 10:00:00.000000')",
            "UPDATE image SET caption_id = (SELECT max(id) FROM caption) WHERE content_hash = 'content 0'",
        )
        with catalog.run(["/photos"], LARGE, {"recaption": True}) as run:
            # A copy, another of the picture that a person captioned, and a third.
            hashed = [
                (entry(7, 103), "content 3"),
                (entry(8, 100), "content 0"),
                (entry(9, 100), "content 0"),
            ]
            assert run.commit_known(hashed) == []
            run.commit([captioned(1, "the large model's dog"), captioned(2, "another picture", "content 2b")])
            run.commit([], [Failure("/photos/bad.jpg", 1, 1, None, Reason.EMPTY, "no bytes")])
            parts.seal(catalog, opened, run)
    return store


def copy_of(store: Path, target: Path) -> Path:
    return Path(shutil.copytree(store, target))


def execute(store: Path, *statements: str) -> None:
    """SQL by another program, which asks nothing."""
    with closing(sqlite3.connect(store / "catalog.db", isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def query(store: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(store / "catalog.db")) as connection:
        return connection.execute(sql).fetchall()


def part_files(store: Path) -> list[Path]:
    """The files of the parts in the order in which they were written."""
    return [store / "captions" / name for (name,) in query(store, "SELECT name FROM part ORDER BY id")]


# All that Parquet holds, without the numbers that the tables give their rows.
RESTORED = (
    "SELECT * FROM captions ORDER BY uri",
    "SELECT uuid FROM catalog",
    "SELECT fingerprint, name FROM model ORDER BY fingerprint",
    "SELECT content_hash, width, height, format, image.size_bytes, taken_at, "
    "camera, latitude, longitude, text FROM image "
    "JOIN caption USING (content_hash) WHERE caption.id = caption_id ORDER BY content_hash",
    "SELECT uri, content_hash, size_bytes, vanished_at FROM location ORDER BY uri",
    "SELECT content_hash, source, fingerprint, text, search_text, log_prob, confidence, token_count, "
    "created_at FROM caption ORDER BY content_hash, created_at",
    "SELECT uri, result.content_hash, text, result.run_id, name FROM result "
    "JOIN caption ON caption.id = caption_id JOIN part ON part.id = part_id ORDER BY result.id",
    "SELECT name, state, row_count, sha256 FROM part ORDER BY id",
    "SELECT id, fingerprint, state FROM run WHERE id IN (SELECT run_id FROM result) ORDER BY id",
)


def restored(store: Path) -> list[list[tuple[Any, ...]]]:
    """What a rebuilt catalog must have of the old one."""
    return [query(store, sql) for sql in RESTORED]
