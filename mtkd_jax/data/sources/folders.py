"""Image files: a folder for every class, or a table of files and labels."""

from __future__ import annotations

import csv as tables
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtkd_jax.data import images as image_files
from mtkd_jax.data import streams
from mtkd_jax.data.checks import checked, first_line
from mtkd_jax.data.loading import part_of_groups
from mtkd_jax.types import DataSet, Images, UserError

_PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def folder(
    *,
    path: str,
    image_size: int | tuple[int, int] = 0,
    channels: int = 0,
    fit: str = "crop",
    test_fraction: float = 0.2,
    groups: str = "",
    skip_corrupt: bool = False,
    stream: str = "auto",
    seed: int = 0,
) -> DataSet:
    """A folder of image files: root/CLASS/file, or root/SPLIT/CLASS/file with the splits train, val and test.

    Without splits, about `test_fraction` of every class is the test set, drawn with `seed`. A split val (or
    valid, validation) is what is validated on. `groups` names a table below root with the columns path and
    group: then a test set that is drawn shares no group with training. Images may lie deeper in the folder
    of their class; hidden files and files with other endings than those of images are not looked at.

    Images are brought to `image_size`, s or (h, w), as `fit` says (crop, pad or stretch: see `images.read`);
    0 is the size that all of them share. `channels` is 1 or 3; 0 is 1 where all are grey and else 3.
    `stream` "never" holds them in memory, "always" decodes them whenever they are used, "auto" does so where
    they are more than 2 GB. Each is decoded once here in any case: a corrupt one ends the run, or with
    `skip_corrupt` is left out and noted. Raises `UserError` naming the file or the folder.
    """
    root = pathlib.Path(os.path.expanduser(path))
    if not path or not root.is_dir():
        raise UserError(f"data.path = {path!r}: no such folder; must hold a folder of images for every class")
    reading = _reading(image_size, channels, fit, skip_corrupt, stream)
    files = sorted(_files_below(root))
    if groups:
        files = _grouped(files, _inside(root, groups))
    files = _in_parts(files, root, test_fraction, seed)
    return _dataset(root.resolve().name, files, root, reading)


def csv(
    *,
    path: str,
    image_size: int | tuple[int, int] = 0,
    channels: int = 0,
    fit: str = "crop",
    test_fraction: float = 0.2,
    skip_corrupt: bool = False,
    stream: str = "auto",
    seed: int = 0,
) -> DataSet:
    """A table of image files with the columns path and label, and perhaps split and group.

    The first line names the columns; they are separated by commas, or by tabs in a file that ends in .tsv.
    Paths start at the table's folder and stay in it; labels are names; splits are train, val and test.
    Without splits a test set is drawn, and all else is done, as in `folder`.
    """
    file = pathlib.Path(os.path.expanduser(path))
    if not path or not file.is_file():
        raise UserError(
            f"data.path = {path!r}: no such file; must be a table with the columns path and label"
        )
    reading = _reading(image_size, channels, fit, skip_corrupt, stream)
    files = _in_parts(sorted(_files_of_table(file)), file, test_fraction, seed)
    return _dataset(file.stem, files, file.parent, reading)


# --- which files --------------------------------------------------------------------------------------


class _File(NamedTuple):
    """One image file by its path below the root, with slashes."""

    path: str
    label: str
    part: str = ""  # "train" | "val" | "test", or "" where the test set is still to be drawn
    group: str = ""


def _files_below(root: pathlib.Path) -> Iterator[_File]:
    """The image files of every class."""
    names = _folders(root)
    splits = [name for name in names if name.lower() in _PARTS]
    if splits and (others := sorted(set(names) - set(splits))):
        raise UserError(
            f"{root}: holds the folders {splits[0]} and {others[0]}: must hold splits (train, val, test) "
            "or classes, not both"
        )
    for split in splits or [""]:
        for label in _folders(root / split):
            for file in _images_below(root / split / label):
                path = file.relative_to(root)
                _inside(root, path)
                yield _File(path.as_posix(), label, part=_PARTS.get(split.lower(), ""))


def _folders(parent: pathlib.Path) -> list[str]:
    """Names of the folders in a folder, sorted; at least one, and none of them hidden or a link."""
    found = sorted(entry for entry in parent.iterdir() if entry.is_dir() and not _hidden(entry.name))
    if not found:
        raise UserError(f"{parent}: holds no folder; must hold a folder of images for every class")
    for entry in found:
        _check_no_link(entry)
    return [entry.name for entry in found]


def _images_below(parent: pathlib.Path) -> list[pathlib.Path]:
    """The image files in a folder and in the folders in it; at least one."""
    found = []
    for place, folders, names in os.walk(parent):
        folders[:] = [name for name in folders if not _hidden(name)]
        for name in folders:
            _check_no_link(pathlib.Path(place, name))
        found += [
            pathlib.Path(place, name)
            for name in names
            if name.lower().endswith(image_files.SUFFIXES) and not _hidden(name)
        ]
    if not found:
        raise UserError(
            f"{parent}: holds no image; must hold files that end in {', '.join(image_files.SUFFIXES)}"
        )
    return found


