"""Methods of methods/peers.py: the loss of a cohort by hand, one step of it against explicit gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import experiment, mesh
from mtkd_jax.engine import population, step
from mtkd_jax.mesh import Layout
from mtkd_jax.methods import modes, peers, seams
from mtkd_jax.plans import students, teachers
from mtkd_jax.types import Peers, Population, UserError
from tests import small
from tests.contexts import P1, P2, P3, Q, loss
from tests.contexts import context as context_of
from tests.references import methods as reference


def context(logits, place=0, finite=None, teachers=((P1,),), **hyper):
    """What peer `place` of a cohort with these logits [P,B,C] sees."""
    logits = jnp.asarray(logits, jnp.float32)
    finite = jnp.ones(len(logits), bool) if finite is None else jnp.asarray(finite)
    own = {"teacher_weight": 1.0, "peer_weight": 1.0, **hyper}
    seen = context_of(logits[place], np.asarray(teachers), **own)
    logits = jnp.where(finite[:, None, None], logits, 0.0)
    return dataclasses.replace(seen, peers=Peers(logits, jnp.int32(place), finite))


def taught(recipe, seen):
    """`seen` with the teachers of the recipe; of frozen ones, those that are in it already."""
    if "teach" not in recipe.reads_student:
        return seen
    return dataclasses.replace(seen, teacher=recipe.teach(seen, None))


def loss_of(recipe, seen):
    return loss(recipe, taught(recipe, seen))


# --- the loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1])
def test_two_peers_by_hand(place):
    found = loss_of(peers.dml(), context([[P1], [Q]], place))
    np.testing.assert_allclose(found, [np.log(2) / 4], atol=1e-6)


def test_the_mean_is_over_the_others_alone():
    """Not over all peers, and not a sum (official code): the paper divides by P - 1."""
    cohort, temperature = [P1, P2, P3, Q], 2.0
    for place, own in enumerate(cohort):
        found = loss_of(
            peers.dml(num_peers=4), context([[z] for z in cohort], place, temperature=temperature)
        )
        p = reference.softmax(own, temperature)
        others = [z for j, z in enumerate(cohort) if j != place]
        expected = sum(reference.kl(reference.softmax(z, temperature), p) for z in others) / 3
        np.testing.assert_allclose(found, [temperature**2 * expected], rtol=1e-5)


def test_peers_at_other_places_are_the_same_peers():
    here = loss_of(peers.dml(num_peers=3), context([[P1], [Q], [P2]], place=1))
    there = loss_of(peers.dml(num_peers=3), context([[P2], [P1], [Q]], place=2))
    np.testing.assert_allclose(here, there, rtol=1e-6)


def test_a_peer_that_broke_down_is_left_out():
    broken = [[P1], [Q], [np.full(3, np.nan)]]
    found = loss_of(peers.dml(num_peers=3), context(broken, finite=[True, True, False]))
    np.testing.assert_allclose(found, loss_of(peers.dml(), context(broken[:2])), rtol=1e-6)


@pytest.mark.parametrize("recipe", [peers.dml(), peers.kd_ml(teacher_weight=0.0)])
def test_who_is_left_alone_has_no_soft_loss_and_no_nan(recipe):
    seen = context([[P1], [np.full(3, np.nan)]], finite=[True, False], alpha=0.25, teacher_weight=0.0)

    def of(logits):
        student = dataclasses.replace(seen.student, logits=logits, heads=logits[None])
        return loss_of(recipe, dataclasses.replace(seen, student=student)).sum()

    value, gradient = jax.value_and_grad(of)(seen.student.logits)
    np.testing.assert_allclose(value, 0.25 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0.25 * (0.5 - 1), 0.25 * 0.25, 0.25 * 0.25]], atol=1e-6)


def test_kd_ml_is_teachers_and_peers_added():
    cohort, both = [[Q], [P1], [P3]], np.array([[P1], [P2]])
    recipe, hyper = peers.kd_ml(num_peers=3), {"teachers": both, "temperature": 3.0, "alpha": 0.5}
    hard = loss_of(recipe, context(cohort, **hyper, teacher_weight=0.0, peer_weight=0.0))
    of_peers = loss_of(recipe, context(cohort, **hyper, teacher_weight=0.0, peer_weight=1.0))
    of_teachers = loss_of(recipe, context(cohort, **hyper, teacher_weight=1.0, peer_weight=0.0))
    weighed = loss_of(recipe, context(cohort, **hyper, teacher_weight=0.25, peer_weight=2.0))
    np.testing.assert_allclose(of_peers, loss_of(peers.dml(num_peers=3), context(cohort, **hyper)), rtol=1e-6)
    np.testing.assert_allclose(of_teachers, loss_of(modes.loss_avg(), context(cohort, **hyper)), rtol=1e-6)
    expected = hard + 0.25 * (of_teachers - hard) + 2.0 * (of_peers - hard)
    np.testing.assert_allclose(weighed, expected, rtol=1e-5)


@pytest.mark.parametrize("place", [0, 2])
def test_kd_ml_is_the_reference(place):
    rng = np.random.default_rng(1)
    cohort, both = 2 * rng.normal(size=(3, 4, 5)), 2 * rng.normal(size=(2, 4, 5))
    numbers = {"alpha": 0.3, "temperature": 3.0, "teacher_weight": 0.5, "peer_weight": 2.0}
    recipe = peers.kd_ml(num_peers=3, teacher_weight=0.5, peer_weight=2.0)
    found = loss_of(recipe, context(cohort, place, teachers=both, **numbers))
    expected = [reference.kd_ml(place, cohort[:, b], both[:, b], 0, *numbers.values()) for b in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_trained_teachers_are_asked_once_a_batch_not_once_a_peer():
    recipe = peers.kd_ml()
    assert recipe.teach is seams.frozen_teachers and "teach" not in recipe.reads_student


@pytest.mark.parametrize("method", [peers.dml, peers.kd_ml])
def test_nobody_is_a_cohort_alone(method):
    with pytest.raises(UserError, match=f"{method.__name__}.num_peers=1.: a cohort has at least 2"):
        method(num_peers=1)


# --- the step -----------------------------------------------------------------------------------------

ALPHA, TEMPERATURE, RATE = 0.25, 2.0, 0.1
DML, KD_ML = "peers.dml(num_peers=3)", "peers.kd_ml(num_peers=3, teacher_weight=0.5, peer_weight=2.0)"


def job_of(mode, how="vmap", num_seeds=1):
    """One step of cohorts of three with BatchNorm, and the opinions of two untrained teachers."""
    config = small.config(
        **{
            "data.num_train": 16,
            "model.name": "mlp(hidden=(8,), batch_norm=True)",
            "train.epochs": 1,
            "train.optimizer": "sgd",
            "train.learning_rate": RATE,
            "students.modes": (mode,),
            "students.alphas": (ALPHA,),
            "students.temperatures": (TEMPERATURE,),
            "students.num_seeds": num_seeds,
            "runtime.how": how,
        }
    )
    split = experiment.load_split(config)
    model = teachers.network(split, "mlp(hidden=(8,))")
    variables = population.init(model, jax.random.split(jax.random.key(5), 2), (4, 4, 1))
    variables = jax.tree.map(lambda leaf: 3 * leaf, variables)  # opinionated
    family = next(f for f in students.families(config) if f[0].mode == mode)
    return students.job(
        config, split, "labelled", family, (Population(model, variables, {}, ("a", "b")),), {}
    )


def first_states(job):
    variables = population.init(job.program.model, job.init_keys, (4, 4, 1))
    return step.init_state(job.program, variables, job.init_keys, job.stage_data)


def one_step(job, states):
    take_step = mesh.spread(step.make_step(job.program), job.program.layout, (0, 0, None, None, None), (0, 0))
    hyper = {name: jnp.asarray(values) for name, values in job.hyper.items()}
    return jax.jit(take_step)(states, hyper, jnp.asarray(job.order(0)[0]), jnp.int32(0), job.stage_data)


def explicit_step(job, states, rows, teacher_weight=0.0, peer_weight=1.0):
    """Parameters, batch statistics and losses of the cohort `rows` after a step, from the joint loss."""
    model, examples = job.program.model, job.stage_data.examples
    indices = job.order(0)[0]
    image = examples.image[indices].astype(jnp.float32) / 255
    labels = jax.nn.one_hot(examples.label[indices], model.module.task.num_classes)
    (cache_index,), (teacher_model,) = job.stage_data.teachers, job.program.teachers
    of_teachers = [teacher_model.apply(population.take(cache_index, k), image)[0].logits for k in range(2)]
    params = [population.take(states.params, row) for row in rows]
    stats = [population.take(states.model_state, row) for row in rows]

    def kl(logits, own):
        p = jax.lax.stop_gradient(jax.nn.softmax(logits / TEMPERATURE))
        return (p * (jnp.log(p) - jax.nn.log_softmax(own / TEMPERATURE))).sum(axis=-1).mean()

    def joint(params):
        said = [model.apply({"params": p, **s}, image, train=True) for p, s in zip(params, stats)]
        logits = [outputs.logits for outputs, _ in said]
        losses = []
        for i, own in enumerate(logits):
            hard = -(labels * jax.nn.log_softmax(own)).sum(axis=-1).mean()
            soft = teacher_weight * sum(kl(z, own) for z in of_teachers) / 2
            others = [z for j, z in enumerate(logits) if j != i]
            soft += peer_weight * sum(kl(z, own) for z in others) / len(others)
            losses.append(ALPHA * hard + (1 - ALPHA) * TEMPERATURE**2 * soft)
        return sum(losses), (losses, [state for _, state in said])

    gradients, (losses, stats) = jax.grad(joint, has_aux=True)(params)
    nesterov = RATE * (1 + 0.9)  # the first step of momentum 0.9
    params = [jax.tree.map(lambda p, g: p - nesterov * g, p, g) for p, g in zip(params, gradients)]
    return population.stack(params), population.stack(stats), jnp.stack(losses)


def after_step(states, losses, rows):
    return *population.take((states.params, states.model_state), rows), losses[np.asarray(rows)]


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6, rtol=0), a, b)


@pytest.mark.parametrize(
    "mode, how, num_seeds, weights",
    [
        (DML, "vmap", 1, {}),
        (DML, "map", 1, {}),
        (DML, "shard_map", 2, {}),
        (KD_ML, "vmap", 1, {"teacher_weight": 0.5, "peer_weight": 2.0}),
    ],
)
def test_one_step_is_that_of_three_networks_written_out(mode, how, num_seeds, weights):
    job = job_of(mode, how, num_seeds)
    if how == "shard_map":  # two cohorts of three on four devices, none of which holds a whole one
        assert job.program.layout == Layout("vmap", member=4, data=1)
    states = first_states(job)
    found, losses = one_step(job, states)
    for first in range(0, 3 * num_seeds, 3):
        rows = range(first, first + 3)
        close(after_step(found, losses, rows), explicit_step(job, states, rows, **weights))


def test_peers_start_apart():
    kernels = first_states(job_of(DML)).params["dense1"]["kernel"]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert float(jnp.abs(kernels[i] - kernels[j]).max()) > 0.1


def test_a_broken_peer_leaves_the_others_a_cohort_of_two():
    job = job_of(DML)
    states = first_states(job)
    poisoned = jax.tree.map(lambda leaf: leaf.at[2].set(jnp.nan), states.params)
    found, losses = one_step(job, dataclasses.replace(states, params=poisoned))
    close(after_step(found, losses, range(2)), explicit_step(job, states, range(2)))
    assert not np.isfinite(losses[2])


@pytest.mark.parametrize("mode", [DML, KD_ML])
def test_a_cohort_learns(mode, tmp_path):
    changes = {"students.modes": (mode,), "students.alphas": (0.5,), "students.epochs": 8}
    config = small.config(**changes, **{"runtime.how": "vmap"})
    done = small.train(config, tmp_path)
    (fitted,) = (f for stage, f in done.items() if "peers" in stage)
    assert len(fitted.population.names) == 2 * 3 and not fitted.diverged
    assert (fitted.val_nll < 0.9 * np.log(4)).all(), fitted.val_nll


# --- diversity ----------------------------------------------------------------------------------------


def test_correlated_peers_by_hand():
    """z1 = (ln 2, 0, 0), z2 = (0, ln 2, 0), label 0: CE are ln 2 and ln 4; the mean (ln 2, ln 2, 0) / 2."""
    cohort = [[[np.log(2), 0.0, 0.0]], [[0.0, np.log(2), 0.0]]]
    of_mean = np.log(2 * np.sqrt(2) + 1) - np.log(2) / 2
    for place, own in enumerate((np.log(2), np.log(4))):
        found = peers.Correlated(0.25)(context(cohort, place))
        np.testing.assert_allclose(found, [0.75 * own + 0.25 * of_mean], rtol=1e-6)


def test_networks_that_are_heads_of_one_are_trained_as_if_each_were_alone():
    """By hand (ln 2 and ln 4), and at random in float64; not the loss of their mean prediction."""
    seen = context_of([P1], [[P1]])
    heads = dataclasses.replace(seen.student, heads=jnp.asarray([[P1], [Q]], jnp.float32))
    found = loss(peers.EACH_HEAD, dataclasses.replace(seen, student=heads))
    np.testing.assert_allclose(found, [1.5 * np.log(2)], rtol=1e-6)
    each, labels = np.random.default_rng(5).normal(size=(3, 4, 5)), np.array([0, 4, 2, 1])
    seen = context_of(each[0], each[:1], labels)
    heads = dataclasses.replace(seen.student, heads=jnp.asarray(each, jnp.float32))
    found = loss(peers.EACH_HEAD, dataclasses.replace(seen, student=heads))
    np.testing.assert_allclose(found.sum(), reference.correlated(each, labels, 0.0), rtol=1e-6)


def test_a_correlated_peer_has_its_part_of_the_gradient_of_all():
    """Of P times the loss in float64, by differences."""
    cohort = np.random.default_rng(3).normal(size=(3, 4, 5))
    for strength in (0.0, 0.5, 1.0):
        seen = context(cohort, place=1)
        labels = np.asarray(seen.batch.label)

        def of_own(z, seen=seen, strength=strength):
            student = dataclasses.replace(seen.student, logits=z)
            return peers.Correlated(strength)(dataclasses.replace(seen, student=student)).sum()

        def joint(z, strength=strength, labels=labels):
            all_of_them = cohort.copy()
            all_of_them[1] = z
            return 3 * reference.correlated(all_of_them, labels, strength)

        found, place = jax.grad(of_own)(jnp.asarray(cohort[1], jnp.float32)), (2, 3)
        step_size = np.zeros((4, 5))
        step_size[place] = 1e-5
        expected = (joint(cohort[1] + step_size) - joint(cohort[1] - step_size)) / 2e-5
        np.testing.assert_allclose(found[place], expected, atol=1e-5)


def test_diversity_is_never_negative():
    """For any logits, +-80 and equal ones among them, more of it never makes the loss larger."""
    rng = np.random.default_rng(4)
    for cohort in (
        rng.normal(size=(3, 4, 5)),
        80.0 * np.sign(rng.normal(size=(3, 4, 5))),
        np.ones((3, 4, 5)),
    ):
        at = [sum(peers.Correlated(s)(context(cohort, p)) for p in range(3)) for s in (0.0, 1.0)]
        assert np.isfinite(at).all() and (at[1] <= at[0] + 1e-4).all()
