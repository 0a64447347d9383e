"""Frozen stages: held once where members share them, and run once where images stay as they are.

Where the step shows the network the images without augmentation, what enters the first stage that is trained
is the same in every epoch. It then takes the images' place, of training and validation alike, and the
program is that of the trained part; nothing else of a job changes, and the same numbers come out to rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from mtkd_jax import mesh
from mtkd_jax.data.loading import scale
from mtkd_jax.engine import forecast, population, teacher_cache
from mtkd_jax.engine.jobs import Job
from mtkd_jax.engine.teacher_cache import Cache
from mtkd_jax.models import stages
from mtkd_jax.types import Images, Model, PyTree

SHARE_OF_MEMORY = 0.25
BLOCK = 128  # images that are run at once


def fill(job: Job, cache: Cache, say: Callable[[str], None]) -> Job:
    """The job that holds its frozen stages once and, where that can be, begins behind them.

    `say` is told what is done. Students' teachers, who go on seeing images, are asked before that, see
    `teacher_cache.fill`.
    """
    compiled = _compiled_entering(job.program.model)

    def run(variables: PyTree, images: np.ndarray | Images) -> np.ndarray:
        return population.map_blocks(lambda part: compiled(variables, part), images, size=BLOCK)

    return _filled(job, lambda job: teacher_cache.fill(job, cache), run, say)


def outline(job: Job) -> Job:
    """The job as `fill` returns it, with zeros in place of features and teachers' logits; nobody is run."""
    entering = _entering(job.program.model)

    def run(variables: PyTree, images: np.ndarray | Images) -> np.ndarray:
        return population.zeros_like_output(lambda part: entering(variables, part), images)

    return _filled(job, teacher_cache.outline, run, lambda line: None)


def _filled(job: Job, ask_teachers: Callable, run: Callable, say: Callable[[str], None]) -> Job:
    model = job.program.model
    if not model.frozen_stages:
        return job
    job = _held_once(job)
    if job.frozen_features == "off":
        return job
    asked = ask_teachers(job)
    if reason := _why_not(asked):
        say(f"{job.stage}: the stages before {model.trainable} are frozen, and run in every step: {reason}")
        return job
    say(f"{job.stage}: the stages before {model.trainable} are frozen, and run once over all images")
    variables, (images, labels) = _first_member(job), job.validation
    examples = job.stage_data.examples
    features = jnp.asarray(run(variables, examples.image))
    # Nobody asks teachers whose logits are kept; those who are given by theirs are looked up as ever.
    left = {} if asked.stage_data.cached_logits is None else {"teachers": ()}
    bank = () if left else asked.stage_data.bank
    return dataclasses.replace(
        asked,
        whole=model,
        program=asked.program._replace(model=stages.tail(model, job.image.shape[1:]), **left),
        stage_data=dataclasses.replace(
            asked.stage_data, examples=dataclasses.replace(examples, image=features), bank=bank, **left
        ),
        validation=(jnp.asarray(run(variables, images)), labels),
    )


def _held_once(job: Job) -> Job:
    """The job with the frozen stages in its data, if all members' are equal, as pretrained ones are."""
    start = job.start
    if start is None:
        start = population.init(job.program.model, job.init_keys, job.image.shape[1:])
    _, frozen = stages.split(job.program.model, start)
    frozen = jax.tree.map(np.asarray, frozen)  # on the host, where no shape needs a program of its own
    if not all(
        np.array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape)) for leaf in jax.tree.leaves(frozen)
    ):
        return dataclasses.replace(job, start=start)
    of_all = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), frozen)
    stage_data = dataclasses.replace(job.stage_data, frozen=of_all)
    return dataclasses.replace(job, start=start, stage_data=stage_data)


def _why_not(job: Job) -> str:
    """Why what enters the trained part cannot be kept; "" where it can."""
    model, stage_data = job.program.model, job.stage_data
    if not teacher_cache.shows_images_as_they_are(job):
        return "images are augmented, mixed, or made by the method"
    if job.images is not None:
        return "not all images are held at once"
    if not stage_data.frozen:
        return "every member has its own"
    if set(job.program.needs) & {"features", *model.frozen_stages}:
        return "the method reads their features"
    if stage_data.cached_logits is None and not teacher_cache.all_are_given(job):
        return "the teachers are asked in every step"
    entering = jax.eval_shape(_entering(model), _first_member(job), stage_data.examples.image[:1])
    if not isinstance(entering, jax.ShapeDtypeStruct):
        return f"{model.name} cannot be cut there"
    num_images = len(stage_data.examples.label) + len(job.validation[1])
    needed, limit = num_images * entering.size * 4, SHARE_OF_MEMORY * forecast.memory_limit()
    if needed > limit:
        return f"what they say needs {needed / 2**20:.0f} MiB, {limit / 2**20:.0f} MiB are there for it"
    return ""


def _first_member(job: Job) -> PyTree:
    """Variables of one whole network; of the frozen stages they are those of all members."""
    trained, _ = stages.split(job.model, job.start)
    return stages.join(jax.tree.map(lambda leaf: np.asarray(leaf[0]), trained), job.stage_data.frozen)


def _entering(model: Model) -> Callable:
    """(variables, images [n,h,w,c] as they are stored) -> what enters the first stage that is trained."""
    return lambda variables, images: stages.entering(model, variables, scale(images))


@lru_cache
def _compiled_entering(model: Model) -> Callable:
    return mesh.jit(_entering(model))
