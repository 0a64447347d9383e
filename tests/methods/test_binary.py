"""Methods of methods/binary.py: which weights are of few bits, with which gradient, and what is kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Var, jaxprs_in_params

from mtkd_jax.addresses import build_model
from mtkd_jax.engine import population
from mtkd_jax.engine.step import same_family
from mtkd_jax.methods import binary
from mtkd_jax.models import levels, stages
from mtkd_jax.models.levels import LEVELS, round_inputs, round_off
from mtkd_jax.results import bodies
from mtkd_jax.types import (
    Batch,
    Context,
    Outputs,
    Peers,
    Task,
    TrainState,
    UserError,
)
from tests import small
from tests.references import methods as reference

XNOR = binary.xnor()


def numbers(recipe):
    return {name: jnp.float32(value) for name, value in recipe.hyper}


def view(recipe, params):
    """The parameters that a student computes with."""
    return recipe.view({"params": params}, None, numbers(recipe), None)["params"]


def state(params):
    return TrainState(params, aux={}, model_state={"batch_stats": 7}, opt_state={}, mem={}, key=None)


def viewed(kernel):
    """A kernel after the view, between two others."""
    others = jnp.ones((2, 2))
    params = {"dense1": {"kernel": others}, "dense2": {"kernel": kernel}, "heads": {"kernel": others}}
    found = view(XNOR, params)
    for name in ("dense1", "heads"):
        assert found[name]["kernel"] is others
    return found["dense2"]["kernel"]


def test_signs_times_mean_size_by_hand():
    np.testing.assert_array_equal(viewed(jnp.array([[1.0], [-2.0], [3.0]])), [[2.0], [-2.0], [2.0]])


@pytest.mark.parametrize("shape", [(5, 3), (3, 3, 2, 4), (3, 3, 1, 6)])
def test_one_number_for_every_output_channel(shape):
    """Flax kernels have the output last; taken from PyTorch unturned, the first axis would be it."""
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = viewed(jnp.asarray(kernel))
    np.testing.assert_allclose(found, reference.xnor(kernel.astype(np.float64)), rtol=1e-6)
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
    assert changed(params, view(XNOR, params)) == kernels
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
    kept = XNOR.deploy(state({**params, "dense2": {"kernel": jnp.array([[0.5, -0.1], [-1.0, 0.3]])}}), {})
    assert kept["batch_stats"] == 7
    np.testing.assert_allclose(kept["params"]["dense2"]["kernel"], [[0.75, -0.2], [-0.75, 0.2]], rtol=1e-6)


def test_a_network_with_nothing_in_between_is_refused():
    with pytest.raises(UserError, match="no layer between the first and the last"):
        view(XNOR, {"dense1": {"kernel": jnp.ones((2, 2))}, "heads": {"kernel": jnp.ones((2, 2))}})


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
    viewed = view(binary.xnor(), variables["params"])
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


def kernels_that_read_the_input(model, image):
    """Found in the program: paths of weights that meet the input before any other weight has met it.

    Of every number it is known whether it is the input's alone, or which weights' alone; where both meet
    these weights read the input, and what comes out is nobody's alone. Other parameters are left out.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    program = jax.make_jaxpr(lambda variables, image: model.apply(variables, image)[0].logits)(shapes, image)
    found, mixed = set(), "mixed"

    def of_weights(path):
        name = jax.tree_util.keystr(path[1:], simple=True, separator="/")
        is_weights = path[0].key == "params" and name.rpartition("/")[2] in ("kernel", "embedding")
        return frozenset([name] if is_weights else [])

    def together(*parts):
        weights = frozenset().union(*(part for part in parts if isinstance(part, frozenset)))
        if mixed in parts or ("input" in parts and weights):
            return mixed
        return "input" if "input" in parts else weights

    def status(known, one):
        return known.get(one, frozenset()) if isinstance(one, Var) else frozenset()

    def follow(jaxpr, given):
        known = dict(zip(jaxpr.invars, given))
        for equation in jaxpr.eqns:
            read = [status(known, one) for one in equation.invars]
            inner = list(jaxprs_in_params(equation.params))
            if len(inner) == 1 and len(inner[0].invars) == len(read):
                out = follow(inner[0], read)
                if equation.primitive.name == "scan":
                    first, number = equation.params["num_consts"], equation.params["num_carry"]
                    carried = map(together, read[first : first + number], out[:number])
                    out = follow(inner[0], [*read[:first], *carried, *read[first + number :]])
            else:
                out = [together(*read)] * len(equation.outvars)
                if out[0] == mixed and mixed not in read:
                    found.update(*(one for one in read if isinstance(one, frozenset)))
            known.update(zip(equation.outvars, out))
        return [status(known, one) for one in jaxpr.outvars]

    leaves = [of_weights(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    follow(program.jaxpr, [*leaves, "input"])
    return {name for name in found if name.endswith("/kernel")}


@pytest.mark.parametrize(
    "address, size",
    [
        ("mlp(hidden=(4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4))", (8, 8, 1)),
        ("mlp(hidden=(4, 4), bottleneck=3)", (8, 8, 1)),
        ("cnn(widths=(2, 2), dense=4)", (8, 8, 1)),
        ("resnet(depth=8)", (8, 8, 1)),
        ("densenet(blocks=(1, 1), growth=4, stem='cifar')", (32, 32, 3)),
        ("shufflenet_v2(width=0.5)", (32, 32, 3)),
        ("vit(width=16, depth=4, attention_heads=2, stem='cifar')", (32, 32, 3)),
        ("unet(width=2, depth=2)", (8, 8, 1)),
        ("spiking_cnn(widths=(2,), hidden=(4,))", (8, 8, 1)),
        ("speedy(width=4, blocks=2, trainable='')", (8, 8, 3)),
        ("fcn(widths=(2, 3, 2))", (16, 1, 2)),
        ("series_vgg(widths=(2, 2, 2, 2, 2, 2, 2, 2, 2, 2))", (8, 1, 4)),
        ("series_resnet(widths=(3, 4))", (16, 1, 2)),
        ("inception_time(width=2)", (16, 1, 2)),
        ("lstm(widths=(3, 4))", (9, 1, 2)),
        ("lstm(widths=(3,), frames=True)", (9, 1, 2)),
        ("transformer(width=8, depth=1, attention_heads=2, source_tokens=7)", (2, 5, 1)),
    ],
)
def test_what_reads_the_input_stays_real_and_nothing_else(address, size):
    """Of every family, whatever its layers are called."""
    task = Task(5, 1, (0.5,) * size[-1], (0.2,) * size[-1])
    model, image = build_model(address, task), jax.ShapeDtypeStruct((2, *size), jnp.float32)
    first = kernels_that_read_the_input(model, image)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    params = jax.tree.map(uneven, params)
    paths = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    }
    kernels = {path for path in paths if path.endswith("/kernel") and not path.startswith("heads/")}
    assert first or address.startswith("transformer")
    assert changed(params, view(XNOR, params)) == kernels - first


def test_those_that_read_the_input_by_name():
    """Of the networks in which it is not the first one by name: known of each from its drawing."""
    task, inputs = Task(5, 1, (0.5,) * 2, (0.2,) * 2), {}
    sizes = {"speedy(trainable='')": (17, 17, 2), "series_resnet": (9, 1, 2), "lstm": (9, 1, 2)}
    for address, size in sizes.items():
        image = jax.ShapeDtypeStruct((1, *size), jnp.float32)
        params = jax.eval_shape(build_model(address, task).init, jax.random.key(0), image)["params"]
        paths = [
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path, _ in jax.tree_util.tree_leaves_with_path(params)
        ]
        inputs[address] = {path.removesuffix("/kernel") for path in stages.first_kernels(paths)}
    assert inputs == {
        "speedy(trainable='')": {"whiten"},
        "series_resnet": {"stage1_conv1", "stage1_shortcut_conv"},
        "lstm": {"stage1/ii", "stage1/if", "stage1/ig", "stage1/io"},
    }


# --- few bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_weights_are_rounded_to_few_values_of_each_output(bits):
    rng = np.random.default_rng(0)
    shapes = {"conv1": (3, 3, 2, 4), "heads": (2, 5, 3)}
    params = {
        name: {"kernel": rng.normal(size=shape).astype(np.float32), "bias": rng.normal(size=bias)}
        for (name, shape), bias in zip(shapes.items(), (4, (2, 3)))
    }
    params = jax.tree.map(np.float32, params)
    recipe = binary.quantised(bits=bits)
    found = jax.tree.map(np.asarray, view(recipe, jax.tree.map(jnp.asarray, params)))
    kernels = {name: params[name]["kernel"].astype(np.float64) for name in params}
    of_conv = reference.quantised(kernels["conv1"].reshape(-1, 4), bits)
    expected = {
        "conv1": of_conv.reshape(shapes["conv1"]),
        "heads": np.array([reference.quantised(head, bits) for head in kernels["heads"]]),
    }
    for name, kernel in expected.items():
        np.testing.assert_allclose(found[name]["kernel"], kernel, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found[name]["bias"], params[name]["bias"])
    assert len(np.unique(found["conv1"]["kernel"][..., 0])) <= 2**bits - 1
    kept = recipe.deploy(state(jax.tree.map(jnp.asarray, params)), numbers(recipe))
    assert kept["batch_stats"] == 7
    np.testing.assert_array_equal(kept["params"]["heads"]["kernel"], found["heads"]["kernel"])
    assert same_family(recipe, binary.quantised(bits=bits % 7 + 2))


def test_the_gradient_goes_straight_through_and_zeros_stay():
    kernel = jnp.array([[0.0, 0.3], [0.0, -1.0]])
    recipe = binary.quantised(bits=2)
    found = view(recipe, {"dense1": {"kernel": kernel}})["dense1"]["kernel"]
    np.testing.assert_array_equal(found, [[0.0, 0.0], [0.0, -1.0]])
    gradient = jax.grad(lambda k: (view(recipe, {"a": {"kernel": k}})["a"]["kernel"] * 3).sum())(kernel)
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
    return view(recipe, between_others(kernel))["dense2"]["kernel"]


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
    seen, kept = view(recipe, params), recipe.deploy(state(params), numbers(recipe))["params"]
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
        view(method(), {"dense1": {"kernel": zeros}, "heads": {"kernel": zeros}})


# --- activations of few bits --------------------------------------------------------------------------


def test_activations_by_hand():
    """The card's fixture: 2 bits of 0.4, 0.9 and 1.3."""
    found = round_off(jnp.array([0.4, 0.9, 1.3, -0.2]), jnp.float32(3.0))
    np.testing.assert_allclose(found, [1 / 3, 1, 1, 0], rtol=1e-6)
    real = jnp.array([-80.0, 0.3, 80.0])
    np.testing.assert_array_equal(round_off(real, jnp.float32(0.0)), real)


def test_activations_are_their_reference_and_pass_the_gradient_inside():
    x = np.random.default_rng(5).normal(0.5, 0.6, size=(6, 4))
    found, backward = jax.vjp(lambda x: round_off(x, jnp.float32(7.0)), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, reference.few_bit_activations(x, 3), atol=1e-6)
    (gradient,) = backward(jnp.full(x.shape, 2.0))
    np.testing.assert_array_equal(gradient, np.where((x >= 0) & (x <= 1), 2.0, 0.0))


NETWORKS = (
    "mlp(hidden=(6, 6, 6), dropout=0.5)",
    "cnn(widths=(2, 3), dense=4, batch_norm=True)",
    "vit(width=16, depth=4, attention_heads=2, stem='cifar')",
)


@pytest.mark.parametrize("address", NETWORKS)
def test_every_layer_with_an_inner_kernel_reads_few_values(address, monkeypatch):
    """Of any family: found by their kernels, not written into the networks."""
    model = round_inputs(build_model(address, Task(num_classes=3, num_heads=1, mean=(0.5,), std=(0.2,))))
    image = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
    variables = model.init(jax.random.key(1), image)
    recipe, read = binary.dorefa(bits=2, activations=2), []

    def note(x, steps):
        read.append(round_off(x, steps))
        return read[-1]

    monkeypatch.setattr(levels, "round_off", note)
    seen = recipe.view(variables, None, numbers(recipe), None)
    few, _ = model.apply(seen, image)
    _, inner = zip(*jax.tree_util.tree_leaves_with_path(seen[LEVELS]))
    assert len(read) == len(inner) >= 2
    assert all(len(np.unique(np.round(x, 5))) <= 4 for x in read)
    real, _ = model.apply({**variables, "params": seen["params"]}, image)
    assert len(read) == len(inner) and np.abs(few.logits - real.logits).max() > 1e-3
    _, state = model.apply(seen, image, train=True, key=jax.random.key(2))
    assert set(state) == set(seen) - {"params"}


def test_bit_widths_are_members_of_one_population(tmp_path):
    modes = tuple(f"binary.dorefa(bits={b}, activations={a})" for b, a in ((2, 2), (4, 8)))
    config = small.config(
        **{
            "teachers.models": ("mlp(hidden=(8,))",),
            "students.model": "mlp(hidden=(16, 16), batch_norm=True)",
            "students.modes": modes,
            "students.alphas": (0.5,),
            "students.epochs": 30,
        }
    )
    done = small.train(config, tmp_path)
    (fitted,) = (f for stage, f in done.items() if "dorefa" in stage)
    trained, names = fitted.population, fitted.population.names
    assert {name.split(" a=")[0] for name in names} == {*modes}
    assert fitted.val_nll.min() < 0.8 * np.log(4), fitted.val_nll
    steps = np.asarray(trained.variables[LEVELS]["dense2"]["input"])
    for name, own, kernel in zip(names, steps, np.asarray(trained.variables["params"]["dense2"]["kernel"])):
        is_two = "bits=2" in name
        assert own == (3 if is_two else 255)
        assert len(np.unique(np.round(kernel, 6))) <= (4 if is_two else 16)


def test_a_network_of_ones_own_cannot_have_few_bits_of_activations():
    params = {"network": {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.ones((2, 2))}}}
    with pytest.raises(UserError, match="must be a network of the package, or a method of real activations"):
        view(binary.wrpn(activations=4), params)
    with pytest.raises(UserError, match="wrpn.activations=9.: must be from 1 to 8 bits, or 0"):
        binary.wrpn(activations=9)


