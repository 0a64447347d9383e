"""VGG networks, for small images and for those of ImageNet, and AlexNet."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.models.pytorch import numbers_in
from mtkd_jax.models.resnet import Conv
from mtkd_jax.types import Array, Model, Outputs, Task

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {  # depth -> in each of the five stages; the depths count three dense layers of 2014
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
ALEXNET_ROWS = ((192, 5), (384, 3), (256, 3), (256, 3))  # channels and window after the stem
DENSE_LAYERS = ("last_dense1", "last_dense2", "heads")
SMALL_ENOUGH = 4  # images with a side of 4 are halved no further: 32x32 ends as 4x4, and so does 64x64


class Vgg(nn.Module):
    """See `vgg`."""

    task: Task
    depth: int
    dense: int
    dropout: float
    dtype: str

    pytorch_biases = True

    @property
    def stages(self) -> tuple[str, ...]:
        """The parts of the network in order of depth."""
        last = ("last",) if self.dense else ()
        return ("stage1", "stage2", "stage3", "stage4", "stage5", *last, "heads")

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        features = {}

        def halve(x: Array) -> Array:
            return layers.max_pool(x, 2) if min(x.shape[1:3]) > (1 if self.dense else SMALL_ENOUGH) else x

        def convolutions(stage: int, channels: int, x: Array) -> Array:
            x = layers.normalise(x, self.task.mean, self.task.std) if stage == 1 else halve(x)
            for number in range(1, CONVOLUTIONS[self.depth][stage - 1] + 1):
                x = Conv(channels, 3, 1, self.dtype, name=f"stage{stage}_conv{number}")(x)
                x = nn.relu(layers.batch_norm(x, train, name=f"stage{stage}_norm{number}"))
            features[f"stage{stage}"] = x
            return x

        def last(x: Array) -> Array:
            x = halve(x).mean(axis=(1, 2), dtype=jnp.float32)
            return _dense_layers(x, self.dense, self.dropout, self.dtype, train)

        def heads(x: Array) -> Outputs:
            embedding = x if self.dense else x.mean(axis=(1, 2), dtype=jnp.float32)
            logits = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(embedding)
            return layers.outputs(embedding, logits, features)

        x = image
        for stage, channels in enumerate(WIDTHS, start=1):
            x = layers.through(self, f"stage{stage}", x, functools.partial(convolutions, stage, channels))
        if self.dense:
            x = layers.through(self, "last", x, last)
        return layers.through(self, "heads", x, heads)

    def pytorch_module(self, path: str) -> str:
        """The name of a layer in RepDistiller; dense layers are numbered as in torchvision."""
        if path in DENSE_LAYERS:
            return f"classifier.{(0, 3, 6)[DENSE_LAYERS.index(path)]}" if self.dense else "classifier"
        stage, number = numbers_in(path)
        # Convolution, BatchNorm and ReLU take turns in one numbered sequence.
        return f"block{stage - 1}.{3 * (number - 1) + ('norm' in path)}"


class ImageNetVgg(nn.Module):
    """See `imagenet_vgg`."""

    task: Task
    depth: int
    batch_norm: bool
    dense: int
    dropout: float
    image_size: int
    stem: str
    dtype: str

    stages = ("stage1", "stage2", "stage3", "stage4", "stage5", "last", "heads")

    @property
    def pytorch_biases(self) -> bool:
        """PyTorch's networks have biases before BatchNorm, which takes them out again."""
        return self.batch_norm

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        features = {}

        def convolutions(stage: int, channels: int, x: Array) -> Array:
            if stage == 1:
                least = 32 if self.stem == "imagenet" else 16
                x = layers.prepare(x, self.task, self.image_size, least=least)
            for number in range(1, CONVOLUTIONS[self.depth][stage - 1] + 1):
                x = layers.Conv(
                    channels,
                    (3, 3),
                    use_bias=not self.batch_norm,
                    dtype=self.dtype,
                    name=f"stage{stage}_conv{number}",
                )(x)
                if self.batch_norm:
                    x = layers.batch_norm(x, train, name=f"stage{stage}_norm{number}")
                x = nn.relu(x)
            features[f"stage{stage}"] = x
            return layers.max_pool(x, 2) if stage > 1 or self.stem == "imagenet" else x

        def last(x: Array) -> Array:
            x = layers.flatten(layers.adaptive_average_pool(x, 7, 7))
            return _dense_layers(x, self.dense, self.dropout, self.dtype, train)

        def heads(embedding: Array) -> Outputs:
            heads = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(embedding)
            return layers.outputs(embedding, heads, features)

        stages = (functools.partial(convolutions, *row) for row in enumerate(WIDTHS, start=1))
        return layers.in_turn(self, image, *stages, last, heads)

    def pytorch_module(self, path: str) -> str:
        """The name of a layer in torchvision."""
        if path in DENSE_LAYERS:
            return f"classifier.{(0, 3, 6)[DENSE_LAYERS.index(path)]}"
        stage, number = numbers_in(path)
        before = sum(CONVOLUTIONS[self.depth][: stage - 1]) + number - 1
        # Convolution, BatchNorm if any, and ReLU take turns in one sequence; pooling ends a stage.
        return f"features.{(3 if self.batch_norm else 2) * before + stage - 1 + ('norm' in path)}"


