"""The report: its schema, its numbers against slow ones, what it says, its files, its command line."""

import base64
import csv
import dataclasses
import html
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from mtkd_jax.engine import distances
from mtkd_jax.fusion import rules
from mtkd_jax.methods import modes
from mtkd_jax.report import caveats, document, findings, plots, rendering, side_by_side, tables, wording
from mtkd_jax.results import analysis, comparisons, intervals, lookup, measured, metrics, scoring
from mtkd_jax.runs import predictions
from tests.references import metrics as reference
from tests.references.predictions import curves, make

ROW_KEYS = {
    *("own", "body"),
    *("name", "transfer", "role", "architecture", "method", "rule", "alpha", "temperature", "arguments", "n"),
    *("accuracy", "nll", "ece", "brier", "val", "grid", "gap_share", "params", "flops", "latency_ms"),
    *(
        "apart",
        "num_in_cohort",
        "train_seconds",
        "train_flops",
        "verdict",
        "balanced_accuracy",
        "auroc",
        "recall_at_false_alarm_rate",
        "operating_point",
    ),
}
COMPARISON_KEYS = {
    *(
        "a",
        "a_transfer",
        "b",
        "b_transfer",
        "metric",
        "mean_difference",
        "ci95",
        "p_value",
        "p_holm",
        "test",
        "n",
    ),
    *("family", "std", "detectable", "p_equivalence", "verdict", "architecture"),
}
NUMBERS = set(document.RESULTS) - {"role", "name", "transfer", "verdict", "architecture"}
# Nobody gains anything: every network, teacher or student, has the same errors.
NOTHING_GAINED = {
    name: (role, 1.5)
    for name, role in (("output_avg", "student"), ("mimic_all", "student"), ("baseline", "baseline"))
} | {"control": ("control", 1.5)}


@pytest.fixture(scope="module")
def made():
    return make()


@pytest.fixture(scope="module")
def built(made):
    return document.build(made)


def row(built, name, transfer=""):
    return next(row for row in built["rows"] if (row["name"], row["transfer"]) == (name, transfer))


def replaced(made, role, transfer, **fields):
    """The run with those fields of that group changed."""
    groups = tuple(
        dataclasses.replace(group, **fields) if (group.role, group.transfer) == (role, transfer) else group
        for group in made.groups
    )
    return dataclasses.replace(made, groups=groups)


# --- schema -------------------------------------------------------------------------------------------


def test_schema(built):
    assert json.loads(json.dumps(built, allow_nan=False)) == built
    keys = {
        "dataset",
        "num_classes",
        "sizes",
        "selection",
        "gap_share_of",
        "rows",
        "comparisons",
        "diversity",
        "notes",
    }
    assert keys <= set(built)
    for one in built["rows"]:
        assert set(one) == ROW_KEYS
        assert set(one["accuracy"]) == {"mean", "std", "ci95", "ci_over", "values"}
        assert len(one["accuracy"]["values"]) == one["n"]
        assert set(one["latency_ms"]) == {"1", "256"}
    assert all(set(one) == COMPARISON_KEYS for one in built["comparisons"])


def test_rows_of_each_kind(built):
    teacher, ensemble, student = row(built, "mlp"), row(built, "mean_probs"), row(built, "vote", "labelled")
    assert [one["accuracy"]["ci_over"] for one in (teacher, ensemble, student)] == [
        "members",
        "test_examples",
        "seeds",
    ]
    assert [one["n"] for one in (teacher, ensemble, student)] == [5, 1, 5]
    assert ensemble["accuracy"]["std"] is None
    assert ensemble["accuracy"]["ci95"][0] < ensemble["accuracy"]["mean"] < ensemble["accuracy"]["ci95"][1]
    assert ensemble["params"] == 5 * teacher["params"]
    assert ensemble["latency_ms"]["1"] == pytest.approx(5 * teacher["latency_ms"]["1"])
    for name in ("plurality", "borda"):
        assert row(built, name)["nll"] is row(built, name)["ece"] is row(built, name)["brier"] is None
        assert row(built, name)["val"]["nll"] is None


def test_one_seed_has_no_interval_and_no_test(made):
    built = document.build(make(num_seeds=1, num_teachers=1, rules=("mean_probs",)))
    one = row(built, "mimic_all", "labelled")
    assert one["accuracy"]["std"] is one["accuracy"]["ci95"] is None
    assert {one["p_holm"] for one in built["comparisons"]} == {None}
    assert {one["gap_share"] for one in built["rows"]} == {None}
    assert built["diversity"]["disagreement"]["mean"] is None
    assert "Not testable" in " ".join(built["findings"])


def test_a_run_without_students(made):
    built = document.build(make(transfers=(), rules=()))
    assert (built["comparisons"], built["gaps"], built["chosen_student"]) == ([], [], None)
    assert len(built["confusion"]) == 2


# --- numbers ------------------------------------------------------------------------------------------


def test_accuracy_and_nll_of_rows_against_the_reference(made, built):
    for group in made.groups[:4]:
        for name in ("accuracy", "nll", "brier", "ece", "balanced_accuracy"):
            slow = [
                getattr(reference, name)(one.astype(np.float64).tolist(), made.test_labels)
                for one in group.test
            ]
            found = row(built, group.name, group.transfer)[name]
            assert found["values"] == pytest.approx(slow)
            assert found["mean"] == pytest.approx(np.mean(slow))
            assert found["std"] == pytest.approx(np.std(slow, ddof=1))


def test_ensembles_against_the_reference(made, built):
    logits = made.groups[0].test.astype(np.float64)
    probs = np.mean([reference.probabilities(one) for one in logits], axis=0)
    assert row(built, "mean_probs")["nll"]["mean"] == pytest.approx(
        reference.nll(np.log(probs), made.test_labels), rel=1e-5
    )
    mean_logits = reference.accuracy(logits.mean(0).tolist(), made.test_labels)
    assert row(built, "mean_logits")["accuracy"]["mean"] == pytest.approx(mean_logits)
    assert built["sub_ensembles"][-1]["mean"] == pytest.approx(row(built, "mean_probs")["accuracy"]["mean"])


@pytest.mark.parametrize("rule", ["median_probs", "copeland", "weighted_mean"])
def test_rules_of_every_family_make_a_row(rule):
    small = make(rules=(rule,), num_val=60, num_test=40, num_classes=4, transfers=())
    found = row({"rows": analysis.plain(scoring.rows(small))}, rule)
    assert (found["nll"] is None) == (rule in rules.RANK_RULES)
    assert 0.5 < found["accuracy"]["mean"] <= 1


def test_a_rule_that_cannot_fuse_these_teachers_has_a_note_and_no_row():
    """Two teachers are too few to trim, and a weight cannot follow from accuracies that are all 0."""
    rules = ("mean_probs", "trimmed_mean_probs", "weighted_mean", "borda")
    small = make(rules=rules, num_teachers=2, num_val=60, num_test=40, num_classes=4, transfers=())
    wrong = np.argmin(lookup.teacher_logits(small, "val").max(axis=0), axis=-1).astype(np.int32)
    found = document.build(dataclasses.replace(small, val_labels=wrong))
    assert [one["rule"] for one in found["rows"] if one["rule"]] == ["mean_probs", "borda"]
    notes = " ".join(found["notes"])
    assert "for the 2 teachers there are: fusion rule trimmed_mean_probs: needs 3 members" in notes
    assert "fusion rule weighted_mean: no member is right on any validation example" in notes
    assert "weighted_mean: fitted on" not in notes
    fewer = document.build(dataclasses.replace(small, rules=("trimmed_mean_probs",)))
    assert [one["role"] for one in fewer["rows"]] == ["teacher"]


