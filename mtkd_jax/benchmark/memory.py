"""Suite `memory`: the bytes that are forecast for a population, against what its process grows by.

Run as a module it trains one population: `python -m mtkd_jax.benchmark.memory WIDTH K`.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

from mtkd_jax import mesh
from mtkd_jax.benchmark import children, clock, engine
from mtkd_jax.benchmark.clock import Case
from mtkd_jax.benchmark.networks import NETWORKS
from mtkd_jax.engine import forecast
from mtkd_jax.runs import workdir

UNIT = "GB"
WIDTH = 1024  # of the two hidden layers: 7.4 MB of parameters a member
NUM_MEMBERS = (64, 128)


def measure(quick: bool) -> dict:
    """A dense network whose state is most of it; each number of members in a process of its own."""
    records = []
    for num_members in NUM_MEMBERS[: 1 if quick else None]:
        case = Case(f"mlp 784-{WIDTH}-{WIDTH}-10", f"K = {num_members}")
        with tempfile.TemporaryDirectory() as cache:
            ask = partial(children.ask, "memory", [WIDTH, num_members], {"XDG_CACHE_HOME": cache})
            ask()  # fills the cache
            said = [ask() for _ in range(1 if quick else 3)]
        for side in ("forecast", "grown"):
            summary = clock.summary([one[side] / 1e9 for one in said])
            records.append({**case._asdict(), "side": side, **summary})
    return {
        "unit": UNIT,
        "scale": 1.0,
        "records": records,
        "ratios": clock.ratios(records, "forecast", "grown"),
        "left_out": [],
        "notes": [
            "forecast: a line through what the compiler plans for two small populations. grown: the largest "
            "resident set while the population is initialised and trained, less that before.",
        ],
    }


def train(width: int, num_members: int) -> dict:
    """What a child does: bytes forecast, and bytes its resident set grows by.

    With JAX started and all of it compiled by an earlier child, so that neither is counted.
    """
    mesh.use_devices()
    workdir.use_compile_cache()
    network = NETWORKS["mlp"]._replace(arguments={"hidden": (width, width)})
    job = engine.teachers(network, num_members)
    before = _resident("VmRSS")
    engine.prepare(job)()
    grown = _resident("VmHWM") - before
    return {"forecast": forecast.peak_bytes(job), "grown": grown}


def _resident(what: str) -> int:
    """Bytes, VmRSS now or VmHWM at the peak, as Linux tells it."""
    lines = Path("/", "proc", "self", "status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


if __name__ == "__main__":
    children.answer(train(*map(int, sys.argv[1:])))
