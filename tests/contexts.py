"""What the step hands to a method's seams, made by hand: no network, no data, no training."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mtkd_jax.types import Array, Batch, Context, Outputs, Recipe, TeacherOutputs, TrainState

# Fixture F of the method cards: two teachers, a student and label 0; their logits are their logs.
P1, P2, P3, Q = np.log([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5], [0.8, 0.1, 0.1], [0.25, 0.5, 0.25]])


def context(
    student, teachers, label=None, *, labelled=None, progress=1.0, step=0, seed=0, **hyper
) -> Context:
    """The context of a student's logits [B,C] and the teachers' [K,B,C], labels 0 unless given."""
    student, teachers = jnp.asarray(student, jnp.float32), jnp.asarray(teachers, jnp.float32)
    size = len(student)
    hyper = {"alpha": 0.0, "temperature": 1.0, "label_smoothing": 0.0, **hyper}
    return Context(
        batch=Batch(
            image=jnp.zeros((size, 1, 1, 1)),
            label=jnp.zeros(size, jnp.int32) if label is None else jnp.asarray(label, jnp.int32),
            index=jnp.arange(size),
            labelled=jnp.ones(size, bool) if labelled is None else jnp.asarray(labelled),
        ),
        teacher=TeacherOutputs(teachers, (), ()),
        prepared={},
        hyper={name: jnp.float32(value) for name, value in hyper.items()},
        key=jax.random.key(seed),
        step=jnp.int32(step),
        progress=jnp.float32(progress),
        student=Outputs(student, student[None], jnp.zeros((size, 1)), {}),
    )


def aimed(recipe: Recipe, seen: Context) -> Context:
    """The context with the recipe's own numbers and its targets; who must not read the student cannot.

    Where no state is given it has the parameters that the recipe draws.
    """
    if seen.state is None:
        aux = recipe.init_aux(jax.random.key(0), seen.student, seen.teacher)
        seen = dataclasses.replace(seen, state=TrainState({}, aux, {}, {}, {}, None))
    own = {name: jnp.float32(value) for name, value in recipe.hyper}
    blind = seen
    if not recipe.reads_student:
        blind = dataclasses.replace(
            seen, student=None, hyper={"temperature": seen.hyper["temperature"], **own}
        )
    targets = recipe.aim(blind, recipe.weigh(blind))
    return dataclasses.replace(seen, targets=targets, hyper={**seen.hyper, **own})


@partial(jax.jit, static_argnums=0)
def loss(recipe: Recipe, seen: Context) -> Array:
    """The recipe's loss [B] of a context, compiled as in the step."""
    return recipe.term(aimed(recipe, seen))


@partial(jax.jit, static_argnums=0)
def by_student(recipe: Recipe, seen: Context) -> Array:
    """The gradient [B,C] of the summed loss by the student's logits, targets held fixed as the step does."""
    fixed = aimed(recipe, seen)

    def total(logits):
        student = dataclasses.replace(fixed.student, logits=logits, heads=logits[None])
        return recipe.term(dataclasses.replace(fixed, student=student)).sum()

    return jax.grad(total)(seen.student.logits)
