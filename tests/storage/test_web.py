"""Files on web servers, and files that are read ahead; real servers on loopback."""

import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchcap.captioner.images import ImageSpec
from batchcap.collection import ListFile, resolve_sources, scan
from batchcap.decoder_child import load_file
from batchcap.errors import Reason, SourceError, SourceNotFoundError
from batchcap.loading import ImageLoader
from batchcap.storage import ahead, is_gone, look, read_bytes
from batchcap.storage.entries import FileEntry, SkipReason
from tests.conftest import make_photo
from tests.servers import Server, WebHandler, running

LIMIT = 10**6


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("batchcap.storage.web._RETRY_DELAYS_S", (0.001, 0.001))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running(WebHandler) as server:
        server.files = {"/a.jpg": b"picture", "/b \u00e9.jpg": b"b"}
        yield server


def test_a_file_has_size_time_and_etag(web: Server) -> None:
    entry = look(f"{web.url}/a.jpg")
    assert isinstance(entry, FileEntry)
    assert (entry.size_bytes, entry.mtime_ns) == (7, 1_600_000_000 * 10**9)
    assert entry.etag
    assert web.requests == {("HEAD", "/a.jpg"): 1}
    assert read_bytes(entry.uri, LIMIT) == b"picture"
    assert read_bytes(entry.uri, 3) == b"pict"
    (found,) = scan(resolve_sources([entry.uri]), skipped=Counter())
    assert found == entry
    # People write letters and spaces; browsers write escapes.
    assert (
        read_bytes(f"{web.url}/b \u00e9.jpg", LIMIT) == read_bytes(f"{web.url}/b%20%C3%A9.jpg", LIMIT) == b"b"
    )


def test_redirects_are_followed_to_the_web_only_and_not_for_ever(web: Server) -> None:
    assert read_bytes(f"{web.url}/to/a.jpg", LIMIT) == b"picture"
    assert look(f"{web.url}/to/a.jpg").size_bytes == 7  # type: ignore[union-attr]
    for path in ("loop", "elsewhere"):
        with pytest.raises(OSError, match="the server says 302"):
            read_bytes(f"{web.url}/{path}", LIMIT)


def test_a_server_that_does_not_know_head(web: Server) -> None:
    web.files["/nohead/a.jpg"] = b"picture"
    assert look(f"{web.url}/nohead/a.jpg").size_bytes == 7  # type: ignore[union-attr]


def test_without_etag_and_time_a_file_counts_as_changed(web: Server) -> None:
    web.files["/bare/a.jpg"] = b"picture"
    first, second = look(f"{web.url}/bare/a.jpg"), look(f"{web.url}/bare/a.jpg")
    assert isinstance(first, FileEntry) and isinstance(second, FileEntry)
    assert (first.size_bytes, first.etag) == (0, None)
    assert first.mtime_ns < second.mtime_ns
    assert read_bytes(first.uri, LIMIT) == b"picture"


def test_what_is_not_there_is_told_from_what_can_not_be_told(web: Server) -> None:
    web.failing = {"/gone.jpg": [-1, 410], "/secret.jpg": [-1, 403], "/broken.jpg": [-1, 500]}
    gone = {name: is_gone(f"{web.url}/{name}.jpg") for name in ("a", "no", "gone", "secret", "broken")}
    assert gone == {"a": False, "no": True, "gone": True, "secret": False, "broken": False}
    assert look(f"{web.url}/no.jpg") is SkipReason.MISSING
    assert look(f"{web.url}/secret.jpg") == FileEntry(f"{web.url}/secret.jpg", 0, 0)
    assert is_gone("http:///a.jpg") and is_gone("http://[/a.jpg") and is_gone("https://host:port/a.jpg")
    assert is_gone(web.url.replace("//", "//me:secret@") + "/a.jpg")
    with pytest.raises(SourceNotFoundError, match=r"no.jpg does not exist"):
        resolve_sources([f"{web.url}/no.jpg"])
    with pytest.raises(SourceError, match=r"secret.jpg can't be read: the server says 403 Forbidden"):
        resolve_sources([f"{web.url}/secret.jpg"])
    with pytest.raises(SourceError, match=r"can't be read: the server can't be reached"):
        resolve_sources(["http://127.0.0.1:1/a.jpg"])


def test_what_fails_for_a_moment_is_asked_again(web: Server) -> None:
    web.failing = {"/a.jpg": [2, 503]}
    assert read_bytes(f"{web.url}/a.jpg", LIMIT) == b"picture"
    web.failing = {"/a.jpg": [-1, 503]}
    web.requests.clear()
    loaded = load_file(f"{web.url}/a.jpg", ImageSpec(32))
    assert (loaded.reason, loaded.detail) == (Reason.IO_ERROR, "the server says 503 Service Unavailable")
    assert web.requests["GET", "/a.jpg"] == 3


