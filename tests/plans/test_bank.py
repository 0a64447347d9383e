"""Teachers at the same share of their training: what is kept of them, and who learns from which of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import experiment, mesh
from mtkd_jax.engine import teacher_cache, training
from mtkd_jax.plans import plan, teachers
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.types import UserError
from tests import small

PLAN = "checkpoint_bank(checkpoints=2)"
FEW = {"students.modes": ("output_avg",), "students.alphas": (0.25,), "students.num_seeds": 1}


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def differ(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b))
    return any(float(np.abs(np.asarray(x) - np.asarray(y)).max()) > 1e-4 for x, y in pairs)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole small run of the plan: (configuration, split, stages, what they trained, folder)."""
    config = small.config(plan=PLAN, **FEW)
    split, workdir = experiment.load_split(config), tmp_path_factory.mktemp("run")
    stages = plan.build(config, split)
    plan.rehearse(stages, config, {})
    with Logbook(workdir, quiet=True) as logbook:
        return config, split, stages, plan.run(stages, workdir, logbook, 1e9), workdir


def bank_of(run):
    """The bank's stage of students, and its job."""
    _, _, stages, done, _ = run
    stage = stages[-1]
    assert {member.mode for member in stage.family} == {"checkpoint_bank"}
    return stage.make(done)


def test_kept_are_the_best_weights_after_equal_shares(run):
    config, split, stages, done, _ = run
    job = dataclasses.replace(stages[0].make({}), steps_at_once=1)
    plain = dataclasses.replace(job, checkpoints=0, steps_at_once=job.steps_per_round)
    progress, best = training.first_progress(plain), []
    hyper, validation = jax.tree.map(jnp.asarray, (plain.hyper, plain.validation))
    for piece, indices, stage_data in training.iterate_pieces(plain, training.pieces(plain)):
        progress, _ = training.advance(plain, piece, progress, hyper, indices, stage_data, validation)
        best.append(mesh.on_host(progress.best))
    fitted = done[job.stage]
    assert len(best) == 4 and differ(best[1], best[3])
    for place, number in enumerate((1, 3)):
        of_share = jax.tree.map(lambda leaf, at=place: leaf[:, at], fitted.bank.variables)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), of_share, best[number])
    equal(jax.tree.map(lambda leaf: leaf[:, -1], fitted.bank.variables), fitted.population.variables)


def test_rounds_that_do_not_divide_fill_the_whole_bank_in_turn():
    best = {"w": jnp.arange(3.0)}
    bank = {"variables": {"w": jnp.full((3, 3), -1.0)}, "round": jnp.zeros(3, jnp.int32)}
    for number in range(5):  # shares of 5/3, 10/3 and 5 rounds end in rounds 2, 4 and 5
        bank = training._banked(bank, jax.tree.map(lambda leaf, n=number: leaf + 10.0 * n, best), 5)
    np.testing.assert_array_equal(bank["variables"]["w"], [[10, 30, 40], [11, 31, 41], [12, 32, 42]])


def test_students_learn_from_the_teachers_of_their_own_share(run):
    """For half of the steps as if the first checkpoints were all there is, then as if the last were."""
    job = bank_of(run)
    (bank,) = job.stage_data.bank
    half = job.num_steps // 2
    by = [
        dataclasses.replace(job.stage_data, bank=(), teachers=(jax.tree.map(lambda x, t=t: x[t], bank),))
        for t in range(2)
    ]
    take_steps = training.compiled_part(job.program)
    orders = np.concatenate([job.order(epoch) for epoch in range(job.epochs)])
    first, last = (orders[:half], np.int32(0)), (orders[half:], np.int32(half))

    def after(begin, steps, stage_data):
        indices, number = steps
        return mesh.on_host(take_steps(begin, job.hyper, indices, number, stage_data))

    found, expected, other = (
        after(training.first_progress(job), first, data) for data in (job.stage_data, *by)
    )
    equal(found.train.params, expected.train.params)
    assert differ(found.train.params, other.train.params)
    end, wrong, right = (after(jax.tree.map(jnp.copy, found), last, data) for data in (job.stage_data, *by))
    equal(end.train.params, right.train.params)
    assert differ(end.train.params, wrong.train.params)


