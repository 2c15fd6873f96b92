import importlib.util
import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, features

from batchcap.captioner import images
from batchcap.captioner.images import DecodedImage, ImageSpec
from batchcap.collection import IMAGE_SUFFIXES
from batchcap.errors import ImageError, Reason
from tests.jpeg_decoders import decode_with_all as decode

RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 180, 30), (30, 30, 220), (255, 255, 255)
# Values of EXIF's orientation -> what the camera did to the upright picture.
TURNED: dict[int, Image.Transpose | None] = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def decode_image(data: bytes, spec: ImageSpec) -> np.ndarray:
    return decode(data, spec).pixels


def quarters(size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Red and green above, blue and white below: every way to turn it shows."""
    image = Image.new("RGB", (2, 2))
    image.putdata([RED, GREEN, BLUE, WHITE])
    return image.resize(size, Image.Resampling.NEAREST)


def saved(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def exif(orientation: int = 1, taken: str | None = None) -> bytes:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    if taken is not None:
        tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = taken
    return tags.tobytes()


def assert_quarters(pixels: np.ndarray, tolerance: int = 12) -> None:
    """The centres of the four quarters have the four colours."""
    size = len(pixels)
    low, high = size // 4, size - 1 - size // 4
    found = [pixels[y, x].tolist() for y, x in ((low, low), (low, high), (high, low), (high, high))]
    np.testing.assert_allclose(found, [RED, GREEN, BLUE, WHITE], atol=tolerance)


def reason_of(data: bytes, spec: ImageSpec | None = None) -> Reason:
    with pytest.raises(ImageError) as caught:
        decode(data, spec or ImageSpec(32))
    assert caught.value.detail and "\n" not in caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize(
    ("image_format", "options"),
    [("JPEG", {"quality": 95}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"quality": 95})],
)
def test_every_orientation_is_turned_upright(
    image_format: str, options: dict[str, Any], orientation: int, resize: Any
) -> None:
    turn = TURNED[orientation]
    stored = quarters() if turn is None else quarters().transpose(turn)
    decoded = decode(saved(stored, image_format, exif=exif(orientation), **options), ImageSpec(32, resize))
    assert_quarters(decoded.pixels)
    assert (decoded.width, decoded.height) == (96, 64)
    assert decoded.format == image_format.lower()


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int) -> None:
    assert_quarters(decode_image(saved(quarters(), "JPEG", exif=exif(orientation)), ImageSpec(32)))


def palette_with_transparency() -> bytes:
    image = quarters().quantize(8)
    image.paste(7, (0, 0, 48, 32))  # An entry that no pixel had, now transparent.
    return saved(image, "PNG", transparency=7)


def with_alpha(mode: str) -> bytes:
    image = quarters().convert(mode)
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (48, 32, 96, 64))
    image.putalpha(alpha)
    return saved(image, "PNG")


def test_rgba_is_put_on_white() -> None:
    """Black below: were transparency dropped and not blended, it would show."""
    image = quarters().convert("RGBA")
    image.paste((0, 0, 0, 0), (48, 32, 96, 64))
    for image_format in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if image_format == "WEBP" else {}
        assert_quarters(decode_image(saved(image, image_format, **options), ImageSpec(32)))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_that_hides_nothing_changes_nothing(mode: str) -> None:
    """Nor does a single pixel that is not opaque change the others."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    opaque = image.convert(mode[:-1]).convert(mode)
    pixels = decode_image(saved(opaque, "PNG"), ImageSpec(32))
    np.testing.assert_array_equal(pixels, opaque.convert("RGB"))
    opaque.putpixel((3, 5), (0,) * len(mode))
    pixels = decode_image(saved(opaque, "PNG"), ImageSpec(32))
    assert pixels[5, 3].tolist() == [255] * 3
    opaque.putpixel((3, 5), (255,) * len(mode))
    np.testing.assert_array_equal(pixels, opaque.convert("RGB"))


def test_half_transparent_is_half_white() -> None:
    pixels = decode_image(saved(Image.new("RGBA", (40, 40), (255, 0, 0, 128)), "PNG"), ImageSpec(32))
    np.testing.assert_allclose(pixels[5, 5], [255, 127, 127], atol=1)


def test_grey_with_alpha_is_put_on_white() -> None:
    image = Image.new("LA", (40, 40), (0, 0))
    image.paste((90, 255), (0, 0, 20, 40))
    pixels = decode_image(saved(image, "PNG"), ImageSpec(32))
    assert pixels[16, 4].tolist() == [90] * 3
    assert pixels[16, 28].tolist() == [255] * 3


def test_a_transparent_colour_of_a_palette_is_white() -> None:
    image = Image.new("P", (40, 40), 0)
    image.putpalette([200, 0, 0, 0, 0, 0])
    image.paste(1, (20, 0, 40, 40))
    for image_format in ("PNG", "GIF"):
        pixels = decode_image(saved(image, image_format, transparency=1), ImageSpec(32))
        assert pixels[16, 4].tolist() == [200, 0, 0]
        assert pixels[16, 28].tolist() == [255] * 3


def test_a_transparent_colour_of_rgb_and_grey() -> None:
    colour = saved(Image.new("RGB", (40, 40), (7, 8, 9)), "PNG", transparency=(7, 8, 9))
    assert decode_image(colour, ImageSpec(32)).min() == 255
    other = saved(Image.new("RGB", (40, 40), (7, 8, 9)), "PNG", transparency=(7, 8, 10))
    assert decode_image(other, ImageSpec(32))[5, 5].tolist() == [7, 8, 9]
    assert decode_image(saved(Image.new("L", (40, 40), 7), "PNG", transparency=7), ImageSpec(32)).min() == 255


@pytest.mark.parametrize("image_format", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette(image_format: str) -> None:
    assert_quarters(decode_image(saved(quarters().quantize(8), image_format), ImageSpec(32)))


def test_cmyk_jpeg() -> None:
    assert_quarters(decode_image(saved(quarters().convert("CMYK"), "JPEG", quality=95), ImageSpec(32)))


def test_cmyk_tiff() -> None:
    assert_quarters(decode_image(saved(quarters().convert("CMYK"), "TIFF"), ImageSpec(32)))


def ramp(dtype: Any, top: float) -> np.ndarray:
    return np.tile(np.linspace(0, top, 64, dtype=np.float64), (64, 1)).astype(dtype)


EXPECTED_RAMP = np.tile(np.linspace(0, 255, 64), (64, 1))[:, :, None].repeat(3, axis=2)


@pytest.mark.parametrize(
    ("values", "image_format"),
    [
        (ramp(np.uint16, 65_535), "PNG"),
        (ramp(np.uint16, 65_535), "TIFF"),
        (ramp(np.int32, 65_535), "TIFF"),
        (ramp(np.float32, 1.0), "TIFF"),
        (ramp(np.float32, 255.0), "TIFF"),
        (ramp(np.uint8, 255), "JPEG"),
        (ramp(np.uint8, 255), "PNG"),
    ],
    ids=[
        "16-bit PNG",
        "16-bit TIFF",
        "32-bit TIFF",
        "float TIFF to 1",
        "float TIFF to 255",
        "grey JPEG",
        "grey PNG",
    ],
)
def test_grey_of_every_depth(values: np.ndarray, image_format: str) -> None:
    """Not clipped at 255, as Pillow's own conversion would."""
    pixels = decode_image(saved(Image.fromarray(values), image_format), ImageSpec(64))
    np.testing.assert_allclose(pixels, EXPECTED_RAMP, atol=3 if image_format == "JPEG" else 1)


@pytest.mark.parametrize(("image_format", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B")])
def test_every_value_of_16_bits_is_rounded(image_format: str, mode: str) -> None:
    values = np.arange(65_536, dtype=">u2" if mode == "I;16B" else "<u2").reshape(256, 256)
    image = Image.frombytes(mode, (256, 256), values.tobytes())
    pixels = decode_image(saved(image, image_format), ImageSpec(256))
    expected = np.rint(values / 65_535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(pixels, expected[:, :, None].repeat(3, axis=2))


@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize("size", [(70, 90), (1000, 700)])
def test_grey_is_what_its_colours_would_be(size: tuple[int, int], resize: Any) -> None:
    grey = Image.fromarray(NOISE).convert("L").resize(size)
    spec = ImageSpec(32, resize)
    np.testing.assert_array_equal(
        decode_image(saved(grey, "PNG"), spec), decode_image(saved(grey.convert("RGB"), "PNG"), spec)
    )


def test_floats_that_are_no_numbers() -> None:
    values = ramp(np.float32, 1.0)
    values[0, :3] = [np.nan, np.inf, -np.inf]
    pixels = decode_image(saved(Image.fromarray(values), "TIFF"), ImageSpec(64))
    assert pixels[0, :3].tolist() == [[0] * 3] * 3
    np.testing.assert_allclose(pixels[1:], EXPECTED_RAMP[1:], atol=1)


def test_one_bit() -> None:
    image = Image.new("1", (40, 40), 0)
    image.paste(1, (20, 0, 40, 40))
    for image_format in ("PNG", "TIFF", "BMP", "GIF"):
        pixels = decode_image(saved(image, image_format), ImageSpec(32))
        assert pixels[16, 4].tolist() == [0] * 3
        assert pixels[16, 28].tolist() == [255] * 3


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(image_format: str) -> None:
    black = Image.new("RGB", (96, 64))
    data = saved(quarters(), image_format, save_all=True, append_images=[black, black])
    decoded = decode(data, ImageSpec(32))
    assert_quarters(decoded.pixels, tolerance=20)
    assert decoded.format == image_format.lower()


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif() -> None:
    decoded = decode(saved(quarters(), "AVIF", quality=95), ImageSpec(32))
    assert_quarters(decoded.pixels, tolerance=20)
    assert (decoded.format, decoded.width, decoded.height) == ("avif", 96, 64)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
@pytest.mark.parametrize("orientation", [2, 6, 7])
def test_avif_is_turned_upright(orientation: int) -> None:
    turn = TURNED[orientation]
    assert turn is not None
    data = saved(quarters().transpose(turn), "AVIF", quality=95, exif=exif(orientation))
    decoded = decode(data, ImageSpec(32))
    assert_quarters(decoded.pixels, tolerance=20)
    assert (decoded.width, decoded.height) == (96, 64)


@pytest.mark.skipif(
    importlib.util.find_spec("pillow_heif") is None, reason="the extra `heif` is not installed"
)
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_heic(orientation: int) -> None:
    import pillow_heif

    turn = TURNED[orientation]
    stored = quarters() if turn is None else quarters().transpose(turn)
    buffer = io.BytesIO()
    pillow_heif.from_pillow(stored).save(buffer, quality=95, exif=exif(orientation, "2024:02:29 12:00:00"))
    decoded = decode(buffer.getvalue(), ImageSpec(32))
    assert_quarters(decoded.pixels, tolerance=20)
    assert (decoded.format, decoded.width, decoded.height) == ("heif", 96, 64)
    assert decoded.taken_at == datetime(2024, 2, 29, 12)


@pytest.mark.skipif(
    importlib.util.find_spec("pillow_heif") is None, reason="the extra `heif` is not installed"
)
def test_the_thumbnail_of_a_heic_is_not_taken_for_the_picture() -> None:
    """pillow-heif would, as a draft; but it is coarser, and may show what the picture was before an edit."""
    import pillow_heif

    images.prepare()

    def encoded(**options: Any) -> bytes:
        buffer = io.BytesIO()
        pillow_heif.from_pillow(Image.fromarray(NOISE)).save(buffer, quality=95, **options)
        return buffer.getvalue()

    with_thumbnail = encoded(thumbnails=[80])
    with Image.open(io.BytesIO(with_thumbnail)) as image:
        assert image.draft(None, (32, 32)) is not None, "there is none to be taken"
    np.testing.assert_array_equal(
        decode_image(with_thumbnail, ImageSpec(32)), decode_image(encoded(), ImageSpec(32))
    )


def test_the_first_picture_of_a_phones_jpeg() -> None:
    """Phones append a depth map or a second view; the file is a JPEG to everybody else."""
    data = saved(quarters(), "MPO", save_all=True, append_images=[Image.new("RGB", (96, 64))], quality=95)
    decoded = decode(data, ImageSpec(32))
    assert_quarters(decoded.pixels)
    assert decoded.format == "jpeg"


def test_stretch_keeps_everything_crop_keeps_proportions() -> None:
    """A wide picture with margins: the crop loses just these."""
    image = Image.new("RGB", (128, 64), BLUE)
    image.paste(quarters((64, 64)), (32, 0))
    data = saved(image, "PNG")
    assert_quarters(decode_image(data, ImageSpec(32, "crop")))
    stretched = decode_image(data, ImageSpec(32, "stretch"))
    assert stretched[16, 2].tolist() == stretched[4, 29].tolist() == list(BLUE)
    np.testing.assert_allclose(stretched[4, 10], RED, atol=2)
    # An upright one likewise.
    upright = saved(image.transpose(Image.Transpose.ROTATE_90), "PNG")
    assert_quarters(np.rot90(decode_image(upright, ImageSpec(32, "crop")), -1))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2)])
@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_pictures_of_odd_shapes(size: tuple[int, int], resize: Any) -> None:
    decoded = decode(saved(Image.new("RGB", size, GREEN), "PNG"), ImageSpec(32, resize))
    assert decoded.pixels.shape == (32, 32, 3)
    assert decoded.pixels.dtype == np.uint8
    assert (decoded.pixels == GREEN).all()
    assert (decoded.width, decoded.height) == size


@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_a_picture_of_the_right_size_is_not_touched(resize: Any) -> None:
    values = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pixels = decode_image(saved(Image.fromarray(values), "PNG"), ImageSpec(32, resize))
    np.testing.assert_array_equal(pixels, values)


@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_scaling_inside_the_jpeg_decoder_changes_next_to_nothing(resize: Any) -> None:
    coarse = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    data = saved(Image.fromarray(coarse).resize((3000, 2000), Image.Resampling.BICUBIC), "JPEG", quality=92)
    with Image.open(io.BytesIO(data)) as image:
        assert image.draft(None, (224, 224)) is not None, "this JPEG is not scaled at all"
        assert image.size < (3000, 2000)
    decoded = decode(data, ImageSpec(224, resize))
    assert (decoded.width, decoded.height) == (3000, 2000)
    with Image.open(io.BytesIO(data)) as image:
        lossless = saved(image, "BMP")
    difference = np.abs(decoded.pixels.astype(int) - decode_image(lossless, ImageSpec(224, resize)))
    assert difference.mean() < 1.0
    assert np.percentile(difference, 99) <= 6


def test_the_pixels_alone() -> None:
    data = saved(quarters(), "JPEG", exif=exif(6))
    np.testing.assert_array_equal(
        images.decode_image(data, ImageSpec(32)), images.decode(data, ImageSpec(32)).pixels
    )


def test_the_same_pixels_every_time() -> None:
    data = saved(quarters((300, 200)), "JPEG")
    np.testing.assert_array_equal(decode_image(data, ImageSpec(64)), decode_image(data, ImageSpec(64)))


def test_time_of_the_picture() -> None:
    data = saved(quarters(), "JPEG", exif=exif(6, "2023:07:01 18:30:05"))
    assert decode(data, ImageSpec(32)).taken_at == datetime(2023, 7, 1, 18, 30, 5)
    assert decode(saved(quarters(), "JPEG"), ImageSpec(32)).taken_at is None


@pytest.mark.parametrize(
    "taken",
    ["", "0000:00:00 00:00:00", "2023-07-01", "    :  :     :  :  ", "2023:13:01 00:00:00", "x" * 500],
)
def test_a_time_that_is_none_is_ignored(taken: str) -> None:
    decoded = decode(saved(quarters(), "JPEG", exif=exif(1, taken)), ImageSpec(32))
    assert decoded.taken_at is None
    assert_quarters(decoded.pixels)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"garbage" * 10,
        lambda data: data[:12],
        lambda data: data[: len(data) // 2],
        lambda data: b"MM\x00*\xff\xff\xff\xff",
        lambda data: data[:8] + b"\xff" * (len(data) - 8),
    ],
    ids=["empty", "garbage", "header alone", "half", "far offset", "all ones"],
)
def test_damaged_exif_is_ignored(damage: Callable[[bytes], bytes]) -> None:
    whole = exif(1, "2023:07:01 18:30:05").removeprefix(b"Exif\x00\x00")
    segment = b"Exif\x00\x00" + damage(whole)
    assert_quarters(decode_image(saved(quarters(), "JPEG", exif=segment), ImageSpec(32)))


# What people's folders hold under the names of pictures, and what becomes of it.


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("photo.jpg", saved(quarters(), "JPEG"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.EMPTY),
        (b"just some text, no picture", Reason.UNSUPPORTED),
        (b"<!doctype html><html><body>404 Not Found</body></html>", Reason.UNSUPPORTED),
        (b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF", Reason.UNSUPPORTED),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', Reason.UNSUPPORTED),
        (zipped(), Reason.UNSUPPORTED),
        (bytes(1000), Reason.UNSUPPORTED),
        (b"\xff\xd8\xff" + bytes(700), Reason.UNREADABLE),
        (b"\x89PNG\r\n\x1a\n" + bytes(700), Reason.UNREADABLE),
        # Read as the length of a segment or chunk, these letters promise more than there is.
        (b"\xff\xd8\xff\xe0" + b"garbage" * 100, Reason.TRUNCATED),
        (b"\x89PNG\r\n\x1a\n" + b"garbage" * 100, Reason.TRUNCATED),
        (b"GIF89", Reason.UNREADABLE),
        (b"II*\x00" + b"\xff" * 100, Reason.UNREADABLE),
        (b"RIFF\x10\x00\x00\x00WEBPVP8 " + bytes(50), Reason.UNREADABLE),
        (b"\x00\x00\x00\x18ftypheic" + b"garbage" * 100, Reason.UNREADABLE),
        (b"\x00\x00\x00\x1cftypavif" + b"garbage" * 100, Reason.UNREADABLE),
    ],
    ids=lambda value: value if isinstance(value, Reason) else None,
)
def test_what_is_no_picture(data: bytes, reason: Reason) -> None:
    assert reason_of(data) is reason


NOISE = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP"])
def test_a_truncated_picture(image_format: str, share: float) -> None:
    """Half a picture would get half a caption."""
    data = saved(Image.fromarray(NOISE), image_format)
    assert reason_of(data[: int(len(data) * share)]) is Reason.TRUNCATED


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("length", [1, 3, 10, 25])
def test_a_header_that_is_cut(image_format: str, length: int) -> None:
    assert reason_of(saved(quarters(), image_format)[:length]) in (
        Reason.TRUNCATED,
        Reason.UNREADABLE,
        Reason.UNSUPPORTED,
    )


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "TIFF"])
def test_a_truncated_picture_of_other_formats(image_format: str) -> None:
    """Their decoders have no words of their own for it."""
    data = saved(Image.fromarray(NOISE), image_format)
    assert reason_of(data[: len(data) // 2]) in (Reason.TRUNCATED, Reason.UNREADABLE)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10_000)))
        + chunk(b"IEND", b"")
    )


def jpeg_header(width: int, height: int) -> bytes:
    def segment(marker: int, body: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body

    components = b"\x01\x11\x00\x02\x11\x00\x03\x11\x00"
    frame = segment(0xC0, struct.pack(">BHHB", 8, height, width, 3) + components)
    scan = segment(0xDA, b"\x03\x01\x00\x02\x00\x03\x00\x00\x3f\x00")
    return (
        b"\xff\xd8" + segment(0xDB, bytes([0]) + bytes([1]) * 64) + frame + scan + bytes(1000) + b"\xff\xd9"
    )


def gif_header(width: int, height: int) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00;"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + frame


def bmp_header(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 10_000, 0, 0, 54) + info + bytes(1000)


HEADERS = {"jpeg": jpeg_header, "png": png_header, "gif": gif_header, "bmp": bmp_header}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("size", [(60_000, 60_000), (15_000, 12_000), (1000, 1000)])
def test_a_decompression_bomb_is_refused_by_its_header(name: str, size: tuple[int, int]) -> None:
    """Above Pillow's own limit; below it and above ours; and above a limit that the model sets."""
    data = HEADERS[name](*size)
    spec = ImageSpec(32, max_pixels=999_999) if size == (1000, 1000) else ImageSpec(32)
    peak = _peak_of(lambda: reason_of(data, spec))
    # Decoded, the smallest takes a megabyte and the next 180.
    assert peak < 900_000


def _peak_of(call: Callable[[], Reason]) -> int:
    """Bytes that Python's allocator handed out at most; asserts that the reason is `too_large`.

    Pillow's pixels are allocated in C, which tracemalloc doesn't see: so that no picture is ever made,
    its decoders must not have been asked, and Pillow counts that.
    """
    before = Image.core.get_stats()["new_count"]
    decode_image(saved(quarters(), "PNG"), ImageSpec(32))
    blocks = Image.core.get_stats()["new_count"]
    assert blocks > before, "the count means nothing"
    tracemalloc.start()
    try:
        assert call() is Reason.TOO_LARGE
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert Image.core.get_stats()["new_count"] == blocks, "an image was allocated"
    return peak


def test_limits_are_inclusive() -> None:
    data = saved(quarters((100, 50)), "PNG")
    assert decode_image(data, ImageSpec(32, max_pixels=5000)).shape == (32, 32, 3)
    assert reason_of(data, ImageSpec(32, max_pixels=4999)) is Reason.TOO_LARGE
    assert decode_image(data, ImageSpec(32, max_bytes=len(data))).shape == (32, 32, 3)
    assert reason_of(data, ImageSpec(32, max_bytes=len(data) - 1)) is Reason.TOO_LARGE


def test_large_pictures_below_the_limit_are_captioned() -> None:
    """Pillow warns from 89 megapixels on, and warnings are errors in these tests."""
    assert Image.MAX_IMAGE_PIXELS is not None
    width = Image.MAX_IMAGE_PIXELS // 10_000 + 100
    data = saved(Image.new("1", (width, 10_000), 1), "PNG")
    decoded = decode(data, ImageSpec(32))
    assert (decoded.width, decoded.height) == (width, 10_000)
    assert (decoded.pixels == 255).all()


def test_text_in_a_png_that_unpacks_to_a_gigabyte() -> None:
    text = zlib.compress(bytes(100_000_000), 9)
    body = b"Comment\x00\x00" + text
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    data = saved(quarters(), "PNG")
    bomb = data[:33] + chunk + data[33:]
    tracemalloc.start()
    try:
        try:
            decode(bomb, ImageSpec(32))
        except ImageError as error:
            assert error.reason in (Reason.UNREADABLE, Reason.TOO_LARGE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000


def test_real_photographs() -> None:
    """What a decoder does to noise and quarters says little about photographs."""
    skimage = importlib.util.find_spec("skimage")
    assert skimage is not None and skimage.submodule_search_locations
    data = (Path(skimage.submodule_search_locations[0]) / "data" / "astronaut.png").read_bytes()
    decoded = decode(data, ImageSpec(64))
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.resize((64, 64), Image.Resampling.BOX)).astype(int)
    assert np.abs(decoded.pixels - expected).mean() < 6


# Hostile bytes. `deadline=None`: the machine may be busy.


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_image_errors(data: bytes) -> None:
    decode_or_refuse(data)


SIGNATURES = [
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"BM",
    b"II*\x00",
    b"MM\x00*",
    b"RIFF\x00\x01\x00\x00WEBP",
    b"\x00\x00\x00\x1cftypavif",
    b"\x00\x00\x00\x18ftypheic",
    b"8BPS\x00\x01",
    b"\x00\x00\x01\x00",
    b"P6 ",
    b"qoif",
    b"DDS ",
    b"icns",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n",
    b"\xff\x4f\xff\x51",
    b"\n\x05\x01\x08",
    b"\x01\xda",
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SIGNATURES), st.binary(max_size=200))
def test_random_bytes_behind_a_signature(signature: bytes, data: bytes) -> None:
    decode_or_refuse(signature + data)


def examples() -> list[bytes]:
    small = quarters((24, 16))
    frames = {"save_all": True, "append_images": [Image.new("RGB", (24, 16))]}
    return [
        saved(small, "JPEG", exif=exif(6, "2023:07:01 18:30:05")),
        saved(small, "PNG", exif=exif(6, "2023:07:01 18:30:05")),
        saved(small, "TIFF", compression="tiff_lzw"),
        saved(small, "GIF", **frames),
        saved(small, "WEBP", **frames),
        saved(small, "BMP"),
        saved(small, "MPO", **frames),
        saved(small.convert("CMYK"), "JPEG"),
        palette_with_transparency(),
        with_alpha("L"),
        saved(Image.fromarray(ramp(np.uint16, 65_535)), "PNG"),
    ]


EXAMPLES = examples()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.data_too_large])
@given(data=st.data())
def test_mutated_pictures_raise_nothing_but_image_errors(data: st.DataObject) -> None:
    picture = bytearray(data.draw(st.sampled_from(EXAMPLES)))
    for _ in range(data.draw(st.integers(1, 6))):
        # Most of what matters stands in the first bytes.
        end = data.draw(st.sampled_from([min(64, len(picture)), len(picture)]))
        picture[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del picture[data.draw(st.integers(1, len(picture))) :]
    decode_or_refuse(bytes(picture))


def decode_or_refuse(data: bytes) -> DecodedImage | None:
    # A small limit, as a mutated header can claim any size.
    try:
        decoded = decode(data, ImageSpec(16, max_pixels=1_000_000))
    except ImageError as error:
        assert error.reason in (
            Reason.EMPTY,
            Reason.UNREADABLE,
            Reason.TRUNCATED,
            Reason.UNSUPPORTED,
            Reason.TOO_LARGE,
        )
        return None
    assert decoded.pixels.shape == (16, 16, 3)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.width > 0 and decoded.height > 0
    return decoded


def test_every_suffix_that_is_looked_at_can_be_decoded() -> None:
    images.prepare()
    formats = Image.registered_extensions()
    can = {suffix for suffix in IMAGE_SUFFIXES if formats.get(suffix) in images._FORMATS}
    assert IMAGE_SUFFIXES - can == set()
    # And nothing else is: what a decoder reads, a hostile file can reach.
    assert {formats[suffix] for suffix in can} | {"MPO"} >= set(images._FORMATS)


def test_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would start `gs` for it; the file is refused before."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    picture = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(ImageError) as raised:
        decode_image(picture, ImageSpec(32))
    assert raised.value.reason is Reason.UNSUPPORTED
    assert not (tmp_path / "was-run").exists()


def test_sound_and_film_in_riff_are_no_damaged_pictures() -> None:
    for kind, reason in ((b"WAVE", Reason.UNSUPPORTED), (b"WEBP", Reason.UNREADABLE)):
        with pytest.raises(ImageError) as raised:
            decode_image(b"RIFF\x24\x00\x00\x00" + kind + b"fmt " + bytes(40), ImageSpec(32))
        assert raised.value.reason is reason
