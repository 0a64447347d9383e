"""Methods of methods/averages.py: the average by hand, the loss by hand, and a training with few labels."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import experiment
from mtkd_jax.data.augment import augment
from mtkd_jax.engine import population, training
from mtkd_jax.engine.step import make_step
from mtkd_jax.methods import averages
from mtkd_jax.methods.seams import SUPERVISED
from mtkd_jax.plans import students
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.types import Networks, Outputs, TrainState, UserError
from tests import small
from tests.contexts import P1, Q, context
from tests.references import methods as reference

MODE = "averages.mean_teacher"


def state(params, mem):
    return TrainState(params={"w": params}, aux={}, model_state={}, opt_state={}, mem=mem, key=None)


@pytest.mark.parametrize("decay, expected", [(0.99, [1 / 2, 2 / 3, 3 / 4]), (0.6, [1 / 2, 0.7, 0.82])])
def test_the_average_by_hand(decay, expected):
    """A student of 1 and an average that starts at 0: d = 1/2, 2/3, 3/4, ..., but never above `decay`."""
    mem = {"params": {"w": jnp.float32(0.0)}}
    for step, average in enumerate(expected):
        seen = context([Q], [[P1]], step=step, decay=decay)
        mem = averages.mean_teacher().after(state(jnp.float32(1.0), mem), seen).mem
        np.testing.assert_allclose(mem["params"]["w"], average, rtol=1e-6)


def test_batch_statistics_are_averaged_too():
    now = dataclasses.replace(state(jnp.ones(2), None), model_state={"batch_stats": jnp.full(2, 5.0)})
    start = averages.mean_teacher().init_mem(
        {"params": {"w": jnp.zeros(2)}, "batch_stats": jnp.ones(2)}, None, 3
    )
    recipe = averages.mean_teacher()
    moved = recipe.after(dataclasses.replace(now, mem=start), context([Q], [[P1]], decay=0.99))
    np.testing.assert_allclose(recipe.deploy(moved, {})["batch_stats"], [3.0, 3.0])
    np.testing.assert_allclose(recipe.deploy(moved, {})["params"]["w"], [0.5, 0.5])


@pytest.mark.parametrize(
    "ramp, progress, factor",
    [(1.0, 0.0, 0.006738), (1.0, 0.5, 0.286505), (0.25, 0.125, 0.286505), (0.25, 0.25, 1.0), (0.0, 0.0, 1.0)],
)
def test_the_loss_by_hand(ramp, progress, factor):
    seen = context([Q], [[P1]], progress=progress, weight=12.0, alpha=0.3, temperature=4.0)
    found = averages.mean_teacher(ramp=ramp).term(seen)
    np.testing.assert_allclose(found, [np.log(4) + 12.0 * factor * 0.125 / 3], rtol=1e-5)


@pytest.mark.parametrize("method", [averages.mean_teacher, averages.pi_model])
def test_the_loss_is_the_reference(method):
    student, other = 2 * np.random.default_rng(7).normal(size=(2, 4, 5))
    label, recipe = np.array([3, 0, 1, 4]), method(ramp=0.5)
    for progress in (0.1, 0.4, 0.9):
        seen = context(student, [other], label, progress=progress, weight=12.0)
        expected = [
            reference.mean_teacher(*of, weight=12.0, share=progress / 0.5)
            for of in zip(student, other, label)
        ]
        np.testing.assert_allclose(recipe.term(seen), expected, rtol=1e-5)
    hidden = context(student, [other], label, labelled=np.zeros(4, bool), weight=12.0)
    expected = [reference.mean_teacher(z, z_other, None, 12.0, 1.0) for z, z_other in zip(student, other)]
    np.testing.assert_allclose(recipe.term(hidden), expected, rtol=1e-5)


def test_without_labels_there_is_consistency_alone():
    labelled = [False, True, False]
    seen = context([Q, Q, P1], [[P1, P1, P1]], labelled=labelled, weight=3.0)
    found = averages.mean_teacher().term(seen)
    np.testing.assert_allclose(found, [0.125, 3 * np.log(4) + 0.125, 0.0], rtol=1e-5, atol=1e-7)


def noisy(key, images):
    return augment(key, images, noise=0.2)


def test_two_views_are_two_draws_of_the_augmentation():
    batch = context(np.zeros((3, 4)), np.zeros((1, 3, 4))).batch
    batch = dataclasses.replace(batch, image=jnp.full((3, 4, 4, 1), 0.5))
    seen = averages.mean_teacher().stimulus(jax.random.key(1), batch, noisy, None)
    own, other = seen.image, seen.views["teacher"]
    assert own.shape == other.shape == batch.image.shape
    moved = [np.abs(view - batch.image).mean() for view in (own, other)]
    np.testing.assert_allclose(moved, [0.16, 0.16], atol=0.05)
    assert abs(np.corrcoef(np.ravel(own), np.ravel(other))[0, 1]) < 0.5


def test_the_teacher_is_the_average_on_its_own_view_in_training():
    def network(variables, image, *, train, key):
        assert train and key is not None
        logits = variables["params"]["w"] * image.reshape(1, -1)
        return Outputs(logits, logits[None], logits, {}), {}

    seen = context([Q], [[P1]])
    batch = dataclasses.replace(seen.batch, views={"teacher": jnp.array([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)})
    own = state(jnp.float32(1.0), {"params": {"w": jnp.float32(10.0)}})
    seen = dataclasses.replace(seen, batch=batch, state=own)
    said = averages.mean_teacher().teach(seen, Networks(None, network))
    np.testing.assert_array_equal(said.logits, [[[10.0, 20.0, 30.0]]])


@pytest.mark.parametrize("wrong", [{"decay": 1.0}, {"decay": -0.1}, {"ramp": 1.5}])
def test_numbers_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(UserError, match=f"mean_teacher.{name}="):
        averages.mean_teacher(**wrong)


# --- another view, earlier predictions ----------------------------------------------------------------


def test_the_pi_model_asks_the_student_itself_about_its_other_view():
    def network(variables, image, *, train, key):
        assert train and key is not None
        logits = (variables["params"]["w"] + variables["batch_stats"]) * image.reshape(1, -1)
        return Outputs(logits, logits[None], logits, {}), {}

    seen = context([Q], [[P1]])
    batch = dataclasses.replace(seen.batch, views={"teacher": jnp.array([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)})
    own = dataclasses.replace(state(jnp.float32(10.0), {}), model_state={"batch_stats": jnp.float32(1.0)})
    seen = dataclasses.replace(seen, batch=batch, state=own)
    said = averages.pi_model().teach(seen, Networks(None, network))
    np.testing.assert_array_equal(said.logits, [[[11.0, 22.0, 33.0]]])
    assert averages.pi_model(ramp=0.3).term == averages.mean_teacher(ramp=0.3).term


def remembered(visits, decay=0.6):
    """The recipe and the context after visits [(rows, logits)] of an example set of three."""
    recipe = averages.temporal_ensembling(weight=3.0, decay=decay, ramp=0.0)
    seen = context([Q], [[P1]], decay=decay, weight=3.0, labelled=[False])
    mem = recipe.init_mem({}, seen.student, 3)
    for rows, logits in visits:
        now = context(logits, [logits], decay=decay)
        now = dataclasses.replace(now, batch=dataclasses.replace(now.batch, index=jnp.array(rows)))
        mem = recipe.after(state(jnp.float32(0.0), mem), now).mem
    return recipe, dataclasses.replace(seen, state=state(jnp.float32(0.0), mem))


def test_earlier_predictions_by_hand():
    """The fixture of the card: certain of class 0, then of 1; the target is (1, 0), then (.375, .625)."""
    first, second = 80 * np.eye(3)[:2]
    for visits, target in (([first], [1.0, 0.0, 0.0]), ([first, second], [0.375, 0.625, 0.0])):
        recipe, seen = remembered([([0], [logits]) for logits in visits])
        expected = 3.0 * np.mean((np.array([0.25, 0.5, 0.25]) - target) ** 2)
        np.testing.assert_allclose(recipe.term(seen), [expected], rtol=1e-5)


def test_earlier_predictions_are_the_reference_and_those_of_the_example():
    rng = np.random.default_rng(5)
    own, other = rng.normal(size=(3, 3)), rng.normal(size=(3, 3))
    recipe, seen = remembered([([2, 0], [b, a]) for a, b in zip(own, other)], decay=0.8)
    expected = reference.temporal_ensembling([reference.softmax(z) for z in own], 0.8)
    distance = np.mean((np.array([0.25, 0.5, 0.25]) - expected) ** 2)
    np.testing.assert_allclose(recipe.term(seen), [3.0 * distance], rtol=1e-5)


def test_an_example_that_was_never_seen_has_nothing_to_agree_with():
    recipe, seen = remembered([([1], [80 * np.eye(3)[0]])])
    gradient = jax.grad(
        lambda z: recipe.term(
            dataclasses.replace(seen, student=dataclasses.replace(seen.student, logits=z))
        ).sum()
    )
    np.testing.assert_array_equal(recipe.term(seen), [0.0])
    np.testing.assert_array_equal(gradient(seen.student.logits), np.zeros((1, 3)))


def test_an_example_that_a_batch_holds_twice_has_been_seen_once_with_the_mean_of_its_predictions():
    """In whatever order the two stand: then it does not matter which of them is written last."""
    first, second, other = np.random.default_rng(6).normal(size=(3, 3))
    kept = [
        remembered([(rows, logits)])[1].state.mem
        for rows, logits in (([0, 2, 0], [first, other, second]), ([0, 0, 2], [second, first, other]))
    ]
    mean = (reference.softmax(first) + reference.softmax(second)) / 2
    for mem in kept:
        np.testing.assert_array_equal(mem["num_seen"], [1.0, 0.0, 1.0])
        np.testing.assert_allclose(
            mem["rows"], 0.4 * np.array([mean, 0 * mean, reference.softmax(other)]), rtol=1e-5
        )


def test_what_is_remembered_of_many_places_takes_no_room_for_each_pair_of_them():
    number = 2**17  # whose pairs would take 64 GiB
    seen = context(np.zeros((number, 2)), np.zeros((1, number, 2)), decay=0.6)
    recipe = averages.temporal_ensembling()
    mem = recipe.init_mem({}, seen.student, number)
    kept = jax.jit(recipe.after).lower(state(jnp.float32(0.0), mem), seen).compile()
    assert kept.memory_analysis().temp_size_in_bytes < 2**26


@pytest.mark.parametrize("method", [averages.pi_model, averages.temporal_ensembling])
def test_their_numbers_out_of_range_are_refused(method):
    with pytest.raises(UserError, match=f"{method.__name__}.ramp=1.5"):
        method(ramp=1.5)


# --- in the step --------------------------------------------------------------------------------------


def test_after_one_step_without_augmentation_the_average_is_half_way(tmp_path):
    """Teacher and student are equal on equal views: nothing but the labels moves the first step."""
    config = small.config(
        **{
            "data.num_train": 16,
            "model.name": "mlp(hidden=(8,), batch_norm=True)",
            "train.epochs": 1,
            "train.optimizer": "sgd",
            "train.learning_rate": 0.1,
            "students.modes": (MODE,),
            "students.num_seeds": 1,
            "runtime.how": "vmap",
        }
    )
    split = experiment.load_split(config)
    family, _ = students.families(config)
    assert [member.cell.alpha for member in family] == [1.0]
    job = students.job(config, split, "labelled", family, (), {})
    supervised = dataclasses.replace(job, program=job.program._replace(recipes=(SUPERVISED,)))
    before = population.init(job.program.model, job.init_keys, (4, 4, 1))
    after = trained(supervised, tmp_path / "supervised")
    average = trained(job, tmp_path / "average")
    assert set(average) == {"params", "batch_stats"}
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(a, (b + c) / 2, atol=1e-6, rtol=0), average, before, after
    )


def trained(job, directory):
    with Logbook(directory, quiet=True) as logbook:
        return training.fit(job, directory / "checkpoints", logbook).population.variables


@pytest.mark.parametrize(
    "mode",
    [
        f"{MODE}(weight=10.0, decay=0.9)",
        "averages.pi_model(weight=10.0)",
        "averages.temporal_ensembling(weight=10.0)",
    ],
)
def test_it_learns_from_few_labels_and_unlabelled_images(mode, tmp_path):
    config = small.config(
        **{
            "data.num_train": 8,
            "data.augment.noise": 0.2,
            "teachers.num_members": 1,
            "students.modes": (mode,),
            "students.transfer": ("unlabelled",),
            "students.epochs": 15,
            "train.batch_size": 8,
            "runtime.how": "vmap",
        }
    )
    done = small.train(config, tmp_path)
    (fitted,) = (f for stage, f in done.items() if "averages" in stage)
    assert not fitted.diverged
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for member in fitted.population.names:
        nll = [r["value"] for r in records if r["member"] == member and r["name"] == "val_nll"]
        assert len(nll) == 15 and nll[-1] < 0.8 * nll[0], nll


@pytest.mark.parametrize("mode", [MODE, "online.pcl", "online.dkel"])
def test_with_several_steps_an_update_the_average_moves_once_an_update(mode):
    """Two steps of half a batch each are one step of all of it: for the student and for the average."""
    arguments = {"decay": 0.6, "ramp": 0.0, **({"fading": 0.0} if mode == "online.dkel" else {})}
    fields = {"students.arguments": {mode: arguments}, "train.optimizer": "sgd", "train.learning_rate": 0.3}
    job = small.students_job(mode, **fields, **{"students.num_seeds": 1, "train.batch_size": 8})
    halves = np.asarray(job.order(0)[:6])

    def after(accumulate, batches):
        own = dataclasses.replace(job, program=job.program._replace(accumulate=accumulate))
        now, one_step, found = training.first_progress(own).train, jax.jit(make_step(own.program)), []
        for number, indices in enumerate(batches):
            now, _ = one_step(now, own.hyper, jnp.asarray(indices), jnp.int32(number), own.stage_data)
            found.append((now.params, now.mem))
        return found

    in_two, at_once = after(2, halves), after(1, halves.reshape(3, 16))
    jax.tree.map(np.testing.assert_array_equal, in_two[1], in_two[2])  # half an update changes nothing
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    jax.tree.map(close, in_two[1::2], at_once)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), at_once[0][1], at_once[-1][1])
    assert max(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize(
    "mode", ["averages.temporal_ensembling", "teaching.soteacher", "relations.crd_memory"]
)
@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_what_remembers_each_image_by_itself_refuses_mixed_ones(mode, mixing):
    """What is said of a mixture would stand in the row of its first image."""
    job = small.students_job(mode, **{f"train.{mixing}": 0.5})
    now = training.first_progress(job).train
    with pytest.raises(UserError, match=f"^{mode}: train.mixup and train.cutmix must be 0 with it"):
        jax.eval_shape(make_step(job.program), now, job.hyper, job.order(0)[0], np.int32(0), job.stage_data)
