"""Networks of the user's own in every framework: numbers of the raw network, heads, state, training."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from mtkd_jax import experiment, models
from mtkd_jax.addresses import build_model, catalogue
from mtkd_jax.deploy import export
from mtkd_jax.types import Task, UserError
from tests import small

TASK = Task(num_classes=3, num_heads=1, mean=(0.5,), std=(0.25,))
TWO_HEADS = TASK._replace(num_heads=2)
IMAGES = np.random.default_rng(0).random((6, 4, 4, 1), np.float32)
SCALED = (IMAGES - 0.5) / 0.25


class LinenNet(nn.Module):
    num_outputs: int = 3

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dense(5)(images.reshape(len(images), -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(self.num_outputs)(x)


class NnxNet(nnx.Module):
    def __init__(self, num_outputs, *, rngs):
        self.layers = nnx.List([nnx.Linear(16, 5, rngs=rngs), nnx.Linear(5, 5, rngs=rngs)])
        self.norm = nnx.BatchNorm(5, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(5, num_outputs, rngs=rngs)

    def __call__(self, images):
        x = images.reshape(len(images), -1)
        for layer in self.layers:
            x = layer(x)
        return self.out(self.dropout(nnx.relu(self.norm(x))))


def linen(task):
    return models.linen(LinenNet, task)


def of_nnx(task):
    return models.nnx(NnxNet, task)


def init(key, images, num_outputs):
    kernel = 0.1 * jax.random.normal(key, (images[0].size, num_outputs))
    return {"kernels": [kernel], "scale": jnp.ones(())}, {"mean": jnp.zeros((images[0].size,))}


def apply(params, state, images, train):
    x = images.reshape(len(images), -1)
    new = {"mean": 0.5 * state["mean"] + 0.5 * x.mean(axis=0)} if train else state
    return params["scale"] * ((x - new["mean"][None]) @ params["kernels"][0]), new


def of_functions(task):
    return models.functions(init, apply, task, stateful=True)


@functools.cache
def equinox_net():
    eqx = pytest.importorskip("equinox")

    class EquinoxNet(eqx.Module):
        first: eqx.nn.Linear
        norm: eqx.nn.BatchNorm
        dropout: eqx.nn.Dropout
        out: eqx.nn.Linear

        def __init__(self, num_outputs, key):
            first, out = jax.random.split(key)
            self.first = eqx.nn.Linear(16, 5, key=first)
            self.norm = eqx.nn.BatchNorm(5, axis_name="batch", momentum=0.5, mode="batch")
            self.dropout = eqx.nn.Dropout(0.5)
            self.out = eqx.nn.Linear(5, num_outputs, key=out)

        def __call__(self, image, state, *, key=None):
            x, state = self.norm(self.first(image.reshape(-1)), state)
            return self.out(self.dropout(jax.nn.relu(x), key=key)), state

    def made(num_outputs, key):
        return eqx.nn.make_with_state(EquinoxNet)(num_outputs, key)

    return made


def of_equinox(task):
    return models.equinox(equinox_net(), task)


EVERY = pytest.mark.parametrize("net", [linen, of_nnx, of_equinox, of_functions])


def raw_linen(variables, key):
    own = variables["params"]["network"]
    stats = variables["batch_stats"]["network"]
    return LinenNet(3).apply({"params": own, **stats}, SCALED, train=False)


def raw_nnx(variables, key):
    module = NnxNet(3, rngs=nnx.Rngs(7))
    own, stats = variables["params"]["network"], variables["batch_stats"]["network"]
    for number, layer in enumerate(module.layers):
        layer.kernel[...] = own["layers"][str(number)]["kernel"]
        layer.bias[...] = own["layers"][str(number)]["bias"]
    module.out.kernel[...], module.out.bias[...] = own["out"]["kernel"], own["out"]["bias"]
    module.norm.mean[...], module.norm.var[...] = stats["norm"]["mean"], stats["norm"]["var"]
    module.eval()
    return module(SCALED)


def raw_equinox(variables, key):
    import equinox as eqx

    module, state = equinox_net()(3, jax.random.key(9))
    own = variables["params"]["network"]["0"]
    where = lambda m: (m.first.weight, m.first.bias, m.out.weight, m.out.bias)  # noqa: E731
    values = (own["first"]["weight"], own["first"]["bias"], own["out"]["weight"], own["out"]["bias"])
    module = eqx.nn.inference_mode(eqx.tree_at(where, module, values))
    leaves = list(jax.tree.leaves(variables["batch_stats"]["network"]["1"]))
    state = jax.tree.unflatten(jax.tree.structure(state), leaves)
    said, _ = jax.vmap(module, in_axes=(0, None), out_axes=(0, None), axis_name="batch")(SCALED, state)
    return said


def raw_functions(variables, key):
    own, stats = variables["params"]["network"], variables["batch_stats"]["network"]
    params = {"kernels": [own["kernels"]["0"]], "scale": own["scale"]}
    return apply(params, stats, SCALED, train=False)[0]


RAW = {linen: raw_linen, of_nnx: raw_nnx, of_equinox: raw_equinox, of_functions: raw_functions}


# One program each: operation by operation there would be thirty to compile.
init_of = jax.jit(lambda model, key, images: model.init(key, images), static_argnums=0)
apply_of = jax.jit(
    lambda model, variables, images, train=False, key=None: model.apply(
        variables, images, train=train, key=key
    ),
    static_argnums=(0, 3),
)


@EVERY
def test_it_says_what_the_network_says_alone(net):
    model = net(TASK)
    variables = init_of(model, jax.random.key(1), IMAGES[:1])
    for step in range(2):  # so that its statistics are none that it began with
        outputs, state = apply_of(model, variables, IMAGES, True, jax.random.key(step))
        variables = {**variables, **state}
    outputs, state = apply_of(model, variables, IMAGES)
    np.testing.assert_allclose(outputs.logits, RAW[net](variables, None), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs.heads[0], outputs.logits)
    np.testing.assert_allclose(outputs.embedding, outputs.logits)  # all that is known of it
    jax.tree.map(np.testing.assert_array_equal, state, {"batch_stats": variables["batch_stats"]})


@EVERY
def test_statistics_move_in_training_alone_and_dropout_draws_by_the_key(net):
    model = net(TASK)
    variables = init_of(model, jax.random.key(1), IMAGES[:1])

    def run(key, train):
        return apply_of(model, variables, IMAGES, train, key)

    (first, moved), (again, _), (other, _) = (run(jax.random.key(k), True) for k in (0, 0, 1))
    before = jax.tree.leaves(variables["batch_stats"])
    assert any(not np.allclose(a, b) for a, b in zip(before, jax.tree.leaves(moved["batch_stats"])))
    np.testing.assert_array_equal(first.logits, again.logits)
    if net is not of_functions:  # which has no dropout
        assert not np.allclose(first.logits, other.logits)
    same, _ = run(jax.random.key(0), False)
    np.testing.assert_array_equal(same.logits, run(jax.random.key(1), False)[0].logits)


@EVERY
def test_heads_and_members(net):
    model = net(TWO_HEADS)
    keys = jax.random.split(jax.random.key(0), 2)
    variables = jax.jit(jax.vmap(lambda key: model.init(key, IMAGES[:1])))(keys)
    outputs, _ = jax.jit(jax.vmap(lambda one: model.apply(one, IMAGES)))(variables)
    assert outputs.heads.shape == (2, 2, 6, 3)
    assert not np.allclose(outputs.heads[0], outputs.heads[1])  # weights of their own
    mean = np.log(jax.nn.softmax(np.asarray(outputs.heads, np.float64)).mean(axis=1))
    np.testing.assert_allclose(jax.nn.log_softmax(outputs.logits), mean, rtol=1e-4, atol=1e-5)
    for member in range(2):  # one after the other as all at once
        alone, _ = apply_of(model, jax.tree.map(lambda leaf: leaf[member], variables), IMAGES)  # noqa: B023
        np.testing.assert_allclose(alone.heads, outputs.heads[member], rtol=1e-4, atol=1e-5)
    assert net(TASK).module.network == net(TASK).module.network  # a key of programs: no new one is compiled
    assert hash(net(TASK)) == hash(net(TASK))


class Taps(nn.Module):
    with_logits: bool = False
    width: int = 5

    @nn.compact
    def __call__(self, images):
        stage = nn.Conv(2, (3, 3), name="conv")(images)
        embedding = nn.Dense(self.width)(stage.reshape(len(images), -1))
        found = {"stage1": stage, "flat": embedding, "line": stage[:, 0], "embedding": embedding}
        return found | ({"logits": nn.Dense(3)(embedding)} if self.with_logits else {})


@pytest.mark.parametrize("with_logits", [False, True])
def test_a_dict_of_taps_gets_heads_and_features(with_logits):
    for task in (TASK, TWO_HEADS):
        model = models.linen(Taps(with_logits), task, normalise=False)
        variables = init_of(model, jax.random.key(0), IMAGES)
        outputs, _ = apply_of(model, variables, IMAGES)
        assert outputs.heads.shape == (task.num_heads, 6, 3) and outputs.embedding.shape == (6, 5)
        shapes = {name: value.shape for name, value in outputs.features.items()}
        assert shapes == {"stage1": (6, 4, 4, 2), "flat": (6, 1, 1, 5), "line": (6, 1, 4, 2)}
        own = {"params": variables["params"]["network"]}
        said = Taps(with_logits).apply(own, IMAGES)  # images as they are
        np.testing.assert_allclose(outputs.embedding, said["embedding"], rtol=1e-5)
        if with_logits and task.num_heads == 1:
            np.testing.assert_allclose(outputs.logits, said["logits"], rtol=1e-5)
        else:
            kernel, bias = variables["params"]["heads"]["kernel"], variables["params"]["heads"]["bias"]
            heads = np.einsum("bd,hdc->hbc", said["embedding"], kernel) + np.asarray(bias)[:, None]
            np.testing.assert_allclose(outputs.heads, heads, rtol=1e-4, atol=1e-5)


def plain(network, task=TASK, **more):
    return models.functions(lambda key, images: {"w": jnp.ones(())}, network, task, **more)


@pytest.mark.parametrize(
    "make, said",
    [
        (
            lambda: models.linen(LinenNet(3), TWO_HEADS),
            "gives 3 outputs, and needed are 2 heads of 3",
        ),
        (lambda: models.linen(LinenNet(4), TASK), "gives 4 outputs, and needed are 3 classes"),
        (
            lambda: models.nnx(NnxNet(3, rngs=nnx.Rngs(0)), TASK),
            "NnxNet is no function that makes an nnx",
        ),
        (
            lambda: plain(lambda params, x: {"stage1": x}),
            r"returned \['stage1'\]; it must return",
        ),
        (
            lambda: plain(lambda params, x: x),
            r"logits of 6 images are \(6, 4, 4, 1\); they must be \(6, n",
        ),
        (lambda: plain(lambda params, x: "no"), "logits of 6 images are str"),
        (lambda: plain(lambda params, x: x.nothing), r"\(line \d+\): AttributeError: .*nothing"),
        (lambda: plain(lambda params, x: x, stateful=True), r"init must return \(params, state\)"),
        (
            lambda: plain(lambda params, x: {"embedding": x[:, 0, 0], "one": x[0, 0, 0]}),
            r"the feature 'one' is \(1,\); it must be \[B,D\]",
        ),
    ],
)
def test_what_cannot_be_is_one_line(make, said):
    with pytest.raises(UserError, match=said) as error:
        jax.eval_shape(make().init, jax.random.key(0), IMAGES)
    assert "\n" not in str(error.value) and str(error.value).startswith("models: ")


def test_helpers_are_no_models_that_an_address_could_name():
    assert not {"linen", "nnx", "equinox", "functions"} & {*catalogue("model")}
    with pytest.raises(AttributeError, match="has no attribute 'torch'"):
        models.torch  # noqa: B018


MINE = """
from mtkd_jax.types import Model
from tests.models import test_own