def test_fitted_rules_see_validation_labels_only(made):
    shuffled = dataclasses.replace(made, test_labels=np.roll(made.test_labels, 1))
    a, b = (lookup.fused(one, "weighted_mean")["test"] for one in (made, shuffled))
    np.testing.assert_array_equal(a, b)
    other = dataclasses.replace(made, val_labels=np.roll(made.val_labels, 1))
    assert not np.array_equal(a, lookup.fused(other, "weighted_mean")["test"])


def test_teachers_of_several_architectures_are_fused_across(made):
    wider = make(seed=0, num_teachers=5).groups[0]
    halves = [
        dataclasses.replace(
            wider,
            key=f"teachers/{name}",
            name=name,
            architecture=name,
            members=wider.members[part],
            val=wider.val[part],
            test=wider.test[part],
        )
        for name, part in (("mlp", slice(0, 2)), ("cnn", slice(2, 5)))
    ]
    split = document.build(dataclasses.replace(made, groups=(*halves, *made.groups[1:])))
    whole = document.build(made)
    assert row(split, "mean_probs")["nll"] == row(whole, "mean_probs")["nll"]
    assert row(split, "mean_probs")["architecture"] == "mlp + cnn"
    assert row(split, "cnn")["n"] == 3
    assert split["diversity"]["members"][:3] == ["mlp teacher 0", "mlp teacher 1", "cnn teacher 2"]


def test_comparisons_are_the_fixed_list(built):
    modes = ["output_avg", "loss_avg", "mimic_all", "vote", "supernet"]
    within = [(mode, "baseline") for mode in modes] + [("mimic_all", "control")]
    within += [(mode, "output_avg") for mode in modes[1:]]
    for metric in ("accuracy", "nll"):
        for family in ("labelled", "unlabelled"):
            own = [c for c in built["comparisons"] if (c["family"], c["metric"]) == (family, metric)]
            assert [(c["a"], c["b"]) for c in own] == within
            assert {c["a_transfer"] for c in own} | {c["b_transfer"] for c in own} == {family}
        across = [
            c
            for c in built["comparisons"]
            if (c["family"], c["metric"]) == (comparisons.CROSS_FAMILY, metric)
        ]
        assert [(c["a"], c["a_transfer"], c["b"], c["b_transfer"]) for c in across] == [
            (mode, "unlabelled", "baseline", "labelled") for mode in modes
        ]


def test_a_comparison_by_hand_and_holm_within_its_family(built):
    own = [c for c in built["comparisons"] if (c["family"], c["metric"]) == ("unlabelled", "nll")]
    a, b = (row(built, name, "unlabelled")["nll"]["values"] for name in ("mimic_all", "control"))
    one = next(c for c in own if (c["a"], c["b"]) == ("mimic_all", "control"))
    assert one["p_value"] == pytest.approx(intervals.paired_t(a, b)["p_value"])
    assert one["mean_difference"] == pytest.approx(np.mean(a) - np.mean(b))
    assert [c["p_holm"] for c in own] == pytest.approx(reference.holm([c["p_value"] for c in own]))


def test_pairs_go_by_the_name_of_the_seed(made):
    """Members in another order, or missing, change nothing but the number of pairs."""
    group = lookup.find(made, "labelled", role="baseline")
    order = [4, 2, 0, 1]
    shuffled = replaced(
        made,
        "baseline",
        "labelled",
        members=tuple(group.members[i] for i in order),
        val=group.val[order],
        test=group.test[order],
    )
    found = comparisons.compare(shuffled)[0]
    a = [reference.accuracy(one.tolist(), made.test_labels) for one in made.groups[1].test]
    b = [reference.accuracy(one.tolist(), made.test_labels) for one in group.test]
    assert (found["a"], found["b"], found["n"]) == ("output_avg", "baseline", 4)
    kept = [0, 1, 2, 4]
    assert found["mean_difference"] == pytest.approx(np.mean([a[i] - b[i] for i in kept]))


def without_seeds(made, name, transfer, left):
    """The run with those seeds alone in the row of that name."""

    def cut(group):
        at = [group.members.index(f"seed {seed}") for seed in left]
        arrays = {part: getattr(group, part)[at] for part in ("val", "test")}
        common = None if group.common_test is None else group.common_test[at]
        members = tuple(group.members[i] for i in at)
        return dataclasses.replace(group, members=members, common_test=common, **arrays)

    groups = (cut(one) if (one.name, one.transfer) == (name, transfer) else one for one in made.groups)
    return dataclasses.replace(made, groups=tuple(groups))


@pytest.mark.parametrize("always_valid", [False, True])
def test_rows_of_no_common_seed_are_not_compared_and_a_note_says_so(made, built, always_valid):
    """Of output_avg the first seeds are left, of the baseline the last ones: there is no pair."""
    apart = without_seeds(made, "output_avg", "labelled", (0, 1, 2))
    apart = without_seeds(apart, "baseline", "labelled", (3, 4))
    report = document.build(dataclasses.replace(apart, always_valid=always_valid))
    before, now = (
        [(c["a"], c["a_transfer"], c["b"], c["b_transfer"], c["metric"]) for c in one["comparisons"]]
        for one in (built, report)
    )
    lacking = [("output_avg", "labelled", "baseline", "labelled", metric) for metric in ("accuracy", "nll")]
    assert [one for one in before if one not in now] == lacking and set(now) < set(before)
    assert all(c["mean_difference"] is not None and c["n"] for c in report["comparisons"])
    (note,) = (note for note in report["notes"] if note.startswith("Not compared, "))
    assert note == ("Not compared, for no seed is finite in both rows: output_avg - baseline (labelled).")
    assert row(report, "output_avg", "labelled")["verdict"] is None
    assert not any(note.startswith("Not compared, ") for note in built["notes"])
    left = comparisons.undecided(dataclasses.replace(apart, always_valid=always_valid))
    assert {"a": "output_avg", "b": "baseline"} in left  # which further seeds may decide


def test_gap_share(built):
    gap = next(gap for gap in built["gaps"] if gap["transfer"] == "unlabelled")
    ensemble, baseline, student = (
        row(built, name, transfer)["accuracy"]["mean"]
        for name, transfer in (("mean_probs", ""), ("baseline", "unlabelled"), ("mimic_all", "unlabelled"))
    )
    assert gap["larger_than_noise"] and gap["difference"] == pytest.approx(ensemble - baseline)
    expected = (student - baseline) / (ensemble - baseline)
    assert row(built, "mimic_all", "unlabelled")["gap_share"] == pytest.approx(expected)
    assert row(built, "baseline", "unlabelled")["gap_share"] is row(built, "mean_probs")["gap_share"] is None


