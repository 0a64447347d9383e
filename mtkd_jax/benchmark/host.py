"""Suite `host`: what the host does between two pieces of a stage, while the device waits."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np

from mtkd_jax import config as configuration
from mtkd_jax import experiment, mesh
from mtkd_jax.benchmark import clock, engine
from mtkd_jax.benchmark.clock import Case, Side
from mtkd_jax.benchmark.networks import NETWORKS
from mtkd_jax.engine import forecast, teacher_cache, training
from mtkd_jax.engine.jobs import Job
from mtkd_jax.plans import plan
from mtkd_jax.runs import trackers
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.types import TrackedRun

UNIT = "ms a piece"
RUN, DEVICE, HOST = "as in a run", "device alone", "host alone"


def measure(quick: bool) -> dict:
    """A stage's pieces as `training.fit` goes through them, against their program called alone."""
    records, notes = [], []
    for name, job in stages().items():
        found, told = _case(name, job, 3 if quick else 9)
        records += found
        notes.append(told)
    return {
        "unit": UNIT,
        "scale": 1e3,
        "records": records,
        "ratios": clock.ratios(records, RUN, DEVICE),
        "left_out": [],
        "notes": [
            f"{RUN}: the order of the examples, the programs, the metrics of every round written to "
            f"metrics.jsonl and TensorBoard, the progress line; saving is left out. {HOST}: all of that but "
            f"the programs, timed while the device waits. {DEVICE}: the programs, again and again.",
            *notes,
            clock.spread(records),
        ],
    }


def _case(name: str, job: Job, rounds: int) -> tuple[list[dict], str]:
    waits: list[float] = []
    with tempfile.TemporaryDirectory() as folder, _logbook(folder) as logbook:
        makers = {RUN: lambda: run_as_in_training(job, logbook, waits), DEVICE: lambda: run_alone(job)}
        records, _ = clock.measure(Case(name), makers, rounds, to_the_end=True)
    records.append({**Case(name)._asdict(), "side": HOST, **clock.summary(waits[-rounds:])})
    whole, host = (next(one["median"] for one in records if one["side"] == side) for side in (RUN, HOST))
    size = training.pieces(job)[0].num_steps
    return records, (
        f"{name}: the host takes {1e3 * host:.1f} ms for a piece of {size} steps of {len(job.names)} members "
        f"and {size // job.steps_per_round} validations, {host / whole:.1%} of it."
    )


def stages() -> Mapping[str, Job]:
    """The stages of the default run, digits, and the small CNN; teachers are zeros, which takes as long."""
    config = configuration.default()
    split = experiment.load_split(config)
    ahead, borrowed, _ = experiment.planned(config, split)
    done = plan.rehearse(ahead, config, borrowed)
    digits = {
        f"digits, {stage.name}": forecast.in_pieces(teacher_cache.fill(stage.make(done), {}))
        for stage in ahead
    }
    return {**digits, "cnn, K = 8": engine.teachers(NETWORKS["cnn"], 8)}


def _logbook(folder: str) -> Logbook:
    """As a run has one by default."""
    begin = partial(trackers.tensorboard, TrackedRun(folder, "", {}))
    return Logbook(Path(folder), quiet=True, trackers={"tensorboard": begin})


def run_as_in_training(job: Job, logbook: Logbook, waits: list[float]) -> Side:
    """The first piece of `training.fit`; `waits` is given the seconds that the device waited around it."""
    job, validation, hyper, progress = _start(job)
    first = training.pieces(job)[:1]

    def run() -> None:
        nonlocal progress
        waited, ready = 0.0, time.perf_counter()
        for piece, indices, stage_data in training.iterate_pieces(job, first):
            waited += time.perf_counter() - ready
            progress, metrics = training.advance(job, piece, progress, hyper, indices, stage_data, validation)
            jax.block_until_ready((progress, metrics))
            ready = time.perf_counter()
            training.record(job, piece, metrics, logbook)
            mesh.on_host(progress.stopped)
        waits.append(waited + time.perf_counter() - ready)

    run()
    return Side(run)


def run_alone(job: Job) -> Side:
    """The same piece on the device, where its arguments lie already."""
    job, validation, hyper, progress = _start(job)
    indices = training.indices_of(job, training.pieces(job)[0])
    rounds = indices.reshape(-1, job.steps_per_round, *indices.shape[1:])
    rounds = mesh.everywhere(rounds, job.program.layout)
    chunk = training.compiled_chunk(job.program, job.patience, job.eval_every)

    def run() -> None:
        nonlocal progress
        progress, metrics = chunk(progress, hyper, rounds, np.int32(0), job.stage_data, validation)
        jax.block_until_ready((progress, metrics))

    run()
    return Side(run)


def _start(job: Job) -> tuple:
    """(job, validation, hyper, progress) where the device finds them, as at the first piece of a stage."""
    layout = job.program.layout
    stage_data, validation, hyper = mesh.everywhere((job.stage_data, job.validation, job.hyper), layout)
    progress = mesh.spread_out(training.first_progress(job), layout)
    return dataclasses.replace(job, stage_data=stage_data), validation, hyper, progress
