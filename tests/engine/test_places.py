"""A place is an example: a dense problem whose places are independent is the flattened one, step for step."""

import dataclasses
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import addresses, experiment, mesh
from mtkd_jax.data import boxes
from mtkd_jax.engine import jobs, places, population, step, teacher_cache, training
from mtkd_jax.engine.step import compiled_teacher_logits, make_step
from mtkd_jax.methods.seams import hard_loss, mean_of_places, of_places
from mtkd_jax.plans import teachers
from mtkd_jax.tasks import kinds
from mtkd_jax.types import Batch, Context, Examples, Model, Outputs, UserError
from tests import small

L = 4  # places of an example
OWN = {
    "data.source": "synthetic(num_classes=4, num_train=120, num_test=40, size=1, noise=0.4)",
    "train.optimizer": "sgd",
    "train.learning_rate": 0.1,
    "students.alphas": (0.25,),
    "students.num_seeds": 1,
}


@dataclasses.dataclass(frozen=True)
class OfPlaces(Model):
    """A network that sees every pixel alone: what it says of an image are its answers side by side."""

    inner: Model = None

    def init(self, key, image):
        return self.inner.init(key, image[:, :1, :1])

    def apply(self, variables, image, **further):
        each = image.reshape(-1, 1, 1, image.shape[-1])
        outputs, state = self.inner.apply(variables, each, **further)
        apart = lambda x: x.reshape(*x.shape[:-2], len(image), -1, x.shape[-1])  # noqa: E731
        return (
            Outputs(apart(outputs.logits), apart(outputs.heads), apart(outputs.embedding), {}),
            state,
        )


def of_places_of(model: Model) -> Model:
    return OfPlaces(model.name, model.module, inner=model)


@lru_cache
def pair(mode: str):
    """(flat job, dense job): the same pixels, one an example or four. Every fifth image has no label."""
    flat = small.students_job(mode, **OWN)
    teachers = population.init(flat.program.teachers[0], jax.random.split(jax.random.key(5), 3), (1, 1, 1))
    teachers = jax.tree.map(lambda leaf: 3 * leaf, teachers)  # opinionated
    flat = dataclasses.replace(flat, stage_data=dataclasses.replace(flat.stage_data, teachers=(teachers,)))
    examples, program = flat.stage_data.examples, flat.program
    labelled = np.arange(len(examples.label) // L) % 5 != 0
    dense_examples = dataclasses.replace(
        examples,
        image=examples.image.reshape(-1, 2, 2, examples.image.shape[-1]),
        label=examples.label.reshape(-1, L),
        labelled=jnp.asarray(labelled),
    )
    flat_examples = dataclasses.replace(examples, labelled=jnp.asarray(np.repeat(labelled, L)))
    dense_program = program._replace(
        model=of_places_of(program.model), teachers=tuple(map(of_places_of, program.teachers))
    )
    return with_examples(flat, flat_examples), dataclasses.replace(
        with_examples(flat, dense_examples), program=dense_program
    )


def with_examples(job: jobs.Job, examples: Examples) -> jobs.Job:
    return dataclasses.replace(job, stage_data=dataclasses.replace(job.stage_data, examples=examples))


def with_labels(job: jobs.Job, change) -> jobs.Job:
    examples = job.stage_data.examples
    return with_examples(job, dataclasses.replace(examples, **change(examples)))


def of_pixels(rows: np.ndarray) -> np.ndarray:
    return (rows[:, None] * L + np.arange(L)).ravel()


@lru_cache
def compiled(program):
    return jax.jit(make_step(program), compiler_options={"xla_backend_optimization_level": 0})


def stepped(job: jobs.Job, indices: np.ndarray, num_steps: int = 1):
    """(parameters and memory after some steps on one batch, the losses)."""
    state, losses = training.first_progress(job).train, []
    for number in range(num_steps):
        step = compiled(job.program)
        state, loss = step(
            state, job.hyper, jnp.asarray(indices, jnp.int32), jnp.int32(number), job.stage_data
        )
        losses.append(np.asarray(loss))
    return mesh.on_host((state.params, state.mem)), np.array(losses)


def close(found, expected, atol=2e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol), found, expected)


