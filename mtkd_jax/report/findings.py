"""The words of the report, written from its numbers: what a run shows, and under which conditions.

Nothing is called better unless Holm's p is below 0.05, nor equivalent unless that was tested; all else is
said to be undecided.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

from mtkd_jax.fusion import rules
from mtkd_jax.methods import modes
from mtkd_jax.results import analysis, intervals
from mtkd_jax.runs.predictions import Predictions
from mtkd_jax.types import Array, Batch, Context, Outputs, Recipe, TeacherOutputs

MOST_TO_TELL = 0.2  # in accuracy: who can see nothing smaller sees next to nothing
FEWEST_SEEDS = 3  # with two, a t interval spans 12.7 standard errors to each side


def better_or_worse(comparison: dict) -> str:
    """ "better" | "worse" | "" (inside the noise, or not testable), of a comparison without a margin."""
    sign = 1 if comparison["metric"] == "accuracy" else -1
    said = intervals.verdict(sign * comparison["mean_difference"], comparison["p_holm"])
    return "" if said == "undecided" else said


# --- what this run shows ------------------------------------------------------------------------------


def summarise(report: dict) -> list[str]:
    """Paragraphs in plain language, from the numbers of report.json alone."""
    margin = report["margin"]
    found = [_ensemble(report), *(_gap(gap, margin) for gap in report["gaps"]), *_detection(report)]
    for family in dict.fromkeys(one["family"] for one in report["comparisons"]):
        of_family = [one for one in report["comparisons"] if one["family"] == family]
        for b in dict.fromkeys(one["b"] for one in of_family):
            tested = [one for one in of_family if one["b"] == b]
            found.append(
                _paragraph(*([one for one in tested if one["metric"] == m] for m in analysis.TESTED), margin)
            )
    return [*found, *_apart(report), *_deploy(report)]


def _ensemble(report: dict) -> str:
    teachers = [row for row in report["rows"] if row["role"] == "teacher"]
    singles = [value for row in teachers for value in row["accuracy"]["values"]]
    fused = report["sub_ensembles"][-1]["mean"]
    if len(singles) == 1:
        return f"Teachers: The one teacher reaches {percent(fused)}."
    return (
        f"Teachers: All {len(singles)} fused by mean_probs reach {percent(fused)}; "
        f"one teacher alone {percent(np.mean(singles))} on average, "
        f"at best {percent(max(singles))} (seen on test)."
    )


def _gap(gap: dict, margin: float) -> str:
    difference = f"{points(gap['difference'])} {interval(gap['ci95'], 'accuracy')}"
    where = f"the baseline trained without teachers ({percent(gap['baseline'])})"
    head = f"What there is to gain ({gap['transfer']})"
    if gap["verdict"] == "equivalent":
        return f"{head}: The ensemble and {where} are equivalent, {_within(margin)}: {difference}."
    if gap["verdict"] == "better":
        return f"{head}: The ensemble is ahead of {where} by {difference}, more than noise."
    if gap["ci95"][1] < 0:
        return f"{head}: The ensemble is behind {where}, {difference}."
    return f"{head}: The ensemble is not told apart from {where}: {difference}."


def _paragraph(on_accuracy: list[dict], on_nll: list[dict], margin: float) -> str:
    """All modes against one rival: accuracy in sentences, NLL in short."""
    one = on_accuracy[0]
    if one["family"] == analysis.CROSS_FAMILY:
        against = "With the unlabelled images, against the labelled-only baseline"
    else:
        against = f"Against {_name_of(one['b'])} ({one['family']})"
    return f"{against}: {_on_accuracy(on_accuracy, margin)} {_on_nll(on_nll)}"


def _on_accuracy(tested: list[dict], margin: float) -> str:
    """One sentence a finding, then one for all that is equivalent and one for all that is undecided."""
    words = {"better": "beats", "worse": "is worse than"}
    sentences = [
        f"{one['a']} {words[one['verdict']]} {_name_of(one['b'])}, {points(one['mean_difference'])} "
        f"{interval(one['ci95'], 'accuracy')}, Holm p {p_value(one['p_holm'])}."
        for one in tested
        if one["verdict"] in words
    ]
    equivalent = [one for one in tested if one["verdict"] == "equivalent"]
    if equivalent:
        listed = ", ".join(
            f"{one['a']} {points(one['mean_difference'])} {interval(one['ci95'], 'accuracy')}"
            for one in equivalent
        )
        sentences.append(f"Equivalent, {_within(margin)}: {listed}.")
    unclear = [one for one in tested if one["p_holm"] is not None and one["verdict"] == "undecided"]
    if unclear:
        listed = ", ".join(f"{one['a']} {points(one['mean_difference'])}" for one in unclear)
        sentences.append(f"Undecided: {listed}{_could_have_been_seen(unclear)}.")
    untested = [one for one in tested if one["p_holm"] is None]
    if untested:
        listed = ", ".join(f"{one['a']} {points(one['mean_difference'])}" for one in untested)
        sentences.append(f"Not testable, for want of differing pairs of seeds: {listed}.")
    return " ".join(sentences)


def _on_nll(tested: list[dict]) -> str:
    """ "NLL: lower for ..., higher for ...", each name with its difference; nothing of what is noise."""
    parts = []
    for verdict, words in (("better", "lower for"), ("worse", "higher for")):
        names = [f"{one['a']} ({one['mean_difference']:+.3f})" for one in tested if one["verdict"] == verdict]
        if names:
            parts.append(f"{words} {', '.join(names)}")
    return f"NLL: {'; '.join(parts) or 'undecided'}."


def _name_of(name: str) -> str:
    return f"the {name}" if name.split(" ")[0] in ("baseline", "control") else name


def _within(margin: float) -> str:
    return f"closer than {100 * margin:g} points"


def _could_have_been_seen(unclear: list[dict]) -> str:
    sizes = [one["detectable"] for one in unclear if one["detectable"] is not None]
    if not sizes:
        return ""
    num_seeds, size = unclear[0]["n"], median(sizes)
    if num_seeds < FEWEST_SEEDS or size > MOST_TO_TELL:
        return f"; {num_seeds} seeds are too few to see much"
    return f"; with {num_seeds} seeds a true difference of about {100 * size:.1f} points would have been seen"


def _detection(report: dict) -> list[str]:
    """How many of the positives are missed at validation's threshold: by whom, and at which false alarms."""
    asked, kept = report["detection"], report["chosen_student"]
    if asked is None:
        return []
    rate, num_positive = asked["false_alarm_rate"], count(asked["num_positive"])
    who = {
        (row["role"], row["transfer"]): row
        for row in report["rows"]
        if row["name"] in ("mean_probs", "baseline") and row["auroc"] is not None
    }
    missed = []
    if kept is not None:
        own = kept["detector"]
        missed.append(
            f"the best student misses {count(own['misses'])} of {num_positive} "
            f"({percent(own['false_alarm_rate'])} false alarms)"
        )
        if ("baseline", kept["transfer"]) in who:
            missed.append(f"its baseline {_misses(who['baseline', kept['transfer']])}")
    if ("ensemble", "") in who:
        missed.append(f"the ensemble {_misses(who['ensemble', ''])}")
    deploy = report["deploy"]
    if kept is not None and _place(deploy) != _place(kept):
        own = deploy["detector"]
        missed.append(f"the network to deploy {count(own['misses'])} ({percent(own['false_alarm_rate'])})")
    if not missed:
        missed = [f"{row['name']} misses {_misses(row)} of {num_positive}" for row in report["rows"][:1]]
    found = (
        f"Detection of {asked['positive']}: At the threshold that allows {100 * rate:g} % false alarms on "
        f"validation, {', '.join(missed)}."
    )
    over = [
        row
        for row in who.values()
        if (row["operating_point"]["false_alarm_rate"]["ci95"] or (0.0,))[0] > rate
    ]
    if over:
        found += (
            " On test there are more false alarms than that: validation's images are not like test's, or too "
            "few to set a threshold by."
        )
    return [found]


