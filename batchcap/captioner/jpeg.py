"""JPEG files by simplejpeg, which the extra `fast` installs: the pixels that Pillow makes of them, sooner.

Both wrap libjpeg-turbo, and here both use the same scale, DCT and upsampling: what caption a photograph gets
must not depend on what is installed where it is captioned. Whatever might come out differently is Pillow's.
"""

import functools
from typing import Any, Literal

import numpy as np
from PIL import Image

JpegDecoder = Literal["pillow", "simplejpeg"]

# From this size on each of libjpeg's scales gives another size, as they are eighths: so the size that Pillow
# has chosen tells simplejpeg the scale.
_MIN_SIDE = 8

# Larger ones would be held twice, for Pillow resizes them. Only bands can be: all else is scaled down.
_MAX_PIXELS = 64_000_000

# Starts of a frame (ITU-T T.81, table B.1): sequential and progressive ones, and those without a DCT.
_SCALED_BY_BOTH = frozenset({0xC0, 0xC1, 0xC2})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_STARTS_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = frozenset({0xDA})
_WITHOUT_CONTENT = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})


@functools.cache
def default_decoder() -> JpegDecoder:
    """What decodes JPEG files by default: simplejpeg where it is installed."""
    try:
        import simplejpeg  # noqa: F401
    except ImportError:
        return "pillow"
    return "simplejpeg"


def is_scalable(data: bytes) -> bool:
    """Whether libjpeg can decode a JPEG file to a smaller size.

    A lossless one it decodes in full whatever it is asked for. Pillow then fails, and simplejpeg writes
    beyond the end of its buffer.
    """
    return _process(data) not in _LOSSLESS


def coefficient_bytes(image: Any, data: bytes) -> int:
    """What libjpeg holds besides rows of pixels: all coefficients, if no scan is the whole picture.

    Args:
        image: the file, opened by Pillow.
        data: its bytes.
    """
    scan = _find_segment(data, _START_OF_SCAN)
    if _process(data) not in _PROGRESSIVE and data[scan + 4 : scan + 5] == bytes([len(image.layer)]):
        return 0
    sampling = [(across, down) for _, across, down, _ in image.layer]
    share = sum(across * down for across, down in sampling) / (
        max(across for across, _ in sampling) * max(down for _, down in sampling)
    )
    width, height = image.tile[0].extents[2:]
    scale = image.decoderconfig[0] if image.decoderconfig else 1
    return int(2 * share * width * height * scale**2)


def _process(data: bytes) -> int | None:
    """The marker that begins the frame, which names the process."""
    start = _find_segment(data, _STARTS_OF_FRAME)
    return data[start + 1] if start >= 0 else None


def _find_segment(data: bytes, markers: frozenset[int]) -> int:
    """Where the first segment with one of these markers begins, as Pillow and libjpeg find it; or -1."""
    position = 2
    while 0 <= (position := data.find(b"\xff", position)) < len(data) - 1:
        marker = data[position + 1]
        if marker in markers:
            return position
        if marker == 0xFF:  # padding
            position += 1
        elif marker in _WITHOUT_CONTENT:
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return -1


def decode_drafted(data: bytes, image: Image.Image) -> np.ndarray | None:
    """Decodes a JPEG file with simplejpeg to the size that Pillow's `draft` has chosen.

    Args:
        data: the bytes of the file.
        image: the same file, opened and drafted by Pillow, but not loaded.

    Returns:
        uint8[image.height, image.width, 3], RGB, as stored: not turned upright. None where Pillow has to
        decode: other formats, grey and CMYK, and files with any fault, as Pillow decides whether it matters.
    """
    if image.format not in ("JPEG", "MPO") or image.mode != "RGB" or max(image.size) < _MIN_SIDE:
        return None
    if _process(data) not in _SCALED_BY_BOTH or image.width * image.height > _MAX_PIXELS:
        return None
    import simplejpeg

    # A buffer of our own bounds the memory: libjpeg may see another size in a damaged header than Pillow did.
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    try:
        decoded = simplejpeg.decode_jpeg(
            data,
            "RGB",
            fastdct=False,
            fastupsample=False,
            min_height=image.height,
            min_width=image.width,
            buffer=pixels,
            strict=True,
        )
    except Exception:
        # Hostile bytes: whatever it raises, Pillow's verdict on them counts.
        return None
    return decoded if decoded.shape == pixels.shape else None