# A plain one, one that reads labels, one that weighs teachers, several heads, peers, one of a whole batch.
COMPARED = ("output_avg", "logits.dkd", "weights.ca_mkd", "mimic_all", "peers.dml", "logits.dist")


@pytest.mark.parametrize("mode", COMPARED)
def test_a_dense_problem_of_independent_places_is_the_flattened_one(mode):
    flat, dense = pair(mode)
    rows = np.array([1, 5, 9, 2])
    expected, losses = stepped(flat, of_pixels(rows))
    found, dense_losses = stepped(dense, rows)
    close(found, expected)
    close(dense_losses, losses)
    first = mesh.on_host(training.first_progress(dense).train.params)
    moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(found[0]))]
    assert max(moved) > 1e-3  # there was a gradient to compare


def is_of_embeddings(mode: str) -> bool:
    """Whether a method reads logits and embeddings alone, and draws nothing for each row of a batch."""
    recipe = addresses.build_recipe(mode)
    reads = set(recipe.needs) <= {"embedding"} and not recipe.prepare
    # The last compares the places of an image, of which the flattened batch has one.
    return reads and mode not in ("targets.dkpp", "weights.lot", "logits.cwd")


OF_BATCHES = tuple(
    mode
    for mode in addresses.catalogue("mode")
    if mode.partition(".")[0] in ("output_avg", "logits", "relations", "features", "targets", "weights")
    and is_of_embeddings(mode)
)


# What looks at more of a batch than one example; the others are met by `pytest -m slow`.
BATCH_WIDE = ("output_avg", "logits.dist", "logits.spherical", "logits.mlkd", "weights.aekd", "features.pkt")


@pytest.mark.parametrize(
    "mode",
    [
        mode
        if mode in BATCH_WIDE or mode.startswith("relations.")
        else pytest.param(mode, marks=pytest.mark.slow)
        for mode in OF_BATCHES
    ],
)
def test_what_is_no_place_is_left_out(mode):
    """As if the flattened batch had never held these, whatever is compared among the places of a batch."""
    flat, dense = pair(mode)
    rows, gone = np.array([1, 5, 9, 2]), np.array([0, 7, 13])
    there = np.setdiff1d(np.arange(len(rows) * L), gone)
    pixels = of_pixels(rows)

    def without(examples):
        label = np.asarray(examples.label).copy().ravel()
        label[pixels[gone]] = -1
        return {"label": jnp.asarray(label.reshape(-1, L))}

    close(stepped(with_labels(dense, without), rows), stepped(flat, pixels[there]))


@pytest.mark.parametrize("mode", COMPARED)
def test_nothing_that_is_said_where_there_is_no_place_counts(mode):
    """To the bit, whatever the logits there: these pixels are 10^6 times as bright the second time."""
    _, dense = pair(mode)
    rows = np.array([1, 5, 9, 2])
    gone = np.array([[True, False, False, False]] * len(dense.stage_data.examples.label))
    without = with_labels(dense, lambda of: {"label": jnp.where(gone, -1, of.label)})

    def glaring(examples):
        image = np.asarray(examples.image).copy()
        image[gone.reshape(image.shape[:3])] *= 1e6
        return {"image": jnp.asarray(image)}

    calm = with_labels(without, lambda of: {"image": jnp.asarray(of.image, jnp.float32) / 255})
    jax.tree.map(
        np.testing.assert_array_equal, stepped(with_labels(calm, glaring), rows), stepped(calm, rows)
    )


FAMILIES = ("logits", "weights", "targets", "peers")
MODES = tuple(mode for mode in addresses.catalogue("mode") if mode.partition(".")[0] in FAMILIES)


@pytest.mark.parametrize("mode", MODES)
def test_every_method_of_logits_takes_two_steps_on_places(mode):
    _, dense = pair(mode)
    first = mesh.on_host(training.first_progress(dense).train.params)
    (params, _), losses = stepped(dense, np.array([1, 5, 9, 2]), num_steps=2)
    assert np.isfinite(losses).all()
    moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(params))]
    assert max(moved) > 0


