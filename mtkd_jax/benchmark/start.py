"""Suite `start`: whole processes, with nothing compiled before and with all.

One takes the first steps of a network, one makes a short run with students of ten families of methods.
Run as a module it is one such process: `python -m mtkd_jax.benchmark.start NETWORK steps|families`.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence

import jax
from ml_collections import ConfigDict

from mtkd_jax import config as configuration
from mtkd_jax import experiment, mesh
from mtkd_jax.benchmark import children, clock, engine
from mtkd_jax.benchmark.clock import Case, Side
from mtkd_jax.benchmark.networks import NETWORKS, NUM_CLASSES, Network
from mtkd_jax.runs import workdir

UNIT = "s, from the command to the end"
NUM_MEMBERS = 8
FAMILIES = (  # a method of each
    "output_avg",
    "averages.mean_teacher",
    "features.hints",
    "logits.dkd",
    "online.kdcl",
    "peers.dml",
    "relations.rkd",
    "stimuli.funmatch",
    "targets.pseudo_labels",
    "weights.ca_mkd",
)
NUM_BATCHES = 4  # of the run, in each stage: what it takes is to be compilation
STEPS, RUN = "steps", "families"
# How the names of JAX's events end; the first is also of a program that is read.
COMPILED, READ = "core/compile/backend_compile_duration", "compilation_cache/cache_hits"


def measure(networks: Sequence[Network], quick: bool) -> dict:
    """Interpreter, imports, initial weights, compilation and the first call of the engine; and whole runs."""
    records, notes = [], []
    for network in networks:
        for case, what, rounds in (
            (f"K = {NUM_MEMBERS}", STEPS, 3 if quick else 7),
            (f"{len(FAMILIES)} families", RUN, 2 if quick else 3),
        ):
            found, told = _case(Case(network.name, case), what, rounds)
            records += found
            notes.append(told)
    return {
        "unit": UNIT,
        "scale": 1.0,
        "records": records,
        "ratios": clock.ratios(records, "cold", "warm"),
        "left_out": [],
        "notes": [
            "cold: with an empty folder for compiled programs, warm: with one an earlier start has filled. "
            "imports: the same process until JAX knows its devices. compiling: what XLA takes for all "
            "programs, or reading them where they are there; tracing is not in it.",
            f"K = {NUM_MEMBERS}: the end of the first steps. {len(FAMILIES)} families: of a run of two "
            f"teachers, a baseline and a student by each of {', '.join(FAMILIES)}, {NUM_BATCHES} batches in "
            "every stage, with evaluation and report.",
            *notes,
            clock.spread(records),
        ],
    }


def _case(case: Case, what: str, rounds: int) -> tuple[list[dict], str]:
    """Records of one network, and what was compiled in a sentence."""
    answers: dict[str, list[dict]] = {"cold": [], "warm": []}

    def start(side: str, folder: str) -> None:
        answers[side].append(_start(case.of, what, folder))

    def cold() -> None:
        with tempfile.TemporaryDirectory() as empty:
            start("cold", empty)

    with tempfile.TemporaryDirectory() as cache:
        _start(case.of, what, cache)  # fills the cache
        makers = {
            "cold": lambda: Side(cold),
            "warm": lambda: Side(lambda: start("warm", cache)),
            "imports": lambda: Side(lambda: _start("", what, cache)),
        }
        records, _ = clock.measure(case, makers, rounds, to_the_end=True)
    for side, given in answers.items():
        seconds = clock.summary([one["seconds"] for one in given])
        records.append({**case._asdict(), "side": f"{side}, compiling", **seconds})
    first, again = (given[-1] for given in answers.values())
    return records, (
        f"{case.of}, {case.case}: {first['programs']} programs; warm, {again['read']} of {again['programs']} "
        "are read."
    )


def _start(name: str, what: str, cache: str) -> dict:
    return children.ask("start", [name, what], {"XDG_CACHE_HOME": cache})


def answer(name: str, what: str) -> dict:
    """What a child does and says; without a name it ends before there is a network.

    {"devices", "programs": compiled or read, "read": read, "seconds": of compiling and reading them}.
    """
    mesh.use_devices()
    workdir.use_compile_cache()
    with _programs() as programs:
        if name:
            {STEPS: first_steps, RUN: run}[what](NETWORKS[name])
    return {"devices": workdir.environment(0)["devices"], **programs}


def first_steps(network: Network) -> None:
    """An epoch of teachers."""
    engine.prepare(engine.teachers(network, NUM_MEMBERS))()


def run(network: Network) -> None:
    """Teachers, a baseline, a student by a method of each family, their evaluation and the report."""
    with tempfile.TemporaryDirectory() as folder:
        experiment.run(config_of_run(network), folder, quiet=True)


def config_of_run(network: Network) -> ConfigDict:
    """A run that is over as soon as it is compiled."""
    config = configuration.default()
    num_train, (size, _, channels) = NUM_BATCHES * network.batch_size, network.shape
    config.data.source = (
        f"synthetic(num_classes={NUM_CLASSES}, num_train={2 * num_train}, num_test=100, size={size}, "
        f"channels={channels})"
    )
    config.data.num_train = num_train
    config.data.augment.shift = 1
    config.model.name = network.model.name
    config.teachers.num_members = 2
    config.train.batch_size = network.batch_size
    config.train.epochs = 1
    config.students.modes = FAMILIES
    config.students.alphas = (0.5,)
    config.students.temperatures = (2.0,)
    config.students.num_seeds = 1
    return config


@contextlib.contextmanager
def _programs() -> Iterator[dict]:
    """{"programs", "read", "seconds"} of what JAX compiles, or reads from its cache, meanwhile."""
    found = {"programs": 0, "read": 0, "seconds": 0.0}

    def compiled(event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith(COMPILED):
            found["programs"] += 1
            found["seconds"] += duration_secs

    def read(event: str, **_: str | int) -> None:
        found["read"] += event.endswith(READ)

    jax.monitoring.register_event_duration_secs_listener(compiled)
    jax.monitoring.register_event_listener(read)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(compiled)
        jax.monitoring.unregister_event_listener(read)


if __name__ == "__main__":
    children.answer(answer(*sys.argv[1:]))
