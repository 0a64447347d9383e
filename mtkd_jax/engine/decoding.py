"""Targets that an ensemble finds together, block by block."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from mtkd_jax import mesh
from mtkd_jax.data import tokens
from mtkd_jax.engine import population
from mtkd_jax.fusion import rules
from mtkd_jax.models.decoding import sayer, search, sources_of
from mtkd_jax.types import Array, Ensemble, Model, PyTree

BLOCK = 256  # sources that are searched at once: all go on until the last of them has ended


def beams(ensemble: Ensemble, images: np.ndarray, num_beams: int) -> np.ndarray:
    """The targets that all teachers together find the most probable for images [N,2,L,1]: labels [N,K,L].

    At every place their mean probabilities count, and all go on from one prefix.
    """
    models, variables = population.frozen_parts(ensemble)
    search_block = _beams(models, num_beams)
    # The shortest sources first: a block goes on as long as one of its targets.
    order = np.argsort((images[:, 0, :, 0] != tokens.PAD).sum(axis=1), kind="stable")
    found = population.map_blocks(lambda part: search_block(variables, part), images[order], size=BLOCK)
    back = np.empty_like(found)
    back[order] = found
    return back


@lru_cache
def _beams(models: tuple[Model, ...], num_beams: int) -> Callable:
    def of_all(variables: tuple[PyTree, ...], images: Array) -> Array:
        def logits(images: Array) -> Array:
            return population.apply_ensemble(models, variables, images).logits

        return search(sayer(logits, rules.mean_probs), sources_of(images), num_beams).labels

    return mesh.jit(of_all)
