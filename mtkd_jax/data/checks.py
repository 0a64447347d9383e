"""What every source must hold to be trained on, and words for what is wrong."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable
from typing import IO

import numpy as np

from mtkd_jax.types import DataSet, Images, UserError, printable


def checked(dataset: DataSet, where: str) -> DataSet:
    """The same data with int32 labels and uint8 or float32 images, or a `UserError` that names the array."""

    def wrong(array, message):
        return UserError(f"{where}: {array}: {message}")

    _check_names(dataset, where)
    fields = {}
    for part in ("train", "test"):
        images, labels = getattr(dataset, f"{part}_images"), getattr(dataset, f"{part}_labels")
        if len(images.shape) != 4 or 0 in images.shape[1:]:
            raise wrong(
                f"{part}_images", f"shape {images.shape}: must be [N,h,w,c], or [N,h,w] for grey images"
            )
        if labels.ndim == 2 and labels.shape[1] == 1:  # as some archives and Keras write them
            labels = labels[:, 0]
        if labels.ndim != 1:
            hint = "; of one-hot rows it is the argmax" if labels.ndim == 2 else ""
            raise wrong(
                f"{part}_labels", f"shape {labels.shape}: must be [N], one class number an image{hint}"
            )
        if len(images) == 0:
            raise wrong(f"{part}_images", "is empty: must hold at least one image")
        if len(images) != len(labels):
            raise wrong(f"{part}_labels", f"{len(labels)} labels for {len(images)} images: must be as many")
        if isinstance(images, np.ndarray) and images.dtype.kind == "f":
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf and is reported below
                images = images.astype(np.float32, copy=False)
            if bad := np.count_nonzero(~np.isfinite(images).all(axis=(1, 2, 3))):
                raise wrong(
                    f"{part}_images", f"{bad} images hold NaN or infinite pixels: must be finite float32"
                )
        elif images.dtype not in (np.uint8, np.float32):
            raise wrong(f"{part}_images", f"{images.dtype} pixels: must be uint8 (0..255) or floats")
        if labels.dtype.kind not in "iu":
            raise wrong(f"{part}_labels", f"{labels.dtype} labels: must be integers")
        if labels.min() < 0 or labels.max() >= dataset.num_classes:
            raise wrong(
                f"{part}_labels",
                f"labels {labels.min()}..{labels.max()}: must lie in 0..C-1, with C = {dataset.num_classes} "
                "classes",
            )
        fields |= {f"{part}_images": images, f"{part}_labels": labels.astype(np.int32)}

    if dataset.num_classes < 2:
        raise wrong("train_labels", f"{dataset.num_classes} class: must be at least 2")
    counts = np.bincount(fields["train_labels"], minlength=dataset.num_classes)
    if empty := np.flatnonzero(counts == 0).tolist():
        raise wrong(
            "train_labels",
            f"{len(empty)} of {dataset.num_classes} classes without an example, the first is class "
            f"{empty[0]} ({dataset.class_names[empty[0]]}): every class must be in the training set",
        )
    train, test = fields["train_images"], fields["test_images"]
    if (train.shape[1:], train.dtype) != (test.shape[1:], test.dtype):
        raise wrong(
            "test_images",
            f"{test.dtype} {test.shape[1:]}: must be as in train_images, {train.dtype} {train.shape[1:]}",
        )
    notes = _check_scales(train, test, wrong)
    return dataclasses.replace(
        dataset,
        **fields,
        **_checked_groups(dataset, wrong),
        **_checked_val_rows(dataset, wrong),
        notes=tuple(map(printable, (*dataset.notes, *notes))),
    )


MOST_APART = 100  # times that the values of one part may be as large as those of the other
SMALLEST, LARGEST = 1e-18, 1e18  # of what is there: the squares of others are no float32 numbers


def _check_scales(train: np.ndarray | Images, test: np.ndarray | Images, wrong: Callable) -> tuple[str, ...]:
    """Raise what `wrong` makes where pixels cannot be of one scale, or of one that can be computed with.

    Returns notes on what is suspicious. Images that are read from files have one scale.
    """
    if not (isinstance(train, np.ndarray) and isinstance(test, np.ndarray)):
        return ()
    most = {part: float(np.abs(images).max()) for part, images in (("train", train), ("test", test))}
    for part, largest in most.items():
        if largest > LARGEST or 0 < largest < SMALLEST:
            raise wrong(f"{part}_images", f"values up to {largest:g}: must be of a size near 1, scale them")
    low, high = sorted(most.values())
    if 0 < low * MOST_APART < high:
        raise wrong(
            "test_images",
            f"values up to {most['test']:g}, up to {most['train']:g} in train_images: must be of one scale",
        )
    if train.dtype == np.uint8 and 0 < high < 16:  # 15 is what 12 bits in a file of 16 come to
        what = "but 0 and 1" if high == 1 else f"above {high:g}"
        return (f"The images hold nothing {what}, where uint8 is read as 0 (black) to 255 (white).",)
    return ()


def _check_names(dataset: DataSet, where: str) -> None:
    """Raise UserError for names that cannot be written, or told apart in a table."""
    names = dataset.class_names
    for kind, name in (("name", dataset.name), *(("class_names", name) for name in names)):
        if name != printable(name):
            raise UserError(
                f"{where}: {kind}: {name!r} cannot be written or shown; must be plain text, UTF-8"
            )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{where}: class_names: {twice[0]!r} stands there twice; must be one name a class")


def _checked_groups(dataset: DataSet, wrong: Callable) -> dict[str, np.ndarray | None]:
    """Groups as int32, given for both parts or for neither."""
    given = {part: getattr(dataset, f"{part}_groups") for part in ("train", "test")}
    if all(groups is None for groups in given.values()):
        return {}
    for part, groups in given.items():
        labels = getattr(dataset, f"{part}_labels")
        if groups is None or groups.shape != labels.shape or groups.dtype.kind not in "iu":
            found = "none" if groups is None else f"{groups.dtype} {groups.shape}"
            raise wrong(f"{part}_groups", f"{found}: must be whole numbers [{len(labels)}], one an image")
    return {f"{part}_groups": groups.astype(np.int32) for part, groups in given.items()}


def _checked_val_rows(dataset: DataSet, wrong: Callable) -> dict[str, np.ndarray]:
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


def numbered(num_classes: int) -> tuple[str, ...]:
    return tuple(str(c) for c in range(num_classes))


def names_from(labels: np.ndarray, where: str) -> tuple[str, ...]:
    """Class numbers as names, for a file without names: as many as the training labels ask for."""
    if labels.dtype.kind not in "iu" or labels.size == 0 or labels.max() < 0:
        return numbered(0)
    # More classes than examples leave a class empty. Said here, before a stray label of 10**9 names as many.
    if labels.max() >= labels.size:
        raise UserError(
            f"{where}: train_labels: reaches {labels.max()} in {labels.size} examples: "
            "must be 0..C-1 with every class in the training set"
        )
    return numbered(int(labels.max()) + 1)


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def opened(path: str | os.PathLike, mode: str = "r", **options) -> IO:
    """`open`; OSError for what is no regular file: a pipe would be waited for, a device may not end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("no regular file")
    return open(path, mode, **options)
