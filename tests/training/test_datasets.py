"""Captions in every format that people have -> images to train on and images to choose on."""

import csv
import io
import json
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from batchcap.errors import BatchcapError, TrainingError, UsageError
from model_training import datasets, train_model
from model_training.datasets import CaptionedImage, Format, read_dataset, read_subset
from tests.conftest import DataSet

A, B, C = "1000092795.jpg", "2199200615.jpg", "größe 3.jpg"
# The same captions in every format: a repeated one, quotes, commas, a bar, no ASCII; none of C's second.
WANTED = {
    A: ('Two men, "friends", look at their hands .', "Two men | hands ."),
    B: ("A dog runs across the grass .", "A dog runs across the grass ."),
    C: ("Ein Hund läuft – 犬 🐕 .",),
}
LINES = [(name, caption) for name, captions in WANTED.items() for caption in captions] + [(C, " ")]


def flickr30k_csv() -> str:
    lines = [f"{name}| {number}| {caption}" for number, (name, caption) in enumerate(LINES)]
    # As in the file that Kaggle has: the separator before the comment is missing.
    lines[3] = f"{B}| 4   A dog runs across the grass ."
    return "\n".join(["image_name| comment_number| comment", *lines])


def flickr8k_token() -> str:
    return "\n".join(f"{name}#{number}\t{caption}" for number, (name, caption) in enumerate(LINES))


def tsv() -> str:
    return "\n".join(["id\tcaption\timage", *(f"7\t{caption}\t{name}" for name, caption in LINES)])


def csv_text() -> str:
    file = io.StringIO()
    csv.writer(file).writerows([("image", "id", "caption"), *((name, 7, caption) for name, caption in LINES)])
    return file.getvalue()


def karpathy(*splits: str, folder: str | None = None) -> str:
    """Images A, B and C in these splits; in none where none are given."""
    images = []
    for number, name in enumerate(WANTED):
        texts = [caption for image, caption in LINES if image == name]
        image = {"filename": name, "sentences": [{"raw": text, "tokens": ["annotations"]} for text in texts]}
        image |= {"split": splits[number]} if splits else {}
        images.append(image | ({"filepath": folder} if folder else {}))
    return json.dumps({"images": images, "dataset": "flickr8k"}, ensure_ascii=False)


def coco() -> str:
    images = [{"id": number, "file_name": name} for number, name in enumerate(WANTED)]
    annotations = [{"image_id": list(WANTED).index(name), "caption": text} for name, text in LINES]
    return json.dumps({"info": {}, "images": images, "annotations": annotations})


TEXTS: dict[Format, str] = {
    "flickr30k-csv": flickr30k_csv(),
    "karpathy": karpathy(),
    "coco": coco(),
    "flickr8k-token": flickr8k_token(),
    "tsv": tsv(),
    "csv": csv_text(),
}


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def names(images: tuple[CaptionedImage, ...]) -> list[str]:
    return [image.name for image in images]


@pytest.mark.parametrize("format", TEXTS)
@pytest.mark.parametrize("dress", ["as it is", "BOM", "CRLF", "blank lines"])
def test_every_format_is_told_and_read_alike(format: Format, dress: str, tmp_path: Path) -> None:
    text = TEXTS[format]
    if dress == "BOM":
        text = "\ufeff" + text
    elif dress == "CRLF":
        text = text.replace("\r\n", "\n").replace("\n", "\r\n")
    elif dress == "blank lines":
        text = f"\n\n{text}\n\n"
    path = write(tmp_path / "captions", text)
    for given_format in ("auto", format):
        found = read_dataset(path, format=given_format, dev_share=0.4)
        assert {image.name: image.captions for image in found.train + found.dev} == WANTED
        assert (len(found.train), len(found.dev)) == (2, 1)
        assert f"(read as {format}): 5 captions of 3 images; 2 to train on, 1 to choose on" in found.summary
        assert found.summary.endswith("; left out: 1 empty captions")
        assert "\n" not in found.summary


def test_every_format_has_its_file_above() -> None:
    assert {"auto", *TEXTS} == set(get_args(Format))


