"""Methods of methods/pruned.py: which weights are 0 when, and that what is kept is as sparse as asked."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import addresses
from mtkd_jax.methods import pruned
from mtkd_jax.results import bodies
from mtkd_jax.types import Context, Task, TrainState, UserError
from tests import small
from tests.references import methods as reference


def params_of(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"conv1": (3, 3, 1, 4), "heads": (1, 4, 3)}
    return {
        name: {"kernel": rng.normal(size=shape).astype(np.float32), "bias": np.full(bias, 1e-3, np.float32)}
        for (name, shape), bias in zip(shapes.items(), (4, (1, 3)))
    }


def context(step, num_steps, sparsity=None):
    hyper = {} if sparsity is None else {"sparsity": jnp.float32(sparsity)}
    return Context(None, None, {}, hyper, None, jnp.int32(step), jnp.float32(step / num_steps))


def begin(recipe, params):
    mem = recipe.init_mem({"params": params, "batch_stats": 7}, None, 3)
    return TrainState(params, aux={}, model_state={"batch_stats": 7}, opt_state={}, mem=mem, key=None)


@pytest.mark.parametrize("step", [0, 10, 30, 60, 90])
def test_masks_follow_the_schedule_of_the_reference(step):
    recipe, params = pruned.gradual(sparsity=0.8, begin=0.1, end=0.7), params_of()
    state = recipe.after(begin(recipe, params), context(step, 100, 0.8))
    seen = recipe.view({"params": params, "batch_stats": 7}, state, {}, None)
    kernels = [of["kernel"] for of in params.values()]
    expected = reference.gradual(kernels, step / 100, 0.8, 0.1, 0.7)
    for (name, of), kernel in zip(seen["params"].items(), expected):
        np.testing.assert_allclose(of["kernel"], kernel, rtol=1e-6)
        np.testing.assert_array_equal(of["bias"], params[name]["bias"])
    assert seen["batch_stats"] == 7


def test_by_hand_a_half_of_six_weights_whichever_layer_they_are_of():
    params = {"a": {"kernel": jnp.array([[0.1, -5.0, 0.3]])}, "b": {"kernel": jnp.array([[-0.2, 4.0, 0.4]])}}
    mask = pruned.mask_of(params, jnp.float32(0.5))
    np.testing.assert_array_equal(mask["a"]["kernel"], [[False, True, False]])
    np.testing.assert_array_equal(mask["b"]["kernel"], [[False, True, True]])


def test_between_two_moments_masks_stay_and_what_is_masked_has_no_gradient():
    recipe, params = pruned.gradual(every=10), jax.tree.map(jnp.asarray, params_of())
    state = recipe.after(begin(recipe, params), context(50, 100, 0.9))
    moved = dataclasses.replace(state, params=jax.tree.map(lambda leaf: leaf[::-1], params))
    same = recipe.after(moved, context(51, 100, 0.9)).mem
    jax.tree.map(np.testing.assert_array_equal, same, state.mem)

    def total(params):
        return sum(leaf.sum() for leaf in jax.tree.leaves(recipe.view({"params": params}, state, {}, None)))

    gradient = jax.grad(total)(params)
    np.testing.assert_array_equal(gradient["conv1"]["kernel"], state.mem["conv1"]["kernel"])


def test_what_is_kept_is_as_sparse_as_asked_from_the_first_step_on():
    recipe, params = pruned.gradual(sparsity=0.75), params_of()
    kept = recipe.deploy(begin(recipe, params), {"sparsity": jnp.float32(0.75)})
    assert kept["batch_stats"] == 7
    assert sum(int((kept["params"][name]["kernel"] == 0).sum()) for name in params) == 36


def learnt(tmp_path, student, *modes):
    """The population of two modes, after a training that has brought them somewhere."""
    config = small.config(
        **{
            "teachers.models": ("mlp(hidden=(8,))",),
            "students.model": student,
            "students.modes": modes,
            "students.alphas": (0.5,),
            "students.epochs": 40,
        }
    )
    done = small.train(config, tmp_path)
    (fitted,) = (f for stage, f in done.items() if modes[0].partition("(")[0].partition(".")[2] in stage)
    assert fitted.val_nll.min() < 0.8 * np.log(4), fitted.val_nll
    assert len(fitted.population.names) == 4
    return fitted.population


def test_a_pruned_student_learns_and_sparsities_are_one_population(tmp_path):
    modes = ("pruned.gradual(sparsity=0.5)", "pruned.gradual(sparsity=0.75)")
    found = learnt(tmp_path, "mlp(hidden=(16, 16))", *modes)
    for m, name in enumerate(found.names):
        own = jax.tree.map(lambda leaf, m=m: leaf[m], found.variables)
        asked = 0.5 if "=0.5)" in name else 0.75
        assert abs(bodies.of_weights(own)["zeros"] - asked) < 0.005


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"sparsity": 1.0}, r"gradual.sparsity=1.0.: must be in \[0, 1\)"),
        ({"begin": 0.8}, "gradual.end=0.75.: must be above begin, 0.8"),
        ({"end": 1.0}, "gradual.end=1.0.: must be above begin, 0.0, and below 1"),
        ({"every": 0}, "gradual.every=0.: must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        pruned.gradual(**arguments)


# --- shrinking ----------------------------------------------------------------------------------------

TASK = Task(3, 1, (0.4,), (0.2,))


def test_every_step_has_the_width_of_the_reference():
    recipe, params = pruned.shrinking(width=0.5, num_widths=3), params_of()
    state, turns = begin(recipe, params), []
    for step, expected in enumerate(reference.turns_of_widths(12, 3)):
        turns.append(int(state.mem["turn"]))
        seen = recipe.view({"params": params, "batch_stats": 7}, state, {"width": jnp.float32(0.5)}, None)
        wanted = reference.shrinking(params, expected, 0.5, 3)
        for module, of in wanted.items():
            for name, leaf in of.items():
                np.testing.assert_allclose(seen["params"][module][name], leaf, rtol=1e-6)
        assert seen["batch_stats"] == 7
        state = recipe.after(state, context(step, 12))
    assert turns == reference.turns_of_widths(12, 3) == [0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 1, 2]


def test_the_narrowest_has_statistics_of_its_own_turns():
    """A digit a step, of whose turn it is: what others add is nothing to it."""
    recipe, hyper, told = pruned.shrinking(num_widths=2), {"width": jnp.float32(0.5)}, []
    params = params_of()
    state = begin(recipe, params)
    for step in range(8):
        turn = state.mem["turn"]
        seen = recipe.view({"params": params, **state.model_state}, state, hyper, None)
        state = dataclasses.replace(state, model_state={"batch_stats": 10 * seen["batch_stats"] + turn})
        state = recipe.after(state, context(step, 8))
        told.append((int(turn), int(recipe.deploy(state, hyper)["batch_stats"])))
    assert told == [(0, 7), (0, 7), (0, 7), (0, 7), (0, 7), (1, 71), (0, 71), (1, 711)]
    bias = recipe.deploy(state, hyper)["params"]["conv1"]["bias"]
    np.testing.assert_array_equal(bias != 0, [True, True, False, False])


def test_cut_to_its_channels_it_is_the_network_of_half_the_width():
    image, address = jax.random.normal(jax.random.key(0), (5, 3, 3, 1)), "mlp(hidden={}, batch_norm=True)"
    wide, narrow = (addresses.build_model(address.format(of), TASK) for of in ((6, 8), (3, 4)))
    variables, shapes = (jax.jit(model.init)(jax.random.key(1), image) for model in (wide, narrow))
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)  # no statistic and no bias is 0
    at_half = {**variables, "params": pruned.at_width(variables["params"], jnp.float32(0.5))}
    cut = jax.tree.map(lambda leaf, like: leaf[tuple(map(slice, like.shape))], variables, shapes)
    found, expected = wide.apply(at_half, image)[0].logits, narrow.apply(cut, image)[0].logits
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_student_that_shrinks_learns_and_widths_are_one_population(tmp_path):
    modes = ("pruned.shrinking(width=0.5)", "pruned.shrinking(width=0.25)")
    found = learnt(tmp_path, "mlp(hidden=(16, 16), batch_norm=True)", *modes)
    for name, kernel in zip(found.names, np.asarray(found.variables["params"]["dense1"]["kernel"])):
        there = 8 if "=0.5)" in name else 4
        np.testing.assert_array_equal((kernel != 0).any(axis=0), np.arange(16) < there)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"width": 1.0}, r"shrinking.width=1.0.: must be in \(0, 1\)"),
        ({"num_widths": 1}, "shrinking.num_widths=1.: must be at least 2"),
    ],
)
def test_widths_that_are_none_are_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        pruned.shrinking(**arguments)


def test_a_network_without_heads_is_refused():
    with pytest.raises(UserError, match="no parameters called heads"):
        begin(pruned.shrinking(), {"conv1": {"kernel": np.ones((3, 3))}})


@pytest.mark.parametrize(
    "address, shape",
    [("vit(width=8, depth=4, attention_heads=2)", (32, 32, 3)), ("shufflenet_v2(width=0.5)", (8, 8, 3))],
)
def test_networks_that_divide_their_channels_are_refused(address, shape):
    model = addresses.build_model(address, Task(3, 1, (0.4,) * 3, (0.2,) * 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
    with pytest.raises(UserError, match="divides channels into parts"):
        begin(pruned.shrinking(), variables["params"])
