"""Networks for time series: images [h,w,c] of width 1, which are h steps of c channels.

With `frames` a network says a class for every step, logits [B,h,C] and the embedding [B,h,d], in the place of
one for the series. Convolutions are one-dimensional, over [B,h,c]: a kernel [k,c,d] took a quarter of the CPU
time of a kernel [k,1,c,d] (value and both gradients inside `lax.scan`; 150 steps, k = 5, 8 and 40).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.types import Array, Model, Outputs, Task, UserError

FCN_KERNELS = (8, 5, 3)  # and of every block of the ResNet
INCEPTION_KERNELS = (40, 20, 10)
MODULES_A_BLOCK = 3  # inception modules that one shortcut bridges


def _steps(image: Array, task: Task, name: str) -> Array:
    """The normalised series [B,h,c] in an image [B,h,1,c]."""
    _, height, width, _ = image.shape
    if width != 1:
        raise UserError(f"{name}: images of {height}x{width}: expected time series, images of width 1")
    return layers.normalise(image, task.mean, task.std)[:, :, 0]


def _outputs(task: Task, x: Array, features: dict[str, Array], frames: bool) -> Outputs:
    """Heads on the mean over time of x [B,h,d], or on every frame; features [B,h,d] become images [B,h,1,d].

    Those that are images stay as they are.
    """
    embedding = x if frames else x.mean(axis=1, dtype=jnp.float32)
    features = {name: value if value.ndim == 4 else value[:, :, None] for name, value in features.items()}
    heads = layers.Heads(task.num_heads, task.num_classes, name="heads")(embedding)
    return layers.outputs(embedding, heads, features)


class Fcn(nn.Module):
    """See `fcn`."""

    task: Task
    widths: tuple[int, ...]
    frames: bool
    dtype: str

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        x = _steps(image, self.task, "fcn")
        features = {}
        for stage, (width, kernel) in enumerate(zip(self.widths, FCN_KERNELS), start=1):
            x = layers.Conv(width, (kernel,), use_bias=False, dtype=self.dtype, name=f"conv{stage}")(x)
            x = nn.relu(layers.batch_norm(x, train, name=f"norm{stage}"))
            features[f"stage{stage}"] = x
        return _outputs(self.task, x, features, self.frames)


class SeriesResNet(nn.Module):
    """See `series_resnet`."""

    task: Task
    widths: tuple[int, ...]
    frames: bool
    dtype: str

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        x = _steps(image, self.task, "series_resnet")
        features = {}
        for stage, width in enumerate(self.widths, start=1):
            shortcut, last = x, len(FCN_KERNELS)
            if x.shape[-1] != width:
                shortcut = _pointwise(width, self.dtype, f"stage{stage}_shortcut_conv")(x)
            for place, kernel in enumerate(FCN_KERNELS, start=1):
                name = f"stage{stage}_conv{place}"
                x = layers.Conv(width, (kernel,), use_bias=False, dtype=self.dtype, name=name)(x)
                x = layers.batch_norm(x, train, name=f"stage{stage}_norm{place}")
                x = x if place == last else nn.relu(x)
            x = nn.relu(x + layers.batch_norm(shortcut, train, name=f"stage{stage}_shortcut_norm"))
            features[f"stage{stage}"] = x
        return _outputs(self.task, x, features, self.frames)


class Lstm(nn.Module):
    """See `lstm`."""

    task: Task
    widths: tuple[int, ...]
    frames: bool
    dtype: str

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        x: Any = _steps(image, self.task, "lstm").astype(self.dtype)  # what nn.RNN returns is not one type
        features = {}
        for stage, width in enumerate(self.widths, start=1):
            cell = nn.OptimizedLSTMCell(width, dtype=self.dtype, name=f"stage{stage}")
            nothing = jnp.zeros((x.shape[0], width), self.dtype)
            x = nn.RNN(cell)(x, initial_carry=(nothing, nothing))
            features[f"stage{stage}"] = x
        return _outputs(self.task, x, features, self.frames)


class SeriesVgg(nn.Module):
    """See `series_vgg`."""

    task: Task
    widths: tuple[int, ...]
    frames: bool
    dtype: str

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        x = _steps(image, self.task, "series_vgg")[..., None]
        features = {}
        for stage, width in enumerate(self.widths, start=1):
            for place in (1, 2):
                name = f"stage{stage}_conv{place}"
                x = layers.Conv(width, (3, 3), use_bias=False, dtype=self.dtype, name=name)(x)
                x = nn.relu(layers.batch_norm(x, train, name=f"stage{stage}_norm{place}"))
            features[f"stage{stage}"] = x
            pairs = x.shape[2] // 2
            if pairs:
                x = jnp.maximum(x[:, :, : 2 * pairs : 2], x[:, :, 1 : 2 * pairs : 2])
        return _outputs(self.task, x.reshape(*x.shape[:2], -1), features, self.frames)


class InceptionTime(nn.Module):
    """See `inception_time`."""

    task: Task
    depth: int
    width: int
    frames: bool
    dtype: str

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        x = _steps(image, self.task, "inception_time")
        features = {}
        for block in range(1, self.depth // MODULES_A_BLOCK + 1):
            before = x
            for module in range(1, MODULES_A_BLOCK + 1):
                is_first = block == module == 1
                x = Inception(self.width, self.dtype, is_first, name=f"stage{block}_module{module}")(x, train)
            name = "stem_shortcut_conv" if block == 1 else f"stage{block}_shortcut_conv"
            shortcut = _pointwise(4 * self.width, self.dtype, name)(before)
            x = nn.relu(x + layers.batch_norm(shortcut, train, name=f"stage{block}_shortcut_norm"))
            features[f"stage{block}"] = x
        return _outputs(self.task, x, features, self.frames)


class Inception(nn.Module):
    """relu(BN(convolutions of three lengths and a maximum of three steps, side by side)): [B,h,4*width].

    The three convolutions read `width` channels, into which one of length 1 brings more than one. In the
    module that reads the input (`is_first`) the layers that do so are called "stem_...".
    """

    width: int
    dtype: str
    is_first: bool

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        stem = "stem_" if self.is_first else ""
        narrow = _pointwise(self.width, self.dtype, f"{stem}bottleneck")(x) if x.shape[-1] > 1 else x
        inner = stem if narrow is x else ""
        branches = [
            layers.Conv(self.width, (kernel,), use_bias=False, dtype=self.dtype, name=f"{inner}conv{kernel}")(
                narrow
            )
            for kernel in INCEPTION_KERNELS
        ]
        largest = _pointwise(self.width, self.dtype, f"{stem}pool_conv")(_largest_of_three(x))
        joined = jnp.concatenate([*branches, largest], axis=-1)
        return nn.relu(layers.batch_norm(joined, train, name="norm"))


def _pointwise(features: int, dtype: str, name: str) -> layers.Conv:
    """Convolution of length 1 without bias."""
    return layers.Conv(features, (1,), use_bias=False, dtype=dtype, name=name)


def _largest_of_three(x: Array) -> Array:
    """The largest of a step of x [B,h,c] and its neighbours."""
    # A step beside itself changes no maximum. Joined and not padded: jax2onnx 0.17 doubles the channels
    # of the latter (mode "edge", any number of images).
    x = jnp.concatenate([x[:, :1], x, x[:, -1:]], axis=1)
    return jnp.maximum(jnp.maximum(x[:, :-2], x[:, 1:-1]), x[:, 2:])


def fcn(
    task: Task, *, widths: tuple[int, ...] = (128, 256, 128), frames: bool = False, dtype: str = "float32"
) -> Model:
    """Fully convolutional network for time series: three convolutions, and the mean over time.

    The convolutions are 8, 5 and 3 steps long, each with BatchNorm, and so without bias, and ReLU. Features
    "stage1" to "stage3" are [B,h,1,d], after their ReLU. For one channel and two classes 264 450 parameters.
    Raises UserError unless there are three `widths` and, once it sees an image, for a width other than 1.
    Source: Wang, Yan and Oates 2017, arXiv 1611.06455.

    Examples:
        >>> fcn(Task(num_classes=2, num_heads=1, mean=(0.0,), std=(1.0,)), widths=(16, 32, 16)).name
        'fcn(widths=(16, 32, 16))'
    """
    layers.check_widths("fcn.widths", widths)
    layers.check_argument("fcn.widths", widths, len(widths) == len(FCN_KERNELS), "three of them")
    _check_frames("fcn", frames)
    layers.check_dtype("fcn.dtype", dtype)
    arguments: dict[str, Any] = dict(widths=widths, frames=frames, dtype=dtype)
    return Model(layers.address_of(fcn, **arguments), Fcn(task, **arguments), convolutional=True)


def series_resnet(
    task: Task, *, widths: tuple[int, ...] = (64, 128, 128), frames: bool = False, dtype: str = "float32"
) -> Model:
    """Residual network for time series: a block for each of `widths`, and the mean over time.

    A block is three convolutions 8, 5 and 3 steps long, each with BatchNorm, and so without bias, and the
    first two with ReLU; to these is added what entered, through BatchNorm and, where it has another number
    of channels, before that a convolution of length 1. Features "stage1", "stage2", ..., one a block, are
    [B,h,1,d], after their ReLU. For one channel and two classes 503 106 parameters. Raises UserError for
    `widths` that are none and, once it sees an image, for a width other than 1. Source: Wang, Yan and Oates
    2017, arXiv 1611.06455.

    Examples:
        >>> series_resnet(Task(num_classes=2, num_heads=1, mean=(0.0,), std=(1.0,)), widths=(8, 16)).name
        'series_resnet(widths=(8, 16))'
    """
    _check_layers("series_resnet.widths", widths)
    _check_frames("series_resnet", frames)
    layers.check_dtype("series_resnet.dtype", dtype)
    arguments: dict[str, Any] = dict(widths=widths, frames=frames, dtype=dtype)
    return Model(
        layers.address_of(series_resnet, **arguments), SeriesResNet(task, **arguments), convolutional=True
    )


def lstm(
    task: Task, *, widths: tuple[int, ...] = (128,), frames: bool = False, dtype: str = "float32"
) -> Model:
    r"""Layers of long short-term memory over the steps of a series, and the mean over time of the last.

    A layer of d cells reads x_t [B,c] and its own h_{t-1} [B,d], both beginning with zeros:
    $i, f, o = \sigma(W x_t + U h_{t-1} + b)$, $g = \tanh(W_g x_t + U_g h_{t-1} + b_g)$,
    $c_t = f c_{t-1} + i g$, $h_t = o \tanh c_t$. Features "stage1", "stage2", ..., one a layer of `widths`,
    are h [B,T,1,d]. For one channel and two classes 66 818 parameters. Raises UserError for `widths` that
    are none and, once it sees an image, for a width other than 1. Source: Hochreiter and Schmidhuber 1997,
    with the forget gate of Gers, Schmidhuber and Cummins 2000.

    Examples:
        >>> lstm(Task(num_classes=2, num_heads=1, mean=(0.0,), std=(1.0,)), widths=(32, 32)).name
        'lstm(widths=(32, 32))'
    """
    _check_layers("lstm.widths", widths)
    _check_frames("lstm", frames)
    layers.check_dtype("lstm.dtype", dtype)
    arguments: dict[str, Any] = dict(widths=widths, frames=frames, dtype=dtype)
    return Model(layers.address_of(lstm, **arguments), Lstm(task, **arguments))


def series_vgg(
    task: Task, *, widths: tuple[int, ...] = (16, 32), frames: bool = False, dtype: str = "float32"
) -> Model:
    """A VGG over the steps and channels of a series, as over a picture: for spectra and cepstra.

    Each of `widths` is two 3x3 convolutions with BatchNorm, and so without bias, and ReLU, and then the
    maximum of every two channels, as long as there are two; steps stay as many as they are. Of what is left
    of the channels [B,h,w,d] the mean over time. Features "stage1", "stage2", ... are [B,h,w,d], before that
    maximum. For twelve channels and two classes 16 658 parameters. Raises UserError for `widths` that are
    none and, once it sees an image, for a width other than 1. Sources: Simonyan and Zisserman 2015, arXiv
    1409.1556; of speech Sercu et al. 2016, arXiv 1509.08967.

    Examples:
        >>> series_vgg(Task(num_classes=2, num_heads=1, mean=(0.0,), std=(1.0,)), widths=(4, 8)).name
        'series_vgg(widths=(4, 8))'
    """
    _check_layers("series_vgg.widths", widths)
    _check_frames("series_vgg", frames)
    layers.check_dtype("series_vgg.dtype", dtype)
    arguments: dict[str, Any] = dict(widths=widths, frames=frames, dtype=dtype)
    return Model(layers.address_of(series_vgg, **arguments), SeriesVgg(task, **arguments), convolutional=True)


def _check_frames(name: str, frames: Any) -> None:
    """Raise UserError unless `frames` is true or false."""
    layers.check_argument(f"{name}.frames", frames, isinstance(frames, bool), "True or False")


def _check_layers(name: str, widths: Any) -> None:
    """Raise UserError unless `widths` are whole numbers of at least 1, one or more."""
    layers.check_widths(name, widths)
    layers.check_argument(name, widths, len(widths) > 0, "one of them at least")


def inception_time(
    task: Task, *, depth: int = 6, width: int = 32, frames: bool = False, dtype: str = "float32"
) -> Model:
    """One network of InceptionTime, which is an ensemble of five: inception modules, mean over time.

    A module joins convolutions of 40, 20 and 10 steps and a maximum over three steps, `width` features
    each; every third module ends in a residual block, whose shortcut is a convolution of length 1 and
    BatchNorm. Features "stage1", "stage2", ..., one a block, are [B,h,1,4*width], after their ReLU. For one
    channel and two classes 420 450 parameters. Raises UserError unless `depth` is a multiple of 3 and, once
    it sees an image, for a width other than 1. Source: Ismail Fawaz et al. 2020, arXiv 1909.04939.

    Examples:
        >>> inception_time(Task(num_classes=2, num_heads=1, mean=(0.0,), std=(1.0,)), width=8).name
        'inception_time(width=8)'
    """
    valid = isinstance(depth, int) and depth > 0 and depth % MODULES_A_BLOCK == 0
    layers.check_argument("inception_time.depth", depth, valid, "a multiple of 3, such as 6")
    layers.check_count("inception_time.width", width)
    _check_frames("inception_time", frames)
    layers.check_dtype("inception_time.dtype", dtype)
    arguments: dict[str, Any] = dict(depth=depth, width=width, frames=frames, dtype=dtype)
    return Model(
        layers.address_of(inception_time, **arguments), InceptionTime(task, **arguments), convolutional=True
    )
