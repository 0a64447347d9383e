"""The laboratory of fusion: values of teachers, tests, groups of voters, what it says, its command line."""

import io
import itertools
import json

import numpy as np
import pytest
from rich.console import Console

from mtkd_jax.fusion import rules
from mtkd_jax.fusion.worth import shapley
from mtkd_jax.laboratory import rule_study
from mtkd_jax.report import rendering, tables
from mtkd_jax.results import intervals, lookup, metrics
from mtkd_jax.runs import predictions
from mtkd_jax.types import UserError
from tests.references.predictions import make

FEW = {  # compiling every rule for every size is what these tests would cost
    "probabilities": ["mean_probs", "trimmed_mean_probs"],
    "fitted on validation": ["weighted_mean", "stacking"],
    "ranks": ["borda", "kemeny", "stv"],
}


@pytest.fixture
def few_rules(monkeypatch):
    monkeypatch.setattr(rule_study, "families", lambda names=(): FEW)
    monkeypatch.setattr(rule_study, "AGAINST_K", ("mean_probs",))


def voters(num_teachers, num_examples=60, num_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=num_examples)
    noise = rng.normal(size=(num_teachers, num_examples, num_classes))
    return (1.5 * np.eye(num_classes)[labels] + 1.5 * noise).astype(np.float32), labels


def small(**changes):
    fields = {"num_teachers": 3, "num_val": 40, "num_test": 80, "num_classes": 4, "transfers": ()}
    return make(**(fields | changes))


# --- what a teacher is worth --------------------------------------------------------------------------


def worth(logits, labels, coalition):
    """v(coalition), one example at a time in float64."""
    if not coalition:
        return 1 / logits.shape[2]
    right = 0
    for n, label in enumerate(labels):
        probs = sum(np.exp(z) / np.exp(z).sum() for z in (logits[k, n].astype(np.float64) for k in coalition))
        right += int(np.argmax(probs)) == label
    return right / len(labels)


def test_shapley_is_the_mean_over_all_orders():
    logits, labels = voters(4)
    expected = np.zeros(4)
    orders = list(itertools.permutations(range(4)))
    for order in orders:
        for place, k in enumerate(order):
            gain = worth(logits, labels, order[: place + 1]) - worth(logits, labels, order[:place])
            expected[k] += gain / len(orders)
    values, errors = shapley(logits, labels)
    assert errors is None
    np.testing.assert_allclose(values, expected, atol=1e-12)
    np.testing.assert_allclose(values.sum(), worth(logits, labels, range(4)) - 1 / 3)


def test_sampled_shapley_values_sum_up_and_equal_the_exact_ones_within_their_errors():
    logits, labels = voters(6)
    exact, _ = shapley(logits, labels)
    sampled, errors = shapley(logits, labels, most_exact=5, num_orders=400)
    np.testing.assert_allclose(sampled.sum(), exact.sum())
    assert np.all(errors > 0) and np.all(errors < 0.02)
    assert np.all(np.abs(sampled - exact) < 4 * errors)


def test_equal_teachers_are_worth_the_same_and_leave_no_gap():
    logits, labels = voters(1)
    values, _ = shapley(np.repeat(logits, 3, axis=0), labels)
    np.testing.assert_allclose(values, values[0])
    np.testing.assert_array_equal(metrics.leave_one_out(np.repeat(logits, 3, axis=0), labels), 0)


def test_leave_one_out():
    logits, labels = voters(4)
    everyone = set(range(4))
    expected = [worth(logits, labels, everyone) - worth(logits, labels, everyone - {k}) for k in range(4)]
    np.testing.assert_allclose(metrics.leave_one_out(logits, labels), expected, atol=1e-12)
    alone = metrics.leave_one_out(logits[:1], labels)
    np.testing.assert_allclose(alone, worth(logits, labels, [0]) - 1 / 3)


# --- tests and groups ---------------------------------------------------------------------------------


def test_mcnemar_by_hand():
    # Nine examples only a gets right, one only b: 2 (C(10,0) + C(10,1)) / 2^10.
    a = np.array([1] * 9 + [0] + [1] * 5 + [0] * 5)
    b = np.array([0] * 9 + [1] + [1] * 5 + [0] * 5)
    assert intervals.mcnemar(a, b) == pytest.approx(22 / 1024)
    assert intervals.mcnemar(b, a) == intervals.mcnemar(a, b)
    assert intervals.mcnemar(a, a) == 1


def test_groups_are_disjoint_and_as_many_as_there_can_be():
    groups = rule_study.grouped(23, 5)
    assert groups.shape == (4, 5) and len(set(groups.ravel())) == 20
    with pytest.raises(UserError, match="the run has 23"):
        rule_study.grouped(23, 24)


