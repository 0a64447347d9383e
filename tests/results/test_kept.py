"""What is kept of the ensemble: terms against slow references, shares against hand-made runs."""

import dataclasses

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from mtkd_jax.report import caveats, document, plots, tables
from mtkd_jax.results import intervals, kept, metrics
from tests.references import metrics as reference
from tests.references.predictions import make

RNG = np.random.default_rng(0)
LABELS = RNG.integers(4, size=60)
LOGITS = RNG.normal(size=(60, 4)) * 2 + 1.5 * np.eye(4)[LABELS]


@pytest.fixture(scope="module")
def made():
    """Networks that were asked about corrupted images and outliers; of two students one keeps members."""
    students = {"output_avg": ("student", 2.5), "mimic_all": ("student", 2.0), "baseline": ("baseline", 3.5)}
    run = make(num_seeds=4, num_teachers=3, num_test=200, transfers=("unlabelled",), students=students)
    rng = np.random.default_rng(7)
    groups = []
    for group in run.groups:
        shifted = np.clip(0.7 + 0.2 * rng.normal(size=(len(group.members), 6, 200)), 0, 1)
        asked = {
            "shifted": shifted.astype(np.float32),
            "by_shift": rng.uniform(size=(len(group.members), 6, 2, 3)),
            "outliers": 2 * rng.normal(size=(len(group.members), 50, 10)).astype(np.float32),
        }
        if group.name == "mimic_all":
            asked["mutual"] = rng.uniform(0, 0.1, size=(len(group.members), 200))
            asked["mutual_outliers"] = rng.uniform(0.05, 0.2, size=(len(group.members), 50))
        groups.append(dataclasses.replace(group, **asked))
    return dataclasses.replace(
        run,
        groups=tuple(groups),
        corruptions=("fog", "snow"),
        strengths=(1, 3, 5),
        ood="letters",
        ensemble_shifted=np.stack([np.full(200, value) for value in (0.9, 0.3, 0.3, 0.1, 0.1, 0.1)]),
        ensemble_by_shift=rng.uniform(size=(6, 2, 3)),
    )


# --- terms --------------------------------------------------------------------------------------------


def test_the_temperature_is_where_the_nll_is_lowest():
    found = metrics.fit_temperature(LOGITS, LABELS)
    nll = lambda log_t: reference.nll((LOGITS / np.exp(log_t)).tolist(), LABELS)  # noqa: E731
    best = minimize_scalar(nll, bounds=(-4, 4), method="bounded", options={"xatol": 1e-7})
    assert found == pytest.approx(np.exp(best.x), rel=1e-4)
    assert metrics.fit_temperature(7 * LOGITS, LABELS) == pytest.approx(7 * found, rel=1e-4)


def test_the_temperature_stops_where_no_end_is_the_best():
    right = np.eye(4)[LABELS]
    assert metrics.fit_temperature(right, LABELS) == metrics.COLDEST
    assert metrics.fit_temperature(-right, LABELS) == metrics.HOTTEST


def test_terms_have_the_numbers_as_means():
    assert metrics.ece_terms(LOGITS, LABELS).mean() == pytest.approx(reference.ece(LOGITS.tolist(), LABELS))
    assert metrics.aurc(LOGITS, LABELS) == pytest.approx(reference.aurc(LOGITS.tolist(), LABELS))
    inside, outside = RNG.integers(5, size=30) / 4, RNG.integers(2, 7, size=20) / 4  # with ties
    slow = np.mean([[(o > i) + 0.5 * (o == i) for i in inside] for o in outside])
    for terms in metrics.auroc_terms(inside, outside):
        assert terms.mean() == pytest.approx(slow)


