"""Methods of methods/stimuli.py on networks whose gradients are known by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import experiment
from mtkd_jax.methods import seams, stimuli
from mtkd_jax.plans import plan
from mtkd_jax.types import Batch, Networks, TeacherOutputs, UserError
from tests import small
from tests.contexts import context, loss
from tests.references import methods as reference
from tests.references.methods import softmax

B, SIDE = 6, 3
D = SIDE * SIDE


def batch_of(image):
    image = jnp.asarray(image, jnp.float32)
    num = len(image)
    label = jnp.arange(num) % 2
    return Batch(image=image, label=label, index=jnp.arange(num), labelled=jnp.arange(num) != 1)


def linear_teachers(weights, bias=0.0):
    """Networks whose teacher k has the logits weights[k] @ image + bias; weights [K,C,D]."""
    weights = jnp.asarray(weights, jnp.float32)

    def teachers(image):
        logits = jnp.einsum("kcd,bd->kbc", weights, image.reshape(len(image), -1)) + bias
        return TeacherOutputs(logits, (), ())

    return Networks(teachers, student=None)


def as_it_is(key, images):
    return images


def perturbed(recipe, image, networks, seed=0, augment=as_it_is):
    return recipe.stimulus(jax.random.key(seed), batch_of(image), augment, networks)


def grey(num=B):
    return np.full((num, SIDE, SIDE, 1), 0.5)


def moves(recipe, networks, image=None, seed=0):
    """x' - x [B,D] in float64."""
    image = grey() if image is None else image
    found = np.asarray(perturbed(recipe, image, networks, seed).image, np.float64)
    return (found - np.asarray(image, np.float32)).reshape(len(image), -1)


# --- funmatch -------------------------------------------------------------------------------------------


def marked(num=B):
    """Image b is white in pixel b and black elsewhere, so that a mixture shows who is in it and how much."""
    return np.eye(num, D).reshape(num, SIDE, SIDE, 1)


def shares(seed=0, num=B):
    return np.asarray(perturbed(stimuli.funmatch(), marked(num), None, seed).image).reshape(num, -1)[:, :num]


def test_funmatch_mixes_every_image_with_a_partner():
    for seed in range(5):
        found = shares(seed)
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
        assert ((found > 0).sum(axis=1) <= 2).all()
        partners = [np.flatnonzero(np.delete(row, b)) for b, row in enumerate(found)]
        assert sum(map(len, partners)) > 0
    one, other = shares(0), shares(1)
    np.testing.assert_array_equal(one, shares(0))
    assert (one != other).any()


def test_funmatch_draws_a_share_of_its_own_for_every_example():
    own = np.concatenate([np.diag(shares(seed, num=9)) for seed in range(100)])
    own = own[own < 1]  # an image that drew itself is whole
    assert len(np.unique(own)) > 0.99 * len(own)
    for quantile in (0.25, 0.5, 0.75):
        assert abs((own < quantile).mean() - quantile) < 4 * np.sqrt(0.25 / len(own))


def test_funmatch_crops_before_it_mixes():
    """The same key mixes the same pairs by the same shares: what differs is the crops."""
    smooth = np.linspace(0, 1, SIDE)[None, :, None, None] * np.ones((B, 1, SIDE, 1))
    whole, cropped = (
        np.asarray(perturbed(recipe, smooth, None).image)
        for recipe in (stimuli.funmatch(), stimuli.funmatch(least_area=0.1))
    )
    np.testing.assert_allclose(whole, smooth, atol=1e-6)  # equal images mix to themselves
    assert (np.ptp(cropped, axis=1) < np.ptp(smooth, axis=1) - 0.05).any()  # a part of the range of grey
    np.testing.assert_allclose(np.ptp(cropped, axis=2), 0, atol=1e-5)  # rows stay even
    assert cropped.min() >= -1e-6 and cropped.max() <= 1 + 1e-6
    with pytest.raises(UserError, match=r"least_area=0.0"):
        stimuli.funmatch(least_area=0.0)


def test_funmatch_mixes_what_the_augmentation_gives():
    found = perturbed(stimuli.funmatch(), marked(), None, augment=lambda key, images: 1.0 - images).image
    np.testing.assert_allclose(found.sum(axis=(1, 2, 3)), D - 1, rtol=1e-6)


