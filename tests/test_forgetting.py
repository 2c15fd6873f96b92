"""Forgetting a file: nothing of it is left, nothing else is lost, and a kill leaves work for the next run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from batchcap import parts
from batchcap.catalog import Captioned, Catalog, Failure, ModelInfo
from batchcap.errors import CatalogBusyError, CatalogError, Reason, StoreError
from batchcap.forgetting import forget_file
from batchcap.rebuild import rebuild_catalog
from batchcap.verify import verify_store

MODEL = ModelInfo("f" * 64, "small")
SECRET = "/photos/secret.jpg"
WORD = "xylophone"
VECTOR = b"the vector of xylophones"


def captioned(uri: str, text: str, content: str | None = None) -> Captioned:
    content = content or f"content of {uri}"
    return Captioned(uri, 1, 1, None, content, 30, 20, "jpeg", None, text, -1.0, 0.5, 3)


def fill(catalog: Catalog, store: Path) -> None:
    """The file's captions are in a part of its own, in one with others, in none, and in the quarantine."""
    opened = parts.open_store(store, catalog.uuid)
    with catalog.run(["/photos"], MODEL, {}) as run:
        run.commit([captioned(SECRET, f"an old {WORD}", "old content")])
        parts.seal(catalog, opened, run)
        run.commit([replace(captioned(SECRET, f"a {WORD}"), vector=VECTOR)])
        run.commit([replace(captioned("/photos/a.jpg", "a dog"), vector=bytes(len(VECTOR)))])
        run.commit([captioned("/photos/b.jpg", "a cat")])
        parts.seal(catalog, opened, run)
        run.commit([], [Failure(SECRET, 2, 2, None, Reason.IO_ERROR, "once")])
    catalog.write_captions([(SECRET, f"my {WORD}"), ("/photos/b.jpg", "Minka")])


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'store' / 'catalog.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    with Catalog.open(url, mode="write") as opened:
        fill(opened, tmp_path / "store")
        yield opened


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


SQLITE = pytest.mark.parametrize("catalog", ["sqlite"], indirect=True)


def logged(catalog: Catalog) -> list[tuple[str, str]]:
    sql = "SELECT uri, text FROM result JOIN caption ON caption.id = caption_id ORDER BY uri, text"
    with catalog.query(sql) as result:
        return list(result.rows)


def check_clean(catalog: Catalog, store: Path, rows: int) -> None:
    found = verify_store(catalog, store)
    assert (found.findings, found.pending_parts, found.rows) == ([], 0, rows)
    table = parts.read_parts(parts.open_store(store, catalog.uuid))
    assert SECRET not in table["uri"].to_pylist()
    assert SECRET not in {uri for uri, _ in logged(catalog)}
    assert catalog.search(WORD).total == 0
    assert catalog.status().quarantine == {}


LEFT = [("/photos/a.jpg", "a dog"), ("/photos/b.jpg", "Minka"), ("/photos/b.jpg", "a cat")]


def test_nothing_is_left_of_it_and_all_else_stays(catalog: Catalog, store: Path) -> None:
    assert len(list((store / "captions").iterdir())) == 2
    found = forget_file(catalog, store, SECRET)
    assert (found.results, found.captions, found.parts, found.elsewhere) == (3, 3, 2, 0)
    assert logged(catalog) == LEFT
    check_clean(catalog, store, rows=2)
    assert catalog.status().images == 2
    with catalog.query("SELECT content_hash FROM image_vector JOIN caption ON id = caption_id") as left:
        assert list(left.rows) == [("content of /photos/a.jpg",)]
    assert len(list((store / "captions").iterdir())) == 1
    # Not a byte of it, in any file.
    if catalog._database.name == "sqlite":
        contents = [path.read_bytes() for path in store.rglob("*") if path.is_file()]
        assert not [content for content in contents if WORD.encode() in content or VECTOR in content]
    with pytest.raises(CatalogError, match=f"knows no file {SECRET}"):
        forget_file(catalog, store, SECRET)
    # It can be captioned again.
    with catalog.run(["/photos"], MODEL, {}) as run:
        run.commit([captioned(SECRET, "a drum")])
        parts.seal(catalog, parts.open_store(store, catalog.uuid), run)
    found_again = verify_store(catalog, store)
    assert (found_again.findings, found_again.rows, found_again.unsealed_rows) == ([], 4, 0)


def test_what_other_files_share_stays_theirs(catalog: Catalog, store: Path) -> None:
    with catalog.run(["/photos"], MODEL, {}) as run:
        run.commit([captioned("/photos/copy.jpg", "never used", f"content of {SECRET}")])
        # Another file had the older content for a while; it is its line of the log.
        run.commit([captioned("/photos/a.jpg", "never used", "old content")])
        run.commit([captioned("/photos/a.jpg", "a dog")])
        parts.seal(catalog, parts.open_store(store, catalog.uuid), run)
    found = forget_file(catalog, store, SECRET)
    assert (found.captions, found.elsewhere) == (0, 1)
    # A person wrote the one at the file that is forgotten; it is logged at the copy now.
    assert logged(catalog) == [
        ("/photos/a.jpg", "a dog"),
        ("/photos/a.jpg", f"an old {WORD}"),
        *LEFT[1:],
        ("/photos/copy.jpg", f"a {WORD}"),
        ("/photos/copy.jpg", f"my {WORD}"),
    ]
    assert [(hit.uri, hit.caption) for hit in catalog.search(WORD).hits] == [
        ("/photos/copy.jpg", f"my {WORD}")
    ]
    assert verify_store(catalog, store).findings == []
    # The last file of it: then it is gone, but for what the other one's log has.
    assert forget_file(catalog, store, "/photos/copy.jpg").captions == 2
    assert verify_store(catalog, store).findings == []
    assert [text for uri, text in logged(catalog) if WORD in text] == [f"an old {WORD}"]


