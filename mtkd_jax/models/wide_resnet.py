"""Wide residual networks for small images."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.models.pytorch import in_block
from mtkd_jax.models.resnet import WIDTHS, Conv
from mtkd_jax.types import Array, Model, Outputs, Task


class WideResNet(nn.Module):
    """See `wide_resnet`."""

    task: Task
    depth: int
    width: int
    dropout: float
    dtype: str

    stages = ("stem", "stage1", "stage2", "stage3", "last", "heads")

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        features = {}

        def stem(x: Array) -> Array:
            x = layers.normalise(x, self.task.mean, self.task.std)
            features["stem"] = Conv(16, 3, 1, self.dtype, name="stem_conv")(x)
            return features["stem"]

        def blocks(stage: int, channels: int, x: Array) -> Array:
            for block in range(1, (self.depth - 4) // 6 + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                name = f"stage{stage}_block{block}"
                x = Block(channels * self.width, stride, self.dropout, self.dtype, name=name)(x, train)
            features[f"stage{stage}"] = x
            return x

        def last(x: Array) -> Array:
            x = nn.relu(layers.batch_norm(x, train, name="last_norm"))
            return x.mean(axis=(1, 2), dtype=jnp.float32)

        def heads(x: Array) -> Outputs:
            logits = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(x)
            return layers.outputs(x, logits, features)

        x = layers.through(self, "stem", image, stem)
        for stage, channels in enumerate(WIDTHS, start=1):
            x = layers.through(self, f"stage{stage}", x, functools.partial(blocks, stage, channels))
        x = layers.through(self, "last", x, last)
        return layers.through(self, "heads", x, heads)

    def pytorch_module(self, path: str) -> str:
        """The name of a layer in RepDistiller."""
        words = {"stem_conv": "conv1", "last_norm": "bn1", "heads": "fc", "shortcut_conv": "convShortcut"}
        return in_block(path, "block{stage}.layer.{block}.", words)


class Block(nn.Module):
    """x + conv dropout relu BN conv a with a = relu BN x; where channels change, 1x1 conv of a replaces x."""

    channels: int
    stride: int
    dropout: float
    dtype: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        a = nn.relu(layers.batch_norm(x, train, name="norm1"))
        y = Conv(self.channels, 3, self.stride, self.dtype, name="conv1")(a)
        y = nn.relu(layers.batch_norm(y, train, name="norm2"))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        y = Conv(self.channels, 3, 1, self.dtype, name="conv2")(y)
        if x.shape[-1] != self.channels:
            x = Conv(self.channels, 1, self.stride, self.dtype, name="shortcut_conv")(a)
        return x + y


def wide_resnet(
    task: Task, *, depth: int = 16, width: int = 2, dropout: float = 0.0, dtype: str = "float32"
) -> Model:
    """Wide residual network of 6n + 4 layers for small images: the WRN-16-2, WRN-40-2, WRN-28-10 of KD.

    WRN-depth-width (Zagoruyko and Komodakis 2016, arXiv 1605.07146): stages of n pre-activated blocks with
    16, 32 and 64 channels times `width`, after a stem of 16; `dropout` in [0,1) stands between the two
    convolutions of a block. Features "stem" and "stage1" are [B,h,w,d], "stage2" [B,h/2,w/2,d], "stage3"
    [B,h/4,w/4,d], rounded up: the sums that the blocks pass on, before BN and ReLU, which is where
    attention transfer and its successors read this network. The embedding is the mean over the image after
    the last BN and ReLU. For 100 classes of colour images WRN-16-2 has 703 284 parameters, WRN-40-2
    2 255 156 and WRN-28-10 36 536 884. Raises UserError for values out of range.

    Examples:
        >>> wide_resnet(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), depth=40).name
        'wide_resnet(depth=40)'
    """
    valid = isinstance(depth, int) and depth >= 10 and depth % 6 == 4
    layers.check_argument("wide_resnet.depth", depth, valid, "6n + 4, such as 10, 16, 22, 28 or 40")
    layers.check_count("wide_resnet.width", width)
    layers.check_dropout("wide_resnet.dropout", dropout)
    layers.check_dtype("wide_resnet.dtype", dtype)
    arguments: dict[str, Any] = dict(depth=depth, width=width, dropout=dropout, dtype=dtype)
    return Model(
        layers.address_of(wide_resnet, **arguments), WideResNet(task, **arguments), convolutional=True
    )
