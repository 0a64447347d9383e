"""What a stage will cost before it is run: FLOPs, bytes and seconds.

`estimate` takes them from formulas, in milliseconds; `measure` compiles the stage and runs a few steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from mtkd_jax import mesh
from mtkd_jax.engine.jobs import Job, part, parts
from mtkd_jax.engine.step import init_state
from mtkd_jax.engine.training import compiled_chunk, compiled_part, first_progress
from mtkd_jax.mesh import Layout
from mtkd_jax.models import stages
from mtkd_jax.models.friendly import StudentFriendly
from mtkd_jax.models.several import RankOne
from mtkd_jax.types import Array, Model, Outputs, PyTree

# A backward pass does twice the products of the forward one (for the weights, and for the inputs).
FORWARDS_PER_STEP = 3
# A run that is asked to stop does so between two pieces of training: some seconds even on a busy machine.
SECONDS_OF_A_PIECE = 4
MEMINFO = Path("/proc") / "meminfo"  # where Linux says what memory is there
BUSY = {"cpu": 2e10, "gpu": 1e12, "tpu": 1e12}  # FLOPs a second


class Cost(NamedTuple):
    """What one stage costs."""

    stage: str
    layout: Layout
    num_members: int
    num_at_once: int
    num_params: int  # of one member
    num_steps: int
    flops: float
    num_bytes: int  # at the peak, of all members at once
    seconds: float  # of its training steps
    timed: bool  # bytes as the compiler plans them, seconds from steps that were run; else both by formula


class Machine(NamedTuple):
    """What one device does in a second; a CPU's virtual devices share its cores, and are one here."""

    flops: float
    num_bytes: float  # read or written


def estimate(job: Job, machine: Machine) -> Cost:
    """The card of one stage by formula; nothing is compiled but the count of the network's products."""
    fixed, each = estimated_bytes(job)
    num_at_once = _as_many_as_fit(job, fixed, each)
    num_bytes = int(fixed + each * num_at_once)
    return _cost(job, num_at_once, num_bytes, estimated_seconds(job, machine), timed=False)


def measure(job: Job) -> Cost:
    """The same from the program itself: compiles it three times and runs a few steps."""
    num_at_once = members_at_once(job)
    seconds = sum(map(seconds_per_step, parts(job, num_at_once))) * job.num_steps
    return _cost(job, num_at_once, peak_bytes(job, num_at_once), seconds, timed=True)


def _cost(job: Job, num_at_once: int, num_bytes: int, seconds: float, timed: bool) -> Cost:
    one = jax.eval_shape(job.program.model.init, job.init_keys[0], job.image)
    return Cost(
        stage=job.stage,
        layout=job.program.layout,
        num_members=len(job.names),
        num_at_once=num_at_once,
        num_params=sum(leaf.size for leaf in jax.tree.leaves(one["params"])),
        num_steps=job.num_steps,
        flops=flops(job),
        num_bytes=num_bytes,
        seconds=seconds,
        timed=timed,
    )


def flops(job: Job) -> float:
    """Of the whole stage: three forward passes of every member and one of every teacher that is asked."""
    program, batch_size, shape = job.program, job.order(0).shape[-1], job.image.shape
    of_one = len(job.names) * step_flops(program.model, shape)
    if job.stage_data.cached_logits is None:
        asked = zip(program.teachers, job.stage_data.teachers)
        for model, variables in ((m, v) for m, v in asked if m.is_network):
            of_one += len(jax.tree.leaves(variables)[0]) * forward_flops(model, shape)
    return of_one * batch_size * job.num_steps


def in_pieces(job: Job) -> Job:
    """The job in pieces of some seconds each, with no more images than may be held where not all are."""
    of_step = flops(job) / job.num_steps
    most = min(job.steps_at_once, SECONDS_OF_A_PIECE * BUSY[jax.default_backend()] / max(of_step, 1))
    if job.images is not None:
        given = job.stage_data.examples.given_logits
        example = np.dtype(job.images.dtype).itemsize * np.prod(job.images.shape[1:])
        example += 0 if given is None else given[0].nbytes
        most = min(most, job.stream_bytes / (example * job.order(0)[0].size))
    return dataclasses.replace(job, steps_at_once=max(1, int(most)))


