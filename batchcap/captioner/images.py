"""Bytes of a picture file -> upright RGB pixels. The one place where batchcap decodes and resizes.

Training, indexing, `batchcap caption` and the HTTP service all call `decode_image`, so a model always
meets the pixels that it was trained on. Nothing here imports TensorFlow.
"""

import contextlib
import functools
import io
import math
import operator
import struct
import warnings
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from batchcap.captioner.exif import ExifFacts, read_exif
from batchcap.captioner.jpeg import JpegDecoder, decode_drafted, default_decoder, is_scalable
from batchcap.captioner.memory import decoding_bytes
from batchcap.captioner.squares import Resize, to_square
from batchcap.errors import ImageError, Reason

# Twice Pillow's default MAX_IMAGE_PIXELS: above it Pillow itself refuses to open a file.
DEFAULT_MAX_PIXELS = 178_956_970
DEFAULT_MAX_BYTES = 512 * 1024 * 1024

# With what else a decoding process holds it stays below a gigabyte. Formats that are decoded row by row reach
# the limit of pixels first.
_MAX_DECODING_BYTES = 900_000_000

# The operations that turn a picture upright, by the value of its EXIF orientation (EXIF 2.32, 4.6.4 A).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# First bytes of the formats that people call pictures. A file that starts like one of them but that
# Pillow can't identify is damaged; any other file was never a picture.
_SIGNATURES = (
    b"\xff\xd8\xff",
    b"\x89PNG",
    b"GIF8",
    b"II*\x00",
    b"MM\x00*",
    b"\x00\x00\x00\x0cjP  ",
)

# Pillow fills up the rows of a run-length coded BMP byte by byte, in Python: with more pixels a few bytes
# would take it a minute.
_MAX_PIXELS_OF_BMP_RUNS = 16_000_000

# Pillow decodes the largest picture of an icon as soon as it opens the file.
_ICON = b"\x00\x00\x01\x00"
_MAX_PIXELS_OF_ICON = 16_000_000

# What a file of HEIF or AVIF says that it is; other brands are films.
_HEIF_BRANDS = frozenset(
    {b"avif", b"avis", b"heic", b"heim", b"heis", b"heix", b"hevc", b"hevm", b"hevs", b"hevx", b"mif1"}
    | {b"mif2", b"msf1"}
)

# Pillow's names for grey of 2 and 4 bits in PNG, and what a step of it is in 8 bits.
_GREY_STEPS = {"L;2": 85, "L;4": 17}

# What people keep pictures in: the formats of `collection.IMAGE_SUFFIXES`. Any file may reach the decoder of
# any format listed here, whatever its name. So none of Pillow's stubs, textures and data of sciences; and not
# EPS, which Pillow hands to Ghostscript, which would run whatever program the file holds.
_FORMATS = (
    # The most frequent come first. JPEG finds the MPO of phones by itself.
    "JPEG",
    "PNG",
    "HEIF",
    "WEBP",
    "GIF",
    "TIFF",
    "AVIF",
    "BMP",
    "DIB",
    "ICO",
    "JPEG2000",
    "PCX",
    "PPM",
    "PSD",
    "QOI",
    # It has no signature: last.
    "TGA",
)


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """The pictures that a model takes; part of the model, saved in its bundle.

    Args:
        image_size: height and width of the pixels, in pixels.
        resize: `stretch` squashes the whole picture into the square; `crop` keeps its proportions and
            takes the largest square in its centre.
        max_pixels: a picture with more pixels than this is refused by its header alone.
        max_bytes: a file with more bytes than this is refused unread.
    """

    image_size: int = 224
    resize: Resize = "stretch"
    max_pixels: int = DEFAULT_MAX_PIXELS
    max_bytes: int = DEFAULT_MAX_BYTES

    def __post_init__(self) -> None:
        if min(map(operator.index, (self.image_size, self.max_pixels, self.max_bytes))) < 1:
            raise ValueError("image_size, max_pixels and max_bytes must be positive")
        if self.resize not in ("stretch", "crop"):
            raise ValueError(f"resize must be 'stretch' or 'crop', not {self.resize!r}")


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """One picture, ready for a model, with what its file says about it.

    Args:
        pixels: uint8[image_size, image_size, 3], RGB, upright.
        width: of the upright original, in pixels.
        height: of the upright original, in pixels.
        format: `jpeg`, `png`, `webp` and so on, by content and not by name.
        taken_at: the camera's own clock when the picture was taken, without a time zone, if it is known.
        camera: make and model of the camera, if they are known.
        latitude: where it was taken, in degrees, north positive, if it is known.
        longitude: in degrees, east positive; known if the latitude is.
    """

    pixels: np.ndarray
    width: int
    height: int
    format: str
    taken_at: datetime | None = None
    camera: str | None = None
    latitude: float | None = None
    longitude: float | None = None


