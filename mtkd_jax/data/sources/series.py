"""Time series, of the UCR and UEA archives or made up: T steps of C channels are an image [T,1,C]."""

from __future__ import annotations

import dataclasses
import difflib
import os
import pathlib
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtkd_jax.data import series_files
from mtkd_jax.data.checks import as_vector, check
from mtkd_jax.data.series_files import Series
from mtkd_jax.data.sources.arrays import read_npz
from mtkd_jax.types import DataSet, UserError


def ucr(*, path: str, name: str = "", pad: str = "") -> DataSet:
    """A time-series set of the UCR or UEA archive as float32 images [T,1,C], the values as they are.

    `path` is a folder, of one set or of folders of sets, with NAME_TRAIN.tsv and NAME_TEST.tsv (the class and
    T values, between tabs), or .ts (lines with @, then the channels between colons, each T values between
    commas, and the class), or .arff (the values and the class between commas; several channels in quotes,
    with a backslash and an n between them); where several are, the first of these is read. Or it is an .npz
    archive with NAME/train_x [N,T,C], NAME/train_y [N], NAME/test_x and NAME/test_y, and the names of classes
    0..C-1 in NAME/classes if they have any. `name` says which set, where there are several. Series of unequal
    length, also those whose last values are missing, are filled up to the longest as `pad` says: "zeros", or
    "last", the last value. Classes are in sorted order, by value where all of them are numbers. Raises
    `UserError` naming file and line where values are missing, series are not of one length, or times stand
    beside the values. Sources: Dau et al. 2019, arXiv 1810.07758 (UCR); Bagnall et al. 2018, arXiv 1811.00075
    (UEA).
    """
    place = pathlib.Path(os.path.expanduser(path))
    if not path or not os.path.exists(place):
        raise UserError(
            f"data.path = {path!r}: no such file or folder; must be a folder of series or an .npz archive"
        )
    if pad not in ("", "zeros", "last"):
        raise UserError(f"ucr: pad = {pad!r}: must be zeros or last, or '' for series of one length")
    if place.suffix.lower() in (*series_files.ENDINGS, ".txt") and place.is_file():
        raise UserError(f"data.path = {path!r}: is one file; must be the folder of NAME_TRAIN and NAME_TEST")
    name, parts = _from_folder(place, name) if place.is_dir() else _from_archive(path, name)
    train, test = (_stacked(*part) for part in (_padded(parts, pad) if pad else parts))
    steps = {part: values.shape[1] for part, (values, _) in (("train", train), ("test", test))}
    if steps["train"] != steps["test"]:
        raise UserError(
            f"{path}: {name}: series of {steps['train']} steps in train and {steps['test']} in test: must be "
            f"one length; {_PADS}"
        )
    class_names, (train_labels, test_labels) = encode_classes(train.classes, test.classes)
    return check(
        DataSet(
            name=name,
            train_images=train.values[:, :, None],
            train_labels=train_labels,
            test_images=test.values[:, :, None],
            test_labels=test_labels,
            class_names=class_names,
        ),
        where=f"{path}: {name}",
    )


def frames(*, path: str, name: str = "") -> DataSet:
    """A set of the UCR or UEA archive as in `ucr`, every frame of whose series has the class of the series.

    Labels are [N,T]: networks with `frames=True` say a class for each step of a recording, as acoustic models
    do. Series must be of one length. Source: Kudo, Toyama and Shimbo 1999, of JapaneseVowels: two vowels by
    nine speakers, twelve LPC cepstra a frame.
    """
    return _label_frames(ucr(path=path, name=name))


