"""Metrics, intervals and tests written out one example at a time, in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np


def probabilities(logits):
    rows = []
    for row in np.asarray(logits, np.float64):
        powers = [math.exp(z - max(row)) for z in row]
        rows.append([power / sum(powers) for power in powers])
    return np.array(rows)


def accuracy(logits, labels):
    return sum(list(row).index(max(row)) == label for row, label in zip(logits, labels)) / len(labels)


def nll(logits, labels):
    return -sum(math.log(row[label]) for row, label in zip(probabilities(logits), labels)) / len(labels)


def brier(logits, labels):
    total = 0.0
    for row, label in zip(probabilities(logits), labels):
        total += sum((p - (c == label)) ** 2 for c, p in enumerate(row))
    return total / len(labels)


def ece(logits, labels, num_bins=15):
    """Cut the examples, sorted by confidence, into bins whose sizes differ by one at most."""
    found = []
    for row, label in zip(probabilities(logits), labels):
        found.append((max(row), list(row).index(max(row)) == label))
    found.sort(key=lambda pair: pair[0])
    bounds = [-(-b * len(found) // num_bins) for b in range(num_bins + 1)]
    total = 0.0
    for start, end in itertools.pairwise(bounds):
        part = found[start:end]
        if part:
            total += abs(sum(right for _, right in part) - sum(confidence for confidence, _ in part))
    return total / len(found)


def confusion(logits, labels):
    matrix = np.zeros((len(logits[0]), len(logits[0])), int)
    for row, label in zip(logits, labels):
        matrix[label, list(row).index(max(row))] += 1
    return matrix


def balanced_accuracy(logits, labels):
    """Accuracy of every class that there is, by itself."""
    decisions = [list(row).index(max(row)) for row in logits]
    of_class = [
        [decision == c for decision, label in zip(decisions, labels) if label == c]
        for c in sorted(set(labels))
    ]
    return sum(sum(right) / len(right) for right in of_class) / len(of_class)


def auroc(scores, is_positive):
    """Over all pairs of a positive and a negative: 1 where the positive scores more, a half where alike."""
    positives = [s for s, yes in zip(scores, is_positive) if yes]
    negatives = [s for s, yes in zip(scores, is_positive) if not yes]
    won = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    return won / (len(positives) * len(negatives))


def rates(scores, is_positive, threshold):
    """(recall, false-alarm rate) of what scores above the threshold."""
    alarms = [s > threshold for s in scores]
    of = [[alarm for alarm, yes in zip(alarms, is_positive) if yes == kind] for kind in (True, False)]
    return tuple(sum(one) / len(one) for one in of)


def recall_at(scores, is_positive, rate):
    """The best recall of any threshold there could be whose false alarms are few enough."""
    found = [rates(scores, is_positive, threshold) for threshold in [-math.inf, *scores]]
    return max(recall for recall, false_alarms in found if false_alarms <= rate)


def operating_point(val_scores, val_positive, scores, is_positive, rate):
    """The lowest validation score that may be a threshold, and what it does to the other examples."""
    allowed = [t for t in sorted(val_scores) if rates(val_scores, val_positive, t)[1] <= rate]
    recall, false_alarm_rate = rates(scores, is_positive, allowed[0])
    num_positive, num_negative = sum(is_positive), len(scores) - sum(is_positive)
    return {
        "threshold": 1 / (1 + math.exp(-allowed[0])),
        "recall": recall,
        "false_alarm_rate": false_alarm_rate,
        "misses": round((1 - recall) * num_positive),
        "false_alarms": round(false_alarm_rate * num_negative),
    }


def pair_counts(a, b, labels):
    """(both right, only a, only b, neither)."""
    right = [[list(row).index(max(row)) == label for row, label in zip(one, labels)] for one in (a, b)]
    pairs = list(zip(*right))
    return tuple(pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False)))


def disagreement(a, b):
    return sum(list(x).index(max(x)) != list(y).index(max(y)) for x, y in zip(a, b)) / len(a)


def q_statistic(a, b, labels):
    both, only_a, only_b, neither = pair_counts(a, b, labels)
    denominator = both * neither + only_a * only_b
    return (both * neither - only_a * only_b) / denominator if denominator else math.nan


def kl(a, b):
    total = 0.0
    for p, q in zip(probabilities(a), probabilities(b)):
        total += sum(x * math.log(x / y) + y * math.log(y / x) for x, y in zip(p, q)) / 2
    return total / len(a)


def error_correlation(a, b, labels):
    """The phi coefficient of the 2 x 2 table."""
    both, only_a, only_b, neither = pair_counts(a, b, labels)
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    return (both * neither - only_a * only_b) / math.sqrt(margins) if margins else math.nan


def sub_ensemble_accuracies(logits, labels, size):
    """Accuracy of the mean probability of every subset of `size` teachers."""
    probs = np.array([probabilities(one) for one in logits])
    subsets = itertools.combinations(range(len(logits)), size)
    return [accuracy(probs[list(subset)].mean(0).tolist(), labels) for subset in subsets]


def holm(p_values):
    """Straight from the definition: the adjusted p is the largest (m - rank) p up to that rank."""
    m = len(p_values)
    order = sorted(range(m), key=lambda i: p_values[i])
    adjusted = [0.0] * m
    for place, i in enumerate(order):
        adjusted[i] = min(1.0, max((m - rank) * p_values[order[rank]] for rank in range(place + 1)))
    return adjusted


def aurc(logits, labels):
    """Error of the k surest, for every k; by falling confidence, in file order where it is equal."""
    probs = probabilities(logits)
    order = sorted(range(len(labels)), key=lambda n: -max(probs[n]))
    wrong = [list(logits[n]).index(max(logits[n])) != labels[n] for n in order]
    return sum(sum(wrong[:k]) / k for k in range(1, len(wrong) + 1)) / len(wrong)
