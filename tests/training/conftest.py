"""A captioned data set of coloured squares, small enough to train on in seconds."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "white": (240, 240, 240)}


@dataclass(frozen=True)
class DataSet:
    """Where a data set lies."""

    data: Path
    captions: Path
    train_split: Path
    dev_split: Path


@pytest.fixture(scope="session")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """24 pictures of one colour each, the last of them broken, with two captions each."""
    folder = tmp_path_factory.mktemp("squares")
    data = folder / "images"
    data.mkdir()
    rng = np.random.default_rng(0)
    names, lines = [], ["image\tcaption"]
    for number in range(24):
        colour = list(COLOURS)[number % len(COLOURS)]
        pixels = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 8, (48, 48, 3)), 0, 255)
        name = f"{number:02}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(data / name)
        names.append(name)
        lines += [f"{name}\tA {colour} square .", f"{name}\tThe square is {colour} , all of it ."]
    (data / names[-1]).write_bytes(b"not a picture")
    (folder / "captions.tsv").write_text("\n".join(lines) + "\n")
    (folder / "train.txt").write_text("\n".join([*names[:15], names[-1]]) + "\n")
    (folder / "dev.txt").write_text("\n".join(names[16:23]) + "\n")
    return DataSet(data, folder / "captions.tsv", folder / "train.txt", folder / "dev.txt")
