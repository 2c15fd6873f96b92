"""A small collection, and an application that serves it, in this process."""

import hashlib
import shutil
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from batchcap.catalog import Captioned, Catalog, Failure, ModelInfo
from batchcap.errors import Reason
from batchcap.serving.app import create_app
from batchcap.serving.options import ServingOptions
from batchcap.serving.pictures import name_of
from batchcap.serving.server import make_server
from tests.conftest import make_photo, noise_photo
from tests.costless import Costless, CostlessCaptioner

TOKEN = "correct-horse-battery-staple"
CAPTIONS = (
    "a dog runs on the beach",
    "two dogs play with a ball",
    "a cat sleeps on a sofa",
    'a <b>bold</b> cat & a "dog"',
    "people on a beach",
)

Connect = Callable[..., TestClient]


@dataclass(frozen=True)
class Collection:
    """What was indexed.

    Args:
        folder: of the pictures.
        url: of the catalog.
        hashes: by the name of a file.
    """

    folder: Path
    url: str
    hashes: dict[str, str] = field(default_factory=dict)


def captioned(path: Path, text: str, image_format: str) -> Captioned:
    """A file as a run commits it."""
    data = path.read_bytes()
    return Captioned(
        uri=str(path),
        size_bytes=len(data),
        mtime_ns=1,
        etag=None,
        content_hash=hashlib.sha256(data).hexdigest(),
        width=80,
        height=60,
        format=image_format,
        taken_at=None,
        text=text,
        log_prob=-3.0,
        confidence=0.5,
        token_count=6,
    )


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """Pictures with captions, one that browsers don't show, a file that is no picture, and a bad one."""
    folder = tmp_path_factory.mktemp("collection")
    files = [
        captioned(make_photo(folder / f"{number}.jpg", number), text, "jpeg")
        for number, text in enumerate(CAPTIONS)
    ]
    noise_photo(50, (80, 60)).save(folder / "scan.tiff")
    files.append(captioned(folder / "scan.tiff", "a scan of a letter", "tiff"))
    make_photo(folder / "member.jpg", 60)
    member = captioned(folder / "member.jpg", "a member of an archive", "jpeg")
    with tarfile.open(folder / "shard.tar", "w") as archive:
        archive.add(folder / "member.jpg", "sub/member.jpg")
    (folder / "member.jpg").unlink()
    files.append(replace(member, uri=f"tar://{folder}/shard.tar#sub/member.jpg"))
    # As if a run had taken it for one.
    (folder / "page.html").write_text("<script>alert(1)</script>" * 10)
    files.append(captioned(folder / "page.html", "a page of a book", "png"))
    url = f"sqlite:///{tmp_path_factory.mktemp('catalog') / 'catalog.db'}"
    with (
        Catalog.open(url, mode="write") as catalog,
        catalog.run([str(folder)], ModelInfo("f" * 64, "small"), {}) as run,
    ):
        run.commit(files, [Failure(str(folder / "bad.jpg"), 9, 1, None, Reason.TRUNCATED, "it is cut")])
    return Collection(folder, url, {name_of(file.uri): file.content_hash for file in files})


@pytest.fixture
def own_collection(collection: Collection, tmp_path: Path) -> Collection:
    """The same pictures in a catalog that the test may change."""
    path = shutil.copy(collection.url.removeprefix("sqlite:///"), tmp_path / "catalog.db")
    return replace(collection, url=f"sqlite:///{path}")


@contextmanager
def connections(url: str) -> Iterator[Connect]:
    """Makes clients of applications that serve a catalog; see `connect`."""
    clients: list[TestClient] = []
    with Catalog.open(url) as catalog:

        def make(captioner: Any = None, *, shows: bool = True, **options: Any) -> TestClient:
            options = {"decoders": 1} | options
            app = create_app(
                captioner or CostlessCaptioner(Costless()),
                catalog if shows else None,
                name="costless",
                num_beams=3,
                options=ServingOptions(**options),
            )
            client = TestClient(
                app, base_url="http://127.0.0.1:8012", follow_redirects=False, raise_server_exceptions=False
            )
            clients.append(client.__enter__())
            return client

        yield make
        for client in clients:
            client.__exit__(None, None, None)


@pytest.fixture(scope="module")
def connect(collection: Collection) -> Iterator[Connect]:
    """Makes a client of an application with other options, another captioner, or without the collection."""
    with connections(collection.url) as make:
        yield make


@pytest.fixture(scope="module")
def client(connect: Connect) -> TestClient:
    """An application with all options at their defaults."""
    return connect()


@pytest.fixture(scope="module")
def url(collection: Collection) -> Iterator[str]:
    """Where the application is served, by a thread of this process."""
    with served(collection) as address:
        yield address


@contextmanager
def served(collection: Collection, **options: Any) -> Iterator[str]:
    """Serves a collection by a thread of this process; see `url`."""
    with Catalog.open(collection.url) as catalog:
        told = ServingOptions(decoders=1, **options)
        server = make_server(
            create_app(CostlessCaptioner(Costless()), catalog, name="costless", options=told), told
        )
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            # The socket listens already; connections wait until the server takes them.
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                server.should_exit = True
                thread.join()


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a picture that is in no catalog."""
    return make_photo(tmp_path_factory.mktemp("photo") / "example.jpg", 99).read_bytes()


def error_of(response: Any) -> tuple[int, str]:
    """Status and code of an error, which must have the one form."""
    error = response.json()["error"]
    assert response.headers["content-type"] == "application/json"
    assert error["message"] and "\n" not in error["message"]
    assert "Traceback" not in response.text and "/work" not in response.text and "/tmp" not in response.text
    return response.status_code, error["code"]
