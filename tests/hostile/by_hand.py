"""Files of the common formats, byte by byte: what no encoder writes, right and wrong alike."""

import struct
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

# --- PNG (ISO/IEC 15948) ---

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Length, name, content and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int, *, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    """The chunk IHDR. `colour` is 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGBA."""
    return png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def png(header: bytes, rows: Iterable[bytes], extra: bytes = b"") -> bytes:
    """A whole file of rows without filters; `extra` are chunks that stand before the pixels."""
    pixels = zlib.compress(b"".join(b"\x00" + row for row in rows), 9)
    return PNG_SIGNATURE + header + extra + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def png_with(data: bytes, *chunks: bytes) -> bytes:
    """The same file with chunks inserted behind its header."""
    end_of_header = len(PNG_SIGNATURE) + 25
    return data[:end_of_header] + b"".join(chunks) + data[end_of_header:]


# --- JPEG (ITU-T T.81) ---


def jpeg_segment(marker: int, body: bytes) -> bytes:
    """A marker with its length and content."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_frame(marker: int, width: int, height: int, *, components: int = 3, precision: int = 8) -> bytes:
    """A start of frame: 0xC0 is the usual one, 0xC1 extended, 0xC3 lossless."""
    body = struct.pack(">BHHB", precision, height, width, components)
    return jpeg_segment(marker, body + b"".join(bytes([n + 1, 0x11, 0]) for n in range(components)))


def jpeg_header(width: int, height: int, *, marker: int = 0xC0, precision: int = 8) -> bytes:
    """A file that promises a picture of this size and holds nothing of it."""
    table = jpeg_segment(0xDB, bytes([0]) + bytes([1]) * 64)
    scan = jpeg_segment(0xDA, b"\x03\x01\x00\x02\x00\x03\x00\x00\x3f\x00")
    frame = jpeg_frame(marker, width, height, precision=precision)
    return b"\xff\xd8" + table + frame + scan + bytes(1000) + b"\xff\xd9"


def lossless_jpeg(pixels: np.ndarray) -> bytes:
    """A picture in the lossless process of T.81 (annex H): each sample predicted by the one to its left.

    Args:
        pixels: uint8[H, W, 3], stored as they are (RGB, as the Adobe marker says).
    """
    samples = pixels.astype(np.int64)
    predicted = np.empty_like(samples)
    predicted[:, 1:] = samples[:, :-1]
    predicted[1:, 0] = samples[:-1, 0]
    predicted[0, 0] = 128
    bits = []
    for difference in (samples - predicted).ravel().tolist():
        size = abs(difference).bit_length()
        value = difference if difference >= 0 else difference + (1 << size) - 1
        # All nine codes of the table have four bits.
        bits.append(f"{size:04b}" + (f"{value:0{size}b}" if size else ""))
    stream = "".join(bits)
    stream += "1" * (-len(stream) % 8)
    coded = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\x00")
    height, width, _ = pixels.shape
    return b"".join(
        [
            b"\xff\xd8",
            jpeg_segment(0xEE, b"Adobe\x00\x64\x00\x00\x00\x00\x00"),
            jpeg_frame(0xC3, width, height),
            jpeg_segment(0xC4, bytes([0, 0, 0, 0, 9, *[0] * 12, *range(9)])),
            jpeg_segment(0xDA, b"\x03\x01\x00\x02\x00\x03\x00\x01\x00\x00"),
            coded,
            b"\xff\xd9",
        ]
    )


def jpeg_with(data: bytes, *segments: bytes) -> bytes:
    """The same file with segments inserted at its start."""
    return data[:2] + b"".join(segments) + data[2:]


# --- TIFF (revision 6.0), and EXIF, which is one ---

_TIFF_TYPES = {1: "B", 2: "B", 3: "H", 4: "L", 5: "L", 7: "B", 12: "d"}
Tag = tuple[int, int, Sequence[int] | Sequence[float]]


def tiff(tags: Sequence[Tag], pixels: bytes = b"", *, next_offset: int = 0) -> bytes:
    """A little-endian file of one directory.

    Args:
        tags: number, type and values of each; where the number is 273 (the place of the pixels) the values
            count from the start of `pixels`.
        pixels: whatever the directory points to.
        next_offset: where the next directory is said to be.
    """
    tags = sorted(tags)
    start = 8 + 2 + 12 * len(tags) + 4
    spilled = b""
    packed = []
    sizes = [struct.calcsize(f"<{len(values)}{_TIFF_TYPES[kind]}") for _, kind, values in tags]
    pixels_at = start + sum(size for size in sizes if size > 4)
    for (number, kind, values), size in zip(tags, sizes, strict=True):
        if number == 273:
            values = [int(value) + pixels_at for value in values]
        body = struct.pack(f"<{len(values)}{_TIFF_TYPES[kind]}", *values)
        count = len(values) // 2 if kind == 5 else len(values)
        if size > 4:
            packed.append(struct.pack("<HHLL", number, kind, count, start + len(spilled)))
            spilled += body
        else:
            packed.append(struct.pack("<HHL4s", number, kind, count, body))
    directory = struct.pack("<H", len(tags)) + b"".join(packed) + struct.pack("<L", next_offset)
    return b"II*\x00\x08\x00\x00\x00" + directory + spilled + pixels


def grey_tiff(width: int, height: int, *more: Tag, pixels: bytes = b"") -> bytes:
    """An uncompressed picture of 8-bit grey; `more` tags replace the usual ones of their number."""
    tags: dict[int, Tag] = {
        256: (256, 4, [width]),
        257: (257, 4, [height]),
        258: (258, 3, [8]),
        259: (259, 3, [1]),
        262: (262, 3, [1]),
        273: (273, 4, [0]),
        277: (277, 3, [1]),
        278: (278, 4, [height]),
        279: (279, 4, [len(pixels)]),
    }
    return tiff([*(tags | {tag[0]: tag for tag in more}).values()], pixels)


# --- the others ---


def gif(width: int, height: int, frame: tuple[int, int, int, int] | None = None, extra: bytes = b"") -> bytes:
    """A screen and, unless `frame` (left, top, width, height) says otherwise, one frame as large as it."""
    left, top, frame_width, frame_height = frame or (0, 0, width, height)
    screen = struct.pack("<HHBBB", width & 0xFFFF, height & 0xFFFF, 0x80, 0, 0) + bytes(6)
    picture = struct.pack("<HHHHB", left, top, frame_width & 0xFFFF, frame_height & 0xFFFF, 0)
    return b"GIF89a" + screen + extra + b"," + picture + b"\x02\x02\x4c\x01\x00;"


def gif_with(data: bytes, extension: bytes) -> bytes:
    """The same file with an extension inserted behind its palette."""
    end_of_palette = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    return data[:end_of_palette] + extension + data[end_of_palette:]


def bmp(width: int, height: int, pixels: bytes, *, bits: int = 24, compression: int = 0) -> bytes:
    """A BITMAPINFOHEADER and what follows it: masks or a palette, then the pixels."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(pixels), 2835, 2835, 0, 0)
    offset = 54 + (1024 if bits == 8 else 0) + (12 if compression == 3 else 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(pixels), 0, 0, offset) + info + pixels


