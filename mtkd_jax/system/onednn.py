"""oneDNN's convolutions, on arrays that lie in memory: the package onednn-cpu-gomp by its C interface.

The library has kernels that read images as they lie in memory, also those of few channels, where a matrix
product would multiply little of what is laid out for it. It is not required: ask `is_installed`.
"""

from __future__ import annotations

import collections
import ctypes
import functools
import importlib.metadata
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

PACKAGE = "onednn-cpu-gomp"  # the one whose threads are those of GNU OpenMP, which it needs and nothing else
KINDS = ("forward", "image", "kernel")  # the convolution, and its gradient by the image and by the kernel
DTYPES = {"float32": 3, "bfloat16": 2}  # dnnl_data_type_t
# Of the C interface of version 3, which keeps its numbers within a major version.
_CPU, _IN_ORDER, _TRAINING, _DIRECT, _ANY_ORDER = 1, 1, 64, 1, 1
_WANTED_KERNEL, _WANTED_KERNEL_GRADIENT, _WANTED_SCRATCHPAD = 131, 132, 136
_SCRATCHPAD_OF_USER = 1
_FROM, _TO, _SCRATCHPAD = 1, 17, 80
_OPERANDS = {  # of a kind, in the order of the addresses that it is run on: the number of the argument
    "forward": {"image": 1, "kernel": 33, "output": 17},
    "image": {"output": 145, "kernel": 33, "image": 129},
    "kernel": {"image": 1, "output": 145, "kernel": 161},
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
    rows_above: int  # of zeros
    rows_below: int
    columns_before: int
    columns_behind: int

    @property
    def output_size(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        rows = self.height + self.rows_above + self.rows_below - self.window_height
        columns = self.width + self.columns_before + self.columns_behind - self.window_width
        return rows // self.row_stride + 1, columns // self.column_stride + 1


@functools.lru_cache(maxsize=4096)
def computes(problem: Problem) -> bool:
    """Whether the library computes it and both gradients: not every processor has every kind of number."""
    if min(problem.output_size) < 1:
        return False
    try:
        image, _, any_order, output = _descriptions(problem)
        for kind in KINDS:
            _describe(kind, problem, image, any_order, output)
    except OSError:
        return False
    return True


class Convolution:
    """A problem with its compiled kernels and the memory they need; for one thread at a time.

    Kept until the process ends, as all that the library makes here. Raises OSError if the library has no way
    to compute it.
    """

    def __init__(self, problem: Problem):
        self.problem, kind = problem, KINDS[problem.kind]
        _, gomp = _libraries()
        gomp.omp_set_num_threads(problem.threads)  # kernels are divided among as many as there are now
        self._stream = _new("dnnl_stream_create", _engine(), _IN_ORDER)
        image, plain, any_order, output = _descriptions(problem)
        convolution = _describe(kind, problem, image, any_order, output)
        own = _wanted(convolution, _WANTED_KERNEL_GRADIENT if kind == "kernel" else _WANTED_KERNEL)
        # Images and outputs stay as they lie; kernels, which are small, are laid out as the library wants.
        places = {"image": _memory(image), "kernel": _memory(plain), "output": _memory(output)}
        laid_out = _memory(own, of_its_own=True)
        operands = {**places, "kernel": laid_out}
        compute = _Step(convolution, {number: operands[name] for name, number in _OPERANDS[kind].items()})
        if kind == "kernel":
            lay_out = _Step(_reorder(own, plain), {_FROM: laid_out, _TO: places["kernel"]})
            self._steps = (compute, lay_out)
        else:
            lay_out = _Step(_reorder(plain, own), {_FROM: places["kernel"], _TO: laid_out})
            self._steps = (lay_out, compute)
        self._places = [places[name] for name in _OPERANDS[kind]]

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
        with _preparing:
            convolution = Convolution(Problem(*np.frombuffer(problem, np.int64).tolist()))
    try:
        convolution.run(addresses)
    finally:
        idle.append(convolution)


_idle: dict[bytes, list[Convolution]] = collections.defaultdict(list)
_preparing = threading.Lock()  # two threads would make an engine each, and their parts do not fit together


class _Step:
    """A primitive of the library with its arguments, and with memory of its own to compute in.

    The library's own memory for that is the thread's that made the primitive; another one crashes in it.
    """

    def __init__(self, description: Any, arguments: dict[int, Any]):
        self._primitive = _new("dnnl_primitive_create", description)
        scratchpad = _memory(_wanted(description, _WANTED_SCRATCHPAD), of_its_own=True)
        arguments = {**arguments, _SCRATCHPAD: scratchpad}
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
        _Pair(one.rows_above, one.columns_before),
        _Pair(one.rows_below, one.columns_behind),
    )
    made = functools.partial(_new, f"dnnl_convolution_{_NAMES[kind]}_primitive_desc_create", _engine())
    if kind == "forward":
        return made(_TRAINING, _DIRECT, image, kernel, None, output, *geometry, _attributes())
    forward = _describe("forward", problem, image, kernel, output)
    bias = (None,) * (kind == "kernel")
    return made(_DIRECT, image, kernel, *bias, output, *geometry, forward, _attributes())


_NAMES = {"forward": "forward", "image": "backward_data", "kernel": "backward_weights"}


def _wanted(description: Any, what: int) -> Any:
    """The description of memory as the library wants it."""
    lib, _ = _libraries()
    lib.dnnl_primitive_desc_query_md.restype = _Pointer
    return _Pointer(lib.dnnl_primitive_desc_query_md(description, what, 0))


def _reorder(before: Any, after: Any) -> Any:
    ends = (before, _engine(), after, _engine())
    return _new("dnnl_reorder_primitive_desc_create", *ends, _attributes())


@functools.cache
def _attributes() -> Any:
    """Of every primitive: its scratchpad is an argument."""
    lib, _ = _libraries()
    made = _new("dnnl_primitive_attr_create")
    _check(lib.dnnl_primitive_attr_set_scratchpad_mode(made, _SCRATCHPAD_OF_USER), "scratchpad_mode")
    return made


def _memory(description: Any, of_its_own: bool = False) -> Any:
    """Memory that the library allocates, or memory of XLA, whose address `Convolution.run` is given."""
    return _new("dnnl_memory_create", description, _engine(), _Pointer(-1) if of_its_own else None)


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
