"""The small architectures: shapes, parameter counts, dtypes, equal bodies, one-line errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mtkd_jax.addresses import build_model
from mtkd_jax.models.cnn import cnn
from mtkd_jax.models.mlp import mlp
from mtkd_jax.types import Task, UserError

TASK = Task(num_classes=10, num_heads=1, mean=(0.4,), std=(0.3,))
FULL = dict(batch_norm=True, dropout=0.5)
SMALL = {mlp: dict(hidden=(8, 6)), cnn: dict(widths=(3, 4), dense=5)}


def images(batch=6, size=8, channels=1):
    return jax.random.uniform(jax.random.key(7), (batch, size, size, channels))


def shapes(model, x):
    return jax.eval_shape(model.init, jax.random.key(0), x)


def drawn(model, x):
    """Variables with every entry drawn by NumPy: as good as `init` in training mode, nothing to compile."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(-0.2, 0.3, leaf.shape), leaf.dtype), shapes(model, x)
    )


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    "model,size,parameters",
    [
        (mlp(TASK), 8, (64 * 64 + 64) * 2 + 64 * 10 + 10),
        (mlp(TASK, hidden=()), 8, 64 * 10 + 10),
        (mlp(TASK, hidden=(40,), bottleneck=6), 8, 6 * (64 + 40) + 40 + 40 * 10 + 10),
        (mlp(TASK, hidden=(32,), batch_norm=True), 8, 64 * 32 + 2 * 32 + 32 * 10 + 10),
        (mlp(TASK._replace(num_heads=3), hidden=(32,)), 8, 64 * 32 + 32 + 3 * (32 * 10 + 10)),
        (
            cnn(TASK),
            28,
            (9 * 32 + 32) + (9 * 32 * 64 + 64) + (7 * 7 * 64 * 128 + 128) + 128 * 10 + 10,
        ),
        (
            cnn(TASK, widths=(4,), dense=5, kernel_size=5, batch_norm=True),
            8,
            (25 * 4 + 2 * 4) + (4 * 4 * 4 * 5 + 2 * 5) + 5 * 10 + 10,
        ),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_parameter_counts_by_hand(model, size, parameters):
    assert count(shapes(model, images(size=size))) == parameters


def test_linear_network_is_a_matrix_product_of_the_normalised_image():
    model, x = mlp(TASK, hidden=()), images()
    variables = drawn(model, x)
    got, state = model.apply(variables, x)
    flat = ((np.asarray(x, np.float64) - 0.4) / 0.3).reshape(6, 64)
    heads = variables["params"]["heads"]
    expected = flat @ np.asarray(heads["kernel"][0], np.float64) + heads["bias"]
    np.testing.assert_allclose(got.logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.embedding, flat, rtol=1e-5, atol=1e-6)
    assert got.features == {} and state == {}


def test_a_bottleneck_as_wide_as_a_layer_can_be_any_matrix():
    """W = U V with U = W and V = 1, or the other way round."""
    x, whole, narrow = images(), mlp(TASK, hidden=(5,)), mlp(TASK, hidden=(5,), bottleneck=5)
    variables = whole.init(jax.random.key(1), x)
    kernel = variables["params"]["dense1"]["kernel"]
    params = {**variables["params"], "bottleneck1": {"kernel": kernel}}
    params["dense1"] = {**params["dense1"], "kernel": jnp.eye(5)}
    found, expected = narrow.apply({"params": params}, x)[0], whole.apply(variables, x)[0]
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)
    drawn = narrow.init(jax.random.key(1), x)["params"]
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, params)


def test_mlp_equals_numpy():
    model, x = mlp(TASK, hidden=(5, 4)), images()
    params = drawn(model, x)["params"]
    got, _ = model.apply({"params": params}, x)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    hidden = ((np.asarray(x, np.float64) - 0.4) / 0.3).reshape(6, 64)
    for layer in ("dense1", "dense2"):
        hidden = np.maximum(hidden @ p[layer]["kernel"] + p[layer]["bias"][None], 0)
    np.testing.assert_allclose(got.embedding, hidden, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.features["stage2"][:, 0, 0], hidden, rtol=1e-4, atol=1e-5)
    logits = hidden @ p["heads"]["kernel"][0] + p["heads"]["bias"]
    np.testing.assert_allclose(got.logits, logits, rtol=1e-4, atol=1e-5)


