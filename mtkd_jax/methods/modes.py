r"""The modes of the founding paper (Zuchniak 2023, arXiv 2302.07215) and their natural relatives.

All train one student from K teachers. They differ in what the student is to match (seam `aim`), and
`mimic_all` also in how many heads the student has. Logits are $z$ of the student and $z_k$ of teacher k;
softened probabilities are $p = \mathrm{softmax}(z / T)$ and $q_k = \mathrm{softmax}(z_k / T)$; all [B,C].
The loss is $\alpha\, \ell_\text{hard} + (1 - \alpha)\, T^2 \ell_\text{match}$ [B]. `divergence` says what
stands in the place of KL, "forward_kl": "reverse_kl", "jsd" or "mse", see methods/divergences.py.

Bugs of the released code are not reproduced: there the temperature is accepted and never used, and vote
ties go to the lowest class index.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mtkd_jax.fusion import rules
from mtkd_jax.methods.seams import PLAIN, HardAnd, SoftLoss, targets_of
from mtkd_jax.types import Array, Context, Recipe, Targets, UserError


def output_avg(*, divergence: str = "forward_kl") -> Recipe:
    r"""Match the mean of the teachers' softened probabilities.

    $$\ell_\text{match} = \mathrm{KL}(\frac{1}{K} \sum_k \mathrm{softmax}(z_k / T) \parallel p)$$

    Source: Zuchniak 2023, arXiv 2302.07215; for one teacher Hinton et al. 2015, arXiv 1503.02531.
    """
    return _matching(divergence, name="output_avg")


def loss_avg(*, divergence: str = "forward_kl") -> Recipe:
    r"""Match every teacher with the one head: the mean of K divergences.

    $$\ell_\text{match} = \frac{1}{K} \sum_k \mathrm{KL}(q_k \parallel p)$$

    At one shared temperature its gradient (of KL) is that of `output_avg`; only the loss value differs, by
    the Jensen gap $H(\frac{1}{K} \sum_k q_k) - \frac{1}{K} \sum_k H(q_k)$, which no student can change.

    Source: Zuchniak 2023, arXiv 2302.07215.
    """
    aim = _all_teachers_at_once if divergence == "forward_kl" else each_teacher
    return _matching(divergence, name="loss_avg", aim=aim)


def logit_avg(*, divergence: str = "forward_kl") -> Recipe:
    r"""Match the softmax of the mean logit, which is a geometric mean of the teachers.

    $$\ell_\text{match} = \mathrm{KL}(\mathrm{softmax}(\frac{1}{K} \sum_k z_k / T) \parallel p)$$
    """
    return _matching(divergence, name="logit_avg", aim=_mean_logit)


def vote(*, divergence: str = "forward_kl") -> Recipe:
    r"""Match the teachers' ballots: their normalised Borda scores, which are not softened.

    $$\ell_\text{match} = \mathrm{KL}(s \parallel p), \qquad
    s_c = \frac{2}{K C (C - 1)} \sum_k (C - 1 - r_k(c))$$

    Here $r_k(c)$ is the position of class c on teacher k's ballot, 0 for the largest logit.

    Raises UserError for divergences that take the logarithm of the scores, of which some are 0.

    Source: Zuchniak 2023, arXiv 2302.07215.
    """
    if divergence in ("reverse_kl", "mse"):
        raise UserError(f"vote(divergence={divergence!r}): ballots hold zeros, must be forward_kl or jsd")
    return _matching(divergence, name="vote", aim=_borda)


def fused(*, rule: str = "mean_probs", divergence: str = "forward_kl") -> Recipe:
    r"""Match the teachers' softened logits fused by any rule that gives probabilities; short: "fused:RULE".

    $$\ell_\text{match} = \mathrm{KL}(\text{rule}(z_1 / T, \dots, z_K / T) \parallel p)$$

    A rule that is fitted, such as `evolved_mean`, `shapley_mean` or `stacking`, is fitted once, before any
    student begins, to what the teachers say (T = 1) of the validation images. Raises UserError where `rule`
    is none of `fusion.rules` that gives probabilities.

    Source: with `evolved_mean` after weighted ensembles of teaching assistants, Ganta et al. 2022, arXiv
    2206.12005, whose assistants are those of plan `weighed_assistants`.
    """
    if rule not in PROBABILITIES:
        known = ", ".join(sorted(PROBABILITIES))
        raise UserError(f"fused: {rule!r} is no rule that gives probabilities; known are {known}")
    aim, prepare = (_FusedByFitted(rule), rule) if rule in rules.FITTED_RULES else (_FusedBy(rule), "")
    return _matching(divergence, name=f"fused:{rule}", aim=aim, prepare=prepare, hears_all=True)


PROBABILITIES = rules.RULES - rules.RANK_RULES | rules.FITTED_RULES  # rules whose scores are some


def supernet(*, divergence: str = "forward_kl") -> Recipe:
    r"""Match a Dense layer on the teachers' concatenated logits, fitted first on the training labels.

    $$\ell_\text{match} = \mathrm{KL}(\mathrm{softmax}((W [z_1, \dots, z_K] + b) / T) \parallel p)$$

    Source: Zuchniak 2023, arXiv 2302.07215.
    """
    return _matching(divergence, name="supernet", aim=_fused_logits, prepare="logits", hears_all=True)


def supernet2(*, divergence: str = "forward_kl") -> Recipe:
    r"""Match a Dense layer on the teachers' concatenated embeddings, fitted first on the training labels.

    $$\ell_\text{match} = \mathrm{KL}(\mathrm{softmax}((W [e_1, \dots, e_K] + b) / T) \parallel p)$$

    Here $e_k$ [B,D_k] is the embedding of teacher k: what its last layer reads.

    Source: Zuchniak 2023, arXiv 2302.07215.
    """
    return _matching(divergence, name="supernet2", aim=_fused_embeddings, prepare="embedding", hears_all=True)


def mimic_all(*, divergence: str = "forward_kl") -> Recipe:
    r"""Simultaneous mimicry: K heads on one body, head k matches teacher k; the prediction is their mean.

    $$\ell = \alpha\, \mathrm{CE}(y, \mathrm{softmax}(z))
    + (1 - \alpha)\, \frac{T^2}{K} \sum_k \mathrm{KL}(q_k \parallel p_k)$$

    Here $p_k$ is the softened head k and $z$ the logits of the prediction.

    Source: Zuchniak 2023, arXiv 2302.07215; the same idea is Hydra, Tran et al. 2020, arXiv 2001.04694.
    """
    return _matching(divergence, name="mimic_all", aim=each_teacher, num_heads=_head_per_teacher)


def _matching(divergence: str, **changed: Any) -> Recipe:
    return PLAIN._replace(term=HardAnd(SoftLoss(divergence)), **changed)


def each_teacher(context: Context, w: Array) -> Targets:
    r"""K targets [K,B,C], $q_k = \mathrm{softmax}(z_k / T)$, of mass $w_k$ [K,B]."""
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
    logits, mass = context.teacher.logits, w.sum(axis=0, keepdims=True)
    if context.batch.speaks is None:  # ballots that count alike are whole numbers, summed exactly
        return targets_of(rules.borda_scores(logits)[None], mass)
    each = jax.vmap(lambda own: rules.borda_scores(own[None]))(logits)
    scores = jnp.sum((w / jnp.maximum(mass, 1e-12))[:, :, None] * each, axis=0, keepdims=True)
    return targets_of(scores, mass)


@dataclasses.dataclass(frozen=True)
class _FusedBy:
    """An aim that compares equal by its rule: recipes are jit keys, closures are not."""

    rule: str

    def __call__(self, context: Context, w: Array) -> Targets:
        probs = rules.rule(self.rule)(context.teacher.logits / context.hyper["temperature"])
        return targets_of(probs[None], w.sum(axis=0, keepdims=True))


@dataclasses.dataclass(frozen=True)
class _FusedByFitted:
    """The same by a rule that was fitted, and is asked for logits as a fused network is."""

    rule: str

    def __call__(self, context: Context, w: Array) -> Targets:
        softened = context.teacher._replace(logits=context.teacher.logits / context.hyper["temperature"])
        probs = jax.nn.softmax(context.prepared[self.rule](softened))
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
