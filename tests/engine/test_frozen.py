"""Frozen stages: nothing of them moves, nothing is computed for them, and run once they say the same."""

import dataclasses

import jax
import numpy as np
import pytest

from mtkd_jax import experiment
from mtkd_jax.engine import forecast, frozen, population, training
from mtkd_jax.engine.tuning import with_layout
from mtkd_jax.mesh import Layout
from mtkd_jax.models import stages
from mtkd_jax.models.efficientnet import efficientnet_lite0
from mtkd_jax.plans import given, plan, students, teachers
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.types import Population, Task, UserError
from tests import small, staged

DATA = "synthetic(num_classes=4, num_train=120, num_test=40, size=6, noise=0.4)"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "body.npz"
    np.savez(path, **staged.tensors())
    return str(path)


def network(weights, trainable, **further):
    said = "".join(f", {name}={value}" for name, value in further.items())
    return f"tests.staged:staged(pretrained={weights!r}, trainable={trainable!r}{said})"


def config_of(weights, trainable, dropout=0.0, **overrides):
    address = network(weights, trainable, **({"dropout": dropout} if dropout else {}))
    return small.config(
        **{
            "data.source": DATA,
            "model.name": address,
            "teachers.num_members": 2,
            "train.epochs": 2,
            **overrides,
        }
    )


def job_of(config, how="map"):
    return with_layout(teachers.job(config, experiment.load_split(config), config.model.name), Layout(how))


def fitted(job, folder):
    with Logbook(folder, quiet=True) as logbook:
        return training.fit(job, folder / "checkpoints", logbook).population.variables


def held_and_run(job, said=None):
    told = []
    filled = frozen.fill(job, {}, told.append)
    assert said is None or said in told[-1]
    return filled


def close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=atol), a, b)


# --- what is frozen stays --------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable, moving", [("stage1", {"stage1", "heads"}), ("heads", {"heads"})])
def test_frozen_stages_keep_weights_and_statistics_whatever_decays(trainable, moving, weights, tmp_path):
    config = config_of(weights, trainable, **{"train.weight_decay": 0.3, "runtime.frozen_features": "off"})
    job = job_of(config)
    trained = fitted(job, tmp_path)
    for kind in ("params", "batch_stats"):
        for name, before in job.start[kind].items():
            pairs = zip(jax.tree.leaves(before), jax.tree.leaves(trained[kind][name]))
            same = all(np.array_equal(a, b) for a, b in pairs)
            assert same is (job.program.model.stage_of(name) not in moving), (kind, name)
    assert set(trained["params"]) == set(job.start["params"])


def test_the_loss_of_a_step_is_that_of_stored_statistics_without_dropout(weights):
    """Of a linear probe on a frozen body: the cross-entropy of the network in evaluation, by NumPy."""
    job = job_of(config_of(weights, "heads", dropout=0.9, **{"teachers.num_members": 1}))
    indices = job.order(0)[:1]
    first = training.first_progress(job)
    after = training.compiled_part(job.program)(first, job.hyper, indices, np.int32(0), job.stage_data)
    task = job.program.model.module.task
    image = np.asarray(job.stage_data.examples.image[indices[0, 0]]) / 255
    logits = staged.evaluated(population.take(job.start, 0), image, task.mean[0], task.std[0])
    label = np.asarray(job.stage_data.examples.label[indices[0, 0]])
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -log_probs[np.arange(len(label)), label].mean()
    np.testing.assert_allclose(after.loss[0], expected, rtol=1e-4)


def test_no_gradient_is_computed_through_frozen_stages():
    """By the compiler's own count: backwards only the last layer of a network of fifty."""
    task = Task(num_classes=3, num_heads=1, mean=(0.5,) * 3, std=(0.2,) * 3)
    image = jax.ShapeDtypeStruct((4, 32, 32, 3), np.float32)
    model = efficientnet_lite0(task, trainable="heads")
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    trained, held = stages.split(model, variables)

    def loss(params, held, image):
        whole = stages.join({**trained, "params": params}, held)
        return model.apply(whole, image, train=True)[0].logits.sum()

    counted = jax.jit(jax.grad(loss)).lower(trained["params"], held, image).cost_analysis()["flops"]
    forward = jax.jit(loss).lower(trained["params"], held, image).cost_analysis()["flops"]
    assert counted < 1.05 * forward