def step_flops(model: Model, shape: tuple[int, ...]) -> float:
    """Of one image [1,h,w,c] in a training step: three forward passes, of frozen stages one."""
    whole = forward_flops(model, shape)
    if not model.frozen_stages or isinstance(model, stages.Tail):
        return FORWARDS_PER_STEP * whole
    entering = jax.eval_shape(partial(_entering, model), jax.ShapeDtypeStruct(shape, np.float32))
    if not isinstance(entering, jax.ShapeDtypeStruct):  # it cannot be cut, and told apart
        return FORWARDS_PER_STEP * whole
    trained = forward_flops(stages.tail(model, shape[1:]), entering.shape)
    return whole + (FORWARDS_PER_STEP - 1) * trained


def _entering(model: Model, image: Array) -> PyTree:
    return stages.entering(model, model.init(jax.random.key(0), image), image)


def forward_flops(model: Model, shape: tuple[int, ...]) -> float:
    """Of one image [1,h,w,c], as the compiler counts it; 0 where it does not say.

    All that is trained counts, be it deployed or not: of a `StudentFriendly` the branches too. Networks that
    share kernels by rank one are K networks: their kernels are formed once a batch, not once an image.
    """
    if isinstance(model, RankOne):
        return model.num_members * forward_flops(model.one, shape)
    return _counted_flops(model, shape)


@lru_cache
def _counted_flops(model: Model, shape: tuple[int, ...]) -> float:
    image = jax.ShapeDtypeStruct(shape, np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    traced = jax.jit(partial(_trained_outputs, model)).trace(variables, image)
    return _counted(traced.lower()) + further_rounds(traced.jaxpr.jaxpr)


def _trained_outputs(model: Model, variables: PyTree, image: Array) -> Array:
    if isinstance(model, StudentFriendly):
        return model.apply_whole(variables, image)[0].heads
    return model.apply(variables, image)[0].logits


def _counted(lowered: jax.stages.Lowered) -> float:
    return float((lowered.cost_analysis() or {}).get("flops", 0.0))


def further_rounds(jaxpr: Jaxpr) -> float:
    """FLOPs of the rounds of all loops after the first, which the compiler leaves out when it counts."""
    found = 0.0
    for equation in jaxpr.eqns:
        for inner in filter(_is_program, equation.params.values()):
            body = getattr(inner, "jaxpr", inner)
            found += further_rounds(body)
            if equation.primitive.name == "scan":
                of_one = _counted(jax.jit(jaxpr_as_fun(inner)).lower(*inner.in_avals)) + further_rounds(body)
                found += (equation.params["length"] - 1) * of_one
    return found


def _is_program(parameter: object) -> bool:
    return isinstance(parameter, Jaxpr | ClosedJaxpr)


@lru_cache
def this_machine(size: int = 1024, num_floats: int = 2**23, num_rounds: int = 15) -> Machine:
    """Measured in half a second: the best of a few products of two matrices and sums of two long vectors."""
    matrix, vector = jnp.ones((size, size), jnp.float32), jnp.ones(num_floats, jnp.float32)
    product, total = jax.jit(jnp.matmul), jax.jit(jnp.add)
    return Machine(
        flops=2 * size**3 / min(_seconds(product, matrix, num_rounds)),
        num_bytes=3 * vector.nbytes / min(_seconds(total, vector, num_rounds)),
    )


def _seconds(function: Callable, operand: Array, num_rounds: int) -> list[float]:
    """Seconds of each call after the first, which compiles."""
    seconds = []
    for _ in range(num_rounds + 1):
        begun = time.perf_counter()
        jax.block_until_ready(function(operand, operand))
        seconds.append(time.perf_counter() - begun)
    return seconds[1:]


def estimated_seconds(job: Job, machine: Machine) -> float:
    """Of all training steps: their products at the machine's rate, and what they read and write.

    That is twice what members hold between two steps, and twice what a backward pass keeps of the forward
    one. Left out: that small and narrow products reach less of the rate, what a CPU's caches spare, the
    starting of operations, augmentation, and the method's own loss.

    On two cores of an EPYC that others used too, the sum over stages was 1.1 (and 2.9, on a moment when the
    machine was slow) times the timed one for digits, an mlp, and 0.6 to 0.7 times for a small cnn; single
    stages 0.25 to 3 times. resnet(depth=8), narrow and deep, was at 0.3. Memory was 0.95 to 1.4 times.

        python -m mtkd_jax.main --config=digits --plan    and with --plan=timed
        python -m mtkd_jax.main --config=digits --plan --config.model.name='cnn(widths=(16, 32), dense=64)' \
            --config.students.modes=mimic_all,output_avg --config.students.num_seeds=3
    """
    num_devices = 1 if jax.default_backend() == "cpu" else job.program.layout.num_devices
    state, activations = _state_bytes(job), len(job.names) * _activation_bytes(job)
    moved = job.num_steps * 2 * (state + activations)  # read and written once
    return (flops(job) / machine.flops + moved / machine.num_bytes) / num_devices


def seconds_per_step(job: Job, num_steps: int = 4, num_rounds: int = 3) -> float:
    """Wall time of one training step of all members, the best of a few rounds; nothing is kept."""
    indices = job.order(0)[:num_steps]
    stage_data = mesh.everywhere(job.stage_data, job.program.layout)
    progress, steps = first_progress(job), compiled_part(job.program)
    seconds = []
    for _ in range(num_rounds + 1):  # the first one compiles
        begun = time.perf_counter()
        progress = jax.block_until_ready(steps(progress, job.hyper, indices, np.int32(0), stage_data))
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:]) / len(indices)


