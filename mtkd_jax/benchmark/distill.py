"""Suite `distill`: what frozen teachers cost a student, run in every step or once, alone or shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from mtkd_jax import mesh
from mtkd_jax.benchmark import clock, engine, networks
from mtkd_jax.benchmark.clock import Case, Side
from mtkd_jax.benchmark.networks import Network
from mtkd_jax.engine import population
from mtkd_jax.engine.jobs import Job
from mtkd_jax.types import Array, Population

UNIT = "ms, one step of all students"
NUM_TEACHERS = (1, 4, 8)
NUM_STUDENTS = (4, 16)  # who share the most teachers of the above
ALONE, FORWARDS, BOTH = "no teachers", "forwards", "(no teachers + forwards)"
CACHED, ASKED, APART = "cached", "asked", "asked apart"


def measure(networks: Sequence[Network], quick: bool) -> dict:
    """One student of K teachers, then S students who share them; all are the same network."""
    cases = [(num_teachers, 1) for num_teachers in NUM_TEACHERS]
    cases += [(max(NUM_TEACHERS), num_students) for num_students in NUM_STUDENTS]
    records = []
    for network in networks:
        for num_teachers, num_students in cases:
            case = Case(network.name, f"K={num_teachers} S={num_students}")
            makers = _makers(network, engine.freeze(network, num_teachers), num_students)
            records += clock.measure(case, makers, 3 if quick else 7, to_the_end=True)[0]
    return {
        "unit": UNIT,
        "scale": 1e3,
        "records": records,
        "ratios": ratios(records),
        "left_out": [],
        "notes": [
            f"K frozen teachers, S students. {ASKED}: the teachers answer in every step, {CACHED}: they did "
            f"so beforehand; {APART}: S runs of one student, one after the other. {FORWARDS}: a compiled "
            "call for each teacher.",
            clock.spread(records),
        ],
    }


def ratios(records: Sequence[dict]) -> list[dict]:
    """The first two are 1 where nothing is wasted; the last grows with S and K."""
    median = {(one["of"], one["case"], one["side"]): one["median"] for one in records}
    summed = [
        {**one, "side": BOTH, "median": one["median"] + median[one["of"], one["case"], ALONE]}
        for one in records
        if one["side"] == FORWARDS
    ]
    asked = ((ALONE, CACHED), (BOTH, ASKED), (APART, ASKED))
    return [one for pair in asked for one in clock.ratios([*records, *summed], *pair)]


def _makers(network: Network, teachers: Population, num_students: int) -> dict[str, Callable[[], Side]]:
    def steps(job: Job) -> Side:
        return engine.side(job)._replace(units=network.num_steps)

    def apart() -> Side:
        runs = [steps(engine.students(network, 1, (teachers,))).run for _ in range(num_students)]
        return Side(lambda: [run() for run in runs], network.num_steps)

    job = engine.students(network, num_students, (teachers,))
    makers = {CACHED: lambda: steps(engine.cache_teachers(job)), ASKED: lambda: steps(job)}
    if num_students > 1:
        return {APART: apart, **makers}
    alone = engine.students(network, 1, ())
    return {ALONE: lambda: steps(alone), FORWARDS: lambda: _forwards(network, teachers), **makers}


def _forwards(network: Network, teachers: Population) -> Side:
    """Every teacher's forward pass on its own, on the batches of a call."""
    forward = mesh.jit(lambda variables, image: teachers.model.apply(variables, image)[0].logits)
    each = [population.take(teachers.variables, k) for k in range(teachers.num_members)]
    images = list(jnp.asarray(networks.batches(network, 1)[0])[:, 0])

    def run() -> list[Array]:
        return jax.block_until_ready([forward(variables, image) for image in images for variables in each])

    run()
    return Side(run, network.num_steps)
