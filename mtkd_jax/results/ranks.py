r"""Methods compared over several data sets by their ranks (Demsar 2006, JMLR 7).

Axes: N data sets, M methods. Ranks are 1 for the largest score; equal ones share the mean of their places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from mtkd_jax.results import intervals


class Friedman(NamedTuple):
    """What a test says of the ranks of all methods: p values are of no difference among them."""

    chi_square: float  # M - 1 degrees of freedom
    p_value: float
    f: float | None  # of Iman and Davenport, less conservative; None where all data sets rank alike
    p_value_f: float


def ranks(scores: np.ndarray) -> np.ndarray:
    """The ranks [N,M] of scores [N,M], of which larger is better, within each data set.

    >>> ranks(np.array([[0.9, 0.7, 0.9], [0.1, 0.2, 0.3]])).tolist()
    [[1.5, 3.0, 1.5], [3.0, 2.0, 1.0]]
    """
    return stats.rankdata(-np.asarray(scores, np.float64), axis=1)


def friedman(of_each: np.ndarray) -> Friedman:
    r"""Friedman's test of ranks [N,M], as Demsar gives it, and its correction by Iman and Davenport (1980).

    $$\chi^2_F = \frac{12 N}{M (M + 1)} \left(\sum_j R_j^2 - \frac{M (M + 1)^2}{4}\right), \qquad
    F_F = \frac{(N - 1)\, \chi^2_F}{N (M - 1) - \chi^2_F}$$

    Here $R_j$ is the mean rank of method j; $F_F$ has M - 1 and (M - 1)(N - 1) degrees of freedom. Ties are
    not corrected for, which makes both too careful. Needs two methods and two data sets: ValueError.
    """
    num_sets, num_methods = _checked(of_each)
    mean = of_each.mean(axis=0)
    spread = np.sum(mean**2) - num_methods * (num_methods + 1) ** 2 / 4
    chi_square = float(12 * num_sets / (num_methods * (num_methods + 1)) * spread)
    p_value = float(stats.chi2.sf(chi_square, num_methods - 1))
    left = num_sets * (num_methods - 1) - chi_square
    if left <= 1e-9:  # every data set has the same order: F is infinite
        return Friedman(chi_square, p_value, None, 0.0)
    f = (num_sets - 1) * chi_square / left
    degrees = num_methods - 1, (num_methods - 1) * (num_sets - 1)
    return Friedman(chi_square, p_value, float(f), float(stats.f.sf(f, *degrees)))


def critical_difference(num_methods: int, num_sets: int, level: float = intervals.SIGNIFICANT) -> float:
    r"""The difference of mean ranks from which Nemenyi's test tells two of M methods apart.

    $$CD = \frac{q_{\alpha, M}}{\sqrt 2} \sqrt{\frac{M (M + 1)}{6 N}}$$

    Here $q$ is the quantile of the studentised range of M values with infinitely many degrees of freedom:
    all pairs are compared, and any false difference among them has at most the probability `level`.

    >>> round(critical_difference(4, 14), 2)
    1.25
    """
    quantile = stats.studentized_range.ppf(1 - level, num_methods, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(num_methods * (num_methods + 1) / (6 * num_sets)))


def cliques(mean_ranks: Sequence[float], difference: float) -> list[tuple[int, ...]]:
    """The largest groups of methods of which no two are `difference` apart or more, by rising mean rank.

    Positions in `mean_ranks`, two at least in each group: what a critical-difference diagram joins by a bar.

    >>> cliques([3.0, 1.0, 1.8, 2.7], 1.0)
    [(1, 2), (2, 3), (3, 0)]
    """
    order = sorted(range(len(mean_ranks)), key=lambda place: mean_ranks[place])
    found: list[tuple[int, ...]] = []
    for start, first in enumerate(order):
        group = tuple(one for one in order[start:] if mean_ranks[one] - mean_ranks[first] < difference)
        if len(group) > 1 and not (found and set(group) <= set(found[-1])):
            found.append(group)
    return found


def _checked(of_each: np.ndarray) -> tuple[int, int]:
    if of_each.ndim != 2 or min(of_each.shape) < 2:
        raise ValueError(f"ranks of shape {of_each.shape}: two data sets and two methods are needed")
    return of_each.shape[0], of_each.shape[1]
