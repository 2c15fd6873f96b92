"""Who may ask what: names of the server, pages of other sites, tokens, and servers that all can reach."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from batchcap.errors import UsageError
from batchcap.serving.options import ServingOptions, read_token
from tests.serving.conftest import TOKEN, Collection, Connect, error_of

HTML = {"accept": "text/html,application/xhtml+xml"}
BEARER = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def guarded(connect: Connect) -> TestClient:
    """A server that asks for a token."""
    return connect(token=TOKEN)


@pytest.fixture(scope="module")
def public(connect: Connect) -> TestClient:
    """A server that everybody can reach, without a token."""
    return connect(host="0.0.0.0")


def test_every_answer_has_the_security_headers(client: TestClient) -> None:
    for path in ("/", "/search?q=dog", "/static/page.css", "/no/such/path", "/images/../../etc"):
        headers = client.get(path, headers=HTML).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in str(policy)
        assert headers["x-content-type-options"] == "nosniff"
        # Browsers send the Origin of a form only with this one; else it would be refused.
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert not any(name.startswith("access-control") for name in headers)


@pytest.mark.parametrize("name", ["localhost:8012", "127.0.0.1", "LOCALHOST", "[::1]:8012", "127.0.0.2:1"])
def test_names_of_this_machine_are_known(client: TestClient, name: str) -> None:
    assert client.get("/search", headers={"host": name}).status_code == 200


@pytest.mark.parametrize(
    "name", ["attacker.example", "localhost.attacker.example:8012", "10.0.0.7", "", "[", "127.0.0.1.example"]
)
def test_other_names_are_refused(client: TestClient, name: str) -> None:
    """As of a page whose name server says that its name is this machine's address."""
    for path in ("/healthz", "/search", "/"):
        assert error_of(client.get(path, headers={"host": name})) == (403, "forbidden")


def test_a_public_server_is_known_by_addresses_and_the_names_it_is_given(connect: Connect) -> None:
    client = connect(host="0.0.0.0", allowed_hosts=("captions.example",))
    for name in ("10.0.0.7:8012", "[fe80::1]", "captions.example", "Captions.Example:80", "localhost"):
        assert client.get("/healthz", headers={"host": name}).status_code == 200
    assert error_of(client.get("/healthz", headers={"host": "other.example"})) == (403, "forbidden")


def test_a_name_beyond_this_machine_makes_a_server_public(connect: Connect) -> None:
    """As behind a proxy: that the proxy is on this machine doesn't mean that its clients are."""
    client = connect(allowed_hosts=("captions.example",))
    assert error_of(client.get("/search", headers={"host": "captions.example"})) == (403, "forbidden")
    assert not ServingOptions(allowed_hosts=("captions.example",)).shows_collection
    assert ServingOptions(allowed_hosts=("captions.example",), token=TOKEN).shows_collection


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://attacker.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8013"},
        {"origin": "http://127.0.0.1:8012.attacker.example"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_pages_of_other_sites_can_not_post(client: TestClient, photo: bytes, headers: dict[str, str]) -> None:
    answer = client.post("/caption", files={"file": photo}, headers=headers)
    assert error_of(answer) == (403, "forbidden")


def test_a_page_of_this_server_can(client: TestClient, photo: bytes) -> None:
    headers = {"origin": "http://127.0.0.1:8012", "sec-fetch-site": "same-origin"}
    assert client.post("/caption", files={"file": photo}, headers=headers).status_code == 200


def test_a_preflight_of_another_site_is_not_answered(client: TestClient) -> None:
    headers = {"origin": "https://attacker.example", "access-control-request-method": "POST"}
    assert error_of(client.options("/caption", headers=headers)) == (405, "method_not_allowed")


def test_without_the_token_nothing_is_shown(guarded: TestClient, photo: bytes) -> None:
    wrong = [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Bearer {TOKEN[:-1]}"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer é"},
        {"cookie": f"batchcap_session={TOKEN}"},
        {"cookie": "batchcap_session="},
    ]
    for headers in wrong:
        raw = {name: value.encode() for name, value in headers.items()}
        for path in ("/", "/search", "/collection", "/metrics", "/openapi.json", "/images/" + "0" * 64):
            answer = guarded.get(path, headers=raw)
            assert error_of(answer) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        answer = guarded.post("/caption", files={"file": photo}, headers=raw)
        assert error_of(answer) == (401, "unauthorized")
    assert guarded.get("/healthz").status_code == guarded.get("/readyz").status_code == 200


