"""What every source must hold to be trained on, and words for what is wrong."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import stat
import unicodedata
from collections.abc import Callable, Sequence
from typing import IO, Any, NamedTuple

import numpy as np

from mtkd_jax.types import DataSet, Images, UserError, printable


def check_alike(images: np.ndarray | Images, dataset: DataSet, where: str) -> None:
    """Raise `UserError` unless images [n,h,w,c] of another source have the shape and dtype of the data's."""
    told = [f"{each.dtype} {'x'.join(map(str, each.shape[1:]))}" for each in (images, dataset.test_images)]
    if told[0] != told[1]:
        raise UserError(
            f"{where} has images {told[0]}; they must be {told[1]}, as those of {dataset.name} are"
        )


def check(dataset: DataSet, where: str) -> DataSet:
    """The same data with int32 labels [N] and uint8 or float32 images, and notes on what is suspicious.

    Of a task other than "classes" labels are [N,L], one for each place, -1 where there is none.

    Raises `UserError` naming the array for shapes, kinds and labels that cannot be, classes without an
    example, names that look the same, and values that are not finite, of several scales in the parts, or of
    one that float32 arithmetic cannot normalise. Images that are not arrays are not looked at.
    """

    def wrong(array: str, message: str) -> UserError:
        return UserError(f"{where}: {array}: {message}")

    _check_names(dataset, where)
    unnamed = dataset.class_names == number_names(dataset.num_classes)
    from_zero = "; numpy.unique(labels, return_inverse=True)[1] counts from 0 without gaps" if unnamed else ""
    fields: dict[str, Any] = {}
    dense = dataset.task != "classes"
    for part in ("train", "test"):
        images, labels = getattr(dataset, f"{part}_images"), getattr(dataset, f"{part}_labels")
        if len(images.shape) != 4 or 0 in images.shape[1:]:
            hint = "; flat rows must be reshaped to these" if len(images.shape) == 2 else ""
            raise wrong(
                f"{part}_images",
                f"shape {images.shape}: must be [N,h,w,c], or [N,h,w] for grey images{hint}",
            )
        labels = labels if dense else as_vector(labels)
        if dense and (labels.ndim != 2 or 0 in labels.shape[1:]):
            raise wrong(f"{part}_labels", f"shape {labels.shape}: must be [N,L], a class number a place")
        if not dense and labels.ndim != 1:
            raise wrong(f"{part}_labels", _explain_labels_shape(labels, images.shape))
        if len(images) == 0:
            raise wrong(f"{part}_images", "is empty: must hold at least one image")
        if len(images) != len(labels):
            last = images.shape[-1] == len(labels) > 4
            hint = f", [N,h,w,c], and the images are {images.shape}: transpose(3, 0, 1, 2)" if last else ""
            raise wrong(
                f"{part}_labels", f"{len(labels)} labels for {len(images)} images: must be as many{hint}"
            )
        if isinstance(images, np.ndarray) and images.dtype.kind == "f":
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf and is reported below
                images = images.astype(np.float32, copy=False)
            if bad := np.count_nonzero(~np.isfinite(images).all(axis=(1, 2, 3))):
                raise wrong(
                    f"{part}_images", f"{bad} images hold NaN or infinite pixels: must be finite float32"
                )
        elif images.dtype not in (np.uint8, np.float32):
            held = isinstance(images, np.ndarray) and images.dtype.kind in "biu"
            fits = held and 0 <= images.min() <= images.max() <= 255
            hint = "; images.astype('uint8') loses nothing" if fits else ""
            raise wrong(f"{part}_images", f"{images.dtype} pixels: must be uint8 (0..255) or floats{hint}")
        if labels.dtype.kind not in "iu":
            raise wrong(
                f"{part}_labels", f"{labels.dtype} labels: must be integers{_to_whole_numbers(labels)}"
            )
        least = -1 if dense else 0
        if from_zero and part == "train" and not dense and labels.min() < 0:
            raise wrong(
                "train_labels",
                f"labels {labels.min()}..{labels.max()}: must lie in 0..C-1 for C classes{from_zero}",
            )
        if labels.min() < least or labels.max() >= dataset.num_classes:
            raise wrong(
                f"{part}_labels",
                f"labels {labels.min()}..{labels.max()}: must lie in {least}..C-1, with C = "
                f"{dataset.num_classes} classes" + (" and -1 where there is no place" if dense else ""),
            )
        if dense and (empty := np.count_nonzero((labels < 0).all(axis=1))):
            raise wrong(
                f"{part}_labels", f"{empty} examples have no place at all: must have one with a label"
            )
        fields |= {f"{part}_images": images, f"{part}_labels": labels.astype(np.int32)}

    if dataset.num_classes < 2:
        raise wrong("train_labels", f"{dataset.num_classes} class: must be at least 2")
    counts = np.bincount(fields["train_labels"][fields["train_labels"] >= 0], minlength=dataset.num_classes)
    if missing := np.flatnonzero(counts == 0).tolist():
        raise wrong(
            "train_labels",
            f"{len(missing)} of {dataset.num_classes} classes without an example, the first is class "
            f"{missing[0]} ({dataset.class_names[missing[0]]}): every class must be in the training set"
            f"{from_zero}",
        )
    train, test = fields["train_images"], fields["test_images"]
    if (train.shape[1:], train.dtype) != (test.shape[1:], test.dtype):
        raise wrong(
            "test_images",
            f"{test.dtype} {test.shape[1:]}: must be as in train_images, {train.dtype} {train.shape[1:]}",
        )
    if dataset.column_names and (1, 1, len(dataset.column_names)) != train.shape[1:]:
        raise wrong(
            "column_names",
            f"{len(dataset.column_names)} names for images {train.shape[1:]}: must be D of rows [N,1,1,D]",
        )
    dataset = dataclasses.replace(dataset, **fields)
    dataset = dataclasses.replace(dataset, **_check_groups(dataset, wrong), **_check_val_rows(dataset, wrong))
    dataset = dataclasses.replace(dataset, **_check_teachers(dataset, wrong), **_check_places(dataset, wrong))
    _check_image_names(dataset, wrong)
    notes = [*_names_alike(dataset.class_names), *_silences(dataset)]
    # Images that are read when they are asked for are files, which have one scale.
    if isinstance(train, np.ndarray) and isinstance(test, np.ndarray):
        _check_channels(train, test, wrong)
        notes += _check_scales(dataset, train, test, wrong)
    return dataclasses.replace(dataset, notes=tuple(map(printable, (*dataset.notes, *notes))))


