"""Methods of methods/binary.py: which weights are of few bits, with which gradient, and what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.config import build_model
from mtkd_jax.methods import binary
from mtkd_jax.types import Task, TrainState, UserError
from tests import small
from tests.references import methods as reference

XNOR = binary.xnor()


def state(params):
    return TrainState(params, aux={}, model_state={"batch_stats": 7}, opt_state={}, mem={}, key=None)


def viewed(kernel):
    """A kernel after the view, between two others."""
    others = jnp.ones((2, 2))
    params = {"dense1": {"kernel": others}, "dense2": {"kernel": kernel}, "heads": {"kernel": others}}
    found = XNOR.view(params, None, None)
    for name in ("dense1", "heads"):
        assert found[name]["kernel"] is others
    return found["dense2"]["kernel"]


def test_signs_times_mean_size_by_hand():
    np.testing.assert_array_equal(viewed(jnp.array([[1.0], [-2.0], [3.0]])), [[2.0], [-2.0], [2.0]])


@pytest.mark.parametrize("shape", [(5, 3), (3, 3, 2, 4), (3, 3, 1, 6)])
def test_one_number_for_every_output_channel(shape):
    """Flax kernels have the output last; taken from PyTorch unturned, the first axis would be it."""
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = np.empty(shape)
    for channel in range(shape[-1]):
        of_channel = kernel[..., channel].astype(np.float64)
        expected[..., channel] = np.sign(of_channel) * np.abs(of_channel).mean()
    found = viewed(jnp.asarray(kernel))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(viewed(4.0 * jnp.asarray(kernel)), 4.0 * found, rtol=1e-6)


def test_gradient_passes_the_sign_up_to_1_and_the_mean_everywhere():
    rng = np.random.default_rng(1)
    kernel, of_output = 1.2 * rng.normal(size=(6, 2)), rng.normal(size=(6, 2))
    assert 0 < np.sum(np.abs(kernel) > 1) < kernel.size
    expected = np.zeros_like(kernel)
    for i, channel in np.ndindex(*kernel.shape):
        signs = np.sign(kernel[:, channel])
        if abs(kernel[i, channel]) <= 1:
            expected[i, channel] = np.abs(kernel[:, channel]).mean() * of_output[i, channel]
        expected[i, channel] += signs[i] / 6 * (signs @ of_output[:, channel])
    weigh = jnp.asarray(of_output, jnp.float32)
    found = jax.grad(lambda k: jnp.sum(weigh * viewed(k)))(jnp.asarray(kernel, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_weights_clipped_to_the_border_can_come_back():
    gradient = jax.grad(lambda k: viewed(k)[0, 0])(jnp.array([[1.0], [-1.0]]))
    np.testing.assert_allclose(gradient, [[1.0 + 0.5], [-0.5]])  # sign by itself, and the mean by both


def test_zero_has_a_sign():
    kernel = jnp.array([[0.0, 0.0], [2.0, 0.0]])
    np.testing.assert_array_equal(viewed(kernel), [[1.0, 0.0], [1.0, 0.0]])
    assert np.isfinite(jax.grad(lambda k: viewed(k).sum())(kernel)).all()


@pytest.mark.parametrize(
    "address, expected",
    [
        ("mlp(hidden=(4, 4, 4), batch_norm=True)", {"dense2", "dense3"}),
        ("cnn(widths=(2, 2), dense=4)", {"conv2", "dense"}),
        ("cnn(widths=(2,), dense=4, batch_norm=True)", {"dense"}),
        (
            "resnet(depth=8)",
            {f"stage{s}_block1/conv{c}" for s in (1, 2, 3) for c in (1, 2)}
            | {"stage2_block1/shortcut_conv", "stage3_block1/shortcut_conv"},
        ),
        ("vgg", {"stage2_conv1", "stage3_conv1", "stage4_conv1", "stage5_conv1"}),
    ],
)
def test_first_and_last_layer_stay_real(address, expected):
    model = build_model(address, Task(num_classes=3, num_heads=1, mean=(0.5,), std=(0.2,)))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32))
    params = jax.tree.map(uneven, shapes["params"])
    kernels = {f"{name}/kernel" for name in expected}
    assert changed(params, XNOR.view(params, None, None)) == kernels
    assert changed(params, XNOR.after(state(params), None).params) == kernels


def uneven(leaf):
    """Something that neither the view nor the clipping leaves as it is."""
    values = np.full(leaf.shape, 0.5, np.float32)
    values.flat[0] = 2.0
    return jnp.asarray(values)


def changed(before, after):
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, old), new in pairs
        if not np.array_equal(old, new)
    }


def test_real_weights_are_clipped_and_binary_ones_deployed():
    kernels = {"dense1": 3.0, "dense2": 3.0, "heads": 3.0}
    params = {name: {"kernel": jnp.full((2, 2), value)} for name, value in kernels.items()}
    after = XNOR.after(state(params), None).params
    assert [float(after[name]["kernel"][0, 0]) for name in kernels] == [3.0, 1.0, 3.0]
    kept = XNOR.deploy(state({**params, "dense2": {"kernel": jnp.array([[0.5, -0.1], [-1.0, 0.3]])}}))
    assert kept["batch_stats"] == 7
    np.testing.assert_allclose(kept["params"]["dense2"]["kernel"], [[0.75, -0.2], [-0.75, 0.2]], rtol=1e-6)


def test_a_network_with_nothing_in_between_is_refused():
    with pytest.raises(UserError, match="no layer between the first and the last"):
        XNOR.view({"dense1": {"kernel": jnp.ones((2, 2))}, "heads": {"kernel": jnp.ones((2, 2))}}, None, None)


def test_it_learns_and_what_is_validated_is_binary(tmp_path):
    config = small.config(
        **{
            "teachers.models": ("mlp(hidden=(8,))",),
            "students.model": "mlp(hidden=(16, 16))",
            "students.modes": ("binary.xnor",),
            "students.epochs": 20,
            "runtime.how": "vmap",
        }
    )
    done = small.train(config, tmp_path)
    (fitted,) = (f for stage, f in done.items() if "xnor" in stage)
    assert (fitted.val_nll < 0.8 * np.log(4)).all(), fitted.val_nll
    size = np.abs(fitted.population.variables["params"]["dense2"]["kernel"])  # [M,in,out]
    np.testing.assert_array_equal(size, np.broadcast_to(size[:, :1], size.shape))
    real = np.abs(fitted.population.variables["params"]["dense1"]["kernel"])
    assert (real != real[:, :1]).any()


@pytest.mark.parametrize("num_channels", [1, 3])
def test_of_parallel_first_layers_all_stay_real(num_channels):
    """All that reads the input: convolutions, or the bottleneck before them, the maximum, the shortcut."""
    task = Task(4, 1, (0.0,) * num_channels, (1.0,) * num_channels)
    model = build_model("inception_time(width=4)", task)
    image = jax.random.normal(jax.random.key(0), (2, 16, 1, num_channels))
    variables = model.init(jax.random.key(1), image)
    viewed = binary.xnor().view(variables["params"], None, None)
    kept = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, real), own in zip(
            jax.tree_util.tree_leaves_with_path(variables["params"]), jax.tree.leaves(viewed)
        )
        if path[-1].key == "kernel" and np.array_equal(real, own)
    }
    inner = ("conv10", "conv20", "conv40") if num_channels == 1 else ("bottleneck",)
    first = {f"stage1_module1/stem_{name}/kernel" for name in (*inner, "pool_conv")}
    assert kept == {*first, "stem_shortcut_conv/kernel", "heads/kernel"}


# --- few bits -----------------------------------------------------------------------------------------


def rounded(leaf, bits, axes):
    """In float64, one output at a time."""
    leaf = np.asarray(leaf, np.float64)
    step = np.abs(leaf).max(axis=axes, keepdims=True) / (2 ** (bits - 1) - 1)
    return step * np.rint(leaf / step)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_weights_are_rounded_to_few_values_of_each_output(bits):
    rng = np.random.default_rng(0)
    shapes = {"conv1": (3, 3, 2, 4), "heads": (2, 5, 3)}
    params = {
        name: {"kernel": rng.normal(size=shape).astype(np.float32), "bias": np.ones(3, np.float32)}
        for name, shape in shapes.items()
    }
    recipe = binary.quantised(bits=bits)
    found = jax.tree.map(np.asarray, recipe.view(jax.tree.map(jnp.asarray, params), None, None))
    for name, axes in (("conv1", (0, 1, 2)), ("heads", (1,))):
        expected = rounded(params[name]["kernel"], bits, axes)
        np.testing.assert_allclose(found[name]["kernel"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["conv1"]["bias"], params["conv1"]["bias"])
    assert len(np.unique(found["conv1"]["kernel"][..., 0])) <= 2**bits - 1
    kept = recipe.deploy(state(jax.tree.map(jnp.asarray, params)))
    assert kept["batch_stats"] == 7
    np.testing.assert_array_equal(kept["params"]["heads"]["kernel"], found["heads"]["kernel"])
    assert recipe.view == binary.quantised(bits=bits).view != binary.quantised(bits=bits % 7 + 2).view


def test_the_gradient_goes_straight_through_and_zeros_stay():
    kernel = jnp.array([[0.0, 0.3], [0.0, -1.0]])
    view = binary.quantised(bits=2).view
    found = view({"dense1": {"kernel": kernel}}, None, None)["dense1"]["kernel"]
    np.testing.assert_array_equal(found, [[0.0, 0.0], [0.0, -1.0]])
    gradient = jax.grad(lambda k: (view({"a": {"kernel": k}}, None, None)["a"]["kernel"] * 3).sum())(kernel)
    np.testing.assert_array_equal(gradient, np.full((2, 2), 3.0))


@pytest.mark.parametrize("bits", [1, 9])
def test_other_numbers_of_bits_are_refused(bits):
    with pytest.raises(UserError, match=f"quantised.bits={bits}.: must be from 2 to 8"):
        binary.quantised(bits=bits)


def test_a_student_of_three_bits_learns_and_is_kept_so(tmp_path):
    config = small.config(
        **{
            "teachers.models": ("mlp(hidden=(8,))",),
            "students.model": "mlp(hidden=(16, 16))",
            "students.modes": ("binary.quantised(bits=3)",),
            "students.epochs": 40,
            "runtime.how": "vmap",
        }
    )
    done = small.train(config, tmp_path)
    (fitted,) = (f for stage, f in done.items() if "quantised" in stage)
    assert fitted.val_nll.min() < 0.8 * np.log(4), fitted.val_nll
    for layer in ("dense1", "dense2"):
        kernel = np.asarray(fitted.population.variables["params"][layer]["kernel"])  # [M,in,out]
        assert max(len(np.unique(np.round(one, 6))) for of in kernel for one in of.T) <= 7


# --- grids from -1 to 1 -------------------------------------------------------------------------------


def between_others(kernel):
    others = jnp.ones((2, 2))
    return {"dense1": {"kernel": others}, "dense2": {"kernel": kernel}, "heads": {"kernel": others}}


def on_grid(recipe, kernel):
    return recipe.view(between_others(kernel), None, None)["dense2"]["kernel"]


@pytest.mark.parametrize(
    "recipe, weights, expected",
    [
        (binary.dorefa(bits=2), [-1.0, -0.2, 0.3, 1.0], [-1, -1 / 3, 1 / 3, 1]),
        (binary.wrpn(bits=4), [0.33, -0.9, 1.7], [2 / 7, -6 / 7, 1]),
        (binary.wrpn(bits=2), [0.33, -0.9, 0.0], [0, -1, 0]),
    ],
)
def test_grids_by_hand(recipe, weights, expected):
    """Fixtures of the cards."""
    params = between_others(jnp.array(weights)[:, None])
    seen, kept = recipe.view(params, None, None), recipe.deploy(state(params))["params"]
    np.testing.assert_allclose(seen["dense2"]["kernel"][:, 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(kept["dense2"]["kernel"], seen["dense2"]["kernel"])
    assert seen["dense1"]["kernel"] is params["dense1"]["kernel"]


@pytest.mark.parametrize("recipe", [binary.dorefa(bits=3), binary.wrpn(bits=3)])
def test_grids_are_their_references_and_pass_the_gradient_of_what_lies_below(recipe):
    kernel = np.random.default_rng(4).normal(size=(5, 3))
    expected = {"dorefa": reference.dorefa, "wrpn": reference.wrpn}[recipe.name](kernel, 3)
    found, backward = jax.vjp(lambda k: on_grid(recipe, k), jnp.asarray(kernel, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    (gradient,) = backward(jnp.ones_like(found))
    below = (1 - np.tanh(kernel) ** 2) / np.abs(np.tanh(kernel)).max()
    slope = below if recipe.name == "dorefa" else (np.abs(kernel) <= 1).astype(float)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4)


@pytest.mark.parametrize("method", [binary.dorefa, binary.wrpn])
def test_grids_of_zeros_are_finite_and_other_bits_refused(method):
    zeros = jnp.zeros((2, 2))
    assert np.isfinite(on_grid(method(), zeros)).all()
    assert np.isfinite(jax.grad(lambda k: on_grid(method(), k).sum())(zeros)).all()
    with pytest.raises(UserError, match=f"{method.__name__}.bits=1.: must be from 2 to 8"):
        method(bits=1)
    with pytest.raises(UserError, match=f"binary.{method.__name__}: the network has no layer between"):
        method().view({"dense1": {"kernel": zeros}, "heads": {"kernel": zeros}}, None, None)
