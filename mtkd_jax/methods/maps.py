"""What methods of features and relations share: a loss for each teacher, arithmetic that cannot overflow."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtkd_jax.methods.modes import each_teacher
from mtkd_jax.methods.seams import PLAIN, HardAnd, of_places, soft_loss
from mtkd_jax.models.layers import adaptive_average_pool
from mtkd_jax.types import Array, Context, Outputs, PyTree, Recipe, TeacherOutputs, UserError


class Taps(NamedTuple):
    """What one network shows of a batch besides its logits."""

    embedding: Array  # [B,D]
    features: Mapping[str, Array]  # {name: [B,h,w,d]}


class Pair(NamedTuple):
    """The student and one teacher, as a feature loss sees them."""

    own: Taps
    other: Taps
    parameters: PyTree  # of this teacher, see `beside_logits`; None where the method has none
    hyper: Mapping[str, Array]
    key: Array
    # [B] bool, which embeddings are compared: of a place, and of what the teacher speaks of. None: all
    valid: Array | None = None

    def stages(self, least_pixels: int = 1) -> dict[str, tuple[Array, Array]]:
        """The maps named "stage..." that both have, at the smaller height and width: {name: (own, other)}."""
        own, other = self.own.features, self.other.features
        names = common_stage_names(self.own, self.other)
        pairs = {name: same_size(own[name], other[name]) for name in names}
        return {n: pair for n, pair in pairs.items() if pair[0].shape[1] * pair[0].shape[2] >= least_pixels}


def common_stage_names(own: Taps, other: Taps) -> list[str]:
    """Names of the stages that both have, from the image on."""
    return [name for name in stage_names(own) if name in other.features]


def stage_names(taps: Taps) -> list[str]:
    """Names of all stages, from the image on: "stage9" before "stage10", which JAX's dicts forget."""
    names = [name for name in taps.features if name.startswith("stage")]
    return sorted(names, key=lambda name: (len(name), name))


# --- a loss for each teacher --------------------------------------------------------------------------


def beside_logits(
    name: str,
    compare: Callable[[Pair], Array | None],
    weight: float,
    *,
    draw: Callable[[Array, Taps, Taps], PyTree] | None = None,
    needs: tuple[str, ...] = ("features",),
    lacking: str = "",
    hyper: tuple[tuple[str, float], ...] = (),
    **seams: Any,
) -> Recipe:
    r"""The recipe that adds $\lambda \sum_k w_k f_k$ to hard and soft loss, $f_k$ [B] being `compare` of k.

    `draw` makes the parameters of one teacher, which are trained along: of a key, and of what student and
    teacher show, as shapes. Where `compare` gives None the two have nothing in common, which counts as 0;
    where that is so of all teachers UserError says what is `lacking`.
    """
    recipe = PLAIN._replace(
        name=name,
        aim=each_teacher,
        term=HardSoftAnd(OfEachTeacher(compare, lacking)),
        needs=needs,
        hyper=(("weight", weight), *hyper),
    )
    return recipe._replace(init_aux=ForEachTeacher(draw), **seams) if draw else recipe._replace(**seams)


def alone(recipe: Recipe, **seams: Any) -> Recipe:
    """What a recipe of `beside_logits` adds and nothing else, for a first stage: no label, no head, no T."""
    assert isinstance(recipe.term, HardSoftAnd)
    term, hyper = recipe.term.feature_loss, recipe.hyper[1:]  # without the weight
    return recipe._replace(term=term, hyper=hyper, trainable=is_no_head, **seams, alpha=0.0, temperature=1.0)


def is_no_head(path: str) -> bool:
    """Whether a leaf is no part of the last layer."""
    return "heads" not in path.split("/")


@dataclasses.dataclass(frozen=True)
class HardSoftAnd:
    """The term of `beside_logits`."""

    feature_loss: Callable[[Context], Array]

    def __call__(self, context: Context) -> Array:
        loss, weight = HardAnd(soft_loss)(context), context.hyper["weight"]
        return loss + weight * of_places(self.feature_loss(context), context.batch)


@dataclasses.dataclass(frozen=True)
class OfEachTeacher:
    """sum_k w_k f_k [B]; the aim `each_teacher` has put w into the targets' mass."""

    compare: Callable[[Pair], Array | None]
    lacking: str = ""

    def __call__(self, context: Context) -> Array:
        own, others = taps_of_student(context.student), taps_of_teachers(context.teacher)
        parameters = context.aux or (None,) * len(others)
        losses = [
            self.compare(Pair(own, other, of, context.hyper, context.key, _compared(context, k)))
            for k, (other, of) in enumerate(zip(others, parameters))
        ]
        if all(loss is None for loss in losses):
            raise UserError(self.lacking)
        nothing, batch = jnp.zeros(len(context.batch.label), jnp.float32), context.batch
        w, each = (
            context.targets.mass,
            [nothing if loss is None else of_places(loss, batch) for loss in losses],
        )
        return jnp.sum(jnp.where(w > 0, w * jnp.stack(each), 0.0), axis=0)


