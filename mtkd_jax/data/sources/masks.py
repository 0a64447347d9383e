"""Images with a class for every pixel: archives of masks or of boxes, and folders of image and mask files."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mtkd_jax.data import images as image_files
from mtkd_jax.data import streams
from mtkd_jax.data.checks import check, first_line, number_names, open_file, shorten, tell_drawn
from mtkd_jax.data.loading import strata
from mtkd_jax.data.sources.arrays import BoxRows, find_boxes, read_boxes, read_npz
from mtkd_jax.types import DataSet, UserError

IGNORED = 255  # the number, in a mask file, of pixels that have no class
BACKGROUND = "background"
_PARTS = ("train", "val", "test")


def masks(
    *, path: str, size: int = 0, test_fraction: float = 0.2, skip_corrupt: bool = False, seed: int = 0
) -> DataSet:
    """Images with a class for every pixel, of an archive or of a folder; pixels of no class do not count.

    An archive (.npz) holds train_images and test_images [N,h,w] or [N,h,w,c] uint8, class_names [C], and
    train_masks and test_masks [N,h,w], class numbers with 255 for no class. Or in their place boxes: an array
    train_boxes_img_cls_xyxy200 [n,6] and the same of test, see `arrays.read_boxes`: pixels are counted from
    1. Masks are made from these: class 0 is the background, the others the archive's, smaller boxes in front
    of larger ones; boxes that are empty or outside their image are left out and counted.

    A folder holds images/ and masks/, or these in train/, test/ and perhaps val/: PNG files of class numbers
    (grey, or of a palette), each called as its image, 255 for no class. Without parts about `test_fraction`
    of the images are the test set, drawn with `seed`. A file classes.txt names the classes, a line each. An
    image without a mask, or with one of another size or without a class, ends the run, or with `skip_corrupt`
    is left out and counted. Masks without an image are counted.

    Images are averaged, and masks thinned out, to `size` pixels a side where that is not 0. Raises
    `UserError` naming the file or the array.
    """
    place = pathlib.Path(os.path.expanduser(path))
    if not isinstance(size, int) or size < 0:
        raise UserError(f"masks: size = {size!r}: must be pixels of a side, or 0 for that of the images")
    if path and place.is_dir():
        return _of_folder(place, size, test_fraction, skip_corrupt, seed)
    return _of_archive(path, size)


def synthetic_masks(
    *,
    num_classes: int = 3,
    num_train: int = 96,
    num_test: int = 24,
    size: int = 16,
    noise: float = 0.3,
    seed: int = 0,
) -> DataSet:
    """Made-up grey images of discs on a dark ground, whose brightness tells their class, and their masks.

    The discs of an image have one class 1..C-1, in turn, and their centres and radii are drawn; `noise` is
    the standard deviation of what is added to every pixel, of whose levels 1 is the whole range. The border
    of one pixel has no class.
    """
    if num_classes < 2 or size < 8:
        raise UserError("synthetic_masks: must have 2 classes, and 8 pixels a side, at least")
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]

    def drawn(number: int) -> tuple[np.ndarray, np.ndarray]:
        kinds = 1 + np.arange(number) % (num_classes - 1)
        centres, radii = rng.uniform(2, size - 2, (number, 2)), rng.uniform(size / 6, size / 3, number)
        distance = np.hypot(rows - centres[:, :1, None], columns - centres[:, 1:, None])
        labels = np.where(distance <= radii[:, None, None], kinds[:, None, None], 0)
        clean = labels / (num_classes - 1)
        levels = np.clip(0.15 + 0.7 * clean + noise * rng.standard_normal(labels.shape), 0, 1)
        labels[:, [0, -1]] = labels[:, :, [0, -1]] = -1
        return np.round(255 * levels).astype(np.uint8)[..., None], labels

    (train, train_labels), (test, test_labels) = drawn(num_train), drawn(num_test)
    names = (BACKGROUND, *(f"disc {kind}" for kind in range(1, num_classes)))
    return _dataset("synthetic_masks", train, train_labels, test, test_labels, names, (), "synthetic_masks")


# --- archives -----------------------------------------------------------------------------------------


def _of_archive(path: str, size: int) -> DataSet:
    plain = [f"{part}_{kind}" for part in ("train", "test") for kind in ("images", "masks")]
    _, names = read_npz(path, ())
    boxes = find_boxes(names)
    found, _ = read_npz(path, {*plain, "class_names", *boxes.values()})
    lacking = [name for name in plain if name not in found and name.split("_")[0] not in boxes]
    if lacking or "train_images" not in found or "test_images" not in found:
        raise UserError(
            f"{path}: no array {(lacking or ['train_images'])[0]}; must hold {', '.join(plain)} (or boxes in "
            f"the place of masks), and holds {shorten(sorted(names))}"
        )
    if boxes and "class_names" not in found:
        raise UserError(
            f"{path}: no array class_names; must hold it, for the classes of {min(boxes.values())}"
        )
    class_names = tuple(map(str, found["class_names"])) if "class_names" in found else ()
    notes, of_part = [], {}
    if boxes:
        class_names = (BACKGROUND, *class_names)
    for part in ("train", "test"):
        images = found[f"{part}_images"]
        images = images[..., None] if images.ndim == 3 else images
        if images.ndim != 4 or images.dtype != np.uint8:
            raise UserError(f"{path}: {part}_images: {images.dtype} {images.shape}: must be uint8 [N,h,w,c]")
        shape = (size, size) if size else images.shape[1:3]
        if part in boxes:
            name = boxes[part]
            rows = read_boxes(found[name], name, len(images), len(class_names) - 1, path)
            labels, left_out = _painted(rows, len(images), shape)
            notes += [
                f"{left_out} of {len(found[name])} boxes of {name} are empty or outside: left out."
            ] * bool(left_out)
        else:
            labels = _thinned(found[f"{part}_masks"], images.shape[:3], shape, f"{path}: {part}_masks")
        of_part[part] = _averaged(images, shape, f"{path}: {part}_images"), labels
    if boxes:
        notes.append(
            "Masks are made from boxes: every pixel of a box has its class, what is in front or not."
        )
    if not class_names:
        class_names = number_names(int(max(labels.max() for _, labels in of_part.values())) + 1)
    name = pathlib.Path(path).stem
    return _dataset(name, *of_part["train"], *of_part["test"], class_names, notes, path)


def _painted(boxes: BoxRows, num_images: int, shape: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Labels [N,h,w] of boxes, 1 and more where they are, and how many were left out."""
    sides = np.clip(boxes.corners, 0, 1)
    size = sides[:, 2:] - sides[:, :2]
    empty = (size <= 0).any(axis=1)
    pixels = np.round(sides * np.array([*shape[::-1], *shape[::-1]])).astype(int)
    labels = np.zeros((num_images, *shape), np.int32)
    for row in np.argsort(-size.prod(axis=1), kind="stable"):
        if not empty[row]:
            left, top, right, bottom = pixels[row]
            across = slice(left, max(right, left + 1))
            labels[boxes.image[row], top : max(bottom, top + 1), across] = boxes.label[row] + 1
    return labels, int(empty.sum())


