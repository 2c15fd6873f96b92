"""EXIF, tag by tag: right and wrong alike, as no library writes it."""

import io
import struct
from datetime import datetime
from typing import Any

from PIL import Image

from batchcap.captioner.exif import ExifFacts

ASCII, BYTE, SHORT, LONG, RATIONAL, SIGNED_RATIONAL, DOUBLE = 2, 1, 3, 4, 5, 10, 12
TAKEN = datetime(2024, 2, 3, 4, 5, 6)
WHOLE = ExifFacts(TAKEN, "NIKON D750", 48.8584, -2.2945)

# A tag with type, count and bytes.
Entry = tuple[int, int, int, bytes]


def directory(entries: list[Entry], position: int, order: str) -> bytes:
    """A directory that stands at this position, and behind it the values that have no room in it."""
    behind = position + 2 + 12 * len(entries) + 4
    body, values = struct.pack(f"{order}H", len(entries)), b""
    for tag, kind, count, value in entries:
        if len(value) <= 4:
            inline = value.ljust(4, b"\0")
        else:
            inline = struct.pack(f"{order}I", behind + len(values))
            values += value
        body += struct.pack(f"{order}HHI4s", tag, kind, count, inline)
    return body + bytes(4) + values


def text(tag: int, value: bytes, kind: int = ASCII) -> Entry:
    return (tag, kind, len(value), value)


def fractions(tag: int, *numbers: int, order: str = "<", kind: int = RATIONAL) -> Entry:
    return (tag, kind, len(numbers) // 2, struct.pack(f"{order}{len(numbers)}I", *numbers))


def block(camera: list[Entry], exif: list[Entry], gps: list[Entry], order: str = "<") -> bytes:
    """EXIF with three directories."""
    # As long as it will be with the positions of the other two.
    first = directory([*camera, (0x8769, LONG, 1, bytes(4)), (0x8825, LONG, 1, bytes(4))], 8, order)
    exif_at = 8 + len(first)
    exif_bytes = directory(exif, exif_at, order)
    gps_at = exif_at + len(exif_bytes)
    pointers = [struct.pack(f"{order}I", position) for position in (exif_at, gps_at)]
    first = directory([*camera, (0x8769, LONG, 1, pointers[0]), (0x8825, LONG, 1, pointers[1])], 8, order)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}I", 8) + first + exif_bytes + directory(gps, gps_at, order)


def whole(order: str = "<") -> bytes:
    return block(
        [text(0x010F, b"NIKON CORPORATION\0"), text(0x0110, b"NIKON D750 \0")],
        [text(0x9003, b"2024:02:03 04:05:06\0")],
        [
            text(1, b"N\0"),
            fractions(2, 48, 1, 51, 1, 3024, 100, order=order),
            text(3, b"W\0"),
            fractions(4, 2, 1, 17, 1, 4020, 100, order=order),
        ],
        order,
    )


def saved(image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), (10, 200, 30)).save(buffer, image_format, **options)
    return buffer.getvalue()
