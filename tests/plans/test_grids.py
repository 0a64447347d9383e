"""What validation chooses from: every value is trained once, in a stage of its own name, for one row."""

import json

import numpy as np
import pytest

from mtkd_jax import addresses, experiment, validation
from mtkd_jax import config as configuration
from mtkd_jax.engine import training
from mtkd_jax.plans import plan, students
from mtkd_jax.results import evaluation
from mtkd_jax.system.text import short_number, slug
from mtkd_jax.types import UserError
from tests import small

# mode: arguments of which none, all or one only multiplies
GRIDS = {
    "stimuli.ods": {"step_size": (0.5, 2.0)},
    "averages.mean_teacher": {"ramp": (0.0, 0.3)},
    "features.hints": {"student": ("stage1", "embedding")},
    "logits.dkd": {"warmup": (0.0, 0.2), "nontarget_weight": (1.0, 4.0)},
    "weights.aekd": {"cap": (0.5, 0.75)},
    "weights.random_drop": {"num_dropped": (1, 2)},
}


def grids(**overrides):
    overrides = {"students.modes": tuple(GRIDS), "students.arguments": GRIDS, **overrides}
    return small.config(**{"students.alphas": (0.0, 0.5), **overrides})


def test_every_combination_is_trained_once_under_a_name_of_its_own():
    config = grids()
    stages = plan.build(config, experiment.load_split(config))
    assert len({stage.name for stage in stages}) == len(stages)
    trained = [(member.mode, member.cell, member.seed) for stage in stages for member in stage.family]
    assert len(set(trained)) == len(trained)
    for mode, arguments in GRIDS.items():
        found = {tuple(cell.arguments) for name, cell, _ in trained if name == mode}
        names = list(arguments)
        expected = np.prod([len(values) for values in arguments.values()])
        assert len(found) == expected and all([name for name, _ in one] == names for one in found)
    for stage in stages:  # what a member says of its arguments is what it is trained with
        for member in stage.family:
            built = (
                addresses.build_recipe(member.mode, **dict(member.cell.arguments))
                if (member.mode in GRIDS)
                else member.recipe
            )
            assert member.recipe == built
            names = [students.member_name(one) for one in stage.family]
            assert len(set(names)) == len(names)


def test_a_choice_that_needs_several_programs_is_one_row_chosen_by_validation(tmp_path):
    grid = {"logits.dkd": {"warmup": (0.0, 0.75)}}
    config = small.config(**{"students.modes": ("logits.dkd",), "students.arguments": grid})
    report = experiment.run(config, tmp_path, quiet=True)
    (row,) = [row for row in report["rows"] if row["method"] == "logits.dkd"]
    points = {(one["warmup"], one["alpha"]): one["val_nll"] for one in row["grid"]}
    assert points.keys() == {(ramp, alpha) for ramp in (0.0, 0.75) for alpha in (0.0, 0.5)}
    assert len(set(points.values())) == 4  # each a training of its own
    assert points[row["arguments"]["warmup"], row["alpha"]] == min(points.values())
    assert sorted(row["arguments"]) == ["warmup"]


@pytest.mark.parametrize(
    "one, other",
    [
        ("stimuli.ods(step_size=1.0)", "stimuli.ods(step_size=-1.0)"),
        ("stimuli.ods(step_size=1e+2)", "stimuli.ods(step_size=1e-2)"),
        ("mlp(hidden=(3, 2))", "mlp(hidden=(32,))"),
        ("features.hints(student='stage1')", "features.hints(student='stage-1')"),
        (f"mlp(hidden={(8,) * 90})", f"mlp(hidden={(8,) * 91})"),
        ("fused:median_probs", "fused_median_probs"),
    ],
)
def test_different_addresses_have_different_file_names(one, other):
    found = slug(one), slug(other)
    assert found[0] != found[1]
    assert all(len(name) < 150 and "/" not in name and name.isascii() for name in found)


def test_members_are_told_apart_at_every_digit():
    def name(alpha, temperature=1.0, arguments=()):
        cell = students.Cell(alpha, temperature, arguments)
        return students.member_name(students.Member("vote", None, cell, seed=0))

    assert name(0.1234567) != name(0.1234568)
    assert name(0.5, 4.0, (("student", "stage1"),)) == "vote a=0.5 T=4 student='stage1' seed 0"
    numbers = [0.1, 0.1 + 2**-54, 1e-300, 1e22, 123456789.0, 3, True]
    assert len({short_number(value) for value in numbers}) == len(numbers)
    for value in numbers[:-1]:
        assert float(short_number(value)) == value


