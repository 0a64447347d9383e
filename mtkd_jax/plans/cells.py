"""The cells of a sweep: one configuration for each combination of the values of some fields.

Where cells differ in what teachers do not depend on, teachers are trained once, in a folder of their own, and
lent to the cells (`teachers.from_run`). Whether that is done depends on which fields are swept and not on
their values, so that a cell stays the run that it was when values are added.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mtkd_jax import config as configuration
from mtkd_jax import settings
from mtkd_jax.plans import lending
from mtkd_jax.runs.workdir import TRAINS_NOTHING
from mtkd_jax.system.text import slug
from mtkd_jax.types import UserError

Over = Mapping[str, tuple[Any, ...]]  # {field: its values}
TEACHERS = "teachers"  # how the names of folders of lent teachers begin
SETTLED_ONCE = ("runtime.devices",)  # a process cannot change it any more once JAX has started
LONGEST_NAME = 200  # characters: a folder's name holds 255 bytes


class Lender(NamedTuple):
    """A run that trains teachers and nothing else."""

    folder: Path
    config: ConfigDict


class Cell(NamedTuple):
    """One run of a sweep."""

    name: str  # of its folder
    over: dict[str, Any]  # {swept field: its value here}
    config: ConfigDict
    lender: Lender | None  # whose teachers it is taught by, where it trains none itself


def parse(texts: Sequence[str], given: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """{field: values} of what --over says, "config.FIELD=VALUE,VALUE" each.

    Raises UserError for a field that does not exist, is named twice or stands in `given`, which has a value
    already, and for values that it cannot have or that are given twice.
    """
    found: dict[str, tuple[Any, ...]] = {}
    known = configuration.fields(configuration.default())
    for text in texts:
        named, equals, said = text.partition("=")
        field = named.removeprefix("--").removeprefix("config.")
        if not equals or not named.removeprefix("--").startswith("config."):
            raise UserError(f"--over {text}: must be config.FIELD=VALUE,VALUE,...")
        if field not in known:
            raise UserError(f"--over: {configuration.unknown_field(field)}")
        if field in found:
            raise UserError(f"--over names config.{field} twice; write all its values after one =")
        if field in given:
            raise UserError(f"config.{field} is swept over, and set as well; leave out one of the two")
        if field in SETTLED_ONCE:
            raise UserError(f"--over config.{field}: is settled once for all cells; set it without --over")
        try:
            found[field] = settings.values(field, said)
        except UserError as error:
            raise UserError(f"--over {str(error).removeprefix('--')}") from None
        if not found[field]:
            raise UserError(f"--over config.{field} has no value")
        for place, value in enumerate(found[field]):
            if value in found[field][:place]:
                raise UserError(f"--over config.{field} names {spelled(value)!r} twice; once is enough")
    return found


def build(base: ConfigDict, over: Over, folder: Path) -> tuple[Cell, ...]:
    """A cell for every combination of the values, the last field's changing fastest, to be run in `folder`.

    Raises UserError where two cells would have one folder.
    """
    if "students.model" in over and (base.students.models or "students.models" in over):
        raise UserError(
            "--over config.students.model: students.models is set and takes its place; sweep that instead"
        )
    combinations = [dict(zip(over, values)) for values in itertools.product(*over.values())]
    return tuple(cell(base, one, folder) for one in distinct(combinations))


def distinct(combinations: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The same; UserError where two of {field: value} would have one folder."""
    of_name: dict[str, Mapping[str, Any]] = {}
    for one in combinations:
        other = of_name.setdefault(name(one), one)
        if other != one:
            raise UserError(f"--over: {dict(other)!r} and {dict(one)!r} would both be called {name(one)!r}")
    return combinations


def cell(base: ConfigDict, over: Mapping[str, Any], folder: Path) -> Cell:
    """The cell with these values; its configuration is not checked yet."""
    config = base.copy_and_resolve_references()
    for field, value in over.items():
        configuration.put(config, field, value)
    lender = _lender(config, over, folder)
    if lender is not None:
        lending.borrow(config, lender.folder)
    return Cell(name(over), dict(over), config, lender)


def name(over: Mapping[str, Any]) -> str:
    """What the folder of a cell is called.

    >>> name({"students.model": "mlp(hidden=(8,))", "students.temperatures": (1.0, 4.0)})
    'model=mlp-hidden-8,temperatures=1.0-4.0'
    """
    text = ",".join(
        f"{short}={_as_name(spelled(value))}" for short, value in zip(short_names(tuple(over)), over.values())
    )
    if len(text) <= LONGEST_NAME:
        return text
    return f"{text[:LONGEST_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _as_name(text: str) -> str:
    """
    >>> _as_name("1e-05"), _as_name("-1"), _as_name("logits.dkd(warmup=2)"), _as_name("")
    ('1e-05', '-1', 'logits.dkd-warmup-2', 'empty')
    """
    if re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?", text):
        return text  # its sign says what the number is
    return slug(text) if text else "empty"


def short_names(fields: Sequence[str]) -> list[str]:
    """The last words of fields; of those that end alike the whole.

    >>> short_names(["students.epochs", "seed"]), short_names(["students.epochs", "train.epochs"])
    (['epochs', 'seed'], ['students.epochs', 'train.epochs'])
    """
    last = [field.rpartition(".")[2] for field in fields]
    return [one if last.count(one) == 1 else field for one, field in zip(last, fields)]


def spelled(value: Any) -> str:
    """A value as it is typed, without the quotes that a shell needs."""
    return settings.spelled(value).strip("'")


def reaches_teachers(field: str, config: ConfigDict) -> bool:
    """Whether teachers depend on a field, of a configuration in which all others stand as they are."""
    group = field.partition(".")[0]
    if group == "students" or group in TRAINS_NOTHING or field in ("plan", "data.other"):
        return False
    return field != "model.name" or not config.teachers.models


def _lender(config: ConfigDict, over: Mapping[str, Any], folder: Path) -> Lender | None:
    reaching = {field: value for field, value in over.items() if reaches_teachers(field, config)}
    if not lending.lends(config) or len(reaching) == len(over):
        return None
    named = f"{TEACHERS},{name(reaching)}" if reaching else TEACHERS
    return Lender(folder / named, lending.teachers_alone(config))
