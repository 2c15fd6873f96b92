"""Archives: real ones, written by Python's tarfile, and what damage does to them."""

import io
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcap.captioner.images import ImageSpec
from batchcap.collection import FileEntry, Source, resolve_sources, scan, whole_folders
from batchcap.decoder_child import load_file
from batchcap.errors import ImageError, Reason, SourceNotFoundError, UsageError
from batchcap.globs import Selection
from batchcap.storage import content_hash, is_gone, look, read_bytes
from batchcap.storage.tar import member_uri, split_uri
from tests.conftest import make_photo

LIMIT = 10**6


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mtime = 1_600_000_000
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def make_tar(
    path: Path, *members: tuple[tarfile.TarInfo, bytes], tar_format: int = tarfile.PAX_FORMAT
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format, errors="surrogateescape") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return path


def listed(
    *sources: Path | str, selection: Selection | None = None
) -> tuple[list[FileEntry], dict[str, int]]:
    skipped: Counter[str] = Counter()
    resolved = resolve_sources([str(source) for source in sources])
    return list(scan(resolved, skipped=skipped, selection=selection)), dict(skipped)


def names(entries: list[FileEntry]) -> list[str]:
    return [split_uri(entry.uri)[1] for entry in entries]


def test_members_are_listed_in_order_and_read_where_they_are(tmp_path: Path) -> None:
    contents = {name: name.encode() * 300 for name in ("z.jpg", "a/b.png", "a-b/c.jpg", "./d.webp")}
    shard = make_tar(
        tmp_path / "0.tar", *(member(*item) for item in contents.items()), member("a", type=tarfile.DIRTYPE)
    )
    entries, skipped = listed(shard)
    assert [entry.uri for entry in entries] == [
        f"tar://{shard}#{name}" for name in ("./d.webp", "a-b/c.jpg", "a/b.png", "z.jpg")
    ]
    assert skipped == {}
    for entry in entries:
        content = contents[split_uri(entry.uri)[1]]
        assert (entry.size_bytes, entry.mtime_ns) == (len(content), 1_600_000_000 * 10**9)
        assert read_bytes(entry.uri, LIMIT) == content
        # One byte more tells that it is too large.
        assert read_bytes(entry.uri, 10) == content[:11]
        assert look(entry.uri) == entry
        assert not is_gone(entry.uri)
    assert content_hash(entries[0].uri, LIMIT) != content_hash(entries[1].uri, LIMIT)
    assert content_hash(entries[0].uri, 10) is None
    assert whole_folders(resolve_sources([str(shard)])) == [f"tar://{shard}#"]
    assert is_gone(f"tar://{shard}#no.jpg")
    assert is_gone(f"tar://{tmp_path}/no.tar#a/b.png")
    # What stands in the catalog may be named itself.
    assert listed(entries[1].uri)[0] == [entries[1]]
    with pytest.raises(SourceNotFoundError, match="does not exist"):
        resolve_sources([f"tar://{shard}#no.jpg"])


def test_what_is_no_image_is_skipped_and_counted(tmp_path: Path) -> None:
    shard = make_tar(
        tmp_path / "0.tar",
        *(member(f"000.{suffix}") for suffix in ("jpg", "txt", "json", "cls")),
        *(member(name) for name in ("._000.jpg", "x/.hidden.jpg", ".cache/a.jpg", "Thumbs.db", "/")),
        member("soft.jpg", type=tarfile.SYMTYPE, linkname="000.jpg"),
        member("hard.jpg", type=tarfile.LNKTYPE, linkname="000.jpg"),
        member("pipe.jpg", type=tarfile.FIFOTYPE),
    )
    entries, skipped = listed(shard)
    assert names(entries) == ["000.jpg"]
    assert skipped == {
        "not_an_image": 4,
        "appledouble": 1,
        "hidden": 2,
        "system": 1,
        "link": 2,
        "special_file": 1,
    }


