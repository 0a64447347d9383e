"""A student with a safety net: its threshold against a slow search, its promise simulated, its numbers."""

import dataclasses
import json

import numpy as np
import pytest

from mtkd_jax.data import loading
from mtkd_jax.deploy.cascade import confidence
from mtkd_jax.report import caveats, document, findings, plots
from mtkd_jax.results import analysis, cascade, evaluation, lookup, scoring
from mtkd_jax.runs import predictions as kept
from mtkd_jax.types import DataSet
from tests.references import cascade as reference
from tests.references.predictions import make

METRICS = {"accuracy", "nll", "share", "lost", "difference"}
TOLERANCE = 0.05


STUDENTS = {"vote": ("student", 1.8), "output_avg": ("student", 1.6), "baseline": ("baseline", 2.0)}


def small(**how):
    return make(num_teachers=3, num_seeds=3, transfers=("labelled",), students=STUDENTS, **how)


@pytest.fixture(scope="module")
def made():
    """A run whose 120 validation images are enough to certify five points, for which it takes 59."""
    return dataclasses.replace(small(), cascade_tolerance=TOLERANCE, choose="vote")


@pytest.fixture(scope="module")
def built(made):
    return document.build(made)


@pytest.fixture(scope="module")
def found(made):
    return analysis.plain(cascade.numbers(made))


# --- the threshold ------------------------------------------------------------------------------------


def test_a_threshold_by_hand():
    """Of 5 images none may be lost to be sure of a half: 1/32 of the draws lose none, 6/32 one at most."""
    sure = np.array([0.95, 0.9, 0.8, 0.6, 0.5])
    lost = np.array([False, True, False, True, False])
    setting = cascade.set_threshold(sure, lost, np.arange(5), 0.5)
    assert setting == (0.9, True, 5, 0.0)  # keeps the one at 0.95
    assert cascade.set_threshold(sure, lost & (sure < 0), np.arange(5), 0.5).threshold == cascade.NOTHING
    # Of 4 images, 1/16 of the draws lose none: nobody can be sure.
    assert cascade.set_threshold(sure[1:], lost[:4] & False, np.arange(4), 0.5) == (1.0, False, 4, 0.0)
    assert cascade.units_needed(0.5) == 5


def test_two_lost_ones_may_be_kept_where_the_binomial_allows_two():
    """By hand: P(Bin(120, 0.05) <= 2) = 0.0575 and <= 1 is 0.0155: one may be kept, two may not."""
    assert reference.binomial_tail(1, 120, 0.05) < 0.05 < reference.binomial_tail(2, 120, 0.05)
    sure = np.linspace(0.3, 0.99, 120)
    lost = np.isin(np.arange(120), (10, 60, 110))
    setting = cascade.set_threshold(sure, lost, np.arange(120), 0.05)
    assert setting.threshold == sure[60] and setting.lost == pytest.approx(1 / 120)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_the_threshold_is_the_one_a_slow_search_finds(grouped, seed):
    """With equal confidences among them, and groups of unequal sizes."""
    rng = np.random.default_rng(seed)
    num, tolerance = 150, rng.uniform(0.04, 0.2)
    groups = rng.integers(70, size=num) if grouped else np.arange(num)
    sure = rng.integers(20, 100, size=num) / 100
    lost = rng.random(num) < rng.choice([0.02, 0.1, 0.3])
    slow = reference.lowest_certified(sure.tolist(), lost.tolist(), groups.tolist(), tolerance)
    setting = cascade.set_threshold(sure, lost, groups, tolerance)
    assert setting.certified == (slow is not None)
    # Between two confidences thresholds are one: who is kept by either is the same.
    kept_by = sure > (1.0 if slow is None else slow)
    np.testing.assert_array_equal(sure > setting.threshold, kept_by | (sure > setting.threshold))
    assert not np.any(lost & (sure > setting.threshold) & ~kept_by)
    assert np.sum(lost & (sure > setting.threshold)) == np.sum(lost & kept_by)


def test_p_values_against_the_reference():
    risks = np.array([0.0, 0.013, 0.05, 0.1, 0.31, 1.0])
    of_groups = cascade.p_values(risks, 80, 0.1, exact=False)
    assert of_groups == pytest.approx([min(1.0, reference.hoeffding_bentkus(r, 80, 0.1)) for r in risks])
    counts = np.arange(81) / 80
    assert cascade.p_values(counts, 80, 0.1, exact=True) == pytest.approx(
        [reference.binomial_tail(k, 80, 0.1) for k in range(81)]
    )


