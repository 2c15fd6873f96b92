"""The pictures that the hostile files show, and how to tell from pixels that it is them.

Four quarters of different colours: whatever turns, mirrors, swaps channels, inverts or drops transparency
changes the names of the colours that are found.
"""

import functools
import importlib.util
import io
import struct
from typing import Any

import numpy as np
from PIL import ExifTags, Image, features

WIDTH, HEIGHT = 96, 64
HAS_AVIF = features.check("avif")
HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None

_COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 180, 30),
    "blue": (30, 30, 220),
    "white": (255, 255, 255),
    "light grey": (170, 170, 170),
    "dark grey": (85, 85, 85),
    "black": (0, 0, 0),
}
# Of a channel; what JPEG and its like do to a quarter's centre is less.
_TOLERANCE = 24
# EXIF's orientation -> what the camera did to the upright picture.
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@functools.cache
def quarters() -> Image.Image:
    """RGB: red and green above, blue and white below."""
    return _of_quarters("red", "green", "blue", "white")


@functools.cache
def greys() -> Image.Image:
    """L: black and dark grey above, light grey and white below."""
    return _of_quarters("black", "dark grey", "light grey", "white").convert("L")


@functools.cache
def see_through(mode: str = "RGBA") -> Image.Image:
    """RGBA or LA: black where it is transparent, which is where the others are white."""
    image = (quarters() if mode == "RGBA" else greys()).convert(mode)
    image.paste((0,) * len(mode), (WIDTH // 2, HEIGHT // 2, WIDTH, HEIGHT))
    return image


def _of_quarters(*names: str) -> Image.Image:
    image = Image.new("RGB", (2, 2))
    image.putdata([_COLOURS[name] for name in names])
    return image.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)


def turned(orientation: int) -> Image.Image:
    """What a camera stores with this value of EXIF's orientation when it sees the quarters."""
    turn = _TURNED.get(orientation)
    return quarters() if turn is None else quarters().transpose(turn)


def colour_names(pixels: np.ndarray) -> list[str]:
    """The colours of the four quarters, by row; what has no name in hexadecimal.

    Args:
        pixels: uint8[H, W, 3].
    """
    height, width, _ = pixels.shape
    centres = [(y, x) for y in (height // 4, height - 1 - height // 4) for x in (width // 4, width * 3 // 4)]
    return [_name(pixels[centre].astype(int)) for centre in centres]


def _name(colour: np.ndarray) -> str:
    for name, value in _COLOURS.items():
        if np.abs(colour - value).max() <= _TOLERANCE:
            return name
    return "#" + bytes(colour.tolist()).hex()


def saved(image: Image.Image, image_format: str, **options: Any) -> bytes:
    """The picture as a file, by Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def jpeg(image: Image.Image | None = None, **options: Any) -> bytes:
    """A JPEG file of the quarters, or of another picture, hardly damaged."""
    return saved(quarters() if image is None else image, "JPEG", **{"quality": 95, **options})


def heic(image: Image.Image | None = None, **options: Any) -> bytes:
    """A HEIC file, by pillow-heif."""
    import pillow_heif

    buffer = io.BytesIO()
    heif_file = pillow_heif.from_pillow(quarters() if image is None else image)
    heif_file.save(buffer, **{"quality": 95, **options})
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    """EXIF that says how the picture is turned."""
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return tags.tobytes()


def ycck_jpeg() -> bytes:
    """CMYK as Photoshop stores it: brightness and colour apart, K beside them, everything inverted.

    libjpeg has no way to be handed these planes through Pillow, so they are declared CMYK first.
    """
    inverted = Image.eval(quarters(), lambda value: 255 - value).convert("YCbCr")
    planes = [Image.eval(plane, lambda value: 255 - value) for plane in inverted.split()]
    cmyk = Image.merge("CMYK", [*planes, Image.new("L", quarters().size, 0)])
    data = bytearray(jpeg(cmyk))
    # The last byte of the segment is the transform.
    adobe = data.index(b"\xff\xee\x00\x0eAdobe")
    data[adobe + 15] = 2
    return bytes(data)


def without_adobe(data: bytes) -> bytes:
    """A JPEG file less the segment that says what its colours are."""
    adobe = data.index(b"\xff\xee\x00\x0eAdobe")
    return data[:adobe] + data[adobe + 16 :]


def rows_of(image: Image.Image, dtype: str = "u1", scale: int = 1) -> list[bytes]:
    """The rows of a picture, each sample times `scale`, as an encoder for another depth would write them."""
    return [(row.astype(dtype) * scale).astype(dtype).tobytes() for row in np.asarray(image)]


def packed_rows(image: Image.Image, bits: int) -> list[bytes]:
    """The rows of a grey picture in fewer bits, so that 255 becomes the largest value."""
    values = np.asarray(image) // (255 // (2**bits - 1))
    per_byte = 8 // bits
    shifts = np.arange(per_byte - 1, -1, -1) * bits
    return [
        (row.reshape(-1, per_byte).astype(int) << shifts).sum(1).astype(np.uint8).tobytes() for row in values
    ]


def samples(*values: int) -> bytes:
    """16-bit values as PNG stores a transparent colour."""
    return struct.pack(f">{len(values)}H", *values)
