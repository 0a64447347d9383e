"""The losses of every mode in float64 NumPy, example by example, straight from the papers' equations."""

import numpy as np


def softmax(logits, temperature=1.0):
    exps = np.exp((logits - logits.max()) / temperature)
    return exps / exps.sum()


def kl(p, q):
    return sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q) if a > 0)


def cross_entropy(prediction, label, smoothing):
    target = np.full(len(prediction), smoothing / len(prediction))
    target[label] += 1 - smoothing
    return -float(target @ np.log(prediction))


def borda(ballots):
    """Normalised Borda scores of the teachers' logits [K,C]; equal logits are ranked by lower index."""
    scores = np.zeros(ballots.shape[1])
    for ballot in ballots:
        for points, c in enumerate(sorted(range(len(ballot)), key=lambda c: (ballot[c], -c))):
            scores[c] += points
    return scores / scores.sum()


def reverse_kl(q, p):
    return kl(p, q)


def jsd(q, p):
    middle = (q + p) / 2
    return 0.5 * kl(q, middle) + 0.5 * kl(p, middle)


def mse(q, p):
    """Half the mean square between the logs less their means."""
    difference = np.log(p) - np.log(q)
    return 0.5 * np.mean((difference - difference.mean()) ** 2)


def soft_targets(mode, teachers, temperature, fused=None):
    """[(weight, distribution)] the student is to match for one example; teachers [K,C]."""
    if mode in ("mimic_all", "loss_avg"):
        return [(1 / len(teachers), softmax(z, temperature)) for z in teachers]
    if mode in ("output_avg", "fused"):  # the default rule of `fused` is mean_probs
        return [(1.0, np.mean([softmax(z, temperature) for z in teachers], axis=0))]
    if mode == "logit_avg":
        return [(1.0, softmax(teachers.mean(axis=0), temperature))]
    if mode == "vote":
        return [(1.0, borda(teachers))]
    if mode == "fused:median_probs":
        middle = np.median([softmax(z, temperature) for z in teachers], axis=0)
        return [(1.0, middle / middle.sum())]
    if mode in ("supernet", "supernet2", "fused:evolved_mean"):
        return [(1.0, softmax(fused, temperature))]
    raise ValueError(mode)


def loss(mode, heads, teachers, label, alpha, temperature, smoothing=0.0, fused=None, divergence=kl):
    """alpha CE(y, mean_h p_h) + (1 - alpha) T^2 sum_q w_q divergence(q, p_h) of one example; heads [H,C]."""
    prediction = np.mean([softmax(head) for head in heads], axis=0)
    soft = 0.0
    for q, (weight, target) in enumerate(soft_targets(mode, teachers, temperature, fused)):
        head = heads[q] if len(heads) > 1 else heads[0]
        soft += weight * divergence(target, softmax(head, temperature))
    return alpha * cross_entropy(prediction, label, smoothing) + (1 - alpha) * temperature**2 * soft