def recurrent():
    """A model of two layers of long short-term memory, its variables, and series."""
    model = round_inputs(build_model("lstm(widths=(3, 4))", Task(5, 1, (0.5, 0.5), (0.2, 0.2))))
    image = jax.random.uniform(jax.random.key(0), (3, 9, 1, 2))
    return model, model.init(jax.random.key(1), image), image


@pytest.mark.parametrize(
    "recipe",
    [binary.qnn(), binary.dorefa(activations=2), binary.wrpn(activations=4)],
    ids=lambda one: one.name,
)
def test_what_gates_read_cannot_be_of_few_bits(recipe):
    """Its dense layers are parameters alone, and were not rounded though the report said so."""
    model, variables, image = recurrent()
    seen = recipe.view(variables, None, numbers(recipe), None)
    with pytest.raises(
        UserError, match=r"^lstm\(widths=\(3, 4\)\): stage1 is recurrent.* such as binary.xnor"
    ):
        model.apply(seen, image)


def test_weights_of_gates_may_be_of_few_bits():
    """Those of the first layer that read its own state, and all of the second."""
    model, variables, image = recurrent()
    seen = binary.dorefa(bits=2).view(variables, None, numbers(binary.dorefa(bits=2)), None)
    inner = {f"stage1/h{gate}" for gate in "ifgo"} | {f"stage2/{of}{gate}" for of in "ih" for gate in "ifgo"}
    assert changed(variables["params"], seen["params"]) == {f"{layer}/kernel" for layer in inner}
    few, real = (model.apply(one, image)[0].logits for one in (seen, variables))
    assert np.abs(few - real).max() > 1e-3
    assert bodies.of_weights(seen)["activation_bits"] == 32


