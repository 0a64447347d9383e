r"""Networks of neurons that spike: leaky integrate-and-fire, unrolled over some time steps.

$$u_t = \lambda\, u_{t-1} (1 - s_{t-1}) + I_t, \qquad s_t = [u_t \ge 1]$$

I is what a layer computes of the spikes that enter it, u the potential of its neurons, $\lambda$ `decay`. In
the gradient $\partial s / \partial u = \max(0, 1 - |u - 1|)$, a triangle around the threshold (Esser et al.
2016, arXiv 1603.08270), and the reset has none. The image is a current that flows at every step. The heads
read the share of steps at which each neuron of the last layer spikes: their logits are the mean over time of
a readout without leak. Features are these shares, "stage1", "stage2", ...: what methods of features match,
and what the report counts spikes by.

Every method teaches such students. Temperatures that differ between teacher and student (arXiv 2106.07172,
2021) are `logits.mixed_temperatures`.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.types import Array, Model, Outputs, Task, UserError


@jax.custom_jvp
def spike(potential: Array) -> Array:
    """1 where a potential reaches 1, else 0; its derivative is a triangle of width 2 around that."""
    return (potential >= 1).astype(potential.dtype)


@spike.defjvp
def _spike_tangent(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (potential,), (tangent,) = primals, tangents
    return spike(potential), tangent * jnp.maximum(1 - jnp.abs(potential - 1), 0)


def integrate(current: Array, decay: float) -> Array:
    """Spikes [T,...] of neurons that a current [T,...] flows into; all begin at 0."""

    def step(potential: Array, current: Array) -> tuple[Array, Array]:
        potential = decay * potential + current
        fired = spike(potential)
        return potential * (1 - jax.lax.stop_gradient(fired)), fired

    _, spikes = jax.lax.scan(step, jnp.zeros_like(current[0]), current)
    return spikes


class Spiking(nn.Module):
    """See `spiking_cnn` and `spiking_mlp`."""

    task: Task
    widths: tuple[int, ...]
    hidden: tuple[int, ...]
    time_steps: int
    decay: float
    batch_norm: bool
    dtype: str

    @property
    def stages(self) -> tuple[str, ...]:
        """The parts of the network in order of depth."""
        return (*(f"stage{n}" for n in range(1, len(self.widths) + len(self.hidden) + 1)), "heads")

    def stage_of(self, name: str) -> str:
        """The stage of a layer, which is called by its number."""
        return name if name == "heads" else f"stage{re.sub('[a-z]', '', name)}"

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        features = {}

        def fire(number: int, current: Array) -> Array:
            """[B,...] of the image, or [T,B,...], -> spikes [T,B,...]."""
            if number == 1:
                current = jnp.broadcast_to(current, (self.time_steps, *current.shape))
            spikes = integrate(current, self.decay)
            rates = spikes.mean(axis=0)
            features[f"stage{number}"] = rates if rates.ndim == 4 else rates[:, None, None, :]
            return spikes

        def layer(number: int, x: Array) -> Array:
            if number == 1:
                self._check_size(x)
                x = layers.normalise(x, self.task.mean, self.task.std)
            flat = x if number == 1 else x.reshape(-1, *x.shape[2:])
            flat = self._connect(number, flat)
            if self.batch_norm:
                flat = layers.batch_norm(flat, train, name=f"norm{number}")
            spikes = fire(number, flat if number == 1 else flat.reshape(self.time_steps, -1, *flat.shape[1:]))
            if number > len(self.widths):
                return spikes
            pooled = layers.max_pool(spikes.reshape(-1, *spikes.shape[2:]), 2)
            return pooled.reshape(self.time_steps, -1, *pooled.shape[1:])

        def heads(spikes: Array) -> Outputs:
            rates = spikes.mean(axis=0).reshape(spikes.shape[1], -1).astype(jnp.float32)
            logits = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(rates)
            return layers.outputs(rates, logits, features)

        computes = [functools.partial(layer, number) for number in range(1, len(self.stages))]
        return layers.in_turn(self, image, *computes, heads)

    def _connect(self, number: int, x: Array) -> Array:
        """The current of a layer, of what enters it, [B,...] both."""
        if number <= len(self.widths):
            size, bias = (3, 3), not self.batch_norm
            width, name = self.widths[number - 1], f"conv{number}"
            return layers.Conv(width, size, use_bias=bias, dtype=self.dtype, name=name)(x)
        width, name = self.hidden[number - 1 - len(self.widths)], f"dense{number}"
        init, bias = layers.HE, not self.batch_norm
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(width, use_bias=bias, kernel_init=init, dtype=self.dtype, name=name)(x)

    def _check_size(self, image: Array) -> None:
        _, height, width, _ = image.shape
        if min(height, width) < 2 ** len(self.widths):
            raise UserError(
                f"spiking_cnn.widths = {self.widths}: images of {height}x{width} are too small to be halved "
                f"{len(self.widths)} times: expected fewer widths"
            )


def spiking_mlp(
    task: Task,
    *,
    hidden: tuple[int, ...] = (64, 64),
    time_steps: int = 8,
    decay: float = 0.5,
    batch_norm: bool = False,
    dtype: str = "float32",
) -> Model:
    """Multilayer perceptron of leaky integrate-and-fire neurons, `time_steps` steps an image.

    `hidden` are the widths of its layers, at least one; `decay` in [0,1) is what a potential keeps in a step.
    With `batch_norm` the currents are normalised over images and steps. Features "stage1", "stage2", ... are
    [B,1,1,width]: how often each neuron spikes, in [0,1]. Raises UserError for values out of range.

    Examples:
        >>> spiking_mlp(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), time_steps=4).name
        'spiking_mlp(time_steps=4)'
    """
    arguments: dict[str, Any] = dict(
        hidden=hidden, time_steps=time_steps, decay=decay, batch_norm=batch_norm, dtype=dtype
    )
    _check("spiking_mlp", "hidden", **arguments)
    return Model(layers.address_of(spiking_mlp, **arguments), Spiking(task, (), **arguments))


def spiking_cnn(
    task: Task,
    *,
    widths: tuple[int, ...] = (32, 64),
    hidden: tuple[int, ...] = (128,),
    time_steps: int = 8,
    decay: float = 0.5,
    batch_norm: bool = False,
    dtype: str = "float32",
) -> Model:
    """Small convolutional network of leaky integrate-and-fire neurons, `time_steps` steps an image.

    A 3x3 convolution per width, each with 2x2 max-pooling of its spikes, then the layers of `hidden`. What
    else is as in `spiking_mlp`; features of convolutions are [B,h,w,d], before pooling. Raises UserError for
    values out of range and, once it sees an image, when that is too small to be halved once per width.

    Examples:
        >>> spiking_cnn(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), batch_norm=True).name
        'spiking_cnn(batch_norm=True)'
    """
    arguments: dict[str, Any] = dict(
        **dict(widths=widths, hidden=hidden, time_steps=time_steps),
        **dict(decay=decay, batch_norm=batch_norm, dtype=dtype),
    )
    _check("spiking_cnn", "widths", **arguments)
    return Model(layers.address_of(spiking_cnn, **arguments), Spiking(task, **arguments), convolutional=True)


def _check(family: str, needed: str, **arguments: Any) -> None:
    """Raise UserError for arguments out of range, and where those `needed` are ()."""
    for name in ("widths", "hidden"):
        layers.check_widths(f"{family}.{name}", arguments.get(name, ()))
    value = arguments[needed]
    layers.check_argument(f"{family}.{needed}", value, len(value) > 0, "at least one width")
    layers.check_count(f"{family}.time_steps", arguments["time_steps"])
    layers.check_dropout(f"{family}.decay", arguments["decay"])
    layers.check_dtype(f"{family}.dtype", arguments["dtype"])
