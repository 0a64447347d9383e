"""What every architecture is built from: convolution, pooling, heads, normalisation.

The convolution is written for `lax.scan` and `lax.map`: XLA on CPU rewrites only convolutions of the entry
computation into the layout its fast kernels take (jax-ml/jax#12868), so inside a loop the gradients of a
plain convolution are 8 to 29 times slower. The forms below give the same numbers and stay fast there.

Computation runs in `dtype`, "float32" or "bfloat16"; parameters, batch statistics and all of `Outputs` are
float32 either way.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from mtkd_jax.types import Array, Outputs, UserError

LAYOUT = ("NHWC", "HWIO", "NHWC")
FORMS = ("auto", "plain", "canonical", "patches")
DTYPES = ("float32", "bfloat16")

Pair = tuple[int, int]


# --- convolution --------------------------------------------------------------------------------------


def conv(
    x: Array,
    kernel: Array,
    strides: Pair = (1, 1),
    padding: str = "SAME",
    form: str = "auto",
    groups: int = 1,
) -> Array:
    """Two-dimensional convolution of x [B,h,w,c] with kernel [kh,kw,c/groups,d] -> [B,h',w',d].

    With `groups`, channels and features fall into that many equal runs, each convolved alone.

    All forms are equal in value and gradient; they differ in speed and in what can differentiate them.
    "plain" is XLA's own; "canonical" writes its backward convolutions in the layout that is fast inside
    CPU loops, and has no forward-mode derivative (`jax.jvp`); "patches" is one matrix product over shifted
    copies of the image. "auto" takes plain on GPU and TPU, and on CPU whichever was fastest there.
    Raises UserError for another form.
    """
    if form not in FORMS:
        raise UserError(f"conv: form = {form!r}: expected one of {', '.join(FORMS)}")
    pads = tuple(lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding))
    if groups > 1:
        return plain_conv(x, kernel, strides, pads, groups)
    if form == "auto":
        form = fastest_form(kernel.shape[:2], jax.default_backend())
    if form == "patches":
        return patches_conv(x, kernel, strides, pads)
    if form == "canonical":
        return canonical_conv(x, kernel, strides, pads)
    return plain_conv(x, kernel, strides, pads)


def fastest_form(window: Pair, platform: str) -> str:
    """The form that `auto` takes for a kernel of height and width `window` on "cpu", "gpu" or "tpu".

    Patches of a 3x3 kernel copy the image nine times. Measured inside `lax.scan` and `lax.map` on two cores
    for 1 to 64 input channels they won by a third with 3 channels, and changed sides from run to run on
    14x14 images; the first layer of the default `cnn` lost (65 against 57 ms of CPU time per training step).
    A 1x1 kernel needs no copy.
    """
    if platform != "cpu":
        return "plain"
    return "patches" if window == (1, 1) else "canonical"


def plain_conv(x: Array, kernel: Array, strides: Pair, pads: tuple[Pair, Pair], groups: int = 1) -> Array:
    """XLA's convolution, pads given as ((top, bottom), (left, right))."""
    return lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=LAYOUT, feature_group_count=groups
    )


def patches_conv(x: Array, kernel: Array, strides: Pair, pads: tuple[Pair, Pair]) -> Array:
    """The convolution as [B*h'*w', kh*kw*c] @ [kh*kw*c, d]; its memory grows with kh*kw."""
    height, width, channels, features = kernel.shape
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows = (x.shape[1] - height) // strides[0] + 1
    columns = (x.shape[2] - width) // strides[1] + 1
    shifted = [
        x[
            :,
            i : i + (rows - 1) * strides[0] + 1 : strides[0],
            j : j + (columns - 1) * strides[1] + 1 : strides[1],
        ]
        for i in range(height)
        for j in range(width)
    ]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(height * width * channels, features)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def canonical_conv(x: Array, kernel: Array, strides: Pair, pads: tuple[Pair, Pair]) -> Array:
    """A plain convolution whose gradients are convolutions in NHWC and HWIO too; reverse mode only."""
    return plain_conv(x, kernel, strides, pads)


def _canonical_forward(x, kernel, strides, pads):
    return plain_conv(x, kernel, strides, pads), (x, kernel)


def _canonical_backward(strides, pads, saved, grad):
    x, kernel = saved
    dilated = [(size - 1) * stride + 1 for size, stride in zip(grad.shape[1:3], strides)]
    # d/dx: the gradient, spread by the stride, meets the kernel turned by 180 degrees.
    before = [k - 1 - low for k, (low, _) in zip(kernel.shape[:2], pads)]
    after = [h + k - 1 - g - b for h, k, g, b in zip(x.shape[1:3], kernel.shape[:2], dilated, before)]
    x_grad = lax.conv_general_dilated(
        grad,
        kernel[::-1, ::-1].transpose(0, 1, 3, 2),
        window_strides=(1, 1),
        padding=list(zip(before, after)),
        lhs_dilation=strides,
        dimension_numbers=LAYOUT,
    )
    # d/dkernel: channels take the place of the batch, the batch that of the channels.
    ends = [k - 1 - h - low + g for k, h, (low, _), g in zip(kernel.shape[:2], x.shape[1:3], pads, dilated)]
    kernel_grad = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        grad.transpose(1, 2, 0, 3),
        window_strides=(1, 1),
        padding=[(low, end) for (low, _), end in zip(pads, ends)],
        rhs_dilation=strides,
        dimension_numbers=LAYOUT,
    )
    return x_grad, kernel_grad.transpose(1, 2, 0, 3)


