"""Networks whose layers read activations of few bits, where their variables say so."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax.types import Array, Model, Outputs, PyTree, UserError

# A collection of variables that tells to how many steps from 0 to 1 the input of a layer is rounded,
# {path of the layer: {INPUT: steps []}}; SIGNS: to -1 and 1. It is a method's, not the architecture's.
LEVELS, INPUT = "levels", "input"
SIGNS = -1.0


@jax.custom_jvp
def round_off(x: Array, steps: Array) -> Array:
    r"""Numbers cut off to [0,1] and rounded to one of `steps` + 1 values; 0 steps leave them as they are.

    $$x \rightarrow \frac{\mathrm{round}(n\, \mathrm{clip}(x, 0, 1))}{n}, \qquad n = 2^b - 1$$

    The gradient is 1 where $0 \le x \le 1$, else 0 (straight through). Below 0 steps, as with SIGNS, it is
    the sign, 1 above 0 and else -1, whose gradient is 1 where $|x| \le 1$: of what a ReLU gives it is the
    sign of what that is given. Computed in float32, returned in the dtype of x.
    """
    wide = x.astype(jnp.float32)
    rounded = jnp.round(steps * wide.clip(0.0, 1.0)) / jnp.maximum(steps, 1.0)
    signs = jnp.where(wide > 0, 1.0, -1.0)
    return jnp.where(steps > 0, rounded, jnp.where(steps < 0, signs, wide)).astype(x.dtype)


@round_off.defjvp
def _straight_through(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x, steps), (tangent, _) = primals, tangents
    least = jnp.where(steps < 0, -1.0, 0.0)
    return round_off(x, steps), jnp.where((steps != 0) & ((x < least) | (x > 1)), 0, tangent)


@dataclasses.dataclass(frozen=True)
class Rounding(Model):
    """A network that rounds what those of its layers read that LEVELS names; without it, as it was.

    Recurrent ones have no layer at each of their gates whose input could be rounded, and are refused.
    """

    def apply(
        self, variables: PyTree, image: Array, *, train: bool = False, key: Array | None = None
    ) -> tuple[Outputs, PyTree]:
        """As of any network; UserError where one is to be rounded that is recurrent."""
        rounds = nn.intercept_methods(partial(_round_input, self.name))
        with rounds if LEVELS in variables else contextlib.nullcontext():
            return super().apply(variables, image, train=train, key=key)


def round_inputs(model: Model) -> Rounding:
    """The same network, which rounds where its variables say so."""
    return Rounding(**{field.name: getattr(model, field.name) for field in dataclasses.fields(Model)})


def _round_input(network: str, call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    layer = context.module
    if isinstance(layer, nn.RNNCellBase):
        raise UserError(
            f"{network}: {layer.name} is recurrent, and what its gates read cannot be of few bits; must be "
            "another network, or a method of real activations, such as binary.xnor"
        )
    if context.method_name != "__call__" or not layer.has_variable(LEVELS, INPUT):
        return call(*args, **kwargs)
    x, *others = args
    return call(round_off(x, layer.get_variable(LEVELS, INPUT)), *others, **kwargs)
