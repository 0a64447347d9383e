"""ConvNeXt networks."""

from __future__ import annotations

import functools

import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.models.pytorch import numbers_in
from mtkd_jax.types import Array, Model, Outputs, Task

INIT = nn.initializers.truncated_normal(0.02)
PYTORCH_WORDS = {"depthwise": "block.0", "norm": "block.2", "dense1": "block.3", "dense2": "block.5"}


class ConvNext(nn.Module):
    """See `convnext`."""

    task: Task
    blocks: tuple[int, ...]
    widths: tuple[int, ...]
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
            x = layers.prepare(image, self.task, self.image_size, 4 * smallest if imagenet else smallest)
            window, stride, padding = (4, 4, "VALID") if imagenet else (3, 1, "SAME")
            x = _conv(self.widths[0], window, stride, padding, self.dtype, "stem_conv")(x)
            x = features["stem"] = layers.layer_norm(x, name="stem_norm")
            return x

        def blocks(stage: int, channels: int, num_blocks: int, x: Array) -> Array:
            if stage > 1:
                x = layers.layer_norm(x, name=f"stage{stage}_norm")
                x = _conv(channels, 2, 2, "VALID", self.dtype, f"stage{stage}_conv")(x)
            for block in range(1, num_blocks + 1):
                x = Block(self.dtype, name=f"stage{stage}_block{block}")(x)
            features[f"stage{stage}"] = x
            return x

        def last(x: Array) -> Array:
            return layers.layer_norm(x.mean(axis=(1, 2), dtype=jnp.float32), name="last_norm")

        def heads(embedding: Array) -> Outputs:
            heads = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(embedding)
            return layers.outputs(embedding, heads, features)

        rows = zip(range(1, len(self.blocks) + 1), self.widths, self.blocks)
        stages = (functools.partial(blocks, *row) for row in rows)
        return layers.in_turn(self, image, stem, *stages, last, heads)

    def pytorch_module(self, path: str) -> str:
        """The name of a layer in torchvision: stages and what halves the image between them take turns."""
        named = {"stem_conv": "features.0.0", "stem_norm": "features.0.1"}
        named |= {"last_norm": "classifier.0", "heads": "classifier.2"}
        if path in named:
            return named[path]
        stage, *block = numbers_in(path)
        if not block:
            return f"features.{2 * stage - 2}.{int(path.endswith('conv'))}"
        inner = PYTORCH_WORDS.get(path.partition("/")[2], "")
        return f"features.{2 * stage - 1}.{block[0] - 1}.{inner}".rstrip(".")


class Block(nn.Module):
    """x plus a 7x7 depthwise convolution of it, LayerNorm and two dense layers, scaled by the channel."""

    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        y = _conv(channels, 7, 1, "SAME", self.dtype, "depthwise", groups=channels)(x)
        y = layers.layer_norm(y, name="norm")
        y = nn.gelu(layers.dense(4 * channels, INIT, self.dtype, "dense1")(y), approximate=False)
        y = layers.dense(channels, INIT, self.dtype, "dense2")(y)
        scale = self.param("layer_scale", nn.initializers.constant(1e-6), (channels,), jnp.float32)
        return x + y * scale.astype(y.dtype).reshape(1, 1, 1, -1)


def _conv(
    channels: int, window: int, stride: int, padding: str, dtype: str, name: str, groups: int = 1
) -> layers.Conv:
    return layers.Conv(
        channels,
        (window, window),
        (stride, stride),
        padding,
        dtype=dtype,
        groups=groups,
        kernel_init=INIT,
        name=name,
    )


def convnext(
    task: Task,
    *,
    blocks: tuple[int, ...] = (3, 3, 9, 3),
    widths: tuple[int, ...] = (96, 192, 384, 768),
    image_size: int = 0,
    stem: str = "imagenet",
    pretrained: str = "",
    trainable: str = "",
    dtype: str = "float32",
) -> Model:
    """ConvNeXt as published for ImageNet; as it is, ConvNeXt-Tiny, without stochastic depth.

    Stages of `blocks` with `widths` channels (Liu et al. 2022, arXiv 2201.03545): blocks (3, 3, 27, 3) make
    ConvNeXt-Small. The stem is a 4x4 convolution of stride 4; "cifar", for images of 32 pixels, is one of 3x3
    and stride 1. Features "stem" and "stage1" are [B,h/4,w/4,d], the others half of that before, rounded
    down; the embedding is the normalised mean of the last over the image. With `image_size` images are first
    resized to squares of that side, bilinearly; 0 leaves them as they are. `pretrained` and `trainable`: see
    `types.Model`. For 1000 classes 28 589 128 parameters. Raises UserError for values out of range and, once
    it sees an image, when that is too small to be halved as often.

    Examples:
        >>> convnext(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), blocks=(3, 3, 27, 3)).name
        'convnext(blocks=(3, 3, 27, 3))'
    """
    layers.check_widths("convnext.blocks", blocks)
    layers.check_widths("convnext.widths", widths)
    valid = len(widths) == len(blocks) > 0
    layers.check_argument("convnext.widths", widths, valid, f"one for each stage of blocks = {blocks}")
    return layers.published(
        convnext,
        ConvNext,
        task,
        blocks=blocks,
        widths=widths,
        image_size=image_size,
        stem=stem,
        pretrained=pretrained,
        trainable=trainable,
        dtype=dtype,
    )
