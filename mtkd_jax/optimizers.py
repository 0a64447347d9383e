"""Optimisers, and schedules of what changes over training, by name.

An optimiser is a function here that returns an `Optimizer`, a schedule one that returns a `Schedule`; their
addresses stand in the configuration: `train.optimizer = "sgd(momentum=0.8)"`. The work is optax's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtkd_jax.types import Array, PyTree, UserError, path_of

Number = Array | float  # traced, where every member has its own


class Optimizer(NamedTuple):
    """An optimiser but for learning rate and weight decay. Hashable and equal by value: part of a jit key."""

    transform: Callable  # (rate, decay, **arguments) -> optax.GradientTransformation
    arguments: tuple[tuple[str, Any], ...] = ()
    averages: bool = False  # whether its state holds the average of the weights, which is what is used

    def __call__(self, rate: Number, decay: Number) -> optax.GradientTransformation:
        """The transformation; rate and decay may be traced, so that every member has its own."""
        return self.transform(rate, decay, **dict(self.arguments))

    def averaged(self, state: PyTree, params: PyTree) -> PyTree:
        """The weights to validate and deploy, from the optimiser's state and those that are trained."""
        return optax.contrib.schedule_free_eval_params(state, params) if self.averages else params


class Schedule(NamedTuple):
    """A factor that changes over training. Hashable and equal by value: part of a jit key."""

    factor: Callable  # (progress in [0,1), **arguments) -> factor
    arguments: tuple[tuple[str, Any], ...] = ()

    def __call__(self, progress: Array) -> Array:
        """The factor [] float32 at a progress [] float32 in [0,1): the share of the steps that are done."""
        with jax.numpy_dtype_promotion("standard"):  # optax mixes whole numbers with fractions
            return jnp.asarray(self.factor(progress, **dict(self.arguments)), jnp.float32)


# --- optimisers ---------------------------------------------------------------------------------------


def sgd(*, momentum: float = 0.9, nesterov: bool = True) -> Optimizer:
    """Stochastic gradient descent with momentum; the weight decay is added to the gradient.

    Source: Sutskever et al. 2013 (Nesterov's momentum as networks use it).
    """
    return Optimizer(_sgd, (*_decays("sgd", momentum=momentum), ("nesterov", nesterov)))


def adam(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Adam; the weight decay is decoupled from the gradient, as in `adamw`: the two are one.

    Source: Kingma and Ba 2015, arXiv 1412.6980.
    """
    return adamw(b1=b1, b2=b2, eps=eps)


def adamw(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Adam with decoupled weight decay: rate * decay * weight is taken off at every step.

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101.
    """
    return Optimizer(_adamw, (*_decays("adamw", b1=b1, b2=b2), ("eps", eps)))


def lamb(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6) -> Optimizer:
    """Adam whose step in each layer is as long as its weights, times the rate: for large batches.

    Source: You et al. 2020, arXiv 1904.00962.
    """
    return Optimizer(_lamb, (*_decays("lamb", b1=b1, b2=b2), ("eps", eps)))


def lion(*, b1: float = 0.9, b2: float = 0.99) -> Optimizer:
    """The sign of a momentum: every weight moves by the rate; a third to a tenth of Adam's rate is customary.

    Source: Chen et al. 2023, arXiv 2302.06675.
    """
    return Optimizer(_lion, _decays("lion", b1=b1, b2=b2))


def muon(*, beta: float = 0.95, adam_rate: float = 0.1) -> Optimizer:
    """Momentum whose matrices are made orthogonal; all else is trained by Adam.

    Matrices are the kernels of hidden dense layers. Heads, kernels of convolutions, biases and norms take
    Adam with Nesterov momentum, at `adam_rate` times the learning rate.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon.
    """
    return Optimizer(_muon, (*_decays("muon", beta=beta), ("adam_rate", adam_rate)))


def schedule_free(*, base: str = "adamw", b1: float = 0.9) -> Optimizer:
    """Training without a schedule: an average of the weights takes the part that falling rates have.

    `base` is "adamw" or "sgd". The average is what is validated and deployed; gradients are taken between it
    and where the base has come to. Leave `train.schedule` constant; a warm-up helps. Batch
    statistics are those of the weights that are trained. Raises UserError for another base.

    Source: Defazio et al. 2024, arXiv 2405.15682.
    """
    if base not in ("adamw", "sgd"):
        raise UserError(f"schedule_free(base={base!r}): must be adamw or sgd")
    if not 0 < b1 < 1:
        raise UserError(f"schedule_free(b1={b1}): must be between 0 and 1, both excluded")
    return Optimizer(_schedule_free, (("base", base), ("b1", b1)), averages=True)


def _decays(optimizer: str, **decays: float) -> tuple[tuple[str, float], ...]:
    for name, value in decays.items():
        if not 0 <= value < 1:
            raise UserError(f"{optimizer}({name}={value}): must be in [0, 1)")
    return tuple(decays.items())


def _sgd(rate: Number, decay: Number, *, momentum: float, nesterov: bool) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate, momentum or None, nesterov))


def _adamw(rate: Number, decay: Number, **betas: float) -> optax.GradientTransformation:
    return optax.adamw(rate, weight_decay=decay, **betas)


def _lamb(rate: Number, decay: Number, **betas: float) -> optax.GradientTransformation:
    return optax.lamb(rate, weight_decay=decay, **betas)


def _lion(rate: Number, decay: Number, **betas: float) -> optax.GradientTransformation:
    return optax.lion(rate, weight_decay=decay, **betas)


def _muon(rate: Number, decay: Number, *, beta: float, adam_rate: float) -> optax.GradientTransformation:
    return optax.contrib.muon(
        rate,
        beta=beta,
        weight_decay=decay,
        adam_weight_decay=decay,
        adam_learning_rate=adam_rate * rate,
        muon_weight_dimension_numbers=_matrices,
    )


