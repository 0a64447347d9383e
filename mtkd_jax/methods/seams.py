"""The default of every seam: frozen teachers of equal weight, hard and soft labels, nothing after the update.

A method is `PLAIN._replace(...)`; only what it changes is written down. Axes: K teachers, H heads of the
student, Q targets, B examples of a batch, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from mtkd_jax.methods import divergences
from mtkd_jax.types import (
    Absent,
    Array,
    Augment,
    Batch,
    Context,
    Networks,
    Outputs,
    PyTree,
    Recipe,
    Targets,
    TeacherOutputs,
    TrainState,
    UserError,
)

PEERS = "peers"  # of a batch's views: an image [P,B,h,w,c] for each peer


def configured_stimulus(key: Array, batch: Batch, augment: Augment, networks: Networks) -> Batch:
    """The configured augmentation, the same image for teachers and student."""
    return dataclasses.replace(batch, image=augment(key, batch.image))


def identity_view(variables: PyTree, state: TrainState, hyper: Mapping[str, Array], key: Array) -> PyTree:
    """The variables as they are."""
    return variables


def nothing_told(context: Context, networks: Networks) -> Mapping[str, Array]:
    """Nothing but the logits, which all peers know of each other."""
    return {}


def frozen_teachers(context: Context, networks: Networks) -> TeacherOutputs:
    """The outputs of the K frozen teachers on the student's images."""
    return networks.teachers(context.batch.image)


def teachers_of_own_view(context: Context, networks: Networks) -> TeacherOutputs:
    """The outputs of the K frozen teachers on a view that the student does not see, `views["teacher"]`."""
    return networks.teachers(context.batch.views["teacher"])


def equal_weights(context: Context) -> Array:
    """Equal weights [K,B] of the teachers: $w_k = 1/K$."""
    num_teachers, batch_size, _ = context.teacher.logits.shape
    return jnp.full((num_teachers, batch_size), 1.0 / num_teachers)


def heard(w: Array, speaks: Array) -> Array:
    r"""The weights with those of silent teachers 0, and what these weighed given to the others in proportion.

    $$w'_{kb} = W_b \frac{s_{kb} w_{kb}}{\sum_j s_{jb} w_{jb}}, \qquad W_b = \sum_k w_{kb}$$

    Here $s$ is `speaks` [B,K] bool. Where those who speak weighed nothing they weigh alike, and where nobody
    speaks all weights are 0. `w` is [K,B], or has rows of others behind the K teachers', which stay.
    """
    num_teachers = speaks.shape[-1]
    own, others, speaks = w[:num_teachers], w[num_teachers:], speaks.T
    kept, alike = jnp.where(speaks, own, 0.0), speaks.astype(jnp.float32)
    kept = jnp.where(kept.sum(axis=0, keepdims=True) > 0, kept, alike)
    rest = kept.sum(axis=0, keepdims=True)
    share = kept / jnp.where(rest > 0, rest, 1.0)
    return jnp.concatenate([own.sum(axis=0, keepdims=True) * share, others])


def mean_of_probs(context: Context, w: Array) -> Targets:
    r"""One target: the weighted mean of the teachers' softened probabilities.

    $$q = \frac{1}{W} \sum_k w_k\, \mathrm{softmax}(z_k / T), \qquad W = \sum_k w_k$$

    Returns $q$ as [1,B,C] and its mass $W$ as [1,B]. At one shared temperature
    $\sum_k w_k\, \mathrm{KL}(q_k \parallel p)$ and $W\, \mathrm{KL}(q \parallel p)$ have the same gradient,
    so one target stands for K.
    """
    probs = jax.nn.softmax(context.teacher.logits / context.hyper["temperature"], axis=-1)
    mass = w.sum(axis=0, keepdims=True)
    mixture = jnp.sum(w[:, :, None] * probs, axis=0, keepdims=True)
    return targets_of(mixture / jnp.maximum(mass, 1e-12)[:, :, None], mass)


def targets_of(probs: Array, mass: Array) -> Targets:
    """Targets of distributions [Q,B,C] and their mass [Q,B]."""
    return Targets(probs, mass, entropy=-jax.scipy.special.xlogy(probs, probs).sum(axis=-1))


def of_places(loss: Array, batch: Batch) -> Array:
    """A loss of whole examples as one of their places, each of which has that of its example; else itself."""
    num_places = len(batch.label) // len(loss)
    return loss if num_places == 1 else jnp.repeat(loss, num_places, axis=0)


def mean_of_places(loss: Array, batch: Batch) -> Array:
    r"""What a step descends: the mean loss of a batch, of a dense task over places that are there.

    $$\bar\ell = \frac{1}{n} \sum_{b:\, v_b} \ell_b, \qquad n = \max(1, \lvert \{b : v_b\} \rvert)$$

    Here $v$ is `batch.valid`; without it the mean is that of all B.
    """
    if batch.valid is None:
        return loss.mean()
    return jnp.where(batch.valid, of_places(loss, batch), 0.0).sum() / num_valid(batch)


