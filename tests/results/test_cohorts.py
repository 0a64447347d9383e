"""What all peers say together, beside the student that is deployed: whole networks, and branches of one."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import stats

from mtkd_jax import experiment
from mtkd_jax.engine import training
from mtkd_jax.engine.population import members, take
from mtkd_jax.plans import plan
from mtkd_jax.report import caveats, document, findings, tables
from mtkd_jax.results import analysis, comparisons, evaluation, lookup, power
from mtkd_jax.runs.logbook import Logbook
from tests import small
from tests.references import metrics as reference
from tests.references.predictions import make

DML, PCL = "peers.dml(num_peers=3)", "online.pcl(num_peers=2, shared='most')"


@pytest.fixture(scope="module")
def evaluated():
    """Untrained, of which one peer of the first cohort is said to have broken down."""
    config = small.config(
        **{
            "model.name": "cnn(widths=(2, 3), dense=4)",
            "teachers.num_members": 2,
            "students.modes": (DML, PCL),
            "students.alphas": (0.5,),
            "fusion.rules": ("mean_probs",),
        }
    )
    split = experiment.load_split(config)
    stages, done = plan.build(config, split), {}
    for stage in stages:
        done[stage.name] = dataclasses.replace(training.untrained(stage.make(done)), seconds=6.0)
        of_dml = done[stage.name].population.names
        if stage.family and stage.family[0].mode == DML:
            first_peer = f"{DML} a=0.5 T=1 seed 0 peer 2"
            assert first_peer in of_dml
            done[stage.name] = dataclasses.replace(done[stage.name], diverged=(first_peer,))
    return stages, done, split, evaluation.predict(config, split, stages, done)


def probs(model, variables, images):
    logits = np.asarray(model.apply(variables, images.astype(np.float32) / 255)[0].logits, np.float64)
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def group_of(predicted, name):
    return lookup.find(predicted, "labelled", name=name)


def compare(group, seed, peers, labels):
    """A seed of a cohort's row with the mean over its peers [P,N,C]."""
    np.testing.assert_allclose(np.exp(group.test[seed]), np.mean(peers, axis=0), atol=1e-5)
    pairs = [(p, q) for i, p in enumerate(peers) for q in peers[i + 1 :]]
    apart = np.mean([np.abs(p - q).sum(axis=-1).mean() / 2 for p, q in pairs])
    np.testing.assert_allclose(group.peers_apart[seed], apart, rtol=1e-4)


def test_networks_side_by_side_without_the_one_that_broke_down(evaluated):
    stages, done, split, predicted = evaluated
    fitted = next(done[stage.name] for stage in stages if stage.family and stage.family[0].mode == DML)
    trained, images = fitted.population, split.dataset.test_images
    each = [probs(trained.model, take(trained.variables, m), images) for m in range(6)]
    group, leader = group_of(predicted, f"{DML} cohort"), group_of(predicted, DML)
    assert group.role == "cohort" and group.members == leader.members == ("seed 0", "seed 1")
    compare(group, 0, each[:2], predicted.test_labels)
    compare(group, 1, each[3:], predicted.test_labels)
    assert (group.params, group.num_in_cohort) == (3 * leader.params, 3)


def test_the_seconds_of_a_row_are_those_of_its_peers_too(evaluated):
    """Six seconds a stage: whoever was trained in it belongs to a row."""
    stages, _, _, predicted = evaluated
    rows = [group for group in predicted.groups if group.role in ("student", "baseline")]
    num_stages = sum(bool(stage.family) for stage in stages)
    assert sum(group.train_seconds for group in rows) == pytest.approx(6.0 * num_stages)
    (family,) = (stage.family for stage in stages if stage.family and stage.family[0].mode == DML)
    share = 2 * 3 / len(family)  # two seeds of three peers each
    assert group_of(predicted, DML).train_seconds == pytest.approx(6.0 * share)


def test_branches_are_all_kept_and_share_the_cost_of_their_stem(evaluated):
    stages, done, split, predicted = evaluated
    fitted = next(done[stage.name] for stage in stages if stage.family and stage.family[0].mode == PCL)
    model, images = fitted.branched.model, split.dataset.test_images
    group, leader = group_of(predicted, f"{PCL} cohort"), group_of(predicted, PCL)
    for seed in range(2):
        whole = take(fitted.branched.variables, seed)
        compare(group, seed, probs(model, whole, images), predicted.test_labels)
        own = take(fitted.population.variables, seed)
        jax.tree.map(np.testing.assert_array_equal, own, model.branch(whole, 0))
    assert leader.params < group.params < 2 * leader.params
    assert 1.01 * leader.flops < group.flops < 1.99 * leader.flops