@pytest.mark.parametrize("tolerance", [0.001, 0.01, 0.02, 0.3])
def test_so_many_units_are_needed_and_one_fewer_is_too_few(tolerance):
    num = cascade.units_needed(tolerance)
    for number, enough in ((num, True), (num - 1, False)):
        nothing = np.zeros(number, bool)
        assert (
            cascade.set_threshold(np.ones(number), nothing, np.arange(number), tolerance).certified is enough
        )
    assert cascade.smallest_tolerance(num) <= tolerance < cascade.smallest_tolerance(num - 1)


# --- the promise --------------------------------------------------------------------------------------

# The world: a confidence c is uniform in [0,1], and an example is lost with chance 0.1 (1 - c). So the
# threshold t loses R(t) = 0.1 (1/2 - t + t^2/2) = 0.05 (1 - t)^2.
NUM_DRAWS = 2000


def risk(threshold: float) -> float:
    return 0.05 * (1 - threshold) ** 2


def violations(num: int, tolerance: float, size: int, as_groups: bool, seed: int) -> float:
    """How often the true risk is above the tolerance, where `size` examples in a row are copies of one."""
    rng, groups = np.random.default_rng(seed), np.arange(num * size)
    times = 0
    for _ in range(NUM_DRAWS):
        sure = np.repeat(rng.random(num), size)
        lost = np.repeat(rng.random(num), size) < 0.1 * (1 - sure)
        own = groups // size if as_groups else groups
        times += risk(cascade.set_threshold(sure, lost, own, tolerance).threshold) > tolerance
    return times / NUM_DRAWS


CHANCE = 3 * np.sqrt(0.05 * 0.95 / NUM_DRAWS)  # three standard deviations of a count of 5 %


@pytest.mark.parametrize("num, tolerance", [(300, 0.02), (300, 0.04), (1000, 0.01)])
def test_the_promise_is_kept_in_95_of_100_draws_of_a_validation_set(num, tolerance):
    """And not for nothing: the draws that break it are not none, so that the threshold is not too careful."""
    assert 0.01 < violations(num, tolerance, 1, False, seed=0) <= 0.05 + CHANCE


def test_what_the_promise_would_be_without_its_bound():
    """The lowest threshold whose loss on validation is at most the tolerance breaks it every other time."""
    rng, times = np.random.default_rng(0), 0
    for _ in range(NUM_DRAWS):
        sure = rng.random(300)
        surest = np.sort(sure[rng.random(300) < 0.1 * (1 - sure)])[::-1]
        times += risk(surest[6] if len(surest) > 6 else 0.0) > 0.02
    assert times / NUM_DRAWS > 0.3


def test_groups_keep_it_where_examples_that_depend_on_one_another_would_not():
    assert violations(100, 0.04, 5, True, seed=0) <= 0.05 + CHANCE
    assert violations(100, 0.04, 5, False, seed=0) > 0.15


# --- its numbers --------------------------------------------------------------------------------------


def test_confidence_is_the_largest_probability():
    logits = np.random.default_rng(0).normal(size=(50, 7)) * 30
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert confidence(logits) == pytest.approx((weights / weights.sum(axis=1, keepdims=True)).max(axis=1))
    assert confidence(np.array([[800.0, -800.0]])) == 1.0  # nobody is surer than the threshold ALL


def test_the_curve_is_that_of_every_threshold():
    rng = np.random.default_rng(0)
    sure = rng.integers(1, 40, size=300) / 40
    student, ensemble = ((rng.random(300) < share).astype(np.float64) for share in (0.7, 0.8))
    found = cascade.curve(sure, student, ensemble)
    assert len(found["share"]) == 40  # of 39 confidences, and nothing
    for threshold, share, accuracy in zip(*(found[name] for name in ("threshold", "share", "accuracy"))):
        handed_over = sure <= threshold
        assert share == handed_over.mean()
        assert accuracy == pytest.approx(np.where(handed_over, ensemble, student).mean())
    many = cascade.curve(rng.random(5000), np.ones(5000), np.zeros(5000))
    assert len(many["share"]) == cascade.MOST_POINTS
    assert many["accuracy"] == pytest.approx(1 - many["share"])