def _misses(row: dict) -> str:
    point = row["operating_point"]
    on_average = " on average" if row["n"] > 1 else ""
    return f"{count(point['misses']['mean'])}{on_average} ({percent(point['false_alarm_rate']['mean'])})"


def in_one_line(report: dict) -> str:
    """What a run shows, as short as it can be said: who beats the baseline, and which student is kept."""
    parts = []
    for gap in report["gaps"]:
        tested = [
            one
            for one in report["comparisons"]
            if (one["family"], one["b"], one["metric"]) == (gap["transfer"], "baseline", "accuracy")
        ]
        parts.append(
            f"{gap['transfer']}: ensemble - baseline {points(gap['difference'])} "
            f"{interval(gap['ci95'], 'accuracy')}; {_told_apart(tested)}"
        )
    if (kept := report["deploy"]) is not None:
        parts.append(f"deploy: {_place(kept)}, {percent(kept['accuracy'])}, NLL {kept['nll']:.3f}")
    return ". ".join([*parts, ""]).strip() or _ensemble(report)


def _told_apart(tested: list[dict]) -> str:
    said = {"better": "better than the baseline"}
    names = {
        said.get(verdict, verdict): ", ".join(one["a"] for one in tested if one["verdict"] == verdict)
        for verdict in intervals.VERDICTS
    }
    return "; ".join(f"{words}: {which}" for words, which in names.items() if which)


