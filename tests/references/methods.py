"""Methods of the catalogue in float64 NumPy, example by example, straight from the papers' equations."""

import math

import numpy as np
from scipy.optimize import minimize
from scipy.special import digamma


def softmax(logits, temperature=1.0):
    exps = np.exp((logits - logits.max()) / temperature)
    return exps / exps.sum()


def kl(p, q):
    return sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q) if a > 0)


def entropy(p):
    return -sum(a * np.log(a) for a in p if a > 0)


def mixture(teachers, temperature, w=None):
    """Mean softened teacher of one example; teachers [K,C]."""
    w = np.full(len(teachers), 1 / len(teachers)) if w is None else w
    return sum(a * softmax(z, temperature) for a, z in zip(w, teachers)) / sum(w)


# --- logits: losses of one example, student [C], teachers [K,C] ------------------------------------------


def dkd(student, teachers, label, temperature, target_weight, nontarget_weight):
    q, p = mixture(teachers, temperature), softmax(student, temperature)
    target = kl([q[label], 1 - q[label]], [p[label], 1 - p[label]])
    q_others, p_others = np.delete(q, label), np.delete(p, label)
    nontarget = kl(q_others / q_others.sum(), p_others / p_others.sum())
    return temperature**2 * (target_weight * target + nontarget_weight * nontarget)


def dist(students, teachers, temperature, inter_weight, intra_weight):
    """The loss of a whole batch; students [B,C], teachers [K,B,C]."""
    p = np.array([softmax(z, temperature) for z in students])
    q = np.array([mixture(teachers[:, b], temperature) for b in range(len(students))])
    inter = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q)])
    intra = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T)])
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def regression(student, teachers):
    return sum((a - b) ** 2 for a, b in zip(student, teachers.mean(axis=0))) / 2


def standardised(logits):
    return (logits - logits.mean()) / (logits.std(ddof=1) + 1e-7)


def lsk(student, teachers, temperature):
    q = mixture(np.array([standardised(z) for z in teachers]), temperature)
    return temperature**2 * kl(q, softmax(standardised(student), temperature))


def mixed_temperatures(student, teachers, teacher_temperature, temperature):
    q = mixture(teachers, teacher_temperature)
    return teacher_temperature * temperature * kl(q, softmax(student, temperature))


def nkd(student, teachers, label, temperature, nontarget_weight):
    trust = mixture(teachers, 1.0)[label]
    q, p = (np.delete(x, label) for x in (mixture(teachers, temperature), softmax(student, temperature)))
    others = -sum(a * np.log(b) for a, b in zip(q / q.sum(), p / p.sum()))
    return -trust * np.log(softmax(student)[label]) + nontarget_weight * temperature**2 * others


def ttm(student, teachers, temperature):
    return kl(mixture(teachers, temperature), softmax(student))


def wttm(student, teachers, temperature):
    power_sums = [sum(a ** (1 / temperature) for a in softmax(z)) for z in teachers]
    return np.mean(power_sums) * ttm(student, teachers, temperature)


def mlkd(students, teachers, temperatures, batch_weight, class_weight):
    """The loss of a whole batch; students [B,C], teachers [K,B,C]."""
    total, num_classes = 0.0, students.shape[1]
    for temperature in temperatures:
        p = np.array([softmax(z, temperature) for z in students])
        q = np.array([mixture(teachers[:, b], temperature) for b in range(len(students))])
        total += temperature**2 * np.mean([kl(a, b) for a, b in zip(q, p)])
        total += batch_weight * ((p @ p.T - q @ q.T) ** 2).sum() / len(students)
        total += class_weight * ((p.T @ p - q.T @ q) ** 2).sum() / num_classes
    return total / len(temperatures)


def ctkd(student, teachers, temperature):
    return temperature**2 * kl(mixture(teachers, temperature), softmax(student, temperature))


def spherical(students, teachers, temperature):
    """The losses [B] of a whole batch; students [B,C], teachers [K,B,C]."""
    length = np.mean([np.linalg.norm(z - z.mean()) for of_teacher in teachers for z in of_teacher])

    def at_length(z):
        return length * (z - z.mean()) / np.linalg.norm(z - z.mean())

    losses = []
    for b, z in enumerate(students):
        q = mixture(np.array([at_length(teacher[b]) for teacher in teachers]), temperature)
        losses.append(temperature**2 * kl(q, softmax(at_length(z), temperature)))
    return losses