# --- signs of both ------------------------------------------------------------------------------------


def test_signs_of_activations_by_hand():
    """The card's fixture at 0.3 and 1.5, and the ends of where the gradient passes."""
    x = jnp.array([0.3, 1.5, -0.3, -1.5, 1.0, -1.0, 0.0])
    found, backward = jax.vjp(lambda x: round_off(x, jnp.float32(levels.SIGNS)), x)
    np.testing.assert_array_equal(found, [1, 1, -1, -1, 1, -1, -1])
    np.testing.assert_array_equal(backward(jnp.ones(7))[0], [1, 0, 1, 0, 1, 1, 1])


def test_a_network_of_signs_is_the_reference():
    model = round_inputs(build_model("mlp(hidden=(5, 4))", Task(3, 1, (0.5,), (0.2,))))
    image = jax.random.uniform(jax.random.key(0), (6, 4, 4, 1))
    variables, recipe = model.init(jax.random.key(1), image), binary.qnn()
    said, _ = model.apply(recipe.view(variables, None, numbers(recipe), None), image)
    layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    x = (np.asarray(image, np.float64).reshape(6, -1) - 0.5) / 0.2
    x = np.maximum(x @ layers["dense1"]["kernel"] + layers["dense1"]["bias"], 0)
    assert (x == 0).any()
    x = np.maximum(reference.qnn(x, layers["dense2"]["kernel"]) + layers["dense2"]["bias"], 0)
    expected = x @ layers["heads"]["kernel"][0] + layers["heads"]["bias"]
    np.testing.assert_allclose(said.logits, expected, rtol=1e-4, atol=1e-5)


