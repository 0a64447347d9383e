"""What a method reads, found out by asking it: made-up networks, two sets of labels, one loss."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mtkd_jax.addresses import build_recipe
from mtkd_jax.config import control_and_mode, name_and_model
from mtkd_jax.types import Absent, Batch, Context, Outputs, Recipe, TeacherOutputs, TrainState

K, B, C, D = 3, 6, 5, 4


def reads(row: str) -> list[str]:
    """What the method of a row reads: of the teachers "logits", "embedding", "features"; "labels".

    Labels as far as the loss reads them at alpha = 0, where the hard loss has no part; they are all that the
    baseline and the control have. "labels?" where the method cannot be asked alone.
    """
    _, mode = control_and_mode(name_and_model(row)[0])
    if mode in ("baseline", "control"):
        return ["labels"]
    recipe = build_recipe(mode)
    found = ["logits"] if recipe.min_teachers else []
    found += [tap for tap in ("embedding", "features") if tap in (recipe.prepare, *recipe.needs)]
    said = reads_labels(recipe)
    return found + (["labels?"] if said is None else ["labels"] if said else [])


def reads_labels(recipe: Recipe) -> bool | None:
    """Whether the loss at alpha = 0 changes with the labels; None where it wants more than made-up logits."""
    if recipe.alpha:
        return True
    try:
        first, second = (
            _loss(recipe, jnp.asarray(labels)) for labels in (np.arange(B) % C, np.zeros(B, int))
        )
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
    return not np.allclose(first, second, rtol=1e-5, atol=1e-6)


def _loss(recipe: Recipe, labels: jax.Array) -> jax.Array:
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    heads = drawn(recipe.num_heads(K), B, C)
    log_probs = jax.nn.log_softmax(heads)
    logits = jax.nn.logsumexp(log_probs, axis=0) - jnp.log(jnp.float32(len(heads)))
    student = Outputs(logits, heads, drawn(B, D), {})
    teacher = TeacherOutputs(2 * drawn(K, B, C), tuple(drawn(K, B, D)), ({},) * K)
    key = jax.random.key(0)
    aux = recipe.init_aux(key, student, teacher)
    batch = Batch(drawn(B, 1, 1, 1), labels.astype(jnp.int32), jnp.arange(B), jnp.ones(B, bool))
    prepared = {recipe.prepare: lambda said: said.logits.mean(axis=0)} if recipe.prepare else {}
    numbers = {"alpha": 0.0, "temperature": 2.0, "label_smoothing": 0.0, **dict(recipe.hyper)}
    hyper = {name: jnp.float32(value) for name, value in numbers.items()}
    state = TrainState({}, aux, {}, {}, {}, key)
    at = key, jnp.int32(0), jnp.float32(0.5)
    context = Context(batch, teacher, prepared, hyper, *at, student=student, state=state)
    if not recipe.min_teachers:
        context = dataclasses.replace(context, teacher=Absent)
    context = dataclasses.replace(context, targets=recipe.aim(context, recipe.weigh(context)))
    return recipe.term(context)
