"""What networks are made of: bits, zeros, bytes and spikes, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.methods import binary
from mtkd_jax.models.levels import LEVELS
from mtkd_jax.report import tables
from mtkd_jax.results import bodies


def of_few_bits(recipe, kernel):
    others = jnp.asarray(np.random.default_rng(1).normal(size=(8, 8)), jnp.float32)
    params = {"dense1": {"kernel": others}, "dense2": {"kernel": kernel}, "heads": {"kernel": others}}
    hyper = {name: jnp.float32(value) for name, value in recipe.hyper}
    return recipe.view({"params": params}, None, hyper, None)


@pytest.mark.parametrize(
    "recipe, bits, num_scales",
    [
        (binary.xnor(), 1, 16),
        (binary.dorefa(bits=2), 2, 0),
        (binary.dorefa(bits=5), 5, 0),
        (binary.wrpn(bits=3), 3, 0),
        (binary.quantised(bits=8), 8, 16),
    ],
)
def test_bits_are_those_of_the_method(recipe, bits, num_scales):
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(40, 16)), jnp.float32)
    found = np.asarray(of_few_bits(recipe, kernel)["params"]["dense2"]["kernel"])
    assert bodies.stored(found).num_bytes == bits * 640 / 8 + 4 * num_scales


def test_real_weights_take_32_bits_and_zeros_one():
    kernel = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    assert bodies.stored(kernel) == (640, 0, 4 * 640)
    kernel.flat[:480] = 0
    assert bodies.stored(kernel) == (640, 480, 640 / 8 + 4 * 160)
    assert bodies.stored(np.stack([kernel] * 3), of_heads=True) == (1920, 1440, 3 * (640 / 8 + 4 * 160))
    assert bodies.stored(np.zeros((4, 4), np.float32)).zeros == 16


def test_a_network_by_hand():
    """Of 8 real weights and 8 of 2 bits; biases are float32, activations of 2 bits and of 4."""
    real = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    few = np.tile([[1.0, -1 / 3], [-1.0, 1 / 3]], (2, 1)).astype(np.float32)
    params = {"a": {"kernel": real, "bias": np.ones(2)}, "b": {"kernel": few}}
    levels = {"a": {"input": np.float32(3)}, "b": {"input": np.float32(15)}}
    found = bodies.of_weights({"params": params, LEVELS: levels})
    assert found == {"weight_bits": 17.0, "activation_bits": 3.0, "zeros": 0.0, "num_bytes": 32 + 2 + 8.0}


def test_the_table_is_there_for_few_bits_zeros_or_spikes_alone():
    real = {"weight_bits": 32.0, "activation_bits": 32.0, "zeros": 0.0, "num_bytes": 4e4}
    row = {
        "name": "mlp",
        "role": "teacher",
        "transfer": "",
        "architecture": "mlp",
        "arguments": {},
        "apart": [],
        "accuracy": {"mean": 0.9, "ci95": None},
        "rule": "",
        "body": real,
    }
    report = {"rows": [row], "deploy": None, "models": []}
    assert tables.bodies(report) is None
    for special in ({"weight_bits": 4.0}, {"activation_bits": 4.0}, {"zeros": 0.5}):
        assert tables.bodies({**report, "rows": [{**row, "body": {**real, **special}}]}) is not None
    spiking = {**report, "rows": [{**row, "body": {**real, "spikes": 1234.0, "active": 0.25}}]}
    header, ((_, (cells,)),) = tables.bodies(spiking)
    assert header[-2:] == ["spikes", "active %"] and cells[-3:] == ["40k", "1.23k", "25.0"]
    assert "spikes:" in tables.bodies_caption(spiking) and "spikes:" not in tables.bodies_caption(report)