def test_all_branches_are_restored_and_put_together_from_parts(tmp_path):
    few = {"model.name": "cnn(widths=(2, 3), dense=4)", "students.alphas": (0.5,), "train.epochs": 1}
    job = small.students_job(PCL, **few)
    with Logbook(tmp_path, quiet=True) as logbook:
        fitted, again = (training.fit(job, tmp_path / "at", logbook) for _ in range(2))
    parts = [dataclasses.replace(fitted, branched=members(fitted.branched, [m])) for m in range(2)]
    together = training.concatenate(parts).branched
    for other in (again.branched, together):
        jax.tree.map(np.testing.assert_array_equal, other.variables, fitted.branched.variables)


def test_the_report_says_what_a_student_loses_and_compares_no_cohort(evaluated):
    *_, predicted = evaluated
    report = document.build(predicted)
    assert [one["name"] for one in report["cohorts"]] == [DML, PCL]
    for one in report["cohorts"]:
        row = {row["name"]: row["accuracy"]["mean"] for row in report["rows"]}
        difference = row[one["name"]] - row[f"{one['name']} cohort"]
        np.testing.assert_allclose(one["mean_difference"], difference, atol=1e-12)
        assert 0 < one["peers_apart"] < 1
    (told,) = [text for text in report["findings"] if text.startswith("A student against its cohort: ")]
    assert DML in told and "its 2 peers, of which two are 0." in told
    named = {*(one["a"] for one in report["comparisons"]), *(one["b"] for one in report["comparisons"])}
    assert not any("cohort" in name for name in named | {report["deploy"]["name"]})
    (students,) = [cells for title, cells in tables.main_sections(report) if title.startswith("Students on")]
    assert {f"{DML} cohort", f"{PCL} cohort"} < {cells[0] for cells in students}


# --- against one another ------------------------------------------------------------------------------

SPREADS = {"pcl": 0.5, "one": 0.9, "dml": 1.6, "output_avg": 1.1}


def run_of(*with_peers, models={"mlp": 1.0}, transfers=("labelled", "unlabelled")):  # noqa: B006
    """A made-up run in which these rows learned with peers."""
    students = {name: ("student", spread) for name, spread in SPREADS.items()}
    students["baseline"] = ("baseline", 1.5)
    made = make(students=students, models=models, transfers=transfers, rules=("mean_probs",))
    groups = [
        dataclasses.replace(group, num_in_cohort=3 if group.name in with_peers else 1)
        for group in made.groups
    ]
    return dataclasses.replace(made, groups=tuple(groups))


def between(report, metric):
    return [
        one for one in report["comparisons"] if (one["family"], one["metric"]) == (power.WITH_PEERS, metric)
    ]


def scores(made, transfer, name, metric, model="mlp"):
    group = lookup.find(made, transfer, name=name, architecture=model)
    return [getattr(reference, metric)(logits.tolist(), made.test_labels) for logits in group.test]


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_students_with_peers_are_tested_against_one_another_by_themselves(metric):
    models = {"mlp": 1.0, "small": 0.5}
    made = run_of("pcl", "one", "dml", models=models)
    report = analysis.numbers(made)
    own = between(report, metric)
    expected = []
    for model in models:
        for transfer in ("labelled", "unlabelled"):
            for pair in (("pcl", "one"), ("pcl", "dml"), ("one", "dml")):
                expected.append((*pair, transfer, transfer, model))
    places = [(c["a"], c["b"], c["a_transfer"], c["b_transfer"], c["architecture"]) for c in own]
    assert sorted(places) == sorted(expected)
    by_scipy = []
    for a, b, transfer, _, model in places:
        of_a, of_b = (scores(made, transfer, name, metric, model) for name in (a, b))
        by_scipy.append(stats.ttest_rel(of_a, of_b).pvalue)
    np.testing.assert_allclose([c["p_value"] for c in own], by_scipy, rtol=1e-6)
    np.testing.assert_allclose([c["p_holm"] for c in own], reference.holm(by_scipy), rtol=1e-6)


def test_all_else_is_as_it_would_be_without_peers():
    with_peers, alone = (document.build(run_of(*names)) for names in (("pcl", "one", "dml"), ()))
    rest = [one for one in with_peers["comparisons"] if one["family"] != power.WITH_PEERS]
    assert rest == alone["comparisons"]
    assert [row["verdict"] for row in with_peers["rows"]] == [row["verdict"] for row in alone["rows"]]
    assert tables.comparison_sections(with_peers) == tables.comparison_sections(alone)
    told = [text for text in with_peers["findings"] if not text.startswith("Students with peers")]
    assert told == alone["findings"]


def test_no_seeds_are_asked_for_to_decide_these():
    with_peers, alone = (run_of(*names) for names in (("pcl", "one", "dml"), ()))
    assert power.plan(document.build(with_peers)) == power.plan(document.build(alone)) != []
    assert comparisons.undecided(with_peers) == comparisons.undecided(alone) != []


