"""Search and distances of sequences, one after the other in plain Python."""

from __future__ import annotations

import itertools
import math

END = 0


def probability(say, source, target, length):
    """ln P(target, END | source); `say(source, prefix)` gives log-probabilities [C] of the next token.

    At the last of `length` places only END can be said.
    """
    total, prefix = 0.0, ()
    for token in (*target, END):
        if len(prefix) == length - 1 and token != END:
            return -math.inf
        total += say(source, prefix)[token]
        prefix = (*prefix, token)
    return total


def exhaustive(say, source, num_classes, length):
    """All targets that fit in, with ln P, the most probable first."""
    every = [
        target for size in range(length) for target in itertools.product(range(1, num_classes), repeat=size)
    ]
    scored = [(probability(say, source, target, length), target) for target in every]
    return sorted(scored, key=lambda one: -one[0])


def beam(say, source, num_classes, length, num_beams):
    """Beam search as Kim and Rush (2016) decode: the best `num_beams` prefixes at every length."""
    open_, ended = [(0.0, ())], []
    for place in range(length):
        grown = []
        for score, prefix in open_:
            log_probs = say(source, prefix)
            tokens = [END] if place == length - 1 else range(num_classes)
            grown += [(score + log_probs[token], (*prefix, token)) for token in tokens]
        best = sorted(grown + ended, key=lambda one: -one[0])[:num_beams]
        ended = [one for one in best if one[1][-1] == END]
        open_ = [one for one in best if one[1][-1] != END]
    return [(score, prefix[:-1]) for score, prefix in sorted(ended, key=lambda one: -one[0])]


def edit_distance(a, b):
    """Levenshtein (1966), by its recursion."""
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return edit_distance(a[1:], b[1:])
    return 1 + min(edit_distance(a[1:], b), edit_distance(a, b[1:]), edit_distance(a[1:], b[1:]))