def prepare() -> None:
    """Loads what decoding needs, so that the first picture takes no longer than the others."""
    _formats()
    default_decoder()


def decode_image(data: bytes, spec: ImageSpec) -> np.ndarray:
    """Decodes a picture file into the pixels that a model with this `spec` takes.

    Args:
        data: the bytes of the file.
        spec: size, way of resizing and limits.

    Returns:
        uint8[image_size, image_size, 3], RGB, upright.

    Raises:
        ImageError: with the reason, if the file can't be decoded or is over a limit.
    """
    return decode(data, spec).pixels


def decode(data: bytes, spec: ImageSpec, jpeg_decoder: JpegDecoder | None = None) -> DecodedImage:
    """Decodes a picture file as `decode_image` does, and keeps what the file says about the picture.

    Args:
        data: the bytes of the file.
        spec: size, way of resizing and limits.
        jpeg_decoder: what decodes JPEG files; by default simplejpeg where it is installed. Both give the
            same pixels.

    Raises:
        ImageError: with the reason, if the file can't be decoded or is over a limit.
    """
    if not data:
        raise ImageError(Reason.EMPTY, "the file has no bytes")
    if len(data) > spec.max_bytes:
        raise ImageError(Reason.TOO_LARGE, f"{len(data)} bytes, more than {spec.max_bytes}")
    try:
        # Pillow warns about harmless oddities (and about sizes that are checked below).
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(data, spec, jpeg_decoder or default_decoder())
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(Reason.TOO_LARGE, _one_line(error)) from error
    except MemoryError as error:
        raise ImageError(Reason.TOO_LARGE, "decoding it takes more memory than there is") from error
    except UnidentifiedImageError as error:
        is_heif = data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS
        if data.startswith(_SIGNATURES) or is_heif or data[8:12] == b"WEBP":
            raise ImageError(Reason.UNREADABLE, "it starts like a picture, but can't be read") from error
        raise ImageError(Reason.UNSUPPORTED, "not a picture of a known format") from error
    except Exception as error:
        # Decoders meet hostile bytes: whatever they raise says only that this one file is bad.
        raise ImageError(_reason_of(error), _one_line(error)) from error


def _decode(data: bytes, spec: ImageSpec, jpeg_decoder: JpegDecoder) -> DecodedImage:
    if data.startswith(_ICON):
        _check_pixels(_icon_size(data), min(spec.max_pixels, _MAX_PIXELS_OF_ICON))
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
        _check_pixels(image.size, spec.max_pixels)
        if image.tile and image.tile[0].codec_name == "bmp_rle":
            _check_pixels(image.size, _MAX_PIXELS_OF_BMP_RUNS)
        width, height = image.size
        image_format = (image.format or "unknown").lower()
        if image_format in ("jpeg", "mpo") and is_scalable(data):
            # Inside the DCT, to the smallest size that is not below the model's. Other formats that know what
            # a draft is (HEIF) would take the thumbnail that the file carries, which may show anything.
            image.draft(None, (spec.image_size, spec.image_size))
        needed_bytes = decoding_bytes(image, data)
        if image_format == "jpeg2000":
            needed_bytes = _reduce(image, needed_bytes)
        if needed_bytes > _MAX_DECODING_BYTES:
            raise ImageError(
                Reason.TOO_LARGE,
                f"decoding {width} x {height} pixels of {image_format} takes {needed_bytes / 1e9:.1f} GB",
            )
        _scale_transparent_colour(image)
        pixels = decode_drafted(data, image) if jpeg_decoder == "simplejpeg" else None
        if pixels is None:
            image.load()
        # Only after loading: some of Pillow's plugins (TIFF) turn the picture themselves, then drop the tag.
        orientation = _orientation(image)
        if pixels is None:
            pixels = _upright_square(image, orientation, spec)
        # Else they are what the model takes: through Pillow and back they would be copied twice.
        elif pixels.shape[:2] != (spec.image_size, spec.image_size) or orientation in _UPRIGHT:
            pixels = _upright_square(Image.fromarray(pixels), orientation, spec)
    if orientation >= 5:
        width, height = height, width
    # Phones store a JPEG with further pictures behind it as MPO; the first one is a plain JPEG.
    image_format = "jpeg" if image_format == "mpo" else image_format
    return DecodedImage(pixels, width, height, image_format, *_exif_facts(image, data))


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    if math.prod(size) > max_pixels:
        raise ImageError(Reason.TOO_LARGE, f"{size[0]} x {size[1]} pixels, more than {max_pixels}")


