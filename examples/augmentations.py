"""An augmentation: a function of a key and a batch, made with its arguments."""

import jax
import jax.numpy as jnp


def fade(*, least: float = 0.7) -> "Augment":  # noqa: F821
    """Every image is multiplied by a number of its own, from `least` to 1."""

    def faded(key, images):  # [B,h,w,c] -> [B,h,w,c], float32
        share = jax.random.uniform(key, (len(images), 1, 1, 1), jnp.float32, least, 1.0)
        return images * share

    return faded