class AlexNet(nn.Module):
    """See `alexnet`."""

    task: Task
    dense: int
    dropout: float
    image_size: int
    stem: str
    dtype: str

    stages = ("stem", "stage1", "stage2", "stage3", "stage4", "last", "heads")

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        features = {}

        def stem(image: Array) -> Array:
            least = 63 if self.stem == "imagenet" else 7
            x = layers.prepare(image, self.task, self.image_size, least=least)
            if self.stem == "imagenet":
                pads = ((2, 2), (2, 2))
                x = layers.Conv(64, (11, 11), (4, 4), pads, dtype=self.dtype, name="stem_conv")(x)
                x = layers.overlapping_max_pool(nn.relu(x), 3, 2)
            else:
                x = nn.relu(layers.Conv(64, (3, 3), dtype=self.dtype, name="stem_conv")(x))
            features["stem"] = x
            return x

        def convolution(stage: int, row: tuple[int, int], x: Array) -> Array:
            channels, window = row
            conv = layers.Conv(channels, (window, window), dtype=self.dtype, name=f"stage{stage}_conv")
            x = nn.relu(conv(x))
            if stage in (1, 4):
                x = layers.overlapping_max_pool(x, 3, 2)
            features[f"stage{stage}"] = x
            return x

        def last(x: Array) -> Array:
            x = layers.flatten(layers.adaptive_average_pool(x, 6, 6))
            for number in (1, 2):
                x = nn.Dropout(self.dropout, deterministic=not train, name=f"last_dropout{number}")(x)
                x = nn.relu(layers.dense(self.dense, layers.HE, self.dtype, f"last_dense{number}")(x))
            return x

        def heads(embedding: Array) -> Outputs:
            heads = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(embedding)
            return layers.outputs(embedding, heads, features)

        stages = (functools.partial(convolution, *row) for row in enumerate(ALEXNET_ROWS, start=1))
        return layers.in_turn(self, image, stem, *stages, last, heads)

    def pytorch_module(self, path: str) -> str:
        """The name of a layer in torchvision."""
        if path in DENSE_LAYERS:
            return f"classifier.{(1, 4, 6)[DENSE_LAYERS.index(path)]}"
        return f"features.{(0, 3, 6, 8, 10)[self.stages.index(path.removesuffix('_conv'))]}"


def _dense_layers(x: Array, width: int, dropout: float, dtype: str, train: bool) -> Array:
    """Two dense layers [B,width], with a ReLU and dropout after each; parts of the network that calls it."""
    for number in (1, 2):
        x = nn.relu(layers.dense(width, layers.HE, dtype, f"last_dense{number}")(x))
        x = nn.Dropout(dropout, deterministic=not train, name=f"last_dropout{number}")(x)
    return x


def vgg(task: Task, *, depth: int = 8, dense: int = 0, dropout: float = 0.0, dtype: str = "float32") -> Model:
    """VGG with BatchNorm for small images: the vgg8, vgg11, vgg13, vgg16 and vgg19 of KD, one linear layer.

    Five stages of 3x3 convolutions with 64, 128, 256, 512 and 512 channels (Simonyan and Zisserman 2015,
    arXiv 1409.1556; vgg8 is RepDistiller's, Tian et al. 2020, arXiv 1910.10699). Before each but the first
    the image is halved, unless a side of it is at most 4: features "stage1" to "stage5" of 32x32 images,
    after their ReLU, are 32, 16, 8, 4 and 4 wide, those of 8x8 images 8, 4, 4, 4 and 4. The embedding [B,512]
    is the mean of the last over the image. For 100 classes of colour images vgg(depth=8) has 3 963 556
    parameters and vgg(depth=13) 9 459 236. Published counts are higher by 1 472 and 2 944: those networks
    hold a bias before each BatchNorm, which takes it out again.

    With `dense` the image is halved after each stage down to one pixel, and two layers of `dense` units, each
    with `dropout` in [0,1) after it, come before the heads: their output [B,dense] is the embedding.
    vgg(depth=16, dense=512) is the VGG-16 of papers on online distillation (Chen et al. 2020, arXiv
    1912.00350; Wu and Gong 2021, arXiv 2006.04147). Raises UserError for values out of range.

    Examples:
        >>> vgg(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), depth=13).name
        'vgg(depth=13)'
    """
    layers.check_argument(
        "vgg.depth", depth, depth in CONVOLUTIONS, f"one of {', '.join(map(str, CONVOLUTIONS))}"
    )
    valid = isinstance(dense, int) and dense >= 0
    layers.check_argument("vgg.dense", dense, valid, "a number of units, or 0 for no dense layers")
    layers.check_dropout("vgg.dropout", dropout)
    valid = dense > 0 or dropout == 0
    layers.check_argument("vgg.dropout", dropout, valid, "0 without dense layers, which it follows")
    layers.check_dtype("vgg.dtype", dtype)
    arguments: dict[str, Any] = dict(depth=depth, dense=dense, dropout=dropout, dtype=dtype)
    return Model(layers.address_of(vgg, **arguments), Vgg(task, **arguments), convolutional=True)


