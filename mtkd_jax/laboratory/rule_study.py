"""The laboratory of decision fusion: which rule should fuse this ensemble? From predictions.npz alone.

    python -m mtkd_jax.fusion RUN [--json FILE] [--into FILE]
    python -m mtkd_jax.fusion RUN --sizes 5,25,55 [--json FILE] [--into FILE]
    python -m mtkd_jax.fusion --cost [--json FILE] [--into FILE]

The first fuses all teachers by every rule and asks what each teacher is worth. The second takes the
teachers as a crowd of voters, cuts it into disjoint groups and fuses the first N of each. The third measures
time and memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from mtkd_jax.fusion import rules, worth
from mtkd_jax.report import document, rendering, rule_plots, style, tables, wording
from mtkd_jax.results import analysis, intervals, lookup, metrics
from mtkd_jax.runs import workdir
from mtkd_jax.runs.predictions import Predictions
from mtkd_jax.system import terminal
from mtkd_jax.types import Array, UserError

REFERENCE = "mean_probs"  # what every rule is compared with: the plain ensemble
AGAINST_K = (REFERENCE, "plurality", "borda", "copeland", "stv")  # the columns of the paper's table
SIZES_AGAINST_K, SUBSETS_AGAINST_K = 6, 10
MOST_FITTED = {  # teachers; with more, a fit takes minutes
    "evolved_mean": 32,
    **dict.fromkeys(("classwise_mean", "shapley_mean", "stacking"), 64),
}
COST = {"num_members": 64, "num_examples": 10_000, "num_classes": 100}

Watch = Callable[[Iterable], Iterable]  # how the caller follows a loop over rules


def families(names: Collection[str] = ()) -> dict[str, list[str]]:
    """Every rule by what it makes of the logits, the reference first; of `names`, where there are any."""
    probabilities = sorted(rules.RULES - rules.RANK_RULES, key=lambda name: (name != REFERENCE, name))
    found = {
        "probabilities": probabilities,
        "fitted on validation": sorted(rules.FITTED_RULES),
        "ranks": sorted(rules.RANK_RULES),
    }
    for name in names:
        if name not in rules.RULES | rules.FITTED_RULES:  # one of the user's own
            kind = "ranks" if rules.is_rank(name) else "fitted on validation"
            found[kind if rules.is_rank(name) or rules.is_fitted(name) else "probabilities"].append(name)
    return {family: _among(of, names) for family, of in found.items()}


def _among(rules: Iterable[str], names: Collection[str]) -> list[str]:
    return [name for name in rules if not names or name in (REFERENCE, *names)]


# --- one ensemble -------------------------------------------------------------------------------------


def study(found: Predictions, watch: Watch = iter, names: Collection[str] = ()) -> dict:
    """Every rule, or those of `names`, on all teachers of a run, and what every teacher is worth.

    Rules are compared on the test examples; teachers are valued on validation, so that whoever drops one has
    not looked at the test set. Raises UserError for logits that are not finite.
    """
    for split, labels in (("val", found.val_labels), ("test", found.test_labels)):
        rules.check(REFERENCE, lookup.teacher_logits(found, split), labels)
    compared, skipped = _compared(found, watch, names)
    right = lookup.teacher_logits(found).argmax(-1) == found.test_labels
    result = {
        "dataset": found.dataset,
        "num_teachers": len(right),
        "num_classes": len(found.class_names),
        "sizes": {split: found.sizes[split] for split in ("val", "test")},
        "rules": compared,
        "skipped": skipped,
        "one_teacher": {"mean": right.mean(), "max": right.mean(axis=1).max()},
        "oracle": _over_examples(found, right.any(axis=0)),
        "against_k": _against_k(found, _among(AGAINST_K, names)),
        "diversity": analysis.diversity(found),
        "teachers": _valued(found),
    }
    result |= {"findings": _summarise(result), "notes": _terms(result)}
    return analysis.plain(result)


def _compared(found: Predictions, watch: Watch, names: Collection[str] = ()) -> tuple[list[dict], list[dict]]:
    """What every rule reaches on the test examples, against the reference; and the rules left out."""
    compared: list[dict] = []
    skipped, right = [], {}
    for family, name in watch([(family, name) for family, of in families(names).items() for name in of]):
        reason = _unfit(name, lookup.teacher_logits(found, "val"))
        if reason:
            skipped.append({"rule": name, "reason": reason})
            continue
        scores = metrics.per_example(lookup.fused(found, name)["test"], found.test_labels)
        right[name] = scores["accuracy"]
        nll = None if rules.is_rank(name) else scores["nll"].mean()
        compared.append(
            {"rule": name, "family": family, "accuracy": _over_examples(found, right[name]), "nll": nll}
        )
    for one in compared:
        one["against"] = _against(found, right[one["rule"]], right[REFERENCE])
    tested = [one["against"] for one in compared if one["rule"] != REFERENCE]
    for one, p in zip(tested, intervals.holm([one["p_value"] for one in tested])):
        one["p_holm"] = p
    return compared, skipped


def _unfit(name: str, logits: np.ndarray) -> str:
    """Why a rule cannot be applied to logits [K,N,C]; "" where it can."""
    most = MOST_FITTED.get(name, len(logits))
    if len(logits) > most:
        return f"{name}: fitted here to {most} teachers at most, got {len(logits)}"
    try:
        rules.check(name, logits)
    except UserError as error:
        return str(error)
    return ""


def _against(found: Predictions, a: np.ndarray, b: np.ndarray) -> dict:
    """Accuracy of a minus that of b over the same examples: paired t interval, exact McNemar.

    Where examples are of groups the p value is that of the t test, which is over groups.
    """
    tested = intervals.crossed_t(found.by_unit(a - b), margin=0.0)
    return {
        "metric": "accuracy",
        "mean_difference": a.mean() - b.mean(),
        "ci95": tested["ci95"],
        "p_value": intervals.mcnemar(a, b) if found.test_groups is None else tested["p_value"],
        "p_holm": None,
    }


def _over_examples(found: Predictions, right: np.ndarray) -> dict:
    interval = intervals.bootstrap_interval(found.by_unit(right), ends=(0.0, 1.0))
    return {"mean": right.mean(), "ci95": interval}


def _against_k(found: Predictions, names: Iterable[str] = AGAINST_K) -> dict:
    """Mean test accuracy of a few rules over random subsets of the teachers, {"sizes", "rules"}."""
    logits, labels = lookup.teacher_logits(found), found.test_labels
    sizes, rng = metrics.sizes(len(logits), SIZES_AGAINST_K), np.random.default_rng(0)
    lines: dict[str, list[dict]] = {name: [] for name in names}
    for size in sizes:
        member_of = metrics.subsets(len(logits), size, SUBSETS_AGAINST_K, rng)
        voters = np.nonzero(member_of)[1].reshape(len(member_of), size)
        for name, line in lines.items():
            values = accuracies(name, logits, labels, voters)
            line.append({"mean": values.mean(), "ci95": None, "num_subsets": len(values)})
    return {"sizes": sizes, "rules": lines}


def accuracies(name: str, logits: np.ndarray, labels: np.ndarray, voters: np.ndarray) -> np.ndarray:
    """Accuracy [R] of a rule over R groups of n voters [R,n], rows of logits [K,N,C]; one program for all."""
    return np.asarray(_accuracies(name, logits, labels, voters), np.float64)


@partial(jax.jit, static_argnums=0)
def _accuracies(name: str, logits: Array, labels: Array, voters: Array) -> Array:
    decide = rules.rule(name)
    return jax.lax.map(lambda group: jnp.mean(decide(logits[group]).argmax(-1) == labels), voters)


def _valued(found: Predictions) -> dict:
    """What each teacher brings to mean_probs on validation: Shapley values and leave-one-out."""
    logits, labels = lookup.teacher_logits(found, "val"), found.val_labels
    shapley, known_errors = worth.shapley(logits, labels)
    accuracy = (logits.argmax(-1) == labels).mean(axis=1)
    left_out = metrics.leave_one_out(logits, labels)
    errors = [None] * len(logits) if known_errors is None else list(known_errors)
    names = ("name", "accuracy", "shapley", "standard_error", "leave_one_out")
    values = zip(lookup.teacher_names(found), accuracy, shapley, errors, left_out)
    return {
        "split": "val",
        "num_orders": None if known_errors is None else worth.NUM_ORDERS,
        "values": [dict(zip(names, one)) for one in values],
    }


# --- many voters --------------------------------------------------------------------------------------


def study_of_sizes(found: Predictions, sizes: Sequence[int], watch: Watch = iter) -> dict:
    """Every rule that needs no fit on the first N of disjoint groups of voters, for every N of `sizes`.

    The K teachers make floor(K / largest N) groups, the repeats: intervals and tests are over these, paired
    within a size. Raises UserError where there are too few teachers.
    """
    logits, labels = lookup.teacher_logits(found), found.test_labels
    rules.check(REFERENCE, logits, labels)
    groups = grouped(len(logits), max(sizes))
    values: dict[str, list[np.ndarray | None]] = {}
    skipped = {}
    for name in watch([name for names in families().values() for name in names if name in rules.RULES]):
        values[name] = []
        for size in sizes:
            reason = _unfit(name, logits[:size])
            if reason:
                skipped[name] = reason
            values[name].append(None if reason else accuracies(name, logits, labels, groups[:, :size]))
    lines: list[dict] = [
        {"rule": name, "points": [_point(*pair) for pair in zip(of_sizes, values[REFERENCE])]}
        for name, of_sizes in values.items()
        if any(one is not None for one in of_sizes)
    ]
    for number in range(len(sizes)):
        points = [one["points"][number] for one in lines if one["rule"] != REFERENCE]
        tested = [point["against"] for point in points if point is not None]
        for one, p in zip(tested, intervals.holm([one["p_value"] for one in tested])):
            one["p_holm"] = p
    result = {
        "dataset": found.dataset,
        "num_teachers": len(logits),
        "num_classes": logits.shape[-1],
        "num_test": len(labels),
        "sizes": list(sizes),
        "num_repeats": len(groups),
        "one_teacher": {"mean": np.mean(logits.argmax(-1) == labels)},
        "rules": lines,
        "skipped": [{"rule": name, "reason": reason} for name, reason in skipped.items()],
    }
    result |= {"findings": _summarise_sizes(result)}
    return analysis.plain(result)


def grouped(num_teachers: int, largest: int) -> np.ndarray:
    """Disjoint groups of teachers [floor(K / largest), largest], in order; what is left over is not used.

    >>> grouped(7, 3).tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    if not 1 <= largest <= num_teachers:
        raise UserError(f"--sizes: groups of {largest} need as many teachers, the run has {num_teachers}")
    num_groups = num_teachers // largest
    return np.arange(num_groups * largest).reshape(num_groups, largest)


