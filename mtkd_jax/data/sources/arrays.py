"""Files that hold whole arrays: NumPy archives and IDX files."""

from __future__ import annotations

import gzip
import math
import os
import pathlib
import struct
import zlib

import numpy as np

from mtkd_jax.data.checks import checked, first_line, names_from
from mtkd_jax.types import DataSet, UserError

_ARRAYS = {  # the same under the names of Keras
    "train_images": "x_train",
    "train_labels": "y_train",
    "test_images": "x_test",
    "test_labels": "y_test",
}
_WANTED = {*_ARRAYS, *_ARRAYS.values(), "class_names"}
_IDX_FILES = {  # how the name begins, number of axes
    "train_images": ("train-images", 3),
    "train_labels": ("train-labels", 1),
    "test_images": ("t10k-images", 3),
    "test_labels": ("t10k-labels", 1),
}


def npz(*, path: str) -> DataSet:
    """A NumPy archive with train_images, train_labels, test_images, test_labels (or x_train, y_train, ...).

    Images are [N,h,w,c] or, when grey, [N,h,w]; uint8, or floats that are used as they are. Labels are [N]
    integers 0..C-1. `class_names` [C] is optional; other arrays are ignored. Nothing is unpickled.
    Raises `UserError` naming the file and the array.
    """
    file = os.path.expanduser(path)
    if not os.path.isfile(file):
        raise UserError(f"data.path = {path!r}: no such file; must be an .npz archive of images and labels")
    arrays, reading = {}, "the list of its arrays"
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            names = set(archive.files)
            for reading in sorted(_WANTED & names):
                arrays[reading] = archive[reading]
    # A damaged archive can raise almost anything: zip, zlib, header and memory errors, TypeError, ...
    except Exception as error:
        raise UserError(
            f"{path}: cannot read {reading} ({first_line(error)}); "
            "must be an archive that numpy.savez wrote, without object arrays"
        ) from error

    fields = {}
    for name, other in _ARRAYS.items():
        if name not in arrays and other not in arrays:
            raise UserError(
                f"{path}: no array {name} (or {other}); must hold {', '.join(_ARRAYS)}, "
                f"and holds {', '.join(sorted(names)) or 'nothing'}"
            )
        fields[name] = arrays[name if name in arrays else other]
    for name in ("train_images", "test_images"):
        if fields[name].ndim == 3:
            fields[name] = fields[name][..., None]
    if "class_names" in arrays:
        if arrays["class_names"].dtype.kind != "U" or arrays["class_names"].ndim != 1:
            raise UserError(f"{path}: class_names: must be a one-dimensional array of text, one name a class")
        class_names = tuple(arrays["class_names"].tolist())
    else:
        class_names = names_from(fields["train_labels"], path)
    return checked(DataSet(name=pathlib.Path(file).stem, class_names=class_names, **fields), where=path)


def idx(*, path: str, class_names: tuple[str, ...] = ()) -> DataSet:
    """A folder of the four IDX files that MNIST and sets of its form come in, such as Fashion-MNIST.

    They are called train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
    t10k-labels-idx1-ubyte, also with .idx in place of -idx, also gzipped with .gz at the end; of several
    spellings of one file the first is read, in the order just given. Images are grey, uint8 [N,h,w,1].
    `class_names` [C] is optional; without it the classes are called by their numbers.
    A file is read no further than its header promises, whatever it would unpack to.
    Raises `UserError` naming the folder or the file. Format: LeCun, Cortes and Burges (1998), for MNIST.
    """
    if not (isinstance(class_names, tuple) and all(isinstance(name, str) for name in class_names)):
        raise UserError(f"idx: class_names = {class_names!r}: must be a tuple of text, one name a class")
    folder = pathlib.Path(os.path.expanduser(path))
    if not path or not folder.is_dir():
        raise UserError(f"data.path = {path!r}: no such folder; must hold the four IDX files of a set")
    arrays = {
        name: _read_idx(_idx_file(folder, stem, axes), axes) for name, (stem, axes) in _IDX_FILES.items()
    }
    for name in ("train_images", "test_images"):
        arrays[name] = arrays[name][..., None]
    return checked(
        DataSet(
            name=folder.resolve().name,
            class_names=class_names or names_from(arrays["train_labels"], path),
            **arrays,
        ),
        where=path,
    )


# --- IDX ----------------------------------------------------------------------------------------------


def _idx_file(folder: pathlib.Path, stem: str, num_axes: int) -> pathlib.Path:
    """The first spelling of a name that is there."""
    names = [f"{stem}{mark}idx{num_axes}-ubyte{packed}" for packed in ("", ".gz") for mark in ("-", ".")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: no file {names[0]}: must be there, or as {', '.join(names[1:])}")


def _read_idx(file: pathlib.Path, num_axes: int) -> np.ndarray:
    """Bytes in `num_axes` dimensions: the mark 0, 0, 8, num_axes; big-endian sizes of 32 bits; the bytes."""
    mark, content = bytes((0, 0, 8, num_axes)), bytearray()
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as stream:
            header = stream.read(4 + 4 * num_axes)
            if not header.startswith(mark):
                raise UserError(
                    f"{file}: begins with {header[:4].hex(' ') or 'nothing'}: must begin with "
                    f"{mark.hex(' ')}, the mark of unsigned bytes in {num_axes} dimension(s)"
                )
            if len(header) < 4 + 4 * num_axes:
                raise UserError(
                    f"{file}: the header ends after {len(header)} bytes: must be {4 + 4 * num_axes} long"
                )
            shape = struct.unpack(f">{num_axes}I", header[4:])
            size = math.prod(shape)
            # In pieces: one read would reserve at once whatever a false header promises.
            while piece := stream.read(min(size + 1 - len(content), 2**20)):
                content += piece
    # OSError is also what gzip raises for a wrong checksum and for a file that is not gzipped.
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{file}: cannot be read ({first_line(error)}); must be a whole, readable IDX file"
        ) from error
    if 0 in shape or len(content) != size:
        follow = "more" if len(content) > size else str(len(content))
        raise UserError(
            f"{file}: the header says {' x '.join(map(str, shape))} = {size} bytes and {follow} follow: "
            "must be as many, and at least one"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
