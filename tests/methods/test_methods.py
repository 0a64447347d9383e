"""Every mode's loss against float64 NumPy, hand-made oracles, and the papers' identities."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import addresses
from mtkd_jax.methods import seams
from mtkd_jax.types import Batch, Context, Outputs, TeacherOutputs, UserError
from tests.references import losses

MODES = (
    *(mode for mode in addresses.catalogue("mode") if "." not in mode),
    *("fused:median_probs", "fused:evolved_mean"),
)
FITTED = ("logits", "embedding", "evolved_mean")
K, B, C = 3, 5, 3


def first_column_network(teacher):
    """A stand-in for a fitted fused network: any function of the teachers' outputs will do."""
    return 2.0 * teacher.logits[0] - teacher.logits[1]


def context(heads, teachers, labels, alpha=0.0, temperature=1.0, smoothing=0.0, labelled=None):
    """What the step would hand to the seams; heads [H,B,C], teachers [K,B,C]."""
    heads, teachers = jnp.asarray(heads, jnp.float32), jnp.asarray(teachers, jnp.float32)
    mean = jax.nn.logsumexp(jax.nn.log_softmax(heads), axis=0) - np.log(len(heads))
    logits = heads[0] if len(heads) == 1 else mean
    num = logits.shape[0]
    return Context(
        batch=Batch(
            image=jnp.zeros((num, 1, 1, 1)),
            label=jnp.asarray(labels, jnp.int32),
            index=jnp.arange(num),
            labelled=jnp.ones(num, bool) if labelled is None else jnp.asarray(labelled),
        ),
        teacher=TeacherOutputs(teachers, (), ()),
        prepared={name: jax.tree_util.Partial(first_column_network) for name in FITTED},
        hyper={
            "alpha": jnp.float32(alpha),
            "temperature": jnp.float32(temperature),
            "label_smoothing": jnp.float32(smoothing),
        },
        key=jax.random.key(0),
        step=jnp.int32(0),
        progress=jnp.float32(0.0),
        student=Outputs(logits=logits, heads=heads, embedding=jnp.zeros((num, 1)), features={}),
    )


def aimed(recipe, ctx):
    return dataclasses.replace(ctx, targets=recipe.aim(ctx, recipe.weigh(ctx)))


def loss_of(mode, heads, teachers, labels, **hyper):
    recipe = addresses.build_recipe(mode)
    return recipe.term(aimed(recipe, context(heads, teachers, labels, **hyper)))


def num_heads(mode):
    return addresses.build_recipe(mode).num_heads(K)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("alpha, temperature, smoothing", [(0.0, 1.0, 0.0), (0.3, 4.0, 0.1), (1.0, 2.0, 0.2)])
def test_loss_is_the_reference(mode, alpha, temperature, smoothing):
    rng = np.random.default_rng(1)
    heads = rng.normal(size=(num_heads(mode), B, C)) * 2
    teachers = rng.normal(size=(K, B, C)) * 2
    labels = rng.integers(0, C, B)
    found = loss_of(mode, heads, teachers, labels, alpha=alpha, temperature=temperature, smoothing=smoothing)
    for b in range(B):
        fused = 2.0 * teachers[0, b] - teachers[1, b]
        expected = losses.loss(
            mode, heads[:, b], teachers[:, b], labels[b], alpha, temperature, smoothing, fused
        )
        np.testing.assert_allclose(found[b], expected, rtol=2e-5, atol=2e-6)


# Hand-made: p1 = (1/2, 1/4, 1/4), p2 = (1/4, 1/4, 1/2), student (1/4, 1/2, 1/4), label 0.
P1, P2, STUDENT = np.log([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5], [0.25, 0.5, 0.25]])


@pytest.mark.parametrize(
    "mode, teachers, hyper, expected",
    [
        ("output_avg", [P1, P2], {"alpha": 1.0}, np.log(4)),
        ("output_avg", [P1], {}, np.log(2) / 4),
        ("loss_avg", [P1, P2], {}, np.log(2) / 4),
        ("output_avg", [P1, P2], {}, 0.130812),
        ("logit_avg", [P1, P2], {}, 0.118835),
        ("output_avg", [P1], {"temperature": 2.0}, 0.168186),
        ("output_avg", [P1], {"temperature": 4.0}, 0.164490),
        ("output_avg", [P1], {"alpha": 0.1, "temperature": 4.0}, 0.286671),
        ("output_avg", [P1], {"alpha": 1.0, "smoothing": 0.1}, 1.363189),
    ],
)
def test_loss_by_hand(mode, teachers, hyper, expected):
    found = loss_of(mode, STUDENT[None, None], np.asarray(teachers)[:, None], [0], **hyper)
    np.testing.assert_allclose(found, [expected], atol=2e-6)


def student_gradient(mode, heads, teachers, labels, **hyper):
    return jax.grad(lambda h: loss_of(mode, h, teachers, labels, **hyper).sum())(jnp.asarray(heads))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_output_avg_and_loss_avg_differ_only_by_the_jensen_gap(temperature):
    rng = np.random.default_rng(2)
    heads, teachers = rng.normal(size=(1, B, C)).astype(np.float32), rng.normal(size=(K, B, C))
    both = [
        student_gradient(mode, heads, teachers, np.zeros(B), temperature=temperature)
        for mode in ("output_avg", "loss_avg")
    ]
    np.testing.assert_allclose(*both, atol=1e-6)
    gap = loss_of("loss_avg", heads, teachers, np.zeros(B), temperature=temperature) - loss_of(
        "output_avg", heads, teachers, np.zeros(B), temperature=temperature
    )
    probs = np.array([[losses.softmax(z, temperature) for z in of_teacher] for of_teacher in teachers])
    entropy = lambda p: -(p * np.log(p)).sum(-1)  # noqa: E731
    expected = temperature**2 * (entropy(probs.mean(0)) - entropy(probs).mean(0))
    np.testing.assert_allclose(gap, expected, atol=1e-5)
    assert (expected > 1e-3).all()


