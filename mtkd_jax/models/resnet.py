"""Residual networks, for small images and for those of ImageNet."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.models.pytorch import in_block
from mtkd_jax.types import Array, Model, Outputs, Task

WIDTHS = (16, 32, 64)  # channels of the three stages at width 1
IMAGENET_WIDTHS = (64, 128, 256, 512)
IMAGENET_BLOCKS = {  # depth -> blocks of the four stages; from 50 on they are bottlenecks
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
PYTORCH_WORDS = {
    "stem_conv": "conv1",
    "stem_norm": "bn1",
    "heads": "fc",
    "shortcut_conv": "downsample.0",
    "shortcut_norm": "downsample.1",
}


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
    bottleneck: bool
    stem_stride: int
    dtype: str

    stages = ("stem", "stage1", "stage2", "stage3", "heads")

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        features = {}

        def stem(x: Array) -> Array:
            x = layers.normalise(x, self.task.mean, self.task.std)
            width = 16 if self.bottleneck else max(16, 8 * self.width)
            x = Conv(width, 3, self.stem_stride, self.dtype, name="stem_conv")(x)
            features["stem"] = nn.relu(layers.batch_norm(x, train, name="stem_norm"))
            return features["stem"]

        def blocks(stage: int, channels: int, x: Array) -> Array:
            for block in range(1, (self.depth - 2) // (9 if self.bottleneck else 6) + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                name = f"stage{stage}_block{block}"
                x = _block(self.bottleneck, channels, self.width, stride, self.dtype, name)(x, train)
            features[f"stage{stage}"] = x
            return x

        def heads(x: Array) -> Outputs:
            embedding = x.mean(axis=(1, 2), dtype=jnp.float32)
            logits = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(embedding)
            return layers.outputs(embedding, logits, features)

        x = layers.through(self, "stem", image, stem)
        for stage, channels in enumerate(WIDTHS, start=1):
            x = layers.through(self, f"stage{stage}", x, functools.partial(blocks, stage, channels))
        return layers.through(self, "heads", x, heads)

    def pytorch_module(self, path: str) -> str:
        """The name of a layer in RepDistiller."""
        return in_block(path, "layer{stage}.{block}.", PYTORCH_WORDS)


class ImageNetResNet(nn.Module):
    """See `imagenet_resnet`."""

    task: Task
    depth: int
    width: int
    image_size: int
    stem: str
    dtype: str

    stages = ("stem", "stage1", "stage2", "stage3", "stage4", "heads")

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        features = {}

        def stem(image: Array) -> Array:
            x = layers.prepare(image, self.task, self.image_size, least=1)
            window, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
            x = Conv(64, window, stride, self.dtype, name="stem_conv")(x)
            x = nn.relu(layers.batch_norm(x, train, name="stem_norm"))
            if self.stem == "imagenet":
                x = layers.overlapping_max_pool(x, 3, 2, padding=1)
            features["stem"] = x
            return x

        def blocks(stage: int, x: Array) -> Array:
            channels = IMAGENET_WIDTHS[stage - 1]
            for block in range(1, IMAGENET_BLOCKS[self.depth][stage - 1] + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                name = f"stage{stage}_block{block}"
                x = _block(self.depth >= 50, channels, self.width, stride, self.dtype, name)(x, train)
            features[f"stage{stage}"] = x
            return x if stage < len(IMAGENET_WIDTHS) else x.mean(axis=(1, 2), dtype=jnp.float32)

        def heads(embedding: Array) -> Outputs:
            heads = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(embedding)
            return layers.outputs(embedding, heads, features)

        stages = (functools.partial(blocks, stage) for stage in range(1, len(IMAGENET_WIDTHS) + 1))
        return layers.in_turn(self, image, stem, *stages, heads)

    def pytorch_module(self, path: str) -> str:
        """The name of a layer in torchvision."""
        return in_block(path, "layer{stage}.{block}.", PYTORCH_WORDS)


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


class Bottleneck(nn.Module):
    """As `Block`, with convolutions of 1x1, 3x3 and 1x1; the last has four times the channels."""

    channels: int
    width: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        inner, outer = self.channels * self.width, 4 * self.channels
        y = Conv(inner, 1, 1, self.dtype, name="conv1")(x)
        y = nn.relu(layers.batch_norm(y, train, name="norm1"))
        y = Conv(inner, 3, self.stride, self.dtype, name="conv2")(y)
        y = nn.relu(layers.batch_norm(y, train, name="norm2"))
        y = Conv(outer, 1, 1, self.dtype, name="conv3")(y)
        y = layers.batch_norm(y, train, name="norm3")
        if x.shape != y.shape:
            x = Conv(outer, 1, self.stride, self.dtype, name="shortcut_conv")(x)
            x = layers.batch_norm(x, train, name="shortcut_norm")
        return nn.relu(x + y)


def _block(bottleneck: bool, channels: int, width: int, stride: int, dtype: str, name: str) -> nn.Module:
    """A bottleneck, whose inner channels `width` multiplies, or a block, of which it multiplies all."""
    if bottleneck:
        return Bottleneck(channels, width, stride, dtype, name=name)
    return Block(channels * width, stride, dtype, name=name)


def resnet(
    task: Task,
    *,
    depth: int = 20,
    width: int = 1,
    bottleneck: bool = False,
    stem_stride: int = 1,
    dtype: str = "float32",
) -> Model:
    """Residual network of 6n + 2 layers for small images; width 4 makes the resnet8x4 and resnet32x4 of KD.

    Stages of n blocks with 16, 32 and 64 channels times `width`, after a stem of max(16, 8 * width); all of
    them published for CIFAR-10 (He et al. 2016, arXiv 1512.03385, section 4.2), but with the projecting
    shortcuts and the widths of RepDistiller (Tian et al. 2020, arXiv 1910.10699). Features, after their
    ReLU: "stem" and "stage1" are [B,h,w,d], "stage2" [B,h/2,w/2,d], "stage3" [B,h/4,w/4,d], rounded up. The
    embedding is the mean of the last over the image. A `stem_stride` of 2 halves larger images at once, and
    with them all these sizes: a quarter of the work. For 100 classes of colour images resnet(depth=8,
    width=4) has 1 233 540 parameters and resnet(depth=110) 1 736 564.

    With `bottleneck` the network has 9n + 2 layers: blocks are those of `imagenet_resnet` from depth 50 on,
    of which `width` multiplies the inner channels alone, features have four times the channels, and the stem
    has 16. resnet(depth=110, bottleneck=True) and resnet(depth=20, width=8, bottleneck=True) are what papers
    on online distillation (Chen et al. 2020, arXiv 1912.00350; Wu and Gong 2021, arXiv 2006.04147) call
    ResNet-110 and WRN-20-8, of 1 170 868 and 6 871 220 parameters. Raises UserError for another depth.

    Examples:
        >>> resnet(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), depth=32, width=4).name
        'resnet(depth=32, width=4)'
    """
    convolutions = 9 if bottleneck else 6  # n blocks of three or two in each of three stages
    valid = isinstance(depth, int) and depth > 2 and depth % convolutions == 2
    expected = "6n + 2, such as 8, 14, 20, 32, 44, 56 or 110"
    if bottleneck:
        expected = "9n + 2 with bottlenecks, such as 11, 20, 29, 56, 110 or 164"
    layers.check_argument("resnet.depth", depth, valid, expected)
    layers.check_count("resnet.width", width)
    layers.check_count("resnet.stem_stride", stem_stride)
    layers.check_dtype("resnet.dtype", dtype)
    arguments: dict[str, Any] = dict(
        depth=depth, width=width, bottleneck=bottleneck, stem_stride=stem_stride, dtype=dtype
    )
    return Model(layers.address_of(resnet, **arguments), ResNet(task, **arguments), convolutional=True)


def imagenet_resnet(
    task: Task,
    *,
    depth: int = 18,
    width: int = 1,
    image_size: int = 0,
    stem: str = "imagenet",
    pretrained: str = "",
    trainable: str = "",
    dtype: str = "float32",
) -> Model:
    """ResNet-18, 34, 50, 101 or 152 as published for ImageNet; depth 50 with width 2 is Wide-ResNet-50-2.

    A 7x7 convolution of stride 2, a maximum over 3x3 of stride 2, and four stages of 64, 128, 256 and 512
    channels (He et al. 2016, arXiv 1512.03385), of blocks below depth 50 and of bottlenecks from there, whose
    stride is that of the 3x3 convolution, as in torchvision. `width` multiplies the inner channels of
    bottlenecks (Zagoruyko and Komodakis 2016, arXiv 1605.07146). The stem "cifar", for images of 32 pixels,
    is a 3x3 convolution of stride 1 alone. Features "stem" and "stage1" are [B,h/4,w/4,d], "stage2" to
    "stage4" half, a quarter and an eighth of that, rounded up; the embedding is the mean of the last over the
    image. With `image_size` images are first resized to squares of that side, bilinearly; 0 leaves them as
    they are. `pretrained` and `trainable`: see `types.Model`. For 1000 classes ResNet-18 has 11 689 512
    parameters and ResNet-50 25 557 032. Raises UserError for values out of range.

    Examples:
        >>> imagenet_resnet(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), stem="cifar").name
        "imagenet_resnet(stem='cifar')"
    """
    depths = ", ".join(map(str, IMAGENET_BLOCKS))
    layers.check_argument("imagenet_resnet.depth", depth, depth in IMAGENET_BLOCKS, f"one of {depths}")
    layers.check_count("imagenet_resnet.width", width)
    valid = width == 1 or depth >= 50
    layers.check_argument("imagenet_resnet.width", width, valid, "1 below depth 50, which has no bottlenecks")
    return layers.published(
        imagenet_resnet,
        ImageNetResNet,
        task,
        depth=depth,
        width=width,
        image_size=image_size,
        stem=stem,
        pretrained=pretrained,
        trainable=trainable,
        dtype=dtype,
    )
