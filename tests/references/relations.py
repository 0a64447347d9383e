"""The losses between examples in float64 NumPy, of one example b and one teacher; embeddings [B,D]."""

import numpy as np


def huber(x):
    return x**2 / 2 if abs(x) <= 1 else abs(x) - 0.5


def cosine(x, y):
    norms = np.linalg.norm(x) * np.linalg.norm(y)
    return x @ y / norms if norms > 0 else 0.0


def distances(x):
    each = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
    return each / each[each > 0].mean() if (each > 0).any() else each


def rkd(student, teacher, b, share):
    """Angles, and distances times share."""
    num = len(student)
    of_angles = [
        huber(
            cosine(student[i] - student[b], student[j] - student[b])
            - cosine(teacher[i] - teacher[b], teacher[j] - teacher[b])
        )
        for i in range(num)
        for j in range(num)
    ]
    own, other = distances(student), distances(teacher)
    return np.mean(of_angles) + share * np.mean([huber(own[b, j] - other[b, j]) for j in range(num)])


def sp(student, teacher, b):
    own, other = student @ student[b], teacher @ teacher[b]
    return np.mean((own / np.linalg.norm(own) - other / np.linalg.norm(other)) ** 2)


def cc(student, teacher, b, sharpness):
    def kernel(x):
        directions = x / np.linalg.norm(x, axis=1, keepdims=True)
        return np.exp(-sharpness * ((directions - directions[b]) ** 2).sum(axis=1))

    return np.mean((kernel(student) - kernel(teacher)) ** 2)


def crd(student, teacher, b, parameters, tau):
    def projected(part, x):
        kernel, bias = (np.asarray(parameters[part][name], float) for name in ("kernel", "bias"))
        return x @ kernel + bias

    own, other = projected("own", student), projected("other", teacher)
    scores = np.array([[cosine(x, y) / tau for y in other] for x in own])
    there, back = (
        np.exp(scores[b, b]) / np.exp(scores[b]).sum(),
        np.exp(scores[b, b]) / np.exp(scores[:, b]).sum(),
    )
    return -np.log(there) / 2 - np.log(back) / 2


def crd_memory(projected, memory, b, row, drawn, same, tau, log_z=None):
    """One side's loss of example b, and ln Z: of unit vectors [B,D] with rows of a memory [N,D].

    row: [B] the examples' own; drawn: [m] of all; same: [B,m], which of these do not count. Where no `log_z`
    is given it is of this batch.
    """
    right = np.array([x @ memory[own] / tau for x, own in zip(projected, row)])
    others = [[x @ memory[j] / tau for j in drawn] for x in projected]
    if log_z is None:
        counting = [
            s for of, is_same in zip(others, same) for s, left_out in zip(of, is_same) if not left_out
        ]
        log_z = np.log(np.mean(np.exp([*right, *counting])) * len(memory))
    share = len(drawn) / len(memory)
    p_right, p = np.exp(right[b] - log_z), np.exp(np.array(others[b])[~same[b]] - log_z)
    wrong = np.log(share / (p + share))
    loss = -np.log(p_right / (p_right + share)) - len(drawn) * (wrong.mean() if len(wrong) else 0.0)
    return loss, log_z
