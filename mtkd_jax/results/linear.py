"""What a linear model reaches on the same labels: a network below it has not been trained enough."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from mtkd_jax.system import interrupts
from mtkd_jax.types import Images

SIDE = 16  # images are averaged over squares until neither side is longer
MOST = 10_000  # training examples to give it: more of them change little for the time they take
WORK = 2e8  # weights times examples: a step of the fit takes some tenths of a second then
BLOCK = 1024  # images at once, where they are read from files
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the penalty; validation chooses


def linear_logits(
    train: np.ndarray,
    labels: np.ndarray,
    val: np.ndarray,
    val_labels: np.ndarray,
    *others: np.ndarray,
    num_classes: int,
) -> tuple[np.ndarray, ...]:
    r"""Logits [v,C] of the validation features, then those of every further array, in float32.

    Logistic regression on features [n,D], centred and divided by their standard deviation, with labels [n]:

    $$\min_{W, b}\ \frac{1}{n} \sum_i \mathrm{CE}(y_i, W x_i + b) + \frac{\lambda}{2} \lVert W \rVert^2$$

    by at most 200 steps of L-BFGS, with the $\lambda$ of `STRENGTHS` that has the lowest validation NLL. A
    class without a training example has the lowest logit of its row.
    """
    x = np.asarray(train, np.float64)
    mean, std = x.mean(axis=0), x.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    x, parts = (x - mean) / std, [(np.asarray(part, np.float64) - mean) / std for part in (val, *others)]
    models = []
    for strength in STRENGTHS:
        interrupts.check("all training is saved")
        models.append(_fitted(x, labels, 1.0 / (strength * len(x))))
    chosen = min(models, key=lambda model: _nll(_logits(model, parts[0], num_classes), val_labels))
    return tuple(_logits(chosen, part, num_classes).astype(np.float32) for part in parts)


def sample(rows: np.ndarray, num_features: int, num_classes: int) -> np.ndarray:
    """As many rows as are fitted in bearable time, drawn the same way in every run; at least a hundred.

    >>> [len(sample(np.arange(50_000), 768, num_classes)) for num_classes in (10, 100)]
    [10000, 2604]
    """
    most = min(MOST, max(100, int(WORK / (num_features * num_classes))))
    return np.random.default_rng(0).permutation(rows)[:most]


def pixels(images: np.ndarray | Images, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """The images of some rows as features [n,D] in float32, averaged over squares to at most 16 x 16 places.

    What is left over at the right and lower border, less than a square, is cut off.
    """
    _, height, width, channels = images.shape
    window = -(-max(height, width) // SIDE)
    down, right = min(window, height), min(window, width)  # a time series has width 1
    places = (height // down, down, width // right, right)
    found = []
    for start in range(0, len(rows), BLOCK):
        block = np.asarray(images[np.asarray(rows[start : start + BLOCK])], np.float32)
        block = block[:, : places[0] * down, : places[2] * right]
        block = block.reshape(len(block), *places, channels).mean(axis=(2, 4))
        found.append(block.reshape(len(block), -1))
    return np.concatenate(found) if found else np.zeros((0, places[0] * places[2] * channels), np.float32)


def _fitted(x: np.ndarray, y: np.ndarray, inverse_strength: float) -> LogisticRegression:
    # One thread: beside another process, two that wait for each other took 50 times as long on the digits.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # nearly there is near enough for a yardstick
        return LogisticRegression(C=inverse_strength, max_iter=200).fit(x, y)


def _logits(model: LogisticRegression, x: np.ndarray, num_classes: int) -> np.ndarray:
    if len(x) == 0:
        return np.zeros((0, num_classes))
    scores = model.decision_function(x)
    if scores.ndim == 1:  # of two classes the log-odds of the second
        scores = np.stack([-scores / 2, scores / 2], axis=1)
    logits = np.repeat(scores.min(axis=1, keepdims=True), num_classes, axis=1)
    logits[:, model.classes_] = scores
    return logits


def _nll(logits: np.ndarray, labels: np.ndarray) -> float:
    return -float(log_softmax(logits, axis=-1)[np.arange(len(labels)), labels].mean())
