"""People caption pictures over HTTP: what is written, what is refused, and what stands in the way."""

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from batchcap.catalog import Captioned, Catalog, ModelInfo, sqlite_file
from batchcap.serving import service
from batchcap.serving.service import Remembered
from tests.serving.conftest import CAPTIONS, TOKEN, Collection, connections, error_of
from tests.serving.test_browsing import HTML, Page, page

FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.fixture
def client(own_collection: Collection) -> Iterator[TestClient]:
    with connections(own_collection.url) as connect:
        yield connect()


@pytest.fixture
def path(own_collection: Collection) -> str:
    """Where `2.jpg` is captioned."""
    return f"/images/{own_collection.hashes['2.jpg']}/caption"


def shown(collection: Collection) -> dict[str, str]:
    with (
        Catalog.open(collection.url) as catalog,
        catalog.query("SELECT uri, caption FROM captions WHERE source = 'human'") as result,
    ):
        return dict(result.rows)


def test_a_persons_caption_is_the_one_that_is_shown(
    client: TestClient, own_collection: Collection, path: str
) -> None:
    answer = client.post(path, json={"caption": " Minka,\n our  cat "})
    assert answer.status_code == 200
    content_hash = own_collection.hashes["2.jpg"]
    picture = answer.json()
    assert client.get(f"/pictures/{content_hash}").json() == picture
    assert (picture["caption"], picture["source"], picture["model"]) == ("Minka, our cat", "human", None)
    assert picture["uris"] == [str(own_collection.folder / "2.jpg")]
    assert (picture["name"], picture["image"]) == ("2.jpg", f"/images/{content_hash}")
    assert [(said["caption"], said["model"], said["is_live"]) for said in picture["history"]] == [
        ("Minka, our cat", None, True),
        (CAPTIONS[2], "small", False),
    ]
    (hit,) = client.get("/search?q=minka").json()["hits"]
    assert hit["content_hash"] == content_hash
    # The same again is no news.
    assert client.post(path, json={"caption": "Minka, our cat"}).json() == picture
    assert client.get("/search?q=sofa").json()["total"] == 0


def test_a_form_leads_back_to_the_page(client: TestClient, own_collection: Collection, path: str) -> None:
    content_hash = own_collection.hashes["2.jpg"]
    before = page(client, f"/pictures/{content_hash}?q=sofa&offset=24")
    (form,) = before.all("form")
    assert (form["method"], form["action"]) == ("post", f"{path}?q=sofa&offset=24")
    assert CAPTIONS[2] in before.text and "History" not in before.text
    done = client.post(str(form["action"]), data={"caption": "<b>Minka</b> & é"}, headers=HTML)
    assert (done.status_code, done.content) == (303, b"")
    assert done.headers["location"] == f"/pictures/{content_hash}?q=sofa&offset=24"
    after = page(client, done.headers["location"])
    assert not after.all("b")
    assert after.text.count("<b>Minka</b> & é") == 4  # title, heading, field, history
    assert [item.get("aria-current") for item in after.all("li")] == ["true", None]
    assert "a person" in after.text and CAPTIONS[2] in after.text
    assert client.post(path, data={"caption": "Minka"}).headers["location"] == f"/pictures/{content_hash}"


