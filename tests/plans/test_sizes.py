"""Students of several architectures in one run: what is trained, compared with what, and chosen."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import mtkd_jax
from mtkd_jax import api, experiment
from mtkd_jax import config as configuration
from mtkd_jax.engine import teacher_cache, training
from mtkd_jax.plans import plan, students
from mtkd_jax.report import document, findings, plots, side_by_side, tables, wording
from mtkd_jax.results import intervals, lookup
from mtkd_jax.runs import predictions
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.types import UserError
from tests import small
from tests.references.predictions import curves, make

SMALL, LARGE = "mlp(hidden=(3,))", "mlp(hidden=(12,))"
SIZES = {"students.models": (LARGE, SMALL)}
FAMILIES = ("mimic-all", "output-avg")
MADE = {"mlp": 1.0, "mlp(hidden=(8,))": 0.5}  # architecture: size


def stage_names(config):
    return [stage.name for stage in plan.build(config, experiment.load_split(config))]


# --- plans --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", [{}, {"students.model": SMALL}, {"students.models": (SMALL,)}])
def test_stages_and_members_of_one_architecture_are_called_what_they_always_were(one):
    names = stage_names(small.config(**one))
    assert names == ["teachers-mlp-hidden-8", *(f"students-labelled-{family}" for family in FAMILIES)]
    (family, *_) = students.families(small.config(**one))
    assert students.member_name(family[0]) == "mimic_all a=0 T=1 seed 0"


def test_every_architecture_has_the_whole_grid_in_stages_of_its_own():
    config = small.config(**SIZES)
    assert stage_names(config) == [
        "teachers-mlp-hidden-8",
        *(f"students-labelled-{f}-at-mlp-hidden-{h}" for f in FAMILIES for h in (12, 3)),
    ]
    of_one = students.families(small.config())
    of_both = students.families(config)
    for model in (LARGE, SMALL):
        own = [family for family in of_both if family[0].model == model]
        assert [students.of_model(family, "") for family in own] == list(of_one)


PLANS = {
    "born_again(generations=2)": ("born_again 1", "born_again 2"),
    "assistants(models=('mlp(hidden=(6,))', 'mlp(hidden=(5,))'))": ("assisted",),
    "hints_then_distil": ("hints_then_distil",),
    "specialists": (),
}


@pytest.mark.parametrize("address", PLANS)
def test_what_a_plan_adds_is_there_for_each_architecture_with_fitting_teachers(address):
    """Traced to the end: each generation and each assisted student is taught by what its plan says."""
    config = small.config(**{"plan": address, "students.modes": ("output_avg",), **SIZES})
    split = experiment.load_split(config)
    stages = plan.build(config, split)
    assert len({stage.name for stage in stages}) == len(stages)
    for mode in ("output_avg", "baseline", *PLANS[address]):
        own = [m.model for stage in stages for m in stage.family if m.mode == mode]
        assert {model: own.count(model) for model in own} == dict.fromkeys((LARGE, SMALL), own.count(SMALL))
    done = plan.rehearse(stages, config, {})
    for stage in stages:
        model = stage.family[0].model if stage.family else ""
        trained = done[stage.name].population.model.name
        assert trained == model or not model
        job = (stage.outline or stage.make)(done)
        if stage.family and stage.family[0].mode.startswith("born_again"):
            assert [teacher.name for teacher in job.program.teachers] == [model]
        if stage.family and stage.family[0].mode == "assisted":
            assert [teacher.name for teacher in job.program.teachers] == ["mlp(hidden=(5,))"]


def test_what_teachers_say_is_asked_once_for_all_architectures(monkeypatch):
    config, asked = small.config(**SIZES, **{"data.augment.noise": 0.1}), []
    split, ask = experiment.load_split(config), teacher_cache._ask
    monkeypatch.setattr(
        teacher_cache, "_ask", lambda job, by: (asked.append((job.stage, by)), ask(job, by))[1]
    )
    done, cache = {}, {}
    for stage in plan.build(config, split):
        job = teacher_cache.fill(stage.make(done), cache)
        done[stage.name] = training.untrained(job)
    assert asked == [("students-labelled-mimic-all-at-mlp-hidden-12", "step")]


# --- a run --------------------------------------------------------------------------------------------


OUTPUT_AVG = {"students.modes": ("output_avg",), "train.epochs": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(configuration, folder, report) of a run with two sizes of student, which deploys the smaller one."""
    config = small.config(**SIZES, **OUTPUT_AVG, **{"export.choose": f"student @ {SMALL}"})
    into = tmp_path_factory.mktemp("run")
    return config, into, experiment.run(config, into, quiet=True)


