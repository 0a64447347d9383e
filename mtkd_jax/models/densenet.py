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
            x = Conv(2 * self.growth, window, stride, self.dtype, name="stem_conv")(x)
            x = nn.relu(layers.batch_norm(x, train, name="stem_norm"))
            if imagenet:
                x = layers.overlapping_max_pool(x, 3, 2, padding=1)
            features["stem"] = x
            return x

        def block(stage: int, num_layers: int, x: Array) -> Array:
            if stage > 1:
                x = Transition(self.dtype, name=f"stage{stage}_transition")(x, train)
            for number in range(1, num_layers + 1):
                new = DenseLayer(self.growth, self.dtype, name=f"stage{stage}_layer{number}")(x, train)
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
    """BN, ReLU and a 1x1 convolution of four times as many channels, BN, ReLU and a 3x3 convolution."""

    growth: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.relu(layers.batch_norm(x, train, name="norm1"))
        x = Conv(4 * self.growth, 1, 1, self.dtype, name="conv1")(x)
        x = nn.relu(layers.batch_norm(x, train, name="norm2"))
        return Conv(self.growth, 3, 1, self.dtype, name="conv2")(x)


class Transition(nn.Module):
    """BN, ReLU, a 1x1 convolution to half of the channels, and means over 2x2."""

    dtype: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.relu(layers.batch_norm(x, train, name="norm"))
        return layers.average_pool(Conv(x.shape[-1] // 2, 1, 1, self.dtype, name="conv")(x), 2)


def densenet(
    task: Task,
    *,
    blocks: tuple[int, ...] = (6, 12, 24, 16),
    growth: int = 32,
    image_size: int = 0,
    stem: str = "imagenet",
    pretrained: str = "",
    trainable: str = "",
    dtype: str = "float32",
) -> Model:
    """DenseNet-BC as published for ImageNet; as it is, DenseNet-121.

    Each layer reads all layers of its stage before it and adds `growth` channels; between stages channels and
    image are halved (Huang et al. 2017, arXiv 1608.06993). `blocks` are the layers of each stage: (6, 12, 32,
    32) is DenseNet-169, (6, 12, 48, 32) DenseNet-201. The stem, of 2 * growth channels, is a 7x7 convolution
    of stride 2 and a maximum over 3x3 of stride 2; "cifar", for images of 32 pixels, is a 3x3 convolution
    alone. Features "stem" and "stage1" are [B,h/4,w/4,d], the others half of that before, all that a stage
    passes on, before BN and ReLU; the embedding is the mean over the image after the last of those. With
    `image_size` images are first resized to squares of that side, bilinearly; 0 leaves them as they are.
    `pretrained` and `trainable`: see `types.Model`. For 1000 classes 7 978 856 parameters. Raises UserError
    for values out of range and, once it sees an image, when that is too small to be halved as often.

    >>> densenet(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), growth=12).name
    'densenet(growth=12)'
    """
    layers.check_widths("densenet.blocks", blocks)
    layers.check_argument("densenet.blocks", blocks, len(blocks) > 0, "at least one")
    layers.check_count("densenet.growth", growth)
    return layers.published(
        densenet,
        DenseNet,
        task,
        blocks=blocks,
        growth=growth,
        image_size=image_size,
        stem=stem,
        pretrained=pretrained,
        trainable=trainable,
        dtype=dtype,
    )
