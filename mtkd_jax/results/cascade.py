r"""A student with a safety net: what it keeps for itself, what it hands over, and what that costs.

On the host in float64. Of example n the student says $\hat{y}_n$ with confidence $c_n$
(`deploy.cascade.confidence`), the ensemble $\hat{e}_n$; $y_n$ is the label. The student keeps what it is
more sure of than the threshold $\lambda$, $c_n > \lambda$, and hands over all else.

**What is promised.** An example is *lost* where the ensemble is right and the student, who keeps it, wrong:

$$L_n(\lambda) = [c_n > \lambda]\,[\hat{y}_n \ne y_n]\,[\hat{e}_n = y_n] \in \{0, 1\}, \qquad
R(\lambda) = \mathrm{E}\, L_n(\lambda)$$

The accuracy of the cascade is that of the ensemble, less R, plus what the student keeps and alone has right:
so $R(\lambda) \le x$ says that it is at most x worse. That is stricter than a bound on the difference of the
two, whose terms are in {-1, 0, 1}. What it buys is a binomial count, whose tail is exact, and a loss that
only falls as the threshold rises. The threshold $\hat{\lambda}$ is set on n validation examples so that

$$P(R(\hat{\lambda}) \le x) \ge 0.95$$

over the draw of these examples. Conformal risk control (Angelopoulos et al. 2022, arXiv 2208.02814, Theorem
1) holds $\mathrm{E}\, R(\hat{\lambda}) \le x$, the mean over many validation sets. With one set at hand that
is not "95 % sure", so it is not what is done here.

**How.** Of each $\lambda$ the hypothesis $R(\lambda) > x$ is tested, with the p value of `p_values`: first of
the safest, which hands over everything, then downwards as long as p is at most 0.05. Tests in an order that
is fixed before need no correction for their number (fixed-sequence testing in Learn then Test, Angelopoulos
et al. 2021, arXiv 2110.01052). As R only falls in $\lambda$, the thresholds need not be a grid that is fixed
before (Bates et al. 2021, arXiv 2101.02703, Theorem 1): who comes too low has passed every threshold that is
too low by less, and each one of these is passed with a probability of at most 0.05. The lowest threshold that
is left is the cheapest.

**What it does not say.** The same validation set has chosen the student, its weights, its alpha and the
fusion rule before. That flatters the student, and "95 % sure" is not quite that. The test set has chosen
nothing, and what was lost there is told beside the promise. It is a promise about images like those of
validation.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from mtkd_jax.deploy.cascade import confidence
from mtkd_jax.fusion import rules
from mtkd_jax.results import intervals, lookup, measured, metrics
from mtkd_jax.runs.predictions import Group, Predictions
from mtkd_jax.types import UserError

ALL, NOTHING = 1.0, 0.0  # thresholds that hand over everything and nothing: a confidence is in (0,1]
MOST_POINTS = 101  # of the curve that is kept
REFERENCE = "mean_probs"
ENDS = {"nll": (0.0, np.inf), "difference": (-1.0, 1.0)}  # all others are shares


# --- the threshold ------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """A threshold, and what on validation speaks for it."""

    threshold: float  # ALL where none is certified
    certified: bool
    num_units: int  # independent ones: examples, or groups of them
    lost: float  # share of the units, in validation, at this threshold


def lost(student: np.ndarray, ensemble: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Where the ensemble is right and the student wrong, [N] bool of logits [N,C] and labels [N]."""
    return (np.argmax(ensemble, axis=1) == labels) & (np.argmax(student, axis=1) != labels)


