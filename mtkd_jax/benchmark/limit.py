"""Suite `limit`: the share of this machine's own rate of float32 matrix products that training reaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from mtkd_jax import mesh
from mtkd_jax.benchmark import clock, engine, work
from mtkd_jax.benchmark.clock import Case, Side
from mtkd_jax.benchmark.networks import Network
from mtkd_jax.engine import tuning
from mtkd_jax.mesh import Layout
from mtkd_jax.types import Array

UNIT = "GFLOP/s"
NUM_MEMBERS = 8
SIZES = (1024, 2048, 4096)  # of square matrices
LEAST_GFLOP = 20.0  # of products in one call


def measure(networks: Sequence[Network], quick: bool, sizes: Sequence[int] = SIZES) -> dict:
    """Training and products take turns, so that both meet the same machine."""
    makers = {f"product of {size}": lambda size=size: product(size) for size in sizes}
    makers |= {f"products of {size}": lambda size=size: product_on_each_device(size) for size in sizes}
    trained = [f"{network.name}, K = {NUM_MEMBERS}" for network in networks]
    makers |= {case: lambda network=network: training(network) for case, network in zip(trained, networks)}
    seconds, _ = clock.measure(Case("rate"), makers, 3 if quick else 7, to_the_end=True)
    records = [{**one, **rates(one)} for one in seconds]
    best = max(one["median"] for one in records if one["side"] not in trained)
    return {
        "unit": UNIT,
        "scale": 1.0,
        "records": records,
        "ratios": [
            {"of": "rate", "case": "", "side": f"{one['side']} / best product", "value": one["median"] / best}
            for one in records
            if one["side"] in trained
        ],
        "left_out": [],
        "notes": [
            "Operations of training by formula: convolutions and dense layers, two for a multiply-add, three "
            "times the forward pass without the gradient of the image. product: one at a time, by all cores; "
            "products: one on each device at the same time.",
            clock.spread(records),
        ],
    }


def rates(one: dict) -> dict:
    """Operations a second, from seconds an operation.

    >>> rates({"median": 0.5, "min": 0.25, "max": 1.0})
    {'median': 2.0, 'min': 1.0, 'max': 4.0}
    """
    return {"median": 1 / one["median"], "min": 1 / one["max"], "max": 1 / one["min"]}


def training(network: Network) -> Side:
    """The engine; counted are GFLOP of convolutions and dense layers."""
    job = engine.teachers(network, NUM_MEMBERS)
    side = engine.side(tuning.with_layout(job, engine.fastest(job)))
    return side._replace(units=side.units * work.of_training(network) / 1e9)


def product(size: int, dtype: str = "float32", gflop: float = 0.0) -> Side:
    """Square matrices by all cores."""
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)  # of ones some chips take less power
    return _products(jax.jit(jnp.matmul), a, size, gflop or LEAST_GFLOP)


def product_on_each_device(size: int) -> Side:
    """A product of square matrices on every device."""
    num_devices = jax.device_count()
    layout = Layout("vmap", num_devices)
    product = jax.jit(mesh.spread(lambda a, b: (a @ b,), layout, (0, 0), (0,)))
    a = mesh.spread_out(jnp.ones((num_devices, size, size), jnp.float32), layout)
    return _products(product, a, size, LEAST_GFLOP)


def _products(product: Callable, a: Array, size: int, least: float) -> Side:
    """Enough of them to take a while."""
    gflop = 2e-9 * size * a.size
    times = max(1, round(least / gflop))

    def run() -> list[Array]:
        return jax.block_until_ready([product(a, a) for _ in range(times)])

    run()
    return Side(run, times * gflop)
