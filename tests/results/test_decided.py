"""Reports whose seeds were added until it was decided, and plans of how many it takes."""

import dataclasses

import numpy as np
import pytest

from mtkd_jax import experiment, main
from mtkd_jax.report import caveats, findings, tables
from mtkd_jax.results import analysis, comparisons, power, sequential
from mtkd_jax.system import interrupts, terminal
from mtkd_jax.types import UserError
from tests import small
from tests.references.predictions import make

STUDENTS = {"output_avg": ("student", 1.1), "vote": ("student", 9.0), "baseline": ("baseline", 1.5)}


def run(num_seeds):
    few = {"num_val": 60, "num_teachers": 2, "num_classes": 4, "rules": ("mean_probs",)}
    return make(num_seeds=num_seeds, transfers=("labelled",), students=STUDENTS, **few)


@pytest.fixture(scope="module")
def predictions():
    return dataclasses.replace(run(12), always_valid=True)


def accuracies(predictions, name):
    (group,) = [one for one in predictions.groups if one.name == name]
    return (group.test.argmax(axis=-1) == predictions.test_labels).mean(axis=1)


def test_comparisons_of_such_a_run_bear_being_looked_at_again(predictions):
    (one,) = [
        one
        for one in comparisons.compare(predictions)
        if (one["a"], one["b"], one["metric"]) == ("vote", "baseline", "accuracy")
    ]
    differences = accuracies(predictions, "vote") - accuracies(predictions, "baseline")
    assert one["ci95"] == pytest.approx(sequential.confidence_interval(differences))
    assert one["verdict"] == "worse" and one["decided_at"] == 5 and one["n"] == 12
    assert one["std"] == pytest.approx(differences.std(ddof=1))
    assert one["detectable"] is None


def test_its_report_says_what_was_decided_and_what_was_not(predictions):
    report = analysis.numbers(predictions)
    said = " ".join(findings.summarise(report))
    assert "Seeds were added until all was decided or no more were allowed, 12 in all." in said
    assert "vote - baseline (labelled)" in said.partition("Decided with 5: ")[2].partition(".")[0]
    left = [f"{one['a']} - {one['b']}" for one in comparisons.undecided(predictions)]
    assert ("Not decided: " in said) == bool(left)
    assert all(pair in said.partition("Not decided")[2] for pair in left)
    assert "decided, or students.max_seeds were trained" in caveats._comparisons(report)
    assert "equivalent: mixtures of t tests at 5 %" in tables.comparison_caption(report)


def test_a_pilot_of_two_is_planned_for_by_all_its_comparisons_together():
    report = analysis.numbers(run(2))
    planned = power.plan(report)
    stds = [one["std"] for one in planned]
    bound = power.std_bound(np.sqrt(np.mean(np.square(stds))), 3 / 1.5)  # three comparisons, rho^2 = 1/4
    for one in planned:
        assert one["planned_std"] == pytest.approx(bound)
        assert power.power_to_differ(one["to_differ"], 0.005, bound, 3) >= 0.8
        assert one["seconds_a"] == one["seconds_b"] == pytest.approx(1.5)  # 3 s of two seeds
        assert one["cost"] == pytest.approx((one["to_decide"] - 2) * 3.0)


def test_what_a_seed_takes_is_told_by_the_networks_that_were_trained():
    """One of two seeds of the baseline broke down: its 3 s are still those of two seeds at two points."""
    report = analysis.numbers(run(2))
    (baseline,) = (row for row in report["rows"] if row["name"] == "baseline")
    baseline |= {"n": 1, "grid": [{**point, "num_seeds": 2} for point in baseline["grid"]]}
    assert {one["seconds_b"] for one in power.plan(report) if one["b"] == "baseline"} == {1.5}


def test_what_cannot_differ_needs_no_seeds_and_what_did_not_yet_does():
    report = analysis.numbers(run(2))
    same, still, noisy = [one for one in report["comparisons"] if one["metric"] == "accuracy"]
    same |= {"std": 0.0, "mean_difference": 0.0, "p_equivalence": 0.0}  # one network under two names
    still |= {"std": 0.0, "mean_difference": 0.01, "p_equivalence": None}  # by chance
    planned = power.plan(report)
    assert [(one["a"], one["b"]) for one in planned] == [(one["a"], one["b"]) for one in (still, noisy)]
    bound = power.std_bound(noisy["std"] / np.sqrt(2), 2 / 1.25)
    assert [one["planned_std"] for one in planned] == pytest.approx([bound, bound])
    (first, *_) = findings.seeds_needed(planned, report)
    assert first.endswith(f"do not differ: {same['a']} - {same['b']} (labelled).")
    same["std"] = None
    (few, *_) = findings.seeds_needed(planned, report)
    assert few == f"Not planned for, too few pairs of seeds: {same['a']} - {same['b']} (labelled)."
    assert "Nothing can be planned" in findings.seeds_needed([], report)[-1]
    assert "equivalent: two one-sided tests at 5 %" in tables.comparison_caption(report)


def test_the_command_prints_the_plan(monkeypatch, capsys):
    report = analysis.numbers(run(6))
    monkeypatch.setattr(experiment, "pilot", lambda config, num_seeds, into: report)
    assert main.main(["main", "--config=digits", "--power"]) == 0
    said = capsys.readouterr().out
    most = max(one["to_decide"] for one in power.plan(report))
    assert "output_avg - baseline (labelled)" in said
    assert f"{most:,} seeds would decide every comparison" in said


def test_a_pilot_has_so_many_seeds_and_no_modes_no_pilot(monkeypatch):
    asked = []
    monkeypatch.setattr(experiment, "run", lambda config, folder: asked.append(config.students.num_seeds))
    experiment.pilot(small.config(), 4)
    assert asked == [4]
    with pytest.raises(UserError, match="students.modes: is empty"):
        experiment.pilot(small.config(**{"students.modes": ()}), 2)


def test_a_pilot_that_is_not_kept_does_what_comparisons_rest_on_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(experiment, "run", lambda config, folder: asked.append(config))
    further = {"report.corruptions": ("fog",), "report.ood": "digits()", "export.cascade": True}
    experiment.pilot(small.config(**further, **{"export.forms": ("onnx",)}), 2)
    (config,) = asked
    report, export = config.report, config.export
    assert not (report.corruptions or report.ood or export.forms or export.cascade)


@pytest.mark.parametrize("stopped", [interrupts.Interrupted(15, "all is saved"), KeyboardInterrupt()])
def test_stopped_without_a_folder_nothing_is_kept_and_nothing_else_is_promised(stopped, monkeypatch, capsys):
    def run(config, folder):
        raise stopped

    monkeypatch.setattr(experiment, "run", run)
    number = getattr(stopped, "signal", 2)
    assert terminal.answer(lambda: experiment.pilot(small.config(), 2)) == 128 + number
    said = capsys.readouterr().err
    assert said.endswith("; without a --workdir nothing of a pilot is kept\n") and "goes on" not in said


@pytest.mark.parametrize(
    "options, said",
    [
        (["--power=1"], "--power=1 must be a number of seeds, 2 or more"),
        (["--power", "--plan"], "--plan and --power: "),
        (["--power", "--processes=0/2@localhost:9999"], "--workdir is missing; name a folder that all share"),
    ],
)
def test_what_power_cannot_do_is_said(options, said, capsys):
    assert main.main(["main", "--config=digits", *options]) == 2
    assert said in capsys.readouterr().err