def test_no_gap_share_and_no_winner_inside_the_noise():
    built = document.build(make(students=NOTHING_GAINED, num_teachers=1, transfers=("unlabelled",), rules=()))
    assert {one["gap_share"] for one in built["rows"]} == {None}
    assert "Gap shares (unlabelled) are left out" in " ".join(built["notes"])
    assert {one["verdict"] for one in built["comparisons"]} <= {"equivalent", "undecided"}
    text = " ".join(built["findings"])
    assert "Undecided: " in text and "would have been seen" in text
    assert " beats " not in text and "is worse than" not in text


# --- verdicts -----------------------------------------------------------------------------------------


def slow_verdict(a, b, p_holm, margin):
    """By scipy's tests and its intervals, of accuracies in pairs."""
    difference = np.subtract(a, b)
    test = stats.ttest_1samp(difference, 0.0)
    small, whole = (
        max(abs(bound) for bound in test.confidence_interval(level)) < margin for level in (0.9, 0.95)
    )
    if p_holm < 0.05 and not whole:
        return "better" if difference.mean() > 0 else "worse"
    return "equivalent" if small else "undecided"


@pytest.mark.parametrize("margin", [0.005, 0.02, 0.2])
def test_the_verdict_of_a_row_is_that_of_its_accuracy_against_its_baseline(made, margin):
    built = analysis.numbers(dataclasses.replace(made, margin=margin))
    assert built["margin"] == margin
    said = []
    for one in built["rows"]:
        if one["role"] == "student":
            against = row(built, "baseline", one["transfer"])
            (p_holm,) = (
                c["p_holm"]
                for c in built["comparisons"]
                if (c["a"], c["b"], c["metric"], c["family"])
                == (one["name"], "baseline", "accuracy", one["transfer"])
            )
            values = one["accuracy"]["values"], against["accuracy"]["values"]
            assert one["verdict"] == slow_verdict(*values, p_holm, margin)
            said.append(one["verdict"])
        elif one["rule"] != "mean_probs":
            assert one["verdict"] is None
    assert "better" in said or margin == 0.2
    assert ("equivalent" in said) == (margin > 0.005)


def test_one_seed_is_undecided_whatever_it_reaches(made):
    built = document.build(make(num_seeds=1, rules=("mean_probs",)))
    assert {one["verdict"] for one in built["rows"] if one["role"] == "student"} == {"undecided"}
    assert row(built, "mean_probs")["verdict"] == "undecided"
    assert {one["p_equivalence"] for one in built["comparisons"]} == {None}


def test_nll_is_better_where_it_is_lower_and_has_no_margin(built):
    on_nll = [one for one in built["comparisons"] if one["metric"] == "nll"]
    assert {one["p_equivalence"] for one in on_nll} == {None}
    for one in on_nll:
        sign = "better" if one["mean_difference"] < 0 else "worse"
        assert one["verdict"] == (sign if one["p_holm"] < 0.05 else "undecided")
    assert {"better", "worse"} <= {one["verdict"] for one in on_nll}


@pytest.mark.parametrize(
    "interval, num_seeds, said",
    [
        ((0.001, 0.02), 5, "better"),
        ((-0.02, -0.001), 5, "worse"),
        ((-0.004, 0.004), 5, "equivalent"),
        ((0.001, 0.004), 5, "equivalent"),
        ((-0.001, 0.02), 5, "undecided"),
        ((0.01, 0.02), 1, "undecided"),
    ],
)
def test_the_ensemble_is_judged_by_its_bootstrap_interval(interval, num_seeds, said):
    assert comparisons._verdict_of_gap(interval, 0.005, num_seeds) == said


def test_the_ensemble_has_the_verdict_of_every_transfer_set_or_none(built):
    one = row(built, "mean_probs")
    assert [gap["verdict"] for gap in built["gaps"]] == ["better", "better"] and one["verdict"] == "better"
    worse = [{"verdict": "better"}, {"verdict": "worse"}]
    assert comparisons.verdict_of(one, [], worse) == "undecided"
    assert comparisons.verdict_of(one, [], []) is None


def test_what_is_equivalent_is_said_to_be_and_within_which_margin(made):
    built = document.build(dataclasses.replace(made, margin=0.2))
    (text,) = [text for text in built["findings"] if text.startswith("Against the baseline (labelled)")]
    one = next(c for c in built["comparisons"] if (c["a"], c["b"]) == ("supernet", "baseline"))
    assert one["verdict"] == "equivalent"
    low, high = (100 * bound for bound in one["ci95"])
    listed = f"supernet {100 * one['mean_difference']:+.2f} points [{low:.2f}, {high:.2f}]"
    assert "Equivalent, closer than 20 points: " in text and listed in text
    assert " beats " not in text
    gap = next(text for text in built["findings"] if text.startswith("What there is to gain (labelled)"))
    assert "are equivalent, closer than 20 points: +" in gap
    assert "a true difference closer than 20 points (report.margin)" in " ".join(built["notes"])
    assert "; equivalent: output_avg, " in findings.in_one_line(built)
    assert "equivalent: closer than 20 points" in tables.caption(built)


def test_chosen_student_is_chosen_on_validation_and_never_a_control(made):
    best_control = replaced(
        made, "control", "unlabelled", val=100 * np.eye(10)[made.val_labels][None].repeat(5, 0)
    )
    group, member = lookup.chosen_student(best_control)
    assert (group.name, group.transfer) == ("mimic_all", "unlabelled")
    nlls = [reference.nll(one, made.val_labels) for one in group.val]
    assert member == int(np.argmin(nlls))
    broken = lookup.find(made, "unlabelled", name="mimic_all")
    with_nan = dataclasses.replace(broken, val=np.full_like(broken.val, np.nan))
    groups = tuple(with_nan if one is broken else one for one in made.groups)
    assert lookup.chosen_student(dataclasses.replace(made, groups=groups))[0].key != broken.key


def told(predictions):
    """What report.json says of the network to deploy, and the last sentence of the findings."""
    analysed = analysis.numbers(predictions)
    return analysed["deploy"], findings.summarise(analysed)[-1]


def with_a_perfect_member(made, name, transfer, member, rest=1.0):
    """The run with one network that is always right on validation, its siblings' logits times `rest`."""
    group = lookup.find(made, transfer, name=name)
    val = rest * group.val
    val[member] = 100 * np.eye(10, dtype=np.float32)[made.val_labels]
    groups = tuple(dataclasses.replace(one, val=val) if one is group else one for one in made.groups)
    return dataclasses.replace(made, groups=groups), group


@pytest.mark.parametrize(
    "name, transfer, role",
    [
        ("baseline", "labelled", "baseline"),
        ("control", "unlabelled", "control"),
        ("mlp", "", "teacher"),
        ("vote", "labelled", "student"),
    ],
)
def test_the_network_to_deploy_is_the_best_of_all_single_ones_whatever_it_is(made, name, transfer, role):
    """Also where its siblings are so bad that the mean of its row is the worst of all."""
    best, group = with_a_perfect_member(made, name, transfer, 3, rest=-1.0)
    deploy, advice = told(best)
    assert (deploy["name"], deploy["transfer"], deploy["role"]) == (name, transfer, role)
    assert deploy["member"] == group.members[3] and deploy["val_nll"] == pytest.approx(0, abs=1e-6)
    every = [(one, logits) for one in best.groups for logits in one.val]
    assert deploy["num_networks"] == len(every) == 5 + 2 * 7 * 5
    for role_, one in deploy["best_of_role"].items():
        nlls = [reference.nll(logits, made.val_labels) for of, logits in every if of.role == role_]
        assert one["val_nll"] == pytest.approx(min(nlls), abs=1e-6)
    place = f"{name} ({transfer}, seed 3)" if transfer else f"{name} (teacher 3)"
    assert advice.startswith(f"What to deploy: Of all 75 single networks {place} with 0.000 (100.00 %) has")
    last = advice.rpartition(". Deploy ")[2]
    assert last.removeprefix("the ").startswith(f"{place}, by validation alone; on test it has ")


