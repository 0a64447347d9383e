"""Methods whose student loses weights while it learns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mtkd_jax.methods.seams import PLAIN
from mtkd_jax.models.stages import is_kernel
from mtkd_jax.types import Array, Context, Outputs, PyTree, Recipe, TrainState, UserError


def gradual(*, sparsity: float = 0.9, begin: float = 0.0, end: float = 0.75, every: int = 10) -> Recipe:
    r"""Distil while the weights that are smallest in all of the network become 0, more and more of them.

    $$s(\tau) = s \left(1 - \left(1 - \frac{\tau - \tau_0}{\tau_1 - \tau_0}\right)^3\right)$$

    Every `every` steps the share $s(\tau)$ of all parameters of two axes or more but biases that is
    nearest to 0 is masked, across all layers; $\tau$ is the share of the training that is done, held to
    [`begin`, `end`] = $[\tau_0, \tau_1]$, and s is `sparsity`. What is masked counts as 0 and has no
    gradient, but it keeps its value and may come back. Validated, reported and exported are the weights
    masked by all of s, also before the end, so that what validation chooses is never less sparse. The
    loss is that of `output_avg`; with alpha = 1 it is a pruned network without teachers. Students of
    other sparsities are members of one population. Raises UserError for numbers out of range.

    Source: Zhu and Gupta 2017, arXiv 1710.01878, from 0 on; there each layer has the same share.
    """
    for name, value in (("sparsity", sparsity), ("begin", begin)):
        if not 0 <= value < 1:
            raise UserError(f"gradual({name}={value}): must be in [0, 1)")
    if not begin < end < 1:
        raise UserError(
            f"gradual(end={end}): must be above begin, {begin}, and below 1, which no step of training is at"
        )
    if every < 1:
        raise UserError(f"gradual(every={every}): must be at least 1")
    return PLAIN._replace(
        name="gradual",
        view=_masked_by_mem,
        after=_Schedule(begin, end, every),
        init_mem=_keep_all,
        deploy=_masked_at_last,
        hyper=(("sparsity", sparsity),),
    )


@dataclasses.dataclass(frozen=True)
class _Schedule:
    """Masks made anew every so many steps. Comparable by value."""

    begin: float
    end: float
    every: int

    def __call__(self, state: TrainState, context: Context) -> TrainState:
        done = ((context.progress - self.begin) / (self.end - self.begin)).clip(0.0, 1.0)
        sparsity = context.hyper["sparsity"] * (1.0 - (1.0 - done) ** 3)
        mask = jax.lax.cond(
            context.step % self.every == 0, lambda: mask_of(state.params, sparsity), lambda: state.mem
        )
        return dataclasses.replace(state, mem=mask)


def mask_of(params: PyTree, sparsity: Array) -> PyTree:
    """False for the share of all weights of kernels that is nearest to 0; of other leaves True."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    sizes = jnp.concatenate([jnp.abs(leaf).ravel() for path, leaf in leaves if is_kernel(path, leaf)])
    number = jnp.round(sparsity * len(sizes)).astype(jnp.int32)
    least = jnp.sort(sizes)[number]  # the smallest that is kept
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.abs(leaf) >= least if is_kernel(path, leaf) else jnp.bool_(True), params
    )


def _keep_all(variables: PyTree, student: Outputs, num_examples: int) -> PyTree:
    return mask_of(variables["params"], jnp.float32(0.0))


def _masked(params: PyTree, mask: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf, kept: jnp.where(kept, leaf, 0.0), params, mask)


def _masked_by_mem(variables: PyTree, state: TrainState, hyper: Mapping[str, Array], key: Array) -> PyTree:
    return {**variables, "params": _masked(variables["params"], state.mem)}


def _masked_at_last(state: TrainState, hyper: Mapping[str, Array]) -> PyTree:
    params = _masked(state.params, mask_of(state.params, hyper["sparsity"]))
    return {"params": params, **state.model_state}