def test_terms_say_how_a_number_moves_when_an_example_is_there_once_more():
    """To first order: so by the difference that a copy makes, and by no more than 1/N of it beside that."""
    large = np.random.default_rng(3)
    labels = large.integers(4, size=2000)
    logits = large.normal(size=(2000, 4)) + np.eye(4)[labels]
    terms, whole = metrics.aurc_terms(logits, labels), metrics.aurc(logits, labels)
    for n in range(0, 2000, 400):
        again = np.append(np.arange(2000), n)
        moved = metrics.aurc(logits[again], labels[again]) - whole
        assert moved * 2001 == pytest.approx(terms[n] - whole, abs=0.02)


def test_mutual_information_is_the_reference():
    logits = RNG.normal(size=(3, 5, 4)) * 3
    probs = np.array([reference.probabilities(one) for one in logits])
    entropy = lambda p: -(p * np.log(p)).sum(axis=-1)  # noqa: E731
    slow = entropy(probs.mean(axis=0)) - entropy(probs).mean(axis=0)
    np.testing.assert_allclose(metrics.mutual_information(logits), slow)
    np.testing.assert_allclose(metrics.mutual_information(np.stack([logits[0]] * 3)), 0, atol=1e-12)
    certain = 90 * np.stack([np.eye(4)[[0]], np.eye(4)[[1]]])  # two who are sure of different things
    np.testing.assert_allclose(metrics.mutual_information(certain), np.log(2))


# --- shares -------------------------------------------------------------------------------------------


def test_shares_by_hand(made):
    found = kept.numbers(made)
    (section,) = found["sections"]
    assert set(found["quantities"]) == set(kept.QUANTITIES)
    gap = section["gaps"]["nll"]
    baseline = next(group for group in made.groups if group.role == "baseline")
    student = next(group for group in made.groups if group.name == "mimic_all")
    nll = [np.mean([metrics.nll(one, made.test_labels) for one in each.test]) for each in (baseline, student)]
    assert gap["defined"] and gap["baseline"] == pytest.approx(nll[0])
    row = next(row for row in section["rows"] if row["name"] == "mimic_all")
    share = row["shares"]["nll"]
    assert share["value"] == pytest.approx(nll[1])
    assert share["share"] == pytest.approx((nll[1] - nll[0]) / (gap["ensemble"] - nll[0]))
    assert share["ci95"][0] < share["share"] < share["ci95"][1]
    assert section["by_strength"]["ensemble"] == pytest.approx(made.ensemble_by_shift[0].mean(axis=0))


def test_shares_are_as_wide_as_few_seeds_ask_for():
    """Against the delta method, a - s b - (1 - s) c of student, ensemble and baseline, with Student's t."""
    students = {"output_avg": ("student", 2.5), "baseline": ("baseline", 3.5)}
    run = make(num_seeds=3, num_teachers=3, num_test=4000, students=students)
    (section,) = (one for one in kept.numbers(run)["sections"] if one["transfer"] == "unlabelled")
    (row,) = section["rows"]
    (student, baseline) = (
        next(one for one in run.groups if one.name == name and one.transfer == "unlabelled")
        for name in ("output_avg", "baseline")
    )

    def nll(logits):
        temperature = [metrics.fit_temperature(one, run.val_labels) for one in logits[1]]
        return np.stack(
            [metrics.terms(one, run.test_labels, at)["nll"] for one, at in zip(logits[0], temperature)]
        )

    of_student, of_baseline = (nll((group.test, group.val)) for group in (student, baseline))
    said = kept._ensemble(run)
    of_ensemble = nll((said.test, said.val))
    gap = of_ensemble.mean() - of_baseline.mean()
    share = (of_student.mean() - of_baseline.mean()) / gap
    moved = (of_student - (1 - share) * of_baseline - share * of_ensemble) / gap
    half = np.diff(intervals.crossed_t(moved, 0.0)["ci95"])[0] / 2
    found = row["shares"]["nll"]
    assert found["share"] == pytest.approx(share)
    assert np.diff(found["ci95"])[0] / 2 == pytest.approx(half, rel=0.3)