def test_a_run_has_a_row_for_each_architecture_and_mode(finished):
    _, into, report = finished
    rows = [row for row in report["rows"] if row["role"] not in ("teacher", "linear", "ensemble")]
    expected = [(model, mode) for model in (LARGE, SMALL) for mode in ("output_avg", "baseline")]
    assert [(row["architecture"], row["name"]) for row in rows] == expected
    assert report["student_models"] == [LARGE, SMALL]
    assert [one["architecture"] for one in report["students_by_size"]] == [SMALL, LARGE]
    assert document.write(into) == report  # from predictions.npz alone


def test_the_network_of_a_size_is_deployed_where_it_is_asked_for(finished):
    _, into, report = finished
    assert (report["deploy"]["role"], report["deploy"]["architecture"]) == ("student", SMALL)
    assert mtkd_jax.load_student(into / "student").model.name == SMALL
    assert findings.advice(report).startswith(f"Deploy output_avg @ {SMALL} (labelled, seed ")


def test_students_of_a_size_are_those_of_a_run_with_it_alone(finished, tmp_path):
    """The same seeds on the same batches: what stands beside a student changes nothing of it."""
    config, into, _ = finished
    of_both = experiment.train(config, into, quiet=True).done  # restored
    alone = small.config(**OUTPUT_AVG, **{"students.model": SMALL})
    teachers, stage = plan.build(alone, experiment.load_split(alone))
    with Logbook(tmp_path, quiet=True) as logbook:
        done = plan.run((stage,), tmp_path, logbook, 1e9, {teachers.name: of_both[teachers.name]})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        done[stage.name].population.variables,
        of_both[f"{stage.name}-at-mlp-hidden-3"].population.variables,
    )


def test_a_stage_that_is_lost_is_trained_again_and_no_other(finished, tmp_path, monkeypatch):
    config, into, report = finished
    lost, advanced, advance = "students-labelled-output-avg-at-mlp-hidden-12", set(), training.advance
    shutil.copytree(into, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / lost)
    (tmp_path / "again" / "report.json").unlink()
    monkeypatch.setattr(training, "advance", lambda job, *a: (advanced.add(job.stage), advance(job, *a))[1])
    again = experiment.run(config, tmp_path / "again", quiet=True)
    assert advanced == {lost}
    means = [[row["accuracy"]["mean"] for row in one["rows"]] for one in (again, report)]
    assert means[0] == pytest.approx(means[1])


def test_other_architectures_are_another_run(finished):
    config, into, _ = finished
    more = small.config(**OUTPUT_AVG, **{"students.models": (LARGE, SMALL, "mlp")})
    with pytest.raises(UserError, match="students.models was"):
        experiment.run(more, into, quiet=True)


def test_costs_are_told_for_every_architecture():
    told = [cost.stage for cost in experiment.costs(small.config(**SIZES))]
    assert told == stage_names(small.config(**SIZES))


@pytest.mark.parametrize("model, asked", [(SMALL, (SMALL,)), ([SMALL, LARGE], (SMALL, LARGE))])
def test_in_python_a_student_is_the_best_of_several_architectures(model, asked, monkeypatch):
    """What `distil` trains is what such a configuration does; of which row the best is, the rest asks."""

    class Asked(Exception):
        """With the configuration."""

    def train(config, *_):
        raise Asked(config)

    monkeypatch.setattr(api.experiment, "train", train)
    before = small.config(**{**SIZES, "teachers.trained": False})
    teachers = api.Teachers(type("Trained", (), {"config": before}), None, "w")
    with pytest.raises(Asked) as error:
        api.distil(teachers, model=model)
    config = error.value.args[0]
    assert configuration.student_models(config) == asked and config.export.choose == "output_avg"


