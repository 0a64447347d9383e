"""The networks that are trained, and the made-up data they are trained on, the same for every side."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from mtkd_jax.addresses import build_model
from mtkd_jax.types import Model, Task, UserError

NUM_CLASSES = 10
NUM_EXAMPLES = 1024
MEAN, STD = 0.5, 0.25  # of every channel; all sides subtract and divide
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4  # SGD with Nesterov momentum, on every side


class Network(NamedTuple):
    """A network at its batch size; `family` names it in `models`, `plain`, `pytorch` and `work` alike."""

    name: str
    family: str
    arguments: Mapping[str, Any]
    shape: tuple[int, int, int]  # of an image, h w c
    batch_size: int
    num_steps: int  # that are timed as one: many where a step is short
    members: tuple[int, ...]  # the K that are measured unless others are asked for
    quick: tuple[int, ...]  # and with --quick
    dtype: str = "float32"  # that is computed in

    @property
    def model(self) -> Model:
        """Ours."""
        of_dtype = {} if self.dtype == "float32" else {"dtype": self.dtype}
        arguments = ", ".join(f"{name}={value!r}" for name, value in {**self.arguments, **of_dtype}.items())
        channels = self.shape[-1]
        task = Task(NUM_CLASSES, 1, (MEAN,) * channels, (STD,) * channels)
        return build_model(f"{self.family}({arguments})", task, "networks")

    @property
    def convolutional(self) -> bool:
        return self.family != "mlp"


SMALL, COLOUR = (28, 28, 1), (32, 32, 3)
EVERY_K = (1, 2, 4, 8, 16)
NETWORKS = {
    network.name: network
    for network in (
        Network("mlp", "mlp", {"hidden": (256, 256)}, SMALL, 64, 32, EVERY_K, (8,)),
        Network("cnn", "cnn", {}, SMALL, 128, 2, EVERY_K, (8,)),
        Network("resnet20", "resnet", {"depth": 20}, COLOUR, 128, 2, (4, 8), (2,)),
        Network("wrn16_2", "wide_resnet", {"depth": 16, "width": 2}, COLOUR, 128, 2, (2,), ()),
        Network("wrn16_4", "wide_resnet", {"depth": 16, "width": 4}, COLOUR, 128, 2, (2,), ()),
        Network("wrn28_10", "wide_resnet", {"depth": 28, "width": 10}, COLOUR, 128, 2, (4,), ()),
    )
}


def named(names: str) -> list[Network]:
    """The networks of "cnn,resnet20"; UserError for one that is not known."""
    unknown = [name for name in names.split(",") if name not in NETWORKS]
    if unknown:
        raise UserError(f"--networks {names}: no network {unknown[0]!r}; known are {', '.join(NETWORKS)}")
    return [NETWORKS[name] for name in names.split(",")]


@lru_cache
def examples(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Images [N,h,w,c] uint8 and labels [N] int32 without any sense: time does not depend on them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_EXAMPLES, *shape), dtype=np.uint8)
    return images, rng.integers(0, NUM_CLASSES, NUM_EXAMPLES, dtype=np.int32)


def order(network: Network, num_members: int) -> np.ndarray:
    """Indices [S,M,B]: every member draws its own batches, like teachers do."""
    shape = (network.num_steps, num_members, network.batch_size)
    return np.random.default_rng(1).integers(0, NUM_EXAMPLES, shape, dtype=np.int32)


def batches(network: Network, num_members: int) -> tuple[np.ndarray, np.ndarray]:
    """The same as normalised float32 images [S,M,B,h,w,c] and labels: handed to those who compare with us.

    They are spared drawing, scaling and normalising, which our step does.
    """
    images, labels = examples(network.shape)
    drawn = order(network, num_members)
    return (images[drawn].astype(np.float32) / 255 - MEAN) / STD, labels[drawn]
