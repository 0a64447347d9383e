"""Image files: a folder for every class, or a table of files and labels."""

from __future__ import annotations

import collections
import difflib
import itertools
import os
import pathlib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtkd_jax.data import images as image_files
from mtkd_jax.data import streams, tables
from mtkd_jax.data.checks import check, first_line, shorten, tell_drawn
from mtkd_jax.data.loading import part_of_groups
from mtkd_jax.types import DataSet, Images, UserError, printable

_WORDS = {  # of folders and of a split column, in any case -> part
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
ALL = -2  # teachers teach an image, where the table does not say who
_FURTHER_WORDS = {"set", "data", "dataset", "image", "images", "img", "imgs", "split", "folder"}


def folder(
    *,
    path: str,
    image_size: int | tuple[int, int] = 0,
    channels: int = 0,
    fit: str = "crop",
    test_fraction: float = 0.2,
    test_from: str = "",
    splits: bool = True,
    groups: str = "",
    skip_corrupt: bool = False,
    stream: str = "auto",
    seed: int = 0,
) -> DataSet:
    """A folder of image files: root/CLASS/file, root/SPLIT/CLASS/file or root/CLASS/SPLIT/file.

    Splits are train, val and test, or words like them (Training, valid, test_set, ...). Without them, about
    `test_fraction` of every class is the test set, drawn with `seed`. A split val is what is validated on.
    Where none is test, `test_from` says what is tested on: "val" makes a test set of val, "train" draws
    one from train. Without `splits` every folder is a class, whatever it is called. `groups` names a table
    below root with the columns path and group: then a test set that is drawn shares no group with training.
    Images may lie deeper in the folder of their class, behind links too; a lone folder around classes or
    splits is looked through. What is passed over is counted in the notes.

    Images are brought to `image_size`, s or (h, w), as `fit` says (crop, pad or stretch: see `images.read`);
    0 is the size that all of them share. `channels` is 1 or 3; 0 is 1 where all are grey and else 3.
    `stream` "never" holds them in memory, "always" decodes them whenever they are used, "auto" does so where
    they are more than 2 GB. Each is decoded once here in any case: a corrupt one ends the run, or with
    `skip_corrupt` is left out and noted. Raises `UserError` naming the file or the folder.
    """
    root = pathlib.Path(os.path.expanduser(path))
    if not path or not os.path.isdir(root):
        raise UserError(f"data.path = {path!r}: no such folder; must hold a folder of images for every class")
    reading = _reading(image_size, channels, fit, skip_corrupt, stream)
    files, notes = _files_below(root, splits)
    if groups:
        files = _add_groups(files, root, _inside(root, groups))
    files, drawn = assign_parts(files, root, test_fraction, test_from, seed)
    return _dataset(root.resolve().name, files, root, reading, (*notes, *drawn))


def csv(
    *,
    path: str,
    image_size: int | tuple[int, int] = 0,
    channels: int = 0,
    fit: str = "crop",
    test_fraction: float = 0.2,
    test_from: str = "",
    skip_corrupt: bool = False,
    stream: str = "auto",
    seed: int = 0,
) -> DataSet:
    """A table of image files with the columns path and label, and perhaps split, group and teacher.

    The first line names the columns, which are separated by commas, tabs, semicolons or bars. Paths start at
    the table's folder, or are written in full, and stay in it; they may have backslashes. Labels are names;
    splits are as in `folder`. `teacher` is the number 0, 1, ... of the only teacher who teaches students that
    image, or -1 where none does. Other columns are not read, and may be empty. Without splits a test set is
    drawn, and all else is done, as in `folder`; files that are not there end the run, unless `skip_corrupt`.
    """
    file = pathlib.Path(os.path.expanduser(path))
    if not path or not os.path.isfile(file):
        raise UserError(
            f"data.path = {path!r}: no such file; must be a table with the columns path and label"
        )
    reading = _reading(image_size, channels, fit, skip_corrupt, stream)
    files, notes = _files_of_table(file)
    if not skip_corrupt:
        _check_there(files, file)
    files, drawn = assign_parts(files, file, test_fraction, test_from, seed)
    return _dataset(file.stem, files, file.parent, reading, (*notes, *drawn))


# --- which files --------------------------------------------------------------------------------------


class _File(NamedTuple):
    """One image file by its path below the root, with slashes."""

    path: str
    label: str
    part: str = ""  # "train" | "val" | "test", or "" where the test set is still to be drawn
    group: str = ""
    teacher: int = ALL  # the only one who teaches it; -1: nobody


def _files_below(root: pathlib.Path, splits: bool) -> tuple[list[_File], list[str]]:
    """The image files of every class, and notes on what was passed over."""
    top = _find_class_root(root, splits)
    places = _places(top, splits)
    _check_apart(top, places)
    found, others = [], []
    for place, label, part in places:
        files = image_files.find_files(place)
        images = [file for file in files if image_files.is_named_as_image(file.name)]
        rest = [file for file in files if not image_files.is_named_as_image(file.name)]
        if not images:
            raise UserError(
                f"{place}: holds no image{f' but {_count_endings(rest)}' if rest else ''}; must hold files "
                f"that end in {', '.join(image_files.SUFFIXES)}"
            )
        found += [_File(file.relative_to(root).as_posix(), _normalise_label(label), part) for file in images]
        others += rest
    if len(places) == 1:
        raise UserError(f"{top}: holds 1 class ({places[0][1]}); must hold a folder for each of at least 2")
    notes = [f"Read from {top.relative_to(root)}, the only folder in {root}."] if top != root else []
    if deep := [place.parent for place, _, _ in places if len(place.relative_to(top).parts) > 2]:
        notes.append(f"Lone folders were looked through, such as {deep[0].relative_to(root)}.")
    between = {top} | {above for place, _, _ in places for above in place.parents if top in above.parents}
    stray = [place / name for place in sorted(between) for name in _images_in(place)]
    if stray:
        which = stray[0].relative_to(root)
        notes.append(f"{len(stray)} images beside the folders of classes were not read, such as {which}.")
    if others:
        which = others[0].relative_to(root)
        told = f"({_count_endings(others)}), such as {which}"
        notes.append(f"{len(others)} files do not end as images do and were not read {told}.")
    return sorted(found), notes


def _count_endings(files: list[pathlib.Path]) -> str:
    """How many files there are of the commonest endings."""
    counts = collections.Counter(file.suffix.lower() or "without an ending" for file in files)
    return ", ".join(f"{number} {ending}" for ending, number in counts.most_common(3))


def _normalise_label(label: str) -> str:
    """The same name for a class whether its accents are letters' own or signs of their own, as on a Mac."""
    return unicodedata.normalize("NFC", label)


def _images_in(place: pathlib.Path) -> list[str]:
    """Names of the files in a folder itself that end as images do."""
    return [name for name in image_files.list_entries(place)[1] if image_files.is_named_as_image(name)]


def _find_class_root(place: pathlib.Path, splits: bool) -> pathlib.Path:
    """The folder that holds the classes or splits: inside of a lone folder, if neither holds images.

    With `splits` a lone folder that is called like a split is one.
    """
    seen = set()
    while os.path.realpath(place) not in seen:  # a link may lead back up
        seen.add(os.path.realpath(place))
        folders, _ = image_files.list_entries(place)
        if len(folders) != 1 or _images_in(place) or (splits and part_of(folders[0])):
            break
        inner = place / folders[0]
        if _images_in(inner) or not image_files.list_entries(inner)[0]:
            break
        place = inner
    return place


# --- classes and splits -------------------------------------------------------------------------------

_Place = tuple[pathlib.Path, str, str]  # folder of images, class, part or ""


def _places(top: pathlib.Path, splits: bool) -> list[_Place]:
    """Where the images of every class are: in CLASS, SPLIT/CLASS or CLASS/SPLIT."""
    names = _folders(top)
    if not splits:
        return [(top / name, name, "") for name in names]
    if any(map(part_of, names)):
        parts = _parts(top, names)
        tops = {name: _find_class_root(top / name, splits=False) for name in names}
        return [(tops[name] / label, label, parts[name]) for name in names for label in _folders(tops[name])]
    inner = {name: image_files.list_entries(top / name)[0] for name in names}
    if any(len(set(map(part_of, folders)) - {""}) > 1 for folders in inner.values()):
        return [
            (top / label / name, label, part)
            for label in names
            for name, part in _parts(top / label, inner[label]).items()
        ]
    _check_no_unknown_splits(top, {n: () if _images_in(top / n) else inner[n] for n in names})
    return [(top / name, name, "") for name in names]


def _folders(parent: pathlib.Path) -> list[str]:
    """Names of the folders in a folder, sorted; at least one."""
    found, files = image_files.list_entries(parent)
    for name in files:
        if not pathlib.PurePath(name).suffix and os.path.islink(parent / name):
            raise UserError(
                f"{parent / name}: is a link to {os.readlink(parent / name)}, where no folder is; must lead "
                "to the folder of a class"
            )
    if not found:
        but = f" but {len(files)} files" if files else ""
        raise UserError(f"{parent}: holds no folder{but}; must hold a folder of images for every class")
    return found


def _parts(place: pathlib.Path, names: Sequence[str]) -> dict[str, str]:
    """The part that each of the folders in a place means; all of them, and none the same."""
    parts = {name: part_of(name) for name in names}
    known, others = [name for name in names if parts[name]], [name for name in names if not parts[name]]
    if not known:
        raise UserError(f"{place}: holds no splits, as other classes do; must hold train and test as well")
    if others:
        raise UserError(
            f"{place}: holds the folders {known[0]} and {others[0]}: must hold splits (train, val, test) or "
            f"classes, not both{_near_part(others[0])}; with splits=False all of them are classes"
        )
    for one, other in itertools.combinations(names, 2):
        if parts[one] == parts[other]:
            raise UserError(
                f"{place}: the folders {one} and {other} both mean {parts[one]}; must be called train, val "
                "and test; with splits=False they are classes"
            )
    return parts


def _check_no_unknown_splits(top: pathlib.Path, inner: Mapping[str, Sequence[str]]) -> None:
    """Raise UserError where what seem to be classes are likely splits of names that nobody knows.

    `inner` are the folders in each, none where it holds images itself. Splits are likely where all hold the
    same, several ones; or where two hold any and are called almost as different splits are.
    """
    likely = {name: part for name, folders in inner.items() if folders and (part := _likely_part(name))}
    named = [name for name in likely if likely[name] != next(iter(likely.values()))]
    first, *rest = inner.values()
    if rest and len(first) > 1 and all(folders == first for folders in rest):
        names, why = list(inner)[:2], f"hold the same folders ({', '.join(first[:3])})"
    elif named:
        names, why = [next(iter(likely)), named[0]], "hold folders"
    else:
        return
    raise UserError(
        f"{top}: the folders {names[0]} and {names[1]} {why}, no image: splits must be called train, val and "
        f"test{''.join(map(_near_part, names))}; with splits=False they are classes"
    )


def _check_apart(top: pathlib.Path, places: Sequence[_Place]) -> None:
    """Raise UserError where links make two folders of classes one, or lead to a folder that holds it."""
    holds = {os.path.realpath(place) for place in (top, *top.parents)}
    known: dict[str, pathlib.Path] = {}
    for place, _, _ in places:
        here = os.path.realpath(place)
        if here in holds:
            raise UserError(f"{place}: is a link to a folder that holds it; must lead to images of a class")
        if here in known:
            raise UserError(f"{place}: is the same folder as {known[here]}; must hold images of their own")
        known[here] = place


def _words(name: str) -> list[str]:
    """Those that may say which part it is."""
    words = re.findall(r"[^\W_]+", name.lower())
    words = [word[:-3] if word.endswith("set") and word[:-3] in _WORDS else word for word in words]
    return [word for word in words if word not in _FURTHER_WORDS]


def part_of(name: str) -> str:
    """The part that a folder, or an entry of a split column, means: "train", "val", "test", or "" for none.

    >>> [part_of(name) for name in ("Training Set", "test_images", "testset", "testbed", "train car")]
    ['train', 'test', 'test', '', '']
    """
    words = _words(name)
    return _WORDS.get(words[0], "") if len(words) == 1 else ""


def _likely_part(name: str) -> str:
    """The part that is meant by a name with a word or almost a word for it, or ""."""
    near = [difflib.get_close_matches(word, _WORDS, n=1, cutoff=0.75) for word in _words(name)]
    return next((_WORDS[found[0]] for found in near if found), "")


def _near_part(name: str) -> str:
    part = _likely_part(name)
    return f" (did you mean {part} by {name}?)" if part else ""


# --- tables -------------------------------------------------------------------------------------------


_MISSING = ("nan", "none", "null", "na", "n/a", "<na>")  # what programs write where they have no label
_SYNONYMS = {  # what a column is often called, beside its name
    "path": ("file", "filename", "filepath", "file_name", "image", "image_path", "img", "id"),
    "label": ("class", "category", "target", "y"),
    "group": ("groups", "subject", "patient", "source"),
}


def _inside(root: pathlib.Path, path: str | pathlib.PurePath) -> pathlib.Path:
    """The file of this path below root, also where it is written in full; never one that lies elsewhere.

    A link below root is the user's own and may lead where it wants; root itself may be written by any link.
    """
    top = os.path.normpath(root.absolute())
    written = os.path.normpath(os.path.join(top, path))
    if "\0" not in written:
        place, name = os.path.split(written)
        for base, spelt in (
            (top, written),
            (os.path.realpath(top), os.path.join(os.path.realpath(place), name)),
        ):
            if pathlib.PurePath(spelt).is_relative_to(base):
                return root / pathlib.PurePath(spelt).relative_to(base)
    raise UserError(f"{root}: {str(path)!r} leads out of this folder; must be a path to a file in it")


def _listed(root: pathlib.Path, entry: str) -> str:
    """The path below root, with slashes, of a file that a table lists.

    Blanks around the entry are none of it and backslashes are slashes, unless a file is called like that.
    """
    spellings = (entry, entry.strip(), entry.strip().replace("\\", "/"))
    places = (_inside(root, spelt) for spelt in dict.fromkeys(spellings))
    there = (place for place in places if os.path.exists(place))
    return (next(there, None) or _inside(root, spellings[-1])).relative_to(root).as_posix()


def _files_of_table(file: pathlib.Path) -> tuple[list[_File], list[str]]:
    """The image files that a table lists, sorted, and notes on them."""
    files = {}
    for where, row in _table(file, ("path", "label"), ("split", "group", "teacher")):
        path, part = _listed(file.parent, row["path"]), part_of(row.get("split", "train"))
        if not part:
            raise UserError(f"{where}: split {row['split']!r}: must be train, val or test")
        if path in files:
            raise UserError(f"{where}: {path} stands in an earlier line too; must be listed once")
        files[path] = _File(
            path,
            _normalise_label(row["label"]),
            part if "split" in row else "",
            row.get("group", ""),
            _teacher(row["teacher"], where) if "teacher" in row else ALL,
        )
    missing = [one.label for one in files.values() if one.label.lower() in _MISSING]
    notes = [f"{len(missing)} images are labelled {missing[0]!r}, a class like any other."] if missing else []
    return sorted(files.values()), notes


def _teacher(entry: str, where: str) -> int:
    if not re.fullmatch(r"-1|[0-9]{1,6}", entry):
        raise UserError(
            f"{where}: teacher {entry!r}: must be the number of a teacher, 0, 1, ..., or -1 for none"
        )
    return int(entry)


def _check_there(files: list[_File], file: pathlib.Path) -> None:
    """Raise UserError where files that a table lists are not there."""
    absent = [one.path for one in files if not os.path.exists(file.parent / one.path)]
    if absent:
        first = file.parent / absent[0]
        near = [end for end in image_files.SUFFIXES if os.path.exists(f"{first}{end}")]
        hint = f" (is it {first.name}{near[0]}?)" if near else ""
        raise UserError(
            f"{file}: {len(absent)} of {len(files)} images are not there, such as {absent[0]}{hint}; must be "
            f"paths that start at {file.parent}"
        )


def _add_groups(files: list[_File], root: pathlib.Path, file: pathlib.Path) -> list[_File]:
    """The files with the groups that a table gives them."""
    groups: dict[str, str] = {}
    for where, row in _table(file, ("path", "group"), ()):
        path = _listed(root, row["path"])
        if groups.setdefault(path, row["group"]) != row["group"]:
            raise UserError(f"{where}: {path} is in group {groups[path]} by an earlier line; must be in one")
    for image in files:
        if image.path not in groups:
            raise UserError(f"{file}: has no line for {image.path}; must give every image a group")
    return [image._replace(group=groups[image.path]) for image in files]


def _table(
    file: pathlib.Path, needed: Sequence[str], possible: Sequence[str]
) -> list[tuple[str, dict[str, str]]]:
    """Where each line is, and the columns of it that are read, none of them empty.

    Blanks around an entry are none of it, unless it is a path, which may have some.
    """
    columns, lines = tables.read(file, needed)
    _check_columns(file, columns, needed, possible)
    if not lines:
        raise UserError(f"{file}: lists no image; must have a line for each")
    read = [name for name in (*needed, *possible) if name in columns]
    rows = []
    for _, where, line in lines:
        row = {
            name: entry if name == "path" else entry.strip()
            for name, entry in zip(columns, line)
            if name in read
        }
        if empty := [name for name in read if not row.get(name, "").strip()]:
            raise UserError(
                f"{where}: must have an entry in each of the columns {', '.join(read)}, {empty[0]} is empty"
            )
        rows.append((where, row))
    return rows


def _check_columns(
    file: pathlib.Path, columns: list[str], needed: Sequence[str], possible: Sequence[str]
) -> None:
    twice = [name for name in (*needed, *possible) if columns.count(name) > 1]
    if twice:
        raise UserError(f"{file}: has two columns {twice[0]}; must have one of each name")
    for name in needed:
        if name not in columns:
            known = (name, *_SYNONYMS[name])
            near = [one for one in columns if difflib.get_close_matches(one.lower(), known, n=1, cutoff=0.75)]
            hint = f" (is it {near[0]}?)" if near else ""
            parted = "" if len(columns) > 1 else ", between commas, tabs, semicolons or bars"
            raise UserError(
                f"{file}: has no column {name}, but {shorten(columns)}{hint}; the first line must name the "
                f"columns, with {' and '.join(needed)}{parted}"
            )


# --- which part ---------------------------------------------------------------------------------------


def assign_parts(
    files: list[Any], where: pathlib.Path, test_fraction: float, test_from: str, seed: int
) -> tuple[list[Any], tuple[str, ...]]:
    """The files with the parts they were published in, or that are drawn here, and notes on the latter.

    They may be rows of any kind that has a label, a part and a group as `_File` has.
    """
    if not 0 < test_fraction <= 0.5:
        raise UserError(f"test_fraction = {test_fraction}: must lie above 0 and be at most 0.5")
    if test_from not in ("", "val", "train"):
        raise UserError(f"test_from = {test_from!r}: must be val or train, or '' where there is a test set")
    if not files[0].part:
        told = tell_drawn(test_fraction, "all examples")
        return _with_drawn_test(files, where, test_fraction, seed), (told,)
    files, notes = _add_test_set(files, where, test_fraction, test_from, seed)
    classes = {part: {file.label for file in files if file.part == part} for part in ("train", "val", "test")}
    for part, labels in classes.items():
        if part != "val" and not labels:
            raise UserError(f"{where}: has splits, but none is {part}; must have train and test")
        if labels and (differ := sorted(labels ^ classes["train"])):
            inside, outside = ("train", part) if differ[0] in classes["train"] else (part, "train")
            near = [name for name in classes[outside] if name.lower() == differ[0].lower()]
            hint = f", which has {near[0]}" if near else ""
            raise UserError(
                f"{where}: class {differ[0]} is in {inside} and not in {outside}{hint}; "
                "must be in every split"
            )
    return files, notes


def _add_test_set(
    files: list[_File], where: pathlib.Path, test_fraction: float, test_from: str, seed: int
) -> tuple[list[_File], tuple[str, ...]]:
    """Published splits with a test set, which is made where there is none, and what was done."""
    parts = {file.part for file in files}
    if "test" in parts and test_from:
        raise UserError(f"{where}: has a test set; test_from = {test_from!r} must be ''")
    if "test" in parts or "train" not in parts:
        return files, ()
    if test_from == "val" and "val" in parts:
        renamed = [file._replace(part="test" if file.part == "val" else file.part) for file in files]
        return renamed, ("The split val is what is tested on (test_from): validation is cut from training.",)
    if test_from == "train":
        train = [file for file in files if file.part == "train"]
        drawn = _with_drawn_test(train, where, test_fraction, seed)
        note = tell_drawn(test_fraction, "the split train (test_from)")
        return sorted([*drawn, *(file for file in files if file.part == "val")]), (note,)
    either = "test_from='val' to test on val, or " if "val" in parts else ""
    raise UserError(f"{where}: has no split test; say {either}test_from='train' to draw one from train")


def _with_drawn_test(files: list[_File], where: pathlib.Path, test_fraction: float, seed: int) -> list[_File]:
    drawn = set(_drawn_test(files, where, test_fraction, seed))
    return [file._replace(part="test" if n in drawn else "train") for n, file in enumerate(files)]


def _drawn_test(files: list[_File], where: pathlib.Path, test_fraction: float, seed: int) -> Sequence[int]:
    """Rows of the test set: of every class in proportion, and of whole groups where there are any."""
    from sklearn.model_selection import train_test_split

    labels, groups = [file.label for file in files], [file.group for file in files]
    try:
        if any(groups):
            return part_of_groups(labels, groups, test_fraction, seed).tolist()
        if alone := [name for name, number in collections.Counter(labels).items() if number == 1]:
            raise ValueError(
                f"{len(alone)} of {len(set(labels))} classes have one example, such as {alone[0]}"
            )
        rows = range(len(files))
        return train_test_split(rows, test_size=test_fraction, stratify=labels, random_state=seed)[1]
    except ValueError as error:
        raise UserError(
            f"{where}: test_fraction = {test_fraction}: no test set can be drawn ({first_line(error)}); "
            "must be larger, or every class must have more examples or groups"
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
    size = image_files.check_size(image_size, channels)
    if stream not in ("auto", "always", "never"):
        raise UserError(f"stream = {stream!r}: must be auto, always or never")
    image_files.resizer_of(fit)
    return _Reading(None if size == (0, 0) else size, channels, fit, skip_corrupt, stream)


def _dataset(
    name: str, files: list[_File], root: pathlib.Path, reading: _Reading, notes: Sequence[str]
) -> DataSet:
    """The data of these files; all of them have a part, and all or none a group."""
    shape = _common_shape(files, root, reading)
    num_bytes = len(files) * int(np.prod(shape))
    held = {"never": True, "always": False, "auto": num_bytes <= streams.MOST_HELD}[reading.stream]
    labels, groups = (_numbers(names) for names in zip(*((f.label, f.group) for f in files)))
    fields: dict[str, Any] = {}
    errors, sound = [], {}
    for part, parts in (("train", ("train", "val")), ("test", ("test",))):
        members = [f for f in files if f.part in parts]
        images, found = _read([str(root / f.path) for f in members], shape, reading, held)
        errors += [error for error in found if error is not None]
        sound[part] = [f for f, error in zip(members, found) if error is None]
        fields[f"{part}_images"] = images
        fields[f"{part}_labels"] = np.array([labels[f.label] for f in sound[part]], np.int32)
        if "" not in groups:
            fields[f"{part}_groups"] = np.array([groups[f.group] for f in sound[part]], np.int32)
        fields[f"{part}_names"] = tuple(f.path for f in sound[part])
    if any(f.teacher != ALL for f in sound["train"]):
        fields["train_teachers"] = np.array([f.teacher for f in sound["train"]], np.int32)
    val_rows = np.flatnonzero([f.part == "val" for f in sound["train"]])
    left_out = (
        [f"{len(errors)} of {len(files)} images were left out, the first: {errors[0]}"] if errors else []
    )
    return check(
        DataSet(
            name=name,
            class_names=tuple(labels),
            val_rows=val_rows if len(val_rows) else None,
            notes=(*map(printable, notes), *left_out),
            fit=reading.fit,
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
    found = _map_or_error(lambda file: image_files.shape_of(root / file.path), files, reading.skip_corrupt)
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
    images = np.empty((len(paths) if held else 0, *shape), np.uint8)

    def decode(row: int) -> bytes:
        image = image_files.read(paths[row], shape=shape, fit=reading.fit)
        if held:
            images[row] = image
        return streams.digest(image)

    found = _map_or_error(decode, range(len(paths)), reading.skip_corrupt)
    errors = [result if isinstance(result, UserError) else None for result in found]
    sound = [row for row, error in enumerate(errors) if error is None]
    if held:
        return images if len(sound) == len(paths) else images[sound], errors

    def read(row: int) -> np.ndarray:
        return image_files.read(paths[sound[row]], shape=shape, fit=reading.fit)

    digests = (found[row] for row in sound)
    return streams.OneByOne(read, (len(sound), *shape), np.uint8, digests), errors


def _map_or_error(work: Callable[[Any], Any], things: Sequence, skip_corrupt: bool) -> list:
    """`work` of every thing; with `skip_corrupt` the `UserError` stands in the place of what failed."""

    def attempt(thing: Any) -> Any:
        try:
            return work(thing)
        except UserError as error:
            if skip_corrupt:
                return error
            raise UserError(f"{error}; skip_corrupt=True leaves such files out") from error

    return list(streams.in_threads(attempt, things))
