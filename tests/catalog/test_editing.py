"""Captions of people: they win, stay, are found at once, and come back from Parquet."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select, text

from batchcap import parts
from batchcap.catalog import (
    PEOPLE,
    CaptionFilter,
    Catalog,
    EditOutcome,
    ModelInfo,
    editing,
    one_caption,
    postgresql,
)
from batchcap.catalog.tables import Caption, Result, utc_now
from batchcap.errors import CatalogUnavailableError, CatalogVersionError, NoCatalogError, UsageError
from batchcap.rebuild import rebuild_catalog
from batchcap.verify import verify_store


@pytest.fixture
def filled(catalog: Catalog, model, captioned) -> Catalog:
    with catalog.run(["/"], model, {}) as run:
        run.commit(
            [
                captioned("/a", "a dog", confidence=0.9),
                captioned("/b", "a cat", confidence=0.1),
                captioned("/c", "a cow", confidence=None),
                captioned("/gone"),
                captioned("/copy of b", "a cat", content="hash of /b", confidence=0.1),
            ]
        )
        run.vanish(["/gone"], lambda vanished: None)
    return catalog


def shown(catalog: Catalog) -> dict[str, tuple[str, str]]:
    with catalog.query("SELECT uri, caption, source FROM captions") as result:
        return {uri: (caption, source) for uri, caption, source in result.rows}


def said(catalog: Catalog, content: str) -> list[str]:
    with catalog._database.read() as connection:
        statement = select(Caption.text).where(Caption.content_hash == content).order_by(Caption.id)
        return list(connection.scalars(statement))


def test_a_persons_caption_is_shown_and_found_at_once(filled: Catalog) -> None:
    assert filled.write_captions([("/b", " Minka,\n our  cat ")]) == [EditOutcome.WRITTEN]
    assert shown(filled)["/b"] == shown(filled)["/copy of b"] == ("Minka, our cat", "human")
    (hit, copy) = filled.search("minka").hits
    assert (hit.uri, copy.uri, hit.confidence, hit.source) == ("/b", "/copy of b", None, "human")
    assert filled.search("", where=CaptionFilter(model=PEOPLE)).total == 2
    assert filled.search("", where=CaptionFilter(min_confidence=0.5)).total == 3
    assert said(filled, "hash of /b") == ["a cat", "Minka, our cat"]
    # Another word, or the same again.
    assert filled.write_captions([("/b", "Minka")] * 2) == [EditOutcome.WRITTEN, EditOutcome.UNCHANGED]
    assert said(filled, "hash of /b") == ["a cat", "Minka, our cat", "Minka"]
    assert filled.search("cat").total == 0
    status = filled.status()
    assert {(c.source, c.images) for c in status.captions} == {("model", 3), ("human", 1)}
    assert [run.counts for run in status.runs if not run.source] == [{"edited": 2}]


def test_no_model_overrides_it(filled: Catalog, model, other_model, captioned, entry) -> None:
    filled.write_captions([("/a", "Rex")])
    for again in (model, other_model):
        (wave,) = filled.plan([entry("/a")], again.fingerprint, recaption=True)
        assert (wave.unchanged, wave.stale) == (1, 0)
        with filled.run(["/"], again, {}) as run:
            run.commit([captioned("/a", "a large dog")])
            assert run.commit_known([(entry("/d"), "hash of /a")], recaption=True) == []
    imported = ModelInfo("1" * 64, "imported")
    assert filled.write_captions([("/a", "a hound"), ("/b", "a lion")], imported) == [EditOutcome.WRITTEN] * 2
    assert shown(filled)["/a"] == shown(filled)["/d"] == ("Rex", "human")
    assert shown(filled)["/b"] == ("a lion", "model")
    assert said(filled, "hash of /a") == ["a dog", "Rex", "a large dog", "a hound"]
    # The same import again changes nothing.
    assert filled.write_captions([("/a", "x"), ("/b", "y")], imported) == [EditOutcome.UNCHANGED] * 2


def test_what_comes_back_is_no_persons_caption_for_that(filled: Catalog) -> None:
    filled.write_captions([("/a", "Rex")])
    again = [("/a", "a dog"), ("/a", "Rex"), ("/b", "a cat"), ("/b", "Minka")]
    outcomes = filled.write_captions(again, only_new=True)
    assert outcomes == [EditOutcome.UNCHANGED] * 3 + [EditOutcome.WRITTEN]
    assert (shown(filled)["/a"], shown(filled)["/b"]) == (("Rex", "human"), ("Minka", "human"))


def test_what_can_not_be_captioned(filled: Catalog) -> None:
    assert filled.write_captions([("/nowhere", "x"), ("/gone", "x"), ("/\ud800", "x"), ("/\0", "x")]) == [
        EditOutcome.UNKNOWN,
        EditOutcome.VANISHED,
        EditOutcome.UNKNOWN,
        EditOutcome.UNKNOWN,
    ]
    for bad in ("", " \n", "a\0b", "\ud800", "a\x1b[31m", "a " * 3000):
        with pytest.raises(UsageError, match="a caption (can't|has 5,000 characters at most)"):
            filled.write_captions([("/a", "fine"), ("/a", bad)])
    assert said(filled, "hash of /a") == ["a dog"]
    assert one_caption("a\tb\u2028c") == "a b c"


def test_an_image_is_captioned_wherever_it_is(filled: Catalog, url: str) -> None:
    with Catalog.open(url) as reader, reader.to_edit() as other:
        assert other.caption_image("hash of /b", " Minka ") is EditOutcome.WRITTEN
        assert other.caption_image("hash of /b", "Minka") is EditOutcome.UNCHANGED
        assert other.caption_image("hash of /gone", "Minka") is EditOutcome.VANISHED
        assert other.caption_image("hash of /\0", "Minka") is EditOutcome.UNKNOWN
        with pytest.raises(UsageError, match="a caption can't"):
            other.caption_image("hash of /b", "\0")
    assert shown(filled)["/b"] == shown(filled)["/copy of b"] == ("Minka", "human")
    assert [(said.caption, said.model, said.is_live) for said in filled.gallery.history("hash of /b")] == [
        ("Minka", None, True),
        ("a cat", "small", False),
    ]
    assert filled.gallery.history("hash of /nowhere") == []
    # Not one of those that are there for the log alone.
    assert filled.gallery.models() == ["small"]
    assert list(filled.check()) == []


def test_to_edit_a_catalog_neither_makes_nor_migrates_it(filled: Catalog, url: str, other_program) -> None:
    for version, advice in (("0000", "run `batchcap migrate`"), ("9999", "install batchcap")):
        other_program(f"UPDATE alembic_version SET version_num = '{version}'")
        with pytest.raises(CatalogVersionError, match=advice):
            filled.to_edit()
    if url.startswith("sqlite"):
        with pytest.raises(NoCatalogError):
            Catalog.open(f"{url}.nowhere", mode="edit")
        assert not Path(f"{url}.nowhere".removeprefix("sqlite:///")).exists()


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_person_does_not_wait_for_ever(filled: Catalog, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "EDIT_TIMEOUT_MS", 20)
    with Catalog.open(url, mode="edit") as other, other._database.write() as connection:
        other._database.fence(connection)
        with pytest.raises(CatalogUnavailableError, match=r"locked for 0\.02 s; try again"):
            filled.caption_image("hash of /a", "Rex")
    assert filled.caption_image("hash of /a", "Rex") is EditOutcome.WRITTEN


def test_the_least_certain_come_first_and_once(filled: Catalog) -> None:
    assert [image.uri for image in filled.least_certain(10)] == ["/b", "/a", "/c"]
    assert [image.caption for image in filled.least_certain(1)] == ["a cat"]
    # Kept as it is: a person's from now on.
    filled.write_captions([("/copy of b", "a cat")])
    assert [image.uri for image in filled.least_certain(10)] == ["/a", "/c"]


def test_beside_a_run_nothing_is_lost(filled: Catalog, url: str, tmp_path: Path, model, captioned) -> None:
    """A person writes while a run commits and seals: no model's caption comes out on top, no row is lost."""
    contents = [f"hash of /{number}" for number in range(20)]

    def write() -> list[EditOutcome]:
        with Catalog.open(url, mode="write") as other:
            return [
                outcome
                for number in range(20)
                for outcome in other.write_captions([(f"/{number}", f"person {number}")])
            ]

    store = parts.open_store(tmp_path / "store", filled.uuid)
    other_model = ModelInfo("2" * 64, "other")
    with filled.run(["/"], model, {}) as run:
        run.commit([captioned(f"/{number}") for number in range(20)])
    with filled.run(["/"], other_model, {}) as run, ThreadPoolExecutor(1) as person:
        edits = person.submit(write)
        for number in range(40):
            run.commit([captioned(f"/{number % 20}", f"model {number}")])
            if number % 10 == 0:
                parts.seal(filled, store, run)
        assert edits.result() == [EditOutcome.WRITTEN] * 20
        parts.seal(filled, store, run)
    assert {shown(filled)[f"/{number}"] for number in range(20)} == {
        (f"person {number}", "human") for number in range(20)
    }
    assert all(len(said(filled, content)) == 3 for content in contents)
    found = verify_store(filled, store.path)
    with filled._database.read() as connection:
        assert found.rows == len(connection.scalars(select(Result.id)).all()) == 65
    assert (found.findings, found.unsealed_rows) == ([], 0)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_commit_waits_for_a_person_who_writes(filled: Catalog, url: str, model, captioned) -> None:
    """Else it could look at the image before, and make its own caption the live one after."""
    other_model = ModelInfo("2" * 64, "other")
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'run'::regclass")
    with filled.run(["/"], other_model, {}) as run, ThreadPoolExecutor(1) as pool:
        with Catalog.open(url, mode="write") as person, person._database.write() as connection:
            person._database.fence(connection)
            commit = pool.submit(run.commit, [captioned("/a", "a large dog")])
            while not connection.scalar(waiting):
                assert not commit.done()
            origin = editing._begin(person._database, connection, None, False, utc_now())
            editing._write(connection, origin, "/a", "Rex", utc_now())
        commit.result()
    assert shown(filled)["/a"] == ("Rex", "human")


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_it_comes_back_from_parquet(filled: Catalog, url: str, path: Path, model) -> None:
    filled.write_captions([("/b", "Minka"), ("/a", "Rex")])
    filled.write_captions([("/b", "Minka, our cat")])
    store = parts.open_store(path.parent, filled.uuid)
    found = verify_store(filled, store.path)
    assert (found.findings, found.unsealed_rows) == ([], 8)
    with filled.run(["/"], model, {}) as run:
        parts.seal(filled, store, run)
    before = shown(filled)
    filled.close()
    rebuild_catalog(url, store.path, force=True)
    with Catalog.open(url, mode="write") as rebuilt:
        # That a file has vanished is not in Parquet.
        assert shown(rebuilt) == before | {"/gone": ("a dog on a beach", "model")}
        assert said(rebuilt, "hash of /b") == ["a cat", "Minka", "Minka, our cat"]
        assert verify_store(rebuilt, store.path).findings == []
        # It goes on where it was, under the same entry of the runs.
        rebuilt.write_captions([("/c", "Berta")])
        assert sorted(run.counts.get("edited", 0) for run in rebuilt.status().runs) == [0, 1]
        assert verify_store(rebuilt, store.path).findings == []
