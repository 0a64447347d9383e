"""Spiking networks: their neurons by hand, what they tell, and that they learn under every loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.addresses import build_model
from mtkd_jax.engine import population
from mtkd_jax.models import spiking
from mtkd_jax.results import bodies
from mtkd_jax.types import Population, Task, UserError
from tests.references import spiking as reference

TASK = Task(num_classes=3, num_heads=1, mean=(0.5,), std=(0.2,))


def test_a_neuron_by_hand():
    """The card's fixture: half of the potential is kept; of a current of 0.4 the limit is 0.8."""
    current = jnp.tile(jnp.array([[0.75, 0.4, 1.0]]), (6, 1))
    found = spiking.integrate(current, 0.5)
    np.testing.assert_array_equal(found.T, [[0, 1, 0, 1, 0, 1], [0] * 6, [1] * 6])


def test_neurons_are_their_reference_in_float64():
    current = np.random.default_rng(0).normal(0.4, 0.5, size=(7, 5, 3))
    found = spiking.integrate(jnp.asarray(current, jnp.float32), 0.8)
    np.testing.assert_array_equal(found, reference.leaky(current, 0.8))


def test_the_gradient_is_a_triangle_and_passes_no_reset():
    gradient = jax.vmap(jax.grad(spiking.spike))(jnp.array([-80.0, 0.0, 0.5, 1.0, 1.75, 2.0, 80.0]))
    np.testing.assert_allclose(gradient, [0, 0, 0.5, 1, 0.25, 0, 0])
    # By hand: u1 = 0.75, s1 = 0; u2 = 1.125, s2 = 1. d(s1 + s2)/dI = tri(u1) + tri(u2) (decay + 1).
    found = jax.grad(lambda i: spiking.integrate(jnp.stack([i, i]), 0.5).sum())(jnp.float32(0.75))
    np.testing.assert_allclose(found, 0.75 + 0.875 * 1.5)


@pytest.mark.parametrize(
    "address, shapes",
    [
        ("spiking_mlp(hidden=(6, 5), time_steps=4)", [(2, 1, 1, 6), (2, 1, 1, 5)]),
        (
            "spiking_cnn(widths=(2, 3), hidden=(5,), batch_norm=True)",
            [(2, 8, 8, 2), (2, 4, 4, 3), (2, 1, 1, 5)],
        ),
    ],
)
def test_what_a_network_tells(address, shapes):
    model = build_model(address, TASK)
    image = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))
    variables = model.init(jax.random.key(1), image)
    outputs, state = model.apply(variables, image, train=True)
    assert [rate.shape for rate in outputs.features.values()] == shapes
    for rate in outputs.features.values():
        spikes = model.module.time_steps * np.asarray(rate)
        np.testing.assert_allclose(spikes, np.round(spikes), atol=1e-5)
        assert rate.min() >= 0 and rate.max() <= 1
    assert {model.stage_of(name) for of in variables.values() for name in of} == {*model.stages}
    assert jax.tree.structure(state) == jax.tree.structure(
        {k: v for k, v in variables.items() if k != "params"}
    )


def test_a_network_over_time_is_its_reference():
    """Weights as drawn, the image a current at every step, in float64 one step after the other."""
    model = build_model("spiking_mlp(hidden=(7, 6), time_steps=5)", TASK)
    image = jax.random.uniform(jax.random.key(2), (4, 3, 3, 1))
    variables = model.init(jax.random.key(3), image)
    found = model.apply(variables, image)[0]
    expected = reference.network(
        jax.tree.map(np.asarray, variables["params"]), np.asarray(image), TASK, 5, 0.5
    )
    np.testing.assert_allclose(found.logits, expected, atol=1e-5)
    assert found.features["stage2"].sum() > 0


def test_members_say_the_same_in_every_loop():
    model = build_model("spiking_mlp(hidden=(7,), time_steps=3)", TASK)
    image = jax.random.uniform(jax.random.key(2), (4, 3, 3, 1))
    variables = population.init(model, jax.random.split(jax.random.key(3), 2), image.shape[1:])

    def gradient(variables, image):
        return jax.grad(lambda v: (model.apply(v, image, train=True)[0].logits ** 2).sum())(variables)

    first, *others = (
        population.over_members(gradient, how)(variables, image) for how in ("vmap", "map", "loop")
    )
    for other in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), first, other)


def test_spikes_are_counted_for_the_report():
    model = build_model("spiking_mlp(hidden=(4,), time_steps=6)", TASK)
    image = np.zeros((3, 2, 2, 1), np.float32)
    variables = model.init(jax.random.key(0), image)
    # No image but currents of the biases: two neurons spike at every second step, one always, one never.
    variables["params"]["dense1"] = {
        "kernel": jnp.zeros((4, 4)),
        "bias": jnp.array([0.75, 0.75, 1.0, 0.4]),
    }
    own = Population(model, jax.tree.map(lambda leaf: leaf[None], variables), {}, ("a",))
    assert bodies.activity(own, image) == {"spikes": 12.0, "active": 0.75}
    real = Population(build_model("mlp", TASK), variables, {}, ("a",))
    assert bodies.activity(real, image) == {}


@pytest.mark.parametrize(
    "address, words",
    [
        ("spiking_mlp(hidden=())", "spiking_mlp.hidden = .*at least one width"),
        ("spiking_cnn(widths=())", "spiking_cnn.widths = .*at least one width"),
        ("spiking_mlp(decay=1.0)", r"spiking_mlp.decay = 1.0: expected a number in \[0, 1\)"),
        ("spiking_cnn(time_steps=0)", "spiking_cnn.time_steps = 0: expected a whole number >= 1"),
    ],
)
def test_what_cannot_be_is_refused(address, words):
    with pytest.raises(UserError, match=words):
        build_model(address, TASK)
