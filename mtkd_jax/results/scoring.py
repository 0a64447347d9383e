"""The rows of the report: teachers, a linear model, fused teachers, students and what they compare with."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable

import numpy as np

from mtkd_jax.fusion import rules
from mtkd_jax.results import comparisons, intervals, lookup, measured, metrics
from mtkd_jax.runs.predictions import Group, Predictions
from mtkd_jax.types import UserError

METRICS = ("accuracy", "nll", "ece", "brier", "balanced_accuracy")


def rows(predictions: Predictions) -> list[dict]:
    """Teachers (a row an architecture), a linear model, fusion rules, then students, baselines and controls.

    A rule that cannot fuse these teachers, of whom some may have diverged, has no row.
    """
    linear = [group for group in predictions.groups if group.role == "linear"]
    others = [group for group in predictions.groups if group.role not in ("teacher", "linear")]
    share_of = {(gap["transfer"], gap["architecture"]): gap for gap in comparisons.gaps(predictions)}
    return [
        *(_group_row(predictions, group, None) for group in lookup.teachers(predictions)),
        *(_group_row(predictions, group, None) for group in linear),
        *_ensemble_rows(predictions),
        *(
            _group_row(predictions, group, share_of.get((group.transfer, group.architecture)))
            for group in others
        ),
    ]


def _group_row(predictions: Predictions, group: Group, gap: dict | None) -> dict:
    over = "members" if group.role == "teacher" else "seeds"
    test = [metrics.summary(logits, predictions.test_labels) for logits in group.test]
    val = [metrics.summary(logits, predictions.val_labels) for logits in group.val]
    found = {name: measured.over_members(name, test, over) for name in METRICS}
    share, with_share = None, ("student", "average", "control", "cohort")
    if gap is not None and gap["larger_than_noise"] and group.role in with_share:
        share = (found["accuracy"]["mean"] - gap["baseline"]) / gap["difference"]
    return {
        "name": group.name,
        "transfer": group.transfer,
        "role": group.role,
        "architecture": group.architecture,
        "method": group.method,
        "rule": "",
        "alpha": group.alpha,
        "temperature": group.temperature,
        "arguments": dict(group.arguments),
        "n": len(group.members),
        **found,
        **measured.detection_of_members(predictions, group, over),
        "own": {
            **{
                one.name: measured.task_of_members(one, group, predictions, over)
                for one in measured.measures(predictions)
            },
            **{
                one.name: measured.own_of_members(one, group, predictions.test_labels, over)
                for one in measured.own(predictions).values()
            },
        },
        "val": {name: float(np.mean([one[name] for one in val])) for name in ("accuracy", "nll")},
        "apart": _apart(group, [one["accuracy"] for one in val], _num_val_units(predictions)),
        "num_in_cohort": group.num_in_cohort,
        "grid": [dict(point) for point in group.grid],
        "gap_share": share,
        "params": group.params,
        "flops": group.flops,
        "latency_ms": {size: group.latency_ms.get(size) for size in ("1", "256")},
        "train_seconds": group.train_seconds,
        "train_flops": group.train_flops,
        "body": dict(group.body),
    }


def _num_val_units(predictions: Predictions) -> int:
    """How many validation examples there are; places of one are not counted apart."""
    return len(np.unique(predictions.val_index))


def _apart(group: Group, accuracies: list[float], num_examples: int) -> list[dict]:
    """Members that end far from their siblings on validation, [{"member", "val_accuracy", "siblings"}].

    Farther from the median of the others than five of their robust standard deviations (1.4826 times the
    median absolute deviation), than four standard errors of an accuracy on so many examples, and than two
    points; of three members at least. The member itself is left out of both, for of three it would be a third
    of what it is measured by.
    """
    found = []
    for place, (member, accuracy) in enumerate(zip(group.members, accuracies)):
        siblings = np.delete(accuracies, place)
        if len(siblings) < 2:
            return []
        median = float(np.median(siblings))
        spread = 5 * 1.4826 * float(np.median(np.abs(siblings - median)))
        chance = 4 * math.sqrt(median * (1 - median) / num_examples)
        if abs(accuracy - median) > max(spread, chance, 0.02):
            found.append({"member": member, "val_accuracy": accuracy, "siblings": median})
    return found


def _ensemble_rows(predictions: Predictions) -> list[dict]:
    found = []
    for rule in predictions.rules:
        with contextlib.suppress(UserError):
            found.append(_ensemble_row(predictions, rule))
    return found


def why_no_row(predictions: Predictions, rule: str) -> str:
    """Why a rule cannot fuse these teachers; "" where it can."""
    try:
        lookup.fused(predictions, rule)
    except UserError as error:
        return str(error)
    return ""


def _ensemble_row(predictions: Predictions, rule: str) -> dict:
    groups = lookup.teachers(predictions)
    decided = lookup.fused(predictions, rule)
    on_test = metrics.per_example(decided["test"], predictions.test_labels)
    on_val = metrics.summary(decided["val"], predictions.val_labels)
    asked = predictions.ensemble_beside if rule == "mean_probs" else {}
    found: dict[str, dict | None] = {
        name: measured.over_examples(predictions.by_unit(values), measured.ends_of(name))
        for name, values in on_test.items()
    }
    matrix, units = metrics.confusion(decided["test"], predictions.test_labels), predictions.units
    present = matrix.sum(axis=1) > 0
    found["balanced_accuracy"] = measured.of_ensemble(
        metrics.balanced_accuracy(decided["test"], predictions.test_labels),
        intervals.bootstrap_shares(np.diagonal(matrix)[present], matrix.sum(axis=1)[present])
        if units is None
        else measured.balanced_over_units(decided["test"], predictions.test_labels, units),
    )
    ranks = rules.is_rank(rule)  # places are no probabilities
    of_examples = measured.units_of_examples(predictions)
    whole = measured.place_outputs(predictions, decided["test"], {**lookup.mean_beside(predictions), **asked})
    if ranks:
        found |= {"nll": None, "brier": None, "ece": None}
    else:
        # Resampling adds noise to the gap of every bin and so moves ECE up: no honest interval here.
        found["ece"] = measured.of_ensemble(metrics.ece(decided["test"], predictions.test_labels), None)
    return {
        "name": rule,
        "transfer": "",
        "role": "ensemble",
        "architecture": " + ".join(dict.fromkeys(group.architecture for group in groups)),
        "method": "",
        "rule": rule,
        "alpha": None,
        "temperature": None,
        "arguments": {},
        "n": 1,
        **{name: found[name] for name in METRICS},
        **(
            dict.fromkeys(measured.DETECTION)
            if ranks
            else measured.detection_of_ensemble(predictions, decided)
        ),
        "own": {
            **{
                one.name: None if ranks else measured.task_of_one(one, whole, of_examples)
                for one in measured.measures(predictions)
            },
            **{
                one.name: None
                if ranks and not one.of_places
                else measured.own_of_ensemble(one, decided["test"], predictions)
                for one in measured.own(predictions).values()
            },
        },
        "val": {"accuracy": on_val["accuracy"], "nll": None if ranks else on_val["nll"]},
        "apart": [],
        "num_in_cohort": 1,
        "grid": [],
        "gap_share": None,
        "params": _total((group.params, len(group.members)) for group in groups),
        "flops": _total((group.flops, len(group.members)) for group in groups),
        "latency_ms": {
            size: _total((group.latency_ms.get(size), len(group.members)) for group in groups)
            for size in ("1", "256")
        },
        "train_seconds": _total((group.train_seconds, 1) for group in groups),
        "train_flops": _total((group.train_flops, 1) for group in groups),
        "body": {},
    }


def _total(parts: Iterable[tuple[float | None, int]]) -> float | None:
    """Sum of value * count; None as soon as one value is unknown."""
    parts = list(parts)
    known = [value * count for value, count in parts if value is not None]
    return sum(known) if len(known) == len(parts) else None