# --- memory -------------------------------------------------------------------------------------------


def members_at_once(job: Job) -> int:
    """How many members of a job are trained at the same time: all, `job.at_once`, or as many as fit.

    The compiler is only asked where what is estimated comes near the limit.
    """
    num_members = len(job.names)
    if job.at_once:
        return min(job.at_once, num_members)
    fixed, each = estimated_bytes(job)
    if fixed + 4 * each * num_members < memory_limit() / 4:
        return num_members
    return _as_many_as_fit(job, *bytes_of_members(job))


def _as_many_as_fit(job: Job, fixed: float, each: float) -> int:
    """Members, in whole cohorts, whose bytes stay below what there is; `job.at_once` where that is set."""
    num_members, limit = len(job.names), memory_limit()
    if job.at_once:
        return min(job.at_once, num_members)
    if fixed + each * num_members <= limit:
        return num_members
    return max(1, int((limit - fixed) // each // job.num_peers)) * job.num_peers


def estimated_bytes(job: Job) -> tuple[float, float]:
    """(fixed, for each member) bytes at the peak of training, by formula.

    Data and teachers; what members hold between two steps and as much again as their best weights, gradients
    and updates; and what the backward pass keeps of the forward one, of as many members as are computed at a
    time.
    """
    layout, num_members = job.program.layout, len(job.names)
    fixed = _num_bytes((job.stage_data, job.validation)) * layout.num_devices
    state, activations = _state_bytes(job) / num_members, _activation_bytes(job)
    if layout.member_loop == "vmap":
        return fixed, 2 * state + activations
    return fixed + activations * layout.member, 2 * state


def _activation_bytes(job: Job) -> int:
    """What the backward pass of one member keeps of its forward pass, of one batch."""
    model, batch_size = job.program.model, job.order(0).shape[-1]
    return kept_bytes(model, (batch_size, *job.image.shape[1:]))


@lru_cache
def kept_bytes(model: Model, shape: tuple[int, ...]) -> int:
    """What the backward pass of a network keeps of its forward pass on a batch of this shape [B,h,w,c]."""
    image = jax.ShapeDtypeStruct(shape, np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)

    def way_back(variables: PyTree, image: Array) -> Callable:
        trained, frozen = stages.split(model, variables)

        def outputs_of(params: PyTree) -> Outputs:
            own = stages.join({**trained, "params": params}, frozen)
            with stages.still(model):
                return model.apply(own, image, train=True, key=jax.random.key(0))[0]

        return jax.vjp(outputs_of, trained["params"])[1]

    kept = _num_bytes(jax.eval_shape(way_back, variables, image))
    return max(0, kept - _num_bytes(variables["params"]))  # which stand in the state


def _state_bytes(job: Job) -> int:
    """What the members hold between two steps, and their best weights; nothing is computed."""
    program = job.program
    variables = jax.eval_shape(jax.vmap(program.model.init, (0, None)), job.init_keys, job.image)
    state = jax.eval_shape(
        lambda own, keys: init_state(program, own, keys, job.stage_data), variables, job.init_keys
    )
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
    rounds = job.order(0)[None]
    stage_data, validation = mesh.everywhere((job.stage_data, job.validation), job.program.layout)
    chunk: Any = compiled_chunk(job.program, job.patience, job.eval_every)
    arguments = (first_progress(job), job.hyper, rounds, np.int32(0), stage_data, validation)
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
    return _available_bytes(MEMINFO)


def _available_bytes(meminfo: Path) -> int:
    """Of the machine: with what the kernel would give up of files it keeps, where it says so."""
    with contextlib.suppress(OSError):
        for line in meminfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return 1024 * int(value.split()[0])
    page = os.sysconf("SC_PAGE_SIZE")
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return page * os.sysconf("SC_AVPHYS_PAGES")
    return page * os.sysconf("SC_PHYS_PAGES") // 2  # macOS does not say what is free


def _num_bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
