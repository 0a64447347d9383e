r"""Peers in both of their forms: whole networks side by side, and branches of one network, on one stem.

A method is written once, for a peer that reads what the others say (`context.peers`): its logits and what
they `tell`. Peers that are whole networks are members of a population, each with an optimiser of its own.
Peers that share a stem are one member, whose seams are here made to run for each branch; their losses are
added up, so that a branch has the gradient of its own loss and the stem that of all.

Parameters of the method (`init_aux`) belong to the cohort, and so does the loss by which they learn: every
peer has all of it (`of_cohort`), and of its gradient the part that is its own (`with_own`). Peers that are
whole networks have a copy of the parameters each, which begin alike and have the same gradient; branches read
the only one, which has the gradient of the first branch (`once`). With `train.clip_norm` copies may drift
apart, since each peer bounds the norm of its own gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mtkd_jax.methods.seams import PEERS
from mtkd_jax.types import (
    Array,
    Augment,
    Batch,
    Context,
    Networks,
    Outputs,
    PyTree,
    Recipe,
    Sharing,
    TeacherOutputs,
    UserError,
)


def cohort(
    base: Recipe,
    name: str,
    *,
    num_peers: int,
    shared: str,
    rescaled: bool = False,
    leader: int = 0,
    **seams: Any,
) -> Recipe:
    """`base` with the seams of a method for P peers, which share the stages up to `shared`, if any.

    Raises UserError for one peer and for a leader that is none.
    """
    if num_peers < 2:
        raise UserError(f"{name}(num_peers={num_peers}): a cohort has at least 2")
    if not 0 <= leader < num_peers:
        raise UserError(f"{name}(leader={leader}): peers are numbered 0 to {num_peers - 1}")
    recipe = base._replace(name=name, leader=leader, **seams)
    if not shared:
        return recipe._replace(num_peers=num_peers)
    for_each = lambda seam: ForEachBranch(seam, recipe.reads_student)  # noqa: E731
    lifted: dict[str, Any] = {"term": Total(for_each(recipe.term)), "init_aux": OfOneBranch(recipe.init_aux)}
    if recipe.reads_student:
        lifted |= {"weigh": for_each(recipe.weigh), "aim": for_each(recipe.aim)}
    if "teach" in recipe.reads_student:
        lifted["teach"] = for_each(recipe.teach)
    return recipe._replace(sharing=Sharing(num_peers, shared, rescaled), **lifted)


@dataclasses.dataclass(frozen=True)
class ForEachBranch:
    """A seam that reads one peer, for all branches of a member; results are stacked [P,...]."""

    seam: Callable
    reads_student: tuple[str, ...]

    def __call__(self, context: Context, *given: Any) -> PyTree:
        own: dict[str, Any] = {"student": context.student}
        if "teach" in self.reads_student:
            own["teacher"] = context.teacher
        if self.reads_student:
            own["targets"] = context.targets
        networks, w = _apart(given)

        def of_one(place: Array, own: dict, w: tuple) -> PyTree:
            peers = dataclasses.replace(context.peers, place=place)
            known = dataclasses.replace(context, peers=peers, **own)
            state = dataclasses.replace(context.state, aux=once(known, context.aux))
            return self.seam(dataclasses.replace(known, state=state), *networks, *w)

        return jax.vmap(of_one)(jnp.arange(len(context.student.logits)), own, w)


def _apart(given: tuple) -> tuple[tuple, tuple]:
    """What a seam is given beside the context: networks, the same for all branches, and weights of each."""
    is_networks = bool(given) and isinstance(given[0], Networks)
    return (given, ()) if is_networks else ((), given)


@dataclasses.dataclass(frozen=True)
class Total:
    """The sum [B] of the losses of all branches."""

    of_each: ForEachBranch

    def __call__(self, context: Context) -> Array:
        return self.of_each(context).sum(axis=0)


@dataclasses.dataclass(frozen=True)
class OfOneBranch:
    """`init_aux`, which is shown one branch of the student."""

    init_aux: Callable

    def __call__(self, key: Array, student: Outputs, teacher: TeacherOutputs) -> PyTree:
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), student)
        return self.init_aux(key, one, teacher)


# --- what several methods need ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ViewForEach:
    """A stimulus: each of P peers sees an augmentation of its own, frozen teachers the first one's."""

    num_peers: int

    def __call__(self, key: Array, batch: Batch, augment: Augment, networks: Networks) -> Batch:
        views = jnp.stack([augment(own, batch.image) for own in jax.random.split(key, self.num_peers)])
        return dataclasses.replace(batch, image=views[0], views={**batch.views, PEERS: views})


def with_own(context: Context, told: Array, own: Array) -> Array:
    """What all peers said [P,...], of which the reader's own part has its gradient."""
    return told.at[context.peers.place].set(own)


def others(context: Context) -> Array:
    """Weights [P] of the other peers, alike, 0 for the reader and for who broke down."""
    peers = context.peers
    heard = (peers.finite & (jnp.arange(len(peers.finite)) != peers.place)).astype(jnp.float32)
    return heard / jnp.maximum(heard.sum(), 1.0)


def once(context: Context, x: PyTree) -> PyTree:
    """What all branches read alike, such as the stem's features, with the gradient of one of them."""
    is_first = context.peers.place == 0
    return jax.tree.map(lambda leaf: jnp.where(is_first, leaf, jax.lax.stop_gradient(leaf)), x)


def of_cohort(context: Context, loss: Array) -> Array:
    """A loss [B] of the whole cohort: every peer has its gradient, and the first peer its value, too."""
    return loss - jnp.where(context.peers.place == 0, 0.0, jax.lax.stop_gradient(loss))