def test_the_advice_says_what_the_others_have_and_what_the_ensemble_costs(made):
    deploy, advice = told(with_a_perfect_member(made, "baseline", "labelled", 0)[0])
    for role in ("student", "teacher", "control"):
        one = deploy["best_of_role"][role]
        assert f"the best {role} is {one['name']} (" in advice
        assert f"with {one['val_nll']:.3f} ({100 * one['val_accuracy']:.2f} %)" in advice
    logits = lookup.fused(made, "mean_probs")["val"]
    nll, accuracy = (getattr(reference, name)(logits, made.val_labels) for name in ("nll", "accuracy"))
    said = f"{nll:.3f} ({100 * accuracy:.2f} %)"
    # By hand: five teachers of 9 000 parameters, 18 000 FLOPs and 0.11 ms, and 9 000, 18 000 and 0.1 ms.
    price = "5.0 times the parameters, 5.0 times the FLOPs, 5.5 times the time an image of baseline (labelled"
    assert f"All 5 teachers fused by mean_probs have {said}, for {price}, seed 0)." in advice
    alone = told(make(num_teachers=1, transfers=(), rules=("mean_probs",)))[1]
    assert "fused" not in alone and "Deploy mlp (teacher 0), by validation alone" in alone


def test_what_export_chooses_is_advised_and_what_is_better_is_said(made):
    best, _ = with_a_perfect_member(made, "baseline", "labelled", 3)
    student, member = lookup.chosen_student(best)
    place = f"{student.name} ({student.transfer}, {student.members[member]})"
    deploy, advice = told(dataclasses.replace(best, choose="student"))
    assert (deploy["name"], deploy["member"]) == (student.name, student.members[member])
    assert (
        f"Deploy {place}, as export.choose = student asks, though baseline (labelled, seed 3) is better on "
        "validation; on test" in advice
    )
    deploy, advice = told(dataclasses.replace(best, choose="vote"))
    vote = [group for group in best.groups if group.name == "vote"]
    assert deploy["name"] == "vote"
    assert deploy["val_nll"] == pytest.approx(
        min(reference.nll(logits, made.val_labels) for group in vote for logits in group.val)
    )
    deploy, advice = told(dataclasses.replace(best, choose="lost"))
    assert (
        deploy["name"] == "baseline" and "Of lost, which export.choose asks for, no network is left" in advice
    )


def test_averages_and_specialists_are_no_single_networks(made):
    best, group = with_a_perfect_member(made, "baseline", "labelled", 0)
    for fields in ({"role": "average"}, {"architecture": "specialist mlp"}):
        groups = tuple(
            dataclasses.replace(one, **fields) if one.key == group.key else one for one in best.groups
        )
        deploy, _ = told(dataclasses.replace(best, groups=groups))
        assert (deploy["name"], deploy["num_networks"]) == ("mimic_all", 70)


def test_a_report_ends_with_the_advice(run, capsys):
    assert document.main([str(run)]) == 0
    advice = json.loads((run / "report.json").read_text())["findings"][-1]
    assert advice.startswith("What to deploy: ") and advice in (run / "report.md").read_text()
    shown = " ".join(capsys.readouterr().out.split())
    text = " ".join(re.sub("<[^>]+>", " ", (run / "report.html").read_text()).split())
    for whole in (shown, text, " ".join((run / "report.md").read_text().split())):
        assert whole.endswith(advice)


