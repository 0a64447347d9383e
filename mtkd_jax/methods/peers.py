r"""Methods in which students teach each other: peers of one cohort, which start from different weights.

All P peers take a step at the same time, each with the logits of the others on the same batch. Peer 0 is
the student that is evaluated and exported; the others are there to learn with. A peer whose logits are
not finite is left out of the mean over peers, and where no other is left that mean is 0. Softened
probabilities are $p_i = \mathrm{softmax}(z_i / T)$ of peer i and $q_k = \mathrm{softmax}(z_k / T)$ of
teacher k; all [B,C]. The loss is $\ell_i = \alpha\, \ell_\text{hard} + (1 - \alpha)\, \ell_\text{soft}$
[B].
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from mtkd_jax.methods.cohorts import cohort, others
from mtkd_jax.methods.modes import each_teacher
from mtkd_jax.methods.seams import PLAIN, SUPERVISED, equal_weights, hard_loss, hard_loss_of
from mtkd_jax.types import Array, Context, Networks, Recipe, Targets, TeacherOutputs


def dml(*, num_peers: int = 2, shared: str = "") -> Recipe:
    r"""Match the other members of a cohort of `num_peers` >= 2 that learn together, and no trained teacher.

    $$\ell_\text{soft} = \frac{T^2}{P - 1} \sum_{j \ne i} \mathrm{KL}(p_j \parallel p_i)$$

    At alpha = 0 nobody knows anything: the peers only come to agree. In the paper T = 1, the peers step in
    turn, and the loss is hard + soft, twice that of alpha = 0.5. With `shared`, a stage or "most", peers are
    branches on one stem, see `methods.cohorts`. Raises UserError for one peer.

    Source: deep mutual learning, Zhang et al. 2018, arXiv 1706.00384.
    """
    return cohort(
        PLAIN._replace(min_teachers=0),
        "dml",
        num_peers=num_peers,
        shared=shared,
        teach=_teach_by_peers,
        weigh=_weigh_other_peers,
        aim=each_teacher,
        reads_student=("teach", "weigh"),
    )


def kd_ml(
    *, num_peers: int = 2, teacher_weight: float = 1.0, peer_weight: float = 1.0, shared: str = ""
) -> Recipe:
    r"""Match the teachers, and at the same time the other members of a cohort of `num_peers` >= 2.

    $$\ell_\text{soft} = T^2 (\frac{\beta_1}{K} \sum_k \mathrm{KL}(q_k \parallel p_i)
    + \frac{\beta_2}{P - 1} \sum_{j \ne i} \mathrm{KL}(p_j \parallel p_i))$$

    Here $\beta_1$ is `teacher_weight` and $\beta_2$ is `peer_weight`: `loss_avg` and `dml` in one;
    `shared` is that of `dml`. Raises UserError for one peer.

    Source: Niyaz and Bathula 2021, arXiv 2110.11023, for one teacher; both weights are ours.
    """
    return cohort(
        PLAIN,
        "kd_ml",
        num_peers=num_peers,
        shared=shared,
        weigh=_weigh_teachers_and_peers,
        aim=_aim_at_teachers_and_peers,
        reads_student=("weigh", "aim"),
        hyper=(("teacher_weight", teacher_weight), ("peer_weight", peer_weight)),
    )


def _loss_of_mean(context: Context) -> Array:
    peers = context.peers
    cohort = peers.logits.at[peers.place].set(context.student.logits)
    # Together they are one network: where one peer breaks down, so does the whole.
    logits = jnp.where(peers.finite.all(), cohort, jnp.nan).mean(axis=0)
    return hard_loss_of(context, logits)


# A cohort trained as one network, whose logits are the mean over the peers: every peer has the whole loss,
# CE(y, softmax(1/P sum_j z_j)), and of its gradient the part that is its own; together that is all of it.
UNIFIED = SUPERVISED._replace(name="unified", term=_loss_of_mean)


def _mean_of_heads(context: Context) -> Array:
    return jax.vmap(partial(hard_loss_of, context))(context.student.heads).mean(axis=0)


# Networks that are the heads of one: each is trained on the labels as if it were alone, 1/H sum_h CE(y, z_h).
EACH_HEAD = SUPERVISED._replace(name="each_head", term=_mean_of_heads)


@dataclasses.dataclass(frozen=True)
class Correlated:
    r"""A cohort that is trained partly as one network: the loss [B] of a peer, comparable by value.

    $$\ell = (1 - \lambda) \frac{1}{P} \sum_j \mathrm{CE}(y, z_j)
    + \lambda\, \mathrm{CE}(y, \frac{1}{P} \sum_j z_j)$$

    The two sums differ by how much the peers disagree, which is never below 0: it is the mean loss of the
    peers, less $\lambda$ times their diversity. $\lambda$ is `strength`: at 0 they are trained apart, at 1
    as one network. A peer has the gradient of P times this by its own logits.
    """

    strength: float

    def __call__(self, context: Context) -> Array:
        together, num_peers = _loss_of_mean(context), len(context.peers.logits)
        whole = num_peers * together - (num_peers - 1) * jax.lax.stop_gradient(together)
        return (1.0 - self.strength) * hard_loss(context) + self.strength * whole


def _teach_by_peers(context: Context, networks: Networks) -> TeacherOutputs:
    return TeacherOutputs(context.peers.logits, (), ())


def _weigh_other_peers(context: Context) -> Array:
    """Weights w [P,B]: alike for every finite peer but the reader, 0 for the rest."""
    return jnp.broadcast_to(others(context)[:, None], context.peers.logits.shape[:2])


def _weigh_teachers_and_peers(context: Context) -> Array:
    """Weights w [K+P,B] of the teachers, then of the peers."""
    teachers, peers = equal_weights(context), _weigh_other_peers(context)
    hyper = context.hyper
    return jnp.concatenate([hyper["teacher_weight"] * teachers, hyper["peer_weight"] * peers])


def _aim_at_teachers_and_peers(context: Context, w: Array) -> Targets:
    # Not in `teach`, which would ask the frozen teachers once for every member instead of once a batch.
    both = jnp.concatenate([context.teacher.logits, context.peers.logits])
    return each_teacher(dataclasses.replace(context, teacher=TeacherOutputs(both, (), ())), w)