def test_with_the_token_all_is(guarded: TestClient, photo: bytes) -> None:
    assert guarded.post("/caption", files={"file": photo}, headers=BEARER).status_code == 200
    assert guarded.get("/search?q=dog", headers=BEARER).json()["total"] == 3
    assert guarded.get("/metrics", headers=BEARER).status_code == 200


def test_a_browser_exchanges_the_token_for_a_cookie(guarded: TestClient) -> None:
    asked = guarded.get("/search?q=dog", headers=HTML)
    assert (asked.status_code, asked.headers["location"]) == (303, "/session")
    assert "/static/page.css" in guarded.get("/session", headers=HTML).text
    refused = guarded.post("/session", data={"token": "wrong"}, headers=HTML)
    assert (refused.status_code, "set-cookie" in refused.headers) == (401, False)
    assert error_of(guarded.post("/session", content=b"x" * 5000)) == (413, "too_large")
    cross = guarded.post("/session", data={"token": TOKEN}, headers={"origin": "https://attacker.example"})
    assert error_of(cross) == (403, "forbidden")

    taken = guarded.post("/session", data={"token": f" {TOKEN}\n"}, headers=HTML)
    assert (taken.status_code, taken.headers["location"]) == (303, "/")
    cookie = taken.headers["set-cookie"]
    assert TOKEN not in cookie
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    guarded.cookies.clear()
    session = {"cookie": cookie.partition(";")[0]}
    assert guarded.get("/search?q=dog", headers=HTML | session).status_code == 200


def test_without_a_token_there_is_nothing_to_enter(client: TestClient) -> None:
    assert client.get("/session", headers=HTML).headers["location"] == "/"
    assert client.post("/session", data={"token": "any"}, headers=HTML).status_code == 401


def test_a_public_server_captions_and_shows_no_collection(
    public: TestClient, photo: bytes, collection: Collection
) -> None:
    content_hash = collection.hashes["0.jpg"]
    for path in ("/search?q=dog", "/collection", f"/images/{content_hash}", f"/thumbnails/{content_hash}"):
        for headers in ({}, HTML):
            assert error_of(public.get(path, headers=headers)) == (403, "forbidden")
    assert error_of(public.get(f"/pictures/{content_hash}", headers=HTML)) == (403, "forbidden")
    assert error_of(public.get("/edit")) == (403, "forbidden")
    assert public.post("/caption", files={"file": photo}).status_code == 200
    assert public.get("/").json()["collection"] is False
    page = public.get("/", headers=HTML).text
    assert "Caption" in page and 'href="/search"' not in page
    for path in ("/healthz", "/readyz", "/metrics"):
        assert public.get(path).status_code == 200


def test_what_answers_get_answers_head(
    client: TestClient, guarded: TestClient, collection: Collection
) -> None:
    content_hash = collection.hashes["0.jpg"]
    for path in (
        *("/", "/search?q=dog", "/collection", "/healthz", "/metrics", "/static/page.css", "/openapi.json"),
        *(f"/{place}/{content_hash}" for place in ("images", "thumbnails", "pictures")),
    ):
        got, asked = client.get(path, headers=HTML), client.head(path, headers=HTML)
        assert (asked.status_code, asked.content) == (200, b"")
        assert got.content
        for name in ("content-type", "etag", "content-security-policy", "cache-control"):
            assert asked.headers.get(name) == got.headers.get(name)
    assert client.head(f"/images/{content_hash}").headers["content-length"] == str(
        (collection.folder / "0.jpg").stat().st_size
    )
    for path, status in (("/no/such/path", 404), ("/caption", 405), (f"/images/{content_hash}/caption", 405)):
        assert (client.head(path).status_code, client.head(path).content) == (status, b"")
    assert guarded.head("/search").status_code == 401
    assert guarded.head("/search", headers=HTML).headers["location"] == "/session"
    assert 'method="HEAD",route="/search",status="200"' in client.get("/metrics").text


def test_a_token_is_read_from_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"  {TOKEN} \nanything\n")
    assert read_token(path) == TOKEN


@pytest.mark.parametrize(
    "text", ["", "\n", "short", "two words of enough letters", "ümlaut-of-enough-letters"]
)
def test_a_token_that_can_not_be_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(UsageError, match="at least 16 ASCII characters"):
        read_token(path)


def test_a_token_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't read the token"):
        read_token(tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"\xff" * 32)
    with pytest.raises(UsageError, match="no text in UTF-8"):
        read_token(tmp_path / "binary")
