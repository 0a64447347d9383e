"""MobileNets for small images."""

from __future__ import annotations

import math

import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.types import Array, Model, Outputs, Task

STAGES = {  # of a row of blocks: channels at width 1, number, stride of the first, expansion
    "stage1": ((16, 1, 1, 1), (24, 2, 1, 6)),
    "stage2": ((32, 3, 2, 6),),
    "stage3": ((64, 4, 2, 6), (96, 3, 1, 6)),
    "stage4": ((160, 3, 2, 6), (320, 1, 1, 6)),
}


class MobileNetV2(nn.Module):
    """See `mobilenet_v2`."""

    task: Task
    width: float
    dtype: str

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        x = layers.normalise(image, self.task.mean, self.task.std)
        x = nn.relu(conv_norm(x, int(32 * self.width), train, "stem", self.dtype, window=3, stride=2))
        features = {"stem": x}
        number = 0
        for stage, rows in STAGES.items():
            for channels, num_blocks, first_stride, expansion in rows:
                for stride in (first_stride, *[1] * (num_blocks - 1)):
                    number += 1
                    block = Block(
                        int(channels * self.width), expansion, stride, self.dtype, name=f"block{number}"
                    )
                    x = block(x, train)
            features[stage] = x
        x = nn.relu(conv_norm(x, int(1280 * max(1.0, self.width)), train, "last", self.dtype))
        embedding = x.mean(axis=(1, 2), dtype=jnp.float32)
        heads = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(embedding)
        return layers.outputs(embedding, heads, features)


class Block(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection; a shortcut where the shape stays the same."""

    channels: int
    expansion: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        hidden = x.shape[-1] * self.expansion
        y = nn.relu(conv_norm(x, hidden, train, "expand", self.dtype))
        y = conv_norm(y, hidden, train, "depthwise", self.dtype, window=3, stride=self.stride, groups=hidden)
        y = conv_norm(nn.relu(y), self.channels, train, "project", self.dtype)
        return x + y if x.shape == y.shape else y


def conv_norm(
    x: Array,
    channels: int,
    train: bool,
    name: str,
    dtype: str,
    *,
    window: int = 1,
    stride: int = 1,
    groups: int = 1,
    # A stride of 2 starts at the same pixel as with the padding of one on each side of other programs.
    padding: str = "SAME_LOWER",
    epsilon: float = 1e-5,
) -> Array:
    """Convolution without bias, then BatchNorm; both belong to the module it is called in."""
    conv = layers.Conv(
        channels,
        (window, window),
        (stride, stride),
        padding=padding,
        use_bias=False,
        dtype=dtype,
        groups=groups,
        name=f"{name}_conv",
    )
    return layers.batch_norm(conv(x), train, name=f"{name}_norm", epsilon=epsilon)


def mobilenet_v2(task: Task, *, width: float = 0.5, dtype: str = "float32") -> Model:
    """MobileNetV2 for 32x32 images: 17 inverted residual blocks; width 0.5 is `mobile_half` of RepDistiller.

    Channels are int(width * those of Table 2) (Sandler et al. 2018, arXiv 1801.04381), the last layer never
    has fewer than 1280. Strides are RepDistiller's for CIFAR: features "stem" and "stage1" are [B,h/2,w/2,d],
    "stage2" is [B,h/4,w/4,d], "stage3" [B,h/8,w/8,d], "stage4" [B,h/16,w/16,d], rounded up; a stage ends
    without ReLU. The embedding is the mean over the image of the last layer. 812 836 parameters for 100
    classes of colour images. Raises UserError for a width under 1/16, where a layer has no channel.

    >>> mobilenet_v2(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), width=1.0).name
    'mobilenet_v2(width=1.0)'
    """
    valid = isinstance(width, int | float) and 1 / 16 <= width < math.inf
    layers.check_argument("mobilenet_v2.width", width, valid, "a number >= 1/16")
    layers.check_dtype("mobilenet_v2.dtype", dtype)
    arguments = dict(width=width, dtype=dtype)
    return Model(
        layers.address_of(mobilenet_v2, **arguments), MobileNetV2(task, **arguments), convolutional=True
    )
