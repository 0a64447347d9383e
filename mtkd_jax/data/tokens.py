"""How a pair of token sequences lies in an image and in labels, and back.

An example is an image [2,L,1] float32 of token numbers: row 0 is the source, filled up with PAD; row 1 is
what the decoder reads, the target shifted right by one place behind END. Its labels [L] are the target's
classes with END behind them, and NONE beyond. A target token is its class; END is class 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from mtkd_jax.types import Array

PAD, UNKNOWN = 0, 1  # of a source
END = 0  # of a target: behind its last token, and before the first one
NONE = -1  # of labels: no place there
RESERVED = 2  # numbers of a source that stand for no token of its own
END_NAME, UNKNOWN_NAME = "<end>", "<unknown>"
BLANK_NAME = "\u2423"  # how a blank is called that is a token


def lay_out(
    sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images [N,2,L,1] float32 and labels [N,L] int32 of sources <= L and targets < L tokens long.

    Examples:
        >>> images, labels = lay_out([[2, 3]], [[1, 1]], length=4)
        >>> images[0, :, :, 0].tolist(), labels.tolist()
        ([[2.0, 3.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]], [[1, 1, 0, -1]])
    """
    rows = np.full((len(sources), length), PAD, np.int32)
    labels = np.full((len(targets), length), NONE, np.int32)
    for row, label, source, target in zip(rows, labels, sources, targets):
        row[: len(source)] = source
        label[: len(target)] = target
        label[len(target)] = END
    return with_targets(as_images(rows), labels), labels


def as_images(sources: np.ndarray) -> np.ndarray:
    """Images [N,2,L,1] of sources [N,L] whose targets nobody knows."""
    rows = np.stack([sources, np.full_like(sources, END)], axis=1)
    return rows[..., None].astype(np.float32)


def with_targets(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The images [N,2,L,1] with what the decoder reads for labels [N,L]."""
    rows = np.stack([images[:, 0, :, 0], np.asarray(shift_right(labels))], axis=1)
    return rows[..., None].astype(np.float32)


def shift_right(labels: Array | np.ndarray) -> Array:
    """What the decoder reads [...,L] where it is to say `labels` [...,L]: END, then all but their last."""
    before = jnp.asarray(labels)[..., :-1]
    begin = jnp.full((*before.shape[:-1], 1), END, before.dtype)
    return jnp.concatenate([begin, jnp.where(before < 0, END, before)], axis=-1)


def sequence_of(labels: np.ndarray) -> tuple[int, ...]:
    """The target's classes before the first END of labels [L], or before the first NONE.

    Examples:
        >>> sequence_of(np.array([3, 1, 0, -1]))
        (3, 1)
    """
    (ends,) = np.nonzero(labels <= END)
    return tuple(labels[: ends[0] if len(ends) else len(labels)].tolist())


def lengths(labels: np.ndarray) -> np.ndarray:
    """[N] how many tokens stand before the end of labels [N,L]."""
    ended = labels <= END
    return np.where(ended.any(axis=1), ended.argmax(axis=1), labels.shape[1])


def edit_distances(labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[N] the fewest tokens to put in, leave out or change that make labels [N,L] others [N,L].

    Ends do not count. Source: Levenshtein 1966.

    Examples:
        >>> edit_distances(np.array([[1, 2, 3, 0]]), np.array([[2, 3, 4, 0]])).tolist()
        [2]
    """
    num, length = labels.shape
    row = np.tile(np.arange(length + 1), (num, 1))  # of no label, and so many of the others
    table = [row]
    for place in range(length):
        above, row = row, np.empty_like(row)
        row[:, 0] = place + 1
        changed = labels[:, place, None] != others
        for other in range(length):
            kept = above[:, other] + changed[:, other]
            row[:, other + 1] = np.minimum(kept, np.minimum(above[:, other + 1], row[:, other]) + 1)
        table.append(row)
    return np.stack(table)[lengths(labels), np.arange(num), lengths(others)]


def characters(text: str) -> list[str]:
    """A text's characters as tokens, blanks by the name that they have.

    Examples:
        >>> characters("a b")
        ['a', '␣', 'b']
    """
    return [BLANK_NAME if one.isspace() else one for one in text]


UNITS: dict[str, Callable[[str], list[str]]] = {"characters": characters, "words": str.split}


def spell(tokens: Sequence[str]) -> str:
    """Tokens as a line: side by side where each is a character, else with blanks between them.

    Examples:
        >>> spell(["c", "a", "t"]), spell(["K", "AE", "T"])
        ('cat', 'K AE T')
    """
    return ("" if all(len(token) == 1 for token in tokens) else " ").join(tokens)
