"""Files that hold whole arrays: NumPy archives and IDX files."""

from __future__ import annotations

import dataclasses
import gzip
import math
import os
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import numpy as np

from mtkd_jax.data.assembly import LAYOUTS, assemble, parts_and_kinds
from mtkd_jax.data.checks import check, first_line, names_from, shorten
from mtkd_jax.system.spelling import nearest
from mtkd_jax.types import DataSet, UserError

_KERAS = {  # the same under the names of Keras
    "train_images": "x_train",
    "train_labels": "y_train",
    "val_images": "x_val",
    "val_labels": "y_val",
    "test_images": "x_test",
    "test_labels": "y_test",
}
_FURTHER = tuple(f"{part}_{kind}" for part in ("train", "val", "test") for kind in ("groups", "names"))
_BOXES = re.compile(r"(train|test)_boxes_img_cls_xyxy([1-9]\d*)")
_TEACHERS = ("train_teachers", "val_teachers")
_READ = {*_KERAS, *_KERAS.values(), *_FURTHER, *_TEACHERS, "class_names"}
# What other sources read, and files of logits hold.
_OF_OTHERS = re.compile(rf"{_BOXES.pattern}|(train|test)_masks|((train|val|test)_)?logits|names")
# Bytes that any archive may unpack to, and for each byte of a larger one: images are 1 to 20 times as large.
_LEAST, _RATIO = 2**26, 100
_OTHER_FILES = {  # how they begin
    b"\x93NUMPY": "one array alone; numpy.savez(file, train_images=..., ...) writes several",
    b"MATLAB": "a MATLAB file; scipy.io.loadmat reads it",
    b"\x89HDF": "an HDF5 file, as those of MATLAB 7.3 are; h5py reads it",
    b"\x80": "a pickle, which may run code",
}
_IDX_FILES = {  # how the name begins, number of axes
    "train_images": ("train-images", 3),
    "train_labels": ("train-labels", 1),
    "test_images": ("t10k-images", 3),
    "test_labels": ("t10k-labels", 1),
}


def npz(*, path: str, layout: str = "") -> DataSet:
    """A NumPy archive with train_images, train_labels, test_images, test_labels (or x_train, y_train, ...).

    Images are [N,h,w,c] or, when grey, [N,h,w]; uint8, or floats that are used as they are. `layout` "NCHW"
    says that they are [N,c,h,w], and "NHWC" that they are not; without it what can only be [N,c,h,w] is
    turned, and noted, and what may be either is refused. Labels are integers 0..C-1, [N], [N,1] or [1,N].
    May be there as well: `class_names` [C]; val_images and val_labels (or x_val, y_val), which are validated
    on; train_groups and test_groups [N] (and val_groups), whole numbers or text, equal where the group is;
    train_names and test_names [N] (and val_names), text, what the images are called; train_teachers (and
    val_teachers), [N,K] true or false, which of the K teachers teach students an image, or [N] the number of
    the only one who does, -1 where none does.
    Other arrays are not read, and a note names them. Nothing is unpickled or written to disk, and an archive
    that would unpack to more than 64 MiB and 100 times its size is refused. Raises `UserError` naming the
    file and the array.
    """
    if layout not in ("", *LAYOUTS):
        raise UserError(f"npz: layout = {layout!r}: must be NHWC or NCHW, or '' where the shapes tell")
    found, names = read_npz(path, _READ)
    if both := [name for pair in _KERAS.items() if found.keys() >= {*pair} for name in pair]:
        raise UserError(f"{path}: holds {both[0]} and {both[1]}, which are one; must hold one of them")
    arrays = {ours: found[theirs] for ours, theirs in _KERAS.items() if theirs in found} | found
    parts, kinds = parts_and_kinds(arrays)
    wanted = [f"{part}_{kind}" for part in parts for kind in kinds]
    for name in wanted:
        if name not in arrays:
            raise UserError(
                f"{path}: no array {name}{f' (or {_KERAS[name]})' if name in _KERAS else ''}; "
                f"must hold {', '.join(wanted)}, and holds {shorten(sorted(names))}"
            )
    dataset = assemble(arrays, name=pathlib.Path(path).stem, where=path, layout=layout)
    return dataclasses.replace(dataset, notes=(*dataset.notes, *_not_read(names, arrays)))


def _not_read(names: Collection[str], arrays: Collection[str]) -> list[str]:
    """A note on arrays that no source reads, with what each may be meant for: one that is not there."""
    there = {*arrays, *(theirs for ours, theirs in _KERAS.items() if ours in arrays)}
    told = []
    for name in sorted(name for name in names if name not in _READ and not _OF_OTHERS.fullmatch(name)):
        close = nearest(name, sorted(_READ - there))
        told.append(repr(name) + (f" (did you mean {close!r}?)" if close else ""))
    return [f"Arrays that are not read: {shorten(told)}."] if told else []


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
    if not path or not os.path.isdir(folder):
        raise UserError(f"data.path = {path!r}: no such folder; must hold the four IDX files of a set")
    arrays: dict[str, Any] = {
        name: _read_idx(_idx_file(folder, stem, axes), axes) for name, (stem, axes) in _IDX_FILES.items()
    }
    for name in ("train_images", "test_images"):
        arrays[name] = arrays[name][..., None]
    return check(
        DataSet(
            name=folder.resolve().name,
            class_names=class_names or names_from(arrays["train_labels"], path),
            **arrays,
        ),
        where=path,
    )