# --- targets ---------------------------------------------------------------------------------------------


def end2(student, teachers, smoothing, temperature):
    """T^2 times the negative log-density, a member and a class at a time."""
    evidence = [math.exp(z / temperature) for z in student]
    total, num_classes = sum(evidence), len(evidence)
    found = 0.0
    for teacher in teachers:
        density = math.lgamma(total) - sum(math.lgamma(a) for a in evidence)
        for a, q in zip(evidence, softmax(np.asarray(teacher, np.float64), temperature)):
            density += (a - 1) * math.log((1 - smoothing) * q + smoothing / num_classes)
        found -= density / len(teachers)
    return temperature**2 * found


def proxy_end2(student, teachers, smoothing, temperature):
    """T^2 times the reverse divergence from the proxy, a class at a time; teachers [K,C]."""
    num = len(student)
    each = [
        (1 - smoothing) * softmax(z, temperature) + smoothing / num for z in np.asarray(teachers, np.float64)
    ]
    mean = np.mean(each, axis=0)
    apart = sum(mean[c] * (math.log(mean[c]) - np.mean([math.log(q[c]) for q in each])) for c in range(num))
    beta = min((num - 1) / (2 * apart), 1e4)
    a = [math.exp(z / temperature) + 1 for z in student]
    expected = [digamma(x) - digamma(sum(a)) for x in a]
    flat = math.lgamma(sum(a)) - sum(map(math.lgamma, a)) - math.lgamma(num)
    flat += sum((x - 1) * e for x, e in zip(a, expected))
    return temperature**2 * (flat / beta - sum(q * e for q, e in zip(mean, expected)))


def smoothed_cross_entropy(student, label, smoothing):
    q = np.full(len(student), smoothing / len(student))
    q[label] += 1 - smoothing
    return -float(q @ np.log(softmax(student)))


def cwtm(students, teachers, labels, labelled, temperature):
    """The loss of a whole batch; students [B,C], teachers [K,B,C]."""
    rows = [b for b in range(len(students)) if labelled[b]]
    confidence = {b: mixture(teachers[:, b], temperature).max() for b in rows}
    return sum(
        confidence[b] / sum(confidence.values()) * -np.log(softmax(students[b])[labels[b]]) for b in rows
    )


# --- weights of one example, teachers [K,C] --------------------------------------------------------------


def adaptive(student, embedding, teachers, latent, mix, temperature):
    """The loss of one example; embedding [D], latent [K,D], mix [D]."""
    direction = embedding / np.linalg.norm(embedding)
    w = softmax(np.array([sum(mix * own * direction) for own in latent]))
    return temperature**2 * kl(mixture(teachers, temperature, w), softmax(student, temperature))


def ebkd(teachers, normalise):
    entropies = np.array([entropy(softmax(z)) for z in teachers])
    return (1 - entropies / entropies.sum()) / (len(teachers) - 1 if normalise else len(teachers))


def ca_mkd(teachers, label):
    inverse = np.array([1 / softmax(z)[label] for z in teachers])  # exp of the cross-entropy
    return (1 - inverse / inverse.sum()) / (len(teachers) - 1)


def logit_gradients(students, teachers, temperature):
    """g [K,C]: batch means of d(T^2 KL_k)/d(student's logits), by central differences."""
    step, gradients = 1e-5, np.zeros((len(teachers), students.shape[1]))
    for k, c in np.ndindex(*gradients.shape):
        for z, z_k in zip(students, teachers[k]):
            q, moved = softmax(z_k, temperature), np.eye(len(z))[c] * step
            rise = kl(q, softmax(z + moved, temperature)) - kl(q, softmax(z - moved, temperature))
            gradients[k, c] += temperature**2 * rise / (2 * step) / len(students)
    return gradients


