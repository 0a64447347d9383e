"""Tables as text: a first line of names, and lines of entries between commas, tabs, semicolons or bars."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtkd_jax.data.checks import first_line, open_file
from mtkd_jax.system.spelling import hint
from mtkd_jax.types import UserError

MISSING = ("", "?", "nan", "na", "n/a", "<na>", "none", "null")  # how programs write that there is no value

LARGEST = float(np.finfo(np.float32).max)


class Line(NamedTuple):
    """A line of a table."""

    number: int
    where: str  # the file and the number, for whoever has to mend it
    entries: list[str]


def read(file: Path, needed: Sequence[str] = ()) -> tuple[list[str], list[Line]]:
    """The names of the columns, without blanks around them, and all lines that are not empty.

    Which sign separates the columns is told by the first line. Raises UserError naming file and line for
    what cannot be read, and for lines with more entries than there are columns.
    """
    try:
        with open_file(file, encoding="utf-8-sig", newline="") as stream:
            head = stream.readline()
            if "\0" in head:
                raise ValueError("it holds zeros, as UTF-16 does")
            stream.seek(0)
            reader = csv.reader(
                stream, delimiter=_delimiter(head, needed), skipinitialspace=True, strict=True
            )
            columns = [name.strip() for name in next(reader, [])]
            lines = [
                Line(reader.line_num, f"{file}: line {reader.line_num}", entries)
                for entries in reader
                if any(map(str.strip, entries))
            ]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{file}: cannot be read ({first_line(error)}); must be a table in UTF-8, all quotes closed"
        ) from error
    for line in lines:
        if any(map(str.strip, line.entries[len(columns) :])):
            raise UserError(
                f"{line.where}: has {len(line.entries)} entries for {len(columns)} columns; must have as many"
            )
    return columns, lines


def _delimiter(head: str, needed: Sequence[str]) -> str:
    """Comma, tab, semicolon or bar: what makes the needed columns of the first line, else the commonest."""

    def columns(sign: str) -> set[str]:
        return {name.strip().strip('"') for name in head.split(sign)}

    return max(",\t;|", key=lambda sign: (len(columns(sign) & {*needed}), head.count(sign)))


# --- numbers ------------------------------------------------------------------------------------------


def places_of(names: Sequence[str], columns: Sequence[str], file: Path | str) -> list[int]:
    """Where the named columns stand; UserError for one that is not there, or there twice."""
    for name in names:
        if name not in columns:
            raise UserError(f"{file}: has no column {name!r}{hint(name, columns)}")
        if columns.count(name) > 1:
            raise UserError(f"{file}: has two columns {name!r}; must have one of each name")
    return [columns.index(name) for name in names]


def numbers(line: Line, names: Sequence[str], places: Sequence[int]) -> np.ndarray:
    """The entries of the columns `names`, at these places of a line, [D] float64.

    Raises UserError naming the line and the column for what is missing and for what is no finite number, or
    none in float32.
    """
    _, where, entries = line
    values = np.empty(len(places))
    for n, (name, place) in enumerate(zip(names, places)):
        text = entries[place].strip() if place < len(entries) else ""
        if text.lower() in MISSING:
            raise UserError(f"{where}: {name} is missing; must be a number in every line")
        try:
            if "_" in text:  # float() reads digits grouped by underscores, as Python's own source has them
                raise ValueError
            values[n] = float(text)
        except ValueError:
            raise UserError(f"{where}: {name} is {text!r}; must be a number in every line") from None
        if not abs(values[n]) <= LARGEST:
            raise UserError(f"{where}: {name} is {text}; must be a finite number that float32 can hold")
    return values


def readers(file: Path, names: Sequence[str]) -> list[tuple[int, Callable[[], np.ndarray]]]:
    """The number of every line of a table, and a function for its columns `names`, [1,1,D] float32.

    Other columns are not read. The functions raise as `numbers` does. Raises UserError for a table that
    cannot be read, has no line, or lacks one of these columns.
    """
    columns, lines = read(file, names)
    places = places_of(names, columns, file)
    if not lines:
        raise UserError(f"{file}: has no line under its names; must have one for each row")

    def values(line: Line) -> np.ndarray:
        return numbers(line, names, places).astype(np.float32)[None, None]

    return [(line.number, partial(values, line)) for line in lines]
