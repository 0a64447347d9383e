"""What a finished run keeps: every logit and label that a later analysis could want, in one npz file.

The report is computed from this file alone, so a new question costs no training.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtkd_jax.system.files import write_atomically
from mtkd_jax.types import UserError

FORMAT = "mtkd_jax predictions 1"
NAMED = ("beside", "ensemble_beside", "test_goals")  # fields of arrays by name


@dataclasses.dataclass(frozen=True)
class Group:
    """The members that make one row of the report: teachers of one architecture, seeds of one mode."""

    key: str  # "teachers/mlp", "students/unlabelled/mimic_all"
    name: str  # the row: "mlp", "mimic_all"
    role: str  # teacher | student | baseline | control | average (of students) | assistant (teaches students)
    #            | linear (no network: a yardstick) | cohort (what all peers of a student say together)
    architecture: str
    method: str  # the recipe; "" for teachers
    transfer: str  # "" for teachers | "labelled" | "unlabelled" | "other"
    alpha: float | None  # weight of the hard labels; None for teachers and averages
    temperature: float | None
    members: tuple[str, ...]  # S names; equal names in two groups of one transfer are pairs ("seed 0")
    val: np.ndarray  # [S,V,C] validation logits
    test: np.ndarray  # [S,N,C] test logits
    common_test: np.ndarray | None = None  # [S,N,C], the same mode at `Predictions.common_alpha`
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # chosen ones of the method
    grid: tuple[Mapping[str, Any], ...] = ()  # {"alpha", "temperature", ..., "val_nll"}: mean over seeds
    params: int | None = 0  # of one member; None of who is no network here, but known by what it says
    flops: float | None = None  # of one member and one example, forward
    latency_ms: Mapping[str, float] = dataclasses.field(default_factory=dict)  # {"1": .., "256": ..}
    train_seconds: float | None = None  # of the whole group
    train_flops: float | None = None  # of the training of teachers; None: of others, or not by this run
    body: Mapping[str, float] = dataclasses.field(default_factory=dict)  # {name of results.bodies: mean}
    num_in_cohort: int = 1  # networks, or branches of one, that a member learned together with, itself too
    peers_apart: np.ndarray | None = None  # [S] of a cohort: mean total variation of two peers, test images
    # Of networks alone, where they were asked about other images than the data's (results/outside.py):
    shifted: np.ndarray | None = None  # [S,6,N] metrics.TERMS of an image: means over all its corruptions
    by_shift: np.ndarray | None = None  # [S,6,Q,L] the same over images, at each corruption and strength
    outliers: np.ndarray | None = None  # [S,O,C] logits of images of no class
    mutual: np.ndarray | None = None  # [S,N] mutual information of test images; None: it keeps no members
    mutual_outliers: np.ndarray | None = None  # [S,O]
    beside: Mapping[str, np.ndarray] = dataclasses.field(
        default_factory=dict
    )  # {name: [S,N,d]} what else is predicted of test places


@dataclasses.dataclass(frozen=True)
class Predictions:
    """A run's groups and the data they were evaluated on. V validation and N test examples, C classes.

    Of a dense task V and N are the places that are there, example after example: every table and rule is of
    places. What is resampled for an interval are `units`: the groups that the data names, or else examples.
    """

    dataset: str
    class_names: tuple[str, ...]
    sizes: Mapping[
        str, int
    ]  # {"train", "unlabelled", "val", "test"}, and "other" where there are such images
    val_labels: np.ndarray  # [V] int32
    test_labels: np.ndarray  # [N]
    val_index: np.ndarray  # [V] rows in the source's training images
    test_index: np.ndarray  # [N] rows in the source's test images
    rules: tuple[str, ...]  # fusion rules, in the order of their rows
    groups: tuple[Group, ...]
    common_alpha: float | None = None
    notes: tuple[str, ...] = ()
    positive: str = ""  # the class to be detected, where there are two; "" = the last one
    false_alarm_rate: float = 0.05  # at which its recall is reported
    margin: float = 0.005  # in accuracy: config.report.margin
    metrics: tuple[str, ...] = ()  # addresses of the user's own: config.report.metrics
    choose: str = "best"  # which network is to be deployed: config.export.choose
    cascade_tolerance: float = 0.02  # share of accuracy: config.report.cascade_tolerance
    always_valid: bool = False  # seeds were added until it was decided: students.num_seeds is "auto"
    val_groups: np.ndarray | None = None  # [V], equal where examples are not independent; None: not known
    corruptions: tuple[str, ...] = ()  # Q addresses: config.report.corruptions
    strengths: tuple[int, ...] = ()  # L of each
    ood: str = ""  # where the outliers come from: config.report.ood
    ensemble_shifted: np.ndarray | None = None  # [6,N] of mean_probs, as in a group
    ensemble_by_shift: np.ndarray | None = None  # [6,Q,L]
    complexity: Mapping[str, Any] | None = None  # see evaluation.complexity_of; None: not asked, no student
    task: str = "classes"  # see DataSet
    test_groups: np.ndarray | None = None  # [N], equal in what is not independent; None: nothing is
    test_places: np.ndarray | None = None  # [N] of a dense task: which of its example's places each is, and
    num_places: int = 1  # how many an example has, those included that are none
    test_goals: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # {name: [N,d]}
    ensemble_beside: Mapping[str, np.ndarray] = dataclasses.field(
        default_factory=dict
    )  # of mean_probs, as in a group: {name: [N,d]}

    @property
    def is_dense(self) -> bool:
        """Whether an example has several places with a label each."""
        return self.test_places is not None

    @property
    def units(self) -> np.ndarray | None:
        """Which of the things that are resampled each of the N is of, [N] int: 0, 1, ...; None: its own."""
        return None if self.test_groups is None else np.unique(self.test_groups, return_inverse=True)[1]

    def by_unit(self, terms: np.ndarray) -> np.ndarray:
        """Terms [...,N] of test examples as terms [...,E] of what is resampled: see `by_unit`."""
        units = self.units
        return terms if units is None else by_unit(terms, units)


def by_unit(terms: np.ndarray, units: np.ndarray) -> np.ndarray:
    r"""Terms [...,N] of examples as terms [...,E] of the units that they are of; they have the same mean.

    $$t_e = \bar{t} + \frac{E}{N} \sum_{n \in e} (t_n - \bar{t})$$

    `units` [N] are 0 .. E-1. Of units of one size it is the unit's mean; of others a mean over N is a ratio,
    here to first order (Taylor linearisation, as of cluster samples).

    Examples:
        >>> by_unit(np.array([1.0, 3.0, 5.0, 7.0]), np.array([0, 0, 1, 1])).tolist()
        [2.0, 6.0]
    """
    flat = np.reshape(terms, (-1, len(units))).astype(np.float64)
    mean = flat.mean(axis=1, keepdims=True)
    num_units = int(units.max()) + 1
    sums = np.stack([np.bincount(units, one, num_units) for one in flat - mean])
    return (mean + sums * (num_units / len(units))).reshape(*np.shape(terms)[:-1], num_units)


def sum_by_unit(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Sums [E,...] of the values [N,...] of the units 0 .. E-1; float64.

    Examples:
        >>> sum_by_unit(np.array([1.0, 3.0, 5.0]), np.array([0, 1, 0])).tolist()
        [6.0, 3.0]
    """
    found = np.zeros((int(units.max()) + 1, *np.shape(values)[1:]))
    np.add.at(found, units, values)
    return found


