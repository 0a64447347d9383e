r"""Methods that weigh the teachers, w [K,B], before one mixture of them is matched.

$$\ell_\text{soft} = T^2\, W\, \mathrm{KL}(\frac{1}{W} \sum_k w_k q_k \parallel p), \qquad
W = \sum_k w_k$$

Here $q_k = \mathrm{softmax}(z_k / T)$ and $p = \mathrm{softmax}(z / T)$. At one shared temperature
$\sum_k w_k\, \mathrm{KL}(q_k \parallel p)$ has the same gradient, so the choice of w is all that sets
these methods apart. W is 1 unless a method says otherwise.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from mtkd_jax.methods.maps import unit
from mtkd_jax.methods.seams import PLAIN, HardAnd
from mtkd_jax.types import Array, Batch, Context, Outputs, PyTree, Recipe, TeacherOutputs, UserError


def ebkd(*, normalise: bool = True) -> Recipe:
    r"""Trust, on every example, those teachers more whose prediction is the less uncertain.

    $$w_k = \frac{1}{K - 1} (1 - \frac{H_k}{\sum_j H_j})$$

    Here $H_k$ is the entropy of $\mathrm{softmax}(z_k)$; weights are equal where no teacher has any.
    `normalise=False` divides by K instead, as public code does, so that $W = (K - 1) / K$.

    Source: entropy-based distillation, Kwon et al., ICASSP 2020.
    """
    return PLAIN._replace(name="ebkd", weigh=_Certainty(normalise), min_teachers=2, hears_all=True)


@dataclasses.dataclass(frozen=True)
class _Certainty:
    normalise: bool

    def __call__(self, context: Context) -> Array:
        probs = jax.nn.softmax(context.teacher.logits)
        entropy = -jax.scipy.special.xlogy(probs, probs).sum(axis=-1)
        # Relative to the largest: sure teachers' entropies are as small as 1e-33, and so is their sum.
        largest, num_teachers = entropy.max(axis=0, keepdims=True), len(entropy)
        relative = jnp.where(largest > 0, entropy / jnp.where(largest > 0, largest, 1.0), 1.0)
        share = relative / relative.sum(axis=0, keepdims=True)
        return (1.0 - share) / (num_teachers - 1 if self.normalise else num_teachers)


def ca_mkd() -> Recipe:
    r"""Trust, on every example, those teachers more that are the less wrong about its label.

    $$w_k = \frac{1}{K - 1} (1 - \mathrm{softmax}_k(\mathrm{CE}_k)), \qquad
    \mathrm{CE}_k = -\ln\, \mathrm{softmax}(z_k)_y$$

    Weights are equal where there is no label. This is the half of the method that compares logits;
    `features.ca_mkd` has both.

    Source: confidence-aware multi-teacher distillation, Zhang et al. 2022, arXiv 2201.00007.
    """
    return PLAIN._replace(name="ca_mkd", weigh=weigh_by_correctness, min_teachers=2, hears_all=True)


def weigh_by_correctness(context: Context) -> Array:
    """Weights [K,B] of the teachers, see `ca_mkd`."""
    return weights_by_correctness(context.teacher.logits, context.batch)


def weights_by_correctness(logits: Array, batch: Batch) -> Array:
    """Weights [K,B] of logits [K,B,C], the higher the better they know the label; equal without one."""
    log_probs, num = jax.nn.log_softmax(logits), len(logits)
    cross_entropy = -jnp.take_along_axis(log_probs, batch.label[None, :, None], axis=-1)[:, :, 0]
    w = (1.0 - jax.nn.softmax(cross_entropy, axis=0)) / (num - 1)
    return jnp.where(batch.labelled[None, :], w, 1.0 / num)


def aekd(*, cap: float = 0.6) -> Recipe:
    r"""Find the mixture of teachers whose gradients agree: the common direction of least length.

    $$w = \mathrm{argmin}_a \frac{1}{2} \lVert \sum_k a_k g_k \rVert^2, \qquad \sum_k a_k = 1, \qquad
    0 \le a_k \le \text{cap}$$

    The weights are those of the whole batch. $g_k$ is the batch mean of the gradient of teacher k's KL by the
    student's logits, $g_k = T (\mathrm{softmax}(z / T) - \mathrm{softmax}(z_k / T))$, so no backward pass is
    needed: w is the mixture of the teachers' mean softened predictions that comes closest to the student's.
    `cap` = 1 ignores the dissenters, 1/K weighs all alike. It is solved for every student and step. Raises
    UserError for a cap outside (0, 1].

    Source: agree to disagree, Du et al., NeurIPS 2020.
    """
    if not 0 < cap <= 1:
        raise UserError(f"aekd(cap={cap}): it must be in (0, 1]")
    return PLAIN._replace(
        name="aekd",
        weigh=_Agreement(cap),
        reads_student=("weigh",),
        min_teachers=max(2, math.ceil(1 / cap - 1e-6)),  # fewer could not add up to 1
        hears_all=True,
    )


@dataclasses.dataclass(frozen=True)
class _Agreement:
    cap: float

    def __call__(self, context: Context) -> Array:
        temperature, logits = context.hyper["temperature"], context.teacher.logits
        teachers = jax.nn.softmax(logits / temperature, axis=-1).mean(axis=1)
        student = jax.nn.softmax(context.student.logits / temperature, axis=-1).mean(axis=0)
        a = _least_common_gradient(student[None, :] - teachers, self.cap)
        return jnp.broadcast_to(a[:, None], logits.shape[:2])


def _least_common_gradient(gradients: Array, cap: float, num_steps: int = 500) -> Array:
    """a [K] that minimises ||a @ gradients||, gradients [K,C], where sum a = 1 and 0 <= a <= cap.

    By projected gradient descent with Nesterov's momentum from equal weights. What all gradients have in
    common moves a only along (1, ..., 1), which the projection undoes; left out, steps can be longer.
    """
    apart = gradients - gradients.mean(axis=0, keepdims=True)
    steepest = jnp.abs(apart @ apart.T).sum(axis=1).max()  # no less than the largest eigenvalue
    # Teachers closer than float32 can tell apart keep equal weights.
    size = jnp.where(steepest > 1e-12, 1.0 / jnp.maximum(steepest, 1e-12), 0.0)

    def descend(step: Array, last_two: tuple[Array, Array]) -> tuple[Array, Array]:
        before, a = last_two
        ahead = a + step / (step + 3.0) * (a - before)
        return a, project_on_capped_simplex(ahead - size * (apart @ (ahead @ gradients)), cap)

    equal = jnp.full(len(gradients), 1.0 / len(gradients))
    return jax.lax.fori_loop(0, num_steps, descend, (equal, equal))[1]


def project_on_capped_simplex(point: Array, cap: float) -> Array:
    """The closest a to point [K] with sum a = 1 and 0 <= a <= cap, which is clip(point - shift, 0, cap).

    The sum of that falls with the shift, straight between the 2K shifts where an entry leaves a bound or
    meets one. From the last of these with too much left, the entries on the slope share what is to go.
    """
    leaves, meets = point - cap, point
    turns = jnp.concatenate([leaves, meets])
    sums = jnp.clip(point[None, :] - turns[:, None], 0, cap).sum(axis=1)
    total = jnp.minimum(1.0, sums.max())  # K cap may round to less than 1
    last = jnp.where(sums >= total, turns, -jnp.inf).max()
    excess = jnp.where(sums >= total, sums, jnp.inf).min() - total
    num_sloping = jnp.sum((leaves <= last) & (last < meets), dtype=jnp.float32)
    return jnp.clip(point - last - excess / jnp.maximum(num_sloping, 1.0), 0, cap)


def random_drop(*, num_dropped: int = 1) -> Recipe:
    r"""Learn from every teacher but `num_dropped`, drawn anew for each batch: noise against overfitting them.

    $$w_k = 0 \text{ for the dropped},\ 1 \text{ for the others}, \qquad W = K - n$$

    Here $n$ is `num_dropped`; the loss is a sum over teachers, as in the paper. Raises UserError for a
    negative number.

    Source: densely guided distillation, Son et al. 2021, arXiv 2009.08825; there the teachers are a chain of
    ever smaller networks, which plan `densely_guided` trains.
    """
    if num_dropped < 0:
        raise UserError(f"random_drop(num_dropped={num_dropped}): it must be at least 0")
    return PLAIN._replace(
        name="random_drop", weigh=_RandomlyDropped(num_dropped), min_teachers=max(2, num_dropped + 1)
    )


@dataclasses.dataclass(frozen=True)
class _RandomlyDropped:
    num_dropped: int

    def __call__(self, context: Context) -> Array:
        num_teachers, batch_size, _ = context.teacher.logits.shape
        kept = jax.random.permutation(context.key, num_teachers) >= self.num_dropped
        return jnp.broadcast_to(kept[:, None], (num_teachers, batch_size)).astype(jnp.float32)


def switch() -> Recipe:
    r"""Learn from one teacher a batch, each in turn: over K batches all count alike.

    $$w_k = 1 \text{ for } k = \text{step} \bmod K, \text{ else } 0$$

    Source: Fukuda et al., Interspeech 2017, one of its two strategies; `lot` draws the teacher instead.
    """
    return PLAIN._replace(name="switch", weigh=_weigh_in_turn, min_teachers=2)


def _weigh_in_turn(context: Context) -> Array:
    num_teachers, batch_size, _ = context.teacher.logits.shape
    turn = jax.nn.one_hot(context.step % num_teachers, num_teachers)
    return jnp.broadcast_to(turn[:, None], (num_teachers, batch_size))


def lot(*, each: str = "example") -> Recipe:
    r"""Learn from one teacher an example, or a batch, drawn by lot: all count alike in the mean.

    $$w_k = 1 \text{ for } k = \kappa_b, \text{ else } 0, \qquad
    \kappa_b \in \mathrm{U}\{1, \dots, K\}$$

    With `each` "batch" there is one $\kappa$ for all examples of a batch. Raises UserError for anything else.

    Source: Fukuda et al., Interspeech 2017: the switch between teachers, by lot.
    """
    if each not in ("example", "batch"):
        raise UserError(f"lot(each={each!r}): it must be 'example' or 'batch'")
    return PLAIN._replace(name="lot", weigh=_Lot(each), min_teachers=2)


@dataclasses.dataclass(frozen=True)
class _Lot:
    each: str

    def __call__(self, context: Context) -> Array:
        num_teachers, batch_size, _ = context.teacher.logits.shape
        num_draws = batch_size if self.each == "example" else 1
        drawn = jax.random.randint(context.key, (num_draws,), 0, num_teachers)
        return jax.nn.one_hot(jnp.broadcast_to(drawn, (batch_size,)), num_teachers, axis=0)


def adaptive() -> Recipe:
    r"""Learn how much each teacher counts for an example, from what the student makes of it.

    $$\ell_\text{soft} = T^2\, \mathrm{KL}(\sum_k w_k q_k \parallel p), \qquad
    w = \mathrm{softmax}_k(v \cdot (\theta_k \odot \frac{e}{\lVert e \rVert}))$$

    Here $e$ [B,D] is the student's embedding, and $\theta$ [K,D] and $v$ [D], 0 at first so that all count
    alike, are trained along by the same loss, whose gradient goes through the mixture. The paper adds hints
    of several levels and distances between examples: `features.hints` and `relations.rkd` have these, each
    for itself. Two kin judge weights by the student they make, and are not here: MMKD (Zhang et al. 2023)
    learns a network of weights through an update of the student, by a loss on examples held back, and the
    agent of MTKD-RL (Yang et al. 2025) is rewarded for the student after one. For either an updated network
    would have to be asked within the step, about validation, which no seam sees.

    Source: adaptive multi-teacher multi-level distillation, Liu et al. 2020, arXiv 2103.04062.
    """
    return PLAIN._replace(
        name="adaptive",
        term=HardAnd(_adaptive_loss),
        init_aux=_first_factors,
        min_teachers=2,
        hears_all=True,
    )


def _first_factors(key: Array, student: Outputs, teacher: TeacherOutputs) -> PyTree:
    shape = len(teacher.logits), student.embedding.shape[-1]
    return {"latent": jax.random.normal(key, shape), "mix": jnp.zeros(shape[1], jnp.float32)}


def _adaptive_loss(context: Context) -> Array:
    temperature, aux = context.hyper["temperature"], context.aux
    scores = (aux["latent"] * aux["mix"][None]) @ unit(context.student.embedding).T
    log_w = jax.nn.log_softmax(scores, axis=0)
    log_teachers = jax.nn.log_softmax(context.teacher.logits / temperature)
    log_mixture = jax.nn.logsumexp(log_w[:, :, None] + log_teachers, axis=0)
    log_student = jax.nn.log_softmax(context.student.logits / temperature)
    return temperature**2 * jnp.sum(jnp.exp(log_mixture) * (log_mixture - log_student), axis=-1)
