"""Which part of the CNN is trained."""

import keras

from model_training.config import TrainCnn


def freeze(backbone: keras.Model, train_cnn: TrainCnn) -> None:
    """Freezes the layers of a CNN that are not to be trained.

    `top` trains the layers that work on the final grid: in every EfficientNet the last two stages and the
    head, a fifth of the arithmetic and most of the weights. Gradients then stop early, so that the rest
    costs what it costs a frozen CNN.
    """
    backbone.trainable = train_cnn != "none"
    if train_cnn != "top":
        return
    grid = backbone.output_shape[1:3]
    for layer in backbone.layers:
        layer.trainable = layer.output.shape[1:3] == grid


def freeze_beginning(backbone: keras.Model) -> None:
    """Freezes the layers that work on a grid finer than an eighth of the image.

    They see edges and textures, which are the same in all photographs, and take most of the time of training:
    the gradients of large depthwise convolutions are slow on a CPU.
    """
    backbone.trainable = True
    finest = backbone.input_shape[1] / 8
    for layer in backbone.layers:
        layer.trainable = layer.output.shape[1] <= finest
