"""What a stage will cost, against what is known of it."""

import os
import shutil

import jax
import numpy as np
import pytest

from mtkd_jax import experiment
from mtkd_jax.engine import forecast, jobs
from mtkd_jax.engine.tuning import with_layout
from mtkd_jax.mesh import Layout
from mtkd_jax.models import stages
from mtkd_jax.models.branched import branched
from mtkd_jax.models.cnn import cnn
from mtkd_jax.models.friendly import with_branches
from mtkd_jax.models.series import lstm
from mtkd_jax.plans import teachers
from mtkd_jax.runs import workdir
from mtkd_jax.types import Task, UserError
from tests import small


def job(**overrides):
    config = small.config(**{"runtime.how": "vmap", **overrides})
    return teachers.job(config, experiment.load_split(config), config.model.name)


def test_flops_are_three_forward_passes_of_every_member():
    found = job(**{"model.name": "mlp(hidden=(8,))", "teachers.num_members": 3})
    products = 2 * (16 * 8 + 8 * 4)  # images of 16 pixels, 4 classes
    forward = forecast.forward_flops(found.program.model, found.image.shape)
    assert products < forward < 1.5 * products + 100  # biases, normalisation and ReLU come on top
    batch_size, num_steps = found.order(0).shape[-1], found.num_steps
    assert forecast.flops(found) == 3 * 3 * forward * batch_size * num_steps


def test_flops_of_branches_are_a_stem_and_all_tails():
    one, shape = cnn(Task(4, 1, (0.5,), (0.5,)), widths=(2, 3), dense=4), (1, 4, 4, 1)
    whole, two, four = (
        forecast.forward_flops(model, shape)
        for model in (one, branched(one, 2, "stage1"), branched(one, 4, "stage1"))
    )
    assert 0 <= 2 * (two - whole) - (four - two) <= 8  # the loop over branches counts its rounds
    stem = (
        2 * whole - two
    )  # 2 products at 10 x 10 places of windows 3x3 in an image 4x4, 2 channels; ReLU, ...
    assert 400 <= stem < 800


def test_flops_of_a_teacher_with_branches_are_its_own_and_those_of_transforms_and_tails():
    task, image = Task(4, 1, (0.5,), (0.5,)), jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    teacher, student = (cnn(task, widths=widths, dense=4) for widths in ((4, 4), (2, 3)))
    model = with_branches(teacher, student, image)
    tails = [stages.tail_after(student, stage, (8, 8, 1)) for stage, _ in model.branches]
    whole, own = (forecast.forward_flops(one, image.shape) for one in (model, teacher))
    entering = [(1, *shape) for _, shape in model.branches]
    transforms = whole - own - sum(map(forecast.forward_flops, tails, entering))
    places = [shape[1] * shape[2] * shape[3] for shape in entering]
    products = sum(2 * 4 * number for number in places)  # 1x1, of 4 channels
    assert products < transforms < products + 8 * sum(places)  # BatchNorm and ReLU
    assert forecast.step_flops(model, image.shape) == 3 * whole


def test_memory_that_is_free_counts_what_the_kernel_would_give_up(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemFree: 1000 kB\nMemAvailable:    7000 kB\n")
    monkeypatch.setattr(forecast, "MEMINFO", meminfo)
    assert forecast.memory_limit() == 7000 * 1024
    monkeypatch.setattr(forecast, "MEMINFO", tmp_path / "none")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < forecast.memory_limit() <= total
    names = {name: at for name, at in os.sysconf_names.items() if name != "SC_AVPHYS_PAGES"}  # macOS has none
    monkeypatch.setattr(forecast.os, "sysconf_names", names)
    assert forecast.memory_limit() == pytest.approx(total / 2, abs=1)


@pytest.mark.parametrize("layout", [Layout("vmap"), Layout("vmap", 2)])
def test_the_bytes_of_many_members_follow_from_those_of_few(layout):
    found = with_layout(job(**{"teachers.num_members": 32, "model.name": "mlp(hidden=(64,))"}), layout)
    assert forecast.peak_bytes(found) == pytest.approx(forecast.program_bytes(found), rel=0.05)


def test_as_many_members_at_once_as_fit(monkeypatch):
    found = job(**{"teachers.num_members": 10, "model.name": "mlp(hidden=(64,))"})
    assert forecast.members_at_once(found) == 10
    fixed, each = forecast.bytes_of_members(found)
    monkeypatch.setattr(forecast, "memory_limit", lambda: int(fixed + 4.5 * each))
    assert forecast.members_at_once(found) == 4
    monkeypatch.setattr(forecast, "memory_limit", lambda: 1)
    assert forecast.members_at_once(found) == 1
    asked = job(**{"teachers.num_members": 10, "runtime.members_at_once": 3})
    assert forecast.members_at_once(asked) == 3


def test_a_run_in_parts_is_the_same_run_and_lends_the_same_teachers(tmp_path):
    few = {
        "runtime.how": "map",
        "students.modes": ("mimic_all",),
        "students.alphas": (0.5,),
        "train.epochs": 2,
    }
    whole = small.train(small.config(**few), tmp_path / "whole")
    config = small.config(**few, **{"runtime.members_at_once": 2})
    parts = small.train(config, tmp_path / "parts")
    for stage in whole:
        assert_same_members(parts[stage], whole[stage])
    split = experiment.load_split(config)
    workdir.describe(tmp_path / "parts", config, split)
    borrowing = small.config(**few, **{"teachers.from_run": str(tmp_path / "parts")})
    lent, _ = teachers.borrow(borrowing, split)
    (name,) = lent
    assert_same_members(lent[name], whole[name])
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / name / "part-2" / "finished")
    with pytest.raises(UserError, match="holds no finished teachers"):
        teachers.borrow(borrowing, split)


