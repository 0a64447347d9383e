"""Optimisers and schedules of the learning rate, by name."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from mtkd_jax.types import Array

OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("constant", "cosine", "steps")


def build(
    name: str, learning_rate: Array | float, weight_decay: Array | float
) -> optax.GradientTransformation:
    """The optax transformation; rate and decay may be traced, so every member has its own.

    adam is AdamW (decay decoupled), sgd is Nesterov 0.9 with decay added to the gradient, as each is
    customary in the distillation literature.
    """
    if name == "adam":
        return optax.adamw(learning_rate, weight_decay=weight_decay)
    if name == "sgd":
        decay = optax.add_decayed_weights(weight_decay)
        return optax.chain(decay, optax.sgd(learning_rate, momentum=0.9, nesterov=True))
    raise ValueError(f"optimizer {name!r}; known are {', '.join(OPTIMIZERS)}")


def schedule(name: str, progress: Array) -> Array:
    """The factor on the learning rate at progress in [0,1)."""
    if name == "constant":
        return jnp.ones_like(progress)
    if name == "cosine":
        return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    if name == "steps":  # a tenth at each of 5/8, 6/8 and 7/8: 150, 180, 210 of 240 epochs
        return 0.1 ** jnp.sum(progress >= jnp.array([0.625, 0.75, 0.875])).astype(jnp.float32)
    raise ValueError(f"schedule {name!r}; known are {', '.join(SCHEDULES)}")
