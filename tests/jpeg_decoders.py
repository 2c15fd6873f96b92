"""JPEG files are decoded by one of two libraries; here by both, and they must agree."""

import importlib.util

import numpy as np

from batchcap.captioner.images import DecodedImage, ImageSpec, decode
from batchcap.captioner.jpeg import JpegDecoder
from batchcap.errors import ImageError

HAS_SIMPLEJPEG = importlib.util.find_spec("simplejpeg") is not None


def decode_with_all(data: bytes, spec: ImageSpec) -> DecodedImage:
    """What `decode` returns or raises, whichever decoder there is and whichever is chosen.

    Raises:
        AssertionError: if it depends on the decoder.
    """
    outcome = _outcome(data, spec, "pillow")
    if HAS_SIMPLEJPEG and data.startswith(b"\xff\xd8"):
        other = _outcome(data, spec, "simplejpeg")
        if isinstance(outcome, DecodedImage) and isinstance(other, DecodedImage):
            np.testing.assert_array_equal(other.pixels, outcome.pixels)
            assert _facts(other) == _facts(outcome)
        else:
            assert isinstance(outcome, ImageError) and isinstance(other, ImageError), (outcome, other)
            assert (other.reason, other.detail) == (outcome.reason, outcome.detail)
    if isinstance(outcome, ImageError):
        raise outcome
    return outcome


def _outcome(data: bytes, spec: ImageSpec, jpeg_decoder: JpegDecoder) -> DecodedImage | ImageError:
    try:
        return decode(data, spec, jpeg_decoder)
    except ImageError as error:
        return error


def _facts(image: DecodedImage) -> tuple[object, ...]:
    pixels = image.pixels
    return image.width, image.height, image.format, image.taken_at, pixels.dtype, pixels.shape
