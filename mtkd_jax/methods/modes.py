"""The modes of the founding paper (Zuchniak 2023, arXiv 2302.07215) and their natural relatives.

All train one student from K teachers; they differ in what the student is to match (`aim`), and
`mimic_all` also in how many heads the student has. `divergence` says how the distance to it is measured:
"forward_kl", "reverse_kl", "jsd" or "mse", see methods/divergences.py. Bugs of the released code are not
reproduced: there the temperature is accepted and never used, and vote ties go to the lowest class index.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mtkd_jax.fusion import rules
from mtkd_jax.methods.seams import PLAIN, HardAnd, soft_loss_by, targets_of
from mtkd_jax.types import Array, Context, Recipe, Targets, UserError


def output_avg(*, divergence: str = "forward_kl") -> Recipe:
    """Match the mean of the teachers' softened probabilities: KL(mean_k softmax(z_k/T) || p)."""
    return _matching(divergence, name="output_avg")


def loss_avg(*, divergence: str = "forward_kl") -> Recipe:
    """Match every teacher with the one head: mean_k KL(q_k || p).

    At one shared temperature its gradient is that of `output_avg`; only the loss value differs, by the
    Jensen gap H(mean_k q_k) - mean_k H(q_k), which no student can change.
    """
    aim = _all_teachers_at_once if divergence == "forward_kl" else each_teacher
    return _matching(divergence, name="loss_avg", aim=aim)


def logit_avg(*, divergence: str = "forward_kl") -> Recipe:
    """Match the mean logit, a geometric mean of the teachers: KL(softmax(mean_k z_k/T) || p)."""
    return _matching(divergence, name="logit_avg", aim=_mean_logit)


def vote(*, divergence: str = "forward_kl") -> Recipe:
    """Match the teachers' ballots: KL(normalised Borda scores || p); the scores are not softened."""
    return _matching(divergence, name="vote", aim=_borda)


def fused(*, rule: str = "mean_probs", divergence: str = "forward_kl") -> Recipe:
    """Match the teachers' softened logits fused by any rule that gives probabilities; short: "fused:RULE"."""
    if rule not in rules.RULES - rules.RANK_RULES:
        known = ", ".join(sorted(rules.RULES - rules.RANK_RULES))
        raise UserError(f"fused: {rule!r} is no rule that gives probabilities; known are {known}")
    return _matching(divergence, name=f"fused:{rule}", aim=_FusedBy(rule))


def supernet(*, divergence: str = "forward_kl") -> Recipe:
    """Match a Dense layer on the teachers' concatenated logits, fitted first on the training labels."""
    return _matching(divergence, name="supernet", aim=_fused_logits, prepare="logits")


def supernet2(*, divergence: str = "forward_kl") -> Recipe:
    """Match a Dense layer on the teachers' concatenated embeddings, fitted first on the training labels."""
    return _matching(divergence, name="supernet2", aim=_fused_embeddings, prepare="embedding")


def mimic_all(*, divergence: str = "forward_kl") -> Recipe:
    """Simultaneous mimicry: K heads on one body, head k matches teacher k; the prediction is their mean.

    L = alpha CE(y, mean_k p_k) + (1 - alpha) T^2 (1/K) sum_k KL(q_k || p_k). The same idea stands in
    Hydra (Tran et al. 2020, arXiv 2001.04694).
    """
    return _matching(divergence, name="mimic_all", aim=each_teacher, num_heads=_head_per_teacher)


def _matching(divergence: str, **changed: Any) -> Recipe:
    return PLAIN._replace(term=HardAnd(soft_loss_by(divergence)), **changed)


def each_teacher(context: Context, w: Array) -> Targets:
    """K targets, softmax(z_k / T), of mass w_k."""
    return targets_of(_soften(context, context.teacher.logits), w)


def _all_teachers_at_once(context: Context, w: Array) -> Targets:
    """What one head has to match of K targets: sum_k w_k KL(q_k || p) = W (sum_c q_c ln(1 / p_c) - H).

    q and H are the w-weighted means of the q_k and of their entropies: the value is kept, at 1/K of the work.
    """
    each, mass = each_teacher(context, w), w.sum(axis=0, keepdims=True)
    share = w / jnp.maximum(mass, 1e-12)
    probs = jnp.sum(share[:, :, None] * each.probs, axis=0, keepdims=True)
    return Targets(probs, mass, entropy=jnp.sum(share * each.entropy, axis=0, keepdims=True))


def _mean_logit(context: Context, w: Array) -> Targets:
    mass = w.sum(axis=0, keepdims=True)
    mean = jnp.sum(w[:, :, None] * context.teacher.logits, axis=0, keepdims=True)
    return targets_of(_soften(context, mean / jnp.maximum(mass, 1e-12)[:, :, None]), mass)


def _borda(context: Context, w: Array) -> Targets:
    return targets_of(rules.borda_scores(context.teacher.logits)[None], w.sum(axis=0, keepdims=True))


@dataclasses.dataclass(frozen=True)
class _FusedBy:
    """An aim that compares equal by its rule: recipes are jit keys, closures are not."""

    rule: str

    def __call__(self, context: Context, w: Array) -> Targets:
        probs = rules.rule(self.rule)(context.teacher.logits / context.hyper["temperature"])
        return targets_of(probs[None], w.sum(axis=0, keepdims=True))


def _fused_logits(context: Context, w: Array) -> Targets:
    return _fused(context, w, "logits")


def _fused_embeddings(context: Context, w: Array) -> Targets:
    return _fused(context, w, "embedding")


def _fused(context: Context, w: Array, tap: str) -> Targets:
    logits = context.prepared[tap](context.teacher)
    return targets_of(_soften(context, logits[None]), w.sum(axis=0, keepdims=True))


def _head_per_teacher(num_teachers: int) -> int:
    return num_teachers


def _soften(context: Context, logits: Array) -> Array:
    return jax.nn.softmax(logits / context.hyper["temperature"], axis=-1)
