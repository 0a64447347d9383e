"""A frozen network with a linear classifier after one of its stages: what it would say if it ended there."""

from __future__ import annotations

import jax
from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.types import Array, Outputs

NETWORK = "network"  # whose variables are those of the frozen network


class Intermediate(nn.Module):
    """Any of this package's modules, as in evaluation, with a head on the flattened map after a stage.

    The embedding is that map, and features are those up to `after`, the name of one of them. No gradient goes
    into the network, whose variables stand in "network".
    """

    network: nn.Module
    num_classes: int
    after: str

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        known = jax.lax.stop_gradient(self.network(image, False).features)
        reached = list(known)[: list(known).index(self.after) + 1]
        flat = known[self.after].reshape(len(image), -1)
        said = nn.Dense(self.num_classes, name="classifier")(flat)
        return layers.outputs(flat, said[None], {stage: known[stage] for stage in reached})


def is_of_classifier(path: str) -> bool:
    """Whether a variable, at a path such as "params/network/dense1/kernel", is the classifier's."""
    return path.split("/")[1] != NETWORK
