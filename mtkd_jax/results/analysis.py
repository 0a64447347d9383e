"""The numbers of the report: rows, gaps, paired comparisons, the student to keep. Pure; plain Python out.

A row's metric is {"mean", "std", "ci95", "ci_over", "values"}; whatever is not defined is None. "verdict" is
one word on its accuracy against the baseline on the same images, None where nothing was compared. Where one
class of two is to be detected a row also has "auroc", "recall_at_false_alarm_rate" (the threshold is that of
the test ROC) and "operating_point" (the threshold is validation's), a dict of such metrics.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np

from mtkd_jax import config as configuration
from mtkd_jax.config import CONTROLS, control_and_mode, name_and_model, row_of, row_of_control
from mtkd_jax.fusion import rules
from mtkd_jax.models.thinned import THINNED
from mtkd_jax.results import intervals, metrics, power, sequential
from mtkd_jax.runs.predictions import Group, Predictions
from mtkd_jax.system import own_metrics
from mtkd_jax.tasks import kinds
from mtkd_jax.tasks.kinds import Measure, PlaceOutputs
from mtkd_jax.types import Metric, UserError

METRICS = ("accuracy", "nll", "ece", "brier", "balanced_accuracy")
DETECTION = ("auroc", "recall_at_false_alarm_rate", "operating_point")
LARGEST = {"nll": np.inf, "brier": 2.0, "misses": np.inf, "false_alarms": np.inf}  # all others end at 1
TESTED = ("accuracy", "nll")
OWN_RESAMPLES = 200  # of a number of the user's own, whose cost nobody knows
OF_NO_ADDRESS = ("specialist ", THINNED)  # networks that nothing could be exported of
BLOCK = 2048  # examples fused at a time, so that memory does not grow with their number
CROSS_FAMILY = "unlabelled against labelled"
IMBALANCED = 1.5  # times the examples of the smallest class in the largest one, and accuracy misleads


def teachers(predictions: Predictions) -> list[Group]:
    """The teacher groups, one an architecture."""
    return [group for group in predictions.groups if group.role == "teacher"]


def teacher_names(predictions: Predictions) -> list[str]:
    """A name for each of the K teachers, with the architecture where there are several."""
    groups = teachers(predictions)
    return [
        name if len(groups) == 1 else f"{group.name} {name}" for group in groups for name in group.members
    ]


def transfers(predictions: Predictions) -> list[str]:
    """The transfer sets students were trained on, in the order of the run."""
    return list(dict.fromkeys(group.transfer for group in predictions.groups if group.transfer))


def student_models(predictions: Predictions) -> list[str]:
    """The architectures of the students that are compared, in the order of the run.

    Assistants are there to teach, and mean probabilities of several networks are of the same ones.
    """
    compared = ("student", "baseline", "control")
    return list(dict.fromkeys(group.architecture for group in predictions.groups if group.role in compared))


def find(
    predictions: Predictions, transfer: str, *, role: str = "", name: str = "", architecture: str = ""
) -> Group | None:
    """The first group of `transfer` with that role, name and architecture, where they are given; or None."""
    for group in predictions.groups:
        asked = ((role, group.role), (name, group.name), (architecture, group.architecture))
        if group.transfer == transfer and all(one in ("", own) for one, own in asked):
            return group
    return None


def baseline_of(predictions: Predictions, group: Group, transfer: str = "") -> Group | None:
    """The baseline that a group of students is compared with: of its architecture, and of its transfer set.

    Or of another `transfer`; None where there is none.
    """
    return find(predictions, transfer or group.transfer, role="baseline", architecture=group.architecture)


def controls_of(predictions: Predictions, group: Group) -> list[Group]:
    """The same students taught by an untrained or a shuffled teacher, where the run has them."""
    names = [row_of_control(control, group.name) for control in CONTROLS]
    found = (find(predictions, group.transfer, name=name, architecture=group.architecture) for name in names)
    return [one for one in found if one is not None]


def detected(predictions: Predictions) -> int | None:
    """The class to be detected; None unless there are two classes, both in validation and in test.

    Nor of a dense task, of whose places most are as often as not of one class.
    """
    if predictions.test_groups is not None:
        return None
    present = [np.unique(labels).tolist() for labels in (predictions.val_labels, predictions.test_labels)]
    if len(predictions.class_names) != 2 or present != [[0, 1], [0, 1]]:
        return None
    return predictions.class_names.index(predictions.positive) if predictions.positive else 1


def teacher_logits(predictions: Predictions, split: str = "test") -> np.ndarray:
    """The logits of every teacher of every architecture, [K,N,C]; split is "test" or "val"."""
    of_groups = [getattr(group, split) for group in teachers(predictions)]
    return of_groups[0] if len(of_groups) == 1 else np.concatenate(of_groups)  # they may be large


def mean_beside(predictions: Predictions) -> dict[str, np.ndarray]:
    """What all teachers predict of test places beside logits, averaged, {name: [N,d]}; {} if any does not.

    What they say when they are asked in another way has no mean.
    """
    groups = teachers(predictions)
    names = set.intersection(*(set(group.beside) for group in groups)) if groups else set()
    names -= set(kinds.named(predictions.task).asks)
    return {name: np.concatenate([group.beside[name] for group in groups]).mean(axis=0) for name in names}


def fused(predictions: Predictions, rule: str) -> dict[str, np.ndarray]:
    """All teachers' decision by `rule`, {"val": [V,C], "test": [N,C]}.

    Log-probabilities, or places for the rank rules. A fitted rule is fitted on the validation split.
    """
    logits = {split: teacher_logits(predictions, split) for split in ("val", "test")}
    return fuse(rule, logits, predictions.val_labels)


def fuse(
    rule: str, logits: Mapping[str, np.ndarray], val_labels: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The decision by `rule` of the members' logits [K,n,C] of every part, {part: [n,C]}.

    Log-probabilities, or places for the rank rules. A fitted rule is fitted on the part "val".
    """
    decide = rules.rule(rule)
    if rules.is_fitted(rule):
        decide = decide(logits["val"], val_labels)
    decide, size = jax.jit(decide), min(BLOCK, max(part.shape[1] for part in logits.values()))
    scores = {split: _in_blocks(decide, part, size) for split, part in logits.items()}
    if rules.is_rank(rule):
        return scores
    tiny = np.finfo(np.float32).tiny  # a probability may underflow to 0
    return {split: np.log(np.maximum(probs, tiny)) for split, probs in scores.items()}


