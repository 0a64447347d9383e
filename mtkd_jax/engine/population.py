"""Many networks of one architecture as one pytree whose every leaf leads with the member axis M.

The loop over members is a choice, not a rewrite: `over_members` gives the same numbers every way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from mtkd_jax import mesh
from mtkd_jax.data.loading import scale
from mtkd_jax.types import (
    Array,
    Ensemble,
    Images,
    Model,
    Outputs,
    Population,
    PyTree,
    TeacherOutputs,
    UserError,
)


def over_members(function: Callable, how: str) -> Callable:
    """`function(member, shared) -> result` of one member, made to take members and results stacked [M,...].

    vmap    one batched program; best for dense networks and on accelerators
    map     one member after the other inside the program; bit-equal to each member alone, and the fast
            way for convolutions on a CPU (a vmapped kernel becomes a grouped convolution there)
    unroll  a copy of the program for every member; compile time grows with M
    loop    a compiled call for every member from Python: the reference, easy to debug
    """
    if how == "vmap":
        return jax.vmap(function, in_axes=(0, None))
    if how == "map":
        return lambda members, shared: jax.lax.map(lambda member: function(member, shared), members)
    if how == "unroll":
        return partial(_one_by_one, function)
    if how == "loop":
        return partial(_one_by_one, jax.jit(function))
    raise ValueError(f"how is {how!r}; known are {', '.join(mesh.MEMBER_LOOPS)}")


def natural_member_loop(model: Model) -> str:
    """The loop over members where none has been timed: `map` for convolutions on a CPU, else `vmap`."""
    return "map" if model.convolutional and jax.default_backend() == "cpu" else "vmap"


def init(model: Model, keys: Array, image_shape: Sequence[int]) -> PyTree:
    """Variables [M,...], member m from keys[m] alone, so that it is the same whoever stands beside it."""
    return jax.device_put(init_on_host(model, keys, image_shape))


def init_on_host(model: Model, keys: Array, image_shape: Sequence[int]) -> PyTree:
    """`init` as NumPy arrays, for who spreads them over devices.

    One small program called M times: batched over keys it took twice as long to compile (2.2 s of CPU for
    five members of a small MLP, 4.7 s for a hundred) and had to be compiled again for every M.
    """
    of_one = _init(model, tuple(image_shape), jax.random.key_impl(keys))
    words = np.asarray(jax.random.key_data(keys))  # a key taken out of all is a program for every M
    stacked = jax.tree.map(
        lambda leaf: np.empty((len(keys), *leaf.shape), leaf.dtype), jax.eval_shape(of_one, words[0])
    )
    for m, own_words in enumerate(words):  # each at its place at once: a list of all would be a second copy
        for all_of_them, own in zip(jax.tree.leaves(stacked), jax.tree.leaves(of_one(own_words))):
            all_of_them[m] = own
    return stacked


STATISTICS = "batch_stats"  # the collection of BatchNorm's means and variances


def settle_statistics(model: Model, variables: PyTree, images: np.ndarray, keys: Array) -> PyTree:
    """Variables [M,...] with the batch statistics that batches of images [R,B,h,w,c] leave behind.

    Weights stay as they are; keys [M] feed dropout. For networks that were never trained, whose statistics
    are still 0 and 1: residual networks answer with logits of a thousand then. Without BatchNorm nothing
    changes.
    """
    return _settle(model)(variables, images, keys) if variables.get(STATISTICS) else variables


@lru_cache
def _settle(model: Model) -> Callable:
    def of_one(member: tuple[PyTree, Array], images: Array) -> PyTree:
        variables, key = member

        def seen(statistics: PyTree, image: Array) -> tuple[PyTree, None]:
            own = {**variables, STATISTICS: statistics}
            _, state = model.apply(own, scale(image), train=True, key=key)
            return state[STATISTICS], None

        return {**variables, STATISTICS: jax.lax.scan(seen, variables[STATISTICS], images)[0]}

    how = natural_member_loop(model)
    return mesh.jit(lambda variables, images, keys: over_members(of_one, how)((variables, keys), images))


def take(tree: PyTree, members: int | Sequence[int] | np.ndarray) -> PyTree:
    """The given members of a stacked pytree; an int drops the axis."""
    index = members if isinstance(members, int) else np.asarray(members, np.int32)
    return jax.tree.map(lambda leaf: leaf[index], tree)


@jax.jit  # a program instead of one for every array
def _take_at_once(tree: PyTree, rows: np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def members(population: Population, which: Sequence[int]) -> Population:
    """A population of the given members."""
    return Population(
        population.model,
        _take_at_once(population.variables, np.asarray(which, np.int32)),
        {name: values[list(which)] for name, values in population.hyper.items()},
        tuple(population.names[m] for m in which),
    )


def concatenate(populations: Sequence[Population]) -> Population:
    """The members of several populations of one architecture, one after the other."""
    first, *others = populations
    if not others:
        return first
    return Population(
        first.model,
        jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(one.variables for one in populations)),
        {name: np.concatenate([one.hyper[name] for one in populations]) for name in first.hyper},
        tuple(name for one in populations for name in one.names),
    )


def stack(trees: Sequence[PyTree]) -> PyTree:
    """Single members to one population."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def apply_ensemble(
    models: tuple[Model, ...],
    variables: tuple[PyTree, ...],
    image: Array,
    needs: tuple[str, ...] = (),
    given_logits: Array | None = None,
) -> TeacherOutputs:
    """Outputs of all frozen teachers, architecture after architecture, for images [B,h,w,c].

    Of their features only those that `needs` names; raises UserError where there is none of that name. Of
    teachers that are known by their logits alone these are looked up in `given_logits` [B,K,C].
    """
    logits, embedding, beside = [], [], []
    features: list[Mapping[str, Array]] = []
    for model, stacked in zip(models, variables):
        outputs = over_members(_evaluate(model, needs), natural_member_loop(model))(
            stacked, (image, given_logits)
        )
        logits.append(outputs.logits)
        beside.append(outputs.beside if "beside" in needs else {})
        embedding.extend(outputs.logits[:, :, :0] if outputs.embedding is None else outputs.embedding)
        features.extend(
            take(outputs.features, k) if outputs.features else {} for k in range(len(outputs.logits))
        )
    of_all = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *beside)
    return TeacherOutputs(jnp.concatenate(logits), tuple(embedding), tuple(features), of_all)


