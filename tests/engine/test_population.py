"""The member axis: every `how` gives the same numbers, and a member does not feel who stands beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import experiment
from mtkd_jax.addresses import build_model
from mtkd_jax.engine import population, training
from mtkd_jax.mesh import HOW
from mtkd_jax.plans import students, teachers
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.types import Population, Task
from tests import small

TASK = Task(num_classes=4, num_heads=1, mean=(0.5,), std=(0.3,))
MODELS = ("mlp(hidden=(8,), batch_norm=True)", "cnn(widths=(4,), dense=8)")


def fitted(job, tmp_path):
    with Logbook(tmp_path, quiet=True) as logbook:
        return training.fit(job, tmp_path / job.stage, logbook)


def teachers_job(**overrides):
    config = small.config(**overrides)
    return teachers.job(config, experiment.load_split(config), config.model.name)


def close(a, b, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=0), a, b)


AVERAGED = {"train.ema_decay": 0.9, "train.accumulate": 2, "train.clip_norm": 0.5, "train.warmup": 0.5}
MIXED = {"train.mixup": 0.4, "train.cutmix": 1.0, "train.schedule": "cosine"}


@pytest.mark.parametrize("model, options", list(zip(MODELS, ({}, AVERAGED, MIXED))))
def test_every_how_trains_the_same_teachers(model, options, tmp_path):
    def job(how):
        return teachers_job(**{"model.name": model, "runtime.how": how, **options})

    found = {how: fitted(job(how), tmp_path / how) for how in HOW}
    for how in HOW:
        close(found[how].population.variables, found["map"].population.variables, 1e-6)
        np.testing.assert_allclose(found[how].val_nll, found["map"].val_nll, atol=1e-6)


# Targets in a table, from which each member takes its row; and many heads, spread over devices in test_mesh.
@pytest.mark.parametrize("mode, loops", [("output_avg", HOW), ("mimic_all", ("map", "vmap"))])
def test_every_how_trains_the_same_students(mode, loops, tmp_path):
    few = {"students.modes": (mode,), "students.alphas": (0.5,), "train.epochs": 1}
    found = {
        how: fitted(small.students_job(mode, **few, **{"runtime.how": how}), tmp_path / how) for how in loops
    }
    for how in loops:
        close(found[how].population.variables, found["map"].population.variables, 1e-6)


@pytest.mark.parametrize("how", ["map", "vmap"])
def test_a_member_is_the_same_alone(how, tmp_path):
    of_three = fitted(teachers_job(**{"runtime.how": how}), tmp_path / "three")
    alone = fitted(teachers_job(**{"runtime.how": how, "teachers.num_members": 1}), tmp_path / "alone")
    first = population.take(of_three.population.variables, [0])
    if how == "map":
        jax.tree.map(np.testing.assert_array_equal, first, alone.population.variables)
    close(first, alone.population.variables, 1e-6)


def test_a_student_is_the_same_alone(tmp_path):
    modes = ("output_avg", "vote")
    together = fitted(small.students_job(*modes, **{"runtime.how": "map"}), tmp_path / "all")
    few = {"runtime.how": "map", "students.alphas": (0.5,)}
    alone = fitted(small.students_job("output_avg", **few), tmp_path / "one")

    def student(found):
        of = found.population
        return population.take(of.variables, of.names.index("output_avg a=0.5 T=1 seed 1"))

    assert len(together.population.names) > len(alone.population.names)
    close(student(together), student(alone), 1e-6)  # another table of targets, and so another program


def test_seeds_set_the_same_body_whatever_the_number_of_heads():
    config = small.config()
    split = experiment.load_split(config)
    ensemble = tuple(
        Population(
            model := build_model("mlp(hidden=(8,))", TASK),
            population.init(model, jax.random.split(jax.random.key(0), 3), (4, 4, 1)),
            {},
            ("a", "b", "c"),
        )
        for _ in range(1)
    )
    bodies = []
    for family in students.families(config):
        job = students.job(config, split, "labelled", family, ensemble, {})
        variables = population.init(job.program.model, job.init_keys, (4, 4, 1))
        bodies.append(
            {m.seed: population.take(variables["params"]["dense1"], n) for n, m in enumerate(family)}
        )
    assert len(bodies) == 2
    for seed in range(2):
        jax.tree.map(np.testing.assert_array_equal, bodies[0][seed], bodies[1][seed])
    assert not np.array_equal(bodies[0][0]["kernel"], bodies[0][1]["kernel"])


def test_logits_do_not_depend_on_the_block():
    model = build_model("cnn(widths=(4,), dense=8)", TASK)
    variables = population.init(model, jax.random.split(jax.random.key(1), 2), (4, 4, 1))
    of = Population(model, variables, {}, ("a", "b"))
    images = np.random.default_rng(0).integers(0, 256, (700, 4, 4, 1), np.uint8)
    found = population.logits(of, images)
    assert found.shape == (2, 700, 4)
    for m in range(2):
        alone, _ = model.apply(population.take(variables, m), jnp.asarray(images, jnp.float32) / 255)
        np.testing.assert_allclose(found[m], alone.logits, atol=1e-5)


def test_an_ensemble_of_two_architectures_speaks_in_order():
    models = tuple(
        build_model(address, TASK) for address in ("mlp(hidden=(8,))", "cnn(widths=(4,), dense=6)")
    )
    variables = tuple(population.init(m, jax.random.split(jax.random.key(2), 2), (4, 4, 1)) for m in models)
    image = jnp.linspace(0, 1, 5 * 16).reshape(5, 4, 4, 1)
    found = population.apply_ensemble(models, variables, image)
    assert found.logits.shape == (4, 5, 4)
    assert [e.shape for e in found.embedding] == [(5, 8), (5, 8), (5, 6), (5, 6)]
    for k in range(4):
        outputs, _ = models[k // 2].apply(population.take(variables[k // 2], k % 2), image)
        np.testing.assert_allclose(found.logits[k], outputs.logits, atol=1e-6)
        np.testing.assert_allclose(found.embedding[k], outputs.embedding, atol=1e-6)


def test_unknown_how_is_refused():
    with pytest.raises(ValueError, match="known are"):
        population.over_members(lambda member, shared: member, "pamp")
