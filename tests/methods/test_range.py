"""Every method at the ends of its range: logits far apart, equal, certain; two classes; a batch of one."""

import jax
import numpy as np
import pytest

from mtkd_jax import addresses
from mtkd_jax.methods import features, logits, maps, weights
from mtkd_jax.methods.seams import frozen_teachers
from mtkd_jax.types import UserError
from tests.contexts import aimed, by_student, context, loss
from tests.references import methods as reference


def reads_logits_alone(recipe):
    return (
        recipe.teach is frozen_teachers
        and not recipe.needs
        and not recipe.prepare
        and recipe.num_heads(2) == 1
        and recipe.num_peers == 1
    )


CATALOGUE = addresses.catalogue("mode")
STANDARDISING = ("logits.lsk", "logits.spherical")  # refuse two classes
METHODS = [mode for mode in CATALOGUE if reads_logits_alone(addresses.build_recipe(mode))]
RNG = np.random.default_rng(0)
PLAIN = RNG.normal(size=(4, 5))
ONE_HOT = np.eye(5)[[0, 1, 2, 0]]
# student [B,C], teachers [K,B,C]
CASES = {
    "plain": (PLAIN, RNG.normal(size=(3, 4, 5))),
    "equal": (np.zeros((4, 5)), np.ones((3, 4, 5))),
    "constant": (np.full((4, 5), 3.0), np.full((3, 4, 5), -2.0)),
    **{
        f"{gap} apart": (gap * ONE_HOT[::-1], np.stack([gap * ONE_HOT, -gap * ONE_HOT, gap * ONE_HOT[::-1]]))
        for gap in (40, 80, 500)
    },
    "student far, teachers near": (500 * ONE_HOT, RNG.normal(size=(3, 4, 5))),
    "teachers far, student near": (PLAIN, 500 * np.stack([ONE_HOT] * 3)),
    "two classes": (PLAIN[:, :2], 80 * RNG.normal(size=(3, 4, 2))),
    "one example": (PLAIN[:1], 80 * RNG.normal(size=(3, 1, 5))),
}


def test_the_methods_are_found_by_themselves():
    assert {"output_avg", "logits.dkd", "weights.ebkd", "targets.cwtm"} <= set(METHODS)


@pytest.mark.parametrize("mode", METHODS)
def test_loss_and_gradient_are_finite_everywhere(mode):
    recipe = addresses.build_recipe(mode)
    for name, (student, teachers) in CASES.items():
        for labelled in (np.ones(len(student), bool), np.zeros(len(student), bool)):
            seen = context(student, teachers, labelled=labelled, alpha=0.25, temperature=1.0)
            if mode in STANDARDISING and student.shape[1] == 2:
                with pytest.raises(UserError, match="needs three classes"):
                    loss(recipe, seen)
                continue
            assert np.isfinite(loss(recipe, seen)).all(), name
            assert np.isfinite(by_student(recipe, seen)).all(), name


@pytest.mark.parametrize("mode", METHODS)
def test_the_weights_of_teachers_add_up_to_the_same_everywhere(mode):
    recipe = addresses.build_recipe(mode)
    if recipe.weigh(context(*CASES["plain"])) is None:
        pytest.skip("asks no teacher")
    totals = [
        np.asarray(aimed(recipe, context(*CASES[name])).targets.mass).sum(axis=0)[:1]
        for name in CASES
        if not (mode in STANDARDISING and name == "two classes")
    ]
    np.testing.assert_allclose(np.concatenate(totals), totals[0][0], rtol=1e-5)


@pytest.mark.parametrize("gap", [1.0, 40.0, 71.0, 80.0, 88.0, 120.0, 500.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_dkd_keeps_both_of_its_parts_at_any_gap(gap, temperature):
    student = np.array([[0.5, 0.0, -1.0], [0.0, 1.0, 2.0]])
    teachers = np.array([[[gap, 0.0, 1.0], [gap, 2.0, 0.0]], [[gap, 1.0, 0.0], [gap, 0.0, 0.0]]])
    for target, nontarget in ((1.0, 0.0), (0.0, 1.0), (1.0, 8.0)):
        recipe = logits.dkd(target_weight=target, nontarget_weight=nontarget, warmup=0.0)
        found = loss(recipe, context(student, teachers, temperature=temperature))
        expected = [
            reference.dkd(student[b], teachers[:, b], 0, temperature, target, nontarget) for b in range(2)
        ]
        np.testing.assert_allclose(found, expected, rtol=2e-4)  # logits of 500 end at 3e-5


@pytest.mark.parametrize("gap", [1.0, 40.0, 80.0, 100.0, 500.0])
def test_ebkd_weighs_as_in_float64_as_long_as_float32_can_tell(gap):
    teachers = np.array([[[gap, 0.0, 0.0]], [[gap, 0.0, -1.0]], [[0.9 * gap, 0.0, 0.0]]])
    found = weights.ebkd().weigh(context(np.zeros((1, 3)), teachers))
    np.testing.assert_allclose(np.sum(found, axis=0), 1.0, rtol=1e-6)
    if gap <= 40:
        expected = reference.ebkd(teachers[:, 0], normalise=True)
        np.testing.assert_allclose(
            np.asarray(found)[:, 0], expected, rtol=0.05
        )  # ln of a probability near 1 is rounded


@pytest.mark.parametrize("size", [0.0, 1e-18, 1.0, 1e9, 1e15, 1e18, 1e25])
def test_feature_losses_are_finite_at_any_size(size):
    x = size * RNG.normal(size=(4, 6)).astype(np.float32)

    def finite(function):
        value, gradient = jax.value_and_grad(lambda x: function(x).sum())(x)
        return np.isfinite(value) and np.isfinite(gradient).all()

    features_of_4 = RNG.normal(size=(4, 3, 3, 6)).astype(np.float32)
    assert finite(lambda x: maps.square(x - 1.0))
    assert finite(maps.unit)
    assert finite(features._log_neighbours)
    assert finite(lambda x: features._apart(features_of_4 * x[:, None, None, :], features_of_4))


def test_a_square_is_a_square_up_to_what_float32_holds():
    x = np.array([0.0, -3.0, 2.0, 1e9, -1e9], np.float32)
    np.testing.assert_allclose(maps.square(x), x**2)
    np.testing.assert_allclose(jax.vmap(jax.grad(maps.square))(x), 2 * x)
    np.testing.assert_allclose(maps.square(np.float32(1e18)), 2e27, rtol=1e-5)  # the tangent at 1e9


def test_a_unit_vector_is_that_of_any_multiple():
    x = RNG.normal(size=(3, 5)).astype(np.float32)
    expected = x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    for size in (1e-9, 1.0, 1e30):
        np.testing.assert_allclose(maps.unit(np.float32(size) * x), expected, rtol=1e-5)
    gradient = jax.grad(lambda x: maps.unit(x)[:, 0].sum())(x)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    by_hand = (np.eye(5)[0] - expected * expected[:, :1]) / norm
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-4, atol=1e-6)