def test_who_keeps_no_members_keeps_nothing_of_their_disagreement(made):
    (section,) = kept.numbers(made)["sections"]
    rows = {row["name"]: row["shares"] for row in section["rows"]}
    assert section["gaps"]["mutual"]["baseline"] == 0 and section["gaps"]["mutual"]["defined"]
    assert rows["output_avg"]["mutual"]["share"] == 0 < rows["mimic_all"]["mutual"]["share"]
    assert rows["output_avg"]["ood_mutual"]["value"] == 0.5


def test_a_student_that_is_the_ensemble_keeps_everything(made):
    ensemble = kept._ensemble(made)
    copied = {
        "val": np.repeat(ensemble.val, 4, axis=0),
        "test": np.repeat(ensemble.test, 4, axis=0),
        "shifted": np.repeat(made.ensemble_shifted[None], 4, axis=0),
        "outliers": np.repeat(ensemble.outliers, 4, axis=0),
        **{
            name: np.repeat(values, 4, axis=0)
            for name, values in zip(("mutual", "mutual_outliers"), ensemble.mutual)
        },
    }
    groups = tuple(
        dataclasses.replace(one, **copied) if one.name == "mimic_all" else one for one in made.groups
    )
    (section,) = kept.numbers(dataclasses.replace(made, groups=groups))["sections"]
    row = next(row for row in section["rows"] if row["name"] == "mimic_all")
    defined = [share for name, share in row["shares"].items() if section["gaps"][name]["defined"]]
    assert len(defined) >= 4
    for share in defined:
        assert share["share"] == pytest.approx(1, abs=1e-5) and share["ci95"] == pytest.approx(
            [1, 1], abs=1e-4
        )


def test_where_nothing_is_gained_no_share_is_defined_and_it_is_said(made):
    """The baseline is one of three equal teachers: the ensemble is the very same network."""
    teacher, *others = made.groups
    same = dataclasses.replace(
        teacher, **{name: np.stack([getattr(teacher, name)[0]] * 3) for name in ("val", "test", "outliers")}
    )
    copies = {name: np.stack([getattr(teacher, name)[0]] * 4) for name in ("val", "test", "outliers")}
    groups = (
        same,
        *(dataclasses.replace(one, **copies) if one.role == "baseline" else one for one in others),
    )
    run = dataclasses.replace(made, groups=groups, ensemble_shifted=None, ensemble_by_shift=None)
    report = document.build(run)
    (section,) = report["kept"]["sections"]
    assert not any(gap["defined"] for gap in section["gaps"].values())
    assert "shift_nll" not in section["gaps"]
    _, ((_, (_, _, *cells)),) = tables.kept(report)
    assert {cell for row in cells for cell in row[1:]} == {"not defined"}
    assert plots.kept(report["kept"]) is None
    assert not any(one.startswith("What is kept") for one in report["findings"])


def test_the_report_shows_it_and_says_what_the_teachers_cannot(made, tmp_path):
    report = document.build(made)
    assert any(one.startswith("What is kept") for one in report["findings"])
    assert plots.kept(report["kept"]) is not None
    text = document._kept_markdown(report)
    assert "fog, snow, at strengths 1, 3, 5" in text and "letters" in text
    assert "by more than noise, or there is one seed" in text
    silent = dataclasses.replace(made.groups[0], outliers=None, shifted=None)
    unasked = dataclasses.replace(made, groups=(silent, *made.groups[1:]), ensemble_shifted=None)
    assert "corrupted images and outliers" in " ".join(caveats._never_asked(unasked))
    assert caveats._never_asked(made) == []


def test_students_are_named_where_accuracy_is_not_defined(made):
    found = kept.numbers(dataclasses.replace(made, ensemble_shifted=None, ensemble_by_shift=None))
    (section,) = found["sections"]
    section["gaps"]["accuracy"]["defined"] = False
    (legend,) = plots.kept(found).legends
    assert [one.get_text() for one in legend.get_texts()] == [row["name"] for row in section["rows"]]


def test_a_run_without_a_baseline_has_no_shares():
    assert kept.numbers(make(transfers=(), rules=())) is None