# --- NumPy archives -----------------------------------------------------------------------------------


def read_npz(path: str, wanted: Collection[str]) -> tuple[dict[str, np.ndarray], set[str]]:
    """Those of the wanted arrays that are in an archive, and the names of all that are.

    Nothing is unpickled, nothing is written to disk, and no more memory is reserved than the file is good
    for: see `npz`. Raises `UserError` naming the file and the array.
    """
    file = os.path.expanduser(path)
    if not os.path.isfile(file):
        raise UserError(f"data.path = {path!r}: no such file; must be an .npz archive of images and labels")
    arrays, reading = {}, "the list of its arrays"
    try:
        _check_mark(file)
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            names = set(archive.files)
            members = {
                name: archive.zip.getinfo(name if name in archive.zip.namelist() else f"{name}.npy")
                for name in sorted(names & set(wanted))
            }
            size, unpacked = os.path.getsize(file), sum(member.file_size for member in members.values())
            if unpacked > max(_LEAST, _RATIO * size):
                raise ValueError(f"{size} bytes that would unpack to {unpacked}")
            for reading, member in members.items():
                _check_header(archive.zip, member)
                arrays[reading] = archive[reading]
    # A damaged archive can raise almost anything: zip, zlib, header and memory errors, TypeError, ...
    except Exception as error:
        raise UserError(
            f"{path}: cannot read {reading} ({first_line(error)}); "
            "must be an archive that numpy.savez wrote, without object arrays"
        ) from error
    return arrays, names


def _check_mark(file: str) -> None:
    """Raise ValueError for what is no zip archive: numpy would call it a pickle, and tell how to run it."""
    with open(file, "rb") as stream:
        mark = stream.read(6)
    if not mark.startswith(b"PK"):
        known = (what for start, what in _OTHER_FILES.items() if mark.startswith(start))
        raise ValueError(f"it is {next(known, 'no .npz archive')}")


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raise ValueError unless the header promises what follows: numpy would reserve what it promises."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in headers:
            raise ValueError(f"version {version} of the format, which plain arrays do not need")
        shape, _, dtype = headers[version](stream)
        # An entry may have no bytes at all, as text of no length has: it is counted as one.
        promised, follow = math.prod(shape) * max(dtype.itemsize, 1), member.file_size - stream.tell()
    if promised != follow and not dtype.hasobject:  # what holds objects, numpy refuses itself
        raise ValueError(f"its header promises {promised} bytes and {follow} follow")


# --- boxes in NumPy archives --------------------------------------------------------------------------


class BoxRows(NamedTuple):
    """The n boxes of one part of an archive, in the order of its array."""

    image: np.ndarray  # [n], the row of the image
    label: np.ndarray  # [n], the class, 0..C-1
    corners: np.ndarray  # [n,4] float64, left, top, right and bottom, as parts of the image's sides


def find_boxes(names: Iterable[str]) -> dict[str, str]:
    """{"train": the array of its boxes, "test": ...}, of names as in `read_boxes`, where there are such."""
    return {found[1]: found[0] for found in map(_BOXES.fullmatch, sorted(names)) if found}


def read_boxes(rows: np.ndarray, name: str, num_images: int, num_classes: int, path: str) -> BoxRows:
    """The boxes of an array called train_boxes_img_cls_xyxyS or test_boxes_img_cls_xyxyS, S such as 200.

    Rows [n,6] are whole numbers: the row of the image, the class 0..C-1, and the first and the last pixel of
    the box (left, top, right, bottom), counted from 1 in images of S x S. So count Pascal VOC and the sets
    that are written in its form, such as NEU-DET. Boxes may reach beyond the image, or be empty. Raises
    UserError naming file and array for other arrays, and for images and classes that are not there.
    """
    where = f"{path}: {name}"
    if rows.ndim != 2 or rows.shape[1] != 6 or rows.dtype.kind not in "iu":
        raise UserError(f"{where}: {rows.dtype} {rows.shape}: must be [n,6] whole numbers")
    for column, (bound, what) in enumerate(((num_images, "images"), (num_classes, "classes"))):
        if len(rows) and not 0 <= rows[:, column].min() <= rows[:, column].max() < bound:
            raise UserError(
                f"{where}: column {column} is {rows[:, column].min()}..{rows[:, column].max()}: must lie in "
                f"0..{bound - 1}, of {bound} {what}"
            )
    side = int(name.rpartition("xyxy")[2])
    return BoxRows(rows[:, 0], rows[:, 1], (rows[:, 2:] - np.array([1, 1, 0, 0])) / side)


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