# --- what cannot be -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, said",
    [
        ({"students.models": ("mlp", "mlp(hidden=(64, 64))")}, "twice"),
        ({"students.models": ("mlp", "mpl")}, "did you mean 'mlp'"),
        ({**SIZES, "students.model": "mlp"}, "students are of one or the other"),
        ({"students.models": ("mlp", "cnn(widths=(4,4,4,4))")}, "4x4"),
        (
            {**SIZES, "students.init_from": "a.npz"},
            "config.students.init_from: a file is of one architecture",
        ),
        (
            {**SIZES, "export.choose": "output_avg @ mlp(hidden=(4,))"},
            "did you mean 'output_avg @ mlp(hidden=",
        ),
        ({**SIZES, "export.choose": f"vote @ {SMALL}"}, "there will be no row"),
        ({**SIZES, "students.modes": ("features.hints(student='stage9')",)}, f"@ {LARGE}"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_trained(overrides, said, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "first_progress", lambda job: pytest.fail("trained"))
    with pytest.raises(UserError) as error:
        experiment.run(small.config(**overrides), tmp_path, quiet=True)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_row_of_a_size_has_one_spelling():
    config = small.config(**SIZES, **{"export.choose": "output_avg @ mlp(hidden=( 3, ), dropout=0.0)"})
    assert configuration.in_one_spelling(config).export.choose == f"output_avg @ {SMALL}"


# --- the report ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made():
    return make(models=MADE)


@pytest.fixture(scope="module")
def built(made):
    return document.build(made)


def only(made, architecture):
    """The same run without the students of the other architecture."""
    groups = tuple(g for g in made.groups if g.role == "teacher" or g.architecture == architecture)
    return dataclasses.replace(made, groups=groups)


def uncorrected(report, model):
    """The comparisons of one architecture without what depends on how many there are."""
    left_out = ("p_holm", "verdict", "detectable")
    return [
        {name: value for name, value in one.items() if name not in left_out}
        for one in report["comparisons"]
        if one["architecture"] == model
    ]


def test_students_are_compared_with_those_of_their_own_size(made, built):
    """Against the run with that size alone: all but Holm's correction, which is over both, is the same."""
    for model in MADE:
        alone = document.build(only(made, model))
        assert uncorrected(built, model) == uncorrected(alone, model)
        assert [gap for gap in built["gaps"] if gap["architecture"] == model] == alone["gaps"]
        shares = [
            row["gap_share"] for row in built["rows"] if row["architecture"] == model and row["transfer"]
        ]
        assert shares == [row["gap_share"] for row in alone["rows"] if row["transfer"]]
        assert [one for one in built["students_by_size"] if one["architecture"] == model] == (
            alone["students_by_size"]
        )
    for family in ("labelled", "unlabelled"):
        own = [c for c in built["comparisons"] if (c["family"], c["metric"]) == (family, "accuracy")]
        assert [c["p_holm"] for c in own] == intervals.holm([c["p_value"] for c in own])
        assert {c["architecture"] for c in own} == set(MADE)


def test_the_student_of_a_size_is_chosen_by_validation(made, built):
    for one in built["students_by_size"]:
        own = [row for row in built["rows"] if row["architecture"] == one["architecture"]]
        best = min((row for row in own if row["role"] == "student"), key=lambda row: row["val"]["nll"])
        assert (one["name"], one["transfer"]) == (best["name"], best["transfer"])
        ensemble = next(row for row in built["rows"] if row["rule"] == "mean_probs")
        difference = best["accuracy"]["mean"] - ensemble["accuracy"]["mean"]
        assert one["difference"] == pytest.approx(difference)
        assert one["ci95"][0] < difference < one["ci95"][1]


def test_a_size_can_be_asked_for_by_its_row(made):
    smaller = list(MADE)[1]
    for choose, name in ((f"vote @ {smaller}", "vote"), (f"student @ {smaller}", None)):
        group, _ = lookup.network_to_deploy(dataclasses.replace(made, choose=choose))
        assert group.architecture == smaller and name in (None, group.name)
        report = document.build(dataclasses.replace(made, choose=choose))
        assert f"as export.choose = {choose} asks" in report["findings"][-1]
    lost = document.build(dataclasses.replace(made, choose="vote @ mlp(hidden=(9,))"))
    assert (
        "Of vote @ mlp(hidden=(9,)), which export.choose asks for, no network is left" in lost["findings"][-1]
    )


def sized(*verdicts, n=5):
    """What a report says of students "s0", "s1", ... with these verdicts, smallest first."""
    models = [f"s{k}" for k in range(len(verdicts))]
    same = {"name": "vote", "transfer": "labelled", "n": n, "difference": -0.01, "ci95": (-0.02, 0.0)}
    each = [
        {"architecture": model, "params": 100 * (k + 1), "verdict": verdict} | same
        for k, (model, verdict) in enumerate(zip(models, verdicts))
    ]
    (said,) = findings._by_size({"students_by_size": each, "student_models": models, "margin": 0.01})
    return said


EQUIVALENT = "The smallest that is equivalent to it, closer than 1 points, is vote @ "
UNCLEAR = "The smallest that is not told apart from it, which is less, is vote @ "
NONE = "None is shown to be equivalent to it, closer than 1 points."


@pytest.mark.parametrize(
    "verdicts, said",
    [
        (("worse", "undecided", "equivalent"), f"{EQUIVALENT}s2. {UNCLEAR}s1."),
        (("worse", "equivalent", "undecided"), f"{EQUIVALENT}s1."),
        (("worse", "better"), "The smallest that is better than it is vote @ s1."),
        (("undecided", "undecided"), f"{NONE} {UNCLEAR}s0."),
        (("worse", "worse"), f"{NONE} All are worse."),
    ],
)
def test_the_smallest_student_as_good_as_the_ensemble_is_named_or_that_there_is_none(verdicts, said):
    text = sized(*verdicts)
    assert text.startswith(
        "How small a student may be: Against the ensemble by mean_probs, vote @ s0 (labelled, "
    )
    assert text.endswith(said) and not text.removesuffix(said).count("The smallest")
    assert sized(*verdicts, n=1).endswith(" Of one seed nothing is told.")


def test_every_form_of_a_report_says_the_size(made, built, tmp_path):
    predictions.save(tmp_path / "predictions.npz", made)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in curves(made, 2)))
    assert document.write(tmp_path) == built
    text, page = ((tmp_path / f"report.{kind}").read_text() for kind in ("md", "html"))
    for whole in (text, page):
        assert "How small a student may be" in whole and "Students mlp(hidden=(8,)) on 100 labelled" in whole
    read = [line.rsplit(",", 1)[-1] for line in (tmp_path / "results.csv").read_text().splitlines()]
    assert read[0] == "architecture" and "mlp" in read
    header, cells = tables.by_size(built)
    assert [row[0] for row in cells] == ["mlp(hidden=(8,))", "mlp", "all 5 teachers"]
    assert all(len(row) == len(header) for row in cells)
    panels = {one["panel"] for one in document._lines(made, curves(made, 2))}
    assert panels == {
        "teachers",
        *(f"students, {transfer}\n{model}" for transfer in ("labelled", "unlabelled") for model in MADE),
    }
    _, sections = side_by_side.merge({"a": built})
    assert len([row for _, rows in sections for row in rows]) == len(built["rows"])