@pytest.mark.parametrize("num_teachers, most, expected", [(3, 6, [1, 2, 3]), (550, 3, [1, 23, 550])])
def test_sizes_begin_with_one_and_end_with_all(num_teachers, most, expected):
    assert metrics.sizes(num_teachers, most) == expected


def test_many_teachers_are_looked_at_in_part():
    logits, labels = voters(40)
    assert len(metrics.diversity(logits, labels)["kl"]["matrix"]) == metrics.MOST_IN_PAIRS
    found = metrics.sub_ensembles(logits, labels, max_subsets=5)
    assert list(found) == metrics.sizes(40) and len(found) <= metrics.MOST_SIZES
    np.testing.assert_allclose(found[40], worth(logits, labels, range(40)))
    assert len(found[1]) == 5


# --- one ensemble -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three():
    """A run of three teachers, and all rules on it; two of them against K, for compiling is what it costs."""
    found = small()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rule_study, "AGAINST_K", ("mean_probs", "stv"))
        return found, rule_study.study(found)


def by_rule(result):
    return {one["rule"]: one for one in result["rules"]}


def test_every_rule_is_compared_or_left_out_with_a_reason(three):
    found, result = three
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    everything = rules.RULES | rules.FITTED_RULES
    assert {one["rule"] for one in result["rules"] + result["skipped"]} == everything
    assert result["rules"][0]["rule"] == "mean_probs" and result["skipped"] == []
    for name, one in by_rule(result).items():
        decided = lookup.fused(found, name)["test"].argmax(-1)
        assert one["accuracy"]["mean"] == pytest.approx(np.mean(decided == found.test_labels))
        assert (one["nll"] is None) == (name in rules.RANK_RULES)
        difference = one["accuracy"]["mean"] - result["rules"][0]["accuracy"]["mean"]
        assert one["against"]["mean_difference"] == pytest.approx(difference)
        if name != "mean_probs":
            assert one["against"]["p_holm"] >= one["against"]["p_value"]


def test_oracle_is_right_where_some_teacher_is(three):
    found, result = three
    right = [metrics.per_example(z, found.test_labels)["accuracy"] for z in lookup.teacher_logits(found)]
    assert result["oracle"]["mean"] == pytest.approx(np.max(right, axis=0).mean())
    assert result["one_teacher"]["max"] == pytest.approx(np.max(np.mean(right, axis=1)))


def test_accuracy_against_k_ends_with_the_accuracy_of_all(three):
    _, result = three
    assert result["against_k"]["sizes"] == [1, 2, 3]
    for name, line in result["against_k"]["rules"].items():
        assert line[0]["mean"] == pytest.approx(result["one_teacher"]["mean"])
        assert line[-1]["mean"] == pytest.approx(by_rule(result)[name]["accuracy"]["mean"])


def test_teachers_are_valued_on_validation(three):
    found, result = three
    values, _ = shapley(lookup.teacher_logits(found, "val"), found.val_labels)
    assert [one["shapley"] for one in result["teachers"]["values"]] == pytest.approx(values)
    assert result["teachers"]["num_orders"] is None


def test_one_teacher_and_two_classes(few_rules):
    result = rule_study.study(small(num_teachers=1, num_classes=2))
    said = " ".join(result["findings"])
    assert "nothing to fuse" in said and "majority vote" in said and "the teacher as it is" in said
    assert [one["rule"] for one in result["skipped"]] == ["trimmed_mean_probs"]
    assert "needs 3 members" in said
    differing = {one["rule"] for one in result["rules"] if one["against"]["mean_difference"] != 0}
    assert differing <= {"stacking"}


def test_no_winner_is_named_inside_noise(three):
    _, result = three
    said = rule_study._recommended(result)
    assert "mean_probs. No rule beats it" in said
    won = {"metric": "accuracy", "mean_difference": 0.1, "p_holm": 0.001}
    rules = [{**one, "against": won} if one["rule"] == "borda" else one for one in result["rules"]]
    said = rule_study._recommended({**result, "rules": rules})
    assert "borda, the one rule" in said and "no probabilities" in said
    rules = [{**one, "against": won} if one["rule"] != "mean_probs" else one for one in result["rules"]]
    assert "which of them is best was not tested" in rule_study._recommended({**result, "rules": rules})


def test_fits_that_would_take_minutes_are_left_out():
    logits, _ = voters(33, num_examples=10)
    assert "32 teachers at most, got 33" in rule_study._unfit("evolved_mean", logits)
    assert rule_study._unfit("stacking", logits) == ""


# --- many voters --------------------------------------------------------------------------------------


@pytest.fixture
def crowd(few_rules):
    found = small(num_teachers=11, num_classes=9)
    return found, rule_study.study_of_sizes(found, [2, 5])