def conditions(report: dict) -> str:
    """What a run had and tried, in one line: images, teachers, students, seeds and grid."""
    sizes = report["sizes"]
    words = {"train": "labelled", "unlabelled": "unlabelled", "val": "validation", "test": "test"}
    images = ", ".join(f"{sizes[name]:,} {word}" for name, word in words.items() if sizes[name])
    teachers = ", ".join(
        f"{row['n']} {row['architecture']}" for row in report["rows"] if row["role"] == "teacher"
    )
    said = f"{report['dataset']}, {images} images; teachers: {teachers}"
    students = [row for row in report["rows"] if row["role"] == "student"]
    if not students:
        return said
    networks = ", ".join(dict.fromkeys(row["architecture"] for row in students))
    points_of = [point for row in students for point in row["grid"]]
    grid = "; ".join(
        f"{name} {', '.join(f'{value:g}' for value in sorted({point[name] for point in points_of}))}"
        for name in ("alpha", "temperature")
        if points_of
    )
    return f"{said}; students: {networks}, {max(row['n'] for row in students)} seeds; {grid}".removesuffix(
        "; "
    )


def advice(report: dict) -> str:
    """The last sentence of a report, which names the network to deploy; "" where there is none."""
    _, deploy, which = report["findings"][-1].rpartition("Deploy ")
    return deploy and deploy + which


def _apart(report: dict) -> list[str]:
    """Members that end far from the others of their row on validation, see `analysis`."""
    found = [
        f"{_place({**row, **one})} ends at {percent(one['val_accuracy'])} on validation, where the median of "
        f"the others is {percent(one['siblings'])}"
        for row in report["rows"]
        for one in row["apart"]
    ]
    if not found:
        return []
    return [
        f"Far from its siblings (†): {'; '.join(found)}. It widens the interval of its row and moves its "
        "mean: look at the learning curves before you read anything from that row."
    ]


def _deploy(report: dict) -> list[str]:
    """Which network to deploy, and why; its last sentence is the last word of a report."""
    kept = report["deploy"]
    if kept is None:
        return []
    best, choose = kept["best"], kept["choose"]
    is_best = _place(best) == _place(kept)
    others = [
        f"the best {role} is {_on_validation(one)}"
        for role, one in kept["best_of_role"].items()
        if role != best["role"]
    ]
    said = [
        f"What to deploy: Of all {kept['num_networks']} single networks {_on_validation(best)} has the "
        f"lowest NLL on validation{''.join(f'; {other}' for other in others)}.",
        *_ensemble_at_its_price(report, kept),
    ]
    asks = f"as export.choose = {choose} asks"
    if choose not in ("best", "student", kept["name"]) or (choose == "student" and kept["role"] != "student"):
        said.append(f"Of {choose}, which export.choose asks for, no network is left.")
        asks = "the best of those that are"
    elif is_best:
        asks = "by validation alone"
    else:
        said.append(f"{_place(kept)} has {_numbers(kept)} there.")
        asks += f", though {_place(best)} is better on validation"
    said.append(
        f"Deploy {_name_of(_place(kept))}, {asks}; on test it has {percent(kept['accuracy'])}, "
        f"NLL {kept['nll']:.3f}{_its_verdict(report, kept)}."
    )
    return [" ".join(said)]


