"""Who is ahead of whom, paired, with intervals and verdicts: ensemble, baseline, students, cohorts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from mtkd_jax import config as configuration
from mtkd_jax.results import intervals, lookup, measured, metrics, power, sequential
from mtkd_jax.runs.predictions import Group, Predictions

TESTED = ("accuracy", "nll")
CROSS_FAMILY = "unlabelled against labelled"


def gaps(predictions: Predictions) -> list[dict]:
    """Ensemble (mean_probs) minus baseline in accuracy, one a baseline; what gap shares divide by.

    The interval is over seeds and test examples (`intervals.crossed_t`). `larger_than_noise` asks that it lie
    above 0 and that there are two seeds at least; otherwise a share would be a ratio of noise. "verdict" is
    read off the interval, of two seeds at least: inside the margin whole, above 0, or below it.
    """
    baselines = [group for group in predictions.groups if group.role == "baseline"]
    if not baselines:
        return []
    ensemble = _right_of_ensemble(predictions)
    found = []
    for baseline in baselines:
        right = _accuracies(baseline.test, predictions.test_labels)
        interval = intervals.crossed_t(predictions.by_unit(ensemble - right), predictions.margin)["ci95"]
        verdict = _verdict_of_gap(interval, predictions.margin, len(right))
        found.append(
            {
                "transfer": baseline.transfer,
                "architecture": baseline.architecture,
                "ensemble": float(ensemble.mean()),
                "baseline": float(right.mean()),
                "difference": float(ensemble.mean() - right.mean()),
                "ci95": interval,
                "larger_than_noise": bool(interval and interval[0] > 0 and len(right) > 1),
                "verdict": verdict,
            }
        )
    return found


def _verdict_of_gap(interval: intervals.Interval | None, margin: float, num_seeds: int) -> str:
    if interval is None or num_seeds < 2:
        return "undecided"
    if intervals.inside(interval, margin):
        return "equivalent"
    return "better" if interval[0] > 0 else "worse" if interval[1] < 0 else "undecided"


def _right_of_ensemble(predictions: Predictions) -> np.ndarray:
    """[N], 1 where all teachers fused by mean_probs are right."""
    logits = lookup.fused(predictions, "mean_probs")["test"]
    return metrics.per_example(logits, predictions.test_labels)["accuracy"]


def _accuracies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[S,N,C] -> [S,N], 1 where the decision is right."""
    return np.stack([metrics.per_example(one, labels)["accuracy"] for one in logits])


def students_by_size(predictions: Predictions) -> list[dict]:
    """The students' architectures from the smallest on, each by the row that validation chooses for it.

    [{"architecture", "params", "name", "transfer", "n", "difference", "ci95", "p_value", "p_equivalence",
    "verdict"}]: the row's accuracy minus that of the ensemble (mean_probs), by a t test over seeds and test
    examples, paired by example; "equivalent" is by two one-sided tests at the margin. Nothing is
    corrected for how many there are. Of one seed nothing is tested: p is None and the verdict "undecided".
    """
    chosen = [lookup.chosen_student(predictions, model) for model in lookup.student_models(predictions)]
    groups = [one[0] for one in chosen if one is not None]
    ensemble = _right_of_ensemble(predictions) if groups else None
    found = []
    for group in sorted(groups, key=lambda group: group.params or 0):
        right = _accuracies(group.test, predictions.test_labels)
        tested = intervals.crossed_t(predictions.by_unit(right - ensemble), predictions.margin)
        p_values = [tested[name] if len(right) > 1 else None for name in ("p_value", "p_equivalence")]
        found.append(
            {
                "architecture": group.architecture,
                "params": group.params,
                "name": group.name,
                "transfer": group.transfer,
                "n": len(right),
                "difference": tested["mean_difference"],
                "ci95": tested["ci95"],
                **dict(zip(("p_value", "p_equivalence"), p_values)),
                "verdict": intervals.verdict(
                    tested["mean_difference"], p_values[0], tested["ci95"], p_values[1], predictions.margin
                ),
            }
        )
    return found