def test_validation_is_over_the_places_that_are_there():
    _, dense = pair("output_avg")
    examples = dense.stage_data.examples
    images, labels = examples.image[:6], np.asarray(examples.label[:6]).copy()
    labels[:, 1] = -1
    state = training.first_progress(dense).train
    variables = population.take({"params": state.params, **state.model_state}, 0)
    evaluate = training._evaluator(dense.program, block=4)
    nll, accuracy = evaluate((variables, {}), ({}, (images, jnp.asarray(labels))))
    logits = np.asarray(
        dense.program.model.apply(variables, images.astype(jnp.float32) / 255)[0].logits, np.float64
    )
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    there = labels >= 0
    np.testing.assert_allclose(nll, -log_probs[there, labels[there]].mean(), rtol=1e-5)
    np.testing.assert_allclose(accuracy, (logits.argmax(-1) == labels)[there].mean(), rtol=1e-6)


def test_kept_logits_of_teachers_are_those_of_the_step():
    _, dense = pair("output_avg")
    rows = np.array([1, 5, 9, 2])
    dense = dataclasses.replace(dense, teacher_cache="float32")
    kept = teacher_cache.fill(dense, {})
    assert kept.program.cache_index == "example" and kept.stage_data.cached_logits.shape == (3, 30, L, 4)
    assert teacher_cache.outline(dense).stage_data.cached_logits.shape == (3, 30, L, 4)
    close(stepped(kept, rows), stepped(dense, rows))


def test_two_devices_share_the_places_of_a_batch():
    _, dense = pair("output_avg")
    rows = jnp.asarray([[1, 5, 9, 2]], jnp.int32)
    ask = compiled_teacher_logits(dense.program)
    shared = dense.program._replace(layout=dense.program.layout._replace(data=2))
    data = mesh.everywhere(dense.stage_data, shared.layout)
    close(compiled_teacher_logits(shared)(rows, data), ask(rows, dense.stage_data))
    steps = training.compiled_part(shared)
    spread = mesh.spread_out(training.first_progress(dense), shared.layout)
    found = mesh.on_host(steps(spread, dense.hyper, rows, np.int32(0), data))
    close(found.train.params, stepped(dense, rows[0])[0][0])


# --- the parts ----------------------------------------------------------------------------------------


def batch(**fields) -> Batch:
    usual = dict(
        image=jnp.zeros((2, 2, 1, 1)),
        label=jnp.array([[1, -1], [0, 2]]),
        index=jnp.array([7, 3]),
        labelled=jnp.array([True, False]),
    )
    return Batch(**{**usual, **fields})


def merged_batch(of: Batch) -> Batch:
    return places.merge_batch(places.number(of))


def test_a_batch_is_merged_row_by_row():
    found = merged_batch(
        batch(
            weight=jnp.array([[1.0, 2.0], [3.0, 4.0]]),
            speaks=jnp.array([[True, False, True], [False, False, True]]),
            goals={"boxes": jnp.arange(8.0).reshape(2, 2, 2)},
        )
    )
    np.testing.assert_array_equal(found.label, [1, 0, 0, 2])
    np.testing.assert_array_equal(found.valid, [True, False, True, True])
    np.testing.assert_array_equal(found.labelled, [True, False, False, False])
    np.testing.assert_array_equal(found.index, [14, 15, 6, 7])
    np.testing.assert_array_equal(found.weight, [1, 2, 3, 4])
    np.testing.assert_array_equal(found.speaks[1], found.speaks[0])
    np.testing.assert_array_equal(found.goals["boxes"], [[0, 1], [2, 3], [4, 5], [6, 7]])


def test_losses_of_examples_and_of_places_meet():
    merged = merged_batch(batch())
    np.testing.assert_array_equal(of_places(jnp.array([1.0, 5.0]), merged), [1, 1, 5, 5])
    np.testing.assert_allclose(mean_of_places(jnp.array([1.0, 5.0]), merged), (1 + 5 + 5) / 3)
    np.testing.assert_allclose(mean_of_places(jnp.array([1.0, np.nan, 2.0, 6.0]), merged), 3.0)
    nowhere = merged_batch(batch(label=-jnp.ones((2, 2), jnp.int32)))
    assert float(mean_of_places(jnp.ones(4), nowhere)) == 0.0


