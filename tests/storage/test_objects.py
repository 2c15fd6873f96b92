"""Object stores: pyarrow's client against a server on loopback."""

import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from batchcap.captioner.images import ImageSpec
from batchcap.collection import ListFile, resolve_sources, scan, whole_folders
from batchcap.decoder_child import load_file
from batchcap.errors import Reason, SourceError, SourceNotFoundError
from batchcap.globs import Selection
from batchcap.storage import content_hash, is_gone, look, objects, read_bytes
from batchcap.storage.named import NamedFile
from tests.servers import GcsHandler, Server, running

KEYS = ["a/x.jpg", "a-b/x.jpg", "a.jpg", "a/b/y.png", "a0.jpg", "\u00e9 100%25 #?&+.jpg", "h/i.jpg", "z.jpg"]


@pytest.fixture
def store(object_store: Server) -> Iterator[Server]:
    object_store.files = {f"/photos/{key}": key.encode() for key in KEYS}
    yield object_store
    object_store.files, object_store.failing = {}, {}
    object_store.requests.clear()


def listed(source: str, selection: Selection | None = None) -> tuple[list[str], dict[str, int]]:
    skipped: Counter[str] = Counter()
    entries = list(scan(resolve_sources([source]), skipped=skipped, selection=selection))
    for entry in entries:
        assert look(entry.uri) == entry
        assert not is_gone(entry.uri)
        assert read_bytes(entry.uri, 100) == entry.uri.removeprefix("s3://photos/").encode()
    return [entry.uri for entry in entries], dict(skipped)


def test_a_bucket_is_listed_in_the_order_of_its_keys(store: Server) -> None:
    uris, skipped = listed("s3://photos")
    assert uris == [f"s3://photos/{key}" for key in sorted(KEYS)]
    assert skipped == {}
    assert listed("S3://photos/a/") == (["s3://photos/a/b/y.png", "s3://photos/a/x.jpg"], {})
    assert listed("s3://photos/a.jpg") == (["s3://photos/a.jpg"], {})
    assert whole_folders(resolve_sources(["s3://photos/a", "s3://photos/a/b", "s3://photos/a.jpg"])) == [
        "s3://photos/a/"
    ]
    assert is_gone("s3://photos/no.jpg")
    assert is_gone("s3://photos/a")
    # An object may have the name of a prefix.
    store.files["/photos/a"] = b""
    assert resolve_sources(["s3://photos/a/"]) == [objects.Prefix("s3://photos/a")]
    assert resolve_sources(["s3://photos/a"]) == [NamedFile("s3://photos/a")]


def test_google_cloud_storage(store: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(GcsHandler) as gcs:
        monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", gcs.url)
        monkeypatch.setenv("GS_NO_SIGN_REQUEST", "1")
        objects._file_system.cache_clear()
        gcs.files = store.files | {
            "/photos/.cache/x.jpg": b"",
            "/photos/a/raw/x.jpg": b"",
            "/photos/n.txt": b"",
        }
        skipped: Counter[str] = Counter()
        selection = Selection.of([], ["raw"])
        list(scan(resolve_sources(["gs://photos/"]), skipped=skipped, selection=selection))
        assert skipped == {"hidden": 1, "excluded": 1, "not_an_image": 1}
        gcs.files = store.files
        found = list(scan(resolve_sources(["gs://photos", "s3://photos/a"]), skipped=Counter()))
        assert [entry.uri for entry in found] == [
            *(f"gs://photos/{key}" for key in sorted(KEYS)),
            "s3://photos/a/b/y.png",
            "s3://photos/a/x.jpg",
        ]
        for entry in found:
            assert look(entry.uri) == entry
            assert read_bytes(entry.uri, 100) == entry.uri.partition("://photos/")[2].encode()
        assert is_gone("gs://photos/no.jpg")
        gcs.failing = {"/photos/a.jpg": [-1, 403]}
        assert not is_gone("gs://photos/a.jpg")
        assert load_file("gs://photos/a.jpg", ImageSpec(32)).reason is Reason.IO_ERROR
        for source, message in [
            ("gs://photos/no", "gs://photos/no does not exist"),
            ("gs://nobucket", "there is no bucket nobucket"),
            ("gs://photos/a.jpg", "access denied; give credentials"),
        ]:
            with pytest.raises((SourceNotFoundError, SourceError), match=message) as caught:
                resolve_sources([source])
            assert str(caught.value).isprintable()
    objects._file_system.cache_clear()


def test_more_folders_than_are_listed_at_a_time(store: Server) -> None:
    keys = [f"{n}/{m}/{k}.jpg" for n in range(12) for m in range(2) for k in range(3)]
    store.files = {f"/photos/{key}": key.encode() for key in keys}
    found = [entry.uri for entry in scan(resolve_sources(["s3://photos"]), skipped=Counter())]
    assert found == [f"s3://photos/{key}" for key in sorted(keys)]


def test_who_stops_early_leaves_no_thread(store: Server) -> None:
    store.files = {f"/photos/{n}/{n}.jpg": b"" for n in range(20)}
    entries = scan(resolve_sources(["s3://photos"]), skipped=Counter())
    next(entries)
    entries.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name.startswith("list-objects"):
            thread.join(30)
            assert not thread.is_alive()


def test_what_is_skipped(store: Server) -> None:
    names = [
        "notes.txt",
        ".hidden.jpg",
        ".cache/a.jpg",
        "._a.jpg",
        "thumbs.db",
        "raw/a.jpg",
        "a//b.jpg",
        "no.png",
    ]
    store.files |= {f"/photos/x/{name}": b"" for name in names}
    store.files |= {"/photos/x/y.jpg": b"x/y.jpg", "/photos/x/marker.jpg/": b""}
    uris, skipped = listed("s3://photos/x", Selection.of(["*.jpg"], ["raw"]))
    assert uris == ["s3://photos/x/y.jpg"]
    assert skipped == {
        "not_an_image": 1,
        "hidden": 2,
        "appledouble": 1,
        "system": 1,
        "excluded": 2,
        # pyarrow can't name it.
        "unreadable_folder": 1,
    }
    loaded = load_file("s3://photos/x/a//b.jpg", ImageSpec(32))
    assert loaded.reason is Reason.IO_ERROR
    assert "between two slashes" in loaded.detail


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("s3://photos/no", "s3://photos/no does not exist"),
        ("s3://photos/*.jpg", "does not exist; a wildcard is not understood here, --include is"),
        ("s3://nobucket", "there is no bucket nobucket"),
        ("s3://nobucket/a.jpg", "does not exist"),
        ("s3://", "names no bucket"),
        ("gs:///", "names no bucket"),
    ],
)
def test_what_does_not_exist(store: Server, source: str, message: str) -> None:
    with pytest.raises(SourceNotFoundError, match=message.replace("*", r"\*")) as caught:
        resolve_sources([source])
    assert str(caught.value).isprintable()