def test_first_voters_of_each_group_are_fused(crowd):
    found, result = crowd
    assert result["num_repeats"] == 2 and result["sizes"] == [2, 5]
    logits, labels = lookup.teacher_logits(found), found.test_labels
    for name in ("mean_probs", "borda"):
        for size, point in zip(result["sizes"], by_rule(result)[name]["points"]):
            groups = (logits[:size], logits[5 : 5 + size])
            expected = [float(np.mean(rules.rule(name)(group).argmax(-1) == labels)) for group in groups]
            assert point["values"] == pytest.approx(expected)
            assert point["ci95"] == pytest.approx(intervals.t_interval(expected))


def test_rules_that_do_not_fit_a_size_are_left_out_there(crowd):
    _, result = crowd
    points = by_rule(result)["trimmed_mean_probs"]["points"]
    assert points[0] is None and points[1] is not None
    reasons = {one["rule"]: one["reason"] for one in result["skipped"]}
    assert "8 classes at most, got 9" in reasons["kemeny"]
    assert "needs 3 members" in reasons["trimmed_mean_probs"]
    assert "kemeny" not in by_rule(result)


def test_one_group_has_no_interval(few_rules):
    result = rule_study.study_of_sizes(small(), [3])
    assert {one["points"][0]["ci95"] for one in result["rules"]} == {None}
    assert "One group" in " ".join(result["findings"])


# --- cost ---------------------------------------------------------------------------------------------


def test_cost_measures_every_rule_that_needs_no_fit(few_rules):
    result = rule_study.cost(num_members=3, num_examples=20, num_classes=9, calls=1)
    assert [one["rule"] for one in result["rules"]] == ["mean_probs", "trimmed_mean_probs", "borda", "stv"]
    assert [one["rule"] for one in result["skipped"]] == ["kemeny"]
    assert all(one["seconds"] > 0 for one in result["rules"])
    assert result["peak_bytes"] > result["logits_bytes"] == 4 * 3 * 20 * 9


# --- command line -------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, few_rules):
    predictions.save(tmp_path / "predictions.npz", small())
    return tmp_path


def printed(result, sheet):
    console = Console(width=100, file=io.StringIO())
    console.print(rendering.render(*sheet(result)))
    return console.file.getvalue()


def test_tables_fit_100_columns(three, crowd):
    for result, sheet in ((three[1], tables.fusion_rules), (crowd[1], tables.fusion_sizes)):
        text = printed(result, sheet)
        assert "…" not in text and "mean_probs" in text


def test_command_line(run, capsys):
    file = run / "page.md"
    file.write_text(f"a\n<!-- fusion {run} -->\nold\n<!-- end -->\nz\n")
    assert rule_study.main([str(run), "--json", str(run / "out.json"), "--into", str(file)]) == 0
    result = json.loads((run / "out.json").read_text())
    text = capsys.readouterr().out
    assert "Recommendation" in text and "weighted_mean" in text
    assert (run / "fusion" / "report.md").stat().st_size > 0
    assert {path.stem for path in (run / "fusion").glob("*.png")} == {
        "rules",
        "accuracy_against_k",
        "teachers",
    }
    page = file.read_text()
    assert page.startswith("a\n") and page.endswith("z\n") and "old" not in page
    assert all(finding in page for finding in result["findings"])


def test_command_line_with_sizes(run, capsys):
    assert rule_study.main([str(run), "--sizes", "3,1"]) == 0
    assert "N = 1" in capsys.readouterr().out
    assert (run / "fusion" / "sizes.png").exists() and (run / "fusion" / "sizes.md").exists()


def spoilt(found, split):
    group = found.groups[0]
    getattr(group, split)[1, 2, 0] = np.nan
    return found


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "name the folder"),
        (["RUN", "--cost"], "name the folder"),
        (["nowhere"], "no such file"),
        (["RUN", "--sizes", "5,many"], "--sizes 5,many"),
        (["RUN", "--sizes", "0"], "--sizes 0"),
        (["RUN", "--sizes", "4"], "the run has 3"),
        (["RUN", "--into", "nowhere.md", "--sizes", "1"], "nowhere.md"),
        (["RUN", "--surplus"], "--surplus"),
    ],
)
def test_errors_are_one_line_and_code_2(run, arguments, said, capsys):
    assert rule_study.main([str(run) if one == "RUN" else one for one in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error


@pytest.mark.parametrize("split", ["val", "test"])
def test_logits_that_are_not_finite_are_one_line_and_code_2(split, run, capsys):
    predictions.save(run / "predictions.npz", spoilt(small(), split))
    assert rule_study.main([str(run)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "member 1, example 2" in error
