"""The example of control: its pendulum, its weights by hand, and two learners at smoke size."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

FILE = Path(__file__).parent.parent / "examples" / "control" / "dual_policy.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("dual_policy", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pendulum_by_hand(example):
    state, reward = example.swing(jnp.array([jnp.pi / 2, 0.0]), jnp.float32(0.0))
    np.testing.assert_allclose(state, [np.pi / 2 + 0.05 * 0.75, 0.75], rtol=1e-5)
    np.testing.assert_allclose(reward, -((np.pi / 2) ** 2), rtol=1e-5)
    standing, reward = example.swing(jnp.zeros(2), jnp.float32(0.0))
    np.testing.assert_array_equal(standing, [0.0, 0.0])
    assert float(reward) == 0.0
    _, turned = example.swing(jnp.array([2 * jnp.pi, 0.0]), jnp.float32(0.0))
    assert abs(float(turned)) < 1e-9  # a whole turn is none


def test_weights_by_hand(example):
    found = example.weights(jnp.log(jnp.array([2.0, 1.0, 0.5])), alpha=1.0)
    np.testing.assert_allclose(found, np.array([4, 2, 1]) / 7, rtol=1e-5)
    np.testing.assert_allclose(example.weights(jnp.full(5, 3.0)), np.full(5, 0.2), rtol=1e-6)
    np.testing.assert_allclose(example.weights(jnp.array([50.0, -50.0])), np.array([100, 0.01]) / 100.01)


def test_a_peer_is_followed_and_without_a_share_it_is_not(example):
    with jax.numpy_dtype_promotion("standard"):
        own, peer = (example.new_learner(jax.random.key(k), 4) for k in range(2))
        states = example.seen(jax.random.uniform(jax.random.key(2), (6, 2)))
        distil = jax.jit(example.distil)
        apart, closer = (distil(own, peer.actor, peer.critic, states, jnp.float32(s)) for s in (0.0, 1.0))
    jax.tree.map(np.testing.assert_array_equal, apart.actor, own.actor)
    before, after = (
        float(jnp.mean((example.act(one.actor, states) - example.act(peer.actor, states)) ** 2))
        for one in (own, closer)
    )
    assert after < before


def test_a_comparison_at_smoke_size(example):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = example.compare(num_seeds=2, num_steps=20)
    assert found["dual"].shape == found["apart"].shape == (2,) and found["n"] == 2
    assert np.isfinite(found["dual"]).all() and (found["dual"] < 0).all()
    assert (found["dual"] != found["apart"]).all()
