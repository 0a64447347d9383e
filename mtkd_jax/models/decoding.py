"""What networks of token sequences say when they read what they have said: greedy and beam search.

They are asked as they are in training, with images [2,L,1] of data/tokens.py: every step reads the whole
target as far as it is known, so that any network will do that sees nothing behind a place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtkd_jax.data import tokens
from mtkd_jax.types import Array

Say = Callable[[Array, Array], Array]  # (images [b,2,L,1], place []) -> log-probabilities [b,C] of its token


class Hypotheses(NamedTuple):
    """The best targets that were found for B sources, the most probable first."""

    labels: Array  # [B,K,L] int32: classes with END behind them, then NONE, as labels are
    log_prob: Array  # [B,K]; -inf where there are less than K, and the first one stands there again


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
    _, (labels, log_prob) = jax.lax.while_loop(goes_on, extend, (jnp.int32(0), Hypotheses(nothing, first)))
    return Hypotheses(jnp.where((log_prob > -jnp.inf)[..., None], labels, labels[:, :1]), log_prob)


def _have_ended(labels: Array) -> Array:
    return jnp.any(labels == tokens.END, axis=-1)


def sayer(logits: Callable[[Array], Array], fuse: Callable[[Array], Array]) -> Say:
    """What K networks say next, of their `logits` (images -> [K,b,L,C]) and a rule that fuses [K,b,C]."""

    def say(images: Array, place: Array) -> Array:
        fused = fuse(logits(images)[:, :, place])
        return jnp.log(jnp.maximum(fused, jnp.finfo(jnp.float32).tiny))  # a probability may underflow to 0

    return say


def sources_of(images: Array) -> Array:
    """The sources [B,L] int32 of images [B,2,L,1]."""
    return images[:, 0, :, 0].astype(jnp.int32)
