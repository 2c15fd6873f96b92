"""Lists: Parquet, CSV and text, in any order, of whatever people write into them."""

import csv
import os
import sqlite3
import sys
import tarfile
from collections import Counter
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from batchcap.collection import FileEntry, ListFile, Query, resolve_sources, scan, whole_folders
from batchcap.errors import SourceError, SourceNotFoundError, UsageError
from batchcap.globs import Selection
from batchcap.storage.sorting import sort_entries

NAMES = ["b.jpg", "a/c.jpg", "a-b.jpg", "\u00e9, \U0001f600.jpg"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def listed(path: Path, column: str | None = None) -> tuple[list[str], dict[str, int]]:
    """The uris that a list gives, relative to its folder, and what it skipped."""
    skipped: Counter[str] = Counter()
    entries = scan(resolve_sources([ListFile(str(path), column)]), skipped=skipped)
    return [entry.uri.replace(f"{path.parent}/", "") for entry in entries], dict(skipped)


def write_csv(path: Path, *rows: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_list_is_sorted_whatever_it_is_written_in(folder: Path) -> None:
    lists = [
        write_csv(folder / "a.csv", ["id", "path"], *(["1", name] for name in NAMES)),
        folder / "b.parquet",
        folder / "c.txt",
        folder / "d",
    ]
    parquet.write_table(pa.table({"uri": NAMES, "other": [[1]] * len(NAMES)}), lists[1], row_group_size=1)
    # With the mark that some editors write, and the line ends of Windows.
    lists[2].write_text("\ufeff" + "\r\n".join(NAMES), encoding="utf-8", newline="")
    lists[3].write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    for path in lists:
        assert listed(path) == (["a-b.jpg", "a/c.jpg", "b.jpg", "\u00e9, \U0001f600.jpg"], {})
    (entry, *_) = scan(resolve_sources([ListFile(str(lists[0]))]), skipped=Counter())
    status = os.stat(folder / "a-b.jpg")
    assert entry == FileEntry(f"{folder}/a-b.jpg", status.st_size, status.st_mtime_ns)


def test_rows_that_name_no_file_are_counted(folder: Path) -> None:
    rows = ["b.jpg", "b.jpg", "./b.jpg", f"file://{folder}/b.jpg", "", "  ", "no.jpg", "a", "nul\0.jpg"]
    rows += [
        "ftp://host/x.jpg",
        "file://host/x.jpg",
        "tar:///no.tar#a.jpg",
        "b.jpg/x.jpg",
        f"{folder}//a/../b.jpg",
    ]
    (folder / "list.txt").write_text("\n".join(rows))
    uris, skipped = listed(folder / "list.txt")
    assert uris == ["b.jpg"]
    assert skipped == {"duplicate": 4, "blank": 2, "missing": 5, "unknown_scheme": 2}


def test_a_list_takes_files_whatever_they_are_called_and_leaves_nothing_out(folder: Path) -> None:
    (folder / ".hidden").touch()
    (folder / "list.txt").write_text("../" + folder.name + "/.hidden\nb.jpg")
    sources = resolve_sources([ListFile(str(folder / "list.txt"))])
    found = list(scan(sources, skipped=Counter(), selection=Selection.of(["*.png"], ["b*"])))
    assert [Path(entry.uri).name for entry in found] == [".hidden", "b.jpg"]
    # What a list no longer names is not gone.
    assert whole_folders(sources) == []


def test_dots_behind_a_link_mean_what_they_mean_to_the_system(folder: Path) -> None:
    (folder / "link").symlink_to("a")
    (folder / "list.txt").write_text("link/../b.jpg\nlink/c.jpg")
    assert listed(folder / "list.txt")[0] == ["b.jpg", "link/c.jpg"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes names that are not UTF-8")
def test_a_name_that_is_not_utf8(folder: Path) -> None:
    (folder / os.fsdecode(b"caf\xe9.jpg")).touch()
    (folder / "list.txt").write_bytes(b"caf\xe9.jpg\nb.jpg\nhttp://host/caf\xe9.jpg\n")
    assert listed(folder / "list.txt") == (["b.jpg", "file://caf%E9.jpg"], {"missing": 1})
    parquet.write_table(pa.table({"path": [b"caf\xe9.jpg", b"b.jpg", None]}), folder / "list.parquet")
    assert listed(folder / "list.parquet") == (["b.jpg", "file://caf%E9.jpg"], {"blank": 1})


def test_members_of_archives_and_other_sources_stand_beside_it(folder: Path) -> None:
    with tarfile.open(folder / "0.tar", "w") as archive:
        archive.add(folder / "b.jpg", "m.jpg")
    (folder / "list.txt").write_text(f"tar://{folder}/0.tar#m.jpg\nb.jpg\nTAR://{folder}/0.tar#m.jpg")
    named = [str(folder / "a"), str(folder / "0.tar"), ListFile(str(folder / "list.txt"))]
    skipped: Counter[str] = Counter()
    found = [entry.uri for entry in scan(resolve_sources(named), skipped=skipped)]
    assert found == [f"{folder}/a/c.jpg", f"{folder}/b.jpg", f"tar://{folder}/0.tar#m.jpg"]
    assert skipped == {"duplicate": 1}


def test_which_column(folder: Path) -> None:
    several = write_csv(folder / "a.csv", ["id", "photo", "url"], ["1", "b.jpg", "no.jpg"], ["2"], [])
    assert listed(several, "photo") == (["b.jpg"], {"blank": 2})
    # The one whose name says so.
    assert listed(several) == ([], {"missing": 1, "blank": 2})
    assert listed(write_csv(folder / "b.csv", ["x"], ["b.jpg"]))[0] == ["b.jpg"]
    (folder / "c.tsv").write_text("n\tfile\n1\tb.jpg\n")
    assert listed(folder / "c.tsv", "file")[0] == ["b.jpg"]


@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        ("a.csv", b"x,y\n1,2\n", None, "say with --column where the paths are; there are 'x', 'y'"),
        ("a.csv", b"x,y\n1,2\n", "z", "has no column 'z', but 'x', 'y'"),
        ("a.csv", b"", None, "there are none"),
        ("a.txt", b"b.jpg\n", "path", "is text, one path a line; it has no column 'path'"),
        ("a.parquet", b"no parquet", None, "can't be read as a list"),
        ("a.csv", b'path\n"b.jpg', None, "can't be read as a list: unexpected end of data"),
        ("a.csv", b"path\n" + b"x" * 200_000, None, "can't be read as a list: field larger than"),
    ],
)
def test_what_is_no_list_is_told_in_one_line(
    folder: Path, name: str, content: bytes, column: str | None, message: str
) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises((UsageError, SourceError), match=message) as caught:
        listed(folder / name, column)
    assert str(caught.value).isprintable()


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "no.csv", tmp_path):
        with pytest.raises(SourceNotFoundError, match="is no file"):
            resolve_sources([ListFile(str(path))])
    (tmp_path / "a.txt").touch()
    sources = resolve_sources([ListFile(str(tmp_path / "a.txt"))])
    (tmp_path / "a.txt").unlink()
    with pytest.raises(SourceError, match="No such file"):
        list(scan(sources, skipped=Counter()))


