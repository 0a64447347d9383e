"""Tables of numbers: a row of D columns is an image [1,1,D], each of whose channels is normalised alone."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import NamedTuple

import numpy as np

from mtkd_jax.data import tables
from mtkd_jax.data.assembly import assemble
from mtkd_jax.data.checks import check
from mtkd_jax.data.sources.folders import assign_parts, part_of
from mtkd_jax.data.sources.series import encode_classes
from mtkd_jax.types import DataSet, UserError


def table(
    *,
    path: str,
    label: str = "label",
    split: str = "split",
    group: str = "group",
    drop: tuple[str, ...] = (),
    test_fraction: float = 0.2,
    test_from: str = "",
    seed: int = 0,
) -> DataSet:
    """A table of numbers as text: a line a row, of which the column `label` says the class.

    The first line names the columns, which are separated by commas, tabs, semicolons or bars. All of them
    are features, in float32, but for the label, those of `drop`, and `split` and `group` where there are
    such. Classes are in sorted order, by value where all of them are numbers. Splits are train, val and
    test; without them `test_fraction` of every class, or of whole groups, is the test set, drawn with `seed`,
    and `test_from` is as in `folder`. Raises `UserError` naming file, line and column for what is missing or
    no number, for columns that are not there, and for classes that are not in training.
    """
    file = pathlib.Path(os.path.expanduser(path))
    if not path or not os.path.isfile(file):
        raise UserError(f"data.path = {path!r}: no such file; must be a table with the column {label}")
    if not (isinstance(drop, tuple) and all(isinstance(name, str) for name in drop)):
        raise UserError(f"table: drop = {drop!r}: must be a tuple of columns, such as ('id',)")
    columns, lines = tables.read(file, (label,))
    tables.places_of((label, *drop), columns, file)
    if "" in columns and "" not in drop:
        alone = columns.count("") == 1
        further = ", or drop=('',) leaves it out, as the row numbers that pandas writes" if alone else ""
        raise UserError(f"{file}: column {columns.index('') + 1} has no name; must have one{further}")
    names = [name for name in columns if name not in (label, split, group, *drop)]
    places = tables.places_of(names, columns, file)
    if not names or not lines:
        lacks = "a line for each row" if names else "a column of numbers beside its labels"
        raise UserError(f"{file}: must have {lacks}")
    values = _numbers(lines, names, places)
    roles = {name: columns.index(name) for name in (label, split, group) if name in columns}
    rows = [_row(n, line, roles, (label, split, group)) for n, line in enumerate(lines)]
    classes, (codes,) = encode_classes(np.array([row.label for row in rows], str))
    rows = [row._replace(label=classes[code]) for row, code in zip(rows, codes)]  # 1.0 and 1 are one
    rows, notes = assign_parts(rows, file, test_fraction, test_from, seed)
    arrays = _arrays(rows, values, classes)
    found = assemble(arrays, name=file.stem, where=path, layout="NHWC", column_names=tuple(names))
    return dataclasses.replace(found, notes=(*notes, *found.notes))


class _Row(NamedTuple):
    """What is said of a row beside its numbers."""

    number: int
    label: str
    part: str  # "train" | "val" | "test", or "" where the test set is still to be drawn
    group: str


def _numbers(lines: list[tables.Line], names: list[str], places: list[int]) -> np.ndarray:
    """[N,D] float64; UserError that tells the first line that has none, and how many there are."""
    found, wrong = [], []
    for line in lines:
        try:
            found.append(tables.numbers(line, names, places))
        except UserError as error:
            wrong.append(error)
    if wrong:
        others = f" ({len(wrong)} of {len(lines)} lines are wrong)" if len(wrong) > 1 else ""
        raise UserError(f"{wrong[0]}{others}; drop=('NAME',) leaves a column out")
    return np.array(found)


def _row(number: int, line: tables.Line, roles: dict[str, int], named: tuple[str, str, str]) -> _Row:
    _, where, entries = line
    said = {name: entries[place].strip() if place < len(entries) else "" for name, place in roles.items()}
    if empty := [name for name, entry in said.items() if entry.lower() in tables.MISSING]:
        raise UserError(f"{where}: {empty[0]} is missing; must be there in every line")
    label, split, group = named
    if split in said and not part_of(said[split]):
        raise UserError(f"{where}: {split} is {said[split]!r}; must be train, val or test")
    return _Row(number, said[label], part_of(said[split]) if split in said else "", said.get(group, ""))


def _arrays(rows: list[_Row], values: np.ndarray, classes: tuple[str, ...]) -> dict[str, np.ndarray]:
    """What `assemble` takes, of rows that all have a part."""
    parts = {part: [row for row in rows if row.part == part] for part in ("train", "val", "test")}
    parts = {part: own for part, own in parts.items() if own or part != "val"}
    arrays = {"class_names": np.array(classes)}
    for part, own in parts.items():
        arrays[f"{part}_labels"] = np.array([classes.index(row.label) for row in own])
        arrays[f"{part}_images"] = values[[row.number for row in own]][:, None, None]
        if any(row.group for row in rows):
            arrays[f"{part}_groups"] = np.array([row.group for row in own], str)
    return arrays


# --- sets that scikit-learn brings along --------------------------------------------------------------


def breast_cancer() -> DataSet:
    """Breast cancer of Wisconsin: 569 rows of 30 columns measured on nuclei of cells, in two classes.

    A stratified 20 % are the test set, as in `digits`. Source: Street, Wolberg and Mangasarian 1993, in
    scikit-learn.
    """
    return _of_scikit_learn("breast_cancer")


def wine() -> DataSet:
    """Wines of three cultivars by chemical analysis: 178 rows of 13 columns, in three classes.

    A stratified 20 % are the test set, as in `digits`. Source: Aeberhard and Forina 1992, in scikit-learn.
    """
    return _of_scikit_learn("wine")


def iris() -> DataSet:
    """Irises of three species by the size of their leaves: 150 rows of 4 columns, in three classes.

    A stratified 20 % are the test set, as in `digits`. Source: Fisher 1936, in scikit-learn.
    """
    return _of_scikit_learn("iris")


def _of_scikit_learn(name: str) -> DataSet:
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    bunch = getattr(datasets, f"load_{name}")()
    rows = bunch.data.astype(np.float32)[:, None, None]
    train, test = train_test_split(np.arange(len(rows)), test_size=0.2, stratify=bunch.target, random_state=0)
    return check(
        DataSet(
            name=name,
            train_images=rows[train],
            train_labels=bunch.target[train],
            test_images=rows[test],
            test_labels=bunch.target[test],
            class_names=tuple(map(str, bunch.target_names)),
            column_names=tuple(map(str, bunch.feature_names)),
        ),
        where=name,
    )