def p_values(risks: np.ndarray, num_units: int, tolerance: float, *, exact: bool) -> np.ndarray:
    r"""p values [m] of "the true risk is above `tolerance` x", of mean losses r [m] over n independent units.

    With `exact` a unit's loss is 0 or 1, and the p value is the tail of the binomial:

    $$p = P(\mathrm{Bin}(n, x) \le n r)$$

    Otherwise it is in [0,1], such as the share that a group loses of its images, and the p value is that of
    Hoeffding and Bentkus (Bates et al. 2021, arXiv 2101.02703; arXiv 2110.01052):

    $$p = \min(e^{-n\, h(\min(r, x), x)},\ e\, P(\mathrm{Bin}(n, x) \le \lceil n r \rceil)), \qquad
    h(a, b) = a \ln \frac{a}{b} + (1 - a) \ln \frac{1 - a}{1 - b}$$

    Examples:
        >>> p_values(np.array([0.0, 0.2]), 5, 0.5, exact=True).tolist()
        [0.03125, 0.1875]
    """
    risks = np.asarray(risks, np.float64)
    if exact:
        return stats.binom.cdf(np.rint(num_units * risks), num_units, tolerance)
    low = np.minimum(risks, tolerance)
    divergence = special.rel_entr(low, tolerance) + special.rel_entr(1 - low, 1 - tolerance)
    counted = np.ceil(num_units * risks - 1e-9)  # whole numbers that rounding has made a little larger
    bentkus = math.e * stats.binom.cdf(counted, num_units, tolerance)
    return np.minimum(np.exp(-num_units * divergence), bentkus)


def units_needed(tolerance: float) -> int:
    """How many independent units it takes to certify anything at all: none of them lost, and p at most 0.05.

    Examples:
        >>> units_needed(0.01), units_needed(0.02)
        (299, 149)
    """
    return math.ceil(math.log(1 - intervals.LEVEL) / math.log1p(-tolerance))


def smallest_tolerance(num_units: int) -> float:
    """The smallest tolerance that so many units can certify, where none of them is lost.

    Examples:
        >>> round(smallest_tolerance(299), 4)
        0.01
    """
    return 1 - (1 - intervals.LEVEL) ** (1 / num_units)


def set_threshold(
    confidences: np.ndarray, is_lost: np.ndarray, groups: np.ndarray, tolerance: float
) -> Setting:
    """The lowest confidence that is certified: see the top of this file.

    confidences [V] and is_lost [V] bool are of validation examples that the student keeps; groups [V] are
    numbers, equal for those that depend on one another. A group is a unit, whose loss is the share of its
    examples that is lost: then the promise is of groups like these, each counted alike.
    """
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    num_units = len(sizes)
    order = np.argsort(-confidences[is_lost], kind="stable")
    surest = confidences[is_lost][order]
    share = (1 / (num_units * sizes[group]))[is_lost][order]
    risks = np.append(0.0, np.cumsum(share))  # where the j surest of the lost ones are kept, [L+1]
    alright = p_values(risks, num_units, tolerance, exact=len(group) == num_units) <= 1 - intervals.LEVEL
    if not alright[0]:
        return Setting(ALL, False, num_units, 0.0)
    num_kept = int(np.sum(alright)) - 1  # p only grows with the risk
    threshold = float(surest[num_kept]) if num_kept < len(surest) else NOTHING
    return Setting(threshold, True, num_units, float(np.sum(share[surest > threshold])))


# --- what it is worth ---------------------------------------------------------------------------------


def curve(confidences: np.ndarray, student: np.ndarray, ensemble: np.ndarray) -> dict[str, np.ndarray]:
    """All that thresholds can do, from the student alone on: {"threshold", "share", "accuracy"}, each [m].

    student and ensemble are [N], 1 where they are right; share is that of the examples handed over. Equally
    sure examples are handed over together. At most 101 points, evenly spread over the shares.
    """
    order = np.argsort(confidences, kind="stable")
    ordered, num = confidences[order], len(confidences)
    gained = np.append(0.0, np.cumsum((ensemble - student)[order]))  # by handing over the j least sure, [N+1]
    last = np.append(True, np.append(ordered[1:] != ordered[:-1], True))  # of equal confidences
    at = np.flatnonzero(last)
    wanted = np.searchsorted(at, np.linspace(0, num, MOST_POINTS).round())
    at = at[np.unique(np.minimum(wanted, len(at) - 1))]
    return {
        "threshold": np.append(NOTHING, ordered)[at],
        "share": at / num,
        "accuracy": (student.sum() + gained[at]) / num,
    }


