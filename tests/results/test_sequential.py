import numpy as np
import pytest
from scipy import integrate, stats

from mtkd_jax.results import intervals, sequential


def test_the_evidence_is_the_mixture_of_noncentral_t_densities():
    values = np.array([0.3, -0.1, 0.8, 0.5, 0.9])
    n, g = len(values), sequential.PRIOR_VARIANCE
    t = stats.ttest_1samp(values, 0.2).statistic

    def of(effect):
        return stats.nct.pdf(t, n - 1, effect * np.sqrt(n)) * stats.norm.pdf(effect, scale=np.sqrt(g))

    mixture = integrate.quad(of, -12, 12, points=[0, 1], limit=200)[0]
    expected = np.log(mixture / stats.t.pdf(t, n - 1))
    assert sequential.log_evidence(values, 0.2) == pytest.approx(expected, rel=1e-6)


def test_the_interval_holds_the_means_with_evidence_below_twenty():
    values = np.random.default_rng(3).normal(0.4, 1, 9)
    low, high = sequential.confidence_interval(values)
    assert low + high == pytest.approx(2 * values.mean())
    for bound in (low, high):
        assert np.exp(sequential.log_evidence(values, bound)) == pytest.approx(20)
    wide = sequential.confidence_interval(values, 0.99)
    assert wide[0] < low < intervals.t_interval(values)[0]


@pytest.mark.parametrize("n, is_bounded", [(2, False), (3, False), (4, True), (5, True)])
def test_an_interval_needs_four_values(n, is_bounded):
    low, high = sequential.confidence_interval(np.arange(n))
    assert np.isfinite(low) == np.isfinite(high) == is_bounded
    assert (sequential.paired(np.arange(n), np.zeros(n))["ci95"] is not None) == is_bounded


def test_tests_and_interval_agree():
    rng = np.random.default_rng(0)
    for mean in (0.0, 0.5, 1.5, 4.0):
        a, b = rng.normal(mean, 1, 12), rng.normal(0, 0.1, 12)
        found = sequential.paired(a, b)
        low, high = found["ci95"]
        assert (found["p_value"] < 0.05) == (not low <= 0 <= high)
        for margin in (0.1, 0.7, 3.0):
            small = sequential.equivalence_p(a, b, margin) < 0.05
            assert small == intervals.inside((low, high), margin)


def test_differences_without_noise_are_those_of_the_t_test():
    ones, zeros = np.ones(3), np.zeros(3)
    assert sequential.paired(ones, zeros) == intervals.paired_t(ones, zeros)
    assert sequential.paired(ones, ones)["p_value"] == 1.0
    assert sequential.equivalence_p(ones, ones, 0.01) == 0.0
    assert sequential.equivalence_p(ones, zeros, 0.01) is None
    assert sequential.paired([1.0], [0.5])["p_value"] is None


def ever_left_out(draw, num_paths=4000, longest=60):
    """Share of paths on which some interval of 2 .. `longest` values leaves out 0, always-valid and of t."""
    values = draw(np.random.default_rng(7), (num_paths, longest))
    n = np.arange(1, longest + 1)
    means = np.cumsum(values, axis=1) / n
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (np.cumsum(values**2, axis=1) / n - means**2) * n / (n - 1)
        t = (np.abs(means) / np.sqrt(variance / n))[:, 1:]
    widths = []
    for size in n[1:]:  # of an interval of values with mean 0 and variance 1
        unit = stats.zscore(np.arange(size), ddof=1)
        widths.append(sequential.confidence_interval(unit)[1] * np.sqrt(size))
    fixed = stats.t.isf(0.025, n[1:] - 1)
    return (t > widths).any(axis=1).mean(), (t > fixed).any(axis=1).mean()


@pytest.mark.parametrize(
    "draw, most",
    [
        (lambda rng, shape: rng.normal(size=shape), 0.05),
        (lambda rng, shape: rng.uniform(-1, 1, size=shape), 0.06),
        (lambda rng, shape: rng.standard_t(4, size=shape), 0.05),
        # of accuracies on 200 images: steps of half a point
        (lambda rng, shape: rng.binomial(200, 0.9, shape) - rng.binomial(200, 0.9, shape), 0.05),
        # far from normal, of one tail: what the assumption is there for
        (lambda rng, shape: rng.exponential(size=shape) - 1, 0.15),
    ],
)
def test_looking_after_every_seed_leaves_out_the_truth_as_seldom_as_promised(draw, most):
    always_valid, of_t = ever_left_out(draw)
    assert always_valid <= most
    assert of_t > 0.25  # and it is no wonder: a t interval does not bear being looked at again
