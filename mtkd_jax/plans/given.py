"""Teachers that are given by what they say: read from files, and made a population like any other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from mtkd_jax.data import said
from mtkd_jax.data.loading import Split
from mtkd_jax.deploy import programs
from mtkd_jax.engine import population
from mtkd_jax.engine.training import Fitted
from mtkd_jax.models.given import Given
from mtkd_jax.models.programs import Programmed
from mtkd_jax.system import paths
from mtkd_jax.types import DataSet, Population, UserError

LOGITS = Given("logits files", None)


def borrow(config: ConfigDict, split: Split) -> tuple[dict[str, Fitted], tuple[str, ...]]:
    """The teachers of `teachers.logits` and `teachers.programs`, by name, and notes for the report.

    None of them is trained here. What an ONNX program says is asked for once, of the data's images.
    """
    files, asked = tuple(config.teachers.logits), tuple(config.teachers.programs)
    found, told = {}, []
    if files:
        found["logits"], notes = from_logits(files, split.dataset)
        told += [
            f"{found['logits'].num_members} teachers are what {', '.join(files)} says of the data's images.",
            *notes,
        ]
    for place, (name, file) in enumerate(zip(short_names(asked), asked)):
        found[f"program-{place}"], notes = from_program(file, name, split.dataset)
        told += notes
    if any(config.data.augment.values()) and any(isinstance(one.model, Given) for one in found.values()):
        told.append(
            "The students' images are augmented, and teachers who are known by logits or are ONNX programs "
            "speak of each as it is: fixed teachers (Beyer et al. 2022, arXiv 2106.05237)."
        )
    told.append(
        "The teachers were not trained here: whether they have seen what is validation or test here only "
        "their makers know."
    )

    def fitted(teachers: Population) -> Fitted:
        return Fitted(teachers, np.full(teachers.num_members, np.nan, np.float32), (), 0.0)  # never validated

    return {name: fitted(teachers) for name, teachers in found.items()}, tuple(told)


def from_program(file: str, name: str, dataset: DataSet) -> tuple[Population, list[str]]:
    """The teacher that is a program, as a population of one, and notes on it."""
    try:
        path = paths.parse(file, "the path")
        images = dataset.train_images
        program = programs.load(path, tuple(images.shape[1:]), images.dtype, dataset.num_classes)
        order, notes = said.order_of_classes(path, program.class_names or dataset.class_names, dataset)
    except UserError as error:
        raise UserError(f"config.teachers.programs: {error}") from None
    if program.class_names is None:
        notes = [f"The classes of {file} are taken to be in the data's order: it does not name them."]
    notes = [f"Teacher {name} is the program {file}.", *notes]
    model_name = f"program {name}"
    if program.compiled:

        def call(image):
            return program.call(image)[:, order].astype(np.float32)

        variables = {"place": np.zeros(1, np.int32)}
        return Population(Programmed(model_name, None, call=call), variables, {}, (name,)), notes

    def ask(images: np.ndarray) -> np.ndarray:
        scaled = images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images
        return np.asarray(program.call(scaled), np.float32)[:, order]

    variables = {
        part: population.map_blocks(ask, images)[None]
        for part, images in (("train", dataset.train_images), ("test", dataset.test_images))
    }
    for part, logits in variables.items():
        if bad := np.count_nonzero(~np.isfinite(logits).all(axis=(0, 2))):
            raise UserError(f"config.teachers.programs: {file}: says NaN or infinity of {bad} {part} images")
    return Population(Given(model_name, None), variables, {}, (name,)), notes


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
    """The names of files or folders without what holds them and ending; as given where two would be alike.

    >>> short_names(["a/x.npz", "b/y.npz"]), short_names(["a/x.npz", "b/x.npz"])
    (['x', 'y'], ['a/x.npz', 'b/x.npz'])
    """
    stems = [Path(file).stem for file in files]
    return stems if len(set(stems)) == len(stems) else list(files)
