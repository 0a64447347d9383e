r"""Metrics of saved logits, on the host in float64: what the report is computed from.

Shapes: logits [N,C] (unnormalised, any float), labels [N] int; the teachers' logits are [K,N,C]. Symbols:
n is an example, $p_n = \mathrm{softmax}(z_n)$ its probabilities, $y_n$ its label, $\hat{y}_n$ its
decision.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import chex
import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, log_softmax, softmax

from mtkd_jax.fusion.worth import subset_accuracies

NUM_BINS = 15
MOST_IN_PAIRS = 32  # teachers whose pairs are looked at: a matrix of more is neither read nor cheap
MOST_SIZES = 12


# --- one network --------------------------------------------------------------------------------------


def per_example(logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The terms whose means are accuracy, NLL and Brier score, each [N] float64.

    Equal logits are decided for the lower class, as a ballot does (`fusion.rules`).
    """
    chex.assert_shape(logits, (len(labels), None))
    log_probs = log_softmax(np.asarray(logits, np.float64), axis=1)
    truth = np.eye(logits.shape[1])[labels]
    return {
        "accuracy": (np.argmax(logits, axis=1) == labels).astype(np.float64),
        "nll": -np.take_along_axis(log_probs, np.asarray(labels)[:, None], axis=1)[:, 0],
        "brier": np.square(np.exp(log_probs) - truth).sum(axis=1),
    }


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    r"""Share of right decisions, in [0,1].

    $$\frac{1}{N} \sum_n [\hat{y}_n = y_n]$$

    Examples:
        >>> accuracy(np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]]), np.array([0, 1, 1]))
        0.6666666666666666
    """
    return float(per_example(logits, labels)["accuracy"].mean())


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    r"""Mean negative log-likelihood of the true class, in nats; ln C for a uniform guess.

    $$-\frac{1}{N} \sum_n \ln\, p_n(y_n)$$
    """
    return float(per_example(logits, labels)["nll"].mean())


def brier(logits: np.ndarray, labels: np.ndarray) -> float:
    r"""Brier score in [0,2] (Brier, 1950).

    $$\frac{1}{N} \sum_n \sum_c (p_n(c) - [c = y_n])^2$$
    """
    return float(per_example(logits, labels)["brier"].mean())


def reliability(logits: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS) -> dict[str, np.ndarray]:
    """Confidence and accuracy of the top label in equal-mass bins, by rising confidence.

    Returns {"confidence", "accuracy", "mass"}, each [min(num_bins, N)]; the masses sum to 1. Bins hold the
    same number of examples to within one; equal confidences stay in file order.
    """
    confidence = softmax(np.asarray(logits, np.float64), axis=1).max(axis=1)
    order = np.argsort(confidence, kind="stable")
    num_bins = min(num_bins, len(order))
    bin_of = np.arange(len(order)) * num_bins // len(order)
    right = per_example(logits, labels)["accuracy"]
    count = np.bincount(bin_of)
    return {
        "confidence": np.bincount(bin_of, confidence[order]) / count,
        "accuracy": np.bincount(bin_of, right[order]) / count,
        "mass": count / len(order),
    }