def compare(predictions: Predictions) -> list[dict]:
    """Paired t over seeds on accuracy and NLL for a list fixed before any number is seen.

    Every mode against its baseline, one with more heads against its control, every mode against output_avg
    and against its own controls (`students.controls`), these against the baseline, too; and, where both
    transfer sets were used, every mode with the unlabelled images against the labelled-only baseline; and
    every two modes that learned with peers against one another; always of one architecture. Holm's correction
    within each family (a transfer set with all its architectures, or one of the last two lists) and metric.
    Accuracies are also tested for equivalence, at 5 % each; "verdict" is the word for both, see
    `intervals.verdict`.
    Pairs of no common seed are left out, see `without_common_seed`.

    Where seeds were added until it was decided, all of that by `sequential`, and "decided_at" is the number
    of pairs from which on every look had the verdict there is now; None of what is undecided.
    """
    values = {
        group.key: [metrics.summary(logits, predictions.test_labels) for logits in group.test]
        for group in predictions.groups
        if group.transfer
    }
    found = _tested(predictions, values)
    if not predictions.always_valid:
        return found
    most = max((one["n"] for one in found), default=0)
    looks = [*range(configuration.SEEDS_AT_ONCE, most, configuration.SEEDS_AT_ONCE), most]
    each_look = [[one["verdict"] for one in _tested(predictions, values, look)] for look in looks]
    return [
        {**one, "decided_at": _decided_at(looks, verdicts)} for one, verdicts in zip(found, zip(*each_look))
    ]


def _decided_at(looks: Sequence[int], verdicts: Sequence[str]) -> int | None:
    """
    >>> _decided_at((5, 10, 15), ("undecided", "better", "better")), _decided_at((5,), ("undecided",))
    (10, None)
    """
    if verdicts[-1] == "undecided":
        return None
    changed = [place for place, one in enumerate(verdicts) if one != verdicts[-1]]
    return looks[changed[-1] + 1 if changed else 0]


def undecided(predictions: Predictions) -> list[dict]:
    """The comparisons to decide whose verdict is that; NLLs have no margin and are never equal.

    And those of no common seed, which further seeds may have: of these only "a" and "b".
    """
    tested = [one for one in power.to_decide(compare(predictions)) if one["verdict"] == "undecided"]
    return tested + [
        {"a": a.name, "b": b.name}
        for family, pairs in _families_asked(predictions).items()
        if family != power.WITH_PEERS
        for a, b in pairs
        if not _common(a, b)
    ]


def without_common_seed(predictions: Predictions) -> list[tuple[Group, Group]]:
    """The pairs that `compare` would compare and cannot: none of their seeds is finite in both."""
    asked = (pair for pairs in _families_asked(predictions).values() for pair in pairs)
    return [(a, b) for a, b in asked if not _common(a, b)]


def _common(a: Group, b: Group) -> list[str]:
    return [name for name in a.members if name in b.members]


def _tested(predictions: Predictions, values: dict, most: int | None = None) -> list[dict]:
    """`compare` of the first `most` pairs of each; None: of all."""
    found, families = [], _families(predictions)
    for metric in TESTED:
        for family, pairs in families.items():
            tested = [_compare(predictions, a, b, metric, values, len(pairs), most) for a, b in pairs]
            corrected = intervals.holm([one["p_value"] for one in tested])
            found += [
                {**one, "p_holm": p, "family": family, "verdict": _verdict(one, p, predictions.margin)}
                for one, p in zip(tested, corrected)
            ]
    return found


def _verdict(one: dict, p_holm: float | None, margin: float) -> str:
    if one["metric"] == "nll":  # less is better, and the margin is one of accuracy
        return intervals.verdict(-one["mean_difference"], p_holm)
    return intervals.verdict(one["mean_difference"], p_holm, one["ci95"], one["p_equivalence"], margin)


