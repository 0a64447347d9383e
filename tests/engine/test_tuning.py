"""`auto` asks the clock once and remembers what it said."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from mtkd_jax import experiment
from mtkd_jax.engine import forecast, training, tuning
from mtkd_jax.mesh import Layout
from mtkd_jax.models import direct_conv
from mtkd_jax.plans import teachers
from mtkd_jax.system import files
from tests import small


@pytest.fixture
def job():
    config = small.config(**{"runtime.how": "auto"})
    return teachers.job(config, experiment.load_split(config), config.model.name)


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """A clock by which `map` on one device is the fastest, which counts how often it is asked."""
    asked = []

    def seconds(job):
        asked.append(job.program.layout)
        return 1.0 if job.program.layout == Layout("map", 1) else 2.0

    monkeypatch.setattr(forecast, "seconds_per_step", seconds)
    monkeypatch.setitem(tuning.WORTH_A_TRIAL, "cpu", 0.0)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache" / "xla"))
    (tmp_path / "cache").mkdir()
    yield asked
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_fastest_candidate_is_taken_and_remembered(job, clock, tmp_path):
    said = []
    found = tuning.choose_layout(job, tmp_path / "stage", said.append)
    assert found.program.layout == Layout("map", 1)
    assert clock == list(job.candidates) and len(job.candidates) == 4
    assert "map 1e+03 ms" in said[0]
    assert tuning.choose_layout(job, tmp_path / "stage", said.append) == found  # from the stage's folder
    assert tuning.choose_layout(job, tmp_path / "another", said.append) == found  # from the cache
    assert len(clock) == 4
    stored = json.loads((tmp_path / "another" / "layout.json").read_text())
    assert stored["question"] == tuning.question(job)


def test_a_resumed_stage_keeps_its_layout_whatever_the_cache_says_now(job, clock, tmp_path):
    tuning.choose_layout(job, tmp_path / "stage", print)
    other = {json.dumps(layout): float(n) for n, layout in enumerate(job.candidates)}
    tuning.cache_file().write_text(json.dumps({tuning.question(job): other}))
    assert tuning.choose_layout(job, tmp_path / "stage", print).program.layout == Layout("map", 1)
    assert tuning.choose_layout(job, tmp_path / "new", print).program.layout == job.candidates[0]


def test_a_bank_of_teachers_is_another_question(job):
    questions = {
        tuning.question(dataclasses.replace(job, stage_data=dataclasses.replace(job.stage_data, bank=bank)))
        for bank in ((), ({"w": np.zeros((2, 1))},), ({"w": np.zeros((3, 1))},))
    }
    assert len(questions) == 3


def test_answers_about_other_devices_or_damaged_ones_are_asked_again(job, clock, tmp_path):
    folder = tmp_path / "stage"
    folder.mkdir()
    (folder / "layout.json").write_text('{"seconds": {"[\\"vmap\\", 64, 1]": 1.0}}')
    tuning.cache_file().write_text("{not json")
    assert tuning.choose_layout(job, folder, print).program.layout == Layout("map", 1)
    assert len(clock) == 4


@pytest.fixture
def convolutional_job():
    config = small.config(**{"runtime.how": "auto", "model.name": "cnn(widths=(2,), dense=3)"})
    return teachers.job(config, experiment.load_split(config), config.model.name)


def test_of_the_fastest_layout_the_other_forms_are_tried_and_remembered(
    convolutional_job, clock, tmp_path, monkeypatch
):
    job, best = convolutional_job, Layout("map", 1, form="windows")
    likeliest = job.candidates[0].form

    def seconds(job):
        clock.append(job.program.layout)
        return {best: 0.5, Layout("map", 1, form=likeliest): 1.0}.get(job.program.layout, 2.0)

    monkeypatch.setattr(forecast, "seconds_per_step", seconds)
    assert tuning.choose_layout(job, tmp_path / "stage", print).program.layout == best
    tried = [layout for layout in clock if layout.form != likeliest]
    assert best in tried and {layout._replace(form="") for layout in tried} == {Layout("map", 1)}
    monkeypatch.setattr(forecast, "seconds_per_step", None)  # a resume asks no clock
    assert tuning.choose_layout(job, tmp_path / "stage", print).program.layout == best


def test_a_stage_that_is_worth_a_trial_of_layouts_may_be_too_short_for_one_of_forms(
    convolutional_job, clock, tmp_path, monkeypatch
):
    monkeypatch.setitem(tuning.WORTH_A_TRIAL, "cpu", forecast.flops(convolutional_job) / 2)
    tuning.choose_layout(convolutional_job, tmp_path / "stage", print)
    candidates = convolutional_job.candidates
    assert [layout for layout in candidates if layout.form == candidates[0].form] == clock


@pytest.mark.parametrize("installed", [True, False])
def test_a_stage_keeps_the_form_it_was_begun_in_without_a_trial(installed, clock, tmp_path, monkeypatch):
    """Whatever is installed meanwhile; what is missing meanwhile cannot be had."""

    def chosen(found):
        monkeypatch.setattr(direct_conv, "is_available", lambda: found)
        config = small.config(**{"runtime.how": "auto", "model.name": "cnn(widths=(2,), dense=3)"})
        job = teachers.job(config, experiment.load_split(config), config.model.name)
        return tuning.choose_layout(job, tmp_path, print).program.layout.form

    monkeypatch.setitem(tuning.WORTH_A_TRIAL, "cpu", np.inf)
    begun = "onednn" if installed else ""
    assert chosen(installed) == begun
    (tmp_path / "step-6").mkdir()
    (tmp_path / "step-6" / "manifest.json").touch()
    assert chosen(installed) == begun and clock == []
    assert chosen(not installed) == ""


def test_a_stage_that_wrote_down_no_layout_was_begun_in_the_platform_s_form(
    convolutional_job, clock, tmp_path
):
    (tmp_path / "step-6").mkdir()
    (tmp_path / "step-6" / "manifest.json").touch()
    layout = tuning.choose_layout(convolutional_job, tmp_path, print).program.layout
    assert layout == convolutional_job.candidates[0]._replace(form="") and clock == []


def test_what_a_version_without_forms_chose_is_kept(job, clock, tmp_path):
    before = {"seconds": {'["vmap", 3, 1]': 1.0}}
    (tmp_path / "layout.json").write_text(json.dumps(before))
    assert tuning.choose_layout(job, tmp_path, print).program.layout == Layout("vmap", 3)
    assert clock == []


@pytest.mark.parametrize("form", ["onednn", "ynnpack", "windows"])
def test_members_learn_the_same_in_every_form(convolutional_job, form):
    """Up to rounding, from a program of its own."""
    if form not in {layout.form for layout in convolutional_job.candidates}:
        pytest.skip(f"{form} is not to be had here")

    def trained(layout):
        job = tuning.with_layout(convolutional_job, layout)
        steps = training.compiled_part(job.program)
        return steps(training.first_progress(job), job.hyper, job.order(0), np.int32(0), job.stage_data)

    expected, found = trained(Layout("map")), trained(Layout("map", form=form))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        expected.train.params,
        found.train.params,
    )


def test_a_short_stage_is_not_worth_a_trial(job, clock, tmp_path, monkeypatch):
    monkeypatch.setitem(tuning.WORTH_A_TRIAL, "cpu", 1e12)
    assert tuning.choose_layout(job, tmp_path, print).program.layout == job.candidates[0]
    assert clock == [] and json.loads((tmp_path / "layout.json").read_text())["seconds"] == {}


def test_a_named_layout_is_not_timed(clock, tmp_path):
    config = small.config(**{"runtime.how": "vmap"})
    job = teachers.job(config, experiment.load_split(config), config.model.name)
    assert tuning.choose_layout(job, tmp_path, print) is job and clock == []


def test_the_clock_itself_times_every_candidate(job):
    found = tuning.measure(job)
    assert list(found) == [json.dumps(layout) for layout in job.candidates]
    assert all(0 < seconds < 60 for seconds in found.values())


def test_of_several_processes_the_first_decides_and_alone_remembers(job, tmp_path, monkeypatch):
    """They share the folder, and each has other memory free."""
    monkeypatch.setattr(forecast, "members_at_once", lambda job: 3)
    monkeypatch.setattr(tuning.mesh, "take_from_first", lambda number: 2)  # what the first one found
    monkeypatch.setattr(tuning.mesh, "is_first", lambda: False)
    assert tuning.members_at_once(job, tmp_path) == 2
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(tuning.mesh, "is_first", lambda: True)
    assert tuning.members_at_once(job, tmp_path) == 2
    assert files.read_sealed(tmp_path / tuning.PARTS, "") == {"members_at_once": 2}
