"""How weights of an ensemble are distributed, in float64 NumPy, one pair of weights at a time."""

import numpy as np


def swag(moments, scale):
    """Mean [P] and covariance [P,P] of weights [R,P] at R moments."""
    num, size = moments.shape
    mean = np.array([sum(moments[:, i]) / num for i in range(size)])
    covariance = np.zeros((size, size))
    for i, j in np.ndindex(size, size):
        together = sum((one[i] - mean[i]) * (one[j] - mean[j]) for one in moments)
        covariance[i, j] = scale / 2 * together / (num - 1)
        if i == j:
            covariance[i, i] += scale / 2 * (sum(moments[:, i] ** 2) / num - mean[i] ** 2)
    return mean, covariance


def samme_r(logits, labels, rate):
    """Weights [n] after networks that said `logits` [K,n,C], each by the paper's step from those before."""
    num_classes = logits.shape[-1]
    weights = np.full(len(labels), 1 / len(labels))
    for said in logits.astype(np.float64):
        for i, label in enumerate(labels):
            log_probs = said[i] - np.log(np.sum(np.exp(said[i])))
            coded = np.full(num_classes, -1 / (num_classes - 1))
            coded[label] = 1.0
            weights[i] *= np.exp(-rate * (num_classes - 1) / num_classes * np.dot(coded, log_probs))
        weights /= weights.sum()
    return weights


def greedy(chances, number):
    """Members of `chances` [M,n] of the labels: who lowers the NLL of the mean most, one after the other."""
    chosen = []
    while len(chosen) < number:
        left = [m for m in range(len(chances)) if m not in chosen]
        nll = [-np.mean(np.log(np.mean(chances[[*chosen, m]], axis=0))) for m in left]
        chosen.append(left[int(np.argmin(nll))])
    return chosen
