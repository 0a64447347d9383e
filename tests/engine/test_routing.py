"""Teachers who speak of some examples only: the others are heard in their place, as a reference says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import addresses
from mtkd_jax.data import loading, mixing
from mtkd_jax.engine import step
from mtkd_jax.methods.seams import configured_stimulus, frozen_teachers, heard
from mtkd_jax.types import DataSet, TrainState, UserError
from tests import contexts, features, small

RNG = np.random.default_rng(0)
TEACHERS, STUDENT = RNG.normal(size=(3, 5, 4)), RNG.normal(size=(5, 4))
SPEAKS = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 1]], bool)


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def heard_by_hand(w, speaks):
    """The same in float64, an example at a time."""
    found = np.zeros_like(w)
    for b, who in enumerate(speaks):
        own = w[: len(who), b]
        kept = np.where(who, own, 0.0)
        if kept.sum() == 0:
            kept = who.astype(float)
        if who.any():
            found[: len(who), b] = own.sum() * kept / kept.sum()
        found[len(who) :, b] = w[len(who) :, b]
    return found


def test_silent_teachers_weigh_nothing_and_the_others_take_over_in_proportion():
    w = RNG.uniform(size=(5, 5))  # three teachers and two peers
    w[0, 1] = w[2, 1] = w[1, 2] = 0.0  # who speaks of example 1 and 2 weighs nothing
    found = heard(jnp.asarray(w, jnp.float32), jnp.asarray(SPEAKS))
    np.testing.assert_allclose(found, heard_by_hand(w, SPEAKS), rtol=1e-6)
    assert not np.asarray(found[:3])[:, 3].any()
    np.testing.assert_array_equal(found[3:], w[3:].astype(np.float32))


def seen(teachers=TEACHERS, speaks=SPEAKS, **hyper):
    context = contexts.context(STUDENT, teachers, temperature=2.0, **hyper)
    speaks = None if speaks is None else jnp.asarray(speaks)
    return dataclasses.replace(context, batch=dataclasses.replace(context.batch, speaks=speaks))


def loss(mode, context):
    """[B], of one head a teacher where the mode has that many."""
    recipe = addresses.build_recipe(mode)
    num_heads = recipe.num_heads(len(context.teacher.logits))
    heads = jnp.broadcast_to(context.student.heads, (num_heads, *context.student.logits.shape))
    student = dataclasses.replace(context.student, heads=heads)
    own = {name: jnp.float32(value) for name, value in recipe.hyper}
    aux = recipe.init_aux(jax.random.key(0), student, context.teacher)
    state = TrainState({}, aux, {}, {}, {}, None)
    context = dataclasses.replace(context, student=student, state=state, hyper={**context.hyper, **own})
    return jax.jit(lambda c: recipe.term(dataclasses.replace(c, targets=step._aim(recipe, c))))(context)


def kl(target, logits):
    return np.sum(target * (np.log(target) - np.log(softmax(logits / 2))), axis=-1)


def mean_target(kind, own):
    """What the speakers [S,C] of one example are together."""
    return softmax(own / 2).mean(axis=0) if kind == "output_avg" else softmax(own.mean(axis=0) / 2)


@pytest.mark.parametrize("mode", ["output_avg", "logit_avg", "loss_avg", "mimic_all", "vote"])
def test_the_loss_is_that_of_those_who_speak(mode):
    expected = []
    for b, who in enumerate(SPEAKS):
        own = TEACHERS[who, b]
        if not who.any():
            expected.append(0.0)
        elif mode in ("loss_avg", "mimic_all"):
            expected.append(np.mean([kl(softmax(z / 2), STUDENT[b]) for z in own]))
        elif mode == "vote":
            places = own.argsort(axis=-1).argsort(axis=-1)  # 0 for the least
            scores = places.sum(axis=0) / (len(own) * 6)
            logs = np.where(scores > 0, np.log(np.where(scores > 0, scores, 1.0)), 0.0)
            expected.append(np.sum(scores * (logs - np.log(softmax(STUDENT[b] / 2)))))
        else:
            expected.append(kl(mean_target(mode, own), STUDENT[b]))
    np.testing.assert_allclose(loss(mode, seen()), 4 * np.array(expected), rtol=2e-5, atol=1e-6)


def routable():
    """Methods with frozen teachers, by address."""
    found = {}
    for address, function in addresses.catalogue("mode").items():
        if address in (
            "features.hints_only",
            "logits.cwd",
        ):  # the latter compares places, of which there is one
            continue
        recipe = function()
        frozen = recipe.teach is frozen_teachers and recipe.num_peers == 1
        if frozen and not recipe.needs and recipe.stimulus is configured_stimulus:
            found[address] = recipe
    return found


@pytest.mark.parametrize("mode", sorted(name for name, one in routable().items() if not one.prepare))
def test_a_method_hears_no_silent_teacher_or_says_that_it_would(mode):
    others = TEACHERS.copy()
    others[~SPEAKS.T] = 3 * np.random.default_rng(1).normal(size=others[~SPEAKS.T].shape)
    before, after = loss(mode, seen()), loss(mode, seen(others))
    assert np.isfinite(before).all()
    if routable()[mode].hears_all:
        assert not np.allclose(before, after, rtol=1e-4)
    else:
        np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["output_avg(divergence='reverse_kl')", "output_avg", "mimic_all"])
def test_where_nobody_speaks_the_label_counts_and_nothing_else_has_a_gradient(mode):
    def by_student(alpha):
        def total(logits):
            context = seen(speaks=np.zeros_like(SPEAKS), alpha=alpha)
            student = dataclasses.replace(context.student, logits=logits, heads=logits[None])
            return loss(mode, dataclasses.replace(context, student=student)).sum()

        return jax.grad(total)(jnp.asarray(STUDENT, jnp.float32))

    assert not np.asarray(by_student(0.0)).any()
    expected = softmax(STUDENT) - np.eye(4)[0]
    np.testing.assert_allclose(by_student(0.5), 0.5 * expected, rtol=1e-5, atol=1e-6)


def test_of_a_mixture_those_speak_who_speak_of_both_images():
    batch = dataclasses.replace(seen().batch, image=jnp.zeros((5, 4, 4, 1)))
    mixture = mixing.draw(jax.random.key(0), batch.image.shape, mixup=1.0, cutmix=0.0)
    found = mixing.mix_labels(mixture, batch).speaks
    np.testing.assert_array_equal(found, SPEAKS & SPEAKS[np.asarray(mixture.partner)])


def test_numbers_of_teachers_are_columns_and_other_numbers_of_teachers_are_refused():
    blank, labels = np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 1, 0, 1], np.int32)
    dataset = DataSet("two", blank, labels, blank, labels, ("a", "b"))
    assert loading.speakers(dataset, 3) is None
    one = dataclasses.replace(dataset, train_teachers=np.array([2, -1, 0, 2], np.int32))
    expected = [[0, 0, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]]
    np.testing.assert_array_equal(loading.speakers(one, 3), np.array(expected, bool))
    with pytest.raises(UserError, match="names teacher 2; there are 2, the last is 1"):
        loading.speakers(one, 2)
    many = dataclasses.replace(dataset, train_teachers=SPEAKS[:4])
    np.testing.assert_array_equal(loading.speakers(many, 3), SPEAKS[:4])
    with pytest.raises(UserError, match="a column for each of 3 teachers; there are 4"):
        loading.speakers(many, 4)


def test_in_the_step_a_silent_teacher_changes_nothing():
    """Of three teachers the last is silent: students of all three learn what those of the first two learn."""
    job = small.students_job("output_avg", **{"students.alphas": (0.5,), "students.num_seeds": 1})

    def after_a_step(teachers, speaks):
        examples = dataclasses.replace(job.stage_data.examples, speaks=speaks)
        data = dataclasses.replace(job.stage_data, examples=examples, teachers=teachers)
        variables = jax.vmap(job.program.model.init, (0, None))(job.init_keys, jnp.zeros(job.image.shape))
        states = step.init_state(job.program, variables, job.init_keys, data)
        one_step = jax.jit(step.make_step(job.program._replace(layout=job.program.layout._replace(member=1))))
        return one_step(states, job.hyper, job.order(0)[0], jnp.int32(0), data)[0].params

    two = tuple(jax.tree.map(lambda leaf: leaf[:2], own) for own in job.stage_data.teachers)
    speaks = jnp.tile(jnp.array([True, True, False]), (len(job.stage_data.examples.label), 1))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        after_a_step(job.stage_data.teachers, speaks),
        after_a_step(two, None),
    )


@pytest.mark.parametrize("mode", ["logits.dist", "targets.cwtm"])
def test_an_example_that_nobody_speaks_of_has_no_part_in_what_a_batch_is_compared_by(mode):
    """The others have the loss that they have without it, but for the number that a mean is over."""
    labels = np.array([1, 0, 2, 3, 1])
    taught = SPEAKS.any(axis=1)
    found = loss(mode, with_labels(seen(), labels))
    assert not found[~taught].any()
    context = with_labels(
        contexts.context(STUDENT[taught], TEACHERS[:, taught], temperature=2.0), labels[taught]
    )
    batch = dataclasses.replace(context.batch, speaks=jnp.asarray(SPEAKS[taught]))
    alone = loss(mode, dataclasses.replace(context, batch=batch))
    if mode == "targets.cwtm":  # a sum over the batch in the paper, of weights that add up to 1
        alone = np.asarray(alone) * len(taught) / taught.sum()
    np.testing.assert_allclose(found[taught], alone, rtol=1e-5)
    assert np.abs(alone).max() > 1e-2


def with_labels(context, labels):
    return dataclasses.replace(
        context, batch=dataclasses.replace(context.batch, label=jnp.asarray(labels, jnp.int32))
    )


@pytest.mark.parametrize(
    "mode", ["relations.rkd", "relations.sp", "relations.cc", "relations.crd", "features.pkt"]
)
def test_a_teacher_compares_those_examples_alone_that_it_speaks_of(mode):
    """What is its embedding of the others changes nothing; three of the examples are the first teacher's."""
    recipe, rng = addresses.build_recipe(mode), np.random.default_rng(2)
    speaks = np.array([[1, 1], [1, 0], [1, 1], [0, 1], [0, 1]], bool)
    embedding, told = rng.normal(size=(5, 4)), rng.normal(size=(2, 5, 3))

    def loss_of(told):
        seen = features.seen({}, [{}, {}], embedding=embedding, embeddings=list(told), alpha=0.0)
        seen = features.with_parameters(recipe, seen)
        own = {name: jnp.float32(value) for name, value in recipe.hyper}
        batch = dataclasses.replace(seen.batch, speaks=jnp.asarray(speaks))
        seen = dataclasses.replace(seen, batch=batch, hyper={**seen.hyper, **own})
        return recipe.term(dataclasses.replace(seen, targets=step._aim(recipe, seen)))

    before, after = (
        loss_of(told),
        loss_of(np.where(speaks.T[:, :, None], told, 9.0 * rng.normal(size=told.shape))),
    )
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6)
    assert (np.abs(before) > 1e-3).all()
