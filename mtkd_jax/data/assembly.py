"""Arrays as they come, made a data set: from a file or from whoever calls from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtkd_jax.data.checks import as_vector, check, names_from
from mtkd_jax.types import DataSet, UserError

LAYOUTS = ("NHWC", "NCHW")


def parts_and_kinds(names: Mapping[str, object] | set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which parts there are and what is known of each, from the names of their arrays.

    >>> parts_and_kinds({"train_images", "train_labels", "val_images", "test_groups"})
    (('train', 'val', 'test'), ('images', 'labels', 'groups'))
    """
    parts = ("train", "val", "test") if {"val_images", "val_labels"} & set(names) else ("train", "test")
    further = (kind for kind in ("groups", "names") if any(f"{part}_{kind}" in names for part in parts))
    return parts, ("images", "labels", *further)


def assemble(
    arrays: Mapping[str, np.ndarray],
    *,
    name: str,
    where: str,
    layout: str = "",
    column_names: tuple[str, ...] = (),
) -> DataSet:
    """A checked data set of train_images, train_labels, test_images, test_labels, and what else there is.

    That may be val_images and val_labels, which become rows of the training set to validate on, groups of
    all parts, and class_names [C]. `column_names` are those of rows [N,1,1,D]. Shapes and layouts are those
    of `sources.arrays.npz`. Raises `UserError`, which begins with `where`, for what cannot be trained on.
    """
    parts, kinds = parts_and_kinds(arrays)
    wanted = [f"{part}_{kind}" for part in parts for kind in kinds]
    fields: dict[str, Any] = {name: as_vector(arrays[name]) for name in wanted if not name.endswith("images")}
    images = {name: arrays[name] for name in wanted if name.endswith("images")}
    layout = layout or _layout(images, len(fields["train_labels"]), where)
    fields |= {name: _channels_last(array, layout) for name, array in images.items()}
    turned = layout == "NCHW" and images["train_images"].ndim == 4
    if "train_teachers" in arrays:
        kinds = (*kinds, "teachers")
        fields |= {name: array for name, array in arrays.items() if name.endswith("_teachers")}
    if "val" in parts:
        fields = _with_val_rows(fields, kinds, where)
    if "names" in kinds:
        fields |= {name: _as_text(fields[name], name, where) for name in ("train_names", "test_names")}
    if "groups" in kinds:
        fields |= _coded_groups(fields["train_groups"], fields["test_groups"], where)
    if "class_names" in arrays:
        given = as_vector(arrays["class_names"])
        if given.dtype.kind != "U" or given.ndim != 1:
            raise UserError(
                f"{where}: class_names: must be a one-dimensional array of text, one name a class"
            )
        class_names = tuple(given.tolist())
    else:
        class_names = names_from(fields["train_labels"], where)
    notes = ("The images are [N,c,h,w], and were turned to [N,h,w,c].",) if turned else ()
    dataset = DataSet(name=name, class_names=class_names, notes=notes, column_names=column_names, **fields)
    return check(dataset, where=where)


def _layout(images: dict[str, np.ndarray], num_train: int, where: str) -> str:
    """What the axes of images of these shapes are, "NHWC" or "NCHW"; UserError where they may be either.

    Channels are likely few, and height and width alike. What is wrong in another way is "NHWC".
    """
    number, *shape = images["train_images"].shape
    if len(shape) != 3 or number != num_train or any([*a.shape[1:]] != shape for a in images.values()):
        return "NHWC"
    first, second, last = shape
    if last <= 4 or first == second != last:
        return "NHWC"
    if (first <= 4 and second == last) or (first in (3, 4) and second > 4):
        return "NCHW"
    if first <= 4 or second == last:
        raise UserError(
            f"{where}: train_images: shape {(number, *shape)}: may be [N,h,w,c] or [N,c,h,w]; must be told, "
            "with layout='NHWC' or layout='NCHW'"
        )
    return "NHWC"


def _channels_last(images: np.ndarray, layout: str) -> np.ndarray:
    """[N,h,w,c] of images in this layout, or [N,h,w,1] of [N,h,w]."""
    if images.ndim == 3:
        return images[..., None]
    if images.ndim == 4 and layout == "NCHW":
        return np.ascontiguousarray(np.moveaxis(images, 1, -1))
    return images


def _with_val_rows(fields: dict[str, np.ndarray], kinds: Sequence[str], where: str) -> dict[str, np.ndarray]:
    """The fields of a data set whose validation set is made the last rows of the training set."""
    joined = {name: array for name, array in fields.items() if name.startswith("test")}
    for kind in kinds:
        if f"val_{kind}" not in fields:
            raise UserError(f"{where}: no array val_{kind}: must be there beside train_{kind}, of val_images")
        train, val = fields[f"train_{kind}"], fields[f"val_{kind}"]
        alike = train.shape[1:] == val.shape[1:] and _kind(train) == _kind(val)
        if not (train.ndim and val.ndim and alike and len(val) == len(fields["val_images"])):
            raise UserError(
                f"{where}: val_{kind}: {val.dtype} {val.shape}: must be as in train_{kind}, "
                f"{train.dtype} {train.shape}, and as many as val_images"
            )
        joined[f"train_{kind}"] = np.concatenate([train, val])
    total = len(joined["train_images"])
    return joined | {"val_rows": np.arange(total - len(fields["val_images"]), total)}


def _as_text(names: np.ndarray, name: str, where: str) -> tuple[str, ...]:
    if names.ndim != 1 or names.dtype.kind != "U":
        raise UserError(f"{where}: {name}: {names.dtype} {names.shape}: must be [N] text")
    return tuple(names.tolist())


def _kind(array: np.ndarray) -> str:
    """NumPy's letter for the kind of entries; whole numbers are of one kind, with and without a sign."""
    return array.dtype.kind.replace("u", "i")


def _coded_groups(train: np.ndarray, test: np.ndarray, where: str) -> dict[str, np.ndarray]:
    """Whole numbers or text as numbers 0, 1, ..., equal in both parts where the group is."""
    for part, groups in (("train", train), ("test", test)):
        if groups.ndim != 1 or _kind(groups) not in "iU" or _kind(groups) != _kind(train):
            raise UserError(
                f"{where}: {part}_groups: {groups.dtype} {groups.shape}: "
                "must be [N] whole numbers or [N] text, the same kind in all parts"
            )
    codes = np.unique(np.concatenate([train, test]), return_inverse=True)[1]
    return {"train_groups": codes[: len(train)], "test_groups": codes[len(train) :]}
