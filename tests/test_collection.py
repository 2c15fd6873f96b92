"""Sources and listing, on real folders."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcap.collection import (
    IMAGE_SUFFIXES,
    FileEntry,
    SkipReason,
    Source,
    is_gone,
    resolve_sources,
    scan,
    uri_to_path,
    whole_folders,
)
from batchcap.errors import SourceError, SourceNotFoundError, UsageError
from batchcap.globs import Selection

any_bytes_in_names = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux takes names that are not UTF-8"
)
not_as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")


def make(root: Path, *names: str) -> None:
    """Creates files, and the folders they are in."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode(errors="surrogateescape"))


def found(root: Path, *sources: str) -> tuple[list[str], dict[str, int]]:
    """The uris below `root` that a scan gives, relative to it, and the counts of what it skipped.

    Sources are relative to `root` as well; none stands for `root` itself.
    """
    skipped: Counter[str] = Counter()
    resolved = resolve_sources([os.path.join(root, source) for source in sources or [""]])
    uris = [entry.uri for entry in scan(resolved, skipped=skipped)]
    return [uri.replace(f"{root}/", "") for uri in uris], dict(skipped)


# --- entries and uris ---


def test_an_entry_tells_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"12345")
    os.utime(path, ns=(0, 1_234_567_890_123_456_789))
    (entry,) = scan(resolve_sources([str(tmp_path)]), skipped=Counter())
    assert entry == FileEntry(str(path), 5, os.stat(path).st_mtime_ns, None)


@pytest.mark.parametrize(
    "name", ["a b.jpg", "line\nbreak.jpg", "100%25.jpg", "\U0001f600.jpg", "é.jpg", "#?&.jpg"]
)
def test_a_utf8_name_is_its_own_uri(tmp_path: Path, name: str) -> None:
    make(tmp_path, name)
    assert found(tmp_path) == ([name], {})
    assert uri_to_path(f"{tmp_path}/{name}") == f"{tmp_path}/{name}"


@any_bytes_in_names
def test_a_name_that_is_not_utf8_is_escaped_and_comes_last(tmp_path: Path) -> None:
    make(tmp_path, "z.jpg", os.fsdecode(b"b\xff%.jpg"), os.fsdecode(b"a\xe9/x y.jpg"), "~.jpg")
    uris, skipped = found(tmp_path)
    assert uris == ["z.jpg", "~.jpg", "file://a%E9/x%20y.jpg", "file://b%FF%25.jpg"]
    assert not skipped