def test_the_hard_loss_by_hand():
    """Of three places that are there one has a label: its loss counts three times, so once in all."""
    logits = jnp.array([[0.0, 1.0, 2.0], [9.0, 0.0, 0.0], [1.0, 1.0, 1.0], [3.0, 2.0, 1.0]])
    merged = merged_batch(batch())
    student = places.silence(Outputs(logits, logits[None], None, {}), merged.valid)
    context = Context(
        merged, None, {}, {"label_smoothing": jnp.float32(0)}, None, jnp.int32(0), jnp.float32(0), student
    )
    expected = np.log(1 + np.exp(1.0) + np.exp(2.0)) - 1.0
    np.testing.assert_allclose(hard_loss(context), [3 * expected, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(mean_of_places(hard_loss(context), merged), expected, rtol=1e-6)


def test_what_moves_pixels_moves_their_labels_and_weights_and_index():
    image = jnp.arange(8.0).reshape(1, 2, 4, 1)
    label = jnp.arange(8).reshape(1, 8) - 1
    index = jnp.array([2**22], jnp.int32)  # times 8 places: no float32 holds it with its place
    weighted = batch(image=image, label=label, index=index, weight=10.0 * label.astype(jnp.float32))
    found = places.move(places.number(weighted), lambda both: both[:, :, ::-1])
    np.testing.assert_array_equal(found.image[..., 0].reshape(1, 8) - 1, found.label)
    np.testing.assert_array_equal(found.weight, 10 * found.label)
    np.testing.assert_array_equal(found.label, [[2, 1, 0, -1, 6, 5, 4, 3]])
    np.testing.assert_array_equal(found.index, 2**25 + found.label + 1)
    assert found.label.dtype == found.index.dtype == jnp.int32


def test_embeddings_of_too_many_places_are_not_compared_with_one_another():
    _, dense = pair("relations.rkd")
    examples, model, recipes = dense.stage_data.examples, dense.program.model, dense.program.recipes
    places.check_embeddings(examples, model, recipes, 2048)
    with pytest.raises(UserError, match=r"rkd compares the embeddings .* 8,196 here; must be at most"):
        places.check_embeddings(examples, model, recipes, 2049)
    places.check_embeddings(examples, model, pair("output_avg")[1].program.recipes, 2049)


def grid_of_boxes(seed):
    """Places of a 6x8 image in a grid of 3x4, and those of it mirrored, of the same boxes."""
    rng = np.random.default_rng(seed)
    low, label = 0.6 * rng.random((3, 2)), np.array([1, 2, 3])
    corners = np.concatenate([low, low + 0.1 + 0.3 * rng.random((3, 2))], axis=1)
    mirrored = np.stack([1 - corners[:, 2], corners[:, 1], 1 - corners[:, 0], corners[:, 3]], axis=1)
    return boxes.assign(label, corners, (3, 4)), boxes.assign(label, mirrored, (3, 4))


def test_a_mirrored_image_has_the_places_of_its_mirrored_boxes():
    each = [grid_of_boxes(seed) for seed in range(4)]
    images = np.random.default_rng(9).random((4, 6, 8, 1)).astype(np.float32)
    of = Batch(
        image=jnp.asarray(images),
        label=jnp.asarray(np.stack([plain.label for plain, _ in each])),
        index=jnp.arange(48).reshape(4, 12),
        labelled=jnp.ones(4, bool),
        goals={"boxes": jnp.asarray(np.stack([plain.corners for plain, _ in each]))},
    )
    flags = np.array([True, False, True, True])
    found = places.mirror(of, jnp.asarray(flags), kinds.named("boxes").mirror, (3, 4))
    for b, (flag, pair_of_places) in enumerate(zip(flags, each)):
        expected = pair_of_places[int(flag)]
        there = expected.label > 0
        np.testing.assert_array_equal(found.label[b], expected.label)
        np.testing.assert_allclose(found.goals["boxes"][b][there], expected.corners[there], atol=1e-6)
        np.testing.assert_array_equal(found.image[b], images[b, :, ::-1] if flag else images[b])
    np.testing.assert_array_equal(found.index[0], [3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8])
    again = places.mirror(found, jnp.asarray(flags), kinds.named("boxes").mirror, (3, 4))
    np.testing.assert_array_equal(again.label, of.label)
    np.testing.assert_array_equal(again.index, of.index)
    np.testing.assert_allclose(again.goals["boxes"], of.goals["boxes"], atol=1e-6)


def test_places_are_mirrored_in_the_grid_that_is_theirs():
    """An image of 16x64 with 8x8 places: cells of 2x8 pixels, and no squares of 4x4."""
    of = Batch(
        image=jnp.zeros((1, 16, 64, 1)),
        label=jnp.arange(64).reshape(1, 64),
        index=jnp.arange(64).reshape(1, 64),
        labelled=jnp.ones(1, bool),
        goals={"boxes": jnp.zeros((1, 64, 4))},
    )
    found = places.mirror(of, jnp.array([True]), kinds.named("boxes").mirror, (8, 8))
    np.testing.assert_array_equal(found.label.reshape(8, 8), np.arange(64).reshape(8, 8)[:, ::-1])


@pytest.mark.parametrize("name", ["flip", "alternating_flip"])
def test_a_batch_of_boxes_is_mirrored_image_by_image(name):
    config = small.config(
        **{
            "data.source": "synthetic_boxes(num_train=60, num_test=8, size=16, stride=4)",
            "data.num_train": 40,
            "model.name": "detector(network='cnn(widths=(4, 4))', channels=8)",
            f"data.augment.{name}": True,
        }
    )
    job = teachers.job(config, experiment.load_split(config), config.model.name)
    indices = job.order(0)[0][0]  # of the first teacher
    keys = jax.random.key(1), jax.random.key(2)
    found, _ = step._batch(job.program, keys, indices, jnp.int32(0), job.stage_data)
    examples, flags = job.stage_data.examples, []
    for b, row in enumerate(np.asarray(indices)):
        image = np.asarray(examples.image[row], np.float32) / 255
        label = np.asarray(examples.label[row]).reshape(4, 4)
        flags.append(not np.allclose(found.image[b], image, atol=1e-6))
        if flags[-1]:
            np.testing.assert_allclose(found.image[b], image[:, ::-1], atol=1e-6)
        np.testing.assert_array_equal(
            found.label.reshape(-1, 4, 4)[b], label[:, ::-1] if flags[-1] else label
        )
    assert 0 < sum(flags) < len(flags)


def test_what_cannot_be_is_refused_in_one_line():
    def examples(num_places, **fields):
        return Examples(
            jnp.zeros((1, 2, 2, 1)), jnp.zeros((1, num_places), jnp.int32), jnp.ones(1, bool), **fields
        )

    shape = (1, 2, 2, 1)
    places.check(examples(4), shape, {"flip": True, "shift": 1, "noise": 0.1}, False)
    with pytest.raises(UserError, match=r"^config.train.mixup: .*must be 0$"):
        places.check(examples(4), shape, {}, True)
    with pytest.raises(
        UserError, match=r"^config.data.augment.flip: .* 3 places of an image of 2x2; must be off"
    ):
        places.check(examples(3), shape, {"flip": True}, False)
    with pytest.raises(UserError, match=r"^config.data.augment.shift"):
        places.check(examples(4, goals={"boxes": jnp.zeros((1, 4, 4))}), shape, {"shift": 1}, False)
    of_grid = examples(4, goals={"boxes": jnp.zeros((1, 4, 4))})
    places.check(of_grid, shape, {"flip": True}, False, grid=(2, 2))
    with pytest.raises(UserError, match="^config.data.augment.flip: moves pixels"):
        places.check(of_grid, shape, {"flip": True}, False)  # or 4x1, or 1x4
    with pytest.raises(UserError, match="^config.data.augment.shift: moves pixels"):
        places.check(of_grid, shape, {"flip": True, "shift": 1}, False, grid=(2, 2))
    with pytest.raises(UserError, match=r"^config.data.augment.rand_augment"):
        places.check(examples(4), shape, {"rand_augment": (1, 2)}, False)
