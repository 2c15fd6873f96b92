"""Azure Blob Storage: pyarrow's client against Azurite, Microsoft's emulator."""

import base64
from collections import Counter
from pathlib import Path

import pyarrow.fs as fs
import pytest

from batchcap.captioner.images import ImageSpec
from batchcap.catalog import Catalog
from batchcap.collection import ListFile, resolve_sources, scan, whole_folders
from batchcap.decoder_child import load_file
from batchcap.errors import Reason, SourceError, SourceNotFoundError, UsageError
from batchcap.globs import Selection
from batchcap.pipeline import RunReport, index_collection
from batchcap.storage import azure, content_hash, is_gone, look, objects, read_bytes
from batchcap.storage.named import NamedFile
from batchcap.thumbnails import thumbnails
from batchcap.verify import verify_store
from tests import azurite
from tests.conftest import make_photo
from tests.costless import Costless

KEYS = ["a/x.jpg", "a-b/x.jpg", "a.jpg", "a/b/y.png", "a0.jpg", "\u00e9 100%25 #?&+.jpg", "h/i.jpg", "z.jpg"]
VARIABLES = (
    *("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"),
    "AZURE_STORAGE_CONNECTION_STRING",
)


@pytest.fixture
def store(azure_store: azurite.Server) -> azurite.Server:
    for key in KEYS:
        azure_store.put(f"photos/{key}", key.encode())
    return azure_store


@pytest.fixture
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    objects._file_system.cache_clear()


def listed(source: str, selection: Selection | None = None) -> tuple[list[str], dict[str, int]]:
    skipped: Counter[str] = Counter()
    entries = list(scan(resolve_sources([source]), skipped=skipped, selection=selection))
    for entry in entries:
        assert look(entry.uri) == entry
        assert entry.mtime_ns > 0
        assert not is_gone(entry.uri)
        assert read_bytes(entry.uri, 100) == entry.uri.removeprefix("az://photos/").encode()
    return [entry.uri for entry in entries], dict(skipped)


def refused(source: str, kind: type[Exception] = SourceError) -> str:
    objects._file_system.cache_clear()
    with pytest.raises(kind) as caught:
        resolve_sources([source])
    message = str(caught.value)
    assert message.isprintable()
    assert "sig=" not in message
    return message


def test_a_container_is_listed_in_the_order_of_its_keys(store: azurite.Server) -> None:
    assert listed("az://photos") == ([f"az://photos/{key}" for key in sorted(KEYS)], {})
    # Asked about `a`, pyarrow looks at what sorts first of all that begins so, here `a-b/`.
    assert listed("AZ://photos/a") == (["az://photos/a/b/y.png", "az://photos/a/x.jpg"], {})
    assert listed("az://photos/a/") == (["az://photos/a/b/y.png", "az://photos/a/x.jpg"], {})
    assert listed("az://photos/a.jpg") == (["az://photos/a.jpg"], {})
    assert whole_folders(resolve_sources(["az://photos/a", "az://photos/a/b", "az://photos/a.jpg"])) == [
        "az://photos/a/"
    ]
    assert is_gone("az://photos/no.jpg")
    assert is_gone("az://photos/a")
    # An object may have the name of a prefix.
    store.put_odd("photos/a")
    assert resolve_sources(["az://photos/a/"]) == [objects.Prefix("az://photos/a")]
    assert resolve_sources(["az://photos/a"]) == [NamedFile("az://photos/a")]
    store.make_container("empty")
    assert listed("az://empty") == ([], {})