def fusion_rule(predictions: Predictions) -> str:
    """The rule of the ensemble that is handed over to: of those compared the lowest validation NLL.

    Rules without probabilities are none of them, nor are those that were fitted on validation, which their
    NLL there flatters. Where none is left, mean_probs.
    """
    found = {}
    for rule in predictions.rules:
        if rules.is_rank(rule) or rules.is_fitted(rule):
            continue
        with contextlib.suppress(UserError):  # it cannot fuse these teachers, and has no row either
            found[rule] = metrics.nll(lookup.fused(predictions, rule)["val"], predictions.val_labels)
    return min(found, key=lambda rule: np.nan_to_num(found[rule], nan=np.inf)) if found else REFERENCE


def student_of(predictions: Predictions) -> tuple[Group, int] | None:
    """The network that the report's cascade begins with: the one to deploy, where it is a student.

    Otherwise the best student; where there is none, whatever is to be deployed and is no teacher.
    """
    deployed = lookup.network_to_deploy(predictions)
    if deployed is not None and deployed[0].role == "student":
        return deployed
    student = lookup.chosen_student(predictions)
    if student is None and deployed is not None and deployed[0].role != "teacher":
        return deployed
    return student


def numbers(predictions: Predictions) -> dict | None:
    """The block "cascade" of report.json.

    None without a student, of dense tasks, of runs that kept no groups, and where nobody knows what the
    teachers cost.
    """
    chosen, teachers = student_of(predictions), lookup.teachers(predictions)
    if chosen is None or predictions.val_groups is None or not teachers:
        return None
    if predictions.is_dense:  # an example is handed over, not one of its places
        return None
    if any(teacher.params is None for teacher in teachers):
        return None
    return of(predictions, *chosen)


def of(predictions: Predictions, group: Group, member: int) -> dict:
    """All numbers of the cascade from one network to the ensemble: docs/reading-a-report.md has the keys.

    Intervals of "test" are a bootstrap over test examples, the threshold held fixed; those of "seeds" are
    Student's t over the members of the row, each with the threshold that its own validation gives.
    """
    rule = fusion_rule(predictions)
    ensemble = lookup.fused(predictions, rule)
    each = [_at_its_threshold(predictions, group, place, ensemble) for place in range(len(group.members))]
    setting, on_val, on_test = each[member]
    cost, labels = _costs(predictions, group), predictions.test_labels
    alone = {
        who: _per_example(group.test[member], ensemble["test"], labels, threshold)
        for who, threshold in (("student", NOTHING), ("ensemble", ALL))
    }
    drawn = curve(confidence(group.test[member]), alone["student"]["accuracy"], alone["ensemble"]["accuracy"])
    own = cost["student"] / max(cost["ensemble"], 1.0)
    return {
        "student": {
            "name": group.name,
            "role": group.role,
            "transfer": group.transfer,
            "architecture": group.architecture,
            "member": group.members[member],
        },
        "rule": rule,
        "num_teachers": sum(len(teacher.members) for teacher in lookup.teachers(predictions)),
        "score": "largest probability",
        "tolerance": predictions.cascade_tolerance,
        "level": intervals.LEVEL,
        "threshold": setting.threshold,
        "certified": setting.certified,
        "units": "images" if setting.num_units == len(predictions.val_labels) else "groups",
        "num_units": setting.num_units,
        "units_needed": units_needed(predictions.cascade_tolerance),
        "smallest_tolerance": smallest_tolerance(setting.num_units),
        "val": {
            **{name: float(values.mean()) for name, values in on_val.items()},
            "lost_of_units": setting.lost,
        },
        "test": {
            "student": _over_examples(predictions, alone["student"], own, ("share",)),
            "cascade": _over_examples(predictions, on_test, own),
            # without a student before it
            "ensemble": _over_examples(predictions, alone["ensemble"], 0.0, ("share", "lost", "difference")),
        },
        "seeds": _over_seeds([values for _, _, values in each], own),
        "cost": cost,
        "curve": {name: values.tolist() for name, values in {**drawn, "cost": own + drawn["share"]}.items()},
    }


