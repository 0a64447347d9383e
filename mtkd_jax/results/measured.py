"""A number of a row with its interval: over members or seeds, or of one decision over test examples.

{"mean", "std", "ci95", "ci_over", "values"}; None where it is not defined.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtkd_jax import config as configuration
from mtkd_jax.results import intervals, lookup, metrics
from mtkd_jax.runs.predictions import Group, Predictions, by_unit, sum_by_unit
from mtkd_jax.system import own_metrics
from mtkd_jax.tasks import kinds
from mtkd_jax.tasks.kinds import Measure, PlaceOutputs
from mtkd_jax.types import Metric, UserError

DETECTION = ("auroc", "recall_at_false_alarm_rate", "operating_point")
LARGEST = {"nll": np.inf, "brier": 2.0, "misses": np.inf, "false_alarms": np.inf}  # all others end at 1
OWN_RESAMPLES = 200  # of a number of the user's own, whose cost nobody knows


def over_members(name: str, summaries: list[dict], over: str) -> dict:
    """One metric of members whose summaries these are, with Student's interval, cut where the metric ends."""
    return of_members([one[name] for one in summaries], over, ends_of(name))


def ends_of(name: str) -> intervals.Interval:
    """The least and the largest value of a metric."""
    return 0.0, LARGEST.get(name, 1.0)


def of_members(values: list[float], over: str, ends: intervals.Interval = intervals.ANY) -> dict:
    """A number over members. Student's t does not know where it ends; its interval is cut there."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    ci95 = intervals.cut_at(intervals.t_interval(values), ends)
    return {"mean": float(np.mean(values)), "std": std, "ci95": ci95, "ci_over": over, "values": values}


def over_examples(values: np.ndarray, ends: intervals.Interval = intervals.ANY) -> dict:
    """The mean of values [N] of examples, with a bootstrap interval over them."""
    return of_ensemble(float(values.mean()), intervals.bootstrap_interval(values, ends=ends))


def of_ensemble(value: float, interval: intervals.Interval | None) -> dict:
    """A number of one decision with its interval over test examples; None where there is no honest one."""
    return {"mean": value, "std": None, "ci95": interval, "ci_over": "test_examples", "values": [value]}


def balanced_over_units(
    logits: np.ndarray, labels: np.ndarray, units: np.ndarray
) -> intervals.Interval | None:
    """Of the mean recall of classes, by resampling `Predictions.units`."""
    right, num_classes = logits.argmax(axis=-1) == labels, logits.shape[-1]
    place, size = units * num_classes + labels, (int(units.max()) + 1) * num_classes
    each = (np.bincount(place, weights, size).reshape(-1, num_classes) for weights in (right, None))
    counts = np.stack(list(each), axis=1)  # [E,2,C]: those that are right, and all

    def recall(total: np.ndarray) -> float:
        found, of = total
        return float((found[of > 0] / of[of > 0]).mean())

    return intervals.bootstrap_sums(counts, recall, ends=(0.0, 1.0))


def measures(predictions: Predictions) -> tuple[Measure, ...]:
    """The measures of the task, which are told beside those of classes."""
    return kinds.named(predictions.task).measures


def place_outputs(
    predictions: Predictions, logits: np.ndarray, beside: Mapping[str, np.ndarray]
) -> PlaceOutputs:
    """What one network says of the test places [N,C], as a task's measures take it."""
    _, example = np.unique(predictions.test_index, return_inverse=True)
    places, goals = predictions.test_places, predictions.test_goals
    place = np.zeros(len(logits), np.int32) if places is None else places
    return PlaceOutputs(
        logits, predictions.test_labels, example, place, beside, goals, predictions.class_names
    )


def task_of_members(one: Measure, group: Group, predictions: Predictions, over: str) -> dict | None:
    """A task's measure over members, with Student's interval; of one member by resampling examples."""
    each = [
        place_outputs(predictions, logits, {name: of[s] for name, of in group.beside.items()})
        for s, logits in enumerate(group.test)
    ]
    if len(each) == 1:
        return task_of_one(one, each[0], units_of_examples(predictions))
    if not set(one.beside) <= group.beside.keys():
        return None
    return of_members([_value(one, of_one) for of_one in each], over, one.ends)