# --- labels -------------------------------------------------------------------------------------------


def as_vector(array: np.ndarray) -> np.ndarray:
    """[N], where the entries stand in a column [N,1] or a row [1,N], as some programs write them."""
    return array.reshape(-1) if array.ndim > 1 and sum(side != 1 for side in array.shape) <= 1 else array


def _explain_labels_shape(labels: np.ndarray, images: tuple[int, ...]) -> str:
    """What is wrong with labels that are not [N] of images [N,h,w,c]."""
    said = f"shape {labels.shape}: must be [N], one class number an image"
    if labels.shape == images[:3]:
        return f"{said}; data.source='masks' reads labels of pixels, from arrays train_masks and test_masks"
    if labels.shape == images[:2] and images[2] == 1:
        return f"{said}; labels of frames are a data set with task='frames', from a source of your own"
    if labels.ndim != 2 or labels.dtype.kind not in "biuf":
        return said
    one_hot = np.isin(labels, (0, 1)).all() and (np.count_nonzero(labels, axis=1) == 1).all()
    return said + ("; of one-hot rows it is the argmax (axis=1)" if one_hot else ", and not several labels")


def _to_whole_numbers(labels: np.ndarray) -> str:
    """How labels of this kind become integers, or why they cannot."""
    if labels.dtype.kind == "f":
        if missing := np.count_nonzero(np.isnan(labels)):
            return f", and {missing} are NaN: every image must have a label"
        return "; labels.astype(int) makes them so" if np.all(labels == np.floor(labels)) else ""
    if labels.dtype.kind in "US":
        return "; class_names, labels = numpy.unique(labels, return_inverse=True) numbers names"
    return "; labels.astype(int) makes them so" if labels.dtype.kind == "b" else ""


# --- values -------------------------------------------------------------------------------------------

MOST_APART = 100  # times that the values of one part may be as large as those of the other
APART = 10  # times from which it is noted
SMALLEST, LARGEST = 1e-18, 1e18  # of what is there: the squares of others are no float32 numbers
FINEST = 2.0**-16  # of the values in a channel, how far they must spread: else float32 has under 256 of them


