"""What teachers say in the place of the references: sequence-level distillation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from mtkd_jax.data import tokens
from mtkd_jax.data.loading import Split
from mtkd_jax.engine import decoding
from mtkd_jax.types import Ensemble

Choose = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of targets [n,K,L], references [n,L]: [n,L]


def most_probable(targets: np.ndarray, references: np.ndarray) -> np.ndarray:
    """The first of every beam."""
    return targets[:, 0]


def nearest(targets: np.ndarray, references: np.ndarray) -> np.ndarray:
    r"""Of every beam the target that is most like the reference, of several the most probable.

    $$\tilde{y} = \arg\min_{k} d(y_k, y)$$

    Here $d$ is the number of edits. Kim and Rush take a smoothed BLEU of sentences, whose runs of four tokens
    hardly exist in targets as short as words; a beam differs in one or two tokens, which edits tell apart.
    """
    num, num_beams, length = targets.shape
    distances = tokens.edit_distances(
        targets.reshape(-1, length), np.repeat(references, num_beams, axis=0)
    ).reshape(num, num_beams)
    return targets[np.arange(num), distances.argmin(axis=1)]


def with_targets(split: Split, targets: np.ndarray, choose: Choose) -> Split:
    """The split with one of `targets` [n,K,L] for every labelled training example, in order."""
    dataset, rows = split.dataset, split.train
    images, labels = np.array(dataset.train_images), np.array(dataset.train_labels)
    labels[rows] = choose(targets, labels[rows])
    images[rows] = tokens.with_targets(images[rows], labels[rows])
    return dataclasses.replace(
        split, dataset=dataclasses.replace(dataset, train_images=images, train_labels=labels)
    )


class Beams:
    """The targets [n,K,L] that teachers say together of the labelled training examples, searched once."""

    def __init__(self, split: Split, num_beams: int):
        self._split, self._num_beams = split, num_beams
        self._ensemble: Ensemble | None = None
        self._found = np.empty(0)

    def of(self, ensemble: Ensemble) -> np.ndarray:
        """Those of an ensemble; again the same ones where it was asked for last."""
        same = self._ensemble is not None and [id(one.variables) for one in self._ensemble] == [
            id(one.variables) for one in ensemble
        ]
        if not same:
            images = np.asarray(self._split.dataset.train_images)[self._split.train]
            self._found, self._ensemble = decoding.beams(ensemble, images, self._num_beams), ensemble
        return self._found
