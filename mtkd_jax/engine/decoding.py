"""What networks of token sequences say when they read what they have said: greedy and beam search.

They are asked as they are in training, with images [2,L,1] of data/tokens.py: every step reads the whole
target as far as it is known, so that any network will do that sees nothing behind a place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtkd_jax import mesh
from mtkd_jax.data import tokens
from mtkd_jax.engine import population
from mtkd_jax.engine.population import natural_member_loop, over_members
from mtkd_jax.fusion import rules
from mtkd_jax.types import Array, Ensemble, Model, Population, PyTree

Say = Callable[[Array, Array], Array]  # (images [b,2,L,1], place []) -> log-probabilities [b,C] of its token
BLOCK = 256  # sources that are searched at once: all go on until the last of them has ended


class Hypotheses(NamedTuple):
    """The best targets that were found for B sources, the most probable first."""

    labels: Array  # [B,K,L] int32: classes with END behind them, then NONE, as labels are
    log_prob: Array  # [B,K]; -inf where there are less than K


def search(say: Say, sources: Array, num_beams: int) -> Hypotheses:
    r"""The K = `num_beams` most probable targets of sources [B,L] int32 that a beam of K finds.

    $$\ln P(y \mid x) = \sum_t \ln p(y_t \mid y_{<t}, x)$$

    At every place the K best of all continuations of the K best beginnings are kept; one that has ended stays
    what it is. Ends at the last place of L at the latest, without a reward for length. A beam of 1 is greedy
    search. Pure; stops when all have ended.
    """
    batch, length = sources.shape
    read = jnp.repeat(sources, num_beams, axis=0)

    def extend(state: tuple[Array, Hypotheses]) -> tuple[Array, Hypotheses]:
        place, (labels, log_prob) = state
        targets = tokens.shift_right(labels).reshape(-1, length)
        images = jnp.stack([read, targets], axis=1)[..., None].astype(jnp.float32)
        of_next = say(images, place)
        num_classes = of_next.shape[-1]
        ends = (jnp.arange(num_classes) == tokens.END)[None]
        of_next = jnp.where((place == length - 1) & ~ends, -jnp.inf, of_next)
        of_next = of_next.reshape(batch, num_beams, num_classes)
        of_next = jnp.where(_have_ended(labels)[..., None], jnp.where(ends, 0.0, -jnp.inf)[None], of_next)
        scores = (log_prob[..., None] + of_next).reshape(batch, -1)
        log_prob, best = jax.lax.top_k(scores, num_beams)
        begun = jnp.take_along_axis(labels, best[..., None] // num_classes, axis=1)
        token = jnp.where(_have_ended(begun), tokens.NONE, best % num_classes)
        return place + 1, Hypotheses(begun.at[:, :, place].set(token), log_prob)

    def goes_on(state: tuple[Array, Hypotheses]) -> Array:
        place, (labels, log_prob) = state
        return (place < length) & jnp.any(~_have_ended(labels) & (log_prob > -jnp.inf))

    nothing = jnp.full((batch, num_beams, length), tokens.NONE, jnp.int32)
    first = jnp.where(jnp.arange(num_beams) == 0, 0.0, -jnp.inf)  # there is one beginning alone
    first = jnp.broadcast_to(first[None], (batch, num_beams)).astype(jnp.float32)
    return jax.lax.while_loop(goes_on, extend, (jnp.int32(0), Hypotheses(nothing, first)))[1]


def _have_ended(labels: Array) -> Array:
    return jnp.any(labels == tokens.END, axis=-1)


def greedy(networks: Population, images: np.ndarray) -> np.ndarray:
    """What every member says of images [N,2,L,1], a token after the other: labels [M,N,L] int32."""
    found = _greedy(networks.model)
    return np.swapaxes(_in_blocks(lambda part: found(networks.variables, part), images), 0, 1)


def beams(ensemble: Ensemble, images: np.ndarray, num_beams: int, rule: str = "mean_probs") -> np.ndarray:
    """The targets that all teachers together find the most probable for images [N,2,L,1]: labels [N,K,L].

    At every place they are fused by a `rule` of probabilities that is not fitted, and go on from one prefix.
    """
    models, variables = population.frozen_parts(ensemble)
    found = _beams(models, num_beams, rule)
    return _in_blocks(lambda part: found(variables, part), images)


def _in_blocks(function: Callable, images: np.ndarray) -> np.ndarray:
    """`population.map_blocks`, the shortest sources first: a block goes on as long as one of its targets."""
    order = np.argsort((images[:, 0, :, 0] != tokens.PAD).sum(axis=1), kind="stable")
    found = population.map_blocks(function, images[order], size=BLOCK)
    back = np.empty_like(found)
    back[order] = found
    return back


@lru_cache
def _greedy(model: Model) -> Callable:
    def of_one(variables: PyTree, images: Array) -> Array:
        say = partial(_say, lambda images: model.apply(variables, images)[0].logits[None], rules.mean_probs)
        return search(say, _sources(images), 1).labels[:, 0]

    def of_all(variables: PyTree, images: Array) -> Array:
        each = over_members(of_one, natural_member_loop(model))
        return jnp.swapaxes(each(variables, images), 0, 1)

    return mesh.jit(of_all)


@lru_cache
def _beams(models: tuple[Model, ...], num_beams: int, rule: str) -> Callable:
    def of_all(variables: tuple[PyTree, ...], images: Array) -> Array:
        def logits(images: Array) -> Array:
            return population.apply_ensemble(models, variables, images).logits

        return search(partial(_say, logits, rules.rule(rule)), _sources(images), num_beams).labels

    return mesh.jit(of_all)


def _say(logits: Callable[[Array], Array], fuse: Callable, images: Array, place: Array) -> Array:
    """Log-probabilities [b,C] at one place, of networks' logits [K,b,L,C] fused."""
    fused = fuse(logits(images)[:, :, place])
    return jnp.log(jnp.maximum(fused, jnp.finfo(jnp.float32).tiny))  # a probability may underflow to 0


def _sources(images: Array) -> Array:
    return images[:, 0, :, 0].astype(jnp.int32)
