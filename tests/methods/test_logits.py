"""Methods of methods/logits.py against float64 NumPy, hand-made values and what their papers promise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.methods import logits, seams
from mtkd_jax.types import UserError
from tests.contexts import P1, P2, Q, aimed, by_student, context, loss
from tests.references import methods as reference

K, B, C = 3, 6, 5
KD = seams.PLAIN
EVERY = (logits.dkd(), logits.dist(), logits.regression(), logits.lsk(), logits.mixed_temperatures())
LATER = (logits.nkd(), logits.spherical(), logits.ttm(), logits.wttm(), logits.mlkd(), logits.ctkd())


def drawn(seed, scale=2.0):
    rng = np.random.default_rng(seed)
    return (
        scale * rng.normal(size=(B, C)),
        scale * rng.normal(size=(K, B, C)),
        rng.integers(0, C, B),
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(
    "recipe, expected",
    [
        (logits.dkd(), lambda z, t, y, T: reference.dkd(z, t, y, T, 1, 8)),
        (
            logits.dkd(target_weight=0.5, nontarget_weight=2.0),
            lambda z, t, y, T: reference.dkd(z, t, y, T, 0.5, 2),
        ),
        (logits.regression(), lambda z, t, y, T: reference.regression(z, t)),
        (logits.lsk(), lambda z, t, y, T: reference.lsk(z, t, T)),
        (
            logits.mixed_temperatures(teacher_temperature=3.0),
            lambda z, t, y, T: reference.mixed_temperatures(z, t, 3, T),
        ),
        (logits.nkd(nontarget_weight=2.0), lambda z, t, y, T: reference.nkd(z, t, y, T, 2)),
        (logits.ttm(), lambda z, t, y, T: reference.ttm(z, t, T)),
        (logits.wttm(), lambda z, t, y, T: reference.wttm(z, t, T)),
        (logits.ctkd(span=5.0), lambda z, t, y, T: reference.ctkd(z, t, 1 + 5 / (1 + np.exp(-1)))),
    ],
)
def test_loss_is_the_reference(recipe, expected, temperature):
    student, teachers, label = drawn(1)
    found = loss(recipe, context(student, teachers, label, temperature=temperature))
    assert found.shape == (B,)
    for b in range(B):
        of_b = expected(student[b], teachers[:, b], label[b], temperature)
        np.testing.assert_allclose(found[b], of_b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_is_the_reference(temperature):
    student, teachers, label = drawn(2)
    recipe = logits.dist(inter_weight=2.0, intra_weight=0.5)
    found = loss(recipe, context(student, teachers, label, temperature=temperature)).mean()
    np.testing.assert_allclose(
        found, reference.dist(student, teachers, temperature, 2, 0.5), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_losses_of_a_batch_are_their_references(temperature):
    student, teachers, label = drawn(2)
    seen = context(student, teachers, label, temperature=temperature)
    found = loss(logits.mlkd(batch_weight=2.0, class_weight=0.5, temperatures=(1.0, 3.0)), seen).mean()
    np.testing.assert_allclose(found, reference.mlkd(student, teachers, (1, 3), 2, 0.5), rtol=1e-4)
    expected = reference.spherical(student, teachers, temperature)
    np.testing.assert_allclose(loss(logits.spherical(), seen), expected, rtol=1e-4, atol=1e-5)


def of_places(student, teachers, there):
    """The context of maps [B,L,C] and [K,B,L,C], as the step makes it: zeros where there is no place."""
    merged = [
        np.where(there.ravel()[:, None], z.reshape(*z.shape[:-3], -1, C), 0) for z in (student, teachers)
    ]
    seen = context(*merged)
    batch = dataclasses.replace(
        seen.batch, image=jnp.zeros((len(student), 2, 2, 1)), valid=jnp.asarray(there.ravel())
    )
    return dataclasses.replace(seen, batch=batch)


def test_cwd_is_the_reference():
    rng = np.random.default_rng(3)
    student, teachers = 3 * rng.normal(size=(2, 4, C)), 3 * rng.normal(size=(K, 2, 4, C))
    there = np.array([[True, True, True, True], [True, False, True, True]])
    seen = of_places(student, teachers, there)
    recipe = logits.cwd(weight=2.0, map_temperature=3.0)
    found = np.asarray(loss(recipe, seen) - loss(KD, seen)).reshape(2, 4)
    for image in range(2):
        rows = there[image]
        expected = 2 * reference.cwd(student[image][rows], teachers[:, image][:, rows], 3.0)
        np.testing.assert_allclose(found[image][rows], expected, rtol=2e-4)


def test_cwd_sees_where_and_not_how_sure():
    """A constant added to the map of a class changes nothing; of one place an image there is no where."""
    rng = np.random.default_rng(4)
    student, teachers = rng.normal(size=(2, 4, C)), rng.normal(size=(1, 2, 4, C))
    there = np.ones((2, 4), bool)

    def of_map(z):
        seen = of_places(z, teachers, there)
        return loss(logits.cwd(), seen) - loss(KD, seen)

    np.testing.assert_allclose(of_map(student + np.arange(C)), of_map(student), rtol=1e-3, atol=1e-5)
    flat = context(*(z.reshape(*z.shape[:-3], -1, C) for z in (student, teachers)))
    np.testing.assert_allclose(loss(logits.cwd(), flat), loss(KD, flat), rtol=1e-5)


# --- EnD2: a Dirichlet ----------------------------------------------------------------------------------

END2 = logits.end2()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("smoothing", [1e-3, 0.2])
def test_end2_is_the_reference(temperature, smoothing):
    student, teachers, _ = drawn(6)
    found = loss(logits.end2(smoothing=smoothing), context(student, teachers, temperature=temperature))
    slow = [reference.end2(student[b], teachers[:, b], smoothing, temperature) for b in range(B)]
    np.testing.assert_allclose(found, slow, rtol=2e-5, atol=2e-5)


def test_end2_by_hand():
    """A flat Dirichlet has the density 2 of three classes everywhere, whatever the teachers say."""
    flat = np.zeros((1, 3))
    np.testing.assert_allclose(loss(END2, context(flat, [[P1], [P2]])), [-np.log(2)], atol=1e-5)
    tiny = logits.end2(smoothing=1e-6)
    raised = np.log([[2.0, 1.0, 1.0]])
    expected = -np.log(6) + np.log(8) / 2
    np.testing.assert_allclose(loss(tiny, context(raised, [[P1], [P2]])), [expected], atol=1e-5)


def test_end2_stops_to_grow_surer_where_it_is_sure_enough():
    """Above the largest sum of evidence a constant added to all logits changes nothing."""
    student = np.array([[9.0, 8.0, 7.0]])
    seen = [context(student + more, [[P1], [P2]]) for more in (2.0, 60.0)]
    np.testing.assert_allclose(*(loss(END2, one) for one in seen), rtol=1e-4)
    np.testing.assert_allclose(by_student(END2, seen[1]).sum(), 0, atol=0.05)


def test_what_a_dirichlet_disagrees_about_is_the_mean_over_its_draws():
    evidence = np.array([[2.0, 1.0, 1.0], [50.0, 30.0, 20.0], [0.1, 0.1, 0.1]])
    outputs = context(np.log(evidence), [[P1] * 3]).student
    draws = [np.random.default_rng(0).dirichlet(row, size=200_000) for row in evidence]
    entropy = lambda p: -(p * np.log(np.maximum(p, 1e-300))).sum(axis=-1)  # noqa: E731
    expected = [entropy(one.mean(axis=0)) - entropy(one).mean() for one in draws]
    np.testing.assert_allclose(logits.mutual_of_dirichlet(outputs), expected, rtol=0.01)
    certain = context(80 * np.eye(3), [[P1] * 3]).student
    np.testing.assert_allclose(logits.mutual_of_dirichlet(certain), 0, atol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_end2_needs_some_smoothing(smoothing):
    with pytest.raises(UserError, match="between 0 and 1"):
        logits.end2(smoothing=smoothing)


TARGET, NONTARGET = 0.5 * np.log(4 / 3), 0.5 * np.log(9 / 8)


@pytest.mark.parametrize(
    "recipe, temperature, expected",
    [
        (logits.dkd(target_weight=1.0, nontarget_weight=0.0), 1.0, TARGET),
        (logits.dkd(target_weight=0.0, nontarget_weight=1.0), 1.0, NONTARGET),
        (logits.dkd(), 1.0, 0.614973),
        (logits.dkd(nontarget_weight=0.5), 1.0, np.log(2) / 4),  # 1 - p_y: plain KL
        (logits.regression(), 1.0, 0.480453),
        (logits.regression(), 7.0, 0.480453),
        (logits.lsk(), 2.0, 1.090043),  # 1.638876 with the deviation of ddof = 0
        (logits.mixed_temperatures(teacher_temperature=4.0), 2.0, 8 * 0.024120),
        (logits.mixed_temperatures(teacher_temperature=2.0), 4.0, 8 * 0.024626),
        (logits.mixed_temperatures(teacher_temperature=4.0), 4.0, 0.164490),
    ],
)
def test_loss_by_hand(recipe, temperature, expected):
    found = loss(recipe, context(Q[None], P1[None, None], temperature=temperature))
    np.testing.assert_allclose(found, [expected], atol=5e-6)


def test_dist_by_hand():
    batch = context([Q, P2], [[P1, P2]])
    np.testing.assert_allclose(loss(logits.dist(intra_weight=0.0), batch).mean(), 0.75, atol=1e-5)
    np.testing.assert_allclose(loss(logits.dist(inter_weight=0.0), batch), 2 / 3, atol=1e-5)


@pytest.mark.parametrize("recipe", EVERY + LATER, ids=lambda recipe: recipe.name)
def test_alpha_one_is_the_hard_loss_alone(recipe):
    student, teachers, label = drawn(3)
    hard = context(student, teachers, label, alpha=1.0, label_smoothing=0.1)
    np.testing.assert_allclose(loss(recipe, hard), seams.hard_loss(hard), rtol=1e-6)


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
def test_a_student_that_is_its_only_teacher_has_nothing_to_learn(recipe):
    student, _, label = drawn(4)
    temperature = 4.0  # the teacher's own in mixed_temperatures
    same = context(student, student[None], label, temperature=temperature)
    np.testing.assert_allclose(loss(recipe, same), 0, atol=1e-4)
    np.testing.assert_allclose(by_student(recipe, same), 0, atol=1e-4)


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("student_scale, teacher_scale", [(0, 0), (0, 50), (50, 50), (50, -50), (500, -500)])
def test_extreme_logits_keep_value_and_gradient_finite(recipe, student_scale, teacher_scale):
    ramp = np.linspace(-1, 1, C) * np.ones((B, 1))
    seen = context(student_scale * ramp, teacher_scale * np.broadcast_to(ramp, (K, B, C)), np.arange(B) % C)
    assert np.isfinite(loss(recipe, seen)).all()
    assert np.isfinite(by_student(recipe, seen)).all()


@pytest.mark.parametrize("recipe", EVERY + LATER, ids=lambda recipe: recipe.name)
def test_a_hidden_label_does_not_reach_the_loss(recipe):
    student, teachers, _ = drawn(5)
    labelled = np.array([True, False, True, False, False, True])
    one, other = (
        context(student, teachers, label, labelled=labelled, alpha=0.5)
        for label in ([0, 1, 2, 3, 4, 0], [0, 2, 2, 1, 0, 0])
    )
    np.testing.assert_array_equal(loss(recipe, one), loss(recipe, other))


def test_dkd_without_a_label_is_plain_distillation():
    student, teachers, label = drawn(6)
    seen = context(student, teachers, label, labelled=np.zeros(B, bool), temperature=2.0)
    np.testing.assert_allclose(loss(logits.dkd(), seen), loss(KD, seen), rtol=1e-6)


def test_dkd_of_an_almost_certain_student_still_sees_the_other_classes():
    """1 - p_y is 0 in float32 from a gap of 17 on; the ranking of the others must survive that."""
    student, teacher = np.array([[40.0, 1.0, -1.0]]), np.array([[[40.0, -1.0, 1.0]]])
    found = loss(logits.dkd(target_weight=0.0, nontarget_weight=1.0), context(student, teacher))
    other = np.exp(2) / (1 + np.exp(2))  # q' = (1 - other, other), p' = (other, 1 - other)
    np.testing.assert_allclose(found, [(2 * other - 1) * 2], rtol=1e-4)


def test_dkd_warms_up():
    student, teachers, label = drawn(7)

    def at(progress, **arguments):
        return loss(logits.dkd(**arguments), context(student, teachers, label, progress=progress))

    np.testing.assert_allclose(at(0.125, warmup=0.5), 0.25 * at(0.75, warmup=0.5), rtol=1e-6)
    np.testing.assert_array_equal(at(0.5, warmup=0.5), at(0.99, warmup=0.5))
    np.testing.assert_array_equal(at(0.0, warmup=0.0), at(1.0))
    np.testing.assert_allclose(at(10 / 240), 0.5 * at(1.0), rtol=1e-6)


def test_dist_between_classes_ignores_a_sharper_or_flatter_student():
    _, teachers, _ = drawn(8)
    probs = np.random.default_rng(8).dirichlet(np.ones(C), B)
    flatter = 0.3 * probs + 0.7 / C
    inter = logits.dist(intra_weight=0.0)
    both = [loss(inter, context(np.log(p), teachers)) for p in (probs, flatter)]
    np.testing.assert_allclose(*both, atol=1e-5)


def test_dist_takes_a_constant_column_as_uncorrelated():
    """Class 2 has the same probability everywhere: its correlation is 0 / 0 without care."""
    probs = np.array([[0.5, 0.3, 0.2], [0.3, 0.5, 0.2], [0.4, 0.4, 0.2]])
    seen = context(np.log(probs), np.log(probs)[None])
    intra = logits.dist(inter_weight=0.0)
    np.testing.assert_allclose(loss(intra, seen), 1 / 3, atol=1e-5)
    assert np.isfinite(by_student(intra, seen)).all()


def test_regression_sees_a_shift_that_distillation_does_not():
    student, teachers, _ = drawn(9)
    here, there = context(student, teachers), context(student + 1, teachers)
    expected = C / 2 + (student - teachers.mean(axis=0)).sum(axis=-1)
    recipe = logits.regression()
    np.testing.assert_allclose(loss(recipe, there) - loss(recipe, here), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(loss(KD, there), loss(KD, here), atol=1e-5)


def test_lsk_ignores_shift_and_scale_of_the_student():
    _, teachers, _ = drawn(10)
    seen = context(3.0 * teachers[0] + 7.0, teachers[:1], temperature=2.0)
    np.testing.assert_allclose(loss(logits.lsk(), seen), 0, atol=1e-5)
    opposite = context(-3.0 * teachers[0], teachers[:1], temperature=2.0)
    assert (loss(logits.lsk(), opposite) > 0.1).all()


def test_lsk_standardises_every_teacher_before_they_are_mixed():
    student, teachers, _ = drawn(11)
    louder = teachers * np.array([1.0, 10.0, 0.1])[:, None, None]
    both = [loss(logits.lsk(), context(student, t)) for t in (teachers, louder)]
    np.testing.assert_allclose(*both, atol=1e-5)


def test_mixed_temperatures_that_are_equal_are_plain_distillation():
    student, teachers, _ = drawn(12)
    seen = context(student, teachers, temperature=3.0)
    recipe = logits.mixed_temperatures(teacher_temperature=3.0)
    np.testing.assert_allclose(loss(recipe, seen), loss(KD, seen), rtol=1e-5)


@pytest.mark.parametrize("teacher_temperature, temperature", [(200.0, 1.0), (200.0, 50.0), (400.0, 400.0)])
def test_mixed_temperatures_keep_the_scale_of_the_teachers_pull(teacher_temperature, temperature):
    """On a student without an opinion it is the hot limit of Hinton's: the centred teacher logits over C."""
    _, teachers, _ = drawn(13)
    recipe = logits.mixed_temperatures(teacher_temperature=teacher_temperature)
    pull = -by_student(recipe, context(np.zeros((B, C)), teachers, temperature=temperature))
    mean = teachers.mean(axis=0)
    np.testing.assert_allclose(pull, (mean - mean.mean(axis=-1, keepdims=True)) / C, atol=0.02)