def _in_blocks(decide: Callable, logits: np.ndarray, size: int) -> np.ndarray:
    """`decide` of logits [K,N,C], `size` examples at a time; the last block is filled up: one compilation."""
    parts = []
    for start in range(0, logits.shape[1], size):
        part = logits[:, start : start + size]
        filled = np.pad(part, ((0, 0), (0, size - part.shape[1]), (0, 0)))
        parts.append(np.asarray(decide(filled))[: part.shape[1]])
    return np.concatenate(parts)


def chosen_student(predictions: Predictions, architecture: str = "") -> tuple[Group, int] | None:
    """The student to keep: the row with the lowest mean validation NLL, and of its seeds the lowest.

    Of an `architecture`, or "" of any. Baselines and controls are there to compare with and are never chosen;
    None when there is no student.
    """
    students = [
        group
        for group in predictions.groups
        if group.role == "student" and architecture in ("", group.architecture)
    ]
    if not students:
        return None
    nlls = [[metrics.nll(logits, predictions.val_labels) for logits in group.val] for group in students]
    best = _lowest([np.mean(values) for values in nlls])
    return students[best], _lowest(nlls[best])


def network_to_deploy(predictions: Predictions) -> tuple[Group, int] | None:
    """The single network that `predictions.choose` asks for; None where there is none.

    "best": that with the lowest validation NLL of all; "student": `chosen_student`; a row's name: the lowest
    of that row, whatever its transfer set and its architecture, unless "NAME @ ARCHITECTURE" says which.
    Where none of these is left, as when all broke down, the best.
    """
    single, (name, model) = single_networks(predictions), name_and_model(predictions.choose)
    if name == "student" and (student := chosen_student(predictions, model)) is not None:
        return student
    asked = [one for one in single if one[0].name == name and model in ("", one[0].architecture)] or single
    return _best_of(asked, predictions) if asked else None


def single_networks(predictions: Predictions) -> list[tuple[Group, int]]:
    """Every network that answers alone and could be deployed.

    Not averages of several, specialists, which know no more than their classes, draws of dropout, which no
    address makes, students of a control, and teachers of whom logits alone are known.
    """
    return [
        (group, member)
        for group in predictions.groups
        if group.role not in ("average", "cohort", "linear")
        and not group.architecture.startswith(OF_NO_ADDRESS)
        if not control_and_mode(group.name)[0]
        if group.params is not None
        for member in range(len(group.members))
    ]


def _best_of(networks: list[tuple[Group, int]], predictions: Predictions) -> tuple[Group, int]:
    nlls = [metrics.nll(group.val[member], predictions.val_labels) for group, member in networks]
    return networks[_lowest(nlls)]


def _lowest(values: list[float]) -> int:
    return int(np.argmin(np.nan_to_num(values, nan=np.inf)))  # NaN would win an argmin


# --- rows ---------------------------------------------------------------------------------------------