def test_funmatch_shows_both_sides_the_same_mixture_and_hides_its_label():
    recipe = stimuli.funmatch()
    batch = perturbed(recipe, marked(), None)
    assert not batch.labelled.any() and not batch.views
    seen = dataclasses.replace(context(np.zeros((B, 2)), np.zeros((1, B, 2))), batch=batch)
    asked = recipe.teach(seen, Networks(lambda image: image, None))
    np.testing.assert_array_equal(asked, batch.image)


def test_funmatch_has_no_hard_loss():
    rng = np.random.default_rng(0)
    student, teachers = rng.normal(size=(B, 4)), rng.normal(size=(2, B, 4))
    recipe = stimuli.funmatch()
    assert recipe.alpha == 0.0
    for alpha in (0.0, 0.5, 1.0):
        seen = context(student, teachers, alpha=alpha, temperature=2.0)
        np.testing.assert_allclose(loss(recipe, seen), seams.soft_loss(plain_targets(seen)), rtol=1e-5)


def plain_targets(seen):
    return dataclasses.replace(seen, targets=seams.mean_of_probs(seen, seams.equal_weights(seen)))


# --- gaussian, privileged -------------------------------------------------------------------------------


def test_gaussian_noise_is_the_reference():
    image = np.random.default_rng(11).uniform(size=(B, SIDE, SIDE, 1))
    found = perturbed(stimuli.gaussian(step_size=0.5), image, None, seed=3).image
    noise = np.asarray(jax.random.normal(jax.random.split(jax.random.key(3))[1], image.shape), np.float64)
    expected = reference.gaussian(image, noise, 0.5)
    assert {0.0, 1.0} < set(expected.ravel())
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_gaussian_noise_has_its_deviation_and_no_direction():
    found = moves(stimuli.gaussian(step_size=0.02), None, grey(400))
    assert abs(found.std() - 0.02) < 4 * 0.02 / np.sqrt(2 * found.size)
    assert abs(found.mean()) < 4 * 0.02 / np.sqrt(found.size)
    correlation = np.corrcoef(found, rowvar=False) - np.eye(D)
    assert np.abs(correlation).max() < 5 / np.sqrt(400)
    batch = perturbed(stimuli.gaussian(step_size=0.5), np.ones((B, SIDE, SIDE, 1)), None)
    assert batch.image.max() == 1 and not batch.views  # both sides see the same
    assert perturbed(stimuli.gaussian(step_size=0.5), 2 * np.ones((B, SIDE, SIDE, 1)), None).image.max() > 2


def test_teachers_see_what_the_student_sees_degraded():
    recipe = stimuli.privileged(corruption="contrast", strength=5)
    image = np.random.default_rng(9).uniform(size=(B, SIDE, SIDE, 1))
    batch = perturbed(recipe, image, None, augment=lambda key, images: images[:, ::-1])
    seen = dataclasses.replace(context(np.zeros((B, 2)), np.zeros((1, B, 2))), batch=batch)
    asked = recipe.teach(seen, Networks(lambda image: image, None))
    np.testing.assert_allclose(asked, image[:, ::-1], rtol=1e-6)
    for student, teacher in zip(batch.image, image[:, ::-1]):
        np.testing.assert_allclose(student, 0.15 * (teacher - teacher.mean()) + teacher.mean(), atol=1e-5)
    with pytest.raises(UserError, match="did you mean 'contrast'"):
        stimuli.privileged(corruption="contrasts")
    with pytest.raises(UserError, match="did you mean 'low_pass'"):
        stimuli.privileged(corruption="low_pas")
    with pytest.raises(UserError, match="no corruption '_made'; known are brightness, contrast"):
        stimuli.privileged(corruption="_made")  # part of how these are made
    with pytest.raises(UserError, match=r"strength=6.*\(1, 2, 3, 4, 5\)"):
        stimuli.privileged(strength=6)


@pytest.mark.parametrize("strength", [1, 3])
@pytest.mark.parametrize("num_steps", [2, 9])
def test_a_narrow_band_is_the_reference_in_units_of_its_own(strength, num_steps):
    recipe = stimuli.privileged(corruption="low_pass", strength=strength)
    series = 40 * np.random.default_rng(10).normal(size=(B, num_steps, 1, 2)) - 7
    batch = perturbed(recipe, series, None, augment=lambda key, images: images[:, ::-1])
    np.testing.assert_allclose(batch.views["teacher"], series[:, ::-1], rtol=1e-6)
    expected = [reference.privileged(one[:, 0], strength) for one in series[:, ::-1]]
    np.testing.assert_allclose(batch.image[:, :, 0], expected, rtol=1e-5, atol=1e-4)