def _hidden(name: str) -> bool:
    return name.startswith(".")


def _check_no_link(place: pathlib.Path) -> None:
    if place.is_symlink():
        raise UserError(f"{place}: is a link to a folder; must be a folder itself")


def _inside(root: pathlib.Path, path: str | pathlib.PurePath) -> pathlib.Path:
    """The file of this path below root; never one that lies elsewhere, however the path or a link leads."""
    below = pathlib.PurePath(path)
    try:
        inside = (root / below).resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):  # a link that leads to itself, a path that cannot be one
        inside = False
    if not inside or below.is_absolute() or ".." in below.parts:
        raise UserError(f"{root}: {str(path)!r} leads out of this folder; must be a path to a file in it")
    return root / below


def _files_of_table(file: pathlib.Path) -> Iterator[_File]:
    """The image files that a table lists."""
    files = {}
    for where, row in _table(file, "label"):
        path = _inside(file.parent, row["path"]).relative_to(file.parent).as_posix()
        part = _PARTS.get(row.get("split", "train").lower())
        if part is None:
            raise UserError(f"{where}: split {row['split']!r}: must be train, val or test")
        if path in files:
            raise UserError(f"{where}: {path} stands in an earlier line too; must be listed once")
        files[path] = _File(path, row["label"], part if "split" in row else "", row.get("group", ""))
    yield from files.values()


def _grouped(files: list[_File], file: pathlib.Path) -> list[_File]:
    """The files with the groups that a table gives them."""
    groups = {pathlib.PurePosixPath(row["path"]).as_posix(): row["group"] for _, row in _table(file, "group")}
    for image in files:
        if image.path not in groups:
            raise UserError(f"{file}: has no line for {image.path}; must give every image a group")
    return [image._replace(group=groups[image.path]) for image in files]


def _table(file: pathlib.Path, needed: str) -> list[tuple[str, dict[str, str]]]:
    """Where each line is, and the line by the names of its columns, none of them empty."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            reader = tables.DictReader(stream, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
            columns = reader.fieldnames or []
            rows = [(f"{file}: line {reader.line_num}", row) for row in reader]
    except (OSError, ValueError, tables.Error) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)}); must be a table in UTF-8") from error
    for name in ("path", needed):
        if name not in columns:
            raise UserError(
                f"{file}: has no column {name}; the first line must name the columns, with path and {needed}"
            )
    if not rows:
        raise UserError(f"{file}: lists no image; must have a line for each")
    for where, row in rows:
        if None in row or not all(row.values()):
            raise UserError(f"{where}: must have an entry in each of the columns {', '.join(columns)}")
    return rows


# --- which part ---------------------------------------------------------------------------------------


def _in_parts(files: list[_File], where: pathlib.Path, test_fraction: float, seed: int) -> list[_File]:
    """The files with the parts that they were published in, or that are drawn here."""
    if not 0 < test_fraction <= 0.5:
        raise UserError(f"test_fraction = {test_fraction}: must lie above 0 and be at most 0.5")
    if not files[0].part:
        drawn = set(_drawn_test(files, where, test_fraction, seed))
        return [file._replace(part="test" if n in drawn else "train") for n, file in enumerate(files)]
    classes = {part: {file.label for file in files if file.part == part} for part in ("train", "val", "test")}
    for part, labels in classes.items():
        if part != "val" and not labels:
            raise UserError(f"{where}: has splits, but none is {part}; must have train and test")
        if labels and (differ := sorted(labels ^ classes["train"])):
            inside, outside = ("train", part) if differ[0] in classes["train"] else (part, "train")
            raise UserError(
                f"{where}: class {differ[0]} is in {inside} and not in {outside}; must be in every split"
            )
    return files


def _drawn_test(files: list[_File], where: pathlib.Path, test_fraction: float, seed: int) -> Sequence[int]:
    """Rows of the test set: of every class in proportion, and of whole groups where there are any."""
    from sklearn.model_selection import train_test_split

    labels, groups = [file.label for file in files], [file.group for file in files]
    try:
        if any(groups):
            return part_of_groups(labels, groups, test_fraction, seed).tolist()
        rows = range(len(files))
        return train_test_split(rows, test_size=test_fraction, stratify=labels, random_state=seed)[1]
    except ValueError as error:
        raise UserError(
            f"{where}: test_fraction = {test_fraction}: no test set can be drawn ({first_line(error)}); "
            "must be larger, or every class must have more images or groups"
        ) from error


# --- the images ---------------------------------------------------------------------------------------


class _Reading(NamedTuple):
    """How images are read: the arguments of the sources, checked."""

    size: tuple[int, int] | None  # None: the size they share
    channels: int  # 0: as in the files
    fit: str
    skip_corrupt: bool
    stream: str


def _reading(
    image_size: int | tuple[int, int], channels: int, fit: str, skip_corrupt: bool, stream: str
) -> _Reading:
    size = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    if size != (0, 0) and not (len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
        raise UserError(
            f"image_size = {image_size!r}: must be s or (h, w) in pixels, or 0 for that of the files"
        )
    if channels not in (0, 1, 3):
        raise UserError(f"channels = {channels}: must be 1 (grey), 3 (colour), or 0 for those of the files")
    if stream not in ("auto", "always", "never"):
        raise UserError(f"stream = {stream!r}: must be auto, always or never")
    image_files.fitting(fit)
    return _Reading(None if size == (0, 0) else size, channels, fit, skip_corrupt, stream)


def _dataset(name: str, files: list[_File], root: pathlib.Path, reading: _Reading) -> DataSet:
    """The data of these files; all of them have a part, and all or none a group."""
    shape = _common_shape(files, root, reading)
    num_bytes = len(files) * int(np.prod(shape))
    held = {"never": True, "always": False, "auto": num_bytes <= streams.MOST_HELD}[reading.stream]
    labels, groups = (_numbers(names) for names in zip(*((f.label, f.group) for f in files)))
    fields, errors, sound = {}, [], {}
    for part, parts in (("train", ("train", "val")), ("test", ("test",))):
        members = [f for f in files if f.part in parts]
        images, found = _read([str(root / f.path) for f in members], shape, reading, held)
        errors += [error for error in found if error is not None]
        sound[part] = [f for f, error in zip(members, found) if error is None]
        fields[f"{part}_images"] = images
        fields[f"{part}_labels"] = np.array([labels[f.label] for f in sound[part]], np.int32)
        if "" not in groups:
            fields[f"{part}_groups"] = np.array([groups[f.group] for f in sound[part]], np.int32)
    val_rows = np.flatnonzero([f.part == "val" for f in sound["train"]])
    notes = [f"{len(errors)} of {len(files)} images were left out, the first: {errors[0]}"] if errors else []
    return checked(
        DataSet(
            name=name,
            class_names=tuple(labels),
            val_rows=val_rows if len(val_rows) else None,
            notes=tuple(notes),
            **fields,
        ),
        where=str(root),
    )


def _numbers(names: Sequence[str]) -> dict[str, int]:
    """Every name's place among them all, in their order."""
    return {name: number for number, name in enumerate(sorted(set(names)))}