@pytest.mark.parametrize("names", [(), ("pcl",)])
def test_a_single_row_with_peers_has_none_to_be_compared_with(names):
    report = document.build(run_of(*names))
    assert not between(report, "accuracy") and not tables.with_peers(report)
    assert not any("with peers" in text for text in report["findings"] + report["notes"])
    assert tables.WITH_PEERS_TITLE not in document._markdown(report, [])
    assert tables.WITH_PEERS_TITLE not in document._html("run", report, {}, None)


def test_the_triangle_has_every_pair_once_with_the_sign_of_its_row():
    made = run_of("pcl", "one", "dml", transfers=("labelled",))
    report = document.build(made)
    ((title, header, cells),) = tables.with_peers(report)
    assert (title, header) == ("Students, labelled", ["", "1", "2"])
    names = [row[0] for row in cells]
    assert names == ["1 pcl", "2 one", "3 dml"]
    mean = {name: 100 * np.mean(scores(made, "labelled", name, "accuracy")) for name in SPREADS}
    mark = {"better": " -", "worse": " +", "equivalent": " =", "undecided": ""}  # of the column, over the row
    verdict = {(one["a"], one["b"]): one["verdict"] for one in between(report, "accuracy")}
    for row, column, cell in [
        ("one", "pcl", cells[1][1]),
        ("dml", "pcl", cells[2][1]),
        ("dml", "one", cells[2][2]),
    ]:
        assert cell == f"{mean[row] - mean[column]:+.2f}{mark[verdict[column, row]]}"
    assert verdict["pcl", "dml"] == "better" and cells[0][1:] == ["", ""] and cells[1][2] == ""
    for text in (document._markdown(report, []), document._html("run", report, {}, None)):
        assert tables.WITH_PEERS_TITLE in text and "over all 3 pairs" in text and cells[2][1] in text


def test_a_sentence_names_who_is_ahead_and_counts_the_rest():
    made = run_of("pcl", "one", "dml", transfers=("labelled",))
    worst_first = dataclasses.replace(made, groups=(made.groups[0], *made.groups[:0:-1]))
    report = document.build(worst_first)
    (told,) = [text for text in report["findings"] if text.startswith("Students with peers, against one")]
    own = between(report, "accuracy")
    behind = [one for one in own if one["verdict"] == "worse"]
    assert any((one["a"], one["b"]) == ("dml", "pcl") for one in behind)
    for one in behind:
        low, high = (100 * end for end in one["ci95"])
        difference = f"{-100 * one['mean_difference']:+.2f} points [{-high:.2f}, {-low:.2f}]"
        assert f"{one['b']} beats {one['a']}, {difference}, Holm p " in told
    undecided = sum(one["verdict"] == "undecided" for one in own)
    equivalent = sum(one["verdict"] == "equivalent" for one in own)
    assert undecided + equivalent + len(behind) == 3
    assert (f"Undecided: {undecided} of 3 pairs" in told) == bool(undecided)
    assert (f": {equivalent} of 3 pairs." in told) == bool(equivalent)
    assert "Students with peers, against one another, are corrected by themselves." in caveats._comparisons(
        report
    )


def test_many_pairs_are_told_by_who_is_ahead():
    def pair(a, b, mean):
        return {"a": a, "b": b, "mean_difference": mean, "verdict": "better"}

    pairs = [pair("x", "z", 0.02), pair("y", "z", 0.0125), pair("x", "y", 0.006)]
    told = findings._by_who_is_ahead([*pairs, pair("x", "w", 0.015), pair("y", "w", 0.011)])
    assert told == [
        "x, y are ahead of z, w, by 1.10 to 2.00 points.",
        "x is ahead of y, by 0.60 points.",
        "All with Holm p below 0.05; the triangle has every difference.",
    ]


def test_of_many_cohorts_the_two_ends_are_told_and_how_many_are_clear():
    built = document.build(run_of("pcl", "one", "dml", transfers=("labelled",)))
    one = {"transfer": "labelled", "cohort": 0.9, "num_in_cohort": 3, "peers_apart": None}
    differences = {"a": -0.01, "b": 0.02, "c": 0.0, "d": -0.03, "e": -0.02}
    cohorts = [
        {
            **built["rows"][-1],
            **one,
            "name": name,
            "mean_difference": mean,
            "ci95": [mean - 0.005, mean + 0.005],
        }
        for name, mean in differences.items()
    ]
    (told,) = findings._cohorts({**built, "cohorts": cohorts})
    assert (
        "d (labelled) -3.00 points [-3.50, -2.50] from the 90.00 % of its 3 peers; b (labelled) +2.00" in told
    )
    assert "Beyond noise 3 of 5 are behind and 1 ahead." in told and " c (" not in told
    (told,) = findings._cohorts({**built, "cohorts": cohorts[:4]})
    assert "Beyond noise" not in told and told.count(" from the ") == 4
