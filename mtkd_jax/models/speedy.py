"""A network made to learn in a few epochs: its first layer is computed from the images, not learnt."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.types import Array, Model, Outputs, Task, UserError

WINDOW = 2  # pixels of a patch, in height and in width
EPSILON = 5e-4  # added to the second moment of patches along each direction
KEPT = 0.6  # of the running statistics of BatchNorm: 0.9 is for trainings of more than some hundred steps
SCALE = 1 / 9  # of the logits
BLOCK_SIZE = 256  # images whose patches are in memory at once


class Speedy(nn.Module):
    """See `speedy`."""

    task: Task
    width: int
    blocks: int
    bias_rate: float
    dtype: str

    head_scale = SCALE

    @property
    def stages(self) -> tuple[str, ...]:
        """The whitening layer, the blocks, the heads."""
        return ("whiten", *(f"stage{number}" for number in range(1, self.blocks + 1)), "heads")

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        least = 2**self.blocks + 1
        if min(image.shape[1:3]) < least:
            raise UserError(
                f"speedy.blocks = {self.blocks}: images of {image.shape[1]}x{image.shape[2]} are too small: "
                f"expected images of at least {least}x{least} or fewer blocks"
            )
        features = {}

        def whiten(image: Array) -> Array:
            x = layers.normalise(image, self.task.mean, self.task.std)
            channels = 2 * WINDOW**2 * x.shape[-1]  # every direction and its negative
            conv = layers.Conv(
                channels, (WINDOW, WINDOW), padding="VALID", use_bias=False, dtype=self.dtype, name="whiten"
            )
            return nn.gelu(conv(x))

        def block(x: Array, name: str, channels: int) -> Array:
            # The maximum before BatchNorm and GELU, as published: a quarter of the work for both.
            x = Layer(channels, 2, self.bias_rate, self.dtype, name=f"{name}_layer1")(x, train)
            x = Layer(channels, 1, self.bias_rate, self.dtype, name=f"{name}_layer2")(x, train)
            features[name] = x
            return x

        def heads(x: Array) -> Outputs:
            embedding = x.max(axis=(1, 2)).astype(jnp.float32)
            logits = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(embedding)
            return layers.outputs(embedding, self.head_scale * logits, features)

        x = layers.through(self, "whiten", image, whiten)
        for number in range(1, self.blocks + 1):
            name, channels = f"stage{number}", self.width if number == 1 else 4 * self.width
            x = layers.through(self, name, x, partial(block, name=name, channels=channels))
        return layers.through(self, "heads", x, heads)

    def calibrate(self, images: np.ndarray) -> Mapping[str, np.ndarray]:
        """The kernel of the whitening layer, from training images [N,h,w,c] as the network is given them."""
        normalised = layers.normalise(images, self.task.mean, self.task.std)
        return {"params/whiten/kernel": whitening(normalised, WINDOW, EPSILON)}


class Layer(nn.Module):
    """Convolution 3x3, largest values of squares of `pool` pixels, BatchNorm without a scale, GELU."""

    channels: int
    pool: int
    bias_rate: float
    dtype: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = layers.Conv(
            self.channels,
            (3, 3),
            use_bias=False,
            dtype=self.dtype,
            pool=self.pool,
            kernel_init=partial_identity,
            name="conv",
        )(x)
        x = layers.batch_norm(x, train, name="norm", momentum=KEPT, use_scale=False, use_bias=False)
        # A bias written as s b has the gradient s and moves by s of what b does: s**2 times the rate of SGD,
        # and the same weight decay.
        bias = self.param("bias", nn.initializers.zeros_init(), (self.channels,), jnp.float32)
        return nn.gelu(x + (self.bias_rate**0.5 * bias.astype(self.dtype))[None, None, None])


def whitening(images: np.ndarray, window: int, epsilon: float) -> np.ndarray:
    r"""The kernel [k,k,c,2kkc] whose answers to patches of images [N,h,w,c] are uncorrelated, k = `window`.

    $$w_i = \frac{v_i}{\sqrt{\lambda_i + \epsilon}}, \qquad w_{n+i} = -w_i, \qquad
    \frac{1}{P} \sum_p p p^\top = \sum_{i=1}^n \lambda_i v_i v_i^\top$$

    over the P patches $p$ of k x k pixels, n = kkc, and the largest $\lambda$ first. Of $\pm v_i$ that one is
    taken whose first large entry, of half the largest at least, is above 0: which one an eigensolver returns
    depends on the machine. Computed in float64, returned in float32. Source: Jordan 2024, arXiv 2404.00498,
    section 3.2.
    """
    size = window**2 * images.shape[-1]
    total, count = np.zeros((size, size)), 0
    for start in range(0, len(images), BLOCK_SIZE):
        block = np.asarray(images[start : start + BLOCK_SIZE], np.float64)
        seen = np.lib.stride_tricks.sliding_window_view(block, (window, window), axis=(1, 2))
        patches = seen.transpose(0, 1, 2, 4, 5, 3).reshape(-1, size)  # in the order of a kernel: h, w, c
        total += patches.T @ patches
        count += len(patches)
    values, vectors = (found[..., ::-1] for found in np.linalg.eigh(total / count))
    first = (np.abs(vectors) >= 0.5 * np.abs(vectors).max(axis=0)).argmax(axis=0)
    vectors = vectors * np.sign(vectors[first, np.arange(size)])
    scaled = vectors / np.sqrt(np.maximum(values, 0.0) + epsilon)
    kernel = np.concatenate([scaled, -scaled], axis=1)
    return kernel.reshape(window, window, images.shape[-1], 2 * size).astype(np.float32)


def partial_identity(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """A kernel [k,k,c,d] whose first c features are the channels as they are; the others are drawn.

    These are uniform between -1/sqrt(kkc) and that. Source: Jordan 2024, arXiv 2404.00498, section 3.3.
    """
    height, width, channels, features = shape
    bound = (height * width * channels) ** -0.5
    drawn = jax.random.uniform(key, shape, dtype, -bound, bound)
    same = jnp.zeros(shape, dtype).at[height // 2, width // 2].set(jnp.eye(channels, features, dtype=dtype))
    return jnp.where(jnp.arange(features)[None, None, None] < channels, same, drawn)


def speedy(
    task: Task,
    *,
    width: int = 16,
    blocks: int = 3,
    bias_rate: float = 1.0,
    trainable: str = "stage1",
    dtype: str = "float32",
) -> Model:
    """Small convolutional network that learns in a few epochs; its first layer whitens patches of images.

    The network of airbench94 (Jordan 2024, arXiv 2404.00498; the width there is 64). A convolution 2x2
    without padding answers with the whitened patches of the training images and with their negatives, 8c
    channels of images with c: a run computes it before it trains (`whitening`), and it is frozen unless
    `trainable` is "". Then `blocks` times two convolutions 3x3, each with BatchNorm and GELU, the first with
    a 2x2 maximum before these; the first block has `width` channels, the others four times as many. The
    embedding is the maximum over the image, and the logits are a ninth of what the heads say. Kernels begin
    as `partial_identity`; BatchNorm has a bias and no scale. Features "stage1", "stage2", ... are
    [B,(h-1)/2,(w-1)/2,d], [B,(h-1)/4,(w-1)/4,d], ..., rounded down.

    `bias_rate` multiplies the learning rate of the biases of BatchNorm, by SGD alone; the paper has 64.
    Unlike there the whitening layer has no bias, whose gradient alone would have to pass the largest
    convolution, the heads have one, and 1e-5 is added to the variance of BatchNorm, not 1e-12. Raises
    UserError for values out of range and, once it sees an image, when that is too small for so many blocks.

    Examples:
        >>> speedy(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), width=64).name
        'speedy(width=64)'
    """
    layers.check_count("speedy.width", width)
    layers.check_count("speedy.blocks", blocks)
    is_rate = isinstance(bias_rate, int | float) and bias_rate > 0
    layers.check_argument("speedy.bias_rate", bias_rate, is_rate, "a number above 0")
    layers.check_dtype("speedy.dtype", dtype)
    arguments: dict[str, Any] = dict(width=width, blocks=blocks, bias_rate=bias_rate, dtype=dtype)
    module = Speedy(task, **arguments)
    layers.check_trainable("speedy.trainable", trainable, module.stages)
    name = layers.address_of(speedy, **arguments, trainable=trainable)
    return Model(name, module, convolutional=True, trainable=trainable)