def _matrices(params: PyTree) -> PyTree:
    """For muon: which leaves are matrices, [inputs, outputs]; None for the others."""

    def dimensions(path: tuple, leaf: Array) -> optax.contrib.MuonDimensionNumbers | None:
        name = path_of(path).rpartition("/")[2]
        return optax.contrib.MuonDimensionNumbers() if name == "kernel" and leaf.ndim == 2 else None

    return jax.tree_util.tree_map_with_path(dimensions, params)


def _schedule_free(rate: Number, decay: Number, *, base: str, b1: float) -> optax.GradientTransformation:
    make = {"adamw": optax.contrib.schedule_free_adamw, "sgd": optax.contrib.schedule_free_sgd}[base]
    return make(rate, b1=b1, weight_decay=decay)


# --- schedules ----------------------------------------------------------------------------------------


def constant() -> Schedule:
    """1 from the first step to the last."""
    return Schedule(_constant)


def cosine(*, end: float = 0.0) -> Schedule:
    """From 1 to `end` along half a cosine.

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983, without restarts.
    """
    return Schedule(_cosine, (("end", _share("cosine", "end", end)),))


def linear(*, start: float = 1.0, end: float = 0.0) -> Schedule:
    """From `start` to `end` along a line."""
    return Schedule(_linear, tuple((n, _share("linear", n, v)) for n, v in (("start", start), ("end", end))))


def steps(*, at: tuple[float, ...] = (0.625, 0.75, 0.875), factor: float = 0.1) -> Schedule:
    """1, times `factor` at each of the shares `at` of training: epochs 150, 180 and 210 of 240."""
    if list(at) != sorted(set(at)) or not all(0 < share < 1 for share in at):
        raise UserError(f"steps(at={at}): must be rising shares of the training, between 0 and 1")
    return Schedule(_steps, (("at", tuple(at)), ("factor", _share("steps", "factor", factor))))


def one_cycle(*, peak: float = 0.3, start: float = 0.04, end: float = 4e-6) -> Schedule:
    """From `start` up to 1 at the share `peak` of training, then down to `end`, along cosines.

    Source: Smith and Topin 2018, arXiv 1708.07120.
    """
    if not 0 < peak < 1 or not 0 < start <= 1 or not 0 < end <= 1:
        raise UserError(f"one_cycle(peak={peak}, start={start}, end={end}): each must lie between 0 and 1")
    return Schedule(_one_cycle, (("peak", peak), ("start", start), ("end", end)))


def triangular(*, peak: float = 0.23, start: float = 0.2, end: float = 0.02) -> Schedule:
    """From `start` up to 1 at the share `peak` of training, then down to `end`, along lines.

    Source: Jordan 2024, arXiv 2404.00498, whose defaults these are but for the end, 0.07 there; in shape
    Smith 2018, arXiv 1506.01186. `triangular(peak=0.5, start=0.01, end=0.01)` is a cycle of fast geometric
    ensembles (Garipov et al. 2018, arXiv 1802.10026), there from peak to peak.
    """
    if not 0 < peak < 1:
        raise UserError(f"triangular(peak={peak}): must be a share of the training, between 0 and 1")
    shares = ((name, _share("triangular", name, value)) for name, value in (("start", start), ("end", end)))
    return Schedule(_triangular, (("peak", peak), *shares))


def sawtooth(*, teeth: int = 2) -> Schedule:
    """From 1 to 0 along a line, and from the beginning again, `teeth` times in all."""
    if teeth < 1:
        raise UserError(f"sawtooth(teeth={teeth}): must be at least 1")
    return Schedule(_sawtooth, (("teeth", teeth),))


def warmed_up(schedule: Schedule, warmup: float, step: Array, num_steps: int) -> Array:
    """The factor [] at a step: a line up to 1 over the first `warmup` of training, then the schedule.

    The schedule begins where the warm-up ends. The first step has a rate already, 1 / (warmup num_steps).
    """
    done = step.astype(jnp.float32) / num_steps
    if not warmup:
        return schedule(done)
    rising = (done + 1.0 / num_steps) / warmup
    return jnp.where(rising < 1.0, rising, schedule(jnp.maximum(done - warmup, 0.0) / (1.0 - warmup)))


def _share(schedule: str, name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise UserError(f"{schedule}({name}={value}): must lie in [0, 1]; it is a factor")
    return value


def _constant(progress: Array) -> Array:
    return jnp.ones_like(progress)


def _cosine(progress: Array, *, end: float) -> Array:
    return optax.cosine_decay_schedule(1.0, 1, end)(progress)


def _linear(progress: Array, *, start: float, end: float) -> Array:
    return optax.linear_schedule(start, end, 1)(progress)


def _steps(progress: Array, *, at: tuple[float, ...], factor: float) -> Array:
    return optax.piecewise_constant_schedule(1.0, dict.fromkeys(at, factor))(progress)


def _one_cycle(progress: Array, *, peak: float, start: float, end: float) -> Array:
    # Not optax's: its pieces of cosines are at least one whole step long, and here all of training is 1.
    rising = 1.0 + (start - 1.0) * _cosine(progress / peak, end=0.0)
    falling = _cosine((progress - peak) / (1.0 - peak), end=end)
    return jnp.where(progress < peak, rising, falling)


def _triangular(progress: Array, *, peak: float, start: float, end: float) -> Array:
    rising = start + (1.0 - start) * progress / peak
    falling = end + (1.0 - end) * (1.0 - progress) / (1.0 - peak)
    return jnp.where(progress < peak, rising, falling)


def _sawtooth(progress: Array, *, teeth: int) -> Array:
    return 1.0 - (teeth * progress) % 1.0