def test_targets_stay_distributions():
    student, teachers, _ = drawn(14)
    for recipe in EVERY:
        probs = aimed(recipe, context(student, teachers)).targets.probs
        np.testing.assert_allclose(probs.sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: logits.dkd(warmup=2.0), r"dkd\(warmup=2.0\): .* in \[0, 1\]"),
        (lambda: logits.mixed_temperatures(teacher_temperature=0.0), "above 0"),
    ],
)
def test_impossible_arguments_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_numbers_that_only_multiply_are_traced_not_compiled_in():
    """Two weights of one method are one program: only `hyper` may tell them apart."""
    assert logits.dkd(nontarget_weight=2.0) == logits.dkd()._replace(
        hyper=(("target_weight", 1.0), ("nontarget_weight", 2.0))
    )
    one, other = logits.mixed_temperatures(teacher_temperature=2.0), logits.mixed_temperatures()
    assert one._replace(hyper=()) == other._replace(hyper=()) and one != other


# --- nkd, ttm, wttm, mlkd, ctkd -----------------------------------------------------------------------


def test_nkd_by_hand():
    """Student (1/4, 1/2, 1/4), teacher (1/2, 1/4, 1/4), label 0: 1/2 ln 4 and the cross-entropy of halves."""
    found = loss(logits.nkd(nontarget_weight=1.0), context(Q[None], P1[None, None]))
    others = -0.5 * (np.log(2 / 3) + np.log(1 / 3))
    np.testing.assert_allclose(found, [np.log(2) + others], rtol=1e-5)


