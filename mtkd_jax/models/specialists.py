"""A network that answers for some of the classes only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mtkd_jax.types import Array, Outputs


class Specialist(nn.Module):
    """Any of this package's modules, its logits multiplied by a share [C] that is not trained, at first 1.

    The share stands in the variables as "coverage"/"share", so that a population of one architecture can
    hold specialists of different classes.
    """

    network: nn.Module

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        outputs = self.network(image, train)
        share = self.variable("coverage", "share", jnp.ones, outputs.logits.shape[-1:]).value
        return dataclasses.replace(
            outputs,
            logits=outputs.logits * share[None],
            heads=outputs.heads * share[None, None],
        )

    def calibrate(self, images: np.ndarray) -> Mapping[str, np.ndarray]:
        """What the network computes from training images; {} where it computes nothing."""
        found: Mapping[str, np.ndarray] = getattr(self.network, "calibrate", lambda images: {})(images)
        return {path.replace("/", "/network/", 1): value for path, value in found.items()}
