"""Runs: who may write, what one commit does, and that doing it again does nothing."""

import multiprocessing
import os
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, event, select, text
from sqlalchemy.orm import Session

from batchcap.catalog import Catalog, ModelInfo
from batchcap.catalog.tables import Caption, Image
from batchcap.catalog.text import search_text
from batchcap.errors import CatalogBusyError, CatalogError, Reason


def rows(catalog: Catalog, sql: str) -> list[tuple]:
    with catalog.query(sql) as result:
        return list(result.rows)


def counts(catalog: Catalog) -> list[int]:
    tables = ("image", "location", "caption", "result", "quarantine")
    return [rows(catalog, f"SELECT count(*) FROM {table}")[0][0] for table in tables]


def run_states(catalog: Catalog) -> list[str]:
    return [state for (state,) in rows(catalog, "SELECT state FROM run ORDER BY started_at")]


def add_human_caption(catalog: Catalog, content: str, words: str) -> int:
    """What `edit` does: a person's caption, made the live one."""
    with catalog._database.write() as connection, Session(connection) as session:
        caption = Caption(
            content_hash=content,
            source="human",
            text=words,
            search_text=search_text(words),
            created_at=datetime.now(UTC),
        )
        session.add(caption)
        session.flush()
        session.get_one(Image, content).caption_id = caption.id
        session.flush()
        return caption.id


def test_a_run_ends_as_its_block_does(catalog: Catalog, model: ModelInfo) -> None:
    with catalog.run(["/photos"], model, {"limit": 3}):
        assert run_states(catalog) == ["running"]
    with pytest.raises(ZeroDivisionError), catalog.run(["/photos"], model, {}):
        1 / 0  # noqa: B018
    with pytest.raises(KeyboardInterrupt), catalog.run(["/photos"], model, {}):
        raise KeyboardInterrupt
    assert run_states(catalog) == ["done", "failed", "interrupted"]
    assert rows(catalog, "SELECT count(*) FROM run WHERE finished_at IS NULL") == [(0,)]


def test_a_run_marks_what_a_dead_one_left(catalog: Catalog, model: ModelInfo, other_program) -> None:
    with catalog.run([], model, {}):
        pass
    other_program("UPDATE run SET state = 'running', finished_at = NULL")
    with catalog.run([], model, {}):
        assert run_states(catalog) == ["interrupted", "running"]


def test_a_second_run_is_refused_at_once_and_told_by_whom(
    catalog: Catalog, url: str, model: ModelInfo
) -> None:
    with (
        catalog.run(["/photos"], model, {}),
        Catalog.open(url, mode="write") as second,
        pytest.raises(CatalogBusyError, match=rf"process {os.getpid()} on .* \(since "),
        second.run(["/photos"], model, {}),
    ):
        pass
    with catalog.run(["/photos"], model, {}):
        pass
    assert run_states(catalog) == ["done", "done"]


def _hold_and_die(url: str) -> None:
    with Catalog.open(url, mode="write") as catalog, catalog.run(["/"], ModelInfo("x", "x"), {}):
        os._exit(9)


def test_a_killed_run_holds_nothing(catalog: Catalog, url: str, model: ModelInfo) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_hold_and_die, args=(url,))
    process.start()
    process.join()
    assert process.exitcode == 9
    with catalog.run(["/"], model, {}):
        assert run_states(catalog) == ["interrupted", "running"]


def test_a_run_that_was_taken_over_writes_nothing(
    catalog: Catalog, model: ModelInfo, other_program, captioned, failure
) -> None:
    with pytest.raises(CatalogError, match="no longer owns"), catalog.run(["/"], model, {}) as run:
        other_program("UPDATE run SET state = 'interrupted'")
        with pytest.raises(CatalogError, match="no longer owns"):
            run.commit([captioned("/a")], [failure("/b")])
        with pytest.raises(CatalogError, match="can't seal"):
            catalog.assign_part(run.id)
        assert counts(catalog) == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_run_whose_lock_was_lost_goes_on_until_another_takes_over(
    catalog: Catalog, url: str, other_program, model: ModelInfo, captioned
) -> None:
    """As when the server was started again, or a network was gone for minutes."""
    end_all = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name LIKE 'batchcap%%'"
    )
    with pytest.raises(CatalogError, match="no longer owns"), catalog.run(["/"], model, {}) as run:
        other_program(end_all)
        run.commit([captioned("/a")])
        with Catalog.open(url, mode="write") as second, second.run(["/"], model, {}):
            with pytest.raises(CatalogError, match="no longer owns"):
                run.commit([captioned("/b")])
            with (
                pytest.raises(CatalogError, match="can't reach the catalog at .* then run again") as caught,
                second._database.read() as connection,
            ):
                connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
            assert "\n" not in str(caught.value)
            assert counts(catalog) == [1, 1, 1, 1, 0]
    assert run_states(catalog) == ["interrupted", "done"]


