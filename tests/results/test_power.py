import numpy as np
import pytest
from scipy import stats

from mtkd_jax.results import intervals, power


def simulated(n, mean, std, decides, num_runs=20_000):
    """The share of runs of n paired differences that a test of (means, standard deviations) decides."""
    values = np.random.default_rng(11).normal(mean, std, (num_runs, n))
    return decides(values.mean(axis=1), values.std(axis=1, ddof=1)).mean()


@pytest.mark.parametrize("n, num_tests", [(3, 1), (8, 1), (8, 6), (25, 6)])
def test_power_to_differ_is_that_of_simulated_t_tests(n, num_tests):
    threshold = stats.t.ppf(1 - 0.025 / num_tests, n - 1)
    told = simulated(n, 0.5, 0.6, lambda mean, std: np.abs(mean) * np.sqrt(n) / std > threshold)
    assert power.power_to_differ(n, 0.5, 0.6, num_tests) == pytest.approx(told, abs=0.012)


@pytest.mark.parametrize("n", [2, 4, 12, 40])
def test_power_to_be_equivalent_is_that_of_simulated_tests(n):
    threshold = stats.t.ppf(0.95, n - 1)
    told = simulated(n, 0.0, 0.6, lambda mean, std: np.abs(mean) + threshold * std / np.sqrt(n) < 0.5)
    assert power.power_to_be_equivalent(n, 0.5, 0.6) == pytest.approx(told, abs=0.012)


def test_the_tests_whose_power_it_is_are_those_of_the_report():
    values = np.random.default_rng(1).normal(0.2, 0.6, (40, 6))
    threshold = stats.t.ppf(0.95, 5)
    for one in values:
        inside = abs(one.mean()) + threshold * one.std(ddof=1) / np.sqrt(6) < 0.5
        assert (intervals.equivalence_p(one, np.zeros(6), 0.5) < 0.05) == inside


def test_the_number_of_seeds_is_the_least_one():
    def to_differ(n):
        return power.power_to_differ(n, 0.5, 1.0)

    needed = power.seeds_needed(to_differ)
    assert needed == 34  # Cohen 1988, table 2.4.1: 33.4 for d = 0.5, two-sided 5 %, 80 %
    assert to_differ(needed) >= 0.8 > to_differ(needed - 1)
    assert power.seeds_needed(lambda n: power.power_to_differ(n, 0.005, 1.0)) is None


def test_the_bound_holds_four_times_in_five_even_of_two_seeds_that_share_a_baseline():
    rng = np.random.default_rng(5)
    baseline = rng.normal(size=(3000, 1, 2))
    differences = rng.normal(size=(3000, 4, 2)) - baseline  # of four modes; the true deviation is sqrt(2)
    stds = differences.std(axis=2, ddof=1)
    alone = [power.std_bound(one, 1) >= np.sqrt(2) for one in stds[:, 0]]
    pooled = [power.std_bound(*power.pooled_std(one, 2)) >= np.sqrt(2) for one in stds]
    assert np.mean(alone) == pytest.approx(0.8, abs=0.02)
    assert 0.78 < np.mean(pooled) < 0.88
