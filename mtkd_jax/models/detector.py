"""Detectors: what a network sees after one of its stages, read by a head at each place of that map."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.system.spelling import hint
from mtkd_jax.types import Array, Model, Outputs, Task, UserError

BESIDE = 1.0  # places by which a box may lie beside the one that answers for it: see data.boxes.assign


class Detector(nn.Module):
    """See `detector`. The variables of `network` are called as they are in it."""

    task: Task
    network: nn.Module
    stages: tuple[str, ...]
    channels: int
    depth: int
    dtype: str

    def setup(self) -> None:
        nn.share_scope(self, self.network)

    @property
    def whole(self) -> nn.Module:
        """The network of which this is the beginning, by whose name published weights are read."""
        return self.network

    def stage_of(self, name: str) -> str:
        """The stage of a layer, as the network has it; "" of what is behind the last one read."""
        if name == "heads":
            return name
        own = getattr(self.network, "stage_of", None)
        found = own(name) if own else next((s for s in self.stages if f"{name}_".startswith(f"{s}_")), "")
        return found if found in self.stages else ""

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        last = self.stages[-2]
        with layers.cut_after(last) as left:
            entering = self.network(image, train)
        if not isinstance(entering, jax.Array) or entering.ndim != 4:
            raise UserError(
                f"detector.after = {last!r}: what is there is no map of places; take an earlier stage, or a "
                "network that can be cut"
            )
        features = {stage: x for stage, x in left.items() if x.ndim == 4}
        heads = DenseHeads(self.task, self.channels, self.depth, self.dtype, name="heads")
        return layers.through(self, "heads", entering, lambda x: heads(x, features))


class DenseHeads(nn.Module):
    """A tower of 3x3 convolutions, each with layer normalisation and ReLU, and two layers that read it."""

    task: Task
    channels: int
    depth: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array, features: Mapping[str, Array]) -> Outputs:
        for number in range(1, self.depth + 1):
            x = layers.Conv(self.channels, (3, 3), use_bias=False, dtype=self.dtype, name=f"conv{number}")(x)
            x = nn.relu(layers.layer_norm(x, name=f"norm{number}"))
        size, rows, columns, width = x.shape
        places = x.reshape(size, rows * columns, width).astype(jnp.float32)
        classes = layers.Heads(self.task.num_heads, self.task.num_classes, name="classes")(places)
        distances = nn.softplus(nn.Dense(4, name="boxes")(places)) - BESIDE
        outputs = layers.outputs(places, classes, features)
        return dataclasses.replace(outputs, beside={"boxes": _corners(distances, rows, columns)})


def _corners(distances: Array, rows: int, columns: int) -> Array:
    """Corners [B,L,4] of boxes, parts of the image, from distances to their sides [B,L,4] in places."""
    y, x = np.divmod(np.arange(rows * columns), columns) + np.array(0.5)
    middle = np.stack([x, y, x, y], axis=-1).astype(np.float32)
    outward = np.array([-1, -1, 1, 1], np.float32)
    sides = np.array([columns, rows, columns, rows], np.float32)
    return (distances * outward[None, None] + middle[None]) / sides[None, None]


def detector(
    task: Task,
    *,
    network: Model,
    after: str = "",
    channels: int = 64,
    depth: int = 1,
    dtype: str = "float32",
) -> Model:
    r"""A dense head on the map after a stage of another network: the class and the box at each of its places.

    `network` is an address, such as 'resnet(depth=8)', of one that names its stages; what it has behind
    `after` is not there ("" is its last stage of blocks). `depth` convolutions of 3x3 with `channels` read
    the map [B,h,w,d], and at each of the L = h w places, row by row, one layer says the logits [B,L,C] of the
    classes, the first of which is the background, and another how many places away the box ends on each side:

    $$d = \ln(1 + e^a) - 1$$

    Below 0 it ends before the middle of the place. `Outputs.beside["boxes"]` [B,L,4] are its corners (left,
    top, right, bottom), parts of the image's width and height.

    Without anchors, as FCOS (Tian et al. 2019, arXiv 1904.01355), but with one map, a softmax that has a
    background, and no centre-ness. The features are those that leave the stages read, the embedding [B,L,D]
    is what both layers read. Weights and frozen stages are those of `network`. Raises UserError where that
    cannot be cut after the stage, or values are out of range.
    """
    if not network.stages:
        raise UserError(f"detector.network: {network.name} names no stages, so no map of it can be read")
    blocks = [stage for stage in network.stages if stage.startswith("stage")]
    known = network.stages[:-1]
    last = after or (blocks or known)[-1]
    layers.check_argument(
        "detector.after", after, last in known, f"one of {', '.join(known)}{hint(str(after), known)}"
    )
    layers.check_count("detector.channels", channels)
    layers.check_count("detector.depth", depth)
    layers.check_dtype("detector.dtype", dtype)
    if hasattr(network.module, "calibrate"):
        raise UserError(f"detector.network: {network.name} is calibrated by images; take one that is not")
    read = network.stages[: network.stages.index(last) + 1]
    if network.trainable not in ("", *read):
        raise UserError(f"detector.after = {last!r}: all of {network.name} up to there is frozen")
    module = Detector(task, network.module, (*read, "heads"), channels, depth, dtype)
    said = dict(network=network.name, after=after, channels=channels, depth=depth, dtype=dtype)
    return Model(
        layers.address_of(detector, **said),
        module,
        convolutional=True,
        pretrained=network.pretrained,
        trainable=network.trainable,
    )