def test_the_forecast_counts_frozen_stages_once(weights):
    job = job_of(config_of(weights, "heads"))
    all_trained = dataclasses.replace(job.program.model, trainable="")
    plain = dataclasses.replace(job, program=job.program._replace(model=all_trained))
    outlined = frozen.outline(job)
    assert forecast.flops(outlined) < 0.1 * forecast.flops(job) < 0.1 * 0.4 * forecast.flops(plain)
    assert forecast.estimated_bytes(job)[1] < 0.6 * forecast.estimated_bytes(plain)[1]


def test_the_norm_that_is_clipped_is_of_what_is_trained(weights):
    """Frozen by the network or by the recipe, other leaves have no part in it."""
    clipped = {"train.clip_norm": 0.05, "train.optimizer": "sgd(momentum=0.0)"}
    config = config_of(weights, "", **clipped)
    job = job_of(config)
    only_heads = job.program.recipes[0]._replace(trainable=_is_of_heads)
    by_recipe = dataclasses.replace(job, program=job.program._replace(recipes=(only_heads,)))
    by_network = job_of(config_of(weights, "heads", **clipped))
    rate = config.train.learning_rate
    for one in (by_recipe, by_network):
        first = training.first_progress(one)
        before = jax.device_get(first.train.params["heads"])
        steps = training.compiled_part(one.program)
        last = steps(first, one.hyper, one.order(0)[:1], np.int32(0), one.stage_data)
        for member in range(2):
            moved = jax.tree.map(lambda a, b, m=member: a[m] - b[m], before, last.train.params["heads"])
            leaves = jax.tree.leaves(jax.device_get(moved))
            norm = np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in leaves))
            np.testing.assert_allclose(norm, rate * 0.05, rtol=1e-3)


def _is_of_heads(path):
    return path.startswith("params/heads")


# --- run once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", ["stage1", "heads"])
def test_run_once_frozen_stages_train_the_same_whole_networks(trainable, weights, tmp_path):
    job = job_of(config_of(weights, trainable))
    filled = held_and_run(job, "run once over all images")
    assert isinstance(filled.program.model, stages.Tail) and filled.model is job.program.model
    assert filled.stage_data.examples.image.dtype == np.float32
    close(fitted(filled, tmp_path / "once"), fitted(job, tmp_path / "always"))


def test_students_of_cached_teachers_begin_behind_their_frozen_stages_too(weights, tmp_path):
    config = config_of(
        weights,
        "heads",
        **{
            "teachers.models": ("mlp(hidden=(4,))",),
            "students.modes": ("mimic_all",),
            "students.alphas": (0.5,),
            "students.num_seeds": 2,
            "train.ema_decay": 0.9,
        },
    )
    stages_, borrowed, _ = experiment.planned(config, experiment.load_split(config))
    stage = next(stage for stage in stages_ if any(m.mode == "mimic_all" for m in stage.family))
    job = with_layout(stage.make(plan.rehearse(stages_, config, borrowed)), Layout("map"))
    filled = held_and_run(job, "run once")
    assert filled.program.teachers == () and filled.stage_data.cached_logits.shape[0] == 2
    close(fitted(filled, tmp_path / "once"), fitted(job, tmp_path / "always"))


def test_a_probe_taught_by_given_logits_begins_behind_its_frozen_stages(weights):
    """The first step from features, of what the files say, moves the heads as the whole network's does."""
    config = config_of(weights, "heads", **{"students.modes": ("output_avg",), "students.alphas": (0.5,)})
    split = experiment.load_split(config)
    said = {"train": np.random.default_rng(0).normal(size=(2, 120, 4)).astype(np.float32)}
    taught_by = Population(given.LOGITS, said, {}, ("a", "b"))
    (family, *_) = students.families(config)
    job = with_layout(students.job(config, split, "labelled", family, (taught_by,), {}), Layout("map"))
    filled = held_and_run(job, "run once over all images")
    assert filled.program.teachers == (given.LOGITS,) and filled.stage_data.cached_logits is None
    heads = []
    for one in (filled, job):
        steps = training.compiled_part(one.program)
        after = steps(training.first_progress(one), one.hyper, one.order(0)[:1], np.int32(0), one.stage_data)
        heads.append(jax.device_get((after.train.params["heads"], after.loss)))
    close(*heads)
    assert not np.allclose(heads[0][0]["kernel"], job.start["params"]["heads"]["kernel"])


def test_members_on_several_devices_share_the_frozen_stages(weights, tmp_path):
    job = job_of(config_of(weights, "stage1"))
    spread = with_layout(held_and_run(job), Layout("map", 2))
    close(fitted(spread, tmp_path / "spread"), fitted(job, tmp_path / "one"))


