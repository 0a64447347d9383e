"""Networks that say a class for every pixel."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.types import Array, Model, Outputs, Task, UserError


class UNet(nn.Module):
    """See `unet`."""

    task: Task
    width: int
    depth: int
    dtype: str

    @property
    def stages(self) -> tuple[str, ...]:
        """The parts of the network in order of depth: down to the smallest map, up again, the classes."""
        down = range(1, self.depth + 1)
        return (*(f"stage{level}" for level in down), *(f"up{level}" for level in down[-2::-1]), "heads")

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        features: dict[str, Array] = {}

        def block(name: str, channels: int, x: Array) -> Array:
            for number in (1, 2):
                layer = f"{name}_conv{number}"
                x = layers.Conv(channels, (3, 3), use_bias=False, dtype=self.dtype, name=layer)(x)
                x = nn.relu(layers.batch_norm(x, train, name=f"{name}_norm{number}"))
            return x

        def down(level: int, maps: tuple[Array, ...]) -> tuple[Array, ...]:
            if level == 1:
                self._check_size(maps[-1])
                x = layers.normalise(maps[-1], self.task.mean, self.task.std)
                maps = ()
            else:
                x = layers.max_pool(maps[-1], 2)
            x = features[f"stage{level}"] = block(f"stage{level}", self.width * 2 ** (level - 1), x)
            return *maps, x

        def up(level: int, maps: tuple[Array, ...]) -> tuple[Array, ...]:
            *others, beside, x = maps
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            x = jnp.concatenate([beside, x], axis=-1)
            x = features[f"up{level}"] = block(f"up{level}", self.width * 2 ** (level - 1), x)
            return *others, x

        def heads(maps: tuple[Array, ...]) -> Outputs:
            (x,) = maps
            x = x.reshape(x.shape[0], -1, x.shape[-1])
            logits = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(x)
            return layers.outputs(x, logits, features)

        maps: tuple[Array, ...] = (image,)
        for level in range(1, self.depth + 1):
            maps = layers.through(self, f"stage{level}", maps, functools.partial(down, level))
        for level in range(self.depth - 1, 0, -1):
            maps = layers.through(self, f"up{level}", maps, functools.partial(up, level))
        return layers.through(self, "heads", maps, heads)

    def _check_size(self, image: Array) -> None:
        _, height, width, _ = image.shape
        least = 2 ** (self.depth - 1)
        if height % least or width % least:
            raise UserError(
                f"unet.depth = {self.depth}: images of {height}x{width} cannot be halved "
                f"{self.depth - 1} times: expected sides that {least} divides, or a smaller depth"
            )


def unet(task: Task, *, width: int = 8, depth: int = 3, dtype: str = "float32") -> Model:
    """A U-Net: maps of `depth` sizes, each half of the one before, and back to a class for every pixel.

    On the way down two 3x3 convolutions with BatchNorm and ReLU a size, of `width`, 2 `width`, 4 `width`, ...
    channels, and 2x2 max-pooling between them; on the way up pixels are repeated, put beside the map of their
    size, and convolved twice. The paper convolves without a border and upsamples by a convolution.

    Logits are [B,h*w,C], row after row of the image, and the embedding [B,h*w,width] is what the classifier
    reads of each pixel. Features "stage1", "stage2", ... are [B,h,w,width], [B,h/2,w/2,2 width], ... on the
    way down, "up1", ... on the way up. Raises UserError for values out of range and for images whose sides
    cannot be halved so often.

    Source: Ronneberger et al. 2015, arXiv 1505.04597.

    Examples:
        >>> unet(Task(num_classes=3, num_heads=1, mean=(0.5,), std=(0.2,)), width=4).name
        'unet(width=4)'
    """
    layers.check_count("unet.width", width)
    layers.check_count("unet.depth", depth)
    layers.check_dtype("unet.dtype", dtype)
    arguments: dict[str, Any] = dict(width=width, depth=depth, dtype=dtype)
    return Model(layers.address_of(unet, **arguments), UNet(task, **arguments), convolutional=True)
