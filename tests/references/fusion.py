"""Every fusion rule on ONE election, in plain Python and float64, as its definition reads.

`logits` is [K,C]. A rank rule returns the winner, a probability rule its probabilities [C]. Ballots are
lists of classes, best first; nothing here is shared with mtkd_jax.fusion.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np

EQUAL = 1e-6


# --- ballots and ties ---------------------------------------------------------------------------------


def softmax(logits):
    weights = [[math.exp(z - max(row)) for z in row] for row in np.asarray(logits, float).tolist()]
    return [[weight / math.fsum(row) for weight in row] for row in weights]


def mean_probability(logits):
    probs = softmax(logits)
    return [math.fsum(column) / len(probs) for column in zip(*probs)]


def ballots(logits):
    return [sorted(range(len(row)), key=lambda c: (-row[c], c)) for row in np.asarray(logits).tolist()]


def winner(score, logits, among=None):
    """Highest score; of those the highest mean probability; of those the lowest index."""
    among = range(len(score)) if among is None else among
    mean = mean_probability(logits)
    tied = [c for c in among if score[c] == max(score[j] for j in among)]
    return min(c for c in tied if mean[c] >= max(mean[j] for j in tied) - EQUAL)


def loser(score, logits, among):
    """Lowest score; of those the lowest mean probability; of those the HIGHEST index."""
    mean = mean_probability(logits)
    tied = [c for c in among if score[c] == min(score[j] for j in among)]
    return max(c for c in tied if mean[c] <= min(mean[j] for j in tied) + EQUAL)


def margins(logits):
    votes = ballots(logits)
    size = len(votes[0])
    above = [[sum(v.index(i) < v.index(j) for v in votes) for j in range(size)] for i in range(size)]
    return [[above[i][j] - above[j][i] for j in range(size)] for i in range(size)]


def without(votes, dropped):
    return [[c for c in vote if c not in dropped] for vote in votes]


def borda_points(votes):
    return {c: sum(len(vote) - 1 - vote.index(c) for vote in votes) for c in votes[0]}


def condorcet_winner(logits):
    """The class that wins every duel, or None."""
    strict = [c for c, row in enumerate(margins(logits)) if all(m > 0 for j, m in enumerate(row) if j != c)]
    return strict[0] if strict else None


# --- rank rules ---------------------------------------------------------------------------------------


def positional(logits, points):
    score = [0] * len(points)
    for vote in ballots(logits):
        for rank, c in enumerate(vote):
            score[c] += points[rank]
    return winner(score, logits)


def plurality(logits):
    return positional(logits, [1] + [0] * (len(logits[0]) - 1))


def borda(logits):
    size = len(logits[0])
    return positional(logits, [size - 1 - rank for rank in range(size)])


def dowdall(logits):
    """Exact fractions: for C <= 6 the rounded units of 1/720720 are exact too."""
    return positional(logits, [Fraction(1, rank + 1) for rank in range(len(logits[0]))])


def symmetric_borda(logits):
    return winner([sum(row) for row in margins(logits)], logits)


def copeland(logits):
    return winner([sum(m > 0 for m in row) - sum(m < 0 for m in row) for row in margins(logits)], logits)


def simpson(logits):
    worst = [min(m for j, m in enumerate(row) if j != c) for c, row in enumerate(margins(logits))]
    return winner(worst, logits)


def condorcet(logits):
    undefeated = [c for c, row in enumerate(margins(logits)) if all(m >= 0 for m in row)]
    return winner([0] * len(logits[0]), logits, undefeated or None)


def bucklin(logits):
    votes = ballots(logits)
    for rank in range(len(votes[0])):
        named = [sum(c in vote[: rank + 1] for vote in votes) for c in range(len(votes[0]))]
        if max(named) > Fraction(len(votes), 2):
            return winner(named, logits)
    raise AssertionError("the last rank names every class")


def baldwin(logits):
    votes = ballots(logits)
    while len(votes[0]) > 1:
        votes = without(votes, {loser(borda_points(votes), logits, votes[0])})
    return votes[0][0]


def nanson(logits):
    votes = ballots(logits)
    while True:
        points = borda_points(votes)
        below = {c for c in points if points[c] < Fraction(sum(points.values()), len(points))}
        if not below:
            return winner([0] * len(logits[0]), logits, votes[0])
        votes = without(votes, below)


def stv(logits):
    votes = ballots(logits)
    while len(votes[0]) > 1:
        firsts = {c: sum(vote[0] == c for vote in votes) for c in votes[0]}
        votes = without(votes, {loser(firsts, logits, votes[0])})
    return votes[0][0]


def schulze(logits):
    """The width of a beatpath is its narrowest duel, all of them won; 0 where there is no beatpath."""
    duels = margins(logits)
    classes = range(len(duels))

    def reaches(start, goal, width):
        seen, front = {start}, [start]
        while front:
            here = front.pop()
            step = [j for j in classes if j not in seen and duels[here][j] >= width]
            seen.update(step)
            front += step
        return goal in seen

    widths = sorted({m for row in duels for m in row if m > 0}, reverse=True)

    def strength(i, j):
        return next((width for width in widths if reaches(i, j, width)), 0)

    tied = [c for c in classes if all(strength(c, j) >= strength(j, c) for j in classes if j != c)]
    return winner([0] * len(duels), logits, tied)


def kemeny(logits):
    duels = margins(logits)
    orders = list(itertools.permutations(range(len(duels))))
    worth = [sum(duels[i][j] for i, j in itertools.combinations(order, 2)) for order in orders]
    tops = {order[0] for order, total in zip(orders, worth) if total == max(worth)}
    return winner([0] * len(duels), logits, tops)


# --- probability rules --------------------------------------------------------------------------------


def normalised(values):
    return np.array(values) / math.fsum(values)


def mean_probs(logits):
    return np.array(mean_probability(logits))


def mean_logits(logits):
    return np.array(softmax([np.mean(logits, axis=0)])[0])


def median_probs(logits):
    middles = []
    for column in zip(*softmax(logits)):
        ordered, half = sorted(column), len(column) // 2
        middles.append(ordered[half] if len(column) % 2 else (ordered[half - 1] + ordered[half]) / 2)
    return normalised(middles)


def trimmed_mean_probs(logits):
    cut = max(1, len(logits) // 5)
    return normalised([np.mean(sorted(column)[cut:-cut]) for column in zip(*softmax(logits))])


def max_confidence(logits):
    probs = softmax(logits)
    highest = max(max(row) for row in probs)
    return np.array(next(row for row in probs if max(row) >= highest - EQUAL))


def dempster_shafer(logits):
    """Combines mass functions two at a time; keys are sets of classes."""
    everything = frozenset(range(len(logits[0])))
    beliefs = [
        {frozenset({c}): 0.9 * p for c, p in enumerate(row)} | {everything: 0.1} for row in softmax(logits)
    ]
    joint = {everything: 1.0}
    for belief in beliefs:
        combined = {}
        for (a, mass_a), (b, mass_b) in itertools.product(joint.items(), belief.items()):
            if a & b:
                combined[a & b] = combined.get(a & b, 0.0) + mass_a * mass_b
        total = math.fsum(combined.values())  # 1 - conflict
        joint = {key: mass / total for key, mass in combined.items()}
    return np.array([joint[frozenset({c})] + joint[everything] / len(everything) for c in sorted(everything)])


# --- fitted rules (the validation data are [K,N,C]) ---------------------------------------------------


def nll(probs, labels):
    return -np.mean([math.log(row[label]) for row, label in zip(np.asarray(probs, float), labels)])


def stacking_objective(kernel, bias, logits, labels, l2=1e-2):
    """Mean CE + l2 / 2 |W|^2 of softmax(concatenated logits @ W + b)."""
    losses = []
    for n, label in enumerate(labels):
        output = np.concatenate([member[n] for member in np.asarray(logits, float)]) @ kernel + bias
        losses.append(np.log(np.exp(output - output.max()).sum()) + output.max() - output[label])
    return np.mean(losses) + l2 / 2 * np.sum(kernel**2)
