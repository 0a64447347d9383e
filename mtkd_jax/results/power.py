r"""How many seeds a comparison needs, from the noise that a pilot of a few seeds shows.

A comparison is of paired differences over seeds, tested by `intervals.paired_t` and `equivalence_p`. What a
pilot of two seeds says of their standard deviation is next to nothing: it may be off by a factor of ten. So
the plan is made for an upper bound of it (Browne 1995), pooled over the comparisons where seeds are few.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from scipy import integrate, stats

from mtkd_jax.results import intervals

CONFIDENCE = 0.8  # that the standard deviation is at most what is planned for
FEW_SEEDS = 5  # below that the comparisons of a pilot are taken to be equally noisy
SHARED = 0.5  # correlation of two differences from one baseline, where all networks are equally noisy
WITH_PEERS = "students with peers"  # the family of comparisons of these with one another
MOST_SEEDS = 10_000  # that are looked for
NO_NOISE = 1e-12  # in accuracy: what only rounding made


def std_bound(std: float, freedom: float, confidence: float = CONFIDENCE) -> float:
    r"""What the true standard deviation is at most, so sure, where `std` was seen.

    With $\nu$ degrees of freedom:

    $$s \sqrt{\nu / \chi^2_{1 - c,\, \nu}}$$

    >>> round(std_bound(1.0, 1), 2), round(std_bound(1.0, 9), 2)
    (3.95, 1.29)
    """
    return float(std * np.sqrt(freedom / stats.chi2.ppf(1 - confidence, freedom)))


def pooled_std(stds: Sequence[float], num_seeds: int) -> tuple[float, float]:
    r"""(standard deviation, degrees of freedom) of comparisons that are equally noisy, each of so many seeds.

    $$s^2 = \frac{1}{k} \sum_i s_i^2, \qquad \nu = \frac{k (n - 1)}{1 + (k - 1) \rho^2}$$

    The comparisons of a family share their seeds and mostly the baseline, so that their differences correlate
    by $\rho$ = SHARED: more of them know less than their number (the variance of a mean of correlated
    chi-squares; Satterthwaite 1946).

    >>> pooled_std([3.0, 4.0, 5.0], 2)[1]
    2.0
    """
    k = len(stds)
    return float(np.sqrt(np.mean(np.square(stds)))), k * (num_seeds - 1) / (1 + (k - 1) * SHARED**2)


def power_to_differ(n: int, difference: float, std: float, num_tests: int = 1) -> float:
    r"""The chance that n pairs with this true mean difference are told apart, among `num_tests` tests.

    $$P(|T| > t_{1 - 0.025 / m,\, n - 1}), \qquad
    T \sim t_{n - 1}\left(\frac{\delta \sqrt{n}}{\sigma}\right) \text{, noncentral}$$

    At Holm's first, strictest threshold.
    """
    freedom, centre = n - 1, difference * np.sqrt(n) / std
    threshold = stats.t.isf(intervals.SIGNIFICANT / 2 / num_tests, freedom)
    return float(stats.nct.sf(threshold, freedom, centre) + stats.nct.cdf(-threshold, freedom, centre))


def power_to_be_equivalent(n: int, margin: float, std: float) -> float:
    r"""The chance that n pairs without any true difference are found to be equivalent within a margin.

    Two one-sided tests at 5 % each, as in `intervals.equivalence_p`. With $u = s / \sigma$,

    $$\int \max\left(0,\
    2 \Phi\left(\frac{\delta \sqrt{n}}{\sigma} - t_{0.95,\, n - 1}\, u\right) - 1\right) f(u)\, du$$
    """
    freedom, room = n - 1, margin * np.sqrt(n) / std
    threshold = stats.t.isf(intervals.SIGNIFICANT, freedom)
    density = stats.chi(freedom, scale=1 / np.sqrt(freedom)).pdf

    def of(u: float) -> float:
        return (2 * stats.norm.cdf(room - threshold * u) - 1) * density(u)

    # Where the density is narrow, a grid over all of the range would miss it.
    low, high = stats.chi.ppf((1e-9, 1 - 1e-9), freedom, scale=1 / np.sqrt(freedom))
    end = min(room / threshold, high)
    return float(integrate.quad(of, low, end, limit=200)[0]) if end > low else 0.0


def seeds_needed(power: Callable[[int], float], wanted: float = intervals.POWER) -> int | None:
    """The least number of seeds, two or more, whose power is as wanted; None where MOST_SEEDS are not enough.

    `power` must not fall with the number of seeds.

    >>> seeds_needed(lambda n: n / 10)
    8
    """
    low, high = 1, 2  # low is not enough
    while power(high) < wanted:
        if high >= MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= wanted else (middle, high)
    return high


def to_decide(compared: Sequence[dict]) -> list[dict]:
    """The comparisons that seeds are for: of accuracies, but for peers against one another, who are many."""
    return [one for one in compared if one["metric"] == "accuracy" and one["family"] != WITH_PEERS]


def plan(report: dict) -> list[dict]:
    """What every comparison `to_decide` in the report of a pilot needs; those without noise are left out.

    [{"a", "a_transfer", "b", "b_transfer", "architecture", "n", "std" (seen), "planned_std" (the bound),
    "to_differ", "to_be_equivalent", "to_decide" (the larger one; numbers of seeds, None: more than
    MOST_SEEDS), "seconds_a", "seconds_b" (of one more seed, with its grid, as the pilot took), "cost"
    (seconds of the seeds that the pilot lacks)}]. The difference to be told and the margin are the report's
    margin; the level is that of Holm's first test. Networks that say the same are decided already: their
    noise, which is none, is not pooled with that of others.
    """
    tested = to_decide(report["comparisons"])
    sizes = Counter(one["family"] for one in tested)
    differing = [one for one in tested if one["std"] is not None and one["p_equivalence"] != 0.0]
    planned = [(one, _planned_std(one, differing)) for one in differing]
    return [_planned(one, std, sizes[one["family"]], report) for one, std in planned if std > NO_NOISE]


def _planned(one: dict, std: float, num_tests: int, report: dict) -> dict:
    margin = report["margin"]
    to_differ = seeds_needed(lambda n: power_to_differ(n, margin, std, num_tests))
    to_be_equivalent = seeds_needed(lambda n: power_to_be_equivalent(n, margin, std))
    found = [number for number in (to_differ, to_be_equivalent) if number is not None]
    to_decide = max(found) if len(found) == 2 else None
    seconds = {
        f"seconds_{side}": _seconds(report, one[side], one[f"{side}_transfer"], one["architecture"])
        for side in "ab"
    }
    kept = ("a", "a_transfer", "b", "b_transfer", "architecture", "n", "std")
    return {
        **{name: one[name] for name in kept},
        "planned_std": std,
        "to_differ": to_differ,
        "to_be_equivalent": to_be_equivalent,
        "to_decide": to_decide,
        **seconds,
        "cost": None if to_decide is None else max(0, to_decide - one["n"]) * sum(seconds.values()),
    }


def _planned_std(one: dict, differing: Sequence[dict]) -> float:
    if one["n"] >= FEW_SEEDS:
        return std_bound(one["std"], one["n"] - 1)
    family = [other for other in differing if other["family"] == one["family"]]
    return std_bound(*pooled_std([other["std"] for other in family], min(other["n"] for other in family)))


def _seconds(report: dict, name: str, transfer: str, architecture: str) -> float:
    """What one more seed of a row takes, with its grid, as those of the report did; 0 where nobody knows."""
    for row in report["rows"]:
        if (row["name"], row["transfer"], row["architecture"]) == (name, transfer, architecture):
            cells = max(1, len(row["grid"]))
            return (row["train_seconds"] or 0.0) * cells / students_trained(row)
    return 0.0


def students_trained(row: dict) -> int:
    """How many students, each with its peers, the "train_seconds" of a row of the report are of.

    Those of all its grid, and those that broke down; of seeds that were added later there is the chosen point
    alone. A report of an earlier version does not say: all seeds are taken to have trained the whole grid.

    >>> students_trained({"n": 9, "grid": [{"alpha": 0.0, "num_seeds": 10}, {"alpha": 0.5, "num_seeds": 5}]})
    15
    """
    return sum(point.get("num_seeds", row["n"]) for point in row["grid"]) or row["n"]