def rows(predictions: Predictions) -> list[dict]:
    """Teachers (a row an architecture), a linear model, fusion rules, then students, baselines and controls.

    A rule that cannot fuse these teachers, of whom some may have diverged, has no row.
    """
    linear = [group for group in predictions.groups if group.role == "linear"]
    others = [group for group in predictions.groups if group.role not in ("teacher", "linear")]
    share_of = {(gap["transfer"], gap["architecture"]): gap for gap in gaps(predictions)}
    return [
        *(_group_row(predictions, group, None) for group in teachers(predictions)),
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
    found = {name: _over_members(name, test, over) for name in METRICS}
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
        **_detection_of_members(predictions, group, over),
        "own": {
            **{
                one.name: _measured_of_members(one, group, predictions, over) for one in measures(predictions)
            },
            **{
                one.name: _own_of_members(one, group, predictions.test_labels, over)
                for one in own(predictions).values()
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
    if predictions.test_groups is None:
        return len(predictions.val_labels)
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
        fused(predictions, rule)
    except UserError as error:
        return str(error)
    return ""


def _ensemble_row(predictions: Predictions, rule: str) -> dict:
    groups = teachers(predictions)
    decided = fused(predictions, rule)
    on_test = metrics.per_example(decided["test"], predictions.test_labels)
    on_val = metrics.summary(decided["val"], predictions.val_labels)
    asked = predictions.ensemble_beside if rule == "mean_probs" else {}
    found = {name: _over_examples(predictions.by_unit(values)) for name, values in on_test.items()}
    matrix = metrics.confusion(decided["test"], predictions.test_labels)
    present = matrix.sum(axis=1) > 0
    found["balanced_accuracy"] = _of_ensemble(
        metrics.balanced_accuracy(decided["test"], predictions.test_labels),
        intervals.bootstrap_shares(np.diagonal(matrix)[present], matrix.sum(axis=1)[present])
        if predictions.test_groups is None
        else _balanced_over_units(predictions, decided["test"]),
    )
    ranks = rules.is_rank(rule)  # places are no probabilities
    whole = said(predictions, decided["test"], {**mean_beside(predictions), **asked})
    if ranks:
        found |= {"nll": None, "brier": None, "ece": None}
    else:
        # Resampling adds noise to the gap of every bin and so moves ECE up: no honest interval here.
        found["ece"] = _of_ensemble(metrics.ece(decided["test"], predictions.test_labels), None)
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
        **(dict.fromkeys(DETECTION) if ranks else _detection_of_ensemble(predictions, decided)),
        "own": {
            **{one.name: None if ranks else _measured_of_one(one, whole) for one in measures(predictions)},
            **{
                one.name: None
                if ranks and not one.of_places
                else _own_of_ensemble(one, decided["test"], predictions.test_labels)
                for one in own(predictions).values()
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


def _over_members(name: str, summaries: list[dict], over: str) -> dict:
    return _of_members([one[name] for one in summaries], over, (0.0, LARGEST.get(name, 1.0)))


def _of_members(values: list[float], over: str, ends: tuple[float, float] = (-np.inf, np.inf)) -> dict:
    """A number over members. Student's t does not know where it ends; its interval is cut there."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    ci95 = _within(intervals.t_interval(values), ends)
    return {"mean": float(np.mean(values)), "std": std, "ci95": ci95, "ci_over": over, "values": values}


def _over_examples(values: np.ndarray) -> dict:
    return _of_ensemble(float(values.mean()), intervals.bootstrap_interval(values))


def _of_ensemble(value: float, interval: intervals.Interval | None) -> dict:
    return {"mean": value, "std": None, "ci95": interval, "ci_over": "test_examples", "values": [value]}


def _balanced_over_units(predictions: Predictions, logits: np.ndarray) -> intervals.Interval:
    """Of the mean recall of classes, by resampling what places belong to."""
    labels, right = predictions.test_labels, logits.argmax(axis=-1) == predictions.test_labels
    _, unit = np.unique(predictions.test_groups, return_inverse=True)
    counts = np.zeros((2, unit.max() + 1, logits.shape[-1]))
    np.add.at(counts, (1, unit, labels), 1.0)
    np.add.at(counts, (0, unit, labels), right)

    def recall(total: np.ndarray) -> float:
        found, of = total
        return float((found[of > 0] / of[of > 0]).mean())

    return intervals.bootstrap_sums(np.moveaxis(counts, 1, 0), recall)


# --- what a task measures ------------------------------------------------------------------------------


def measures(predictions: Predictions) -> tuple[Measure, ...]:
    """The measures of the task, which are told beside those of classes."""
    return kinds.named(predictions.task).measures


def said(predictions: Predictions, logits: np.ndarray, beside: Mapping[str, np.ndarray]) -> PlaceOutputs:
    """What one network says of the test places [N,C], as a task's measures take it."""
    _, example = np.unique(predictions.test_index, return_inverse=True)
    places, goals = predictions.test_places, predictions.test_goals
    place = np.zeros(len(logits), np.int32) if places is None else places
    return PlaceOutputs(
        logits, predictions.test_labels, example, place, beside, goals, predictions.class_names
    )


def _measured_of_members(one: Measure, group: Group, predictions: Predictions, over: str) -> dict | None:
    """A task's measure over members, with Student's interval; of one member by resampling examples."""
    each = [
        said(predictions, logits, {name: of[s] for name, of in group.beside.items()})
        for s, logits in enumerate(group.test)
    ]
    if len(each) == 1:
        return _measured_of_one(one, each[0])
    if not set(one.beside) <= group.beside.keys():
        return None
    return _of_members([_value(one, of_one) for of_one in each], over, one.ends)


def _within(interval: intervals.Interval | None, ends: intervals.Interval) -> intervals.Interval | None:
    """The interval cut at the ends of all values; None where an end of it is no number."""
    if interval is None or not np.isfinite(interval).all():
        return None
    low, high = np.clip(interval, *ends)
    return float(low), float(high)


def _value(one: Measure, told: PlaceOutputs) -> float:
    found = one.compute(told)
    if callable(found):
        return float(found(np.ones(told.num_examples)))
    found = np.asarray(found, np.float64)
    return float(one.value(found.sum(axis=0)) if one.value else found.mean())


def _measured_of_one(one: Measure, told: PlaceOutputs) -> dict | None:
    """The same of one network or fused decision, over test examples; None where it lacks what is measured.

    A function of how often examples count has the interval of a jackknife: resamples move a mean precision.
    """
    if not set(one.beside) <= told.beside.keys():
        return None
    found = one.compute(told)
    if callable(found):
        interval = intervals.jackknife_interval(found, told.num_examples, num_groups=OWN_RESAMPLES)
        value = float(found(np.ones(told.num_examples)))
        return {**_of_ensemble(value, _within(interval, one.ends)), "ci_by": "jackknife"}
    found = np.asarray(found, np.float64)
    if found.ndim == 0:  # one number for all: every resample computes it anew
        rng, num = np.random.default_rng(0), told.num_examples
        drawn = (rng.integers(num, size=num) for _ in range(OWN_RESAMPLES))
        resampled = np.array([float(one.compute(told.take(examples))) for examples in drawn])
        return _of_ensemble(float(found), _within(intervals.percentiles(resampled), one.ends))
    interval = (
        intervals.bootstrap_sums(found, one.value) if one.value else intervals.bootstrap_interval(found)
    )
    value = float(one.value(found.sum(axis=0)) if one.value else found.mean())
    return _of_ensemble(value, _within(interval, one.ends))


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


def _own_of_members(one: Metric, group: Group, labels: np.ndarray, over: str) -> dict | None:
    """A metric of the user's own over members, with Student's interval; None where it fails."""
    try:
        values = [float(own_metrics.values(one, logits, labels).mean()) for logits in group.test]
    except UserError:
        return None
    return _of_members(values, over)


def _own_of_ensemble(one: Metric, logits: np.ndarray, labels: np.ndarray) -> dict | None:
    """A metric of one fused decision, with its interval over test examples.

    Where it is one number for all examples, those of each class are resampled by themselves.
    """

    def of_resample(times: np.ndarray) -> list[float]:
        rows = np.repeat(np.arange(len(labels)), times)
        return [float(own_metrics.values(one, logits[rows], labels[rows]))]

    try:
        values = own_metrics.values(one, logits, labels)
        if values.ndim:
            return _over_examples(values)
        (ci95,) = intervals.bootstrap_statistics(of_resample, labels, num_resamples=OWN_RESAMPLES)
        return _of_ensemble(float(values), ci95)
    except UserError:
        return None


def _detection_of_members(predictions: Predictions, group: Group, over: str) -> dict:
    """The DETECTION of a row of networks; None each where there is no class to be detected."""
    positive = detected(predictions)
    if positive is None:
        return dict.fromkeys(DETECTION)
    each = [_detector(predictions, positive, val, test) for val, test in zip(group.val, group.test)]
    found = {name: _over_members(name, each, over) for name in each[0]}
    return _with_operating_point(found)


def _detection_of_ensemble(predictions: Predictions, decided: dict[str, np.ndarray]) -> dict:
    """The same of one fused decision, with bootstrap intervals; validation's threshold is held fixed."""
    positive = detected(predictions)
    if positive is None:
        return dict.fromkeys(DETECTION)
    one = _detector(predictions, positive, decided["val"], decided["test"])
    scores = metrics.log_odds(decided["test"], positive)
    order = np.argsort(scores)  # so that no resample has to be sorted again
    scores, is_positive = scores[order], predictions.test_labels[order] == positive

    def statistics(times: np.ndarray) -> tuple[float, float]:
        curve = metrics.roc(scores, is_positive, times)
        return metrics.auroc(curve), metrics.recall_at(curve, predictions.false_alarm_rate)

    num_positive, num_negative = int(is_positive.sum()), int((~is_positive).sum())
    interval_of = dict(zip(DETECTION, intervals.bootstrap_statistics(statistics, is_positive)))
    interval_of["recall"] = intervals.bootstrap_shares([num_positive - one["misses"]], [num_positive])
    interval_of["false_alarm_rate"] = intervals.bootstrap_shares([one["false_alarms"]], [num_negative])
    return _with_operating_point(
        {name: _of_ensemble(value, interval_of.get(name)) for name, value in one.items()}
    )


def _with_operating_point(found: dict) -> dict:
    own = {name: found[name] for name in DETECTION[:2]}
    return {**own, "operating_point": {name: found[name] for name in found if name not in own}}


def _detector(predictions: Predictions, positive: int, val: np.ndarray, test: np.ndarray) -> dict[str, float]:
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


def _total(parts: Iterable[tuple[float | None, int]]) -> float | None:
    """Sum of value * count; None as soon as one value is unknown."""
    parts = list(parts)
    return None if any(value is None for value, _ in parts) else sum(value * count for value, count in parts)


# --- what is there to hand down -----------------------------------------------------------------------


def gaps(predictions: Predictions) -> list[dict]:
    """Ensemble (mean_probs) minus baseline in accuracy, one a baseline; what gap shares divide by.

    The interval resamples seeds and test examples, paired by example. `larger_than_noise` asks that it lies
    above 0 and that there are two seeds at least; otherwise a share would be a ratio of noise. "verdict" is
    read off the interval, of two seeds at least: inside the margin whole, above 0, or below it.
    """
    baselines = [group for group in predictions.groups if group.role == "baseline"]
    if not baselines:
        return []
    ensemble = _right_of_ensemble(predictions)
    found = []
    for baseline in baselines:
        right = _accuracies(baseline.test, predictions.test_labels)
        low, high = intervals.bootstrap_interval(predictions.by_unit(ensemble[None] - right))
        found.append(
            {
                "transfer": baseline.transfer,
                "architecture": baseline.architecture,
                "ensemble": float(ensemble.mean()),
                "baseline": float(right.mean()),
                "difference": float(ensemble.mean() - right.mean()),
                "ci95": (low, high),
                "larger_than_noise": bool(low > 0 and len(right) > 1),
                "verdict": _verdict_of_gap((low, high), predictions.margin, len(right)),
            }
        )
    return found


def _verdict_of_gap(interval: intervals.Interval, margin: float, num_seeds: int) -> str:
    if num_seeds < 2:
        return "undecided"
    if intervals.inside(interval, margin):
        return "equivalent"
    return "better" if interval[0] > 0 else "worse" if interval[1] < 0 else "undecided"


def _right_of_ensemble(predictions: Predictions) -> np.ndarray:
    """[N], 1 where all teachers fused by mean_probs are right."""
    logits = fused(predictions, "mean_probs")["test"]
    return metrics.per_example(logits, predictions.test_labels)["accuracy"]


def _accuracies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[S,N,C] -> [S,N], 1 where the decision is right."""
    return np.stack([metrics.per_example(one, labels)["accuracy"] for one in logits])


def students_by_size(predictions: Predictions) -> list[dict]:
    """The students' architectures from the smallest on, each by the row that validation chooses for it.

    [{"architecture", "params", "name", "transfer", "n", "difference", "ci95", "p_value", "p_equivalence",
    "verdict"}]: the row's accuracy minus that of the ensemble (mean_probs), by a bootstrap over seeds and
    test examples, paired by example; "equivalent" is by two one-sided tests at the margin. Nothing is
    corrected for how many there are. Of one seed nothing is tested: p is None and the verdict "undecided".
    """
    chosen = [chosen_student(predictions, model) for model in student_models(predictions)]
    groups = [one[0] for one in chosen if one is not None]
    ensemble = _right_of_ensemble(predictions) if groups else None
    found = []
    for group in sorted(groups, key=lambda group: group.params):
        right = _accuracies(group.test, predictions.test_labels)
        tested = intervals.bootstrap_tests(predictions.by_unit(right - ensemble), predictions.margin)
        p_values = [tested[name] if len(right) > 1 else None for name in ("p_value", "p_equivalence")]
        found.append(
            {
                "architecture": group.architecture,
                "params": group.params,
                "name": group.name,
                "transfer": group.transfer,
                "n": len(right),
                "difference": tested["mean_difference"],
                "ci95": tested["ci95"],
                **dict(zip(("p_value", "p_equivalence"), p_values)),
                "verdict": intervals.verdict(
                    tested["mean_difference"], p_values[0], tested["ci95"], p_values[1], predictions.margin
                ),
            }
        )
    return found


# --- comparisons --------------------------------------------------------------------------------------


def comparisons(predictions: Predictions) -> list[dict]:
    """Paired t over seeds on accuracy and NLL for a list fixed before any number is seen.

    Every mode against its baseline, one with more heads against its control, every mode against output_avg
    and against its own controls (`students.controls`), these against the baseline, too; and, where both
    transfer sets were used, every mode with the unlabelled images against the labelled-only baseline; and
    every two modes that learned with peers against one another; always of one architecture. Holm's correction
    within each family (a transfer set with all its architectures, or one of the last two lists) and metric.
    Accuracies are also tested for equivalence, at 5 % each; "verdict" is the word for both, see
    `intervals.verdict`.

    Where seeds were added until it was decided, all of that by `sequential`, and "decided_at" is the number
    of pairs from which on every look had the verdict there is now; None of what is undecided.
    """
    values = {
        group.key: [metrics.summary(logits, predictions.test_labels) for logits in group.test]
        for group in predictions.groups
        if group.transfer
    }
    found = _tested(predictions, values)
    if not predictions.always_valid:
        return found
    most = max((one["n"] for one in found), default=0)
    looks = [*range(configuration.SEEDS_AT_ONCE, most, configuration.SEEDS_AT_ONCE), most]
    said = [[one["verdict"] for one in _tested(predictions, values, look)] for look in looks]
    return [{**one, "decided_at": _decided_at(looks, verdicts)} for one, verdicts in zip(found, zip(*said))]


def _decided_at(looks: Sequence[int], verdicts: Sequence[str]) -> int | None:
    """
    >>> _decided_at((5, 10, 15), ("undecided", "better", "better")), _decided_at((5,), ("undecided",))
    (10, None)
    """
    if verdicts[-1] == "undecided":
        return None
    changed = [place for place, one in enumerate(verdicts) if one != verdicts[-1]]
    return looks[changed[-1] + 1 if changed else 0]


def undecided(predictions: Predictions) -> list[dict]:
    """The comparisons to decide whose verdict is that; NLLs have no margin and are never equal."""
    return [one for one in power.to_decide(comparisons(predictions)) if one["verdict"] == "undecided"]


def _tested(predictions: Predictions, values: dict, most: int | None = None) -> list[dict]:
    """`comparisons` of the first `most` pairs of each; None: of all."""
    found = []
    for metric in TESTED:
        for family, pairs in _families(predictions).items():
            tested = [_compare(predictions, a, b, metric, values, len(pairs), most) for a, b in pairs]
            corrected = intervals.holm([one["p_value"] for one in tested])
            found += [
                {**one, "p_holm": p, "family": family, "verdict": _verdict(one, p, predictions.margin)}
                for one, p in zip(tested, corrected)
            ]
    return found


def _verdict(one: dict, p_holm: float | None, margin: float) -> str:
    if one["metric"] == "nll":  # less is better, and the margin is one of accuracy
        return intervals.verdict(-one["mean_difference"], p_holm)
    return intervals.verdict(one["mean_difference"], p_holm, one["ci95"], one["p_equivalence"], margin)


def _families(predictions: Predictions) -> dict[str, list[tuple[Group, Group]]]:
    families = {transfer: _pairs(predictions, transfer) for transfer in transfers(predictions)}
    across = [
        (mode, baseline_of(predictions, mode, "labelled")) for mode in _modes(predictions, "unlabelled")
    ]
    families[CROSS_FAMILY] = [(mode, baseline) for mode, baseline in across if baseline is not None]
    families[power.WITH_PEERS] = _pairs_with_peers(predictions)
    return families


def _pairs(predictions: Predictions, transfer: str) -> list[tuple[Group, Group]]:
    found = []
    for model in student_models(predictions):
        modes = [mode for mode in _modes(predictions, transfer) if mode.architecture == model]
        control = find(predictions, transfer, name="control", architecture=model)
        many_headed = [mode for mode in modes if control is not None and mode.params == control.params]
        by_control = [
            (mode, taught_otherwise) for mode in modes for taught_otherwise in controls_of(predictions, mode)
        ]
        own_controls = [taught_otherwise for _, taught_otherwise in by_control]
        rivals = (
            ([*modes, *own_controls], find(predictions, transfer, role="baseline", architecture=model)),
            (many_headed, control),
            (modes, find(predictions, transfer, name="output_avg", architecture=model)),
        )
        found += [(a, b) for group, b in rivals if b is not None for a in group if a is not b]
        found += by_control
    return found


def _pairs_with_peers(predictions: Predictions) -> list[tuple[Group, Group]]:
    """Every two rows of students that learned with peers, of one transfer set and architecture."""
    learned = [group for group in predictions.groups if group.role == "student" and group.num_in_cohort > 1]
    return [
        (a, b)
        for a, b in itertools.combinations(learned, 2)
        if (a.transfer, a.architecture) == (b.transfer, b.architecture)
    ]


def _modes(predictions: Predictions, transfer: str) -> list[Group]:
    compared = ("student", "average")
    return [group for group in predictions.groups if group.transfer == transfer and group.role in compared]


def _compare(
    predictions: Predictions, a: Group, b: Group, metric: str, values: dict, num_tests: int, most: int | None
) -> dict:
    always_valid = predictions.always_valid
    paired, equivalence_p = (
        (sequential.paired, sequential.equivalence_p)
        if always_valid
        else (intervals.paired_t, intervals.equivalence_p)
    )
    shared = [name for name in a.members if name in b.members][:most]
    of_a, of_b = (
        [values[group.key][group.members.index(name)][metric] for name in shared] for group in (a, b)
    )
    return {
        "a": a.name,
        "a_transfer": a.transfer,
        "b": b.name,
        "b_transfer": b.transfer,
        "architecture": a.architecture,
        "metric": metric,
        **paired(of_a, of_b),
        "test": "t mixture" if always_valid else "paired t",
        "std": float(np.std(np.subtract(of_a, of_b), ddof=1)) if len(shared) > 1 else None,
        "p_equivalence": equivalence_p(of_a, of_b, predictions.margin) if metric == "accuracy" else None,
        "detectable": None if always_valid else intervals.detectable_difference(of_a, of_b, num_tests),
    }


def cohorts(predictions: Predictions) -> list[dict]:
    """What students lose against the cohorts they learned in: leader minus cohort in accuracy, over seeds.

    [{"name", "transfer", "architecture", "num_in_cohort", "mean_difference", "ci95", "p_value", "n",
    "cohort": the cohort's mean accuracy, "peers_apart": the mean over seeds}]; paired t, nothing is
    corrected. The decision of a cohort is that of the mean probabilities of its peers.
    """
    found = []
    for group in predictions.groups:
        if group.role != "cohort":
            continue
        leader = find(
            predictions,
            group.transfer,
            name=group.name.removesuffix(configuration.COHORT),
            architecture=group.architecture,
        )
        of_leader, of_cohort = (
            [metrics.accuracy(logits, predictions.test_labels) for logits in one.test]
            for one in (leader, group)
        )
        apart = group.peers_apart[np.isfinite(group.peers_apart)]
        found.append(
            {
                **{name: getattr(leader, name) for name in ("name", "role", "transfer", "architecture")},
                "num_in_cohort": group.num_in_cohort,
                **intervals.paired_t(of_leader, of_cohort),
                "cohort": float(np.mean(of_cohort)),
                "peers_apart": float(apart.mean()) if len(apart) else None,
            }
        )
    return found


def common_alpha(predictions: Predictions) -> dict | None:
    """Every mode at one alpha (each at its own temperature): {"alpha", "rows"}; None where none was kept."""
    kept = [group for group in predictions.groups if group.common_test is not None]
    if predictions.common_alpha is None or not kept:
        return None
    found = []
    for group in kept:
        test = [metrics.summary(logits, predictions.test_labels) for logits in group.common_test]
        fields = {"name": group.name, "transfer": group.transfer, "role": group.role}
        fields["architecture"] = group.architecture
        fields |= {"alpha": predictions.common_alpha, "temperature": group.temperature, "n": len(test)}
        found.append(fields | {name: _over_members(name, test, "seeds") for name in METRICS})
    return {"alpha": predictions.common_alpha, "rows": found}


def verdict_of(row: dict, compared: list[dict], gaps: list[dict]) -> str | None:
    """One word of `intervals.verdict` on a row's accuracy against the baseline of its transfer set.

    Of students, those of `students.controls` too, it is that of `comparisons`, of the ensemble by mean_probs
    that of `gaps`: where these differ between transfer sets or architectures, it is undecided. None for every
    other row, for it is not compared.
    """
    if row["rule"] == "mean_probs":
        said = {gap["verdict"] for gap in gaps}
        return (said.pop() if len(said) == 1 else "undecided") if said else None
    transfer, against = row["transfer"], ("baseline", row["transfer"], row["architecture"], "accuracy")
    for one in compared:
        b = (one["b"], one["b_transfer"], one["architecture"], one["metric"])
        if (one["a"], one["a_transfer"], *b) == (row["name"], transfer, *against):
            return one["verdict"]
    return None


# --- looked at one by one -----------------------------------------------------------------------------


def one_of_each(predictions: Predictions) -> dict[str, tuple[str, np.ndarray]]:
    """One network of each kind to look at: {role: (name to show, test logits [N,C])}.

    The first teacher, the ensemble, the student kept, and the baseline of its architecture, transfer set and
    seed.
    """
    several = len(student_models(predictions)) > 1
    first = teachers(predictions)[0]
    found = {"teacher": (f"one teacher ({first.members[0]})", first.test[0])}
    found["ensemble"] = ("ensemble (mean_probs)", fused(predictions, "mean_probs")["test"])
    chosen = chosen_student(predictions)
    if chosen is not None:
        group, member = chosen
        seed = group.members[member]
        model = group.architecture if several else ""
        found["student"] = (f"{row_of(group.name, model)} ({group.transfer}, {seed})", group.test[member])
        baseline = baseline_of(predictions, group)
        if baseline is not None and seed in baseline.members:
            logits = baseline.test[baseline.members.index(seed)]
            found["baseline"] = (f"{row_of('baseline', model)} ({group.transfer}, {seed})", logits)
    return found


def negative_transfer(predictions: Predictions) -> list[dict]:
    """How often a network says what the ensemble wrongly says, of test images that the ensemble gets wrong.

    [{"name", "role", "transfer", "architecture", "n", "num_wrong", "repeats", "baseline", "mean_difference",
    "ci95", "p_value", "p_holm"}], one for each row that shares seeds with its baseline, all of it over these.
    "repeats" is `metrics.share_repeated`, "baseline" its mean there: a network that nobody taught makes some
    of the same mistakes, and what is above that was handed down. Paired t, Holm's correction within a
    transfer set; the ensemble is that of mean_probs, and the images are held fixed. []
    where it is never wrong.
    """
    labels, said = predictions.test_labels, fused(predictions, "mean_probs")["test"].argmax(axis=-1)
    num_wrong = int((said != labels).sum())
    if not num_wrong:
        return []
    found = []
    for group in predictions.groups:
        baseline = baseline_of(predictions, group) if group.transfer else None
        if baseline is None or group is baseline or group.role in ("assistant", "cohort"):
            continue
        shared = [member for member in group.members if member in baseline.members]
        if not shared:
            continue
        repeats, of_baseline = (
            [metrics.share_repeated(one.test[one.members.index(seed)], said, labels) for seed in shared]
            for one in (group, baseline)
        )
        found.append(
            {
                **{name: getattr(group, name) for name in ("name", "role", "transfer", "architecture")},
                "num_wrong": num_wrong,
                "repeats": _over_members("accuracy", [{"accuracy": one} for one in repeats], "seeds"),
                "baseline": float(np.mean(of_baseline)),
                **intervals.paired_t(repeats, of_baseline),
            }
        )
    for transfer in transfers(predictions):
        own = [one for one in found if one["transfer"] == transfer]
        for one, p_holm in zip(own, intervals.holm([one["p_value"] for one in own])):
            one["p_holm"] = p_holm
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


def numbers(predictions: Predictions) -> dict:
    """All numbers of report.json, under its keys. No NaN: what does not exist is None."""
    logits, labels = teacher_logits(predictions), predictions.test_labels
    class_counts = {
        split: np.bincount(of_split, minlength=len(predictions.class_names)).tolist()
        for split, of_split in (("val", predictions.val_labels), ("test", labels))
    }
    found_gaps, compared = gaps(predictions), comparisons(predictions)
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
            "student_models": student_models(predictions),
            "metrics": [
                {
                    "address": address,
                    "name": one.name,
                    "higher_is_better": one.higher_is_better,
                    "unit": one.unit,
                    "digits": one.digits,
                }
                for address, one in {
                    **{f"{predictions.task}: {one.name}": one for one in measures(predictions)},
                    **own(predictions),
                }.items()
            ],
            "task": predictions.task,
            "rows": [{**row, "verdict": verdict_of(row, compared, found_gaps)} for row in rows(predictions)],
            "gaps": found_gaps,
            "students_by_size": students_by_size(predictions),
            "comparisons": compared,
            "cohorts": cohorts(predictions),
            "negative_transfer": negative_transfer(predictions),
            "common_alpha": common_alpha(predictions),
            "chosen_student": _told(predictions, chosen_student(predictions)),
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
    positive = detected(predictions)
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
    names = teacher_names(predictions)
    return {
        "num_teachers": len(names),
        "members": names[: metrics.MOST_IN_PAIRS],
        **metrics.diversity(teacher_logits(predictions), predictions.test_labels),
    }


def _deployed(predictions: Predictions) -> dict | None:
    """What `_told` says of the network to deploy, of the best of all, and of the best of each role."""
    single, chosen = single_networks(predictions), network_to_deploy(predictions)
    if chosen is None:
        return None
    by_role: dict[str, list[tuple[Group, int]]] = {}
    for network in single:
        by_role.setdefault(network[0].role, []).append(network)
    return {
        **_told(predictions, chosen),
        "choose": predictions.choose,
        "num_networks": len(single),
        "best": _told(predictions, _best_of(single, predictions)),
        "best_of_role": {
            role: _told(predictions, _best_of(own, predictions)) for role, own in by_role.items()
        },
    }


def _told(predictions: Predictions, chosen: tuple[Group, int] | None) -> dict | None:
    """Where a network stands, and its numbers."""
    if chosen is None:
        return None
    group, member = chosen
    positive = detected(predictions)
    detector = None
    if positive is not None:
        detector = _detector(predictions, positive, group.val[member], group.test[member])
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


def plain(value):
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
