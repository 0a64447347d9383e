"""Methods whose student computes with weights, or weights and activations, of few bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from mtkd_jax.methods.peers import dml
from mtkd_jax.methods.seams import PLAIN, HardAnd, hard_loss, soft_loss
from mtkd_jax.models.levels import INPUT, LEVELS, SIGNS
from mtkd_jax.models.own import NETWORK
from mtkd_jax.models.stages import first_kernels, is_kernel
from mtkd_jax.types import (
    Array,
    Context,
    PyTree,
    Recipe,
    TrainState,
    UserError,
    path_of,
)

Change = Callable[[PyTree, Mapping[str, Array]], PyTree]  # (variables, hyper) -> variables to compute with


def xnor() -> Recipe:
    r"""Distil into binary weights: each kernel is its signs times one number for every output channel.

    $$w \rightarrow \mathrm{sign}(w) \cdot \mathrm{mean}\, |w|$$

    The mean is over all axes but the last, and $\mathrm{sign}(0) = 1$. This is done to every leaf named
    "kernel" but those of the last layer ("heads") and those that read the input: of all modules whose name
    starts with "stem", of the whitening layer of `speedy`, of both ways through the first block of
    `series_resnet`, of the gates of the first layer of `lstm`, and of any other network the first by name
    ("conv1", "dense1"). In the gradient $\partial\, \mathrm{sign}(w) / \partial w$ is 1 where $|w| \le 1$,
    else 0. Real weights are trained, and clipped to [-1,1] after every step; binary ones are validated,
    reported and exported. Activations stay real: the paper's BWN; those of `qnn` are signs, too. The loss is
    that of `output_avg`; with alpha = 1 it is a binary network without teachers. Raises UserError for a
    network that has no kernel in between.

    Source: XNOR-Net, Rastegari et al. 2016, arXiv 1603.05279.
    """
    return _of_few_bits("xnor", _InnerKernels("xnor", _binarise), after=_ClipKernels("xnor"))


def qnn() -> Recipe:
    r"""Distil into signs alone: of the weights, and of the activations that are read by them.

    $$w \rightarrow \mathrm{sign}(w), \qquad x \rightarrow \mathrm{sign}(x)$$

    In the gradient $\partial\, \mathrm{sign}(x) / \partial x$ is 1 where $|x| \le 1$, else 0. Which kernels
    it is are those of `xnor`, and so are what is clipped, kept and matched, and $\mathrm{sign}(0) = 1$ of a
    weight. That of an activation is -1: layers here read a ReLU, whose sign is then that of what the ReLU is
    given, as in the paper, but for the gradient, which ends at 0 there and in the paper at -1. It needs
    normalisation: no kernel keeps its scale. Raises UserError for a network that has no kernel in between,
    for one that is not of this package, and for `lstm`.

    Source: quantised neural networks, Hubara et al. 2016, arXiv 1609.07061; there the weights of the first
    and the last layer are binary, too.
    """
    change = _InnerKernels("qnn", _sign_of_kernel, rounds_inputs=True)
    return _of_few_bits("qnn", change, after=_ClipKernels("qnn"), hyper=(("input_steps", SIGNS),))


def quantised(*, bits: int = 8) -> Recipe:
    r"""Distil into weights of `bits` bits (2 to 8), trained as they will be rounded.

    $$w \rightarrow s \cdot \mathrm{round}(w / s), \qquad s = \max |w| / (2^{b-1} - 1)$$

    The maximum is over what leads to one output feature; every parameter of two axes or more but biases is
    rounded, the first layer and the heads among them, as `python -m mtkd_jax.export --forms int8` rounds. The
    gradient is that of $w$ (straight through). Real weights are trained; rounded ones are validated,
    reported and exported. Activations stay real. The loss is that of `output_avg`; with alpha = 1 it is a
    network of few bits without teachers. Raises UserError for another number of bits.

    Source: Hubara et al. 2016, arXiv 1609.07061, for weights and with a scale for each feature; the rounding
    of one scale is that of Jacob et al. 2018, arXiv 1712.05877.
    """
    _check_bits("quantised", bits)
    return _of_few_bits("quantised", _Rounded(), hyper=(("weight_steps", 2.0 ** (bits - 1) - 1.0),))


def dorefa(*, bits: int = 2, activations: int = 0) -> Recipe:
    r"""Distil into weights of `bits` bits (2 to 8) on a grid from -1 to 1, made even by a tangent.

    $$w \rightarrow 2\, q_b\left(\frac{\tanh w}{2 \max |\tanh w|} + \frac{1}{2}\right) - 1, \qquad
    q_b(x) = \frac{\mathrm{round}((2^b - 1)\, x)}{2^b - 1}$$

    The maximum is over a kernel and is a constant to the gradient, which passes q as if it were not there.
    Which kernels it is are those of `xnor`; what is trained, kept and matched is as in `quantised`. It needs
    normalisation: no kernel keeps its scale. With `activations` from 1 to 8 the layers of these kernels read
    activations of so many bits a,

    $$x \rightarrow q_a(\mathrm{clip}(x, 0, 1)),$$

    whose gradient is 1 in [0,1] and 0 elsewhere, in training, in the report and in what is exported: made for
    layers that read a ReLU. At 0 activations stay real, and gradients always do: the paper has few bits of
    all three. Students of other bits are members of one population. Raises UserError for other numbers of
    bits, for a network without such a kernel and, with `activations`, for `lstm` and one that is not of this
    package.

    Source: DoReFa-Net, Zhou et al. 2016, arXiv 1606.06160.
    """
    _check_bits("dorefa", bits, activations)
    return _on_grid("dorefa", _EvenGrid(), 2.0**bits - 1.0, activations)


def wrpn(*, bits: int = 4, activations: int = 0) -> Recipe:
    r"""Distil into weights of `bits` bits (2 to 8) on a grid from -1 to 1, cut off beyond.

    $$w \rightarrow \frac{\mathrm{round}((2^{b-1} - 1)\, \mathrm{clip}(w, -1, 1))}{2^{b-1} - 1}$$

    The gradient is 1 where $|w| \le 1$, else 0. Which kernels it is are those of `xnor`; what is trained,
    kept and matched is as in `quantised`, and `activations` are those of `dorefa`. With real teachers that
    are frozen it is scheme B of Apprentice; A is `binary.apprentice` and C the plan `fine_tuned`. Layers are
    as wide as they are: the paper makes them wider. Raises UserError as `dorefa` does.

    Source: wide reduced-precision networks, Mishra et al. 2018, arXiv 1709.01134; Apprentice, Mishra and Marr
    2018, arXiv 1711.05852.
    """
    _check_bits("wrpn", bits, activations)
    return _on_grid("wrpn", _ClippedGrid(), 2.0 ** (bits - 1) - 1.0, activations)


def apprentice(*, bits: int = 4, activations: int = 0) -> Recipe:
    r"""Learn with few bits from a real network of the same architecture that learns at the same time.

    $$\ell_0 = \alpha\, \mathrm{CE}(y, z_0) + (1 - \alpha)\, T^2\, \mathrm{KL}(\mathrm{softmax}(z_1 / T)
    \parallel \mathrm{softmax}(z_0 / T)), \qquad \ell_1 = \mathrm{CE}(y, z_1)$$

    Peer 0, the apprentice, has weights of `bits` bits (2 to 8) and activations of `activations` (1 to 8, or 0
    for real ones; the paper has 8), rounded as in `wrpn`; peer 1 is real and learns from labels alone. No
    trained teacher is asked. The apprentice is evaluated and exported. In the paper T = 1, and the divergence
    pulls the real network, too; here it has no gradient by its target. Raises UserError as `dorefa` does.

    Source: scheme A of Apprentice, Mishra and Marr 2018, arXiv 1711.05852.
    """
    _check_bits("apprentice", bits, activations)
    change = _OfApprentice(_grid("apprentice", _ClippedGrid(), activations))
    return dml()._replace(
        name="apprentice",
        term=_hard_or_both,
        view=_View(change),
        deploy=_Deploy(change),
        hyper=_steps(2.0 ** (bits - 1) - 1.0, activations),
    )


def _check_bits(method: str, bits: int, activations: int = 0) -> None:
    if not 2 <= bits <= 8:
        raise UserError(f"{method}(bits={bits}): must be from 2 to 8; one bit is binary.xnor or qnn")
    if not 0 <= activations <= 8:
        raise UserError(f"{method}(activations={activations}): must be from 1 to 8 bits, or 0 for real ones")


def _on_grid(method: str, round_kernel: Callable, weight_steps: float, activations: int) -> Recipe:
    """Inner kernels rounded to a grid and, unless `activations` is 0, the inputs of their layers."""
    change = _grid(method, round_kernel, activations)
    return _of_few_bits(method, change, hyper=_steps(weight_steps, activations))


def _grid(method: str, round_kernel: Callable, activations: int) -> Change:
    return _InnerKernels(method, round_kernel, rounds_inputs=activations > 0)


def _steps(weight_steps: float, activations: int) -> tuple[tuple[str, float], ...]:
    """How many steps the grids have: traced, so that students of other bits are members of one population."""
    return (("weight_steps", weight_steps), ("input_steps", 2.0**activations - 1.0))


def _of_few_bits(name: str, change: Change, **seams: Any) -> Recipe:
    """The recipe that computes with, and keeps, changed variables."""
    return PLAIN._replace(name=name, view=_View(change), deploy=_Deploy(change), **seams)


@dataclasses.dataclass(frozen=True)
class _View:
    """Comparable by value, as jit keys must be."""

    change: Change

    def __call__(
        self, variables: PyTree, state: TrainState, hyper: Mapping[str, Array], key: Array
    ) -> PyTree:
        return self.change(variables, hyper)


@dataclasses.dataclass(frozen=True)
class _Deploy:
    """Comparable by value."""

    change: Change

    def __call__(self, state: TrainState, hyper: Mapping[str, Array]) -> PyTree:
        return self.change({"params": state.params, **state.model_state}, hyper)


@dataclasses.dataclass(frozen=True)
class _Rounded:
    """Every kernel, rounded. Comparable by value."""

    def __call__(self, variables: PyTree, hyper: Mapping[str, Array]) -> PyTree:
        return {**variables, "params": _rounded(variables["params"], hyper["weight_steps"])}


@dataclasses.dataclass(frozen=True)
class _InnerKernels:
    """Every kernel between the first layer and the last, changed; also what is read by it, if it is asked.

    Comparable by value.
    """

    method: str
    change: Callable[[Array, Mapping[str, Array]], Array]  # (kernel, hyper) -> kernel
    rounds_inputs: bool = False

    def __call__(self, variables: PyTree, hyper: Mapping[str, Array]) -> PyTree:
        params = variables["params"]
        change = lambda kernel: self.change(kernel, hyper)  # noqa: E731
        levels = {LEVELS: _levels(self.method, params, hyper["input_steps"])} if self.rounds_inputs else {}
        return {**variables, "params": _map_inner_kernels(self.method, change, params), **levels}


@dataclasses.dataclass(frozen=True)
class _OfApprentice:
    """A change of peer 0 alone. Comparable by value."""

    change: Change

    def __call__(self, variables: PyTree, hyper: Mapping[str, Array]) -> PyTree:
        is_apprentice = (hyper["place"] == 0).astype(jnp.float32)
        own = {name: is_apprentice * hyper[name] for name in ("weight_steps", "input_steps")}
        return self.change(variables, {**hyper, **own})


@dataclasses.dataclass(frozen=True)
class _EvenGrid:
    def __call__(self, kernel: Array, hyper: Mapping[str, Array]) -> Array:
        steps = hyper["weight_steps"]
        bent = jnp.tanh(kernel)
        largest = jax.lax.stop_gradient(jnp.abs(bent).max())
        share = bent / (2.0 * jnp.where(largest > 0, largest, 1.0)) + 0.5
        return 2.0 * _passing(jnp.round(steps * share) / steps, share) - 1.0


@dataclasses.dataclass(frozen=True)
class _ClippedGrid:
    """With 0 steps a kernel stays as it is."""

    def __call__(self, kernel: Array, hyper: Mapping[str, Array]) -> Array:
        steps = hyper["weight_steps"]
        rounded = jnp.round(steps * kernel.clip(-1.0, 1.0)) / jnp.maximum(steps, 1.0)
        return jnp.where(steps > 0, _passing(rounded, _up_to_one(kernel)), kernel)


def _passing(value: Array, gradient: Array) -> Array:
    """A value with the gradient of another: straight through what lies between."""
    return jax.lax.stop_gradient(value) + (gradient - jax.lax.stop_gradient(gradient))


def _up_to_one(kernel: Array) -> Array:
    """A kernel without a gradient where it is beyond -1 or 1; at the border it has one, and can come back."""
    return jnp.where(jnp.abs(kernel) <= 1.0, kernel, jax.lax.stop_gradient(kernel))


def _rounded(params: PyTree, steps: Array) -> PyTree:
    def of_leaf(path: tuple, leaf: Array) -> Array:
        if not is_kernel(path, leaf):
            return leaf
        of_heads = leaf.ndim == 3 and path[0].key == "heads"  # [H,D,C]: each head is a layer of its own
        axes = (1,) if of_heads else tuple(range(leaf.ndim - 1))
        largest = jnp.abs(leaf).max(axis=axes, keepdims=True)
        step = jnp.where(largest > 0, largest, 1.0) / steps
        return _passing(step * jnp.round(leaf / step), leaf)

    return jax.tree_util.tree_map_with_path(of_leaf, params)


@dataclasses.dataclass(frozen=True)
class _ClipKernels:
    """An `after` that keeps the inner kernels within [-1,1]. Comparable by value."""

    method: str

    def __call__(self, state: TrainState, context: Context) -> TrainState:
        params = _map_inner_kernels(self.method, lambda kernel: kernel.clip(-1.0, 1.0), state.params)
        return dataclasses.replace(state, params=params)


def _binarise(kernel: Array, hyper: Mapping[str, Array]) -> Array:
    size = jnp.abs(kernel)
    return _sign_of_kernel(kernel, hyper) * size.mean(axis=tuple(range(kernel.ndim - 1)), keepdims=True)


def _sign_of_kernel(kernel: Array, hyper: Mapping[str, Array]) -> Array:
    return _passing(jnp.where(kernel >= 0.0, 1.0, -1.0), _up_to_one(kernel))


def _map_inner_kernels(method: str, function: Callable[[Array], Array], params: PyTree) -> PyTree:
    """The parameters with `function` of every kernel between the first layer and the last."""
    inner = _inner_kernels(method, params)

    def of_leaf(path: tuple, leaf: Array) -> Array:
        return function(leaf) if path_of(path) in inner else leaf

    return jax.tree_util.tree_map_with_path(of_leaf, params)


def _levels(method: str, params: PyTree, steps: Array) -> PyTree:
    """The variables by which a network rounds what is read by the layers between the first and the last."""
    layers = [tuple(path.split("/")[:-1]) for path in _inner_kernels(method, params)]
    if any(layer[0] == NETWORK for layer in layers):
        raise UserError(
            f"binary.{method}: the layers of a network of one's own cannot be given activations of few bits; "
            "must be a network of the package, or a method of real activations, such as binary.xnor"
        )
    return unflatten_dict({(*layer, INPUT): jnp.asarray(steps, jnp.float32) for layer in layers})


def _inner_kernels(method: str, params: PyTree) -> set[str]:
    """The paths of the kernels between the first layer and the last; UserError where there is none."""
    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    kernels = [p for p in paths if p.endswith("/kernel") and not p.startswith("heads/")]
    inner = set(kernels) - first_kernels(paths)
    if not inner:
        raise UserError(
            f"binary.{method}: the network has no layer between the first and the last, which stay real; "
            "it must have one, such as mlp(hidden=(64, 64))"
        )
    return inner


def _hard_or_both(context: Context) -> Array:
    """The loss [B] of a real peer, who learns from labels alone, or of its apprentice."""
    return jnp.where(context.peers.place == 0, HardAnd(soft_loss)(context), hard_loss(context))