def test_karpathys_split_is_followed_and_its_test_images_are_not_used(tmp_path: Path) -> None:
    path = write(tmp_path / "dataset.json", karpathy("restval", "val", "test", folder="val2014"))
    found = read_dataset(path)
    assert names(found.train) == [f"val2014/{A}"]
    assert names(found.dev) == [f"val2014/{B}"]
    assert "split by the split in dataset.json" in found.summary
    assert "1 images of neither split" in found.summary
    for subset, name in (("train", A), ("val", B), ("test", C), (None, B)):
        images, summary = read_subset(path, subset=subset)
        assert names(images) == [f"val2014/{name}"]
        assert f"1 images of {subset or 'val'} to score on" in summary


def test_files_of_names_decide_before_the_captions_own_split(tmp_path: Path) -> None:
    path = write(tmp_path / "dataset.json", karpathy("train", "val", "test"))
    train = write(tmp_path / "train.txt", f"\ufeff{C} \r\n{A}\r\n{C}\r\nunknown.jpg\r\n\r\n")
    dev = write(tmp_path / "dev.txt", B)
    found = read_dataset(path, train_split=train, dev_split=dev)
    assert (names(found.train), names(found.dev)) == ([C, A], [B]), "in the order of the split, each once"
    assert found.summary.endswith("left out: 1 empty captions, 1 names without captions")
    assert names(read_subset(path, split=train)[0]) == [C, A]
    assert names(read_subset(path, split=train, limit=1)[0]) == [C]
    assert names(read_dataset(path, train_split=train, dev_split=dev, limit=1).train) == [C]


def test_the_images_of_a_data_set_are_those_of_its_splits(data_set: DataSet) -> None:
    found = read_dataset(data_set.captions, train_split=data_set.train_split, dev_split=data_set.dev_split)
    assert names(found.train) == data_set.train_split.read_text().split()
    assert names(found.dev) == data_set.dev_split.read_text().split()
    assert found.train[0].captions == ("A red square .", "The square is red , all of it .")
    assert "left out: 1 images of neither split" in found.summary


@given(
    lines=st.lists(st.tuples(st.sampled_from("abcdefghij"), st.sampled_from(["x", "y"])), min_size=2).filter(
        lambda lines: len({name for name, _ in lines}) > 1
    ),
    share=st.floats(0.001, 0.999),
    seed=st.integers(),
    order=st.randoms(),
)
def test_no_image_is_in_both_splits(
    tmp_path_factory: pytest.TempPathFactory, lines: list, share: float, seed: int, order
) -> None:
    """A split by caption would put most images on both sides."""
    path = tmp_path_factory.getbasetemp() / "leak.tsv"
    write(path, "\n".join(["image\tcaption", *map("\t".join, lines)]))
    found = read_dataset(path, dev_share=share, seed=seed)
    train, dev = set(names(found.train)), set(names(found.dev))
    assert train and dev and not train & dev
    assert train | dev == {name for name, _ in lines}
    assert sum(len(image.captions) for image in found.train + found.dev) == len(lines)
    assert len(dev) == pytest.approx(share * len(train | dev), abs=1)
    order.shuffle(lines)
    write(path, "\n".join(["image\tcaption", *map("\t".join, lines)]))
    assert set(names(read_dataset(path, dev_share=share, seed=seed).dev)) == dev