def imagenet_vgg(
    task: Task,
    *,
    depth: int = 16,
    batch_norm: bool = False,
    dense: int = 4096,
    dropout: float = 0.5,
    image_size: int = 0,
    stem: str = "imagenet",
    pretrained: str = "",
    trainable: str = "",
    dtype: str = "float32",
) -> Model:
    """VGG as published for ImageNet, of depth 11, 13, 16 or 19, with or without BatchNorm.

    Five stages of 3x3 convolutions, each followed by a maximum over 2x2, and two layers of `dense` units with
    `dropout` in [0,1) (Simonyan and Zisserman 2015, arXiv 1409.1556); what they read is brought to 7x7 places
    by means over parts, as in torchvision. The stem "cifar", for images of 32 pixels, leaves out the first
    maximum. Features "stage1" to "stage5", before the maximum, are [B,h,w,d] to [B,h/16,w/16,d], rounded
    down; the embedding [B,dense] is what the heads read. With `image_size` images are first resized to
    squares of that side, bilinearly; 0 leaves them as they are. `pretrained` and `trainable`: see
    `types.Model`. For 1000 classes depth 16 has 138 357 544 parameters. With BatchNorm published counts are
    higher by the biases before it, which it takes out again. Raises UserError for values out of range and,
    once it sees an image, when that is smaller than 32 pixels (16 with the stem "cifar").

    Examples:
        >>> imagenet_vgg(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), depth=11).name
        'imagenet_vgg(depth=11)'
    """
    depths = [known for known in CONVOLUTIONS if known > 8]
    expected = f"one of {', '.join(map(str, depths))}"
    layers.check_argument("imagenet_vgg.depth", depth, depth in depths, expected)
    layers.check_count("imagenet_vgg.dense", dense)
    layers.check_dropout("imagenet_vgg.dropout", dropout)
    return layers.published(
        imagenet_vgg,
        ImageNetVgg,
        task,
        depth=depth,
        batch_norm=batch_norm,
        dense=dense,
        dropout=dropout,
        image_size=image_size,
        stem=stem,
        pretrained=pretrained,
        trainable=trainable,
        dtype=dtype,
    )


def alexnet(
    task: Task,
    *,
    dense: int = 4096,
    dropout: float = 0.5,
    image_size: int = 0,
    stem: str = "imagenet",
    pretrained: str = "",
    trainable: str = "",
    dtype: str = "float32",
) -> Model:
    """AlexNet as torchvision has it: five convolutions, two layers of `dense` units, `dropout` before each.

    The one column of Krizhevsky 2014 (arXiv 1404.5997), without normalisation: 11x11 of stride 4, 5x5, and
    three of 3x3, maxima over 3x3 of stride 2 after the first, second and last; the dense layers read 6x6
    means over parts of the image. The stem "cifar", for images of 32 pixels, is a 3x3 convolution of stride 1
    without a maximum. Features, after ReLU and maximum if any, of images of 224 pixels: "stem" [B,27,27,64],
    "stage1" [B,13,13,192], "stage2" [B,13,13,384], "stage3" [B,13,13,256], "stage4" [B,6,6,256]; the
    embedding [B,dense] is what the heads read. With `image_size` images are first resized to squares of that
    side, bilinearly; 0 leaves them as they are. `pretrained` and `trainable`: see `types.Model`. For 1000
    classes 61 100 840 parameters. Raises UserError for values out of range and, once it sees an image, when
    that is smaller than 63 pixels (7 with the stem "cifar").

    Examples:
        >>> alexnet(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), image_size=224).name
        'alexnet(image_size=224)'
    """
    layers.check_count("alexnet.dense", dense)
    layers.check_dropout("alexnet.dropout", dropout)
    return layers.published(
        alexnet,
        AlexNet,
        task,
        dense=dense,
        dropout=dropout,
        image_size=image_size,
        stem=stem,
        pretrained=pretrained,
        trainable=trainable,
        dtype=dtype,
    )
