"""Lays out a few photographs to try batchcap on: `python examples/demo.py FOLDER`.

They lie in the wheel of scikit-image, a development dependency, and are free to use: see the README in
their folder. `make demo` captions them.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

PHOTOS = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg")


def find_photos() -> Path:
    """The folder of the sample photographs, found without importing scikit-image."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("The photographs come with scikit-image: run `make venv` first.")
    return Path(spec.submodule_search_locations[0]) / "data"


def main() -> None:
    """Copies the photographs into the folder named on the command line."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python examples/demo.py FOLDER")
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for name in PHOTOS:
        # With its time of change, so that a second run of the demo finds nothing new.
        shutil.copy2(find_photos() / name, target / name)
    print(f"{len(PHOTOS)} photographs in {target}")


if __name__ == "__main__":
    main()