def _check_channels(train: np.ndarray, test: np.ndarray, wrong: Callable) -> None:
    """Raise what `wrong` makes for floats that float32 arithmetic cannot normalise."""
    if train.dtype == np.uint8:
        return
    for part, images in (("train", train), ("test", test)):
        least, greatest = images.min(axis=0).min(axis=(0, 1)), images.max(axis=0).max(axis=(0, 1))
        for channel, (low, high) in enumerate(zip(least.tolist(), greatest.tolist())):
            where = f" in channel {channel}" if len(least) > 1 else ""
            most = max(-low, high)
            if most > LARGEST or 0 < most < SMALLEST:
                raise wrong(
                    f"{part}_images", f"values up to {most:g}{where}: must be of a size near 1, scale them"
                )
            if part == "train" and 0 < high - low < FINEST * most:
                raise wrong(
                    "train_images",
                    f"values {low:.9g}..{high:.9g}{where}: must differ by more, for float32 has few numbers "
                    "between these; subtract their mean",
                )


class _Extremes(NamedTuple):
    """The least and the greatest value of every image of a part."""

    least: np.ndarray  # [n] float64
    greatest: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        return np.maximum(-self.least, self.greatest)

    def __str__(self) -> str:
        reached = f"half of the images reach {np.median(self.greatest):.3g}"
        return f"values {self.least.min():.3g}..{self.greatest.max():.3g} ({reached})"


def _extremes(images: np.ndarray) -> _Extremes:
    rows = images.reshape(len(images), -1)
    return _Extremes(rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64))


def _parts(
    train_images: np.ndarray, test_images: np.ndarray, val_rows: np.ndarray | None
) -> dict[str, _Extremes]:
    """The extremes of what is trained on, of what the data sets aside to validate on, if any, and of test."""
    train = _extremes(train_images)
    parts = {"train": train, "test": _extremes(test_images)}
    if val_rows is not None:
        kept = np.delete(np.arange(len(train.least)), val_rows)
        parts["val"] = _Extremes(*(values[val_rows] for values in train))
        if len(kept):
            parts["train"] = _Extremes(*(values[kept] for values in train))
    return parts


def _check_scales(
    dataset: DataSet, train_images: np.ndarray, test_images: np.ndarray, wrong: Callable
) -> list[str]:
    """Raise what `wrong` makes of parts that cannot be of one scale, and of images that are all one colour.

    Returns notes on what is suspicious.
    """
    parts = _parts(train_images, test_images, dataset.val_rows)
    train, notes = parts["train"], []
    if train.least.min() == train.greatest.max():
        raise wrong("train_images", f"every pixel is {train.least[0]:g}: nothing can be learnt from them")
    for part, values in parts.items():
        of_all = _scale_ratio(train.sizes.max(), values.sizes.max())
        of_half = _scale_ratio(np.median(train.sizes), np.median(values.sizes))
        if min(of_all, of_half) > MOST_APART:
            raise wrong(f"{part}_images", f"{values}, in train_images {train}: must be of one scale")
        if max(of_all, of_half) > APART or _goes_below(train, values) or _goes_below(values, train):
            notes.append(f"{part}_images hold {values}, train_images {train}: are they of one scale?")
    notes += _unusual_values(train_images, max(values.greatest.max() for values in parts.values()))
    blank = {part: np.count_nonzero(values.least == values.greatest) for part, values in parts.items()}
    # A row of a table is no picture: columns that are equal by chance are nothing to tell.
    if any(blank.values()) and train_images[0].size > 1 and not dataset.column_names:
        counts = ", ".join(f"{blank[part]} of {len(parts[part].least)} in {part}_images" for part in parts)
        notes.append(f"Some images are blank, all of their pixels are the same: {counts}.")
    return notes


def _scale_ratio(one: float, other: float) -> float:
    """How many times as large the one is, whichever; 1 where one is nothing."""
    return max(one, other) / min(one, other) if min(one, other) > 0 else 1.0


def _goes_below(one: _Extremes, other: _Extremes) -> bool:
    """Whether the one has values well below 0 and the other none."""
    return one.least.min() < -0.1 * one.sizes.max() and other.least.min() >= 0


