"""oneDNN's convolutions, on arrays that lie in memory: the package onednn-cpu-gomp by its C interface.

The library has kernels that read images as they lie in memory, also those of few channels, where a matrix
product would multiply little of what is laid out for it. It is not required: ask `is_installed`.
"""

from __future__ import annotations

import collections
import ctypes
import functools
import importlib.metadata
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

PACKAGE = "onednn-cpu-gomp"  # the one whose threads are those of GNU OpenMP, which it needs and nothing else
KINDS = ("forward", "image", "kernel")  # the convolution, and its gradient by the image and by the kernel
DTYPES = {"float32": 3, "bfloat16": 2}  # dnnl_data_type_t
# Of the C interface of version 3, which keeps its numbers within a major version.
_CPU, _IN_ORDER, _TRAINING, _DIRECT, _ANY_ORDER = 1, 1, 64, 1, 1
_WANTED_KERNEL, _WANTED_KERNEL_GRADIENT = 131, 132
_FROM, _TO = 1, 17
_OPERANDS = {  # of a kind: which argument is the image, the kernel, the output
    "forward": (1, 33, 17),
    "image": (129, 33, 145),
    "kernel": (1, 161, 145),
}
_Pointer = ctypes.c_void_p
_Pair = ctypes.c_int64 * 2