def test_what_is_skipped(store: azurite.Server) -> None:
    for name in (
        *("notes.txt", ".hidden.jpg", ".cache/a.jpg", "._a.jpg", "thumbs.db", "raw/a.jpg", "no.png"),
        *("a//b.jpg", "marker.jpg/"),
    ):
        store.put_odd(f"photos/x/{name}")
    store.put("photos/x/y.jpg", b"x/y.jpg")
    # An object of its own, where somebody has made a folder.
    store.file_system.create_dir("photos/x/made.jpg")
    uris, skipped = listed("az://photos/x", Selection.of(["*.jpg"], ["raw"]))
    assert uris == ["az://photos/x/y.jpg"]
    assert skipped == {
        "not_an_image": 1,
        "hidden": 2,
        "appledouble": 1,
        "system": 1,
        "excluded": 2,
        # pyarrow can't name it.
        "unreadable_folder": 1,
    }
    store.put_odd("photos//lead.jpg")
    found: Counter[str] = Counter()
    list(scan(resolve_sources(["az://photos"]), skipped=found))
    assert found["unreadable_folder"] == 2
    loaded = load_file("az://photos/x/a//b.jpg", ImageSpec(32))
    assert loaded.reason is Reason.IO_ERROR
    assert "between two slashes" in loaded.detail


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("az://photos/no", "az://photos/no does not exist"),
        (
            "az://photos/*.jpg",
            "az://photos/*.jpg does not exist; a wildcard is not understood here, --include is",
        ),
        ("az://nocontainer", "az://nocontainer: there is no container nocontainer"),
        ("az://nocontainer/a.jpg", "az://nocontainer/a.jpg does not exist"),
        ("az://", "az:// names no container"),
    ],
)
def test_what_does_not_exist(azure_store: azurite.Server, source: str, message: str) -> None:
    assert refused(source, SourceNotFoundError) == message


def test_archives_are_refused() -> None:
    with pytest.raises(UsageError, match="archives can be read on local disks only"):
        resolve_sources(["az://photos/0.tar"])


def test_credentials_that_do_not_do(store: azurite.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    key = base64.b64encode(b"of somebody else").decode()
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", store.connection_string(key))
    for source in ("az://photos", "az://photos/a", "az://photos/a.jpg"):
        message = refused(source)
        assert message.startswith(f"{source}: access denied; give credentials (AZURE_STORAGE_KEY")
    # It says nothing of whether the object is there.
    assert not is_gone("az://photos/a.jpg")
    loaded = load_file("az://photos/a.jpg", ImageSpec(32))
    assert (loaded.reason, loaded.detail.isprintable()) == (Reason.IO_ERROR, True)
    with pytest.raises(SourceError, match="access denied"):
        list(scan([objects.Prefix("az://photos")], skipped=Counter()))
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", store.connection_string("no base64!"))
    assert refused("az://photos").endswith("AZURE_STORAGE_KEY, or AccountKey, is no key: it is not base64")
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING",
        store.connection_string().replace(azurite.ACCOUNT, "somebodyelse"),
    )
    assert refused("az://photos/a.jpg").startswith("az://photos/a.jpg can't be read: ")
    assert not is_gone("az://photos/a.jpg")


@pytest.mark.usefixtures("nothing_set")
def test_a_token_for_one_container(azure_store: azurite.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    azure_store.put("photos/a/x.jpg", b"a/x.jpg")
    azure_store.make_container("others")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"BlobEndpoint={azure_store.endpoint}")
    for token in (azure_store.token("photos", "rl"), "?" + azure_store.token("photos", "rl")):
        monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", token)
        objects._file_system.cache_clear()
        # Its owner may list the container, but not ask about it.
        assert listed("az://photos") == (["az://photos/a/x.jpg"], {})
        assert listed("az://photos/a") == (["az://photos/a/x.jpg"], {})
    assert "access denied" in refused("az://others")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", azure_store.token("photos", "l"))
    assert listed_only("az://photos") == ["az://photos/a/x.jpg"]
    loaded = load_file("az://photos/a/x.jpg", ImageSpec(32))
    assert loaded.reason is Reason.IO_ERROR
    # The token stands in the URLs that pyarrow tells of.
    assert "403" in loaded.detail and "sig=" not in loaded.detail


def listed_only(source: str) -> list[str]:
    objects._file_system.cache_clear()
    return [entry.uri for entry in scan(resolve_sources([source]), skipped=Counter())]


