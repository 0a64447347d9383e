"""A class for every frame of a recording, or step of a series: acoustic models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np

from mtkd_jax.tasks.kinds import Kind, Measure, PlaceOutputs


def frame_accuracy(said: PlaceOutputs) -> np.ndarray:
    """[E,2] frames of each recording whose class is found, and all of them."""
    right = said.logits.argmax(axis=-1) == said.labels
    return np.stack([_sums(said, right[:, None])[:, 0], _sums(said, np.ones((len(right), 1)))[:, 0]], axis=1)


def recording_accuracy(said: PlaceOutputs) -> np.ndarray:
    r"""[E] 1 where all frames of a recording together name the class that most of them have, else 0.

    $$\arg\max_c \sum_t \log p_{tc}$$

    as if the frames were independent and all classes alike frequent.
    """
    largest = said.logits.max(axis=-1, keepdims=True)
    wide = said.logits.astype(np.float64) - largest
    together = _sums(said, wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)))
    counts = _sums(said, np.eye(said.logits.shape[-1])[said.labels])
    return (together.argmax(axis=-1) == counts.argmax(axis=-1)).astype(np.float64)


def _sums(said: PlaceOutputs, values: np.ndarray) -> np.ndarray:
    """Values [P,d] summed over the frames of each recording, [E,d]."""
    sums = np.zeros((said.num_examples, values.shape[1]))
    np.add.at(sums, said.example, values)
    return sums


def share(sums: np.ndarray) -> float:
    """The first of two numbers as a share of the second."""
    return float(sums[0] / sums[1])


def tell(logits: np.ndarray, class_names: Sequence[str], beside: Mapping[str, np.ndarray]) -> list[str]:
    """Runs of frames of one class, counted from 1, in their order.

    Examples:
        >>> tell(np.array([[2, 0], [1, 0], [0, 3]]), ("a", "b"), {})
        ['1-2 a', '3 b']
    """
    lines, first = [], 1
    for label, run in groupby(logits.argmax(axis=-1).tolist()):
        last = first + len(list(run)) - 1
        lines.append(
            f"{first}-{last} {class_names[label]}" if last > first else f"{first} {class_names[label]}"
        )
        first = last + 1
    return lines


KIND = Kind(
    place="frame",
    measures=(
        Measure("frame accuracy", frame_accuracy, share, ends=(0.0, 1.0)),
        Measure("recording accuracy", recording_accuracy, ends=(0.0, 1.0)),
    ),
    tell=tell,
)
