"""Captions in the formats that people have -> images to train on and images to choose on.

Readers yield one `_Record` a caption; what they have in common (counting, merging, splitting) follows once,
for all of them. Splits are by image, never by caption: an image that is trained on is not judged on.
"""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from batchcap.captioner.tokenizer import standardize
from batchcap.errors import TrainingError, UsageError

Format = Literal["auto", "flickr30k-csv", "karpathy", "coco", "flickr8k-token", "tsv", "csv"]
Subset = Literal["train", "val", "test"]

# Karpathy's splits; restval is what COCO's validation set has beyond val and test, for training.
_SUBSETS: dict[str, Subset] = {"train": "train", "restval": "train", "val": "val", "test": "test"}
# What tells one JSON from the other.
_JSON_KEYS: dict[str, Format] = {"sentences": "karpathy", "annotations": "coco"}
# One line of the file that Kaggle has lacks the separator before the comment.
_FLICKR30K_LINE = re.compile(r"([^|]+)\|\s*\d+\s*\|?(.*)")
_TOKEN_LINE = re.compile(r"(.+)#\d+\t(.*)")
# Characters that are looked at to tell a format.
_START = 4096


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """One image of a data set.

    Args:
        name: its path in the data folder.
        captions: what people wrote about it, as they wrote it.
    """

    name: str
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images with captions; none is in both `train` and `dev`, and each has a caption.

    Args:
        train: the images to train on.
        dev: the images to choose the best epoch on.
        split_by: what decided which image is where, in words.
        summary: what was read and what was left out, in one line.
    """

    train: tuple[CaptionedImage, ...]
    dev: tuple[CaptionedImage, ...]
    split_by: str
    summary: str


class _Record(NamedTuple):
    """One caption, or an image that has none.

    Args:
        name: of the image; empty where the file doesn't say.
        caption: None for an image that is listed without one.
        subset: where the file itself puts the image, if it does.
    """

    name: str
    caption: str | None
    subset: Subset | None = None


class _Part(NamedTuple):
    """The names of the images of one split, and where they come from."""

    source: str
    names: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Collection:
    """All that a file of captions says.

    Args:
        captions: of each image that has some, in the order of the file.
        subsets: their names, by the file's own split; empty where it has none.
        left_out: what could not be used, and how often.
        origin: file and format, for people.
    """

    captions: dict[str, list[str]]
    subsets: dict[Subset, tuple[str, ...]]
    left_out: Counter[str]
    origin: str

    def own_parts(self) -> tuple[_Part, _Part, _Part]:
        train, val, test = (_Part(name, self.subsets.get(name, ())) for name in get_args(Subset))
        return train, val, test

    def select(self, part: _Part, limit: int) -> tuple[CaptionedImage, ...]:
        images = tuple(
            CaptionedImage(name, tuple(self.captions[name])) for name in part.names if name in self.captions
        )
        if not images:
            raise TrainingError(f"no image of {part.source} has a caption in {self.origin}")
        return images[:limit] if limit else images

    def summary(self, use: str, left_out: Mapping[str, int]) -> str:
        captions, images = sum(map(len, self.captions.values())), len(self.captions)
        counts = {**self.left_out, **left_out}
        listed = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        read = f"{self.origin}: {captions:,} captions of {images:,} images"
        return f"{read}; {use}; left out: {listed or 'nothing'}"


def read_dataset(
    captions: Path,
    *,
    format: Format = "auto",
    train_split: Path | None = None,
    dev_split: Path | None = None,
    dev_share: float = 0.05,
    seed: int = 0,
    limit: int = 0,
) -> Dataset:
    """Reads captions and splits them by image.

    The files of names decide the split where there are some, else the captions' own split (its test images
    are not used at all), else chance.

    Args:
        captions: a file of one of the formats.
        format: its format; `auto` looks at its content.
        train_split: names of the images to train on, a name a line.
        dev_split: names of the images to choose on; both files or neither.
        dev_share: share of the images to choose on where chance decides, more than 0 and less than 1.
        seed: of the chance.
        limit: take so many images of each split at most; 0 for all.

    Raises:
        UsageError: the options make no sense.
        TrainingError: a file is missing, damaged or of no known format, an image is in both splits, or one of
            them has no image with a caption.
    """
    if (train_split is None) != (dev_split is None):
        raise UsageError("--train_split and --dev_split belong together; give both or neither")
    if not 0 < dev_share < 1:
        raise UsageError(f"--dev_share is {dev_share}, but must be more than 0 and less than 1")
    found = _read(captions, format)
    unused: list[_Part] = []
    if train_split is not None and dev_split is not None:
        train, dev = _read_names(train_split), _read_names(dev_split)
        split_by = f"{train_split.name} and {dev_split.name}"
    elif found.subsets:
        train, dev, *unused = found.own_parts()
        split_by = f"the split in {captions.name}"
    else:
        train, dev = _draw_parts(found, dev_share, seed)
        split_by = f"chance, image by image, with the seed {seed}"
    _check_disjoint(train, dev, *unused)
    used = {*train.names, *dev.names}
    train_images, dev_images = found.select(train, limit), found.select(dev, limit)
    summary = found.summary(
        f"{len(train_images):,} to train on, {len(dev_images):,} to choose on, split by {split_by}",
        {
            "images of neither split": len(found.captions.keys() - used),
            "names without captions": len(used - found.captions.keys()),
        },
    )
    return Dataset(train_images, dev_images, split_by, summary)


def read_subset(
    captions: Path,
    *,
    format: Format = "auto",
    split: Path | None = None,
    subset: Subset | None = None,
    limit: int = 0,
) -> tuple[tuple[CaptionedImage, ...], str]:
    """Reads the images of one split, to score on.

    Args:
        captions: a file of one of the formats.
        format: its format; `auto` looks at its content.
        split: names of the images, a name a line.
        subset: of the captions' own split instead; `val` where neither is given.
        limit: take so many images at most; 0 for all.

    Returns:
        The images, and what was read and left out, in one line.

    Raises:
        UsageError: the options make no sense, or the captions have no split of their own.
        TrainingError: as `read_dataset`.
    """
    if split is not None and subset is not None:
        raise UsageError("--split and --subset exclude each other; give one of them")
    found = _read(captions, format)
    if split is not None:
        part = _read_names(split)
    elif found.subsets:
        own = found.own_parts()
        _check_disjoint(*own)
        part = next(part for part in own if part.source == (subset or "val"))
    else:
        raise UsageError(
            f"{captions} has no split of its own; give --split a file of image names, such as the dev.txt"
            " that train_model leaves in a bundle"
        )
    images = found.select(part, limit)
    missing = len(set(part.names) - found.captions.keys())
    use = f"{len(images):,} images of {part.source} to score on"
    return images, found.summary(use, {"names without captions": missing})


def read_texts(
    captions: Path, *, unseen: Sequence[CaptionedImage], format: Format = "auto"
) -> tuple[tuple[str, ...], str]:
    """Reads captions without their images, to learn the language of captions from.

    An image of which a caption, word for word, is one of `unseen` may be one of these images under another
    name, as Flickr8k's photographs are in Flickr30k: all of its captions are left out.

    Args:
        captions: a file of one of the formats.
        unseen: the images to choose on, whose captions must stay unknown.
        format: its format; `auto` looks at its content.

    Returns:
        The captions, and what was read and left out, in one line.

    Raises:
        TrainingError: as `read_dataset`, or all captions are left out.
    """
    found = _read(captions, format)
    hidden = {standardize(caption) for image in unseen for caption in image.captions}
    kept: list[str] = []
    left_out = 0
    for texts in found.captions.values():
        if hidden.isdisjoint(map(standardize, texts)):
            kept += texts
        else:
            left_out += 1
    summary = found.summary(
        f"{len(kept):,} captions to read", {"images that may be among those to choose on": left_out}
    )
    if not kept:
        raise TrainingError(f"no caption is left to learn from; {summary}")
    return tuple(kept), summary


def _read(path: Path, format: Format) -> _Collection:
    text = _read_text(path, "captions").lstrip("\n ")
    known = _detect(text, path) if format == "auto" else format
    origin = f"{path} (read as {known})"
    try:
        found = _collect(_READERS[known](text), origin)
    # The last three: values of other types than the format has.
    except (ValueError, csv.Error, RecursionError, KeyError, TypeError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise TrainingError(f"{origin} is damaged or needs another --format: {reason}") from error
    if not found.captions:
        summary = found.summary("none to use", {})
        raise TrainingError(f"no image has a caption; repair the file or give another --format: {summary}")
    return found


def _read_text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TrainingError(
            f"can't read the {what}: {path} is not UTF-8 text; convert it ({error})"
        ) from error
    except (OSError, ValueError) as error:
        raise TrainingError(f"can't read the {what}: {error}") from error


def _read_names(split: Path) -> _Part:
    lines = _read_text(split, "split").split("\n")
    return _Part(str(split), list(dict.fromkeys(line.strip() for line in lines if line.strip())))


def _detect(text: str, path: Path) -> Format:
    first = text[:_START].partition("\n")[0]
    if text.startswith("{"):
        # JSON escapes quotes in strings, so these are keys.
        for key, format in _JSON_KEYS.items():
            if re.search(rf'"{key}"\s*:', text):
                return format
    elif _is_flickr30k_header(first):
        return "flickr30k-csv"
    elif _TOKEN_LINE.fullmatch(first):
        return "flickr8k-token"
    elif _has_columns(first.split("\t")):
        return "tsv"
    elif _has_columns(next(csv.reader([first]), [])):
        return "csv"
    raise TrainingError(
        f"can't tell the format of {path}, which starts with {first[:60]!r}; give --format, or a first line"
        " that names the columns image and caption"
    )


def _is_flickr30k_header(line: str) -> bool:
    return [field.strip() for field in line.split("|")] == ["image_name", "comment_number", "comment"]


def _has_columns(header: Sequence[str]) -> bool:
    return "image" in header and "caption" in header


def _collect(records: Iterable[_Record | None], origin: str) -> _Collection:
    captions: dict[str, list[str]] = {}
    subsets: dict[Subset, dict[str, None]] = {}
    left_out: Counter[str] = Counter()
    for record in records:
        if record is None:
            left_out["damaged lines"] += 1
            continue
        name = record.name.strip()
        if not name or "\0" in name or "\n" in name:
            left_out["captions without an image"] += 1
            continue
        texts = captions.setdefault(name, [])
        if record.subset:
            subsets.setdefault(record.subset, {})[name] = None
        if record.caption and record.caption.strip():
            texts.append(record.caption)
        elif record.caption is not None:
            left_out["empty captions"] += 1
    captioned = {name: texts for name, texts in captions.items() if texts}
    if len(captioned) < len(captions):
        left_out["images without captions"] = len(captions) - len(captioned)
    own = {subset: tuple(name for name in names if name in captioned) for subset, names in subsets.items()}
    return _Collection(captioned, own, left_out, origin)


def _draw_parts(found: _Collection, dev_share: float, seed: int) -> tuple[_Part, _Part]:
    """Draws the images to choose on: the same ones in whatever order the lines are."""
    count = len(found.captions)
    if count < 2:
        raise TrainingError(f"one image can't be split in two; give {found.origin} captions of another")
    drawn = sorted(found.captions, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    dev = set(drawn[: min(max(1, round(dev_share * count)), count - 1)])
    return (
        _Part("train", [name for name in found.captions if name not in dev]),
        _Part("dev", [name for name in found.captions if name in dev]),
    )


def _check_disjoint(*parts: _Part) -> None:
    for one, other in combinations(parts, 2):
        if both := sorted(set(one.names) & set(other.names)):
            raise TrainingError(
                f"{len(both):,} images are in both {one.source} and {other.source}, such as {both[0]!r};"
                " take them out of one"
            )


def _read_flickr30k_csv(text: str) -> Iterator[_Record | None]:
    for line in text.split("\n"):
        if found := _FLICKR30K_LINE.fullmatch(line):
            yield _Record(found[1], found[2].strip())
        elif line.strip() and not _is_flickr30k_header(line):
            yield None


def _read_flickr8k_token(text: str) -> Iterator[_Record | None]:
    for line in text.split("\n"):
        if found := _TOKEN_LINE.fullmatch(line):
            yield _Record(found[1], found[2])
        elif line.strip():
            yield None


def _read_tsv(text: str) -> Iterator[_Record | None]:
    return _read_table(line.split("\t") for line in text.split("\n"))


def _read_csv(text: str) -> Iterator[_Record | None]:
    return _read_table(csv.reader(io.StringIO(text), strict=True))


def _read_table(rows: Iterator[list[str]]) -> Iterator[_Record | None]:
    columns = next(rows, [])
    if not _has_columns(columns):
        raise ValueError(f"it needs the columns image and caption, but has {columns!s:.80}")
    image, caption = columns.index("image"), columns.index("caption")
    for row in rows:
        if len(row) == len(columns):
            yield _Record(row[image], row[caption])
        elif any(row):
            yield None


def _read_karpathy(text: str) -> Iterator[_Record]:
    for image in json.loads(text)["images"]:
        folder, split = image.get("filepath"), image.get("split")
        name = f"{folder}/{_text(image['filename'])}" if folder else _text(image["filename"])
        if split and split not in _SUBSETS:
            raise ValueError(f"{name} has the split {split!r}, but known are {', '.join(_SUBSETS)}")
        subset = _SUBSETS[split] if split else None
        yield _Record(name, None, subset)
        for sentence in image["sentences"]:
            yield _Record(name, _text(sentence.get("raw") or ""), subset)


def _read_coco(text: str) -> Iterator[_Record]:
    content = json.loads(text)
    names: dict[Any, str] = {}
    for image in content["images"]:
        name = _text(image["file_name"])
        if names.setdefault(image["id"], name) != name:
            raise ValueError(f"{names[image['id']]} and {name} have the same id")
        yield _Record(name, None)
    for annotation in content["annotations"]:
        yield _Record(names.get(annotation["image_id"], ""), _text(annotation.get("caption") or ""))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is no text")
    # JSON can spell halves of surrogate pairs, which no file and no vocabulary can hold.
    return value.encode("utf-8", "replace").decode()


_READERS: dict[Format, Callable[[str], Iterator[_Record | None]]] = {
    "flickr30k-csv": _read_flickr30k_csv,
    "karpathy": _read_karpathy,
    "coco": _read_coco,
    "flickr8k-token": _read_flickr8k_token,
    "tsv": _read_tsv,
    "csv": _read_csv,
}
