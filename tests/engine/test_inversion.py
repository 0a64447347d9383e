"""Images made from what networks know: what is asked of them, and students who see nothing else."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from mtkd_jax import experiment
from mtkd_jax.engine import inversion, population, training
from mtkd_jax.plans import plan, teachers
from mtkd_jax.types import Model, Population, UserError
from tests import small

NORMED = "mlp(hidden=(8,), batch_norm=True)"


@pytest.fixture(scope="module")
def ensemble():
    """Two networks nobody has trained, whose BatchNorm says it has seen images of another kind."""
    config = small.config(**{"model.name": NORMED})
    model = teachers.network(experiment.load_split(config), NORMED)
    variables = population.init(model, jax.random.split(jax.random.key(5), 2), (4, 4, 1))
    shifted = jax.tree.map(lambda leaf: leaf + 0.5, variables["batch_stats"])
    return (Population(model, {**variables, "batch_stats": shifted}, {}, ("a", "b")),)


def made(ensemble, statistics, num_steps=60, smoothness=0.0, bounds=None):
    arguments = {"num_steps": num_steps, "statistics": statistics, "smoothness": smoothness, "seed": 0}
    return inversion.invert(ensemble, 128, (4, 4, 1), bounds, **arguments)


def statistics_of(ensemble, images):
    """How far the batch statistics of what enters the normalisation are from those kept, by hand."""
    (own,), found = ensemble, []
    for member in range(own.num_members):
        variables = population.take(own.variables, member)
        layer, kept = variables["params"]["dense1"], next(iter(variables["batch_stats"].values()))
        task = own.model.module.task
        x = (np.float64(images) - task.mean[0]) / task.std[0]
        x = x.reshape(len(x), -1) @ np.asarray(layer["kernel"], float)
        x = x + np.asarray(layer.get("bias", 0.0), float)
        mean, var = (np.asarray(kept[name], float) for name in ("mean", "var"))
        off = (x.mean(0) - mean) ** 2 / (var + 1e-5) + (x.var(0) - var) ** 2 / (var + 1e-5) ** 2
        found.append(off.mean())
    return np.mean(found)


def test_images_are_taken_for_their_classes_and_have_the_statistics_that_were_kept(ensemble):
    noise, found = made(ensemble, 1.0, num_steps=0), made(ensemble, 1.0)
    assert found.shape == (128, 4, 4, 1) and found.min() >= 0 and found.max() <= 1
    labels = np.arange(128) % 4

    def taken(images):
        logits = population.logits(ensemble[0], images.astype(np.float32)).mean(axis=0)
        return np.mean(logits.argmax(axis=-1) == labels)

    assert taken(noise) < 0.6 < 0.9 < taken(found)
    free = made(ensemble, 0.0)  # by classes alone
    assert statistics_of(ensemble, found) < 0.5 * statistics_of(ensemble, free)
    np.testing.assert_array_equal(found, made(ensemble, 1.0))


def test_smoothness_makes_neighbours_alike_and_floats_stay_about_their_mean(ensemble):
    rough, smooth = (made(ensemble, 0.0, smoothness=weight) for weight in (0.0, 30.0))
    roughness = [np.mean(np.diff(images, axis=1) ** 2) for images in (rough, smooth)]
    assert roughness[1] < 0.3 * roughness[0]
    about = made(ensemble, 0.0, num_steps=0, bounds=(np.float32([7.0]), np.float32([0.1])))
    np.testing.assert_allclose([about.mean(), about.std()], [7.0, 0.1], rtol=0.1)


def test_students_see_these_images_alone():
    config = small.config(
        **{
            "plan": "data_free(num_images=50, num_steps=2)",
            "model.name": NORMED,
            "students.modes": ("output_avg",),
            "students.transfer": ("other",),  # steps are counted by these, and not by those that are made
            "data.other": "synthetic(num_classes=3, num_train=20, num_test=9, size=4, noise=0.1)",
        }
    )
    split = experiment.load_split(config)
    first, direct, *_, last = plan.build(config, split)
    done = {first.name: training.untrained(first.make({}))}
    plan.trace(last.outline(done))
    job, number = last.make(done), len(split.dataset.train_labels)
    assert {member.mode for member in last.family} == {"data_free"} and last.transfer == "other"
    assert job.order(0).min() >= number and job.order(0).max() < number + 50
    assert job.order(0).shape == direct.make(done).order(0).shape
    images = job.stage_data.examples.image[number:]
    assert images.dtype == np.uint8 and len(images) == 50
    np.testing.assert_array_equal(images, last.make(done).stage_data.examples.image[number:])


@pytest.mark.parametrize(
    "address, said",
    [("data_free(num_images=0)", "num_images=0"), ("data_free(mode='mimic_all')", "one head")],
)
def test_what_cannot_be_is_refused_in_a_line(address, said):
    config = small.config(**{"plan": address, "model.name": NORMED})
    with pytest.raises(UserError, match=said):
        plan.build(config, experiment.load_split(config))


def test_statistics_are_as_far_apart_however_much_of_them_a_layer_keeps():
    class Normed(nn.Module):
        momentum: float

        @nn.compact
        def __call__(self, image, train):
            return nn.BatchNorm(use_running_average=not train, momentum=self.momentum, name="norm")(image)

    images = np.random.default_rng(0).normal(size=(8, 2, 2, 1)).astype(np.float32)
    for momentum in (0.9, 0.6):
        model = Model("normed", Normed(momentum))
        apart = inversion._statistics_apart(model)
        found = apart(model.init(jax.random.key(0), images), (images, jax.random.key(1)))
        expected = images.mean() ** 2 / (1 + 1e-5) + (images.var() - 1) ** 2 / (1 + 1e-5) ** 2
        np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_a_plan_of_teachers_without_statistics_is_refused_before_any_work(tmp_path):
    config = small.config(plan="data_free(num_images=50, num_steps=2)")
    with pytest.raises(UserError, match=r"config.plan: data_free .* mlp\(hidden=\(8,\)\), keep none"):
        experiment.run(config, tmp_path / "w")
    assert not any((tmp_path / "w").glob("checkpoints/*"))


def test_teachers_that_keep_no_statistics_are_refused():
    config = small.config()
    model = teachers.network(experiment.load_split(config), "mlp(hidden=(8,))")
    variables = population.init(model, jax.random.split(jax.random.key(5), 2), (4, 4, 1))
    with pytest.raises(UserError, match="must be networks with BatchNorm"):
        made((Population(model, variables, {}, ("a", "b")),), 1.0)
