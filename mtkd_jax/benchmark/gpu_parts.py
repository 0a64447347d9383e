"""What the children of the suite `gpu` measure; see gpu.py, which never opens a device itself.

Run as a module it measures one part: `python -m mtkd_jax.benchmark.gpu_parts PART FOLDER UNTIL TOY WORK`.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mtkd_jax import mesh
from mtkd_jax.benchmark import agreement, clock, limit, members, tell
from mtkd_jax.benchmark import work as operations
from mtkd_jax.benchmark.gpu_store import Item, Skipped, Store, run_items
from mtkd_jax.benchmark.networks import COLOUR, NETWORKS, Network
from mtkd_jax.runs import workdir
from mtkd_jax.system import files

STEPS = 16  # of a call, so that none of the sides waits for the host
NUM_MEMBERS = (8, 1, 4, 16)  # those that are told of first come first
NETS = (
    NETWORKS["cnn"]._replace(num_steps=STEPS),
    NETWORKS["wrn16_4"]._replace(name="wrn16_4, bfloat16", num_steps=STEPS, dtype="bfloat16"),
    Network("speedy, bfloat16", "speedy", {"width": 64}, COLOUR, 1024, 8, (), (), "bfloat16"),
    NETWORKS["resnet20"]._replace(num_steps=STEPS),
    NETWORKS["wrn16_4"]._replace(num_steps=STEPS),
)
LEAST = 25.0  # seconds of a case with its first compilations
TOY = Network("toy", "cnn", {"widths": (2,), "dense": 3}, (4, 4, 1), 4, 2, (), ())


def measure_part(part: str, folder: Path, until: float, toy: bool, work: Path) -> None:
    """What a child does: a part, or the reference of `numbers`, which a CPU writes into `work`."""
    mesh.use_devices()
    workdir.use_compile_cache()
    if part == "reference":
        write_reference(work, toy)
        return
    store = Store(folder, toy)
    store.describe(part, machine=tell.machine(None), ended="")
    items = numbers(work, toy) if part == "numbers" else members_of(toy)
    run_items(items, store, part, until)


def numbers(reference: Path, toy: bool) -> list[Item]:
    """Networks in all ways, a whole run, and a resume."""
    networks = agreement.SMALL[:1] if toy else agreement.SMALL
    items = [
        Item(f"{net.name}: losses and weights", 10.0, partial(_compare, net, reference)) for net in networks
    ]
    run = Item("a run of the digits: losses, accuracies", 30.0, partial(_compare_run, reference, toy))
    return [*items, Item("a resume", 10.0, _resume), run]


def write_reference(folder: Path, toy: bool) -> None:
    """The same numbers, by a CPU; a file each, written as they come."""
    networks = agreement.SMALL[:1] if toy else agreement.SMALL
    makers = {net.name: partial(agreement.train, net, agreement.REFERENCE) for net in networks}
    for name, make in {**makers, "run": partial(agreement.run_whole, _modes(toy))}.items():
        written = io.BytesIO()
        numbers: dict[str, Any] = make()
        np.savez(written, **numbers)
        files.write_atomically(folder / reference_file(name), written.getbuffer())


def reference_file(name: str) -> str:
    """Of a network, or of the "run", which is the last one."""
    return f"reference-{name}.npz"


def _modes(toy: bool) -> tuple[str, ...]:
    return agreement.MODES[1:2] if toy else agreement.MODES


def _compare(network: Network, reference: Path, until: float) -> dict:
    found = {name: agreement.train(network, way) for name, way in agreement.WAYS.items()}
    expected = _expected(reference, network.name, until)
    return {
        "differences": {
            f"{name}: {what}": {
                "value": agreement.difference(found[name][what], expected[what]),
                "bound": bound,
            }
            for name, way in agreement.WAYS.items()
            for what, bound in zip(("losses", "update"), way.bounds)
        }
    }


def _compare_run(reference: Path, toy: bool, until: float) -> dict:
    found, expected = agreement.run_whole(_modes(toy)), _expected(reference, "run", until)
    losses = agreement.difference(found["losses"], expected["losses"])
    points = float(np.max(np.abs(found["accuracies"] - expected["accuracies"])))
    return {
        "differences": {"vmap, as by default": {"value": losses, "bound": agreement.OF_A_RUN}},
        "note": f"accuracies differ by at most {100 * points:.1f} points"
        + ("" if points <= agreement.POINTS else f", more than {100 * agreement.POINTS:g}: NOT the same")
        + ".",
    }


def _resume(until: float) -> dict:
    said = agreement.resume()
    if not said["stopped"]:
        raise RuntimeError("the stage was not stopped")
    return {
        "differences": {"vmap, as by default": {"value": float(not said["equal"]), "bound": 0.0}},
        "note": "a stopped stage ends as one that never was: "
        + ("the same bits." if said["equal"] else "NO."),
    }


def _expected(reference: Path, name: str, until: float) -> dict[str, np.ndarray]:
    """Waits for the CPU, which is at it meanwhile."""
    while not (reference / reference_file(name)).exists():
        if time.time() > until:
            raise Skipped("the CPU was not ready with its numbers")
        time.sleep(0.2)
    with np.load(reference / reference_file(name), allow_pickle=False) as archive:
        return {what: archive[what] for what in archive.files}


def members_of(toy: bool) -> list[Item]:
    """The chip's rates, then every network at every K, so that the first minutes tell most."""
    every = [(network, number) for number in NUM_MEMBERS for network in NETS]
    every.sort(key=lambda case: case != (NETS[0], 1))  # the one case that another is measured by comes first
    cases = [(TOY, 2)] if toy else every
    rates = Item("rates", 5.0, partial(_rates, (16,), 1e-5) if toy else partial(_rates, (4096, 8192), 2e4))
    least = 1.0 if toy else LEAST
    return [
        rates,
        *(
            Item(f"{network.name}, K = {number}", least, partial(_members, network, number))
            for network, number in cases
        ),
    ]


def _rates(sizes: Sequence[int], gflop: float, until: float) -> dict:
    """GFLOP/s of the best product of matrices, by what it is computed in; so much in one call."""
    ways = {
        "float32": ("float32", None),
        "float32, highest": ("float32", "highest"),
        "bfloat16": ("bfloat16", None),
    }
    best = {}
    for name, (dtype, precision) in ways.items():
        with jax.default_matmul_precision(precision):
            sides = [limit.product(size, dtype, gflop) for size in sizes]
            best[name] = max(side.units / clock.time_call(side.run) for side in sides for _ in range(3))
    return {"rates": best}


def _members(network: Network, num_members: int, until: float) -> dict:
    members.check_same_size(network)
    records, left_out, note = members.measure_case(network, num_members, rounds=5, until=until)
    if not records:
        raise Skipped("no side was ready in time")
    return {
        "num_members": num_members,
        "whole": bool(note),  # what `auto` chooses is found out last
        "dtype": network.dtype,
        "gflop": operations.of_training(network) / 1e9,
        "records": records,
        "left_out": left_out,
        "note": f"auto chose {note}." if note else "",
    }


if __name__ == "__main__":
    measure_part(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "1", Path(sys.argv[5]))
