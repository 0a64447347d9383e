"""The notes of a report: the conditions under which its numbers hold, and what was left out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtkd_jax.config import SEEDS_AT_ONCE, row_of
from mtkd_jax.fusion import rules
from mtkd_jax.methods import modes
from mtkd_jax.report.wording import (
    bears_looking,
    interval,
    percent,
    place_of,
    points,
    where,
    with_peers,
    within,
)
from mtkd_jax.results import comparisons, lookup, measured, scoring
from mtkd_jax.runs.predictions import Group, Predictions
from mtkd_jax.types import Array, Batch, Context, Outputs, Recipe, TeacherOutputs


def _promise(report: dict) -> list[str]:
    """What the promise of a student with a safety net rests on."""
    found = report.get("cascade")
    if found is None:
        return []
    units = {
        "images": "The bound is the exact tail of a binomial over validation images.",
        "groups": "Images of one group are not independent: the bound is that of Hoeffding and Bentkus over "
        "the shares that whole groups lose.",
    }
    return [
        "Student with a safety net: an image is lost where the ensemble is right and the student, who keeps "
        "it, is wrong; its accuracy is behind the ensemble's by no more than the share of these. "
        f"{units[found['units']]} Validation has chosen the student, its weights and the fusion rule before, "
        "which flatters the student: 95 % is not quite that. The test images play no part in the threshold."
    ]


def notes(predictions: Predictions, report: dict) -> list[str]:
    """The conditions under which the numbers hold."""
    fused_by = [row["rule"] for row in report["rows"] if row["rule"]]
    return [
        *predictions.notes,
        *_transfer_sets(predictions),
        *_unequal_classes(report),
        "Intervals (95 %) and tests are conditional on this set of teachers, this data order and this split. "
        "Over seeds and members they are Student's t, of ensembles a bootstrap over test examples, or a "
        "jackknife where resamples would move the number: their widths do not compare. Neither says what "
        "other teachers would have brought.",
        *_units(predictions),
        _selection(predictions),
        _comparisons(report),
        *_without_common_seed(predictions),
        *_verdicts(report),
        *_sizes(report),
        *_gap_shares(report),
        *_never_asked(predictions),
        *_equal_gradients(predictions, report),
        *_rules_left_out(predictions, fused_by),
        *_fitted(predictions, fused_by),
        *_costs_and_ranks(fused_by),
        *_bounds(report),
        *_promise(report),
    ]


def _transfer_sets(predictions: Predictions) -> list[str]:
    train, unlabelled = predictions.sizes["train"], predictions.sizes["unlabelled"]
    seen = {
        "labelled": f"{train:,} labelled images",
        "unlabelled": f"{train:,} labelled images and {unlabelled:,} whose labels are hidden from every loss",
        "other": f"{train:,} labelled images and {predictions.sizes.get('other', 0):,} of another source",
    }
    return [f"Transfer set '{name}': students see {seen[name]}." for name in lookup.transfers(predictions)]


def _never_asked(predictions: Predictions) -> list[str]:
    """Teachers that cannot say anything of other images than the data's, where others are asked for them."""
    teachers = lookup.teachers(predictions)
    asked = [
        what
        for what, given, answers in (
            ("corrupted images", predictions.corruptions, [one.shifted for one in teachers]),
            ("outliers", predictions.ood, [one.outliers for one in teachers]),
        )
        if given and any(answer is None for answer in answers)
    ]
    if not asked:
        return []
    return [
        f"Teachers that are known by their logits alone say nothing of {' and '.join(asked)}: what is kept "
        "of the ensemble there is not known."
    ]


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