def _common_shape(files: list[_File], root: pathlib.Path, reading: _Reading) -> tuple[int, int, int]:
    """The shape [h,w,c] that every image is brought to: as asked for, or as their files' heads say."""
    if reading.size and reading.channels:
        return *reading.size, reading.channels
    found = _attempted(lambda file: image_files.shape_of(root / file.path), files, reading.skip_corrupt)
    shapes = {shape: file.path for file, shape in zip(files, found) if not isinstance(shape, UserError)}
    if not shapes:
        raise UserError(f"{root}: none of {len(files)} images can be read, the first: {found[0]}")
    sizes = {shape[:2]: path for shape, path in shapes.items()}
    if not reading.size and len(sizes) > 1:
        such = " and ".join(f"{path} of {h} x {w}" for (h, w), path in list(sizes.items())[:2])
        raise UserError(
            f"{root}: images of {len(sizes)} sizes, such as {such}: must share one, or be brought to "
            "image_size=(h, w)"
        )
    return *(reading.size or next(iter(sizes))), reading.channels or max(channels for *_, channels in shapes)


def _read(
    paths: list[str], shape: tuple[int, int, int], reading: _Reading, held: bool
) -> tuple[np.ndarray | Images, list[UserError | None]]:
    """The images that can be read, each decoded once; and for every file what is wrong with it, or None."""
    images = np.empty((len(paths), *shape), np.uint8) if held else None

    def decode(row: int) -> bytes:
        image = image_files.read(paths[row], shape=shape, fit=reading.fit)
        if held:
            images[row] = image
        return streams.digest(image)

    found = _attempted(decode, range(len(paths)), reading.skip_corrupt)
    errors = [result if isinstance(result, UserError) else None for result in found]
    sound = [row for row, error in enumerate(errors) if error is None]
    if held:
        return images if len(sound) == len(paths) else images[sound], errors

    def read(row: int) -> np.ndarray:
        return image_files.read(paths[sound[row]], shape=shape, fit=reading.fit)

    digests = (found[row] for row in sound)
    return streams.OneByOne(read, (len(sound), *shape), np.uint8, digests), errors


def _attempted(work: Callable[[Any], Any], things: Sequence, skip_corrupt: bool) -> list:
    """`work` of every thing; with `skip_corrupt` the `UserError` stands in the place of what failed."""

    def attempt(thing: Any) -> Any:
        try:
            return work(thing)
        except UserError as error:
            if skip_corrupt:
                return error
            raise UserError(f"{error}; skip_corrupt=True leaves such files out") from error

    return list(streams.in_threads(attempt, things))
