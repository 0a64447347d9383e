"""Methods of methods/weights.py against float64 NumPy, hand-made values and what every weight must hold."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.methods import modes, seams, weights
from mtkd_jax.types import TrainState, UserError
from tests.contexts import P1, P2, P3, Q, aimed, by_student, context, loss
from tests.references import methods as reference

K, B, C = 4, 6, 5
UNIFORM = np.zeros(3)

# Rules that judge the teachers, with the sum of the weights they promise for K teachers.
JUDGES = [
    (weights.ebkd(), 1.0),
    (weights.ebkd(normalise=False), (K - 1) / K),
    (weights.ca_mkd(), 1.0),
    (weights.aekd(), 1.0),
    (weights.aekd(cap=0.3), 1.0),
]
LOTTERIES = [
    (weights.random_drop(), K - 1),
    (weights.random_drop(num_dropped=3), 1),
    (weights.switch(), 1),
    (weights.lot(each="batch"), 1),
]


def drawn(seed, scale=2.0):
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(B, C)), scale * rng.normal(size=(K, B, C)), rng.integers(0, C, B)


@partial(jax.jit, static_argnums=0)
def weigh(recipe, seen):
    """As the step does: compiled, the recipe a part of the key."""
    return recipe.weigh(seen)


def of_one_example(recipe, teachers, student=Q, label=0):
    """Weights [K] on a batch of one example."""
    return weigh(recipe, context(student[None], np.asarray(teachers)[:, None], [label]))[:, 0]


# --- references and hand-made values ---------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [True, False])
def test_ebkd_is_the_reference(normalise):
    student, teachers, label = drawn(1)
    found = weigh(weights.ebkd(normalise=normalise), context(student, teachers, label, temperature=4.0))
    expected = [reference.ebkd(teachers[:, b], normalise) for b in range(B)]
    np.testing.assert_allclose(found.T, expected, rtol=1e-5)


def test_ca_mkd_is_the_reference():
    student, teachers, label = drawn(2)
    found = weigh(weights.ca_mkd(), context(student, teachers, label, temperature=4.0))
    np.testing.assert_allclose(
        found.T, [reference.ca_mkd(teachers[:, b], label[b]) for b in range(B)], rtol=1e-5
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("cap", [1.0, 0.6, 0.3, 0.25])
def test_aekd_is_the_reference(cap, temperature):
    """With more classes than teachers the minimum is a single point, so the weights themselves agree."""
    for seed in range(3, 8):
        student, teachers, label = drawn(seed)
        found = weigh(weights.aekd(cap=cap), context(student, teachers, label, temperature=temperature))
        gradients = reference.logit_gradients(student, teachers, temperature)
        expected = reference.least_common_gradient(gradients, cap)
        np.testing.assert_allclose(found, np.repeat(expected[:, None], B, axis=1), atol=2e-5)
        lengths = [np.linalg.norm(a @ gradients) for a in (np.asarray(found)[:, 0], expected)]
        assert lengths[0] < lengths[1] + 1e-6


@pytest.mark.parametrize("cap", [1.0, 0.6, 0.2])
def test_aekd_is_as_short_as_can_be_with_many_teachers_of_few_classes(cap):
    """More teachers than classes: many mixtures are equally short, and one of them must be found."""
    rng = np.random.default_rng(9)
    for size in ((8, 3), (8, 5), (20, 10)):
        gradients = 0.1 * rng.normal(size=size) + 0.02
        found = np.asarray(weights._least_common_gradient(jax.numpy.float32(gradients), cap))
        expected = reference.least_common_gradient(gradients, cap)
        half_squares = [0.5 * np.sum((a @ gradients) ** 2) for a in (found, expected)]
        assert half_squares[0] < half_squares[1] + 1e-8
        np.testing.assert_allclose(found.sum(), 1, rtol=1e-5)
        assert (found >= 0).all() and (found <= cap + 1e-6).all()


def test_aekd_is_not_slowed_by_what_all_gradients_share():
    gradients = np.float32(0.1 * np.random.default_rng(10).normal(size=(5, 8)))
    shared = np.full((5, 1), 10.0, np.float32)
    alone, beside = (
        weights._least_common_gradient(jax.numpy.asarray(g), 0.6)
        for g in (gradients, np.concatenate([gradients, shared], axis=1))
    )
    np.testing.assert_allclose(beside, alone, atol=1e-4)


def test_the_smallest_cap_leaves_equal_weights_however_it_rounds():
    """K times the float32 nearest to 1 / K may be less than 1, out of reach of the sum."""
    for num in (2, 12, 19, 23):  # the last three do
        point = jax.numpy.linspace(-1.0, 1.0, num)
        np.testing.assert_allclose(weights.project_on_capped_simplex(point, 1 / num), 1 / num, rtol=1e-4)


OTHER, P4 = np.log([0.25, 0.6, 0.15]), np.log([0.7, 0.2, 0.1])


@pytest.mark.parametrize(
    "recipe, teachers, expected",
    [
        (weights.ebkd(), [P1, UNIFORM], [0.513770, 0.486230]),
        (weights.ebkd(normalise=False), [P1, UNIFORM], [0.256885, 0.243115]),
        (weights.ca_mkd(), [P1, P2], [2 / 3, 1 / 3]),
        (weights.ca_mkd(), [P1, P2, P3], [0.362069, 0.224138, 0.413793]),
        (weights.aekd(), [P1, P2], [0.5, 0.5]),
        (weights.aekd(cap=1.0), [P1, OTHER], [0.230769, 0.769231]),
        (weights.aekd(cap=0.6), [P1, OTHER], [0.4, 0.6]),
        (weights.aekd(cap=1.0), [P1, P2, P3], [0.5, 0.5, 0.0]),
        (weights.aekd(cap=1 / 3), [P1, P2, P3], [1 / 3, 1 / 3, 1 / 3]),
        (weights.aekd(cap=1.0), [P1, P4, P3], [1.0, 0.0, 0.0]),
        (weights.aekd(cap=0.6), [P1, P4, P3], [0.6, 0.4, 0.0]),
    ],
)
def test_weights_by_hand(recipe, teachers, expected):
    np.testing.assert_allclose(of_one_example(recipe, teachers), expected, atol=2e-6)


@pytest.mark.parametrize(
    "recipe, teachers, expected",
    [
        (weights.ebkd(normalise=False), [P1, UNIFORM], 0.058283),
        (weights.ca_mkd(), [P1, P2], np.log(2) / 4),
        (weights.ca_mkd(), [P1, P2, P3], None),
    ],
)
def test_loss_by_hand(recipe, teachers, expected):
    """The papers' sum of weighted KLs is the loss with the targets of `loss_avg`; the gradient is its own."""
    seen = context(Q[None], np.asarray(teachers)[:, None])
    summed = recipe._replace(aim=modes.loss_avg().aim)
    if expected is not None:
        np.testing.assert_allclose(loss(summed, seen), [expected], atol=2e-6)
    np.testing.assert_allclose(by_student(summed, seen), by_student(recipe, seen), atol=1e-6)