@any_bytes_in_names
def test_an_escaped_uri_leads_to_its_file_and_is_a_source(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.jpg")
    make(tmp_path, name)
    (entry,) = scan(resolve_sources([str(tmp_path)]), skipped=Counter())
    assert entry.uri.isascii()
    assert Path(uri_to_path(entry.uri)).read_bytes() == b"\xff.jpg"
    assert list(scan(resolve_sources([entry.uri]), skipped=Counter())) == [entry]


@pytest.mark.parametrize("uri", ["s3://bucket/a.jpg", "relative.jpg", "file://host/a.jpg", ""])
def test_a_uri_that_is_not_local_has_no_path(uri: str) -> None:
    with pytest.raises(UsageError, match="is no local file"):
        uri_to_path(uri)


# --- order ---


def test_folders_sort_with_their_slash(tmp_path: Path) -> None:
    make(tmp_path, "a/x.jpg", "a-b/x.jpg", "a.jpg", "a0.jpg", "a/b/y.jpg", "a/b.jpg", "B.jpg")
    uris, _ = found(tmp_path)
    assert uris == ["B.jpg", "a-b/x.jpg", "a.jpg", "a/b.jpg", "a/b/y.jpg", "a/x.jpg", "a0.jpg"]


# Short names of few characters, so that they share prefixes, with characters around the slash, in the
# upper planes, and bytes that aren't UTF-8.
_alphabet = ["a", "b", "-", ".", "0", "%", " ", "\n", "\uffee", "\U0001f600"]
if sys.platform == "linux":
    _alphabet.append("\udcff")
_names = st.lists(st.sampled_from(_alphabet), min_size=1, max_size=3).map("".join)
_paths = st.lists(_names.filter(lambda name: name not in (".", "..")), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """A folder for Hypothesis, which makes and empties a tree in it for each example."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@given(st.lists(_paths, max_size=12), st.data())
@settings(deadline=None)  # the time that a disk takes says nothing
def test_any_tree_is_listed_once_in_order(scratch: Path, paths: list[list[str]], data: st.DataObject) -> None:
    root = scratch / "tree"
    root.mkdir()
    try:
        for parts in paths:
            make(root, "/".join(["d" + part for part in parts[:-1]] + ["f" + parts[-1] + ".jpg"]))
        folders = [folder for folder, _, _ in os.walk(root)]
        named = data.draw(st.lists(st.sampled_from(folders)))
        entries = list(scan(resolve_sources([str(root), *named]), skipped=Counter()))
        uris = [entry.uri for entry in entries]
        assert uris == sorted(set(uris))
        expected = {os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names}
        assert {uri_to_path(uri) for uri in uris} == expected
        for uri in uris:
            uri.encode()  # no lone surrogates: SQL and Parquet take it
    finally:
        shutil.rmtree(root)


# --- what is skipped ---


def test_what_is_no_image_is_counted(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "B.JPEG", "notes.txt", "movie.mp4", "jpg", "sub/c.webp", "sub/d.jpg.bak")
    assert found(tmp_path) == (["B.JPEG", "a.jpg", "sub/c.webp"], {"not_an_image": 4})


def test_what_people_do_not_see_is_counted(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "._a.jpg", ".DS_Store", "Thumbs.db", "sub/Desktop.ini", ".hidden.jpg")
    make(tmp_path, ".trash/b.jpg", ".trash/c.jpg", "._folder/d.jpg", "thumbs.db.d/e.jpg")
    assert found(tmp_path) == (
        ["a.jpg", "thumbs.db.d/e.jpg"],
        {"appledouble": 1, "system": 3, "hidden": 3},
    )


def test_suffixes_are_in_lower_case() -> None:
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)


def test_links(tmp_path: Path) -> None:
    make(tmp_path, "in/real.jpg", "out/far.jpg", "out/notes.txt", "out/more/x.jpg")
    inside = tmp_path / "in"
    (inside / "link.jpg").symlink_to("real.jpg")
    (inside / "other.jpg").symlink_to("../out/far.jpg")
    (inside / "notes").symlink_to("../out/notes.txt")
    (inside / "folder").symlink_to("../out/more")
    (inside / "self").symlink_to(".")
    (inside / "loop.jpg").symlink_to("loop.jpg")
    (inside / "gone.jpg").symlink_to("nowhere.jpg")
    (inside / "through.jpg").symlink_to("real.jpg/x")
    uris, skipped = found(tmp_path, "in")
    assert uris == ["in/link.jpg", "in/other.jpg", "in/real.jpg"]
    assert skipped == {"not_an_image": 1, "symlinked_folder": 2, "broken_link": 3}


def test_a_source_that_is_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    make(tmp_path, "real/a.jpg")
    (tmp_path / "link").symlink_to("real")
    assert found(tmp_path, "link") == (["link/a.jpg"], {})
    assert found(tmp_path, "link", "real") == (["link/a.jpg", "real/a.jpg"], {})
    assert found(tmp_path, "", "link") == (["link/a.jpg", "real/a.jpg"], {"symlinked_folder": 1})


def test_special_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "link.jpg").symlink_to("/dev/null")
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        assert found(tmp_path) == ([], {"special_file": 3})
        assert found(tmp_path, "fifo.jpg") == ([], {"special_file": 1})


def test_files_and_folders_that_vanish_are_counted(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg", "c/x.jpg", "d/x.jpg", "e.jpg")
    skipped: Counter[str] = Counter()
    entries = scan(resolve_sources([str(tmp_path)]), skipped=skipped)
    assert next(entries).uri == f"{tmp_path}/a.jpg"
    (tmp_path / "b.jpg").unlink()
    shutil.rmtree(tmp_path / "c")
    shutil.rmtree(tmp_path / "d")
    (tmp_path / "d").touch()
    assert [entry.uri for entry in entries] == [f"{tmp_path}/e.jpg"]
    assert skipped == {"vanished": 3}


def test_a_named_file_that_vanishes_is_counted(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    sources = resolve_sources([f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"])
    (tmp_path / "a.jpg").unlink()
    skipped: Counter[str] = Counter()
    assert [entry.uri for entry in scan(sources, skipped=skipped)] == [f"{tmp_path}/b.jpg"]
    assert skipped == {"vanished": 1}


def test_a_path_longer_than_the_system_allows_does_not_end_the_scan(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "z.jpg")
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):  # 5,000 characters; a path has at most 4,096, on macOS 1,024
        os.mkdir("d" * 250, dir_fd=folder)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    uris, skipped = found(tmp_path)
    assert (uris, skipped) == (["a.jpg", "z.jpg"], {"unreadable_folder": 1})


def test_folders_may_be_deeper_than_the_stack_of_python(tmp_path: Path) -> None:
    deep = "/".join("d" * 300)
    make(tmp_path, f"{deep}/a.jpg")
    code = (
        "import sys; from collections import Counter; from batchcap.collection import *\n"
        "sources = resolve_sources(sys.argv[1:])\n"
        "sys.setrecursionlimit(100)\n"
        "print(*(entry.uri for entry in scan(sources, skipped=Counter())))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == f"{tmp_path}/{deep}/a.jpg\n", done.stderr


@not_as_root
def test_a_subfolder_that_can_not_be_read_is_counted(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "locked/b.jpg", "blind/c.jpg")
    (tmp_path / "locked").chmod(0)
    (tmp_path / "blind").chmod(0o400)  # its names can be listed, but nothing about them be learnt
    try:
        assert found(tmp_path) == (["a.jpg"], {"unreadable_folder": 1, "unreadable_file": 1})
    finally:
        (tmp_path / "locked").chmod(0o700)
        (tmp_path / "blind").chmod(0o700)


@not_as_root
def test_a_source_that_can_not_be_read_is_an_error(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    make(locked, "a.jpg")
    sources = resolve_sources([str(locked)])
    locked.chmod(0)
    try:
        for source in (locked, locked / "a.jpg"):
            with pytest.raises(SourceError, match=r"can't be read: Permission denied"):
                resolve_sources([str(source)])
        with pytest.raises(SourceError, match=r"can't be read: Permission denied"):
            list(scan(sources, skipped=Counter()))
    finally:
        locked.chmod(0o700)


def test_a_source_that_goes_away_is_an_error(tmp_path: Path) -> None:
    sources = resolve_sources([str(tmp_path)])
    shutil.rmtree(tmp_path)
    with pytest.raises(SourceError, match="can't be read"):
        list(scan(sources, skipped=Counter()))


# --- sources ---


def test_a_named_file_is_taken_whatever_its_name(tmp_path: Path) -> None:
    names = ["notes.txt", ".hidden", "._x", "photo"]
    make(tmp_path, *names)
    assert found(tmp_path, *names) == (sorted(names), {})


def test_relative_sources_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "sub/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert resolve_sources(["sub/../sub/", "sub/a.jpg"]) == [Source(f"{tmp_path}/sub", True)]
    assert resolve_sources(["."]) == [Source(str(tmp_path), True)]
    assert resolve_sources([f"/{tmp_path}"]) == [Source(str(tmp_path), True)]


def test_dots_behind_a_link_mean_what_they_mean_to_the_system(tmp_path: Path) -> None:
    make(tmp_path, "elsewhere/sub/x.jpg", "elsewhere/a.jpg", "here/b.jpg")
    (tmp_path / "here/link").symlink_to("../elsewhere/sub")
    assert found(tmp_path, "here/link/..")[0] == ["elsewhere/a.jpg", "elsewhere/sub/x.jpg"]
    assert found(tmp_path, "here/link/../a.jpg")[0] == ["elsewhere/a.jpg"]


@pytest.mark.parametrize(
    ("sources", "kept"),
    [
        (["a", "a/", "./a"], ["a"]),
        (["a/b", "a", "a/b/c.jpg"], ["a"]),
        (["a", "ab"], ["a", "ab"]),
        (["ab", "a"], ["ab", "a"]),
        (["a", "a/*.jpg", "a/b/*"], ["a"]),
        (["a/b/*", "a/b/*", "a/b/c.jpg"], ["a/b/*", "a/b/c.jpg"]),
        (["a/**"], ["a"]),
        # A scan of `a` would pass these by.
        (["a", "a/.hidden", "a/.hidden/x.jpg"], ["a", "a/.hidden"]),
        (["a", "a/link"], ["a", "a/link"]),
        (["a", "a/link/x.jpg"], ["a", "a/link/x.jpg"]),
        (["a", "a/notes.txt"], ["a", "a/notes.txt"]),
    ],
)
def test_a_source_is_dropped_if_another_contains_it(
    tmp_path: Path, sources: list[str], kept: list[str]
) -> None:
    make(tmp_path, "a/b/c.jpg", "a/x.jpg", "a/.hidden/x.jpg", "a/notes.txt", "ab/x.jpg")
    (tmp_path / "a/link").symlink_to("../ab")
    resolved = resolve_sources([f"{tmp_path}/{source}" for source in sources])
    assert [str(source) for source in resolved] == [f"{tmp_path}/{source}" for source in kept]


def test_the_root_folder_contains_every_source(tmp_path: Path) -> None:
    assert [str(source) for source in resolve_sources([str(tmp_path), "/"])] == ["/"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["1.jpg"]),
        ("*", ["1.jpg", "2.png", "sub/3.jpg", "sub/deep/4.png", "sub/deep/5.jpg"]),
        ("?.[jp][pn]g", ["1.jpg", "2.png"]),
        ("*/*.jpg", ["sub/3.jpg"]),
        ("s*/deep", ["sub/deep/4.png", "sub/deep/5.jpg"]),
        ("**", ["1.jpg", "2.png", "sub/3.jpg", "sub/deep/4.png", "sub/deep/5.jpg"]),
        ("**/*.jpg", ["1.jpg", "sub/3.jpg", "sub/deep/5.jpg"]),
        ("**/deep/*.png", ["sub/deep/4.png"]),
        ("**/deep/**/*.png", ["sub/deep/4.png"]),
        ("*/**", ["sub/3.jpg", "sub/deep/4.png", "sub/deep/5.jpg"]),
        ("*/**/*.jpg", ["sub/3.jpg", "sub/deep/5.jpg"]),
        ("**/**/5.jpg", ["sub/deep/5.jpg"]),
        ("./sub//*.jpg", ["sub/3.jpg"]),
    ],
)
def test_globs(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    make(tmp_path, "1.jpg", "2.png", "sub/3.jpg", "sub/deep/4.png", "sub/deep/5.jpg", "sub/.hidden/6.jpg")
    (tmp_path / "sub/loop").symlink_to(".")
    assert found(tmp_path, pattern)[0] == expected


def test_a_glob_counts_only_what_matches_it(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "a.txt", "b.txt", "._a.jpg", "sub/c.txt")
    assert found(tmp_path, "a*") == (["a.jpg"], {"not_an_image": 1})


def test_overlapping_globs_give_each_file_once(tmp_path: Path) -> None:
    make(tmp_path, "a1.jpg", "a2.jpg", "b1.jpg", "sub/a3.jpg")
    assert found(tmp_path, "**/*.jpg", "a*.jpg", "*1.jpg", "b1.jpg")[0] == [
        "a1.jpg",
        "a2.jpg",
        "b1.jpg",
        "sub/a3.jpg",
    ]


def test_a_name_that_exists_is_no_glob(tmp_path: Path) -> None:
    make(tmp_path, "[2024]/a.jpg", "2/b.jpg", "x*.jpg", "xy.jpg")
    assert found(tmp_path, "[2024]")[0] == ["[2024]/a.jpg"]
    assert found(tmp_path, "[2024]/*.jpg")[0] == ["[2024]/a.jpg"]
    assert found(tmp_path, "x*.jpg")[0] == ["x*.jpg"]
    assert found(tmp_path, "[2]")[0] == ["2/b.jpg"]


@pytest.mark.parametrize(
    "name", ["none", "none/*.jpg", "*.gif", "no*/**", "a.jpg/b", "a.jpg/*", "", "nul\0", "dangling.jpg"]
)
def test_a_source_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    make(tmp_path, "a.jpg")
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceNotFoundError) as caught:
        resolve_sources([name])
    assert "\n" not in str(caught.value)


def test_a_message_is_one_line_whatever_the_name(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"^'.*line\\nbreak' does not exist$"):
        resolve_sources([f"{tmp_path}/line\nbreak"])


@pytest.mark.parametrize("source", ["ftp://example.com/photos", "hdfs://cluster/a.jpg"])
def test_a_source_of_an_unknown_kind_is_refused(source: str) -> None:
    with pytest.raises(UsageError, match="is of a kind that can't be read"):
        resolve_sources([source])


def test_impossible_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no SOURCE given"):
        resolve_sources([])
    with pytest.raises(UsageError, match="can't follow a wildcard"):
        resolve_sources([f"{tmp_path}/*/../a.jpg"])


def test_no_source_lists_nothing() -> None:
    assert list(scan([], skipped=Counter())) == []


def test_counts_may_be_asked_for_by_reason_or_by_text(tmp_path: Path) -> None:
    make(tmp_path, "notes.txt")
    skipped: Counter[str] = Counter()
    list(scan(resolve_sources([str(tmp_path)]), skipped=skipped))
    assert skipped["not_an_image"] == skipped[SkipReason.NOT_AN_IMAGE] == 1


def test_a_selection_leaves_out_and_counts(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.png", "raw/c.jpg", "raw/deep/d.jpg", "e.txt")
    skipped: Counter[str] = Counter()
    selection = Selection.of(["*.jpg"], ["raw"])
    found = [
        entry.uri for entry in scan(resolve_sources([str(tmp_path)]), skipped=skipped, selection=selection)
    ]
    assert found == [str(tmp_path / "a.jpg")]
    # The folder counts once: it was not listed.
    assert skipped == {"excluded": 2, "not_an_image": 1}
    # What is named itself is taken; a pattern is relative to each source.
    named = resolve_sources([str(tmp_path / "b.png"), str(tmp_path / "raw")])
    found = [
        entry.uri for entry in scan(named, skipped=skipped, selection=Selection.of([], ["b.png", "/deep"]))
    ]
    assert found == [str(tmp_path / "b.png"), str(tmp_path / "raw" / "c.jpg")]


def test_whole_folders(tmp_path: Path) -> None:
    make(tmp_path, "a/b.jpg", "a/.hidden/c.jpg", "d.jpg")
    sources = [
        str(tmp_path / "a"),
        str(tmp_path / "a" / ".hidden"),
        str(tmp_path / "d.jpg"),
        f"{tmp_path}/*.jpg",
    ]
    assert whole_folders(resolve_sources(sources)) == [f"{tmp_path}/a/", f"file://{tmp_path}/a/"]
    assert whole_folders(resolve_sources(["/"])) == ["/", "file:///"]


@any_bytes_in_names
def test_a_whole_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    make(tmp_path, "caf\udce9/b.jpg")
    assert whole_folders(resolve_sources([str(tmp_path / "caf\udce9")])) == [f"file://{tmp_path}/caf%E9/"]


def test_what_is_certainly_gone(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg/c.jpg")
    (tmp_path / "link.jpg").symlink_to("nothing")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    gone = {
        name: is_gone(str(tmp_path / name))
        for name in ("a.jpg", "no.jpg", "a.jpg/d.jpg", "link.jpg", "b.jpg")
    }
    assert gone == {"a.jpg": False, "no.jpg": True, "a.jpg/d.jpg": True, "link.jpg": True, "b.jpg": True}
    # Whatever else the system says, it does not say that there is none.
    assert not is_gone(str(tmp_path / "loop.jpg"))
    assert not is_gone(str(tmp_path / ("x" * 300)))