def _families(predictions: Predictions) -> dict[str, list[tuple[Group, Group]]]:
    """The pairs that are compared; without a common seed there is nothing to pair."""
    asked = _families_asked(predictions)
    return {family: [pair for pair in pairs if _common(*pair)] for family, pairs in asked.items()}


def _families_asked(predictions: Predictions) -> dict[str, list[tuple[Group, Group]]]:
    families = {transfer: _pairs(predictions, transfer) for transfer in lookup.transfers(predictions)}
    across = [
        (mode, lookup.baseline_of(predictions, mode, "labelled"))
        for mode in _modes(predictions, "unlabelled")
    ]
    families[CROSS_FAMILY] = [(mode, baseline) for mode, baseline in across if baseline is not None]
    families[power.WITH_PEERS] = _pairs_with_peers(predictions)
    return families


def _pairs(predictions: Predictions, transfer: str) -> list[tuple[Group, Group]]:
    found = []
    for model in lookup.student_models(predictions):
        modes = [mode for mode in _modes(predictions, transfer) if mode.architecture == model]
        control = lookup.find(predictions, transfer, name="control", architecture=model)
        many_headed = [mode for mode in modes if control is not None and mode.params == control.params]
        by_control = [
            (mode, taught_otherwise)
            for mode in modes
            for taught_otherwise in lookup.controls_of(predictions, mode)
        ]
        own_controls = [taught_otherwise for _, taught_otherwise in by_control]
        rivals = (
            (
                [*modes, *own_controls],
                lookup.find(predictions, transfer, role="baseline", architecture=model),
            ),
            (many_headed, control),
            (modes, lookup.find(predictions, transfer, name="output_avg", architecture=model)),
        )
        found += [(a, b) for group, b in rivals if b is not None for a in group if a is not b]
        found += by_control
    return found


def _pairs_with_peers(predictions: Predictions) -> list[tuple[Group, Group]]:
    """Every two rows of students that learned with peers, of one transfer set and architecture."""
    learned = [group for group in predictions.groups if group.role == "student" and group.num_in_cohort > 1]
    return [
        (a, b)
        for a, b in itertools.combinations(learned, 2)
        if (a.transfer, a.architecture) == (b.transfer, b.architecture)
    ]


def _modes(predictions: Predictions, transfer: str) -> list[Group]:
    compared = ("student", "average")
    return [group for group in predictions.groups if group.transfer == transfer and group.role in compared]


def _compare(
    predictions: Predictions, a: Group, b: Group, metric: str, values: dict, num_tests: int, most: int | None
) -> dict:
    always_valid = predictions.always_valid
    paired, equivalence_p = (
        (sequential.paired, sequential.equivalence_p)
        if always_valid
        else (intervals.paired_t, intervals.equivalence_p)
    )
    shared = _common(a, b)[:most]
    of_a, of_b = (
        [values[group.key][group.members.index(name)][metric] for name in shared] for group in (a, b)
    )
    return {
        "a": a.name,
        "a_transfer": a.transfer,
        "b": b.name,
        "b_transfer": b.transfer,
        "architecture": a.architecture,
        "metric": metric,
        **paired(of_a, of_b),
        "test": "t mixture" if always_valid else "paired t",
        "std": float(np.std(np.subtract(of_a, of_b), ddof=1)) if len(shared) > 1 else None,
        "p_equivalence": equivalence_p(of_a, of_b, predictions.margin) if metric == "accuracy" else None,
        "detectable": None if always_valid else intervals.detectable_difference(of_a, of_b, num_tests),
    }