def test_the_block_against_a_slow_computation(made, found):
    group, member = lookup.network_to_deploy(made)
    assert found["student"]["name"] == group.name and found["student"]["member"] == group.members[member]
    ensemble = lookup.fused(made, found["rule"])
    student, net = group.test[member].astype(np.float64), ensemble["test"]
    probs = np.exp(student - np.logaddexp.reduce(student, axis=1, keepdims=True))
    decided, nlls, lost = [], [], 0
    for n, label in enumerate(made.test_labels):
        keeps = probs[n].max() > found["threshold"]
        said = student[n] if keeps else net[n].astype(np.float64)
        decided.append(int(said.argmax()) == label)
        nlls.append(np.logaddexp.reduce(said) - said[label])
        lost += keeps and student[n].argmax() != label and net[n].argmax() == label
    own = found["test"]["cascade"]
    assert own["accuracy"]["mean"] == pytest.approx(np.mean(decided))
    assert own["nll"]["mean"] == pytest.approx(np.mean(nlls))
    assert own["lost"]["mean"] == pytest.approx(lost / len(decided))
    assert own["share"]["mean"] == pytest.approx(np.mean(probs.max(axis=1) <= found["threshold"]))
    cost = group.flops / (3 * 18_000)
    assert own["cost"]["mean"] == pytest.approx(cost + own["share"]["mean"])
    assert [found["test"][who]["cost"]["mean"] for who in ("student", "ensemble")] == pytest.approx(
        [cost, 1.0]
    )
    assert found["certified"] and found["units"] == "images" and 0 < own["share"]["mean"] < 1


def test_nobody_is_worse_than_the_ensemble_by_more_than_what_is_lost(found):
    for own in (*found["test"].values(), found["seeds"]):
        assert own["difference"]["mean"] >= -own["lost"]["mean"] - 1e-12
    assert found["test"]["ensemble"]["difference"]["mean"] == 0 == found["test"]["student"]["share"]["mean"]
    assert found["val"]["lost"] <= TOLERANCE and found["val"]["lost_of_units"] == found["val"]["lost"]


def test_the_keys_of_the_block_and_the_seeds_of_its_row(made, found):
    assert set(found["test"]) == {"student", "cascade", "ensemble"}
    for own in (*found["test"].values(), found["seeds"]):
        assert set(own) == METRICS | {"cost"}
        assert all(set(one) == {"mean", "std", "ci95", "ci_over", "values"} for one in own.values())
    group, member = lookup.network_to_deploy(made)
    assert found["seeds"]["accuracy"]["values"][member] == found["test"]["cascade"]["accuracy"]["mean"]
    other = cascade.of(made, group, (member + 1) % 3)
    assert found["seeds"]["lost"]["values"][(member + 1) % 3] == other["test"]["cascade"]["lost"]["mean"]
    assert set(found["curve"]) == {"threshold", "share", "accuracy", "cost"}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_test_set_has_no_part_in_threshold_and_rule(made, found):
    rng = np.random.default_rng(0)
    groups = tuple(
        dataclasses.replace(group, test=rng.normal(size=group.test.shape).astype(np.float32))
        for group in made.groups
    )
    labels = rng.permutation(made.test_labels)
    other = cascade.numbers(dataclasses.replace(made, groups=groups, test_labels=labels))
    for name in ("threshold", "rule", "student", "val"):
        assert other[name] == found[name]
    assert other["test"]["student"]["accuracy"]["mean"] < 0.5  # they were another's


def test_the_rule_has_probabilities_is_not_fitted_and_has_the_lowest_validation_nll(made):
    names = ("borda", "max_confidence", "mean_logits", "mean_probs", "weighted_mean")
    several = dataclasses.replace(made, rules=names)
    nlls = {row["rule"]: row["val"]["nll"] for row in scoring.rows(several) if row["role"] == "ensemble"}
    free = {name: nlls[name] for name in ("max_confidence", "mean_logits", "mean_probs")}
    assert cascade.fusion_rule(several) == min(free, key=free.get)
    assert nlls["weighted_mean"] is not None  # it has one, and was passed over
    assert cascade.fusion_rule(dataclasses.replace(made, rules=("borda", "weighted_mean"))) == "mean_probs"


def test_whose_cascade_it_is(made):
    """The student to deploy; the best one, where something else is; a baseline, where there is no student."""
    best = lookup.chosen_student(made)
    for choose in ("mlp", "baseline"):
        group, member = cascade.student_of(dataclasses.replace(made, choose=choose))
        assert (group.key, member) == (best[0].key, best[1])
    assert cascade.student_of(dataclasses.replace(made, choose="output_avg"))[0].name == "output_avg"
    alone = make(num_seeds=1, students={"baseline": ("baseline", 1.5)})
    assert cascade.student_of(dataclasses.replace(alone, choose="baseline"))[0].name == "baseline"
    assert cascade.student_of(made)[0].name == "vote"
    teachers = make(transfers=())
    assert cascade.student_of(teachers) is None is cascade.numbers(teachers)


