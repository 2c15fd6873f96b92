"""What a camera wrote into a picture: when, where and with what it was taken.

Pillow would make Python objects of every tag there is, for which a small file can ask by the gigabyte. Here
a directory is read for the few tags that are wanted, and of each no more than a sensible value takes.
Whatever is damaged, missing or senseless is None: it never fails the picture.
"""

import re
import struct
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

# EXIF 2.32, 4.6: the tags, and the types of values.
_MAKE, _MODEL = 0x010F, 0x0110
_EXIF_DIRECTORY, _GPS_DIRECTORY = 0x8769, 0x8825
_DATE_TIME_ORIGINAL = 0x9003
_LATITUDE_REF, _LATITUDE, _LONGITUDE_REF, _LONGITUDE = 1, 2, 3, 4
_ASCII, _LONG, _RATIONAL, _UTF8 = 2, 4, 5, 129
# BigTIFF has pointers of 64 bits, of two types.
_POINTERS = {_LONG: 4, 13: 4, 16: 8, 18: 8}

_PREFIX = re.compile(rb"(?:Exif\x00\x00){0,2}")
# Cameras write below a hundred tags.
_MAX_TAGS = 1_000
_MAX_TEXT_BYTES = 1_000
_MAX_CAMERA_LENGTH = 100


class ExifFacts(NamedTuple):
    """What EXIF says of a picture.

    Args:
        taken_at: the camera's own clock when the picture was taken, without a time zone.
        camera: its make and model.
        latitude: where it was taken, in degrees, north positive; None if the longitude is.
        longitude: in degrees, east positive.
    """

    taken_at: datetime | None = None
    camera: str | None = None
    latitude: float | None = None
    longitude: float | None = None


class _Tag(NamedTuple):
    """The entry of a directory: `value` is what it says itself, often where its value lies."""

    kind: int
    length: int
    value: bytes


def read_exif(block: bytes) -> ExifFacts:
    """Reads what is wanted of a block of EXIF.

    Args:
        block: a TIFF file, or EXIF as JPEG and others hold it, with or without `Exif` before it.
    """
    try:
        reader = _Reader(block)
        tags = reader.directory(reader.first)
        exif = reader.directory_at(tags.get(_EXIF_DIRECTORY))
        gps = reader.directory_at(tags.get(_GPS_DIRECTORY))
        taken_at = _parse_time(reader.text(exif.get(_DATE_TIME_ORIGINAL)))
        camera = _camera(*(_clean(reader.text(tags.get(tag))) for tag in (_MAKE, _MODEL)))
        latitude = _degrees(
            reader.text(gps.get(_LATITUDE_REF)), reader.rationals(gps.get(_LATITUDE)), b"NS", 90
        )
        longitude = _degrees(
            reader.text(gps.get(_LONGITUDE_REF)), reader.rationals(gps.get(_LONGITUDE)), b"EW", 180
        )
    except struct.error:
        return ExifFacts()
    # Receivers without a fix write zeros, which is a place in the sea.
    if latitude is None or longitude is None or latitude == longitude == 0:
        latitude = longitude = None
    return ExifFacts(taken_at, camera, latitude, longitude)