def test_a_narrow_band_keeps_what_is_constant_and_loses_what_changes_at_every_step():
    recipe = stimuli.privileged(corruption="low_pass", strength=1)
    series = np.stack([np.full(9, 300.0), 3.0 * (-1.0) ** np.arange(9)])[:, :, None, None]
    constant, changing = np.asarray(perturbed(recipe, series, None).image)[:, :, 0, 0]
    np.testing.assert_allclose(constant, 300, rtol=1e-6)
    np.testing.assert_allclose(np.abs(changing[1:-1]), 1, rtol=1e-5)  # the mean of -3, 3, -3
    np.testing.assert_allclose(changing[[0, -1]], 0, atol=1e-6)  # of 3, -3


@pytest.mark.parametrize(
    "source, corruption, words",
    [
        ("synthetic_series(steps=24)", "contrast", "privileged.*: corruptions are of pictures, .* 24x1"),
        ("own", "contrast", r"privileged.*pixels go from -?\d.*must be uint8, or floats in \[0, 1\]"),
        ("own", "low_pass", "privileged.*: low_pass is of series, images of width 1, and these are 4x4"),
    ],
)
def test_what_cannot_be_degraded_is_refused_before_anything_is_trained(source, corruption, words):
    """Pictures in units of their own would be cut off at 0 and 1 without a word."""
    config = small.config(
        **{
            "teachers.models": ("mlp(hidden=(4,))",),
            "students.modes": (f"stimuli.privileged(corruption={corruption!r})",),
        }
    )
    config.data.source = source if source != "own" else config.data.source
    split = experiment.load_split(config)
    if source == "own":
        moved = 5 * np.float32(split.dataset.train_images) - 2
        dataset = dataclasses.replace(split.dataset, train_images=moved)
        split = dataclasses.replace(split, dataset=dataset)
    with pytest.raises(UserError, match=words) as raised:
        plan.rehearse(plan.build(config, split), config, {})
    assert str(raised.value).startswith("config.students.modes: ") and "\n" not in str(raised.value)


# --- ods and conf_ods -----------------------------------------------------------------------------------

both = pytest.mark.parametrize("recipe", [stimuli.ods(), stimuli.conf_ods()], ids=lambda recipe: recipe.name)