def test_groups_are_the_units_where_there_are_some(made, built):
    """60 sequences of two images: an image alone would be one of 120 units, but only 60 are independent."""
    grouped = dataclasses.replace(made, val_groups=np.repeat(np.arange(60), 2))
    found = cascade.numbers(grouped)
    assert (found["units"], found["num_units"], found["certified"]) == ("groups", 60, True)
    assert found["threshold"] >= cascade.numbers(made)["threshold"]
    told = {**built, "cascade": found}
    assert "95 % sure (over 60 groups, each counted alike)" in " ".join(findings.summarise(told))
    assert "Hoeffding and Bentkus over the shares that whole groups lose" in caveats._promise(told)[0]


@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(20), 3)])
def test_a_run_keeps_the_groups_of_validation_and_without_any_each_image_is_one(groups):
    labels = np.tile([0, 1, 1], 20).astype(np.int32)
    dataset = DataSet(
        name="made up",
        train_images=np.zeros((60, 2, 2, 1), np.uint8),
        train_labels=labels,
        test_images=np.zeros((3, 2, 2, 1), np.uint8),
        test_labels=labels[:3],
        class_names=("a", "b"),
        train_groups=groups,
        test_groups=None if groups is None else np.array([20, 20, 21]),
    )
    split = loading.split(dataset, num_train=0, val_fraction=0.2, seed=0)
    kept_groups = evaluation._groups(split)
    if groups is None:
        assert len(np.unique(kept_groups)) == len(split.val) == len(kept_groups)
    else:
        np.testing.assert_array_equal(kept_groups, split.val // 3)


def test_costs_are_parameters_where_flops_are_not_known(made):
    groups = (dataclasses.replace(made.groups[0], flops=None), *made.groups[1:])
    found = cascade.numbers(dataclasses.replace(made, groups=groups))
    assert found["cost"] == {"of": "params", "student": 9_000.0, "ensemble": 27_000.0}


# --- the report ---------------------------------------------------------------------------------------


def test_a_report_says_and_shows_it(made, tmp_path):
    kept.save(tmp_path / "predictions.npz", made)
    built = document.write(tmp_path)
    found, own = built["cascade"], built["cascade"]["test"]["cascade"]
    (said,) = [text for text in built["findings"] if text.startswith("With a safety net: ")]
    for value in (found["threshold"], own["share"]["mean"], own["accuracy"]["mean"], own["lost"]["mean"]):
        assert f"{100 * value:.2f} %" in said
    assert "at most 5 points worse than the ensemble, 95 % sure" in said
    assert built["findings"][-1].startswith("What to deploy")
    assert "95 % is not quite that" in " ".join(built["notes"])
    page, text = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    folded = page[page.index("<details><summary>A student with a safety net") :]
    assert folded.index("<img") < folded.index(", then the ensemble</td>") < folded.index("</details>")
    assert page.count("all thresholds") == 2  # the picture stands once: its name and its caption
    assert "## A student with a safety net" in text and "](plots/cascade.png)" in text
    assert (tmp_path / "plots" / "cascade.png").stat().st_size > 0


def test_too_few_images_are_said_to_be_too_few(built):
    """120 images for two points, which take 149: everything is handed over, and nothing promised."""
    found = cascade.numbers(small())
    assert (found["certified"], found["threshold"], found["units_needed"]) == (False, 1.0, 149)
    assert found["test"]["cascade"]["share"]["mean"] == 1.0
    told = findings.summarise({**built, "cascade": found})
    (said,) = [text for text in told if text.startswith("With a safety net: ")]
    assert "that takes 149 validation images. There are 120, which are enough for 2.5 points at best" in said
    (label,) = [
        line
        for line in plots.cascade(found, "output_avg").legends[0].get_texts()
        if "hands over" in line.get_text()
    ]
    assert label.get_text().endswith("hands over 100.0 %: nothing less is certified")


def test_an_older_run_has_a_report_without_it(made):
    older = dataclasses.replace(made, val_groups=None)
    built = document.build(older)
    assert built["cascade"] is None and "cascade" not in document.figures(older, built, [])
    assert not any("safety net" in text for text in (*built["findings"], *built["notes"]))
    assert "safety net" not in document._markdown(built, []) + document._html("old", built, {}, None)
