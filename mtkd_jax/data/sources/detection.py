"""Images with boxes: what is where in them. The sources of object detection."""

from __future__ import annotations

import collections
import itertools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from mtkd_jax.data import images as image_files
from mtkd_jax.data import streams
from mtkd_jax.data.boxes import BACKGROUND, assign
from mtkd_jax.data.checks import check, first_line, open_file, shorten, tell_drawn
from mtkd_jax.data.sources.arrays import find_boxes, read_boxes, read_npz
from mtkd_jax.system.spelling import hint
from mtkd_jax.types import DataSet, UserError

_LIMIT = 2**30  # bytes of a file of annotations
_PARTS = ("train", "val", "test")


def npz_boxes(*, path: str, stride: int = 8) -> DataSet:
    """A NumPy archive of images with boxes: train_images, test_images, class_names and boxes of both parts.

    Images are uint8 [N,h,w,c]. train_boxes_img_cls_xyxyS and test_boxes_img_cls_xyxyS, S a number such as
    200, are as in `arrays.read_boxes`: pixels are counted from 1 in images of S x S. There is a place for
    every `stride` x `stride` pixels, which must be those of the detectors. Boxes that reach beyond the image
    are cut and empty ones left out, which the notes tell. Raises UserError naming the file and the array.
    """
    _, there = read_npz(path, ())
    arrays = find_boxes(there)
    images = {part: f"{part}_images" for part in ("train", "test")}
    read, _ = read_npz(path, {*arrays.values(), *images.values(), "class_names"})
    for name in (*images.values(), "class_names"):
        if name not in read:
            raise UserError(f"{path}: no array {name}: must hold it; holds {shorten(sorted(there))}")
    if missing := [part for part in images if part not in arrays]:
        raise UserError(
            f"{path}: no array {missing[0]}_boxes_img_cls_xyxyS: must hold boxes of both parts, S being the "
            "side of the images that they are of"
        )
    class_names = tuple(map(str, read["class_names"].tolist()))
    parts = {}
    for part, name in arrays.items():
        num_images = len(read[images[part]])
        rows = read_boxes(read[name], name, num_images, len(class_names), path)
        of_each = [np.flatnonzero(rows.image == n) for n in range(num_images)]
        parts[part] = [
            _Marked(f"{name}, image {n}", [class_names[c] for c in rows.label[own]], rows.corners[own])
            for n, own in enumerate(of_each)
        ]
    pictures = {part: read[name] for part, name in images.items()}
    return _dataset(pathlib.Path(path).stem, pictures, parts, class_names, stride, where=path)


