"""RandAugment: operations drawn at random, all of one strength. Source: Cubuk et al. 2020, arXiv 1909.13719.

Pure functions of ONE image [h,w,c] float32 in [0,1], like those of `augment`; what moves in is a reflection.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtkd_jax.data import places
from mtkd_jax.types import Array, UserError

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
SMOOTHING = ((1, 1, 1), (1, 5, 1), (1, 1, 1))  # over 13


def rand_augment(image: Array, key: Array, *, number: int, magnitude: float) -> Array:
    """`number` operations of `OPERATIONS` one after another, each drawn alike, with replacement.

    `magnitude` 0..10 is the strength of all that have one, on the paper's linear scale from nothing to the
    largest of AutoAugment (Cubuk et al. 2019, table 6): 30 degrees, a shear of 0.3, a move by 0.45 of the
    image, all levels inverted, 4 of 8 bits, a contrast 0.1 or 1.9 times as large. Whatever can go two ways
    goes either way alike; the released code did so only for moves, so that its magnitude 5 left colours as
    they were. Images of one channel have no colour to change. Raises UserError for images of width 1: time
    series.
    """
    if image.shape[1] == 1:
        raise UserError(f"rand_augment: images {image.shape[0]}x1 cannot be turned: must be () for them")
    for key_of_one in jax.random.split(key, number):
        drawn = places.below(key_of_one, len(OPERATIONS), 2)
        strength = magnitude / 10 * jnp.where(drawn[1] == 0, -1.0, 1.0)
        image = jax.lax.switch(drawn[0], tuple(OPERATIONS.values()), image, strength)
    return image


def _unchanged(image: Array, strength: Array) -> Array:
    return image


# --- moves: a gather from the nearest places ----------------------------------------------------------


def _rotated(image: Array, strength: Array) -> Array:
    angle = jnp.deg2rad(30.0) * strength
    return _warped(image, (jnp.cos(angle), jnp.sin(angle)), (-jnp.sin(angle), jnp.cos(angle)))


def _sheared_x(image: Array, strength: Array) -> Array:
    return _warped(image, (1.0, 0.0), (0.3 * strength, 1.0))


def _sheared_y(image: Array, strength: Array) -> Array:
    return _warped(image, (1.0, 0.3 * strength), (0.0, 1.0))


def _moved_x(image: Array, strength: Array) -> Array:
    return _warped(image, right=0.45 * image.shape[1] * strength)


def _moved_y(image: Array, strength: Array) -> Array:
    return _warped(image, down=0.45 * image.shape[0] * strength)


def _warped(
    image: Array,
    row: tuple[Array | float, Array | float] = (1.0, 0.0),
    column: tuple[Array | float, Array | float] = (0.0, 1.0),
    down: Array | float = 0.0,
    right: Array | float = 0.0,
) -> Array:
    """Pixel (y, x) from the image's centre is what lay at (row @ (y, x) + down, column @ (y, x) + right)."""
    height, width, _ = image.shape
    y = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2
    x = jnp.arange(width, dtype=jnp.float32)[None, :] - (width - 1) / 2
    rows = row[0] * y + row[1] * x + down + (height - 1) / 2
    columns = column[0] * y + column[1] * x + right + (width - 1) / 2
    return places.take(image, _nearest(rows), _nearest(columns))


def _nearest(coordinates: Array) -> Array:
    return jnp.floor(coordinates + 0.5).astype(jnp.int32)


# --- levels: a new value for every value of a channel -------------------------------------------------


def _auto_contrasted(image: Array, strength: Array) -> Array:
    """From the least level, then black, to the largest, then white."""
    image = _in_levels(image)
    least, most = image.min(axis=(0, 1), keepdims=True), image.max(axis=(0, 1), keepdims=True)
    width = most - least
    return jnp.where(width > 0, (image - least) / jnp.where(width > 0, width, 1.0), image)


def _equalised(image: Array, strength: Array) -> Array:
    """The share of the channel's pixels that are darker, the brightest ones aside."""
    # 32x32x3, B = 128, ms a batch: counted by scatter 3; by sorting 19, and in a vmapped switch 150; by
    # comparing with every level 47.
    channels = image.shape[-1]
    bins = jnp.round(255 * image).astype(jnp.int32) + 256 * jnp.arange(channels)[None, None]
    counts = jnp.zeros(256 * channels).at[bins.reshape(-1)].add(1.0).reshape(channels, 256)
    darker = (jnp.cumsum(counts, axis=1) - counts).reshape(-1)[bins]
    most = darker.max(axis=(0, 1), keepdims=True)
    return jnp.where(most > 0, darker / jnp.where(most > 0, most, 1.0), image)


def _solarised(image: Array, strength: Array) -> Array:
    """The brightest inverted: a share `strength` of the 256 levels."""
    return jnp.where(255 * image >= 256 * (1 - jnp.abs(strength)), 1 - image, image)


def _posterised(image: Array, strength: Array) -> Array:
    """The first 8 - 4 strength of 8 bits."""
    step = 2.0 ** jnp.floor(4 * jnp.abs(strength))
    return jnp.floor(255 * _in_levels(image) / step + 1e-3) * step / 255


def _in_levels(image: Array) -> Array:
    """Of 8 bits: what an operation before this one has rounded differently is no difference to stretch."""
    return jnp.round(255 * image) / 255


# --- blends: nearer to or farther from something duller -----------------------------------------------


def _brightened(image: Array, strength: Array) -> Array:
    return _blended(jnp.zeros_like(image), image, strength)


def _contrasted(image: Array, strength: Array) -> Array:
    return _blended(jnp.broadcast_to(_grey(image).mean(), image.shape), image, strength)


def _coloured(image: Array, strength: Array) -> Array:
    return _blended(jnp.broadcast_to(_grey(image), image.shape), image, strength)


def _sharpened(image: Array, strength: Array) -> Array:
    """The pixels of the border have no neighbours to be smoothed with and stay."""
    height, width, _ = image.shape
    smooth = sum(
        SMOOTHING[row][column] / 13 * image[row : height - 2 + row, column : width - 2 + column]
        for row in range(3)
        for column in range(3)
    )
    return _blended(image.at[1:-1, 1:-1].set(smooth), image, strength)


def _blended(dull: Array, image: Array, strength: Array) -> Array:
    return (dull + (1 + 0.9 * strength) * (image - dull)).clip(0, 1)


def _grey(image: Array) -> Array:
    """[h,w,1]."""
    weights = jnp.array(LUMA) if image.shape[-1] == 3 else jnp.full(image.shape[-1], 1 / image.shape[-1])
    return (image @ weights)[:, :, None]  # as a sum over the last axis it took ten times as long


OPERATIONS = {
    "identity": _unchanged,
    "auto_contrast": _auto_contrasted,
    "equalize": _equalised,
    "rotate": _rotated,
    "solarize": _solarised,
    "color": _coloured,
    "posterize": _posterised,
    "contrast": _contrasted,
    "brightness": _brightened,
    "sharpness": _sharpened,
    "shear_x": _sheared_x,
    "shear_y": _sheared_y,
    "translate_x": _moved_x,
    "translate_y": _moved_y,
}
