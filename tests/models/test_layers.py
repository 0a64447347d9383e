"""Convolution, pooling, heads and normalisation against XLA's own forms, NumPy and invariants."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.extend.core import jaxprs_in_params

from mtkd_jax import mesh
from mtkd_jax.models import cnn, layers
from mtkd_jax.types import Task, UserError

SHAPES = [  # image [B,h,w,c], kernel [kh,kw,c/groups,d], strides, groups
    ((2, 6, 6, 3), (3, 3, 3, 4), (1, 1), 1),
    ((2, 7, 5, 1), (3, 3, 1, 4), (1, 1), 1),
    ((2, 7, 6, 3), (3, 3, 3, 2), (2, 2), 1),
    ((1, 8, 9, 2), (5, 5, 2, 3), (2, 2), 1),
    ((3, 9, 8, 2), (5, 3, 2, 3), (1, 2), 1),
    ((2, 7, 7, 2), (3, 3, 2, 2), (3, 3), 1),
    ((2, 6, 7, 2), (2, 2, 2, 3), (2, 1), 1),
    ((21, 4, 5, 2), (3, 3, 2, 33), (2, 2), 1),  # d/dkernel in blocks, the last one not full
    ((71, 4, 4, 2), (3, 3, 2, 3), (1, 1), 1),
    ((2, 5, 5, 4), (1, 1, 4, 3), (1, 1), 1),
    ((2, 6, 5, 4), (1, 1, 4, 3), (2, 2), 1),
    ((2, 6, 7, 4), (3, 3, 1, 4), (1, 1), 4),  # depthwise
    ((2, 6, 7, 3), (3, 3, 1, 6), (2, 2), 3),
    ((2, 7, 6, 3), (5, 5, 1, 3), (1, 2), 3),
    ((2, 6, 7, 6), (3, 3, 2, 3), (2, 2), 3),  # grouped
    ((2, 5, 5, 6), (1, 1, 3, 4), (1, 1), 2),
]


def drawn(shape, seed, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def plain(x, kernel, strides=(1, 1), padding="SAME", groups=1):
    pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return layers.plain_conv(x, kernel, strides, tuple(pads), groups)


def quick_jit(function):
    """Compiled without optimising: these programs run once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def derivatives(function):
    """(x, kernel) -> value, gradients and the change of the value along a direction."""

    def evaluate(x, kernel):
        y, pull = jax.vjp(function, x, kernel)
        directions = drawn(x.shape, 3, x.dtype), drawn(kernel.shape, 4, x.dtype)
        _, change = jax.jvp(function, (x, kernel), directions)
        return y, *pull(drawn(y.shape, 2, y.dtype)), change

    return evaluate


