"""Convolution, pooling, heads and normalisation against XLA's own forms, NumPy and invariants."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from mtkd_jax.models import layers
from mtkd_jax.types import UserError

SHAPES = [  # image [B,h,w,c], kernel [kh,kw,c,d], strides
    ((2, 6, 6, 3), (3, 3, 3, 4), (1, 1)),
    ((2, 7, 5, 1), (3, 3, 1, 4), (1, 1)),
    ((2, 7, 6, 3), (3, 3, 3, 2), (2, 2)),
    ((1, 8, 9, 2), (5, 5, 2, 3), (2, 2)),
    ((3, 9, 8, 2), (5, 3, 2, 3), (1, 2)),
    ((2, 5, 5, 4), (1, 1, 4, 3), (1, 1)),
    ((2, 6, 5, 4), (1, 1, 4, 3), (2, 2)),
    ((2, 7, 7, 2), (3, 3, 2, 2), (3, 3)),
    ((2, 6, 7, 2), (2, 2, 2, 3), (2, 1)),
]


def drawn(shape, seed, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def value_and_gradients(x, kernel, strides, padding, form):
    y, pull = jax.vjp(lambda x, kernel: layers.conv(x, kernel, strides, padding, form), x, kernel)
    return y, *pull(drawn(y.shape, 2, y.dtype))


# --- convolution --------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("image,kernel,strides", SHAPES)
def test_every_form_equals_the_plain_convolution_and_its_gradients(image, kernel, strides, padding):
    with jax.enable_x64(True):
        x, weights = drawn(image, 0), drawn(kernel, 1)
        results = jax.jit(
            lambda x, weights: {
                form: value_and_gradients(x, weights, strides, padding, form) for form in layers.FORMS
            }
        )(x, weights)
        for form, result in results.items():
            for got, want in zip(result, results["plain"]):
                assert got.dtype == jnp.float64
                np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12, err_msg=form)


def test_plain_convolution_is_the_sum_over_the_window():
    x, kernel = np.arange(12.0).reshape(1, 3, 4, 1), np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 2, 1, 1)
    by_hand = [[x[0, i : i + 2, j : j + 2, 0].ravel() @ [1, 2, 3, 4] for j in range(3)] for i in range(2)]
    with jax.enable_x64(True):
        got = layers.conv(jnp.asarray(x), jnp.asarray(kernel), padding="VALID", form="plain")
    np.testing.assert_array_equal(got[0, :, :, 0], by_hand)


@pytest.mark.parametrize("form", ["canonical", "patches"])
def test_forms_agree_under_vmap_over_kernels_and_map(form):
    with jax.enable_x64(True):
        x, kernels = drawn((3, 2, 7, 6, 2), 0), drawn((3, 3, 3, 2, 4), 1)

        def gradients(pair):
            return value_and_gradients(*pair, (2, 2), "SAME", form)

        one = jax.jit(gradients)
        alone = [one((x[m], kernels[m])) for m in range(3)]
        for got in (jax.jit(jax.vmap(gradients))((x, kernels)), lax.map(gradients, (x, kernels))):
            for m in range(3):
                for stacked, expected in zip(got, alone[m]):
                    np.testing.assert_allclose(stacked[m], expected, rtol=1e-12, atol=1e-12)


def test_second_derivatives_of_the_canonical_form_equal_those_of_the_plain_one():
    with jax.enable_x64(True):
        x, kernel = drawn((2, 5, 5, 2), 0), drawn((3, 3, 2, 2), 1)

        def gradient_norm(kernel, form):
            loss = jax.grad(lambda x: jnp.sum(jnp.sin(layers.conv(x, kernel, form=form))))
            return jnp.sum(loss(x) ** 2)

        curvature = jax.jit(jax.grad(gradient_norm), static_argnums=1)
        got, want = (curvature(kernel, form) for form in ("canonical", "plain"))
        np.testing.assert_allclose(got, want, rtol=1e-10)


@pytest.mark.parametrize("form", ["plain", "patches"])
def test_forward_mode_works_except_for_the_canonical_form(form):
    x, kernel = drawn((1, 4, 4, 1), 0, jnp.float32), drawn((3, 3, 1, 2), 1, jnp.float32)
    _, tangent = jax.jvp(lambda x: layers.conv(x, kernel, form=form), (x,), (x,))
    np.testing.assert_allclose(tangent, layers.conv(x, kernel), rtol=1e-5, atol=1e-5)  # linear in x
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda x: layers.conv(x, kernel, form="canonical"), (x,), (x,))


def test_auto_form_follows_platform_and_kernel():
    assert [layers.fastest_form((3, 3), platform) for platform in ("gpu", "tpu", "cpu")] == [
        "plain",
        "plain",
        "canonical",
    ]
    assert layers.fastest_form((1, 1), "cpu") == "patches"
    with pytest.raises(UserError, match="form = 'winograd': expected one of auto"):
        layers.conv(jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, 1)), form="winograd")


def test_backward_convolutions_of_the_canonical_form_stay_in_the_fast_layout():
    def loss(x, kernel):
        return jnp.sum(layers.conv(x, kernel, form="canonical") ** 2)

    program = jax.make_jaxpr(jax.grad(loss, (0, 1)))(jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 3, 4)))
    layouts = [
        equation.params["dimension_numbers"]
        for equation in program.eqns
        if equation.primitive.name == "conv_general_dilated"
    ]
    assert len(layouts) == 3  # forward, d/dx, d/dkernel
    nhwc = lax.conv_dimension_numbers((2, 5, 5, 3), (3, 3, 3, 4), layers.LAYOUT)
    assert all(layout == nhwc for layout in layouts)


# --- pooling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("shape", [(2, 6, 6, 3), (1, 7, 5, 2)])
def test_pooling_equals_reduce_window(shape, window):
    with jax.enable_x64(True):
        x, area = drawn(shape, 0), (1, window, window, 1)

        def reference(x):
            return lax.reduce_window(x, -jnp.inf, lax.max, area, area, "VALID")

        got, pull = jax.vjp(lambda x: layers.max_pool(x, window), x)
        want, reference_pull = jax.vjp(reference, x)
        np.testing.assert_allclose(got, want, rtol=1e-14, atol=1e-14)
        weights = drawn(got.shape, 1)
        np.testing.assert_allclose(pull(weights)[0], reference_pull(weights)[0], rtol=1e-13, atol=1e-14)


# --- modules ------------------------------------------------------------------------------------------


def test_conv_module_adds_its_bias_and_computes_in_its_dtype():
    x = drawn((2, 6, 6, 3), 0, jnp.float32)
    module = layers.Conv(5, (3, 3), strides=(2, 2), padding="VALID")
    params = module.init(jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, params) == {"kernel": (3, 3, 3, 5), "bias": (5,)}
    shifted = {"params": {"kernel": params["kernel"], "bias": jnp.arange(5.0)}}
    expected = layers.conv(x, params["kernel"], (2, 2), "VALID", "plain") + np.arange(5.0).reshape(1, 1, 1, 5)
    np.testing.assert_allclose(module.apply(shifted, x), expected, rtol=1e-5, atol=1e-5)

    half = layers.Conv(5, (3, 3), use_bias=False, dtype="bfloat16")
    variables = half.init(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert set(variables["params"]) == {"kernel"}
    assert half.apply(variables, x).dtype == jnp.bfloat16


@pytest.mark.parametrize("num_heads", [1, 8, 64])
def test_each_head_starts_with_variance_one_over_the_embedding_width(num_heads):
    width, classes = 400, 25
    variables = layers.Heads(num_heads, classes).init(jax.random.key(3), jnp.zeros((1, width)))
    kernel = np.asarray(variables["params"]["kernel"])
    assert kernel.shape == (num_heads, width, classes)
    # 10 000 draws a head: the relative error of a variance is about sqrt(2 / 10 000) = 1.4 %.
    np.testing.assert_allclose(kernel.var(axis=(1, 2)) * width, 1.0, rtol=0.07)
    np.testing.assert_array_equal(variables["params"]["bias"], np.zeros((num_heads, classes)))


def test_heads_are_separate_linear_classifiers_in_float32():
    embedding = drawn((4, 6), 0, jnp.bfloat16)
    kernel, bias = drawn((3, 6, 5), 1, jnp.float32), drawn((3, 5), 2, jnp.float32)
    got = layers.Heads(3, 5).apply({"params": {"kernel": kernel, "bias": bias}}, embedding)
    assert got.dtype == jnp.float32
    for head in range(3):
        expected = np.asarray(embedding, np.float64) @ np.asarray(kernel[head], np.float64) + bias[head][None]
        np.testing.assert_allclose(got[head], expected, rtol=1e-5, atol=1e-5)


def test_normalise_centres_and_scales_each_channel_and_survives_a_constant_one():
    image = np.random.default_rng(0).uniform(size=(50, 4, 4, 3)).astype(np.float32)
    image[..., 2] = 0.5
    mean, std = image.mean((0, 1, 2)), image.std((0, 1, 2))
    got = np.asarray(layers.normalise(jnp.asarray(image), tuple(mean.tolist()), (*std[:2].tolist(), 0.0)))
    np.testing.assert_allclose(got.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(got.std((0, 1, 2)), [1, 1, 0], atol=1e-5)
    with pytest.raises(UserError, match="images have 3 channels: expected 1"):
        layers.normalise(jnp.asarray(image), (0.5,), (0.2,))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return layers.batch_norm(x, train, name="norm")


def test_batch_norm_uses_the_batch_in_training_and_its_running_statistics_after():
    x = 3 * drawn((64, 5), 0, jnp.float32) + 2
    variables = Normed().init(jax.random.key(0), x, False)
    trained, state = Normed().apply(variables, x, True, mutable=["batch_stats"])
    batch = np.asarray(x, np.float64)
    expected = (batch - batch.mean(0)) / np.sqrt(batch.var(0) + 1e-5)
    np.testing.assert_allclose(trained, expected, rtol=1e-4, atol=1e-4)
    running = state["batch_stats"]["norm"]
    np.testing.assert_allclose(running["mean"], 0.1 * batch.mean(0), rtol=1e-4)
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * batch.var(0), rtol=1e-4)
    evaluated = Normed().apply({"params": variables["params"], **state}, x, False)
    expected = (batch - 0.1 * batch.mean(0)) / np.sqrt(0.9 + 0.1 * batch.var(0) + 1e-5)
    np.testing.assert_allclose(evaluated, expected, rtol=1e-4, atol=1e-4)


def test_batch_norm_keeps_bfloat16_activations_and_float32_statistics():
    x = drawn((8, 2, 2, 3), 0, jnp.bfloat16)
    variables = Normed().init(jax.random.key(0), x, False)
    out, state = Normed().apply(variables, x, True, mutable=["batch_stats"])
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, state))} == {jnp.dtype("float32")}


def test_batch_norm_over_a_named_axis_equals_the_whole_batch():
    class Split(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layers.batch_norm(x, True, name="norm", axis_name="data")

    x = drawn((12, 3), 0, jnp.float32)
    variables = Normed().init(jax.random.key(0), x, False)
    whole, state = Normed().apply(variables, x, True, mutable=["batch_stats"])
    parts, states = jax.vmap(
        lambda part: Split().apply(variables, part, mutable=["batch_stats"]), axis_name="data"
    )(x.reshape(3, 4, 3))
    np.testing.assert_allclose(parts.reshape(12, 3), whole, rtol=1e-4, atol=1e-5)
    for name, value in state["batch_stats"]["norm"].items():
        for part in states["batch_stats"]["norm"][name]:
            np.testing.assert_allclose(part, value, rtol=1e-5, atol=1e-6)


# --- outputs ------------------------------------------------------------------------------------------


def reference_logits(heads):
    """log mean_h softmax(heads) in float64, the direct formula."""
    heads = np.asarray(heads, np.float64)
    heads = heads - heads.max(-1, keepdims=True)
    probs = np.exp(heads) / np.exp(heads).sum(-1, keepdims=True)
    return np.log(probs.mean(0))


def test_logits_of_several_heads_are_the_log_of_the_mean_probability():
    heads = 4 * drawn((5, 7, 3), 0, jnp.float32)
    got = layers.outputs(jnp.zeros((7, 2)), heads, {})
    np.testing.assert_allclose(got.logits, reference_logits(heads), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.exp(got.logits).sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(got.heads, heads)


def test_logits_of_extreme_heads_are_finite_in_value_and_gradient():
    heads = jnp.asarray([[[1000.0, -1000.0]], [[900.0, -1000.0]]])
    value, gradient = jax.value_and_grad(lambda h: layers.outputs(jnp.zeros((1, 1)), h, {}).logits.sum())(
        heads
    )
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert value == pytest.approx(-1900 - np.log(2), rel=1e-6)  # e^-2000 is nothing beside e^-1900


def test_one_head_is_the_logits_and_everything_is_float32():
    heads = drawn((1, 4, 3), 0, jnp.bfloat16)
    got = layers.outputs(heads[0], heads, {"stage1": heads[:, :, :, None]})
    np.testing.assert_array_equal(got.logits, heads[0].astype(jnp.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype("float32")}


# --- arguments ----------------------------------------------------------------------------------------


def test_described_names_only_what_differs_from_the_defaults():
    def net(task, *, width: int = 3, rate: float = 0.0): ...

    assert layers.described(net, width=3, rate=0.0) == "net"
    assert layers.described(net, width=4, rate=0.5) == "net(width=4, rate=0.5)"