def test_cnn_equals_convolution_then_relu_then_pooling():
    """ReLU before pooling, as usually written, gives what the network computes in the cheaper order."""
    model, x = cnn(TASK, widths=(3, 4), dense=5), images(size=9)
    params = drawn(model, x)["params"]
    got, _ = model.apply({"params": params}, x)
    hidden = (x - 0.4) / 0.3
    for stage in ("1", "2"):
        layer = params[f"conv{stage}"]
        hidden = lax.conv_general_dilated(
            hidden, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        hidden = jnp.maximum(hidden + layer["bias"].reshape(1, 1, 1, -1), 0.0)
        hidden = lax.reduce_window(hidden, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        np.testing.assert_allclose(got.features[f"stage{stage}"], hidden, rtol=1e-4, atol=1e-5)
    hidden = np.asarray(hidden).reshape(6, -1) @ params["dense"]["kernel"] + params["dense"]["bias"][None]
    np.testing.assert_allclose(got.embedding, np.maximum(hidden, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [mlp, cnn])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shapes_and_float32_outside_the_body(build, dtype):
    model = build(TASK._replace(num_heads=3), dtype=dtype, **SMALL[build], **FULL)
    x = images()
    variables = drawn(model, x)

    def loss(params):
        got, state = model.apply({**variables, "params": params}, x, train=True, key=jax.random.key(1))
        return got.logits[:, 0].sum(), (got, state)

    gradients, (got, state) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert got.logits.shape == (6, 10) and got.heads.shape == (3, 6, 10)
    assert got.embedding.ndim == 2 and all(value.ndim == 4 for value in got.features.values())
    assert list(got.features) == ["stage1", "stage2"]
    assert set(state) == {"batch_stats"}
    leaves = jax.tree.leaves((variables, got, state, gradients))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.parametrize("build", [mlp, cnn])
def test_bfloat16_really_computes_in_bfloat16(build):
    x = images()
    models = [build(TASK, dtype=dtype, **SMALL[build]) for dtype in ("float32", "bfloat16")]
    variables = drawn(models[0], x)
    full, half = (np.asarray(model.apply(variables, x)[0].embedding) for model in models)
    np.testing.assert_array_equal(half, half.astype(jnp.bfloat16).astype(np.float32))
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(half, full, atol=0.05 * np.abs(full).max())


@pytest.mark.parametrize("build", [mlp, cnn])
def test_body_starts_from_the_same_weights_whatever_the_number_of_heads(build):
    bodies = []
    for num_heads in (1, 4):
        model = build(TASK._replace(num_heads=num_heads), **SMALL[build], **FULL)
        variables = jax.jit(model.init)(jax.random.key(3), images())
        assert variables["params"].pop("heads")["kernel"].shape[0] == num_heads
        bodies.append(variables)
    for other in bodies[1:]:
        jax.tree.map(np.testing.assert_array_equal, bodies[0], other)


@pytest.mark.parametrize("build", [mlp, cnn])
def test_equal_models_are_one_jit_key(build):
    one, same, other = (build(TASK, **SMALL[build], **more) for more in (FULL, FULL, {}))
    assert one == same and hash(one) == hash(same)
    assert one != other and one != build(TASK._replace(num_heads=2), **SMALL[build], **FULL)
    traces = []

    def forward(model, variables, x):
        traces.append(model.name)
        return model.apply(variables, x, train=True, key=jax.random.key(0))[0].logits

    compiled = jax.jit(forward, static_argnums=0)
    variables = drawn(one, images())
    np.testing.assert_array_equal(compiled(one, variables, images()), compiled(same, variables, images()))
    assert len(traces) == 1


def test_names_tell_what_is_not_default():
    assert mlp(TASK).name == "mlp"
    assert mlp(TASK, hidden=(32,), dtype="bfloat16").name == "mlp(hidden=(32,), dtype='bfloat16')"
    assert cnn(TASK, dense=16).name == "cnn(dense=16)"


@pytest.mark.parametrize("build", [mlp, cnn])
def test_dropout_only_acts_in_training(build):
    model, x = build(TASK, dropout=0.5, **SMALL[build]), images()
    variables = drawn(model, x)
    still, _ = model.apply(variables, x)
    one, two, again = (model.apply(variables, x, train=True, key=jax.random.key(k))[0] for k in (1, 2, 1))
    np.testing.assert_array_equal(one.logits, again.logits)
    assert not np.array_equal(one.logits, two.logits)
    assert not np.array_equal(one.logits, still.logits)
    without = build(TASK, **SMALL[build])
    np.testing.assert_array_equal(
        without.apply(variables, x, train=True)[0].logits, without.apply(variables, x)[0].logits
    )


@pytest.mark.parametrize("build", [mlp, cnn])
def test_members_stack_under_vmap_with_their_own_statistics(build):
    model, x = build(TASK, batch_norm=True, **SMALL[build]), images()

    def first_step(key):
        variables = model.init(key, x)
        return variables, *model.apply(variables, x, train=True)

    keys = jax.random.split(jax.random.key(0), 3)
    stacked = jax.jit(jax.vmap(first_step))(keys)
    variables, _, state = stacked
    assert jax.tree.map(jnp.shape, state["batch_stats"]) == jax.tree.map(jnp.shape, variables["batch_stats"])
    for member in range(3):
        alone = jax.jit(first_step)(keys[member])
        own = jax.tree.map(lambda leaf, member=member: leaf[member], stacked)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), alone[0], own[0])
        for got, want in zip(jax.tree.leaves(own[1:]), jax.tree.leaves(alone[1:]), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "build,arguments,message",
    [
        (mlp, {"hidden": (0,)}, r"mlp.hidden = \(0,\): expected a tuple of whole numbers >= 1"),
        (mlp, {"hidden": 64}, "mlp.hidden = 64: expected a tuple"),
        (mlp, {"bottleneck": -1}, "mlp.bottleneck = -1: expected a whole number of units, or 0"),
        (mlp, {"dropout": 1.0}, r"mlp.dropout = 1.0: expected a number in \[0, 1\)"),
        (mlp, {"dtype": "float16"}, "mlp.dtype = 'float16': expected float32 or bfloat16"),
        (cnn, {"widths": (8, -1)}, r"cnn.widths = \(8, -1\): expected a tuple"),
        (cnn, {"dense": 0}, "cnn.dense = 0: expected a whole number >= 1"),
        (cnn, {"kernel_size": 2.5}, "cnn.kernel_size = 2.5: expected a whole number"),
        (cnn, {"dropout": -0.1}, "cnn.dropout = -0.1"),
        (cnn, {"dtype": None}, "cnn.dtype = None"),
    ],
)
def test_arguments_out_of_range_are_one_line(build, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        build(TASK, **arguments)
    assert "\n" not in str(caught.value)


def test_an_image_too_small_for_the_poolings_is_one_line():
    model = cnn(TASK, widths=(4, 4, 4))
    shapes(model, images(size=8))
    with pytest.raises(UserError, match="images of 7x7 are too small .* at least 8x8") as caught:
        shapes(model, images(size=7))
    assert "\n" not in str(caught.value)


# --- initial weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["cnn(batch_norm=True)", "cnn", "mlp(hidden=(256, 256, 256))", "mlp(batch_norm=True)", "vgg(depth=8)"],
)
def test_a_network_begins_with_units_that_answer_and_signals_that_last(address):
    """8 seeds: hardly a unit is 0 for every image, and the second moment neither fades nor grows."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(64, 16, 16, 3)).astype(np.float32)
    model = build_model(address, Task(10, 1, (0.0,) * 3, (1.0,) * 3))
    of_one = jax.jit(lambda key: model.apply(model.init(key, image[:1]), image, train=True)[0])
    moments, silent = [], []
    for seed in range(8):
        outputs = of_one(jax.random.key(seed))
        moments.append([np.mean(np.asarray(value) ** 2) for value in outputs.features.values()])
        silent.append(np.mean((np.asarray(outputs.embedding) <= 0).all(axis=0)))
    # Without normalisation what noise has in common, its pooled mean, decides for some units.
    assert np.mean(silent) < (0.3 if address == "cnn" else 0.05) and np.max(silent) < 0.5
    # He et al. 2015: relu(x) keeps half of the second moment of x, and the kernel doubles it again.
    assert (np.mean(moments, axis=0) > 0.3).all() and (np.mean(moments, axis=0) < 10).all()


def test_the_dense_layer_of_a_normalised_cnn_is_normalised():
    """Every unit answers about half of the images, also after weights that would silence it."""
    image = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype(np.float32)
    model = build_model("cnn(widths=(8, 16), dense=32, batch_norm=True)", Task(10, 1, (0.0,), (1.0,)))
    variables = jax.jit(model.init)(jax.random.key(0), image[:1])
    kernel = variables["params"]["dense"]["kernel"]
    variables["params"]["dense"]["kernel"] = kernel - 0.5  # as some steps along one direction leave it
    train = jax.jit(lambda variables: model.apply(variables, image, train=True)[0].embedding)
    embedding = np.asarray(train(variables))
    assert ((embedding > 0).mean(axis=0) > 0.2).all() and ((embedding > 0).mean(axis=0) < 0.8).all()