def coco(
    *,
    path: str,
    train: str,
    test: str = "",
    val: str = "",
    image_size: int | tuple[int, int] = 0,
    channels: int = 0,
    stride: int = 8,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> DataSet:
    """A folder of images with boxes in the form of COCO, which files of JSON list.

    `train`, `test` and `val` are these files, below the folder `path`: "train/_annotations.coco.json". They
    hold "images", "annotations" and "categories". Without `test`, `test_fraction` of the images of `train`
    are drawn with `seed` and tested on. An image is looked for beside its file of JSON, and below `path`, as
    it is or in a folder "images" or of the name of the file's part. Crowds are left out, and categories
    without a box are no classes. No image may be in two parts. Images are stretched to `image_size`, s or (h,
    w), and their boxes with them; 0 is the size that all share. `channels` is 1 or 3, 0 that of the files.
    For places and for boxes that are cut or left out see `npz_boxes`. Raises UserError naming the file and
    the entry.
    """
    root = _folder(path, "a folder of images and files of JSON")
    files = {part: root / file for part, file in zip(_PARTS, (train, val, test)) if file}
    read = {part: _read_coco(root, part, file) for part, file in files.items()}
    parts = {part: found.images for part, found in read.items()}
    notes = []
    if not test:
        parts |= _drawn(parts["train"], test_fraction, seed, str(root))
        notes.append(tell_drawn(test_fraction, f"the images of {train}"))
    if crowds := sum(found.crowds for found in read.values()):
        notes.append(f"{crowds} annotations are of crowds and are left out.")
    images = [image for of_part in parts.values() for image in of_part]
    there = {name for image in images for name in image.marked.names}
    class_names = tuple(name for name in read["train"].class_names if name in there)
    if unused := [name for name in read["train"].class_names if name not in there]:
        notes.append(f"{len(unused)} categories without a box are no classes: {shorten(unused)}.")
    shape = _shape(images, image_size, channels)
    return _from_files(root, parts, class_names, shape, stride, notes)


def voc(
    *,
    path: str,
    classes: tuple[str, ...] = (),
    image_size: int | tuple[int, int] = 0,
    channels: int = 0,
    stride: int = 8,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> DataSet:
    """A folder of images with boxes in the form of Pascal VOC: Annotations/*.xml beside JPEGImages.

    Where ImageSets/Main/train.txt, val.txt and test.txt name images, a line each, these are the parts, and
    val is validated on; no image may be in two. Without train.txt all others are trained with, and without
    test.txt `test_fraction` of these are drawn with `seed` and tested on. `classes` are those there may be,
    () all that are found. Boxes count pixels from 1, both ends inside; difficult ones count as all others.
    `image_size`, `channels`, places, and boxes that are cut or left out: see `coco`. XML with a document
    type, which could define entities, is refused. Raises UserError naming the file.
    """
    root = _folder(path, "Annotations/*.xml and JPEGImages")
    paths = sorted((root / "Annotations").glob("*.xml"))
    if not paths:
        raise UserError(f"{root / 'Annotations'}: no file *.xml; must hold one for each image")
    found = {file.stem: _read_voc(root, file) for file in paths}
    listed = {part: _image_set(root, part, found) for part in _PARTS}
    parts = {part: [found[name] for name in names] for part, names in listed.items() if names}
    elsewhere = {*(listed["val"] or ()), *(listed["test"] or ())}
    parts.setdefault("train", [image for name, image in found.items() if name not in elsewhere])
    notes = []
    if "test" not in parts:
        parts |= _drawn(parts["train"], test_fraction, seed, str(root))
        notes.append(tell_drawn(test_fraction, f"all images{' but val' if 'val' in parts else ''}"))
    class_names = classes or tuple(sorted({name for image in found.values() for name in image.marked.names}))
    shape = _shape([image for images in parts.values() for image in images], image_size, channels)
    return _from_files(root, parts, class_names, shape, stride, notes)


def synthetic_boxes(
    *,
    num_classes: int = 2,
    num_train: int = 200,
    num_test: int = 60,
    size: int = 32,
    noise: float = 0.1,
    stride: int = 8,
    seed: int = 0,
) -> DataSet:
    """Made-up images with boxes: one or two filled rectangles each, whose class is how bright they are.

    Images are uint8 [size,size,1], dark but for the rectangles and for Gaussian noise, whose standard
    deviation `noise` is in units of the full range. Raises UserError for numbers that make no problem.
    """
    least = {"num_classes": 1, "num_train": 2 * num_classes, "num_test": 1, "size": 8}
    given = {"num_classes": num_classes, "num_train": num_train, "num_test": num_test, "size": size}
    for name, value in given.items():
        if value < least[name]:
            raise UserError(f"synthetic_boxes: {name} = {value}: must be at least {least[name]}")
    rng = np.random.default_rng(seed)
    names = tuple(f"brightness {n + 1}" for n in range(num_classes))

    def draw(part: str, number: int) -> tuple[np.ndarray, list[_Marked]]:
        images, marked = noise * rng.standard_normal((number, size, size, 1)), []
        for n, image in enumerate(images):
            labels = [n % num_classes, *rng.integers(num_classes, size=rng.integers(2))]
            low = rng.integers(size // 2, size=(len(labels), 2))
            high = low + rng.integers(size // 4, size // 2, size=low.shape)
            for label, (left, top), (right, bottom) in zip(labels, low, high):
                image[top:bottom, left:right] += (label + 1) / num_classes
            corners = np.concatenate([low, high], axis=1) / size
            marked.append(_Marked(f"{part}, image {n}", [names[label] for label in labels], corners))
        return np.round(255 * np.clip(images, 0, 1)).astype(np.uint8), marked

    drawn = {part: draw(part, number) for part, number in (("train", num_train), ("test", num_test))}
    images = {part: pictures for part, (pictures, _) in drawn.items()}
    marked = {part: boxes for part, (_, boxes) in drawn.items()}
    return _dataset("synthetic_boxes", images, marked, names, stride, where="synthetic_boxes")


# --- what is marked, and the places that answer for it ------------------------------------------------


class _Marked(NamedTuple):
    """The boxes of one image."""

    where: str
    names: list[str]  # of the class of each
    corners: np.ndarray  # [n,4], parts of the image's sides


class _Image(NamedTuple):
    """The file of an image, and its boxes."""

    file: pathlib.Path
    size: tuple[int, int]  # height and width, as its annotations say
    marked: _Marked


_TOLD = {
    "beyond": "reach beyond their image and are cut at its edge",
    "empty": "have no area in their image and are left out",
    "without": "have no place, that of their middle being the only one of another box, and are left out",
}


def _dataset(
    name: str,
    images: Mapping[str, np.ndarray],
    parts: Mapping[str, Sequence[_Marked]],
    class_names: Sequence[str],
    stride: int,
    *,
    where: str,
    notes: Sequence[str] = (),
    **further: Any,
) -> DataSet:
    """The checked data of images [N,h,w,c] of both parts, and the boxes of each image."""
    if wrong := [part for part, array in images.items() if array.ndim != 4]:
        shape = images[wrong[0]].shape
        raise UserError(f"{where}: {wrong[0]}_images: shape {shape}: must be [N,h,w,c]")
    height, width = images["train"].shape[1:3]
    if not 1 <= stride <= min(height, width):
        least = min(height, width)
        raise UserError(f"stride = {stride}: must be 1..{least} pixels, for images of {height}x{width}")
    if BACKGROUND in class_names:
        raise UserError(f"{where}: a class is called {BACKGROUND!r}, which is what is in no box; rename it")
    grid, changes = (-(-height // stride), -(-width // stride)), []
    fields: dict[str, Any] = {}
    for part, marked in parts.items():
        cut = [_cut(one) for one in marked]
        places = [assign(_numbers(one, class_names), one.corners, grid) for one, _ in cut]
        changes += [change for _, found in cut for change in found]
        changes += [("without", len(of.without), one.where) for (one, _), of in zip(cut, places)]
        fields[f"{part}_images"] = images[part]
        fields[f"{part}_labels"] = np.stack([of.label for of in places])
        fields[f"{part}_goals"] = {"boxes": np.stack([of.corners for of in places])}
    if not fields["test_labels"].any():
        raise UserError(f"{where}: no box in the test set; must hold one at least, to be found")
    total = sum(len(one.names) for marked in parts.values() for one in marked)
    return check(
        DataSet(
            name=name,
            class_names=(BACKGROUND, *class_names),
            task="boxes",
            grid=grid,
            notes=(*notes, *_notes(changes, total)),
            **fields,
            **further,
        ),
        where=where,
    )


def _cut(one: _Marked) -> tuple[_Marked, list[tuple[str, int, str]]]:
    """The boxes of an image as far as they are inside it, and how many changed in which way: see `_TOLD`."""
    if not np.isfinite(one.corners).all():
        raise UserError(f"{one.where}: a corner of a box is no finite number; must be pixels")
    inside = np.clip(one.corners, 0.0, 1.0)
    is_there = (inside[:, 2:] > inside[:, :2]).all(axis=1)
    is_cut = (np.abs(inside - one.corners) > 1e-6).any(axis=1) & is_there
    kept = _Marked(one.where, list(itertools.compress(one.names, is_there)), inside[is_there])
    numbers = (("empty", int((~is_there).sum())), ("beyond", int(is_cut.sum())))
    return kept, [(kind, number, one.where) for kind, number in numbers]


def _numbers(one: _Marked, class_names: Sequence[str]) -> np.ndarray:
    """Labels [n] of the boxes of an image, 1 or more: 0 is the background."""
    for name in one.names:
        if name not in class_names:
            known = shorten(list(class_names))
            raise UserError(
                f"{one.where}: a box of class {name!r}: must be of {known}{hint(name, class_names)}"
            )
    return np.array([1 + class_names.index(name) for name in one.names], np.int32)


def _notes(changes: Sequence[tuple[str, int, str]], total: int) -> list[str]:
    """A sentence for each kind of change that there is."""
    notes = []
    for kind, told in _TOLD.items():
        found = [(number, where) for of, number, where in changes if of == kind and number]
        if found:
            number = sum(number for number, _ in found)
            notes.append(f"{number} of {total} boxes {told}; the first: {found[0][1]}.")
    return notes


# --- image files --------------------------------------------------------------------------------------


def _folder(path: str, right: str) -> pathlib.Path:
    root = pathlib.Path(os.path.expanduser(path))
    if not path or not root.is_dir():
        raise UserError(f"data.path = {path!r}: no such folder; must hold {right}")
    return root


def _drawn(images: Sequence[_Image], test_fraction: float, seed: int, where: str) -> dict[str, list[_Image]]:
    """Images to train with and a test set drawn from them."""
    if not 0 < test_fraction <= 0.5:
        raise UserError(f"test_fraction = {test_fraction}: must lie above 0 and be at most 0.5")
    number = round(test_fraction * len(images))
    if not number:
        raise UserError(
            f"{where}: test_fraction = {test_fraction} of {len(images)} images is none; add images"
        )
    drawn = set(np.random.default_rng(seed).permutation(len(images))[:number].tolist())
    return {
        "train": [image for n, image in enumerate(images) if n not in drawn],
        "test": [image for n, image in enumerate(images) if n in drawn],
    }


def _shape(
    images: Sequence[_Image], image_size: int | tuple[int, int], channels: int
) -> tuple[int, int, int]:
    """The shape [h,w,c] that images are stretched to; each must be as large as its annotations say."""
    size = image_files.check_size(image_size, channels)
    shapes = list(streams.in_threads(lambda image: image_files.shape_of(image.file), images))
    for image, (height, width, _) in zip(images, shapes):
        if image.size != (height, width):
            raise UserError(
                f"{image.file}: is {height}x{width}, and {image.marked.where} says {image.size[0]}x"
                f"{image.size[1]}; boxes must be those of the image as it is shown"
            )
    sizes = sorted({shape[:2] for shape in shapes})
    if size == (0, 0) and len(sizes) > 1:
        such = " and ".join(f"{height}x{width}" for height, width in sizes[:2])
        raise UserError(
            f"images of {len(sizes)} sizes, such as {such}: must share one, or say image_size=(h, w)"
        )
    height, width = sizes[0] if size == (0, 0) else size
    return height, width, channels or max(depth for *_, depth in shapes)


def _from_files(
    root: pathlib.Path,
    parts: Mapping[str, Sequence[_Image]],
    class_names: Sequence[str],
    shape: tuple[int, int, int],
    stride: int,
    notes: Sequence[str],
) -> DataSet:
    """The data of image files; those to validate on become rows of the training set."""
    _check_apart(parts)
    val = list(parts.get("val", ()))
    joined = {"train": [*parts["train"], *val], "test": list(parts["test"])}

    def read(image: _Image) -> np.ndarray:
        return image_files.read(image.file, shape=shape, fit="stretch")

    images = {part: np.stack(list(streams.in_threads(read, of))) for part, of in joined.items()}
    names = {part: tuple(os.path.relpath(image.file, root) for image in of) for part, of in joined.items()}
    total = len(joined["train"])
    return _dataset(
        root.resolve().name,
        images,
        {part: [image.marked for image in of] for part, of in joined.items()},
        class_names,
        stride,
        where=str(root),
        notes=notes,
        val_rows=np.arange(total - len(val), total) if val else None,
        fit="stretch",
        train_names=names["train"],
        test_names=names["test"],
    )


def _check_apart(parts: Mapping[str, Sequence[_Image]]) -> None:
    """Raise UserError for an image of two parts, which would be tested on what was trained with it."""
    part_of: dict[str, str] = {}
    for part, images in parts.items():
        for image in images:
            if (other := part_of.setdefault(os.path.realpath(image.file), part)) != part:
                raise UserError(f"{image.file}: is in {other} and in {part}; must be in one of them")


# --- COCO ---------------------------------------------------------------------------------------------


class _Coco(NamedTuple):
    """What a file of JSON says."""

    images: list[_Image]
    class_names: tuple[str, ...]
    crowds: int  # annotations that are left out


def _read_coco(root: pathlib.Path, part: str, file: pathlib.Path) -> _Coco:
    try:
        with open_file(file, "rb") as stream:
            content = stream.read(_LIMIT + 1)
        if len(content) > _LIMIT:
            raise ValueError(f"more than {_LIMIT} bytes")
        return _of_coco(json.loads(content), [file.parent, root, root / "images", root / part], file)
    except (OSError, KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        said = f"no entry {error}" if isinstance(error, KeyError) else first_line(error)
        raise UserError(
            f"{file}: cannot be read ({said}); must be annotations in the form of COCO"
        ) from error


def _of_coco(said: Mapping[str, Any], folders: Sequence[pathlib.Path], file: pathlib.Path) -> _Coco:
    names = {category["id"]: str(category["name"]) for category in said["categories"]}
    images = {image["id"]: image for image in said["images"]}
    of_boxes = {annotation["category_id"] for annotation in said["annotations"]}
    for what, each in (
        ("image of id", [image["id"] for image in said["images"]]),
        ("category of id", [category["id"] for category in said["categories"]]),
        # Roboflow lists the group of all classes as one without a box, often of the name of one of them.
        ("category called", [name for one, name in names.items() if one in of_boxes]),
    ):
        if twice := [one for one, number in collections.Counter(each).items() if number > 1]:
            raise UserError(f"{file}: {what} {twice[0]!r} is listed twice; must be listed once")
    if not images:
        raise UserError(f"{file}: lists no image; must list one at least")
    boxes: dict[Any, list[tuple[str, list[float]]]] = {one: [] for one in images}
    crowds = 0
    for annotation in said["annotations"]:
        where = f"{file}: annotation {annotation['id']}"
        if annotation["image_id"] not in images:
            raise UserError(f"{where}: is of image {annotation['image_id']}, which is not listed; must be")
        if annotation["category_id"] not in names:
            known = shorten(list(map(str, names)))
            raise UserError(f"{where}: is of category {annotation['category_id']}: must be of {known}")
        if annotation.get("iscrowd"):
            crowds += 1
            continue
        left, top, width, height = map(float, annotation["bbox"])
        corners = [left, top, left + width, top + height]
        boxes[annotation["image_id"]].append((names[annotation["category_id"]], corners))
    return _Coco(
        [_of_image(image, boxes[one], folders, file) for one, image in images.items()],
        tuple(dict.fromkeys(names.values())),
        crowds,
    )


def _of_image(
    image: Mapping[str, Any],
    boxes: Sequence[tuple[str, list[float]]],
    folders: Sequence[pathlib.Path],
    file: pathlib.Path,
) -> _Image:
    height, width = int(image["height"]), int(image["width"])
    name = str(image["file_name"])
    there = [folder / name for folder in folders if (folder / name).is_file()]
    if not there:
        raise UserError(f"{file}: {name}: no such file below {', '.join(map(str, folders))}")
    return _Image(there[0], (height, width), _marked(f"{file}: {name}", boxes, height, width))


def _marked(where: str, boxes: Sequence[tuple[str, list[float]]], height: int, width: int) -> _Marked:
    """Boxes whose corners are pixels of an image."""
    if min(height, width) < 1:
        raise UserError(f"{where}: an image of {height}x{width}; must have the size of its file")
    corners = np.array([corners for _, corners in boxes], np.float64).reshape(-1, 4)
    return _Marked(where, [name for name, _ in boxes], corners / np.array([width, height, width, height]))


# --- Pascal VOC ---------------------------------------------------------------------------------------


class _WithoutTypes(ElementTree.TreeBuilder):
    """Refuses a document type, and with it all entities that a file could define or fetch."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a document type")


def _read_voc(root: pathlib.Path, file: pathlib.Path) -> _Image:
    try:
        with open_file(file, "rb") as stream:
            tree = ElementTree.XML(stream.read(_LIMIT), ElementTree.XMLParser(target=_WithoutTypes()))
        height, width = (int(_text(tree, f"size/{side}")) for side in ("height", "width"))
        boxes = [
            (
                _text(one, "name").strip(),
                [
                    float(_text(one, f"bndbox/{side}")) - first
                    for side, first in (("xmin", 1), ("ymin", 1), ("xmax", 0), ("ymax", 0))
                ],
            )
            for one in tree.iter("object")
        ]
        name = _text(tree, "filename").strip()
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise UserError(
            f"{file}: cannot be read ({first_line(error)}); must be annotations in the form of Pascal VOC"
        ) from error
    image = root / "JPEGImages" / pathlib.PurePath(name).name
    if not image.is_file():
        raise UserError(f"{file}: {name}: no such file in {image.parent}")
    return _Image(image, (height, width), _marked(str(file), boxes, height, width))


def _text(tree: ElementTree.Element, path: str) -> str:
    found = tree.findtext(path)
    if found is None:
        raise ValueError(f"no entry {path}")
    return found


def _image_set(root: pathlib.Path, part: str, found: Mapping[str, _Image]) -> list[str] | None:
    """The images that a part consists of, None where nothing says so."""
    file = root / "ImageSets" / "Main" / f"{part}.txt"
    if not file.is_file():
        return None
    try:
        with open_file(file, encoding="utf-8") as stream:
            names = [line.split()[0] for line in stream if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)}); must name an image a line") from error
    if unknown := [name for name in names if name not in found]:
        raise UserError(f"{file}: {unknown[0]}: no Annotations/{unknown[0]}.xml; must be there")
    return names