# --- what every judge holds ------------------------------------------------------------------------------

judges = pytest.mark.parametrize("recipe, total", JUDGES, ids=lambda value: getattr(value, "name", None))


@judges
def test_weights_sum_to_what_is_promised(recipe, total):
    for scale in (0.1, 2.0, 20.0):
        w = weigh(recipe, context(*drawn(10, scale)))
        assert w.shape == (K, B) and w.dtype == np.float32 and (w >= 0).all()
        np.testing.assert_allclose(w.sum(axis=0), total, rtol=1e-5)


@judges
def test_weights_follow_the_teachers_when_these_change_places(recipe, total):
    student, teachers, label = drawn(11)
    order = np.array([2, 0, 3, 1])
    w = weigh(recipe, context(student, teachers, label))
    moved = weigh(recipe, context(student, teachers[order], label))
    np.testing.assert_allclose(moved, w[order], atol=2e-5)
    assert np.ptp(w, axis=0).max() > 0.01  # else moving them would show nothing


@judges
def test_equal_teachers_weigh_alike(recipe, total):
    student, teachers, label = drawn(12)
    same = np.broadcast_to(teachers[0], (K, B, C))
    np.testing.assert_allclose(weigh(recipe, context(student, same, label)), total / K, rtol=1e-5)
    twins = teachers[[0, 1, 2, 1]]
    w = weigh(recipe, context(student, twins, label))
    np.testing.assert_allclose(w[1], w[3], atol=1e-5)


