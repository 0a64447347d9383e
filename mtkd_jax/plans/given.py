"""Teachers that are given by what they say: read from files, and made a population like any other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from mtkd_jax.data import said
from mtkd_jax.data.loading import Split
from mtkd_jax.engine.training import Fitted
from mtkd_jax.models.given import Given
from mtkd_jax.system import paths
from mtkd_jax.types import DataSet, Population, UserError

LOGITS = Given("logits files", None)


def borrow(config: ConfigDict, split: Split) -> tuple[Fitted, tuple[str, ...]]:
    """The teachers of `teachers.logits`, who are never trained, and notes for the report."""
    files = tuple(config.teachers.logits)
    found, notes = from_logits(files, split.dataset)
    unknown = np.full(found.num_members, np.nan, np.float32)  # no validation has chosen them
    told = [
        f"The {found.num_members} teachers are what {', '.join(files)} says of the images of the data: none "
        "was trained here. Whether they have seen what is validation or test here only their makers know.",
        *notes,
    ]
    if any(config.data.augment.values()):
        told.append(
            "The students' images are augmented, and the teachers speak of each as it is: fixed teachers "
            "(Beyer et al. 2022, arXiv 2106.05237)."
        )
    return Fitted(found, unknown, (), 0.0), tuple(told)


def from_logits(files: Sequence[str], dataset: DataSet) -> tuple[Population, tuple[str, ...]]:
    """The teachers of all files as one population, and notes on what was done to what they say."""
    try:
        each = [said.read(paths.parse(file, "the path"), dataset) for file in files]
    except UserError as error:
        raise UserError(f"config.teachers.logits: {error}") from None
    names = tuple(
        f"{name}[{k}]" if len(one.train) > 1 else name
        for name, one in zip(short_names(files), each)
        for k in range(len(one.train))
    )
    variables = {part: np.concatenate([getattr(one, part) for one in each]) for part in ("train", "test")}
    return Population(LOGITS, variables, {}, names), tuple(note for one in each for note in one.notes)


def short_names(files: Sequence[str]) -> list[str]:
    """The files' names without folder and ending, or as they are given where two would be alike.

    >>> short_names(["a/x.npz", "b/y.npz"]), short_names(["a/x.npz", "b/x.npz"])
    (['x', 'y'], ['a/x.npz', 'b/x.npz'])
    """
    stems = [Path(file).stem for file in files]
    return stems if len(set(stems)) == len(stems) else list(files)
