"""Wrappers that give each member frozen teachers of its own, for any method.

The teachers are then whole populations, and their logits are computed once for all members. They stand in
places, one after the other: `counts` says how many there are to choose from in each. Of place j a member is
taught by teacher `hyper["own_teachers"]`[j] alone, and a wrapped seam sees these few, one for each place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtkd_jax.types import Array, Context, Outputs, PyTree, Targets, TeacherOutputs, TrainState


@dataclasses.dataclass(frozen=True)
class OfOwnTeachers:
    """A seam (weigh, aim or term) that sees its reader's own teachers alone."""

    seam: Callable
    counts: tuple[int, ...]

    def __call__(self, context: Context, *more: Array) -> Any:
        return self.seam(_with_own_teachers(context, self.counts), *more)


@dataclasses.dataclass(frozen=True)
class AfterOwnTeachers:
    """An `after` that sees its reader's own teachers alone."""

    after: Callable[[TrainState, Context], TrainState]
    counts: tuple[int, ...]

    def __call__(self, state: TrainState, context: Context) -> TrainState:
        return self.after(state, _with_own_teachers(context, self.counts))


@dataclasses.dataclass(frozen=True)
class ForOwnTeachers:
    """An `init_aux` that is given a teacher of each place."""

    init_aux: Callable
    counts: tuple[int, ...]

    def __call__(self, key: Array, student: Outputs, teacher: TeacherOutputs) -> PyTree:
        first = np.zeros(len(self.counts), np.int32)
        own = jax.eval_shape(lambda teacher: select_teachers(teacher, first, self.counts), teacher)
        return self.init_aux(key, student, own)


def _with_own_teachers(context: Context, counts: tuple[int, ...]) -> Context:
    own = select_teachers(context.teacher, context.hyper["own_teachers"], counts)
    return dataclasses.replace(context, teacher=own)


def select_teachers(
    teacher: TeacherOutputs, own: Array | np.ndarray, counts: tuple[int, ...]
) -> TeacherOutputs:
    """Teacher `own`[j] of the `counts`[j] of place j, for every place."""
    starts = np.cumsum((0, *counts))[:-1]

    def picked(each: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        if not each:
            return ()
        places = (each[start : start + count] for start, count in zip(starts, counts))
        return tuple(
            jax.tree.map(lambda *leaves, row=row: jnp.stack(leaves)[row], *of_place)
            for of_place, row in zip(places, own)
        )

    rows = jnp.asarray(starts, jnp.int32) + own
    beside = {name: of_all[rows] for name, of_all in teacher.beside.items()}
    return TeacherOutputs(teacher.logits[rows], picked(teacher.embedding), picked(teacher.features), beside)


# --- seams of members with teachers of their own --------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DenselyGuided:
    r"""The weights [K,B] of densely guided distillation: 1 for each of those who guide, but for some by lot.

    The first `num_together` teachers are one who guides, together: each weighs 1 / `num_together`.
    `num_dropped` of those who guide weigh nothing, drawn anew for every member and batch; one is always left.

    Source: Son et al. 2021, arXiv 2009.08825.
    """

    num_together: int
    num_dropped: int

    def __call__(self, context: Context) -> Array:
        num_teachers, batch_size, _ = context.teacher.logits.shape
        num_guides = num_teachers - self.num_together + 1
        dropped = min(self.num_dropped, num_guides - 1)
        kept = (jax.random.permutation(context.key, num_guides) >= dropped).astype(jnp.float32)
        w = jnp.concatenate([jnp.repeat(kept[:1] / self.num_together, self.num_together), kept[1:]])
        return jnp.broadcast_to(w[:, None], (num_teachers, batch_size))


def weigh_as_fitted(context: Context) -> Array:
    """The member's own weights of its K teachers, `hyper["own_weights"]` [K], for every example: [K,B]."""
    own = context.hyper["own_weights"]
    return jnp.broadcast_to(own[:, None], context.teacher.logits.shape[:2])


@dataclasses.dataclass(frozen=True)
class OfUnlabelled:
    r"""An aim for unlabelled examples alone, each of which counts as much as its class is rare.

    $$m'_b = m_b\, \frac{B}{u}\, v_c, \qquad c = \mathrm{argmax}_j\, q_{bj}$$

    Here $u$ is the number of unlabelled examples of the batch, whose mass is kept, those of labelled ones are
    0, and $v$ [C] is the member's own `hyper["class_weights"]`.
    """

    aim: Callable

    def __call__(self, context: Context, w: Array) -> Targets:
        targets, unlabelled = self.aim(context, w), ~context.batch.labelled
        num = jnp.maximum(jnp.sum(unlabelled, dtype=jnp.float32), 1.0)
        of_class = context.hyper["class_weights"][targets.probs.argmax(axis=-1)]
        factor = jnp.where(unlabelled[None], of_class * (len(unlabelled) / num), 0.0)
        return dataclasses.replace(targets, mass=targets.mass * factor)
