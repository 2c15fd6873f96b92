"""Captions to other programs and back."""

import csv
import json
import os
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from batchcap.catalog import Captioned, CaptionFilter, Catalog, ModelInfo
from batchcap.errors import ExchangeError, UsageError
from batchcap.exchange.exporting import Sidecar, export_sidecars, export_table
from batchcap.exchange.importing import import_captions
from batchcap.exchange.xmp import description, with_description
from model_training.datasets import read_texts
from tests.test_xmp import DARKTABLE, LIGHTROOM

NAMES = {"a.jpg": "a dog, two cats", "sub/b c.png": 'a "red" boat', "sub/d.jpg": "a cow"}
TAKEN = datetime(2024, 6, 1, 12)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    return tmp_path / "photos"


@pytest.fixture
def catalog(photos: Path, tmp_path: Path):
    rows = [
        Captioned(
            str(photos / name),
            1,
            1,
            None,
            f"content of {name}",
            30,
            20,
            "jpeg",
            TAKEN,
            text,
            -1,
            0.5,
            3,
            *(("Ace, “One”", 48.8584, -2.2945) if name == "a.jpg" else ()),
        )
        for name, text in NAMES.items()
    ]
    with Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}", mode="write") as opened:
        with opened.run([], ModelInfo("f" * 64, "small"), {}) as run:
            run.commit(rows)
        yield opened


def captions(catalog: Catalog) -> dict[str, tuple[str, str]]:
    return {
        Path(row.uri).name: (row.caption, row.source) for batch in catalog.live_captions() for row in batch
    }


ALL = CaptionFilter()


