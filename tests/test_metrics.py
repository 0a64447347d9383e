"""Metrics against slow references, values by hand, and invariants."""

import math

import numpy as np
import pytest

from mtkd_jax import metrics
from tests.references import metrics as reference


@pytest.fixture
def one():
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=101)
    return (2 * np.eye(4)[labels] + 1.5 * rng.normal(size=(101, 4))).astype(np.float32), labels


@pytest.fixture
def several():
    rng = np.random.default_rng(1)
    labels = rng.integers(4, size=53)
    return (2 * np.eye(4)[labels] + 1.5 * rng.normal(size=(5, 53, 4))).astype(np.float32), labels


@pytest.mark.parametrize("name", ["accuracy", "nll", "brier", "ece"])
def test_agrees_with_the_reference(one, name):
    expected = getattr(reference, name)(one[0].astype(np.float64).tolist(), one[1])
    assert getattr(metrics, name)(*one) == pytest.approx(expected, rel=1e-12)
    assert metrics.summary(*one)[name] == pytest.approx(expected, rel=1e-12)


def test_uniform_guess():
    logits, labels = np.zeros((30, 10)), np.arange(30) % 10
    assert metrics.nll(logits, labels) == pytest.approx(math.log(10))
    assert metrics.brier(logits, labels) == pytest.approx(0.9)
    assert metrics.accuracy(logits, labels) == pytest.approx(0.1)  # equal logits decide for class 0


def test_sure_networks_stay_finite():
    logits = np.array([[1e4, 0.0], [1e4, 0.0]], np.float32)
    assert metrics.summary(logits, np.array([0, 0])) == {"accuracy": 1, "nll": 0, "brier": 0, "ece": 0}
    wrong = metrics.summary(logits, np.array([1, 1]))
    assert wrong == {"accuracy": 0, "nll": 1e4, "brier": 2, "ece": 1}


def test_ece_by_hand():
    # Two bins: confidences (0.6, 0.7) with one right, (0.8, 0.9) with both right.
    confidence = np.array([0.9, 0.6, 0.8, 0.7])
    logits = np.log(np.stack([confidence, 1 - confidence], axis=1))
    labels = np.array([0, 1, 0, 0])
    assert metrics.ece(logits, labels, num_bins=2) == pytest.approx((0.5 * 0.15) + (0.5 * 0.15))


def test_bins_hold_equal_mass_and_all_examples(one):
    bins = metrics.reliability(*one)
    assert np.all(np.abs(bins["mass"] * 101 - 101 / 15) < 1)
    assert np.all(np.diff(bins["confidence"]) > 0)
    assert np.sum(bins["mass"] * bins["accuracy"]) == pytest.approx(metrics.accuracy(*one))
    assert len(metrics.reliability(one[0][:3], one[1][:3])["mass"]) == 3  # fewer examples than bins


def test_confusion_and_recall(one):
    matrix = metrics.confusion(*one)
    np.testing.assert_array_equal(matrix, reference.confusion(one[0].tolist(), one[1]))
    recall = metrics.per_class_recall(*one)
    assert recall @ matrix.sum(axis=1) / 101 == pytest.approx(metrics.accuracy(*one))
    without_class_3 = one[1] != 3
    assert np.isnan(metrics.per_class_recall(one[0][without_class_3], one[1][without_class_3])[3])


@pytest.mark.parametrize(
    "name, needs_labels",
    [("disagreement", False), ("q_statistic", True), ("pairwise_kl", False), ("error_correlation", True)],
)
def test_diversity_agrees_with_the_reference(several, name, needs_labels):
    logits, labels = several
    extra = (labels,) if needs_labels else ()
    found = getattr(metrics, name)(logits, *extra)
    slow = getattr(reference, name.removeprefix("pairwise_"))
    rows = logits.astype(np.float64).tolist()
    expected = [[slow(a, b, *extra) for b in rows] for a in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_diversity_is_none_where_undefined(several):
    logits, labels = several
    alone = metrics.diversity(logits[:1], labels)
    assert {measure["mean"] for measure in alone.values()} == {None}
    perfect = np.stack([10 * np.eye(4)[labels]] * 2)
    found = metrics.diversity(np.concatenate([perfect, logits[:2]]), labels)
    assert found["q_statistic"]["matrix"][0][1] is None
    assert found["error_correlation"]["matrix"][0][2] is None
    one_pair = metrics.error_correlation(logits[:2], labels)[0, 1]
    assert found["error_correlation"]["mean"] == pytest.approx(one_pair)  # over the defined pairs only


def test_equal_teachers_have_no_diversity(several):
    logits, labels = several
    found = metrics.diversity(np.stack([logits[0]] * 3), labels)
    means = {name: measure["mean"] for name, measure in found.items()}
    assert means == pytest.approx({"disagreement": 0, "q_statistic": 1, "kl": 0, "error_correlation": 1})


def test_sub_ensembles_are_all_subsets_where_these_are_few(several):
    logits, labels = several
    found = metrics.sub_ensembles(logits, labels)
    for size in range(1, 6):
        expected = reference.sub_ensemble_accuracies(logits.tolist(), labels, size)
        np.testing.assert_allclose(found[size], expected)


def test_sub_ensembles_draw_distinct_subsets_where_these_are_many(several):
    logits, labels = several
    all_pairs = reference.sub_ensemble_accuracies(logits.tolist(), labels, 2)
    found = metrics.sub_ensembles(logits, labels, max_subsets=7, seed=3)
    assert {size: len(of_size) for size, of_size in found.items()} == {1: 5, 2: 7, 3: 7, 4: 5, 5: 1}
    left = [round(value, 12) for value in all_pairs]
    for value in found[2]:
        left.remove(round(float(value), 12))  # ValueError where a pair was taken twice
    np.testing.assert_array_equal(found[3], metrics.sub_ensembles(logits, labels, max_subsets=7, seed=3)[3])


def test_sub_ensembles_do_not_depend_on_the_block(several):
    logits, labels = (np.tile(x, reps) for x, reps in zip(several, ((1, 1600, 1), 1600)))  # three blocks
    many, few = metrics.sub_ensembles(logits, labels), metrics.sub_ensembles(*several)
    for size in range(1, 6):
        np.testing.assert_allclose(many[size], few[size])


def test_shapes_that_do_not_fit_are_refused(one):
    with pytest.raises(AssertionError):
        metrics.nll(one[0], one[1][:-1])
