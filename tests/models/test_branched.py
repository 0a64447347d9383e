"""Networks on one stem: a branch with the stem is the whole network, of every family, wherever it is cut."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.addresses import build_model
from mtkd_jax.models import resnet, vgg, wide_resnet
from mtkd_jax.models.branched import branched
from mtkd_jax.models.layers import ENTERING
from mtkd_jax.types import Task

P, B, SHAPE = 2, 3, (8, 8, 1)
TASK = Task(num_classes=4, num_heads=1, mean=(0.4,), std=(0.3,))
# What runs once: compiled without optimising, which takes a fraction of the time.
jit_once = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
NETWORKS = {  # address: the last stage that "most" shares
    "resnet(depth=8)": "stage2",
    "resnet(depth=11, bottleneck=True)": "stage2",
    "wide_resnet(depth=10, width=1)": "stage2",
    "vgg": "stage4",
    "vgg(dense=6)": "stage4",
    "densenet(blocks=(1, 2), growth=4, stem='plain')": "stage1",
}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """A quarter of the channels or less, which are no argument of these networks."""
    for module in (resnet, wide_resnet):
        monkeypatch.setattr(module, "WIDTHS", (4, 6, 8))
    monkeypatch.setattr(vgg, "WIDTHS", (4, 4, 6, 6, 8))


def variables_of(model):
    """Drawn by NumPy, every entry, so that no two branches are alike; statistics are positive."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda leaf: rng.uniform(0.2, 1.0, leaf.shape).astype(np.float32), shapes)
    signed = jax.tree.map(lambda leaf: leaf * rng.choice([-1, 1], leaf.shape), drawn["params"])
    return {**drawn, "params": jax.tree.map(lambda leaf: np.float32(leaf / leaf[0].size ** 0.25), signed)}


def assert_same(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize("address", NETWORKS)
def test_a_branch_on_the_stem_is_the_whole_network(address):
    """In training, on one batch: what it says, its features, and its new statistics."""
    one = build_model(address, TASK)
    cohort = branched(one, P)
    assert cohort.after == NETWORKS[address]
    variables, image = variables_of(cohort), jax.random.uniform(jax.random.key(1), (B, *SHAPE))
    outputs, after = jit_once(partial(cohort.apply, train=True))(variables, image)
    whole = jit_once(partial(one.apply, train=True))
    for number in range(P):
        expected, expected_after = whole(cohort.branch(variables, number), image)
        found = jax.tree.map(lambda leaf, number=number: leaf[number], outputs)
        assert set(found.features) == {*expected.features, ENTERING}
        assert_same(found.features, {**expected.features, ENTERING: found.features[ENTERING]})
        assert_same((found.logits, found.embedding), (expected.logits, expected.embedding))
        assert_same(cohort.branch(after, number), expected_after)
    assert float(jnp.abs(outputs.logits[0] - outputs.logits[1]).max()) > 1e-2


@pytest.mark.parametrize(
    "address, stage",
    [
        ("resnet(depth=8)", "stem"),
        ("wide_resnet(depth=10, width=1)", "last"),
        ("vgg(dense=6)", "stage5"),
        ("densenet(blocks=(1, 1), growth=4, stem='plain')", "stem"),
    ],
)
def test_a_network_branches_where_it_is_told_to(address, stage):
    """In evaluation, each branch with images of its own."""
    one = build_model(address, TASK)
    cohort = branched(one, P, stage)
    variables, views = variables_of(cohort), jax.random.uniform(jax.random.key(1), (P, B, *SHAPE))
    found = jit_once(lambda *given: cohort.apply(*given)[0].logits)(variables, views)
    whole = jit_once(lambda *given: one.apply(*given)[0].logits)
    assert_same(found, jnp.stack([whole(cohort.branch(variables, p), views[p]) for p in range(P)]))
    assert float(jnp.abs(found[0] - found[1]).max()) > 1e-2
