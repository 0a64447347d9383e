"""A class for every token of a sequence that another one asks for: how words are spoken, translation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mtkd_jax.data import tokens
from mtkd_jax.tasks.kinds import Kind, Measure, Said
from mtkd_jax.types import Array

SPOKEN = "spoken"  # what a network says by itself: labels [L] of the example, at each of its places


def say(logits: Callable[[Array], Array], images: Array) -> dict[str, Array]:
    """What a network says by itself of images [B,2,L,1], greedily: {"spoken": [B,L,L]}, alike at all places.

    `logits` is the network, images -> [B,L,C].
    """
    import jax.numpy as jnp

    from mtkd_jax.fusion import rules
    from mtkd_jax.models.decoding import sayer, search, sources_of

    sources = sources_of(images)
    labels = search(sayer(lambda read: logits(read)[None], rules.mean_probs), sources, 1).labels[:, 0]
    return {SPOKEN: jnp.repeat(labels[:, None], sources.shape[1], axis=1).astype(jnp.float32)}


def exactly_right(said: Said) -> np.ndarray:
    """[E] 100 where a sequence is right as a whole, else 0.

    Each token is the most probable one behind the right ones before it: just then the same comes out greedily
    without these.
    """
    wrong = np.bincount(said.example, said.logits.argmax(axis=1) != said.labels, said.num_examples)
    return 100.0 * (wrong == 0)


def edits(said: Said) -> np.ndarray:
    """[E,2] the fewest tokens to put in, leave out or change in what a network says by itself, and the tokens
    of the reference."""
    first = np.searchsorted(said.example, np.arange(said.num_examples))
    spoken = said.beside[SPOKEN][first].astype(np.int32)
    references = np.full(spoken.shape, tokens.NONE, np.int32)
    references[said.example, said.place] = said.labels
    return np.stack([tokens.edit_distances(spoken, references), tokens.lengths(references)], axis=1)


def rate(sums: np.ndarray) -> float:
    """Edits a token of the references, in percent."""
    return float(100.0 * sums[0] / sums[1])


def tell(logits: np.ndarray, class_names: Sequence[str], beside: Mapping[str, np.ndarray]) -> list[str]:
    """The sequence that a network says, as a line: by itself where that is known."""
    labels = beside[SPOKEN][0].astype(np.int32) if SPOKEN in beside else logits.argmax(axis=1)
    return [tokens.spell([class_names[label] for label in tokens.sequence_of(labels)])]


KIND = Kind(
    place="token",
    measures=(
        Measure("exact match", exactly_right, unit="%", digits=1),
        Measure("token error rate", edits, value=rate, higher_is_better=False, unit="%", digits=1),
    ),
    tell=tell,
)