def assert_same_derivatives(function, reference, x, kernel):
    both = quick_jit(lambda *inputs: (derivatives(function)(*inputs), derivatives(reference)(*inputs)))
    for got, want in zip(*both(x, kernel)):
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def convolutions(jaxpr):
    """Parameters of all convolutions of a program, those in its inner programs too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            yield equation.params
        for inner in jaxprs_in_params(equation.params):
            yield from convolutions(inner)


# --- convolution --------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("image,window,strides,groups", SHAPES)
def test_convolution_equals_the_plain_one_in_value_and_derivatives(image, window, strides, groups, padding):
    rest = (strides, padding, groups)
    with jax.enable_x64(True):
        assert_same_derivatives(
            lambda x, kernel: layers.conv(x, kernel, *rest),
            lambda x, kernel: plain(x, kernel, *rest),
            drawn(image, 0),
            drawn(window, 1),
        )


@pytest.mark.parametrize("image,window,strides,groups", [SHAPES[n] for n in (0, 9, 10, 11, -2, -1)])
def test_pixels_before_and_after_the_image_are_convolved_in_every_form(image, window, strides, groups):
    pads = ((1, 2), (0, 1))
    with jax.enable_x64(True):
        x, kernel = drawn(image, 0), drawn(window, 1)
        assert_same_derivatives(
            lambda x, kernel: layers.conv(x, kernel, strides, pads, groups),
            lambda x, kernel: layers.plain_conv(x, kernel, strides, pads, groups),
            x,
            kernel,
        )


def test_plain_convolution_is_the_sum_over_the_window():
    x, kernel = np.arange(12.0).reshape(1, 3, 4, 1), np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 2, 1, 1)
    by_hand = [[x[0, i : i + 2, j : j + 2, 0].ravel() @ [1, 2, 3, 4] for j in range(3)] for i in range(2)]
    got = plain(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), padding="VALID")
    np.testing.assert_array_equal(got[0, :, :, 0], by_hand)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
    "line,window,stride,groups",
    [((2, 9, 3), (3, 3, 4), 1, 1), ((2, 8, 4), (5, 1, 8), 2, 4), ((3, 7, 2), (1, 2, 3), 2, 1)],
)
def test_convolution_of_a_line_equals_that_of_xla(line, window, stride, groups, padding):
    def reference(x, kernel):
        layout = ("NWC", "WIO", "NWC")
        return lax.conv_general_dilated(
            x, kernel, (stride,), padding, dimension_numbers=layout, feature_group_count=groups
        )

    def fast(x, kernel):
        return layers.conv(x, kernel, (stride,), padding, groups)

    with jax.enable_x64(True):
        assert_same_derivatives(fast, reference, drawn(line, 0), drawn(window, 1))


@pytest.mark.parametrize("window,groups", [((3, 3, 2, 4), 1), ((3, 3, 1, 4), 2), ((1, 1, 2, 4), 1)])
def test_convolution_is_the_same_under_vmap_over_kernels_and_under_map(window, groups):
    with jax.enable_x64(True):
        x, kernels = drawn((3, 2, 7, 6, 2), 0), drawn((3, *window), 1)

        one = derivatives(lambda x, kernel: layers.conv(x, kernel, (2, 2), groups=groups))
        alone = [quick_jit(one)(x[m], kernels[m]) for m in range(3)]
        together = quick_jit(jax.vmap(one))(x, kernels)
        walked = quick_jit(lambda *members: lax.map(lambda member: one(*member), members))(x, kernels)
        for got in (together, walked):
            for m in range(3):
                for stacked, expected in zip(got, alone[m]):
                    np.testing.assert_allclose(stacked[m], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", [jax.jacrev, jax.jacfwd])
def test_second_derivatives_equal_those_of_the_plain_form(mode):
    with jax.enable_x64(True):
        x, kernel = drawn((2, 5, 5, 2), 0), drawn((3, 3, 2, 2), 1)

        def gradient_norm(kernel, form):
            loss = jax.grad(lambda x: jnp.sum(jnp.sin(form(x, kernel))))
            return jnp.sum(loss(x) ** 2)

        got, want = (
            quick_jit(mode(functools.partial(gradient_norm, form=form)))(kernel)
            for form in (layers.conv, plain)
        )
        np.testing.assert_allclose(got, want, rtol=1e-10)


def test_a_whole_network_has_forward_mode_derivatives():
    image = drawn((4, 8, 8, 1), 0, jnp.float32)
    network = cnn.cnn(Task(num_classes=3, num_heads=1, mean=(0.5,), std=(0.2,)), widths=(3,), batch_norm=True)
    variables = quick_jit(network.init)(jax.random.key(0), image)

    def loss(params):
        outputs, _ = network.apply({**variables, "params": params}, image, train=True, key=jax.random.key(1))
        return jnp.sum(outputs.logits * drawn(outputs.logits.shape, 1, jnp.float32))

    params = variables["params"]
    direction = jax.tree.map(lambda leaf: drawn(leaf.shape, 2, jnp.float32), params)
    _, change = quick_jit(lambda *pair: jax.jvp(loss, pair[:1], pair[1:]))(params, direction)
    gradient = quick_jit(jax.grad(loss))(params)
    along = sum(jnp.vdot(*pair) for pair in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    assert abs(change) > 0.1
    np.testing.assert_allclose(change, along, rtol=1e-4)


def test_form_follows_platform_and_kernel():
    for platform in ("gpu", "tpu"):
        assert layers.fastest_form((3, 3, 1, 8), 4, platform) == "plain"
    forms = {
        ((3, 3, 16, 8), 1): "canonical",
        ((1, 3, 16, 8), 1): "canonical",
        ((1, 1, 16, 8), 1): "product",
        ((3, 3, 1, 8), 4): "shifted",
        ((3, 3, 2, 8), 4): "by_group",
    }
    for (window, groups), form in forms.items():
        assert layers.fastest_form(window, groups, "cpu") == form


@pytest.mark.parametrize("channels,features", [(10, 8), (8, 6)])
def test_channels_and_features_that_do_not_fall_into_groups_are_refused(channels, features):
    with pytest.raises(UserError, match="groups = 4: expected 8 channels and features in a multiple of 4"):
        layers.conv(jnp.zeros((1, 4, 4, channels)), jnp.zeros((3, 3, 2, features)), groups=4)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("image,window,strides,groups", SHAPES[:8] + SHAPES[-2:])
def test_windows_side_by_side_are_the_same_convolution(image, window, strides, groups, padding):
    with jax.enable_x64(True), layers.in_form("windows"):
        x, kernel = drawn(image, 0), drawn(window, 1)
        got = quick_jit(derivatives(lambda x, k: layers.conv(x, k, strides, padding, groups)))(x, kernel)
        want = quick_jit(derivatives(lambda x, k: plain(x, k, strides, padding, groups)))(x, kernel)
        for mine, theirs in zip(got, want):
            np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12)


def test_a_form_is_of_what_is_traced_inside_it_alone():
    x, kernel = jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 3, 4))
    with layers.in_form("windows"):
        inside = jax.make_jaxpr(lambda *pair: layers.conv(*pair))(x, kernel)
    outside = jax.make_jaxpr(lambda *pair: layers.conv(*pair))(x, kernel)
    assert list(convolutions(inside.jaxpr)) == [] and len(list(convolutions(outside.jaxpr))) == 1


@pytest.mark.parametrize("wanted,count", [((0, 1), 3), ((1,), 2), ((0,), 2)])
def test_the_wanted_gradients_alone_are_computed_and_in_the_fast_layout(wanted, count):
    def loss(x, kernel):
        return jnp.sum(layers.conv(x, kernel) ** 2)

    program = jax.make_jaxpr(jax.grad(loss, wanted))(jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 3, 4)))
    found = [parameters["dimension_numbers"] for parameters in convolutions(program.jaxpr)]
    assert len(found) == count  # forward and a gradient each
    assert set(found) == {lax.conv_dimension_numbers((2, 5, 5, 3), (3, 3, 3, 4), layers.LAYOUT)}


def test_kernel_gradient_in_bfloat16_is_summed_in_float32():
    x, kernel = drawn((128, 4, 4, 1), 0, jnp.bfloat16), drawn((3, 3, 1, 32), 1, jnp.bfloat16)
    weights = jnp.abs(drawn((128, 4, 4, 32), 2, jnp.bfloat16))
    x = jnp.abs(x)

    def gradient(dtype):
        cast = [value.astype(dtype) for value in (x, kernel, weights)]
        return jax.vjp(lambda kernel: layers.conv(cast[0], kernel), cast[1])[1](cast[2])[0]

    assert gradient(jnp.bfloat16).dtype == jnp.bfloat16
    # One rounding to 8 bits; summed in bfloat16 the 16 blocks would be off by several times that.
    np.testing.assert_allclose(gradient(jnp.bfloat16).astype(jnp.float32), gradient(jnp.float32), rtol=2**-8)


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


def test_pooling_shares_the_gradient_among_equals():
    x = jnp.array([[3.0, 1.0, 2.0, 2.0], [0.0, 3.0, 2.0, 2.0]]).reshape(1, 2, 4, 1)
    _, pull = jax.vjp(lambda x: layers.max_pool(x, 2), x)
    gradient = pull(jnp.array([8.0, 8.0]).reshape(1, 1, 2, 1))[0]
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[4, 0, 2, 2], [0, 4, 2, 2]])
    direction = jnp.arange(8.0).reshape(x.shape)
    _, change = jax.jvp(lambda x: layers.max_pool(x, 2), (x,), (direction,))
    np.testing.assert_array_equal(change.ravel(), [(0 + 5) / 2, (2 + 3 + 6 + 7) / 4])


# --- modules ------------------------------------------------------------------------------------------


def test_conv_module_adds_its_bias_and_computes_in_its_dtype():
    x = drawn((2, 6, 6, 3), 0, jnp.float32)
    module = layers.Conv(5, (3, 3), strides=(2, 2), padding="VALID")
    params = module.init(jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, params) == {"kernel": (3, 3, 3, 5), "bias": (5,)}
    shifted = {"params": {"kernel": params["kernel"], "bias": jnp.arange(5.0)}}
    expected = plain(x, params["kernel"], (2, 2), "VALID") + np.arange(5.0).reshape(1, 1, 1, 5)
    np.testing.assert_allclose(module.apply(shifted, x), expected, rtol=1e-5, atol=1e-5)

    half = layers.Conv(5, (3, 3), use_bias=False, dtype="bfloat16")
    variables = half.init(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert set(variables["params"]) == {"kernel"}
    assert half.apply(variables, x).dtype == jnp.bfloat16


def test_conv_module_takes_groups_and_lines():
    x = drawn((2, 6, 6, 4), 0, jnp.float32)
    variables = layers.Conv(6, (3, 3), groups=2).init(jax.random.key(0), x)
    assert variables["params"]["kernel"].shape == (3, 3, 2, 6)
    y, variables = layers.Conv(6, (3,), strides=(2,)).init_with_output(jax.random.key(0), x[0])
    assert variables["params"]["kernel"].shape == (3, 4, 6)
    assert y.shape == (6, 3, 6)


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


def test_batch_norm_of_a_split_batch_equals_that_of_the_whole():
    x = drawn((12, 3), 0, jnp.float32)
    variables = Normed().init(jax.random.key(0), x, False)
    weights = drawn((12, 3), 1, jnp.float32)

    def normed(x, weights):
        def loss(x):
            y, state = Normed().apply(variables, x, True, mutable=["batch_stats"])
            return jnp.sum(y * weights), (y, state)

        gradient, (y, state) = jax.grad(loss, has_aux=True)(x)
        return y, gradient, state["batch_stats"]["norm"]

    whole, whole_gradient, statistics = quick_jit(normed)(x, weights)
    in_parts = jax.vmap(normed, axis_name=mesh.DATA)
    split = quick_jit(in_parts)(x.reshape(3, 4, 3), weights.reshape(3, 4, 3))
    np.testing.assert_allclose(split[0].reshape(12, 3), whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(split[1].reshape(12, 3), whole_gradient, rtol=1e-4, atol=1e-5)
    for name, value in statistics.items():
        for part in split[2][name]:
            np.testing.assert_allclose(part, value, rtol=1e-5, atol=1e-6)


def test_data_axis_is_named_where_it_splits_something():
    seen = []

    def look(x):
        seen.append(layers.data_axis())
        return x

    look(jnp.zeros(2))
    jax.vmap(look, axis_name=mesh.DATA)(jnp.zeros(1))
    jax.vmap(look, axis_name="member")(jnp.zeros(2))
    jax.vmap(look, axis_name=mesh.DATA)(jnp.zeros(2))
    assert seen == [None, None, None, mesh.DATA]


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

    assert layers.address_of(net, width=3, rate=0.0) == "net"
    assert layers.address_of(net, width=4, rate=0.5) == "net(width=4, rate=0.5)"
