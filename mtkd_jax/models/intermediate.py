"""A frozen network with linear classifiers after some of its stages: what it would say if it ended there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.types import Array, Outputs

NETWORK = "network"  # whose variables are those of the frozen network


class Intermediate(nn.Module):
    """Any of this package's modules, as in evaluation, with a head on the flattened map after each stage.

    Heads are those classifiers alone, in the order of `after`, names of features; no gradient goes into the
    network, whose variables stand in "network". Those of a classifier are called the same whatever others
    there are.
    """

    network: nn.Module
    num_classes: int
    after: tuple[str, ...]

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        known = jax.lax.stop_gradient(self.network(image, False))

        def classified(stage: str) -> Array:
            flat = known.features[stage].reshape(len(image), -1)
            return nn.Dense(self.num_classes, name=f"{stage}_classifier")(flat)

        return layers.outputs(known.embedding, jnp.stack([classified(s) for s in self.after]), known.features)


def is_of_heads(path: str) -> bool:
    """Whether a variable, at a path such as "params/network/dense1/kernel", is a classifier's."""
    return path.split("/")[1] != NETWORK


def alone(variables: dict, stage: str) -> dict:
    """Of variables with several classifiers, those with the one after `stage`."""
    own = {NETWORK, f"{stage}_classifier"}
    return {kind: {name: of[name] for name in of if name in own} for kind, of in variables.items()}
