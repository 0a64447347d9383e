"""Files of what teachers say: any framework writes them, and nothing of it is needed to learn from them.

A file is an .npz archive of one teacher's logits [N,C], or of K teachers' [K,N,C]:

    train_logits, test_logits   rows in the order of the data's training and test images, before any is cut
                                away to validate on or by num_train; with train_names and test_names (text)
                                rows in any order, of the images that are called so
    val_logits (val_names)      where the publisher set images aside to validate on: the rows of these, which
                                train_logits then lacks
    logits, names               in the place of all of these: rows of any images of the data, by name
    class_names                 [C] text, the classes in the order of the logits

A name is the path of an image below the folder of the data, with slashes. What stands before it (a path as it
was given on a command line) does not matter, nor that folders are missing where the rest is unambiguous.
Rows that are probabilities (at least 0, with the sum 1) become their logarithms.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mtkd_jax.data.checks import as_vector, shorten
from mtkd_jax.data.sources.arrays import read_npz
from mtkd_jax.system import files
from mtkd_jax.system.spelling import hint
from mtkd_jax.types import DataSet, UserError

ARRAYS = (
    *("train_logits", "val_logits", "test_logits", "train_names", "val_names", "test_names"),
    *("logits", "names", "class_names"),
)
FLOOR = 1e-7  # what smaller probabilities are taken for: the logarithm of 0 is no number
OFF_ONE = 1e-2  # how far probabilities may be from the sum 1: those of float16 are, with many classes


class FileLogits(NamedTuple):
    """What the K teachers of a file say."""

    train: np.ndarray  # [K,N,C] float32, in the order of the data's images and classes
    test: np.ndarray  # [K,n,C]
    notes: tuple[str, ...]  # what was done to them


def read(path: Path, dataset: DataSet) -> FileLogits:
    """What the teachers of a file say of the images of `dataset`.

    Raises UserError, one line that begins with the file, where that is not what it holds.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; must be an .npz archive of logits")
    arrays, there = read_npz(os.fspath(path), ARRAYS)
    order, notes = _order_of_classes(path, arrays, there, dataset)
    logits = {
        name: _cube(path, name, array, dataset.num_classes)[:, :, order]
        for name, array in arrays.items()
        if name.endswith("logits")
    }
    _check_as_many(path, logits)
    if "logits" in arrays:
        pool = {"": _named(path, arrays, logits, "")}
        parts = {part: _found(path, pool, dataset, part) for part in ("train", "test")}
    else:
        parts = {part: _part(path, arrays, logits, there, dataset, part) for part in ("train", "test")}
    for part, part_logits in parts.items():
        if bad := np.count_nonzero(~np.isfinite(part_logits).all(axis=(0, 2))):
            raise UserError(
                f"{path}: the logits of {bad} of {part_logits.shape[1]} {part} images hold NaN or infinite "
                "numbers; must be finite float32"
            )
    return _as_logits(path, parts, notes)


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], class_names: Sequence[str]) -> None:
    """Write such a file of `arrays`, whole or not at all; UserError if the disk refuses."""
    buffer = io.BytesIO()
    named: dict[str, Any] = {"class_names": np.array(list(class_names), str), **arrays}
    np.savez_compressed(buffer, **named)
    files.write_atomically(path, buffer.getbuffer())


# --- classes ------------------------------------------------------------------------------------------


def _order_of_classes(
    path: Path, arrays: dict[str, np.ndarray], there: set[str], dataset: DataSet
) -> tuple[np.ndarray, list[str]]:
    """The places [C] in the file of the data's classes, and a note where they are not in its order."""
    right = (
        f"must be the {dataset.num_classes} classes as the logits have them: {shorten(dataset.class_names)}"
    )
    if "class_names" not in arrays:
        raise UserError(f"{path}: no array class_names, but {shorten(sorted(there))}; {right}")
    given = as_vector(arrays["class_names"])
    if given.dtype.kind != "U" or given.ndim != 1:
        raise UserError(f"{path}: class_names: {given.dtype} {given.shape}; {right}")
    return order_of_classes(path, given.tolist(), dataset)


