"""Small convolutional networks."""

from __future__ import annotations

import functools
from typing import Any

from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.types import Array, Model, Outputs, Task, UserError


class Cnn(nn.Module):
    """See `cnn`."""

    task: Task
    widths: tuple[int, ...]
    dense: int
    kernel_size: int
    batch_norm: bool
    dropout: float
    dtype: str

    @property
    def stages(self) -> tuple[str, ...]:
        """The parts of the network in order of depth."""
        return (*(f"stage{number}" for number in range(1, len(self.widths) + 1)), "dense", "heads")

    def stage_of(self, name: str) -> str:
        """The stage of a layer: a convolution and its BatchNorm are called by their number alone."""
        return name.replace("conv", "stage").replace("dense_norm", "dense").replace("norm", "stage")

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        features = {}

        def stage(number: int, channels: int, x: Array) -> Array:
            if number == 1:
                self._check_size(x)
                x = layers.normalise(x, self.task.mean, self.task.std)
            kernel_size = (self.kernel_size, self.kernel_size)
            name = f"conv{number}"
            if self.batch_norm:
                x = layers.Conv(channels, kernel_size, use_bias=False, dtype=self.dtype, name=name)(x)
                x = layers.max_pool(layers.batch_norm(x, train, name=f"norm{number}"), 2)
            else:
                x = layers.Conv(channels, kernel_size, dtype=self.dtype, pool=2, name=name)(x)
            # ReLU after pooling: the same numbers from a quarter of the work, and no ties between zeros.
            features[f"stage{number}"] = nn.relu(x)
            return features[f"stage{number}"]

        def dense(x: Array) -> Array:
            x = x.reshape(x.shape[0], -1)
            bias, dtype = not self.batch_norm, self.dtype
            x = nn.Dense(self.dense, use_bias=bias, kernel_init=layers.HE, dtype=dtype, name="dense")(x)
            # Here too: its inputs are thousands of numbers above 0, so that one step of Adam at 2e-3 moves a
            # unit by several of its standard deviations. Without, 80 % of 64 units were 0 for every image
            # after 370 steps on 2 000 images of CIFAR-10 (8 seeds, accuracy 0.47 to 0.51); with it none was
            # (0.55 to 0.57). Initial weights of another size changed neither.
            if self.batch_norm:
                x = layers.batch_norm(x, train, name="dense_norm")
            return nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))

        def heads(x: Array) -> Outputs:
            logits = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(x)
            return layers.outputs(x, logits, features)

        x = image
        for number, channels in enumerate(self.widths, start=1):
            x = layers.through(self, f"stage{number}", x, functools.partial(stage, number, channels))
        x = layers.through(self, "dense", x, dense)
        return layers.through(self, "heads", x, heads)

    def _check_size(self, image: Array) -> None:
        _, height, width, _ = image.shape
        least = 2 ** len(self.widths)
        if min(height, width) < least:
            raise UserError(
                f"cnn.widths = {self.widths}: images of {height}x{width} are too small to be halved "
                f"{len(self.widths)} times: expected images of at least {least}x{least} or fewer widths"
            )


def cnn(
    task: Task,
    *,
    widths: tuple[int, ...] = (32, 64),
    dense: int = 128,
    kernel_size: int = 3,
    batch_norm: bool = False,
    dropout: float = 0.0,
    dtype: str = "float32",
) -> Model:
    """Small convolutional network: convolution, ReLU and 2x2 max-pooling per width, one dense layer, heads.

    With `batch_norm` the dense layer is normalised as the convolutions are. Features "stage1", "stage2", ...
    are [B,h/2,w/2,d], [B,h/4,w/4,d], ...; the embedding is the dense layer. `dropout` in [0,1) follows it.
    Raises UserError for values out of range and, once it sees an image, when that is too small to be halved
    once per width.

    Examples:
        >>> cnn(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), batch_norm=True).name
        'cnn(batch_norm=True)'
    """
    layers.check_widths("cnn.widths", widths)
    layers.check_count("cnn.dense", dense)
    layers.check_count("cnn.kernel_size", kernel_size)
    layers.check_dropout("cnn.dropout", dropout)
    layers.check_dtype("cnn.dtype", dtype)
    arguments: dict[str, Any] = dict(
        widths=widths,
        dense=dense,
        kernel_size=kernel_size,
        batch_norm=batch_norm,
        dropout=dropout,
        dtype=dtype,
    )
    return Model(layers.address_of(cnn, **arguments), Cnn(task, **arguments), convolutional=True)