def least_common_gradient(gradients, cap):
    """a [K] of least ||a @ gradients||, sum a = 1, 0 <= a <= cap, by sequential least squares."""
    scaled = gradients / np.abs(gradients).max()
    found = minimize(
        lambda a: 0.5 * ((a @ scaled) ** 2).sum(),
        np.full(len(gradients), 1 / len(gradients)),
        jac=lambda a: scaled @ (a @ scaled),
        bounds=[(0, cap)] * len(gradients),
        constraints={"type": "eq", "fun": lambda a: a.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-16, "maxiter": 1000},
        method="SLSQP",
    )
    return found.x


def lot(student, teachers, drawn, temperature):
    """The loss of one example, of which teacher `drawn` alone is heard; teachers [K,C]."""
    return temperature**2 * kl(softmax(teachers[drawn], temperature), softmax(student, temperature))


# --- peers -----------------------------------------------------------------------------------------------


def kd_ml(place, cohort, teachers, label, alpha, temperature, teacher_weight, peer_weight):
    """The loss of one example and the peer at `place`; cohort [P,C], teachers [K,C]."""
    p = softmax(cohort[place], temperature)
    of_teachers = np.mean([kl(softmax(z, temperature), p) for z in teachers])
    others = [z for j, z in enumerate(cohort) if j != place]
    of_peers = np.mean([kl(softmax(z, temperature), p) for z in others])
    soft = temperature**2 * (teacher_weight * of_teachers + peer_weight * of_peers)
    return -alpha * np.log(softmax(cohort[place])[label]) + (1 - alpha) * soft


def apprentice(place, cohort, label, alpha, temperature):
    """Of the low-precision peer 0, or of peer 1, whom it learns from."""
    hard = -np.log(softmax(cohort[place])[label])
    if place == 1:
        return hard
    q, p = (softmax(z, temperature) for z in (cohort[1], cohort[0]))
    return alpha * hard + (1 - alpha) * temperature**2 * kl(q, p)


# --- stimuli ---------------------------------------------------------------------------------------------


def privileged(series, reach):
    """Of a series [T,D], step by step: the mean of the steps that are not further away than `reach`."""
    near = [range(max(0, t - reach), min(len(series), t + reach + 1)) for t in range(len(series))]
    return np.array([np.mean([series[s] for s in steps], axis=0) for steps in near])


def gaussian(image, noise, step_size):
    return np.clip(image + step_size * noise, 0, 1)


# --- few labels ------------------------------------------------------------------------------------------


def mean_teacher(student, other, label, weight, share):
    """Of one example, at a share of the ramp-up; `other` is what the teacher says, the label may be None."""
    distance = np.mean([(a - b) ** 2 for a, b in zip(softmax(student), softmax(other))])
    hard = 0.0 if label is None else -np.log(softmax(student)[label])
    return hard + weight * math.exp(-5 * (1 - min(share, 1)) ** 2) * distance


def temporal_ensembling(predictions, decay):
    """What an example's target is at its next visit, after predictions [V,C] at V visits."""
    total = np.zeros(len(predictions[0]))
    for p in predictions:
        total = decay * total + (1 - decay) * p
    return total / (1 - decay ** len(predictions))


def pseudo_labels(student, teachers, threshold):
    """The loss of one example; teachers [K,C]."""
    q = mixture(teachers, 1.0)
    return -np.log(softmax(student)[q.argmax()]) if q.max() >= threshold else 0.0


# --- weights of few bits, a kernel ------------------------------------------------------------------------


def xnor(kernel):
    """Kernel [...,d]: of each output its signs times the mean size of its weights."""
    rows = kernel.reshape(-1, kernel.shape[-1])
    sizes = [sum(abs(w) for w in of_output) / len(rows) for of_output in rows.T]
    signed = [[size if w >= 0 else -size for w, size in zip(row, sizes)] for row in rows]
    return np.array(signed).reshape(kernel.shape)


def quantised(rows, bits):
    """Rows [n,d], each output feature d by itself, each number to the nearest of its grid."""
    found = np.zeros(rows.shape)
    for d in range(rows.shape[1]):
        largest, steps = np.abs(rows[:, d]).max(), 2 ** (bits - 1) - 1
        grid = largest * np.arange(-steps, steps + 1) / steps
        found[:, d] = [grid[np.abs(grid - w).argmin()] for w in rows[:, d]]
    return found


