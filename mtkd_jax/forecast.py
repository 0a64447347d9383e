"""What a stage will cost before it is run: FLOPs, bytes and seconds, from the program itself."""

from __future__ import annotations

import dataclasses
import os
import time
from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np

from mtkd_jax import mesh
from mtkd_jax.jobs import Job, part, parts
from mtkd_jax.mesh import Layout
from mtkd_jax.step import init_state
from mtkd_jax.training import compiled_chunk, compiled_part, first_progress
from mtkd_jax.types import Model, PyTree

# A backward pass does twice the products of the forward one (for the weights, and for the inputs).
FORWARDS_PER_STEP = 3
# A run that is asked to stop does so between two pieces of training: some seconds even on a busy machine.
SECONDS_OF_A_PIECE = 4
BUSY = {"cpu": 2e10, "gpu": 1e12, "tpu": 1e12}  # FLOPs a second


class Cost(NamedTuple):
    """Of one stage."""

    stage: str
    layout: Layout
    num_members: int
    num_at_once: int
    num_params: int  # of one member
    num_steps: int
    flops: float
    num_bytes: int  # at the peak, of all members at once
    seconds: float  # training, from a timed step


def cost(job: Job) -> Cost:
    """The whole card of one stage; compiles the stage's program three times and runs a few steps."""
    one = jax.eval_shape(job.program.model.init, job.init_keys[0], job.image)
    num_at_once = members_at_once(job)
    return Cost(
        stage=job.stage,
        layout=job.program.layout,
        num_members=len(job.names),
        num_at_once=num_at_once,
        num_params=sum(leaf.size for leaf in jax.tree.leaves(one["params"])),
        num_steps=job.num_steps,
        flops=flops(job),
        num_bytes=peak_bytes(job, num_at_once),
        seconds=sum(map(seconds_per_step, parts(job, num_at_once))) * job.num_steps,
    )


def flops(job: Job) -> float:
    """Of the whole stage: three forward passes of every member and one of every teacher that is asked."""
    program, batch_size, shape = job.program, job.order(0).shape[-1], job.image.shape
    of_one = FORWARDS_PER_STEP * len(job.names) * forward_flops(program.model, shape)
    if job.lessons.said is None:
        for model, variables in zip(program.teachers, job.lessons.teachers):
            of_one += len(jax.tree.leaves(variables)[0]) * forward_flops(model, shape)
    return of_one * batch_size * job.num_steps


def in_pieces(job: Job) -> Job:
    """The job in pieces of some seconds each, with no more images than may be held where these are read."""
    of_step = flops(job) / job.num_steps
    most = min(job.steps_at_once, SECONDS_OF_A_PIECE * BUSY[jax.default_backend()] / max(of_step, 1))
    if job.images is not None:
        image = np.dtype(job.images.dtype).itemsize * np.prod(job.images.shape[1:])
        most = min(most, job.stream_bytes / (image * job.order(0)[0].size))
    return dataclasses.replace(job, steps_at_once=max(1, int(most)))


@lru_cache
def forward_flops(model: Model, shape: tuple[int, ...]) -> float:
    """Of one image [1,h,w,c], as the compiler counts the loop-free forward pass; 0 where it does not say."""
    image = jax.ShapeDtypeStruct(shape, np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    forward = jax.jit(lambda variables, image: model.apply(variables, image)[0].logits)
    return float((forward.lower(variables, image).cost_analysis() or {}).get("flops", 0.0))


def seconds_per_step(job: Job, num_steps: int = 4, num_rounds: int = 3) -> float:
    """Wall time of one training step of all members, the best of a few rounds; nothing is kept."""
    indices = job.order(0)[:num_steps]
    lessons = mesh.everywhere(job.lessons, job.program.layout)
    progress, steps = first_progress(job), compiled_part(job.program)
    seconds = []
    for _ in range(num_rounds + 1):  # the first one compiles
        begun = time.perf_counter()
        progress = jax.block_until_ready(steps(progress, job.hyper, indices, np.int32(0), lessons))
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:]) / len(indices)


# --- memory -------------------------------------------------------------------------------------------


def members_at_once(job: Job) -> int:
    """How many members of a job are trained at the same time: all, `job.at_once`, or as many as fit.

    The compiler is only asked where the plain sum of the arrays comes near the limit.
    """
    num_members = len(job.names)
    if job.at_once:
        return min(job.at_once, num_members)
    limit = memory_limit()
    state = _state_bytes(part(job, range(job.num_peers))) / job.num_peers
    if 8 * state * num_members + _num_bytes((job.lessons, job.validation)) < limit / 4:
        return num_members
    fixed, each = bytes_of_members(job)
    if fixed + each * num_members <= limit:
        return num_members
    return max(1, int((limit - fixed) // each // job.num_peers)) * job.num_peers


def _state_bytes(job: Job) -> int:
    """What the members hold between two steps, and their best weights; nothing is computed."""
    program = job.program
    variables = jax.eval_shape(jax.vmap(program.model.init, (0, None)), job.init_keys, job.image)
    state = jax.eval_shape(lambda *of: init_state(program, *of, job.lessons), variables, job.init_keys)
    return _num_bytes((state, variables))


def peak_bytes(job: Job, num_members: int | None = None) -> int:
    """What training so many members (all) takes at its peak, beside the interpreter and the data's copy."""
    fixed, each = bytes_of_members(job)
    return int(fixed + each * (len(job.names) if num_members is None else num_members))


def bytes_of_members(job: Job) -> tuple[float, float]:
    """(fixed, for each member) bytes: a line through what the compiler says of two small populations.

    One member is a case of its own (an axis of one is optimised away), so the line starts at two per device.
    """
    sizes = [times * job.program.layout.member * job.num_peers for times in (2, 4)]
    small, large = (program_bytes(part(job, np.arange(size) % len(job.names))) for size in sizes)
    each = (large - small) / (sizes[1] - sizes[0])
    return small - each * sizes[0], each


def program_bytes(job: Job) -> int:
    """Arguments, results and intermediate arrays of one compiled chunk, as the compiler plans them."""
    rounds = job.order(0)[: job.eval_every * len(job.order(0))][None]
    lessons, validation = mesh.everywhere((job.lessons, job.validation), job.program.layout)
    chunk = compiled_chunk(job.program, job.patience, job.eval_every)
    arguments = (first_progress(job), job.hyper, rounds, np.int32(0), lessons, validation)
    planned = chunk.lower(*arguments).compile().memory_analysis()
    of_device = (
        planned.argument_size_in_bytes
        + planned.output_size_in_bytes
        + planned.temp_size_in_bytes
        - planned.alias_size_in_bytes
    )
    return of_device * job.program.layout.num_devices if jax.default_backend() == "cpu" else of_device


def memory_limit() -> int:
    """Bytes a population may take: of the accelerator, or what this machine has free now."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _num_bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
