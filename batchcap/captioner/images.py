"""Bytes of a picture file -> upright RGB pixels. The one place where batchcap decodes and resizes.

Training, indexing, `batchcap caption` and the HTTP service all call `decode_image`, so a model always
meets the pixels that it was trained on. Nothing here imports TensorFlow.
"""

import functools
import io
import math
import operator
import struct
import warnings
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from batchcap.errors import ImageError, Reason

# Twice Pillow's default MAX_IMAGE_PIXELS: above it Pillow itself refuses to open a file.
DEFAULT_MAX_PIXELS = 178_956_970
DEFAULT_MAX_BYTES = 512 * 1024 * 1024

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
    resize: Literal["stretch", "crop"] = "stretch"
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
    """

    pixels: np.ndarray
    width: int
    height: int
    format: str
    taken_at: datetime | None


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


def decode(data: bytes, spec: ImageSpec) -> DecodedImage:
    """Decodes a picture file as `decode_image` does, and keeps what the file says about the picture.

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
            return _decode(data, spec)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(Reason.TOO_LARGE, _one_line(error)) from error
    except MemoryError as error:
        raise ImageError(Reason.TOO_LARGE, "decoding it takes more memory than there is") from error
    except UnidentifiedImageError as error:
        if data.startswith(_SIGNATURES) or data[4:8] == b"ftyp" or data[8:12] == b"WEBP":
            raise ImageError(Reason.UNREADABLE, "it starts like a picture, but can't be read") from error
        raise ImageError(Reason.UNSUPPORTED, "not a picture of a known format") from error
    except Exception as error:
        # Decoders meet hostile bytes: whatever they raise says only that this one file is bad.
        raise ImageError(_reason_of(error), _one_line(error)) from error


def _decode(data: bytes, spec: ImageSpec) -> DecodedImage:
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
        if math.prod(image.size) > spec.max_pixels:
            raise ImageError(
                Reason.TOO_LARGE, f"{image.width} x {image.height} pixels, more than {spec.max_pixels}"
            )
        width, height = image.size
        image_format = (image.format or "unknown").lower()
        # JPEG scaled inside the DCT, to the smallest size that is not below the model's; others ignore it.
        image.draft(None, (spec.image_size, spec.image_size))
        image.load()
        # Only after loading: some of Pillow's plugins (TIFF) turn the picture themselves, then drop the tag.
        orientation, taken_at = _read_exif(image)
        square = _resize(_to_rgb(image), spec)
    if orientation in _UPRIGHT:
        square = square.transpose(_UPRIGHT[orientation])
    if orientation >= 5:
        width, height = height, width
    # Phones store a JPEG with further pictures behind it as MPO; the first one is a plain JPEG.
    image_format = "jpeg" if image_format == "mpo" else image_format
    return DecodedImage(np.asarray(square), width, height, image_format, taken_at)


def _to_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB: transparency on white, deeper channels scaled to 8 bits."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _scale_to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """16- and 32-bit grey -> RGB. Integers are taken as 16-bit; floats as 0 to 1 unless they go beyond."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    peak = 65_535.0
    if image.mode == "F":
        peak = 1.0 if values.max(initial=0.0) <= 1.0 else 255.0
    grey = np.rint(np.clip(values / peak, 0.0, 1.0) * 255.0).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _resize(image: Image.Image, spec: ImageSpec) -> Image.Image:
    size = (spec.image_size, spec.image_size)
    if spec.resize == "crop":
        return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    if image.size == size:
        return image
    # reducing_gap: a cheap box reduction first, as far as it can't be seen.
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)


def _read_exif(image: Image.Image) -> tuple[int, datetime | None]:
    """Orientation (1 to 8) and the time of the picture; damaged EXIF counts as none."""
    try:
        exif = image.getexif()
        orientation = exif.get(ExifTags.Base.Orientation, 1)
        taken = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal)
    except Exception:
        return 1, None
    return (orientation if orientation in range(1, 9) else 1), _parse_exif_time(taken)


def _parse_exif_time(value: Any) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        return datetime.strptime(value.strip("\x00 "), "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None


def _reason_of(error: Exception) -> Reason:
    """Pillow tells a truncated file only by the words of its message."""
    if "truncated" in str(error).lower() or isinstance(error, EOFError | struct.error):
        return Reason.TRUNCATED
    return Reason.UNREADABLE


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@functools.cache
def _formats() -> tuple[str, ...]:
    """All that Pillow reads, HEIC included where its plugin is installed.

    Without EPS: Pillow hands it to Ghostscript, which would run whatever program the file holds.
    """
    try:
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")
