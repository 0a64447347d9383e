"""The losses between features in float64 NumPy, one example and one teacher at a time."""

import math

import numpy as np


def pooled(x, height, width):
    """Adaptive average pooling of one map [h,w,d], window by window."""
    result = np.zeros((height, width, x.shape[-1]))
    for i in range(height):
        for j in range(width):
            rows = slice(math.floor(i * x.shape[0] / height), math.ceil((i + 1) * x.shape[0] / height))
            columns = slice(math.floor(j * x.shape[1] / width), math.ceil((j + 1) * x.shape[1] / width))
            result[i, j] = x[rows, columns].mean(axis=(0, 1))
    return result


def same_size(a, b):
    size = min(a.shape[0], b.shape[0]), min(a.shape[1], b.shape[1])
    return pooled(a, *size), pooled(b, *size)


def hint(guided, hinted, kernel, bias):
    v, u = same_size(guided, hinted)
    squares = [
        (u[i, j] - (kernel.T @ v[i, j] + bias)) ** 2 for i in range(u.shape[0]) for j in range(u.shape[1])
    ]
    return np.mean(squares) / 2


def attention(x):
    strength = np.array([[np.mean([value**2 for value in pixel]) for pixel in row] for row in x])
    return strength / np.sqrt((strength**2).sum())


def attention_transfer(student, teacher):
    """Of the stages {name: [h,w,d]} that both have, at more than one pixel."""
    total = 0.0
    for name in sorted(set(student) & set(teacher)):
        a, b = same_size(student[name], teacher[name])
        if name.startswith("stage") and a.shape[0] * a.shape[1] > 1:
            total += np.mean((attention(a) - attention(b)) ** 2)
    return total


def neighbours(embeddings, b):
    """The distribution over the other examples of the batch, as example b has it."""

    def kernel(x, y):
        norms = np.linalg.norm(x) * np.linalg.norm(y)
        return (1 + (x @ y / norms if norms > 0 else 0.0)) / 2

    others = [kernel(embeddings[b], e) for j, e in enumerate(embeddings) if j != b]
    return np.array(others) / sum(others)


def pkt(student, teacher, b):
    """KL(teacher || student) of example b; embeddings [B,D] and [B,D']."""
    p, q = neighbours(student, b), neighbours(teacher, b)
    return sum(a * (np.log(a) - np.log(c)) for a, c in zip(q, p) if a > 0)