def _unusual_values(images: np.ndarray, greatest: float) -> list[str]:
    if images.dtype == np.uint8 and 0 < greatest < 16:  # 15 is what 12 bits in a file of 16 come to
        what = "but 0 and 1" if greatest == 1 else f"above {greatest:g}"
        return [f"The images hold nothing {what}, where uint8 is read as 0 (black) to 255 (white)."]
    some = images[:100]
    if images.dtype != np.uint8 and greatest == 255 and some.min() >= 0 and np.all(some == np.floor(some)):
        return ["The images are floats 0..255 and used as they are; as uint8 they would be scaled to 0..1."]
    return []


# --- names --------------------------------------------------------------------------------------------


def _check_names(dataset: DataSet, where: str) -> None:
    """Raise UserError for names that cannot be written, or told apart in a table."""
    names = dataset.class_names
    for kind, name in (("name", dataset.name), *(("class_names", name) for name in names)):
        if name != printable(name):
            raise UserError(
                f"{where}: {kind}: {name!r} cannot be written or shown; must be plain text, UTF-8"
            )
    known: dict[str, str] = {}
    for name in names:
        shown = " ".join(unicodedata.normalize("NFC", name).split())
        if not shown:
            raise UserError(f"{where}: class_names: {name!r} is empty; must name a class")
        if known.get(shown) == name:
            raise UserError(f"{where}: class_names: {name!r} stands there twice; must be one name a class")
        if shown in known:
            raise UserError(
                f"{where}: class_names: {known[shown]!r} and {name!r} look the same; must be one name a class"
            )
        known[shown] = name


def _names_alike(names: tuple[str, ...]) -> list[str]:
    """Notes on names of classes that may be meant as one."""
    notes = []
    known: dict[str | float, str] = {}
    for name in names:
        first = known.setdefault(_meaning(name), name)
        if first != name:
            notes.append(f"The classes {first!r} and {name!r} are two: are they meant to be?")
    return notes


def _meaning(name: str) -> str | float:
    """What a name says, if case does not count in a word, nor spelling in a number."""
    try:
        return float(name)
    except ValueError:
        return name.casefold() if len(name) > 1 else name


# --- groups and rows ----------------------------------------------------------------------------------


def _check_groups(dataset: DataSet, wrong: Callable) -> dict[str, Any]:
    """Groups as int32, given for both parts or for neither."""
    given = {part: getattr(dataset, f"{part}_groups") for part in ("train", "test")}
    if all(groups is None for groups in given.values()):
        return {}
    for part, groups in given.items():
        labels = getattr(dataset, f"{part}_labels")
        if groups is None or groups.shape != labels.shape[:1] or groups.dtype.kind not in "iu":
            found = "none" if groups is None else f"{groups.dtype} {groups.shape}"
            raise wrong(f"{part}_groups", f"{found}: must be whole numbers [{len(labels)}], one an image")
    return {f"{part}_groups": groups.astype(np.int32) for part, groups in given.items()}


def _check_val_rows(dataset: DataSet, wrong: Callable) -> dict[str, Any]:
    """Rows of the training set, sorted, each once."""
    rows = dataset.val_rows
    if rows is None:
        return {}
    total = len(dataset.train_labels)
    if (
        rows.ndim != 1
        or rows.dtype.kind not in "iu"
        or len(rows) == 0
        or not 0 <= rows.min() <= rows.max() < total
    ):
        raise wrong("val_rows", f"must be rows 0..{total - 1} of the training set, at least one")
    if len(np.unique(rows)) != len(rows):
        raise wrong("val_rows", "names a row twice: must name each once")
    return {"val_rows": np.sort(rows).astype(np.int32)}


def _check_teachers(dataset: DataSet, wrong: Callable) -> dict[str, Any]:
    """Who teaches what, as [N,K] bool or [N] int32."""
    given, total = dataset.train_teachers, len(dataset.train_labels)
    if given is None:
        return {}
    right = f"must be [{total},K] true or false, or [{total}] whole numbers from -1 (none)"
    zero_one = given.ndim == 2 and given.dtype.kind in "iu" and np.isin(given, (0, 1)).all()
    fits = given.ndim == 2 and (given.dtype.kind == "b" or zero_one)
    fits |= given.ndim == 1 and given.dtype.kind in "iu"
    if not fits or len(given) != total or 0 in given.shape:
        raise wrong("train_teachers", f"{given.dtype} {given.shape}: {right}")
    if given.ndim == 1 and not -1 <= given.min() <= given.max() < 2**31:
        raise wrong("train_teachers", f"{given.min()}..{given.max()}: {right}")
    return {"train_teachers": given.astype(bool if given.ndim == 2 else np.int32)}