def order_of_classes(path: Path, names: Sequence[str], dataset: DataSet) -> tuple[np.ndarray, list[str]]:
    """The places [C] among `names` of the data's classes, and a note where they are not in its order.

    Raises UserError, which begins with the path, where the names are others.
    """
    for name in names:
        if name not in dataset.class_names:
            raise UserError(
                f"{path}: class_names: the data has no class {name!r}{hint(name, dataset.class_names)}"
            )
    if sorted(names) != sorted(dataset.class_names):
        raise UserError(f"{path}: class_names: {shorten(names)}; must be {shorten(dataset.class_names)}")
    if tuple(names) == dataset.class_names:
        return np.arange(len(names)), []
    note = f"The classes of {path} are in another order than the data's, and its logits were put into that."
    return np.array([list(names).index(name) for name in dataset.class_names]), [note]


# --- logits -------------------------------------------------------------------------------------------


def _cube(path: Path, name: str, array: np.ndarray, num_classes: int) -> np.ndarray:
    """[K,N,C] float32."""
    right = f"must be numbers [N,C] of one teacher or [K,N,C] of several, with C = {num_classes}"
    if array.dtype.kind not in "fiu" or array.ndim not in (2, 3) or array.shape[-1] != num_classes:
        raise UserError(f"{path}: {name}: {array.dtype} {array.shape}; {right}")
    cube = array[None] if array.ndim == 2 else array
    if len(cube) == 0:
        raise UserError(f"{path}: {name}: is of no teacher; {right}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf and is told
        return cube.astype(np.float32)


def _check_as_many(path: Path, logits: Mapping[str, np.ndarray]) -> None:
    """Raise UserError unless all parts are of as many teachers."""
    if len({len(cube) for cube in logits.values()}) > 1:
        counts = ", ".join(f"{len(cube)} in {name}" for name, cube in logits.items())
        raise UserError(f"{path}: {counts}: must be the logits of as many teachers")


def _as_logits(path: Path, parts: dict[str, np.ndarray], notes: list[str]) -> FileLogits:
    """Log-probabilities in the place of probabilities, teacher by teacher."""
    for k in range(len(parts["train"])):
        kinds = {
            part: _are_probabilities(part_logits[k])
            for part, part_logits in parts.items()
            if part_logits.shape[1]
        }
        if len(set(kinds.values())) > 1:
            part, other = sorted(kinds, key=kinds.__getitem__, reverse=True)
            raise UserError(
                f"{path}: teacher {k}: probabilities for the {part} images and none for the {other} images; "
                "must be one or the other"
            )
        if any(kinds.values()):
            for part_logits in parts.values():
                part_logits[k] = logarithms(part_logits[k])
            who = f"teacher {k} of {path}" if len(parts["train"]) > 1 else f"{path}"
            notes.append(
                f"What {who} says are probabilities; their logarithms were taken, not below ln {FLOOR:g}."
            )
    return FileLogits(parts["train"], parts["test"], tuple(notes))


def logarithms(probs: np.ndarray) -> np.ndarray:
    """Of probabilities in float32, those below `FLOOR` taken for it.

    Examples:
        >>> logarithms(np.array([1.0, 0.0], np.float32))
        array([  0.      , -16.118095], dtype=float32)
    """
    return np.log(np.maximum(probs, np.float32(FLOOR)))


def _are_probabilities(rows: np.ndarray) -> bool:
    return bool(rows.min() >= 0 and np.abs(rows.sum(axis=-1) - 1).max() <= OFF_ONE)


# --- rows ---------------------------------------------------------------------------------------------

_Named = tuple[list[str], np.ndarray]  # names [n] and logits [K,n,C] of the same images


def _part(
    path: Path,
    arrays: dict[str, np.ndarray],
    logits: dict[str, np.ndarray],
    there: set[str],
    dataset: DataSet,
    part: str,
) -> np.ndarray:
    """[K,N,C] of the training or the test images, by name where the file names them, else in their order."""
    num_images = len(getattr(dataset, f"{part}_labels"))
    if f"{part}_logits" not in logits:
        if num_images == 0:  # there is nothing to be said
            return next(iter(logits.values()))[:, :0]
        raise UserError(
            f"{path}: no array {part}_logits, but {shorten(sorted(there))}; must hold train_logits and "
            "test_logits, or logits and names, and class_names"
        )
    inside = [
        one for one in (("train", "val") if part == "train" else ("test",)) if f"{one}_logits" in logits
    ]
    if any(f"{one}_names" in arrays for one in inside):
        return _found(path, {one: _named(path, arrays, logits, f"{one}_") for one in inside}, dataset, part)
    if "val" in inside:
        return _with_val_rows(path, logits, dataset)
    part_logits = logits[f"{part}_logits"]
    if part_logits.shape[1] != num_images:
        val_rows = dataset.val_rows if part == "train" else None
        hint = ""
        if val_rows is not None and part_logits.shape[1] == num_images - len(val_rows):
            hint = f", or be beside the val_logits of {len(val_rows)} of them"
        raise UserError(
            f"{path}: {part}_logits: of {part_logits.shape[1]} images; must be of the {num_images} {part} "
            f"images of the data, in their order, before any is set aside{hint}"
        )
    return part_logits


def _with_val_rows(path: Path, logits: dict[str, np.ndarray], dataset: DataSet) -> np.ndarray:
    """[K,N,C] of the training images, of which those that are validated on stand in an array of their own."""
    if dataset.val_rows is None:
        raise UserError(
            f"{path}: holds val_logits, but the data sets no images aside to validate on: train_logits "
            "must be of all training images"
        )
    total, inside = len(dataset.train_labels), np.zeros(len(dataset.train_labels), bool)
    inside[dataset.val_rows] = True
    aside = np.count_nonzero(inside)
    for name, number in (("train_logits", total - aside), ("val_logits", aside)):
        if logits[name].shape[1] != number:
            raise UserError(
                f"{path}: {name}: of {logits[name].shape[1]} images; must be of {number}: the data sets "
                f"{aside} of {total} training images aside to validate on"
            )
    num_teachers, _, num_classes = logits["train_logits"].shape
    part_logits = np.empty((num_teachers, total, num_classes), np.float32)
    part_logits[:, ~inside], part_logits[:, inside] = logits["train_logits"], logits["val_logits"]
    return part_logits


def _named(path: Path, arrays: dict[str, np.ndarray], logits: dict[str, np.ndarray], prefix: str) -> _Named:
    part_logits = logits[f"{prefix}logits"]
    if f"{prefix}names" not in arrays:
        raise UserError(f"{path}: {prefix}logits have no {prefix}names; must say which images they are of")
    names = as_vector(arrays[f"{prefix}names"])
    if names.dtype.kind != "U" or names.shape != (part_logits.shape[1],):
        raise UserError(
            f"{path}: {prefix}names: {names.dtype} {names.shape}; must be text [{part_logits.shape[1]}], a "
            f"name for every row of {prefix}logits"
        )
    return names.tolist(), part_logits


def _found(path: Path, pool: Mapping[str, _Named], dataset: DataSet, part: str) -> np.ndarray:
    """[K,N,C] of the images of a part of the data, looked up by their names."""
    wanted = getattr(dataset, f"{part}_names")
    if wanted is None:
        raise UserError(
            f"{path}: names its images, and the data does not: must be train_logits and test_logits in the "
            "order of the data, without names"
        )
    names = [name.replace("\\", "/") for given, _ in pool.values() for name in given]
    part_logits = np.concatenate([logits for _, logits in pool.values()], axis=1)
    return part_logits[:, _match(path, wanted, names, part)]


def _match(path: Path, wanted: Sequence[str], names: Sequence[str], part: str) -> np.ndarray:
    """The row [N] of every wanted image among `names`: the one that it ends with, or that ends with it.

    A name that is equal goes first.
    """
    by_ending: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        for ending in _endings(name):
            by_ending.setdefault(ending, []).append(row)
    whole = {name: row for row, name in reversed(list(enumerate(names)))}
    found = np.empty(len(wanted), np.int64)
    image_of: dict[int, str] = {}
    for place, name in enumerate(wanted):
        rows = [whole[name]] if name in whole else by_ending.get(name, [])
        if not rows:
            rows = [whole[ending] for ending in _endings(name) if ending in whole][:1]
        if len(rows) != 1:
            why = f"{len(rows)} names end in it, such as {names[rows[1]]}" if rows else "no name is like it"
            raise UserError(f"{path}: {name}: {why}; must have one row for every {part} image of the data")
        if rows[0] in image_of:
            raise UserError(
                f"{path}: {names[rows[0]]}: may be {image_of[rows[0]]} or {name}; must tell them apart, by "
                "their folders"
            )
        image_of[rows[0]] = name
        found[place] = rows[0]
    return found


def _endings(name: str) -> list[str]:
    """
    >>> _endings("a/b/c.png")
    ['a/b/c.png', 'b/c.png', 'c.png']
    """
    words = name.split("/")
    return ["/".join(words[first:]) for first in range(len(words))]