def test_ods_moves_every_image_by_its_length_along_the_gradient():
    """With two classes every r . softmax(z) changes along the difference of the two rows, there or back."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(1, 2, D))
    direction = (rows[0, 0] - rows[0, 1]) / np.linalg.norm(rows[0, 0] - rows[0, 1])
    found = moves(stimuli.ods(), linear_teachers(rows))
    np.testing.assert_allclose(np.abs(found @ direction), np.sqrt(D) / 255, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.sqrt(D) / 255, rtol=1e-4)
    assert 0 < (found @ direction > 0).sum() < B  # r has a sign of its own in every example


def test_ods_length_of_an_image_in_colour():
    image = np.full((2, 32, 32, 3), 0.5)
    rows = np.random.default_rng(2).normal(size=(1, 4, image[0].size)) * 0.01
    np.testing.assert_allclose(
        np.linalg.norm(moves(stimuli.ods(), linear_teachers(rows), image), axis=1), 0.217355, rtol=1e-4
    )


def test_conf_ods_moves_by_confidence():
    rng = np.random.default_rng(3)
    rows, image = rng.normal(size=(1, 4, D)), rng.uniform(0.3, 0.7, size=(B, SIDE, SIDE, 1))
    confidence = [softmax(rows[0] @ x.ravel()).max() for x in image]
    lengths = np.linalg.norm(moves(stimuli.conf_ods(step_size=0.02), linear_teachers(rows), image), axis=1)
    np.testing.assert_allclose(lengths, 0.02 * np.sqrt(D) * np.array(confidence), rtol=1e-4)


@both
def test_one_teacher_is_drawn_for_a_batch(recipe):
    """Teacher k reads pixel k alone, so the pixel that moves names the teacher that was drawn."""
    rows = np.zeros((3, 2, D))
    rows[np.arange(3), 0, np.arange(3)] = 1.0
    drawn = []
    for seed in range(20):
        found = np.abs(moves(recipe, linear_teachers(rows), seed=seed)) > 0
        assert (found == found[0]).all() and found[0].sum() == 1
        drawn.append(int(found[0].argmax()))
    assert set(drawn) == {0, 1, 2}


def pixel_teachers(strength):
    """Of a dense task: one teacher, whose place l reads pixel l alone, as sure as strength [L] says."""

    def teachers(image):
        seen = image.reshape(len(image), -1) * jnp.asarray(strength, jnp.float32)[None]
        return TeacherOutputs(jnp.stack([seen, -seen], axis=-1)[None], (), ())

    return Networks(teachers, student=None)


def test_places_that_are_not_there_move_no_image():
    """The labels of places [B,L] are -1 where there is none: no gradient of theirs, and no confidence."""
    strength = np.linspace(1, 4, D)
    label = np.tile(np.arange(D) % 2, (2, 1))
    label[1, 4:] = -1
    batch = dataclasses.replace(batch_of(grey(2)), label=jnp.asarray(label))
    lengths = []
    for recipe in (stimuli.ods(step_size=0.02), stimuli.conf_ods(step_size=0.02)):
        found = recipe.stimulus(jax.random.key(0), batch, as_it_is, pixel_teachers(strength)).image
        moved = np.asarray(found, np.float64).reshape(2, -1) - 0.5
        assert (moved[1, 4:] == 0).all() and (moved[0] != 0).all() and (moved[1, :4] != 0).all()
        lengths.append(np.linalg.norm(moved, axis=1))
    sure = 1 / (1 + np.exp(-strength))  # of logits s/2 and -s/2
    np.testing.assert_allclose(lengths[0], 0.02 * np.sqrt(D), rtol=1e-4)
    np.testing.assert_allclose(lengths[1] / lengths[0], [sure.mean(), sure[:4].mean()], rtol=1e-4)


@both
def test_a_teacher_without_a_gradient_moves_nothing(recipe):
    image = np.random.default_rng(4).uniform(size=(B, SIDE, SIDE, 1)).astype(np.float32)
    for networks in (
        linear_teachers(np.zeros((2, 3, D))),  # constant
        linear_teachers(np.zeros((2, 3, D)), bias=jnp.array([1e3, 0.0, 0.0])[None, None, :]),  # and certain
    ):
        np.testing.assert_array_equal(perturbed(recipe, image, networks).image, image)


@both
def test_images_stay_between_black_and_white(recipe):
    rows = np.random.default_rng(5).normal(size=(1, 2, D))
    image = np.repeat([0.0, 1.0], 3)[:, None, None, None] * np.ones((1, SIDE, SIDE, 1))
    networks = linear_teachers(rows)
    found = perturbed(recipe, image, networks).image
    assert found.min() == 0 and found.max() == 1
    assert (np.abs(moves(recipe, networks, image)) > 0).any(axis=1).all()


@both
def test_images_in_units_of_their_own_are_not_clipped(recipe):
    rows = np.random.default_rng(6).normal(size=(1, 2, D)) * 0.1
    image = np.linspace(-2, 2, D).reshape(1, SIDE, SIDE, 1)
    found = np.linalg.norm(moves(recipe, linear_teachers(rows), image), axis=1)
    bound = np.sqrt(D) / 255
    assert (found > 0.4 * bound).all() and (found < 1.001 * bound).all()


@both
def test_the_perturbation_starts_from_what_the_augmentation_gives(recipe):
    found = perturbed(
        recipe,
        grey(),
        linear_teachers(np.zeros((1, 2, D))),
        augment=lambda key, images: images + 0.25,
    )
    np.testing.assert_array_equal(found.image, np.float32(0.75) * np.ones_like(grey(), np.float32))


@both
def test_labels_stay_and_the_same_key_gives_the_same_batch(recipe):
    networks = linear_teachers(np.random.default_rng(7).normal(size=(2, 3, D)))
    first, again = (jax.jit(lambda: perturbed(recipe, grey(), networks))() for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for name in ("label", "index", "labelled"):
        np.testing.assert_array_equal(getattr(first, name), getattr(batch_of(grey()), name))
    assert (perturbed(recipe, grey(), networks, seed=1).image != first.image).any()


@both
def test_a_small_step_changes_the_answer_of_some_teacher(recipe):
    """The move must matter to the networks it was made for: more than a random one of the same length."""
    rng = np.random.default_rng(8)
    rows = np.zeros((1, 3, D))
    rows[0, :, 0] = [1.0, -1.0, 0.0]
    networks = linear_teachers(rows)
    image = grey()
    step = moves(recipe, networks, image)
    noise = rng.normal(size=step.shape)
    noise *= np.linalg.norm(step, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)

    def change(by):
        logits = [
            networks.teachers(jnp.float32(x)).logits[0] for x in (image, image + by.reshape(image.shape))
        ]
        return np.abs(logits[1] - logits[0]).sum()

    assert change(step) > 1.5 * change(noise)
