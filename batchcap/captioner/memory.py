"""How much memory decoding a picture takes at most, by what its header says: nothing is decoded for it.

A few bytes can promise as many pixels as are allowed, and keep the promise. Decoders that make them row by
row take what Pillow's picture takes; those below hold the whole picture more than once.
"""

from typing import Any

from PIL import Image

from batchcap.captioner.jpeg import coefficient_bytes

# For each pixel, Pillow's picture included, at the most: with alpha, 10 bits and full colour where there are
# such. Measured; tests/captioner/test_memory.py measures again.
_BYTES_PER_PIXEL = {"AVIF": 16, "HEIF": 16, "QOI": 11, "WEBP": 17}

# What cameras write: 8 bits, without alpha, colour at half the resolution.
_BYTES_PER_PIXEL_OF_PLAIN_HEIF = 8

# Pillow keeps a pointer to each row, which counts where rows are a few pixels short.
_POINTER_BYTES, _SHORT_ROW = 8, 8

# Decoders of Pillow that are written in Python collect all samples before they make pixels of them.
_COLLECTING_CODECS = frozenset({"bmp_rle", "ppm", "ppm_plain"})

# Tags of TIFF.
_WIDTH, _LENGTH, _ROWS_PER_STRIP, _TILE_WIDTH, _TILE_LENGTH = 256, 257, 278, 322, 323
_BITS_PER_SAMPLE, _SAMPLES_PER_PIXEL, _PLANES = 258, 277, 284


def decoding_bytes(image: Image.Image, data: bytes) -> int:
    """The most memory that decoding takes, in bytes.

    Args:
        image: opened and, if it is to be, drafted, but not loaded.
        data: the file.
    """
    pixels = image.width * image.height
    own = pixels * _bytes_per_pixel(image.mode)
    if image.width < _SHORT_ROW:
        own += image.height * _POINTER_BYTES
    match image.format:
        case "JPEG" | "MPO":
            return own + coefficient_bytes(image, data)
        case "PNG":
            # Two rows as they are in the file, of up to four samples of 16 bits: much where there is one row.
            return own + 2 * 8 * image.width
        case "TIFF":
            return own + _tiff_block_bytes(image)
        case "JPEG2000":
            # Every sample in 32 bits, and once more in what it needs.
            return pixels * 5 * (len(image.getbands()) + 1)
        case "HEIF" if image.mode == "RGB" and image.info.get("bit_depth") == 8:
            if image.info.get("chroma") == 420:
                return pixels * _BYTES_PER_PIXEL_OF_PLAIN_HEIF
        case _:
            pass
    tile: Any = getattr(image, "tile", None)
    if tile and tile[0].codec_name in _COLLECTING_CODECS:
        own *= 3
    return max(own, pixels * _BYTES_PER_PIXEL.get(image.format or "", 0))


def _bytes_per_pixel(mode: str) -> int:
    """Of Pillow's picture in memory."""
    if mode in ("1", "L", "P"):
        return 1
    return 2 if mode.startswith("I;16") else 4


def _tiff_block_bytes(image: Any) -> int:
    """The strip or tile of a TIFF that is unpacked at once; a file may be a single one."""
    tags = image.tag_v2
    if image.info.get("compression") == "raw":
        return 0
    bits = tags.get(_BITS_PER_SAMPLE, (1,))
    samples = 1 if tags.get(_PLANES) == 2 else max(len(bits), tags.get(_SAMPLES_PER_PIXEL, 1))
    if _TILE_WIDTH in tags:
        width, length = tags[_TILE_WIDTH], tags[_TILE_LENGTH]
    else:
        width, length = tags[_WIDTH], min(tags.get(_ROWS_PER_STRIP, 2**32), tags[_LENGTH])
    return int(width * length * samples * max(bits) // 8)
