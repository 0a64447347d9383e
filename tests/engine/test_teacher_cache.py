"""Teachers asked once say what they would have said every time."""

import dataclasses

import jax
import numpy as np
import pytest

from mtkd_jax.engine import teacher_cache, training
from mtkd_jax.engine.tuning import with_layout
from mtkd_jax.mesh import Layout
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.types import UserError
from tests import small

NOISE = {"data.augment.noise": 0.1, "data.augment.shift": 1, "data.augment.alternating_flip": True}


def students_job(mode, **overrides):
    return small.students_job(mode, **{"students.alphas": (0.5,), **overrides})


def trained(job, tmp_path):
    with Logbook(tmp_path, quiet=True) as logbook:
        return training.fit(job, tmp_path / "checkpoints", logbook).population.variables


def same_but_for_rounding(a, b):
    """Two programs round differently, here in the eighth digit; another batch would show in the second."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), a, b)


@pytest.mark.parametrize("layout", [Layout("vmap"), Layout("map", 2)])
@pytest.mark.parametrize("augment, by", [({}, "example"), (NOISE, "step")])
def test_students_of_cached_teachers_are_the_same(augment, by, layout, tmp_path):
    job = with_layout(students_job("output_avg", **augment), layout)
    cached = teacher_cache.fill(job, {})
    assert cached.program.cache_index == by and cached.stage_data.cached_logits is not None
    same_but_for_rounding(trained(cached, tmp_path / "cached"), trained(job, tmp_path / "not"))


def test_what_was_said_is_what_the_teachers_say():
    job = with_layout(students_job("output_avg"), Layout("vmap"))
    said = teacher_cache.fill(job, {}).stage_data.cached_logits
    image = job.stage_data.examples.image.astype(np.float32) / 255
    (variables,) = job.stage_data.teachers
    expected = jax.vmap(lambda one: job.program.teachers[0].apply(one, image)[0].logits)(variables)
    np.testing.assert_allclose(said, expected, atol=1e-5)


def test_families_share_what_was_said_and_other_teachers_are_asked_again():
    cache = {}
    first = teacher_cache.fill(students_job("output_avg"), cache)
    second = teacher_cache.fill(students_job("mimic_all"), cache)
    assert second.stage_data.cached_logits is first.stage_data.cached_logits
    job = students_job("output_avg")
    others = jax.tree.map(lambda leaf: leaf + 1, job.stage_data.teachers)
    job = dataclasses.replace(job, stage_data=dataclasses.replace(job.stage_data, teachers=others))
    assert not np.array_equal(
        teacher_cache.fill(job, cache).stage_data.cached_logits, first.stage_data.cached_logits
    )


def test_another_augmentation_is_asked_again():
    cache = {}
    plain = teacher_cache.fill(students_job("output_avg"), cache).stage_data.cached_logits
    noisy = teacher_cache.fill(students_job("output_avg", **NOISE), cache).stage_data.cached_logits
    more = {"data.augment.noise": 0.2, "data.augment.shift": 1}
    noisier = teacher_cache.fill(students_job("output_avg", **more), cache).stage_data.cached_logits
    assert plain.shape[1] != noisy.shape[1] and not np.array_equal(noisy, noisier)


def test_half_precision_only_on_request():
    assert teacher_cache.fill(students_job("output_avg"), {}).stage_data.cached_logits.dtype == np.float32
    job = students_job("output_avg", **{"runtime.teacher_cache": "float16"})
    assert teacher_cache.fill(job, {}).stage_data.cached_logits.dtype == np.float16
    off = students_job("output_avg", **{"runtime.teacher_cache": "off"})
    assert teacher_cache.fill(off, {}) is off


def test_a_cache_that_cannot_be_is_left_out_or_refused(monkeypatch):
    auto, asked = (
        students_job("output_avg", **{"runtime.teacher_cache": mode}) for mode in ("auto", "float32")
    )
    greedy = lambda job: dataclasses.replace(  # noqa: E731
        job,
        program=job.program._replace(
            recipes=tuple(r._replace(needs=("embedding",)) for r in job.program.recipes)
        ),
    )
    assert teacher_cache.fill(greedy(auto), {}).stage_data.cached_logits is None
    with pytest.raises(UserError, match="reads more of the teachers than the logits"):
        teacher_cache.fill(greedy(asked), {})
    monkeypatch.setattr(teacher_cache.forecast, "memory_limit", lambda: 100)
    assert teacher_cache.fill(auto, {}).stage_data.cached_logits is None
    with pytest.raises(UserError, match="MiB"):
        teacher_cache.fill(asked, {})


def test_a_whole_run_is_the_same_with_and_without(tmp_path):
    found = [
        small.train(
            small.config(**{"runtime.teacher_cache": cache, "students.transfer": ("labelled",)}),
            tmp_path / cache,
        )
        for cache in ("auto", "off")
    ]
    for stage in found[0]:
        same_but_for_rounding(found[0][stage].population.variables, found[1][stage].population.variables)


def test_logits_that_float16_does_not_hold_are_refused_by_the_name_of_the_field():
    job = dataclasses.replace(students_job("output_avg"), teacher_cache="float16")
    (variables,) = job.stage_data.teachers
    loud = jax.tree.map(lambda leaf: leaf * np.float32(1e6), variables)
    job = dataclasses.replace(job, stage_data=dataclasses.replace(job.stage_data, teachers=(loud,)))
    with pytest.raises(
        UserError, match="^config.runtime.teacher_cache: float16 holds numbers up to 65504, .* auto"
    ):
        teacher_cache.fill(job, {})