class Problem(NamedTuple):
    """A convolution of images [batch,height,width,channels], all in whole numbers: it travels as an array."""

    kind: int  # place in KINDS
    dtype: int  # a value of DTYPES
    threads: int
    batch: int
    height: int
    width: int
    channels: int
    features: int
    groups: int
    window_height: int
    window_width: int
    row_stride: int
    column_stride: int
    top: int  # rows of zeros above the image
    bottom: int
    left: int
    right: int

    @property
    def output_size(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        rows = self.height + self.top + self.bottom - self.window_height
        columns = self.width + self.left + self.right - self.window_width
        return rows // self.row_stride + 1, columns // self.column_stride + 1


class Convolution:
    """A problem with its compiled kernels; for one thread at a time, which is why `run` keeps several.

    Raises OSError if the library has no way to compute it.
    """

    def __init__(self, problem: Problem):
        self.problem, kind = problem, KINDS[problem.kind]
        lib, gomp = _libraries()
        gomp.omp_set_num_threads(problem.threads)  # kernels are divided among as many as there are now
        self._stream = _new("dnnl_stream_create", _engine(), _IN_ORDER)
        image, plain_kernel, any_kernel, output = _descriptions(problem)
        description = _describe(kind, problem, image, any_kernel, output)
        lib.dnnl_primitive_desc_query_md.restype = _Pointer
        wanted = _WANTED_KERNEL_GRADIENT if kind == "kernel" else _WANTED_KERNEL
        own_kernel = _Pointer(lib.dnnl_primitive_desc_query_md(description, wanted, 0))
        # The library lays kernels out for itself, which are small; images and outputs stay as they are.
        self._image, self._kernel, self._output = map(_place, (image, plain_kernel, output))
        laid_out = _new("dnnl_memory_create", own_kernel, _engine(), _Pointer(-1))  # memory of its own
        pair = (own_kernel, plain_kernel) if kind == "kernel" else (plain_kernel, own_kernel)
        moves = _Step(
            _new("dnnl_reorder_primitive_desc_create", pair[0], _engine(), pair[1], _engine(), None),
            {_FROM: laid_out, _TO: self._kernel}
            if kind == "kernel"
            else {_FROM: self._kernel, _TO: laid_out},
        )
        computes = _Step(description, dict(zip(_OPERANDS[kind], (self._image, laid_out, self._output))))
        self._steps = (computes, moves) if kind == "kernel" else (moves, computes)
        self._places = {  # in the order of `run`'s addresses
            "forward": (self._image, self._kernel, self._output),
            "image": (self._output, self._kernel, self._image),
            "kernel": (self._image, self._output, self._kernel),
        }[kind]

    def run(self, addresses: Sequence[int]) -> None:
        """Compute from arrays at the first two addresses into the one at the third.

        forward: image [B,h,w,c], kernel [kh,kw,c/groups,d] and output [B,h',w',d]; image: the output's
        gradient, kernel, and the image's; kernel: image, the output's gradient, and the kernel's.
        """
        lib, gomp = _libraries()
        gomp.omp_set_num_threads(self.problem.threads)
        for place, address in zip(self._places, addresses):
            _check(lib.dnnl_memory_set_data_handle(place, _Pointer(address)), "dnnl_memory_set_data_handle")
        for step in self._steps:
            step.run(self._stream)
        _check(lib.dnnl_stream_wait(self._stream), "dnnl_stream_wait")


def run(problem: bytes, addresses: Sequence[int]) -> None:
    """`Convolution.run` of the Problem whose numbers are these bytes (int64), prepared the first time."""
    idle = _idle[problem]
    try:
        convolution = idle.pop()
    except IndexError:  # none yet, or all are at work in other threads
        convolution = Convolution(Problem(*np.frombuffer(problem, np.int64).tolist()))
    convolution.run(addresses)
    idle.append(convolution)


_idle: dict[bytes, list[Convolution]] = collections.defaultdict(list)


class _Step:
    """A primitive of the library with its arguments."""

    def __init__(self, description: Any, arguments: dict[int, Any]):
        self._primitive = _new("dnnl_primitive_create", description)
        self._arguments = (_Argument * len(arguments))(
            *(_Argument(number, memory.value) for number, memory in arguments.items())
        )

    def run(self, stream: Any) -> None:
        arguments = self._arguments
        lib, _ = _libraries()
        status = lib.dnnl_primitive_execute(self._primitive, stream, len(arguments), arguments)
        _check(status, "dnnl_primitive_execute")


class _Argument(ctypes.Structure):
    _fields_ = [("number", ctypes.c_int), ("memory", _Pointer)]


def is_installed() -> bool:
    """Whether oneDNN, version 3, is there and can be loaded."""
    try:
        lib, _ = _libraries()
    except OSError:
        return False
    lib.dnnl_version.restype = ctypes.POINTER(ctypes.c_int)
    return lib.dnnl_version()[0] == 3


@functools.cache
def _libraries() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """oneDNN and the library that its threads are of. Raises OSError where there is none."""
    try:
        files = importlib.metadata.files(PACKAGE) or ()
    except importlib.metadata.PackageNotFoundError as error:
        raise OSError(f"{PACKAGE} is not installed") from error
    for file in files:
        if file.name == "libdnnl.so.3":
            return ctypes.CDLL(str(file.locate())), ctypes.CDLL("libgomp.so.1")
    raise OSError(f"{PACKAGE} has no libdnnl.so.3")


@functools.cache
def _engine() -> Any:
    return _new("dnnl_engine_create", _CPU, ctypes.c_size_t(0))


def _descriptions(problem: Problem) -> tuple[Any, Any, Any, Any]:
    """Of the image, the kernel as it lies here and in the library's own order, and the output."""
    one = problem
    channels, features = one.channels // one.groups, one.features // one.groups
    window = (one.window_height, one.window_width)
    of_row = one.window_width * channels * one.features
    kernel = (one.groups, features, channels, *window)
    strides = (features, 1, one.features, of_row, channels * one.features)
    skipped = 0 if one.groups > 1 else 1  # without groups kernels have no axis for them
    return (
        _images(one, (one.height, one.width), one.channels),
        _array(one.dtype, kernel[skipped:], strides[skipped:]),
        _new(
            "dnnl_memory_desc_create_with_tag", 5 - skipped, _sizes(kernel[skipped:]), one.dtype, _ANY_ORDER
        ),
        _images(one, one.output_size, one.features),
    )


def _images(problem: Problem, size: tuple[int, int], channels: int) -> Any:
    height, width = size
    strides = (height * width * channels, 1, width * channels, channels)
    return _array(problem.dtype, (problem.batch, channels, height, width), strides)


def _array(dtype: int, shape: Sequence[int], strides: Sequence[int]) -> Any:
    return _new("dnnl_memory_desc_create_with_strides", len(shape), _sizes(shape), dtype, _sizes(strides))


def _describe(kind: str, problem: Problem, image: Any, kernel: Any, output: Any) -> Any:
    """How the library computes a kind of the problem."""
    one = problem
    geometry = (
        _Pair(one.row_stride, one.column_stride),
        _Pair(0, 0),  # its pixels lie side by side: not dilated
        _Pair(one.top, one.left),
        _Pair(one.bottom, one.right),
    )
    made = functools.partial(_new, f"dnnl_convolution_{_NAMES[kind]}_primitive_desc_create", _engine())
    if kind == "forward":
        return made(_TRAINING, _DIRECT, image, kernel, None, output, *geometry, None)
    forward = _describe("forward", problem, image, kernel, output)
    bias = (None,) * (kind == "kernel")
    return made(_DIRECT, image, kernel, *bias, output, *geometry, forward, None)


_NAMES = {"forward": "forward", "image": "backward_data", "kernel": "backward_weights"}


def _place(description: Any) -> Any:
    """Memory of somebody else, whose address `run` tells."""
    return _new("dnnl_memory_create", description, _engine(), None)


def _new(function: str, *arguments: Any) -> Any:
    """What a function of the library makes; it is kept until the process ends, as all here."""
    made = _Pointer()
    lib, _ = _libraries()
    _check(getattr(lib, function)(ctypes.byref(made), *arguments), function)
    return made


def _check(status: int, function: str) -> None:
    if status:
        raise OSError(f"oneDNN: {function} answered {status}")


def _sizes(values: Sequence[int]) -> Any:
    return (ctypes.c_int64 * 12)(*values)  # dnnl_dims_t