def _at_its_threshold(
    predictions: Predictions, group: Group, member: int, ensemble: dict[str, np.ndarray]
) -> tuple[Setting, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The threshold of one network, and what it makes of every validation and test example."""
    if predictions.val_groups is None:
        raise ValueError("nobody knows which validation examples are independent: nothing can be certified")
    own = {"val": group.val[member], "test": group.test[member]}
    labels = {"val": predictions.val_labels, "test": predictions.test_labels}
    setting = set_threshold(
        confidence(own["val"]),
        lost(own["val"], ensemble["val"], labels["val"]),
        predictions.val_groups,
        predictions.cascade_tolerance,
    )
    on_val, on_test = (
        _per_example(own[split], ensemble[split], labels[split], setting.threshold) for split in own
    )
    return setting, on_val, on_test


def _per_example(
    student: np.ndarray, ensemble: np.ndarray, labels: np.ndarray, threshold: float
) -> dict[str, np.ndarray]:
    """The terms whose means are what a cascade is worth, each [N] float64."""
    handed_over = confidence(student) <= threshold
    said = np.where(handed_over[:, None], ensemble, student)
    terms = metrics.per_example(said, labels)
    of_ensemble = metrics.per_example(ensemble, labels)["accuracy"]
    return {
        "accuracy": terms["accuracy"],
        "nll": terms["nll"],
        "share": handed_over.astype(np.float64),
        "lost": (lost(student, ensemble, labels) & ~handed_over).astype(np.float64),
        "difference": terms["accuracy"] - of_ensemble,
    }


def _costs(predictions: Predictions, group: Group) -> dict:
    """What student and ensemble cost an image, {"of": "flops" or "params", "student", "ensemble"}.

    FLOPs forward; parameters where a compiler did not count FLOPs.
    """
    networks = lookup.teachers(predictions)
    known = all(one.flops for one in (group, *networks))
    of = "flops" if known else "params"
    ensemble = sum(getattr(one, of) * len(one.members) for one in networks)
    return {"of": of, "student": float(getattr(group, of)), "ensemble": float(ensemble)}


def _over_examples(
    predictions: Predictions, terms: dict[str, np.ndarray], own_cost: float, settled: Collection[str] = ()
) -> dict:
    """Metrics of the terms [N] of every example, and what an image costs in units of the ensemble's.

    Those that are `settled` are the same of every example by what they mean.
    """
    found = {}
    for name, values in terms.items():
        if name in settled:
            found[name] = measured.of_ensemble(values[0], (values[0], values[0]))
        else:
            found[name] = measured.over_examples(predictions.by_unit(values), ENDS.get(name, (0.0, 1.0)))
    share = found["share"]
    interval = share["ci95"] and tuple(own_cost + end for end in share["ci95"])
    found["cost"] = measured.of_ensemble(own_cost + share["mean"], interval)
    return found


def _over_seeds(each: list[dict[str, np.ndarray]], own_cost: float) -> dict:
    """The same of several networks. Student's t does not know where a metric ends; it is cut there."""
    ends = {**ENDS, "cost": (own_cost, own_cost + 1)}
    values = {name: [float(terms[name].mean()) for terms in each] for name in each[0]}
    values["cost"] = [own_cost + share for share in values["share"]]
    return {
        name: measured.of_members(of_one, "seeds", ends.get(name, (0.0, 1.0)))
        for name, of_one in values.items()
    }
