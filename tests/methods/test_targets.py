"""Methods of methods/targets.py against float64 NumPy, hand-made values and what their papers promise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.methods import seams, targets
from mtkd_jax.types import Mixed, Networks, TeacherOutputs, UserError
from tests.contexts import P1, Q, aimed, by_student, context, loss
from tests.references import methods as reference

K, B, C = 3, 6, 5


def drawn(seed, num_classes=C):
    rng = np.random.default_rng(seed)
    student, teachers = rng.normal(size=(B, num_classes)), rng.normal(size=(K, B, num_classes))
    return 2 * student, 2 * teachers, rng.integers(0, num_classes, B)


# --- dkpp -----------------------------------------------------------------------------------------------


def permuted(seen):
    return aimed(targets.dkpp(), seen).targets


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkpp_moves_all_but_the_top(temperature):
    student, teachers, label = drawn(1)
    seen = context(student, teachers, label, temperature=temperature)
    plain, found = aimed(seams.PLAIN, seen).targets, permuted(seen)
    np.testing.assert_array_equal(np.sort(found.probs), np.sort(plain.probs))
    top = plain.probs.argmax(axis=-1)
    np.testing.assert_array_equal(found.probs.argmax(axis=-1), top)
    np.testing.assert_allclose(found.entropy, -(found.probs * np.log(found.probs)).sum(axis=-1), rtol=1e-5)
    assert (found.probs != plain.probs).any()


def test_dkpp_puts_every_other_class_everywhere_alike():
    """Over many examples with one teacher, each of the C - 1 others has each place in the same share."""
    many = 4000
    logits = np.broadcast_to(np.log([0.1, 0.2, 0.4, 0.25, 0.05]), (1, many, 5))
    probs = np.asarray(permuted(context(logits[0], logits)).probs[0])
    assert (probs[:, 2] == probs.max()).all()
    for place in (0, 1, 3, 4):
        for value in (0.1, 0.2, 0.25, 0.05):
            share = np.isclose(probs[:, place], value).mean()
            assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / many), (place, value)


def test_dkpp_draws_anew_for_every_key_and_not_otherwise():
    student, teachers, label = drawn(2)
    first, again, other = (permuted(context(student, teachers, label, seed=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.probs, again.probs)
    assert (first.probs != other.probs).any()


def test_dkpp_of_two_classes_is_plain_distillation():
    student, teachers, label = drawn(3, num_classes=2)
    seen = context(student, teachers, label, alpha=0.3, temperature=2.0)
    np.testing.assert_allclose(loss(targets.dkpp(), seen), loss(seams.PLAIN, seen), rtol=1e-6)


# --- label smoothing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_label_smoothing_is_the_reference(smoothing, temperature):
    student, _, label = drawn(4)
    seen = context(student, np.zeros((0, B, C)), label, temperature=temperature)
    found = loss(targets.label_smoothing(smoothing=smoothing), seen)
    expected = [reference.smoothed_cross_entropy(z, y, smoothing) for z, y in zip(student, label)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_label_smoothing_by_hand():
    """e / C everywhere, not e / (C - 1) on the others, which would give 1.351637."""
    found = loss(targets.label_smoothing(), context(Q[None], P1[None, None]))
    np.testing.assert_allclose(found, [1.363189], atol=2e-6)


def test_label_smoothing_mixes_its_own_and_the_configured_labels():
    student, _, label = drawn(5)
    seen = context(student, np.zeros((0, B, C)), label, alpha=0.25, label_smoothing=0.3)
    parts = [[reference.smoothed_cross_entropy(z, y, e) for z, y in zip(student, label)] for e in (0.3, 0.1)]
    expected = 0.25 * np.array(parts[0]) + 0.75 * np.array(parts[1])
    np.testing.assert_allclose(loss(targets.label_smoothing(), seen), expected, rtol=1e-5)


def test_label_smoothing_asks_no_teacher():
    recipe = targets.label_smoothing()
    assert recipe.min_teachers == 0
    assert recipe.teach(context(np.zeros((B, C)), np.zeros((K, B, C))), None) is None


# --- cwtm -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("labelled", [np.ones(B, bool), np.arange(B) % 3 > 0])
def test_cwtm_is_the_reference(temperature, labelled):
    student, teachers, label = drawn(6)
    found = loss(
        targets.cwtm(), context(student, teachers, label, labelled=labelled, temperature=temperature)
    )
    np.testing.assert_allclose(
        found.mean(), reference.cwtm(student, teachers, label, labelled, temperature), rtol=1e-5
    )
    assert (found[~labelled] == 0).all()


def test_cwtm_by_hand():
    """Teacher maxima 0.5 and 0.9: the examples weigh 0.357143 and 0.642857, twice that before the mean."""
    teacher = np.log([[[0.5, 0.25, 0.25], [0.05, 0.9, 0.05]]])
    student = np.log([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]])
    found = loss(targets.cwtm(), context(student, teacher, [0, 1]))
    np.testing.assert_allclose(found, [2 * 0.357143 * np.log(4), 2 * 0.642857 * np.log(5)], rtol=1e-5)


def test_cwtm_of_an_equally_sure_teacher_is_the_hard_loss():
    student, teachers, label = drawn(7)
    alike = np.stack([np.roll(teachers[0, 0], shift) for shift in range(B)])[None]
    seen = context(student, alike, label, labelled=np.arange(B) < 4)
    np.testing.assert_allclose(loss(targets.cwtm(), seen), seams.hard_loss(seen), rtol=1e-5)


def test_cwtm_without_any_label_has_nothing_to_say():
    student, teachers, label = drawn(8)
    seen = context(student, teachers, label, labelled=np.zeros(B, bool))
    np.testing.assert_array_equal(loss(targets.cwtm(), seen), np.zeros(B))
    np.testing.assert_array_equal(by_student(targets.cwtm(), seen), np.zeros((B, C)))


# --- all ------------------------------------------------------------------------------------------------

EVERY = (targets.dkpp(), targets.label_smoothing(), targets.cwtm())


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
def test_a_hidden_label_does_not_reach_the_loss(recipe):
    student, teachers, _ = drawn(9)
    labelled = np.array([True, False, True, False, False, True])
    one, other = (
        context(student, teachers, label, labelled=labelled, alpha=0.5)
        for label in ([0, 1, 2, 3, 4, 0], [0, 2, 2, 1, 0, 0])
    )
    np.testing.assert_array_equal(loss(recipe, one), loss(recipe, other))


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("scale", [0.0, 500.0])
def test_extreme_logits_keep_value_and_gradient_finite(recipe, scale):
    student = scale * np.linspace(-1, 1, C) * np.ones((B, 1))
    seen = context(student, -np.broadcast_to(student, (K, B, C)), np.arange(B) % C, alpha=0.5)
    assert np.isfinite(loss(recipe, seen)).all()
    assert np.isfinite(by_student(recipe, seen)).all()


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_impossible_smoothing_is_refused(smoothing):
    with pytest.raises(UserError, match=r"label_smoothing\(smoothing=.*\[0, 1\)"):
        targets.label_smoothing(smoothing=smoothing)


# --- pseudo-labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9])
def test_pseudo_labels_are_the_reference(threshold):
    student, teachers, label = drawn(8)
    recipe = targets.pseudo_labels(threshold=threshold)
    found = loss(recipe, context(student, teachers, label, temperature=4.0))
    expected = [reference.pseudo_labels(student[b], teachers[:, b], threshold) for b in range(B)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert any(value > 0 for value in expected) == (threshold < 0.9)


def test_the_teachers_of_pseudo_labels_see_the_image_as_it_is():
    seen = context(np.zeros((2, 3)), np.zeros((1, 2, 3)))
    recipe = targets.pseudo_labels()
    batch = recipe.stimulus(jax.random.key(0), seen.batch, lambda key, image: image + 1.0, None)
    seen = dataclasses.replace(seen, batch=batch)
    np.testing.assert_array_equal(batch.image, 1.0)
    asked = recipe.teach(seen, Networks(lambda image: TeacherOutputs(image, (), ()), None))
    np.testing.assert_array_equal(asked.logits, 0.0)
    mixed = dataclasses.replace(
        seen.batch, mixed=Mixed(jnp.ones(2), jnp.zeros(2, jnp.int32), jnp.ones(2, bool), None)
    )
    with pytest.raises(UserError, match="train.mixup and train.cutmix must be 0"):
        recipe.stimulus(jax.random.key(0), mixed, lambda key, image: image, None)
    with pytest.raises(UserError, match="pseudo_labels.threshold=1.0"):
        targets.pseudo_labels(threshold=1.0)