def synthetic_series(
    *,
    num_train: int = 90,
    num_test: int = 90,
    steps: int = 128,
    noise: float = 1.0,
    seed: int = 0,
    frames: bool = False,
) -> DataSet:
    r"""Made-up series of one channel: cylinders, bells and funnels.

    With an onset $a$, an end $b$ and a height $6 + \eta$, $\eta \sim N(0, 1)$, drawn for each series, a
    cylinder is $6 + \eta$ for $a \le t \le b$, a bell rises there as $(6 + \eta)(t - a)/(b - a)$, and a
    funnel falls as $(6 + \eta)(b - t)/(b - a)$; all are 0 elsewhere. $a$ is uniform in $[T/8, T/4]$ and
    $b - a$ in $[T/4, 3T/4]$, whole steps of 1..T. `noise` is the standard deviation of what is added to every
    step. Classes come in turn. With `frames` every step has the class of its series, as in the source of that
    name. Source: Saito 1994 (PhD thesis, Yale), whose series have 128 steps and noise 1. Raises `UserError`
    for fewer than 8 steps and for noise below 0.
    """
    if steps < 8 or noise < 0:
        raise UserError(f"synthetic_series: steps = {steps}, noise = {noise}: must be >= 8, and >= 0")
    rng = np.random.default_rng(seed)
    step = np.arange(1, steps + 1)

    def draw(number: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(number) % 3
        onset = rng.integers(steps // 8, steps // 4, (number, 1), endpoint=True)
        length = rng.integers(steps // 4, 3 * steps // 4, (number, 1), endpoint=True)
        height = 6 + rng.standard_normal((number, 1))
        risen = (step - onset) / length  # 0 at the onset, 1 at the end
        shapes = np.stack([np.ones_like(risen), risen, 1 - risen])[labels, np.arange(number)]
        clean = np.where((risen >= 0) & (risen <= 1), height * shapes, 0)
        return (clean + noise * rng.standard_normal(clean.shape))[:, :, None, None], labels

    (train, train_labels), (test, test_labels) = draw(num_train), draw(num_test)
    found = check(
        DataSet(
            name="synthetic_series",
            train_images=train,
            train_labels=train_labels,
            test_images=test,
            test_labels=test_labels,
            class_names=("cylinder", "bell", "funnel"),
        ),
        where="synthetic_series",
    )
    return _label_frames(found) if frames else found


def _label_frames(series: DataSet) -> DataSet:
    """The same with labels [N,T]: every frame has the class of its series."""
    labels: dict[str, Any] = {
        f"{part}_labels": np.repeat(getattr(series, f"{part}_labels")[:, None], images.shape[1], axis=1)
        for part, images in (("train", series.train_images), ("test", series.test_images))
    }
    return check(dataclasses.replace(series, task="frames", notes=(), **labels), where=series.name)


_PADS = "pad='zeros' or pad='last' fills up shorter ones"


class _Part(NamedTuple):
    """The series of one part of a set, and what the file calls their classes."""

    values: np.ndarray  # [N,T,C]
    classes: np.ndarray  # [N] text


Read = tuple[str, list[Series]]  # a file or array, and the series in it


def encode_classes(*parts: np.ndarray) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Names of the classes, sorted, and the classes [N] text of every part as 0..C-1.

    >>> encode_classes(np.array(["10", "9.0"]), np.array(["9"]))
    (('9', '10'), [array([1, 0]), array([0])])
    """
    classes = np.concatenate(parts)
    try:
        numbers = classes.astype(np.float64)
    except ValueError:
        texts, codes = np.unique(classes, return_inverse=True)
        names = tuple(map(str, texts))
    else:
        values, codes = np.unique(numbers, return_inverse=True)
        names = tuple(f"{value:.15g}" for value in values)  # "1.0000000e+00", as some files have it, is 1
    return names, np.split(codes, np.cumsum([len(part) for part in parts])[:-1])


def _chosen(name: str, known: Collection[str], where: str) -> str:
    """The set that is asked for, or the only one there is."""
    if not known:
        raise UserError(f"{where}: no set; must hold NAME_TRAIN.tsv, .ts or .arff, or arrays NAME/train_x")
    if name in known:
        return name
    if not name and len(known) == 1:
        return next(iter(known))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"must be one of {', '.join(sorted(known))}"
    raise UserError(f"{where}: ucr: name = {name!r}: {hint}")


# --- text files ---------------------------------------------------------------------------------------


def _from_folder(folder: pathlib.Path, name: str) -> tuple[str, list[Read]]:
    """The name of the set, and its two parts."""
    found: dict[str, pathlib.Path] = {}
    for ending in series_files.ENDINGS:
        for file in sorted([*folder.glob(f"*_TRAIN{ending}"), *folder.glob(f"*/*_TRAIN{ending}")]):
            found.setdefault(file.name.removesuffix(f"_TRAIN{ending}"), file)
    others = [] if found else sorted(file.name for file in folder.glob("*[Tt][Rr][Aa][Ii][Nn]*"))
    name = _chosen(name, found, f"{folder}{f', which holds {others[0]}' if others else ''}")
    files = found[name], found[name].with_name(f"{name}_TEST{found[name].suffix}")
    return name, [(str(file), series_files.read(file)) for file in files]


def _padded(parts: Sequence[Read], pad: str) -> list[Read]:
    """All series filled up to the longest of all parts, after the last value that is not missing."""
    ended = [
        (
            file,
            [(where, _trim_missing(channels, where), class_name) for where, channels, class_name in series],
        )
        for file, series in parts
    ]
    lengths = [len(channel) for _, series in ended for _, channels, _ in series for channel in channels]
    longest = max(lengths, default=0)
    return [
        (file, [(where, [_filled(one, longest, pad) for one in own], name) for where, own, name in series])
        for file, series in ended
    ]


def _trim_missing(channels: list[np.ndarray], where: str) -> list[np.ndarray]:
    """The channels without the values that are missing at their ends."""
    ended = [channel[: np.flatnonzero(~np.isnan(channel)).max(initial=-1) + 1] for channel in channels]
    if not all(map(len, ended)):
        raise UserError(f"{where}: a channel without a value: must have one at least to be filled up")
    return ended


def _filled(channel: np.ndarray, length: int, pad: str) -> np.ndarray:
    end = channel[-1] if pad == "last" else 0.0
    return np.concatenate([channel, np.full(length - len(channel), end)])


def _stacked(file: str, rows: Sequence[Series]) -> _Part:
    """All series of a file; each must be as long as the first and have as many channels."""
    if not rows:
        raise UserError(f"{file}: holds no series: must hold one a line")
    first = None
    for where, values, _ in rows:
        lengths = tuple(map(len, values))
        first = first or lengths[:1] * len(lengths)
        if missing := sum(np.count_nonzero(np.isnan(channel)) for channel in values):
            raise UserError(
                f"{where}: {missing} values are missing: must all be there, or at the end with pad='zeros'"
            )
        if len(lengths) != len(first):
            raise UserError(f"{where}: {len(lengths)} channels: must be as many as before, {len(first)}")
        if lengths != first or not any(lengths):
            raise UserError(
                f"{where}: channels of {lengths} values: must be one length in all series, here {first}; "
                f"{_PADS}"
            )
    stacked = np.array([values for _, values, _ in rows]).transpose(0, 2, 1)
    return _Part(stacked, np.array([class_name for *_, class_name in rows]))


# --- NumPy archives -----------------------------------------------------------------------------------


def _from_archive(path: str, name: str) -> tuple[str, list[Read]]:
    """The name of the set, and its two parts."""
    _, there = read_npz(path, ())
    known = {array.removesuffix("/train_x") for array in there if array.endswith("/train_x")}
    name = _chosen(name, known, path)
    wanted = [f"{name}/{part}_{axis}" for part in ("train", "test") for axis in "xy"]
    arrays, _ = read_npz(path, {*wanted, f"{name}/classes"})
    for array in wanted:
        if array not in arrays:
            raise UserError(f"{path}: no array {array}: must hold {', '.join(wanted)}")
    names = arrays.get(f"{name}/classes")
    return name, [
        _series_of(path, x, _values(arrays[x], x, path), _named(arrays[y], names, y, path))
        for x, y in (wanted[:2], wanted[2:])
    ]


def _series_of(path: str, array: str, values: np.ndarray, classes: np.ndarray) -> Read:
    """[N,T,C] and [N] as series one by one."""
    if len(values) != len(classes):
        raise UserError(f"{path}: {array}: {len(values)} series and {len(classes)} classes: must be as many")
    rows = enumerate(zip(values, classes.tolist()))
    return path, [(f"{path}: {array}[{n}]", list(series.T), class_name) for n, (series, class_name) in rows]


def _values(array: np.ndarray, name: str, path: str) -> np.ndarray:
    if array.ndim != 3 or array.dtype.kind not in "fiu":
        raise UserError(f"{path}: {name}: {array.dtype} {array.shape}: must be numbers [N,T,C]")
    return array if array.dtype.kind == "f" else array.astype(np.float32)


def _named(labels: np.ndarray, names: np.ndarray | None, array: str, path: str) -> np.ndarray:
    """The labels as text [N]; where the archive names classes 0..C-1, by these names."""
    labels = as_vector(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "fiuU":
        raise UserError(
            f"{path}: {array}: {labels.dtype} {labels.shape}: must be one class a series, [N] numbers or text"
        )
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise UserError(f"{path}: {array}: {np.count_nonzero(np.isnan(labels))} are NaN: must name the class")
    if names is None:
        return labels.astype(str)
    in_range = labels.dtype.kind in "iu" and (
        labels.size == 0 or 0 <= labels.min() <= labels.max() < names.size
    )
    if names.ndim != 1 or not in_range:
        raise UserError(f"{path}: {array}: must be whole numbers 0..C-1, with C = {names.size} classes")
    return names[labels].astype(str)
