r"""Homogenisation: how far networks that learn from each other are apart, looked at while they train.

A distance is the mean over images of the total variation of two predictions (T = 1), in [0, 1]: 0 where they
are the same, 1 where they have no class in common.

$$d(p, q) = \frac{1}{2} \sum_c |p_c - q_c|$$
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp

from mtkd_jax import mesh
from mtkd_jax.data.loading import evenly, scale
from mtkd_jax.engine import places
from mtkd_jax.engine.population import over_members
from mtkd_jax.engine.step import Program, averaged
from mtkd_jax.methods.seams import deploy_params
from mtkd_jax.models import stages
from mtkd_jax.types import Array, PyTree, TrainState

TO_PEERS = "val_distance_to_peers"  # of a member to the others of its cohort, the mean over these
TO_OWN_TEACHER = "val_distance_to_own_teacher"  # to the network that it keeps of itself to learn from
MOST_IMAGES = 512  # of validation, spread evenly over it: what a round takes hardly grows
MOST_PLACES = 64 * MOST_IMAGES  # of these, where an image has many: at least one image is looked at


def distances(
    program: Program, states: TrainState, hyper: Mapping[str, Array], seen: tuple[PyTree, tuple[Array, Array]]
) -> dict[str, Array]:
    """{name: [M]} of the distances that the recipe has; {} without a cohort and without a teacher of its own.

    `seen` is (frozen variables, (images, labels)) of validation; networks compute with the weights that they
    are trained with, rounded or masked ones too, and run as in evaluation. Of a dense task over all places,
    of fewer images the more places each has. Of branches on one stem a member has the mean over all its
    pairs. NaN where nobody else has finite numbers. Called inside `mesh.spread`.
    """
    recipe, (frozen, (images, labels)) = program.recipes[0], seen
    alone = recipe.num_in_cohort == 1
    if alone and recipe.own_teacher is None:
        return {}
    most = max(1, min(MOST_IMAGES, MOST_PLACES // math.prod(labels.shape[1:])))
    image = scale(evenly(images, most))
    own = jax.vmap(partial(_computed_with, program))(states, hyper)
    teacher = None if recipe.own_teacher is None else jax.vmap(recipe.own_teacher)(states, hyper)

    def say(variables: PyTree, state_frozen: PyTree, shared: tuple[PyTree, Array]) -> Array:
        frozen, image = shared
        outputs, _ = program.model.apply(stages.join(variables, frozen, state_frozen), image)
        return jax.nn.softmax(outputs.logits if labels.ndim == 1 else places.merge(outputs.logits))

    def look(member: tuple, shared: tuple[PyTree, Array]) -> tuple[Array, dict[str, Array]]:
        own, teacher, state_frozen = member
        told = say(own, state_frozen, shared)
        if teacher is None:
            return told, {}
        to_teacher = total_variation(told, say(teacher, state_frozen, shared)).mean()
        return told, {TO_OWN_TEACHER: to_teacher}

    loop = program.layout.member_loop
    told, found = over_members(look, loop)((own, teacher, states.frozen), (frozen, image))
    if alone:
        return found
    if recipe.sharing is not None:  # told [M,P,B,C]
        everyone = jnp.arange(recipe.num_in_cohort)
        to_peers = jax.vmap(lambda cohort: jnp.nanmean(jax.vmap(partial(_to_others, cohort))(everyone)))(told)
    else:
        everybody = mesh.all_members(told, program.layout)
        to_peers = jax.vmap(lambda mates, place: _to_others(everybody[mates], place))(
            hyper["mates"], hyper["place"]
        )
    return {TO_PEERS: to_peers, **found}


def _computed_with(program: Program, state: TrainState, hyper: Mapping[str, Array]) -> PyTree:
    """The variables that a member computes with, made from those that are used of it."""
    variables = deploy_params(averaged(program, state), hyper)
    return program.recipes[0].view(variables, state, hyper, state.key)


def total_variation(p: Array, q: Array) -> Array:
    """[...] of distributions [...,C] each."""
    return 0.5 * jnp.abs(p - q).sum(axis=-1)


def _to_others(cohort: Array, place: Array) -> Array:
    """The mean distance of one peer to the others whose predictions [P,B,C] are finite; NaN without any."""
    each = total_variation(cohort, cohort[place][None]).mean(axis=-1)
    counts = jnp.isfinite(each) & (jnp.arange(len(cohort)) != place)
    return jnp.where(counts, each, 0.0).sum() / counts.sum().astype(jnp.float32)
