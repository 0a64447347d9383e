"""Methods of methods/teaching.py: the loss by a reference, the bound and the memory by hand, and teachers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import experiment
from mtkd_jax.engine import training
from mtkd_jax.methods import teaching
from mtkd_jax.plans import plan, teachers
from mtkd_jax.types import TrainState, UserError
from tests import small
from tests.contexts import context, loss
from tests.references import methods as reference

Z = np.random.default_rng(5).normal(size=(4, 3))
LABELS = np.array([0, 2, 1, 1])


def with_memory(seen, mean, num_seen):
    mem = {"rows": jnp.asarray(mean, jnp.float32), "num_seen": jnp.asarray(num_seen, jnp.float32)}
    return dataclasses.replace(seen, state=TrainState({}, {}, {}, {}, mem, jax.random.key(0)))


def test_soteacher():
    means = np.random.default_rng(6).dirichlet(np.ones(3), size=4)
    seen = context(Z, [Z], LABELS, progress=0.25)
    seen = with_memory(dataclasses.replace(seen, teacher=None), means, [1, 0, 5, 2])
    found = loss(teaching.soteacher(consistency=8.0), seen)
    remembered = [means[0], None, means[2], means[3]]
    expected = [reference.soteacher(*of, 2.0) for of in zip(Z, LABELS, remembered)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_is_remembered_is_the_mean_of_all_that_was_said():
    """Of (1, 0) once and (0, 1) twice it is (1/3, 2/3), at which nothing is left to agree with."""
    sure = 60.0 * np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    recipe, seen = teaching.soteacher(), with_memory(context([sure[0]], [[sure[0]]]), np.zeros((1, 2)), [0])
    for said in sure:
        student = dataclasses.replace(seen.student, logits=jnp.asarray(said[None], jnp.float32))
        seen = dataclasses.replace(seen, student=student)
        seen = dataclasses.replace(seen, state=recipe.after(seen.state, seen))
    np.testing.assert_allclose(seen.state.mem["rows"], [[1 / 3, 2 / 3]], atol=1e-6)
    assert float(seen.state.mem["num_seen"][0]) == 3
    again = context([np.log([1 / 3, 2 / 3])], [Z[:1, :2]], [1])
    again = with_memory(dataclasses.replace(again, teacher=None), seen.state.mem["rows"], [3])
    np.testing.assert_allclose(loss(recipe, again), [-np.log(2 / 3)], rtol=1e-5)


def test_of_an_image_that_a_batch_holds_twice_the_mean_of_both_is_remembered_once():
    """In whatever order the two stand."""
    first, second, other = (reference.softmax(z) for z in Z[:3])
    for said in ((first, other, second), (second, other, first)):
        seen = with_memory(context(np.log(said), [np.log(said)]), np.zeros((2, 3)), [0, 0])
        seen = dataclasses.replace(seen, batch=dataclasses.replace(seen.batch, index=jnp.array([1, 0, 1])))
        mem = teaching.soteacher().after(seen.state, seen).mem
        np.testing.assert_allclose(mem["rows"], [other, (first + second) / 2], rtol=1e-5)
        np.testing.assert_array_equal(mem["num_seen"], [1.0, 1.0])


def test_the_bound_by_hand():
    kernel = jnp.array([[1.0, 3.0], [-2.0, 0.5]])  # from inputs to outputs: 4 and 2.5
    bound = teaching.lipschitz_bound
    assert float(bound({"dense": {"kernel": kernel, "bias": 9 * jnp.ones(2)}}, {})) == 4.0
    assert float(bound({"conv": {"kernel": kernel[None, None]}}, {})) == 6.5
    assert float(bound({"conv": {"kernel": kernel[None]}}, {})) == 6.5  # of a series
    assert float(bound({"heads": {"kernel": jnp.stack([kernel, 2 * kernel])}}, {})) == 12.0
    norm = {"norm": {"scale": jnp.array([2.0, -1.0]), "bias": jnp.ones(2)}}
    stats = {"norm": {"mean": jnp.ones(2), "var": jnp.array([4.0, 4.0])}}
    np.testing.assert_allclose(bound(norm, stats), 1.0, rtol=1e-5)
    assert float(bound(norm, {})) == 0.0  # of no BatchNorm


def test_a_teacher_is_followed_by_its_branches_and_turns_to_them():
    """The loss by a reference, and its gradient by the teacher's logits by differences of the reference."""
    branches = np.random.default_rng(9).normal(size=(2, 4, 3))
    seen = context(Z, [Z], LABELS, hard_weight=0.5, soft_weight=3.0)

    def total(z):
        heads = jnp.concatenate([z[None], jnp.asarray(branches, jnp.float32)])
        student = dataclasses.replace(seen.student, logits=z, heads=heads)
        loss = teaching.FOLLOWED.term(dataclasses.replace(seen, student=student))
        return loss.sum(), loss

    (_, found), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(jnp.asarray(Z, jnp.float32))

    def expected(z, b):
        return reference.sftn(z, LABELS[b], branches[:, b], 0.5, 3.0)

    np.testing.assert_allclose(found, [expected(Z[b], b) for b in range(4)], rtol=1e-5)
    for b, c in np.ndindex(4, 3):
        step = 1e-5 * np.eye(3)[c]
        by_hand = (expected(Z[b] + step, b) - expected(Z[b] - step, b)) / 2e-5
        np.testing.assert_allclose(slope[b, c], by_hand, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def first_step():
    """Parameters before a step, and after it by two weights of the bound: the losses too."""

    def after(weight):
        few = {"train.optimizer": "sgd", "train.learning_rate": 0.1, "students.num_seeds": 1}
        job = small.students_job(f"teaching.soteacher(lipschitz={weight})", **few)
        begun = training.first_progress(job)
        before = jax.device_get(begun.train.params)
        step = training.compiled_part(job.program)
        taken = step(begun, job.hyper, job.order(0)[:1], np.int32(0), job.stage_data)
        return before, jax.device_get(taken.train.params), float(taken.loss[0])

    return after(0.0), after(0.5)


def test_the_penalty_has_its_gradient_and_its_value(first_step):
    (before, plain, loss_of_plain), (_, bound, loss_of_bound) = first_step
    of_one = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), before)
    value, slope = jax.value_and_grad(lambda params: 0.5 * teaching.lipschitz_bound(params, {}))(of_one)
    np.testing.assert_allclose(loss_of_bound - loss_of_plain, value, rtol=1e-4)
    moved = jax.tree.map(lambda a, b: a[0] - b[0], bound, plain)
    nesterov = 0.1 * (1 + 0.9)  # the first step of momentum 0.9
    jax.tree.map(lambda m, s: np.testing.assert_allclose(m, -nesterov * s, atol=1e-5), moved, slope)
    assert float(jnp.abs(slope["dense1"]["kernel"]).max()) == 0.5