def test_tables_say_the_same(catalog: Catalog, photos: Path, tmp_path: Path) -> None:
    catalog.write_captions([(str(photos / "a.jpg"), "Rex & Zoë")])
    for suffix in ("csv", "jsonl", "parquet"):
        assert export_table(catalog, tmp_path / f"out.{suffix}", ALL) == 3
    expected = [row._asdict() for batch in catalog.live_captions() for row in batch]
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == expected
    plain = [
        {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
        for row in expected
    ]
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == plain
    assert "Rex & Zoë" in lines[0]
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == [
            {name: "" if value is None else str(value) for name, value in row.items()} for row in plain
        ]
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_table_replaces_nothing_unless_it_is_told_to(catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "out.CSV"
    path.write_text("mine")
    with pytest.raises(UsageError, match="add --overwrite"):
        export_table(catalog, path, ALL)
    assert path.read_text() == "mine"
    assert export_table(catalog, path, ALL, overwrite=True) == 3
    with pytest.raises(UsageError, match=r"one of \.csv, \.jsonl, \.parquet, \.tsv"):
        export_table(catalog, tmp_path / "out.txt", ALL)
    with pytest.raises(UsageError, match="can't write .*: No such file"):
        export_table(catalog, tmp_path / "nowhere" / "out.csv", ALL)
    assert export_table(catalog, tmp_path / "empty.parquet", CaptionFilter(under="/x")) == 0
    assert pq.read_table(tmp_path / "empty.parquet").num_rows == 0


def test_training_reads_what_people_wrote(catalog: Catalog, photos: Path, tmp_path: Path) -> None:
    uris = [str(photos / name) for name in NAMES]
    assert export_table(catalog, tmp_path / "none.tsv", ALL, people_only=True) == 0
    catalog.write_captions([(uris[0], "Rex"), (uris[1], "our boat")])
    # A copy is no second picture to learn from.
    (photos / "copy.jpg").touch()
    with catalog.run([], ModelInfo("f" * 64, "small"), {}) as run:
        copy = Captioned(
            str(photos / "copy.jpg"), 1, 1, None, "content of a.jpg", 3, 2, "jpeg", None, "x", -1, 0, 1
        )
        run.commit([copy])
    below = CaptionFilter(under=str(photos))
    assert export_table(catalog, tmp_path / "people.tsv", below, people_only=True) == 2
    assert (tmp_path / "people.tsv").read_text() == "image\tcaption\na.jpg\tRex\nsub/b c.png\tour boat\n"
    texts, _ = read_texts(tmp_path / "people.tsv", unseen=())
    assert [text.lower() for text in texts] == ["rex", "our boat"]


def test_text_beside_the_pictures(catalog: Catalog, photos: Path) -> None:
    (photos / "sub" / "d.txt").write_text("my own notes")
    first = export_sidecars(catalog, Sidecar.TXT, ALL)
    assert (first.written, first.kept, first.failed) == (2, [str(photos / "sub" / "d.txt")], [])
    assert (photos / "sub" / "b c.txt").read_text() == 'a "red" boat\n'
    assert (photos / "sub" / "d.txt").read_text() == "my own notes"
    # What is ours is replaced, and what says so already stays as it is.
    os.utime(photos / "a.txt", ns=(5, 5))
    catalog.write_captions([(str(photos / "sub" / "b c.png"), "our boat")])
    second = export_sidecars(catalog, Sidecar.TXT, ALL)
    assert (second.written, second.unchanged, len(second.kept)) == (1, 1, 1)
    assert (photos / "sub" / "b c.txt").read_text() == "our boat\n"
    assert (photos / "a.txt").stat().st_mtime_ns == 5
    assert export_sidecars(catalog, Sidecar.TXT, ALL, people_only=True, overwrite=True).unchanged == 1
    assert export_sidecars(catalog, Sidecar.TXT, ALL, overwrite=True).written == 1
    assert (photos / "sub" / "d.txt").read_text() == "a cow\n"


def test_what_can_not_be_written_beside(catalog: Catalog, photos: Path) -> None:
    (photos / "a.png").touch()
    (photos / "a.txt").mkdir()
    with catalog.run([], ModelInfo("f" * 64, "small"), {}) as run:
        rows = [
            (str(photos / "a.png"), "other"),
            ("s3://bucket/x.jpg", "far"),
            (str(photos / "gone.jpg"), "g"),
        ]
        run.commit(
            [Captioned(uri, 1, 1, None, content, 3, 2, "png", None, "x", -1, 0, 1) for uri, content in rows]
        )
    report = export_sidecars(catalog, Sidecar.TXT, ALL)
    assert (report.written, report.kept, report.not_local) == (2, [], 1)
    assert {Path(name).name: what for name, what in report.failed} == {
        "a.txt": "it is another picture's already, not that of a.png",
        "gone.txt": "the picture is not there",
    }


def test_xmp_beside_the_pictures_and_back(catalog: Catalog, photos: Path) -> None:
    lightroom, darktable = photos / "a.xmp", photos / "sub" / "d.jpg.xmp"
    lightroom.write_bytes(LIGHTROOM)
    lightroom.chmod(0o640)
    darktable.write_bytes(DARKTABLE)
    report = export_sidecars(catalog, Sidecar.XMP, ALL)
    # A person has described the first: that stays.
    assert (report.written, report.kept, report.failed) == (2, [str(lightroom)], [])
    assert lightroom.read_bytes() == LIGHTROOM
    assert darktable.read_bytes() == with_description(DARKTABLE, "a cow")
    assert description((photos / "sub" / "b c.png.xmp").read_bytes()) == 'a "red" boat'
    # What was exported is no person's for that, but what a person described is.
    taken = import_captions(catalog, [photos])
    assert (taken.written, taken.unchanged, taken.unknown, taken.left_out) == (1, 2, [], [])
    assert captions(catalog)["a.jpg"] == ("Gränna, evening & lake", "human")
    assert captions(catalog)["d.jpg"] == ("a cow", "model")
    # Now the catalog says what the sidecar says; after an edit it is ours to replace.
    assert export_sidecars(catalog, Sidecar.XMP, ALL).unchanged == 3
    catalog.write_captions([(str(photos / "a.jpg"), "Gränna")])
    assert export_sidecars(catalog, Sidecar.XMP, ALL).written == 1
    assert lightroom.read_bytes() == with_description(LIGHTROOM, "Gränna")
    assert lightroom.stat().st_mode & 0o777 == 0o640
    # Beside a raw picture of that name the sidecar is not the JPEG's.
    (photos / "a.CR2").touch()
    assert export_sidecars(catalog, Sidecar.XMP, ALL).written == 1
    assert (photos / "a.jpg.xmp").exists()
    darktable.write_bytes(b"<a>")
    (failed,) = export_sidecars(catalog, Sidecar.XMP, ALL).failed
    assert failed[0] == str(darktable) and failed[1].startswith("it is no XMP: no element found")
    assert not list(photos.rglob(".tmp-*"))


def test_a_sidecar_that_is_a_link_stays_one(catalog: Catalog, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "real.xmp").write_bytes(DARKTABLE)
    (photos / "a.jpg.xmp").symlink_to(tmp_path / "real.xmp")
    assert export_sidecars(catalog, Sidecar.XMP, CaptionFilter(under=str(photos / "a.jpg"))).written == 1
    assert (photos / "a.jpg.xmp").is_symlink()
    assert description((tmp_path / "real.xmp").read_bytes()) == "a dog, two cats"


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_table_that_a_person_has_corrected_comes_back(
    catalog: Catalog, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"out.{suffix}"
    export_table(catalog, path, ALL)
    path.write_text(path.read_text().replace("a cow", "Berta"))
    report = import_captions(catalog, [path])
    assert (report.written, report.unchanged, report.left_out) == (1, 2, [])
    assert captions(catalog)["d.jpg"] == ("Berta", "human")
    assert captions(catalog)["a.jpg"] == ("a dog, two cats", "model")


def test_another_models_captions(catalog: Catalog, photos: Path) -> None:
    table = photos / "captions.tsv"
    table.write_text("image\tcaption\r\na.jpg\ta hound\r\nsub/d.jpg\ta bull\n\nnowhere.jpg\tx\nsub/d.jpg\n")
    catalog.write_captions([(str(photos / "a.jpg"), "Rex")])
    report = import_captions(catalog, [table], model="gpt")
    assert (report.written, report.unknown) == (2, [str(photos / "nowhere.jpg")])
    assert report.left_out == [(f"{table}, line 6", "it names no file")]
    assert captions(catalog)["a.jpg"] == ("Rex", "human")
    assert captions(catalog)["d.jpg"] == ("a bull", "model")
    assert catalog.search("", where=CaptionFilter(model="gpt")).total == 1
    assert import_captions(catalog, [table], model="gpt").unchanged == 2
    # A later version of that model's captions is another model of that name.
    table.write_text("image\tcaption\nsub/d.jpg\tan ox\n")
    assert import_captions(catalog, [table], model="gpt").written == 1
    assert captions(catalog)["d.jpg"] == ("an ox", "model")


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("x.csv", "", ExchangeError, "must name the columns uri and caption"),
        ("x.csv", "image,words\n", ExchangeError, "must name the columns"),
        ("x.csv", 'image,caption\n"a', ExchangeError, "is damaged"),
        ("x.csv", b"image,caption\na,\xff", ExchangeError, "no text in UTF-8"),
        ("x.csv", "image,caption\na," + "x" * 200_000, ExchangeError, "field larger"),
        ("x.jsonl", "{}\n[1]", ExchangeError, "line 2 is no object"),
        ("x.jsonl", '{"uri": ', ExchangeError, "line 1: "),
        ("x.jsonl", "[" * 100_000, ExchangeError, "is damaged"),
        ("x.jsonl", '{"uri": "\\ud800", "caption": "a"}', ExchangeError, "is damaged"),
        ("x.txt", "a dog", UsageError, "only .csv, .tsv, .jsonl and .xmp"),
    ],
)
def test_tables_that_can_not_be_read(
    catalog: Catalog, tmp_path: Path, name: str, content: str | bytes, error: type[Exception], words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=words) as caught:
        import_captions(catalog, [path])
    assert "\n" not in str(caught.value)


def test_rows_that_are_no_captions_are_left_out(catalog: Catalog, photos: Path, tmp_path: Path) -> None:
    rows = [
        {"image": "a.jpg", "text": ""},
        {"file_name": "a.jpg", "caption": 5},
        {"caption": "of nothing"},
        {"uri": "a.jpg", "caption": "a\u0000b"},
        {"uri": "sub/d.jpg", "caption": "Berta\nsleeps"},
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (photos / "a.xmp").write_bytes(DARKTABLE)
    (photos / "sub" / "d.xmp").write_bytes(b"no XML")
    report = import_captions(
        catalog, [tmp_path / "x.jsonl", photos, tmp_path / "gone.xmp"], below=str(photos)
    )
    assert report.written == 1 and captions(catalog)["d.jpg"] == ("Berta sleeps", "human")
    assert [what for _, what in report.left_out] == [
        "a caption can't be empty",
        "a caption can't be empty",
        "it names no file",
        "a caption can't hold characters that control, or bytes that are no UTF-8",
        "it has no description",
        "it is no XMP: syntax error: line 1, column 0",
        "No such file or directory",
    ]
