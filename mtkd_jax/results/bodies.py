"""What a network is made of: bits and zeros of its weights, bits of its activations, spikes of its neurons.

Told of the weights that are evaluated and exported, whatever method trained them. A kernel, a parameter of
two axes or more but no bias, is one of few bits where its weights lie on an even grid from -1 to 1 of at most
256 values, as they are, divided by the largest, or each output feature by its own; for that it takes a
float32 more, or one a feature. Where it makes that smaller, each weight has a bit that says whether it is 0,
and those that are take no other. All else takes 32 bits a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtkd_jax.data.loading import scale
from mtkd_jax.engine import population
from mtkd_jax.models.levels import LEVELS
from mtkd_jax.models.stages import is_kernel
from mtkd_jax.types import Images, Model, Population, PyTree

REAL = 32  # bits of a float
MOST_STEPS = 255  # between -1 and 1, of a kernel of few bits
LOOKED_AT = (16, 1024)  # weights before all of them: so many tell most kernels of more bits
SAME = 1e-4  # of a step


class Stored(NamedTuple):
    """Kernels as they could be stored."""

    weights: int
    zeros: int
    num_bytes: float


def of_members(own: Population, images: np.ndarray | Images) -> dict[str, float]:
    """Of a trained population, means over its members, spikes on images [N,h,w,c] of the data:

    weight_bits      that a weight of a kernel takes
    activation_bits  of what is read by the layers that round it; 32 where none does
    zeros            share of the weights of kernels
    num_bytes        that all parameters take
    spikes, active   for an image, and share of the neurons that spike for it; of spiking networks alone
    """
    variables = jax.device_get(own.variables)  # once, and not every array of every member
    told = [of_weights(population.take(variables, m)) for m in range(own.num_members)]
    return {name: float(np.mean([one[name] for one in told])) for name in told[0]} | activity(own, images)


def of_weights(variables: PyTree) -> dict[str, float]:
    """The same, without spikes, of one network's variables."""
    leaves = _leaves(variables["params"])
    of_kernels = [(path, np.asarray(leaf)) for path, leaf in leaves if is_kernel(path, leaf)]
    real = sum(leaf.size for path, leaf in leaves if not is_kernel(path, leaf))
    kernels = [stored(leaf, of_heads=path[0].key == "heads") for path, leaf in of_kernels]
    weights, zeros, num_bytes = (sum(column) for column in zip(*kernels))
    steps = [abs(float(leaf)) for _, leaf in _leaves(variables.get(LEVELS, {})) if leaf != 0]
    return {
        "weight_bits": 8.0 * num_bytes / weights,
        "activation_bits": float(np.mean(np.log2(np.add(steps, 1.0)))) if steps else float(REAL),
        "zeros": zeros / weights,
        "num_bytes": num_bytes + REAL / 8 * real,
    }


def stored(kernel: np.ndarray, of_heads: bool = False) -> Stored:
    """A kernel [...,d] as it could be stored; each of several heads [H,D,C] is a kernel of its own."""
    if of_heads and kernel.ndim == 3:
        return Stored(*map(sum, zip(*map(stored, kernel))))
    rows = kernel.reshape(-1, kernel.shape[-1]).astype(np.float64)
    largest = np.abs(rows).max(axis=0)
    zeros = int((rows == 0).sum())
    scales = (np.ones(1), np.array([largest.max()]), largest)
    sizes = []
    for number, scale_of in zip((0, 1, len(largest)), scales):
        bits = _bits(rows / np.where(scale_of > 0, scale_of, 1.0))
        least = min(bits * rows.size, rows.size + bits * (rows.size - zeros))
        sizes.append((least + REAL * number) / 8 if bits < REAL else least / 8)
    return Stored(rows.size, zeros, min(sizes))


def _bits(values: np.ndarray) -> int:
    """Bits that tell where on a grid from -1 to 1 each value is; 32 where they lie on none."""
    if np.abs(values).max() > 1 + SAME:
        return REAL
    flat, steps = values.ravel(), np.arange(1, MOST_STEPS + 1)
    for number in LOOKED_AT:
        steps = steps[_on_grid(flat[:number], steps)]
    coarsest = next((one for one in steps if _on_grid(flat, np.asarray(one))), None)
    return REAL if coarsest is None else math.ceil(math.log2(coarsest + 1))


def _on_grid(values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Whether all values [N] lie on each of the grids of so many steps [...], [...]."""
    places = (values + 1.0) / 2.0 * steps[..., None]
    return np.abs(places - np.round(places)).max(axis=-1) < SAME * steps


def _leaves(tree: PyTree) -> list[tuple]:
    return jax.tree_util.tree_leaves_with_path(tree)


# --- spikes -------------------------------------------------------------------------------------------


def activity(own: Population, images: np.ndarray | Images) -> dict[str, float]:
    """{"spikes", "active"} of a spiking network, means over members and images; {} of any other."""
    if not hasattr(own.model.module, "time_steps"):
        return {}
    count = _spikes(own.model)
    told = population.map_blocks(lambda part: count(own.variables, part), images)
    spikes, active = np.asarray(told, np.float64).mean(axis=(0, 1))
    return {"spikes": float(spikes), "active": float(active)}


@lru_cache
def _spikes(model: Model) -> Callable[[PyTree, jax.Array], jax.Array]:
    """(variables [M,...], images [B,h,w,c]) -> [B,M,2], the spikes and the share of neurons that spike."""

    def of_one(variables: PyTree, image: jax.Array) -> jax.Array:
        outputs, _ = model.apply(variables, scale(image))
        of_stages = [rate.reshape(len(rate), -1) for rate in outputs.features.values()]
        rates = jnp.concatenate(of_stages, axis=-1)
        spikes = model.module.time_steps * rates.sum(axis=-1)
        return jnp.stack([spikes, (rates > 0).astype(jnp.float32).mean(axis=-1)], axis=-1)

    def of_all(variables: PyTree, image: jax.Array) -> jax.Array:
        each = jax.lax.map(lambda one: of_one(one, image), variables)
        return jnp.swapaxes(each, 0, 1)

    return jax.jit(of_all)
