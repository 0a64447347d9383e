"""Wrappers that give each member a frozen teacher of its own, for any method.

The teachers are then a whole population, and their logits are computed once for all members. Member m is
taught by teacher `hyper["own_teacher"]` alone: a wrapped seam sees only that one, as K = 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mtkd_jax.types import Array, Context, Outputs, PyTree, TeacherOutputs


@dataclasses.dataclass(frozen=True)
class OfOwnTeacher:
    """A seam (weigh, aim or term) that sees its reader's own teacher alone."""

    seam: Callable

    def __call__(self, context: Context, *more: Array) -> Any:
        own = select_teacher(context.teacher, context.hyper["own_teacher"])
        return self.seam(dataclasses.replace(context, teacher=own), *more)


@dataclasses.dataclass(frozen=True)
class ForOneTeacher:
    """An `init_aux` that is given one of the teachers, which are all of one architecture."""

    init_aux: Callable

    def __call__(self, key: Array, student: Outputs, teacher: TeacherOutputs) -> PyTree:
        return self.init_aux(
            key, student, jax.eval_shape(lambda teacher: select_teacher(teacher, 0), teacher)
        )


def select_teacher(teacher: TeacherOutputs, row: Array | int) -> TeacherOutputs:
    """Teacher `row` of teachers of one architecture, as K = 1."""

    def picked(each: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        return (jax.tree.map(lambda *leaves: jnp.stack(leaves)[row], *each),) if each else ()

    return TeacherOutputs(teacher.logits[row][None], picked(teacher.embedding), picked(teacher.features))