def _thinned(found: np.ndarray, wanted: tuple[int, ...], shape: tuple[int, int], where: str) -> np.ndarray:
    """Masks [N,h,w] as labels of `shape`, pixels in the middle of what each stands for; 255 is none."""
    if found.shape != wanted or found.dtype.kind not in "iu":
        raise UserError(
            f"{where}: {found.dtype} {found.shape}: must be class numbers {list(wanted)}, as the images"
        )
    rows, columns = (((2 * np.arange(n) + 1) * o) // (2 * n) for n, o in zip(shape, found.shape[1:]))
    labels = found[:, rows[:, None], columns[None, :]].astype(np.int32)
    return np.where(labels == IGNORED, -1, labels)


def _averaged(images: np.ndarray, shape: tuple[int, int], where: str) -> np.ndarray:
    """Images [N,h,w,c] averaged over squares to `shape`; UserError where that does not divide theirs."""
    number, height, width, depth = images.shape
    if (height, width) == shape:
        return images
    if height % shape[0] or width % shape[1]:
        raise UserError(f"{where}: {height}x{width}: size must divide their sides, {shape[0]} does not")
    squares = images.reshape(number, shape[0], height // shape[0], shape[1], width // shape[1], depth)
    return np.round(squares.mean(axis=(2, 4))).astype(np.uint8)


# --- folders ------------------------------------------------------------------------------------------


class _Pair(NamedTuple):
    """Files of one example, below the folder."""

    part: str  # "" where there are no parts
    image: pathlib.Path
    mask: pathlib.Path


def _of_folder(root: pathlib.Path, size: int, test_fraction: float, skip_corrupt: bool, seed: int) -> DataSet:
    pairs, lone, notes = _pairs(root)
    total = len(pairs) + len(lone)
    if lone and not skip_corrupt:
        raise UserError(
            f"{lone[0]}: has no mask of its name (.png); must have, or skip_corrupt=True leaves it out"
        )
    if not pairs:
        raise UserError(f"{root}: none of {total} images has a mask")
    shape = image_files.shape_of(pairs[0].image)
    shape = (size, size, shape[2]) if size else shape

    def read(pair: _Pair) -> tuple[np.ndarray, np.ndarray] | UserError:
        try:
            return _read_pair(pair, shape, resize=bool(size))
        except UserError as error:
            if skip_corrupt:
                return error
            raise UserError(f"{error}; skip_corrupt=True leaves such images out") from error

    found = list(streams.in_threads(read, pairs))
    kept = [(pair, both) for pair, both in zip(pairs, found) if not isinstance(both, UserError)]
    errors = [f for f in found if isinstance(f, UserError)]
    if not kept:
        raise UserError(f"{root}: none of {total} images can be read with its mask, the first: {errors[0]}")
    left_out = total - len(kept)
    why = f", the first: {errors[0]}" if errors else " for want of a mask"
    notes += [f"{left_out} of {total} images were left out{why}."] if left_out else []
    images, labels = (np.stack(arrays) for arrays in zip(*(both for _, both in kept)))
    parts = np.array([pair.part for pair, _ in kept])
    if not parts.any():
        parts = _drawn(labels.reshape(len(labels), -1), test_fraction, seed)
        notes.append(tell_drawn(test_fraction, "all images"))
    names = _class_names(root, int(labels.max()))
    of_test, train = parts == "test", np.flatnonzero(parts != "test")
    val_rows = np.flatnonzero(parts[train] == "val")
    return _dataset(
        root.resolve().name,
        images[train],
        labels[train],
        images[of_test],
        labels[of_test],
        names,
        notes,
        str(root),
        val_rows=val_rows if len(val_rows) else None,
        fit="stretch",
    )


def _pairs(root: pathlib.Path) -> tuple[list[_Pair], list[pathlib.Path], list[str]]:
    """Images of all parts with their masks, images that have none, and a note on masks that have no image."""
    parts = [part for part in _PARTS if (root / part).is_dir()]
    if parts and not {"train", "test"} <= {*parts}:
        raise UserError(
            f"{root}: holds {' and '.join(parts)}; must hold train and test, or images and masks alone"
        )
    pairs, without, lone = [], [], []
    for part in parts or [""]:
        for folder in ("images", "masks"):
            if not (root / part / folder).is_dir():
                raise UserError(f"{root / part}: no folder {folder}; must hold images and masks")
        masks_of, images_of = (_by_name(root / part / folder) for folder in ("masks", "images"))
        lone += [masks_of[name] for name in sorted(masks_of.keys() - images_of.keys())]
        pairs += [_Pair(part, path, masks_of[name]) for name, path in images_of.items() if name in masks_of]
        without += [path for name, path in images_of.items() if name not in masks_of]
    if not pairs and not without:
        raise UserError(
            f"{root}: holds no image; must hold {', '.join(image_files.SUFFIXES)} files in images"
        )
    told = f"{len(lone)} masks have no image of their name and were not read"
    return pairs, without, [f"{told}, such as {lone[0].relative_to(root)}."] if lone else []


def _by_name(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """{path below the folder, without its suffix: image file}; an image and its mask have the same one."""
    found: dict[str, pathlib.Path] = {}
    for path in image_files.find_images(folder):
        other = found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
        if other != path:
            raise UserError(
                f"{path}: {other.name} has the same name; must differ in more than what follows the point"
            )
    return found


def _read_pair(pair: _Pair, shape: tuple[int, int, int], resize: bool) -> tuple[np.ndarray, np.ndarray]:
    """An image [h,w,c] and its labels [h,w], both of `shape`; UserError where they do not fit together."""
    height, width, _ = image_files.shape_of(pair.image)
    if not resize and (height, width) != shape[:2]:
        raise UserError(
            f"{pair.image}: {height}x{width}, others {shape[0]}x{shape[1]}: must share one, or size=PIXELS"
        )
    mask = _read_mask(pair.mask, height, width)
    labels = _thinned(mask[None], (1, height, width), shape[:2], str(pair.mask))[0]
    if (labels < 0).all():
        left = "" if (mask == IGNORED).all() else f" left at {shape[0]}x{shape[1]}"
        raise UserError(
            f"{pair.mask}: no pixel of a class is there{left}, {IGNORED} being none; must have one at least"
        )
    return image_files.read(pair.image, shape=shape, fit="stretch"), labels


def _read_mask(path: pathlib.Path, height: int, width: int) -> np.ndarray:
    """Class numbers [h,w] int32 of a PNG file; what it is and how large is told before it is decoded."""
    with image_files.open_image(path, formats=("PNG",)) as file:
        if file.mode not in ("1", "L", "P", "I", "I;16"):
            raise UserError(
                f"{path}: mode {file.mode}: must be class numbers, grey or of a palette, not colours"
            )
        if file.size != (width, height):
            said = f"{file.height}x{file.width}, its image {height}x{width}"
            raise UserError(f"{path}: {said}: must be of one size")
        return np.asarray(file).astype(np.int32)


def _drawn(labels: np.ndarray, test_fraction: float, seed: int) -> np.ndarray:
    from sklearn.model_selection import train_test_split

    rows, kinds = np.arange(len(labels)), strata(labels)
    few = np.bincount(kinds)[kinds].min() < 2
    try:
        test = train_test_split(
            rows, test_size=test_fraction, stratify=None if few else kinds, random_state=seed
        )[1]
    except ValueError as error:
        raise UserError(
            f"masks: test_fraction = {test_fraction}: no test set can be drawn ({first_line(error)})"
        ) from error
    return np.where(np.isin(rows, test), "test", "train")


def _class_names(root: pathlib.Path, largest: int) -> tuple[str, ...]:
    file = root / "classes.txt"
    if not file.is_file():
        return number_names(largest + 1)
    try:
        with open_file(file, encoding="utf-8-sig") as stream:
            names = tuple(line.strip() for line in stream if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: cannot be read ({first_line(error)}); must be text in UTF-8, a class a line"
        ) from error
    if largest >= len(names):
        raise UserError(f"{file}: names {len(names)} classes, and masks hold {largest}; must name them all")
    return names


def _dataset(
    name: str,
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    class_names: Sequence[str],
    notes: Sequence[str],
    where: str,
    **further: Any,
) -> DataSet:
    """Images with labels [N,h,w] as a checked data set, whose labels are [N,h*w]."""
    held = np.unique(train_labels).tolist()
    if len(held) == 2 and held[0] == -1:
        raise UserError(
            f"{where}: the masks of training hold {held[1]} and {IGNORED}, which means no class; must hold "
            "two classes at least, and those of two are written 0 and 1"
        )
    return check(
        DataSet(
            name=name,
            train_images=train,
            train_labels=train_labels.reshape(len(train), -1),
            test_images=test,
            test_labels=test_labels.reshape(len(test), -1),
            class_names=tuple(class_names),
            notes=tuple(notes),
            task="masks",
            **further,
        ),
        where=where,
    )
