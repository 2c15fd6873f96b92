"""A real catalog for each test, in each database, and short ways to say what is put into it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from batchcap.catalog import Captioned, Catalog, Failure, ModelInfo
from batchcap.collection import FileEntry
from batchcap.errors import Reason


@pytest.fixture(scope="session")
def empty_catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new catalog, made once; tests copy it, for migrating takes longer than most of them."""
    path = tmp_path_factory.mktemp("empty") / "catalog.db"
    Catalog.open(f"sqlite:///{path}", mode="write").close()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty catalog. Where a test is about a file: `parametrize("url", ["sqlite"], indirect=True)`."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres_url")
    return f"sqlite:///{shutil.copy(request.getfixturevalue('empty_catalog'), tmp_path / 'catalog.db')}"


@pytest.fixture
def path(url: str) -> Path:
    """The file of a catalog in SQLite."""
    return Path(url.removeprefix("sqlite:///"))


@pytest.fixture
def other_program(url: str) -> Callable[..., None]:
    """Runs SQL statements as another program would that knows nothing of batchcap."""

    def run(*statements: str) -> None:
        engine = create_engine(url)
        with engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        engine.dispose()

    return run


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    with Catalog.open(url, mode="write") as opened:
        yield opened


@pytest.fixture(scope="session")
def model() -> ModelInfo:
    return ModelInfo("f" * 64, "small", {"embed_dim": 8})


@pytest.fixture(scope="session")
def other_model() -> ModelInfo:
    return ModelInfo("0" * 64, "large", {"embed_dim": 16})


@pytest.fixture(scope="session")
def entry() -> Callable[..., FileEntry]:
    """Makes a file as a scan finds it."""

    def make(uri: str, size_bytes: int = 100, mtime_ns: int = 1, etag: str | None = None) -> FileEntry:
        return FileEntry(uri, size_bytes, mtime_ns, etag)

    return make


@pytest.fixture(scope="session")
def captioned() -> Callable[..., Captioned]:
    """Makes a file that got a caption; its content is named after the uri."""

    def make(
        uri: str,
        text: str = "a dog on a beach",
        *,
        content: str | None = None,
        size_bytes: int = 100,
        mtime_ns: int = 1,
        etag: str | None = None,
        confidence: float | None = 0.5,
    ) -> Captioned:
        content = f"hash of {uri}" if content is None else content
        return Captioned(
            uri, size_bytes, mtime_ns, etag, content, 640, 480, "JPEG", None, text, -3.5, confidence, 6
        )

    return make


@pytest.fixture(scope="session")
def failure() -> Callable[..., Failure]:
    """Makes a file that could not be captioned."""

    def make(
        uri: str,
        reason: Reason = Reason.UNREADABLE,
        *,
        size_bytes: int = 100,
        mtime_ns: int = 1,
        etag: str | None = None,
        detail: str = "not an image",
    ) -> Failure:
        return Failure(uri, size_bytes, mtime_ns, etag, reason, detail)

    return make