def test_sorting_goes_by_code_points_and_keeps_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchcap.storage.sorting._MAX_MEMORY_KIB", 64)
    uris = [f"/{c}{n}" for n in range(2000) for c in ("\U0001f600", "\uffee", "z", "\u00e9", "\n", "-", "/")]
    entries = [FileEntry(uri, place, place, None) for place, uri in enumerate([*uris, *reversed(uris)])]
    skipped: Counter[str] = Counter()
    found = list(sort_entries(entries, skipped))
    assert [entry.uri for entry in found] == sorted(uris)
    assert all(entry.size_bytes >= len(uris) for entry in found)
    assert skipped == {"duplicate": len(uris)}


# --- queries ---


@pytest.fixture
def database(folder: Path) -> str:
    with sqlite3.connect(folder / "photos.db") as connection:
        connection.execute("CREATE TABLE photo (path TEXT, year INTEGER)")
        paths = ["a/c.jpg", "a-b.jpg", "no.jpg", None, "b.jpg"]
        rows = [("b.jpg", 2023), *((path, 2024) for path in paths)]
        connection.executemany("INSERT INTO photo VALUES (?, ?)", rows)
    connection.close()
    return f"sqlite:///{folder / 'photos.db'}"


def test_a_query_names_files_in_its_first_column(
    folder: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    query = "SELECT path, year FROM photo WHERE year > 2023 OR path LIKE '%:b.jpg'"
    skipped: Counter[str] = Counter()
    sources = resolve_sources([Query(query, database), "a"])
    found = [entry.uri for entry in scan(sources, skipped=skipped)]
    assert found == [f"{folder}/{name}" for name in ("a-b.jpg", "a/c.jpg", "b.jpg")]
    assert skipped == {"missing": 1, "blank": 1}
    assert whole_folders(sources[:1]) == []


def test_a_query_writes_nothing(folder: Path, database: str) -> None:
    for statement in ("DELETE FROM photo", "DELETE FROM photo RETURNING path"):
        try:
            list(scan(resolve_sources([Query(statement, database, str(folder))]), skipped=Counter()))
        except SourceError as error:
            assert "the query gives no rows" in str(error)
    with closing(sqlite3.connect(folder / "photos.db")) as connection:
        assert connection.execute("SELECT count(*) FROM photo").fetchall() == [(6,)]


@pytest.mark.parametrize(
    ("url", "statement", "error", "message"),
    [
        ("sqlite:///no.db", "SELECT 1", SourceNotFoundError, "there is no database at sqlite:///no.db"),
        ("no url", "SELECT 1", UsageError, "--database a database can't be used: Could not parse"),
        ("mystery://host/x", "SELECT 1", UsageError, "can't be used: Can't load plugin"),
        (
            "postgresql://me:secret@127.0.0.1:1/x",
            "SELECT 1",
            SourceError,
            r":1/x can't answer",
        ),
        ("", "SELECT path FROM nowhere", SourceError, "can't answer: no such table: nowhere"),
        ("", "SELECT path, FROM photo", SourceError, "can't answer: near"),
    ],
)
def test_a_query_that_can_not_be_answered(
    database: str, url: str, statement: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        list(scan(resolve_sources([Query(statement, url or database)]), skipped=Counter()))
    assert str(caught.value).isprintable()
    assert "secret" not in str(caught.value)
