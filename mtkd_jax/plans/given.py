"""Teachers that are no networks of ours: what they say is read, or asked for, and made a population."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from threadpoolctl import threadpool_limits

from mtkd_jax.addresses import build
from mtkd_jax.data import logit_files
from mtkd_jax.data.checks import first_line
from mtkd_jax.data.loading import Split
from mtkd_jax.deploy import programs
from mtkd_jax.engine import population
from mtkd_jax.engine.training import Fitted, check_owner
from mtkd_jax.models.given import Given
from mtkd_jax.models.programs import Programmed
from mtkd_jax.runs import checkpoint, workdir
from mtkd_jax.system import paths
from mtkd_jax.types import Array, DataSet, Population, UserError

LOGITS = Given("logits files", None)
STAGE_PREFIX = "teachers-"  # of the names of all teachers' stages, and so of their checkpoint folders
_CLASSIFIER = f"{STAGE_PREFIX}classifier-"


def borrow(
    config: ConfigDict, split: Split, into: Path | None = None
) -> tuple[dict[str, Fitted], tuple[str, ...]]:
    """The teachers of `teachers.logits`, `programs` and `classifiers`, by stage, and notes for the report.

    What ONNX programs and classifiers say is asked for once, of the data's images; classifiers are fitted to
    the training images before, to those with labels, unless the run of the folder `into` has kept them.
    """
    files, asked = tuple(config.teachers.logits), tuple(config.teachers.programs)
    found: dict[str, Fitted] = {}
    if files:
        teachers, notes = from_logits(files, split.dataset)
        what = f"{teachers.num_members} teachers are what {', '.join(files)} says of the data's images."
        found[f"{STAGE_PREFIX}logits"] = _fitted(teachers, (what, *notes))
    for place, (name, file) in enumerate(zip(short_names(asked), asked)):
        found[f"{STAGE_PREFIX}program-{place}"] = _fitted(*from_program(file, name, split.dataset))
    for place, address in enumerate(config.teachers.classifiers):
        stage, start = f"{_CLASSIFIER}{place}", time.perf_counter()
        kept = None if into is None else _restore(into, stage, address, split.dataset)
        found[stage] = kept or _fitted(*from_classifier(address, split, (config.seed, place)), start)
    told = [note for fitted in found.values() for note in fitted.notes]
    if any(config.data.augment.values()) and any(
        not fitted.population.model.can_be_asked for fitted in found.values()
    ):
        told.append(
            "The students' images are augmented, and teachers who are no networks and no compiled programs "
            "speak of each as it is: fixed teachers (Beyer et al. 2022, arXiv 2106.05237)."
        )
    if files or asked:
        told.append(
            "The teachers were not trained here: whether they have seen what is validation or test here only "
            "their makers know."
        )
    return found, tuple(told)


def _fitted(teachers: Population, notes: Sequence[str], start: float | None = None) -> Fitted:
    """Teachers that were never validated; `start` is when fitting them began, None where nobody did."""
    seconds = 0.0 if start is None else time.perf_counter() - start
    unknown = np.full(teachers.num_members, np.nan, np.float32)
    return Fitted(teachers, unknown, (), seconds, notes=tuple(notes))


def keep(into: Path, borrowed: Mapping[str, Fitted]) -> None:
    """Write what classifiers say to the checkpoints of the run `into`, so that they are fitted once."""
    run = workdir.read_run(into)
    for stage, fitted in borrowed.items():
        folder = _folder(into, stage)
        if not stage.startswith(_CLASSIFIER) or checkpoint.latest(folder):
            continue
        said_of_some = {part: logits for part, logits in fitted.population.variables.items() if logits.size}
        owner = {"stage": stage, "run": run, "members": list(fitted.population.names)}
        info = {"seconds": fitted.seconds, "notes": list(fitted.notes), **owner}
        checkpoint.save(folder, 0, said_of_some, info)


def _restore(into: Path, stage: str, address: str, dataset: DataSet) -> Fitted | None:
    """The classifier that the run `into` has kept; None where it has none. UserError for another run's."""
    if not (run := workdir.read_run(into)):
        return None
    folder = _folder(into, stage)

    def owned(info: dict[str, Any]) -> None:
        check_owner(info, folder.parent, stage, run)

    stored = checkpoint.restore(folder, owned)
    if stored is None:
        return None
    _, said_of_some, info = stored
    nothing = np.zeros((1, 0, dataset.num_classes), np.float32)
    variables = {part: said_of_some.get(part, nothing) for part in ("train", "test")}
    return dataclasses.replace(
        _fitted(_classifier(address, variables), info["notes"]), seconds=info["seconds"]
    )


def _folder(into: Path, stage: str) -> Path:
    return into / "checkpoints" / stage / "finished"


def _classifier(address: str, variables: dict[str, np.ndarray]) -> Population:
    return Population(Given(f"classifier {address}", None), variables, {}, (address,))


