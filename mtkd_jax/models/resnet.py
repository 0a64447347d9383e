"""Residual networks for small images."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.types import Array, Model, Outputs, Task

WIDTHS = (16, 32, 64)  # channels of the three stages at width 1


class Conv(nn.Module):
    """Square convolution without bias that starts, and counts its pixels, as those of PyTorch do.

    He-normal over the fan-out (He et al. 2015, arXiv 1502.01852). With a stride of 2 the first window of
    "SAME_LOWER" lies where padding by one on every side would put it, whatever the size of the image.
    """

    features: int
    window: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        shape = (self.window, self.window, x.shape[-1], self.features)
        kernel = self.param("kernel", init, shape, jnp.float32)
        strides = (self.stride, self.stride)
        return layers.conv(x.astype(self.dtype), kernel.astype(self.dtype), strides, "SAME_LOWER")


class ResNet(nn.Module):
    """See `resnet`."""

    task: Task
    depth: int
    width: int
    stem_stride: int
    dtype: str

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        x = layers.normalise(image, self.task.mean, self.task.std)
        x = Conv(max(16, 8 * self.width), 3, self.stem_stride, self.dtype, name="stem_conv")(x)
        x = nn.relu(layers.batch_norm(x, train, name="stem_norm"))
        features = {"stem": x}
        for stage, channels in enumerate(WIDTHS, start=1):
            for block in range(1, (self.depth - 2) // 6 + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                name = f"stage{stage}_block{block}"
                x = Block(channels * self.width, stride, self.dtype, name=name)(x, train)
            features[f"stage{stage}"] = x
        embedding = x.mean(axis=(1, 2), dtype=jnp.float32)
        heads = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(embedding)
        return layers.outputs(embedding, heads, features)


class Block(nn.Module):
    """relu(x + BN conv relu BN conv x); where the shape changes x goes through a 1x1 convolution and BN."""

    channels: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = Conv(self.channels, 3, self.stride, self.dtype, name="conv1")(x)
        y = nn.relu(layers.batch_norm(y, train, name="norm1"))
        y = Conv(self.channels, 3, 1, self.dtype, name="conv2")(y)
        y = layers.batch_norm(y, train, name="norm2")
        if x.shape != y.shape:
            x = Conv(self.channels, 1, self.stride, self.dtype, name="shortcut_conv")(x)
            x = layers.batch_norm(x, train, name="shortcut_norm")
        return nn.relu(x + y)


def resnet(
    task: Task, *, depth: int = 20, width: int = 1, stem_stride: int = 1, dtype: str = "float32"
) -> Model:
    """Residual network of 6n + 2 layers for small images; width 4 makes the resnet8x4 and resnet32x4 of KD.

    Stages of n blocks with 16, 32 and 64 channels times `width`, after a stem of max(16, 8 * width); all of
    them published for CIFAR-10 (He et al. 2016, arXiv 1512.03385, section 4.2), but with the projecting
    shortcuts and the widths of RepDistiller (Tian et al. 2020, arXiv 1910.10699). Features, after their
    ReLU: "stem" and "stage1" are [B,h,w,d], "stage2" [B,h/2,w/2,d], "stage3" [B,h/4,w/4,d], rounded up. The
    embedding is the mean of the last over the image. A `stem_stride` of 2 halves larger images at once, and
    with them all these sizes: a quarter of the work. For 100 classes of colour images resnet(depth=8,
    width=4) has 1 233 540 parameters and resnet(depth=110) 1 736 564. Raises UserError for another depth.

    >>> resnet(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), depth=32, width=4).name
    'resnet(depth=32, width=4)'
    """
    valid = isinstance(depth, int) and depth >= 8 and depth % 6 == 2
    layers.check_argument("resnet.depth", depth, valid, "6n + 2, such as 8, 14, 20, 32, 44, 56 or 110")
    layers.check_count("resnet.width", width)
    layers.check_count("resnet.stem_stride", stem_stride)
    layers.check_dtype("resnet.dtype", dtype)
    arguments = dict(depth=depth, width=width, stem_stride=stem_stride, dtype=dtype)
    return Model(layers.address_of(resnet, **arguments), ResNet(task, **arguments), convolutional=True)
