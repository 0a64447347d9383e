"""Where the data names groups, intervals over test examples resample whole groups."""

import dataclasses

import numpy as np
import pytest

from mtkd_jax.data import loading
from mtkd_jax.laboratory import rule_study
from mtkd_jax.report import caveats, document
from mtkd_jax.results import evaluation, intervals, lookup, measured
from mtkd_jax.tasks import kinds, masks
from mtkd_jax.types import DataSet, Metric, UserError
from tests import small
from tests.references import predictions as made

NUM_TEST, SIZE = 240, 12  # test examples, and those of a group


def grouped(num_classes=3, **fields):
    """A made-up run whose test examples are of twenty groups."""
    found = made.make(num_classes=num_classes, num_test=NUM_TEST, transfers=("labelled",))
    return dataclasses.replace(found, test_groups=np.arange(NUM_TEST) // SIZE, **fields)


def row(found, name="mean_probs"):
    (one,) = (one for one in document.build(found)["rows"] if one["name"] == name)
    return one


def right(found):
    decided = lookup.fused(found, "mean_probs")["test"]
    return (decided.argmax(axis=-1) == found.test_labels).astype(float)


def test_the_interval_of_the_ensemble_is_that_of_the_means_of_groups():
    found = grouped()
    expected = intervals.bootstrap_interval(right(found).reshape(-1, SIZE).mean(axis=1))
    assert row(found)["accuracy"]["ci95"] == pytest.approx(expected)
    alone = dataclasses.replace(found, test_groups=None)
    assert row(alone)["accuracy"]["ci95"] == pytest.approx(intervals.bootstrap_interval(right(found)))


def test_classes_in_groups_stay_classes():
    """Groups alone make no task of many places: it is still a detector, with a safety net."""
    report = document.build(grouped(num_classes=2, task="classes"))
    assert report["detection"] is not None and report["cascade"] is not None


def test_the_recall_of_classes_is_resampled_by_groups_too():
    """Groups that are all right or all wrong: the interval is as wide as of twenty examples."""
    found = grouped()
    logits = np.where(np.arange(NUM_TEST) // SIZE % 2, 1.0, -1.0)[:, None] * np.eye(3)[found.test_labels]
    low, high = measured.balanced_over_units(logits, found.test_labels, found.units)
    of_groups = np.std(right_of(logits, found).reshape(-1, SIZE).mean(axis=1), ddof=1) / np.sqrt(20)
    assert high - low == pytest.approx(2 * 2.093 * of_groups, rel=0.2)


def right_of(logits, found):
    return (logits.argmax(axis=-1) == found.test_labels).astype(float)


# --- detectors ------------------------------------------------------------------------------------------


def test_a_detector_of_groups_that_are_alike_is_known_no_better_than_their_number_says():
    """Twelve copies of each example: the intervals are those of the examples without copies."""
    once = made.make(num_classes=2, num_test=60, transfers=("labelled",))
    copied = dataclasses.replace(
        once,
        test_labels=np.repeat(once.test_labels, 12),
        test_index=np.arange(720),
        test_groups=np.repeat(np.arange(60), 12),
        groups=tuple(
            dataclasses.replace(
                one,
                test=np.repeat(one.test, 12, axis=1),
                common_test=None if one.common_test is None else np.repeat(one.common_test, 12, axis=1),
            )
            for one in once.groups
        ),
    )
    of_once, of_copies = row(once), row(copied)
    for name in ("auroc", "recall_at_false_alarm_rate"):
        assert of_copies[name]["mean"] == pytest.approx(of_once[name]["mean"])
        (low, high), (bottom, top) = of_copies[name]["ci95"], of_once[name]["ci95"]
        assert high - low == pytest.approx(top - bottom, rel=0.35)
    points = of_copies["operating_point"], of_once["operating_point"]
    for name in ("recall", "false_alarm_rate"):
        (low, high), (bottom, top) = (one[name]["ci95"] for one in points)
        assert high - low == pytest.approx(top - bottom, rel=0.35)


def test_groups_of_one_class_each_have_intervals_all_the_same():
    found = made.make(num_classes=2, num_test=60, transfers=("labelled",))
    found = dataclasses.replace(found, test_groups=found.test_labels * 3 + np.arange(60) % 3)
    one = row(found)
    low, high = one["auroc"]["ci95"]
    assert 0 <= low <= one["auroc"]["mean"] <= high <= 1


# --- metrics of one's own, and of a task ----------------------------------------------------------------


def test_metrics_of_ones_own_are_resampled_by_groups():
    found = grouped()
    logits = lookup.fused(found, "mean_probs")["test"]

    def of_each(logits, labels):
        return (logits.argmax(axis=-1) == labels).astype(np.float64)

    def of_all(logits, labels):
        return np.float64(of_each(logits, labels).mean())

    expected = intervals.bootstrap_interval(right(found).reshape(-1, SIZE).mean(axis=1))
    metric = own_metric(of_each)
    assert measured.own_of_ensemble(metric, logits, found)["ci95"] == pytest.approx(expected)
    low, high = measured.own_of_ensemble(own_metric(of_all), logits, found)["ci95"]
    assert high - low == pytest.approx(expected[1] - expected[0], rel=0.3)


def test_a_resample_for_which_a_metric_fails_is_left_out():
    found = grouped()
    logits, full = lookup.fused(found, "mean_probs")["test"], NUM_TEST

    def of_all(logits, labels):
        if np.bincount(labels)[0] > np.bincount(found.test_labels)[0] + 3 and len(labels) == full:
            raise UserError("too many of class 0")
        return np.float64(0.5 + len(labels) * 0)

    one = measured.own_of_ensemble(own_metric(of_all), logits, found)
    assert one["mean"] == 0.5 and one["ci95"] == (0.5, 0.5)


def test_measures_of_a_task_are_resampled_by_groups():
    """Each image twice: mIoU has the interval of the images without copies, by images of one group."""
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 3, (40, 25)), rng.normal(size=(40, 25, 3))
    logits += 1.5 * np.eye(3)[labels]
    measure = masks.KIND.measures[0]

    def outputs(times):
        number = 40 * times
        return kinds.PlaceOutputs(
            np.repeat(logits, times, axis=0).reshape(-1, 3),
            np.repeat(labels, times, axis=0).ravel(),
            np.repeat(np.arange(number), 25),
            np.tile(np.arange(25), number),
            class_names=("a", "b", "c"),
        )

    once = measured.task_of_one(measure, outputs(1), np.arange(40))
    twice = measured.task_of_one(measure, outputs(2), np.repeat(np.arange(40), 2))
    assert twice["mean"] == pytest.approx(once["mean"]) and twice["ci95"] == pytest.approx(once["ci95"])
    apart = measured.task_of_one(measure, outputs(2), np.arange(80))
    assert np.ptp(apart["ci95"]) < 0.85 * np.ptp(once["ci95"])


def own_metric(compute):
    return Metric("own", compute, higher_is_better=True)


def test_fusion_rules_are_compared_by_groups():
    found = grouped(rules=("mean_probs", "plurality"))
    study = rule_study.study(found, names=("mean_probs", "plurality"))
    of = {one["rule"]: one for one in study["rules"]}
    expected = intervals.bootstrap_interval(right(found).reshape(-1, SIZE).mean(axis=1))
    assert of["mean_probs"]["accuracy"]["ci95"] == pytest.approx(expected)
    decided = lookup.fused(found, "plurality")["test"].argmax(axis=-1) == found.test_labels
    tested = intervals.crossed_t((decided - right(found)).reshape(-1, SIZE).mean(axis=1), 0.0)
    assert of["plurality"]["against"]["p_value"] == pytest.approx(tested["p_value"])


# --- a run ----------------------------------------------------------------------------------------------


def test_a_run_keeps_the_groups_of_its_test_examples():
    dataset = DataSet(
        name="made up",
        train_images=np.zeros((60, 2, 2, 1), np.uint8),
        train_labels=np.tile([0, 1, 1], 20).astype(np.int32),
        test_images=np.zeros((3, 2, 2, 1), np.uint8),
        test_labels=np.array([0, 1, 1], np.int32),
        class_names=("a", "b"),
        train_groups=np.repeat(np.arange(20), 3),
        test_groups=np.array([20, 20, 21]),
    )
    split = loading.split(dataset, num_train=0, val_fraction=0.2, seed=0)
    found = evaluation._predictions(small.config(), split, [])
    np.testing.assert_array_equal(found.test_groups, [20, 20, 21])
    assert not found.is_dense
    without = dataclasses.replace(dataset, train_groups=None, test_groups=None)
    split = loading.split(without, num_train=0, val_fraction=0.2, seed=0)
    assert evaluation._predictions(small.config(), split, []).test_groups is None


def test_of_one_group_the_report_has_no_interval_over_test_examples():
    found = dataclasses.replace(grouped(), test_groups=np.zeros(NUM_TEST, int))
    report = document.build(found)
    assert {one["verdict"] for one in report["gaps"]} == {"undecided"}
    assert {one["ci95"] for one in report["gaps"]} == {None}
    assert all(row["accuracy"]["ci95"] is None for row in report["rows"] if row["role"] == "ensemble")
    (kept,) = report["kept"]["sections"]
    assert all(one["share"] is None for row in kept["rows"] for one in row["shares"].values())
    text = document._markdown(report, ())
    assert "All test examples are of one group" in text and "[unknown]" in text


def test_a_report_says_that_groups_are_resampled():
    (told,) = caveats._units(grouped())
    assert "the 20 groups that the data names are resampled" in told
    assert caveats._units(made.make()) == []
