"""What every architecture is built from: convolution, pooling, heads, normalisation.

The convolution is written for `lax.scan` and `lax.map`: XLA on CPU rewrites only convolutions of the entry
computation into the layout its fast kernels take (jax-ml/jax#12868), so inside a loop the gradients of a
plain convolution are 8 to 250 times slower. The forms below give the same numbers and stay fast there.

Computation runs in `dtype`, "float32" or "bfloat16"; parameters, batch statistics and all of `Outputs` are
float32 either way.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.custom_derivatives import SymbolicZero

from mtkd_jax import mesh
from mtkd_jax.models import direct_conv
from mtkd_jax.models.direct_conv import Pads, Pair
from mtkd_jax.system.spelling import hint
from mtkd_jax.types import Array, Model, Outputs, PyTree, Task, UserError

LAYOUT = ("NHWC", "HWIO", "NHWC")
DTYPES = ("float32", "bfloat16")
AnyArray = TypeVar("AnyArray", Array, np.ndarray)  # what of the device and what of the host remains so
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of every channel, of images in 0..1
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of ImageNet's training images
STEMS = ("imagenet", "cifar")  # how a network begins: for images of about 224 pixels or of about 32
HE = nn.initializers.he_normal()  # of kernels before a ReLU, which halves the second moment: He et al. 2015
# Collections of variables by which a network can be cut between two stages, see `through`.
ENTERED, ENTERING = "entered", "entering"
_forms_of: ContextVar[str] = ContextVar("forms_of", default="")  # "": of the platform that JAX runs on
_form: ContextVar[str] = ContextVar("form", default="")  # of convolutions, see `in_form`
_cut_after: ContextVar[tuple[str, dict[str, Array]] | None] = ContextVar("cut_after", default=None)


# --- convolution --------------------------------------------------------------------------------------


def conv(
    x: Array,
    kernel: Array,
    strides: tuple[int, ...] | None = None,
    padding: str | Pads = "SAME",
    groups: int = 1,
) -> Array:
    """Convolution of x [B,h,w,c] with kernel [kh,kw,c/groups,d], or of x [B,l,c] with kernel [k,c/groups,d].

    The result is [B,h',w',d] or [B,l',d]. `strides` is a number for each of the axes, None for all 1;
    `padding` is "SAME", "SAME_LOWER" or "VALID", or for an image the pixels before and after its rows and
    columns. With `groups`, channels and features fall into that many equal runs, each convolved alone.
    Computed in the form that `fastest_form` names, or `in_form` in its place; all forms are equal in value
    and in derivatives of every order and mode.
    Raises UserError unless channels and features divide so.
    """
    if x.shape[-1] != kernel.shape[-2] * groups or kernel.shape[-1] % groups:
        raise UserError(
            f"conv: groups = {groups}: expected {kernel.shape[-2] * groups} channels and features "
            f"in a multiple of {groups}, not {x.shape[-1]} and {kernel.shape[-1]}"
        )
    if x.ndim == 3:
        return conv(x[:, None], kernel[None], strides and (1, *strides), padding, groups)[:, 0]
    down, across = strides or (1, 1)
    strides = down, across
    if isinstance(padding, str):
        rows, columns = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
        pads = rows, columns
    else:
        pads = padding
    form = fastest_form(kernel.shape, groups, _forms_of.get() or jax.default_backend())
    if _form.get() == "onednn" and direct_conv.computes(x, kernel, strides, pads, groups):
        return direct_conv.direct_conv(x, kernel, strides, pads, groups, mesh.cores())
    if _form.get() == "windows" and form in ("plain", "canonical") and groups == 1:
        form = "windows"
    if form == "product":
        return product_conv(x, kernel, strides, pads)
    if form == "by_group":
        parts = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1))
        return jnp.concatenate([conv(*part, strides, padding) for part in parts], axis=-1)
    if form == "canonical" and padding == "VALID" and strides == kernel.shape[:2]:
        return patch_conv(x, kernel)
    if form == "windows":
        return window_conv(x, kernel, strides, pads)
    if form == "shifted":
        return shifted_conv(x, kernel, strides, pads)
    if form == "canonical":
        return canonical_conv(x, kernel, strides, pads)
    return plain_conv(x, kernel, strides, pads, groups)


@contextlib.contextmanager
def forms_of(platform: str) -> Iterator[None]:
    """What is traced inside takes this platform's forms, wherever it is: for a program that travels."""
    token = _forms_of.set(platform)
    try:
        yield
    finally:
        _forms_of.reset(token)


@contextlib.contextmanager
def in_form(form: str) -> Iterator[None]:
    """What is traced inside computes its convolutions in this form.

    "onednn": by `direct_conv`, wherever oneDNN computes them; "windows": as `window_conv`, but for those in
    groups and those of one pixel. All else, and any other form, is that of the platform.
    """
    token = _form.set(form)
    try:
        yield
    finally:
        _form.reset(token)


def fastest_form(kernel_shape: tuple[int, ...], groups: int, platform: str) -> str:
    """The form taken for a kernel [kh,kw,c/groups,d] on "cpu", "gpu" or "tpu".

    Measured on two shared cores inside `lax.map`: ms of CPU time for the value and both gradients of 128
    images (depthwise: 64), against the plain form in the same loop. On two virtual devices the 3x3 forms
    kept their order; the others, and the plain form, were not tried there.

        product     1x1, 16x16x144 to 24: 19 against 741. As a convolution its d/dkernel took twice as long.
        shifted     3x3 depthwise, 16x16x96: 28 against 6900. As many sums written by hand as a gradient: 34.
        by_group    3x3, 4 groups, 8x8x64: 14 against 442. As one kernel with zeros between groups: 1.3 to
                    1.6 times as long.
        canonical   3x3, 14x14x32 to 64: 35 against 1306; 32x32x16: 54 against 3513; 16x16x32: 23 against
                    2042; 8x8x64: 21 against 1501; stride 2, 32x32x16 to 32: 31 against 1128.

    Tried for larger kernels and dropped: all shifted copies of the image side by side and one product
    (forward 2 to 3 times as long, d/dkernel as long as whole-batch canonical at best), a product for each
    shift, rows and columns of shifts crossed, and strides taken apart into phases. For 16 channels: two
    columns at once (as long). For images of 1 or 3 channels: a sum over window and channels, which alone took
    a third of the time and made no difference in a training step of the small CNN or ResNet-20; for 1 channel
    copies side by side, written out before one product (alone half, in the step of the small CNN as long).
    For 32 channels and more: Winograd's F(4,3) over rows, columns or both, which halves the products and
    moves more bytes. Over rows it alone took 0.6 to 0.75 times as long (8x8 and 16x16 images), in a step with
    both cores at work 0.93 to 1.03 times (ResNet-20, WRN-16-2, small CNN), compiled 7 to 14 s longer.
    In bfloat16, on an Intel Xeon with AMX (two cores): matrix products alone, summed in float32, run at 3 to
    4 times the rate of float32. XLA moves and adds bfloat16 as float32, though, and a window takes longer to
    be laid out than to be multiplied: "windows" with products so summed and gradients that are such products
    took 56 ms a step of the small CNN, against 23 in float32; with windows moved as 16-bit integers only
    8x8x64 gained (2.1 against 3.5 ms forward), 32x32x16 took 17 against 5. As they are VGG-16 and speedy take
    0.96 of float32's time.
    oneDNN's direct convolutions (`direct_conv`) are another form (`in_form`) and no platform's: inside
    `lax.map`, on one core of an AMD EPYC with AVX-512, the value and both gradients took 24 ms against 44 of
    these for 32x32x16, 15 against 22 for 8x8x64 (3x3, 128 images), 7 against 30 depthwise (16x16x96, 64
    images); with AVX2 alone 25 against 39, 19 against 21 and 9 against 30. Their bfloat16 gains nothing on an
    Intel Xeon with instructions for it but without AMX: a member step of the small CNN took 27 ms against 18
    in float32, of ResNet-20 298 against 204, convolutions alone as long (32x32x16) or longer (16x16x256: 200
    against 123).
    """
    height, width, depth, _ = kernel_shape
    if platform != "cpu":
        return "plain"
    if groups > 1:
        return "shifted" if depth == 1 else "by_group"
    return "product" if (height, width) == (1, 1) else "canonical"


def plain_conv(x: Array, kernel: Array, strides: Pair, pads: Pads, groups: int = 1) -> Array:
    """XLA's convolution."""
    return lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=LAYOUT, feature_group_count=groups
    )


