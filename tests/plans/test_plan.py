"""The plan before it is run: every stage's first step is traced, and what cannot be is one line."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import experiment
from mtkd_jax.engine import population, teacher_cache, training
from mtkd_jax.fusion import rules
from mtkd_jax.plans import checks, plan, teachers
from mtkd_jax.types import TeacherOutputs, UserError
from tests import small

TWO = ("mlp(hidden=(8, 8))", "mlp(hidden=(8,))")


@pytest.mark.parametrize(
    "overrides, expected",
    [
        ({"students.modes": ("features.hints(student='stage9')",)}, "student has no feature 'stage9'"),
        ({"students.modes": ("features.hints(teacher='stage9')",)}, "teacher has no feature 'stage9'"),
        (
            {"students.modes": ("features.hints(teacher='stage2')",), "teachers.models": TWO},
            "teacher has no feature 'stage2'; it has stage1",
        ),
        ({"students.modes": ("output_avg", "features.attention_transfer")}, "features.attention_transfer: "),
        ({"plan": "specialists", "students.modes": ("features.attention_transfer",)}, "attention_transfer"),
        (
            {"students.modes": ("logits.dkd",), "teachers.folds": True, "teachers.out_of_bag": True},
            "dkd reads what all teachers say of an image, and some teach some images only, by "
            "teachers.out_of_bag",
        ),
        ({"students.modes": ("binary.xnor",)}, "no layer between the first and the last"),
        ({"students.modes": ("fused:trimmed_mean_probs",), "teachers.num_members": 2}, "needs 3 members"),
        ({"plan": "born_again(mode='features.hints(student=\"stage9\")')"}, "born_again 1: "),
        (
            {"plan": "assistants(models=('mlp(hidden=(6, 6))',), mode='features.hints(student=\"stage2\")')"},
            "config.plan: assisted: features.hints: the student has no feature 'stage2'",
        ),
    ],
)
def test_what_the_first_step_would_reveal_is_one_line_before_any_teacher_is_trained(
    overrides, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "first_progress", lambda job: pytest.fail("trained"))
    with pytest.raises(UserError) as error:
        experiment.run(small.config(**overrides), tmp_path, quiet=True)
    assert expected in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("config.") and str(error.value).count("config.") == 1
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


def test_levels_that_nobody_knows_are_not_changed():
    config = small.config(**{"data.augment.rand_augment": (1, 5)})
    split = experiment.load_split(config)
    checks.check_data(config, split)
    own_units = dataclasses.replace(split.dataset, train_images=split.dataset.train_images * np.float32(0.1))
    with pytest.raises(UserError, match=r"^config.data.augment.rand_augment: .* float32 images"):
        checks.check_data(config, dataclasses.replace(split, dataset=own_units))


@pytest.mark.parametrize("field", ["flip", "alternating_flip"])
def test_the_field_is_named_that_mirrors_what_has_no_left_and_right(field):
    config = small.config(**{f"data.augment.{field}": True})
    split = experiment.load_split(config)
    narrow = dataclasses.replace(split.dataset, train_images=split.dataset.train_images[:, :, :1])
    with pytest.raises(UserError, match=rf"^config.data.augment.{field}: images 4x1 have no left"):
        checks.check_data(config, dataclasses.replace(split, dataset=narrow))


def test_a_rehearsal_has_the_shapes_of_the_run_and_computes_no_network(monkeypatch):
    """Of teachers, a fused network, the students it teaches, and two stages that learn one from the other."""
    overrides = {"plan": "hints_then_distil", "students.modes": ("supernet",), "train.epochs": 1}
    config = small.config(**overrides, **{"runtime.how": "vmap"})
    with monkeypatch.context() as patch:
        for computing in ("init", "map_blocks"):
            patch.setattr(population, computing, lambda *_: pytest.fail("computed"))
        stages, borrowed, _ = experiment.planned(config, experiment.load_split(config))
        rehearsed = plan.rehearse(stages, config, borrowed)
    begun = {}
    for stage in stages:
        begun[stage.name] = training.untrained(stage.make(begun))
    assert shapes(rehearsed) == shapes(begun)


def test_a_rule_that_is_fitted_is_fitted_to_what_the_teachers_say_of_validation_images():
    config = small.config(**{"students.modes": ("fused:evolved_mean", "fused:classwise_mean", "vote")})
    split = experiment.load_split(config)
    trained_teachers, *stages = plan.build(config, split)
    done = {trained_teachers.name: training.untrained(trained_teachers.make({}))}
    (stage,) = (one for one in stages if any(member.mode == "fused:evolved_mean" for member in one.family))
    outlined, job = stage.outline(done), stage.make(done)
    assert plan.trace(outlined).population.names == plan.trace(job).population.names
    (own,) = plan.ensemble_of(done)
    logits = population.logits(own, split.dataset.train_images[split.val])
    seen = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 4)), jnp.float32)
    for rule in ("evolved_mean", "classwise_mean"):
        fitted = rules.rule(rule)(logits, split.dataset.train_labels[split.val])
        found = job.stage_data.prepared[rule](TeacherOutputs(seen, (), ()))
        np.testing.assert_allclose(jnp.exp(found), fitted(seen), rtol=1e-4)
        weights = np.asarray(fitted.args[0])
        assert np.ptp(weights, axis=0).max() > 0.01


def test_what_teachers_say_of_rows_is_asked_for_once_while_the_data_is_there(monkeypatch):
    config = small.config()
    split = experiment.load_split(config)
    (own,) = (training.untrained(teachers.job(config, split, config.model.name)).population,)
    asked, ask = [], population.logits
    monkeypatch.setattr(population, "logits", lambda *arguments: asked.append(0) or ask(*arguments))
    first, again = (teacher_cache.logits_of(own, split, split.val) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, ask(own, split.dataset.train_images[split.val]))
    other = dataclasses.replace(own, variables=jax.tree.map(lambda leaf: leaf + 1, own.variables))
    for another, rows in ((own, split.train), (other, split.val)):
        assert not np.array_equal(teacher_cache.logits_of(another, split, rows)[:, :5], first[:, :5])
    assert len(asked) == 3


def test_a_stage_that_would_begin_with_weights_of_another_network_is_refused():
    config = small.config()
    job = teachers.job(config, experiment.load_split(config), config.model.name)
    variables = plan.trace(job).population.variables
    plan.trace(dataclasses.replace(job, start=variables))
    others = jax.tree.map(lambda leaf: leaf[:, None], variables)
    with pytest.raises(UserError, match="begin with weights that are not those of mlp"):
        plan.trace(dataclasses.replace(job, start=others))


def shapes(done):
    return {
        name: (fitted.population.names, jax.tree.map(lambda leaf: leaf.shape, fitted.population.variables))
        for name, fitted in done.items()
    }
