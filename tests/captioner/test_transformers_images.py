"""Image processors of transformers, read from their JSON; torch or not."""

import json
from pathlib import Path
from typing import Any

import pytest

from batchcap.captioner.images import ImageSpec
from batchcap.captioner.transformers_images import Preprocessing
from batchcap.errors import BundleError

COLOURS: dict[str, Any] = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.3, 0.2, 0.1]}
SQUARE = {"height": 64, "width": 64}


@pytest.mark.parametrize(
    ("values", "size", "resize", "crop_size"),
    [
        # As BLIP has it, as ViT had it, as CLIP (GIT) has it and had it, and with a margin.
        ({"size": {"height": 384, "width": 384}}, 384, "stretch", 384),
        ({"size": 224}, 224, "stretch", 224),
        ({"size": {"shortest_edge": 64}, "crop_size": SQUARE}, 64, "crop", 64),
        ({"size": 64, "crop_size": 64, "do_center_crop": True}, 64, "crop", 64),
        ({"size": {"shortest_edge": 72}, "crop_size": SQUARE}, 72, "crop", 64),
        ({"size": {"height": 72, "width": 72}, "crop_size": SQUARE}, 72, "stretch", 64),
        (
            {"size": SQUARE, "crop_size": {"height": 9, "width": 8}, "do_center_crop": False},
            64,
            "stretch",
            64,
        ),
    ],
)
def test_sizes(values: dict[str, Any], size: int, resize: Any, crop_size: int) -> None:
    found = Preprocessing.of(values | COLOURS)
    assert (found.image_spec, found.crop_size) == (ImageSpec(size, resize), crop_size)
    assert (found.scale, found.mean, found.std) == (1 / 255, (0.5, 0.4, 0.3), (0.3, 0.2, 0.1))


def test_numbers() -> None:
    raw = Preprocessing.of({"size": 64, "do_rescale": False, "do_normalize": False})
    assert (raw.scale, raw.mean, raw.std) == (1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert Preprocessing.of({"size": 64, "rescale_factor": 0.5} | COLOURS).scale == 0.5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": {"height": 384, "width": 512}}, "not square: size is 384 x 512"),
        ({"size": {"shortest_edge": 224}}, "not square: size is the shortest edge"),
        ({"size": {"longest_edge": 224}}, "longest_edge, not height and width"),
        ({"size": {}}, "size has nothing"),
        ({}, "size is None"),
        ({"size": "large"}, "size is 'large'"),
        ({"size": True}, "size is True"),
        ({"size": 0}, "size is 0"),
        ({"size": 10**9}, "not 1 to 4096 pixels"),
        ({"size": 64, "do_resize": False}, "does not resize"),
        ({"size": {"shortest_edge": 64}, "crop_size": 72}, "crop_size 72 is larger"),
        ({"size": {"shortest_edge": 64}, "crop_size": {"height": 8, "width": 9}}, "crop_size is 8 x 9"),
        ({"size": 64, "image_mean": None}, "image_mean is None"),
        ({"size": 64, "image_mean": [0.5]}, "three numbers"),
        ({"size": 64, "image_mean": [0.5, "a", 0.5]}, "could not convert"),
        ({"size": 64, "image_std": [0.5, 0, 0.5]}, "image_std is 0"),
        ({"size": 64, "image_std": [0.5, float("nan"), 0.5]}, "no number"),
        ({"size": 64, "rescale_factor": [1]}, "float"),
        ([], "not a JSON object"),
    ],
)
def test_what_batchcap_can_not_do_is_told_in_one_line(values: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(COLOURS | values if isinstance(values, dict) else values))
    with pytest.raises(BundleError, match=words) as caught:
        Preprocessing.read(tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_where_it_stands(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no preprocessor_config\.json"):
        Preprocessing.read(tmp_path)
    older, newer = tmp_path / "preprocessor_config.json", tmp_path / "processor_config.json"
    older.write_text(json.dumps({"size": 32} | COLOURS))
    newer.write_text(json.dumps({"processor_class": "BlipProcessor"}))
    assert Preprocessing.read(tmp_path).crop_size == 32
    newer.write_text(json.dumps({"image_processor": {"size": 48} | COLOURS}))
    assert Preprocessing.read(tmp_path).crop_size == 48
    newer.write_text(json.dumps({"image_processor": 48}))
    with pytest.raises(BundleError, match="image_processor is no JSON object"):
        Preprocessing.read(tmp_path)
