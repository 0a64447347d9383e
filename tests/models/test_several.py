"""Networks that are one in training: equal to the ordinary ones that they are written out as."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import addresses
from mtkd_jax.engine import population
from mtkd_jax.models import own
from mtkd_jax.models.several import many_inputs, rank_one
from mtkd_jax.types import Task, UserError

K = 3
SHAPE = (8, 8, 2)
ONE = Task(4, 1, (0.4, 0.5), (0.2, 0.3))
WIDE = Task(4, K, K * ONE.mean, K * ONE.std)
IMAGES = jax.random.uniform(jax.random.key(1), (6, *SHAPE))
ARCHITECTURES = ("mlp(hidden=(8,), batch_norm=True)", "cnn(widths=(4,), dense=8)")


def build(address, task):
    return addresses.build_model(address, task)


def moved(variables):
    """The same with other numbers in every leaf, positive ones, as variances are."""
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    new = [leaf + jax.random.uniform(key, leaf.shape) / 8 for leaf, key in zip(leaves, keys)]
    return jax.tree.unflatten(structure, new)


def drawn(model):
    return moved(jax.jit(model.init)(jax.random.key(0), IMAGES[:1]))


def said_by(model, variables):
    return jax.jit(lambda variables: model.apply(variables, IMAGES)[0])(variables)


@pytest.mark.parametrize("address", ARCHITECTURES)
def test_members_by_rank_one_are_the_ordinary_networks_they_are_written_out_as(address):
    one = build(address, ONE)
    model = rank_one(one, K)
    variables = drawn(model)
    said, state = jax.jit(model.apply)(variables, IMAGES)
    members = model.members(variables)
    for m in range(K):
        own = said_by(one, population.take(members, m))
        np.testing.assert_allclose(said.heads[m], own.logits, rtol=1e-4, atol=1e-4)
    probs = np.exp(said.logits)
    np.testing.assert_allclose(probs, jax.nn.softmax(said.heads).mean(axis=0), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, state, {k: v for k, v in variables.items() if k != "params"})


def test_a_kernel_of_rank_one_multiplies_what_goes_in_and_what_comes_out():
    model = rank_one(build("mlp(hidden=())", ONE), K)
    variables = drawn(model)
    x = ((np.asarray(IMAGES, np.float64) - ONE.mean) / ONE.std).reshape(len(IMAGES), -1)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    w, b = params["shared"]["heads/kernel"][0], params["own"]["heads/bias"]
    r, s = params["inward"]["heads/kernel"], params["outward"]["heads/kernel"]
    expected = [((x * r[m]) @ w) * s[m] + b[m, 0] for m in range(K)]
    np.testing.assert_allclose(model.apply(variables, IMAGES)[0].heads, expected, rtol=1e-4, atol=1e-4)


def test_factors_begin_with_signs_and_the_first_network_with_what_it_is_alone():
    one = build(ARCHITECTURES[0], ONE)
    params = rank_one(one, K).init(jax.random.key(0), IMAGES[:1])["params"]
    alone = one.init(jax.random.key(0), IMAGES[:1])["params"]
    np.testing.assert_array_equal(params["shared"]["dense1/kernel"], alone["dense1"]["kernel"])
    for side, size in (("inward", 128), ("outward", 8)):
        signs = np.asarray(params[side]["dense1/kernel"])
        assert signs.shape == (K, size) and set(np.unique(signs)) == {-1.0, 1.0}
        assert (signs[0] != signs[1]).any()


def test_kernels_of_other_names_are_shared_and_a_network_without_any_is_refused():
    def network(shape):
        return own.functions(lambda key, images: {"w": jax.random.normal(key, shape)}, with_weights, ONE)

    def with_weights(params, images):
        return images.reshape(len(images), -1)[:, :4] * params["w"].reshape(-1, 4).sum(axis=0)[None]

    params = rank_one(network((5, 4)), K).init(jax.random.key(0), IMAGES[:1])["params"]
    assert list(params["shared"]) == ["network/w"] and params["inward"]["network/w"].shape == (K, 5)
    with pytest.raises(UserError, match="own has no kernel, .*; must have one"):
        rank_one(network((4,)), K).init(jax.random.key(0), IMAGES[:1])


@pytest.mark.parametrize("address", ARCHITECTURES)
def test_a_head_shown_one_image_only_is_the_ordinary_network_it_is_written_out_as(address):
    one = build(address, ONE)
    model = many_inputs(one, build(address, WIDE), K, 0.0)
    variables = drawn(model)
    said = said_by(model, variables)
    members = model.members(variables, jax.ShapeDtypeStruct((1, *SHAPE), np.float32))
    for m in range(K):
        own = said_by(one, population.take(members, m))
        np.testing.assert_allclose(said.heads[m], own.logits, rtol=1e-4, atol=1e-4)


def test_in_training_each_head_answers_for_its_own_image_among_others():
    model = many_inputs(build("mlp(hidden=(8,))", ONE), build("mlp(hidden=(8,))", WIDE), K, 0.5)
    variables = drawn(model)
    key = jax.random.key(3)
    said, _ = model.apply(variables, IMAGES, train=True, key=key)
    order = np.asarray(model._draw_order(key, len(IMAGES)))
    assert (np.sort(order, axis=1) == np.arange(6)).all()
    assert (order[:, 3:] == np.arange(3, 6)).all() and (order[0, :3] != order[1, :3]).any()
    for m in range(K):
        for row, image in enumerate(order[m]):
            views = jnp.concatenate([IMAGES[order[k, row]] for k in range(K)], axis=-1)
            of_row = model.module.apply(variables, views[None], train=False).heads[m, 0]
            np.testing.assert_allclose(said.heads[m, image], of_row, rtol=1e-4, atol=1e-4)
    alike = many_inputs(model.one, build("mlp(hidden=(8,))", WIDE), K, 1.0)
    still, _ = alike.apply(variables, IMAGES, train=True, key=key)
    np.testing.assert_allclose(still.heads, model.apply(variables, IMAGES)[0].heads, rtol=1e-5, atol=1e-5)


def test_networks_that_cannot_be_several_in_one_are_refused():
    frozen = dataclasses.replace(build("resnet(depth=8)", ONE), trainable="stage2")
    with pytest.raises(UserError, match="all of which is trained"):
        rank_one(frozen, K)
    one, wide = (build("inception_time(depth=3, width=2)", task) for task in (ONE, WIDE))
    series = jax.ShapeDtypeStruct((1, 8, 1, 2), np.float32)
    model = many_inputs(one, wide, K, 0.0)
    variables = jax.eval_shape(model.init, jax.random.key(0), series)
    with pytest.raises(UserError, match="several images must read them by one kernel"):
        model.members(variables, series)
