"""Makes the pictures of the README: `python docs/pictures.py`; it needs Chromium.

::

    docs/images/page.png   the page of `batchcap serve` over the photographs of examples/demo.py
    docs/images/*.jpg      three of these photographs, small

The photographs come with scikit-image and are in the public domain. A person has corrected two of the
captions.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from examples.demo import PHOTOS, find_photos
from tests.serving.chromium import Chromium, find_chromium

IMAGES = Path(__file__).parent / "images"
CORRECTED = {"chelsea.png": "a cat looks into the camera", "coffee.png": "a cup of coffee on a wooden table"}
_SIZE = (1200, 620)


@contextmanager
def served(store: Path) -> Iterator[str]:
    """`batchcap serve` at a port that is free; its address."""
    command = [_batchcap(), "serve", "--store", store, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            # It prints its address once it answers.
            yield server.stdout.readline().strip() if server.stdout else ""
        finally:
            server.terminate()


def _batchcap() -> Path:
    return Path(sys.executable).with_name("batchcap")


def main() -> None:
    """Writes all of them."""
    program = find_chromium()
    if program is None:
        raise SystemExit("there is no Chromium here")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos, store = folder / "photos", folder / "store"
        photos.mkdir()
        for photo in PHOTOS:
            (photos / photo).write_bytes((find_photos() / photo).read_bytes())
        for photo in PHOTOS[:3]:
            with Image.open(photos / photo) as image:
                image.convert("RGB").resize((160, round(160 * image.height / image.width))).save(
                    IMAGES / f"{Path(photo).stem}.jpg", quality=80
                )
        subprocess.run([_batchcap(), "index", photos, "--store", store], check=True)
        for photo, text in CORRECTED.items():
            subprocess.run([_batchcap(), "edit", photos / photo, text, "--store", store], check=True)
        with served(store) as url, Chromium(program, folder / "profile") as browser:
            browser.open(f"{url}/search?min_confidence=0", width=_SIZE[0], height=_SIZE[1])
            browser.evaluate("Promise.all([...document.images].map(image => image.decode()))")
            browser.screenshot(folder / "page.png")
        with Image.open(folder / "page.png") as image:
            # Few colours: a quarter of the size.
            image.convert("RGB").quantize(256).save(IMAGES / "page.png", optimize=True)


if __name__ == "__main__":
    main()