def with_features(outputs: Outputs, needs: tuple[str, ...], model: Model) -> Outputs:
    """Outputs with those features that are needed; "features" stands for all.

    "embedding" and "beside" are always there, but of a teacher whose logits alone are known: UserError where
    more of it is needed, or a feature that there is not.
    """
    if needs and outputs.embedding is None:
        raise UserError(f"reads features of the teachers, and of {model.name} only the logits are known")
    if "features" in needs:
        return outputs
    names = [name for name in needs if name not in ("embedding", "beside")]
    for name in names:
        if name not in outputs.features:
            known = ", ".join(outputs.features)
            raise UserError(f"{model.name} has no feature {name!r}; it has {known}")
    return dataclasses.replace(outputs, features={name: outputs.features[name] for name in names})


def frozen_parts(ensemble: Ensemble) -> tuple[tuple[Model, ...], tuple[PyTree, ...]]:
    """Models (static) and variables (traced) of an ensemble, apart."""
    return tuple(p.model for p in ensemble), tuple(p.variables for p in ensemble)


def logits(population: Population, images: np.ndarray | Images) -> np.ndarray:
    """Logits [M,N,C] of every member on images [N,h,w,c] (uint8 or float32), on the host.

    Of a dense task [M,N,L,C].
    """
    predict = _predict(population.model)
    return np.swapaxes(map_blocks(lambda part: predict(population.variables, part), images), 0, 1)


