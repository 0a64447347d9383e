"""Suite `scale`: members spread over more and more devices; on a CPU these are virtual.

Run as a module it measures one number of devices, in some calls:
`python -m mtkd_jax.benchmark.scale NETWORK K DEVICES CALLS`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

from mtkd_jax.benchmark import children, clock, engine
from mtkd_jax.benchmark.clock import Case
from mtkd_jax.benchmark.networks import NETWORKS, Network
from mtkd_jax.engine import tuning
from mtkd_jax.engine.population import natural_member_loop
from mtkd_jax.mesh import Layout
from mtkd_jax.runs import workdir

UNIT = "ms, one step of one member"
NUM_MEMBERS = 8
NUM_DEVICES = (1, 2, 4, 8)
COLLECTIVES = "all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter"
CALLS = 3  # timed by one child; children of every number of devices take turns


def measure(networks: Sequence[Network], quick: bool) -> dict:
    """The same population on 1, 2, 4, 8 devices, each number in processes of its own."""
    # Asked of a child: a GPU that this process has opened would have no memory left for the others.
    devices = children.ask("start", ["", 0], {})["devices"]
    virtual = devices[0].startswith("cpu")
    possible = [number for number in NUM_DEVICES if virtual or number <= len(devices)]
    records = []
    for network in networks:
        records += _case(network, possible, passes=1 if quick else 3)
    return {
        "unit": UNIT,
        "scale": 1e3,
        "records": records,
        "ratios": [
            *(one for number in possible[1:] for one in clock.ratios(records, "on 1", f"on {number}")),
            *efficiencies(records, possible[1:], (os.cpu_count() or 1) if virtual else max(possible)),
        ],
        "left_out": [
            {"of": "", "case": "", "side": f"on {number}", "reason": f"there are {len(devices)} devices"}
            for number in NUM_DEVICES
            if number not in possible
        ],
        "notes": [
            f"Members spread over virtual devices of {os.cpu_count()} cores."
            if virtual
            else f"Members spread over {devices[0]}.",
            f"Collectives in a compiled step, on {', '.join(map(str, possible))} devices: 0, as asserted. "
            "efficiency: how many times as fast as on 1, over the devices, or the cores if these are fewer.",
            clock.spread(records),
        ],
    }


def efficiencies(records: Sequence[dict], numbers: Sequence[int], at_most: int) -> list[dict]:
    """How many times as fast as on one device, over the number of devices that there really are.

    >>> records = [{"of": "x", "case": "", "side": f"on {n}", "median": m} for n, m in ((1, 8.0), (4, 4.0))]
    >>> efficiencies(records, [4], 2)[0]["value"], efficiencies(records, [4], 8)[0]["value"]
    (1.0, 0.5)
    """
    return [
        {**one, "side": f"efficiency on {number}", "value": one["value"] / min(number, at_most)}
        for number in numbers
        for one in clock.ratios(records, "on 1", f"on {number}")
    ]


def _case(network: Network, possible: Sequence[int], passes: int) -> list[dict]:
    seconds: dict[int, list[float]] = {number: [] for number in possible}
    for _ in range(passes):
        for number, values in seconds.items():
            environment = {"JAX_NUM_CPU_DEVICES": str(number)}
            said = children.ask("scale", [network.name, NUM_MEMBERS, number, CALLS], environment)
            check_silent(network.name, number, said["collectives"])
            values += said["seconds"]
    case = Case(network.name, f"K = {NUM_MEMBERS}")
    return [
        {**case._asdict(), "side": f"on {number}", **clock.summary(values)}
        for number, values in seconds.items()
    ]


def check_silent(network: str, num_devices: int, collectives: int) -> None:
    """Raise RuntimeError where members, who have nothing to say to each other, exchange something."""
    if collectives:
        raise RuntimeError(f"{network} on {num_devices} devices: {collectives} collectives in a step, not 0")


def num_collectives(text: str) -> int:
    """Of a compiled program.

    >>> num_collectives("%a = f32[2] all-reduce(%b), channel_id=1, metadata={op_name='all-gather'}")
    1
    """
    return len(re.findall(rf" (?:{COLLECTIVES})(?:-start)?\(", text))


def on_devices(name: str, num_members: int, num_devices: int, calls: int) -> dict:
    """What a child does: seconds of one step of one member, in each of some calls; collectives of a step."""
    workdir.use_compile_cache()
    job = engine.teachers(NETWORKS[name], num_members)
    layout = Layout(natural_member_loop(job.program.model), num_devices)
    job = tuning.with_layout(job, layout)
    side = engine.side(job)
    return {
        "seconds": [clock.time_call(side.run) / side.units for _ in range(calls)],
        "collectives": num_collectives(engine.compiled_text(job)),
    }


if __name__ == "__main__":
    children.answer(on_devices(sys.argv[1], *map(int, sys.argv[2:])))