def _its_verdict(report: dict, kept: dict) -> str:
    """What is said of the row of a network, in the sentence that advises it; "" where nothing is."""
    rows = {(row["name"], row["transfer"]): row for row in report["rows"]}
    row = rows[kept["name"], kept["transfer"]]
    if row["verdict"] is None:
        return ""
    return f"; against the baseline, over {row['n']} seeds: {row['verdict']}"


def _ensemble_at_its_price(report: dict, kept: dict) -> list[str]:
    """What all teachers together say on validation, and how many times what one network costs."""
    rows = {(row["name"], row["transfer"]): row for row in report["rows"]}
    ensemble, own = rows.get(("mean_probs", "")), rows[kept["name"], kept["transfer"]]
    num_teachers = report["diversity"]["num_teachers"]
    if ensemble is None or num_teachers == 1:
        return []
    prices = [
        f"{ratio:.1f} times the {what}"
        for what, ratio in (
            ("parameters", _ratio(ensemble["params"], own["params"])),
            ("FLOPs", _ratio(ensemble["flops"], own["flops"])),
            ("time an image", _ratio(ensemble["latency_ms"]["1"], own["latency_ms"]["1"])),
        )
        if ratio is not None
    ]
    val = {"val_nll": ensemble["val"]["nll"], "val_accuracy": ensemble["val"]["accuracy"]}
    price = f", for {', '.join(prices)} of {_place(kept)}" if prices else ""
    return [f"All {num_teachers} teachers fused by mean_probs have {_numbers(val)}{price}."]


def _ratio(whole: float | None, part: float | None) -> float | None:
    return whole / part if whole and part else None


def _on_validation(network: dict) -> str:
    return f"{_place(network)} with {_numbers(network)}"


def _numbers(network: dict) -> str:
    nll = network["val_nll"]
    return f"{'no finite NLL' if nll is None else f'{nll:.3f}'} ({percent(network['val_accuracy'])})"


def _place(network: dict) -> str:
    where = ", ".join(word for word in (network["transfer"], network["member"]) if word)
    return f"{network['name']} ({where})"


# --- notes --------------------------------------------------------------------------------------------


def notes(predictions: Predictions, report: dict) -> list[str]:
    """The conditions under which the numbers hold."""
    fused_by = [row["rule"] for row in report["rows"] if row["rule"]]
    return [
        *predictions.notes,
        *_transfer_sets(predictions),
        *_unequal_classes(report),
        "Intervals (95 %) and tests are conditional on this set of teachers, this data order and this split. "
        "Over seeds and members they are Student's t, of ensembles a bootstrap over test examples: their "
        "widths do not compare. Neither says what other teachers would have brought.",
        _selection(predictions),
        "Comparisons are paired t tests over seeds; p is Holm-corrected within each metric and transfer set, "
        "the intervals beside it are not corrected. A difference that 'would have been seen' is one that "
        "such a test finds four times in five.",
        *_verdicts(report),
        *_gap_shares(report),
        *_equal_gradients(predictions, report),
        *_rules_left_out(predictions, fused_by),
        *_fitted(predictions, fused_by),
        *_costs_and_ranks(fused_by),
        *_bounds(report),
    ]


def _transfer_sets(predictions: Predictions) -> list[str]:
    train, unlabelled = predictions.sizes["train"], predictions.sizes["unlabelled"]
    seen = {
        "labelled": f"{train:,} labelled images",
        "unlabelled": f"{train:,} labelled images and {unlabelled:,} whose labels are hidden from every loss",
    }
    return [f"Transfer set '{name}': students see {seen[name]}." for name in analysis.transfers(predictions)]


