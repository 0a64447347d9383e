r"""Methods for detectors: at each place of an image a class, the first of which is the background, and a box.

$$\ell = \alpha\, (\ell_\text{hard} + \ell_\text{box}) + (1 - \alpha)\, \ell_\text{soft}$$

Here $\ell_\text{box}$ is the hard loss of boxes, see `box_loss`, which every method has on such data. Boxes
are corners [P,4] of the P places of a batch, parts of the image's sides; their distances count in eighths of
these, $\delta(r, r') = 8\, (r - r')$. What compares boxes needs teachers whose boxes are known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mtkd_jax.methods import features, maps
from mtkd_jax.methods.modes import each_teacher
from mtkd_jax.methods.seams import PLAIN, HardAnd, num_valid, of_places, soft_loss
from mtkd_jax.types import Array, Context, Recipe, UserError

PER_SIDE = 8.0  # units of distance that a side of the image has


def weighted_classes(*, background: float = 1.5) -> Recipe:
    r"""Match the teachers' classes, of which the background counts for more than any other.

    $$\ell_\text{soft} = T^2 \sum_k w_k \sum_c b_c\, q_{kc} \ln \frac{1}{p_c}$$

    Here $b_0$ is `background`, and $b_c = 1$ for all other classes: mistaking a box for the background, or
    the other way round, is what detectors do most. It is no divergence: its minimum is at $p \propto b\, q$.
    The paper has one teacher and T = 1. Raises UserError unless `background` is above 0.

    Source: Chen et al., NIPS 2017, Learning efficient object detection models with knowledge distillation.
    """
    own = _background("weighted_classes", background)
    return PLAIN._replace(name="weighted_classes", term=HardAnd(_weighted_loss), hyper=own)


def bounded_boxes(*, weight: float = 1.0, margin: float = 0.01) -> Recipe:
    r"""Learn boxes from labels for as long as a teacher's are better: the teachers are an upper bound.

    $$\ell_\text{soft} = \ell_\text{KL} + \nu \frac{P}{n} \sum_k w_k f_k, \qquad
    f_k = [e + m > e_k]\, e, \qquad e = \lVert \delta(r, y) \rVert^2, \quad
    e_k = \lVert \delta(r_k, y) \rVert^2$$

    Here $\ell_\text{KL}$ is that of `loss_avg`, $\nu$ is `weight`, $m$ is `margin`, $r$, $r_k$ and $y$ are
    the boxes of the student, of teacher k and of the label, and $n$ is how many of the batch's P places
    answer for a box: no others count. What a teacher says of a box is not matched, for it may be further off
    than the student's. The paper has one teacher; a margin of 0.01 is that of public code, in other units.

    Source: Chen et al., NIPS 2017, Learning efficient object detection models with knowledge distillation.
    """
    own = (("boxes", weight), ("margin", margin))
    term = HardAnd(_SoftAndBounded(soft_loss))
    return PLAIN._replace(name="bounded_boxes", aim=each_teacher, term=term, needs=("beside",), hyper=own)


def chen(
    *,
    background: float = 1.5,
    boxes: float = 1.0,
    margin: float = 0.01,
    hint: float = 0.5,
    student: str = "stage2",
    teacher: str = "stage2",
) -> Recipe:
    r"""Match the teachers' classes, weighted, be bounded by their boxes, and predict a feature of theirs.

    $$\ell_\text{soft} = \ell_\text{weighted} + \nu \frac{P}{n} \sum_k w_k f_k, \qquad
    \ell = \alpha\, (\ell_\text{hard} + \ell_\text{box}) + (1 - \alpha)\, \ell_\text{soft}
    + \gamma \sum_k w_k h_k$$

    Here $\ell_\text{weighted}$ is that of `weighted_classes`, the $f_k$ are those of `bounded_boxes`, with
    $\nu$ = `boxes`, and the $h_k$ those of `features.hints`: a 1x1 convolution of the student's feature
    `student` that is trained along, the adaptation layer, against the feature `teacher`; $\gamma$ is `hint`.
    In the paper alpha is 0.5, there is one teacher, and a second part that classifies what the first one
    proposes: here there is one part. Raises UserError where a network lacks the feature.

    Source: Chen et al., NIPS 2017, Learning efficient object detection models with knowledge distillation.
    """
    hints = features.hints(student=student, teacher=teacher, weight=hint)
    assert isinstance(hints.term, maps.HardSoftAnd)
    return hints._replace(
        name="chen",
        term=_AndHint(HardAnd(_SoftAndBounded(_weighted_loss)), hints.term.feature_loss),
        needs=(*hints.needs, "beside"),
        hyper=(*hints.hyper, *_background("chen", background), ("boxes", boxes), ("margin", margin)),
    )


def _background(name: str, background: float) -> tuple[tuple[str, float], ...]:
    if background <= 0:
        raise UserError(f"{name}(background={background}): it must be above 0")
    return (("background", background),)


def box_loss(context: Context) -> Array:
    r"""The hard loss of boxes [P]: smooth L1 of the distance of each side, at places that answer for a box.

    $$\ell_\text{box} = \frac{P}{n} \sum_{i=1}^4 s(\delta(r, y)_i), \qquad
    s(x) = \frac{x^2}{2} \ \text{if}\ |x| < 1\ \text{else}\ |x| - \frac{1}{2}$$

    $n$ of the P places answer for a box whose label is known, and the others have 0: the mean over places is
    that over boxes, however few there are.

    Source: smooth L1 is that of Fast R-CNN (Girshick 2015, arXiv 1504.08083).
    """
    off = jnp.abs(_off(context.student.beside["boxes"], context))
    return _of_boxes(jnp.where(off < 1.0, 0.5 * off**2, off - 0.5).sum(axis=-1), context)


def _off(boxes: Array, context: Context) -> Array:
    """How far boxes [...,P,4] are from those of the labels."""
    goals = context.batch.goals["boxes"]
    return PER_SIDE * (boxes - goals.reshape((1,) * (boxes.ndim - 2) + goals.shape))


def _of_boxes(loss: Array, context: Context) -> Array:
    """A loss [P] at places that answer for a box, 0 elsewhere: its mean is the mean over such places."""
    batch = context.batch
    answers = batch.labelled & (batch.label > 0)
    num = jnp.maximum(answers.sum().astype(jnp.float32), 1.0)
    return jnp.where(answers, loss, 0.0) * (num_valid(batch) / num)


def _weighted_loss(context: Context) -> Array:
    temperature, targets = context.hyper["temperature"], context.targets
    log_student = jax.nn.log_softmax(context.student.heads / temperature)
    is_background = jnp.arange(log_student.shape[-1]) == 0
    weights = jnp.where(is_background, context.hyper["background"], 1.0)[None, None]
    values = -jnp.sum(weights * targets.probs * log_student, axis=-1)
    return temperature**2 * jnp.sum(jnp.where(targets.mass > 0, targets.mass * values, 0.0), axis=0)


@dataclasses.dataclass(frozen=True)
class _SoftAndBounded:
    soft: Callable[[Context], Array]

    def __call__(self, context: Context) -> Array:
        return self.soft(context) + context.hyper["boxes"] * _bounded_loss(context)


def _bounded_loss(context: Context) -> Array:
    if "boxes" not in context.teacher.beside or "boxes" not in context.batch.goals:
        raise UserError("detection.bounded_boxes and detection.chen need boxes, and there are none")
    own = jnp.sum(_off(context.student.beside["boxes"], context) ** 2, axis=-1)
    of_teachers = jnp.sum(_off(context.teacher.beside["boxes"], context) ** 2, axis=-1)
    is_worse = own[None] + context.hyper["margin"] > of_teachers
    w = context.targets.mass
    return _of_boxes(jnp.sum(jnp.where(is_worse & (w > 0), w * own[None], 0.0), axis=0), context)


@dataclasses.dataclass(frozen=True)
class _AndHint:
    term: Callable[[Context], Array]
    hint: Callable[[Context], Array]

    def __call__(self, context: Context) -> Array:
        hint = of_places(self.hint(context), context.batch)
        return self.term(context) + context.hyper["weight"] * hint
