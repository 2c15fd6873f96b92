"""What decodes JPEG files makes no difference: to no pixel, and to no verdict on a damaged file."""

import contextlib
import io
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from batchcap.captioner import images, jpeg
from batchcap.captioner.images import ImageSpec
from batchcap.errors import ImageError, Reason
from tests.hostile.by_hand import lossless_jpeg
from tests.jpeg_decoders import HAS_SIMPLEJPEG, decode_with_all

needs_simplejpeg = pytest.mark.skipif(not HAS_SIMPLEJPEG, reason="the extra `fast` is not installed")

_FLICKR8K = Path(
    os.environ.get("FLICKR8K_IMAGES", Path(__file__).parents[3] / "shared" / "data" / "flickr8k" / "images")
)


def photo(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Smooth colours with fine noise on them, so that every coefficient of the DCT is at work."""
    width, height = size
    rng = np.random.default_rng(width * 10_000 + height)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    noisy = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(noisy).convert(mode)


def as_jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "JPEG"), **options)
    return buffer.getvalue()


def drafted(data: bytes, size: int) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.draft(None, (size, size))
    return image


KINDS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": "4:4:4"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:2:0": {"subsampling": "4:2:0"},
    "coarse": {"quality": 5},
    "fine": {"quality": 100},
    "progressive": {"progressive": True},
    "optimized": {"optimize": True},
    "restart markers": {"restart_marker_blocks": 3},
    "RGB inside": {"keep_rgb": True},
    "of a phone": {"format": "MPO", "save_all": True, "append_images": [Image.new("RGB", (20, 30))]},
}


@needs_simplejpeg
@pytest.mark.parametrize("kind", KINDS)
def test_simplejpeg_makes_the_pixels_of_pillow(kind: str) -> None:
    """At every scale, before anything is resized: none of them is left to Pillow."""
    data = as_jpeg(photo((451, 337)), **KINDS[kind])
    sizes = set()
    for size in (337, 224, 168, 100, 84, 42, 20):
        image = drafted(data, size)
        sizes.add(image.size)
        pixels = jpeg.decode_drafted(data, image)
        assert pixels is not None
        np.testing.assert_array_equal(pixels, image)
    assert sizes == {(451, 337), (226, 169), (113, 85), (57, 43)}


SIDES = [*range(1, 18), 31, 63, 64, 65, 127, 128, 129, 223, 224, 225, 255, 256, 257]


@pytest.mark.parametrize("image_size", [1, 2, 8, 16, 32])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_pictures_of_every_shape(image_size: int, subsampling: str) -> None:
    """The smallest are where a size does not tell the scale."""
    for width, height in zip(SIDES, SIDES[::-1], strict=True):
        for size in ((width, height), (width, width)):
            decode_with_all(as_jpeg(photo(size), subsampling=subsampling), ImageSpec(image_size))


@needs_simplejpeg
@pytest.mark.parametrize("kind", ["4:2:0", "progressive"])
def test_a_picture_may_be_cut_anywhere(kind: str) -> None:
    data = as_jpeg(photo((160, 120)), **KINDS[kind])
    scan = data.index(b"\xff\xda") + 14
    for length in [*np.linspace(scan, len(data) - 3, 25, dtype=int), len(data) - 2, len(data) - 1]:
        with pytest.raises(ImageError) as caught:
            decode_with_all(data[:length], ImageSpec(32))
        assert caught.value.reason is Reason.TRUNCATED
    for length in np.linspace(3, scan, 25, dtype=int):
        with pytest.raises(ImageError):
            decode_with_all(data[:length], ImageSpec(32))


@needs_simplejpeg
def test_what_simplejpeg_finds_a_fault_with_is_left_to_pillow() -> None:
    """A wrong restart marker, over which Pillow goes without a word."""
    data = as_jpeg(photo((160, 120)), restart_marker_blocks=4).replace(b"\xff\xd3", b"\xff\xd5", 1)
    assert jpeg.decode_drafted(data, drafted(data, 32)) is None
    assert decode_with_all(data, ImageSpec(32)).pixels.shape == (32, 32, 3)


_NOISE = as_jpeg(photo((120, 90)), restart_marker_blocks=4)
_PROGRESSIVE = as_jpeg(photo((120, 90)), progressive=True)


@settings(max_examples=200, deadline=None)
@given(
    data=st.sampled_from([_NOISE, _PROGRESSIVE]),
    damage=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4
    ),
)
def test_a_damaged_picture(data: bytes, damage: list[tuple[float, int]]) -> None:
    """Bytes of the picture itself, behind the header: few of them are refused."""
    start = data.index(b"\xff\xda")
    damaged = bytearray(data)
    for position, value in damage:
        damaged[start + int(position * (len(data) - start))] = value
    with contextlib.suppress(ImageError):
        decode_with_all(bytes(damaged), ImageSpec(32, max_pixels=1_000_000))


@needs_simplejpeg
def test_other_kinds_are_left_to_pillow() -> None:
    assert jpeg.decode_drafted(b"", Image.new("RGB", (64, 64))) is None
    for mode in ("L", "CMYK"):
        data = as_jpeg(photo((300, 200), mode))
        assert jpeg.decode_drafted(data, drafted(data, 64)) is None
        decode_with_all(data, ImageSpec(64))
    data = as_jpeg(photo((7, 7)))
    assert jpeg.decode_drafted(data, drafted(data, 1)) is None


def test_a_lossless_jpeg_is_not_scaled_inside_the_decoder() -> None:
    """Asked for less, libjpeg decodes all of it: simplejpeg wrote beyond its buffer, and Pillow failed."""
    pixels = np.asarray(photo((96, 64)))
    data = lossless_jpeg(pixels)
    assert not jpeg.is_scalable(data)
    assert not jpeg.is_scalable(data[:2] + b"\xff\xfe\x00\x04hi\xff\xff" + data[2:])
    assert jpeg.is_scalable(as_jpeg(photo((96, 64)), progressive=True))
    image = Image.open(io.BytesIO(data))
    assert jpeg.decode_drafted(data, image) is None
    for size in (32, 48, 128):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        expected = images.decode(buffer.getvalue(), ImageSpec(size)).pixels
        np.testing.assert_array_equal(decode_with_all(data, ImageSpec(size)).pixels, expected)


def test_a_header_that_ends_before_its_frame_names_no_process() -> None:
    data = lossless_jpeg(np.asarray(photo((16, 16))))
    frame = data.index(b"\xff\xc3")
    assert [jpeg.is_scalable(data[:length]) for length in range(frame + 3)] == [True] * (frame + 2) + [False]


@needs_simplejpeg
@pytest.mark.parametrize("size", [(64, 48), (1700, 1300)])
def test_no_more_memory_than_the_header_promised(size: tuple[int, int]) -> None:
    """Should the two ever read different sizes out of a header, the limits were checked on Pillow's."""
    data = as_jpeg(photo(size))
    image = drafted(as_jpeg(photo((128, 96))), 128)
    jpeg.decode_drafted(data, image)
    tracemalloc.start()
    try:
        assert jpeg.decode_drafted(data, image) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 128 * 96 * 3 + 10_000


def test_without_the_extra_pillow_decodes() -> None:
    assert jpeg.default_decoder() == ("simplejpeg" if HAS_SIMPLEJPEG else "pillow")


@needs_simplejpeg
@pytest.mark.parametrize("image_size", [224, 96])
def test_photographs_of_flickr8k(image_size: int) -> None:
    paths = sorted(_FLICKR8K.glob("*.jpg"))[::35][:200]
    if not paths:
        pytest.skip("flickr8k not at hand")
    for path in paths:
        data = path.read_bytes()
        image = drafted(data, image_size)
        assert image.mode != "RGB" or jpeg.decode_drafted(data, image) is not None
        decode_with_all(data, ImageSpec(image_size))


@needs_simplejpeg
def test_a_picture_of_the_right_size_is_turned_all_the_same() -> None:
    image = photo((32, 32))
    tags = Image.Exif()
    tags[0x0112] = 6
    straight = images.decode(as_jpeg(image), ImageSpec(32)).pixels
    turned = decode_with_all(as_jpeg(image, exif=tags.tobytes()), ImageSpec(32)).pixels
    np.testing.assert_array_equal(turned, np.rot90(straight, -1))
