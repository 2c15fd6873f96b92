"""One run over everything that can be a SOURCE, through real Ray, and what later runs make of it."""

import io
import tarfile
from pathlib import Path

import pytest

from batchcap.catalog import Catalog
from batchcap.collection import ListFile
from batchcap.pipeline import IndexOptions, RunReport, index_collection
from batchcap.preview import preview_index
from batchcap.verify import verify_store
from tests import servers
from tests.conftest import make_photo
from tests.costless import Costless

pytestmark = pytest.mark.usefixtures("local_ray")


def make_tar(path: Path, pictures: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in pictures.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_folder_archive_list_prefix_and_url_together(
    tmp_path: Path, object_store: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    pictures = [make_photo(tmp_path / "made" / f"{n}.png", n).read_bytes() for n in range(9)]
    make_photo(tmp_path / "folder" / "0.png", 0)
    shard = tmp_path / "shards" / "0.tar"
    shard.parent.mkdir()
    members = {"1.png": pictures[1], "1.txt": b"a dog", "2.png": pictures[2]}
    make_tar(shard, members)
    object_store.files = {
        "/photos/bad.png": b"no picture",
        "/photos/a/3.png": pictures[3],
        "/photos/4.png": pictures[4],
        "/other/5.png": pictures[5],
    }

    with (
        servers.running(servers.WebHandler) as web,
        Catalog.open(f"sqlite:///{tmp_path / 'store' / 'catalog.db'}", mode="write") as catalog,
    ):
        web.files = {"/6.png": pictures[6], "/cut/7.png": pictures[7]}
        rows = ["made/8.png", "s3://other/5.png", f"{web.url}/6.png", f"{web.url}/cut/7.png", "made/no.png"]
        (tmp_path / "list.csv").write_text("\n".join(["path", *rows]))
        sources = [
            str(tmp_path / "folder"),
            str(tmp_path / "shards" / "*.tar"),
            "s3://photos",
            ListFile(str(tmp_path / "list.csv")),
        ]

        def index() -> RunReport:
            return index_collection(sources, catalog, tmp_path / "store", Costless())

        def uris() -> set[str]:
            with catalog.query("SELECT uri FROM captions") as result:
                return {uri for (uri,) in result.rows}

        known = {
            f"{tmp_path}/folder/0.png",
            f"tar://{shard}#1.png",
            f"tar://{shard}#2.png",
            "s3://photos/a/3.png",
            "s3://photos/4.png",
            "s3://other/5.png",
            f"{web.url}/6.png",
            f"{tmp_path}/made/8.png",
        }
        report = index()
        assert (report.captioned, report.known) == (8, 0)
        assert report.quarantined == {"unsupported": 1, "io_error": 1}
        assert report.skipped == {"not_an_image": 1, "missing": 1}
        assert uris() == known
        assert catalog.status().runs[0].source == [str(source) for source in sources]

        # Nothing has changed: nothing is read again. What could not be read would be, were it still named.
        (tmp_path / "list.csv").write_text("\n".join(["path", *rows[:3]]))
        object_store.requests.clear()
        report = index()
        assert (report.captioned, report.known, report.unchanged, report.still_quarantined) == (0, 0, 8, 1)
        assert (report.quarantined, report.skipped) == ({}, {"not_an_image": 1})
        assert not any(method == "GET" and path.endswith(".png") for method, path in object_store.requests)

        # A member and an object are gone, a picture has moved into the archive: no inference.
        del members["2.png"], object_store.files["/photos/a/3.png"]
        make_tar(shard, {**members, "moved.png": pictures[3]})
        preview = preview_index(
            sources, f"sqlite:///{tmp_path / 'store' / 'catalog.db'}", Costless(), IndexOptions()
        )
        assert (preview.vanished, preview.new, preview.to_caption) == (2, 1, 0)
        report = index()
        assert (report.captioned, report.vanished, report.moved) == (0, 2, 1)
        known -= {f"tar://{shard}#2.png", "s3://photos/a/3.png"}
        known.add(f"tar://{shard}#moved.png")
        assert uris() == known

        # Damage takes nothing from the catalog, and is told until it is repaired.
        whole = shard.read_bytes()
        shard.write_bytes(whole[:700])
        report = index()
        assert report.quarantined["truncated"] == 1
        assert (report.captioned, report.vanished) == (0, 0)
        assert f"tar://{shard}#" in {bad.uri for bad in catalog.quarantine()}
        assert uris() == known
        shard.write_bytes(whole)
        report = index()
        assert (report.captioned, report.vanished) == (0, 1)
        assert f"tar://{shard}#" not in {bad.uri for bad in catalog.quarantine()}
        assert uris() == known
        assert verify_store(catalog, tmp_path / "store").findings == []
