"""A decoded picture of any kind -> the square of 8-bit RGB or grey that a model takes.

Grey and RGB are resized as they are. Whatever has to be converted first is, where it is large, converted and
shrunk block by block, so that nothing as large as the picture is ever made beside it: with as many pixels as
are allowed it takes 700 MB itself.
"""

from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image, ImageOps

Resize: TypeAlias = Literal["stretch", "crop"]
_Flatten: TypeAlias = Callable[[Image.Image], Image.Image]

# What is converted at once.
_BLOCK_PIXELS = 4_000_000

# Up to here a picture that is cropped is converted whole, in less than a gigabyte. Pillow resizes tall ones
# down first, which can't be done by blocks of rows: beyond, pixels may differ from its own by one level.
_CROPPED_WHOLE_PIXELS = 32_000_000

# A cheap box reduction first, to no less than so many times the size: as far as it can't be seen.
_REDUCING_GAP = 3.0

# 16-bit grey -> 8-bit, rounded: 65,535 is 255 * 257.
_GREY_16_TO_8 = ((np.arange(65_536) + 128) // 257).astype(np.uint8)


def to_square(image: Image.Image, image_size: int, resize: Resize) -> Image.Image:
    """Resizes a whole picture.

    Args:
        image: decoded, of any mode that Pillow has.
        image_size: height and width of the square, in pixels.
        resize: `stretch` or `crop`, as in `ImageSpec`.

    Returns:
        The square in RGB, or in L where the picture is grey: transparency on white, deeper channels scaled
        to 8 bits.
    """
    flatten = _flattening(image)
    if flatten is None:
        return _resize(image, image_size, resize)
    if image.width * image.height <= (_CROPPED_WHOLE_PIXELS if resize == "crop" else _BLOCK_PIXELS):
        return _resize(flatten(image), image_size, resize)
    if resize == "crop":
        return _crop_by_blocks(image, flatten, image_size)
    return _stretch_by_blocks(image, flatten, image_size)


# --- sizes ---


def _resize(image: Image.Image, image_size: int, resize: Resize) -> Image.Image:
    size = (image_size, image_size)
    if resize == "crop":
        return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    if image.size == size:
        return image
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=_REDUCING_GAP)


def _stretch_by_blocks(image: Image.Image, flatten: _Flatten, image_size: int) -> Image.Image:
    """What `resize` with a reducing gap does, the reduction block by block: the very same pixels."""
    width, height = image.size
    across, down = (max(1, int(side / image_size / _REDUCING_GAP)) for side in image.size)
    # Blocks of whole boxes: each pixel of the reduced picture comes of one block alone.
    columns = max(1, min(width, _BLOCK_PIXELS) // across) * across
    rows = max(1, _BLOCK_PIXELS // columns // down) * down
    reduced: Image.Image | None = None
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            box = (left, top, min(left + columns, width), min(top + rows, height))
            block = flatten(image.crop(box)).reduce((across, down))
            if reduced is None:
                reduced = Image.new(block.mode, (-(-width // across), -(-height // down)))
            reduced.paste(block, (left // across, top // down))
    if reduced is None:
        raise ValueError("a picture has at least one pixel")
    box_of_all = (0, 0, width / across, height / down)
    return reduced.resize((image_size, image_size), Image.Resampling.BILINEAR, box=box_of_all)


def _crop_by_blocks(image: Image.Image, flatten: _Flatten, image_size: int) -> Image.Image:
    """What `ImageOps.fit` does: across and then down, and the former is done block by block."""
    side = min(image.size)
    left, top = ((length - side) * 0.5 for length in image.size)
    # The filter looks beyond the edges of the square.
    margin = side // image_size + 2
    first_column, first_row = (max(0, int(start) - margin) for start in (left, top))
    last_column, last_row = (
        min(length, int(start) + side + margin + 1)
        for length, start in zip(image.size, (left, top), strict=True)
    )
    rows = max(1, _BLOCK_PIXELS // (last_column - first_column))
    narrow: Image.Image | None = None
    for upper in range(first_row, last_row, rows):
        lower = min(upper + rows, last_row)
        block = flatten(image.crop((first_column, upper, last_column, lower)))
        box = (left - first_column, 0, left - first_column + side, lower - upper)
        block = block.resize((image_size, lower - upper), Image.Resampling.BILINEAR, box=box)
        if narrow is None:
            narrow = Image.new(block.mode, (image_size, last_row - first_row))
        narrow.paste(block, (0, upper - first_row))
    if narrow is None:
        raise ValueError("a picture has at least one pixel")
    square = (0, top - first_row, image_size, top - first_row + side)
    return narrow.resize((image_size, image_size), Image.Resampling.BILINEAR, box=square)


# --- colours ---


def _flattening(image: Image.Image) -> _Flatten | None:
    """What makes 8-bit RGB or L of the picture, or of a part of it; None where it is that already."""
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        return lambda part: _from_16_bits(part, key)
    if image.mode == "I":
        return lambda part: _from_numbers(part, 65_535.0)
    if image.mode == "F":
        peak = _peak(image)
        return lambda part: _from_numbers(part, peak)
    if key is not None or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return _on_white
    # Grey stays grey until it is small: a third of the work for the same pixels.
    if image.mode in ("RGB", "L"):
        return None
    return lambda part: part.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    # Screenshots have an alpha channel, but no transparency: blending would leave them as they are.
    if rgba.getchannel("A").getextrema() == (255, 255):
        return rgba.convert("RGB")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _from_16_bits(image: Image.Image, key: int | None) -> Image.Image:
    """16-bit grey -> L; white where it is the one value that is transparent."""
    values = np.asarray(image)
    grey = _GREY_16_TO_8[values]
    if key is not None:
        grey[values == key] = 255
    return Image.fromarray(grey)


def _from_numbers(image: Image.Image, peak: float) -> Image.Image:
    """32-bit grey -> L: from 0 to `peak`."""
    return Image.fromarray(np.rint(np.clip(_finite(image) / peak, 0.0, 1.0) * 255.0).astype(np.uint8))


def _peak(image: Image.Image) -> float:
    """Floats are taken as 0 to 1 unless they go beyond."""
    return 1.0 if all(_finite(block).max(initial=0.0) <= 1.0 for block in _rows_of(image)) else 255.0


def _rows_of(image: Image.Image) -> Iterator[Image.Image]:
    rows = max(1, _BLOCK_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _finite(image: Image.Image) -> np.ndarray:
    """float32[H, W]; what is no number is 0."""
    return np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