def dorefa(kernel, bits):
    bent = np.tanh(kernel)
    steps = 2**bits - 1
    return 2 * np.round(steps * (bent / (2 * np.abs(bent).max()) + 0.5)) / steps - 1


def wrpn(kernel, bits):
    steps = 2 ** (bits - 1) - 1
    return np.round(steps * np.clip(kernel, -1, 1)) / steps


def qnn(x, kernel):
    """What a layer of signs says of activations [B,d]; of 0 the sign is -1, of a weight of 0 it is 1."""
    found = np.zeros((len(x), kernel.shape[1]))
    for b, j, i in np.ndindex(len(x), *kernel.shape[::-1]):
        found[b, j] += (1 if x[b, i] > 0 else -1) * (1 if kernel[i, j] >= 0 else -1)
    return found


def few_bit_activations(x, bits):
    """Each number by itself to the nearest of the 2**bits that are allowed."""
    allowed = np.linspace(0, 1, 2**bits)
    return np.array([allowed[np.abs(allowed - one).argmin()] for one in x.ravel()]).reshape(x.shape)


# --- logits of places: losses of one image, student [L,C], teachers [K,L,C] -------------------------------


def cwd(student, teachers, map_temperature):
    """Of the places that are there: mean over classes and teachers, times the square of the temperature."""
    total, num_classes = 0.0, student.shape[-1]
    for teacher in teachers:
        for c in range(num_classes):
            total += kl(softmax(teacher[:, c], map_temperature), softmax(student[:, c], map_temperature))
    return map_temperature**2 * total / (num_classes * len(teachers))


def gradual(kernels, progress, sparsity, begin, end):
    """The kernels with the weights set to 0, one at a time, that are the smallest of all that are left."""
    done = min(max((progress - begin) / (end - begin), 0.0), 1.0)
    kept = [kernel.astype(np.float64) for kernel in kernels]
    number = round(sparsity * (1 - (1 - done) ** 3) * sum(kernel.size for kernel in kernels))
    order = sorted((abs(w), k, i) for k, kernel in enumerate(kept) for i, w in np.ndenumerate(kernel))
    for _, k, i in order[:number]:
        kept[k][i] = 0.0
    return kept


def shrinking(params, turn, width, num_widths):
    """The parameters {module: {name: array}} at one of the widths, channel by channel."""
    share = 1 - (1 - width) * turn / (num_widths - 1)
    found = {}
    for module, of in params.items():
        found[module] = {name: leaf.astype(np.float64) for name, leaf in of.items()}
        for leaf in found[module].values() if module != "heads" else ():
            for c in range(leaf.shape[-1]):
                if c >= max(1, round(share * leaf.shape[-1])):
                    leaf[..., c] = 0.0
    return found


def turns_of_widths(num_steps, num_widths):
    """Whose turn every step is: in phase p the widths 0 to p, by the number of the step."""
    phases = [min(step * num_widths // num_steps, num_widths - 1) for step in range(num_steps)]
    return [0] + [step % (phases[step - 1] + 1) for step in range(1, num_steps)]


def correlated(cohort, labels, strength):
    """The sum over a batch of the mean loss of the peers [P,B,C], less their diversity."""

    def cross_entropy(z, y):
        return np.log(np.exp(z - z.max()).sum()) + z.max() - z[y]

    total = 0.0
    for b, y in enumerate(labels):
        each = np.mean([cross_entropy(z[b].astype(np.float64), y) for z in cohort])
        diversity = each - cross_entropy(np.mean([z[b] for z in cohort], axis=0), y)
        total += each - strength * diversity
    return total


def soteacher(z, label, mean, weight):
    """CE(z) of one example and `weight` times the squared distance to `mean`, None before there is one."""
    p = softmax(z)
    distance = 0.0 if mean is None else ((p - mean) ** 2).sum()
    return -np.log(p[label]) + weight * distance


def sftn(z, label, branches, hard_weight, soft_weight):
    """Of a teacher's logits z [C] and those of its branches, each [C]."""
    loss = -np.log(softmax(z)[label])
    for branch in branches:
        loss += -hard_weight * np.log(softmax(branch)[label]) + soft_weight * kl(softmax(z), softmax(branch))
    return loss
