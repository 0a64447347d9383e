"""Suite `start`: a whole process up to the end of its first steps, with nothing compiled before and with all.

Run as a module it is one such start: `python -m mtkd_jax.benchmark.start NETWORK K`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence

from mtkd_jax import mesh
from mtkd_jax.benchmark import children, clock, engine
from mtkd_jax.benchmark.clock import Case, Side
from mtkd_jax.benchmark.networks import NETWORKS, Network
from mtkd_jax.runs import workdir

UNIT = "s, from the command to the end of the first steps"
NUM_MEMBERS = 8


def measure(networks: Sequence[Network], quick: bool) -> dict:
    """Interpreter, imports, initial weights, compilation and the first call of the engine."""
    records = []
    for network in networks:
        with tempfile.TemporaryDirectory() as cache:
            records += _case(network, cache, 3 if quick else 7)
    return {
        "unit": UNIT,
        "scale": 1.0,
        "records": records,
        "ratios": clock.ratios(records, "cold", "warm"),
        "left_out": [],
        "notes": [
            "cold: with an empty folder for compiled programs, warm: with one an earlier start has filled. "
            "imports: the same process until JAX knows its devices.",
            clock.spread(records),
        ],
    }


def _case(network: Network, cache: str, rounds: int) -> list[dict]:
    def cold():
        with tempfile.TemporaryDirectory() as empty:
            _start(network.name, empty)

    def warm():
        _start(network.name, cache)

    warm()  # fills the cache
    makers = {
        "cold": lambda: Side(cold),
        "warm": lambda: Side(warm),
        "imports": lambda: Side(lambda: _start("", cache)),
    }
    case = Case(network.name, f"K = {NUM_MEMBERS}")
    return clock.measure(case, makers, rounds, to_the_end=True)[0]


def _start(name: str, cache: str) -> None:
    children.ask("start", [name, NUM_MEMBERS], {"XDG_CACHE_HOME": cache})


def first_steps(name: str, num_members: int) -> dict:
    """What a child does; without a name it ends before there is a network."""
    mesh.use_devices()
    workdir.use_compile_cache()
    if name:
        engine.prepare(engine.teachers(NETWORKS[name], num_members))()
    return {"devices": workdir.environment(0)["devices"]}


if __name__ == "__main__":
    children.answer(first_steps(sys.argv[1], int(sys.argv[2])))