def _unequal_classes(report: dict) -> list[str]:
    if not report["imbalanced"]:
        return []
    counts = report["class_counts"]["test"]
    most, least = int(np.argmax(counts)), int(np.argmin(counts))
    names = report["class_names"]
    return [
        f"The test set has {counts[most]:,} images of {names[most]} and {counts[least]:,} of {names[least]}: "
        f"who always says {names[most]} is right in {percent(counts[most] / sum(counts))}, with a balanced "
        f"accuracy (the mean recall of the classes) of {percent(1 / len(counts))}."
    ]


def _selection(predictions: Predictions) -> str:
    sizes = {len(group.grid) for group in predictions.groups if group.role == "student"} or {0}
    grid = f"{min(sizes)}" if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
    return (
        f"(alpha, temperature) of a mode: the lowest mean validation NLL over seeds of {grid} grid points, "
        "ties to the alpha nearest 0.25, then the lowest temperature; "
        f"{predictions.sizes['val']:,} validation images. alpha is the weight of the hard labels. "
        "The test images play no part in it."
    )


def _verdicts(report: dict) -> list[str]:
    if all(row["verdict"] is None for row in report["rows"]):
        return []
    return [
        "Verdict: accuracy against the baseline on the same images. better, worse: that test's p is below "
        "0.05. equivalent: two one-sided paired t tests, at 5 % each and not corrected, show a true "
        f"difference {_within(report['margin'])} (report.margin). Where both hold: equivalent if the 95 % "
        "interval lies inside the margin whole, otherwise better or worse. undecided: neither, or one seed. "
        "Of mean_probs the bootstrap interval of ensemble - baseline decides, by the same margin."
    ]


def _gap_shares(report: dict) -> list[str]:
    meaning = "Gap share = (student - baseline) / (ensemble by mean_probs - baseline), of accuracy."
    return [meaning] + [
        f"Gap shares ({gap['transfer']}) are left out: the interval of ensemble - baseline, "
        f"{points(gap['difference'])} {interval(gap['ci95'], 'accuracy')}, "
        + ("rests on one seed." if gap["ci95"][0] > 0 else "does not lie above 0.")
        for gap in report["gaps"]
        if not gap["larger_than_noise"]
    ]


def _equal_gradients(predictions: Predictions, report: dict) -> list[str]:
    measured = []
    for transfer in analysis.transfers(predictions):
        pair = [analysis.find(predictions, transfer, name=name) for name in ("output_avg", "loss_avg")]
        if None in pair or any(group.arguments or group.method != group.name for group in pair):
            continue  # they are told apart by a divergence that is not KL
        of_row = {row["name"]: row for row in report["rows"] if row["transfer"] == transfer}
        accuracies = [of_row[group.name]["accuracy"]["mean"] for group in pair]
        same = (pair[0].alpha, pair[0].temperature) == (pair[1].alpha, pair[1].temperature)
        measured.append(
            f"{transfer}: the gradients at the students' validation logits differ by at most "
            f"{gradient_difference(predictions, transfer):.1e}, the test accuracies by "
            f"{points(accuracies[1] - accuracies[0])} "
            f"({'same' if same else 'each at its own'} alpha and temperature)"
        )
    if not measured:
        return []
    known = "output_avg and loss_avg have equal gradients at one shared temperature: one method, two names."
    return [f"{known} Measured, {'; '.join(measured)}."]