def test_of_two_members_of_one_name_the_last_counts(tmp_path: Path) -> None:
    shard = make_tar(tmp_path / "0.tar", member("a.jpg", b"old"), member("b.jpg"), member("a.jpg", b"newer"))
    entries, skipped = listed(shard)
    assert [(split_uri(entry.uri)[1], entry.size_bytes) for entry in entries] == [("a.jpg", 5), ("b.jpg", 0)]
    assert skipped == {"duplicate": 1}
    assert read_bytes(entries[0].uri, LIMIT) == b"newer"


def test_a_selection_goes_by_the_names_of_members(tmp_path: Path) -> None:
    shard = make_tar(tmp_path / "0.tar", *map(member, ("./raw/a.jpg", "b.jpg", "b.png")))
    entries, skipped = listed(shard, selection=Selection.of(["*.jpg"], ["raw"]))
    assert names(entries) == ["b.jpg"]
    assert skipped == {"excluded": 2}


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_all_kinds(tmp_path: Path, tar_format: int) -> None:
    wanted = [
        "100%25.jpg",
        "a#b?.jpg",
        "\u00e9 \U0001f600.jpg",
        "line\nbreak.jpg",
        os.fsdecode(b"caf\xe9.jpg"),
    ]
    if tar_format != tarfile.USTAR_FORMAT:
        wanted.append("deep/" * 60 + "x.jpg")
    folder = tmp_path / "sh#ards %41"
    shard = make_tar(
        folder / "0.tar",
        *(member(name, name.encode(errors="replace")) for name in wanted),
        tar_format=tar_format,
    )
    entries, _ = listed(shard)
    assert sorted(names(entries)) == sorted(wanted)
    for entry in entries:
        entry.uri.encode()
        assert split_uri(entry.uri)[0] == str(shard)
        assert read_bytes(entry.uri, LIMIT) == split_uri(entry.uri)[1].encode(errors="replace")


_text = st.text(st.sampled_from("a%#/\n \udcff\u00e9"), min_size=1)


@given(_text, _text)
def test_a_uri_leads_back(path: str, name: str) -> None:
    assert split_uri(member_uri("/" + path, name)) == ("/" + path, name)
    member_uri("/" + path, name).encode()


def test_which_archives_are_opened(tmp_path: Path) -> None:
    for number in range(3):
        make_tar(tmp_path / "shards" / f"{number}.tar", member("a.jpg"), member("b.jpg"))
    make_tar(tmp_path / "shards" / "sub" / "3.TAR", member("a.jpg"))
    make_tar(tmp_path / "shards" / ".4.tar", member("a.jpg"))
    # Archives after each other, though "1.tar" and "1.tar2" share a beginning.
    assert len(listed(tmp_path / "shards" / "*.tar")[0]) == 6
    assert len(listed(tmp_path / "shards" / "**" / "*.tar")[0]) == 6
    assert len(listed(tmp_path / "shards" / "*" / "*.TAR")[0]) == 1
    assert len(listed(*(tmp_path / "shards").glob("[01].tar"), tmp_path / "shards" / "*.tar")[0]) == 6
    # In a folder, or matched by what may be anything, an archive is a file that is no image.
    assert listed(tmp_path / "shards") == ([], {"not_an_image": 4, "hidden": 1})
    assert listed(tmp_path / "shards" / "*")[0] == []
    assert isinstance(resolve_sources([str(tmp_path / "shards")])[0], Source)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar.zst"])
def test_a_compressed_archive_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    for source in (name, f"*{name[1:]}"):
        with pytest.raises(UsageError, match=r"is compressed and can only be read from its beginning"):
            resolve_sources([str(tmp_path / source)])


@pytest.mark.parametrize("source", ["s3://bucket/0.tar", "https://example.com/0.tar.gz"])
def test_an_archive_that_is_elsewhere_is_refused(source: str) -> None:
    with pytest.raises(UsageError, match="archives can be read on local disks only"):
        resolve_sources([source])


# --- damage ---


def cut_in_content(data: bytes) -> bytes:
    return data[: 3 * 512 + 100]


def cut_in_header(data: bytes) -> bytes:
    return data[: 2 * 512 + 100]


def without_end(data: bytes) -> bytes:
    return data[: 4 * 512]


