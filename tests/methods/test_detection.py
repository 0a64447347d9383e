"""Methods of methods/detection.py against float64 NumPy and what Chen et al. 2017 promise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.methods import detection, modes
from mtkd_jax.types import TeacherOutputs, TrainState, UserError
from tests.contexts import by_student, context, loss
from tests.features import with_parameters
from tests.references import detection as reference
from tests.references import features as of_features

P, K, C, EXAMPLES = 6, 3, 4, 2  # places, of two images
LABEL = np.array([0, 2, 1, 0, 3, 0])


def drawn(seed=0):
    """Logits and boxes of a student and of teachers, boxes of labels, and a map of each."""
    rng = np.random.default_rng(seed)
    low = 0.5 * rng.random((P, 2))
    goals = np.concatenate([low, low + 0.4], axis=1).astype(np.float32)
    return {
        "student": rng.normal(size=(P, C)).astype(np.float32),
        "teachers": rng.normal(size=(K, P, C)).astype(np.float32),
        "own": (goals + 0.3 * rng.normal(size=(P, 4))).astype(np.float32),
        "theirs": (goals + 0.3 * rng.normal(size=(K, P, 4))).astype(np.float32),
        "goals": goals,
        "map": rng.normal(size=(EXAMPLES, 2, 2, 3)).astype(np.float32),
        "maps": rng.normal(size=(K, EXAMPLES, 2, 2, 5)).astype(np.float32),
    }


def seen(of, label=LABEL, labelled=None, **hyper):
    """The context of places that answer for boxes."""
    plain = context(of["student"], of["teachers"], label, labelled=labelled, **hyper)
    features = tuple({"stage2": jnp.asarray(x)} for x in of["maps"])
    teacher = TeacherOutputs(plain.teacher.logits, (), features, {"boxes": jnp.asarray(of["theirs"])})
    student = dataclasses.replace(
        plain.student, features={"stage2": jnp.asarray(of["map"])}, beside={"boxes": jnp.asarray(of["own"])}
    )
    batch = dataclasses.replace(plain.batch, goals={"boxes": jnp.asarray(of["goals"])})
    state = TrainState({}, {}, {}, {}, {}, None)
    return dataclasses.replace(plain, batch=batch, teacher=teacher, student=student, state=state)


SHARE = P / np.count_nonzero(LABEL)  # so often a place with a box counts that the mean is over boxes


def test_hard_loss_of_boxes_is_the_reference_where_there_is_a_box():
    of = drawn()
    found = jax.jit(detection.box_loss)(seen(of))
    expected = [
        SHARE * reference.smooth_l1(of["own"][p], of["goals"][p]) if LABEL[p] else 0.0 for p in range(P)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_hard_loss_of_boxes_by_hand():
    """One side off by 1/16, half a unit, and one by 1/4, two units: 0.125 and 1.5."""
    of = drawn()
    of["own"] = of["goals"] + np.array([1 / 16, 0, -1 / 4, 0], np.float32)
    np.testing.assert_allclose(detection.box_loss(seen(of))[1], SHARE * 1.625, rtol=1e-5)


def test_boxes_whose_label_is_hidden_do_not_count():
    labelled = np.array([True, True, False, True, True, True])
    found = detection.box_loss(seen(drawn(), labelled=labelled))
    assert found[2] == 0 and found[1] > 0
    whole = detection.box_loss(seen(drawn()))
    np.testing.assert_allclose(found[1] / whole[1], 3 / 2, rtol=1e-6)  # of two boxes, no longer of three


def test_no_box_in_a_batch_is_no_loss():
    found = detection.box_loss(seen(drawn(), label=np.zeros(P, int)))
    assert not np.asarray(found).any()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_weighted_classes_are_the_reference(temperature):
    of = drawn()
    found = loss(detection.weighted_classes(background=1.5), seen(of, temperature=temperature))
    for p in range(P):
        each = [
            reference.weighted_classes(of["student"][p], teacher, 1.5, temperature)
            for teacher in of["teachers"][:, p]
        ]
        np.testing.assert_allclose(found[p], np.mean(each), rtol=1e-5)


def test_without_extra_weight_the_classes_have_the_gradient_of_plain_distillation():
    of = seen(drawn(), temperature=2.0)
    plain = by_student(modes.loss_avg(), of)
    np.testing.assert_allclose(by_student(detection.weighted_classes(background=1.0), of), plain, atol=1e-5)
    assert np.abs(by_student(detection.weighted_classes(background=1.5), of) - plain).max() > 1e-2


@pytest.mark.parametrize("margin", [0.01, 5.0])
def test_bounded_boxes_are_the_reference_beside_soft_labels(margin):
    of = drawn()
    found = loss(detection.bounded_boxes(weight=2.0, margin=margin), seen(of))
    soft = loss(modes.loss_avg(), seen(of))
    for p in range(P):
        bounded = [
            reference.bounded_boxes(of["own"][p], box, of["goals"][p], margin) for box in of["theirs"][:, p]
        ]
        expected = 2.0 * SHARE * np.mean(bounded) if LABEL[p] else 0.0
        np.testing.assert_allclose(found[p] - soft[p], expected, rtol=1e-4, atol=1e-5)


def test_a_student_nearer_than_the_teachers_has_nothing_to_learn_from_their_boxes():
    """Errors of 1 and 2 units in one side: 1 + 0.5 < 4 is no loss, 1 + 4 > 4 is 1."""
    of = drawn()
    unit = np.array([1 / 8, 0, 0, 0], np.float32)
    of["own"], of["theirs"] = of["goals"] + unit, np.stack([of["goals"] + 2 * unit] * K)
    soft = loss(modes.loss_avg(), seen(of))
    np.testing.assert_allclose(loss(detection.bounded_boxes(margin=0.5), seen(of)), soft, atol=1e-6)
    added = loss(detection.bounded_boxes(margin=4.0), seen(of)) - soft
    np.testing.assert_allclose(added, np.where(LABEL > 0, SHARE, 0.0), rtol=1e-4, atol=1e-6)


def test_chen_is_all_of_it():
    of = drawn()
    recipe = detection.chen(background=2.0, boxes=0.7, margin=1.0, hint=0.5)
    seen_of = with_parameters(recipe, seen(of, temperature=2.0))
    found = loss(recipe, seen_of)
    for p in range(P):
        taught = reference.chen(
            of["student"][p],
            of["teachers"][:, p],
            0.7,
            of["own"][p],
            of["theirs"][:, p],
            of["goals"][p],
            SHARE if LABEL[p] else 0.0,
            background=2.0,
            margin=1.0,
            temperature=2.0,
        )
        image = p // (P // EXAMPLES)
        hints = [
            of_features.hint(
                of["map"][image],
                of["maps"][k][image],
                np.asarray(seen_of.aux[k]["kernel"], float),
                np.asarray(seen_of.aux[k]["bias"], float),
            )
            for k in range(K)
        ]
        np.testing.assert_allclose(found[p], taught + 0.5 * np.mean(hints), rtol=1e-4)


def test_boxes_of_who_has_none_are_a_user_error():
    of = seen(drawn())
    of = dataclasses.replace(of, teacher=of.teacher._replace(beside={}))
    with pytest.raises(UserError, match="need boxes, and there are none"):
        loss(detection.bounded_boxes(), of)
    with pytest.raises(UserError, match="background=0"):
        detection.chen(background=0)