def test_an_account_that_can_not_be_reached(
    azure_store: azurite.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = azure_store.connection_string().replace(azure_store.authority, "127.0.0.1:1")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", away)
    assert refused("az://photos/a") == (
        "az://photos/a can't be reached; is the network there, and AZURE_STORAGE_ACCOUNT or "
        "AZURE_STORAGE_CONNECTION_STRING right?"
    )
    assert not is_gone("az://photos/a.jpg")
    loaded = load_file("az://photos/a.jpg", ImageSpec(32))
    assert (loaded.reason, loaded.detail.isprintable()) == (Reason.IO_ERROR, True)
    with pytest.raises(SourceError, match="can't be reached"):
        list(scan([objects.Prefix("az://photos")], skipped=Counter()))


def test_a_large_object_is_not_read_to_its_end(azure_store: azurite.Server) -> None:
    azure_store.put("photos/large.jpg", b"x" * 10_000)
    azure_store.put_odd("photos/empty.jpg")
    assert len(read_bytes("az://photos/large.jpg", 99)) == 100
    assert read_bytes("az://photos/empty.jpg", 99) == b""
    assert content_hash("az://photos/large.jpg", 99) is None
    assert content_hash("az://photos/no.jpg", 99) is None
    assert load_file("az://photos/large.jpg", ImageSpec(32, max_bytes=99)).reason is Reason.TOO_LARGE


def test_a_list_of_objects(store: azurite.Server, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(
        "az://photos/z.jpg\naz://photos/a.jpg\naz://photos/no.jpg\nAZ://photos/z.jpg"
    )
    skipped: Counter[str] = Counter()
    sources = resolve_sources([ListFile(str(tmp_path / "list.txt")), "az://photos/a"])
    assert [entry.uri for entry in scan(sources, skipped=skipped)] == [
        "az://photos/a.jpg",
        "az://photos/a/b/y.png",
        "az://photos/a/x.jpg",
        "az://photos/z.jpg",
    ]
    assert skipped == {"missing": 1, "duplicate": 1}


def test_a_run_and_those_after_it(azure_store: azurite.Server, tmp_path: Path) -> None:
    for number in range(4):
        picture = make_photo(tmp_path / "made" / f"{number}.png", number).read_bytes()
        azure_store.put(f"photos/2024/{'in/' * (number % 2)}{number}.png", picture)
    azure_store.put("photos/2024/bad.png", b"no picture")
    azure_store.put("photos/2023/0.png", b"not asked for")

    with Catalog.open(f"sqlite:///{tmp_path / 'store' / 'catalog.db'}", mode="write") as catalog:

        def index() -> RunReport:
            return index_collection(["az://photos/2024"], catalog, tmp_path / "store", Costless())

        def uris() -> set[str]:
            with catalog.query("SELECT uri FROM captions") as result:
                return {uri for (uri,) in result.rows}

        report = index()
        assert (report.captioned, report.quarantined) == (4, {"unsupported": 1})
        known = {f"az://photos/2024/{name}.png" for name in ("0", "in/1", "2", "in/3")}
        assert uris() == known
        report = index()
        assert (report.captioned, report.unchanged, report.still_quarantined) == (0, 4, 1)

        azure_store.file_system.delete_file("photos/2024/in/1.png")
        report = index()
        assert (report.captioned, report.vanished) == (0, 1)
        assert uris() == known - {"az://photos/2024/in/1.png"}
        assert verify_store(catalog, tmp_path / "store").findings == []
    assert all(thumbnails(["az://photos/2024/0.png"], 16))


@pytest.mark.usefixtures("nothing_set")
@pytest.mark.parametrize(
    ("variables", "account", "blob", "dfs", "more"),
    [
        ({"ACCOUNT": "me", "KEY": "a2V5"}, "me", ".blob.core.windows.net", ".dfs.core.windows.net", "a2V5"),
        (
            {"ACCOUNT": "me", "SAS_TOKEN": "sp=r"},
            "me",
            ".blob.core.windows.net",
            ".dfs.core.windows.net",
            "?sp=r",
        ),
        ({"ACCOUNT": "me"}, "me", ".blob.core.windows.net", ".dfs.core.windows.net", None),
        (
            {
                "CONNECTION_STRING": "DefaultEndpointsProtocol=https;AccountName=me;AccountKey=a2V5a2V5Cg==;"
                "EndpointSuffix=core.chinacloudapi.cn",
                "ACCOUNT": "you",
                "KEY": "eW91",
            },
            *("me", ".blob.core.chinacloudapi.cn", ".dfs.core.chinacloudapi.cn", "a2V5a2V5Cg=="),
        ),
        (
            {
                "CONNECTION_STRING": "BlobEndpoint=https://me.blob.example.org/;"
                "SharedAccessSignature=sp=r&sig=x",
                "KEY": "a2V5",
            },
            *("me", ".blob.example.org", ".dfs.example.org", "?sp=r&sig=x"),
        ),
        (
            {"CONNECTION_STRING": "AccountName=other;AccountKey=a2V5;BlobEndpoint=http://azurite:10000/me/"},
            *("me", "azurite:10000", "azurite:10000", "a2V5"),
        ),
    ],
)
def test_how_an_account_is_named(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    account: str,
    blob: str,
    dfs: str,
    more: str | None,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    options = azure.options()
    assert options["account_name"] == account
    assert (options["blob_storage_authority"], options["dfs_storage_authority"]) == (blob, dfs)
    assert options.get("account_key", options.get("sas_token")) == more
    if hasattr(fs, "AzureFileSystem"):
        # It takes them.
        fs.AzureFileSystem(**options)


@pytest.mark.usefixtures("nothing_set")
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "no account is named: set AZURE_STORAGE_ACCOUNT"),
        ({"ACCOUNT": "a/b?"}, "does not give the name of an account"),
        ({"ACCOUNT": "me", "KEY": "%"}, "AZURE_STORAGE_KEY, or AccountKey, is no key"),
        ({"CONNECTION_STRING": "hello"}, "has neither AccountName=… nor BlobEndpoint=…"),
        ({"CONNECTION_STRING": "BlobEndpoint=https://example.org"}, "is to be https://ACCOUNT.blob.DOMAIN"),
        (
            {"CONNECTION_STRING": "AccountName=you;BlobEndpoint=https://me.blob.example.org"},
            "is to be https://ACCOUNT.blob.DOMAIN",
        ),
        ({"CONNECTION_STRING": "BlobEndpoint=ftp://127.0.0.1:1/me"}, "is to lead to http or https"),
        ({"CONNECTION_STRING": "BlobEndpoint=http://[::1]:1/me"}, "a host by its name or as IPv4"),
        ({"CONNECTION_STRING": "BlobEndpoint=http://127.0.0.1:port/me"}, "a host by its name or as IPv4"),
        ({"CONNECTION_STRING": "BlobEndpoint=http://127.0.0.1:99999/me"}, "a host by its name or as IPv4"),
        ({"CONNECTION_STRING": "BlobEndpoint=http://127.0.0.1:1/me"}, "over http it takes AZURE_STORAGE_KEY"),
        (
            {"CONNECTION_STRING": "BlobEndpoint=http://[/me"},
            "BlobEndpoint in AZURE_STORAGE_CONNECTION_STRING",
        ),
    ],
)
def test_an_account_that_is_not_named_well(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    assert message in refused("az://photos/a")
    assert not is_gone("az://photos/a.jpg")


@pytest.mark.usefixtures("nothing_set")
def test_a_pyarrow_that_can_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "me")
    monkeypatch.delattr(fs, "AzureFileSystem", raising=False)
    assert "has no Azure Blob Storage; install pyarrow from PyPI" in refused("az://photos/a")