def test_modes_that_differ_in_a_sign_alone_are_both_trained():
    modes = ("stimuli.ods(step_size=1.0)", "stimuli.ods(step_size=-1.0)")
    config = small.config(**{"students.modes": modes})
    names = [stage.name for stage in plan.build(config, experiment.load_split(config))]
    assert len(set(names)) == len(names) and sum("ods" in name for name in names) == 2


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"logits.dkd": {"warmup": (0.1, 0.1)}}, "twice"),
        ({"logits.dkd": {"warmup": ()}}, "no value"),
        ({"logits.dkd": {1: 2.0}}, "the key 1 is no text"),
        ({1: {"warmup": 0.1}}, "the key 1 is no text"),
        ({"logits.dkd": 3}, "must be a dict"),
        ({"logits.dkd": {"warmup": [0.1, 0.2]}}, "must be of type float"),
    ],
)
def test_arguments_that_cannot_be_are_one_line(arguments, said):
    with pytest.raises(UserError, match=said) as error:
        small.config(**{"students.modes": ("logits.dkd",), "students.arguments": arguments})
    assert "students.arguments" in str(error.value) and "\n" not in str(error.value)


def test_addresses_have_one_spelling():
    config = small.config(
        **{
            "students.modes": ("fused(rule='median_probs')", "logits.dkd( warmup = 0.1 )"),
            "students.arguments": {"logits.dkd( warmup = 0.1 )": {"nontarget_weight": (2.0, 4.0)}},
            "teachers.models": ("mlp(hidden=(64,64))", "mlp( dropout=0.0, hidden=(8,) )"),
        }
    )
    found = configuration.in_one_spelling(config)
    assert found.students.modes == ("fused:median_probs", "logits.dkd(warmup=0.1)")
    assert list(found.students.arguments) == ["logits.dkd(warmup=0.1)"]
    assert found.teachers.models == ("mlp", "mlp(hidden=(8,))")
    assert config.teachers.models[0] == "mlp(hidden=(64,64))"  # the user's own is left alone
    validation.validate(found)


# --- teachers that are left -----------------------------------------------------------------------------


@pytest.mark.parametrize("rule, said", [("trimmed_mean_probs", "needs 3 members"), ("kemeny", "8 classes")])
def test_a_rule_that_cannot_be_is_refused_before_any_work(rule, said, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "first_progress", lambda job: pytest.fail("trained"))
    source = "synthetic(num_classes=9, num_train=120, num_test=40, size=4)"
    fields = {"fusion.rules": ("mean_probs", rule), "teachers.num_members": 2, "data.source": source}
    with pytest.raises(UserError, match=f"^config.fusion.rules: {rule}.*{said}"):
        experiment.run(small.config(**fields), tmp_path, quiet=True)
    assert not (tmp_path / "config.json").exists()


def test_rules_and_modes_that_a_lost_teacher_makes_impossible_are_left_out_with_a_note(tmp_path):
    config = small.config(
        **{
            "fusion.rules": ("mean_probs", "trimmed_mean_probs"),
            "teachers.learning_rates": (1e-2, 1e-2, 1e30),
            "students.modes": ("output_avg", "weights.random_drop(num_dropped=2)"),
        }
    )
    report = experiment.run(config, tmp_path, quiet=True)
    assert [row["name"] for row in report["rows"] if row["role"] == "ensemble"] == ["mean_probs"]
    notes = " ".join(report["notes"])
    assert "fusion rule trimmed_mean_probs: needs 3 members" in notes and "teacher 2 left out" in notes
    assert "weights.random_drop(num_dropped=2)" in notes and "needs 3 teachers" in notes
    methods = {row["method"] for row in report["rows"]}
    assert "output_avg" in methods and "weights.random_drop(num_dropped=2)" not in methods
    json.dumps(report, allow_nan=False)


def test_students_of_a_row_may_stand_in_several_stages():
    rows = evaluation.rows_of(
        (plan.Stage("a", None, (students.Member("m", None, None, 0),), "labelled"),) * 2, {"a": None}
    )
    assert {key: len(stages) for key, stages in rows.items()} == {("labelled", "m", ""): 2}


def test_a_mode_without_a_temperature_is_trained_once():
    """As one that weighs the labels itself has one alpha."""
    modes = ("output_avg", "targets.label_smoothing", "averages.pi_model")
    config = small.config(
        **{"students.modes": modes, "students.temperatures": (2.0, 4.0), "students.num_seeds": 1}
    )
    cells: dict[str, list] = {mode: [] for mode in (*modes, "baseline")}
    for family in students.families(config):
        for member in family:
            cells[member.mode].append((member.cell.alpha, member.cell.temperature))
    assert cells == {
        "output_avg": [(0.0, 2.0), (0.0, 4.0), (0.5, 2.0), (0.5, 4.0)],
        "targets.label_smoothing": [(0.0, 1.0), (0.5, 1.0)],
        "averages.pi_model": [(1.0, 1.0)],
        "baseline": [(1.0, 1.0)],
    }