def test_the_drawn_split_follows_the_seed(tmp_path: Path) -> None:
    path = write(
        tmp_path / "captions.csv", "image,caption\n" + "".join(f"{i}.jpg,A cat\n" for i in range(200))
    )
    first, again, other = (names(read_dataset(path, seed=seed).dev) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 10


words = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n\t")).map(str.strip).filter(bool)


@pytest.mark.parametrize("delimiter", ["\t", ","])
@given(lines=st.dictionaries(words, st.lists(words, min_size=1), min_size=2))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, delimiter: str, lines: dict[str, list[str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip"
    rows = [("image", "caption"), *((name, text) for name, texts in lines.items() for text in texts)]
    if delimiter == ",":
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
    else:
        write(path, "\n".join(map("\t".join, rows)))
    found = read_dataset(path)
    assert {i.name: i.captions for i in found.train + found.dev} == {k: tuple(v) for k, v in lines.items()}


@pytest.mark.parametrize(
    ("text", "left_out"),
    [
        ("image\tcaption\na\tA cat\nb\tA\tdog\nc\nd\tA cow\n", "2 damaged lines"),
        ("image,caption\na,A cat\nb,A cat, small\nd,A cow\n", "1 damaged lines"),
        ("image,caption\na,A cat\n,A dog\nd,A cow\nd\0,A cow", "2 captions without an image"),
        (
            "a#0\tA cat\nb A dog\nd#1\tA cow\ne#0\t\n",
            "1 damaged lines, 1 empty captions, 1 images without captions",
        ),
        ("image_name| comment_number| comment\na| 0| A cat\nb| A dog\nd| 0| A cow\n", "1 damaged lines"),
        (
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "d"},'
            ' {"id": 3, "file_name": "e"}], "annotations": [{"image_id": 1, "caption": "A cat"},'
            ' {"image_id": 9, "caption": "A dog"},'
            ' {"image_id": 2, "caption": "A cow"}, {"image_id": 2, "caption": null}]}',
            "1 captions without an image, 1 empty captions, 1 images without captions",
        ),
        (
            '{"images": [{"filename": "a", "split": "train", "sentences":'
            ' [{"raw": "A cat"}, {"tokens": []}]},'
            ' {"filename": "d", "split": "val", "sentences": [{"raw": "A cow"}]},'
            ' {"filename": "e", "split": "val", "sentences": []}]}',
            "1 empty captions, 1 images without captions",
        ),
    ],
)
def test_what_can_not_be_used_is_counted(text: str, left_out: str, tmp_path: Path) -> None:
    found = read_dataset(write(tmp_path / "captions", text))
    assert {image.name: image.captions for image in found.train + found.dev} == {
        "a": ("A cat",),
        "d": ("A cow",),
    }
    assert found.summary.endswith(f"; left out: {left_out}")


def test_an_image_listed_twice_keeps_all_its_captions(tmp_path: Path) -> None:
    twice = {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "A cat"}]}
    other = {"filename": "b.jpg", "split": "val", "sentences": [{"raw": "A dog"}]}
    path = write(tmp_path / "dataset.json", json.dumps({"images": [twice, other, twice]}))
    assert read_dataset(path).train == (CaptionedImage("a.jpg", ("A cat", "A cat")),)


def test_halves_of_surrogate_pairs_harm_nobody(tmp_path: Path) -> None:
    path = write(
        tmp_path / "captions.json", coco().replace("1000092795", r"\ud800").replace("A dog", r"\udfff")
    )
    for image in (found := read_dataset(path)).train + found.dev:
        "".join([image.name, *image.captions]).encode()


