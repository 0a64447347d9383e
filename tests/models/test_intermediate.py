"""Classifiers after the stages of a frozen network: what they say by hand, and that nothing else moves."""

import jax
import numpy as np

from mtkd_jax.config import build_model
from mtkd_jax.models import intermediate
from mtkd_jax.types import Model, Task

NETWORK = build_model("cnn(widths=(2, 3), dense=4, batch_norm=True)", Task(5, 1, (0.5,), (0.5,)))
IMAGE = jax.random.uniform(jax.random.key(1), (4, 4, 4, 1))


def with_heads(after):
    return Model("", intermediate.Intermediate(NETWORK.module, 5, after), True)


def in_one_program(function, *arguments):
    """What runs once: compiled without optimising, which takes a fraction of the time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})(*arguments)


def test_every_classifier_reads_the_flattened_map_of_its_stage_and_nothing_else_learns():
    stages = ("stage1", "stage2")
    model = with_heads(stages)

    def all_of_it(key):
        variables = model.init(key, IMAGE)
        plain, _ = NETWORK.apply({kind: of["network"] for kind, of in variables.items()}, IMAGE)
        ended = [with_heads((stage,)).apply(intermediate.alone(variables, stage), IMAGE) for stage in stages]

        def total(params):
            outputs, state = model.apply({**variables, "params": params}, IMAGE, train=True)
            return (outputs.heads**2).sum(), (outputs.heads, state)

        (_, (heads, state)), grads = jax.value_and_grad(total, has_aux=True)(variables["params"])
        return variables, plain.features, [outputs.logits for outputs, _ in ended], heads, state, grads

    variables, features, ended, heads, state, grads = in_one_program(all_of_it, jax.random.key(0))
    for head, alone, stage in zip(heads, ended, stages):
        own = variables["params"][f"{stage}_classifier"]
        flat = np.asarray(features[stage], np.float64).reshape(4, -1)
        np.testing.assert_allclose(
            head, flat @ np.asarray(own["kernel"]) + np.asarray(own["bias"]), atol=1e-5
        )
        np.testing.assert_allclose(alone, head, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, state, {"batch_stats": variables["batch_stats"]})
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        place = "params/" + jax.tree_util.keystr(path, simple=True, separator="/")
        assert (float(np.abs(grad).max()) > 0) is intermediate.is_of_heads(place), place