def test_a_member_far_from_the_others_is_named_beside_its_row(made):
    group = lookup.find(made, "labelled", name="baseline")
    right = np.eye(10, dtype=np.float32)[made.val_labels]
    val = np.repeat(right[None], len(group.members), 0)
    val[1, : len(right) // 2] = np.roll(right, 1, axis=1)[: len(right) // 2]  # right on half of them
    built = document.build(replaced(made, "baseline", "labelled", val=val))
    found = row(built, "baseline", "labelled")
    half = 1 - (len(right) // 2) / len(right)
    assert found["apart"] == [
        {"member": group.members[1], "val_accuracy": pytest.approx(half), "siblings": 1.0}
    ]
    assert not any(other["apart"] for other in built["rows"] if other["name"] != "baseline")
    (told,) = [text for text in built["findings"] if text.startswith("Far from its siblings")]
    assert f"baseline (labelled, {group.members[1]}) ends at {100 * half:.2f} % on validation, where" in told
    cells = [cells[0] for _, rows in tables.main_sections(built) for cells in rows]
    assert any(cell.startswith("baseline †") for cell in cells)


@pytest.mark.parametrize("low, opens", [(True, "Collapsed cohort"), (False, "Far from its siblings")])
def test_a_cohort_that_ends_far_below_its_other_seeds_has_collapsed(made, low, opens):
    """By the rule of members that are far from their siblings; one that is far above has not."""
    group = lookup.find(made, "labelled", name="output_avg")
    right = np.eye(10, dtype=np.float32)[made.val_labels]
    wrong = np.roll(right, 1, axis=1)
    val = np.repeat((right if low else wrong)[None], len(group.members), 0)
    val[1] = wrong if low else right
    cohort = dataclasses.replace(group, val=val, num_in_cohort=3)
    groups = tuple(cohort if one is group else one for one in made.groups)
    built = document.build(dataclasses.replace(made, groups=groups))
    assert row(built, "output_avg", "labelled")["num_in_cohort"] == 3
    (told,) = [text for text in built["findings"] if "on validation, where the median" in text]
    ends, others = (0.0, 100.0) if low else (100.0, 0.0)
    said = (
        f"{opens}.*output_avg .labelled, {group.members[1]}. ends at {ends:.2f} %.* others is {others:.2f} %"
    )
    assert re.match(said, told)


def test_homogenisation_is_drawn_where_any_is_told(made):
    records = curves(made, 2)
    assert "homogenisation" not in document.figures(made, document.build(made), records)
    one = next(record for record in records if record["member"].startswith("output_avg a="))
    names = (distances.TO_PEERS, distances.TO_OWN_TEACHER)
    told = [{**one, "name": name, "epoch": e, "value": 0.5 / e} for name in names for e in (1, 2)]
    placed = document._lines(made, [*records, *told])
    figure = plots.curves(placed, plots.HOMOGENISATION)
    drawn = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_ylabel() for axes in drawn] == ["distance to the peers", "distance to its own teacher"]
    for axes in drawn:
        (line,) = axes.get_lines()
        assert line.get_label() == "output_avg" and line.get_ydata().tolist() == [0.5, 0.25]


def test_a_row_whose_members_lie_close_names_nobody():
    """By hand: median and deviation are those of the siblings."""
    group = SimpleNamespace(members=("a", "b", "c", "d"))
    assert scoring._apart(group, [0.61, 0.62, 0.60, 0.615], 1000) == []
    assert scoring._apart(group, [0.61, 0.51], 1000) == []  # of two nobody knows which
    # 0.51 from 0.615, with a deviation of 0.005 and so 0.037, and four errors of 0.0616.
    (found,) = scoring._apart(group, [0.61, 0.62, 0.51, 0.615], 1000)
    assert found == {"member": "c", "val_accuracy": 0.51, "siblings": pytest.approx(0.615)}
    assert scoring._apart(group, [0.61, 0.62, 0.51, 0.615], 50) == []  # four errors are .28
    # Of three: 0.105 from 0.615, five deviations of 0.01 are 0.0741; from the median of all it is 0.095, and
    # its own distance makes them 0.148. The others lie 0.04 and 0.06 from medians with deviations of 0.05.
    (found,) = scoring._apart(group, [0.605, 0.51, 0.625], 10_000)
    assert found == {"member": "b", "val_accuracy": 0.51, "siblings": pytest.approx(0.615)}
    (found,) = scoring._apart(
        group, [0.1, 0.1, 0.6], 10_000
    )  # who learns where the others do not is named too
    assert found["member"] == "c"


def test_a_report_opens_with_one_sentence_and_one_picture(made, tmp_path):
    predictions.save(tmp_path / "predictions.npz", made)
    built = document.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    sentence, picture = (page.index(mark) for mark in ('<p class="advice">Deploy ', '<figure class="first">'))
    table, folded = page.index('<table class="rows">'), page.index("<details")
    assert page.index("<h1>") < sentence < picture < table < folded < page.index("What this run shows")
    open_to_all = re.sub("<details.*?</details>", "", page, flags=re.DOTALL)
    assert not any(html.escape(text) in open_to_all for text in (*built["findings"], *built["notes"]))
    assert "<th>verdict</th>" in open_to_all and '<td class="better">better</td>' in open_to_all
    assert findings.advice(built).startswith("Deploy ") and built["findings"][-1].endswith(
        findings.advice(built)
    )
    without = {**built, "findings": ["Teachers: one."], "deploy": None}
    assert findings.advice(without) == "" and "## Advice" not in document._markdown(without, ())
    assert "## Advice" in document._markdown(built, ())


def test_in_brief_there_are_teachers_one_ensemble_and_the_last_transfer_set(built):
    header, cells = tables.brief(built)
    last = [one["name"] for one in built["rows"] if one["transfer"] == built["rows"][-1]["transfer"]]
    assert [line[0].split(" ")[0] for line in cells] == ["mlp", "mean_probs", *last]
    assert all(len(line) == len(header) for line in cells) and cells[1][1].startswith("all ")


def test_names_that_a_reader_would_obey_are_shown_and_not_obeyed(made, tmp_path):
    name = "<script>alert(1)</script>|x"
    odd = dataclasses.replace(made, dataset="<b>data</b>", class_names=(name, *made.class_names[1:]))
    predictions.save(tmp_path / "predictions.npz", odd)
    document.write(tmp_path)
    text, page = ((tmp_path / f"report.{kind}").read_text() for kind in ("md", "html"))
    assert "<script>alert" not in text + page and "<b>data" not in text + page
    assert "&lt;script>alert(1)&lt;/script>\\|x" in text


NAMES = ("\x1b[31mred\x1b[0m\n# heading", "[/bold] [a](javascript:b) c\\|d `e` $\\bad$ &lt; 犬")


def test_names_stay_names_in_every_form_of_a_report(tmp_path, capsys):
    """Control characters, tags of rich, formulas and Markdown in the names of classes."""
    made = make(num_classes=2, transfers=("labelled",), num_val=60, num_test=60)
    odd = dataclasses.replace(made, class_names=NAMES, positive=NAMES[1], notes=(NAMES[0],))
    predictions.save(tmp_path / "predictions.npz", odd)
    assert document.main([str(tmp_path)]) == 0  # the title of a plot holds one, too
    printed = capsys.readouterr().out
    assert "Detection of [/bold] [a](javascript:b) c\\|d `e` $\\bad$ &lt; 犬" in printed
    text, page = ((tmp_path / f"report.{kind}").read_text() for kind in ("md", "html"))
    assert "\x1b" not in printed + text + page
    assert r"| \\x1b[31mred\\x1b[0m\\n# heading | " in text and r"\x1b[31mred\x1b[0m\n# heading" in page
    (of_class,) = [line for line in text.splitlines() if line.startswith("| [/bold]")]
    # By hand: the backslash and the column are two escapes, what looks like a link and an entity is none.
    assert of_class.startswith(r"| [/bold] [a]\(javascript:b) c\\\|d \`e\` $\\bad$ &amp;lt; 犬 | ")


def test_a_table_of_the_terminal_obeys_no_name_and_is_as_wide_as_they_are(capsys):
    console = Console(width=100, file=io.StringIO())
    console.print(rendering.render(["", "[/x]"], [["[red]a", "\x1b]0;title\x07"], ["犬の写真", "b\nc"]]))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert [line.split() for line in lines if line and "─" not in line] == [
        ["[/x]"],
        ["[red]a", r"\x1b]0;title\x07"],
        ["犬の写真", r"b\nc"],
    ]


def test_gradient_difference_is_rounding_and_would_notice_another_gradient(made, monkeypatch):
    students = lookup.find(made, "labelled", name="output_avg")
    assert caveats.gradient_difference(made, students) < 1e-6
    monkeypatch.setattr(modes, "output_avg", modes.logit_avg)
    assert caveats.gradient_difference(made, students) > 1e-3


def test_students_whose_targets_are_fitted_on_validation_are_named():
    students = {name: ("student", 1.0) for name in ("fused:median_probs", "fused:evolved_mean", "output_avg")}
    found = make(students=students, transfers=("labelled",), num_seeds=2)
    (note,) = caveats._fitted(found, ("mean_probs",))
    assert note.startswith("fused:evolved_mean: what is matched is fitted on the validation images")


# --- words --------------------------------------------------------------------------------------------


def test_findings_say_what_the_numbers_say(built):
    one = next(
        c
        for c in built["comparisons"]
        if (c["a"], c["b"], c["family"], c["metric"]) == ("mimic_all", "control", "unlabelled", "accuracy")
    )
    assert one["verdict"] == "better"
    paragraph = next(
        text for text in built["findings"] if text.startswith("Against the control (unlabelled)")
    )
    assert f"mimic_all beats the control, +{100 * one['mean_difference']:.2f} points [" in paragraph


def test_better_or_worse_knows_the_direction_of_each_metric():
    base = {"p_holm": 0.01, "mean_difference": 0.1}
    assert wording.better_or_worse(base | {"metric": "accuracy"}) == "better"
    assert wording.better_or_worse(base | {"metric": "nll"}) == "worse"
    assert wording.better_or_worse(base | {"metric": "nll", "p_holm": 0.05}) == ""


def test_notes_name_the_conditions(built):
    text = "\n".join(built["notes"])
    for words in (
        "A note of the run.",
        "students see 100 labelled images.",
        "1,100 whose labels are hidden",
        "conditional on this set of teachers, this data order and this split",
        "of 2 grid points",
        "equal gradients",
        "supernet: the fused network is fitted on the labelled training images",
    ):
        assert words in text
    assert "equal gradients" not in " ".join(document.build(make(students=NOTHING_GAINED, rules=()))["notes"])


# --- files and command line ---------------------------------------------------------------------------


@pytest.fixture
def run(made, tmp_path):
    predictions.save(tmp_path / "predictions.npz", made)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in curves(made, 4)))
    (tmp_path / "config.json").write_text('{"config": {"note": "<script>alert(1)</script>"}}')
    return tmp_path


