"""The CNNs: uint8 pixels -> a grid of feature vectors.

EfficientNet B0 to B7 come from keras.applications; EfficientNet-Lite 0 to 2, which Keras does not have,
are built here. Every CNN takes raw pixels: its first layers normalise them.
"""

import keras

from batchcap.captioner.config import Backbone

# Lite: width factor, depth factor, the image size that its ImageNet weights were trained at.
_LITE = {
    "efficientnet_lite0": (1.0, 1.0, 224),
    "efficientnet_lite1": (1.0, 1.1, 240),
    "efficientnet_lite2": (1.1, 1.2, 260),
}

# Stages of EfficientNet-B0 (Tan and Le, https://arxiv.org/abs/1905.11946, table 1), which Lite shares:
# expansion, output channels, blocks, stride of the first block, kernel size.
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
_LITE_STEM = 32
_LITE_HEAD = 1280


def build_backbone(name: Backbone, image_size: int, *, include_top: bool = False) -> keras.Model:
    """Builds a CNN with random weights.

    Args:
        name: which CNN.
        image_size: height and width of the pixels it takes.
        include_top: with pooling and the classifier of ImageNet's 1,000 classes.

    Returns:
        uint8[B, image_size, image_size, 3] -> float32[B, h, w, C], or float32[B, 1000] with
        `include_top` (logits for Lite, probabilities for the others, as their publishers have it).
    """
    if name in _LITE:
        return _build_lite(name, image_size, include_top)
    build = getattr(keras.applications, "EfficientNet" + name.removeprefix("efficientnet_").upper())
    backbone = build(
        include_top=include_top,
        weights=None,
        input_shape=(image_size, image_size, 3),
        name=name,
    )
    # Keras numbers these two by how many it has made in this process; a bundle needs names that stay.
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.name = "normalization"
    return backbone


def default_image_size(name: Backbone) -> int:
    """The image size, in pixels, that the published ImageNet weights were trained at."""
    if name in _LITE:
        return _LITE[name][2]
    return {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528, "b7": 600}[
        name.removeprefix("efficientnet_")
    ]


def _build_lite(name: str, image_size: int, include_top: bool) -> keras.Model:
    """EfficientNet-Lite: B0's stages with ReLU6 and without squeeze-and-excitation.

    Stem and head keep their width, the first and the last stage their depth, whatever the factors.
    Follows `efficientnet_lite_builder.py` of the TensorFlow TPU model garden.
    """
    width_factor, depth_factor, _ = _LITE[name]
    pixels = keras.Input((image_size, image_size, 3), name="pixels")
    # (x - 127) / 128, as the weights expect.
    x = keras.layers.Rescaling(1 / 128, offset=-127 / 128, name="rescaling")(pixels)
    x = _convolution(x, _LITE_STEM, kernel_size=3, strides=2, name="stem")
    x = keras.layers.ReLU(6.0, name="stem_relu")(x)
    block = 0
    for stage, (expansion, channels, repeats, strides, kernel_size) in enumerate(_STAGES):
        channels = _round_channels(channels * width_factor)
        if stage not in (0, len(_STAGES) - 1):
            repeats = -int(-depth_factor * repeats // 1)
        for repeat in range(repeats):
            x = _inverted_bottleneck(
                x,
                channels,
                expansion=expansion,
                kernel_size=kernel_size,
                strides=strides if repeat == 0 else 1,
                name=f"block{block}",
            )
            block += 1
    x = _convolution(x, _LITE_HEAD, kernel_size=1, strides=1, name="head")
    x = keras.layers.ReLU(6.0, name="head_relu")(x)
    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name="pooling")(x)
        x = keras.layers.Dense(1000, name="logits")(x)
    return keras.Model(pixels, x, name=name)


def _inverted_bottleneck(
    x: keras.KerasTensor, channels: int, *, expansion: int, kernel_size: int, strides: int, name: str
) -> keras.KerasTensor:
    """MBConv without squeeze-and-excitation (Sandler et al., https://arxiv.org/abs/1801.04381)."""
    shortcut = x
    channels_in = x.shape[-1]
    if expansion != 1:
        x = _convolution(x, channels_in * expansion, kernel_size=1, strides=1, name=f"{name}_expand")
        x = keras.layers.ReLU(6.0, name=f"{name}_expand_relu")(x)
    x = keras.layers.DepthwiseConv2D(
        kernel_size, strides, padding="same", use_bias=False, name=f"{name}_depthwise_conv"
    )(x)
    x = keras.layers.BatchNormalization(epsilon=1e-3, name=f"{name}_depthwise_bn")(x)
    x = keras.layers.ReLU(6.0, name=f"{name}_depthwise_relu")(x)
    x = _convolution(x, channels, kernel_size=1, strides=1, name=f"{name}_project")
    if strides == 1 and channels_in == channels:
        x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return x


def _convolution(
    x: keras.KerasTensor, channels: int, *, kernel_size: int, strides: int, name: str
) -> keras.KerasTensor:
    x = keras.layers.Conv2D(
        channels, kernel_size, strides, padding="same", use_bias=False, name=f"{name}_conv"
    )(x)
    return keras.layers.BatchNormalization(epsilon=1e-3, name=f"{name}_bn")(x)


def _round_channels(channels: float, divisor: int = 8) -> int:
    """To the nearest multiple of `divisor`, but never down by more than a tenth."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
