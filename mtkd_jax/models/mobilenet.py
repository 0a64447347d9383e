"""MobileNets, for small images and for those of ImageNet."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.models.pytorch import numbers_in
from mtkd_jax.types import Array, Model, Outputs, Task

STAGES = {  # of a row of blocks: channels at width 1, number, stride of the first, expansion
    "stage1": ((16, 1, 1, 1), (24, 2, 1, 6)),
    "stage2": ((32, 3, 2, 6),),
    "stage3": ((64, 4, 2, 6), (96, 3, 1, 6)),
    "stage4": ((160, 3, 2, 6), (320, 1, 1, 6)),
}
IMAGENET_V2 = {  # stage: rows of expansion, channels at width 1, number, stride of the first
    "stage1": ((1, 16, 1, 1),),
    "stage2": ((6, 24, 2, 2),),
    "stage3": ((6, 32, 3, 2),),
    "stage4": ((6, 64, 4, 2), (6, 96, 3, 1)),
    "stage5": ((6, 160, 3, 2), (6, 320, 1, 1)),
}
V3 = {  # size: stage: window, hidden and outer channels at width 1, squeezed, activation, stride of a block
    "large": {
        "stage1": ((3, 16, 16, False, "relu", 1),),
        "stage2": ((3, 64, 24, False, "relu", 2), (3, 72, 24, False, "relu", 1)),
        "stage3": ((5, 72, 40, True, "relu", 2), *[(5, 120, 40, True, "relu", 1)] * 2),
        "stage4": (
            (3, 240, 80, False, "hard_swish", 2),
            (3, 200, 80, False, "hard_swish", 1),
            *[(3, 184, 80, False, "hard_swish", 1)] * 2,
            (3, 480, 112, True, "hard_swish", 1),
            (3, 672, 112, True, "hard_swish", 1),
        ),
        "stage5": ((5, 672, 160, True, "hard_swish", 2), *[(5, 960, 160, True, "hard_swish", 1)] * 2),
    },
    "small": {
        "stage1": ((3, 16, 16, True, "relu", 2),),
        "stage2": ((3, 72, 24, False, "relu", 2), (3, 88, 24, False, "relu", 1)),
        "stage3": (
            (5, 96, 40, True, "hard_swish", 2),
            *[(5, 240, 40, True, "hard_swish", 1)] * 2,
            (5, 120, 48, True, "hard_swish", 1),
            (5, 144, 48, True, "hard_swish", 1),
        ),
        "stage4": ((5, 288, 96, True, "hard_swish", 2), *[(5, 576, 96, True, "hard_swish", 1)] * 2),
    },
}
V3_DENSE = {"large": 1280, "small": 1024}
ACTIVATIONS = {"relu": nn.relu, "relu6": nn.relu6, "hard_swish": nn.hard_swish}


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
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    # A stride of 2 starts at the same pixel as with the padding of one on each side of other programs.
    padding: str = "SAME_LOWER",
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
    return layers.batch_norm(conv(x), train, name=f"{name}_norm", epsilon=epsilon, momentum=momentum)


# --- for ImageNet -------------------------------------------------------------------------------------


class Residual(NamedTuple):
    """What an inverted residual block is made of; channels as they are."""

    window: int
    inputs: int
    hidden: int
    outputs: int
    squeezed: bool
    activation: str
    stride: int

    @property
    def expands(self) -> bool:
        """Whether a 1x1 convolution makes the hidden channels."""
        return self.hidden != self.inputs


class Norm(NamedTuple):
    """The two numbers of every BatchNorm of a network."""

    epsilon: float
    momentum: float


class ImageNetMobileNet(nn.Module):
    """The body that both MobileNets for ImageNet share; `rows` are the blocks of each stage."""

    task: Task
    rows: tuple[tuple[Residual, ...], ...]
    last: int
    dense: int  # units of a layer before the heads; 0 is none
    activation: str
    norm: Norm
    dropout: float
    image_size: int
    stem: str
    dtype: str

    @property
    def stages(self) -> tuple[str, ...]:
        """The parts of the network in order of depth."""
        return ("stem", *(f"stage{number}" for number in range(1, len(self.rows) + 1)), "last", "heads")

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        act, norm, features = ACTIVATIONS[self.activation], self.norm._asdict(), {}

        def stem(image: Array) -> Array:
            x = layers.prepare(image, self.task, self.image_size, least=1)
            stride = 2 if self.stem == "imagenet" else 1
            first = self.rows[0][0].inputs
            x = act(conv_norm(x, first, train, "stem", self.dtype, window=3, stride=stride, **norm))
            features["stem"] = x
            return x

        def blocks(stage: int, rows: tuple[Residual, ...], x: Array) -> Array:
            for number, row in enumerate(rows, start=1):
                name = f"stage{stage}_block{number}"
                x = InvertedResidual(row, self.norm, self.dtype, name=name)(x, train)
            features[f"stage{stage}"] = x
            return x

        def last(x: Array) -> Array:
            x = act(conv_norm(x, self.last, train, "last", self.dtype, **norm))
            x = x.mean(axis=(1, 2), dtype=jnp.float32)
            if self.dense:
                x = act(layers.dense(self.dense, layers.HE, self.dtype, "last_dense")(x))
            return nn.Dropout(self.dropout, deterministic=not train, name="last_dropout")(x)

        def heads(embedding: Array) -> Outputs:
            heads = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(embedding)
            return layers.outputs(embedding, heads, features)

        stages = (functools.partial(blocks, *row) for row in enumerate(self.rows, start=1))
        return layers.in_turn(self, image, stem, *stages, last, heads)

    def pytorch_module(self, path: str) -> str:
        """The name of a layer in torchvision, where blocks are numbered through."""
        stage, *block = numbers_in(path) or (0,)
        if path == "last_dense":
            return "classifier.0"
        if path == "heads":
            return "classifier.3" if self.dense else "classifier.1"
        if not block:
            number = 0 if path.startswith("stem") else 1 + sum(map(len, self.rows))
            return f"features.{number}.{int(path.endswith('norm'))}"
        row = self.rows[stage - 1][block[0] - 1]
        number = sum(map(len, self.rows[: stage - 1])) + block[0]
        return f"features.{number}.{self._in_block(path.partition('/')[2], row)}"

    def _in_block(self, layer: str, row: Residual) -> str:
        parts = ["expand"] * row.expands + ["depthwise"] + ["squeeze"] * row.squeezed + ["project"]
        part, _, kind = layer.partition("_")
        place = parts.index(part)
        if self.dense:  # of version 3
            return f"block.{place}." + {"conv": "0", "norm": "1", "reduce": "fc1", "restore": "fc2"}[kind]
        if part == "project":  # stands by itself there, the others are pairs
            return f"conv.{place + (kind == 'norm')}"
        return f"conv.{place}.{int(kind == 'norm')}"


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise, squeeze and excitation, linear 1x1 projection; a shortcut where it fits."""

    row: Residual
    norm: Norm
    dtype: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        row, act, norm = self.row, ACTIVATIONS[self.row.activation], self.norm._asdict()
        y = x
        if row.expands:
            y = act(conv_norm(y, row.hidden, train, "expand", self.dtype, **norm))
        like: dict[str, Any] = dict(window=row.window, stride=row.stride, groups=row.hidden)
        y = act(conv_norm(y, row.hidden, train, "depthwise", self.dtype, **like, **norm))
        if row.squeezed:
            y = y * self._share(y)
        y = conv_norm(y, row.outputs, train, "project", self.dtype, **norm)
        return x + y if row.stride == 1 and row.inputs == row.outputs else y

    def _share(self, y: Array) -> Array:
        """How much of each channel is kept, [B,1,1,d] in [0,1] (Hu et al. 2018, arXiv 1709.01507)."""
        mean = y.mean(axis=(1, 2), keepdims=True)
        hidden = round_channels(self.row.hidden // 4)
        mean = nn.relu(layers.Conv(hidden, (1, 1), dtype=self.dtype, name="squeeze_reduce")(mean))
        restore = layers.Conv(self.row.hidden, (1, 1), dtype=self.dtype, name="squeeze_restore")
        return nn.hard_sigmoid(restore(mean))


def round_channels(channels: float) -> int:
    """The nearest multiple of 8, at least 8, and not less than nine tenths of it (Sandler et al. 2018)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def mobilenet_v2(task: Task, *, width: float = 0.5, dtype: str = "float32") -> Model:
    """MobileNetV2 for 32x32 images: 17 inverted residual blocks; width 0.5 is `mobile_half` of RepDistiller.

    Channels are int(width * those of Table 2) (Sandler et al. 2018, arXiv 1801.04381), the last layer never
    has fewer than 1280. Strides are RepDistiller's for CIFAR: features "stem" and "stage1" are [B,h/2,w/2,d],
    "stage2" is [B,h/4,w/4,d], "stage3" [B,h/8,w/8,d], "stage4" [B,h/16,w/16,d], rounded up; a stage ends
    without ReLU. The embedding is the mean over the image of the last layer. 812 836 parameters for 100
    classes of colour images. Raises UserError for a width under 1/16, where a layer has no channel.

    Examples:
        >>> mobilenet_v2(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), width=1.0).name
        'mobilenet_v2(width=1.0)'
    """
    valid = isinstance(width, int | float) and 1 / 16 <= width < math.inf
    layers.check_argument("mobilenet_v2.width", width, valid, "a number >= 1/16")
    layers.check_dtype("mobilenet_v2.dtype", dtype)
    arguments: dict[str, Any] = dict(width=width, dtype=dtype)
    return Model(
        layers.address_of(mobilenet_v2, **arguments), MobileNetV2(task, **arguments), convolutional=True
    )


def imagenet_mobilenet_v2(
    task: Task,
    *,
    width: float = 1.0,
    dropout: float = 0.2,
    image_size: int = 0,
    stem: str = "imagenet",
    pretrained: str = "",
    trainable: str = "",
    dtype: str = "float32",
) -> Model:
    """MobileNetV2 as published for ImageNet: 17 inverted residual blocks.

    Channels are `width` times those of Table 2 (Sandler et al. 2018, arXiv 1801.04381), rounded to multiples
    of 8; the last layer never has fewer than 1280. The stem is a 3x3 convolution of stride 2, with the stem
    "cifar", for images of 32 pixels, of stride 1. Features "stem" and "stage1" are [B,h/2,w/2,d], "stage2" to
    "stage5" half of that before, rounded up; a stage ends without activation. The embedding [B,d] is the mean
    over the image of the last layer, after `dropout` in [0,1). With `image_size` images are first resized to
    squares of that side, bilinearly; 0 leaves them as they are. `pretrained` and `trainable`: see
    `types.Model`. For 1000 classes 3 504 872 parameters. Raises UserError for values out of range.

    Examples:
        >>> imagenet_mobilenet_v2(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), width=0.5).name
        'imagenet_mobilenet_v2(width=0.5)'
    """
    _check_mobile("imagenet_mobilenet_v2", width, dropout)

    def network(task: Task, width: float, **arguments: Any) -> ImageNetMobileNet:
        before, rows = round_channels(32 * width), []
        for stage in IMAGENET_V2.values():
            blocks = []
            for expansion, channels, number, first_stride in stage:
                after = round_channels(channels * width)
                for stride in (first_stride, *[1] * (number - 1)):
                    blocks.append(Residual(3, before, before * expansion, after, False, "relu6", stride))
                    before = after
            rows.append(tuple(blocks))
        last, norm = round_channels(1280 * max(1.0, width)), Norm(1e-5, 0.9)
        return ImageNetMobileNet(
            task, tuple(rows), last=last, dense=0, activation="relu6", norm=norm, **arguments
        )

    return layers.published(
        imagenet_mobilenet_v2,
        network,
        task,
        width=width,
        dropout=dropout,
        image_size=image_size,
        stem=stem,
        pretrained=pretrained,
        trainable=trainable,
        dtype=dtype,
    )


def mobilenet_v3(
    task: Task,
    *,
    size: str = "large",
    width: float = 1.0,
    dropout: float = 0.2,
    image_size: int = 0,
    stem: str = "imagenet",
    pretrained: str = "",
    trainable: str = "",
    dtype: str = "float32",
) -> Model:
    """MobileNetV3 as published for ImageNet, "large" or "small".

    Inverted residual blocks, some with squeeze and excitation, and a dense layer after the mean over the
    image; channels are `width` times those of Tables 1 and 2 (Howard et al. 2019, arXiv 1905.02244), rounded
    to multiples of 8. BatchNorm adds 1e-3 and keeps 0.99 of its statistics, as in torchvision. The stem is a
    3x3 convolution of stride 2, with the stem "cifar", for images of 32 pixels, of stride 1. Features "stem"
    and, of the large one, "stage1" are [B,h/2,w/2,d], each further stage half of that before, rounded up; a
    stage ends without activation. The embedding is the dense layer, after `dropout` in [0,1). With
    `image_size` images are first resized to squares of that side, bilinearly; 0 leaves them as they are.
    `pretrained` and `trainable`: see `types.Model`. For 1000 classes 5 483 032 parameters, the small one 2
    542 856. Raises UserError for values out of range.

    Examples:
        >>> mobilenet_v3(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), size="small").name
        "mobilenet_v3(size='small')"
    """
    layers.check_argument("mobilenet_v3.size", size, size in V3, " or ".join(V3))
    _check_mobile("mobilenet_v3", width, dropout)

    def network(task: Task, size: str, width: float, **arguments: Any) -> ImageNetMobileNet:
        before, rows = round_channels(16 * width), []
        for stage in V3[size].values():
            blocks = []
            for window, hidden, channels, squeezed, activation, stride in stage:
                hidden, after = round_channels(hidden * width), round_channels(channels * width)
                blocks.append(Residual(window, before, hidden, after, squeezed, activation, stride))
                before = after
            rows.append(tuple(blocks))
        return ImageNetMobileNet(
            task,
            tuple(rows),
            last=6 * before,
            dense=round_channels(V3_DENSE[size] * width),
            activation="hard_swish",
            norm=Norm(1e-3, 0.99),
            **arguments,
        )

    return layers.published(
        mobilenet_v3,
        network,
        task,
        size=size,
        width=width,
        dropout=dropout,
        image_size=image_size,
        stem=stem,
        pretrained=pretrained,
        trainable=trainable,
        dtype=dtype,
    )


def _check_mobile(family: str, width: float, dropout: float) -> None:
    valid = isinstance(width, int | float) and 0 < width < math.inf
    layers.check_argument(f"{family}.width", width, valid, "a number > 0")
    layers.check_dropout(f"{family}.dropout", dropout)
