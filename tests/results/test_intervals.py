"""Intervals and tests: against scipy's own, by coverage, and at their edges."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mtkd_jax.results import intervals
from tests.references import metrics as reference


def test_t_interval_agrees_with_scipy():
    values = [0.91, 0.93, 0.90, 0.95]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert intervals.t_interval(values) == pytest.approx(tuple(expected))
    assert intervals.t_interval([0.5]) is None
    assert intervals.t_interval([0.5, 0.5]) == (0.5, 0.5)


def test_paired_t_agrees_with_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 8))
    expected = stats.ttest_rel(a, b)
    found = intervals.paired_t(a, b)
    assert found["p_value"] == pytest.approx(expected.pvalue)
    assert found["ci95"] == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found["mean_difference"] == pytest.approx((a - b).mean())
    assert found["n"] == 8


def test_paired_t_without_an_estimate_of_noise():
    assert intervals.paired_t([0.5], [0.4]) | {"mean_difference": 0} == {
        "mean_difference": 0,
        "ci95": None,
        "p_value": None,
        "n": 1,
    }
    same = intervals.paired_t([0.7, 0.9], [0.7, 0.9])
    assert (same["p_value"], same["ci95"]) == (1.0, (0.0, 0.0))
    # 0.9 - 0.8 and 0.8 - 0.7 differ by rounding only: a t of 1e15 would be no finding.
    shifted = intervals.paired_t([0.9, 0.8], [0.8, 0.7])
    assert (shifted["p_value"], shifted["ci95"]) == (None, None)


@pytest.mark.parametrize("shift", [0.0, 0.003, -0.004, 0.01, -0.02])
@pytest.mark.parametrize("n", [2, 3, 10])
def test_equivalence_is_two_one_sided_tests(n, shift):
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.9, 0.01, n) + shift, rng.normal(0.9, 0.002, n)
    above = stats.ttest_1samp(a - b, -0.005, alternative="greater")
    below = stats.ttest_1samp(a - b, 0.005, alternative="less")
    found = intervals.equivalence_p(a, b, 0.005)
    assert found == pytest.approx(max(above.pvalue, below.pvalue))
    assert found == pytest.approx(intervals.equivalence_p(b, a, 0.005))
    low, high = stats.ttest_1samp(a - b, 0.0).confidence_interval(0.9)
    assert (found < 0.05) == (low > -0.005 and high < 0.005)


def test_equivalence_by_hand():
    """Of three pairs: with two degrees of freedom P(T > t) = 1/2 - t / (2 sqrt(2 + t^2))."""
    a, b = [0.901, 0.902, 0.903], [0.9, 0.9, 0.9]  # mean 0.002, standard error 0.001 / sqrt(3)
    t = (0.005 - 0.002) * np.sqrt(3) / 0.001
    expected = 0.5 - t / (2 * np.sqrt(2 + t**2))
    assert intervals.equivalence_p(a, b, 0.005) == pytest.approx(expected)
    assert intervals.equivalence_p(b, a, 0.005) == pytest.approx(expected)
    assert intervals.equivalence_p(a, b, 0.001) > 0.5  # the mean itself lies outside


def test_equivalence_without_an_estimate_of_noise():
    assert intervals.equivalence_p([0.5], [0.5], 0.1) is None
    assert intervals.equivalence_p([0.9, 0.8], [0.8, 0.7], 0.5) is None  # 0.1 twice, but for rounding
    assert intervals.equivalence_p([0.7, 0.9], [0.7, 0.9], 0.005) == 0.0


def test_equivalence_is_claimed_in_error_one_time_in_twenty():
    """Of networks that are apart by the margin exactly, where that error is most frequent."""
    rng = np.random.default_rng(0)
    samples = 0.005 + 0.002 * rng.normal(size=(4000, 8))
    found = np.mean([intervals.equivalence_p(one, np.zeros(8), 0.005) < 0.05 for one in samples])
    assert found == pytest.approx(0.05, abs=0.012)


@pytest.mark.parametrize(
    "difference, p_value, interval, p_equivalence, said",
    [
        (0.02, 0.01, (0.01, 0.03), 0.99, "better"),
        (-0.02, 0.01, (-0.03, -0.01), 0.99, "worse"),
        (0.001, 0.4, (-0.002, 0.004), 0.01, "equivalent"),
        (0.001, 0.4, (-0.009, 0.011), 0.3, "undecided"),
        (0.002, 0.01, (0.001, 0.003), 0.001, "equivalent"),  # real, and small whichever end one looks at
        (0.003, 0.01, (0.0008, 0.0052), 0.04, "better"),  # the 90 % interval lies inside, the 95 % does not
        (-0.003, 0.01, (-0.0052, -0.0008), 0.04, "worse"),
        (0.0, 1.0, (0.0, 0.0), 0.0, "equivalent"),
        (0.003, 0.05, (0.0, 0.006), 0.05, "undecided"),  # at 5 % nothing is rejected
        (0.1, None, None, None, "undecided"),  # one seed
        (0.1, 0.01, (0.05, 0.15), None, "better"),  # without a margin
    ],
)
def test_verdict(difference, p_value, interval, p_equivalence, said):
    assert intervals.verdict(difference, p_value, interval, p_equivalence, 0.005) == said


def test_bootstrap_of_one_seed_is_close_to_the_normal_interval():
    right = np.random.default_rng(0).random(2000) < 0.9
    low, high = intervals.bootstrap_interval(right)
    half = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 2000)
    assert (low, high) == pytest.approx((right.mean() - half, right.mean() + half), abs=0.002)
    assert (low, high) == intervals.bootstrap_interval(right)  # seeded
    assert (low, high) != intervals.bootstrap_interval(right, seed=1)


def test_a_difference_has_the_noise_of_seeds_and_of_examples():
    rng = np.random.default_rng(0)
    seeds, examples = rng.normal(size=(6, 1)), rng.normal(size=(1, 500))
    of_seeds = intervals.crossed_t(np.repeat(seeds, 500, axis=1), 0.5)  # examples add nothing
    assert of_seeds["ci95"] == pytest.approx(intervals.t_interval(seeds[:, 0]))
    assert of_seeds["p_value"] == pytest.approx(stats.ttest_1samp(seeds[:, 0], 0.0).pvalue)
    assert of_seeds["p_equivalence"] == pytest.approx(intervals.equivalence_p(seeds[:, 0], np.zeros(6), 0.5))
    of_examples = intervals.crossed_t(np.repeat(examples, 6, axis=0), 0.5)
    assert of_examples["ci95"] == pytest.approx(intervals.t_interval(examples[0]))
    assert intervals.crossed_t(examples[0], 0.5)["p_value"] == pytest.approx(of_examples["p_value"])
    both = intervals.crossed_t(seeds + examples, 0.5)
    widths = [one["ci95"][1] - one["ci95"][0] for one in (of_seeds, of_examples, both)]
    assert max(widths[:2]) * 0.9 < widths[2] < sum(widths[:2])


def test_bootstrap_covers_the_truth():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low, high = intervals.bootstrap_interval(rng.random(150) < 0.8, seed=seed, num_resamples=200)
        hits += low <= 0.8 <= high
    assert 0.89 <= hits / 200 <= 0.99


@pytest.mark.parametrize("number", [2, 3, 7])
def test_intervals_of_few_things_hold_the_mean_as_often_as_they_say(number):
    """Percentiles of resamples as they are hold that of 7 normal numbers in 88 %, of 3 in 75 %."""
    rng, hits = np.random.default_rng(number), 0
    for seed in range(300):
        low, high = intervals.bootstrap_interval(rng.normal(size=number), seed=seed, num_resamples=100)
        hits += low <= 0 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_few_seeds_count_as_far_as_they_move_the_mean():
    by_seeds, by_examples = 0.3, 0.1
    expected = (by_seeds + by_examples) ** 2 / (by_seeds**2 / 4 + by_examples**2 / 399)
    assert intervals.freedom_of((by_seeds, 5), (by_examples, 400)) == pytest.approx(expected)
    assert (
        intervals.freedom_of((0.3, 5), (0.0, 400)) == 4 and intervals.freedom_of((0.0, 5), (0.3, 400)) == 399
    )
    assert intervals.freedom_of((0.0, 5), (0.0, 400)) == 399 and intervals.freedom_of() == 0


@pytest.mark.parametrize(("num_seeds", "num_examples"), [(3, 200), (5, 7), (2, 3)])
def test_crossed_differences_reject_what_is_so_as_seldom_as_they_say(num_seeds, num_examples):
    rng = np.random.default_rng(num_seeds)
    p_values = []
    for _ in range(2000):
        seeds, examples = rng.normal(size=(num_seeds, 1)), 3 * rng.normal(size=(1, num_examples))
        p_values.append(intervals.crossed_t(seeds + examples, 0.0)["p_value"])
    assert np.mean(np.array(p_values) < 0.05) < 0.08
    assert np.mean(np.array(p_values) < 0.005) < 0.025


def test_an_interval_of_few_positives_is_as_wide_as_of_few_things():
    """Five images of a class among a thousand others: the mean recall of both is known as well as of five."""
    rng, hits = np.random.default_rng(0), 0
    strata = np.repeat([0, 1], [1000, 5])
    for seed in range(100):
        values = rng.normal(size=1005)

        def mean_of_means(times, values=values):
            return [
                np.mean([np.average(values[strata == one], weights=times[strata == one]) for one in (0, 1)])
            ]

        ((low, high),) = intervals.bootstrap_statistics(mean_of_means, strata, seed, num_resamples=100)
        hits += low <= 0 <= high
    assert 0.89 <= hits / 100 <= 0.99


def test_decisions_that_are_all_right_are_not_certain():
    low, high = intervals.bootstrap_interval(np.ones(30), ends=(0.0, 1.0))
    exact = stats.binomtest(30, 30).proportion_ci(0.95, "exact")
    assert (low, high) == pytest.approx((exact.low, 1.0))
    low, high = intervals.bootstrap_interval(np.zeros(30), ends=(0.0, 1.0))
    assert (low, high) == pytest.approx((0.0, 1 - exact.low))
    found = intervals.crossed_t(np.zeros((3, 30)), 0.01)
    assert found["p_value"] == 1.0 and found["p_equivalence"] == pytest.approx(0.99**30)
    assert found["ci95"] == pytest.approx((exact.low - 1, 1 - exact.low))
    assert intervals.crossed_t(np.zeros(1000), 0.01)["p_equivalence"] < 0.05
    assert intervals.crossed_t(np.full(30, 0.2), 0.01)["ci95"] is None  # no estimate of noise
    cancelling = np.array([[1.0, -1.0], [-1.0, 1.0]])  # the same mean for each seed and each example
    assert intervals.crossed_t(cancelling, 0.5)["ci95"] is None
    # The same exact interval for a recall, for two classes of ten each, and for shares of what adds up.
    assert intervals.bootstrap_shares(np.array([30]), np.array([30])) == pytest.approx((exact.low, 1.0))
    low, high = intervals.bootstrap_shares(np.array([10, 10]), np.array([10, 10]))
    assert high == 1.0 and stats.binomtest(20, 20).proportion_ci(0.95, "exact").low == pytest.approx(
        low, abs=0.01
    )
    ones = np.ones((30, 2))
    found = intervals.bootstrap_sums(ones, lambda total: total[0] / total[1], ends=(0.0, 1.0))
    assert found == pytest.approx((exact.low, 1.0))
    same = np.stack([np.zeros(30), np.ones(30)], axis=-1)  # two forms that decide alike
    found = intervals.bootstrap_sums(same, lambda total: total[0] / total[1], ends=(-1.0, 1.0))
    assert found == pytest.approx((exact.low - 1, 1 - exact.low))


def test_of_one_thing_nothing_is_resampled():
    assert intervals.bootstrap_interval(np.ones(1)) is None
    assert intervals.bootstrap_interval(np.ones(1), ends=(0.0, 1.0)) is None
    assert intervals.bootstrap_sums(np.ones((1, 2)), lambda total: total[0]) is None
    assert intervals.bootstrap_shares(np.array([1]), np.array([1])) is None
    assert intervals.bootstrap_statistics(lambda times: [times.sum()], np.arange(4)) == [None]
    found = intervals.crossed_t(np.ones((3, 1)), 0.1)
    assert found == {"mean_difference": 1.0, "ci95": None, "p_value": None, "p_equivalence": None}


def test_widened_intervals_end_where_the_numbers_do():
    low, high = intervals.bootstrap_interval(np.array([0.9, 1.0, 0.99]), ends=(0.0, 1.0))
    assert low < 0.9 and high == 1.0


def test_holm_by_hand():
    assert intervals.holm([0.02, 0.01, 0.5, 0.2]) == pytest.approx([0.06, 0.04, 0.5, 0.4])
    assert intervals.holm([0.9, None, 0.8]) == pytest.approx([1.0, None, 1.0])
    assert intervals.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_agrees_with_the_definition(p_values):
    found = intervals.holm(p_values)
    assert found == pytest.approx(reference.holm(p_values))
    assert all(p <= q <= 1 for p, q in zip(p_values, found))


def test_detectable_difference_is_found_four_times_in_five():
    """Differences of that size, with noise of that size, tested at the strictest of Holm's thresholds."""
    rng = np.random.default_rng(0)
    n, num_tests = 10, 3
    noise = rng.normal(size=n)
    noise = (noise - noise.mean()) / noise.std(ddof=1)  # s is 1 exactly
    size = intervals.detectable_difference(noise, np.zeros(n), num_tests)
    samples = size + rng.normal(size=(4000, n))
    found = np.mean(stats.ttest_1samp(samples, 0.0, axis=1).pvalue < 0.05 / num_tests)
    assert found == pytest.approx(0.8, abs=0.04)
    assert size > intervals.detectable_difference(noise, np.zeros(n))
    assert intervals.detectable_difference([1.0], [0.0]) is None
    assert intervals.detectable_difference([1.0, 2.0], [0.0, 1.0]) is None