def save(path: str | os.PathLike, predictions: Predictions) -> None:
    """Write `predictions` to `path`, whole or not at all."""
    groups, group_arrays = zip(*(_split(group) for group in predictions.groups))
    meta, arrays = _split(predictions)
    meta = {**meta, "format": FORMAT, "groups": groups}
    for i, found in enumerate(group_arrays):
        arrays |= {f"group{i}_{name}": array for name, array in found.items()}
    buffer = io.BytesIO()
    np.savez(buffer, meta=np.array(json.dumps(meta)), **arrays)
    write_atomically(path, buffer.getbuffer())


def load(path: str | os.PathLike) -> Predictions:
    """Read what `save` wrote; UserError when the file is missing, damaged or something else."""
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; give the --workdir of a finished run")
    try:
        # Opened here: on a damaged file np.load would leave the one it opened open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged or no npz file; run the experiment again") from error
    try:
        meta = json.loads(str(arrays.pop("meta")))
        if meta.pop("format") != FORMAT:
            raise ValueError("format")
        return _join(meta, arrays)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: not written by this version's save(); run the experiment again") from error


def _split(record: Group | Predictions) -> tuple[dict[str, Any], dict[str, Any]]:
    """A record's plain fields and its arrays; nested groups are left to the caller."""
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    fields.pop("groups", None)
    named = {name: fields.pop(name) for name in NAMED if name in fields}
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    of_names = {f"{name}/{one}": array for name, of in named.items() for one, array in of.items()}
    return {name: value for name, value in fields.items() if name not in arrays}, arrays | of_names


def _gathered(arrays: dict[str, Any]) -> dict[str, Any]:
    """Arrays as fields: those of a field that holds several by name are brought together."""
    plain = {name: array for name, array in arrays.items() if "/" not in name}
    for name, array in arrays.items():
        if "/" in name:
            field, _, one = name.partition("/")
            plain.setdefault(field, {})[one] = array
    return plain


def _join(meta: dict[str, Any], arrays: dict[str, Any]) -> Predictions:
    num_classes = len(meta["class_names"])
    groups = []
    for i, group in enumerate(meta.pop("groups")):
        prefix = f"group{i}_"
        own = {
            name.removeprefix(prefix): arrays.pop(name) for name in list(arrays) if name.startswith(prefix)
        }
        groups.append(Group(**_tuples(group), **_gathered(own)))
    predictions = Predictions(**_tuples(meta), **_gathered(arrays), groups=tuple(groups))
    num_val, num_test = len(predictions.val_labels), len(predictions.test_labels)
    for group in groups:
        num_members = len(group.members)
        shapes = [group.val.shape, group.test.shape]
        if shapes != [(num_members, num_val, num_classes), (num_members, num_test, num_classes)]:
            raise ValueError(f"{group.key}: logits of shape {shapes}")
    return predictions


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where the records have tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
