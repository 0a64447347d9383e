"""All numbers of the report as plain Python, and single networks to look at. Pure.

A row's metric is {"mean", "std", "ci95", "ci_over", "values"}; whatever is not defined is None. "verdict" is
one word on its accuracy against the baseline on the same images, None where nothing was compared. Where one
class of two is to be detected a row also has "auroc", "recall_at_false_alarm_rate" (the threshold is that of
the test ROC) and "operating_point" (the threshold is validation's), a dict of such metrics.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from mtkd_jax.config import row_of
from mtkd_jax.results import comparisons, lookup, measured, metrics, scoring
from mtkd_jax.runs.predictions import Group, Predictions
from mtkd_jax.tasks.kinds import Measure
from mtkd_jax.types import Metric

IMBALANCED = 1.5  # times the examples of the smallest class in the largest one, and accuracy misleads


def numbers(predictions: Predictions) -> dict:
    """All numbers of report.json, under its keys. No NaN: what does not exist is None."""
    logits, labels = lookup.teacher_logits(predictions), predictions.test_labels
    class_counts = {
        split: np.bincount(of_split, minlength=len(predictions.class_names)).tolist()
        for split, of_split in (("val", predictions.val_labels), ("test", labels))
    }
    told: dict[str, Measure | Metric] = {
        **{f"{predictions.task}: {one.name}": one for one in measured.measures(predictions)},
        **measured.own(predictions),
    }
    chosen = lookup.chosen_student(predictions)
    found_gaps, compared = comparisons.gaps(predictions), comparisons.compare(predictions)
    return plain(
        {
            "dataset": predictions.dataset,
            "num_classes": len(predictions.class_names),
            "class_names": predictions.class_names,
            "sizes": dict(predictions.sizes),
            "test_labels_sha256": hashlib.sha256(np.asarray(labels, "<i4").tobytes()).hexdigest(),
            "class_counts": class_counts,
            "imbalanced": max(class_counts["test"]) > IMBALANCED * min(class_counts["test"]),
            "detection": _detection(predictions, class_counts["test"]),
            "selection": "val",
            "gap_share_of": "ensemble - baseline",
            "margin": predictions.margin,
            "student_models": lookup.student_models(predictions),
            "metrics": [
                {
                    "address": address,
                    "name": one.name,
                    "higher_is_better": one.higher_is_better,
                    "unit": one.unit,
                    "digits": one.digits,
                }
                for address, one in told.items()
            ],
            "task": predictions.task,
            "rows": [
                {**row, "verdict": comparisons.verdict_of(row, compared, found_gaps)}
                for row in scoring.rows(predictions)
            ],
            "gaps": found_gaps,
            "students_by_size": comparisons.students_by_size(predictions),
            "comparisons": compared,
            "cohorts": comparisons.cohorts(predictions),
            "negative_transfer": comparisons.negative_transfer(predictions),
            "common_alpha": common_alpha(predictions),
            "chosen_student": None if chosen is None else _describe(predictions, chosen),
            "deploy": _deployed(predictions),
            "diversity": diversity(predictions),
            "sub_ensembles": [
                {"k": k, "num_subsets": len(a), "mean": a.mean(), "min": a.min(), "max": a.max()}
                for k, a in metrics.sub_ensembles(logits, labels).items()
            ],
            "confusion": confusions(predictions),
        }
    )


def _detection(predictions: Predictions, test_counts: list[int]) -> dict | None:
    positive = lookup.detected(predictions)
    if positive is None:
        return None
    return {
        "positive": predictions.class_names[positive],
        "negative": predictions.class_names[1 - positive],
        "false_alarm_rate": predictions.false_alarm_rate,
        "num_positive": test_counts[positive],
        "num_negative": test_counts[1 - positive],
    }


def diversity(predictions: Predictions) -> dict:
    """How the teachers differ on the test examples, with the names of those whose pairs were looked at."""
    names = lookup.teacher_names(predictions)
    return {
        "num_teachers": len(names),
        "members": names[: metrics.MOST_IN_PAIRS],
        **metrics.diversity(lookup.teacher_logits(predictions), predictions.test_labels),
    }


def common_alpha(predictions: Predictions) -> dict | None:
    """Every mode at one alpha (each at its own temperature): {"alpha", "rows"}; None where none was kept."""
    kept = [(group, group.common_test) for group in predictions.groups if group.common_test is not None]
    if predictions.common_alpha is None or not kept:
        return None
    found = []
    for group, common_test in kept:
        test = [metrics.summary(logits, predictions.test_labels) for logits in common_test]
        fields: dict[str, Any] = {"name": group.name, "transfer": group.transfer, "role": group.role}
        fields["architecture"] = group.architecture
        fields |= {"alpha": predictions.common_alpha, "temperature": group.temperature, "n": len(test)}
        found.append(fields | {name: measured.over_members(name, test, "seeds") for name in scoring.METRICS})
    return {"alpha": predictions.common_alpha, "rows": found}


def one_of_each(predictions: Predictions) -> dict[str, tuple[str, np.ndarray]]:
    """One network of each kind to look at: {role: (name to show, test logits [N,C])}.

    The first teacher, the ensemble, the student kept, and the baseline of its architecture, transfer set and
    seed.
    """
    several = len(lookup.student_models(predictions)) > 1
    first = lookup.teachers(predictions)[0]
    found = {"teacher": (f"one teacher ({first.members[0]})", first.test[0])}
    found["ensemble"] = ("ensemble (mean_probs)", lookup.fused(predictions, "mean_probs")["test"])
    chosen = lookup.chosen_student(predictions)
    if chosen is not None:
        group, member = chosen
        seed = group.members[member]
        model = group.architecture if several else ""
        found["student"] = (f"{row_of(group.name, model)} ({group.transfer}, {seed})", group.test[member])
        baseline = lookup.baseline_of(predictions, group)
        if baseline is not None and seed in baseline.members:
            logits = baseline.test[baseline.members.index(seed)]
            found["baseline"] = (f"{row_of('baseline', model)} ({group.transfer}, {seed})", logits)
    return found


def confusions(predictions: Predictions) -> list[dict]:
    """{"name", "matrix" [C][C], "recall" [C]} of one teacher, the ensemble, the chosen student."""
    labels = predictions.test_labels
    return [
        {
            "name": name,
            "matrix": metrics.confusion(logits, labels).tolist(),
            "recall": metrics.per_class_recall(logits, labels).tolist(),
        }
        for role, (name, logits) in one_of_each(predictions).items()
        if role != "baseline"
    ]


def _deployed(predictions: Predictions) -> dict | None:
    """What `_describe` says of the network to deploy, of the best of all, and of the best of each role."""
    single, chosen = lookup.single_networks(predictions), lookup.network_to_deploy(predictions)
    if chosen is None:
        return None
    by_role: dict[str, list[tuple[Group, int]]] = {}
    for network in single:
        by_role.setdefault(network[0].role, []).append(network)
    return {
        **_describe(predictions, chosen),
        "choose": predictions.choose,
        "num_networks": len(single),
        "best": _describe(predictions, lookup.best_of(single, predictions)),
        "best_of_role": {
            role: _describe(predictions, lookup.best_of(own, predictions)) for role, own in by_role.items()
        },
    }


def _describe(predictions: Predictions, chosen: tuple[Group, int]) -> dict:
    """Where a network stands, and its numbers."""
    group, member = chosen
    positive = lookup.detected(predictions)
    detector = None
    if positive is not None:
        detector = measured.detector(predictions, positive, group.val[member], group.test[member])
    return {
        "name": group.name,
        "role": group.role,
        "transfer": group.transfer,
        "architecture": group.architecture,
        "member": group.members[member],
        "detector": detector,
        "val_nll": metrics.nll(group.val[member], predictions.val_labels),
        "val_accuracy": metrics.accuracy(group.val[member], predictions.val_labels),
        **metrics.summary(group.test[member], predictions.test_labels),
    }


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: tuples as lists, NumPy numbers as numbers, None for NaN and infinities."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
