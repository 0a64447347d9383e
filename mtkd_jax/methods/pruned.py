"""Methods whose student loses weights while it learns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mtkd_jax.methods.seams import PLAIN
from mtkd_jax.models.stages import is_kernel
from mtkd_jax.types import Array, Context, Outputs, PyTree, Recipe, TrainState, UserError

DIVIDED = ("qkv", "short_depthwise_conv")  # layers of vit, shufflenet_v2: what they say is cut into parts


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


def shrinking(*, width: float = 0.5, num_widths: int = 3) -> Recipe:
    r"""Distil into several widths of one network by turns, more and more of them; the narrowest is kept.

    $$w_j = 1 - (1 - w) \frac{j}{n - 1}, \qquad j = 0, \dots, n - 1$$

    At width $w_j$ the first $\max(1, \mathrm{round}(w_j c))$ of the c channels of every layer but the heads
    are there; the others count as 0 and have no gradient. Training has n = `num_widths` phases of one length.
    In phase p, from 0 on, the widths $w_0, \dots, w_p$ take turns of a step, so that a narrow network begins
    within the weights of wider ones and goes on sharing them. Validated, reported and exported is the
    narrowest, w = `width`, with batch statistics of its own turns, all of which are in the last phase.
    Cut to its channels, a network whose layers have no other statistics than those of batches is the same
    network of fewer channels; frozen stages keep theirs. The loss is that of `output_avg`, of the same
    teachers for every width; students of other widths are members of one population. Raises UserError for
    numbers out of range, and for networks without parameters called "heads" or that divide their channels
    into parts, as `vit` and `shufflenet_v2` do.

    Source: Cai et al. 2020 (progressive shrinking), arXiv 1908.09791, of its dimensions the width alone;
    there the widest is trained first, teaches the others, and has its channels sorted by their size.
    """
    if not 0 < width < 1:
        raise UserError(f"shrinking(width={width}): must be in (0, 1)")
    if num_widths < 2:
        raise UserError(f"shrinking(num_widths={num_widths}): must be at least 2")
    return PLAIN._replace(
        name="shrinking",
        view=_Turn(num_widths),
        after=_NextTurn(num_widths),
        init_mem=_first_turn,
        deploy=_narrowest,
        hyper=(("width", width),),
    )


def _first_turn(variables: PyTree, student: Outputs, num_examples: int) -> PyTree:
    if "heads" not in variables["params"]:
        raise UserError("shrinking: its network has no parameters called heads; must be another network")
    paths = jax.tree_util.tree_leaves_with_path(variables["params"])
    if any(key.key in DIVIDED for path, _ in paths for key in path):
        raise UserError(
            "shrinking: its network divides channels into parts, and the last parts would go whole; must be "
            "another network"
        )
    statistics = {name: value for name, value in variables.items() if name != "params"}
    return {"turn": jnp.int32(0), "statistics": statistics}


@dataclasses.dataclass(frozen=True)
class _Turn:
    """The variables at the width whose turn it is; the narrowest has its own statistics."""

    num_widths: int

    def __call__(
        self, variables: PyTree, state: TrainState, hyper: Mapping[str, Array], key: Array
    ) -> PyTree:
        turn, last = state.mem["turn"], self.num_widths - 1
        width = 1.0 - (1.0 - hyper["width"]) * turn.astype(jnp.float32) / last
        own = {name: variables[name] for name in state.mem["statistics"]}
        statistics = _where(turn == last, state.mem["statistics"], own)
        return {**variables, "params": at_width(variables["params"], width), **statistics}


@dataclasses.dataclass(frozen=True)
class _NextTurn:
    """Whose turn is next, and the statistics that the narrowest keeps. Comparable by value."""

    num_widths: int

    def __call__(self, state: TrainState, context: Context) -> TrainState:
        turn, kept = state.mem["turn"], state.mem["statistics"]
        kept = _where(turn == self.num_widths - 1, state.model_state, kept)
        phase = jnp.floor(context.progress * self.num_widths).astype(jnp.int32)
        turn = (context.step.astype(jnp.int32) + 1) % (phase + 1)
        return dataclasses.replace(state, mem={"turn": turn, "statistics": kept})


def _where(condition: Array, these: PyTree, those: PyTree) -> PyTree:
    return jax.tree.map(lambda this, that: jnp.where(condition, this, that), these, those)


def _narrowest(state: TrainState, hyper: Mapping[str, Array]) -> PyTree:
    return {"params": at_width(state.params, hyper["width"]), **state.mem["statistics"]}


def at_width(params: PyTree, width: Array) -> PyTree:
    """Parameters whose last channels, the last axis of all but the heads, are 0 beyond the share `width`."""

    def narrowed(path: tuple, leaf: Array) -> Array:
        if path[0].key == "heads" or leaf.ndim == 0:
            return leaf
        number = jnp.maximum(1.0, jnp.round(width * leaf.shape[-1]))
        channel = jnp.arange(leaf.shape[-1], dtype=jnp.float32)
        return jnp.where((channel < number).reshape(*(1,) * (leaf.ndim - 1), -1), leaf, 0.0)

    return jax.tree_util.tree_map_with_path(narrowed, params)


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