class _Reader:
    """Reads directories and values of a TIFF file.

    Args:
        block: the file; its positions count from behind the prefix, if there is one.

    Raises:
        struct.error: it has no header.
    """

    def __init__(self, block: bytes) -> None:
        found = _PREFIX.match(block)
        self._block = block
        self._base = found.end() if found else 0
        self._order = "<" if block[self._base : self._base + 2] == b"II" else ">"
        (version,) = struct.unpack_from(f"{self._order}2xH", block, self._base)
        self._is_big = version == 43
        if self._is_big:
            (self.first,) = struct.unpack_from(f"{self._order}8xQ", block, self._base)
        else:
            (self.first,) = struct.unpack_from(f"{self._order}4xI", block, self._base)

    def directory(self, position: int) -> Mapping[int, _Tag]:
        """The tags of the directory that begins there; as many as are whole."""
        counted, entry = ("Q", "HHQ8s") if self._is_big else ("H", "HHI4s")
        start = self._base + position
        if start + struct.calcsize(f"={counted}") > len(self._block):
            return {}
        (count,) = struct.unpack_from(self._order + counted, self._block, start)
        start += struct.calcsize(f"={counted}")
        size = struct.calcsize(f"={entry}")
        count = min(count, _MAX_TAGS, (len(self._block) - start) // size)
        tags = struct.iter_unpack(self._order + entry, self._block[start : start + count * size])
        return {tag: _Tag(kind, length, value) for tag, kind, length, value in tags}

    def directory_at(self, tag: _Tag | None) -> Mapping[int, _Tag]:
        """The directory that a tag points to; empty if it points to none."""
        if tag is None or tag.length != 1 or _POINTERS.get(tag.kind) not in (4, len(tag.value)):
            return {}
        letter = "I" if _POINTERS[tag.kind] == 4 else "Q"
        (position,) = struct.unpack_from(self._order + letter, tag.value)
        return self.directory(position)

    def text(self, tag: _Tag | None) -> bytes | None:
        """The bytes of a text, without what fills it up."""
        if tag is None or tag.kind not in (_ASCII, _UTF8) or tag.length > _MAX_TEXT_BYTES:
            return None
        value = self._value(tag, tag.length)
        return None if value is None else value.strip(b"\x00 ").partition(b"\x00")[0]

    def rationals(self, tag: _Tag | None) -> list[tuple[int, int]] | None:
        """Three pairs of numerator and denominator."""
        if tag is None or tag.kind != _RATIONAL or tag.length != 3:
            return None
        value = self._value(tag, 24)
        if value is None:
            return None
        numbers = struct.unpack(f"{self._order}6I", value)
        return list(zip(numbers[::2], numbers[1::2], strict=True))

    def _value(self, tag: _Tag, size: int) -> bytes | None:
        """So many bytes of a tag's value; None where the file ends before."""
        if size <= len(tag.value):
            return tag.value[:size]
        (position,) = struct.unpack(self._order + ("Q" if self._is_big else "I"), tag.value)
        start = self._base + position
        value = self._block[start : start + size]
        return value if len(value) == size else None


def _parse_time(text: bytes | None) -> datetime | None:
    if not text:
        return None
    try:
        return datetime.strptime(text.decode("ascii"), "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None


def _clean(text: bytes | None) -> str | None:
    """A text in one line, unless it is no text."""
    if not text:
        return None
    try:
        line = " ".join(text.decode().split())
    except UnicodeDecodeError:
        return None
    return line if line.isprintable() and len(line) <= _MAX_CAMERA_LENGTH else None


def _camera(make: str | None, model: str | None) -> str | None:
    """Make and model; the make once, for many models begin with it (`NIKON CORPORATION`, `NIKON D750`)."""
    if not make or not model:
        return make or model or None
    if model.split()[0].casefold() == make.split()[0].casefold():
        return model
    return f"{make} {model}"


def _degrees(
    hemisphere: bytes | None, parts: list[tuple[int, int]] | None, hemispheres: bytes, most: int
) -> float | None:
    """Degrees, minutes and seconds -> degrees, negative in the second of the two hemispheres."""
    if not hemisphere or len(hemisphere) != 1 or hemisphere.upper() not in hemispheres or parts is None:
        return None
    if not all(denominator for _, denominator in parts):
        return None
    degrees, minutes, seconds = (numerator / denominator for numerator, denominator in parts)
    # Sixty of them are rounded up.
    if minutes > 60 or seconds > 60:
        return None
    # A centimetre; what is behind it are errors of the division.
    value = round(degrees + minutes / 60 + seconds / 3600, 7)
    if value > most:
        return None
    # Not its negative, which of nothing is a zero of its own.
    return 0.0 - value if hemisphere.upper() == hemispheres[1:] else value