def ece(logits: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS) -> float:
    r"""Expected calibration error of the top label, in [0,1].

    $$\sum_b m_b\, |\mathrm{acc}_b - \mathrm{conf}_b|$$

    Accuracy, mean confidence and mass (share of the examples) of each bin b are those of `reliability`. Bins
    hold equal masses (Nguyen and O'Connor, 2015); the sum is that of Naeini, Cooper and Hauskrecht (2015).
    """
    bins = reliability(logits, labels, num_bins)
    return float(np.sum(bins["mass"] * np.abs(bins["accuracy"] - bins["confidence"])))


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Confusion matrix [C,C] int64: rows are true classes, columns are decisions.

    Examples:
        >>> confusion(np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]]), np.array([0, 1, 1])).tolist()
        [[1, 0], [1, 1]]
    """
    num_classes = logits.shape[1]
    cell = np.asarray(labels, np.int64) * num_classes + np.argmax(logits, axis=1)
    return np.bincount(cell, minlength=num_classes**2).reshape(num_classes, num_classes)


def share_repeated(logits: np.ndarray, said: np.ndarray, labels: np.ndarray) -> float:
    r"""How often a network decides as somebody else does, of what that one gets wrong; NaN if nothing.

    $$P(\hat{y} = \hat{y}_t \mid \hat{y}_t \ne y)$$

    `logits` [N,C] are the network's, `said` [N] the other's decisions.

    Examples:
        >>> share_repeated(np.eye(3)[[0, 1, 2, 0]], np.array([0, 1, 1, 0]), np.array([1, 1, 2, 1]))
        0.6666666666666666
    """
    wrong = said != labels
    return float(np.mean(logits.argmax(axis=-1)[wrong] == said[wrong])) if wrong.any() else float("nan")


def per_class_recall(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    r"""Share of each class that is found, [C] in [0,1]; nan for a class without examples.

    $$R_c = \frac{|\{n : \hat{y}_n = y_n = c\}|}{|\{n : y_n = c\}|}$$
    """
    matrix = confusion(logits, labels)
    return _ratio(np.diagonal(matrix), matrix.sum(axis=1))


def balanced_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    r"""Mean recall of the classes there are, in [0,1]; 1/C for a guess, however many a class has.

    $$\frac{1}{C} \sum_c R_c$$

    Examples:
        >>> balanced_accuracy(np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]]), np.array([0, 1, 1]))
        0.75
    """
    return float(np.nanmean(per_class_recall(logits, labels)))


def summary(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """{"accuracy", "nll", "ece", "brier", "balanced_accuracy"} of one network."""
    means = {name: float(values.mean()) for name, values in per_example(logits, labels).items()}
    return {
        **means,
        "ece": ece(logits, labels),
        "balanced_accuracy": balanced_accuracy(logits, labels),
    }


# --- beyond accuracy ----------------------------------------------------------------------------------

# Numbers that are no means of examples come as terms, one an example, whose mean is the number and which say
# how it would move if the example were there once more: so that all are resampled alike, by one product of
# matrices. To first order that is the bootstrap (Efron 1982, the infinitesimal jackknife), and unlike it does
# not move an ECE upwards.

COLDEST, HOTTEST = 1e-2, 1e2


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    r"""The temperature in [0.01, 100] at which logits have the lowest NLL.

    $$T = \mathrm{argmin}_T\, -\frac{1}{N} \sum_n \ln\, \mathrm{softmax}(z_n / T)_{y_n}$$

    The NLL is convex in 1/T: its slope is 0 where the mean logit of the labels is the mean logit that the
    network expects. To be fitted on validation. Source: Guo et al. 2017, arXiv 1706.04599.
    """
    z = np.asarray(logits, np.float64)
    z = z - z.max(axis=1, keepdims=True)
    of_label = np.take_along_axis(z, np.asarray(labels)[:, None], axis=1).mean()

    def slope(log_temperature: float) -> float:
        return float((softmax(z / math.exp(log_temperature), axis=1) * z).sum(axis=1).mean() - of_label)

    coldest, hottest = math.log(COLDEST), math.log(HOTTEST)
    if slope(coldest) <= 0:  # all labels have the largest logit: the colder, the better
        return COLDEST
    if slope(hottest) >= 0:
        return HOTTEST
    return math.exp(brentq(slope, coldest, hottest, xtol=1e-6))


def ece_terms(logits: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS) -> np.ndarray:
    """Terms [N] of `ece`: confidence minus being right, with the sign that its bin has."""
    confidence = softmax(np.asarray(logits, np.float64), axis=1).max(axis=1)
    order = np.argsort(confidence, kind="stable")
    num_bins = min(num_bins, len(order))
    bin_of = np.empty(len(order), np.int64)
    bin_of[order] = np.arange(len(order)) * num_bins // len(order)
    over = confidence - per_example(logits, labels)["accuracy"]
    return np.sign(np.bincount(bin_of, over))[bin_of] * over


def aurc_terms(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    r"""Terms [N] of the area under the risk-coverage curve: the mean error of the surest, over all shares.

    $$\mathrm{AURC} = \frac{1}{N} \sum_{k=1}^{N} r_k, \qquad r_k = \frac{1}{k} \sum_{i \le k} e_i$$

    Examples are sorted by falling confidence (largest probability), $e_i$ is 1 where the decision is wrong.
    A term is $r_k$ at the example's own place k and what it adds to all later ones.

    Source: Geifman and El-Yaniv 2017, arXiv 1705.08500; Geifman et al. 2019, arXiv 1805.08206.
    """
    confidence = softmax(np.asarray(logits, np.float64), axis=1).max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    wrong = 1 - per_example(logits, labels)["accuracy"][order]
    place = np.arange(1, len(order) + 1)
    risk = np.cumsum(wrong) / place
    from_here = (1 / place)[::-1].cumsum()[::-1], (risk / place)[::-1].cumsum()[::-1]
    found = np.empty(len(order))
    found[order] = risk + wrong * from_here[0] - from_here[1]
    return found


def aurc(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean error of the surest examples, over all shares of them: see `aurc_terms`.

    Examples:
        >>> z = np.array([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
        >>> round(aurc(z, np.array([0, 0, 1])), 4), round(aurc(z, np.array([1, 0, 0])), 4)
        (0.1111, 0.6111)
    """
    return float(aurc_terms(logits, labels).mean())