def test_a_commit_stores_everything_and_again_nothing_more(
    catalog: Catalog, model: ModelInfo, captioned, failure
) -> None:
    batch = [captioned(f"/{number}") for number in range(20)]
    with catalog.run(["/"], model, {}) as run:
        run.commit(batch, [failure("/bad")])
        assert counts(catalog) == [20, 20, 20, 20, 1]
        before = rows(catalog, "SELECT * FROM captions ORDER BY uri")
        run.commit(batch)
        assert run.counts == {"captioned": 40, "failed": 1}
    assert counts(catalog) == [20, 20, 20, 20, 1]
    assert rows(catalog, "SELECT * FROM captions ORDER BY uri") == before
    assert before[0][:7] == ("/0", "a dog on a beach", 0.5, 640, 480, "JPEG", 100)
    assert catalog.status().runs[0].counts == {"captioned": 40, "failed": 1}


def test_one_commit_may_hold_content_and_location_twice(catalog: Catalog, model, captioned, failure) -> None:
    with catalog.run(["/"], model, {}) as run:
        run.commit(
            [
                captioned("/a", content="one"),
                captioned("/b", "another text", content="one"),
                captioned("/b", content="two", size_bytes=7),
                captioned("/b", content="two", size_bytes=7),
            ],
            [failure("/c"), failure("/c")],
        )
    assert counts(catalog) == [2, 2, 2, 3, 1]
    assert rows(catalog, "SELECT uri, content_hash, size_bytes FROM location ORDER BY uri") == [
        ("/a", "one", 100),
        ("/b", "two", 7),
    ]
    assert rows(catalog, "SELECT attempts FROM quarantine") == [(2,)]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_commit_that_fails_leaves_nothing(catalog: Catalog, model, captioned) -> None:
    """The file may not grow any more, as on a full disk."""
    with catalog.run(["/"], model, {}) as run:
        with catalog._database.read() as connection:
            pages = connection.scalar(text("PRAGMA page_count"))
        with catalog._database.write() as connection:
            connection.execute(text(f"PRAGMA max_page_count = {pages + 20}"))
        with pytest.raises(CatalogError, match="the disk is full"):
            run.commit([captioned(f"/{number}", "a dog " * 50) for number in range(2000)])
        assert counts(catalog) == [0, 0, 0, 0, 0]
        assert run.counts == {}
        run.commit([captioned("/a")])
        assert counts(catalog) == [1, 1, 1, 1, 0]


def test_a_commit_needs_the_same_few_statements_for_any_number_of_rows(
    catalog: Catalog, model, captioned, failure
) -> None:
    statements: list[str] = []

    def note(connection, cursor, statement, parameters, context, executemany) -> None:
        statements.append(statement)

    needed = []
    with catalog.run(["/"], model, {}) as run:
        event.listen(Engine, "before_cursor_execute", note)
        try:
            for size in (1, 500):
                statements.clear()
                run.commit(
                    [captioned(f"/{size}/{number}") for number in range(size)],
                    [failure(f"/{size}/bad/{number}") for number in range(size)],
                )
                needed.append(len(statements))
        finally:
            event.remove(Engine, "before_cursor_execute", note)
    # owner, image, caption, location, live caption, captions' numbers, result, out of and into quarantine,
    # vanished; and BEGIN, which PostgreSQL's driver sends by itself
    expected = {"sqlite": 11, "postgresql": 11}[catalog._database.name]
    assert needed == [expected, expected]


def test_attempts_count_while_the_file_is_the_same(catalog: Catalog, model, failure, captioned) -> None:
    def attempts() -> list[tuple]:
        return rows(catalog, "SELECT attempts, reason, mtime_ns FROM quarantine")

    with catalog.run(["/"], model, {}) as run:
        run.commit([], [failure("/a", Reason.TIMEOUT)])
        run.commit([], [failure("/a", Reason.WORKER_CRASH)])
        assert attempts() == [(2, "worker_crash", 1)]
        run.commit([], [failure("/a", Reason.TIMEOUT, mtime_ns=2)])
        assert attempts() == [(1, "timeout", 2)]
        run.commit([], [failure("/a", Reason.TIMEOUT, mtime_ns=2, etag="x")])
        assert attempts() == [(2, "timeout", 2)]
        # Where there is an etag it decides, and not the time.
        run.commit([], [failure("/a", Reason.TIMEOUT, mtime_ns=3, etag="x")])
        assert attempts() == [(3, "timeout", 3)]
        run.commit([], [failure("/a", Reason.TIMEOUT, mtime_ns=3, etag="y")])
        assert attempts() == [(1, "timeout", 3)]
        run.commit([captioned("/a")])
        assert attempts() == []


