"""Methods whose student computes with weights of few bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

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
    return _of_few_bits("xnor", _InnerKernels("xnor", _binarise), after=_clip_kernels)


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
    return _of_few_bits("quantised", _Rounded(_checked_bits("quantised", bits)))


def dorefa(*, bits: int = 2) -> Recipe:
    r"""Distil into weights of `bits` bits (2 to 8) on a grid from -1 to 1, made even by a tangent.

    $$w \rightarrow 2\, q\left(\frac{\tanh w}{2 \max |\tanh w|} + \frac{1}{2}\right) - 1, \qquad
    q(x) = \frac{\mathrm{round}((2^b - 1)\, x)}{2^b - 1}$$

    The maximum is over a kernel and is a constant to the gradient, which passes q as if it were not there.
    Which kernels it is are those of `xnor`; what is trained, kept and matched is as in `quantised`. It needs
    normalisation: no kernel keeps its scale. Activations and gradients stay real: the paper has few bits of
    all three. Raises UserError for another number of bits and for a network without such a kernel.

    Source: DoReFa-Net, Zhou et al. 2016, arXiv 1606.06160, for weights.
    """
    change = _InnerKernels("dorefa", _OnEvenGrid(_checked_bits("dorefa", bits)))
    return _of_few_bits("dorefa", change)


def wrpn(*, bits: int = 4) -> Recipe:
    r"""Distil into weights of `bits` bits (2 to 8) on a grid from -1 to 1, cut off beyond.

    $$w \rightarrow \frac{\mathrm{round}((2^{b-1} - 1)\, \mathrm{clip}(w, -1, 1))}{2^{b-1} - 1}$$

    The gradient is 1 where $|w| \le 1$, else 0. Which kernels it is are those of `xnor`; what is trained,
    kept and matched is as in `quantised`: with real teachers that are frozen it is scheme B of Apprentice
    (Mishra and Marr 2018, arXiv 1711.05852). Activations stay real, and layers are as wide as they are: the
    paper makes them wider. Raises UserError for another number of bits and for a network without such a
    kernel.

    Source: wide reduced-precision networks, Mishra et al. 2018, arXiv 1709.01134, for weights.
    """
    change = _InnerKernels("wrpn", _OnClippedGrid(_checked_bits("wrpn", bits)))
    return _of_few_bits("wrpn", change)


def _checked_bits(method: str, bits: int) -> int:
    if not 2 <= bits <= 8:
        raise UserError(f"{method}(bits={bits}): must be from 2 to 8; one bit is binary.xnor")
    return bits


def _of_few_bits(name: str, change: Callable[[PyTree], PyTree], **seams: Any) -> Recipe:
    """The recipe that computes with, and keeps, changed parameters."""
    return PLAIN._replace(name=name, view=_View(change), deploy=_Deploy(change), **seams)


@dataclasses.dataclass(frozen=True)
class _View:
    """Comparable by value, as jit keys must be."""

    change: Callable[[PyTree], PyTree]

    def __call__(self, params: PyTree, state: TrainState, key: Array) -> PyTree:
        return self.change(params)


@dataclasses.dataclass(frozen=True)
class _Deploy:
    """Comparable by value."""

    change: Callable[[PyTree], PyTree]

    def __call__(self, state: TrainState) -> PyTree:
        return {"params": self.change(state.params), **state.model_state}


@dataclasses.dataclass(frozen=True)
class _Rounded:
    """Every parameter of two axes or more, rounded. Comparable by value."""

    bits: int

    def __call__(self, params: PyTree) -> PyTree:
        return _rounded(params, self.bits)


@dataclasses.dataclass(frozen=True)
class _InnerKernels:
    """Every kernel between the first layer and the last, changed. Comparable by value."""

    method: str
    change: Callable[[Array], Array]

    def __call__(self, params: PyTree) -> PyTree:
        return _map_inner_kernels(self.method, self.change, params)


@dataclasses.dataclass(frozen=True)
class _OnEvenGrid:
    bits: int

    def __call__(self, kernel: Array) -> Array:
        bent = jnp.tanh(kernel)
        largest = jax.lax.stop_gradient(jnp.abs(bent).max())
        share = bent / (2.0 * jnp.where(largest > 0, largest, 1.0)) + 0.5
        num_steps = 2.0**self.bits - 1.0
        return 2.0 * _passing(jnp.round(num_steps * share) / num_steps, share) - 1.0


@dataclasses.dataclass(frozen=True)
class _OnClippedGrid:
    bits: int

    def __call__(self, kernel: Array) -> Array:
        num_steps = 2.0 ** (self.bits - 1) - 1.0
        return _passing(jnp.round(num_steps * kernel.clip(-1.0, 1.0)) / num_steps, _up_to_one(kernel))


def _passing(value: Array, gradient: Array) -> Array:
    """A value with the gradient of another: straight through what lies between."""
    return jax.lax.stop_gradient(value) + (gradient - jax.lax.stop_gradient(gradient))


def _up_to_one(kernel: Array) -> Array:
    """A kernel without a gradient where it is beyond -1 or 1; at the border it has one, and can come back."""
    return jnp.where(jnp.abs(kernel) <= 1.0, kernel, jax.lax.stop_gradient(kernel))


def _rounded(params: PyTree, bits: int) -> PyTree:
    def of_leaf(path: tuple, leaf: Array) -> Array:
        if leaf.ndim < 2:
            return leaf
        of_heads = leaf.ndim == 3 and path[0].key == "heads"  # [H,D,C]: each head is a layer of its own
        axes = (1,) if of_heads else tuple(range(leaf.ndim - 1))
        largest = jnp.abs(leaf).max(axis=axes, keepdims=True)
        step = jnp.where(largest > 0, largest, 1.0) / (2 ** (bits - 1) - 1)
        return _passing(step * jnp.round(leaf / step), leaf)

    return jax.tree_util.tree_map_with_path(of_leaf, params)


def _clip_kernels(state: TrainState, context: Context) -> TrainState:
    params = _map_inner_kernels("xnor", lambda kernel: kernel.clip(-1.0, 1.0), state.params)
    return dataclasses.replace(state, params=params)


def _binarise(kernel: Array) -> Array:
    size = jnp.abs(kernel)
    sign = _passing(jnp.where(kernel >= 0.0, 1.0, -1.0), _up_to_one(kernel))
    return sign * size.mean(axis=tuple(range(kernel.ndim - 1)), keepdims=True)


def _map_inner_kernels(method: str, function: Callable[[Array], Array], params: PyTree) -> PyTree:
    """The parameters with `function` of every kernel between the first layer and the last."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    kernels = sorted(p for p in paths if p.endswith("/kernel") and not p.startswith("heads/"))
    of_stem = lambda path: any(module.startswith("stem") for module in path.split("/"))  # noqa: E731
    first = [path for path in kernels if of_stem(path)] or kernels[:1]
    inner = set(kernels) - set(first)
    if not inner:
        raise UserError(
            f"binary.{method}: the network has no layer between the first and the last, which stay real; "
            "it must have one, such as mlp(hidden=(64, 64))"
        )
    changed = [function(leaf) if path in inner else leaf for path, (_, leaf) in zip(paths, leaves)]
    return jax.tree.unflatten(structure, changed)