def test_a_connection_that_is_cut_is_no_short_file(web: Server) -> None:
    web.files["/cut/a.jpg"] = b"x" * 1000
    with pytest.raises(OSError, match="closed before the end"):
        read_bytes(f"{web.url}/cut/a.jpg", LIMIT)
    assert web.requests["GET", "/cut/a.jpg"] == 3


def test_a_server_that_sends_for_ever(web: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchcap.storage.web._READ_S", -1.0)
    with pytest.raises(OSError, match="the server took more than"):
        read_bytes(f"{web.url}/a.jpg", LIMIT)


def test_a_list_of_urls(web: Server, tmp_path: Path) -> None:
    make_photo(tmp_path / "local.png", 1)
    web.failing = {"/broken.jpg": [-1, 500]}
    rows = [f"{web.url}/{name}" for name in ("a.jpg", "no.jpg", "broken.jpg", "a.jpg")]
    (tmp_path / "list.csv").write_text("\n".join(["url", *rows, "local.png"]))
    skipped: Counter[str] = Counter()
    found = list(scan(resolve_sources([ListFile(str(tmp_path / "list.csv"))]), skipped=skipped))
    assert [entry.uri for entry in found] == [str(tmp_path / "local.png"), rows[0], rows[2]]
    assert skipped == {"missing": 1, "duplicate": 1}
    # Whoever reads it says what is wrong.
    assert found[2] == FileEntry(rows[2], 0, 0)


def test_a_server_that_does_not_exist_has_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of long lists of URLs many servers are gone; a resolver that can't be reached says something else."""
    monkeypatch.setattr("batchcap.storage.web._RETRY_DELAYS_S", ())

    def resolve(*arguments: object) -> None:
        raise socket.gaierror(codes.pop(), "no")

    codes = [socket.EAI_AGAIN, socket.EAI_NONAME]
    monkeypatch.setattr("socket.getaddrinfo", resolve)
    assert is_gone("http://nobody.invalid/a.jpg")
    assert not is_gone("http://nobody.invalid/a.jpg")


def test_a_list_whose_server_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than to wait for each of its files in vain."""
    monkeypatch.setattr("batchcap.storage.web._RETRY_DELAYS_S", ())
    monkeypatch.setattr("batchcap.storage.lists._MOST_UNTOLD", 20)
    (tmp_path / "list.txt").write_text("\n".join(f"http://127.0.0.1:1/{n}.jpg" for n in range(1000)))
    found = []
    with pytest.raises(SourceError, match="20 files in a row can't be looked at") as caught:
        for entry in scan(resolve_sources([ListFile(str(tmp_path / "list.txt"))]), skipped=Counter()):
            found.append(entry)
    assert len(found) == 19
    assert str(caught.value).isprintable()


def test_files_are_read_ahead_and_given_in_order(
    web: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchcap.storage.ahead._MAX_BYTES", 100)
    local = tmp_path / "local"
    local.write_bytes(b"local")
    web.files = {f"/{n}.jpg": b"%d" % n for n in range(30)} | {"/large.jpg": b"x" * 300}
    names = [*range(10), "no", "large", *range(10, 30)]
    locations: list[str | bytes] = [f"{web.url}/{name}.jpg" for name in names]
    locations.insert(3, str(local))
    reader = ahead.Reader()
    reader.begin(locations, 200)
    for location in locations:
        try:
            data = reader.read_bytes(location, 200)
        except FileNotFoundError:
            data = b"none"
        name = Path(str(location)).stem
        assert data == {"no": b"none", "large": b"x" * 201, "local": b"local"}.get(name, name.encode())
    # What was asked for and not fetched does not come back under another name.
    reader.begin(locations[:5], 200)
    reader.begin(locations[5:7], 200)
    assert reader.read_bytes(locations[5], 200) == b"4"
    assert reader.read_bytes(locations[0], 200) == b"0"
    assert web.requests["GET", "/9.jpg"] == 1


def test_the_loader_reads_what_is_elsewhere(web: Server, tmp_path: Path) -> None:
    picture = make_photo(tmp_path / "a.png", 1)
    web.files = {f"/{n}.png": picture.read_bytes() for n in range(3)} | {"/bad.png": b"no picture"}
    with ImageLoader(ImageSpec(32)) as loader:
        wanted = [f"{web.url}/{name}.png" for name in ("0", "bad", "1", "no", "2")]
        loaded = loader.load([*wanted, str(picture)])
    assert [one.reason for one in loaded] == [None, "unsupported", None, "io_error", None, None]
    assert len({one.content_hash for one in loaded}) == 3