def test_signs_pass_the_gradient_up_to_1_and_are_clipped():
    recipe, kernel = binary.qnn(), jnp.array([[0.3, -1.5], [-1.0, 0.0]])
    found, backward = jax.vjp(lambda k: view(recipe, between_others(k))["dense2"]["kernel"], kernel)
    np.testing.assert_array_equal(found, [[1, -1], [-1, 1]])
    np.testing.assert_array_equal(backward(jnp.full((2, 2), 3.0))[0], [[3, 0], [3, 3]])
    after = recipe.after(state(between_others(kernel)), None).params
    np.testing.assert_array_equal(after["dense2"]["kernel"], kernel.clip(-1, 1))
    kept = recipe.deploy(state(between_others(kernel)), numbers(recipe))
    np.testing.assert_array_equal(kept["params"]["dense2"]["kernel"], found)
    with pytest.raises(UserError, match="binary.qnn: the network has no layer between"):
        view(recipe, {"dense1": {"kernel": kernel}, "heads": {"kernel": kernel}})


def test_a_student_of_signs_learns_and_has_one_bit_of_both(tmp_path):
    config = small.config(
        **{
            "teachers.models": ("mlp(hidden=(8,))",),
            "students.model": "mlp(hidden=(16, 16), batch_norm=True)",
            "students.modes": ("binary.qnn",),
            "students.alphas": (0.5,),
            "students.epochs": 30,
        }
    )
    done = small.train(config, tmp_path)
    (fitted,) = (f for stage, f in done.items() if "qnn" in stage)
    assert fitted.val_nll.min() < 0.8 * np.log(4), fitted.val_nll
    trained = fitted.population
    np.testing.assert_array_equal(np.abs(trained.variables["params"]["dense2"]["kernel"]), 1)
    told = bodies.of_weights(population.take(trained.variables, 0))
    assert told["activation_bits"] == 1
    inner = bodies.stored(np.asarray(trained.variables["params"]["dense2"]["kernel"][0]))
    assert inner.num_bytes == inner.weights / 8


