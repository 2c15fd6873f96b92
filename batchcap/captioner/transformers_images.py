"""What an image processor of Hugging Face transformers does, read from its JSON alone: no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from batchcap.captioner.bundle_files import read_json
from batchcap.captioner.images import ImageSpec
from batchcap.errors import BundleError

# The file of transformers 5 has all of a model's processors in it, the older one is the image's alone.
PREPROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")

_Channels: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From a picture to the numbers that a network takes.

    The pictures are resized as all of batchcap's are, bilinearly; most of these processors resize with
    bicubic filters, which a caption rarely shows.

    Args:
        image_spec: how the picture is resized.
        crop_size: height and width of what the network sees of it, the centre, in pixels.
        scale: by which pixels 0 to 255 are multiplied first.
        mean: of the channels R, G and B, then subtracted.
        std: by which the differences are divided.
    """

    image_spec: ImageSpec
    crop_size: int
    scale: float
    mean: _Channels
    std: _Channels

    @classmethod
    def read(cls, folder: Path) -> "Preprocessing":
        """Reads a model's own preprocessing.

        Args:
            folder: of the model.

        Raises:
            BundleError: there is none, it is damaged, or it makes no squares.
        """
        for name in PREPROCESSOR_FILES:
            path = folder / name
            if not path.is_file():
                continue
            values: Any = read_json(path)
            if name == "processor_config.json":
                values = values.get("image_processor")
                if values is None:  # what it says is the text's
                    continue
            if not isinstance(values, dict):
                raise BundleError(f"{path} is damaged: image_processor is no JSON object")
            try:
                return cls.of(values)
            except (TypeError, ValueError, OverflowError) as error:
                raise BundleError(f"{path} has a way with pictures that batchcap has not: {error}") from error
        raise BundleError(f"{folder} has no {PREPROCESSOR_FILES[1]}: it says how pictures are to be resized")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Understands the values of an image processor, of today and of former versions.

        Args:
            values: of the JSON.

        Raises:
            TypeError, ValueError: they are no numbers, or they make no squares.
        """
        if not values.get("do_resize", True):
            raise ValueError("it does not resize")
        crops = values.get("do_center_crop", "crop_size" in values)
        crop_size = _square(values.get("crop_size"), "crop_size") if crops else None
        size = values.get("size")
        if isinstance(size, Mapping) and size.keys() == {"shortest_edge"}:
            image_size, keeps_proportions = _positive(size["shortest_edge"], "size"), True
        else:
            # A plain number was the shortest edge for those that crop.
            image_size, keeps_proportions = _square(size, "size"), crops and not isinstance(size, Mapping)
        if keeps_proportions and crop_size is None:
            raise ValueError("its pictures are not square: size is the shortest edge, and nothing is cropped")
        if crop_size is not None and crop_size > image_size:
            raise ValueError(f"crop_size {crop_size} is larger than the picture, {image_size}")
        normalizes = values.get("do_normalize", True)
        scale = _number(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 1.0
        return cls(
            image_spec=ImageSpec(image_size, "crop" if keeps_proportions else "stretch"),
            crop_size=crop_size or image_size,
            scale=scale,
            mean=_channels(values, "image_mean") if normalizes else (0.0, 0.0, 0.0),
            std=_channels(values, "image_std") if normalizes else (1.0, 1.0, 1.0),
        )


def _square(size: Any, name: str) -> int:
    if isinstance(size, Mapping):
        if size.keys() != {"height", "width"}:
            raise ValueError(f"{name} has {', '.join(map(str, size)) or 'nothing'}, not height and width")
        if size["height"] != size["width"]:
            raise ValueError(f"its pictures are not square: {name} is {size['height']} x {size['width']}")
        size = size["height"]
    return _positive(size, name)


def _positive(value: Any, name: str) -> int:
    if type(value) is not int or not 1 <= value <= 4096:
        raise ValueError(f"{name} is {value!r}, not 1 to 4096 pixels")
    return value


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no number")
    return number


def _channels(values: Mapping[str, Any], name: str) -> _Channels:
    given = values.get(name)
    if not isinstance(given, list) or len(given) != 3:
        raise ValueError(f"{name} is {given!r}, not three numbers")
    red, green, blue = map(_number, given)
    if name == "image_std" and not red * green * blue:
        raise ValueError("image_std is 0")
    return red, green, blue