def num_valid(batch: Batch) -> Array | int:
    """B, or of a dense task the number of places that are there, 1 at least."""
    return (
        len(batch.label) if batch.valid is None else jnp.maximum(batch.valid.sum().astype(jnp.float32), 1.0)
    )


def hard_loss(context: Context) -> Array:
    r"""Cross-entropy [B] of the student's prediction (T = 1) with the smoothed label, 0 where unlabelled.

    $$\ell_\text{hard} = -\frac{B}{n}\, v_b \sum_c ((1 - \epsilon) [c = y_b]
    + \frac{\epsilon}{C}) \ln\, \mathrm{softmax}(z_b)_c$$

    Here $\epsilon$ is `label_smoothing` and $n$ the number of labelled examples of the batch: the sum over
    the batch is divided by $n$, not by B, so that few labels count as much as a batch full of them. $v_b$ is
    the weight of an example (see `loading.class_weights`), 1 where there are none; the sum is not divided by
    the sum of $v$, so that a class counts the same in every batch. Of mixed images (MixUp, CutMix)
    both labels count, each with its share. Of a dense task B is the number of places that are there.
    """
    batch, smoothing = context.batch, context.hyper["label_smoothing"]
    log_probs = jax.nn.log_softmax(context.student.logits)

    def of_label(label: Array, weight: Array | None) -> Array:
        own = jnp.take_along_axis(log_probs, label[:, None], axis=-1)[:, 0]
        loss = -(1.0 - smoothing) * own - smoothing * log_probs.mean(axis=-1)
        return loss if weight is None else weight * loss

    loss = jnp.where(batch.labelled, of_label(batch.label, batch.weight), 0.0)
    if batch.mixed is not None:
        share, mixed = batch.mixed.share, batch.mixed
        of_other = jnp.where(mixed.labelled, of_label(mixed.label, mixed.weight), 0.0)
        loss = share * loss + (1.0 - share) * of_other
    num = label_counts(batch).sum()
    return loss * (num_valid(batch) / jnp.where(num > 0, num, 1.0))


def hard_loss_of(context: Context, logits: Array) -> Array:
    """`hard_loss` [B] of other predictions [B,C] in the place of the student's."""
    student = dataclasses.replace(context.student, logits=logits)
    return hard_loss(dataclasses.replace(context, student=student))


def label_counts(batch: Batch) -> Array:
    """How much of a label each example of a batch has, [B] in [0,1]: 1 or 0; of mixed images the shares."""
    counts = batch.labelled.astype(jnp.float32)
    if batch.mixed is None:
        return counts
    share, others = batch.mixed.share, batch.mixed.labelled.astype(jnp.float32)
    return share * counts + (1.0 - share) * others


@dataclasses.dataclass(frozen=True)
class SoftLoss:
    r"""Divergence [B] of the student's heads from all targets, at the temperature T.

    $$\ell_\text{soft} = T^2 \sum_q m_q\, \mathrm{KL}(t_q \parallel \mathrm{softmax}(z_h / T))$$

    Targets $t_q$ are [Q,B,C], their mass $m_q$ is [Q,B]. Head h = q meets target q; a single head meets every
    target. Source: Hinton et al. 2015, arXiv 1503.02531.

    Another divergence may stand in the place of KL, by its name in methods/divergences.py; UserError where
    there is none. Comparable by value, as jit keys must be.
    """

    divergence: str = "forward_kl"

    def __post_init__(self) -> None:
        divergences.named(self.divergence)

    def __call__(self, context: Context) -> Array:
        temperature, targets = context.hyper["temperature"], context.targets
        log_student = jax.nn.log_softmax(context.student.heads / temperature, axis=-1)
        if log_student.shape[0] != targets.probs.shape[0]:
            log_student = jnp.broadcast_to(log_student, targets.probs.shape)
        values = divergences.named(self.divergence)(targets, log_student)
        return temperature**2 * jnp.sum(jnp.where(targets.mass > 0, targets.mass * values, 0.0), axis=0)


soft_loss = SoftLoss()


@dataclasses.dataclass(frozen=True)
class HardAnd:
    r"""The term that mixes the hard loss with another: alpha is the weight of the hard labels.

    $$\ell = \alpha\, \ell_\text{hard} + (1 - \alpha)\, \text{soft}(\text{context})$$

    Returns [B]; alpha as in Zuchniak 2023, arXiv 2302.07215. With `soft_loss` it is the loss of Hinton et al.
    2015, arXiv 1503.02531. Instances compare by value, as keys of jit must.
    """

    soft: Callable[[Context], Array]

    def __call__(self, context: Context) -> Array:
        alpha = context.hyper["alpha"]
        hard = alpha * hard_loss(context)
        return hard + (1.0 - alpha) * of_places(self.soft(context), context.batch)


