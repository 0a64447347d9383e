"""Our side: the program that a run would train with, without a run around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from mtkd_jax import config as configuration
from mtkd_jax import mesh
from mtkd_jax.benchmark import networks
from mtkd_jax.benchmark.clock import Side
from mtkd_jax.benchmark.networks import LEARNING_RATE, WEIGHT_DECAY, Network
from mtkd_jax.engine import jobs, population, teacher_cache, tuning
from mtkd_jax.engine.jobs import Job
from mtkd_jax.engine.training import Metrics, Progress, compiled_chunk, first_progress
from mtkd_jax.mesh import Layout
from mtkd_jax.methods.modes import output_avg
from mtkd_jax.methods.seams import SUPERVISED
from mtkd_jax.types import Ensemble, Examples, Population


def teachers(network: Network, num_members: int, how: str = "auto") -> Job:
    """Members that train each on batches of their own."""
    order = networks.order(network, num_members)
    return _job(network, num_members, order, how, ())


def students(network: Network, num_members: int, ensemble: Ensemble) -> Job:
    """Members that share their batches and the teachers, if there are any."""
    order = networks.order(network, 1)[:, 0]
    job = _job(network, num_members, order, "auto", ensemble)
    return tuning.with_layout(job, fastest(job))


def cache_teachers(job: Job) -> Job:
    """The same students, with the logits of their teachers computed beforehand."""
    return teacher_cache.fill(dataclasses.replace(job, teacher_cache="float32"), {})


def freeze(network: Network, num_members: int) -> Population:
    """Networks as they are initialised."""
    model = network.model
    variables = population.init(model, jax.random.split(jax.random.key(2), num_members), network.shape)
    return Population(model, variables, {}, tuple(f"teacher {k}" for k in range(num_members)))


def fastest(job: Job) -> Layout:
    """What a long run with `runtime.how = auto` would be trained in, found out by its own trial."""
    if len(job.candidates) == 1:
        return job.candidates[0]
    return tuning.fastest(tuning.measure(job))


def side(job: Job) -> Side:
    """A call trains every member for the steps of an epoch; counted are steps of one member."""
    run = prepare(job)
    run()
    return Side(run, len(job.order(0)) * len(job.names))


def prepare(job: Job) -> Callable[[], tuple[Progress, Metrics]]:
    """An epoch of the job at every call; the first one compiles.

    The chunk of `training.fit`: several steps under a scan, donated state, and at the end validation (on one
    example here) and the copy of the best weights.
    """
    chunk, (progress, *others) = _call(job)

    def run() -> tuple[Progress, Metrics]:
        nonlocal progress
        progress, metrics = chunk(progress, *others)
        return jax.block_until_ready((progress, metrics))

    return run


def compiled_text(job: Job) -> str:
    """What the compiler makes of the same program."""
    chunk, arguments = _call(job)
    return chunk.lower(*arguments).compile().as_text()


def _call(job: Job) -> tuple[Any, tuple]:
    """The program of an epoch, and what it is called with."""
    layout, rounds = job.program.layout, job.order(0)[None]
    stage_data, validation = mesh.everywhere((job.stage_data, job.validation), layout)
    progress = mesh.spread_out(first_progress(job), layout)
    chunk = compiled_chunk(job.program, job.patience, job.eval_every)
    return chunk, (progress, job.hyper, rounds, np.int32(0), stage_data, validation)


def _job(network: Network, num_members: int, order: np.ndarray, how: str, ensemble: Ensemble) -> Job:
    config = configuration.default()
    config.train.optimizer, config.train.schedule = "sgd", "constant"
    config.train.batch_size = network.batch_size
    config.runtime.how = how
    images, labels = networks.examples(network.shape)
    examples = Examples(jnp.asarray(images), jnp.asarray(labels), jnp.ones(len(labels), bool))

    def everyone(value: float, dtype: DTypeLike = np.float32) -> np.ndarray:
        return np.full(num_members, value, dtype)

    return jobs.make(
        config,
        stage="benchmark",
        model=network.model,
        recipes=(output_avg() if ensemble else SUPERVISED,),
        members=range(num_members),
        names=tuple(f"member {m}" for m in range(num_members)),
        hyper={
            "learning_rate": everyone(LEARNING_RATE),
            "weight_decay": everyone(WEIGHT_DECAY),
            "label_smoothing": everyone(0.0),
            "alpha": everyone(0.5),
            "temperature": everyone(2.0),
            "target": everyone(0, np.int32),
        },
        temperatures=(2.0,),
        order=lambda epoch: order,
        shown=jobs.Shown(examples, (examples.image[:1], examples.label[:1])),
        epochs=1,
        eval_every=1,
        patience=0,
        seeded_by="benchmark",
        ensemble=ensemble,
        augment=False,
    )


def num_params(network: Network) -> int:
    """Of one member."""
    image = jax.ShapeDtypeStruct((1, *network.shape), jnp.float32)
    variables = jax.eval_shape(network.model.init, jax.random.key(0), image)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
