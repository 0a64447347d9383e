"""Densely connected networks."""

from __future__ import annotations

import functools

import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.models.pytorch import numbers_in
from mtkd_jax.models.resnet import Conv
from mtkd_jax.types import Array, Model, Outputs, Task


class DenseNet(nn.Module):
    """See `densenet`."""

    task: Task
    blocks: tuple[int, ...]
    growth: int
    bottleneck: bool
    compression: float
    image_size: int
    stem: str
    dtype: str

    @property
    def stages(self) -> tuple[str, ...]:
        """The parts of the network in order of depth."""
        return ("stem", *(f"stage{number}" for number in range(1, len(self.blocks) + 1)), "last", "heads")

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        imagenet, features = self.stem == "imagenet", {}

        def stem(image: Array) -> Array:
            smallest = 2 ** (len(self.blocks) - 1)  # what the last stage sees as one pixel
            x = layers.prepare(image, self.task, self.image_size, 4 * smallest - 3 if imagenet else smallest)
            window, stride = (7, 2) if imagenet else (3, 1)
            channels = 2 * self.growth if self.bottleneck else 16
            x = Conv(channels, window, stride, self.dtype, name="stem_conv")(x)
            if self.stem != "plain":
                x = nn.relu(layers.batch_norm(x, train, name="stem_norm"))
            if imagenet:
                x = layers.overlapping_max_pool(x, 3, 2, padding=1)
            features["stem"] = x
            return x

        def block(stage: int, num_layers: int, x: Array) -> Array:
            if stage > 1:
                x = Transition(self.compression, self.dtype, name=f"stage{stage}_transition")(x, train)
            for number in range(1, num_layers + 1):
                name = f"stage{stage}_layer{number}"
                new = DenseLayer(self.growth, self.bottleneck, self.dtype, name=name)(x, train)
                x = jnp.concatenate([x, new], axis=-1)
            features[f"stage{stage}"] = x
            return x

        def last(x: Array) -> Array:
            x = nn.relu(layers.batch_norm(x, train, name="last_norm"))
            return x.mean(axis=(1, 2), dtype=jnp.float32)

        def heads(embedding: Array) -> Outputs:
            heads = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(embedding)
            return layers.outputs(embedding, heads, features)

        stages = (functools.partial(block, *row) for row in enumerate(self.blocks, start=1))
        return layers.in_turn(self, image, stem, *stages, last, heads)

    def pytorch_module(self, path: str) -> str:
        """The name of a layer in torchvision."""
        if path == "heads":
            return "classifier"
        place, _, layer = path.rpartition("/")
        if not place:
            last = f"norm{len(self.blocks) + 1}"
            return "features." + {"stem_conv": "conv0", "stem_norm": "norm0", "last_norm": last}[layer]
        if place.endswith("transition"):  # there it ends the stage before
            (stage,) = numbers_in(place)
            return f"features.transition{stage - 1}.{layer}"
        stage, number = numbers_in(place)
        return f"features.denseblock{stage}.denselayer{number}.{layer}"


class DenseLayer(nn.Module):
    """BN, ReLU, a 3x3 convolution; a bottleneck is BN, ReLU, 1x1 to four times the channels before these."""

    growth: int
    bottleneck: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.relu(layers.batch_norm(x, train, name="norm1"))
        if not self.bottleneck:
            return Conv(self.growth, 3, 1, self.dtype, name="conv1")(x)
        x = Conv(4 * self.growth, 1, 1, self.dtype, name="conv1")(x)
        x = nn.relu(layers.batch_norm(x, train, name="norm2"))
        return Conv(self.growth, 3, 1, self.dtype, name="conv2")(x)


class Transition(nn.Module):
    """BN, ReLU, a 1x1 convolution to a share of the channels, rounded down, and means over 2x2."""

    compression: float
    dtype: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.relu(layers.batch_norm(x, train, name="norm"))
        channels = max(1, int(self.compression * x.shape[-1]))
        return layers.average_pool(Conv(channels, 1, 1, self.dtype, name="conv")(x), 2)


def densenet(
    task: Task,
    *,
    blocks: tuple[int, ...] = (6, 12, 24, 16),
    growth: int = 32,
    bottleneck: bool = True,
    compression: float = 0.5,
    image_size: int = 0,
    stem: str = "imagenet",
    pretrained: str = "",
    trainable: str = "",
    dtype: str = "float32",
) -> Model:
    """DenseNet as published, for ImageNet and for small images; as it is, DenseNet-121.

    Each layer reads all layers of its stage before it and adds `growth` channels, through a `bottleneck` of 4
    * growth or without; between stages the image is halved, and of the channels the share `compression` in
    (0,1] is kept (Huang et al. 2017, arXiv 1608.06993). `blocks` are the layers of each stage: (6, 12, 32,
    32) is DenseNet-169, (6, 12, 48, 32) DenseNet-201. The stem, of 2 * growth channels or 16 without
    bottlenecks, is a 7x7 convolution of stride 2, BN, ReLU and a maximum over 3x3 of stride 2; "cifar", for
    images of 32 pixels, a 3x3 convolution, BN and ReLU; "plain" that convolution alone, as published for
    CIFAR. Features "stem" and "stage1" are [B,h/4,w/4,d], the others half of that before, all that a stage
    passes on, before BN and ReLU; the embedding is the mean over the image after the last of those. With
    `image_size` images are first resized to squares of that side, bilinearly; 0 leaves them as they are.
    `pretrained` and `trainable`: see `types.Model`. For 1000 classes 7 978 856 parameters. Raises UserError
    for values out of range and, once it sees an image, when that is too small to be halved as often.

    For CIFAR-10, growth 12 and the stem "plain" give DenseNet-40-12 with blocks (12, 12, 12), no bottleneck
    and compression 1 (1 019 722 parameters), and DenseNet-BC-100-12 with (16, 16, 16) (769 162). What papers
    on online distillation call DenseNet-40-12 (Chen et al. 2020, arXiv 1912.00350; Wu and Gong 2021, arXiv
    2006.04147) is DenseNet-BC of 40 layers: (6, 6, 6), 176 122 parameters.

    Examples:
        >>> densenet(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), growth=12).name
        'densenet(growth=12)'
    """
    layers.check_widths("densenet.blocks", blocks)
    layers.check_argument("densenet.blocks", blocks, len(blocks) > 0, "at least one")
    layers.check_count("densenet.growth", growth)
    valid = isinstance(compression, int | float) and 0 < compression <= 1
    layers.check_argument("densenet.compression", compression, valid, "a share in (0, 1]")
    return layers.published(
        densenet,
        DenseNet,
        task,
        stems=(*layers.STEMS, "plain"),
        blocks=blocks,
        growth=growth,
        bottleneck=bottleneck,
        compression=compression,
        image_size=image_size,
        stem=stem,
        pretrained=pretrained,
        trainable=trainable,
        dtype=dtype,
    )