def test_of_one_checkpoint_they_learn_what_all_others_do(run):
    """A bank of the teachers at their end is offline distillation."""
    *_, done, _ = run
    job = bank_of(run)
    ends = tuple(jax.tree.map(lambda leaf: leaf[-1:], one) for one in job.stage_data.bank)
    banked = dataclasses.replace(job.stage_data, bank=ends)
    plain = dataclasses.replace(job.stage_data, bank=())
    steps = training.compiled_part(job.program)
    found, expected = (
        steps(training.first_progress(job), job.hyper, job.order(0), np.int32(0), data)
        for data in (banked, plain)
    )
    equal(mesh.on_host(found.train.params), mesh.on_host(expected.train.params))


def test_what_they_say_is_kept_by_the_step_and_not_by_the_example(run):
    job = dataclasses.replace(bank_of(run), teacher_cache="float32")
    plain = dataclasses.replace(job, stage_data=dataclasses.replace(job.stage_data, bank=()))
    assert (teacher_cache._how(job)[0], teacher_cache._how(plain)[0]) == ("step", "example")
    filled = teacher_cache.fill(job, {})
    found, expected = (
        training.compiled_part(one.program)(
            training.first_progress(one), one.hyper, one.order(0), np.int32(0), one.stage_data
        )
        for one in (filled, job)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found.train.params, expected.train.params
    )


def test_students_of_a_bank_are_resumed_to_the_same_bits(run, tmp_path):
    small.check_that_it_resumes(bank_of(run), tmp_path)


def test_teachers_of_another_run_bring_their_bank(run):
    config, split, stages, done, workdir = run
    found = teachers._restore(workdir, config.model.name, split, 3)
    equal(found.bank.variables, done[stages[0].name].bank.variables)


def test_of_teachers_without_checkpoints_it_says_so_before_any_work(run):
    config, split, stages, done, _ = run
    name = stages[0].name
    with pytest.raises(UserError) as error:
        plan.rehearse(stages[1:], config, {name: dataclasses.replace(done[name], bank=None)})
    assert "of teachers.from_run no checkpoints are kept" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"plan": "checkpoint_bank(checkpoints=0)"}, "(checkpoints=0): must be 1 to 4, the validations"),
        ({"plan": "checkpoint_bank(checkpoints=5)"}, "(checkpoints=5): must be 1 to 4, the validations"),
        ({"teachers.patience": 2}, "config.teachers.patience: 2 does not go with plan checkpoint_bank"),
        ({"teachers.logits": ("a.npz",)}, "config.teachers.logits: ('a.npz',) does not go with"),
        ({"teachers.classifiers": ("a",)}, "config.teachers.classifiers: ('a',) does not go with"),
        (
            {"plan": "checkpoint_bank(checkpoints=0)", "teachers.from_run": "run"},
            "(checkpoints=0): must be 1 to 4",
        ),
        (
            {"plan": "checkpoint_bank(checkpoints=2, mode='mimic_all')"},
            "checkpoint_bank cannot train by 'mimic_all'",
        ),
        ({"students.modes": ()}, "checkpoint_bank is compared with the students of students.modes"),
    ],
)
def test_what_cannot_be_is_one_line(changes, expected):
    config = small.config(**{"plan": PLAN, **FEW})
    with config.unlocked():
        for field, value in changes.items():
            *groups, last = field.split(".")
            group = config[groups[0]] if groups else config
            group[last] = value
    split = experiment.load_split(small.config(**FEW))
    with pytest.raises(UserError) as error:
        plan.build(config, split)
    assert expected in str(error.value) and "\n" not in str(error.value)