@dataclasses.dataclass(frozen=True)
class ForEachTeacher:
    """An `init_aux`: a tuple of what `draw` gives for each of the K teachers."""

    draw: Callable[[Array, Taps, Taps], PyTree]

    def __call__(self, key: Array, student: Outputs, teacher: TeacherOutputs) -> PyTree:
        own, others = taps_of_student(student), taps_of_teachers(teacher)
        return tuple(self.draw(k, own, other) for k, other in zip(jax.random.split(key, len(others)), others))


def _compared(context: Context, k: int) -> Array | None:
    """Which embeddings [B] may be compared with one another, see `Pair.valid`; None: all of them."""
    batch, embedding = context.batch, context.student.embedding
    if embedding is None:
        return None
    there = batch.valid if batch.valid is not None and len(batch.valid) == len(embedding) else None
    if batch.speaks is not None:  # of a dense task with embeddings of images all places of one are alike
        is_taught = (context.targets.mass[k] > 0).reshape(len(embedding), -1)[:, 0]
        there = is_taught if there is None else there & is_taught
    return there


def taps_of_student(student: Outputs) -> Taps:
    """What the student shows."""
    return Taps(student.embedding, student.features)


def taps_of_teachers(teacher: TeacherOutputs) -> list[Taps]:
    """What each of the K teachers shows."""
    return [Taps(*one) for one in itertools.zip_longest(teacher.embedding, teacher.features)]


# --- linear maps that are trained along ---------------------------------------------------------------


def draw_linear(key: Array, width: int, into: int) -> dict[str, Array]:
    """Parameters of a linear map of `width` numbers into `into` others."""
    kernel = jax.nn.initializers.lecun_normal()(key, (width, into), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(into, jnp.float32)}


def linear(parameters: Mapping[str, Array], x: Array) -> Array:
    """The map of the last axis; of maps [B,h,w,d] a 1x1 convolution."""
    bias = parameters["bias"]
    return x @ parameters["kernel"] + bias.reshape((1,) * (x.ndim - 1) + bias.shape)


# --- arithmetic ---------------------------------------------------------------------------------------


def mean_of(x: Array, there: Array | None, axis: int | None = None) -> Array:
    """The mean of x along an axis, or of it all, over what is `there`, 0 of nothing; None: all is.

    `there` is bool of as many axes as x, each of its length or 1.
    """
    if there is None:
        return x.mean(axis=axis)
    number = jnp.broadcast_to(there, x.shape).sum(axis=axis).astype(jnp.float32)
    return jnp.where(there, x, 0.0).sum(axis=axis) / jnp.maximum(number, 1.0)


def unit(x: Array) -> Array:
    """x [B,D] / ||x||; 0, and without a gradient, for a vector of (almost) zeros."""
    x, is_long = near_one(x)
    length = jnp.sum(x**2, axis=-1, keepdims=True)  # squared
    # A root of 0 has no gradient, and `where` around it would not keep the NaN out.
    return jnp.where(is_long, x / jnp.sqrt(jnp.where(is_long, length, 1.0)), 0.0)


def near_one(x: Array) -> tuple[Array, Array]:
    """x [B,...] over its largest number, whose squares cannot overflow, and whether that is one at all.

    For what does not depend on the scale of x: the scale is taken as a constant.
    """
    axes = tuple(range(1, x.ndim))
    largest = jax.lax.stop_gradient(jnp.abs(x).max(axis=axes, keepdims=True))
    is_long = largest > 1e-12
    return x / jnp.where(is_long, largest, 1.0), is_long


def same_size(a: Array, b: Array) -> tuple[Array, Array]:
    """Both maps [B,h,w,d] at the smaller height and width."""
    height, width = min(a.shape[1], b.shape[1]), min(a.shape[2], b.shape[2])
    return adaptive_average_pool(a, height, width), adaptive_average_pool(b, height, width)


# Above this a difference counts linearly, so that neither it nor its gradient overflows; squares of float32
# end at 1e38, and the sum over a map of millions of them before that.
LARGEST_SQUARED = 1e9


def square(x: Array) -> Array:
    """x^2, and beyond LARGEST_SQUARED the tangent to it."""
    near = jnp.clip(x, -LARGEST_SQUARED, LARGEST_SQUARED)
    return near * (2.0 * x - near)