def zapped_header(data: bytes) -> bytes:
    return data[: 2 * 512] + b"x" * 512 + data[3 * 512 :]


def huge_name(data: bytes) -> bytes:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 10**9
    return data[: 2 * 512] + header.tobuf(tarfile.GNU_FORMAT) + data[3 * 512 :]


def negative_size(data: bytes) -> bytes:
    header = tarfile.TarInfo("b.jpg")
    header.size = -512
    return data[: 2 * 512] + header.tobuf(tarfile.GNU_FORMAT) + data[3 * 512 :]


@pytest.mark.parametrize(
    ("damage", "reason", "whole"),
    [
        (cut_in_content, Reason.TRUNCATED, ["a.jpg"]),
        (cut_in_header, Reason.TRUNCATED, ["a.jpg"]),
        (without_end, Reason.TRUNCATED, ["a.jpg", "b.jpg"]),
        (zapped_header, Reason.UNREADABLE, ["a.jpg"]),
        (huge_name, Reason.UNREADABLE, ["a.jpg"]),
        (negative_size, Reason.UNREADABLE, ["a.jpg"]),
        (lambda data: b"", Reason.EMPTY, []),
        (lambda data: b"no archive at all" * 100, Reason.UNREADABLE, []),
        (lambda data: b"short", Reason.TRUNCATED, []),
    ],
)
def test_what_stands_before_the_damage_counts_and_the_damage_is_told(
    tmp_path: Path, damage: Callable[[bytes], bytes], reason: Reason, whole: list[str]
) -> None:
    picture = make_photo(tmp_path / "a.png", 1).read_bytes()
    shard = make_tar(tmp_path / "0.tar", member("a.jpg", b"a" * 10), member("b.jpg", b"b" * 512))
    data = shard.read_bytes()
    other = make_tar(tmp_path / "1.tar", member("c.png", picture))
    shard.write_bytes(damage(data))
    entries, skipped = listed(tmp_path / "*.tar")
    assert [entry.uri for entry in entries] == [
        f"tar://{shard}#",
        *(f"tar://{shard}#{name}" for name in whole),
        f"tar://{other}#c.png",
    ]
    assert skipped == {}
    loaded = load_file(entries[0].uri, ImageSpec(32))
    assert (loaded.reason, loaded.content_hash) == (reason, None)
    assert loaded.detail and loaded.detail.isprintable()
    assert load_file(entries[-1].uri, ImageSpec(32)).image is not None
    assert [read_bytes(entry.uri, LIMIT)[:1] for entry in entries[1:-1]] == [b"a", b"b"][: len(whole)]
    # What may stand behind the damage is not gone.
    assert not any(is_gone(f"tar://{shard}#{name}") for name in ("", "a.jpg", "b.jpg", "z.jpg"))
    with pytest.raises(ImageError):
        read_bytes(f"tar://{shard}#", LIMIT)
    # Once it is whole again, its entry leaves the quarantine.
    shard.write_bytes(data)
    assert is_gone(f"tar://{shard}#")
    assert not is_gone(f"tar://{shard}#b.jpg")


def test_another_archive_in_its_place_is_noticed(tmp_path: Path) -> None:
    shard = make_tar(tmp_path / "0.tar", member("a.jpg", b"old"))
    (before,), _ = listed(shard)
    assert read_bytes(before.uri, LIMIT) == b"old"
    make_tar(shard, member("0.jpg"), member("a.jpg", b"new"))
    os.utime(shard, ns=(1, 1))
    after = listed(shard)[0][1]
    assert read_bytes(after.uri, LIMIT) == b"new"
    assert (after.size_bytes, after.mtime_ns) == (before.size_bytes, before.mtime_ns)
    assert after.etag != before.etag
    assert listed(shard)[0][1] == after
    sources = resolve_sources([str(shard)])
    shard.unlink()
    skipped: Counter[str] = Counter()
    assert list(scan(sources, skipped=skipped)) == []
    assert skipped == {"vanished": 1}


def test_an_archive_without_members_is_whole(tmp_path: Path) -> None:
    assert listed(make_tar(tmp_path / "0.tar")) == ([], {})
