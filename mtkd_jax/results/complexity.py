r"""Supervision complexity: how hard targets are for a network to learn, by its empirical tangent kernel.

$$\mathrm{SC} = \frac{1}{n} \sqrt{Y^\top K^{-1} Y \cdot \mathrm{tr}\, K}, \qquad
K_{ic,jd} = \left\langle \frac{\partial z_c(x_i)}{\partial \theta},
\frac{\partial z_d(x_j)}{\partial \theta} \right\rangle$$

Y [nC] are targets of n images, K [nC,nC] is the kernel of the network's logits z at its parameters. It does
not change with the scale of K, and is low where the targets lie along directions in which the network learns
fast. Source: supervision complexity and its role in knowledge distillation, Harutyunyan et al. 2023, arXiv
2301.12245.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mtkd_jax import mesh
from mtkd_jax.data.loading import Split, scale
from mtkd_jax.types import Array, Model, PyTree, UserError

RIDGE = 1e-6  # of the mean of the kernel's diagonal, added to that: targets need not lie in its range
MOST_ROWS = 5120  # of a kernel: 200 MiB, and some seconds to solve


def kernel(model: Model, variables: PyTree, images: np.ndarray, size: int = 32) -> np.ndarray:
    """K [nC,nC] of a network in evaluation on images [n,h,w,c] of the data, `size` of them at a time."""
    images = np.asarray(images)
    size = min(size, len(images))
    filled = np.concatenate([images, np.repeat(images[:1], -len(images) % size, axis=0)])
    parts = filled.reshape(-1, size, *images.shape[1:])
    rest = {name: value for name, value in variables.items() if name != "params"}

    def jacobian(params: PyTree, part: Array) -> list[Array]:
        """Of every parameter [size * C, its size]."""

        def logits(params: PyTree, image: Array) -> Array:
            return model.apply({"params": params, **rest}, image[None])[0].logits[0]

        of_each = jax.vmap(jax.jacrev(logits), in_axes=(None, 0))(params, scale(part))
        return [leaf.reshape(leaf.shape[0] * leaf.shape[1], -1) for leaf in jax.tree.leaves(of_each)]

    def products(params: PyTree, rows: list[Array], part: Array) -> Array:
        columns = jacobian(params, part)
        return sum((a @ b.T for a, b in zip(rows, columns)), start=jnp.zeros((), jnp.float32))

    jacobian_of, products_of = mesh.jit(jacobian), mesh.jit(products)
    blocks: dict[tuple[int, int], np.ndarray] = {}
    for i, of_rows in enumerate(parts):
        rows = jacobian_of(variables["params"], of_rows)
        for j, of_columns in enumerate(parts[i:], start=i):
            blocks[i, j] = np.asarray(products_of(variables["params"], rows, of_columns), np.float64)
            blocks[j, i] = blocks[i, j].T
    whole = np.block([[blocks[i, j] for j in range(len(parts))] for i in range(len(parts))])
    used = len(whole) // len(filled) * len(images)
    return whole[:used, :used]


def supervision_complexity(kernel: np.ndarray, targets: np.ndarray) -> float:
    """SC of targets [n,C] (or [n] of one output) by a kernel [nC,nC]; 0 of targets that are all 0.

    Examples:
        >>> round(supervision_complexity(np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([1.0, -1.0])), 5)
        1.41421
    """
    y, trace = np.asarray(targets, np.float64).reshape(-1), np.trace(kernel)
    regular = kernel + RIDGE * trace / len(y) * np.eye(len(y))
    return float(np.sqrt(max(0.0, y @ np.linalg.solve(regular, y) * trace)) / len(targets))


def centred(probs: np.ndarray) -> np.ndarray:
    """Targets of probabilities [n,C]: what they say beyond nothing, p - 1/C."""
    return np.asarray(probs, np.float64) - 1.0 / probs.shape[-1]


def check(config: ConfigDict, split: Split) -> None:
    """Raise UserError where so many images make too large a kernel, or there are not so many."""
    number, num_classes = config.report.complexity, split.dataset.num_classes
    if number and split.dataset.is_dense:
        raise UserError(
            "config.report.complexity: is about classes of whole images, and here places of an image have "
            "labels; must be 0"
        )
    most = min(len(split.train), MOST_ROWS // num_classes)
    if number > most:
        raise UserError(
            f"config.report.complexity: {number} images of {num_classes} classes; the kernel has at most "
            f"{MOST_ROWS:,} rows, and there are {len(split.train):,} labelled images: must be at most {most}"
        )


def rows(split: Split, number: int) -> np.ndarray:
    """The labelled training images that are looked at, [number] rows, spread evenly."""
    places = np.linspace(0, len(split.train) - 1, number).round().astype(int)
    return np.sort(split.train[places])
