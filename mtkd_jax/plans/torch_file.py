"""PyTorch's own files, `.pth` and `.pt`, read without executing anything.

Such a file, since PyTorch 1.6, is a zip archive: a pickle that says what there is, and the bytes of each
storage in an entry of its own. Before, it was a stream: three pickles about the form, the pickle that says
what there is, one of the keys of the storages, and the bytes of these.

The pickle is read by `system.pickles`: of what it may ask for, the four kinds of names that belong to tensors
become records, and all else is refused.
"""

from __future__ import annotations

import dataclasses
import io
import math
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from mtkd_jax.system import pickles
from mtkd_jax.system.pickles import expect
from mtkd_jax.types import UserError

STORAGES = {  # name: type of the numbers; bfloat16, which NumPy does not know, is the upper half of float32
    "torch.DoubleStorage": "f8",
    "torch.FloatStorage": "f4",
    "torch.HalfStorage": "f2",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
DICT, TENSOR, PARAMETER = (
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
)
NAMES = {DICT, TENSOR, PARAMETER, *STORAGES}
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a stream
ORDERS = {b"little": "<", b"big": ">"}
AGAIN = "in PyTorch, torch.save(network.state_dict(), file)"
MOST_DEEP = 16  # dictionaries and lists in one another; an optimizer's checkpoint has 5
MOST_VALUES = 1_000_000  # met on the way through them; a list that holds itself has no end
MOST_NUMBERS = 2  # in all tensors, for each byte of the file: they may share what is stored


@dataclasses.dataclass(frozen=True)
class Name:
    """A function or class that the pickle names; it is never looked up."""

    text: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """Numbers in an entry of the archive."""

    kind: str
    key: str
    size: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage: offset and strides count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(data: bytes) -> dict[str, np.ndarray]:
    """{name: array} of all tensors in the bytes of a file; names of nested dictionaries are joined by dots.

    Other numbers and texts are left out. Halves of the kind bfloat16 come as float32.
    Raises UserError for what is not known or not allowed, in one line that names it, and ValueError where the
    file is damaged.
    """
    try:
        with warnings.catch_warnings():  # old texts with wrong escapes, which end as an unknown operation
            warnings.simplefilter("ignore", DeprecationWarning)
            is_stream = data[:1] == b"\x80"  # a pickle begins so
            value, order, stored = _in_stream(data) if is_stream else _in_archive(data)
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise ValueError("the pickle ends early, or asks for what is not there") from error
    tensors: dict[str, Tensor] = {}
    for name, tensor in _tensors(value):
        if name in tensors:
            raise UserError(f"tensor {name} is in it twice")
        tensors[name] = tensor
    if not tensors:
        raise UserError(f"no tensors are in it; {AGAIN}")
    _check_sizes(tensors, len(data))
    numbers: dict[Storage, np.ndarray] = {}
    for storage in {tensor.storage for tensor in tensors.values()}:
        numbers[storage] = _numbers(storage, stored(storage), order)
    return {name: _view(tensor, numbers[tensor.storage], name) for name, tensor in tensors.items()}


Found = tuple[Any, str, Callable[["Storage"], bytes]]  # what there is, its byte order, bytes of a storage


def _in_archive(data: bytes) -> Found:
    archive = _opened(data)
    programs = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(programs) != 1:
        raise UserError(f"a zip archive that PyTorch has not written: expected one data.pkl; {AGAIN}")
    root = programs[0].removesuffix("data.pkl")
    order = archive.read(f"{root}byteorder") if f"{root}byteorder" in archive.namelist() else b"little"
    if order not in ORDERS:
        raise UserError(f"byteorder is {order[:16]!r}: expected little or big")
    value = _run(io.BytesIO(archive.read(programs[0])))
    return value, ORDERS[order], lambda storage: archive.read(f"{root}data/{storage.key}")


def _in_stream(data: bytes) -> Found:
    stream = io.BytesIO(data)
    if _run(stream) != MAGIC:
        raise UserError(f"a pickle that PyTorch has not written; {AGAIN}")
    _run(stream)  # the version of the form
    order = "<" if expect(_run(stream), dict).get("little_endian", True) else ">"
    value, places = _run(stream), {}
    sizes = {tensor.storage.key: _num_bytes(tensor.storage) for _, tensor in _tensors(value)}
    for key in expect(_run(stream), list):
        (count,) = struct.unpack("<q", stream.read(8))
        if count < 0 or key not in sizes:
            raise UserError(f"damaged: storage {key!r} belongs to no tensor")
        places[key] = stream.tell(), sizes[key]
        stream.seek(sizes[key], io.SEEK_CUR)
    return value, order, lambda storage: data[places[storage.key][0] :][: places[storage.key][1]]


def _opened(data: bytes) -> zipfile.ZipFile:
    """The archive, of which no part unpacks into more than the file has."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    entries = archive.infolist()
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not stored or sum(entry.file_size for entry in entries) > len(data):
        raise UserError(f"its entries are compressed or overlap, which PyTorch does not do; {AGAIN}")
    return archive


# --- what its pickle asks for ---------------------------------------------------------------------------


def _run(program: BinaryIO) -> Any:
    return pickles.read(program, READER)


def _named(text: str) -> Name:
    if text not in NAMES:
        raise UserError(f"it asks for {text}, which is no part of a tensor and is not executed; {AGAIN}")
    return Name(text)


def _storage(reference: Any) -> Storage:
    word, kind, key, _, size, *view = reference  # the fourth is the device it was on
    if any(part is not None for part in view):
        raise UserError(f"a storage that is a view of another one; {AGAIN}")
    if word != "storage" or not isinstance(kind, Name) or kind.text not in STORAGES:
        raise TypeError("no reference to a storage")
    return Storage(kind.text, expect(key, str), _count(size))


def _made(function: Any, arguments: Any) -> Any:
    """What the known functions make of their arguments."""
    text = expect(function, Name).text
    if text == DICT and arguments == ():
        return {}
    if text == PARAMETER:
        tensor, *_ = expect(arguments, tuple)
        return expect(tensor, Tensor)
    if text != TENSOR:
        raise UserError(f"it calls {text} in an unknown way; {AGAIN}")
    storage, offset, shape, strides, *_ = expect(arguments, tuple)
    shape, strides = tuple(map(_count, shape)), tuple(map(_count, strides))
    if len(shape) != len(strides):
        raise ValueError("as many strides as sides")
    return Tensor(expect(storage, Storage), _count(offset), shape, strides)


def _same(thing: Any, state: Any) -> dict:
    """Without its attributes: they are of a dictionary, such as the versions of modules."""
    return expect(thing, dict)


READER = pickles.Reader(_named, _made, _same, f"tensors do not need; {AGAIN}", _storage)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError("expected a number >= 0")
    return value


# --- tensors ------------------------------------------------------------------------------------------


def _tensors(value: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors of nested dictionaries, lists and tuples, with their names."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), value)]
    for _ in range(MOST_VALUES):
        if not waiting:
            return
        words, value = waiting.pop()
        if isinstance(value, Tensor):
            yield ".".join(words), value
        elif isinstance(value, Mapping | list | tuple):
            if len(words) == MOST_DEEP or len(waiting) + len(value) > MOST_VALUES:
                break
            pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
            waiting.extend(reversed([((*words, str(key)), inner) for key, inner in pairs]))
    raise UserError(f"its dictionaries lie too deep in one another; {AGAIN}")


def _check_sizes(tensors: Mapping[str, Tensor], num_bytes: int) -> None:
    """No tensor has more numbers than its storage, and all together not many more than the file can hold."""
    total = 0
    for name, tensor in tensors.items():
        count, size = math.prod(tensor.shape), tensor.storage.size
        if count > size:
            raise UserError(
                f"tensor {name} has {count} numbers, {size} are stored; save it after contiguous()"
            )
        total += count
    if total > MOST_NUMBERS * num_bytes:
        raise UserError("too many of its tensors share their numbers; save them after clone()")


def _numbers(storage: Storage, stored: bytes, order: str) -> np.ndarray:
    kind = STORAGES[storage.kind]
    dtype = np.dtype(order + {"bfloat16": "u2"}.get(kind, kind))
    wanted = _num_bytes(storage)
    if len(stored) != wanted:
        raise UserError(f"damaged: storage {storage.key} has {len(stored)} bytes instead of {wanted}")
    numbers = np.frombuffer(stored, dtype).astype(dtype.newbyteorder("="), copy=False)
    if kind == "bfloat16":
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers


def _num_bytes(storage: Storage) -> int:
    return storage.size * np.dtype({"bfloat16": "u2"}.get(kind := STORAGES[storage.kind], kind)).itemsize


def _view(tensor: Tensor, numbers: np.ndarray, name: str) -> np.ndarray:
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, numbers.dtype)
    reach = tensor.offset + sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.strides))
    if reach >= len(numbers):
        raise UserError(f"damaged: tensor {name} reaches beyond its storage")
    strides = [stride * numbers.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)