def test_teachers_are_trained_by_it():
    config = small.config(**{"teachers.method": "teaching.soteacher(consistency=2.0)"})
    split = experiment.load_split(config)
    job = teachers.job(config, split, config.model.name)
    assert job.program.recipes[0].name == "teaching.soteacher(consistency=2.0)"
    np.testing.assert_array_equal(job.hyper["consistency"], 3 * [2.0])
    plan.trace(job)
    assert plan.notes(config) == ("The teachers were trained by teaching.soteacher(consistency=2.0).",)
    plain = teachers.job(small.config(), split, config.model.name)
    assert plain.program.recipes[0].penalty is None and "alpha" not in plain.hyper


@pytest.mark.parametrize(
    "method, expected",
    [
        ("online.pcl", "online.pcl does not train one network by itself"),
        ("output_avg", "output_avg does not train one network by itself"),
        ("teaching.soteachr", "did you mean 'teaching.soteacher'?"),
        ("teaching.soteacher(lipschitz=-1.0)", "soteacher(lipschitz=-1.0): it must be at least 0"),
    ],
)
def test_what_cannot_train_teachers_is_one_line(method, expected):
    with pytest.raises(UserError) as error:
        small.config(**{"teachers.method": method})
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_teachers_that_are_no_networks_of_their_own_have_no_method():
    config = small.config(plan="specialists", **{"teachers.method": "teaching.soteacher"})
    with pytest.raises(UserError, match="config.teachers.method: .* does not go with plan specialists"):
        plan.build(config, experiment.load_split(config))