def check_unmixed(name: str, batch: Batch) -> None:
    """Raise UserError for mixed images: what is said of a mixture is said of none of its images."""
    if batch.mixed is not None:
        raise UserError(f"{name}: train.mixup and train.cutmix must be 0 with it")


def ramped_up(progress: Array, ramp: float) -> Array:
    r"""The ramp-up of a loss, $\exp(-5 (1 - s)^2)$: s goes from 0 to 1 over the first `ramp` of the training.

    `progress` is in [0,1), and `ramp` a share of the training; 0 switches it off. Source: Laine and Aila
    2017, arXiv 1610.02242.
    """
    share = jnp.minimum(progress / ramp, 1.0) if ramp else jnp.ones_like(progress)
    return jnp.exp(-5.0 * (1.0 - share) ** 2)


def check_ramp(name: str, ramp: float) -> None:
    """Raise UserError for what is no share of the training."""
    if not 0 <= ramp <= 1:
        raise UserError(f"{name}(ramp={ramp}): it must be a share of the training, in [0, 1]")


def mean_of_same(index: Array, values: Array) -> Array:
    """Values [B,C], rows with the same `index` [B] by their mean: a batch may hold an example twice."""
    _, of_each = jnp.unique(index, return_inverse=True, size=len(index))
    total = jnp.zeros_like(values).at[of_each].add(values)
    number = jnp.zeros(len(index), values.dtype).at[of_each].add(1.0)
    return total[of_each] / number[of_each][:, None]


def no_predictions(variables: PyTree, student: Outputs, num_examples: int) -> PyTree:
    """A row [C] of zeros for every example, or place of one, and how often each was seen."""
    return {
        "rows": jnp.zeros((num_examples, student.logits.shape[-1]), jnp.float32),
        "num_seen": jnp.zeros(num_examples, jnp.float32),
    }


def remember_predictions(
    state: TrainState, context: Context, updated: Callable[[Array, Array, Array], Array]
) -> TrainState:
    """The state with the rows of the batch in its memory, that of `no_predictions`, made others.

    `updated` is given the rows [B,C] as they were, what the student says now, probabilities [B,C], and how
    often each example was seen [B], this time with it; it returns the rows as they are to be. What a batch
    holds twice has been seen once, with the mean of both predictions.
    """
    index, memory = context.batch.index, state.mem
    num_seen = memory["num_seen"][index] + 1.0
    now = mean_of_same(index, jax.nn.softmax(context.student.logits))
    # Set, not added: then it has been seen once, and whichever is written last is the same.
    rows = memory["rows"].at[index].set(updated(memory["rows"][index], now, num_seen))
    mem = {"rows": rows, "num_seen": memory["num_seen"].at[index].set(num_seen)}
    return dataclasses.replace(state, mem=mem)


def nothing_after(state: TrainState, context: Context) -> TrainState:
    """The state as the optimiser left it."""
    return state


def no_mem(variables: PyTree, student: Outputs, num_examples: int) -> PyTree:
    """No memory."""
    return {}


def no_aux(key: Array, student: Outputs, teacher: TeacherOutputs) -> PyTree:
    """No parameters but the network's."""
    return {}


def every_leaf(path: str) -> bool:
    """Every parameter is trained."""
    return True


def no_leaf(path: str) -> bool:
    """Nothing is trained."""
    return False


def deploy_params(state: TrainState, hyper: Mapping[str, Array]) -> PyTree:
    """The trained parameters with their batch statistics."""
    return {"params": state.params, **state.model_state}


def one_head(num_teachers: int) -> int:
    """One head: H = 1, whatever the number of teachers."""
    return 1


def mutual_of_heads(outputs: Outputs) -> Array:
    r"""Mutual information [B] of the decision and of which head decides: 0 of a student with one head.

    $$H(\bar{p}) - \frac{1}{H} \sum_h H(p_h), \qquad \bar{p} = \frac{1}{H} \sum_h p_h$$
    """
    log_heads, log_mean = jax.nn.log_softmax(outputs.heads), jax.nn.log_softmax(outputs.logits)

    def entropy(log_probs: Array) -> Array:
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    return jnp.maximum(entropy(log_mean) - entropy(log_heads).mean(axis=0), 0.0)


PLAIN = Recipe(
    name="",
    stimulus=configured_stimulus,
    view=identity_view,
    tell=nothing_told,
    teach=frozen_teachers,
    weigh=equal_weights,
    aim=mean_of_probs,
    term=HardAnd(soft_loss),
    after=nothing_after,
    init_mem=no_mem,
    init_aux=no_aux,
    trainable=every_leaf,
    deploy=deploy_params,
    num_heads=one_head,
    mutual=mutual_of_heads,
)

# Training without teachers is the same step; nobody teaches, so there is nothing to aim at.
SUPERVISED = PLAIN._replace(
    name="supervised",
    teach=lambda context, networks: None,
    weigh=lambda context: Absent,
    aim=lambda context, w: Absent,
    term=hard_loss,
    min_teachers=0,
)
