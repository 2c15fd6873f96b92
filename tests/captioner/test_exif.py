"""What cameras wrote: read where it makes sense, and never what fails a picture."""

import importlib.util
import io
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from batchcap.captioner.exif import ExifFacts, read_exif
from batchcap.captioner.images import DecodedImage, ImageSpec, decode
from tests.exif_blocks import (
    ASCII,
    DOUBLE,
    LONG,
    RATIONAL,
    SHORT,
    SIGNED_RATIONAL,
    TAKEN,
    WHOLE,
    Entry,
    block,
    directory,
    fractions,
    saved,
    text,
    whole,
)

SPEC = ImageSpec(16)


def facts(image: DecodedImage) -> ExifFacts:
    return ExifFacts(image.taken_at, image.camera, image.latitude, image.longitude)


@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0", b"Exif\0\0Exif\0\0"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_both_orders_of_bytes(order: str, prefix: bytes) -> None:
    assert read_exif(prefix + whole(order)) == WHOLE


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_formats(image_format: str) -> None:
    written: Any = b"Exif\0\0" + whole()
    if image_format == "TIFF":
        # Its own directory is the first of EXIF.
        written = Image.Exif()
        written.load(whole())
        for pointer in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            written.get_ifd(pointer)
    assert facts(decode(saved(image_format, exif=written), SPEC)) == WHOLE


@pytest.mark.skipif(
    importlib.util.find_spec("pillow_heif") is None, reason="the extra `heif` is not installed"
)
def test_heic() -> None:
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 64))).save(buffer, exif=b"Exif\0\0" + whole())
    assert facts(decode(buffer.getvalue(), SPEC)) == WHOLE


@pytest.mark.parametrize("profile", ["hex", "no hex"])
def test_a_png_by_imagemagick(profile: str) -> None:
    written = whole().hex() if profile == "hex" else "zz"
    info = PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(whole()):8}\n{written}\n")
    found = facts(decode(saved("PNG", pnginfo=info), SPEC))
    assert found == (WHOLE if profile == "hex" else ExifFacts())


def test_a_big_tiff() -> None:
    """Its counts and positions have 64 bits."""
    make = struct.pack("<HHQ8s", 0x010F, ASCII, 6, b"Canon\0")
    exif_at = 16 + 8 + 2 * 20 + 8
    pointer = struct.pack("<HHQQ", 0x8769, 18, 1, exif_at)
    taken = struct.pack("<HHQQ", 0x9003, ASCII, 20, exif_at + 8 + 20 + 8)
    data = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2) + make + pointer + bytes(8)
    data += struct.pack("<Q", 1) + taken + bytes(8) + b"2024:02:03 04:05:06\0"
    assert read_exif(data) == ExifFacts(TAKEN, "Canon")


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        (b"Apple\0", b"iPhone 12\0", "Apple iPhone 12"),
        (b"Canon\0", b"Canon EOS 5D\0", "Canon EOS 5D"),
        (b"OLYMPUS  IMAGING CORP.  \0", b" E-M10\n\0", "OLYMPUS IMAGING CORP. E-M10"),
        (b"Canon", b"", "Canon"),
        (None, b"E-M10\0", "E-M10"),
        (b"Canon\0\0\0EOS\0", b"   \0", "Canon"),
        ("Zoë\0".encode(), None, "Zoë"),
        (b"\0\0\0\0", b" \0", None),
        (None, None, None),
        (b"Zo\xeb\0", b"\xff\xfe\0", None),
        (b"Canon\0", b"\x01\x02\0", "Canon"),
        (b"x" * 101, b"y" * 60_000, None),
        (b"\xc2\x85", b"\xe2\x80\xae", None),
    ],
)
def test_cameras(make: bytes | None, model: bytes | None, camera: str | None) -> None:
    entries = [text(tag, value) for tag, value in ((0x010F, make), (0x0110, model)) if value is not None]
    assert read_exif(block(entries, [], [])).camera == camera


def test_a_camera_may_be_utf8_and_is_no_number() -> None:
    assert read_exif(block([text(0x0110, "Zoë".encode(), 129)], [], [])).camera == "Zoë"
    assert read_exif(block([(0x0110, SHORT, 2, b"abcd")], [], [])).camera is None


def place(
    latitude: Entry | None = None,
    longitude: Entry | None = None,
    north: bytes | None = b"N\0",
    east: bytes | None = b"E\0",
) -> tuple[float | None, float | None]:
    entries = [
        text(1, north) if north is not None else None,
        latitude or fractions(2, 48, 1, 30, 1, 0, 1),
        text(3, east) if east is not None else None,
        longitude or fractions(4, 2, 1, 15, 1, 0, 1),
    ]
    found = read_exif(block([], [], [entry for entry in entries if entry]))
    return found.latitude, found.longitude