def test_the_front_is_the_best_for_the_price_or_less(built):
    """By hand on the axes: the steps never fall in accuracy, and no point of the picture lies above them."""
    figure = plots.against_cost(
        built["rows"], None, [wording.place_of(one) for one in built["students_by_size"]]
    )
    accuracy, nll = figure.axes
    for axes, best in ((accuracy, np.maximum), (nll, np.minimum)):
        (front,) = [line for line in axes.get_lines() if line.get_label() == "Pareto front"]
        sizes, level = front.get_data()
        np.testing.assert_array_equal(level, best.accumulate(level))
    whole = [row for row in built["rows"] if row["role"] == "teacher" or row["rule"] == "mean_probs"]
    whole += [
        row
        for one in built["students_by_size"]
        for row in built["rows"]
        if wording.place_of(row) in (wording.place_of(one), wording.place_of(one, name="baseline"))
    ]
    (front,) = [line for line in accuracy.get_lines() if line.get_label() == "Pareto front"]
    for size, level in zip(*front.get_data()):
        reached = [100 * row["accuracy"]["mean"] for row in whole if row["params"] <= size]
        assert level == pytest.approx(max(reached))


def test_ticks_that_would_touch_stand_below_one_another():
    told = plots._staggered([0.1, 0.12, 0.9], ["4,500\nmlp", "4,950\nmlp", "9"], 5.6)
    assert told == ["4,500\nmlp", "\n\n4,950\nmlp", "9"]