def gradient_difference(predictions: Predictions, transfer: str) -> float:
    """Largest |d loss_avg / dz - d output_avg / dz| on the students' validation logits z, in float32.

    By automatic differentiation of output_avg as it is trained, and of the mean over the teachers of each
    KL, written out with one target a teacher. On paper the two are one; what is left is rounding.
    """
    student = analysis.find(predictions, transfer, name="output_avg")
    teachers = TeacherOutputs(jnp.asarray(analysis.teacher_logits(predictions, "val"), jnp.float32), (), ())
    hyper = {"alpha": 0.0, "temperature": student.temperature, "label_smoothing": 0.0}
    num_examples = len(predictions.val_labels)
    batch = Batch(
        image=jnp.zeros((num_examples, 1, 1, 1)),
        label=jnp.asarray(predictions.val_labels),
        index=jnp.arange(num_examples),
        labelled=jnp.ones(num_examples, bool),
    )

    def loss(logits: Array, recipe: Recipe) -> Array:
        outputs = Outputs(logits=logits, heads=logits[None], embedding=logits, features={})
        now = jax.random.key(0), jnp.int32(0), jnp.float32(0.0)
        context = Context(batch, teachers, {}, hyper, *now, student=outputs)
        context = dataclasses.replace(context, targets=recipe.aim(context, recipe.weigh(context)))
        return recipe.term(context).sum()

    gradient = jax.jit(jax.vmap(jax.grad(loss), in_axes=(0, None)), static_argnums=1)
    written_out = modes.output_avg()._replace(aim=modes.each_teacher)
    of_output_avg, of_loss_avg = (
        gradient(jnp.asarray(student.val, jnp.float32), recipe)
        for recipe in (modes.output_avg(), written_out)
    )
    return float(jnp.abs(of_output_avg - of_loss_avg).max())


def _rules_left_out(predictions: Predictions, fused_by: Sequence[str]) -> list[str]:
    num_teachers = sum(len(group.members) for group in analysis.teachers(predictions))
    return [
        f"Left out, for the {num_teachers} teachers there are: "
        f"fusion rule {analysis.why_no_row(predictions, rule)}."
        for rule in predictions.rules
        if rule not in fused_by
    ] + analysis.why_no_metric(predictions)


def _fitted(predictions: Predictions, fused_by: Sequence[str]) -> list[str]:
    on_train = dict.fromkeys(g.name for g in predictions.groups if g.name.startswith("supernet"))
    on_val = [rule for rule in fused_by if rules.is_fitted(rule)]
    found = []
    if on_train:
        names = ", ".join(on_train)
        found.append(
            f"{names}: the fused network is fitted on the labelled training images, as in the paper."
        )
    if on_val:
        found.append(
            f"{', '.join(on_val)}: fitted on the validation images, so its validation numbers flatter it."
        )
    return found


def _costs_and_ranks(fused_by: Sequence[str]) -> list[str]:
    ranks = [rule for rule in fused_by if rules.is_rank(rule)]
    found = [
        "Parameters, FLOPs and latency of an ensemble are sums over its teachers, run one after another."
    ]
    if ranks:
        found.append(
            f"{', '.join(ranks)}: decisions without probabilities, so without NLL, ECE and Brier score."
        )
    return found


def _bounds(report: dict) -> list[str]:
    num_teachers, num_paired = report["diversity"]["num_teachers"], len(report["diversity"]["members"])
    if num_paired == num_teachers:
        return []
    sizes = ", ".join(str(one["k"]) for one in report["sub_ensembles"])
    return [
        f"Of {num_teachers} teachers the first {num_paired} are compared in pairs; ensembles of these sizes "
        f"show what each further teacher brings: {sizes}."
    ]


# --- figures in words ---------------------------------------------------------------------------------


def percent(value: float) -> str:
    """
    >>> percent(0.91667)
    '91.67 %'
    """
    return f"{100 * value:.2f} %"


def points(difference: float) -> str:
    """
    >>> points(0.0125)
    '+1.25 points'
    """
    return f"{100 * difference:+.2f} points"


def count(number: float) -> str:
    """
    >>> count(1234), count(12.4)
    ('1,234', '12.4')
    """
    return f"{number:,.1f}".removesuffix(".0")


def interval(bounds: Sequence[float], metric: str) -> str:
    """Accuracies in per cent or points, everything else as it is.

    >>> interval((0.004, 0.02), "accuracy"), interval((-0.1, 0.2), "nll")
    ('[0.40, 2.00]', '[-0.100, 0.200]')
    """
    low, high = bounds
    return f"[{100 * low:.2f}, {100 * high:.2f}]" if metric == "accuracy" else f"[{low:.3f}, {high:.3f}]"


def p_value(p: float) -> str:
    """
    >>> p_value(0.0123), p_value(0.00001)
    ('= 0.012', '< 0.001')
    """
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
