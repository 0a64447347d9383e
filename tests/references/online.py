"""Online distillation in float64 NumPy: the loss of peer i on one example, from the papers' equations.

Logits z [P,C] are of all peers, `label` is y, `temperature` T. Losses of the whole cohort, such as that of
its ensemble, count with peer 0.
"""

import numpy as np
from scipy.optimize import minimize

from tests.references.methods import kl, softmax


def ramp_up(epoch):
    return np.exp(-5 * (1 - min(epoch, 80) / 80) ** 2)


def cross_entropy(z, label):
    return -np.log(softmax(z)[label])


def kd(target, z, temperature):
    return temperature**2 * kl(softmax(target, temperature), softmax(z, temperature))


def normalised(x):
    """BatchNorm of rows [B,D] by their own statistics."""
    return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)


def covariance(z, labels):
    """C [P,P] of the errors of logits z [P,B,C]."""
    p = np.array([[softmax(one) for one in own] for own in z])
    errors = p - np.eye(z.shape[-1])[labels]
    return np.array([[(a * b).sum(axis=-1).mean() for b in errors] for a in errors])


def least_error_weights(c):
    """By Lagrange's conditions: 2 C w = lambda 1 and 1 w = 1."""
    size = len(c)
    ridged = c + 1e-3 * np.trace(c) / size * np.eye(size)
    system = np.block([[2 * ridged, -np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]])
    return np.linalg.solve(system, np.append(np.zeros(size), 1.0))[:size]


def kdcl(i, z, label, temperature, target, c=None):
    if target == "general":
        t = least_error_weights(c) @ z
    elif target == "naive":
        t = min(z, key=lambda own: cross_entropy(own, label))
    elif target == "minimum":
        t = np.min([own - own[label] for own in z], axis=0)
    else:
        found = minimize(
            lambda a: cross_entropy(a @ z, label),
            np.full(len(z), 1 / len(z)),
            bounds=[(0, 1)] * len(z),
            constraints={"type": "eq", "fun": lambda a: a.sum() - 1},
            options={"ftol": 1e-15, "maxiter": 1000},
            method="SLSQP",
        )
        t = found.x @ z
    return cross_entropy(z[i], label) + kd(t, z[i], temperature)


def gates(pooled, kernel):
    """g [B,P] of a batch of pooled features [B,D]."""
    return np.array([softmax(np.maximum(row, 0)) for row in normalised(pooled @ kernel)])


def one(i, z, label, temperature, gate, epoch):
    ensemble = sum(g * own for g, own in zip(gate, z))
    of_cohort = cross_entropy(ensemble, label) if i == 0 else 0.0
    return cross_entropy(z[i], label) + ramp_up(epoch) * kd(ensemble, z[i], temperature) + of_cohort


def cl_ilr(i, z, label, temperature, alpha):
    others = np.mean([own for j, own in enumerate(z) if j != i], axis=0)
    return alpha * cross_entropy(z[i], label) + (1 - alpha) * kd(others, z[i], temperature)


def okddip(i, z, label, temperature, embeddings, query, key, leader, epoch):
    auxiliary = [j for j in range(len(z)) if j != leader]
    if i == leader:
        target = np.mean([z[j] for j in auxiliary], axis=0)
    else:
        scores = np.array([(embeddings[i] @ query) @ (embeddings[j] @ key) for j in auxiliary])
        target = sum(a * z[j] for a, j in zip(softmax(scores), auxiliary))
    return cross_entropy(z[i], label) + ramp_up(epoch) * kd(target, z[i], temperature)


def pcl(i, z, label, temperature, embeddings, kernel, bias, averages, epoch):
    ensemble = np.concatenate(embeddings) @ kernel + bias
    others = [averages[j] for j in range(len(z)) if j != i]
    soft = kd(ensemble, z[i], temperature) + np.mean([kd(t, z[i], temperature) for t in others])
    of_cohort = cross_entropy(ensemble, label) if i == 0 else 0.0
    return cross_entropy(z[i], label) + ramp_up(epoch) * soft + of_cohort


def dkel(i, z, label, temperature, embeddings, kernel, bias, averages, epoch):
    ensemble = np.concatenate(embeddings) @ kernel + bias
    others = [averages[j] for j in range(len(z)) if j != i]
    fading = np.exp(-0.5 * epoch)
    fading = fading if fading > 0.01 else 0.0
    apart = np.mean([kd(t, z[i], temperature) for t in others])
    together = kd(np.mean(others, axis=0), z[i], temperature)
    soft = kd(ensemble, z[i], temperature) + fading * together + (1 - fading) * apart
    of_cohort = cross_entropy(ensemble, label) if i == 0 else 0.0
    return cross_entropy(z[i], label) + 0.1 * ramp_up(epoch) * soft + of_cohort


def fused(maps, depthwise, pointwise, kernel, bias):
    """z_f [B,C] of the peers' maps, P x [B,h,w,d]."""
    x = np.concatenate(maps, axis=-1)
    padded, (height, width) = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), x.shape[1:3]
    y = sum(padded[:, i : i + height, j : j + width] * depthwise[i, j, 0] for i in range(3) for j in range(3))
    y = y @ pointwise
    y = np.maximum(normalised(y.reshape(-1, y.shape[-1])).reshape(y.shape), 0)
    return y.mean(axis=(1, 2)) @ kernel + bias


def ffl(i, z, label, temperature, fusion):
    """`fusion` is z_f [C] of the example."""
    of_cohort = cross_entropy(fusion, label) + kd(z.mean(axis=0), fusion, temperature) if i == 0 else 0.0
    return cross_entropy(z[i], label) + kd(fusion, z[i], temperature) + of_cohort


def guided(maps, module):
    """g [B,h,w,d] and c [B,C] of a guided module on maps [B,h,w,d]."""
    y = maps @ module["layer"]["kernel"]
    y = np.maximum(normalised(y.reshape(-1, y.shape[-1])).reshape(y.shape), 0)
    return y, y.mean(axis=(1, 2)) @ module["classifier"]["kernel"] + module["classifier"]["bias"]


def ekd(i, z, label, temperature, stages, weight, guided_weight):
    """`stages` are (g [P,h,w,d], c [P,C]) of the example, one after the other."""
    of_modules = sum(cross_entropy(c[i], label) for _, c in stages)
    soft = 0.0
    if i == 0:
        teachers = range(1, len(z))
        soft = np.mean([kd(z[t], z[0], temperature) for t in teachers])
        for g, c in stages:
            of_modules += np.mean(
                [kd(c[t], c[0], temperature) + ((g[t] - g[0]) ** 2).mean() for t in teachers]
            )
    return cross_entropy(z[i], label) + weight * soft + guided_weight * of_modules