def _value(one: Measure, told: PlaceOutputs) -> float:
    found = one.compute(told)
    if callable(found):
        return float(found(np.ones(told.num_examples)))
    found = np.asarray(found, np.float64)
    return float(one.value(found.sum(axis=0)) if one.value else found.mean())


def units_of_examples(predictions: Predictions) -> np.ndarray:
    """Which of `Predictions.units` each of the E test examples is of, [E] int."""
    _, first = np.unique(predictions.test_index, return_index=True)
    units = predictions.units
    return np.arange(len(first)) if units is None else units[first]


def task_of_one(one: Measure, told: PlaceOutputs, units: np.ndarray) -> dict | None:
    """The same of one network or fused decision, over test examples; None where it lacks what is measured.

    What is resampled are the `units` [E] of examples. A function of how often examples count has the interval
    of a jackknife: resamples move a mean precision.
    """
    if not set(one.beside) <= told.beside.keys():
        return None
    found, num_units = one.compute(told), int(units.max()) + 1
    if callable(found):
        value = float(found(np.ones(told.num_examples)))
        interval = intervals.jackknife_interval(
            lambda counts: found(counts[units]), num_units, num_groups=OWN_RESAMPLES
        )
        return {**of_ensemble(value, intervals.cut_at(interval, one.ends)), "ci_by": "jackknife"}
    found = np.asarray(found, np.float64)
    if found.ndim == 0:  # one number for all: every resample computes it anew
        everyone = np.arange(told.num_examples)
        (interval,) = intervals.bootstrap_statistics(
            lambda times: [float(one.compute(told.take(np.repeat(everyone, times[units]))))],
            np.zeros(num_units),
            num_resamples=OWN_RESAMPLES,
            ends=one.ends,
        )
        return of_ensemble(float(found), interval)
    if one.value is None:
        return over_examples(by_unit(found, units), one.ends)
    value = float(one.value(found.sum(axis=0)))
    interval = intervals.bootstrap_sums(sum_by_unit(found, units), one.value, ends=one.ends)
    return of_ensemble(value, interval)


def own(predictions: Predictions) -> dict[str, Metric]:
    """{address: metric} of the user's own, as far as this process knows them."""
    found = {}
    for address in predictions.metrics:
        with contextlib.suppress(UserError):
            found[address] = configuration.metric(address)
    return found


def why_no_metric(predictions: Predictions) -> list[str]:
    """Why metrics of the user's own, or what they say of a row, are missing; a sentence each."""
    found = []
    for address in predictions.metrics:
        try:
            one = configuration.metric(address)
        except UserError as error:
            found.append(f"Left out: {error}.")
            continue
        for group in predictions.groups:
            try:
                for logits in group.test:
                    own_metrics.values(one, logits, predictions.test_labels)
            except UserError as error:
                found.append(f"Left out: {address} of {group.name}: {error}.")
    return found


def own_of_members(one: Metric, group: Group, labels: np.ndarray, over: str) -> dict | None:
    """A metric of the user's own over members, with Student's interval; None where it fails."""
    try:
        values = [float(own_metrics.values(one, logits, labels).mean()) for logits in group.test]
    except UserError:
        return None
    return of_members(values, over)


def own_of_ensemble(one: Metric, logits: np.ndarray, predictions: Predictions) -> dict | None:
    """A metric of one fused decision, with its interval over test examples.

    Where it is one number for all examples, those of each class are resampled by themselves, or whole
    `Predictions.units`: of these a resample for which the metric fails is left out.
    """
    labels, units = predictions.test_labels, predictions.units

    def of_resample(times: np.ndarray) -> list[float]:
        rows = np.repeat(np.arange(len(labels)), times)
        try:
            return [float(own_metrics.values(one, logits[rows], labels[rows]))]
        except UserError:
            return [np.nan]

    try:
        values = own_metrics.values(one, logits, labels)
    except UserError:
        return None
    if values.ndim:
        return over_examples(predictions.by_unit(values))
    (interval,) = _resampled(of_resample, labels, units, num_resamples=OWN_RESAMPLES)
    return of_ensemble(float(values), interval)


