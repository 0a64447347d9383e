"""Files that `torch.save` writes, read without PyTorch; nothing in them is executed.

They hold a pickle, which in general can run code: here it may name nothing but what builds dicts of tensors.
Both forms are read: the zip archives of PyTorch 1.6 and later, and the stream of pickles of those before.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older form
KINDS = {  # of torch's storages, as NumPy stores them
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": jnp.dtype(jnp.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype(bool),
}


@dataclasses.dataclass
class _Storage:
    """The numbers of one storage; in the older form they follow when all pickles are read."""

    kind: np.dtype
    size: int
    numbers: np.ndarray | None = None


@dataclasses.dataclass
class _Tensor:
    """A view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """The tensor; ValueError where it reaches beyond its storage."""
        if min((self.offset, *self.shape, *self.strides), default=0) < 0:
            raise ValueError("a tensor of negative size")
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides))
        if math.prod(self.shape) and last >= len(self.storage.numbers):
            raise ValueError("a tensor beyond its storage")
        if not math.prod(self.shape):
            return np.zeros(self.shape, self.storage.kind)
        own = self.storage.numbers[self.offset :]
        strides = [step * own.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(own, self.shape, strides, writeable=False)
        array = np.array(view)
        return array.astype(np.float32) if self.storage.kind == jnp.bfloat16 else array


def read(data: bytes) -> dict[str, np.ndarray]:
    """{name: array} of the tensors in a file, inner dicts by "outer.inner"; bfloat16 as float32.

    What is no tensor is left out. Raises ValueError where the file is damaged, or names anything else than
    dicts and tensors.
    """
    try:
        found = _read_zip(data) if zipfile.is_zipfile(io.BytesIO(data)) else _read_stream(data)
        return dict(_tensors(found))
    except (pickle.UnpicklingError, EOFError, struct.error, TypeError, AttributeError, IndexError) as error:
        raise ValueError(str(error)) from error


def _read_zip(data: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        (pickled,) = (name for name in names if name.endswith("data.pkl"))
        if f"{(folder := pickled.removesuffix('data.pkl'))}byteorder" in names:
            order = archive.read(f"{folder}byteorder")
            if order != b"little":
                raise ValueError(f"byte order {order!r}")

        def load(key: str, kind: np.dtype, size: int) -> _Storage:
            numbers = np.frombuffer(archive.read(f"{folder}data/{key}"), kind)
            return _Storage(kind, size, numbers)

        return _Unpickler(io.BytesIO(archive.read(pickled)), load).load()


def _read_stream(data: bytes) -> Any:
    file, known = io.BytesIO(data), {}

    def load(key: str, kind: np.dtype, size: int) -> _Storage:
        return known.setdefault(key, _Storage(kind, size))

    def following() -> Any:
        return _Unpickler(file, load).load()

    if following() != MAGIC:
        raise ValueError("not a file of torch.save")
    following()  # the version of this form
    if not following().get("little_endian", True):
        raise ValueError("byte order big")
    found, keys = following(), following()
    for key in keys:
        (size,) = struct.unpack("<q", file.read(8))
        storage = known[key]
        storage.numbers = np.frombuffer(file.read(size * storage.kind.itemsize), storage.kind)
        if size < 0 or len(storage.numbers) != size:
            raise ValueError("the file ends too early")
    return found


class _Unpickler(pickle.Unpickler):
    """Builds dicts of tensors and refuses all else."""

    def __init__(self, file: io.BytesIO, load: Callable[[str, np.dtype, int], _Storage]):
        super().__init__(file, encoding="utf-8")
        self._load = load

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, shape, strides)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module in ("torch", "torch.storage") and name in KINDS:
            return KINDS[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: tuple) -> _Storage:
        word, kind, key, _, size, *view = pid
        if word != "storage" or any(part is not None for part in view):
            raise pickle.UnpicklingError("a storage of another form")
        return self._load(key, kind, size)


def _tensors(found: Any, prefix: str = ""):
    if isinstance(found, _Tensor):
        yield prefix, found.array()
    elif isinstance(found, Mapping):
        for name, value in found.items():
            yield from _tensors(value, f"{prefix}.{name}" if prefix else str(name))
