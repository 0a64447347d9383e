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

from collections.abc import Iterable
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mtkd_jax import mesh
from mtkd_jax.data.loading import Split, scale
from mtkd_jax.engine import forecast
from mtkd_jax.engine.population import take
from mtkd_jax.types import Array, Model, Population, PyTree, UserError

RIDGE = 1e-6  # of the mean of the kernel's diagonal, added to that: targets need not lie in its range
MOST_ROWS = 5120  # of a kernel: 200 MiB, and some seconds to solve
MOST_AT_ONCE = 32  # images
MOST_CONVERTED = 2**14  # parameters at a time whose derivatives are float64
SHARE_OF_MEMORY = 0.25  # that derivatives may take, of what is free


def kernel(model: Model, variables: PyTree, images: np.ndarray, num_bytes: float | None = None) -> np.ndarray:
    """K [nC,nC] of a network in evaluation on images [n,h,w,c] of the data.

    Derivatives are of as many images at a time as fit into `num_bytes`, of one at least; None is a share of
    the memory that is free. The time grows with the square of the parts. The numbers do not change: products
    are summed in float64, for the order of sums in float32 would come through a ridge of RIDGE enlarged.
    """
    images = np.asarray(images)
    num_bytes = SHARE_OF_MEMORY * forecast.memory_limit() if num_bytes is None else num_bytes
    num_classes = jax.eval_shape(model.apply, variables, scale(jnp.asarray(images[:1])))[0].logits.shape[-1]
    of_one = bytes_of_an_image(variables["params"], num_classes)
    size = min(max(1, int(num_bytes // of_one)), MOST_AT_ONCE, len(images))
    filled = np.concatenate([images, np.repeat(images[:1], -len(images) % size, axis=0)])
    parts = filled.reshape(-1, size, *images.shape[1:])
    rest = {name: value for name, value in variables.items() if name != "params"}

    def jacobian(params: PyTree, part: Array) -> list[Array]:
        """Of every parameter [size * C, its size]."""

        def logits(params: PyTree, image: Array) -> Array:
            return model.apply({"params": params, **rest}, image[None])[0].logits[0]

        of_each = jax.vmap(jax.jacrev(logits), in_axes=(None, 0))(params, scale(part))
        return [leaf.reshape(leaf.shape[0] * leaf.shape[1], -1) for leaf in jax.tree.leaves(of_each)]

    jacobian_of = mesh.jit(jacobian)
    blocks: dict[tuple[int, int], np.ndarray] = {}
    for i, of_rows in enumerate(parts):
        rows = jacobian_of(variables["params"], of_rows)
        for j, of_columns in enumerate(parts[i:], start=i):
            columns = rows if i == j else jacobian_of(variables["params"], of_columns)
            of_each = (_products(np.asarray(a), np.asarray(b)) for a, b in zip(rows, columns))
            blocks[i, j] = reduce(np.add, of_each)
            blocks[j, i] = blocks[i, j].T
    whole = np.block([[blocks[i, j] for j in range(len(parts))] for i in range(len(parts))])
    used = len(whole) // len(filled) * len(images)
    return whole[:used, :used]


def _products(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """[n,m] float64 of all rows [n,P] and [m,P] float32, some at a time: they take twice the memory."""
    found = np.zeros((len(rows), len(columns)))
    for first in range(0, rows.shape[1], MOST_CONVERTED):
        own = slice(first, first + MOST_CONVERTED)
        found += rows[:, own].astype(np.float64) @ columns[:, own].astype(np.float64).T
    return found


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


def check_students(config: ConfigDict, split: Split, students: Iterable[Population]) -> None:
    """Raise UserError where a student's derivatives of one image do not fit into the memory that is free."""
    if not config.report.complexity:
        return
    for population in students:
        of_one = jax.eval_shape(lambda tree: take(tree, 0), population.variables["params"])
        num_classes = split.dataset.num_classes
        needed, limit = bytes_of_an_image(of_one, num_classes), forecast.memory_limit()
        if needed > limit:
            raise UserError(
                f"config.report.complexity: derivatives of {num_classes} classes by all parameters of "
                f"{population.model.name} take {needed / 2**20:,.0f} MiB an image, and "
                f"{limit / 2**20:,.0f} MiB are there for them: must be 0, or the student smaller"
            )


def bytes_of_an_image(params: PyTree, num_classes: int) -> int:
    """What the derivatives of its logits by the parameters of one network take, as rows and as columns."""
    return 2 * num_classes * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def rows(split: Split, number: int) -> np.ndarray:
    """The labelled training images that are looked at, [number] rows, spread evenly."""
    places = np.linspace(0, len(split.train) - 1, number).round().astype(int)
    return np.sort(split.train[places])
