"""Small pictures that stand in a page itself, as `data:` URIs."""

import base64
import io
from collections.abc import Sequence

from PIL import Image

from batchcap.captioner.images import ImageSpec
from batchcap.loading import ImageLoader

# Pictures that are decoded before any of them is given away.
_BATCH = 64


def thumbnails(uris: Sequence[str], size: int) -> list[str | None]:
    """The middle of each picture, as a `data:` URI.

    Args:
        uris: of the pictures.
        size: height and width, in pixels.

    Returns:
        One for each; None for a file that can't be shown, or isn't there.
    """
    found: list[str | None] = []
    # In the decoder's own process: a picture may have been replaced by a worse one.
    with ImageLoader(ImageSpec(size, "crop")) as loader:
        for start in range(0, len(uris), _BATCH):
            for file in loader.load(uris[start : start + _BATCH]):
                found.append(None if file.image is None else _data_uri(Image.fromarray(file.image.pixels)))
    return found


def _data_uri(picture: Image.Image) -> str:
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