def test_nkd_without_a_label_is_plain_distillation():
    student, teachers, label = drawn(6)
    seen = context(student, teachers, label, labelled=np.zeros(B, bool), temperature=2.0)
    np.testing.assert_allclose(loss(logits.nkd(), seen), loss(KD, seen), rtol=1e-6)


def test_ttm_has_learnt_all_where_its_logits_are_the_teachers_over_the_temperature():
    _, teachers, _ = drawn(11)
    seen = context(teachers[0] / 4.0, teachers[:1], temperature=4.0)
    for recipe in (logits.ttm(), logits.wttm()):
        np.testing.assert_allclose(loss(recipe, seen), 0, atol=1e-5)
        np.testing.assert_allclose(by_student(recipe, seen), 0, atol=1e-5)


def test_wttm_weighs_the_unsure_more():
    """1 for teachers who are certain, C^(1 - 1/T) = 2 for those who know nothing of four classes."""
    teachers = np.array([[[500.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    student = np.array([[0.0, 1.0, 0.0, 0.0]] * 2)
    seen = context(student, teachers, temperature=2.0)
    of_ttm = np.asarray(loss(logits.ttm(), seen))
    np.testing.assert_allclose(loss(logits.wttm(), seen), np.array([1.0, 2.0]) * of_ttm, rtol=1e-5)


def test_spherical_student_of_any_length_is_the_same():
    student, teachers, _ = drawn(12)
    one, other = (loss(logits.spherical(), context(z, teachers)) for z in (student, 9.0 * student + 2.0))
    np.testing.assert_allclose(one, other, rtol=1e-4)
    with pytest.raises(UserError, match="logits.spherical: .* needs three classes or more"):
        loss(logits.spherical(), context(np.zeros((1, 2)), np.zeros((1, 1, 2))))


def test_the_learnt_temperature_goes_against_the_student():
    student, teachers, label = drawn(13)
    recipe = logits.ctkd(span=5.0, ramp=0.5)

    def at(theta, progress):
        fixed = aimed(recipe, dataclasses.replace(seen, progress=progress))
        state = dataclasses.replace(fixed.state, aux={"theta": theta})
        return recipe.term(dataclasses.replace(fixed, state=state)).mean()

    def by_hand(theta):
        temperature = 1 + 5 / (1 + np.exp(-theta))
        return np.mean([reference.ctkd(student[b], teachers[:, b], temperature) for b in range(B)])

    seen, gradient = context(student, teachers, label), jax.jit(jax.grad(at))
    slope = (by_hand(1.0 + 1e-5) - by_hand(1.0 - 1e-5)) / 2e-5
    for progress, reversal in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.9, 1.0)):
        found = gradient(jnp.float32(1.0), jnp.float32(progress))
        np.testing.assert_allclose(found, -reversal * slope, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"temperatures": ()}, {"temperatures": (2.0, 0.0)}])
def test_mlkd_refuses_temperatures_that_are_none(wrong):
    with pytest.raises(UserError, match="at least one, and all above 0"):
        logits.mlkd(**wrong)
    with pytest.raises(UserError, match="ctkd.ramp=2"):
        logits.ctkd(ramp=2)