@pytest.mark.parametrize("reason", Reason)
def test_a_file_that_was_overwritten_with_garbage_loses_its_caption(
    catalog: Catalog, model, captioned, failure, reason
) -> None:
    of_content = reason not in (Reason.IO_ERROR, Reason.TIMEOUT, Reason.WORKER_CRASH)
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned(uri, etag=etag) for uri, etag in [("/a", None), ("/b", "x"), ("/c", "x")]])
        run.commit([captioned("/same"), captioned("/other")])
        run.commit(
            [],
            [
                failure("/a", reason, mtime_ns=2),
                failure("/b", reason, etag="y"),
                # Where both have an etag it decides, and not the time.
                failure("/c", reason, mtime_ns=2, etag="x"),
                failure("/same", reason),
            ],
        )
        left = ["/c", "/other", "/same"] if of_content else ["/a", "/b", "/c", "/other", "/same"]
        assert [uri for (uri,) in rows(catalog, "SELECT uri FROM captions ORDER BY uri")] == left
        assert sorted(hit.uri for hit in catalog.search("dog").hits) == left
        assert catalog.status().locations == len(left)
        # When it vanished stays what it was, and a picture in its place brings it back.
        vanished = rows(catalog, "SELECT uri, vanished_at FROM location ORDER BY uri")
        run.commit([], [failure("/a", reason, mtime_ns=2)])
        assert rows(catalog, "SELECT uri, vanished_at FROM location ORDER BY uri") == vanished
        run.commit([captioned("/a", "a cat", content="new", mtime_ns=3)])
    assert rows(catalog, "SELECT caption FROM captions WHERE uri = '/a'") == [("a cat",)]
    assert rows(catalog, "SELECT count(*) FROM quarantine WHERE uri = '/a'") == [(0,)]


def test_a_detail_is_kept_as_one_valid_line(catalog: Catalog, model, failure) -> None:
    with catalog.run(["/"], model, {}) as run:
        run.commit([], [failure("/a", detail="two\nlines of \0\udcff" + "x" * 1000)])
    (bad,) = catalog.quarantine(Reason.UNREADABLE)
    assert bad.detail.startswith("two lines of \\x00\\udcffxxx")
    assert len(bad.detail) < 520
    assert catalog.quarantine(Reason.EMPTY) == []


def test_known_content_needs_no_inference(catalog: Catalog, model, other_model, captioned, entry) -> None:
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned("/a", content="one")])
    moved, strange = entry("/moved"), entry("/strange")
    with catalog.run(["/"], other_model, {}) as run:
        assert run.commit_known([(moved, "one"), (strange, "two")]) == [strange]
        assert run.counts == {"known": 1}
        # Another model's caption is not enough if everything is to be captioned again.
        assert run.commit_known([(moved, "one")], recaption=True) == [moved]
    assert rows(catalog, "SELECT uri, caption, model FROM captions ORDER BY uri") == [
        ("/a", "a dog on a beach", "small"),
        ("/moved", "a dog on a beach", "small"),
    ]
    assert rows(catalog, "SELECT count(*) FROM result") == [(2,)]


def test_a_new_model_takes_over_and_the_old_caption_stays(
    catalog: Catalog, model, other_model, captioned, entry
) -> None:
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned("/a", "a dog", content="one")])
    with catalog.run(["/"], other_model, {}) as run:
        run.commit([captioned("/a", "a wolf", content="one")])
    assert rows(catalog, "SELECT caption, model FROM captions") == [("a wolf", "large")]
    with catalog.run(["/"], model, {}) as run:
        assert run.commit_known([(entry("/a"), "one")], recaption=True) == []
    assert rows(catalog, "SELECT caption, model FROM captions") == [("a dog", "small")]
    assert counts(catalog) == [1, 1, 2, 2, 0]
    assert catalog.status().stale(other_model.fingerprint) == 1


def test_a_person_is_never_outranked(catalog: Catalog, model, other_model, captioned, entry) -> None:
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned("/a", "a dog", content="one")])
    human = add_human_caption(catalog, "one", "Rex, my dog")
    for later in (model, other_model):
        with catalog.run(["/"], later, {}) as run:
            run.commit([captioned("/a", "a wolf", content="one")])
            assert run.commit_known([(entry("/b"), "one")], recaption=True) == []
    assert rows(catalog, "SELECT uri, caption, source, model FROM captions ORDER BY uri") == [
        ("/a", "Rex, my dog", "human", None),
        ("/b", "Rex, my dog", "human", None),
    ]
    assert rows(catalog, "SELECT caption_id FROM result WHERE uri = '/b'") == [(human,)]
    assert rows(catalog, "SELECT count(*) FROM caption") == [(3,)]
    assert [hit.uri for hit in catalog.search("rex").hits] == ["/a", "/b"]
    assert catalog.search("wolf").total == 0
    assert catalog.status().stale(model.fingerprint) == 0


def test_times_are_utc_and_readable(catalog: Catalog, model, captioned) -> None:
    before = datetime.now(UTC)
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned("/a")])
    # SQLite has no type for times, and no time zones.
    ((written,),) = rows(catalog, "SELECT CAST(captioned_at AS text) FROM captions")
    assert before <= datetime.fromisoformat(written).replace(tzinfo=UTC) <= datetime.now(UTC)
    with catalog._database.read() as connection:
        read = connection.scalars(select(Caption.created_at)).one()
    assert read.tzinfo is UTC
    ((same,),) = rows(
        catalog,
        "SELECT CAST(date(captioned_at) AS text) = substr(CAST(captioned_at AS text), 1, 10) FROM captions",
    )
    assert same
