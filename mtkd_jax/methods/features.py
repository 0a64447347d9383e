r"""Methods that also compare features of student and teachers, beside their logits.

$$\ell = \alpha\, \ell_\text{hard} + (1 - \alpha)\, \ell_\text{soft} + \lambda \sum_k w_k f_k$$

Here $\ell_\text{soft}$ is that of `loss_avg`, $\lambda$ is `weight`, $f_k$ [B] compares the student with
teacher k, and $w_k = 1/K$. Teachers may differ in architecture. Maps of different sizes meet at the
smaller height and width, the larger one averaged over windows. The default weights are those of
RepDistiller's scripts (Tian et al. 2020, arXiv 1910.10699), which have alpha = 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtkd_jax.methods.modes import each_teacher
from mtkd_jax.methods.seams import PLAIN, HardAnd, soft_loss
from mtkd_jax.types import Array, Context, Outputs, PyTree, Recipe, TeacherOutputs, UserError


def hints(*, student: str = "stage1", teacher: str = "stage1", weight: float = 200.0) -> Recipe:
    r"""Predict a feature of each teacher from one of the student's, by a linear map that is trained along.

    $$f_k = \frac{1}{2}\, \mathrm{mean}_{h,w,d}\, (u_k - r_k(v))^2$$

    Here $u_k$ [B,h,w,d] is the feature `teacher` of teacher k, $v$ is the feature `student` of the student,
    and $r_k$ is a 1x1 convolution, which is not part of the student. The paper sums where this takes the mean
    and has one teacher; its training in two stages begins with `hints_only`. `weight` = 200 is the 100 of
    RepDistiller, whose loss lacks the 1/2. Raises UserError where a network lacks the feature.

    Source: FitNets, Romero et al. 2015, arXiv 1412.6550.
    """
    return _with_feature_loss(
        "hints", _HintLoss(student, teacher), weight, init_aux=_Regressors(student, teacher)
    )


def hints_only(*, student: str = "stage1", teacher: str = "stage1") -> Recipe:
    r"""Learn what `hints` adds and nothing else: the first stage of FitNets, before the student is distilled.

    $$\ell = \sum_k w_k f_k$$

    The $f_k$ are those of `hints`. No label is used and alpha is 0. The heads are not trained. Layers between
    the feature and the heads have no gradient, but weight decay and batch statistics reach them.

    Source: FitNets, Romero et al. 2015, arXiv 1412.6550.
    """
    return PLAIN._replace(
        name="hints_only",
        aim=each_teacher,
        term=_HintLoss(student, teacher),
        init_aux=_Regressors(student, teacher),
        trainable=_is_no_head,
        needs=("features",),
        alpha=0.0,
    )


def attention_transfer(*, weight: float = 1000.0) -> Recipe:
    r"""Match where in the image the teachers' features are large, at every stage that both networks have.

    $$f_k = \sum_\text{stages} \mathrm{mean}_{h,w}\, (a(v) - a(u_k))^2, \qquad
    a(x) = \frac{A}{\lVert A \rVert}, \qquad A_{hw} = \mathrm{mean}_d\, x_{hwd}^2$$

    Here $v$ and $u_k$ [B,h,w,d] are features of the student and of teacher k, and $a(x)$ [B,h,w] is the
    strength of a map's pixels as a unit vector, 0 where all are 0. Features named "stage..." count where both
    maps have more than one pixel; a teacher without any such stage adds 0. The paper has the norm in place of
    the mean square. Raises UserError where this leaves no teacher, as with a student that has no convolution.

    Source: Zagoruyko and Komodakis 2017, arXiv 1612.03928.
    """
    return _with_feature_loss("attention_transfer", _attention_loss, weight)


def pkt(*, weight: float = 30000 / 64) -> Recipe:
    r"""Match which examples of the batch are neighbours of which, as the embeddings have it.

    $$f_k = \mathrm{KL}(Q_b \parallel P_b), \qquad
    P_{bj} = \frac{\kappa(e_b, e_j)}{\sum_{i \ne b} \kappa(e_b, e_i)}, \qquad
    \kappa(x, y) = \frac{1 + \cos(x, y)}{2}$$

    Here $b$ is the example and $j \ne b$ the other examples of the batch, $P$ is of the student's embeddings
    $e$ [B,D] and $Q$ of those of teacher k; their widths may differ. A vector of zeros has the cosine 0 with
    all. Public code counts $b$ among its own neighbours and divides by B once more: its 30000 at B = 64 is
    30000/64 here.

    Source: probabilistic knowledge transfer, Passalis and Tefas 2018, arXiv 1803.10837.
    """
    return _with_feature_loss("pkt", _neighbour_loss, weight)._replace(needs=("embedding",))


# --- the loss -----------------------------------------------------------------------------------------


def _with_feature_loss(name: str, feature_loss: Callable, weight: float, **seams: Any) -> Recipe:
    recipe = PLAIN._replace(name=name, aim=each_teacher, term=_HardSoftAnd(feature_loss), needs=("features",))
    return recipe._replace(hyper=(("weight", weight),), **seams)


@dataclasses.dataclass(frozen=True)
class _HardSoftAnd:
    feature_loss: Callable[[Context], Array]

    def __call__(self, context: Context) -> Array:
        return HardAnd(soft_loss)(context) + context.hyper["weight"] * self.feature_loss(context)


def _weighed(context: Context, losses: list[Array]) -> Array:
    """sum_k w_k losses_k [B]; `each_teacher` has put w into the targets' mass."""
    w = context.targets.mass
    return jnp.sum(jnp.where(w > 0, w * jnp.stack(losses), 0.0), axis=0)


