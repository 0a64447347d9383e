"""How often students repeat the ensemble's mistakes, against counting by hand and a made-up run."""

import dataclasses

import numpy as np
import pytest

from mtkd_jax.report import document, tables
from mtkd_jax.results import comparisons, lookup, metrics
from tests.references import predictions as made_up


@pytest.fixture(scope="module")
def made():
    return made_up.make(num_seeds=4, num_test=200)


def test_the_share_is_of_what_the_other_gets_wrong():
    labels, said = np.array([0, 1, 2, 0, 1]), np.array([0, 2, 1, 1, 0])  # wrong on all but the first
    logits = np.eye(3)[[1, 2, 0, 1, 1]]  # says the same wrong class on the second and the fourth
    assert metrics.share_repeated(logits, said, labels) == 0.5
    assert np.isnan(metrics.share_repeated(logits, labels, labels))


def test_each_row_is_paired_with_its_baseline_seed_by_seed(made):
    found = {(one["name"], one["transfer"]): one for one in comparisons.negative_transfer(made)}
    assert set(found) == {
        (group.name, group.transfer) for group in made.groups if group.role in ("student", "control")
    }
    probs = np.exp(made.groups[0].test.astype(np.float64))
    decided = (probs / probs.sum(axis=-1, keepdims=True)).mean(axis=0).argmax(axis=-1)
    wrong = np.flatnonzero(decided != made.test_labels)
    for (name, transfer), one in found.items():
        share = {}
        for of in (name, "baseline"):
            (group,) = (g for g in made.groups if (g.name, g.transfer) == (of, transfer))
            share[of] = [
                sum(own[row].argmax() == decided[row] for row in wrong) / len(wrong) for own in group.test
            ]
        assert one["num_wrong"] == len(wrong) and one["n"] == 4
        np.testing.assert_allclose(one["repeats"]["values"], share[name])
        assert one["baseline"] == pytest.approx(np.mean(share["baseline"]))
        difference = np.subtract(share[name], share["baseline"])
        assert one["mean_difference"] == pytest.approx(difference.mean())
        half = 3.182446 * difference.std(ddof=1) / 2  # Student's t of 4 - 1 degrees of freedom
        np.testing.assert_allclose(
            one["ci95"], [difference.mean() - half, difference.mean() + half], atol=1e-6
        )
        assert one["p_holm"] >= one["p_value"]


def test_who_says_all_that_the_ensemble_says_repeats_all_its_mistakes(made):
    ensemble = lookup.fused(made, "mean_probs")["test"]
    groups = tuple(
        dataclasses.replace(group, test=np.stack([ensemble] * 4)) if group.name == "mimic_all" else group
        for group in made.groups
    )
    changed = dataclasses.replace(made, groups=groups)
    one = next(one for one in comparisons.negative_transfer(changed) if one["name"] == "mimic_all")
    assert one["repeats"]["mean"] == 1.0 and one["mean_difference"] > 0


def test_the_difference_is_that_of_the_two_shares_where_seeds_are_lacking(made):
    """The baseline lacks the first seed, a student the last one, and another student has none of them."""
    kept = {"baseline": slice(1, 4), "mimic_all": slice(0, 3), "output_avg": slice(0, 1)}
    groups = tuple(
        dataclasses.replace(group, members=group.members[own], test=group.test[own])
        if (own := kept.get(group.name)) is not None
        else group
        for group in made.groups
    )
    found = comparisons.negative_transfer(dataclasses.replace(made, groups=groups))
    num_shared = {one["name"]: one["n"] for one in found}
    assert num_shared["mimic_all"] == 2 and "output_avg" not in num_shared
    for one in found:
        assert len(one["repeats"]["values"]) == one["n"]
        assert one["mean_difference"] == pytest.approx(one["repeats"]["mean"] - one["baseline"])


def test_the_report_tells_it_and_of_an_ensemble_without_mistakes_there_is_nothing_to_tell(made):
    report = document.build(made)
    header, cells = tables.negative_transfer(report)
    assert all(len(row) == len(header) for row in cells) and header[1] == "transfer set"
    wrong = report["negative_transfer"][0]["num_wrong"]
    assert f"the {wrong} test images" in tables.negative_transfer_caption(report)
    perfect = 9 * np.eye(10, dtype=np.float32)[made.test_labels]
    groups = tuple(
        dataclasses.replace(group, test=np.stack([perfect] * 5)) if group.role == "teacher" else group
        for group in made.groups
    )
    assert comparisons.negative_transfer(dataclasses.replace(made, groups=groups)) == []
