"""Methods whose student computes with weights of few bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mtkd_jax.methods.seams import PLAIN
from mtkd_jax.types import Array, Context, PyTree, Recipe, TrainState, UserError


def xnor() -> Recipe:
    r"""Distil into binary weights: each kernel is its signs times one number for every output channel.

    $$w \rightarrow \mathrm{sign}(w) \cdot \mathrm{mean}\, |w|$$

    The mean is over all axes but the last, and $\mathrm{sign}(0) = 1$. This is done to every leaf named
    "kernel" but those of the last layer ("heads") and of the first: of all modules whose name starts with
    "stem" or, where there is none, the first kernel by name ("conv1", "dense1", "stage1_conv1"). In the
    gradient $\partial\, \mathrm{sign}(w) / \partial w$ is 1 where $|w| \le 1$, else 0. Real weights are
    trained, and clipped to [-1,1] after every step; binary ones are validated, reported and exported.
    Activations stay real: the paper's BWN. The loss is that of `output_avg`; with alpha = 1 it is a binary
    network without teachers. Raises UserError for a network that has no kernel in between.

    Source: XNOR-Net, Rastegari et al. 2016, arXiv 1603.05279.
    """
    return PLAIN._replace(name="xnor", view=_binary_view, after=_clip_kernels, deploy=_deploy_binary)


def quantised(*, bits: int = 8) -> Recipe:
    r"""Distil into weights of `bits` bits (2 to 8), trained as they will be rounded.

    $$w \rightarrow s \cdot \mathrm{round}(w / s), \qquad s = \max |w| / (2^{b-1} - 1)$$

    The maximum is over what leads to one output feature; every parameter of two axes or more is rounded, the
    first layer and the heads among them, as `python -m mtkd_jax.export --forms int8` rounds. The gradient is
    that of $w$ (straight through). Real weights are trained; rounded ones are validated, reported and
    exported. Activations stay real. The loss is that of `output_avg`; with alpha = 1 it is a network of few
    bits without teachers. Raises UserError for another number of bits.

    Source: Hubara et al. 2016, arXiv 1609.07061, for weights and with a scale for each feature; the rounding
    of one scale is that of Jacob et al. 2018, arXiv 1712.05877.
    """
    if not 2 <= bits <= 8:
        raise UserError(f"quantised(bits={bits}): must be from 2 to 8; one bit is binary.xnor")
    return PLAIN._replace(name="quantised", view=_RoundedView(bits), deploy=_DeployRounded(bits))


@dataclasses.dataclass(frozen=True)
class _RoundedView:
    """The view of `quantised`. Comparable by value, as jit keys must be."""

    bits: int

    def __call__(self, params: PyTree, state: TrainState, key: Array) -> PyTree:
        return _rounded(params, self.bits)


@dataclasses.dataclass(frozen=True)
class _DeployRounded:
    """What `quantised` keeps. Comparable by value."""

    bits: int

    def __call__(self, state: TrainState) -> PyTree:
        return {"params": _rounded(state.params, self.bits), **state.model_state}


def _rounded(params: PyTree, bits: int) -> PyTree:
    def of_leaf(path: tuple, leaf: Array) -> Array:
        if leaf.ndim < 2:
            return leaf
        of_heads = leaf.ndim == 3 and path[0].key == "heads"  # [H,D,C]: each head is a layer of its own
        axes = (1,) if of_heads else tuple(range(leaf.ndim - 1))
        largest = jnp.abs(leaf).max(axis=axes, keepdims=True)
        step = jnp.where(largest > 0, largest, 1.0) / (2 ** (bits - 1) - 1)
        rounded = jax.lax.stop_gradient(step * jnp.round(leaf / step))
        return rounded + (leaf - jax.lax.stop_gradient(leaf))  # exactly 0, with the gradient of the leaf

    return jax.tree_util.tree_map_with_path(of_leaf, params)


def _binary_view(params: PyTree, state: TrainState, key: Array) -> PyTree:
    return _map_inner_kernels(_binarise, params)


def _clip_kernels(state: TrainState, context: Context) -> TrainState:
    params = _map_inner_kernels(lambda kernel: kernel.clip(-1.0, 1.0), state.params)
    return dataclasses.replace(state, params=params)


def _deploy_binary(state: TrainState) -> PyTree:
    return {"params": _map_inner_kernels(_binarise, state.params), **state.model_state}


def _binarise(kernel: Array) -> Array:
    size = jnp.abs(kernel)
    passing = jnp.where(size <= 1.0, kernel, jax.lax.stop_gradient(kernel))
    # The difference is exactly 0 and has the gradient of `passing`.
    sign = jnp.where(kernel >= 0.0, 1.0, -1.0) + (passing - jax.lax.stop_gradient(passing))
    return sign * size.mean(axis=tuple(range(kernel.ndim - 1)), keepdims=True)


def _map_inner_kernels(function: Callable[[Array], Array], params: PyTree) -> PyTree:
    """The parameters with `function` of every kernel between the first layer and the last."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    kernels = sorted(p for p in paths if p.endswith("/kernel") and not p.startswith("heads/"))
    of_stem = lambda path: any(module.startswith("stem") for module in path.split("/"))  # noqa: E731
    first = [path for path in kernels if of_stem(path)] or kernels[:1]
    inner = set(kernels) - set(first)
    if not inner:
        raise UserError(
            "binary.xnor: the network has no layer between the first and the last, which stay real; "
            "it must have one, such as mlp(hidden=(64, 64))"
        )
    changed = [function(leaf) if path in inner else leaf for path, (_, leaf) in zip(paths, leaves)]
    return jax.tree.unflatten(structure, changed)