# --- hints --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Regressors:
    student: str
    teacher: str

    def __call__(self, key: Array, student: Outputs, teacher: TeacherOutputs) -> PyTree:
        width = _named(student.features, self.student, "student").shape[-1]
        hints = [_named(features, self.teacher, "teacher").shape[-1] for features in teacher.features]
        draw = jax.nn.initializers.lecun_normal()
        return tuple(
            {"kernel": draw(own_key, (width, depth), jnp.float32), "bias": jnp.zeros(depth, jnp.float32)}
            for own_key, depth in zip(jax.random.split(key, len(hints)), hints)
        )


@dataclasses.dataclass(frozen=True)
class _HintLoss:
    student: str
    teacher: str

    def __call__(self, context: Context) -> Array:
        losses = []
        for regressor, features in zip(context.aux, context.teacher.features):
            guided, hint = _same_size(context.student.features[self.student], features[self.teacher])
            guess = guided @ regressor["kernel"] + regressor["bias"][None, None, None, :]
            losses.append(0.5 * jnp.mean(_square(hint - guess), axis=(1, 2, 3)))
        return _weighed(context, losses)


def _named(features: Mapping[str, Array], name: str, owner: str) -> Array:
    if name not in features:
        raise UserError(f"features.hints: the {owner} has no feature {name!r}; it has {', '.join(features)}")
    return features[name]


def _is_no_head(path: str) -> bool:
    return "heads" not in path.split("/")


# --- attention ----------------------------------------------------------------------------------------


def _attention_loss(context: Context) -> Array:
    pairs = [_stages(context.student.features, features) for features in context.teacher.features]
    if not any(pairs):
        raise UserError(
            "features.attention_transfer: student and teachers share no stage of more than one pixel; "
            "both must be convolutional"
        )
    nothing = jnp.zeros(len(context.batch.label), jnp.float32)
    losses = [sum((_attention_distance(own, other) for own, other in of_k), nothing) for of_k in pairs]
    return _weighed(context, losses)


def _stages(student: Mapping[str, Array], teacher: Mapping[str, Array]) -> list[tuple[Array, Array]]:
    names = [name for name in student if name.startswith("stage") and name in teacher]
    pairs = [_same_size(student[name], teacher[name]) for name in names]
    return [(own, other) for own, other in pairs if own.shape[1] * own.shape[2] > 1]


def _attention_distance(own: Array, other: Array) -> Array:
    own, other = (_unit(jnp.mean(_near_one(x)[0] ** 2, axis=-1).reshape(len(x), -1)) for x in (own, other))
    return jnp.mean((own - other) ** 2, axis=-1)


# --- neighbours ---------------------------------------------------------------------------------------


def _neighbour_loss(context: Context) -> Array:
    own = _log_neighbours(context.student.embedding)
    losses = []
    for embedding in context.teacher.embedding:
        other = _log_neighbours(embedding)
        losses.append(jnp.sum(jnp.exp(other) * (other - own), axis=1))
    return _weighed(context, losses)


def _log_neighbours(embedding: Array) -> Array:
    """ln P [B,B] of embeddings [B,D], with a diagonal of 0, which no difference of two sees."""
    unit, others = _unit(embedding), ~np.eye(len(embedding), dtype=bool)
    kernel = jnp.maximum(0.5 * (1.0 + unit @ unit.T), 1e-7)  # opposite vectors: 0, or less by rounding
    total = jnp.maximum(kernel.sum(axis=1, keepdims=True, where=others), 1e-7)  # a batch of one has no others
    return jnp.where(others, jnp.log(kernel) - jnp.log(total), 0.0)


# Above this a difference counts linearly, so that neither it nor its gradient overflows; squares of float32
# end at 1e38, and the sum over a map of millions of them before that.
LARGEST_SQUARED = 1e9


def _square(x: Array) -> Array:
    """x^2, and beyond LARGEST_SQUARED the tangent to it."""
    near = jnp.clip(x, -LARGEST_SQUARED, LARGEST_SQUARED)
    return near * (2.0 * x - near)


# --- both ---------------------------------------------------------------------------------------------


def _unit(x: Array) -> Array:
    """x [B,D] / ||x||; 0, and without a gradient, for a vector of (almost) zeros."""
    x, is_long = _near_one(x)
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    # A root of 0 has no gradient, and `where` around it would not keep the NaN out.
    return jnp.where(is_long, x / jnp.sqrt(jnp.where(is_long, square, 1.0)), 0.0)


def _near_one(x: Array) -> tuple[Array, Array]:
    """x [B,...] over its largest number, whose squares cannot overflow, and whether that is one at all.

    For what does not depend on the scale of x: the scale is taken as a constant.
    """
    axes = tuple(range(1, x.ndim))
    largest = jax.lax.stop_gradient(jnp.abs(x).max(axis=axes, keepdims=True))
    is_long = largest > 1e-12
    return x / jnp.where(is_long, largest, 1.0), is_long


def _same_size(a: Array, b: Array) -> tuple[Array, Array]:
    """Both maps [B,h,w,d] at the smaller height and width."""
    height, width = min(a.shape[1], b.shape[1]), min(a.shape[2], b.shape[2])
    return _pooled(a, height, width), _pooled(b, height, width)


def _pooled(x: Array, height: int, width: int) -> Array:
    if x.shape[1:3] == (height, width):
        return x
    return jnp.einsum("bhwd,ih,jw->bijd", x, _windows(x.shape[1], height), _windows(x.shape[2], width))


def _windows(size: int, num: int) -> np.ndarray:
    """[num,size] whose row i averages the places floor(i size / num) to ceil((i + 1) size / num) - 1."""
    i, place = np.arange(num)[:, None], np.arange(size)[None, :]
    inside = (place >= i * size // num) & (place < -((-(i + 1) * size) // num))
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)