# --- apprentices --------------------------------------------------------------------------------------


def test_an_apprentice_has_few_bits_and_its_teacher_is_real():
    recipe = binary.apprentice(bits=2, activations=2)
    kernel = jnp.array([[0.33, -0.9], [0.0, 1.7]])
    variables = {"params": between_others(kernel)}
    for place, expected, steps in ((0, [[0, -1], [0, 1]], 3), (1, kernel, 0)):
        hyper = {**numbers(recipe), "place": jnp.int32(place)}
        found = recipe.view(variables, None, hyper, None)
        np.testing.assert_array_equal(found["params"]["dense2"]["kernel"], expected)
        assert found[LEVELS]["dense2"]["input"] == steps
        kept = recipe.deploy(state(variables["params"]), hyper)
        np.testing.assert_array_equal(kept["params"]["dense2"]["kernel"], expected)


def test_an_apprentice_learns_from_its_peer_and_the_peer_from_labels_alone():
    """By hand, the cards' fixture: CE = ln 4 and KL = ln(2)/4 of the apprentice, CE = ln 2 of its peer"""
    recipe = binary.apprentice()
    logits = jnp.log(jnp.array([[[0.25, 0.5, 0.25]], [[0.5, 0.25, 0.25]]]))
    losses = [recipe.term(context_of(recipe, logits, place)) for place in (0, 1)]
    expected = [[0.25 * np.log(4) + 0.75 * np.log(2) / 4], [np.log(2)]]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


@pytest.mark.parametrize("place", [0, 1])
def test_the_losses_of_an_apprentice_and_its_peer_are_the_reference(place):
    recipe, cohort = binary.apprentice(), np.random.default_rng(6).normal(size=(2, 4, 5))
    seen = context_of(recipe, jnp.asarray(cohort, jnp.float32), place, temperature=3.0)
    expected = [reference.apprentice(place, cohort[:, b], 0, 0.25, 3.0) for b in range(4)]
    np.testing.assert_allclose(recipe.term(seen), expected, rtol=1e-5)


def context_of(recipe, logits, place, temperature=1.0):
    hyper = {"alpha": 0.25, "temperature": temperature, "label_smoothing": 0.0}
    hyper = {name: jnp.float32(value) for name, value in hyper.items()}
    size = logits.shape[1]
    label, labelled = jnp.zeros(size, jnp.int32), jnp.ones(size, bool)
    batch = Batch(jnp.zeros((size, 2, 2, 1)), label, jnp.arange(size), labelled)
    student = Outputs(logits[place], logits[place][None], None, {})
    peers = Peers(logits, jnp.int32(place), jnp.array([True, True]))
    one = Context(batch, None, {}, hyper, None, jnp.int32(0), jnp.float32(0), student, peers)
    one = dataclasses.replace(one, teacher=recipe.teach(one, None))
    return dataclasses.replace(one, targets=recipe.aim(one, recipe.weigh(one)))
