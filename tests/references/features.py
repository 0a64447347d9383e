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


def simkd(student, teacher, parameters):
    """Mean square of the projected embedding [D] less the teacher's [D']."""
    projected = np.asarray(student) @ np.asarray(parameters["kernel"], float) + parameters["bias"]
    return np.mean((projected - teacher) ** 2)


def ca_mkd(student, teachers, parameters, classifiers, label):
    """The loss of one example and the weights; teachers K x [D_k], classifiers K x (kernel, bias)."""
    losses, distances = [], []
    for teacher, own, (kernel, bias) in zip(teachers, parameters, classifiers):
        predicted = linear(own, np.asarray(student, float))
        exps = np.exp(predicted @ kernel + bias)
        losses.append(-np.log(exps[label] / exps.sum()))
        distances.append(np.mean((teacher - predicted) ** 2))
    shares = np.exp(losses) / sum(np.exp(losses))
    w = (1 - shares) / (len(teachers) - 1)
    return w @ distances, w


def stages(student, teacher, least_pixels=1):
    """[(name, own, other)] of the stages that both have, at the smaller size."""
    names = [name for name in sorted(student) if name.startswith("stage") and name in teacher]
    both = [(name, *same_size(student[name], teacher[name])) for name in names]
    return [one for one in both if one[1].shape[0] * one[1].shape[1] >= least_pixels]


def flow(first, second):
    """G [m,n] of two stages of one network."""
    a, b = same_size(first, second)
    pixels = [(i, j) for i in range(a.shape[0]) for j in range(a.shape[1])]
    return sum(np.outer(a[i, j], b[i, j]) for i, j in pixels) / len(pixels)


def fsp(student, teacher):
    """Of neighbouring stages of equal width in both; maps {"stage1": [h,w,d], ...}."""
    total, number = 0.0, 1
    while f"stage{number + 1}" in student and f"stage{number + 1}" in teacher:
        own, other = (flow(maps[f"stage{number}"], maps[f"stage{number + 1}"]) for maps in (student, teacher))
        if own.shape == other.shape:
            total += np.mean((own - other) ** 2)
        number += 1
    return total


def nst(student, teacher):
    """The maximum mean discrepancy of channels under (x . y)^2, pair of channels by pair of channels."""

    def patterns(x):
        return [x[..., c].ravel() / np.linalg.norm(x[..., c]) for c in range(x.shape[-1])]

    def kernel(some, others):
        return np.mean([(a @ b) ** 2 for a in some for b in others])

    total = 0.0
    for _, own, other in stages(student, teacher, least_pixels=2):
        a, b = patterns(own), patterns(other)
        total += kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)
    return total


def linear(parameters, x):
    return x @ np.asarray(parameters["kernel"], float) + np.asarray(parameters["bias"], float)


def vid(student, teacher, parameters):
    total = 0.0
    for name, own, other in stages(student, teacher):
        variance = np.log1p(np.exp(np.asarray(parameters[name]["spread"], float))) + 1e-5
        off = other - linear(parameters[name]["map"], own)
        total += np.mean((np.log(variance) + off**2 / variance) / 2)
    return total


def ab_only(student, teacher, parameters):
    total = 0.0
    for name, own, other in stages(student, teacher):
        guess = linear(parameters[name], own).ravel()
        losses = [max(0, 1 - r) ** 2 if u > 0 else max(0, 1 + r) ** 2 for r, u in zip(guess, other.ravel())]
        total += np.mean(losses)
    return total


def convolved(parameters, x):
    """3x3, zeros around; kernel [9 d, d'], the nine places row by row."""
    height, width, depth = x.shape
    kernel, result = np.asarray(parameters["kernel"], float).reshape(3, 3, depth, -1), []
    for i in range(height):
        for j in range(width):
            value = np.asarray(parameters["bias"], float).copy()
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= i + di < height and 0 <= j + dj < width:
                        value += x[i + di, j + dj] @ kernel[di + 1, dj + 1]
            result.append(value)
    return np.array(result).reshape(height, width, -1)


def mgd(student, teacher, parameters, is_seen):
    """Of the last stage; is_seen [h,w] bool."""
    _, own, other = stages(student, teacher)[-1]
    visible = linear(parameters["map"], own) * is_seen[..., None]
    hidden = np.maximum(convolved(parameters["first"], visible), 0)
    return np.mean((other - convolved(parameters["second"], hidden)) ** 2)


def factor_transfer(student, teacher, parameters, weight):
    _, own, other = stages(student, teacher)[-1]
    code, translated = linear(parameters["code"], other), linear(parameters["translator"], own)
    unlike = np.mean(np.abs(code / np.linalg.norm(code) - translated / np.linalg.norm(translated)))
    return unlike + np.mean((other - linear(parameters["decoder"], code)) ** 2) / weight


def ofd(student, teachers, parameters, b):
    """Of example b; teachers are the maps of the whole batch, from which margins are taken."""
    both, total = stages(student, {name: x[b] for name, x in teachers.items()}), 0.0
    for place, (name, own, other) in enumerate(both):
        whole = np.array([same_size(own, x)[1] for x in teachers[name]])
        guess, distance = linear(parameters[name], own), []
        for d in range(other.shape[-1]):
            negative = [x for x in whole[..., d].ravel() if x < 0]
            margin = np.mean(negative) if negative else 0.0
            for r, u in zip(guess[..., d].ravel(), other[..., d].ravel()):
                t = max(u, margin)
                distance.append(0.0 if r <= t <= 0 else (t - r) ** 2)
        total += 2.0 ** (place + 1 - len(both)) * np.mean(distance)
    return total


def semckd(student, teacher, parameters):
    ours, theirs = (sorted(n for n in maps if n.startswith("stage")) for maps in (student, teacher))
    total = 0.0
    for s in ours:
        query = linear(parameters["query"][s], student[s].mean(axis=(0, 1)))
        keys = [linear(parameters["key"][t], teacher[t].mean(axis=(0, 1))) for t in theirs]
        scores = np.exp([query @ key / np.sqrt(len(query)) for key in keys])
        for a, t in zip(scores / scores.sum(), theirs):
            own, other = same_size(student[s], teacher[t])
            total += a * np.mean((other - linear(parameters["map"][s][t], own)) ** 2)
    return total


def review(student, teacher, parameters):
    """From the deepest stage on; the other size of a map by its nearest pixels."""
    total, deeper = 0.0, None
    for name, own, other in reversed(stages(student, teacher)):
        height, width, _ = own.shape
        x = linear(parameters[name]["own"], own)
        if deeper is not None:
            grown = np.array(
                [
                    [
                        deeper[i * deeper.shape[0] // height, j * deeper.shape[1] // width]
                        for j in range(width)
                    ]
                    for i in range(height)
                ]
            )
            gates = linear(parameters[name]["gate"], np.concatenate([x, grown], axis=-1))
            gates = 1 / (1 + np.exp(-gates))
            x = gates[..., :1] * x + gates[..., 1:] * grown
        deeper, out = x, convolved(parameters[name]["out"], x)
        distances, shares = [np.mean((out - other) ** 2)], [1.0]
        for size in (4, 2, 1):
            if size < min(height, width):
                distances.append(np.mean((pooled(out, size, size) - pooled(other, size, size)) ** 2))
                shares.append(shares[-1] / 2)
        total += np.dot(shares, distances) / sum(shares)
    return total


def matched_channels(v, u, order):
    """Of maps [h,w,d] of one example, after one stage, channel j of v with channel order[j] of u."""
    return np.mean([(u[..., i] - v[..., j]) ** 2 for j, i in enumerate(order)])