def from_classifier(address: str, split: Split, seed: tuple[int, int]) -> tuple[Population, list[str]]:
    """The teacher that is a classifier, fitted to the labelled training images as rows, and notes on it.

    Its logits are the logarithms of the probabilities that it says; a class that it has not seen has the
    least of them. Raises UserError, one line, where it cannot be fitted or says something else.
    """
    field, dataset = "teachers.classifiers", split.dataset
    if dataset.train_labels.ndim != 1:
        raise UserError(f"config.{field}: say one class an example; {dataset.name} has one for every place")
    classifier = _seeded(build("classifier", address, field), seed)
    rows = np.asarray(dataset.train_images[split.train])
    with warnings.catch_warnings(record=True) as warned, threadpool_limits(1):
        warnings.simplefilter("default")
        try:
            classifier.fit(_as_rows(rows), dataset.train_labels[split.train])
        except (AttributeError, IndexError, TypeError, ValueError) as error:  # as scikit-learn's are
            said = first_line(error)
            said += _hint_unscaled(classifier, rows, said)
            raise UserError(f"config.{field}: {address}: cannot be fitted: {said}") from error
        try:
            classes = np.asarray(classifier.classes_)

            def ask(images: np.ndarray) -> np.ndarray:
                probs = np.zeros((len(images), dataset.num_classes), np.float32)
                probs[:, classes] = classifier.predict_proba(_as_rows(images))
                return logit_files.logarithms(probs)

            variables = _answers(ask, dataset)
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise UserError(f"config.{field}: {address}: cannot be asked: {first_line(error)}") from error
    _check_finite(variables, f"config.{field}: {address}")
    notes = [f"Teacher {address} is no network: it was fitted to the {len(rows)} labelled training images."]
    notes += [f"{address}: {one.category.__name__}: {first_line(one.message)}" for one in warned[:1]]
    return _classifier(address, variables), notes


def _hint_unscaled(classifier: Any, rows: np.ndarray, said: str) -> str:
    """What helps a classifier of counts, such as MultinomialNB, where only scaling made its rows negative."""
    scaled = "standardscaler" in getattr(classifier, "named_steps", ())
    helps = scaled and "negative" in said.lower() and rows.min() >= 0
    return "; scaled=False leaves rows as they are" if helps else ""


def _answers(ask: Callable, dataset: DataSet) -> dict[str, np.ndarray]:
    """{"train": [1,N,C], "test": [1,n,C]}: what one teacher says of all images."""
    parts = {"train": dataset.train_images, "test": dataset.test_images}
    return {part: population.map_blocks(ask, images)[None] for part, images in parts.items()}


def _check_finite(answers: Mapping[str, np.ndarray], who: str) -> None:
    for part, logits in answers.items():
        if bad := np.count_nonzero(~np.isfinite(logits).all(axis=(0, 2))):
            raise UserError(f"{who}: says NaN or infinity of {bad} {part} images")


def _as_rows(images: np.ndarray) -> np.ndarray:
    """Images [n,h,w,c] as rows [n,D] float64, pixels in 0..1."""
    return _scaled(images).reshape(len(images), -1).astype(np.float64)


def _scaled(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images


def _seeded(classifier: Any, seed: tuple[int, int]) -> Any:
    """The classifier, which draws by the seed wherever it has a random_state that is not set."""
    if hasattr(classifier, "get_params"):
        drawn = int(np.random.SeedSequence(seed).generate_state(1)[0])
        states = {name for name, value in classifier.get_params().items() if value is None}
        classifier.set_params(**{name: drawn for name in states if name.split("__")[-1] == "random_state"})
    return classifier


def from_program(file: str, name: str, dataset: DataSet) -> tuple[Population, list[str]]:
    """The teacher that is a program, as a population of one, and notes on it."""
    try:
        path = paths.parse(file, "the path")
        images = dataset.train_images
        program = programs.load(path, tuple(images.shape[1:]), images.dtype, dataset.num_classes)
        order, notes = logit_files.order_of_classes(path, program.class_names or dataset.class_names, dataset)
    except UserError as error:
        raise UserError(f"config.teachers.programs: {error}") from None
    if program.class_names is None:
        notes = [f"The classes of {file} are taken to be in the data's order: it does not name them."]
    notes = [f"Teacher {name} is the program {file}.", *notes]
    model_name = f"program {name}"
    if program.compiled:

        def call(image: Array) -> Array:
            return program.call(image)[:, order].astype(np.float32)

        variables = {"place": np.zeros(1, np.int32)}
        return Population(Programmed(model_name, None, call=call), variables, {}, (name,)), notes

    def ask(images: np.ndarray) -> np.ndarray:
        return np.asarray(program.call(_scaled(images)), np.float32)[:, order]

    variables = _answers(ask, dataset)
    _check_finite(variables, f"config.teachers.programs: {file}")
    return Population(Given(model_name, None), variables, {}, (name,)), notes


def from_logits(files: Sequence[str], dataset: DataSet) -> tuple[Population, tuple[str, ...]]:
    """The teachers of all files as one population, and notes on what was done to what they say.

    Raises UserError where places of an image have labels: the files know whole images, not places.
    """
    if dataset.is_dense:
        raise UserError(
            f"config.teachers.logits: are of whole images, and {dataset.name} has a label for every place; "
            "must be empty"
        )
    try:
        each = [logit_files.read(paths.parse(file, "the path"), dataset) for file in files]
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