def _icon_size(data: bytes) -> tuple[int, int]:
    """Width and height of the largest picture in an icon, by its own header, in pixels."""
    sizes = [(0, 0)]
    # Where the header is cut, Pillow says so.
    with contextlib.suppress(struct.error):
        (count,) = struct.unpack_from("<H", data, len(_ICON))
        for number in range(count):
            (offset,) = struct.unpack_from("<I", data, 18 + 16 * number)
            # A PNG, or a bitmap and, below it, a mask of the same size.
            is_png = data.startswith(b"\x89PNG", offset)
            size = data[offset + 16 : offset + 24] if is_png else data[offset + 4 : offset + 12]
            if len(size) == 8:
                width, height = struct.unpack(">II" if is_png else "<ii", size)
                sizes.append((abs(width), abs(height) if is_png else abs(height) // 2))
    return max(sizes, key=math.prod)


def _upright_square(image: Image.Image, orientation: int, spec: ImageSpec) -> np.ndarray:
    """uint8[image_size, image_size, 3] of a whole picture as it is stored."""
    square = to_square(image, spec.image_size, spec.resize)
    if orientation in _UPRIGHT:
        square = square.transpose(_UPRIGHT[orientation])
    return np.asarray(square if square.mode == "RGB" else square.convert("RGB"))


def _reduce(image: Any, needed_bytes: int) -> int:
    """Leaves out the finest resolutions of a JPEG 2000 file, until it can be decoded.

    Returns:
        What decoding takes then, in bytes.
    """
    halvings = 0
    while needed_bytes > _MAX_DECODING_BYTES:
        halvings += 1
        needed_bytes //= 4
    if halvings:
        image.reduce = halvings
    return needed_bytes


def _scale_transparent_colour(image: ImageFile.ImageFile) -> None:
    """Pillow scales the samples of a PNG to 8 bits, but keeps its transparent colour in the file's own depth.

    Args:
        image: opened, not yet loaded: what it is scaled from is forgotten then.
    """
    key = image.info.get("transparency")
    depth = image.tile[0].args if image.format == "PNG" and image.tile else None
    if depth == "RGB;16B" and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif depth in _GREY_STEPS and isinstance(key, int):
        image.info["transparency"] = key * _GREY_STEPS[depth]


def _orientation(image: Image.Image) -> int:
    """1 to 8; damaged EXIF counts as none."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return orientation if orientation in range(1, 9) else 1


def _exif_facts(image: Image.Image, data: bytes) -> ExifFacts:
    """What the camera wrote, wherever the format keeps it."""
    if image.format == "TIFF":
        return read_exif(data)
    block = image.info.get("exif")
    if block is None and isinstance(profile := image.info.get("Raw profile type exif"), str):
        # As ImageMagick wrote it into a PNG: three lines, then bytes in hexadecimal.
        with contextlib.suppress(ValueError):
            block = bytes.fromhex("".join(profile.split("\n")[3:]))
    return read_exif(block) if isinstance(block, bytes) else ExifFacts()


def _reason_of(error: Exception) -> Reason:
    """Pillow tells a truncated file only by the words of its message."""
    if "truncated" in str(error).lower() or isinstance(error, EOFError | struct.error):
        return Reason.TRUNCATED
    return Reason.UNREADABLE


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `_FORMATS` that can be read here; HEIC only where its plugin is installed."""
    try:
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