def linen(task) -> Model:
    return test_own.linen(task)

def nnx(task) -> Model:
    return test_own.of_nnx(task)

def functions(task) -> Model:
    return test_own.of_functions(task)

def equinox(task) -> Model:
    return test_own.of_equinox(task)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)


def names_of_frameworks():
    return ("linen", "nnx", "functions", *(("equinox",) if importlib.util.find_spec("equinox") else ()))


def asked(**more):
    frameworks = tuple(f"mine.py:{name}" for name in names_of_frameworks())
    of_two = {"teachers.models": frameworks, "teachers.num_members": 2, "train.epochs": 1, **more}
    of_two["runtime.how"] = "map"
    return small.config(**{"students.modes": (), "fusion.rules": ("mean_probs",), **of_two})


def test_two_members_of_every_framework_are_trained_and_found_again(mine):
    trained = experiment.train(asked(), "run", quiet=True)
    for name in names_of_frameworks():
        (stage,) = [stage for stage in trained.done if stage.endswith(f":{name}") or name in stage]
        own = trained.done[stage].population
        for leaf in jax.tree.leaves(own.variables["params"]):
            if leaf[0].size > 5:  # kernels, which no two members share
                assert not np.allclose(leaf[0], leaf[1]) and np.all(np.isfinite(leaf))
        began = init_of(
            own.model, jax.random.key(0), trained.split.dataset.train_images[:1].astype(np.float32)
        )
        moved = [
            np.any(np.asarray(after[0]) != before)
            for after, before in zip(
                jax.tree.leaves(own.variables["batch_stats"]), jax.tree.leaves(began["batch_stats"])
            )
        ]
        assert any(moved)
    again = experiment.train(asked(), "run", quiet=True)  # from its checkpoints
    for stage, fitted in trained.done.items():
        variables = fitted.population.variables, again.done[stage].population.variables
        jax.tree.map(np.testing.assert_array_equal, *variables)


@pytest.mark.parametrize("name", names_of_frameworks())
def test_what_is_exported_says_the_same(mine, name, tmp_path):
    task = Task(3, 1, (0.5,), (0.25,))
    model = build_model(f"mine.py:{name}", task)
    assert model == build_model(f"mine.py:{name}", task)  # the same program, whatever it was made by
    variables = init_of(model, jax.random.key(0), jnp.asarray(IMAGES))
    said = export.logits_of(model, variables, IMAGES)
    card = {
        "name": "own", "model": model.name, "task": task, "class_names": ["a", "b", "c"],
        "input": {"shape": [4, 4, 1], "dtype": "float32", "range": "as in the data"},
        "training": "none", "data": "made up", "source": "test", "metrics": {},
    }  # fmt: skip
    export.save_student(tmp_path / "student", model, variables, card, (IMAGES, said))
    export.verify_student(tmp_path / "student", build_model, IMAGES, said)