def _units(predictions: Predictions) -> list[str]:
    units = predictions.units
    number = 0 if units is None else int(units.max()) + 1
    if number in (0, len(np.unique(predictions.test_index))):
        return []
    if number == 1:
        return ["All test examples are of one group, and not independent: intervals over them are unknown."]
    return [
        "Test examples of one group are not independent: for an interval over test examples the "
        f"{number:,} groups that the data names are resampled, and it is widened for how few they are."
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


def _comparisons(report: dict) -> str:
    alone = " Students with peers, against one another, are corrected by themselves." * bool(
        with_peers(report)
    )
    if bears_looking(report):
        return (
            "Seeds were added until all accuracies compared were decided, or students.max_seeds were trained "
            f'(students.num_seeds is "auto"); the first {SEEDS_AT_ONCE} chose alpha, temperature and '
            "arguments. Comparisons are by mixtures of t tests (Wang and Ramdas 2023), whose intervals hold "
            "at all numbers of seeds at once where differences are normal; p is Holm-corrected within each "
            "metric and transfer set. Every other interval, of a row, of the ensemble, of students by size, "
            "is for a number of seeds that was settled beforehand."
        ) + alone
    over = ", over all sizes of student" if len(report["student_models"]) > 1 else ""
    return (
        "Comparisons are paired t tests over seeds; p is Holm-corrected within each metric and transfer set"
        f"{over}, the intervals beside it are not corrected. A difference that 'would have been seen' is one "
        "that such a test finds four times in five."
    ) + alone


def _without_common_seed(predictions: Predictions) -> list[str]:
    pairs = comparisons.without_common_seed(predictions)
    if not pairs:
        return []
    several = len(lookup.student_models(predictions)) > 1
    named = ", ".join(
        f"{row_of(a.name, a.architecture if several else '')} - {b.name} "
        f"({' / '.join(dict.fromkeys((a.transfer, b.transfer)))})"
        for a, b in pairs
    )
    return [f"Not compared, for no seed is finite in both rows: {named}."]


def _verdicts(report: dict) -> list[str]:
    if all(row["verdict"] is None for row in report["rows"]):
        return []
    t_tests = "two one-sided paired t tests, at 5 % each and not corrected"
    small = "the mixtures, at 5 %" if bears_looking(report) else t_tests
    return [
        "Verdict: accuracy against the baseline on the same images. better, worse: that test's p is below "
        f"0.05. equivalent: {small}, show a true "
        f"difference {within(report['margin'])} (report.margin). Where both hold: equivalent if the 95 % "
        "interval lies inside the margin whole, otherwise better or worse. undecided: neither, or one seed. "
        "Of mean_probs the t interval of ensemble - baseline decides, by the same margin."
    ]


def _sizes(report: dict) -> list[str]:
    if not report["students_by_size"]:
        return []
    return [
        "Students against the ensemble: a t test over seeds and test images, paired by image, for there is "
        "one ensemble. Told apart: p below 0.05. equivalent: two one-sided tests at 5 % each show a true "
        f"difference {within(report['margin'])} (report.margin). Neither is corrected for how many students "
        "are looked at, and of one seed nothing is told. Which row stands for an architecture is chosen by "
        "validation."
    ]


def _gap_shares(report: dict) -> list[str]:
    meaning = "Gap share = (student - baseline) / (ensemble by mean_probs - baseline), of accuracy."
    return [meaning] + [
        f"Gap shares ({where(gap, report)}) are left out: the interval of ensemble - baseline, "
        f"{points(gap['difference'])} {interval(gap['ci95'], 'accuracy')}, "
        + (
            "has one group of test examples to resample."
            if gap["ci95"] is None
            else "rests on one seed."
            if gap["ci95"][0] > 0
            else "does not lie above 0."
        )
        for gap in report["gaps"]
        if not gap["larger_than_noise"]
    ]


def _equal_gradients(predictions: Predictions, report: dict) -> list[str]:
    pairs = []
    places = itertools.product(lookup.transfers(predictions), report["student_models"])
    for transfer, model in places:
        output_avg, loss_avg = (
            lookup.find(predictions, transfer, name=name, architecture=model)
            for name in ("output_avg", "loss_avg")
        )
        if output_avg is None or loss_avg is None:
            continue
        pair = output_avg, loss_avg
        if any(group.arguments or group.method != group.name for group in pair):
            continue  # they are told apart by a divergence that is not KL
        of_row = {place_of(row): row for row in report["rows"]}
        accuracies = [of_row[group.name, transfer, model]["accuracy"]["mean"] for group in pair]
        place = where({"transfer": transfer, "architecture": model}, report)
        same = (output_avg.alpha, output_avg.temperature) == (loss_avg.alpha, loss_avg.temperature)
        pairs.append(
            f"{place}: the gradients at the students' validation logits differ by at most "
            f"{gradient_difference(predictions, output_avg):.1e}, the test accuracies by "
            f"{points(accuracies[1] - accuracies[0])} "
            f"({'same' if same else 'each at its own'} alpha and temperature)"
        )
    if not pairs:
        return []
    known = "output_avg and loss_avg have equal gradients at one shared temperature: one method, two names."
    return [f"{known} Measured, {'; '.join(pairs)}."]


def gradient_difference(predictions: Predictions, students: Group) -> float:
    """Largest |d loss_avg / dz - d output_avg / dz| on the students' validation logits z, in float32.

    By automatic differentiation of output_avg as it is trained, and of the mean over the teachers of each
    KL, written out with one target a teacher. On paper the two are one; what is left is rounding.
    """
    teachers = TeacherOutputs(jnp.asarray(lookup.teacher_logits(predictions, "val"), jnp.float32), (), ())
    hyper: dict[str, Any] = {"alpha": 0.0, "temperature": students.temperature, "label_smoothing": 0.0}
    num_examples = len(predictions.val_labels)
    batch = Batch(
        image=jnp.zeros((num_examples, 1, 1, 1), jnp.float32),
        label=jnp.asarray(predictions.val_labels),
        index=jnp.arange(num_examples, dtype=jnp.int32),
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
        np.asarray(gradient(np.asarray(students.val, np.float32), recipe))
        for recipe in (modes.output_avg(), written_out)
    )
    return float(np.abs(of_output_avg - of_loss_avg).max())


def _rules_left_out(predictions: Predictions, fused_by: Sequence[str]) -> list[str]:
    num_teachers = sum(len(group.members) for group in lookup.teachers(predictions))
    return [
        f"Left out, for the {num_teachers} teachers there are: "
        f"fusion rule {scoring.why_no_row(predictions, rule)}."
        for rule in predictions.rules
        if rule not in fused_by
    ] + measured.why_no_metric(predictions)


def _fitted(predictions: Predictions, fused_by: Sequence[str]) -> list[str]:
    on_train = dict.fromkeys(g.name for g in predictions.groups if g.name.startswith("supernet"))
    on_val = [rule for rule in fused_by if rules.is_fitted(rule)]
    rule_of = {g.name: g.name.removeprefix("fused:") for g in predictions.groups if g.role == "student"}
    of_students = [name for name, rule in rule_of.items() if rule != name and rule in rules.FITTED_RULES]
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
    if of_students:
        found.append(
            f"{', '.join(of_students)}: what is matched is fitted on the validation images, by which the "
            "students are chosen, too."
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