TERMS = ("accuracy", "nll", "nll_scaled", "ece", "ece_scaled", "aurc")


def terms(logits: np.ndarray, labels: np.ndarray, temperature: float) -> dict[str, np.ndarray]:
    """The terms [N] of all that is told of one network's probabilities, by the names of TERMS.

    "scaled": of logits that are divided by a temperature, which changes no decision.
    """
    scaled = np.asarray(logits, np.float64) / temperature
    plain = per_example(logits, labels)
    return {
        "accuracy": plain["accuracy"],
        "nll": plain["nll"],
        "nll_scaled": per_example(scaled, labels)["nll"],
        "ece": ece_terms(logits, labels),
        "ece_scaled": ece_terms(scaled, labels),
        "aurc": aurc_terms(logits, labels),
    }


def auroc_terms(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""Terms [N] and [O] of the AUROC by which outliers score above the rest; the mean of either is it.

    $$v_n = P(s_\text{out} > s_n) + \frac{1}{2} P(s_\text{out} = s_n), \qquad
    v_o = P(s_o > s_\text{in}) + \frac{1}{2} P(s_o = s_\text{in})$$

    Source: DeLong et al. 1988, Biometrics 44.
    """

    def below(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
        """The share of the others below each score, half of those that are equal."""
        ordered = np.sort(others)
        left = np.searchsorted(ordered, scores, "left")
        return (left + np.searchsorted(ordered, scores, "right")) / (2 * len(others))

    return 1 - below(inside, outside), below(outside, inside)


def entropy(logits: np.ndarray) -> np.ndarray:
    r"""Entropy of every prediction [N] in nats: $-\sum_c p_n(c) \ln p_n(c)$."""
    log_probs = log_softmax(np.asarray(logits, np.float64), axis=-1)
    return -(np.exp(log_probs) * log_probs).sum(axis=-1)


def mutual_information(logits: np.ndarray) -> np.ndarray:
    r"""What asking which of K members decides would tell of the decision, [N] in nats, of logits [K,N,C].

    $$\mathrm{MI}_n = H(\bar{p}_n) - \frac{1}{K} \sum_k H(p_{kn}), \qquad
    \bar{p}_n = \frac{1}{K} \sum_k p_{kn}$$

    0 where all say the same, at most ln K. Source: Depeweg et al. 2018, arXiv 1710.07283.
    """
    log_mean = np.logaddexp.reduce(log_softmax(np.asarray(logits, np.float64), axis=-1), axis=0)
    return np.maximum(entropy(log_mean) - entropy(logits).mean(axis=0), 0.0)


# --- detection: one class of two ----------------------------------------------------------------------


class Roc(NamedTuple):
    """The receiver operating characteristic: false-alarm rate and recall of every threshold, rising.

    There are U + 1 thresholds: -inf and the U distinct scores. An example is an alarm where its score is
    ABOVE the threshold, so the first point is (1, 1), the last one (0, 0), and equal scores are alarms
    together or not at all.
    """

    threshold: np.ndarray  # [U+1] log-odds
    false_alarm_rate: np.ndarray  # [U+1] share of the negatives that are alarms
    recall: np.ndarray  # [U+1] share of the positives that are


def log_odds(logits: np.ndarray, positive: int) -> np.ndarray:
    r"""Log-odds of the positive class [N] float64 of logits [N,2]: the score of a detector.

    $$s_n = \ln\, p_n(\text{positive}) - \ln\, p_n(\text{other})$$

    It orders images as p(positive) does, which is its logistic function, and still tells apart those where p
    is so near 1 that it is rounded to it.
    """
    chex.assert_shape(logits, (None, 2))
    z = np.asarray(logits, np.float64)
    return z[:, positive] - z[:, 1 - positive]


def roc(scores: np.ndarray, is_positive: np.ndarray, times: np.ndarray | None = None) -> Roc:
    """The ROC of scores [N], of which there are some of each kind; example i counts `times[i]` times (once).

    is_positive: [N] bool; times: [N] int, how often a bootstrap has drawn each example.
    """
    times = np.ones(len(scores), np.int64) if times is None else times
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # of equal scores

    def share_above(kind: np.ndarray) -> np.ndarray:
        up_to = np.cumsum((times * kind)[order])
        return (up_to[-1] - np.append(0, up_to[last])) / up_to[-1]

    return Roc(np.append(-np.inf, ordered[last]), share_above(~is_positive), share_above(is_positive))


def auroc(curve: Roc) -> float:
    r"""Area under the ROC: the chance that a positive scores above a negative, ties counted as a half.

    $$P(s_+ > s_-) + \frac{1}{2} P(s_+ = s_-)$$

    0.5 for scores that say nothing (Mann and Whitney, 1947; Hanley and McNeil, 1982).

    Examples:
        >>> auroc(roc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True])))
        0.875
    """
    return float(-np.trapezoid(curve.recall, curve.false_alarm_rate))


def lowest_allowed(curve: Roc, rate: float) -> int:
    """The place in a ROC of the lowest threshold with at most `rate` in [0,1) false alarms: the most recall.

    A step and no mixture of two: where the next lower threshold would overstep the rate, the rate that is
    reached stays below it.
    """
    return int(np.argmax(curve.false_alarm_rate <= rate))


def recall_at(curve: Roc, rate: float) -> float:
    """Recall at the lowest threshold with at most `rate` in [0,1) false alarms on these very examples.

    Examples:
        >>> curve = roc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True]))
        >>> recall_at(curve, 0.4), recall_at(curve, 0.5)
        (0.5, 1.0)
    """
    return float(curve.recall[lowest_allowed(curve, rate)])


def alarm_threshold(val: tuple[np.ndarray, np.ndarray], rate: float) -> float:
    """The score that an alarm must exceed: the lowest with at most `rate` false alarms on validation.

    `val` is a pair (scores, is_positive). Scores are compared and not their probabilities, of which those
    that differ may be rounded to one.
    """
    curve = roc(*val)
    return float(curve.threshold[lowest_allowed(curve, rate)])


def operating_point(
    val: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], rate: float
) -> dict[str, float]:
    """Recall and false alarms on test at the threshold that VALIDATION allows.

    `val` and `test` are pairs (scores, is_positive). Returns a dictionary. "threshold": p(positive) that an
    alarm must exceed, see `alarm_threshold`; "recall",
    "false_alarm_rate": shares of the test positives and negatives that are alarms; "misses", "false_alarms":
    how many. Nothing holds the test's false alarms below `rate`.
    """
    threshold = alarm_threshold(val, rate)
    scores, is_positive = test
    alarm = scores > threshold
    misses, false_alarms = int(np.sum(~alarm & is_positive)), int(np.sum(alarm & ~is_positive))
    return {
        "threshold": float(expit(threshold)),
        "recall": float(alarm[is_positive].mean()),
        "false_alarm_rate": float(alarm[~is_positive].mean()),
        "misses": misses,
        "false_alarms": false_alarms,
    }


# --- several teachers ---------------------------------------------------------------------------------


def disagreement(logits: np.ndarray) -> np.ndarray:
    r"""Share of examples two teachers decide differently, [K,K] in [0,1] (Skalak, 1996).

    $$D_{ab} = \frac{1}{N} \sum_n [\hat{y}_{an} \ne \hat{y}_{bn}]$$
    """
    decision = np.argmax(logits, axis=2)
    return (decision[:, None] != decision[None]).mean(axis=2)


def q_statistic(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    r"""Yule's Q of being right, [K,K] in [-1,1]; nan where its denominator is 0.

    $$Q_{ab} = \frac{N_{11} N_{00} - N_{01} N_{10}}{N_{11} N_{00} + N_{01} N_{10}}$$

    The counts are of (a right, b right); Q is 0 for independent errors (Kuncheva and Whitaker, 2003).
    """
    right = (np.argmax(logits, axis=2) == labels).astype(np.float64)
    wrong = 1 - right
    same = (right @ right.T) * (wrong @ wrong.T)
    other = (right @ wrong.T) * (wrong @ right.T)
    return _ratio(same - other, same + other)


def pairwise_kl(logits: np.ndarray) -> np.ndarray:
    r"""Symmetrised divergence of two teachers, mean over examples, [K,K] in nats.

    $$\frac{1}{2 N} \sum_n (\mathrm{KL}(p_{an} \parallel p_{bn}) + \mathrm{KL}(p_{bn} \parallel p_{an}))$$
    """
    log_probs = log_softmax(np.asarray(logits, np.float64), axis=2)
    cross = np.einsum("knc,lnc->kl", np.exp(log_probs), log_probs) / logits.shape[1]
    one_way = np.diagonal(cross)[:, None] - cross
    return (one_way + one_way.T) / 2


def error_correlation(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    r"""Pearson correlation of two teachers' errors, [K,K]; nan where one makes none, or only errors.

    $$\rho_{ab} = \mathrm{corr}_n([\hat{y}_{an} \ne y_n],\, [\hat{y}_{bn} \ne y_n])$$
    """
    error = (np.argmax(logits, axis=2) != labels).astype(np.float64)
    error -= error.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.square(error).sum(axis=1))
    return _ratio(error @ error.T, norm[:, None] * norm[None])


def diversity(logits: np.ndarray, labels: np.ndarray) -> dict[str, dict]:
    """How the first 32 teachers differ, by four measures of every pair.

    Returns `{measure: {"matrix": [K,K] lists, "mean": over pairs}}`; None stands where a measure is
    undefined.
    """
    chex.assert_shape(logits, (None, len(labels), None))
    logits = logits[:MOST_IN_PAIRS]
    matrices = {
        "disagreement": disagreement(logits),
        "q_statistic": q_statistic(logits, labels),
        "kl": pairwise_kl(logits),
        "error_correlation": error_correlation(logits, labels),
    }
    return {name: {"matrix": _none_for_nan(m), "mean": _mean_of_pairs(m)} for name, m in matrices.items()}


def sub_ensembles(
    logits: np.ndarray, labels: np.ndarray, *, max_subsets: int = 200, seed: int = 0
) -> dict[int, np.ndarray]:
    """Accuracies of `mean_probs` over subsets of the K teachers, {size: [subsets]}; `sizes` says which sizes.

    Every subset of a size is taken where there are at most `max_subsets`, otherwise that many distinct ones
    are drawn.
    """
    num_teachers = len(logits)
    rng = np.random.default_rng(seed)
    chosen = {size: subsets(num_teachers, size, max_subsets, rng) for size in sizes(num_teachers)}
    found = subset_accuracies(logits, labels, np.concatenate(list(chosen.values())))
    ends = np.cumsum([len(of_size) for of_size in chosen.values()])
    return dict(zip(chosen, np.split(found, ends[:-1])))


def sizes(num_teachers: int, most: int = MOST_SIZES) -> list[int]:
    """Sizes of ensembles to look at: 1 to K, or at most `most` of them that grow by about one factor.

    Examples:
        >>> sizes(4), sizes(550, 5)
        ([1, 2, 3, 4], [1, 5, 23, 114, 550])
    """
    if num_teachers <= most:
        return list(range(1, num_teachers + 1))
    return sorted(set(np.geomspace(1, num_teachers, most).round().astype(int).tolist()))


def leave_one_out(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    r"""Accuracy that `mean_probs` loses without each teacher, [K]; without a lone one it is 1/C.

    $$v(\text{all}) - v(\text{all but k})$$
    """
    num_teachers, _, num_classes = logits.shape
    everyone = np.ones((1, num_teachers), np.float32)
    all_but_one = everyone - np.eye(num_teachers, dtype=np.float32)
    worth = subset_accuracies(logits, labels, np.concatenate([everyone, all_but_one]))
    without = worth[1:] if num_teachers > 1 else np.array([1 / num_classes])
    return worth[0] - without


def subsets(num_teachers: int, size: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """Subsets of a size as rows of 0 and 1, [S,K] float32: all of them, or `most` distinct ones."""
    if math.comb(num_teachers, size) <= most:
        picks = list(itertools.combinations(range(num_teachers), size))
    else:
        drawn: set[tuple[int, ...]] = set()
        while len(drawn) < most:
            drawn.add(tuple(sorted(rng.choice(num_teachers, size, replace=False).tolist())))
        picks = sorted(drawn)
    member_of = np.zeros((len(picks), num_teachers), np.float32)
    np.put_along_axis(member_of, np.array(picks), 1, axis=1)
    return member_of


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, nan where the denominator is 0."""
    return np.divide(
        numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=np.asarray(denominator) != 0
    )


def _none_for_nan(matrix: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(x) else float(x) for x in row] for row in matrix]


def _mean_of_pairs(matrix: np.ndarray) -> float | None:
    pairs = matrix[np.triu_indices(len(matrix), k=1)]
    defined = pairs[~np.isnan(pairs)]
    return float(defined.mean()) if defined.size else None