canonical_conv.defvjp(_canonical_forward, _canonical_backward)


# --- pooling ------------------------------------------------------------------------------------------


def max_pool(x: Array, window: int) -> Array:
    """Largest value of each window x window square, [B,h,w,c] -> [B,h//window,w//window,c].

    A maximum over a reshaped axis, because the gradient of `lax.reduce_window` is slow on CPU. Where the
    maximum is reached twice the gradient is shared.
    """
    rows, columns = x.shape[1] // window, x.shape[2] // window
    whole = x[:, : rows * window, : columns * window]
    return whole.reshape(x.shape[0], rows, window, columns, window, x.shape[3]).max(axis=(2, 4))


# --- modules ------------------------------------------------------------------------------------------


class Conv(nn.Module):
    """`conv` with its kernel [kh,kw,c/groups,d] and, unless a BatchNorm follows, its bias [d]."""

    features: int
    kernel_size: Pair
    strides: Pair = (1, 1)
    padding: str = "SAME"
    use_bias: bool = True
    dtype: str = "float32"
    groups: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        y = conv(
            x.astype(self.dtype), kernel.astype(self.dtype), self.strides, self.padding, groups=self.groups
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y


def batch_norm(x: Array, train: bool, name: str, axis_name: str | None = None) -> Array:
    """Batch normalisation (Ioffe and Szegedy 2015) in float32, returned in the dtype of x [B,...,d].

    Called inside a compact module, which then owns the parameters and running statistics `name`.
    `axis_name` is the mapped axis over which one batch is split; statistics are averaged over it.
    """
    norm = nn.BatchNorm(
        use_running_average=not train, momentum=0.9, dtype=jnp.float32, axis_name=axis_name, name=name
    )
    return norm(x.astype(jnp.float32)).astype(x.dtype)


class Heads(nn.Module):
    """H linear classifiers that read one embedding [B,D] -> [H,B,C], in float32.

    Each head is initialised as if it were alone: `batch_axis` keeps H out of the fan.
    """

    num_heads: int
    num_classes: int

    @nn.compact
    def __call__(self, embedding: Array) -> Array:
        init = nn.initializers.lecun_normal(batch_axis=0)
        shape = (self.num_heads, embedding.shape[-1], self.num_classes)
        kernel = self.param("kernel", init, shape, jnp.float32)
        bias = self.param(
            "bias", nn.initializers.zeros_init(), (self.num_heads, self.num_classes), jnp.float32
        )
        # One product for all heads: a batch of H narrow ones took 2.5 times as long (CPU, 24 members, H = 5).
        side_by_side = jnp.moveaxis(kernel, 0, 1).reshape(shape[1], -1)
        heads = (embedding.astype(jnp.float32) @ side_by_side).reshape(-1, self.num_heads, self.num_classes)
        return jnp.moveaxis(heads, 1, 0) + bias[:, None]


def normalise(image: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """(image - mean) / std per channel, [B,h,w,c] float32; a channel that never varies is only centred.

    Raises UserError when the image has another number of channels than `mean`.
    """
    if image.shape[-1] != len(mean):
        raise UserError(
            f"images have {image.shape[-1]} channels: expected {len(mean)}, as the training images have"
        )
    offset = np.array(mean, np.float32).reshape(1, 1, 1, -1)
    scale = np.array([deviation or 1.0 for deviation in std], np.float32).reshape(1, 1, 1, -1)
    return (image - offset) / scale


def outputs(embedding: Array, heads: Array, features: Mapping[str, Array]) -> Outputs:
    """All of `Outputs` in float32, from heads [H,B,C].

    With several heads logits = log mean_h softmax(heads), the logits of the mean prediction.
    """
    heads = heads.astype(jnp.float32)
    if len(heads) == 1:
        logits = heads[0]
    else:
        logits = jax.nn.logsumexp(jax.nn.log_softmax(heads), axis=0) - math.log(len(heads))
    features = {name: value.astype(jnp.float32) for name, value in features.items()}
    return Outputs(logits, heads, embedding.astype(jnp.float32), features)


# --- arguments ----------------------------------------------------------------------------------------


def described(build: Callable, **arguments: Any) -> str:
    """The call that made a model, without the arguments left at their defaults: "mlp(hidden=(32,))"."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(build).parameters.items()}
    changed = ", ".join(f"{name}={value!r}" for name, value in arguments.items() if value != defaults[name])
    return f"{build.__name__}({changed})" if changed else build.__name__


def check_argument(name: str, value: Any, valid: bool, expected: str) -> None:
    """Raise UserError "name = value: expected ..." unless `valid`."""
    if not valid:
        raise UserError(f"{name} = {value!r}: expected {expected}")


def check_count(name: str, value: Any) -> None:
    """Raise UserError unless `value` is a whole number of at least 1."""
    check_argument(name, value, isinstance(value, int) and value >= 1, "a whole number >= 1")


def check_widths(name: str, value: Any) -> None:
    """Raise UserError unless `value` is a tuple of whole numbers of at least 1."""
    valid = isinstance(value, tuple) and all(isinstance(width, int) and width >= 1 for width in value)
    check_argument(name, value, valid, "a tuple of whole numbers >= 1, such as (32, 64)")


def check_dropout(name: str, value: Any) -> None:
    """Raise UserError unless 0 <= value < 1."""
    check_argument(name, value, isinstance(value, int | float) and 0 <= value < 1, "a number in [0, 1)")


def check_dtype(name: str, value: Any) -> None:
    """Raise UserError unless models can compute in `value`."""
    check_argument(name, value, value in DTYPES, " or ".join(DTYPES))
