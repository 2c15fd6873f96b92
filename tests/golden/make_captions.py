"""Regenerates `captions.json`: what the model that ships says of crops of scikit-image's photographs.

They were written by the first decoder, which kept keys and values and every image to the end. Only a new
model is a reason to run this again::

    python tests/golden/make_captions.py
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

from batchcap.captioner.bundle import DEFAULT_BUNDLE, Bundle

OUTPUT = Path(__file__).with_name("captions.json")
BEAMS = (1, 3, 5)


def crops(image_size: int, count: int = 24) -> list[np.ndarray]:
    """Squares of many sizes and places, resized."""
    rng = np.random.default_rng(0)
    photos = [load() for load in (data.astronaut, data.chelsea, data.coffee, data.rocket)]
    found = []
    for number in range(count):
        photo = photos[number % len(photos)]
        side = int(rng.integers(120, min(photo.shape[:2])))
        top, left = (int(rng.integers(0, length - side + 1)) for length in photo.shape[:2])
        square = Image.fromarray(photo[top : top + side, left : left + side])
        found.append(np.asarray(square.resize((image_size, image_size), Image.Resampling.BILINEAR)))
    return found


if __name__ == "__main__":
    # Not above: who wants the crops alone needs no TensorFlow.
    from batchcap.captioner.captioner import Captioner

    bundle = Bundle.open(DEFAULT_BUNDLE)
    golden = {}
    for num_beams in BEAMS:
        generation = replace(bundle.generation, num_beams=num_beams)
        captions = Captioner(replace(bundle, generation=generation)).caption(
            crops(bundle.image_spec.image_size)
        )
        golden[num_beams] = [[caption.text, round(caption.log_prob, 5)] for caption in captions]
    OUTPUT.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
