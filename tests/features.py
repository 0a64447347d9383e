"""What the step hands to methods of features and relations, made by hand: contexts with features."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mtkd_jax.types import Context, Recipe, TrainState
from tests.contexts import aimed, context


def seen(student, teachers, aux=None, embedding=None, embeddings=None, **hyper) -> Context:
    """A context whose networks have these features {name: [B,h,w,d]} and embeddings [B,D]."""
    size = len(next(iter(student.values()))) if student else len(embedding)
    num_teachers = len(teachers) if teachers else len(embeddings)
    logits = np.broadcast_to([[[1.0, 0.0]]], (num_teachers, size, 2))
    found = context(np.zeros((size, 2)), logits, **hyper)
    own = dataclasses.replace(found.student, features=as_floats(student), embedding=as_floats(embedding))
    told = found.teacher._replace(
        features=tuple(map(as_floats, teachers)), embedding=tuple(map(as_floats, embeddings or ()))
    )
    state = TrainState({}, as_floats(aux), {}, {}, {}, None)
    return dataclasses.replace(found, student=own, teacher=told, state=state)


def with_parameters(recipe: Recipe, of: Context, seed: int = 0) -> Context:
    """The context with the parameters that the recipe draws, and noise on them: no bias is 0."""
    aux = recipe.init_aux(jax.random.key(seed), of.student, of.teacher)
    rng = np.random.default_rng(seed)
    noisy = jax.tree.map(lambda leaf: leaf + as_floats(0.3 * rng.normal(size=leaf.shape)), aux)
    return dataclasses.replace(of, state=dataclasses.replace(of.state, aux=noisy))


def as_floats(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def drawn(seed: int = 0, size: int = 3) -> dict:
    """Student and three teachers of different architecture: everything that `seen` asks for but `aux`."""
    rng = np.random.default_rng(seed)
    student = {"stem": (8, 8, 2), "stage1": (8, 8, 2), "stage2": (4, 4, 5)}
    teachers = [
        {"stage1": (8, 8, 2), "stage2": (4, 4, 5), "stage3": (2, 2, 6)},
        {"stem": (5, 5, 3), "stage1": (5, 5, 4), "stage2": (3, 6, 1)},
        {"stage1": (1, 1, 7)},
    ]
    maps = lambda shapes: {name: rng.normal(size=(size, *shape)) for name, shape in shapes.items()}  # noqa: E731
    return {
        "student": maps(student),
        "teachers": [maps(shapes) for shapes in teachers],
        "embedding": rng.normal(size=(size, 4)),
        "embeddings": [rng.normal(size=(size, width)) for width in (5, 4, 9)],
    }


@partial(jax.jit, static_argnums=0)
def by_features(recipe: Recipe, of: Context):
    """Gradients of the summed loss by the student's features, its embedding and the method's parameters."""
    fixed = aimed(recipe, of)

    def total(maps, embedding, aux):
        student = dataclasses.replace(fixed.student, features=maps, embedding=embedding)
        state = dataclasses.replace(fixed.state, aux=aux)
        return recipe.term(dataclasses.replace(fixed, student=student, state=state)).sum()

    return jax.grad(total, argnums=(0, 1, 2))(of.student.features, of.student.embedding, of.state.aux)