def product_conv(x: Array, kernel: Array, strides: Pair, pads: Pads) -> Array:
    """The convolution with a kernel [1,1,c,d], a matrix product at every place."""
    if any(map(any, pads)):
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]


def patch_conv(x: Array, kernel: Array) -> Array:
    """The convolution whose windows [kh,kw] lie side by side, without padding: a product for each window."""
    height, width, depth, features = kernel.shape
    rows, columns = x.shape[1] // height, x.shape[2] // width
    x = x[:, : rows * height, : columns * width].reshape(-1, rows, height, columns, width, depth)
    windows = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows, columns, height * width * depth)
    return windows @ kernel.reshape(-1, features)


def window_conv(x: Array, kernel: Array, strides: Pair, pads: Pads) -> Array:
    """The convolution as one matrix product: the window [kh,kw,c] of every place laid out beside its others.

    kh kw times the image's memory. Batched over kernels it is a batched product, and no grouped convolution.
    """
    height, width, _, features = kernel.shape
    windows = jnp.concatenate(list(_shifts(x, (height, width), strides, pads)), axis=-1)
    return windows @ kernel.reshape(-1, features)


def shifted_conv(x: Array, kernel: Array, strides: Pair, pads: Pads) -> Array:
    """The depthwise convolution with a kernel [kh,kw,1,d], d a multiple of c: a sum of shifted products."""
    height, width, _, features = kernel.shape
    x = jnp.repeat(x, features // x.shape[-1], axis=-1)
    shifts = _shifts(x, (height, width), strides, pads)
    weights = (kernel[None, None, i, j] for i, j in itertools.product(range(height), range(width)))
    return functools.reduce(jnp.add, (seen * weight for seen, weight in zip(shifts, weights)))


def _shifts(x: Array, window: Pair, strides: Pair, pads: Pads) -> Iterator[Array]:
    """What each pixel of the window sees, [B,h',w',c], row by row."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = ((size - k) // s + 1 for size, k, s in zip(x.shape[1:3], window, strides))
    for i, j in itertools.product(*map(range, window)):
        last_row, last_column = i + (rows - 1) * strides[0], j + (columns - 1) * strides[1]
        yield x[:, i : last_row + 1 : strides[0], j : last_column + 1 : strides[1]]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def canonical_conv(x: Array, kernel: Array, strides: Pair, pads: Pads) -> Array:
    """A plain convolution whose gradients are convolutions in NHWC and HWIO too."""
    return plain_conv(x, kernel, strides, pads)


def _canonical_tangent(strides: Pair, pads: Pads, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # The tangent is written as what transposes into the gradient that we want, so that reverse mode runs
    # just that gradient, and forward mode works as well (as a `custom_vjp` it would not).
    x, kernel = primals
    y = canonical_conv(x, kernel, strides, pads)
    gradients = (
        lambda grad: _x_gradient(grad, kernel, x.shape[1:3], strides, pads),
        lambda grad: _kernel_gradient(x, grad, kernel.shape[:2], strides, pads),
    )
    changes = [
        jax.linear_transpose(gradient, y)(tangent)[0]
        for gradient, tangent in zip(gradients, tangents)
        if not isinstance(tangent, SymbolicZero)
    ]
    return y, functools.reduce(jnp.add, changes)


canonical_conv.defjvp(_canonical_tangent, symbolic_zeros=True)


def _x_gradient(grad: Array, kernel: Array, size: Pair, strides: Pair, pads: Pads) -> Array:
    """d/dx: the gradient, spread by the stride, meets the kernel turned by 180 degrees."""
    before = [k - 1 - low for k, (low, _) in zip(kernel.shape[:2], pads)]
    after = [h + k - 1 - g - b for h, k, g, b in zip(size, kernel.shape[:2], _spread(grad, strides), before)]
    return lax.conv_general_dilated(
        grad,
        kernel[::-1, ::-1].transpose(0, 1, 3, 2),
        window_strides=(1, 1),
        padding=list(zip(before, after)),
        lhs_dilation=strides,
        dimension_numbers=LAYOUT,
    )


def _kernel_gradient(x: Array, grad: Array, window: Pair, strides: Pair, pads: Pads) -> Array:
    """d/dkernel: channels take the place of the batch, the images of a block that of the channels.

    In blocks of 8 images, because the whole batch does not fit the cache: this took 0.4 to 0.7 times as long
    as at once. Blocks of 16 and 32 are as fast compiled by `mesh.jit`, and take up to twice as long compiled
    by `jax.jit`; blocks of 4 take 1.5 times as long (8x8 to 32x32 images, batch 128, CPU). Summed in float32
    at least.
    """
    num_blocks = max(1, round(len(x) / 8))
    wide = np.promote_types(x.dtype, np.float32)
    ends = [
        k - 1 - h - low + g for k, h, (low, _), g in zip(window, x.shape[1:3], pads, _spread(grad, strides))
    ]

    def blocks(images: Array) -> Array:
        missing = ((0, -len(images) % num_blocks), (0, 0), (0, 0), (0, 0))  # zeros add nothing
        return jnp.pad(images.astype(wide), missing).reshape(num_blocks, -1, *images.shape[1:])

    def add_block(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        turned, grad = block
        return total + lax.conv_general_dilated(
            turned,
            grad.transpose(1, 2, 0, 3),
            window_strides=(1, 1),
            padding=[(low, end) for (low, _), end in zip(pads, ends)],
            rhs_dilation=strides,
            dimension_numbers=LAYOUT,
        ), None

    nothing = jnp.zeros((x.shape[-1], *window, grad.shape[-1]), wide)
    total, _ = lax.scan(add_block, nothing, (blocks(x).transpose(0, 4, 2, 3, 1), blocks(grad)))
    return total.transpose(1, 2, 0, 3).astype(x.dtype)


def _spread(grad: Array, strides: Pair) -> list[int]:
    """Height and width of the gradient with strides - 1 zeros between its rows and columns."""
    return [(size - 1) * stride + 1 for size, stride in zip(grad.shape[1:3], strides)]


# --- pooling ------------------------------------------------------------------------------------------


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def max_pool(x: Array, window: int) -> Array:
    """Largest value of each window x window square, [B,h,w,c] -> [B,h//window,w//window,c].

    Where the maximum is reached more than once the gradient is shared equally.
    """
    # A maximum over a reshaped axis: `lax.reduce_window` and its gradient took 4 to 5 times as long (CPU).
    return _squares(x, window).max(axis=(2, 4))


@max_pool.defjvp
def _max_pool_tangent(window: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # What JAX derives from `max`, but counting by slices: its sum over two short axes, done again for each
    # member of a square, made pooling take 1.2 to 1.7 times as long.
    (x,), (tangent,) = primals, tangents
    largest = max_pool(x, window)
    squares = _squares(x, window)
    rows, columns = largest.shape[1] * window, largest.shape[2] * window
    places = itertools.product(range(window), repeat=2)
    ties = sum((x[:, i:rows:window, j:columns:window] == largest).astype(x.dtype) for i, j in places)
    share = lax.optimization_barrier(1 / ties)
    reached = squares == largest[:, :, None, :, None]
    change = jnp.where(reached, _squares(tangent, window), 0).sum(axis=(2, 4))
    return largest, change * share


def _squares(x: Array, window: int) -> Array:
    """[B,h,w,c] -> [B,h//window,window,w//window,window,c], without the rows and columns left over."""
    rows, columns = x.shape[1] // window, x.shape[2] // window
    whole = x[:, : rows * window, : columns * window]
    return whole.reshape(x.shape[0], rows, window, columns, window, x.shape[3])


def overlapping_max_pool(x: Array, window: int, stride: int, padding: int = 0) -> Array:
    """Largest value of each window x window square, one every `stride` pixels, [B,h,w,c] -> [B,h',w',c].

    h' = (h + 2 * padding - window) // stride + 1, and w' alike; what is padded is never the largest.
    """
    x = jnp.pad(x, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)), constant_values=-jnp.inf)
    for axis in (1, 2):  # rows, then columns: 2 * window values are compared instead of window**2
        last = (x.shape[axis] - window) // stride * stride
        shifted = (lax.slice_in_dim(x, shift, shift + last + 1, stride, axis=axis) for shift in range(window))
        x = functools.reduce(jnp.maximum, shifted)
    return x


def average_pool(x: Array, window: int) -> Array:
    """Mean of each window x window square, [B,h,w,c] -> [B,h//window,w//window,c]."""
    return _squares(x, window).mean(axis=(2, 4))


def adaptive_average_pool(x: Array, height: int, width: int) -> Array:
    """Means of height x width parts that cover the image, [B,h,w,d] -> [B,height,width,d].

    Part i of h pixels begins at floor(i * h / height) and ends before ceil((i + 1) * h / height); parts
    overlap where `height` does not divide h, and repeat pixels where it is larger.
    """
    if x.shape[1:3] == (height, width):
        return x
    rows, columns = (jnp.asarray(_parts(*of), x.dtype) for of in zip(x.shape[1:3], (height, width)))
    return jnp.einsum("bhwd,ih,jw->bijd", x, rows, columns)


def _parts(length: int, size: int) -> np.ndarray:
    """Weights [size,length] of the pixels in each part."""
    pixel, part = np.arange(length)[None], np.arange(size)[:, None]
    inside = (pixel >= part * length // size) & (pixel < -(-(part + 1) * length // size))
    return inside / inside.sum(axis=1, keepdims=True)


# --- modules ------------------------------------------------------------------------------------------


class Conv(nn.Module):
    """`conv` with its kernel [kh,kw,c/groups,d] or [k,c/groups,d]; its bias [d] unless BatchNorm follows.

    With `pool` > 1 the largest values of squares of that size. The bias comes after them: the same numbers,
    and a tenth of a small network's convolutions was saved by adding it to a quarter as many (CPU).
    """

    features: int
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    padding: str | Pads = "SAME"
    use_bias: bool = True
    dtype: str = "float32"
    groups: int = 1
    pool: int = 1
    kernel_init: Callable = HE

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = conv(x, kernel, self.strides, self.padding, self.groups)
        y = max_pool(y, self.pool) if self.pool > 1 else y
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
            y = y + jnp.expand_dims(bias.astype(self.dtype), range(y.ndim - 1))
        return y


def batch_norm(
    x: Array,
    train: bool,
    name: str,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    use_scale: bool = True,
    use_bias: bool = True,
) -> Array:
    """Batch normalisation (Ioffe and Szegedy 2015) in float32, returned in the dtype of x [B,...,d].

    Called inside a compact module, which then owns the parameters and running statistics `name`. Statistics
    are those of the whole batch, also where `data_axis` splits it, but those stored in a frozen stage;
    running ones keep `momentum` of what they were. `epsilon` is added to the variance.
    """
    # Its sums in other orders, as one multiplication and addition, or with a backward pass written by hand
    # took 0.9 to 1.2 times as long for [128,32,32,16] to [128,8,8,64] (CPU): not worth code of our own.
    norm = nn.BatchNorm(
        momentum=momentum,
        epsilon=epsilon,
        dtype=jnp.float32,
        axis_name=data_axis(),
        use_scale=use_scale,
        use_bias=use_bias,
        name=name,
    )
    # Said in the call and not by the module, so that `models.stages.still` can say otherwise.
    return norm(x.astype(jnp.float32), use_running_average=not train).astype(x.dtype)


def layer_norm(x: Array, name: str) -> Array:
    """Layer normalisation (Ba et al. 2016) over d in float32, returned in the dtype of x [B,...,d].

    Called inside a compact module, which then owns the parameters `name`. 1e-6 is added to the variance.
    """
    return nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name=name)(x.astype(jnp.float32)).astype(x.dtype)


def data_axis() -> str | None:
    """The mapped axis "data", over which one batch is split, or None where there is none or it has size 1."""
    try:
        size = lax.axis_size("data")
    except NameError:
        return None
    return "data" if size > 1 else None


def dense(features: int, kernel_init: Callable, dtype: str, name: str) -> nn.Dense:
    """A dense layer with bias, which belongs to the module it is called in."""
    return nn.Dense(features, kernel_init=kernel_init, dtype=dtype, name=name)


class Heads(nn.Module):
    """H linear classifiers that read one embedding [B,D] -> [H,B,C], or [B,L,D] -> [H,B,L,C], in float32.

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
        heads = embedding.astype(jnp.float32) @ side_by_side
        heads = heads.reshape(*embedding.shape[:-1], self.num_heads, self.num_classes)
        return jnp.moveaxis(heads, -2, 0) + jnp.expand_dims(bias, range(1, embedding.ndim))


def normalise(image: AnyArray, mean: Sequence[float], std: Sequence[float]) -> AnyArray:
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


def prepare(image: Array, task: Task, image_size: int, least: int) -> Array:
    """Images [B,h,w,c] for a network published for larger ones: as large as asked, and normalised.

    The only channel of grey ones is repeated where pretrained weights read three. With `image_size` they are
    resized to squares of that side, bilinearly, and smoothed where they shrink.
    Raises UserError when one of their sides is below `least` pixels.
    """
    if image.shape[-1] == 1 and len(task.mean) > 1:
        image = jnp.repeat(image, len(task.mean), axis=-1)
    if image_size:
        image = jax.image.resize(image, (image.shape[0], image_size, image_size, image.shape[3]), "linear")
    if min(image.shape[1:3]) < least:
        raise UserError(
            f"images of {image.shape[1]}x{image.shape[2]} are too small for this network: expected at least "
            f"{least}x{least}; image_size makes them larger"
        )
    return normalise(image, task.mean, task.std)


def through(module: nn.Module, stage: str, x: PyTree, compute: Callable[[PyTree], PyTree]) -> PyTree:
    """`compute(x)`, the work of one of the `stages` that the network `module` runs one after the other.

    A network whose stages all go through here can be cut before any of them (see `models.stages`): where
    "entered"/STAGE stands among its variables it begins with that at STAGE, and stages before it are passed
    over; where the collection "entering" is mutable it tells there what enters every stage. Called in the
    network's own compact method, not in that of a block. See `cut_after` for a network that ends early.
    """
    cut = _cut_after.get()
    if cut is not None and module.stages.index(stage) > module.stages.index(cut[0]):
        return x
    if module.is_mutable_collection(ENTERING) and not module.is_initializing():
        module.put_variable(ENTERING, stage, x)
    for first, entered in module.variables.get(ENTERED, {}).items():
        if module.stages.index(stage) < module.stages.index(first):
            return x
        x = entered if stage == first else x
    x = compute(x)
    if cut is not None:
        cut[1][stage] = x
    return x


@contextlib.contextmanager
def cut_after(stage: str) -> Iterator[dict[str, Array]]:
    """What is called inside, a network whose stages all go `through`, ends behind this one of its stages.

    It returns what leaves that stage in the place of `Outputs`, and has no variables of later ones. The
    dict holds what leaves each stage, by its name, once the network has been called.
    """
    left: dict[str, Array] = {}
    token = _cut_after.set((stage, left))
    try:
        yield left
    finally:
        _cut_after.reset(token)


def in_turn(module: nn.Module, image: Array, *computes: Callable[[PyTree], PyTree]) -> Outputs:
    """The stages of a network one after the other, each `through`: `computes` are the work of each."""
    x: PyTree = image
    for stage, compute in zip(module.stages, computes, strict=True):
        x = through(module, stage, x, compute)
    return x


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


@contextlib.contextmanager
def kept_statistics() -> Iterator[dict[str, float]]:
    """{path of a BatchNorm: the share of its statistics that it keeps in a step}, of what runs within."""
    found: dict[str, float] = {}

    def note(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        if isinstance(context.module, nn.BatchNorm):
            found["/".join(context.module.path)] = context.module.momentum
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        yield found


def flatten(x: Array) -> Array:
    """[B,h,w,c] -> [B,c*h*w]: channels lead, as in PyTorch, so that its weights fit what follows."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


# --- arguments ----------------------------------------------------------------------------------------


def published(
    build: Callable,
    network: Callable,
    task: Task,
    *,
    statistics: Statistics = IMAGENET,
    stems: Sequence[str] = STEMS,
    **arguments: Any,
) -> Model:
    """The Model of a family that is published with weights, of the arguments that `build` was given.

    A pretrained network normalises by the `statistics` that its weights were trained with, not by the task's.

    `network(task, **arguments)` is its Linen module, made without `pretrained` and `trainable`. These and
    `image_size`, `stem` (one of `stems`) and `dtype`, which all such families take, are checked here: raises
    UserError.
    """
    family = build.__name__
    own = {name: value for name, value in arguments.items() if name not in ("pretrained", "trainable")}
    pretrained, trainable, size = (arguments[name] for name in ("pretrained", "trainable", "image_size"))
    if pretrained:
        task = task._replace(mean=statistics[0], std=statistics[1])
    module = network(task, **own)
    is_size = isinstance(size, int) and size >= 0
    check_argument(f"{family}.image_size", size, is_size, "a number of pixels, or 0 for images as they are")
    check_argument(f"{family}.stem", own["stem"], own["stem"] in stems, " or ".join(stems))
    is_text = isinstance(pretrained, str)
    check_argument(f"{family}.pretrained", pretrained, is_text, "the name or the file of weights")
    check_trainable(f"{family}.trainable", trainable, module.stages)
    check_dtype(f"{family}.dtype", own["dtype"])
    # Convolutional, for a CPU: any network of this size fills its cores alone, and members one after the
    # other need the memory of one.
    name = address_of(build, **arguments)
    return Model(name, module, convolutional=True, pretrained=pretrained, trainable=trainable)


def address_of(build: Callable, **arguments: Any) -> str:
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


def check_trainable(name: str, value: Any, stages: Sequence[str]) -> None:
    """Raise UserError unless `value` is the name of a stage, or "" for all of them."""
    expected = f"one of {', '.join(stages)}{hint(str(value), stages)}"
    check_argument(name, value, value in ("", *stages), expected)


def check_dtype(name: str, value: Any) -> None:
    """Raise UserError unless models can compute in `value`."""
    check_argument(name, value, value in DTYPES, " or ".join(DTYPES))
