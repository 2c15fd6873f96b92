"""What shows the collection: search, pictures, thumbnails, pages."""

import hashlib
import io
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image
from starlette.testclient import TestClient

from batchcap.catalog import Catalog, ModelInfo
from batchcap.serving.pages import STATIC
from batchcap.serving.pictures import Thumbnails, find_picture
from batchcap.serving.problems import Problem
from tests.serving.conftest import CAPTIONS, Collection, Connect, captioned, connections, error_of

HTML = {"accept": "text/html"}


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(client: TestClient, path: str) -> Page:
    answer = client.get(path, headers=HTML)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["vary"] == "accept"
    found = Page(answer.text)
    # What the policy forbids would not work.
    assert all("src" in script for script in found.all("script"))
    assert not found.all("style")
    assert not any(
        name == "style" or name.startswith("on") for _, attributes in found.elements for name in attributes
    )
    for tag, name in (("link", "href"), ("script", "src"), ("img", "src"), ("a", "href"), ("form", "action")):
        for attributes in found.all(tag):
            assert (attributes.get(name) or "/").startswith(("/", "#"))
    assert all("alt" in image for image in found.all("img"))
    return found


@pytest.fixture(scope="module")
def edited(collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The collection, and a person has captioned `1.jpg`."""
    path = tmp_path_factory.mktemp("edited") / "catalog.db"
    url = f"sqlite:///{shutil.copy(collection.url.removeprefix('sqlite:///'), path)}"
    with Catalog.open(url, mode="edit") as catalog:
        catalog.write_captions([(str(collection.folder / "1.jpg"), "Rex and Bella")])
    with connections(url) as connect:
        yield connect()


def test_search_answers_what_is_needed_to_show_it(client: TestClient, collection: Collection) -> None:
    answer = client.get("/search", params={"q": "dog beach"}).json()
    content_hash = collection.hashes["0.jpg"]
    (hit,) = answer.pop("hits")
    assert answer == {"query": "dog beach", "total": 1, "limit": 24, "offset": 0}
    assert hit.pop("score") > 0
    assert hit == {
        "name": "0.jpg",
        "uri": str(collection.folder / "0.jpg"),
        "caption": CAPTIONS[0],
        "confidence": 0.5,
        "source": "model",
        "model": "small",
        "spans": [[2, 5], [18, 23]],
        "width": 80,
        "height": 60,
        "content_hash": content_hash,
        "image": f"/images/{content_hash}",
        "thumbnail": f"/thumbnails/{content_hash}",
    }
    assert client.get("/search", params={"q": "zebra"}).json()["hits"] == []
    assert client.get("/search").json()["total"] == 0


def test_search_has_pages(client: TestClient) -> None:
    found = [
        client.get("/search", params={"q": "dog", "limit": 2, "offset": offset}).json()
        for offset in (0, 2, 4)
    ]
    assert [len(answer["hits"]) for answer in found] == [2, 1, 0]
    assert {answer["total"] for answer in found} == {3}
    names = [hit["name"] for answer in found for hit in answer["hits"]]
    assert sorted(names) == ["0.jpg", "1.jpg", "3.jpg"]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1000", "limit=x", "offset=-1", "offset=99999999999999999999", "q=" + "x" * 501],
)
def test_search_refuses_what_it_can_not_answer(client: TestClient, query: str) -> None:
    assert error_of(client.get(f"/search?{query}")) == (400, "usage")


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("model=people", {"1.jpg"}),
        ("model=small&q=dog", {"0.jpg", "3.jpg"}),
        ("model=ffffffff&q=beach", {"0.jpg", "4.jpg"}),
        ("model=large", set()),
        ("min_confidence=0.6", {"1.jpg"}),
        ("format=tif", {"scan.tiff"}),
        ("format=PNG&q=", {"page.html"}),
        ("width=81", set()),
        ("width=80&q=sofa", {"2.jpg"}),
        ("since=yesterday&q=sofa", {"2.jpg"}),
        ("since=2099-01-01", set()),
        ("under={folder}/2.jpg", {"2.jpg"}),
        ("under={folder}/shard.tar", {"member.jpg"}),
        ("under=tar://{folder}/shard.tar%23sub", {"member.jpg"}),
        ("under=/{folder}/x/..//&q=sofa", {"2.jpg"}),
        ("under=file://{folder}&q=sofa", {"2.jpg"}),
        ("under=/nowhere", set()),
        ("q=&since=&model=&min_confidence=&under=&width=&format=&limit=&offset=", set()),
    ],
)
def test_filters_are_those_of_the_command(
    edited: TestClient, collection: Collection, query: str, names
) -> None:
    answer = edited.get("/search?" + query.format(folder=collection.folder)).json()
    assert {hit["name"] for hit in answer["hits"]} == names
    assert answer["total"] == len(names)


def test_filters_alone_list_the_newest_first(edited: TestClient) -> None:
    hits = edited.get("/search?under=/&limit=3").json()["hits"]
    assert hits[0]["caption"] == "Rex and Bella" and hits[0]["source"] == "human"
    assert {hit["score"] for hit in hits} == {0.0}


@pytest.mark.parametrize(
    "query",
    [
        *("since=soon", "since=2026-02-30", "min_confidence=2", "min_confidence=-0.1", "min_confidence=nan"),
        *("min_confidence=x", "width=0", "width=1.5", "width=99999999999999", "under=photos", "under=~"),
        *("model=" + "x" * 201, "format=" + "x" * 51, "minconfidence=0.5", "q=dog&page=2"),
    ],
)
def test_filters_that_make_no_sense_are_refused(client: TestClient, query: str) -> None:
    assert error_of(client.get(f"/search?{query}")) == (400, "usage")
    assert client.get(f"/search?{query}", headers=HTML).status_code == 400


@pytest.mark.parametrize("query", ["model=%00", "under=/%00", "format=%00", "model=%ff"])
def test_filters_that_nothing_can_be_like_find_nothing(client: TestClient, query: str) -> None:
    assert client.get(f"/search?{query}").json()["total"] == 0


@pytest.mark.parametrize("query", ['"', "* - OR", "%00", "%ff", "');DROP TABLE caption;--", "a" * 500])
def test_anything_is_a_query(client: TestClient, query: str) -> None:
    assert client.get(f"/search?q={query}").status_code == 200


def test_a_picture_is_its_file(client: TestClient, collection: Collection) -> None:
    content_hash = collection.hashes["2.jpg"]
    answer = client.get(f"/images/{content_hash}")
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.content == (collection.folder / "2.jpg").read_bytes()
    assert answer.headers["cache-control"].startswith("private")
    assert answer.headers["content-disposition"] == "inline; filename*=UTF-8''2.jpg"
    again = client.get(f"/images/{content_hash}", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_member_of_an_archive_is_a_picture_like_others(client: TestClient, collection: Collection) -> None:
    content_hash = collection.hashes["member.jpg"]
    answer = client.get(f"/images/{content_hash}")
    assert answer.headers["content-type"] == "image/jpeg"
    assert hashlib.sha256(answer.content).hexdigest() == content_hash
    assert answer.headers["content-disposition"].endswith("member.jpg")
    assert client.get(f"/thumbnails/{content_hash}").status_code == 200
    (hit,) = client.get("/search?q=archive").json()["hits"]
    assert hit["name"] == "member.jpg"


def test_a_thumbnail_is_a_small_jpeg(client: TestClient, collection: Collection) -> None:
    for name in ("2.jpg", "scan.tiff"):
        path = f"/thumbnails/{collection.hashes[name]}"
        answer = client.get(path)
        assert answer.headers["content-type"] == "image/jpeg"
        with Image.open(io.BytesIO(answer.content)) as image:
            assert (image.format, image.size) == ("JPEG", (320, 320))
        assert client.get(path).content == answer.content
        again = client.get(path, headers={"if-none-match": answer.headers["etag"]})
        assert again.status_code == 304


def test_what_is_no_picture_for_browsers_is_not_sent(client: TestClient, collection: Collection) -> None:
    for name in ("scan.tiff", "page.html"):
        assert error_of(client.get(f"/images/{collection.hashes[name]}")) == (415, "unsupported")
    assert error_of(client.get(f"/thumbnails/{collection.hashes['page.html']}")) == (404, "not_found")


@pytest.mark.parametrize("place", ["images", "thumbnails", "pictures"])
@pytest.mark.parametrize(
    "name",
    [
        "0" * 64,
        "../../../../etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2fetc%2fpasswd",
        "0.jpg",
        "' OR '1'='1",
        "%00",
        "0" * 5000,
        "",
    ],
)
def test_only_known_hashes_lead_to_files(client: TestClient, place: str, name: str) -> None:
    answer = client.get(f"/{place}/{name}")
    assert error_of(answer) == (404, "not_found")
    assert "root:" not in answer.text


def test_a_hash_is_written_in_one_way(client: TestClient, collection: Collection) -> None:
    content_hash = collection.hashes["0.jpg"]
    assert error_of(client.get(f"/images/{content_hash.upper()}")) == (404, "not_found")


def test_a_file_that_has_changed_is_not_sent(
    collection: Collection, client: TestClient, tmp_path: Path
) -> None:
    path = collection.folder / "4.jpg"
    original = path.read_bytes()
    content_hash = collection.hashes["4.jpg"]
    try:
        # As large as before: only its bytes tell.
        for change in (original[:-10] + b"0123456789", original[:-1], b"secret"):
            path.write_bytes(change)
            assert error_of(client.get(f"/images/{content_hash}")) == (404, "not_found")
            assert error_of(client.get(f"/thumbnails/{content_hash}")) == (404, "not_found")
        path.unlink()
        path.mkdir()
        assert error_of(client.get(f"/images/{content_hash}")) == (404, "not_found")
        path.rmdir()
    finally:
        shutil.rmtree(path, ignore_errors=True)
        path.write_bytes(original)
    assert client.get(f"/images/{content_hash}").content == original


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="nobody counts here what is read")
def test_a_head_reads_no_file(own_collection: Collection, tmp_path: Path) -> None:
    size_bytes = 8 * 2**20
    large = tmp_path / "large.jpg"
    large.write_bytes(b"\xff\xd8\xff" + bytes(size_bytes - 3))
    member = tmp_path / "member.jpg"
    member.write_bytes(b"\xff\xd8\xff\xe0" + bytes(size_bytes - 4))
    with tarfile.open(tmp_path / "large.tar", "w") as archive:
        archive.add(member, "member.jpg")
    files = [captioned(large, "a large one", "jpeg"), captioned(member, "a member", "jpeg")]
    files[1] = replace(files[1], uri=f"tar://{tmp_path}/large.tar#member.jpg")
    with (
        Catalog.open(own_collection.url, mode="write") as catalog,
        catalog.run([str(tmp_path)], ModelInfo("f" * 64, "small"), {}) as run,
    ):
        run.commit(files, [])

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    with connections(own_collection.url) as connect:
        client = connect()
        for file in files:
            path = f"/images/{file.content_hash}"
            before = bytes_read()
            head = client.head(path)
            between = bytes_read()
            assert between - before < size_bytes / 8
            got = client.get(path)
            assert bytes_read() - between >= size_bytes
            assert (head.status_code, got.status_code, head.content) == (200, 200, b"")
            for name in ("content-length", "content-type", "content-disposition", "etag", "cache-control"):
                assert head.headers[name] == got.headers[name]
            etag = {"if-none-match": head.headers["etag"]}
            assert client.head(path, headers=etag).status_code == 304
            # It would have to be decoded to find out that it can't be.
            thumbnail = client.head(f"/thumbnails/{file.content_hash}")
            assert (thumbnail.status_code, "content-length" in thumbnail.headers) == (200, False)
        # What needs no reading to be seen is seen.
        large.write_bytes(b"\xff\xd8\xff")
        for place in ("images", "thumbnails"):
            gone = client.head(f"/{place}/{files[0].content_hash}")
            assert (gone.status_code, gone.content) == (404, b"")


def test_thumbnails_are_kept_in_bounded_memory(collection: Collection) -> None:
    with Catalog.open(collection.url) as catalog:
        pictures = [find_picture(catalog, collection.hashes[f"{number}.jpg"]) for number in range(3)]
        thumbnails = Thumbnails(timeout_s=60, cache_bytes=2**20)
        sizes = [len(thumbnails.make(picture)) for picture in pictures]
        thumbnails.close()
        few = Thumbnails(timeout_s=60, cache_bytes=sum(sizes) - 1)
        for picture in [*pictures[:2], pictures[0], pictures[2]]:
            few.make(picture)
        few.close()
    # The one that was used longest ago has gone.
    assert [few.cached(picture.content_hash) is None for picture in pictures] == [False, True, False]


def test_without_a_catalog_there_is_nothing_to_show(connect: Connect) -> None:
    client = connect(shows=False)
    for path in ("/search?q=dog", "/collection", "/images/" + "0" * 64):
        assert error_of(client.get(path)) == (404, "not_found")
    assert client.get("/").json()["collection"] is False
    assert 'href="/search"' not in client.get("/", headers=HTML).text


def test_a_catalog_that_can_not_be_read_is_not_named(connect: Connect, collection: Collection) -> None:
    path = Path(collection.url.removeprefix("sqlite:///"))
    aside = path.with_suffix(".aside")
    client = connect()
    shutil.copy(path, aside)
    with pytest.raises(Problem, match="not_found"), Catalog.open(collection.url) as catalog:
        find_picture(catalog, "0" * 64)
    try:
        path.write_bytes(b"no database" * 1000)
        answer = client.get("/search?q=dog")
    finally:
        shutil.copy(aside, path)
    if answer.status_code != 200:  # it may have been in memory
        status, code = error_of(answer)
        assert status == 503 and code.startswith("catalog")


# --- pages ---


def test_the_front_page_captions(client: TestClient) -> None:
    found = page(client, "/")
    (form,) = found.all("form")
    assert (form["action"], form["method"], form["enctype"]) == ("/captions", "post", "multipart/form-data")
    assert {"type": "file", "name": "file"}.items() <= found.all("input")[0].items()
    assert {"/search", "/collection"} <= {link["href"] for link in found.all("a")}
    for attributes in (*found.all("script"), *found.all("link")):
        answer = client.get(attributes.get("src") or attributes["href"] or "")
        assert answer.status_code == 200
        assert len(answer.content) > 100


def test_the_script_asks_nobody_else() -> None:
    for file in STATIC.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text and "@import" not in text


def test_the_page_of_a_search_is_a_gallery(client: TestClient, collection: Collection) -> None:
    found = page(client, "/search?q=dog")
    images = found.all("img")
    assert sorted(str(image["alt"]) for image in images) == sorted(CAPTIONS[n] for n in (0, 1, 3))
    assert {image["src"] for image in images} == {
        f"/thumbnails/{collection.hashes[name]}" for name in ("0.jpg", "1.jpg", "3.jpg")
    }
    assert len(found.all("mark")) == 3
    # What the catalog says is text.
    assert not found.all("b")
    assert 'a <b>bold</b> cat & a "dog"' in found.text
    assert found.all("input")[0]["value"] == "dog"
    assert not [link for link in found.all("a") if link.get("rel")]


def test_the_gallery_has_pages(client: TestClient) -> None:
    def links(path: str) -> dict[str | None, str | None]:
        return {link["rel"]: link["href"] for link in page(client, path).all("a") if "rel" in link}

    first = links("/search?q=dog&limit=2")
    assert first == {"next": "/search?q=dog&limit=2&offset=2"}
    assert links(str(first["next"])) == {"prev": "/search?q=dog&limit=2&offset=0"}
    assert "No caption has these words" in page(client, "/search?q=zebra").text
    assert "Nothing more" in page(client, "/search?q=dog&offset=100").text
    assert page(client, "/search").all("input")[0]["value"] == ""


def test_filters_stay_in_the_address(client: TestClient, collection: Collection) -> None:
    query = f"model=small&min_confidence=0.4&under={collection.folder}&width=10&format=jpeg"
    found = page(client, f"/search?q=&since=2000-01-01&{query}&limit=2&offset=2")
    wanted = {
        "since": ["2000-01-01"],
        "model": ["small"],
        "min_confidence": ["0.4"],
        "under": [str(collection.folder)],
        "width": ["10"],
        "format": ["jpeg"],
        "limit": ["2"],
    }
    links = {link["rel"]: str(link["href"]) for link in found.all("a") if "rel" in link}
    assert {rel: parse_qs(urlsplit(href).query) for rel, href in links.items()} == {
        "prev": wanted | {"offset": ["0"]},
        "next": wanted | {"offset": ["4"]},
    }
    values = {str(field.get("name")): field.get("value") for field in found.all("input")}
    assert values == {name: of[0] for name, of in wanted.items() if name not in ("model", "limit")} | {
        "q": ""
    }
    assert [option for option in found.all("option") if "selected" in option]
    assert "width ≥ 10" in found.text
    assert "/search" in {link["href"] for link in found.all("a")}
    # To a picture and back, and on from what it is told to write.
    (first, *_) = [str(link["href"]) for link in found.all("a") if str(link["href"]).startswith("/pictures/")]
    shown = page(client, first)
    back = next(str(link["href"]) for link in shown.all("a") if str(link["href"]).startswith("/search?"))
    assert parse_qs(urlsplit(back).query) == wanted | {"offset": ["2"]}
    (form,) = shown.all("form")
    assert urlsplit(str(form["action"])).query == urlsplit(back).query
    assert "No picture is like that" in page(client, "/search?width=5000").text
    assert "<img" not in client.get("/search?model=%3Cimg%3E&format=%22%3E%3Cimg%3E", headers=HTML).text


def test_the_page_of_a_picture(client: TestClient, collection: Collection) -> None:
    content_hash = collection.hashes["3.jpg"]
    found = page(client, f"/pictures/{content_hash}?q=cat%20%26&offset=24")
    (image,) = found.all("img")
    assert (image["src"], image["alt"]) == (f"/images/{content_hash}", CAPTIONS[3])
    assert "/search?q=cat%20%26&offset=24" in {link["href"] for link in found.all("a")}
    for text in (
        CAPTIONS[3],
        "50%",
        "small",
        "ffffffffffff",
        "80 × 60, jpeg",
        str(collection.folder / "3.jpg"),
    ):
        assert text in found.text
    (image,) = page(client, f"/pictures/{collection.hashes['scan.tiff']}").all("img")
    assert image["src"] == f"/thumbnails/{collection.hashes['scan.tiff']}"


def test_the_page_of_the_collection(client: TestClient) -> None:
    found = page(client, "/collection")
    for text in ("8 images", "1 quarantined", "truncated", "it is cut", "small", "8 captioned"):
        assert text in " ".join(found.text.split())
    assert len(found.all("rect")) == 30
    counts = client.get("/collection").json()
    assert (counts["images"], counts["quarantine"]) == (8, {"truncated": 1})


def test_a_browser_is_told_of_errors_on_a_page(client: TestClient) -> None:
    for path, status, text in (
        ("/no/such/path", 404, "there is nothing here"),
        (f"/pictures/{'0' * 64}", 404, "no picture with this hash"),
        ("/search?offset=-1", 400, "offset: "),
    ):
        answer = client.get(path, headers=HTML)
        assert answer.status_code == status
        found = Page(answer.text)
        assert text in found.text
        assert {"/", "/search"} <= {link["href"] for link in found.all("a")}


def test_the_description_of_the_server(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert {"/caption", "/captions", "/search", "/images/{content_hash}", "/healthz"} <= described[
        "paths"
    ].keys()
    assert described["components"]["schemas"]["CaptionAnswer"]["examples"]
    status = client.get("/").json()
    assert status["health_check"] == "OK"
    assert status["model"]["name"] == "costless"
    assert hashlib.sha256(client.get("/static/page.js").content).digest()