def _check_places(dataset: DataSet, wrong: Callable) -> dict[str, Any]:
    """Further labels of places as float32 [N,L,d], the same in both parts."""
    train, test = dataset.train_labels, dataset.test_labels
    if train.shape[1:] != test.shape[1:]:
        raise wrong(
            "test_labels", f"shape {test.shape}: must have as many places as train_labels {train.shape}"
        )
    if dataset.grid is not None and math.prod(dataset.grid) != train.shape[1]:
        rows, columns = dataset.grid
        raise wrong("grid", f"{rows} rows of {columns} places: must be {train.shape[1]} in all, as in labels")
    goals = {"train": dataset.train_goals or {}, "test": dataset.test_goals or {}}
    for part, labels in (("train", train), ("test", test)):
        if goals[part].keys() != goals["train"].keys():
            raise wrong(
                f"{part}_goals", f"{sorted(goals[part])}: must be {sorted(goals['train'])}, as in train"
            )
        for name, goal in goals[part].items():
            if goal.ndim != 3 or goal.shape[:2] != labels.shape or goal.dtype.kind not in "iuf":
                shape = ",".join(map(str, labels.shape))
                raise wrong(
                    f"{part}_goals", f"{name}: {goal.dtype} {goal.shape}: must be numbers [{shape},d]"
                )
            if not np.isfinite(goal[labels >= 0]).all():
                raise wrong(f"{part}_goals", f"{name}: must be finite wherever there is a place")
    return {
        f"{part}_goals": {name: np.nan_to_num(goal).astype(np.float32) for name, goal in of_part.items()}
        for part, of_part in goals.items()
        if of_part
    }


def _silences(dataset: DataSet) -> list[str]:
    """A note on images that not all teachers teach."""
    given = dataset.train_teachers
    if given is None:
        return []
    none = np.count_nonzero(~given.any(axis=1) if given.ndim == 2 else given < 0)
    return [
        "The data says which teachers teach which images (train_teachers): the others are silent there. "
        f"{none} of {len(given)} training images are taught by nobody, and their labels count alone."
    ]


def _check_image_names(dataset: DataSet, wrong: Callable) -> None:
    for part in ("train", "test"):
        names, total = getattr(dataset, f"{part}_names"), len(getattr(dataset, f"{part}_labels"))
        if names is not None and len(names) != total:
            raise wrong(f"{part}_names", f"{len(names)} names for {total} images: must be as many")
        if names is not None and len(set(names)) != len(names):
            twice = next(name for name, number in collections.Counter(names).items() if number > 1)
            raise wrong(f"{part}_names", f"{twice!r} stands there twice: must be one name an image")


# --- words and files ----------------------------------------------------------------------------------


def number_names(num_classes: int) -> tuple[str, ...]:
    return tuple(str(c) for c in range(num_classes))


def names_from(labels: np.ndarray, where: str) -> tuple[str, ...]:
    """Class numbers as names, for a file without names: as many as the training labels ask for."""
    if labels.dtype.kind not in "iu" or labels.size == 0 or labels.max() < 0:
        return number_names(0)
    # More classes than examples leave a class empty. Said here, before a stray label of 10**9 names as many.
    if labels.max() >= labels.size:
        raise UserError(
            f"{where}: train_labels: reaches {labels.max()} in {labels.size} examples: "
            "must be 0..C-1 with every class in the training set"
        )
    return number_names(int(labels.max()) + 1)


def tell_drawn(test_fraction: float, of: str) -> str:
    """The note on a test set that nobody published; `of`, such as "all images", is what it was drawn from."""
    return f"The test set, {test_fraction:g} of {of}, was drawn."


def shorten(words: Sequence[str]) -> str:
    """A list of words for a line: the first twelve, and how many more there are."""
    more = f" and {len(words) - 12} more" if len(words) > 12 else ""
    return f"{', '.join(words[:12])}{more}" or "nothing"


def first_line(error: Exception | str) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def open_file(path: str | os.PathLike, mode: str = "r", **options: Any) -> IO:
    """`open`; OSError for what is no regular file: a pipe would be waited for, a device may not end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("no regular file")
    return open(path, mode, **options)
