r"""How far a student's softened prediction p is from its target q: (Targets [Q,B,C], ln p [Q,B,C]) -> [Q,B].

Each is 0 where the two agree and has a finite gradient, also where probabilities underflow. The loss
multiplies all of them by T^2, as the gradients of KL at high temperatures need it (Hinton et al. 2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp

from mtkd_jax.system.spelling import hint
from mtkd_jax.types import Array, Targets, UserError

LEAST = float(jnp.finfo(jnp.float32).tiny)  # what a target that underflowed counts as where its log is taken
ALMOST_LEAST = 0.999 * math.log(LEAST)


def forward_kl(targets: Targets, log_student: Array) -> Array:
    r"""Kullback-Leibler divergence from the target: the student has to cover all that the teachers say.

    $$\mathrm{KL}(q \parallel p) = \sum_c q_c (\ln q_c - \ln p_c)$$

    Source: Hinton et al. 2015, arXiv 1503.02531.
    """
    return -targets.entropy - jnp.sum(targets.probs * log_student, axis=-1)


def reverse_kl(targets: Targets, log_student: Array) -> Array:
    r"""The same from the student: it keeps to what the teachers are sure of.

    $$\mathrm{KL}(p \parallel q) = \sum_c p_c (\ln p_c - \ln q_c)$$

    Source: Gu et al. 2024, arXiv 2306.08543.
    """
    return jnp.sum(jnp.exp(log_student) * (log_student - _log(targets.probs)), axis=-1)


def jsd(targets: Targets, log_student: Array) -> Array:
    r"""Jensen-Shannon divergence: symmetric, and at most ln 2.

    $$\frac{1}{2} (\mathrm{KL}(q \parallel m) + \mathrm{KL}(p \parallel m)), \qquad m = (p + q) / 2$$

    Source: Lin 1991, IEEE Transactions on Information Theory 37.
    """
    log_target = _log(targets.probs)
    log_middle = jnp.logaddexp(log_target, log_student) - jnp.log(2.0)
    of_student = jnp.exp(log_student) * (log_student - log_middle)
    of_target = targets.probs * (log_target - log_middle)
    return 0.5 * jnp.sum(of_student + of_target, axis=-1)


def mse(targets: Targets, log_student: Array) -> Array:
    r"""Mean squared error of the logits, each vector less its mean.

    $$\frac{1}{2 C} \sum_c (a_c - b_c)^2, \qquad a_c = \ln p_c - \frac{1}{C} \sum_j \ln p_j$$

    and b of q alike; times T^2 it is the error of the logits themselves.

    It is what T^2 KL(q || p) comes to at high temperatures (Hinton et al. 2015, section 2.1). As long as no
    probability underflows it is the same at every temperature.

    Source: Kim et al. 2021, arXiv 2105.08919.
    """
    log_target = _log(targets.probs)
    # Where both are next to never they agree: how far below the least number the student is, is not known.
    agreed = (log_target < ALMOST_LEAST) & (log_student < ALMOST_LEAST)
    difference = jnp.where(agreed, 0.0, log_student - log_target)
    difference -= difference.mean(axis=-1, keepdims=True)
    return 0.5 * jnp.mean(difference**2, axis=-1)


def _log(probs: Array) -> Array:
    return jnp.log(jnp.maximum(probs, LEAST))


DIVERGENCES = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": jsd, "mse": mse}


def named(name: str) -> Callable[[Targets, Array], Array]:
    """The divergence of that name; UserError where there is none."""
    if name not in DIVERGENCES:
        raise UserError(f"divergence={name!r}: there is no such divergence{hint(name, DIVERGENCES)}")
    return DIVERGENCES[name]