@judges
@pytest.mark.parametrize("teacher", ["right", "wrong", "ignorant", "of their own"])
def test_extreme_teachers_give_finite_weights(recipe, total, teacher):
    label = np.arange(B) % C
    one_hot = 1e3 * np.eye(C)
    logits = {
        "right": np.stack([one_hot[label]] * K),
        "wrong": np.stack([one_hot[(label + 1) % C]] * K),
        "ignorant": np.zeros((K, B, C)),
        "of their own": np.stack([one_hot[(label + k) % C] for k in range(K)]),
    }[teacher]
    for student in (np.zeros((B, C)), one_hot[label]):
        w = weigh(recipe, context(student, logits, label))
        np.testing.assert_allclose(w.sum(axis=0), total, rtol=1e-5)
        assert (w >= 0).all()
        assert np.isfinite(by_student(recipe, context(student, logits, label))).all()


@judges
def test_equal_teachers_make_it_plain_distillation(recipe, total):
    student, teachers, label = drawn(13)
    seen = context(student, np.broadcast_to(teachers[0], (K, B, C)), label, temperature=2.0)
    np.testing.assert_allclose(loss(recipe, seen), total * loss(seams.PLAIN, seen), rtol=1e-4)


def adapted(student, teachers, mix, seed=0, temperature=2.0):
    """A context with an embedding and factors of the method's own."""
    rng = np.random.default_rng(seed)
    seen = context(student, teachers, temperature=temperature)
    embedding, latent = rng.normal(size=(B, 3)), rng.normal(size=(len(teachers), 3))
    aux = {"latent": jnp.asarray(latent, jnp.float32), "mix": jnp.asarray(mix, jnp.float32)}
    own = dataclasses.replace(seen.student, embedding=jnp.asarray(embedding, jnp.float32))
    state = TrainState({}, aux, {}, {}, {}, None)
    return dataclasses.replace(seen, student=own, state=state), embedding, latent


def test_adaptive_is_the_reference_and_begins_as_plain_distillation():
    student, teachers, _ = drawn(30)
    mix = np.array([1.0, -2.0, 0.5])
    seen, embedding, latent = adapted(student, teachers, mix)
    expected = [
        reference.adaptive(student[b], embedding[b], teachers[:, b], latent, mix, 2.0) for b in range(B)
    ]
    np.testing.assert_allclose(loss(weights.adaptive(), seen), expected, rtol=1e-4)
    begun, _, _ = adapted(student, teachers, np.zeros(3))
    np.testing.assert_allclose(loss(weights.adaptive(), begun), loss(seams.PLAIN, begun), rtol=1e-4)
    first = weights.adaptive().init_aux(jax.random.key(0), begun.student, begun.teacher)
    assert first["latent"].shape == (K, 3) and not first["mix"].any()


def test_adaptive_weights_are_learnt_by_the_loss():
    """Whoever agrees with the student counts the more: a step against the gradient lowers the loss."""
    student, teachers, _ = drawn(31)
    seen, _, _ = adapted(student, teachers, np.zeros(3))

    def total(mix):
        aux = {**seen.aux, "mix": mix}
        return loss(
            weights.adaptive(), dataclasses.replace(seen, state=dataclasses.replace(seen.state, aux=aux))
        ).sum()

    gradient = jax.grad(total)(seen.aux["mix"])
    assert np.abs(gradient).max() > 1e-4
    assert total(-0.1 * gradient) < total(jnp.zeros(3))


# --- what one method holds -------------------------------------------------------------------------------


def test_ebkd_prefers_the_certain_and_ca_mkd_the_right_teacher():
    certain_but_wrong, right = np.log([0.02, 0.96, 0.02]), np.log([0.5, 0.3, 0.2])
    by_certainty = of_one_example(weights.ebkd(), [certain_but_wrong, right])
    by_correctness = of_one_example(weights.ca_mkd(), [certain_but_wrong, right])
    assert by_certainty[0] > 0.5 > by_correctness[0]