def beside(population: Population, images: np.ndarray | Images) -> dict[str, np.ndarray]:
    """What every member predicts of places beside logits, {name: [M,N,L,d]}; {} of most networks."""
    one = jax.eval_shape(
        _evaluate(population.model), take(population.variables, 0), (scale(images[:1]), None)
    )
    found = {}
    for name in one.beside:
        predict = _beside(population.model, name)
        blocks = map_blocks(lambda part, of=predict: of(population.variables, part), images)
        found[name] = np.swapaxes(blocks, 0, 1)
    return found


def mutual(population: Population, images: np.ndarray | Images, of: Callable[[Outputs], Array]) -> np.ndarray:
    """What every member's own members disagree about, [M,N] nats: `of` is the recipe's `mutual`."""
    found = _mutual(population.model, of)
    return map_blocks(lambda part: found(population.variables, part), images).T


def map_blocks(
    function: Callable, images: np.ndarray | Images, *more: np.ndarray | None, size: int = 512
) -> np.ndarray:
    """`function` of images [N,...], a block at a time; its results [N,...] side by side on the host.

    Arrays [N,...] that go with the images are handed on in the same blocks; None is None in all of them.

    The last block is filled up, so that one compiled program serves all of them. Raises Interrupted between
    two blocks where the process has been asked to stop; of several that train together none does so alone.
    """
    if len(images) == 0:  # a blank one tells the shapes
        blank = [None if a is None else np.zeros((1, *a.shape[1:]), a.dtype) for a in (images, *more)]
        return np.asarray(function(*blank))[:0]
    size = min(size, len(images))

    def block(array: np.ndarray | Images | None, start: int) -> np.ndarray | None:
        if array is None:
            return None
        part = array[start : start + size]
        return np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])

    parts = []
    for start in range(0, len(images), size):
        mesh.check_interrupts("all that was trained before is saved")
        filled = (block(array, start) for array in (images, *more))
        parts.append(np.asarray(function(*filled))[: len(images) - start])
    return np.concatenate(parts)


def zeros_like_output(
    function: Callable, images: np.ndarray | Images, *more: np.ndarray | None
) -> np.ndarray:
    """Zeros in the shape of what `map_blocks` returns; nothing is computed."""
    of_one = jax.eval_shape(function, *(None if a is None else a[:1] for a in (images, *more)))
    return np.zeros((len(images), *of_one.shape[1:]), of_one.dtype)


def _one_by_one(function: Callable, members: PyTree, shared: PyTree) -> PyTree:
    num_members = len(jax.tree.leaves(members)[0])
    return stack([function(take(members, m), shared) for m in range(num_members)])


def _evaluate(model: Model, needs: tuple[str, ...] = ()) -> Callable:
    return lambda variables, asked: with_features(model.answer(variables, *asked), needs, model)


@lru_cache
def _init(model: Model, image_shape: tuple[int, ...], key_impl: Hashable) -> Callable:
    def draw(words: Array) -> PyTree:
        key = jax.random.wrap_key_data(words, impl=key_impl)
        return model.init(key, jnp.zeros((1, *image_shape), jnp.float32))

    # Run a few times and never hot: compiled without optimising, in a fifth of the time.
    return jax.jit(draw, compiler_options={"xla_backend_optimization_level": 0})


@lru_cache
def _predict(model: Model) -> Callable:
    return _asked(model, lambda outputs: outputs.logits)


@lru_cache
def _beside(model: Model, name: str) -> Callable:
    return _asked(model, lambda outputs: outputs.beside[name])


@lru_cache
def _mutual(model: Model, of: Callable[[Outputs], Array]) -> Callable:
    return _asked(model, of)


def _asked(model: Model, of: Callable[[Outputs], Array]) -> Callable:
    """(variables [M,...], images [B,h,w,c]) -> what `of` makes of every member's outputs, [B,M,...]."""

    def predict(variables: PyTree, image: Array) -> Array:
        answer = _evaluate(model)
        evaluate = over_members(lambda own, asked: of(answer(own, asked)), natural_member_loop(model))
        return jnp.swapaxes(evaluate(variables, (scale(image), None)), 0, 1)

    return mesh.jit(predict)
