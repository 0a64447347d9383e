"""What networks for ImageNet share: how they take an image, and the arguments that all of them have."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtkd_jax.models import layers
from mtkd_jax.types import Array, Task, UserError

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of every channel, of images in 0..1

COLOURS = 3  # channels that pretrained weights read
MEAN_AND_STD: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of ImageNet's training images
AROUND_ZERO: Statistics = ((127 / 255,) * 3, (128 / 255,) * 3)  # from -1 to 1, as networks for phones take it
STEM_STRIDES = {"imagenet": 2, "cifar": 1}


def prepared(image: Array, task: Task, statistics: Statistics | None, size: int) -> Array:
    """An image [B,h,w,c] as the stem takes it: normalised, of three channels where it is grey, resized.

    By `statistics`, those that pretrained weights were trained with, or else by those of the task, which are
    of this data. The only channel of a grey image is repeated. With `size` above 0 the sides become `size`,
    by bilinear interpolation; made smaller, the image is smoothed first. Raises UserError where pretrained
    weights meet another number of channels.
    """
    if statistics is not None and image.shape[-1] not in (1, COLOURS):
        raise UserError(
            f"images have {image.shape[-1]} channels: pretrained weights take {COLOURS}, or 1, repeated"
        )
    if statistics is None:
        image = layers.normalise(image, task.mean, task.std)
    if image.shape[-1] == 1:
        image = jnp.repeat(image, COLOURS, axis=-1)
    if statistics is not None:
        image = layers.normalise(image, *statistics)
    if size and image.shape[1:3] != (size, size):
        image = jax.image.resize(image, (image.shape[0], size, size, image.shape[3]), "bilinear")
    return image


def check_arguments(name: str, *, image_size: int, stem: str, dtype: str) -> None:
    """Raise UserError unless the arguments that all families have can be."""
    valid = isinstance(image_size, int) and image_size >= 0
    layers.check_argument(f"{name}.image_size", image_size, valid, "a whole number, 0 for images as they are")
    layers.check_argument(f"{name}.stem", stem, stem in STEM_STRIDES, " or ".join(STEM_STRIDES))
    layers.check_dtype(f"{name}.dtype", dtype)