def test_ebkd_leaves_everything_to_the_only_certain_teacher():
    one_hot = 1e3 * np.eye(3)[0]
    np.testing.assert_allclose(of_one_example(weights.ebkd(), [one_hot, P1]), [1, 0], atol=1e-6)


def test_ca_mkd_weighs_alike_where_the_label_is_hidden():
    student, teachers, label = drawn(15)
    labelled = np.arange(B) % 2 == 0
    w = np.asarray(weigh(weights.ca_mkd(), context(student, teachers, label, labelled=labelled)))
    whole = np.asarray(weigh(weights.ca_mkd(), context(student, teachers, label)))
    np.testing.assert_array_equal(w[:, ~labelled], np.float32(1 / K))
    np.testing.assert_array_equal(w[:, labelled], whole[:, labelled])


def test_aekd_finds_the_mixture_the_student_already_is():
    """A student inside the teachers' hull: the mixture of their mean predictions is its own, gradient 0."""
    teachers = np.log(np.random.default_rng(16).dirichlet(np.ones(C), (K, B)))
    a = np.array([0.1, 0.2, 0.3, 0.4])
    student = np.log(np.einsum("k,kbc->bc", a, np.exp(teachers)))
    seen = context(student, teachers)
    np.testing.assert_allclose(weigh(weights.aekd(), seen)[:, 0], a, atol=1e-4)
    np.testing.assert_allclose(by_student(weights.aekd(), seen).mean(axis=0), 0, atol=1e-5)


@pytest.mark.parametrize("cap", [1.0, 0.6, 0.35, 0.25])
def test_the_projection_is_the_closest_point_of_the_capped_simplex(cap):
    """No feasible point lies at less than a right angle from what was cut off."""
    rng = np.random.default_rng(17)
    for scale in (0.01, 1.0, 100.0):
        point = np.float32(scale * rng.normal(size=K))
        a = np.asarray(weights.project_on_capped_simplex(jax.numpy.asarray(point), cap), np.float64)
        np.testing.assert_allclose(a.sum(), 1, rtol=1e-5)
        assert (a >= 0).all() and (a <= cap + 1e-7).all()
        for corner in rng.permuted(np.tile(np.array([*filled(cap)]), (50, 1)), axis=1):
            assert (corner - a) @ (point - a) <= 1e-5 * max(scale, 1)


def filled(cap):
    """A corner of the capped simplex: as many entries at the cap as fit, the rest in one."""
    left = 1.0
    for _ in range(K):
        yield min(cap, left)
        left = max(left - cap, 0.0)


@pytest.mark.parametrize("cap, needed", [(1.0, 2), (0.6, 2), (0.5, 2), (0.4, 3), (1 / 3, 3), (0.1, 10)])
def test_aekd_asks_for_teachers_enough_to_reach_one(cap, needed):
    assert weights.aekd(cap=cap).min_teachers == needed


@pytest.mark.parametrize("recipe, total", LOTTERIES)
def test_lotteries_are_ones_and_zeros_of_whole_batches(recipe, total):
    for seed in range(5):
        w = weigh(recipe, context(*drawn(18), seed=seed, step=seed))
        assert w.shape == (K, B) and w.dtype == np.float32
        assert (w == w[:, :1]).all() and set(np.unique(w)) == {0.0, 1.0}
        np.testing.assert_array_equal(w.sum(axis=0), total)


def test_random_drop_drops_everyone_as_often():
    seen = [context(*drawn(19), seed=seed) for seed in range(300)]
    kept = np.mean([weigh(weights.random_drop(), one)[:, 0] for one in seen], axis=0)
    np.testing.assert_allclose(kept, (K - 1) / K, atol=4 * np.sqrt(0.25 * 0.75 / 300))


def test_random_drop_of_nobody_sums_the_teachers():
    seen = context(*drawn(20))
    summed = weights.random_drop(num_dropped=0)._replace(aim=modes.loss_avg().aim)
    np.testing.assert_allclose(loss(summed, seen), K * loss(modes.loss_avg(), seen), rtol=1e-5)