def _resampled(
    statistics: Callable[[np.ndarray], Sequence[float]],
    strata: np.ndarray,
    units: np.ndarray | None,
    **how: Any,
) -> list[intervals.Interval | None]:
    """`intervals.bootstrap_statistics` of the examples of each stratum alone, or of whole units [N]."""
    if units is None:
        return intervals.bootstrap_statistics(statistics, strata, **how)
    together = np.zeros(units.max() + 1)
    return intervals.bootstrap_statistics(lambda times: statistics(times[units]), together, **how)


def detection_of_members(predictions: Predictions, group: Group, over: str) -> dict:
    """The DETECTION of a row of networks; None each where there is no class to be detected."""
    positive = lookup.detected(predictions)
    if positive is None:
        return dict.fromkeys(DETECTION)
    each = [detector(predictions, positive, val, test) for val, test in zip(group.val, group.test)]
    found = {name: over_members(name, each, over) for name in each[0]}
    return _with_operating_point(found)


def detection_of_ensemble(predictions: Predictions, decided: dict[str, np.ndarray]) -> dict:
    """The same of one fused decision, with bootstrap intervals; validation's threshold is held fixed."""
    positive = lookup.detected(predictions)
    if positive is None:
        return dict.fromkeys(DETECTION)
    one = detector(predictions, positive, decided["val"], decided["test"])
    scores = metrics.log_odds(decided["test"], positive)
    order = np.argsort(scores)  # so that no resample has to be sorted again
    scores, is_positive = scores[order], predictions.test_labels[order] == positive
    units = predictions.units
    units = None if units is None else units[order]
    kinds_of = {"recall": is_positive, "false_alarm_rate": ~is_positive}

    def statistics(times: np.ndarray) -> tuple[float, float]:
        if not all((times * kind).any() for kind in kinds_of.values()):  # units of one kind alone
            return np.nan, np.nan
        curve = metrics.roc(scores, is_positive, times)
        return metrics.auroc(curve), metrics.recall_at(curve, predictions.false_alarm_rate)

    interval_of = dict(zip(DETECTION, _resampled(statistics, is_positive, units, ends=(0.0, 1.0))))
    on_val = metrics.log_odds(decided["val"], positive), predictions.val_labels == positive
    alarm = scores > metrics.alarm_threshold(on_val, predictions.false_alarm_rate)
    for name, kind in kinds_of.items():
        interval_of[name] = _of_share(alarm & kind, kind, units)
    return _with_operating_point(
        {name: of_ensemble(value, interval_of.get(name)) for name, value in one.items()}
    )


def _of_share(found: np.ndarray, of: np.ndarray, units: np.ndarray | None) -> intervals.Interval | None:
    """Of a share of examples [N] bool, by resampling those that it is of, or whole units."""
    if units is None:
        return intervals.bootstrap_shares(np.array([found.sum()]), np.array([of.sum()]))
    counts = sum_by_unit(np.stack([found, of], axis=-1), units)
    counts = counts[counts[:, 1] > 0]
    return intervals.bootstrap_sums(counts, lambda total: total[0] / total[1], ends=(0.0, 1.0))


def _with_operating_point(found: dict) -> dict:
    own = {name: found[name] for name in DETECTION[:2]}
    return {**own, "operating_point": {name: found[name] for name in found if name not in own}}


def detector(predictions: Predictions, positive: int, val: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """What one network, of logits [V,2] and [N,2], is worth as a detector: all DETECTION is made of."""
    rate = predictions.false_alarm_rate
    on_val, on_test = (
        (metrics.log_odds(logits, positive), labels == positive)
        for logits, labels in ((val, predictions.val_labels), (test, predictions.test_labels))
    )
    curve = metrics.roc(*on_test)
    return {
        "auroc": metrics.auroc(curve),
        "recall_at_false_alarm_rate": metrics.recall_at(curve, rate),
        **metrics.operating_point(on_val, on_test, rate),
    }
