"""The teachers' logits, computed once: they are frozen, so the same image gets the same logits.

Without augmentation they are kept for every example [K,N,C]. With it they are kept for every step [K,S*B,C]:
a stage's images are a function of its seed and the step, the same for every family of students. Either way
the code of the step itself computes them, in batches of its size, so that nothing changes but the time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import weakref

import jax
import jax.numpy as jnp
import numpy as np

from mtkd_jax import mesh
from mtkd_jax.data.loading import Split
from mtkd_jax.engine import forecast, population
from mtkd_jax.engine.jobs import Job
from mtkd_jax.engine.step import compiled_teacher_logits
from mtkd_jax.methods.seams import configured_stimulus, frozen_teachers
from mtkd_jax.types import Array, Population, PyTree, UserError

SHARE_OF_MEMORY = 0.25

Cache = dict[str, Array]  # hash of teachers and stimulus -> logits


def fill(job: Job, cache: Cache) -> Job:
    """The job with its teachers' logits, from `cache`, which is brought up to date, where they may be kept.

    "auto" keeps float32 where the method reads logits alone and memory allows. Asked for by name, a cache
    that cannot be had raises UserError.
    """
    how = _how(job)
    if how is None:
        return job
    by, dtype = how
    key = _digest(job, by, dtype)
    if key not in cache:
        cache.clear()  # one at a time: stages that share one follow each other
        cache[key] = _narrow(_ask(job, by), dtype)
    return _with(job, by, cache[key])


def outline(job: Job) -> Job:
    """The job as `fill` returns it, with zeros in place of the logits; no teacher is run."""
    how = _how(job)
    if how is None:
        return job
    by, dtype = how
    return _with(job, by, np.broadcast_to(np.zeros((), dtype), _shape(job, by)))


def _how(job: Job) -> tuple[str, np.dtype] | None:
    """By what logits are to be kept, and in which precision; None where they are not, or are already."""
    if job.teacher_cache == "off" or all_are_given(job) or job.stage_data.cached_logits is not None:
        return None
    by = "example" if shows_images_as_they_are(job) and not job.stage_data.bank else "step"
    dtype = np.dtype("float32" if job.teacher_cache == "auto" else job.teacher_cache)
    reason = _why_not(job, by, dtype)
    if reason and job.teacher_cache == "auto":
        return None
    if reason:
        raise UserError(
            f"config.runtime.teacher_cache: {job.teacher_cache} cannot be: {reason}; set it to auto"
        )
    return by, dtype


def _with(job: Job, by: str, logits: PyTree) -> Job:
    stage_data = dataclasses.replace(job.stage_data, cached_logits=logits)
    return dataclasses.replace(job, program=job.program._replace(cache_index=by), stage_data=stage_data)


def all_are_given(job: Job) -> bool:
    """Whether no teacher has to be asked: what they say of the images is known, or there are none."""
    return not any(model.can_be_asked for model in job.program.teachers)


def shows_images_as_they_are(job: Job) -> bool:
    """Whether the networks see every image of a job as it is stored, in every step."""
    program = job.program
    plain = not any((*dict(program.augmentation).values(), program.mixup, program.cutmix))
    return plain and job.program.recipes[0].stimulus is configured_stimulus


def _why_not(job: Job, by: str, dtype: np.dtype) -> str:
    recipes = job.program.recipes
    more = [r.name for r in recipes if r.needs or r.prepare == "embedding" or r.teach is not frozen_teachers]
    if more:
        return f"{more[0]} reads more of the teachers than the logits of the frozen ones"
    if job.images is not None:
        return "not all images are held at once"
    needed = math.prod(_shape(job, by)) * dtype.itemsize
    limit = SHARE_OF_MEMORY * forecast.memory_limit()
    if needed > limit:
        return f"it needs {needed / 2**20:.0f} MiB, {limit / 2**20:.0f} MiB are there for it"
    return ""


def _shape(job: Job, by: str) -> tuple[int, ...]:
    """[K,R,C], or [K,R,L,C] of a dense task."""
    label = job.stage_data.examples.label
    num_rows = len(label) if by == "example" else job.num_steps * job.order(0).shape[-1]
    return (_num_teachers(job), num_rows, *label.shape[1:], job.program.model.module.task.num_classes)


def _num_teachers(job: Job) -> int:
    return sum(len(jax.tree.leaves(variables)[0]) for variables in job.stage_data.teachers)


def _ask(job: Job, by: str) -> Array:
    """What teachers say [K,R,...] float32."""
    batch_size = job.order(0).shape[-1]
    if by == "example":
        num_rows = len(job.stage_data.examples.label)
        indices = np.arange(num_rows + -num_rows % batch_size, dtype=np.int32) % num_rows
        batches = indices.reshape(-1, batch_size)
    else:
        batches = np.concatenate([job.order(epoch) for epoch in range(job.epochs)])
        num_rows = batches.size
    stage_data = mesh.everywhere(job.stage_data, job.program.layout)
    logits = compiled_teacher_logits(job.program)(batches, stage_data)  # [S,K,B,...]
    by_row = jnp.moveaxis(jnp.asarray(jax.device_get(logits)), 1, 0)
    return by_row.reshape(by_row.shape[0], -1, *by_row.shape[3:])[:, :num_rows]


def _narrow(logits: Array, dtype: np.dtype) -> Array:
    largest, most = float(jnp.abs(logits).max()), float(np.finfo(dtype).max)
    if np.isfinite(largest) and largest > most:
        raise UserError(
            f"config.runtime.teacher_cache: {dtype} holds numbers up to {most:g}, a teacher's logit is "
            f"{largest:g}; set it to auto"
        )
    return logits.astype(dtype)


def _digest(job: Job, by: str, dtype: np.dtype) -> str:
    program, stage_data = job.program, job.stage_data
    digest = hashlib.sha256()
    images = (
        program.augmentation,
        program.epochs,
        program.mixup,
        program.cutmix,
        program.recipes[0].stimulus,
    )
    words = (program.teachers, images, program.layout, by, dtype)
    digest.update(repr(words).encode())
    seen = stage_data.teachers, stage_data.bank, stage_data.examples
    arrays = [seen, jax.random.key_data(stage_data.key)]
    if by == "step":
        arrays += [job.order(epoch) for epoch in range(job.epochs)]
    _take_in(digest, arrays)
    return digest.hexdigest()


def _take_in(digest: hashlib._Hash, arrays: PyTree) -> None:
    for array in jax.tree.leaves(arrays):
        digest.update(np.ascontiguousarray(array).tobytes())


# --- of rows, on the host -----------------------------------------------------------------------------

_said: weakref.WeakKeyDictionary[Split, dict[str, np.ndarray]] = weakref.WeakKeyDictionary()


def logits_of(own: Population, split: Split, rows: np.ndarray) -> np.ndarray:
    """What every member says of rows of the training images as they are, [M,n,C].

    Looked up where it is known, and asked for once as long as the split is there.
    """
    if not own.model.can_be_asked:
        return own.variables["train"][:, rows]
    digest = hashlib.sha256(repr(own.model).encode())
    _take_in(digest, (own.variables, rows))
    known = _said.setdefault(split, {})
    if (key := digest.hexdigest()) not in known:
        known[key] = population.logits(own, split.dataset.train_images[rows])
    return known[key]
