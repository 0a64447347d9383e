"""A classifier after a stage of a frozen network: what it says by hand, and that nothing else moves."""

import jax
import numpy as np

from mtkd_jax.addresses import build_model
from mtkd_jax.models import intermediate
from mtkd_jax.types import Model, Task

NETWORK = build_model("cnn(widths=(2, 3), dense=4, batch_norm=True)", Task(5, 1, (0.5,), (0.5,)))
IMAGE = jax.random.uniform(jax.random.key(1), (4, 4, 4, 1))


def test_a_classifier_reads_the_flattened_map_of_its_stage_and_nothing_else_learns():
    model = Model("", intermediate.Intermediate(NETWORK.module, 5, "stage1"), True)

    def all_of_it(key):
        variables = model.init(key, IMAGE)
        plain, _ = NETWORK.apply({kind: of["network"] for kind, of in variables.items()}, IMAGE)

        def total(params):
            outputs, state = model.apply({**variables, "params": params}, IMAGE, train=True)
            return (outputs.heads**2).sum(), (outputs, state)

        (_, (outputs, state)), grads = jax.value_and_grad(total, has_aux=True)(variables["params"])
        return variables, plain.features, outputs, state, grads

    # It runs once: compiled without optimising, which takes a fraction of the time.
    once = jax.jit(all_of_it, compiler_options={"xla_backend_optimization_level": 0})
    variables, features, outputs, state, grads = once(jax.random.key(0))
    own = variables["params"]["classifier"]
    flat = np.asarray(features["stage1"], np.float64).reshape(4, -1)
    np.testing.assert_allclose(
        outputs.logits, flat @ np.asarray(own["kernel"]) + np.asarray(own["bias"]), atol=1e-5
    )
    np.testing.assert_allclose(outputs.embedding, flat, atol=1e-6)
    assert set(features) == {"stage1", "stage2"} and set(outputs.features) == {"stage1"}
    jax.tree.map(np.testing.assert_array_equal, state, {"batch_stats": variables["batch_stats"]})
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        place = "params/" + jax.tree_util.keystr(path, simple=True, separator="/")
        assert (float(np.abs(grad).max()) > 0) is intermediate.is_of_classifier(place), place