def test_all_files_of_a_picture_have_its_caption(own_collection: Collection, path: str) -> None:
    content_hash = own_collection.hashes["2.jpg"]
    with Catalog.open(own_collection.url, mode="write") as catalog:
        add_files(catalog, content_hash, "/copy.jpg", "/gone.jpg", vanish="/gone.jpg")
    with connections(own_collection.url) as connect:
        answer = connect().post(path, json={"caption": "Minka"}).json()
    uris = ["/copy.jpg", str(own_collection.folder / "2.jpg")]
    assert answer["uris"] == uris
    assert shown(own_collection) == dict.fromkeys(uris, "Minka")


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'{"caption": ""}', {"content-type": "application/json"}, (400, "usage")),
        (b'{"caption": " \\n "}', {"content-type": "application/json; charset=utf-8"}, (400, "usage")),
        (b'{"caption": "a\\u0000b"}', {"content-type": "application/json"}, (400, "usage")),
        (b'{"caption": "a\\u001b[31m"}', {"content-type": "application/json"}, (400, "usage")),
        (b'{"caption": "\\ud800"}', {"content-type": "application/json"}, (400, "usage")),
        (b'{"caption": "%s"}' % (b"x" * 5001), {"content-type": "application/json"}, (400, "usage")),
        (b'{"caption": 1}', {"content-type": "application/json"}, (400, "usage")),
        (b'{"caption": "x", "more": 1}', {"content-type": "application/json"}, (400, "usage")),
        (b'["caption"]', {"content-type": "application/json"}, (400, "usage")),
        (b'{"caption": "', {"content-type": "application/json"}, (400, "usage")),
        (b'{"caption": "\xff"}', {"content-type": "application/json"}, (400, "usage")),
        (b"[" * 60_000, {"content-type": "application/json"}, (400, "usage")),
        (b"", {"content-type": "application/json"}, (400, "usage")),
        (b"caption=", FORM, (400, "usage")),
        (b"caption=a%00b", FORM, (400, "usage")),
        (b"caption=%ff", FORM, (400, "usage")),
        (b"caption=\xff", FORM, (400, "usage")),
        (b"caption=a&caption=b", FORM, (400, "usage")),
        (b"caption=a&b=c", FORM, (400, "usage")),
        (b"&".join([b"caption=a"] * 99), FORM, (400, "usage")),
        (b"text=a", FORM, (400, "usage")),
        (b"", FORM, (400, "usage")),
        (b"caption=" + b"x" * 70_000, FORM, (413, "too_large")),
        (b"Minka", {"content-type": "text/plain"}, (415, "unsupported")),
        (b"Minka", {}, (415, "unsupported")),
    ],
)
def test_what_is_no_caption(refusing: TestClient, body: bytes, headers: Any, status: tuple[int, str]) -> None:
    content_hash = refusing.get("/search?q=sofa").json()["hits"][0]["content_hash"]
    answer = refusing.post(f"/images/{content_hash}/caption", content=body, headers=headers)
    assert error_of(answer) == status
    assert refusing.get("/search?model=people").json()["total"] == 0


@pytest.fixture(scope="module")
def refusing(connect: Any) -> TestClient:
    """A server whose collection nobody changes."""
    client: TestClient = connect()
    return client


def test_what_a_browser_is_told_of_it(refusing: TestClient, collection: Collection) -> None:
    path = f"/images/{collection.hashes['2.jpg']}/caption"
    answer = refusing.post(path, data={"caption": " "}, headers=HTML)
    assert answer.status_code == 400
    assert "a caption can't be empty" in Page(answer.text).text
    # A program that says what it takes is answered as programs are.
    assert error_of(refusing.post(path, json={"caption": " "}, headers=HTML)) == (400, "usage")
    assert error_of(refusing.post(f"{path}?to=http://x.example", json={"caption": "x"})) == (400, "usage")


def test_what_is_no_picture(client: TestClient, own_collection: Collection) -> None:
    for name in ("0" * 64, "x", "%2e%2e", own_collection.hashes["2.jpg"].upper()):
        answer = client.post(f"/images/{name}/caption", json={"caption": "x"})
        assert error_of(answer) == (404, "not_found")
    with Catalog.open(own_collection.url, mode="write") as catalog:
        add_files(catalog, "9" * 64, "/gone.jpg", vanish="/gone.jpg")
    answer = client.post(f"/images/{'9' * 64}/caption", json={"caption": "x"})
    assert error_of(answer) == (404, "not_found")
    assert "gone" in answer.json()["error"]["message"]
    assert shown(own_collection) == {}