def test_modes_of_one_teacher_coincide():
    rng = np.random.default_rng(3)
    heads, teachers = rng.normal(size=(1, B, C)), rng.normal(size=(1, B, C))
    same = [loss_of(mode, heads, teachers, np.zeros(B), alpha=0.2) for mode in ("output_avg", "loss_avg")]
    same += [loss_of(mode, heads, teachers, np.zeros(B), alpha=0.2) for mode in ("logit_avg", "mimic_all")]
    for other in same[1:]:
        np.testing.assert_allclose(other, same[0], rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_hidden_labels_do_not_reach_the_loss(mode):
    rng = np.random.default_rng(4)
    heads, teachers = rng.normal(size=(num_heads(mode), B, C)), rng.normal(size=(K, B, C))
    labelled = np.array([True, False, True, False, False])
    with_these = loss_of(mode, heads, teachers, [0, 0, 1, 0, 0], alpha=1.0, labelled=labelled)
    with_others = loss_of(mode, heads, teachers, [0, 2, 1, 1, 2], alpha=1.0, labelled=labelled)
    np.testing.assert_array_equal(with_these, with_others)
    assert (np.asarray(with_these)[~labelled] == 0).all()
    alone = loss_of(mode, heads[:, labelled], teachers[:, labelled], [0, 1], alpha=1.0)
    np.testing.assert_allclose(np.mean(with_these), np.mean(alone), rtol=1e-6)


@pytest.mark.parametrize("divergence", ["reverse_kl", "jsd", "mse"])
@pytest.mark.parametrize("mode", ["output_avg", "loss_avg", "mimic_all", "logit_avg"])
def test_other_divergences_are_their_references(mode, divergence):
    rng = np.random.default_rng(3)
    heads, teachers = rng.normal(size=(num_heads(mode), B, C)), rng.normal(size=(K, B, C))
    for temperature in (1.0, 4.0):
        found = loss_of(
            f"{mode}:{divergence}", heads, teachers, np.zeros(B), alpha=0.25, temperature=temperature
        )
        expected = [
            losses.loss(
                mode,
                heads[:, b],
                teachers[:, b],
                0,
                0.25,
                temperature,
                divergence=getattr(losses, divergence),
            )
            for b in range(B)
        ]
        np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_mse_of_one_teacher_is_that_of_the_centred_logits_at_any_temperature():
    rng = np.random.default_rng(4)
    student, teacher = rng.normal(size=(2, B, C))
    centred = student - teacher - (student - teacher).mean(axis=-1, keepdims=True)
    for temperature in (1.0, 7.0):
        found = loss_of("logit_avg:mse", student[None], teacher[None], np.zeros(B), temperature=temperature)
        np.testing.assert_allclose(found, 0.5 * (centred**2).mean(axis=-1), rtol=1e-4)


@pytest.mark.parametrize("divergence", ["reverse_kl", "jsd", "mse"])
@pytest.mark.parametrize("mode", ["output_avg", "loss_avg", "mimic_all"])
def test_divergences_are_finite_where_probabilities_underflow(mode, divergence):
    """Logits 400 apart, teachers and student sure of different classes."""
    heads = 400.0 * np.ones((num_heads(mode), B, C), np.float32) * np.array([1, -1, 0], np.float32)
    teachers = -400.0 * np.ones((K, B, C), np.float32) * np.array([1, -1, 0], np.float32)
    address = f"{mode}:{divergence}"
    assert np.isfinite(loss_of(address, heads, teachers, np.zeros(B))).all()
    gradient = np.asarray(student_gradient(address, heads, teachers, np.zeros(B)))
    assert np.isfinite(gradient).all()
    agreed = loss_of(f"output_avg:{divergence}", teachers[:1], teachers, np.zeros(B))
    np.testing.assert_allclose(agreed, 0.0, atol=1e-5)


def test_an_unknown_divergence_is_refused():
    with pytest.raises(UserError, match="students.modes: divergence='kld': there is no such divergence"):
        addresses.build_recipe("vote:kld")
    with pytest.raises(UserError, match="ballots hold zeros, must be forward_kl or jsd"):
        addresses.build_recipe("vote:mse")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", [0.0, 50.0])
def test_extreme_logits_keep_value_and_gradient_finite(mode, scale):
    heads = scale * np.ones((num_heads(mode), B, C), np.float32) * np.array([1, -1, 0], np.float32)
    teachers = -scale * np.ones((K, B, C), np.float32) * np.array([1, -1, 0], np.float32)
    assert np.isfinite(loss_of(mode, heads, teachers, np.zeros(B), alpha=0.5)).all()
    assert np.isfinite(student_gradient(mode, heads, teachers, np.zeros(B), alpha=0.5)).all()


@pytest.mark.parametrize("mode", MODES)
def test_targets_are_distributions_with_the_teachers_mass(mode):
    rng = np.random.default_rng(5)
    recipe = addresses.build_recipe(mode)
    ctx = context(rng.normal(size=(num_heads(mode), B, C)), rng.normal(size=(K, B, C)), np.zeros(B))
    targets = recipe.aim(ctx, recipe.weigh(ctx))
    np.testing.assert_allclose(targets.probs.sum(axis=-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(targets.mass.sum(axis=0), 1.0, rtol=1e-6)
    assert (targets.probs >= 0).all()


def test_defaults_are_the_hinton_recipe():
    assert seams.PLAIN.num_heads(7) == 1
    assert addresses.build_recipe("output_avg") == seams.PLAIN._replace(name="output_avg")
