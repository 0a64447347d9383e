"""What cohorts go through while they learn: their weights round by round, and the loss in a plane of these.

For studies of networks that teach each other: nothing is saved, and no trained teacher is asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict

from mtkd_jax import config as configuration
from mtkd_jax import mesh, validation
from mtkd_jax.data.loading import Split, scale
from mtkd_jax.engine import training
from mtkd_jax.engine.jobs import Job
from mtkd_jax.plans import students
from mtkd_jax.types import Array, Model, PyTree, TrainState, UserError


def cohorts(config: ConfigDict, split: Split, mode: str) -> Job:
    """Training the students of one mode, all seeds and peers at once, on the labelled images.

    Raises UserError for a mode that learns from trained teachers, and for whatever `validate` refuses.
    """
    config = config.copy_and_resolve_references()
    config.students.modes = (mode,)
    validation.validate(config)
    config = configuration.in_one_spelling(config)
    (mode,) = config.students.modes
    family = next(found for found in students.families(config) if found[0].mode == mode)
    if family[0].recipe.min_teachers:
        raise UserError(f"{mode} learns from trained teachers, and here there are none; name one of online")
    return students.job(config, split, "labelled", family, (), {}, routed=False)


def follow(job: Job) -> Iterator[tuple[int, TrainState, dict[str, np.ndarray]]]:
    """(epoch, states [M] of all members, {name: [M]} of validation) after every round, on the host.

    First (0, how they begin, {}). It is the training of `training.fit`, which would save it.
    """
    rounds = dataclasses.replace(job, steps_at_once=job.steps_per_round)
    progress, layout = training.first_progress(rounds), job.program.layout
    yield 0, mesh.on_host(progress.train), {}
    validation, hyper = mesh.everywhere((job.validation, job.hyper), layout)
    for piece, indices, stage_data in training.iterate_pieces(rounds, training.pieces(rounds)):
        progress, told = training.advance(rounds, piece, progress, hyper, indices, stage_data, validation)
        epoch = (piece.first + piece.num_steps) // job.steps_per_epoch
        yield epoch, mesh.on_host(progress.train), {n: each[-1] for n, each in mesh.on_host(told).items()}


@dataclasses.dataclass(frozen=True)
class Plane:
    """The plane through three networks of one architecture in the space of all their variables [D]."""

    origin: np.ndarray  # [D]
    axes: np.ndarray  # [2,D], orthonormal
    shaped: Callable[[Array], PyTree]  # of [D]

    def at(self, point: Array) -> PyTree:
        """The variables at a point (x, y) [2]."""
        return self.shaped(jnp.asarray(self.origin) + point @ jnp.asarray(self.axes))

    def coordinates(self, variables: PyTree) -> np.ndarray:
        """(x, y) of the point of the plane that is closest to a network."""
        return self.axes @ (_flat(variables) - self.origin)


def plane_through(a: PyTree, b: PyTree, c: PyTree) -> Plane:
    """The plane with `a` at (0, 0), `b` at (|b - a|, 0) and `c` above; UserError for networks on one line.

    Source: the figures of Garipov et al. 2018, arXiv 1802.10026.
    """
    origin, shaped = ravel_pytree(jax.tree.map(jnp.asarray, a))
    to_b, to_c = _flat(b) - _flat(a), _flat(c) - _flat(a)
    x = to_b / max(np.linalg.norm(to_b), np.finfo(np.float32).tiny)
    rest = to_c - (x @ to_c) * x
    if not min(np.linalg.norm(to_b), np.linalg.norm(rest)) > 1e-5 * np.linalg.norm(to_c):
        raise UserError("these three networks lie on one line; a plane needs three that are apart")
    return Plane(np.asarray(origin), np.stack([x, rest / np.linalg.norm(rest)]), shaped)


def surface(
    model: Model, plane: Plane, data: tuple[np.ndarray, np.ndarray], xs: Sequence[float], ys: Sequence[float]
) -> np.ndarray:
    """The mean NLL [len(ys),len(xs)] on (images [n,h,w,c], labels [n]) of the networks at all points."""
    images, labels = scale(jnp.asarray(data[0])), jnp.asarray(data[1])

    @jax.jit
    def losses(points: Array, images: Array, labels: Array) -> Array:
        def nll(point: Array) -> Array:
            log_probs = jax.nn.log_softmax(model.apply(plane.at(point), images)[0].logits)
            return -jnp.take_along_axis(log_probs, labels[:, None], axis=-1).mean()

        return jax.lax.map(nll, points)

    points = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2).astype(np.float32)
    return np.asarray(losses(points, images, labels)).reshape(len(ys), len(xs))


def _flat(variables: PyTree) -> np.ndarray:
    return np.asarray(ravel_pytree(jax.tree.map(jnp.asarray, variables))[0])
