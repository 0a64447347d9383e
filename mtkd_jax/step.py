"""The one training step, for a whole population at once, built from a recipe's seven seams.

Two halves. The LESSON (batch, stimulus, teachers, targets) is drawn once for all members when they share
their batches, or by each member from its own when they do not. The MEMBER half (view, student, terms,
update, after) runs for every member. Nothing here asks which method is trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtkd_jax.data import augment, loading
from mtkd_jax.population import apply_ensemble, over_members
from mtkd_jax.types import Array, Context, Examples, Model, PyTree, Recipe, Targets, TrainState


class Program(NamedTuple):
    """Everything about a step that is compiled into it. Hashable: equal programs are compiled once."""

    model: Model
    recipes: tuple[Recipe, ...]  # one family: they differ in name, weigh, aim and prepare only
    teachers: tuple[Model, ...]
    optimizer: str
    schedule: str
    num_steps: int  # of the whole stage, for the schedule
    augmentation: tuple[tuple[str, float], ...]
    how: str


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lessons:
    """What a stage's lessons are drawn from, constant while it runs, traced."""

    examples: Examples
    teachers: tuple[PyTree, ...]  # variables of every frozen architecture [K_i,...]
    prepared: Mapping[str, Callable]  # fused networks fitted before, as jax.tree_util.Partial
    temperatures: Array  # [T] the distinct ones; hyper["target"] = recipe * T + temperature
    key: Array  # of the stage


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Lesson:
    context: Context
    table: tuple[Targets, ...] | None  # targets of every (recipe, temperature), stacked; see _table


def same_family(a: Recipe, b: Recipe) -> bool:
    """Whether two recipes can be trained as one population: all but name, weigh, aim, prepare equal.

    Targets that depend on the student have no row in the shared table, so there weigh and aim count too.
    """
    if a.reads_student or b.reads_student:
        return a._replace(name=b.name) == b
    return a._replace(name=b.name, weigh=b.weigh, aim=b.aim, prepare=b.prepare) == b


def init_state(program: Program, variables: PyTree, keys: Array) -> TrainState:
    """The first state of every member, stacked, from variables [M,...] and keys [M]."""
    transform = optimizer(program.optimizer, 1.0, 0.0)
    recipe = program.recipes[0]
    params = variables["params"]
    return TrainState(
        params=params,
        model_state={name: value for name, value in variables.items() if name != "params"},
        opt_state=jax.vmap(transform.init)(params),
        mem=jax.vmap(recipe.init_mem)(params),
        key=keys,
    )