def _point(values: np.ndarray | None, reference: np.ndarray | None) -> dict | None:
    if values is None or reference is None:
        return None
    against = {"metric": "accuracy", **intervals.paired_t(values, reference), "p_holm": None}
    return {
        "mean": values.mean(),
        "ci95": intervals.t_interval(values),
        "values": values.tolist(),
        "against": against,
    }


# --- cost ---------------------------------------------------------------------------------------------


def cost(
    watch: Watch = iter, *, num_members: int, num_examples: int, num_classes: int, calls: int = 7
) -> dict:
    """Seconds of every rule that needs no fit, median of `calls` after compilation, and the memory used."""
    # Member by member on the device: drawn at once, or by NumPy and copied there, the making of the logits
    # would be the peak of memory told below (1.0 GB before any rule has run).
    draw = jax.jit(partial(jax.lax.map, lambda key: jax.random.normal(key, (num_examples, num_classes))))
    logits = draw(jax.random.split(jax.random.key(0), num_members))
    costs, skipped = [], []
    for name in watch([name for names in families().values() for name in names if name in rules.RULES]):
        reason = _unfit(name, logits[:, :1])
        if reason:
            skipped.append({"rule": name, "reason": reason})
            continue
        decide = jax.jit(rules.rule(name))
        decide(logits).block_until_ready()
        costs.append(
            {"rule": name, "seconds": statistics.median(_timed(decide, logits) for _ in range(calls))}
        )
    unit = 1 if sys.platform == "darwin" else 1024  # what ru_maxrss counts in
    result = {
        "num_members": num_members,
        "num_examples": num_examples,
        "num_classes": num_classes,
        "calls": calls,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "rules": costs,
        "skipped": skipped,
        "logits_bytes": logits.nbytes,
        "peak_bytes": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    return result | {"findings": _summarise_cost(result)}


def _timed(decide: Callable[[Array], Array], logits: Array) -> float:
    begun = time.perf_counter()
    decide(logits).block_until_ready()
    return time.perf_counter() - begun


# --- words --------------------------------------------------------------------------------------------


def _summarise(result: dict) -> list[str]:
    num_teachers, one = result["num_teachers"], result["one_teacher"]
    oracle, interval = result["oracle"]["mean"], wording.interval(result["oracle"]["ci95"], "accuracy")
    return [
        f"Teachers: {num_teachers}; one alone {wording.percent(one['mean'])} on average, at best "
        f"{wording.percent(one['max'])} (seen on test). Some teacher is right on {wording.percent(oracle)} "
        f"{interval} of the test examples: no choice among their decisions reaches more.",
        *_cannot_differ(num_teachers, result["num_classes"]),
        *_told_apart("Rules", result["rules"]),
        _recommended(result),
        _worth(result["teachers"]),
        *_left_out(result["skipped"]),
    ]


def _cannot_differ(num_teachers: int, num_classes: int) -> list[str]:
    said = []
    if num_teachers == 1:
        said.append("One teacher: there is nothing to fuse; every rule but stacking repeats its decisions.")
    if num_classes == 2:
        said.append("Two classes: every rank rule is the majority vote, ties to the higher mean probability.")
    return said


def _told_apart(head: str, rules: Sequence[dict]) -> list[str]:
    """One paragraph: which rules are better or worse than the reference, and which only look so."""
    said: dict[str, list[str]] = {"better": [], "worse": [], "": []}
    for one in rules:
        if one["rule"] != REFERENCE:
            difference = f"{one['rule']} {100 * one['against']['mean_difference']:+.2f}"
            said[_verdict(one)].append(difference)
    words = {"better": "Better: ", "worse": "Worse: ", "": "No difference larger than noise: "}
    parts = [f"{words[verdict]}{', '.join(names)}." for verdict, names in said.items() if names]
    return [f"{head}, points against {REFERENCE}: {' '.join(parts)}"] if parts else []


def _recommended(result: dict) -> str:
    better = [one["rule"] for one in result["rules"] if _verdict(one) == "better"]
    if result["num_teachers"] == 1:
        return "Recommendation: the teacher as it is."
    if not better:
        return (
            f"Recommendation: {REFERENCE}. No rule beats it by more than noise on these "
            f"{result['sizes']['test']:,} test examples; it needs no fit and gives probabilities."
        )
    ranks = [name for name in better if rules.is_rank(name)]
    without = f" {', '.join(ranks)}: decisions only, no probabilities." if ranks else ""
    if len(better) == 1:
        return (
            f"Recommendation: {better[0]}, the one rule that beats {REFERENCE} by more than noise.{without}"
        )
    return (
        f"Recommendation: any of {', '.join(better)}: each beats {REFERENCE} by more than noise; which of "
        f"them is best was not tested.{without}"
    )


def _verdict(one: dict) -> str:
    return "" if one["rule"] == REFERENCE else wording.better_or_worse(one["against"])


def _worth(teachers: dict) -> str:
    values = teachers["values"]
    shapley = [one["shapley"] for one in values]
    spare = sum(one["leave_one_out"] <= 0 for one in values)
    how = "exact" if teachers["num_orders"] is None else f"from {teachers['num_orders']} random orders"
    if teachers["num_orders"] is not None:
        how += f", standard error about {100 * np.mean([one['standard_error'] for one in values]):.2f} points"
    return (
        f"Worth of a teacher (validation accuracy of mean_probs; Shapley values, {how}): "
        f"{wording.points(min(shapley))} to {wording.points(max(shapley))}. Left out alone, {spare} of "
        f"{len(values)} would not have been missed there."
    )


def _left_out(skipped: Sequence[dict]) -> list[str]:
    return [f"Left out: {'; '.join(one['reason'] for one in skipped)}."] if skipped else []


def _terms(result: dict) -> list[str]:
    num_tests = len(result["rules"]) - 1
    return [
        "Intervals (95 %) resample the test examples, differences paired by example. p: exact McNemar test, "
        f"the sign test on examples that only one of two rules gets right; Holm over the {num_tests} rules. "
        "Of data with groups whole groups are resampled, and p is of these resamples. All of it is "
        "conditional on these teachers.",
        "Fitted rules are fitted on the validation examples. Shapley values and leave-one-out are of "
        "validation accuracy too, so that a choice of teachers leaves the test examples unseen; nobody is "
        "worth a guess, 1 / classes.",
        f"Accuracy against K: test, means over at most {SUBSETS_AGAINST_K} subsets of a size.",
    ]


def _summarise_sizes(result: dict) -> list[str]:
    num_repeats, sizes = result["num_repeats"], result["sizes"]
    said = [
        f"Voters: {result['num_teachers']}; one alone is right on "
        f"{wording.percent(result['one_teacher']['mean'])} of {result['num_test']:,} test examples. "
        f"{num_repeats} disjoint groups of {max(sizes)}, of which the first N are fused.",
        *_cannot_differ(max(sizes), result["num_classes"]),
    ]
    if num_repeats == 1:
        said.append("One group: no interval and no test; more voters or smaller sizes give repeats.")
    else:
        for number, size in enumerate(sizes):
            points = [(one["rule"], one["points"][number]) for one in result["rules"]]
            of_size = [{"rule": rule, **point} for rule, point in points if point is not None]
            said += _told_apart(f"N = {size}", of_size)
        said.append(
            "Intervals and paired t tests are over the groups, Holm over the rules of a size; the test "
            "examples are the same for all. Rules that need a fit are left to the study of all teachers."
        )
    return [*said, *_left_out(result["skipped"])]


def _summarise_cost(result: dict) -> list[str]:
    return [
        f"Logits of {result['num_members']} members, {result['num_examples']:,} examples, "
        f"{result['num_classes']} classes, {result['logits_bytes'] / 1e9:.2f} GB: median of "
        f"{result['calls']} calls after compilation on {result['device']}, {result['cores']} cores. Peak "
        f"memory of the process: {result['peak_bytes'] / 1e9:.2f} GB.",
        *_left_out(result["skipped"]),
    ]


# --- command line -------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Compare fusion rules on a finished run, or measure what they cost; returns the exit code."""
    return terminal.answer(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    asked = _parse(argv)
    workdir.use_compile_cache()
    if asked.cost:
        result = cost(_watched, **COST)
        table, what, more = tables.fusion_cost(result), "fusion cost", ""
    elif asked.sizes:
        result = study_of_sizes(_load(asked.run), asked.sizes, _watched)
        table, what = tables.fusion_sizes(result), f"fusion {asked.run}"
        more = _write(asked.run, "sizes", result, table, [], _figures_of_sizes(result))
    else:
        result = study(_load(asked.run), _watched)
        table, what = tables.fusion_rules(result), f"fusion {asked.run}"
        sections = [
            ("What each teacher is worth", tables.teacher_values(result)),
            ("How the teachers differ", tables.diversity(result)),
        ]
        more = _write(asked.run, "report", result, table, sections, _figures(result))
    if asked.json is not None:
        document.write_files(asked.json.parent, {asked.json.name: document.as_json(result)})
    if asked.into is not None:
        document.put_into(asked.into, what, _markdown(table, result))
    document.say(rendering.render(*table), "What this shows", result["findings"], more)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = terminal.Parser("python -m mtkd_jax.fusion", __doc__)
    parser.add_argument(
        "run", nargs="?", metavar="RUN", type=terminal.path, help="the --workdir of a finished run"
    )
    parser.add_argument("--sizes", help="numbers of voters, 5,25,55: fuse disjoint groups of these")
    parser.add_argument("--cost", action="store_true", help="no run: measure every rule on made-up logits")
    parser.add_argument("--json", type=terminal.path, metavar="FILE", help="also write the numbers here")
    parser.add_argument(
        "--into", type=terminal.path, metavar="FILE", help="also write the table between its marks here"
    )
    asked = parser.parse_args(argv)
    if (asked.run is None) != asked.cost or (asked.cost and asked.sizes):
        raise UserError("name the folder of a finished run, or --cost alone")
    asked.sizes = _sizes(asked.sizes) if asked.sizes is not None else []
    return asked


def _sizes(text: str) -> list[int]:
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = [0]
    if sizes[0] < 1:
        raise UserError(f"--sizes {text}: must be numbers of voters, such as 5,25,55")
    return sizes


def _load(run: Path) -> Predictions:
    return workdir.read_predictions(run)


def _watched(rules: Iterable) -> Iterable:
    """A bar on stderr where that is a terminal."""
    stderr: Any = terminal.Stderr()  # as much of a file as rich uses
    console = Console(file=stderr)
    return track(rules, "rules", console=console, transient=True, disable=not console.is_terminal)


def _figures(result: dict) -> dict[str, Figure]:
    against_k = result["against_k"]
    compared = [
        {"rule": one["rule"], "verdict": _verdict(one), **one["against"]}
        for one in result["rules"]
        if one["rule"] != REFERENCE
    ]
    return {
        "rules": rule_plots.rule_differences(compared),
        "accuracy_against_k": rule_plots.accuracy_by_rule(
            against_k["sizes"], against_k["rules"], "over subsets"
        ),
        "teachers": rule_plots.teacher_values(result["teachers"]["values"]),
    }


def _figures_of_sizes(result: dict) -> dict[str, Figure]:
    lines = {one["rule"]: one["points"] for one in result["rules"] if one["rule"] in AGAINST_K}
    over = f"over {result['num_repeats']} disjoint groups, 95 % interval"
    return {"sizes": rule_plots.accuracy_by_rule(result["sizes"], lines, over)}


def _write(
    run: Path,
    name: str,
    result: dict,
    table: rendering.Sheet,
    sections: Sequence[tuple[str, rendering.Sheet]],
    figures: dict[str, Figure],
) -> str:
    """Write RUN/fusion/NAME.md and its plots; returns where they are."""
    parts = [
        f"# {result['dataset']}: which rule should fuse {result['num_teachers']} teachers?",
        _markdown(table, result),
        *(f"![]({plot}.png)" for plot in figures),
        *(f"## {title}\n\n{rendering.markdown(*cells)}" for title, cells in sections),
        document.bullets(result.get("notes", [])),
    ]
    files = {f"{plot}.png": style.png(figure) for plot, figure in figures.items()}
    files[f"{name}.md"] = ("\n\n".join(part for part in parts if part) + "\n").encode()
    document.write_files(run / "fusion", files)
    return f"Plots and more: {run / 'fusion' / name}.md"


def _markdown(table: rendering.Sheet, result: dict) -> str:
    return f"{rendering.markdown(*table)}\n\n{document.bullets(result['findings'])}"
