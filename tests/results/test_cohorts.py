"""What all peers say together, beside the student that is deployed: whole networks, and branches of one."""

import dataclasses

import jax
import numpy as np
import pytest

from mtkd_jax import experiment
from mtkd_jax.engine import training
from mtkd_jax.engine.population import members, take
from mtkd_jax.plans import plan
from mtkd_jax.report import document, tables
from mtkd_jax.results import analysis, evaluation
from mtkd_jax.runs.logbook import Logbook
from tests import small

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
        done[stage.name] = training.untrained(stage.make(done))
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
    return analysis.find(predicted, "labelled", name=name)


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
