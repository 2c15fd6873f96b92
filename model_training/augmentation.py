"""Other looks at the same image: mirror images and random crops.

Crops keep at least half of the area, so that what a caption speaks of is mostly still there; they are drawn
as for the networks of Szegedy et al., https://arxiv.org/abs/1409.4842, section 6, with milder bounds.
"""

import tensorflow as tf

_SMALLEST_AREA = 0.5
# The logarithm of how much a crop may be stretched.
_LARGEST_STRETCH = 0.25


def random_crops(images: tf.Tensor, *, seed: tuple[int, int] | tf.Tensor) -> tf.Tensor:
    """Cuts a random part out of each image, scales it up to the whole, and mirrors every other one.

    Args:
        images: [B, S, S, 3], of any number type.
        seed: two integers; the same seed gives the same crops.

    Returns:
        float32[B, S, S, 3].
    """
    return crop(images, random_boxes(tf.shape(images)[0], seed=seed))


def random_boxes(count: int | tf.Tensor, *, seed: tuple[int, int] | tf.Tensor) -> tf.Tensor:
    """Which part of each image to see.

    Args:
        count: B; more images get no other boxes for the first of them.
        seed: two integers; the same seed gives the same boxes.

    Returns:
        float32[B, 4]: top, left, bottom and right, from 0 to 1. A box whose left edge is right of its right
        edge is read backwards, hence mirrored.
    """
    area, stretch, top, left, coin = tf.unstack(tf.random.stateless_uniform((count, 5), seed), axis=1)
    area = _SMALLEST_AREA + (1 - _SMALLEST_AREA) * area
    aspect = tf.exp((2 * stretch - 1) * _LARGEST_STRETCH)
    height, width = tf.minimum(tf.sqrt(area / aspect), 1.0), tf.minimum(tf.sqrt(area * aspect), 1.0)
    top, left = top * (1 - height), left * (1 - width)
    bottom, right = top + height, left + width
    is_mirrored = coin < 0.5
    return tf.stack(
        [top, tf.where(is_mirrored, right, left), bottom, tf.where(is_mirrored, left, right)], axis=1
    )


def crop(images: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
    """[B, S, S, 3] and float32[B, 4], see `random_boxes` -> float32[B, S, S, 3]."""
    size = images.shape[1]
    return tf.image.crop_and_resize(images, boxes, tf.range(tf.shape(images)[0]), (size, size))
