"""A network without some of its units, which are always the same: one draw of its dropout."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax.types import Array, Model, Outputs

THINNED = "thinned "  # before the name of such a network: no address makes it


class Thinned(nn.Module):
    """Any of this package's modules, each of its Dropout layers replaced by a mask that does not change.

    A mask [...] is drawn when the variables are, 0 or 1 / (1 - rate) for each number of an image, and stands
    in the variables as "masks"/NAME OF THE LAYER, so that a population can hold many draws of one network.
    """

    network: nn.Module

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        def thin(call: Any, args: tuple, kwargs: dict, context: Any) -> Array:
            layer = context.module
            if not isinstance(layer, nn.Dropout) or context.method_name != "__call__":
                return call(*args, **kwargs)
            x, keep = args[0], 1.0 - layer.rate

            def draw() -> Array:
                kept = jax.random.bernoulli(self.make_rng("params"), keep, x.shape[1:])
                return kept.astype(jnp.float32) / keep

            mask = self.variable("masks", "_".join(layer.path[1:]), draw).value
            return x * mask[None].astype(x.dtype)

        with nn.intercept_methods(thin):
            return self.network(image, train)


def drops(model: Model, image: jax.ShapeDtypeStruct) -> bool:
    """Whether any layer leaves out units in training; images are [B,h,w,c]."""
    rates = []

    def note(call: Any, args: tuple, kwargs: dict, context: Any) -> Any:
        if isinstance(context.module, nn.Dropout):
            rates.append(context.module.rate)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(model.init, jax.random.key(0), image)
    return any(rates)