def assert_same_members(found, expected):
    assert found.population.names == expected.population.names
    jax.tree.map(np.testing.assert_array_equal, found.population.variables, expected.population.variables)
    np.testing.assert_array_equal(found.val_nll, expected.val_nll)


def test_a_timed_step_leaves_the_job_as_it_was():
    found = job()
    before = jax.device_get(jax.random.key_data(found.init_keys))
    assert forecast.seconds_per_step(found, num_steps=2, num_rounds=1) > 0
    np.testing.assert_array_equal(jax.random.key_data(found.init_keys), before)


def test_the_card_covers_every_stage_and_an_estimate_has_its_counts_and_compiles_no_stage():
    modes = ("output_avg", "supernet")
    config = small.config(**{"students.modes": modes, "students.alphas": (0.5,), "train.epochs": 1})
    forecast.this_machine()  # its products are compiled
    jax.clear_caches()
    with small.compilations() as said:
        estimated = list(experiment.costs(config))
    assert not [line for line in said if "training" in line or "step" in line]
    timed = list(experiment.costs(config, timed=True))
    assert [cost.stage for cost in timed] == [
        "teachers-mlp-hidden-8",
        "fuser-logits",
        "students-labelled-output-avg",
    ]
    assert timed[0].num_members == 3 and timed[0].num_params == 16 * 8 + 8 + 8 * 4 + 4
    for one, other in zip(estimated, timed, strict=True):
        fields = ("stage", "num_members", "num_params", "num_steps", "flops")
        assert [getattr(one, name) for name in fields] == [getattr(other, name) for name in fields]
        for cost in (one, other):
            assert cost.flops > 0 and cost.num_bytes > 0 and cost.seconds > 0
        assert (one.timed, other.timed) == (False, True)


def test_estimated_seconds_are_products_and_traffic_by_hand():
    found = job()
    machine = forecast.Machine(flops=1e9, num_bytes=1e30)
    assert forecast.estimated_seconds(found, machine) == pytest.approx(forecast.flops(found) / 1e9)
    twice = forecast.estimated_seconds(found, forecast.Machine(flops=2e9, num_bytes=1e30))
    assert twice == pytest.approx(forecast.flops(found) / 2e9)
    by_traffic = forecast.estimated_seconds(found, forecast.Machine(flops=1e30, num_bytes=1e9))
    assert by_traffic == pytest.approx(forecast.estimated_seconds(found, forecast.Machine(1e30, 2e9)) * 2)


def test_a_part_keeps_every_second_batch_order():
    found = job(**{"teachers.num_members": 4})
    part = jobs.part(found, [1, 3])
    np.testing.assert_array_equal(part.order(0), found.order(0)[:, [1, 3]])
    assert part.names == ("teacher 1", "teacher 3")


def test_all_rounds_of_a_loop_are_counted():
    """A layer of d cells that reads c channels: 2 * 4d(c + d) FLOPs of products a step, and few others."""
    task = Task(num_classes=2, num_heads=1, mean=(0.0,) * 3, std=(1.0,) * 3)
    model = lstm(task, widths=(16,))
    ten, twenty = (forecast.forward_flops(model, (1, steps, 1, 3)) for steps in (10, 20))
    a_step = (twenty - ten) / 10
    assert 1 < a_step / (2 * 4 * 16 * (3 + 16)) < 1.2
    assert ten > 10 * 0.95 * a_step