def test_hemispheres() -> None:
    assert place() == (48.5, 2.25)
    assert place(north=b"S\0", east=b"W\0") == (-48.5, -2.25)
    assert place(north=b"s", east=b"w") == (-48.5, -2.25)
    # On the equator there is one zero.
    assert str(place(fractions(2, 0, 1, 0, 1, 0, 1), north=b"S\0")[0]) == "0.0"


def test_how_the_parts_may_be_written() -> None:
    assert place(fractions(2, 4850, 100, 0, 1, 0, 1))[0] == 48.5
    assert place(fractions(2, 48, 1, 3050, 100, 0, 1))[0] == pytest.approx(48.508333, abs=1e-6)
    assert place(fractions(2, 48, 1, 29, 1, 60, 1))[0] == 48.5
    assert place(fractions(2, 90, 1, 0, 1, 0, 1), fractions(4, 180, 1, 0, 1, 0, 1)) == (90, 180)


@pytest.mark.parametrize(
    "wrong",
    [
        {"north": None},
        {"east": None},
        {"north": b"\0"},
        {"north": b"E\0"},
        {"north": b"NS\0"},
        {"east": b"\xff"},
        {"latitude": fractions(2, 48, 0, 30, 1, 0, 1)},
        {"latitude": fractions(2, 48, 1, 30, 1, 0, 0)},
        {"latitude": fractions(2, 0, 0, 0, 0, 0, 0)},
        {"latitude": fractions(2, 90, 1, 0, 1, 1, 1)},
        {"latitude": fractions(2, 48, 1, 61, 1, 0, 1)},
        {"latitude": fractions(2, 48, 1, 30, 1, 61, 1)},
        {"latitude": fractions(2, 2**32 - 1, 1, 2**32 - 1, 1, 2**32 - 1, 1)},
        {"longitude": fractions(4, 180, 1, 0, 1, 1, 1)},
        {"longitude": fractions(4, 2, 1, 15, 1)},
        {"longitude": fractions(4, 2, 1)},
        {"longitude": fractions(4, 2, 1, 15, 1, 0, 1, kind=SIGNED_RATIONAL)},
        {"latitude": (2, DOUBLE, 3, struct.pack("<3d", float("nan"), 0, 0))},
        {"latitude": (2, ASCII, 6, b"48.5 N")},
        {"latitude": (2, RATIONAL, 2**32 - 1, bytes(64))},
        # Receivers without a fix say so.
        {"latitude": fractions(2, 0, 1, 0, 1, 0, 1), "longitude": fractions(4, 0, 1, 0, 1, 0, 1)},
    ],
)
def test_a_place_that_makes_no_sense_is_none(wrong: dict[str, Any]) -> None:
    assert place(**wrong) == (None, None)


@pytest.mark.parametrize("order", ["<", ">"])
def test_what_is_cut_off_is_missing(order: str) -> None:
    for end in range(len(whole())):
        for found, expected in zip(read_exif(whole(order)[:end]), WHOLE, strict=True):
            # A camera may be known by its make alone.
            assert found in (None, expected, "NIKON CORPORATION")


@settings(max_examples=300)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(whole()) - 1), st.binary(min_size=1, max_size=6)), max_size=8
    )
)
def test_any_bytes_are_facts_or_none(changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(whole())
    for position, value in changes:
        data[position : position + len(value)] = value
    found = read_exif(bytes(data))
    assert (found.latitude is None) == (found.longitude is None)
    if found.latitude is not None and found.longitude is not None:
        assert abs(found.latitude) <= 90 and abs(found.longitude) <= 180
    assert found.camera is None or found.camera.isprintable() and len(found.camera) <= 201


def bomb() -> bytes:
    """Directories of 65,535 tags, each of which calls the whole megabyte its value, as fractions."""
    size = 1_000_000
    tag = struct.pack("<HHII", 0x9999, RATIONAL, (size - 8) // 8, 8)
    crowd = struct.pack("<H", 65_535) + tag * 65_535
    pointers = [(0x8769, LONG, 1, struct.pack("<I", 200)), (0x8825, LONG, 1, struct.pack("<I", 200))]
    start = b"II*\0" + struct.pack("<I", 8) + directory([text(0x010F, b"Ace"), *pointers], 8, "<")
    return (start.ljust(200, b"\0") + crowd).ljust(size, b"\0")


def test_a_bomb_is_not_unpacked() -> None:
    """Pillow would make 8 billion objects of it."""
    for data in (bomb(), b"Exif\0\0" * 200_000):
        decoded = decode(saved("PNG", exif=data), SPEC)
        assert (decoded.latitude, decoded.taken_at) == (None, None)
    assert read_exif(bomb()).camera == "Ace"
