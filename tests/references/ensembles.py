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
