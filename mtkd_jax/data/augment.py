"""Augmentation: pure functions of ONE image [h,w,c] float32 and a key; `augment` maps them over a batch.

None of them but RandAugment needs to know what black is: moved-in pixels are reflections and cut-out pixels
the image's own mean, so that images of a float source, whatever their units, stay in their own range.

The forms are those that stay fast under vmap inside lax.scan on CPU: moves are gathers by computed places
(fused with the gather of the batch), random numbers are drawn flat. Times beside them, and in places.py, are
for B = 128 on 2 busy CPU cores: read them as ratios.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtkd_jax.data import places
from mtkd_jax.data.rand_augment import rand_augment
from mtkd_jax.system.terminal import one_line
from mtkd_jax.types import Array, Augment, UserError

FURTHER = 2**31  # keys of steps and batches are numbered from 0; this one and those after it are none of them


def flip(image: Array, key: Array) -> Array:
    """Mirror left and right with probability 1/2. Raises `UserError` for images of width 1: time series."""
    return _mirrored(image, jax.random.bernoulli(key))


def _mirrored(image: Array, mirrored: Array) -> Array:
    if image.shape[1] == 1:
        raise UserError(f"flip: images {image.shape[0]}x1 have no left and right: must be off for them")
    # 32x32x3: 0.1 ms a batch, where choosing between the image and its reverse takes 0.7.
    columns = jnp.arange(image.shape[1])
    return image[:, jnp.where(mirrored, columns[::-1], columns)]


def alternately(key: Array, rows: Array, epoch: Array) -> Array:
    """Which of the images `rows` [B] of the data are mirrored in an epoch [], [B] bool.

    By lot in the first epoch, and from then on in every other one: in two epochs in a row an image is seen
    both ways, where `flip` shows half of the images the same way twice. `key` is that of the whole training.

    Source: Jordan 2024, arXiv 2404.00498, section 3.6.
    """
    key = jax.random.fold_in(key, FURTHER)  # the steps of a training are numbered from 0
    first = jax.vmap(lambda row: jax.random.bernoulli(jax.random.fold_in(key, row)))(rows)
    return first ^ (epoch % 2 == 1)


def shift(image: Array, key: Array, *, pixels: int) -> Array:
    """Move by up to `pixels` in height and width, every whole offset alike; reflect what moves in.

    The same as padding by reflection and cropping back at random. Raises `UserError` unless the image is
    larger than `pixels` both ways.
    """
    height, width, _ = image.shape
    if pixels >= min(height, width):
        raise UserError(
            f"shift = {pixels}: must be less than {min(height, width)}, for images {height}x{width}"
        )
    down, right = places.below(key, 2 * pixels + 1, 2 * pixels + 1) - pixels
    return places.take(image, jnp.arange(height)[:, None] + down, jnp.arange(width)[None, :] + right)


def resized_crop(image: Array, key: Array, *, least_area: float) -> Array:
    """A part of the image of a random size, place and proportion, brought back to the image's size.

    Its share of the area is uniform in [least_area, 1] and the logarithm of width over height is so between
    3/4 and 4/3; what would stand over is cut off. Between pixels it is linear.

    Source: Szegedy et al. 2015, arXiv 1409.4842.
    """
    height, width, _ = image.shape
    share, proportion, down, right = jax.random.uniform(key, (4,))
    area = (least_area + (1 - least_area) * share) * height * width
    ratio = jnp.exp((2 * proportion - 1) * jnp.log(4 / 3)) * width / height
    tall, wide = jnp.sqrt(area / ratio).clip(1, height), jnp.sqrt(area * ratio).clip(1, width)
    scale = jnp.stack([height / tall, width / wide])
    corner = jnp.stack([down * (height - tall), right * (width - wide)])
    return jax.image.scale_and_translate(
        image, image.shape, (0, 1), scale, -corner * scale, "linear", antialias=False
    )


def cutout(image: Array, key: Array, *, size: int) -> Array:
    """Paint a square of `size` pixels, centred on a random pixel, with the image's mean colour.

    The square may hang over the border. The paper paints the mean of the data set (zero after its
    normalisation). Source: DeVries and Taylor 2017, arXiv 1708.04552.
    """
    height, width, _ = image.shape
    top, left = places.below(key, height, width) - size // 2
    rows, columns = jnp.arange(height) - top, jnp.arange(width) - left
    inside = ((rows >= 0) & (rows < size))[:, None] & ((columns >= 0) & (columns < size))[None, :]
    return jnp.where(inside[:, :, None], image.mean(axis=(0, 1), keepdims=True), image)


def noise(image: Array, key: Array, *, std: float) -> Array:
    """Add Gaussian noise of standard deviation `std` to every value.

    An image within [0,1] stays there (clipped). One with any value outside is in units of its own, whose
    bounds nobody knows, and is not clipped.
    """
    # 32x32x3: 2.7 ms a batch, where numbers drawn in the shape of the image take 6.6 (c = 3 innermost).
    noisy = image + std * jax.random.normal(key, (image.size,)).reshape(image.shape)
    unit = (image.min() >= 0) & (image.max() <= 1)
    return jnp.where(unit, noisy.clip(0, 1), noisy)


def augment(
    key: Array,
    images: Array,
    *,
    shift: int = 0,
    flip: bool | Array = False,
    rand_augment: tuple[int, ...] = (),
    cutout: int = 0,
    noise: float = 0.0,
    own: tuple[Augment, ...] = (),
) -> Array:
    """Flip, shift, RandAugment, cut out and add noise to images [B,h,w,c], each by a key of its own.

    0, False and () are off; `rand_augment` is (number, magnitude). With `flip` [B] bool these images are
    mirrored, and none by lot; `alternately` says which in turn. What is switched on does not change the
    random numbers of the others. Then those of the user's `own`, in turn, each given a key of its own and the
    whole batch, of which it must keep shape and dtype. All off: the images themselves.
    """
    if isinstance(flip, Array):
        images, flip = jax.vmap(_mirrored)(images, flip), False
    if shift or flip or rand_augment or cutout or noise:
        images = _each(key, images, (shift, flip, rand_augment, cutout, noise))
    for number, one in enumerate(own, start=1):
        images = one(jax.random.fold_in(key, FURTHER + number), images)
    return images


def check_own(one: Augment, images: Array | jax.ShapeDtypeStruct) -> None:
    """Raise UserError unless an augmentation of the user's own keeps shape and dtype of images [B,h,w,c].

    It is traced and nothing computed. What is wrong with it otherwise is said in one line, too.
    """
    try:
        found = jax.eval_shape(one, jax.random.key(0), images)
        said = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(found)) or str(found)
    except UserError:
        raise
    except Exception as error:  # anything may come out of it
        raise UserError(f"{type(error).__name__}: {one_line(str(error).partition(chr(10))[0])}") from error
    right = f"{images.dtype}{list(images.shape)}"
    if said != right or not hasattr(found, "shape"):
        raise UserError(f"made {said} of images {right}; it must keep shape and dtype")


def _each(key: Array, images: Array, on: tuple) -> Array:
    """Ours, mapped over the batch."""
    keys = jax.random.split(key, (len(images), 4))
    further = jax.random.split(jax.random.fold_in(key, FURTHER), len(images))
    return jax.vmap(lambda *one: _augmented(*one, *on))(images, keys, further)


def _augmented(
    image: Array,
    keys: Array,
    further_key: Array,
    pixels: int,
    mirrored: bool,
    operations: tuple[int, ...],
    size: int,
    std: float,
) -> Array:
    flip_key, shift_key, cutout_key, noise_key = keys
    if mirrored:
        image = flip(image, flip_key)
    if pixels:
        image = shift(image, shift_key, pixels=pixels)
    if operations:
        image = rand_augment(image, further_key, number=operations[0], magnitude=operations[1])
    if size:
        image = cutout(image, cutout_key, size=size)
    if std:
        image = noise(image, noise_key, std=std)
    return image
