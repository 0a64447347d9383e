"""Which pixel goes where: drawn places, and a gather that stays fast under vmap inside lax.scan on CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtkd_jax.types import Array


def below(key: Array, *limits: int) -> Array:
    """One whole number for each limit, 0 .. limit-1, all equally likely."""
    # Not randint: it expands the generator three times, and augment.py then takes twice as long to compile.
    drawn = jax.random.uniform(key, (len(limits),)) * jnp.array(limits, jnp.float32)
    return jnp.floor(drawn).astype(jnp.int32)


def take(image: Array, rows: Array, columns: Array) -> Array:
    """image[rows, columns] of an image [h,w,c], broadcast to [h,w]; beyond the border its reflection."""
    # One flat gather. Milliseconds a batch of 28x28x1 and of 32x32x3, moved by up to 4: this 0.08 and 0.23;
    # pad and dynamic_slice 0.33 and 1.2; two one-hot products 0.7 and 1.5; pad and roll 1.5 and 6.6.
    height, width, channels = image.shape
    return image.reshape(-1, channels)[_reflected(rows, height) * width + _reflected(columns, width)]


def _reflected(places: Array, size: int) -> Array:
    """Any places folded into 0 .. size-1, the border pixels not repeated."""
    last = size - 1
    return last - jnp.abs(last - places % max(2 * last, 1))
