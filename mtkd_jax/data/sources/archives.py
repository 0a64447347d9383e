"""Archives as they were published: CIFAR-10 and CIFAR-100, packed or unpacked, pickled or binary."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import io
import os
import pathlib
import tarfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mtkd_jax.data.checks import check, first_line, open_file
from mtkd_jax.system import pickles
from mtkd_jax.types import DataSet, UserError

_LIMIT = 2**28  # bytes that an archive may unpack to, or a file hold; the published ones have 186 MB
_PIXELS = 3 * 32 * 32
_BATCHES = tuple(f"data_batch_{n}" for n in range(1, 6))


def cifar10(*, path: str) -> DataSet:
    """CIFAR-10 as published: 60 000 colour images 32x32x3 in 10 classes, 10 000 of them for testing.

    `path` is cifar-10-python.tar.gz or cifar-10-binary.tar.gz, or the folder that one of them unpacks to.
    The pickles of the first are read without running them. Raises `UserError` naming the file.
    Source: Krizhevsky 2009, Learning multiple layers of features from tiny images.
    """
    python = _Form(
        train=_BATCHES,
        test="test_batch",
        names="batches.meta",
        records=functools.partial(_pickled_records, labels="labels"),
        class_names=functools.partial(_pickled_names, key="label_names"),
    )
    binary = _Form(
        train=tuple(f"{name}.bin" for name in _BATCHES),
        test="test_batch.bin",
        names="batches.meta.txt",
        records=functools.partial(_binary_records, num_labels=1, place=0),
        class_names=_lines,
    )
    return _load_published("cifar10", path, python, binary)


def cifar100(*, path: str, labels: str = "fine") -> DataSet:
    """CIFAR-100 as published: 60 000 colour images 32x32x3 in 100 "fine" or 20 "coarse" classes.

    `path` is cifar-100-python.tar.gz or cifar-100-binary.tar.gz, or the folder that one of them unpacks to.
    The pickles of the first are read without running them. Raises `UserError` naming the file, or unless
    `labels` is one of the two. Source: Krizhevsky 2009, as for `cifar10`.
    """
    if labels not in ("fine", "coarse"):
        raise UserError(f"cifar100: labels = {labels!r}: must be 'fine' or 'coarse'")
    python = _Form(
        train=("train",),
        test="test",
        names="meta",
        records=functools.partial(_pickled_records, labels=f"{labels}_labels"),
        class_names=functools.partial(_pickled_names, key=f"{labels}_label_names"),
    )
    binary = _Form(
        train=("train.bin",),
        test="test.bin",
        names=f"{labels}_label_names.txt",
        records=functools.partial(_binary_records, num_labels=2, place=("coarse", "fine").index(labels)),
        class_names=_lines,
    )
    return _load_published("cifar100" if labels == "fine" else "cifar100_coarse", path, python, binary)


# --- a set and its files ------------------------------------------------------------------------------

Content = bytes | memoryview
Records = tuple[np.ndarray, np.ndarray]  # pixels [N,3072] uint8, the three colours one after another; labels


class _Form(NamedTuple):
    """One of the two forms of a set: names of its files, and how to read those."""

    train: tuple[str, ...]
    test: str
    names: str  # the file of the class names
    records: Callable[[Content], Records]
    class_names: Callable[[Content], tuple[str, ...]]

    @property
    def files(self) -> tuple[str, ...]:
        return *self.train, self.test, self.names


def _load_published(name: str, path: str, *forms: _Form) -> DataSet:
    """The set in the form of which a file is there."""
    files = _files(path, {file for form in forms for file in form.files})
    form = max(forms, key=lambda form: len(files.keys() & set(form.files)))
    if missing := [file for file in form.files if file not in files]:
        wanted = " or ".join(", ".join(form.files) for form in forms)
        raise UserError(f"{path}: no file {missing[0]}: must hold {wanted}")

    def read(file: str, how: Callable) -> Any:
        try:
            return how(files[file])
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise UserError(
                f"{path}: {file}: cannot be read ({first_line(error)}); must be the file as published"
            ) from error

    records = [read(file, form.records) for file in form.train]
    train_images, train_labels = (np.concatenate(arrays) for arrays in zip(*records))
    test_images, test_labels = read(form.test, form.records)
    return check(
        DataSet(
            name=name,
            train_images=_to_channels_last(train_images),
            train_labels=train_labels,
            test_images=_to_channels_last(test_images),
            test_labels=test_labels,
            class_names=read(form.names, form.class_names),
        ),
        where=path,
    )


def _to_channels_last(pixels: np.ndarray) -> np.ndarray:
    """[N,3072], the planes of red, green and blue -> [N,32,32,3]."""
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _files(path: str, wanted: set[str]) -> dict[str, Content]:
    """{name: content} of the wanted files that are in a folder or a .tar.gz; no more than `_LIMIT` each."""
    place = pathlib.Path(os.path.expanduser(path))
    if not path or not os.path.exists(place):
        raise UserError(
            f"data.path = {path!r}: no such file or folder; "
            "must be a .tar.gz as published, or the folder it unpacks to"
        )
    try:
        if not place.is_dir():
            with open_file(place, "rb") as packed:
                return _members(_content(gzip.open(packed), path), wanted)
        there = [place / name for name in sorted(wanted) if (place / name).is_file()]
        return {file.name: _content(file.open("rb"), str(file)) for file in there}
    # OSError is also what gzip raises for a wrong checksum and for a file that is not gzipped.
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UserError(
            f"{path}: cannot be read ({first_line(error)}); must be a whole .tar.gz as published"
        ) from error


def _content(stream: io.BufferedIOBase, where: str) -> bytes:
    with stream:
        content = stream.read(_LIMIT + 1)
    if len(content) > _LIMIT:
        raise UserError(f"{where}: unpacks to more than {_LIMIT} bytes: must be the archive as published")
    return content


def _members(archive: bytes, wanted: set[str]) -> dict[str, Content]:
    """{name: content} of the wanted plain files of a .tar, each a view into it: nothing touches the disk.

    A file is known by the last part of its name. Links, devices, and names that lead upwards or begin at the
    root are passed over.
    """
    found: dict[str, Content] = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as members:
        for member in members:
            *folders, name = member.name.split("/")
            plain = member.isreg() and not member.issparse() and not {"", ".."} & set(folders)
            if plain and name in wanted:
                found[name] = memoryview(archive)[member.offset_data : member.offset_data + member.size]
    return found


# --- the binary form ----------------------------------------------------------------------------------


def _binary_records(content: Content, *, num_labels: int, place: int) -> Records:
    """Records of `num_labels` bytes, of which the one at `place` is the label, and the pixels."""
    size = num_labels + _PIXELS
    if not content or len(content) % size:
        raise ValueError(f"{len(content)} bytes, and a record has {size}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, size)
    return rows[:, num_labels:], rows[:, place]


def _lines(content: Content) -> tuple[str, ...]:
    """The class names, one a line."""
    return tuple(bytes(content).decode().split())


# --- the pickled form ---------------------------------------------------------------------------------


def _pickled_records(content: Content, *, labels: str) -> Records:
    """The entries "data" and `labels` of a pickled dict."""
    found = _read_pickle(content)
    pixels, numbers = _array(_entry(found, "data")), _entry(found, labels)
    if not isinstance(numbers, list) or not all(isinstance(number, int) for number in numbers):
        raise ValueError(f"{labels} is not a list of whole numbers")
    if pixels.shape != (len(numbers), _PIXELS):
        raise ValueError(f"data has the shape {pixels.shape}, with {len(numbers)} labels")
    return pixels, np.array(numbers, np.int64)


def _pickled_names(content: Content, *, key: str) -> tuple[str, ...]:
    """The entry `key` of a pickled dict, a list of text."""
    names = _entry(_read_pickle(content), key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{key} is not a list of text")
    return tuple(names)


def _entry(found: Any, key: str) -> Any:
    if not isinstance(found, dict) or key not in found:
        raise ValueError(f"it holds no {key}")
    return found[key]


@dataclasses.dataclass(eq=False)
class _Call:
    """What a pickle asks for and does not get: something to call, its arguments, the state of the result."""

    what: str
    arguments: Any = ()
    state: Any = ()


_KNOWN = (  # what the published pickles ask for; NumPy 2 calls one of them otherwise
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",
)


def _array(value: Any) -> np.ndarray:
    """The array of bytes that a pickle describes as (version, shape, type, is by columns, content)."""
    if not isinstance(value, _Call) or not value.what.endswith("_reconstruct"):
        raise ValueError("data is not an array")
    _, shape, dtype, by_columns, text = value.state
    if dtype.what != "numpy.dtype" or dtype.arguments[0] != "u1":
        raise ValueError("data is not an array of bytes")
    return np.frombuffer(text.encode("latin-1"), np.uint8).reshape(shape, order="F" if by_columns else "C")


def _named(text: str) -> _Call:
    if text not in _KNOWN:
        raise ValueError(f"it asks for {text!r}, which no published file does")
    return _Call(text)


def _called(function: _Call, arguments: Any) -> Any:
    return arguments[0] if function.what == "_codecs.encode" else _Call(function.what, arguments)


def _given(call: _Call, state: Any) -> _Call:
    call.state = state
    return call


_READER = pickles.Reader(_named, _called, _given, "no published file does")


def _read_pickle(content: Content) -> Any:
    """What a pickle says, without doing any of it: whatever would be called is a `_Call`.

    Bytes of Python 2 are text in Latin-1. Raises ValueError naming what no published file does.
    """
    return pickles.read(io.BytesIO(content), _READER)
