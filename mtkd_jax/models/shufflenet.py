"""ShuffleNets for small images."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.models.mobilenet import conv_norm
from mtkd_jax.types import Array, Model, Outputs, Task

CHANNELS = {  # width: channels of the three stages and of the last layer
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
BLOCKS = (4, 8, 4)  # in each stage, the first of them with stride 2


class ShuffleNetV2(nn.Module):
    """See `shufflenet_v2`."""

    task: Task
    width: float
    dtype: str

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        *stages, last = CHANNELS[self.width]
        x = layers.normalise(image, self.task.mean, self.task.std)
        x = nn.relu(conv_norm(x, 24, train, "stem", self.dtype))
        features = {"stem": x}
        for stage, (channels, num_blocks) in enumerate(zip(stages, BLOCKS), start=1):
            x = HalvingUnit(channels, self.dtype, name=f"stage{stage}_block1")(x, train)
            for block in range(2, num_blocks + 1):
                x = ShuffleUnit(self.dtype, name=f"stage{stage}_block{block}")(x, train)
            features[f"stage{stage}"] = x
        x = nn.relu(conv_norm(x, last, train, "last", self.dtype))
        embedding = x.mean(axis=(1, 2), dtype=jnp.float32)
        heads = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(embedding)
        return layers.outputs(embedding, heads, features)


class ShuffleUnit(nn.Module):
    """One half of the channels goes through three convolutions, the other stays; then they are shuffled."""

    dtype: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        half = x.shape[-1] // 2
        return _shuffled(x[..., :half], _branch(x[..., half:], half, 1, train, self.dtype))


class HalvingUnit(nn.Module):
    """Two branches with stride 2 see all channels and give half of `channels` each; then a shuffle."""

    channels: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        half = self.channels // 2
        short = _depthwise(x, 2, train, "short_depthwise", self.dtype)
        short = nn.relu(conv_norm(short, half, train, "short_project", self.dtype))
        return _shuffled(short, _branch(x, half, 2, train, self.dtype))


def _branch(x: Array, channels: int, stride: int, train: bool, dtype: str) -> Array:
    """1x1, 3x3 depthwise, 1x1; no ReLU after the depthwise one. Belongs to the module it is called in."""
    x = nn.relu(conv_norm(x, channels, train, "expand", dtype))
    x = _depthwise(x, stride, train, "depthwise", dtype)
    return nn.relu(conv_norm(x, channels, train, "project", dtype))


def _depthwise(x: Array, stride: int, train: bool, name: str, dtype: str) -> Array:
    channels = x.shape[-1]
    return conv_norm(x, channels, train, name, dtype, window=3, stride=stride, groups=channels)


def _shuffled(one: Array, other: Array) -> Array:
    """The channels of both, taken in turn: so each half of what follows sees both branches."""
    both = jnp.stack([one, other], axis=-1)
    return both.reshape(*both.shape[:3], -1)


def shufflenet_v2(task: Task, *, width: float = 1.0, dtype: str = "float32") -> Model:
    """ShuffleNetV2 for 32x32 images: three stages of 4, 8 and 4 units; width 0.5, 1.0, 1.5 or 2.0.

    Channels are those of Table 5 (Ma et al. 2018, arXiv 1807.11164). As in RepDistiller the image enters
    through a 1x1 convolution at full size: feature "stem" is [B,h,w,24], "stage1" [B,h/2,w/2,d], "stage2"
    [B,h/4,w/4,d], "stage3" [B,h/8,w/8,d], rounded up. The embedding is the mean over the image of the last
    layer. Width 1 has 1 355 528 parameters for 100 classes of colour images. Raises UserError for another
    width.

    Examples:
        >>> shufflenet_v2(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), width=0.5).name
        'shufflenet_v2(width=0.5)'
    """
    valid = isinstance(width, int | float) and width in CHANNELS
    layers.check_argument("shufflenet_v2.width", width, valid, "0.5, 1.0, 1.5 or 2.0")
    layers.check_dtype("shufflenet_v2.dtype", dtype)
    arguments: dict[str, Any] = dict(width=width, dtype=dtype)
    return Model(
        layers.address_of(shufflenet_v2, **arguments), ShuffleNetV2(task, **arguments), convolutional=True
    )