def test_write(run, built, monkeypatch):
    written, write = [], document.write_atomically
    monkeypatch.setattr(
        document, "write_atomically", lambda path, data: (written.append(path.name), write(path, data))
    )
    (run / "plots").mkdir(exist_ok=True)
    (run / "plots" / "kept.png").write_bytes(b"of an earlier report")
    assert document.write(run) == built
    assert written[-1] == "report.json"  # where it stands, the run is finished
    assert json.loads((run / "report.json").read_text()) == built
    assert (run / "results.csv").read_bytes() == document.as_csv({"": built})
    page = (run / "report.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)  # self-contained
    plots = sorted(path.name for path in (run / "plots").iterdir())
    # Of ten classes none is detected, no other images were asked about, there are none to show, and nobody
    # learned with others.
    absent = {"roc", "kept", "homogenisation", document.MISTAKES}
    assert plots == sorted(f"{name}.png" for name in document.PLOTS.keys() - absent)
    images = re.findall(r"base64,([^\"]+)", page)
    assert {base64.b64decode(image) for image in images} == {
        (run / "plots" / name).read_bytes() for name in plots
    }
    text = (run / "report.md").read_text()
    assert all(f"](plots/{name})" in text for name in plots)
    assert all(finding in text for finding in built["findings"])
    assert not list(run.rglob("*.part"))


def test_results_as_csv_are_the_rows_of_the_report(built):
    text = document.as_csv({"": built}).decode()
    assert "\r" not in text and text.endswith("\n")
    read = list(csv.DictReader(io.StringIO(text)))
    assert len(read) == len(built["rows"]) and list(read[0]) == list(document.RESULTS)
    for line, one in zip(read, built["rows"]):
        number = {name: None if cell == "" else float(cell) for name, cell in line.items() if name in NUMBERS}
        for name in ("accuracy", "nll", "ece", "brier"):
            assert number[name] == (one[name] and one[name]["mean"])
        assert [number["accuracy_low"], number["accuracy_high"]] == one["accuracy"]["ci95"]
        assert number["latency_ms"] == one["latency_ms"]["1"]
        for name in ("n", "params", "flops", "gap_share", "alpha", "temperature"):
            assert number[name] == one[name]
        assert [line[name] for name in ("role", "name", "transfer")] == [
            one[name] for name in ("role", "name", "transfer")
        ]
        assert line["verdict"] == (one["verdict"] or "")
    assert {line["verdict"] for line in read} >= {"better", "undecided", ""}


def test_results_as_csv_leave_empty_what_is_not_there_and_obey_no_name(built):
    one = row(built, "vote", "labelled")
    alone = {**one, "name": 'a,"b"\nc', "accuracy": {**one["accuracy"], "ci95": None}}
    text = document.as_csv({"red\x1b": {"rows": [alone]}}).decode()
    (read,) = csv.DictReader(io.StringIO(text, newline=""))
    assert (read["run"], read["name"]) == ("red\\x1b", 'a,"b"\nc')
    assert (read["accuracy_low"], read["accuracy_high"]) == ("", "")


def test_learning_curves_show_the_chosen_grid_point_only(made):
    placed = document._lines(made, curves(made, 2))
    assert {(one["panel"], one["line"]) for one in placed} == {
        ("teachers", "mlp"),
        *((f"students, {group.transfer}", group.name) for group in made.groups[1:]),
    }
    assert len(placed) == 2 * 2 * 5 * len(made.groups)  # epochs, names, members


def test_without_logs_or_configuration(run):
    (run / "metrics.jsonl").unlink()
    (run / "config.json").unlink()
    document.write(run)
    assert not (run / "plots" / "learning_curves.png").exists()
    assert "config.json" not in (run / "report.html").read_text()


def test_table_fits_100_columns(built):
    console = Console(width=100, file=io.StringIO())
    console.print(tables.terminal(built))
    lines = console.file.getvalue().splitlines()
    shown = [(line.split()[0], means[0]) for line in lines if (means := re.findall(r"([\d.]+) \[\d", line))]
    assert shown == [(one["name"], f"{100 * one['accuracy']['mean']:.2f}") for one in built["rows"]]
    assert "…" not in console.file.getvalue()
    assert sum(line.startswith("mimic_all *") for line in lines) == 1


def test_command_line_with_one_run(run, tmp_path_factory, capsys):
    text = tmp_path_factory.mktemp("text") / "README.md"
    text.write_text(f"before\n<!-- report {run} -->\nold\n<!-- end -->\nafter")
    assert document.main([str(run), "--into", str(text)]) == 0
    printed = capsys.readouterr().out
    assert "What this run shows" in printed and "mimic_all" in printed
    assert (run / "report.json").exists()
    written = text.read_text()
    assert "| mimic_all" in written and "\nold\n" not in written and written.endswith("<!-- end -->\nafter")
    links = re.findall(r"!\[.+\]\((.+)\)", written)
    assert links == [
        f"plots/{run.name}/{name}.png" for name in ("cost", "rows")
    ]  # ten classes have no curve of detection
    assert (text.parent / links[1]).read_bytes() == (run / "plots" / "rows.png").read_bytes()


def test_command_line_with_several_runs(run, made, tmp_path_factory, capsys):
    other = tmp_path_factory.mktemp("other")
    predictions.save(other / "predictions.npz", make(num_seeds=4, transfers=("labelled",)))
    out, text = tmp_path_factory.mktemp("out") / "merged", tmp_path_factory.mktemp("text") / "README.md"
    text.write_text(f"# before\n<!-- report {run} {other} -->\nold\n<!-- end -->\nafter")
    assert document.main([str(run), str(other), "--out", str(out), "--into", str(text)]) == 0
    printed = capsys.readouterr().out
    assert "The runs, and what each shows" in printed and "mean_logits" in printed
    assert not (run / "report.json").exists()
    merged = json.loads((out / "report.json").read_text())["runs"]
    assert list(merged) == [run.name, other.name] and "rows" in merged[run.name]
    lines = list(csv.DictReader(io.StringIO((out / "results.csv").read_text())))
    assert list(lines[0]) == ["run", *document.RESULTS]
    assert [(line["run"], line["name"], line["transfer"], float(line["accuracy"])) for line in lines] == [
        (name, one["name"], one["transfer"], one["accuracy"]["mean"])
        for name, report in merged.items()
        for one in report["rows"]
    ]
    written = (out / "report.md").read_text()
    assert text.read_text() == (
        f"# before\n<!-- report {run} {other} -->\n\n{written.strip()}\n\n<!-- end -->\nafter"
    )
    assert written.count("\n|---|") == 1  # one table
    (link,) = re.findall(r"!\[.+\]\((.+)\)", written)
    assert link.endswith("/training.png")
    assert (out / link).read_bytes() == (text.parent / link).read_bytes()
    for name, sizes in ((run.name, "100 labelled, 1,100 unlabelled"), (other.name, "100 labelled")):
        (conditions,) = re.findall(rf"- {name}: digits, (.*)", written)
        assert conditions.startswith(sizes) and "teachers: 5 mlp" in conditions
        assert "alpha 0, 0.25" in conditions and ("4 seeds" in conditions) == (name == other.name)


def test_ensembles_are_drawn_against_what_their_training_took(built):
    def another(train_flops, **differs):
        rows = [{**row, "train_flops": train_flops} for row in built["rows"]]
        return {**built, "rows": rows, **differs}

    alone = {"disagreement": {"matrix": [[0.0]], "mean": None}}
    reports = {"a": built, "b": another(1e12), "lone": another(1e12, diversity=alone)}
    reports |= {"lent": another(None), "uncounted": another(0.0)}
    points = document.ensembles(reports)
    costs = {one["name"]: one["train_flops"] for one in points}
    assert costs == {"a": 5 * 5.4e9, "b": 1e12, "lone": 1e12}
    above, below = plots.against_training(points).axes
    dots = {line.get_label(): line for line in above.get_lines() if not line.get_label().startswith("_")}
    assert list(dots) == ["a", "b", "lone"]
    for one in points:
        (at,), (accuracy,) = dots[one["name"]].get_data()
        assert accuracy == 100 * one["accuracy"]["mean"] and abs(np.log10(at / one["train_flops"])) < 0.1
    assert dots["b"].get_xdata()[0] < dots["lone"].get_xdata()[0]  # side by side
    pairs = np.array(built["diversity"]["disagreement"]["matrix"])[np.triu_indices(5, k=1)]
    differ = [line.get_ydata()[0] for line in below.get_lines()]
    np.testing.assert_allclose(differ, 2 * [100 * pairs.mean()], rtol=1e-9)  # one teacher differs from nobody
    assert plots.against_training(points[:1]) is None
    for costs in ((2.3e8, 3.2e8, 3.5e8), (1e8, 1e8, 1e8), (3e9, 4e9, 5e13)):
        figure = plots.against_training(
            [{**one, "train_flops": cost} for one, cost in zip(points, costs, strict=True)]
        )
        figure.draw_without_rendering()
        axis, (low, high) = figure.axes[1].xaxis, figure.axes[1].get_xlim()
        ticks = [label for label in axis.get_ticklabels() if low <= label.get_position()[0] <= high]
        boxes = [label.get_window_extent() for label in ticks if label.get_text()]
        assert len(boxes) >= 2 and not any(a.x1 > b.x0 for a, b in zip(boxes, boxes[1:]))
    other_test = another(1e12, sizes={**built["sizes"], "test": 1})
    assert document.ensembles({**reports, "other": other_test}) == []
    other_labels = another(1e12, test_labels_sha256="of as many images")
    assert document.ensembles({**reports, "other": other_labels}) == []


def test_the_merged_table_has_a_row_for_what_runs_share_and_columns_for_each(built):
    second = document.build(make(seed=5, transfers=("labelled",), students=NOTHING_GAINED))
    header, sections = side_by_side.merge({"a": built, "b": second})
    assert header == ["", "a, %", "NLL", "gap", "b, %", "NLL", "gap"]
    cells = {(title, row[0]): row[1:] for title, rows in sections for row in rows}
    assert len(cells) == len(built["rows"])  # the second run has no row that the first has not
    labelled, unlabelled = side_by_side.MERGED_TITLES["labelled"], side_by_side.MERGED_TITLES["unlabelled"]
    for (title, name), row in cells.items():
        transfer = {labelled: "labelled", unlabelled: "unlabelled"}.get(title, "")
        both = [
            next((one for one in of["rows"] if (one["name"], one["transfer"]) == (name, transfer)), None)
            for of in (built, second)
        ]
        for one, accuracy, nll, gap, of in zip(both, row[::3], row[1::3], row[2::3], (built, second)):
            if one is None:
                assert (accuracy, nll, gap) == ("–", "–", "–")
                continue
            mean, low_high, *mark = re.fullmatch(r"(\S+) (\[.*\])( [+=-])?", accuracy).groups()
            assert float(mean) == round(100 * one["accuracy"]["mean"], 2)
            verdicts = {
                c["metric"]: c["verdict"]
                for c in of["comparisons"]
                if (c["a"], c["b"], c["family"]) == (name, "baseline", transfer)
            }
            marks = {"better": " +", "worse": " -", "equivalent": " ="}
            assert mark == [marks.get(verdicts.get("accuracy"))]
            assert nll.endswith(" +") == (verdicts.get("nll") == "better")
            assert (gap == "–") == (one["gap_share"] is None)
    assert cells[unlabelled, "mimic_all"][0].endswith(" +") and cells[labelled, "vote"][1].endswith(" -")
    names = [row[0] for title, rows in sections if title == labelled for row in rows]
    assert names[-2:] == ["baseline", "control"]


def test_many_runs_have_a_line_each_below_what_they_share(built):
    second = document.build(make(seed=5, transfers=("labelled",), students=NOTHING_GAINED))
    reports = {"a": built, "b": built, "c": built, "d": built, "e": second}
    header, sections = side_by_side.merge(reports)
    assert header == ["", "%", "NLL", "gap"]
    beside = {title: rows for title, rows in side_by_side.merge({"a": built, "e": second})[1]}
    of_both = {f"{title}: {row[0]}": row[1:] for title, rows in beside.items() for row in rows}
    assert [title for title, _ in sections] == list(of_both)
    for title, rows in sections:
        first, last = of_both[title][:3], of_both[title][3:]
        if first == last:
            assert rows == [["every run", *first]]
        else:
            last = [["e", *last]] if last[0] != "–" else []
            assert rows == [*[[name, *first] for name in "abcd"], *last]
    assert sum(len(rows) == 1 for _, rows in sections) < len(sections) / 2


def test_runs_that_do_not_fit_a_terminal_stand_below_one_another(built):
    console = Console(width=100, file=io.StringIO())
    console.print(side_by_side.terminal({name: built for name in ("a", "b", "c")}, 100))
    printed = console.file.getvalue()
    assert [printed.count(f" {name}, % ") for name in "abc"] == [1, 1, 1]
    assert printed.count("91.67 [88.31, 94.68]") == 2 * 3 and "…" not in printed  # mean_probs and mean_logits
    assert printed.index("a, %") < printed.index("b, %") < printed.index("vote") < printed.index("c, %")


def test_runs_whose_folders_share_a_name_go_by_their_paths(made, tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder / "run").mkdir(parents=True)
        predictions.save(tmp_path / folder / "run" / "predictions.npz", made)
    paths = [tmp_path / folder / "run" for folder in "ab"]
    assert list(document._names(paths)) == [str(path) for path in paths]
    assert list(document._names([paths[0], tmp_path])) == ["run", tmp_path.name]


# --- detection ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector():
    """Two classes, one three times as large; the run's first class is the one to be detected."""
    even = make(num_classes=2, num_val=200, num_test=400, transfers=("labelled",))
    fewer = {}
    for split, labels in (("val", even.val_labels), ("test", even.test_labels)):
        rare = np.flatnonzero(labels == 0)
        fewer[split] = np.sort(np.concatenate([rare[: len(rare) // 3], np.flatnonzero(labels == 1)]))
    groups = tuple(
        dataclasses.replace(
            group,
            val=group.val[:, fewer["val"]]
            + 2.0 * np.random.default_rng(0).normal(size=(1, len(fewer["val"]), 2)),
            test=group.test[:, fewer["test"]]
            + 2.0 * np.random.default_rng(1).normal(size=(1, len(fewer["test"]), 2)),
            common_test=None,
        )
        for group in even.groups
    )
    return dataclasses.replace(
        even,
        class_names=("smoke", "no smoke"),
        val_labels=even.val_labels[fewer["val"]],
        val_groups=even.val_groups[fewer["val"]],
        test_labels=even.test_labels[fewer["test"]],
        groups=groups,
        positive="smoke",
        false_alarm_rate=0.1,
    )


@pytest.fixture(scope="module")
def detected(detector):
    return document.build(detector)


def test_what_is_to_be_detected_is_told(detector, detected):
    counts = np.bincount(detector.test_labels).tolist()
    assert detected["detection"] == {
        "positive": "smoke",
        "negative": "no smoke",
        "false_alarm_rate": 0.1,
        "num_positive": counts[0],
        "num_negative": counts[1],
    }
    assert detected["class_counts"]["test"] == counts and detected["imbalanced"]
    assert json.loads(json.dumps(detected, allow_nan=False)) == detected


def test_every_detector_against_the_reference(detector, detected):
    for group in detector.groups[:2]:
        found = row(detected, group.name, group.transfer)
        for member in (0, 4):
            scores, val_scores = (
                (one[:, 0].astype(np.float64) - one[:, 1]).tolist()
                for one in (group.test[member], group.val[member])
            )
            positive, val_positive = detector.test_labels == 0, detector.val_labels == 0
            assert found["auroc"]["values"][member] == pytest.approx(reference.auroc(scores, positive))
            assert found["recall_at_false_alarm_rate"]["values"][member] == pytest.approx(
                reference.recall_at(scores, positive, 0.1)
            )
            expected = reference.operating_point(val_scores, val_positive, scores, positive, 0.1)
            point = found["operating_point"]
            assert {name: point[name]["values"][member] for name in point} == pytest.approx(expected)
        assert found["auroc"]["ci_over"] == ("members" if group.role == "teacher" else "seeds")


def test_ensembles_detect_with_bootstrap_intervals_and_rank_rules_do_not_detect(detector, detected):
    one = row(detected, "mean_probs")
    scores = metrics.log_odds(lookup.fused(detector, "mean_probs")["test"], 0)
    assert one["auroc"]["mean"] == pytest.approx(reference.auroc(scores.tolist(), detector.test_labels == 0))
    for metric in (one["auroc"], one["recall_at_false_alarm_rate"], one["operating_point"]["recall"]):
        assert metric["ci_over"] == "test_examples"
        assert metric["ci95"][0] <= metric["mean"] <= metric["ci95"][1]
    for rule in ("plurality", "borda"):
        assert {row(detected, rule)[name] for name in measured.DETECTION} == {None}
        assert row(detected, rule)["balanced_accuracy"]["ci95"] is not None


def test_the_operating_point_is_chosen_on_validation_alone(detector):
    relabelled = dataclasses.replace(detector, test_labels=np.roll(detector.test_labels, 7))
    points = [scoring.rows(one)[0]["operating_point"] for one in (detector, relabelled)]
    assert points[0]["threshold"] == points[1]["threshold"] and points[0]["misses"] != points[1]["misses"]


def test_more_classes_or_a_class_that_is_missing_have_nothing_to_detect(made, built, detector):
    assert built["detection"] is None and {one["auroc"] for one in built["rows"]} == {None}
    assert built["chosen_student"]["detector"] is None
    all_alike = dataclasses.replace(detector, val_labels=np.ones_like(detector.val_labels))
    assert lookup.detected(all_alike) is None
    assert lookup.detected(dataclasses.replace(detector, positive="")) == 1


def test_findings_tell_who_misses_how_many(detected):
    (text,) = [text for text in detected["findings"] if text.startswith("Detection of smoke: ")]
    kept, num_positive = detected["chosen_student"]["detector"], detected["detection"]["num_positive"]
    assert f"the best student misses {kept['misses']} of {num_positive} (" in text
    misses = row(detected, "baseline", "labelled")["operating_point"]["misses"]["mean"]
    assert f"its baseline {wording.count(misses)} on average" in text
    assert "allows 10 % false alarms on validation" in text
    most = max(detected["class_counts"]["test"])
    notes = " ".join(detected["notes"])
    assert (
        f"always says no smoke is right in {100 * most / sum(detected['class_counts']['test']):.2f} %"
        in notes
    )


def test_a_detector_is_shown_everywhere(detector, tmp_path, capsys):
    predictions.save(tmp_path / "predictions.npz", detector)
    assert document.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Detection of smoke" in printed and "misses of" in printed and "…" not in printed
    assert "balanced" in printed and "Brier" not in printed
    assert max(map(len, printed.splitlines())) <= 100
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "Detection of smoke" in text and "misses of" in text and "balanced" in text
    assert (tmp_path / "plots" / "roc.png").exists()


def test_runs_from_before_there_was_detection_are_read(detector, tmp_path):
    """Their file has neither the class nor the rate nor a margin: the last class, at 5 %, half a point."""
    path = tmp_path / "predictions.npz"
    predictions.save(path, detector)
    with np.load(path, allow_pickle=False) as archive:
        arrays = dict(archive)
    meta = json.loads(str(arrays.pop("meta")))
    del meta["positive"], meta["false_alarm_rate"], meta["margin"]
    np.savez(path, meta=np.array(json.dumps(meta)), **arrays)
    found = predictions.load(path)
    assert (found.positive, found.false_alarm_rate, found.margin) == ("", 0.05, 0.005)
    assert lookup.detected(found) == 1


# --- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "break_it, said",
    [
        (lambda run: (run / "predictions.npz").unlink(), "no such file"),
        (lambda run: (run / "predictions.npz").write_bytes(b"PK"), "damaged"),
        (lambda run: (run / "metrics.jsonl").write_text('{"stage": 1}\n{"sta'), "line 1"),
        (lambda run: (run / "config.json").write_text("{"), "config.json"),
        (lambda run: (run / "plots").write_text("a file"), "cannot be written"),
    ],
)
def test_errors_are_one_line_and_code_2(run, capsys, break_it, said):
    break_it(run)
    assert document.main([str(run)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error and error.startswith("mtkd_jax: ")


def test_wrong_arguments_are_one_line_and_code_2(capsys):
    for arguments, said in (
        ([], "required: RUN"),
        (["a", "--out", "b"], "--out is of several runs; what it writes of one lies in a"),
        (["a", "b", "./a"], "a b a: a run is named twice"),
        (["a", "--brief"], "--brief is of what --into writes, which is missing"),
    ):
        assert document.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and said in error
