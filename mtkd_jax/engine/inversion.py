r"""Images that are made from what networks know, and from no other image.

Noise is changed until all of an ensemble take it for an image of a class and until, on its way through them,
it has the statistics that BatchNorm has kept of the images they were trained on:

$$\min_x -\frac{1}{K} \sum_k \ln\, \mathrm{softmax}(z_k(x))_y
+ \lambda \sum_\text{layers} (\frac{(\mu(x) - \mu)^2}{\sigma^2} + \frac{(\sigma^2(x) - \sigma^2)^2}{\sigma^4})
+ \eta\, (x_{h,w} - x_{h+1,w})^2 + \eta\, (x_{h,w} - x_{h,w+1})^2$$

All are means, over teachers, channels and pixels; $\mu(x)$ and $\sigma^2(x)$ are those of a batch of images.
Source: DeepInversion, Yin et al. 2020, arXiv 1912.08795; one teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, reduce

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from mtkd_jax.engine import population
from mtkd_jax.models import layers
from mtkd_jax.types import Array, Ensemble, Model, PyTree, UserError

BLOCK = 128  # images that are made together, and have their statistics together
RATE = 0.1  # of Adam


def invert(
    ensemble: Ensemble,
    number: int,
    shape: tuple[int, ...],
    bounds: tuple[np.ndarray, np.ndarray] | None,
    *,
    num_steps: int,
    statistics: float,
    smoothness: float,
    seed: int,
) -> np.ndarray:
    """Images [number,h,w,c] float32, as many of each class: in [0,1], or about (mean, std) [c] of `bounds`.

    Raises UserError where no network of the ensemble has statistics of a BatchNorm.
    """
    models, variables = population.frozen_parts(ensemble)
    if not keeps_statistics(ensemble):
        raise UserError(
            "the teachers keep no statistics of images to make others from: must be networks with BatchNorm"
        )
    num_classes = ensemble_classes(ensemble)
    make = _maker(models, num_steps)
    labels = np.arange(-(-number // BLOCK) * BLOCK, dtype=np.int32) % num_classes
    weights = jnp.asarray([statistics, smoothness], jnp.float32)
    made = []
    for block, of_block in enumerate(labels.reshape(-1, BLOCK)):
        key = jax.random.fold_in(jax.random.key(seed), block)
        made.append(np.asarray(make(variables, key, of_block, weights, bounds, jnp.zeros((BLOCK, *shape)))))
    return np.concatenate(made)[:number]


def keeps_statistics(ensemble: Ensemble) -> bool:
    """Whether a network of the ensemble has statistics of a BatchNorm."""
    return any("batch_stats" in of_model for of_model in population.frozen_parts(ensemble)[1])


def ensemble_classes(ensemble: Ensemble) -> int:
    """C of the networks."""
    return ensemble[0].model.module.task.num_classes


@lru_cache
def _maker(models: tuple[Model, ...], num_steps: int) -> Callable:
    optimizer = optax.adam(RATE)

    def make(
        variables: tuple[PyTree, ...],
        key: Array,
        labels: Array,
        weights: Array,
        bounds: tuple[Array, Array] | None,
        like: Array,
    ) -> Array:
        def loss_of(latent: Array) -> Array:
            image = _shown(latent, bounds)
            logits = population.apply_ensemble(models, variables, image).logits
            wanted = jnp.broadcast_to(labels[None, :, None], (*logits.shape[:2], 1))
            unlike = -jnp.take_along_axis(jax.nn.log_softmax(logits), wanted, axis=-1).mean()
            return (
                unlike + weights[0] * _apart(models, variables, image, key) + weights[1] * _roughness(image)
            )

        def step(_: Array, carry: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
            latent, state = carry
            with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in whole numbers
                updates, state = optimizer.update(jax.grad(loss_of)(latent), state)
                return latent + updates, state

        latent = jax.random.normal(key, like.shape)
        latent, _ = jax.lax.fori_loop(0, num_steps, step, (latent, optimizer.init(latent)))
        return _shown(latent, bounds)

    return jax.jit(make)


def _shown(latent: Array, bounds: tuple[Array, Array] | None) -> Array:
    if bounds is None:
        return jax.nn.sigmoid(latent)
    mean, std = (one[None, None, None, :] for one in bounds)
    return mean + std * latent


def _roughness(image: Array) -> Array:
    down, right = image[:, 1:] - image[:, :-1], image[:, :, 1:] - image[:, :, :-1]
    return _mean_square(down) + _mean_square(right)


def _mean_square(x: Array) -> Array:
    return jnp.sum(x**2) / max(x.size, 1)


def _apart(models: tuple[Model, ...], variables: tuple[PyTree, ...], image: Array, key: Array) -> Array:
    """How far the statistics of a batch of images are from those that all networks keep."""
    found = [
        population.over_members(_statistics_apart(model), population.natural_member_loop(model))(
            stacked, (image, key)
        ).mean()
        for model, stacked in zip(models, variables)
        if "batch_stats" in stacked
    ]
    return sum(found) / len(found)


def _statistics_apart(model: Model) -> Callable:
    def apart(variables: PyTree, shown: tuple[Array, Array]) -> Array:
        image, key = shown
        with layers.kept_statistics() as kept_of:
            _, state = model.apply(variables, image, train=True, key=key)
        kept, moved = (flatten_dict(tree["batch_stats"], sep="/") for tree in (variables, state))
        distances = []
        for place, mean in kept.items():
            if not place.endswith("mean"):
                continue
            of_var = f"{place.removesuffix('mean')}var"
            variance = kept[of_var] + 1e-5
            share = 1.0 - kept_of.get(place.removesuffix("/mean"), 0.9)  # of the way to the batch's they move
            to_mean, to_var = (moved[place] - mean) / share, (moved[of_var] - kept[of_var]) / share
            distances.append(jnp.mean(to_mean**2 / variance + to_var**2 / variance**2))
        return reduce(jnp.add, distances) / len(distances)

    return apart