def test_who_may_caption(own_collection: Collection, path: str) -> None:
    caption = {"caption": "Minka"}
    with connections(own_collection.url) as connect:
        public, guarded, own = connect(host="0.0.0.0"), connect(token=TOKEN), connect()
        for form in ({"json": caption}, {"data": caption, "headers": HTML}):
            assert error_of(public.post(path, **form)) == (403, "forbidden")
            assert error_of(guarded.post(path, **form)) == (401, "unauthorized")
        for headers in (
            {"origin": "https://attacker.example"},
            {"origin": "null"},
            {"host": "other.example"},
        ):
            assert error_of(own.post(path, data=caption, headers=headers)) == (403, "forbidden")
        assert error_of(own.get(path)) == (405, "method_not_allowed")
        assert error_of(connect(shows=False).post(path, json=caption)) == (404, "not_found")
        assert shown(own_collection) == {}
        bearer = {"authorization": f"Bearer {TOKEN}"}
        assert guarded.post(path, json=caption, headers=bearer).status_code == 200
    assert list(shown(own_collection).values()) == ["Minka"]


def test_beside_a_run(client: TestClient, own_collection: Collection, path: str) -> None:
    with (
        Catalog.open(own_collection.url, mode="write") as catalog,
        catalog.run(["/"], ModelInfo("a" * 64, "other"), {}) as run,
    ):
        assert client.post(path, json={"caption": "Minka"}).status_code == 200
        run.commit([file_of(own_collection.hashes["2.jpg"], "/copy.jpg", "a cat")])
    answer = client.get(f"/pictures/{own_collection.hashes['2.jpg']}").json()
    assert answer["caption"] == "Minka"
    assert [said["is_live"] for said in answer["history"]] == [False, True, False]


def test_a_catalog_that_another_program_keeps_locked(
    client: TestClient, own_collection: Collection, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT_S", 0.01)
    with closing(sqlite3.connect(own_collection.url.removeprefix("sqlite:///"))) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = client.post(path, json={"caption": "Minka"})
        assert error_of(answer) == (503, "catalog_unavailable")
        assert answer.headers["retry-after"] == "10"
        # Whoever reads is not held up.
        assert client.get("/search?q=sofa").json()["total"] == 1
    assert client.post(path, json={"caption": "Minka"}).status_code == 200


def test_a_catalog_that_was_migrated_meanwhile(
    client: TestClient, own_collection: Collection, path: str
) -> None:
    for version in ("0000", "9999"):
        with closing(sqlite3.connect(own_collection.url.removeprefix("sqlite:///"))) as other, other:
            other.execute("UPDATE alembic_version SET version_num = ?", (version,))
        answer = client.post(path, json={"caption": "Minka"})
        assert error_of(answer) == (503, "catalog_version")
    assert list(Path(own_collection.url.removeprefix("sqlite:///")).parent.glob("catalog.db.*-*")) == []


def test_only_so_many_wait_to_be_written(
    client: TestClient, own_collection: Collection, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_MAX_WRITES", 1)
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT_S", 60.0)
    with (
        ThreadPoolExecutor(2) as people,
        closing(sqlite3.connect(own_collection.url.removeprefix("sqlite:///"))) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        posts = [people.submit(client.post, path, json={"caption": "Minka"}) for _ in range(2)]
        # One waits for the other program, so it is the other's that is answered.
        (first,), _ = wait(posts, return_when=FIRST_COMPLETED)
        other.rollback()
    assert error_of(first.result()) == (429, "busy")
    assert int(first.result().headers["retry-after"]) > 0
    assert sorted(post.result().status_code for post in posts) == [200, 429]


def test_what_is_remembered_is_found_out_once() -> None:
    found: list[int] = []

    def find() -> int:
        found.append(len(found))
        return found[-1]

    kept = Remembered(find, for_s=3600)
    threads = [threading.Thread(target=kept) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (kept(), found) == (0, [0])
    fresh = Remembered(find, for_s=0)
    assert (fresh(), fresh()) == (1, 2)


def add_files(catalog: Catalog, content_hash: str, *uris: str, vanish: str) -> None:
    """Has a run find files of a content, one of which vanishes."""
    with catalog.run(["/"], ModelInfo("f" * 64, "small"), {}) as run:
        run.commit([file_of(content_hash, uri, CAPTIONS[2]) for uri in uris])
        run.vanish([vanish], lambda vanished: None)


def file_of(content_hash: str, uri: str, text: str) -> Captioned:
    return Captioned(uri, 9, 1, None, content_hash, 80, 60, "jpeg", None, text, -3.0, 0.5, 6)