TABLE = "image,caption\na.jpg,A cat\nb.jpg,A dog\n"
IN_BOTH = karpathy("train", "val", "test").replace(B, A)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (None, {}, "can't read the captions: "),
        (b"\xff\xfei\0m\0", {}, "not UTF-8 text; convert it"),
        (b"\x89PNG\r\n\x1a\n\xff", {}, "not UTF-8 text"),
        ("", {}, "can't tell the format of .* which starts with ''; give --format"),
        ("file\ttext\na\tA cat\n", {}, "names the columns image and caption"),
        ("[1, 2]", {}, "can't tell the format"),
        ('{"images": []}', {}, "can't tell the format"),
        ("x" * 1_000_000, {}, "can't tell the format"),
        (
            "file,text\na,A cat\n",
            {"format": "csv"},
            r"needs the columns image and caption, but has \['file', 't",
        ),
        ("file\ttext\na\tA cat\n", {"format": "tsv"}, "needs the columns image and caption"),
        (TABLE, {"format": "coco"}, "damaged or needs another --format: Expecting value"),
        (
            TABLE,
            {"format": "flickr30k-csv"},
            "no image has a caption; .* --format.* left out: 3 damaged lines",
        ),
        (TABLE, {"format": "flickr8k-token"}, "no image has a caption"),
        (coco(), {"format": "karpathy"}, "it lacks 'filename'"),
        (karpathy(), {"format": "coco"}, "it lacks 'file_name'"),
        (karpathy()[:-9], {}, "damaged or needs another --format"),
        ('{"annotations": ' * 100_000, {}, "damaged or needs another --format"),
        ('{"images": {"a": 1}, "sentences": 1}', {}, "damaged or needs another --format"),
        ('{"images": [{"filename": 7, "sentences": []}]}', {}, "7 is no text"),
        (coco().replace('"id": 1', '"id": 0'), {}, f"{A} and {B} have the same id"),
        ('image,caption\na.jpg,"A cat\nb.jpg,A dog\n', {}, "damaged or needs .* unexpected end of data"),
        ("image,caption\na.jpg," + "x" * 200_000, {}, "field larger than field limit"),
        ("image,caption\na.jpg, \nb.jpg,\n", {}, "no image has a caption; .* 2 empty captions, 2 images"),
        ("image,caption\na.jpg,A cat\n", {}, "one image can't be split in two"),
        (
            karpathy("train", "validation", "test"),
            {},
            "has the split 'validation', but known are train, restval",
        ),
        (karpathy("train", "train", "test"), {}, "no image of val has a caption"),
        (IN_BOTH, {}, f"1 images are in both train and val, such as '{A}'; take them out of one"),
        (karpathy("train", "val", "test").replace(C, A), {}, "1 images are in both train and test"),
        (
            TABLE,
            {"train_split": "a.jpg\n", "dev_split": "b.jpg\na.jpg"},
            "1 images are in both .*train_split and ",
        ),
        (
            TABLE,
            {"train_split": "a.jpg\n", "dev_split": "c.jpg\n"},
            "no image of .*dev_split has a caption in",
        ),
        (TABLE, {"train_split": "\n", "dev_split": "b.jpg\n"}, "no image of .*train_split has a caption in"),
    ],
)
def test_what_can_not_work_is_one_line_that_says_why(
    text: str | bytes | None, options: dict[str, str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "captions"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    splits = {key: write(tmp_path / key, value) for key, value in options.items() if key != "format"}
    with pytest.raises(TrainingError, match=message) as raised:
        read_dataset(path, **{**options, **splits})
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_split": Path("a")}, "--train_split and --dev_split belong together"),
        ({"dev_split": Path("a")}, "--train_split and --dev_split belong together"),
        ({"dev_share": 0.0}, "--dev_share is 0.0, but must be"),
        ({"dev_share": 1.0}, "--dev_share is 1.0, but must be"),
        ({"dev_share": float("nan")}, "--dev_share is nan, but must be"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read_dataset(write(tmp_path / "captions", TABLE), **options)


def test_scoring_needs_to_know_on_what(tmp_path: Path) -> None:
    path = write(tmp_path / "captions.csv", TABLE)
    with pytest.raises(UsageError, match="has no split of its own; give --split a file"):
        read_subset(path)
    with pytest.raises(UsageError, match="has no split of its own"):
        read_subset(path, subset="test")
    with pytest.raises(UsageError, match="--split and --subset exclude each other"):
        read_subset(path, split=path, subset="val")
    with pytest.raises(TrainingError, match="can't read the split"):
        read_subset(path, split=tmp_path / "no.txt")
    with pytest.raises(TrainingError, match="images are in both train and val"):
        read_subset(write(tmp_path / "dataset.json", IN_BOTH))


@given(text=st.text(), format=st.sampled_from(get_args(Format)))
def test_any_text_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str, format: Format
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(text.encode("utf-8", "replace"))
    try:
        assert read_dataset(path, format=format).train
    except BatchcapError as error:
        assert error.exit_status == 1


def test_the_command_takes_the_options(tmp_path: Path) -> None:
    captions = write(tmp_path / "captions.csv", TABLE)
    common = ["--data", str(tmp_path), "--captions", str(captions), "--backbone_weights", "none"]
    for options, status, message in (
        (["--train_split", "train.txt"], 2, "give both or neither"),
        (["--dev_share", "1.5"], 2, "--dev_share is 1.5"),
        (["--format", "coco"], 1, "damaged or needs another --format"),
        (["--format", "xml"], 2, "flickr30k-csv"),
    ):
        result = CliRunner().invoke(train_model.app, [*common, *options])
        assert result.exit_code == status
        assert message in result.stderr


def test_the_formats_on_the_page_are_all_there_are() -> None:
    page = (Path(datasets.__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    assert all(f"`{format}`" in page for format in TEXTS)