def test_credentials_that_do_not_do(store: Server) -> None:
    store.failing = {"/photos": [-1, 403], "/photos/": [-1, 403], "/photos/a.jpg": [-1, 403]}
    for source in ("s3://photos", "s3://photos/a.jpg"):
        with pytest.raises(
            SourceError, match=r"access denied; give credentials .AWS_ACCESS_KEY_ID"
        ) as caught:
            resolve_sources([source])
        assert str(caught.value).isprintable()
    # It says nothing of whether the object is there.
    assert not is_gone("s3://photos/a.jpg")


def test_a_store_that_can_not_be_reached(store: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(
        SourceError, match="can't be reached; is the network there, and AWS_ENDPOINT_URL right"
    ):
        resolve_sources(["s3://away/photos"])
    loaded = load_file("s3://away/a.jpg", ImageSpec(32))
    assert loaded.reason is Reason.IO_ERROR
    assert loaded.detail.isprintable()
    assert not is_gone("s3://away/a.jpg")
    objects._file_system.cache_clear()


@pytest.mark.parametrize("endpoint", ["http://[", "ftp://127.0.0.1:1"])
def test_an_endpoint_that_makes_no_sense(
    store: Server, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(SourceError, match="AWS_ENDPOINT_URL") as caught:
        resolve_sources(["s3://senseless/photos"])
    assert str(caught.value).isprintable()
    objects._file_system.cache_clear()


def test_what_fails_for_a_moment_is_asked_again(store: Server) -> None:
    store.failing = {"/photos/": [1, 503], "/photos": [1, 503], "/photos/a.jpg": [1, 503]}
    assert len(listed("s3://photos")[0]) == len(KEYS)
    assert all(left == 0 for path, (left, _) in store.failing.items() if path.endswith(".jpg"))
    store.failing = {"/photos/a.jpg": [-1, 503]}
    assert load_file("s3://photos/a.jpg", ImageSpec(32)).reason is Reason.IO_ERROR
    assert store.requests["HEAD", "/photos/a.jpg"] < 20


def test_a_large_object_is_not_read_to_its_end(store: Server) -> None:
    store.files["/photos/large.jpg"] = b"x" * 10_000
    assert len(read_bytes("s3://photos/large.jpg", 99)) == 100
    assert content_hash("s3://photos/large.jpg", 99) is None
    assert content_hash("s3://photos/no.jpg", 99) is None
    spec = ImageSpec(32, max_bytes=99)
    assert load_file("s3://photos/large.jpg", spec).reason is Reason.TOO_LARGE


def test_a_list_of_objects(store: Server, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "list.txt").write_text(
        "s3://photos/z.jpg\ns3://photos/a.jpg\ns3://photos/no.jpg\nS3://photos/z.jpg"
    )
    skipped: Counter[str] = Counter()
    sources = resolve_sources([ListFile(str(tmp_path / "list.txt")), "s3://photos/a"])
    assert [entry.uri for entry in scan(sources, skipped=skipped)] == [
        "s3://photos/a.jpg",
        "s3://photos/a/b/y.png",
        "s3://photos/a/x.jpg",
        "s3://photos/z.jpg",
    ]
    assert skipped == {"missing": 1, "duplicate": 1}
