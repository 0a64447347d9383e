"""The convolution as a call of oneDNN's direct kernels: one bilinear primitive with its two gradients.

The gradients are the same primitive, of another kind, so that derivatives of every order and mode follow from
one table. On a CPU, where the package `onednn-cpu-gomp` is installed: `pip install 'mtkd_jax[onednn]'`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from mtkd_jax.system import foreign, onednn, terminal
from mtkd_jax.types import Array

TARGET = "mtkd_jax_convolution"

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]  # rows above and below, columns before and behind


class Geometry(NamedTuple):
    """What the shapes of two of the three arrays do not tell, and how many threads compute the third."""

    size: Pair  # of the image
    window: Pair  # of the kernel
    strides: Pair
    pads: Pads
    groups: int
    threads: int


@functools.cache
def is_available() -> bool:
    """Whether oneDNN can be called here, on a CPU."""
    if jax.default_backend() != "cpu" or not onednn.is_installed():
        return False
    try:
        foreign.register(TARGET, onednn.run)
    except (RuntimeError, ValueError) as error:  # of a jaxlib whose foreign calls are of another version
        terminal.tell(f"oneDNN is installed and cannot be called: {terminal.one_line(error)}")
        return False
    return True


def computes(x: Array, kernel: Array, strides: Pair, pads: Pads, groups: int) -> bool:
    """Whether oneDNN has kernels for `direct_conv` of these arrays, on this processor."""
    if x.dtype.name not in onednn.DTYPES:
        return False
    geometry = _geometry(x, kernel, strides, pads, groups, threads=1)
    return onednn.computes(_problem(x.shape, kernel.shape, x.dtype, "forward", geometry))


def direct_conv(
    x: Array, kernel: Array, strides: Pair, pads: Pads, groups: int = 1, threads: int = 1
) -> Array:
    """The convolution [B,h',w',d] of x [B,h,w,c] with kernel [kh,kw,c/groups,d], on `threads` >= 1 threads.

    For what `computes` says yes to, where `is_available`. Raises TypeError unless both are of one dtype.
    """
    if x.dtype != kernel.dtype:
        raise TypeError(f"direct_conv: of two dtypes, {x.dtype} and {kernel.dtype}; must be of one")
    geometry = _geometry(x, kernel, strides, pads, groups, threads)
    return conv_p.bind(x, kernel, kind="forward", geometry=geometry)


conv_p = Primitive("direct_conv")


def _geometry(x: Array, kernel: Array, strides: Pair, pads: Pads, groups: int, threads: int) -> Geometry:
    (_, height, width, _), (rows, columns, _, _) = x.shape, kernel.shape
    return Geometry((height, width), (rows, columns), strides, pads, groups, threads)


def _problem(
    left: tuple[int, ...], right: tuple[int, ...], dtype: np.dtype, kind: str, geometry: Geometry
) -> onednn.Problem:
    """The onednn.Problem of arrays of these shapes."""
    channels = right[2] * geometry.groups if kind == "image" else left[-1]
    return onednn.Problem(
        onednn.KINDS.index(kind),
        onednn.DTYPES[np.dtype(dtype).name],
        geometry.threads,
        left[0],
        *geometry.size,
        channels,
        right[-1],
        geometry.groups,
        *geometry.window,
        *geometry.strides,
        *geometry.pads[0],
        *geometry.pads[1],
    )


def _result_shape(problem: onednn.Problem) -> tuple[int, ...]:
    one = problem
    return {
        "forward": (one.batch, *one.output_size, one.features),
        "image": (one.batch, one.height, one.width, one.channels),
        "kernel": (one.window_height, one.window_width, one.channels // one.groups, one.features),
    }[onednn.KINDS[one.kind]]


@conv_p.def_abstract_eval
def _abstract(left: ShapedArray, right: ShapedArray, *, kind: str, geometry: Geometry) -> ShapedArray:
    problem = _problem(left.shape, right.shape, left.dtype, kind, geometry)
    return left.update(shape=_result_shape(problem))


@conv_p.def_impl
def _call(left: Array, right: Array, *, kind: str, geometry: Geometry) -> Array:
    problem = _problem(left.shape, right.shape, left.dtype, kind, geometry)
    result = jax.ShapeDtypeStruct(_result_shape(problem), left.dtype)
    return jax.ffi.ffi_call(TARGET, result)(left, right, problem=np.array(problem, np.int64))


mlir.register_lowering(conv_p, mlir.lower_fun(_call, multiple_results=False), platform="cpu")

# With y = forward(x, k): dx = image(dy, k) and dk = kernel(x, dy); each of them is linear in either argument.
_TRANSPOSES = {  # of a kind: the gradients by its arguments, from the gradient of its result
    "forward": (lambda of, d, x, k: of("image", d, k), lambda of, d, x, k: of("kernel", x, d)),
    "image": (lambda of, d, dy, k: of("forward", d, k), lambda of, d, dy, k: of("kernel", d, dy)),
    "kernel": (lambda of, d, x, dy: of("image", dy, d), lambda of, d, x, dy: of("forward", x, d)),
}


def _transpose(
    place: int, gradient: Array, left: Array, right: Array, *, kind: str, geometry: Geometry
) -> Array:
    def of(kind: str, *pair: Array) -> Array:
        return conv_p.bind(*pair, kind=kind, geometry=geometry)

    return _TRANSPOSES[kind][place](of, gradient, left, right)


ad.defbilinear(conv_p, functools.partial(_transpose, 0), functools.partial(_transpose, 1))


def _batched(pair: Sequence[Array], axes: Sequence[int | None], **how: Any) -> tuple[Array, int]:
    """One after the other: members of a population are not convolved at once."""
    moved = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(pair, axes)]
    batched = [n for n, axis in enumerate(axes) if axis is not None]

    def one(members: Sequence[Array]) -> Array:
        return conv_p.bind(*(dict(zip(batched, members)).get(n, moved[n]) for n in (0, 1)), **how)

    return lax.map(one, [moved[n] for n in batched]), 0


batching.primitive_batchers[conv_p] = _batched