@pytest.mark.parametrize(
    "overrides, reason",
    [
        ({"data.augment.noise": 0.1}, "images are augmented"),
        ({"train.mixup": 0.2}, "images are augmented"),
    ],
)
def test_what_changes_the_images_keeps_frozen_stages_in_the_step(overrides, reason, weights):
    filled = held_and_run(job_of(config_of(weights, "heads", **overrides)), reason)
    assert not isinstance(filled.program.model, stages.Tail) and filled.stage_data.frozen
    assert set(training.first_progress(filled).train.params) == {"heads"}


def test_features_that_do_not_fit_are_not_kept(weights, monkeypatch):
    monkeypatch.setattr(forecast, "memory_limit", lambda: 1000)
    filled = held_and_run(job_of(config_of(weights, "heads")), "MiB are there for it")
    assert not isinstance(filled.program.model, stages.Tail)


def test_members_whose_frozen_stages_differ_have_their_own(tmp_path):
    """Drawn and never trained: each member's own, run in every step."""
    job = job_of(config_of("", "heads", **{"teachers.num_members": 3}))
    filled = held_and_run(job, "every member has its own")
    assert not filled.stage_data.frozen
    trained = fitted(filled, tmp_path)
    drawn = population.init(job.program.model, job.init_keys, job.image.shape[1:])
    for name in ("stem_conv", "stage1_conv"):
        np.testing.assert_array_equal(trained["params"][name]["kernel"], drawn["params"][name]["kernel"])
        assert not np.array_equal(trained["params"][name]["kernel"][0], trained["params"][name]["kernel"][1])


# --- rates by depth ---------------------------------------------------------------------------------------


def test_rates_fall_by_a_factor_a_stage(weights):
    """One step of plain gradient descent moves every stage as far as its factor says."""
    sgd = {"train.optimizer": "sgd(momentum=0.0)", "train.weight_decay": 0.1}
    moved = {}
    for decay in (1.0, 0.5):
        job = job_of(config_of(weights, "", **sgd, **{"train.depth_decay": decay}))
        first = training.first_progress(job)
        before = jax.device_get(first.train.params)
        steps = training.compiled_part(job.program)
        last = steps(first, job.hyper, job.order(0)[:1], np.int32(0), job.stage_data)
        moved[decay] = jax.tree.map(lambda a, b: np.asarray(b) - a, before, jax.device_get(last.train.params))
    for name, factor in (("stem_conv", 0.25), ("stage1_norm", 0.5), ("heads", 1.0)):
        close(moved[0.5][name], jax.tree.map(lambda leaf, f=factor: f * leaf, moved[1.0][name]), atol=1e-7)
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(moved[1.0][name])) > 1e-5


@pytest.mark.parametrize(
    "overrides, expected",
    [
        ({"train.depth_decay": 0.5}, "depth_decay: 0.5, but mlp(hidden=(8,)) names no stages; must be 1"),
        ({"train.depth_decay": 1.5}, "config.train.depth_decay: 1.5 is not possible; it must be in (0, 1]"),
        (
            {"model.name": "efficientnet_lite0(trainable='stage9')"},
            "efficientnet_lite0.trainable = 'stage9': expected one of stem, stage1",
        ),
        (
            {
                "model.name": "efficientnet_lite0",
                "train.depth_decay": 0.5,
                "train.optimizer": "schedule_free",
                "train.schedule": "constant",
            },
            "config.train.depth_decay: schedule_free has one learning rate",
        ),
    ],
)
def test_what_cannot_be_is_one_line(overrides, expected):
    with pytest.raises(UserError) as error:
        small.config(**overrides)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_what_enters_a_stage_is_what_the_one_before_says():
    model = staged.staged(Task(3, 1, (0.4,), (0.2,)), trainable="stage1")
    image = staged.image()
    variables = model.init(jax.random.key(0), image)
    assert set(variables) == {"params", "batch_stats"}
    entered = stages.entering(model, variables, image)
    outputs, state = model.apply(variables, image)
    np.testing.assert_allclose(entered, outputs.features["stem"], rtol=1e-6)
    tail = stages.tail(model, image.shape[1:])
    again, same_state = tail.apply(variables, entered)
    np.testing.assert_allclose(again.logits, outputs.logits, rtol=1e-5, atol=1e-6)
    assert set(again.features) == {"stage1"} and jax.tree.structure(state) == jax.tree.structure(same_state)
    whole = stages.join(*stages.split(model, variables))
    assert jax.tree.structure(whole) == jax.tree.structure(variables)
