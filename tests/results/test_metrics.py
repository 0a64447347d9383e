"""Metrics against slow references, values by hand, and invariants."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mtkd_jax.results import metrics
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


@pytest.mark.parametrize("name", ["accuracy", "nll", "brier", "ece", "balanced_accuracy"])
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
    names = ("accuracy", "nll", "brier", "ece", "balanced_accuracy")
    assert metrics.summary(logits, np.array([0, 0])) == dict(zip(names, (1, 0, 0, 0, 1)))
    assert metrics.summary(logits, np.array([1, 1])) == dict(zip(names, (0, 1e4, 2, 1, 0)))


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


def test_balanced_accuracy_of_one_answer_is_that_of_a_guess():
    labels = np.repeat([0, 1, 2], (90, 9, 1))
    assert metrics.balanced_accuracy(np.tile([1.0, 0.0, 0.0], (100, 1)), labels) == pytest.approx(1 / 3)
    assert metrics.balanced_accuracy(np.tile([1.0, 0.0, 0.0], (99, 1)), labels[:99]) == pytest.approx(1 / 2)


# --- detection ----------------------------------------------------------------------------------------


@st.composite
def scored(draw):
    """Scores of few distinct values, so that many are equal, and at least one example of each kind."""
    pairs = draw(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=0, max_size=30))
    pairs = draw(
        st.permutations([*pairs, (draw(st.integers(-4, 4)), True), (draw(st.integers(-4, 4)), False)])
    )
    scores, is_positive = zip(*pairs)
    return np.array(scores, np.float64), np.array(is_positive)


few = settings(max_examples=60, deadline=None)
rates = st.fractions(0, 1).filter(lambda rate: rate < 1).map(float)


@few
@given(scored())
def test_auroc_is_the_share_of_pairs_and_what_scikit_learn_says(made):
    found = metrics.auroc(metrics.roc(*made))
    assert found == pytest.approx(reference.auroc(*made), abs=1e-12)
    assert found == pytest.approx(roc_auc_score(made[1], made[0]), abs=1e-12)


@few
@given(scored(), rates)
def test_recall_at_a_rate_is_the_best_of_all_thresholds(made, rate):
    assert metrics.recall_at(metrics.roc(*made), rate) == reference.recall_at(*made, rate)


@few
@given(scored(), rates, st.integers(0, 99))
def test_detection_knows_neither_the_scale_of_scores_nor_the_order_of_examples(made, rate, seed):
    scores, is_positive = made
    curve = metrics.roc(scores, is_positive)
    order = np.random.default_rng(seed).permutation(len(scores))
    other = metrics.roc(np.exp(scores[order]) - 7, is_positive[order])
    np.testing.assert_array_equal(curve.recall, other.recall)
    np.testing.assert_array_equal(curve.false_alarm_rate, other.false_alarm_rate)
    swapped = metrics.roc(-scores, ~is_positive)
    assert metrics.auroc(swapped) == pytest.approx(metrics.auroc(curve), abs=1e-12)
    assert metrics.auroc(metrics.roc(-scores, is_positive)) == pytest.approx(
        1 - metrics.auroc(curve), abs=1e-12
    )
    assert 0 <= metrics.recall_at(curve, rate) <= 1


@few
@given(scored(), st.integers(0, 99))
def test_an_example_that_counts_twice_is_there_twice(made, seed):
    scores, is_positive = made
    times = np.random.default_rng(seed).integers(1, 4, size=len(scores))
    found = metrics.roc(scores, is_positive, times)
    written_out = metrics.roc(np.repeat(scores, times), np.repeat(is_positive, times))
    for a, b in zip(found, written_out):
        np.testing.assert_array_equal(a, b)


@few
@given(scored(), scored(), rates)
def test_operating_point_by_brute_force_and_within_the_rate_on_validation(val, test, rate):
    found = metrics.operating_point(val, test, rate)
    assert found == pytest.approx(reference.operating_point(*val, *test, rate))
    assert metrics.operating_point(val, val, rate)["false_alarm_rate"] <= rate
    assert metrics.operating_point(val, val, rate)["recall"] == metrics.recall_at(metrics.roc(*val), rate)


def test_detection_by_hand():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    is_positive = np.array([True, False, True, True, False, False])
    curve = metrics.roc(scores, is_positive)
    assert metrics.auroc(curve) == pytest.approx(7 / 9)
    assert metrics.recall_at(curve, 0.3) == pytest.approx(1 / 3)  # no false alarm is allowed of three
    assert metrics.recall_at(curve, 1 / 3) == 1
    point = metrics.operating_point((scores, is_positive), (scores - 0.15, is_positive), 1 / 3)
    assert (point["misses"], point["false_alarms"], point["recall"]) == (1, 1, pytest.approx(2 / 3))
    assert point["threshold"] == pytest.approx(1 / (1 + np.exp(-0.5)))


def test_log_odds_are_those_of_the_softmax_and_do_not_saturate():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(9, 2)).astype(np.float32)
    p = reference.probabilities(logits)
    np.testing.assert_allclose(metrics.log_odds(logits, 1), np.log(p[:, 1] / p[:, 0]), rtol=1e-6, atol=1e-9)
    sure = np.array([[0.0, 50.0], [0.0, 60.0]], np.float32)
    assert np.ptp(metrics.log_odds(sure, 1)) == 10
    np.testing.assert_array_equal(metrics.log_odds(logits, 0), -metrics.log_odds(logits, 1))


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
