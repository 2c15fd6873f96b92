"""Files that the catalog knows and a scan does not: found, marked, and back again."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcap.catalog import Captioned, Catalog, Failure, ModelInfo, UriList, Vanished
from batchcap.collection import FileEntry
from batchcap.errors import Reason
from tests.postgresql import EmptyCatalogs


def allow(vanished: Vanished) -> None:
    """Whatever would be marked may be."""


def fail(uri: str) -> Failure:
    return Failure(uri, 100, 1, None, Reason.TRUNCATED, "cut off")


def find_missing(catalog: Catalog, folders: list[str], uris: Iterable[str]) -> tuple[list[str], int]:
    with catalog.missing(folders) as missing:
        scanned = [FileEntry(uri, 100, 1) for uri in sorted(uris)]
        assert list(missing.watch(scanned)) == scanned
        assert len(missing.uris) == len(list(missing.uris))
        return list(missing.uris), missing.known


names = st.sampled_from(
    ["/a/1", "/a/2", "/a/b/3", "/a-b/4", "/a", "/b/5", "/a0", "file:///a/%E9", "/c/6\n"]
    # An archive that is damaged stands there under the beginning of its members' uris.
    + ["tar:///t.tar", "tar:///t.tar#", "tar:///t.tar#m", "tar:///t.tar$"]
)


@settings(max_examples=60, deadline=None)
@given(known=st.sets(names), poison=st.sets(names), scanned=st.sets(names), page=st.integers(1, 4))
def test_what_is_missing_equals_a_difference_of_sets(
    known: set[str],
    poison: set[str],
    scanned: set[str],
    page: int,
    empty_catalog: Path,
    model: ModelInfo,
    captioned: Callable[..., Captioned],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = shutil.copy(empty_catalog, tmp_path_factory.mktemp("missing") / "catalog.db")
    check_missing(f"sqlite:///{path}", known, poison, scanned, page, model, captioned)


@settings(max_examples=15, deadline=None)
@given(known=st.sets(names), poison=st.sets(names), scanned=st.sets(names), page=st.integers(1, 4))
def test_what_is_missing_equals_a_difference_of_sets_in_postgresql(
    known: set[str],
    poison: set[str],
    scanned: set[str],
    page: int,
    postgres_catalogs: EmptyCatalogs,
    model: ModelInfo,
    captioned: Callable[..., Captioned],
) -> None:
    check_missing(postgres_catalogs.new(), known, poison, scanned, page, model, captioned)


def check_missing(
    url: str,
    known: set[str],
    poison: set[str],
    scanned: set[str],
    page: int,
    model: ModelInfo,
    captioned: Callable[..., Captioned],
) -> None:
    with pytest.MonkeyPatch.context() as patch, Catalog.open(url, mode="write") as catalog:
        patch.setattr("batchcap.catalog.missing._PAGE_ROWS", page)
        with catalog.run(["/"], model, {}) as run:
            run.commit(
                [captioned(uri) for uri in sorted(known)], [fail(uri) for uri in sorted(poison - known)]
            )
        folders = ["/a/", "/c/", "file:///a/", "tar:///t.tar#"]
        below = {uri for uri in known | poison if uri.startswith(tuple(folders))}
        assert find_missing(catalog, folders, scanned) == (sorted(below - scanned), len(below))


def test_marked_files_leave_view_and_quarantine_and_may_come_back(
    catalog: Catalog, model: ModelInfo, captioned: Callable[..., Captioned], entry: Callable[..., FileEntry]
) -> None:
    with catalog.run(["/"], model, {}) as run:
        run.commit(
            [captioned("/a/moved", content="m"), captioned("/b/here", content="m"), captioned("/a/lost")],
            [fail("/a/bad")],
        )
        uris = ["/a/bad", "/a/lost", "/a/moved"]
        told: list[Vanished] = []
        assert run.vanish(uris, told.append) == Vanished(moved=1, lost=1, quarantined=1)
        assert told == [Vanished(moved=1, lost=1, quarantined=1)]
        assert run.counts["vanished"] == 3
        # They are known no more, and a second time there is nothing to mark.
        assert find_missing(catalog, ["/a/"], []) == ([], 0)
        assert run.vanish(uris, allow) == Vanished(0, 0, 0)
    assert (catalog.status().vanished, catalog.status().quarantine) == (2, {})
    with catalog.query("SELECT uri FROM captions") as result:
        assert list(result.rows) == [("/b/here",)]
    (wave,) = catalog.plan([entry("/a/lost")], model.fingerprint)
    assert [found.uri for found in wave.maybe_known] == ["/a/lost"]


def test_copies_that_vanish_together_are_lost(
    catalog: Catalog, model: ModelInfo, captioned: Callable[..., Captioned]
) -> None:
    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned(f"/{number}", content="same") for number in range(2500)])
        assert run.vanish([f"/{number}" for number in range(2500)], allow) == Vanished(0, 2500, 0)


def test_nothing_is_marked_when_the_check_refuses(
    catalog: Catalog, model: ModelInfo, captioned: Callable[..., Captioned]
) -> None:
    class TooManyError(Exception):
        pass

    def refuse(vanished: Vanished) -> None:
        raise TooManyError

    with catalog.run(["/"], model, {}) as run:
        run.commit([captioned("/a")], [fail("/b")])
        with pytest.raises(TooManyError):
            run.vanish(["/a", "/b"], refuse)
        assert "vanished" not in run.counts
    assert (catalog.status().vanished, catalog.status().quarantine) == (0, {"truncated": 1})


def test_a_long_list_of_uris_goes_to_disk_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchcap.catalog.missing._MAX_MEMORY_BYTES", 100)
    uris = UriList()
    expected = [f"/photos/{number}\n\u2028é" for number in range(50)]
    for uri in expected:
        uris.append(uri)
    assert (list(uris), len(uris)) == (expected, 50)
    assert list(uris) == expected  # as often as one likes
    uris.close()