def cohorts(predictions: Predictions) -> list[dict]:
    """What students lose against the cohorts they learned in: leader minus cohort in accuracy, over seeds.

    [{"name", "transfer", "architecture", "num_in_cohort", "mean_difference", "ci95", "p_value", "n",
    "cohort": the cohort's mean accuracy, "peers_apart": the mean over seeds}]; paired t, nothing is
    corrected. The decision of a cohort is that of the mean probabilities of its peers.
    """
    found = []
    for group in predictions.groups:
        if group.role != "cohort":
            continue
        leader = lookup.find(
            predictions,
            group.transfer,
            name=group.name.removesuffix(configuration.COHORT),
            architecture=group.architecture,
        )
        if leader is None:  # of predictions that no run of ours has made
            continue
        of_leader, of_cohort = (
            [metrics.accuracy(logits, predictions.test_labels) for logits in one.test]
            for one in (leader, group)
        )
        peers_apart = np.zeros(0) if group.peers_apart is None else group.peers_apart
        apart = peers_apart[np.isfinite(peers_apart)]
        found.append(
            {
                **{name: getattr(leader, name) for name in ("name", "role", "transfer", "architecture")},
                "num_in_cohort": group.num_in_cohort,
                **intervals.paired_t(of_leader, of_cohort),
                "cohort": float(np.mean(of_cohort)),
                "peers_apart": float(apart.mean()) if len(apart) else None,
            }
        )
    return found


def negative_transfer(predictions: Predictions) -> list[dict]:
    """How often a network says what the ensemble wrongly says, of test images that the ensemble gets wrong.

    [{"name", "role", "transfer", "architecture", "n", "num_wrong", "repeats", "baseline", "mean_difference",
    "ci95", "p_value", "p_holm"}], one for each row that shares seeds with its baseline, all of it over these.
    "repeats" is `metrics.share_repeated`, "baseline" its mean there: a network that nobody taught makes some
    of the same mistakes, and what is above that was handed down. Paired t, Holm's correction within a
    transfer set; the ensemble is that of mean_probs, and the images are held fixed. []
    where it is never wrong.
    """
    labels, said = predictions.test_labels, lookup.fused(predictions, "mean_probs")["test"].argmax(axis=-1)
    num_wrong = int((said != labels).sum())
    if not num_wrong:
        return []
    found = []
    for group in predictions.groups:
        baseline = lookup.baseline_of(predictions, group) if group.transfer else None
        if baseline is None or group is baseline or group.role in ("assistant", "cohort"):
            continue
        shared = [member for member in group.members if member in baseline.members]
        if not shared:
            continue
        repeats, of_baseline = (
            [metrics.share_repeated(one.test[one.members.index(seed)], said, labels) for seed in shared]
            for one in (group, baseline)
        )
        found.append(
            {
                **{name: getattr(group, name) for name in ("name", "role", "transfer", "architecture")},
                "num_wrong": num_wrong,
                "repeats": measured.of_members(repeats, "seeds", (0.0, 1.0)),
                "baseline": float(np.mean(of_baseline)),
                **intervals.paired_t(repeats, of_baseline),
            }
        )
    for transfer in lookup.transfers(predictions):
        own = [one for one in found if one["transfer"] == transfer]
        for one, p_holm in zip(own, intervals.holm([one["p_value"] for one in own])):
            one["p_holm"] = p_holm
    return found


def verdict_of(row: dict, compared: list[dict], gaps: list[dict]) -> str | None:
    """One word of `intervals.verdict` on a row's accuracy against the baseline of its transfer set.

    Of students, those of `students.controls` too, it is that of `compare`, of the ensemble by mean_probs
    that of `gaps`: where these differ between transfer sets or architectures, it is undecided. None for every
    other row, for it is not compared.
    """
    if row["rule"] == "mean_probs":
        said = {gap["verdict"] for gap in gaps}
        return (said.pop() if len(said) == 1 else "undecided") if said else None
    transfer, against = row["transfer"], ("baseline", row["transfer"], row["architecture"], "accuracy")
    for one in compared:
        b = (one["b"], one["b_transfer"], one["architecture"], one["metric"])
        if (one["a"], one["a_transfer"], *b) == (row["name"], transfer, *against):
            return one["verdict"]
    return None