def make_step(program: Program) -> Callable:
    """(states [M], hyper {name: [M]}, indices [B] or [M,B], step [], lessons) -> (states, losses [M])."""
    recipe = program.recipes[0]

    def frozen_by(lessons: Lessons) -> Callable:
        return lambda image: apply_ensemble(program.teachers, lessons.teachers, image)

    def give_lesson(key: Array, indices: Array, step: Array, lessons: Lessons) -> _Lesson:
        frozen = frozen_by(lessons)
        stimulus_key, key = jax.random.split(key)
        batch = loading.gather(lessons.examples, indices)
        batch = recipe.stimulus(stimulus_key, batch, augmented(program), frozen)
        context = Context(batch, None, lessons.prepared, {}, key, step)
        if recipe.reads_student:
            return jax.lax.stop_gradient(_Lesson(context, None))
        context = dataclasses.replace(context, teacher=recipe.teach(context, frozen))
        return jax.lax.stop_gradient(_Lesson(context, _table(program.recipes, context, lessons.temperatures)))

    def aimed(lesson: _Lesson, context: Context, lessons: Lessons) -> Context:
        if lesson.table is not None:
            targets = jax.tree.map(lambda leaf: leaf[context.hyper["target"]], lesson.table)
            return dataclasses.replace(context, teacher=lesson.context.teacher, targets=targets)
        seen = jax.lax.stop_gradient(context)
        seen = dataclasses.replace(seen, teacher=recipe.teach(seen, frozen_by(lessons)))
        targets = recipe.aim(seen, recipe.weigh(seen))
        return dataclasses.replace(
            context, **jax.lax.stop_gradient({"teacher": seen.teacher, "targets": targets})
        )

    def member_step(member, shared):
        state, hyper, own_indices = member
        lesson, step, lessons = shared
        keys = jax.random.split(jax.random.fold_in(state.key, step), 4)
        lesson_key, view_key, apply_key, seam_key = keys
        if lesson is None:
            lesson = give_lesson(lesson_key, own_indices, step, lessons)

        def loss_of(params):
            variables = {"params": recipe.view(params, state, view_key), **state.model_state}
            student, model_state = program.model.apply(
                variables, lesson.context.batch.image, train=True, key=apply_key
            )
            context = dataclasses.replace(
                lesson.context, hyper=hyper, student=student, state=state, key=seam_key, step=step
            )
            context = aimed(lesson, context, lessons)
            return recipe.term(context).mean(), (model_state, context)

        (loss, (model_state, context)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        rate = hyper["learning_rate"] * schedule(program.schedule, step / program.num_steps)
        params, opt_state = _updated(program.optimizer, rate, hyper["weight_decay"], grads, state)
        params, mem = recipe.after(params, state.mem, context)
        state = dataclasses.replace(
            state, params=params, model_state=model_state, opt_state=opt_state, mem=mem
        )
        return state, loss

    def step(states, hyper, indices, step, lessons):
        if indices.ndim == 1:
            shared_key = jax.random.fold_in(lessons.key, step)
            shared = (give_lesson(shared_key, indices, step, lessons), step, lessons)
            return over_members(member_step, program.how)((states, hyper, None), shared)
        return over_members(member_step, program.how)((states, hyper, indices), (None, step, lessons))

    return step


def augmented(program: Program) -> Callable:
    """(key, images) -> images, with the configured augmentation."""
    return lambda key, images: augment.augment(key, images, **dict(program.augmentation))


def optimizer(name: str, learning_rate: Array | float, weight_decay: Array | float):
    """The optax transformation; rate and decay may be traced, so every member has its own.

    adam is AdamW (decay decoupled), sgd is Nesterov 0.9 with decay added to the gradient, as each is
    customary in the distillation literature.
    """
    if name == "adam":
        return optax.adamw(learning_rate, weight_decay=weight_decay)
    if name == "sgd":
        decay = optax.add_decayed_weights(weight_decay)
        return optax.chain(decay, optax.sgd(learning_rate, momentum=0.9, nesterov=True))
    raise ValueError(f"optimizer {name!r}; known are {', '.join(OPTIMIZERS)}")


def _updated(name: str, rate: Array, decay: Array, grads: PyTree, state: TrainState) -> tuple[PyTree, PyTree]:
    # optax mixes its integer step count into float arithmetic, which a strict session forbids.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer(name, rate, decay).update(grads, state.opt_state, state.params)
        return optax.apply_updates(state.params, updates), opt_state


def schedule(name: str, progress: Array) -> Array:
    """The factor on the learning rate at progress in [0,1)."""
    if name == "constant":
        return jnp.ones_like(progress)
    if name == "cosine":
        return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    if name == "steps":  # a tenth at each of 5/8, 6/8 and 7/8: 150, 180, 210 of 240 epochs
        return 0.1 ** jnp.sum(progress >= jnp.array([0.625, 0.75, 0.875])).astype(jnp.float32)
    raise ValueError(f"schedule {name!r}; known are {', '.join(SCHEDULES)}")


OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("constant", "cosine", "steps")


def _table(recipes: tuple[Recipe, ...], context: Context, temperatures: Array) -> Targets | None:
    """Targets [R*T,Q,B,C] of every recipe at every temperature; members pick a row by hyper["target"].

    Targets that do not depend on the student are computed once a batch, not once a member. Recipes of one
    family have as many targets as each other.
    """

    def at(recipe: Recipe, temperature: Array) -> Targets:
        warm = dataclasses.replace(context, hyper={"temperature": temperature})
        return recipe.aim(warm, recipe.weigh(warm))

    rows = [jax.vmap(lambda t, r=recipe: at(r, t))(temperatures) for recipe in recipes]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)
