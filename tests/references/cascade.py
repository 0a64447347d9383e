"""A student with a safety net, slowly: one threshold after the other, and binomials as sums."""

from __future__ import annotations

import math


def binomial_tail(num_lost: int, num: int, share: float) -> float:
    """P(Bin(num, share) <= num_lost)."""
    return sum(math.comb(num, k) * share**k * (1 - share) ** (num - k) for k in range(num_lost + 1))


def hoeffding_bentkus(risk: float, num: int, share: float) -> float:
    """The p value of a mean loss in [0,1] over `num` units, for "the risk is above `share`"."""
    bentkus = math.e * binomial_tail(math.ceil(num * risk - 1e-9), num, share)
    if risk >= share:
        return min(1.0, bentkus)
    kept = 0.0 if risk == 0 else risk * math.log(risk / share)
    rest = 0.0 if risk == 1 else (1 - risk) * math.log((1 - risk) / (1 - share))
    return min(math.exp(-num * (kept + rest)), bentkus)


def lowest_certified(confidences, is_lost, groups, tolerance) -> float | None:
    """From 1 downwards over every confidence, and 0, as long as a threshold passes; None: none does."""
    names = sorted(set(groups))
    sizes = {name: list(groups).count(name) for name in names}
    single = len(names) == len(groups)
    found = None
    for threshold in sorted({0.0, 1.0, *confidences}, reverse=True):
        share = dict.fromkeys(names, 0.0)
        for confidence, lost, group in zip(confidences, is_lost, groups):
            share[group] += (lost and confidence > threshold) / sizes[group]
        risk = sum(share.values()) / len(names)
        if single:
            p = binomial_tail(round(risk * len(names)), len(names), tolerance)
        else:
            p = hoeffding_bentkus(risk, len(names), tolerance)
        if p > 0.05:
            break
        found = threshold
    return found