def test_switch_hears_everyone_in_turn():
    turns = [weigh(weights.switch(), context(*drawn(21), step=step))[:, 0] for step in range(2 * K)]
    np.testing.assert_array_equal(turns, np.tile(np.eye(K), (2, 1)))


def test_lot_draws_a_teacher_for_every_example_and_everyone_as_often():
    drawn_by = [weigh(weights.lot(), context(*drawn(23), seed=seed)) for seed in range(100)]
    for w in drawn_by:
        assert w.shape == (K, B) and w.dtype == np.float32 and set(np.unique(w)) == {0.0, 1.0}
        np.testing.assert_array_equal(w.sum(axis=0), 1)
    assert any((w != w[:, :1]).any() for w in drawn_by)
    mean = np.mean(drawn_by, axis=(0, 2))
    np.testing.assert_allclose(mean, 1 / K, atol=4 * np.sqrt((K - 1) / K**2 / (100 * B)))


@pytest.mark.parametrize("alpha, temperature", [(0.0, 1.0), (0.3, 4.0)])
def test_streams_have_the_gradient_of_the_mean(alpha, temperature):
    """Each batch once for every teacher: of a student's parameters the averaged gradient is output_avg's."""
    rng = np.random.default_rng(24)
    _, teachers, label = drawn(24)
    images, kernel = jnp.asarray(rng.normal(size=(B, 3)), jnp.float32), rng.normal(size=(3, C))
    of_copy = jnp.repeat(jnp.eye(K), B, axis=1)  # [K,K*B]: teacher k speaks of copy k
    streams = seams.PLAIN._replace(weigh=lambda _: of_copy)

    def gradient(recipe, copies):
        def mean_loss(kernel):
            x = jnp.tile(images, (copies, 1))
            said, y = np.tile(teachers, (1, copies, 1)), np.tile(label, copies)
            return recipe.term(
                aimed(recipe, context(x @ kernel, said, y, alpha=alpha, temperature=temperature))
            ).mean()

        return jax.jit(jax.grad(mean_loss))(jnp.asarray(kernel, jnp.float32))

    once = gradient(modes.output_avg(), 1)
    assert np.abs(once).max() > 1e-3
    np.testing.assert_allclose(gradient(streams, K), once, rtol=1e-4, atol=1e-6)
    apart = seams.PLAIN._replace(weigh=lambda _: of_copy.at[0].set(0.0))  # a stream without its teacher
    assert np.abs(gradient(apart, K) - once).max() > 1e-3


def test_lot_matches_the_teacher_that_was_drawn():
    student, teachers, label = drawn(25)
    seen = context(student, teachers, label, temperature=3.0, seed=4)
    kappa = np.asarray(jax.random.randint(seen.key, (B,), 0, K))
    assert len(set(kappa)) > 1
    expected = [reference.lot(student[b], teachers[:, b], kappa[b], 3.0) for b in range(B)]
    np.testing.assert_allclose(loss(weights.lot(), seen), expected, rtol=1e-4)


def test_switch_matches_the_teacher_whose_turn_it_is():
    student, teachers, label = drawn(22)
    found = loss(weights.switch(), context(student, teachers, label, step=K + 2))
    alone = loss(seams.PLAIN, context(student, teachers[2:3], label))
    np.testing.assert_allclose(found, alone, rtol=1e-5)


@pytest.mark.parametrize(
    "recipe, needed",
    [
        (weights.ebkd(), 2),
        (weights.ca_mkd(), 2),
        (weights.random_drop(), 2),
        (weights.random_drop(num_dropped=3), 4),
        (weights.switch(), 2),
    ],
)
def test_weighing_takes_several_teachers(recipe, needed):
    assert recipe.min_teachers == needed


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: weights.aekd(cap=0.0), r"aekd\(cap=0.0\): .*\(0, 1\]"),
        (lambda: weights.aekd(cap=1.5), r"aekd\(cap=1.5\)"),
        (lambda: weights.random_drop(num_dropped=-1), "at least 0"),
        (lambda: weights.lot(each="epoch"), "'example' or 'batch'"),
    ],
)
def test_impossible_arguments_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
