"""A schedule: of the learning rate, in steps down."""

import jax.numpy as jnp

from mtkd_jax.optimizers import Schedule


def halved(*, times: int = 2) -> Schedule:
    """Halved `times` times, at equal distances."""
    return Schedule(_halved, (("times", times),))


def _halved(progress, times):
    return 0.5 ** jnp.floor(progress * (times + 1))
