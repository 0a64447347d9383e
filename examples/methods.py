"""A mode: the teachers' mean, mixed with the uniform distribution. A seam is a function of the file."""

import dataclasses

import jax

from mtkd_jax.methods.seams import PLAIN, mean_of_probs
from mtkd_jax.types import Recipe


def smoothed(*, share: float = 0.1) -> Recipe:
    """The teachers' mean mixed with the uniform distribution."""
    return PLAIN._replace(aim=_mixed, hyper=(("share", share),))


def _mixed(context, w):
    targets, share = mean_of_probs(context, w), context.hyper["share"]
    probs = (1 - share) * targets.probs + share / targets.probs.shape[-1]
    entropy = -jax.scipy.special.xlogy(probs, probs).sum(axis=-1)
    return dataclasses.replace(targets, probs=probs, entropy=entropy)
