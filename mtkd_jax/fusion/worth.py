r"""What a teacher is worth to the others, on the host: logits are [K,N,C], labels [N]."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import softmax

NUM_ORDERS = 200  # drawn for sampled Shapley values


def subset_accuracies(logits: np.ndarray, labels: np.ndarray, member_of: np.ndarray) -> np.ndarray:
    """Accuracies [S] of `mean_probs` over subsets of teachers: member_of [S,K] float32, 1 for members."""
    num_teachers, num_examples, num_classes = logits.shape
    num_right = np.zeros(len(member_of))
    # A block of examples at a time: [S, block * C] stays near 16 MB whatever N, C and K are.
    block = max(1, 4_000_000 // (max(member_of.shape) * num_classes))
    for start in range(0, num_examples, block):
        part = softmax(np.asarray(logits[:, start : start + block], np.float32), axis=2)
        total = (member_of @ part.reshape(num_teachers, -1)).reshape(len(member_of), -1, num_classes)
        num_right += (np.argmax(total, axis=2) == labels[start : start + block]).sum(axis=1)
    return num_right / num_examples


def shapley(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    most_exact: int = 12,
    num_orders: int = NUM_ORDERS,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray | None]:
    r"""Shapley (1953) value of every teacher for the accuracy v of `mean_probs`: (values [K], their errors).

    $$\phi_k = \frac{1}{K!} \sum_\text{orders} (v(\text{before k, and k}) - v(\text{before k})), \qquad
    v(\emptyset) = \frac{1}{C}$$

    The values sum to $v(\text{all}) - 1/C$. Exact, from all $2^K$ subsets and without errors (None), up to
    `most_exact` teachers; beyond, the mean over `num_orders` random orders, with its standard errors [K].
    """
    num_teachers, _, num_classes = logits.shape
    if num_teachers > most_exact:
        rng = np.random.default_rng(seed)
        gains = _gains(logits, labels, [rng.permutation(num_teachers) for _ in range(num_orders)])
        return gains.mean(axis=0), gains.std(axis=0, ddof=1) / math.sqrt(num_orders)
    codes = np.arange(2**num_teachers)
    member_of = (codes[:, None] >> np.arange(num_teachers)) & 1  # row s holds the teachers of the bits of s
    worth = subset_accuracies(logits, labels, member_of.astype(np.float32))
    worth[0] = 1 / num_classes
    num_others = [math.comb(num_teachers - 1, size) for size in range(num_teachers)]
    weight = 1 / (num_teachers * np.array(num_others))  # of a coalition without k, by its size
    values = []
    for k in range(num_teachers):
        without = codes[member_of[:, k] == 0]
        values.append(weight[member_of[without].sum(axis=1)] @ (worth[without | 1 << k] - worth[without]))
    return np.array(values), None


def _gains(logits: np.ndarray, labels: np.ndarray, orders: list[np.ndarray]) -> np.ndarray:
    """What each teacher adds to the accuracy when all join in that order, [orders,K]."""
    probs = np.moveaxis(softmax(np.asarray(logits, np.float32), axis=2), 2, 1).copy()  # [K,C,N]
    gains = np.empty((len(orders), len(logits)))
    for row, order in enumerate(orders):
        total, before = np.zeros_like(probs[0]), 1 / logits.shape[2]
        for k in order:
            total += probs[k]
            now = np.mean(np.argmax(total, axis=0) == labels)
            gains[row, k], before = now - before, now
    return gains