def tga(width: int, height: int, pixels: bytes = b"", *, kind: int = 2, bits: int = 24) -> bytes:
    """Kind 2 is RGB, 10 the same run-length coded; the rows come from the top."""
    return struct.pack("<BBBHHBHHHHBB", 0, 0, kind, 0, 0, 0, 0, 0, width, height, bits, 0x20) + pixels


def psd(width: int, height: int, pixels: bytes = b"", *, compression: int = 0) -> bytes:
    """RGB of 8 bits without layers."""
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, height, width, 8, 3)
    return header + bytes(12) + struct.pack(">H", compression) + pixels


def pcx(width: int, height: int) -> bytes:
    """A header alone."""
    header = struct.pack("<BBBBHHHHHH", 10, 5, 1, 8, 0, 0, width - 1, height - 1, 72, 72)
    return header + bytes(49) + struct.pack("<BHH", 3, width & 0xFFFE, 1) + bytes(58)


def qoi(width: int, height: int, pixels: bytes = b"") -> bytes:
    """RGB; a byte 0xFD repeats a pixel 62 times."""
    return b"qoif" + struct.pack(">IIBB", width, height, 3, 0) + pixels + bytes(7) + b"\x01"


def j2k(width: int, height: int) -> bytes:
    """A code stream of JPEG 2000 that ends with its main header."""
    size = struct.pack(">HIIIIIIIIH", 0, width, height, 0, 0, width, height, 0, 0, 3) + b"\x07\x01\x01" * 3
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(size) + 2) + size + b"\xff\xd9"


def webp_header(width: int, height: int) -> bytes:
    """An extended file (VP8X) that promises a canvas and holds no picture."""
    body = struct.pack("<I", 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = b"WEBPVP8X" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def ico(image: bytes, *, width: int = 0, height: int = 0, missing: int = 0) -> bytes:
    """One picture, a PNG or a DIB, in the frame of an icon; 0 stands for 256 pixels.

    Args:
        image: the picture.
        width: as the icon says.
        height: as the icon says.
        missing: so many further, smaller pictures that are nowhere in the file.
    """
    offset = 6 + 16 * (1 + missing)
    entry = struct.pack("<BBBBHHII", width, height, 0, 0, 1, 32, len(image), offset)
    nowhere = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, 1000, 2**31)
    return struct.pack("<HHH", 0, 1, 1 + missing) + entry + nowhere * missing + image


def with_size(data: bytes, old: tuple[int, int], new: tuple[int, int]) -> bytes:
    """A HEIF or AVIF file whose boxes `ispe` promise another size."""
    before, after = (b"ispe\x00\x00\x00\x00" + struct.pack(">II", *size) for size in (old, new))
    if before not in data:
        raise ValueError(f"no box ispe of {old} in it")
    return data.replace(before, after)
