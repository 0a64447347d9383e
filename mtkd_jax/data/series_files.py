"""Files of series as text, in the forms of the UCR and UEA archives: see `data.sources.series.ucr`."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from mtkd_jax.data.checks import first_line, open_file
from mtkd_jax.types import UserError

ENDINGS = (".tsv", ".ts", ".arff")
Row = tuple[int, list[list[str]], str]  # number of the line, values of each channel, class
Series = tuple[str, list[np.ndarray], str]  # where it stands, values of each channel (NaN: missing), class


def read(file: pathlib.Path) -> list[Series]:
    """All series of a .tsv, .ts or .arff file; UserError naming file and line for what is none."""
    return [_parsed(file, row) for row in _rows(file)]


def _rows(file: pathlib.Path) -> list[Row]:
    rows = {".tsv": _tsv_rows, ".ts": _ts_rows, ".arff": _arff_rows}[file.suffix]
    try:
        with open_file(file, encoding="utf-8-sig") as lines:
            filled = (
                (n, line.rstrip("\r\n"))
                for n, line in enumerate(lines, start=1)
                if line.strip() and not line.startswith(("#", "%"))
            )
            return list(rows(file, filled))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: cannot be read ({first_line(error)}); must be a text file of series"
        ) from error


def _tsv_rows(file: pathlib.Path, lines: Iterator[tuple[int, str]]) -> Iterator[Row]:
    for number, line in lines:
        class_name, *values = line.split("\t")
        if not values:
            raise UserError(f"{file}, line {number}: no tab: must be the class and the values, between tabs")
        yield number, [values], class_name


def _ts_rows(file: pathlib.Path, lines: Iterator[tuple[int, str]]) -> Iterator[Row]:
    """The rows after the header, which must promise no times; where it promises no classes, of class ""."""
    said = {}
    for _, line in lines:
        key, *values = line.lower().split()
        if key == "@data":
            break
        said[key] = values
    else:
        raise UserError(f"{file}: no line @data: must stand between the header and the series")
    if said.get("@timestamps", ["false"])[:1] != ["false"]:
        raise UserError(f"{file}: @timeStamps true: must be series with even steps, without times")
    has_classes = said.get("@classlabel", [])[:1] == ["true"]
    for number, line in lines:
        *channels, class_name = line.split(":") if has_classes else (*line.split(":"), "")
        yield number, [channel.split(",") for channel in channels], class_name


def _arff_rows(file: pathlib.Path, lines: Iterator[tuple[int, str]]) -> Iterator[Row]:
    """The rows after @data; of several channels they stand in quotes, parted by a backslash and an n."""
    last = ""
    for _, line in lines:
        if line.strip().lower() == "@data":
            break
        if line.strip().lower().startswith("@attribute"):
            last = line
    else:
        raise UserError(f"{file}: no line @data: must stand between the header and the series")
    if "{" not in last:
        raise UserError(f"{file}: the last attribute has no values in braces: must be the class")
    for number, line in lines:
        [(values, class_name)] = _ARFF_ROW.findall(line)
        if values.startswith("{"):
            raise UserError(f"{file}, line {number}: a sparse row: must hold all values")
        channels = values.strip().strip("'\"").split("\\n")
        yield number, [channel.split(",") for channel in channels], class_name.strip().strip("'\"")


# Values, and a class after a comma; in the whole of a line, once.
_ARFF_ROW = re.compile(r"""\A(.*?),?(\s*'[^']*'\s*|\s*"[^"]*"\s*|[^,]*)\Z""")


def _parsed(file: pathlib.Path, row: Row) -> Series:
    """A row's values as numbers, and its class."""
    (where, values), (*_, class_name) = _numbers(file, row), row
    if class_name.strip().lower() in ("", "?", "nan"):
        raise UserError(
            f"{where}: no class: must name the class of the series, in a .ts file below @classLabel true"
        )
    return where, values, class_name.strip()


def _numbers(file: pathlib.Path, row: Row) -> tuple[str, list[np.ndarray]]:
    """Where a row stands, and the values of each of its channels."""
    number, channels, _ = row
    where = f"{file}, line {number}"
    try:
        return where, [np.array([_spell_missing(one) for one in channel], np.float64) for channel in channels]
    except ValueError as error:
        raise UserError(f"{where}: {first_line(error)}; must be values and a class") from error


def readers(file: pathlib.Path, shape: tuple[int, int, int]) -> list[tuple[int, Callable[[], np.ndarray]]]:
    """The number of every line of a .tsv, .ts or .arff file, and a function for its series, float32 `shape`.

    What stands for the class is not read. The functions raise UserError for a series that is not [T,1,C] of
    that shape, or in which values are missing. Raises UserError for a file that cannot be read.
    """
    if file.suffix not in ENDINGS:
        raise UserError(f"{file}: must be a file of series that ends in {', '.join(ENDINGS)}")
    return [(row[0], partial(_given, file, row, shape)) for row in _rows(file)]


def _given(file: pathlib.Path, row: Row, shape: tuple[int, int, int]) -> np.ndarray:
    where, values = _numbers(file, row)
    steps, _, num_channels = shape
    lengths = tuple(map(len, values))
    if lengths != (steps,) * num_channels:
        raise UserError(
            f"{where}: channels of {lengths} values; must be {num_channels} of {steps}, as in training"
        )
    found = np.stack(values, axis=-1).astype(np.float32)[:, None]
    if missing := np.count_nonzero(~np.isfinite(found)):
        raise UserError(f"{where}: {missing} values are missing or infinite; must all be there")
    return found


def _spell_missing(value: str) -> str:
    return "nan" if value.strip() in ("", "?") else value
