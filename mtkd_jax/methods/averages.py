"""Methods whose teacher is the student itself: an average of its weights or predictions, another view.

All learn from few labels: hard labels weigh 1 wherever there are any, alpha and temperature play no part, and
no teacher is asked. For transfer sets with unlabelled images, `students.transfer` = ("unlabelled",).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mtkd_jax.methods.seams import (
    SUPERVISED,
    check_ramp,
    check_unmixed,
    hard_loss,
    no_predictions,
    ramped_up,
    remember_predictions,
)
from mtkd_jax.types import (
    Array,
    Augment,
    Batch,
    Context,
    Networks,
    Outputs,
    PyTree,
    Recipe,
    TeacherOutputs,
    TrainState,
    UserError,
)


def mean_teacher(*, weight: float = 100.0, decay: float = 0.99, ramp: float = 40 / 150) -> Recipe:
    r"""Agree, on another view of the image, with the running average of one's own weights; needs no label.

    $$\ell = \ell_\text{hard}
    + \lambda\, r(s)\, \frac{1}{C} \sum_c (\mathrm{softmax}(z)_c - \mathrm{softmax}(z')_c)^2$$

    Here $\lambda$ is `weight` and $z'$ [B,C] are the logits of the average network, whose parameters and
    batch statistics $a'$ follow those of the student, $a$, after update $t = 1, 2, \dots$:

    $$a' \leftarrow d\, a' + (1 - d)\, a, \qquad d = \min(1 - \frac{1}{t + 1}, \text{decay})$$

    The weight grows by $r(s) = \exp(-5 (1 - s)^2)$, where $s$ goes from 0 to 1 over the first `ramp` of the
    training, a share; `ramp` = 0 switches it off. Both networks run as in training, each on its own draw of
    the configured augmentation (`data.augment`), which should not be empty. The average is deployed. Hard
    labels weigh 1 wherever there are any: alpha and temperature play no part.

    The hard loss is a mean over the labelled images of a batch, as everywhere here. The authors' code divides
    their sum by all of the batch, so that with a share $f$ of them labelled its weight of the consistency is
    $1/f$ times ours. Public code averages no batch statistics, and takes a weight between $C$ and $C^2$.
    Raises UserError for a decay or ramp out of range.

    Source: Tarvainen and Valpola 2017, arXiv 1703.01780: weight 100 and decay 0.97 to 0.999 for CIFAR-10.
    """
    if not 0 <= decay < 1:
        raise UserError(f"mean_teacher(decay={decay}): it must be in [0, 1)")
    check_ramp("mean_teacher", ramp)
    return SUPERVISED._replace(
        name="mean_teacher",
        stimulus=_two_views,
        teach=_run_average_network,
        term=_HardAndConsistent(ramp),
        after=update_average,
        init_mem=start_average,
        deploy=deploy_average,
        own_teacher=deploy_average,
        reads_student=("teach",),
        hyper=(("weight", weight), ("decay", decay)),
        alpha=1.0,
        temperature=1.0,
    )


def pi_model(*, weight: float = 100.0, ramp: float = 80 / 300) -> Recipe:
    r"""Agree with oneself on another view of the image; needs no label.

    $$\ell = \ell_\text{hard}
    + \lambda\, r(s)\, \frac{1}{C} \sum_c (\mathrm{softmax}(z)_c - \mathrm{softmax}(z')_c)^2$$

    Here $\lambda$ is `weight`, $z'$ [B,C] are the student's logits on its own draw of the configured
    augmentation and of dropout, and $r(s)$ is the ramp of `mean_teacher`. The gradient goes through $z$
    alone: the paper's goes through both, which are drawn alike, and is twice that in the mean. Raises
    UserError for a ramp out of range.

    Source: Laine and Aila 2017, arXiv 1610.02242, with the share of labels taken out of the weight, as
    `mean_teacher` says.
    """
    check_ramp("pi_model", ramp)
    return SUPERVISED._replace(
        name="pi_model",
        stimulus=_two_views,
        teach=_run_student_again,
        term=_HardAndConsistent(ramp),
        reads_student=("teach",),
        hyper=(("weight", weight),),
        alpha=1.0,
        temperature=1.0,
    )


def temporal_ensembling(*, weight: float = 30.0, decay: float = 0.6, ramp: float = 80 / 300) -> Recipe:
    r"""Agree with the average of one's own earlier predictions of the image; needs no label.

    $$\ell = \ell_\text{hard}
    + \lambda\, r(s)\, \frac{1}{C} \sum_c (\mathrm{softmax}(z)_c - t_c)^2, \qquad
    t = \frac{Z}{1 - d^n}, \qquad Z \leftarrow d\, Z + (1 - d)\, \mathrm{softmax}(z)$$

    Here $\lambda$ is `weight`, $d$ is `decay`, $r(s)$ is the ramp of `mean_teacher`, and $Z$ [N,C] holds a
    row for every example, 0 at first, which is changed when the example has been seen; $n$ is how often it
    was. Where a batch holds an example twice it has been seen once, and its prediction is the mean of both.
    At the first time there is nothing to agree with. Every student remembers N (C + 1) numbers. Raises
    UserError for a decay or ramp out of range, and for mixed images, of none of which there is a prediction.

    Source: Laine and Aila 2017, arXiv 1610.02242, with the share of labels taken out of the weight, as
    `mean_teacher` says.
    """
    if not 0 <= decay < 1:
        raise UserError(f"temporal_ensembling(decay={decay}): it must be in [0, 1)")
    check_ramp("temporal_ensembling", ramp)
    return SUPERVISED._replace(
        name="temporal_ensembling",
        term=_HardAndSteady(ramp),
        after=_remember_predictions,
        init_mem=no_predictions,
        hyper=(("weight", weight), ("decay", decay)),
        alpha=1.0,
        temperature=1.0,
    )


def _two_views(key: Array, batch: Batch, augment: Augment, networks: Networks) -> Batch:
    of_student, of_teacher = jax.random.split(key)
    views = {"teacher": augment(of_teacher, batch.image)}
    return dataclasses.replace(batch, image=augment(of_student, batch.image), views=views)


def _run_average_network(context: Context, networks: Networks) -> TeacherOutputs:
    # In training the statistics are the batch's own: those of the average lag behind its weights at first.
    view = context.batch.views["teacher"]
    outputs, _ = networks.student(context.state.mem, view, train=True, key=context.key)
    return TeacherOutputs(outputs.logits[None], (), ())


@dataclasses.dataclass(frozen=True)
class _HardAndConsistent:
    ramp: float

    def __call__(self, context: Context) -> Array:
        student, teacher = map(jax.nn.softmax, (context.student.logits, context.teacher.logits[0]))
        distance = jnp.mean((student - teacher) ** 2, axis=-1)
        return (
            hard_loss(context) + context.hyper["weight"] * ramped_up(context.progress, self.ramp) * distance
        )


def update_average(state: TrainState, context: Context) -> TrainState:
    """The state with the weights after an update taken into their average `mem`, as `mean_teacher` has it."""
    num_updates = context.update.astype(jnp.float32) + 1.0
    decay = jnp.minimum(1.0 - 1.0 / (num_updates + 1.0), context.hyper["decay"])
    return move_average(state, context, decay)


def move_average(state: TrainState, context: Context, decay: Array) -> TrainState:
    """The state whose average `mem` has moved to the weights by 1 - `decay`, where a step changed these."""
    now = {"params": state.params, **state.model_state}
    mem = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, state.mem, now)
    if context.steps_of_update > 1:
        ends = context.ends_update
        mem = jax.tree.map(lambda moved, old: jnp.where(ends, moved, old), mem, state.mem)
    return dataclasses.replace(state, mem=mem)


def start_average(variables: PyTree, student: Outputs, num_examples: int) -> PyTree:
    """An average that begins with these."""
    return variables


def deploy_average(state: TrainState, hyper: Mapping[str, Array]) -> PyTree:
    """The average of the weights."""
    return state.mem


# --- the student on another view ----------------------------------------------------------------------


def _run_student_again(context: Context, networks: Networks) -> TeacherOutputs:
    variables = {"params": context.state.params, **context.state.model_state}
    view = context.batch.views["teacher"]
    outputs, _ = networks.student(variables, view, train=True, key=context.key)
    return TeacherOutputs(outputs.logits[None], (), ())


# --- earlier predictions ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _HardAndSteady:
    ramp: float

    def __call__(self, context: Context) -> Array:
        rows, memory, decay = context.batch.index, context.state.mem, context.hyper["decay"]
        num_seen = memory["num_seen"][rows]
        is_known = num_seen > 0
        target = memory["rows"][rows] / jnp.where(is_known, 1.0 - decay**num_seen, 1.0)[:, None]
        distance = jnp.mean((jax.nn.softmax(context.student.logits) - target) ** 2, axis=-1)
        weight = context.hyper["weight"] * ramped_up(context.progress, self.ramp)
        return hard_loss(context) + weight * jnp.where(is_known, distance, 0.0)


def _remember_predictions(state: TrainState, context: Context) -> TrainState:
    check_unmixed("averages.temporal_ensembling", context.batch)
    decay = context.hyper["decay"]
    return remember_predictions(
        state, context, lambda before, now, num_seen: decay * before + (1.0 - decay) * now
    )