def test_bootstrap_of_shares_is_that_of_the_examples_written_out():
    """Resampling zeros and ones many times is drawing a binomial number as often, for each class alone."""
    found, of = np.array([45, 12]), np.array([60, 15])
    right = np.concatenate([np.arange(n) < k for k, n in zip(found, of)]).astype(float)
    strata = np.repeat([0, 1], of)
    weight = np.repeat(1 / (2 * of), of)
    ((low, high),) = intervals.bootstrap_statistics(
        lambda times: [(times * weight * right).sum()], strata, num_resamples=4000
    )
    assert intervals.bootstrap_shares(found, of, num_resamples=4000) == pytest.approx((low, high), abs=0.01)
    exact = stats.binomtest(0, 9).proportion_ci(0.95, "exact")
    assert intervals.bootstrap_shares(np.array([0]), np.array([9])) == pytest.approx((0, exact.high))


def test_bootstrap_of_statistics_keeps_the_size_of_every_stratum():
    strata = np.array([3, 1, 1, 3, 1])
    seen = []
    found = intervals.bootstrap_statistics(
        lambda times: seen.append(times.tolist()) or (times @ np.arange(5), 7.0), strata, num_resamples=50
    )
    assert {(sum(np.array(times)[strata == 1]), sum(np.array(times)[strata == 3])) for times in seen} == {
        (3, 2)
    }
    assert len({tuple(times) for times in seen}) > 20
    sums = np.array([np.dot(times, np.arange(5)) for times in seen[:-1]])  # the last: each once
    freedom = (1 / 2 + 1 / 3) ** 2 / ((1 / 2) ** 2 / 1 + (1 / 3) ** 2 / 2)
    sums = intervals.widen(sums, sum(range(5)), freedom)
    assert found == [pytest.approx(tuple(np.quantile(sums, [0.025, 0.975]))), (7, 7)]


def test_a_jackknife_of_a_mean_is_students_interval():
    values = np.random.default_rng(4).normal(size=12)

    def mean(counts):
        return counts @ values / counts.sum()

    np.testing.assert_allclose(intervals.jackknife_interval(mean, 12), intervals.t_interval(values))
    counted = []
    found = intervals.jackknife_interval(
        lambda counts: counted.append(counts) or mean(counts), 12, num_groups=4
    )
    left_out = [np.flatnonzero(counts == 0) for counts in counted if not counts.all()]
    assert sorted(np.concatenate(left_out)) == list(range(12)) and {len(group) for group in left_out} == {3}
    # Of groups of one size it is the interval of their means.
    expected = intervals.t_interval([values[group].mean() for group in left_out])
    np.testing.assert_allclose(found, expected)
    assert intervals.jackknife_interval(mean, 1) is None