@SQLITE
def test_it_does_not_come_back_from_parquet(catalog: Catalog, store: Path) -> None:
    forget_file(catalog, store, SECRET)
    with catalog.run(["/photos"], MODEL, {}) as run:
        parts.seal(catalog, parts.open_store(store, catalog.uuid), run)
    before = logged(catalog)
    catalog.close()
    rebuild_catalog(f"sqlite:///{store / 'catalog.db'}", store, force=True)
    with Catalog.open(f"sqlite:///{store / 'catalog.db'}") as rebuilt:
        assert logged(rebuilt) == before == LEFT
        check_clean(rebuilt, store, rows=3)


class Killed(BaseException):
    pass


def dies_before(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, nth: int = 1) -> None:
    calls = []

    def die(*args: object, **kwargs: object) -> object:
        calls.append(None)
        if len(calls) == nth:
            raise Killed
        return original(*args, **kwargs)

    original: Callable[..., object] = getattr(owner, name)
    monkeypatch.setattr(owner, name, die)


# The part of its own, which vanishes, comes first, then the one with others.
POINTS = {
    "nothing done": (Catalog, "forget", 1),
    "catalog done": (Catalog, "pending_parts", 2),
    "part not yet gone": (parts, "_require_superseded", 1),
    "part gone": (Catalog, "drop_part", 1),
    "part not yet written": (parts, "as_table", 1),
    "part written": (parts, "publish", 1),
    "part not yet replaced": (parts, "replace", 1),
    "part replaced": (Catalog, "finish_part", 1),
    "parts done": (Catalog, "scrub", 1),
}


@SQLITE
@pytest.mark.parametrize("by", ["run", "forget"])
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_leaves_it_to_the_next(
    catalog: Catalog, store: Path, point: str, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        dies_before(patch, *POINTS[point])
        forget_file(catalog, store, SECRET)
    assert verify_store(catalog, store).findings == []
    if point == "nothing done":
        assert catalog.search(WORD).total == 1
        forget_file(catalog, store, SECRET)
    elif by == "forget":
        with pytest.raises(CatalogError, match="knows no file"):
            forget_file(catalog, store, SECRET)
    else:
        with catalog.run(["/photos"], MODEL, {}):
            parts.seal_pending(catalog, parts.open_store(store, catalog.uuid))
    check_clean(catalog, store, rows=2)
    assert logged(catalog) == LEFT
    assert not list(store.rglob(".tmp-*"))


@SQLITE
def test_only_the_file_that_is_superseded_is_replaced(catalog: Catalog, store: Path) -> None:
    """A file that somebody has put in its place is not: neither removed nor overwritten."""
    opened = parts.open_store(store, catalog.uuid)
    removed, rewritten = sorted((store / "captions").iterdir())
    good = {path: path.read_bytes() for path in (removed, rewritten)}
    removed.write_bytes(good[rewritten])
    rewritten.write_bytes(good[removed])
    with pytest.raises(StoreError, match="move it away"):
        forget_file(catalog, store, SECRET)
    assert removed.read_bytes() == good[rewritten]
    removed.write_bytes(good[removed])
    with catalog.run(["/photos"], MODEL, {}), pytest.raises(StoreError, match="move it away"):
        parts.seal_pending(catalog, opened)
    assert not removed.exists() and rewritten.read_bytes() == good[removed]
    rewritten.write_bytes(good[rewritten])
    with catalog.run(["/photos"], MODEL, {}):
        parts.seal_pending(catalog, opened)
    check_clean(catalog, store, rows=2)


@SQLITE
def test_a_verification_that_goes_on_meanwhile_finds_nothing_wrong(
    catalog: Catalog, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the list of the parts, and then one is rewritten and one is gone."""
    listed = catalog.parts()
    forget_file(catalog, store, SECRET)
    now = catalog.parts
    answers = iter([now(), listed])
    monkeypatch.setattr(catalog, "parts", lambda: next(answers, None) or now())
    found = verify_store(catalog, store)
    assert (found.findings, found.parts, found.rows, found.pending_parts) == ([], 1, 2, 0)


@SQLITE
def test_what_can_not_be_forgotten(catalog: Catalog, store: Path, tmp_path: Path) -> None:
    with catalog.run(["/photos"], MODEL, {}), pytest.raises(CatalogBusyError):
        forget_file(catalog, store, SECRET)
    with pytest.raises(StoreError, match="see --store"):
        forget_file(catalog, tmp_path / "another", SECRET)
    assert catalog.search(WORD).total == 1
