"""The one training loop: a `Job` in, a trained `Population` out.

A round is some epochs of steps, then validation. The device works a PIECE at a time: several whole rounds
where they are short, a part of one where it is long. Between pieces the host records, saves, reads the next
images and looks whether it is asked to stop. Early stopping and best weights are kept per member inside the
program, without a branch: a member that has stopped goes on moving, but its `best` no longer changes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtkd_jax import mesh
from mtkd_jax.data import loading, streams
from mtkd_jax.data.loading import scale
from mtkd_jax.engine import population
from mtkd_jax.engine.distances import distances
from mtkd_jax.engine.jobs import Job
from mtkd_jax.engine.step import (
    Drawn,
    Hyper,
    Program,
    StageData,
    deployed,
    draw_first,
    first_state,
    leading,
    make_step,
)
from mtkd_jax.mesh import Layout
from mtkd_jax.models import layers, stages
from mtkd_jax.runs import checkpoint
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.system import interrupts
from mtkd_jax.types import Array, Model, Population, PyTree, TrainState, UserError, path_of

Metrics = dict[str, Array]  # {name: [M] or [R,M]}, what is told of every member
Carry = tuple[TrainState, Array]  # and the number of the next step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """What one piece hands to the next, and what a checkpoint holds."""

    train: TrainState  # [M]
    loss: Array  # [M] summed over the steps of this round so far
    best: PyTree  # variables [M] at the lowest validation NLL, as `step.deployed`, without frozen stages
    best_nll: Array  # [M]
    stale: Array  # [M] epochs since then
    stopped: Array  # [M] bool
    finite: Array  # [M] bool; False for good once a loss was not finite: `best` stays what it was
    bank: PyTree  # {"variables": best [M,T,...] after each share of the rounds, "round": [M]}; {} without


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A trained population (its best weights) and how the training went."""

    population: Population
    val_nll: np.ndarray  # [M] at the best weights
    diverged: tuple[str, ...]  # members whose loss was not finite; they kept their last good weights
    seconds: float
    branched: Population | None = None  # the same with all branches, of members that are several on one stem
    bank: Population | None = None  # of a job with T checkpoints: the best weights until then [M,T,...]
    notes: tuple[str, ...] = ()  # what a reader of the report must know of teachers from elsewhere
    network_steps: int | None = None  # steps of training, the sum over members; None: not trained by this run
    network: Model | None = None  # that took them, with what is not deployed of it

    @property
    def finite_members(self) -> Population:
        """The population without its diverged members."""
        return self.without_diverged(self.population)

    def without_diverged(self, own: Population) -> Population:
        """One of these populations without its diverged members."""
        if not self.diverged:
            return own
        return population.members(own, [m for m, n in enumerate(own.names) if n not in self.diverged])


def fit(job: Job, directory: Path, logbook: Logbook, checkpoint_seconds: float = 30.0) -> Fitted:
    """Train every member of `job` and return its best weights.

    Resumes from `directory` by itself, step for step equal to a run that was never stopped; a finished
    stage is only restored. Raises UserError when no member is left with finite numbers, and Interrupted, once
    all is saved, when the process has been asked to stop.
    """
    progress = first_progress(job)
    done = _restore(job, directory / "finished", _result(job, progress), logbook)
    if done is not None:
        step, result, info = done
        return _fitted(job, result, info["seconds"], step)
    step, progress, seconds = _resume(job, progress, directory, logbook)
    logbook.cut_back(job.stage, step // job.steps_per_epoch)
    layout = job.program.layout
    validation, hyper = mesh.everywhere((job.validation, job.hyper), layout)
    progress = mesh.spread_out(progress, layout)
    started = saved = time.perf_counter()
    with contextlib.closing(iterate_pieces(job, pieces(job, step))) as ahead:
        for piece, indices, stage_data in ahead:
            progress, metrics = advance(job, piece, progress, hyper, indices, stage_data, validation)
            step = record(job, piece, metrics, logbook)
            if step == job.num_steps or mesh.on_host(progress.stopped).all():
                break
            now = time.perf_counter()
            stop = mesh.any_asked(interrupts.stop_requested())
            if stop or mesh.take_from_first(now - saved >= checkpoint_seconds):
                logbook.check()  # saved into a folder that is no more, it would come back without its run
                info = {"seconds": seconds + now - started, **_owner(job)}
                checkpoint.save(directory, step, mesh.on_host(progress), info)
                saved = now
            if stop:
                raise interrupts.Interrupted(stop, f"{job.stage} is saved at step {step} of {job.num_steps}")
    result = _result(job, progress)
    seconds += time.perf_counter() - started
    fitted = _fitted(job, result, seconds, step)
    logbook.check()
    info = {"seconds": seconds, "members": list(job.names), **_owner(job), "checkpoints": job.checkpoints}
    checkpoint.save(directory / "finished", step, result, info)
    checkpoint.discard(directory)
    return fitted


def _resume(job: Job, first: Progress, directory: Path, logbook: Logbook) -> tuple[int, Progress, float]:
    found = _restore(job, directory, first, logbook)
    if found is None:
        return 0, first, 0.0
    step, progress, info = found
    logbook.say(f"{job.stage}: resumed at step {step} of {job.num_steps}")
    return step, progress, info["seconds"]


def _restore(job: Job, directory: Path, like: PyTree, logbook: Logbook) -> tuple[int, PyTree, dict] | None:
    def owned(info: dict) -> PyTree:
        check_owner(info, directory, job.stage, job.run)
        return like

    return checkpoint.restore(directory, owned, logbook.warn)


def _owner(job: Job) -> dict[str, str]:
    return {"stage": job.stage, "run": job.run}


def check_owner(info: dict, directory: Path, stage: str, run: str) -> None:
    """Raise UserError where a checkpoint is of another stage or run; "" and the first versions do not say."""
    found, of_run = info.get("stage", stage), info.get("run", "")
    if found != stage or (run and of_run and of_run != run):
        whose = f"of stage {found}" if found != stage else "of another run, with other data or fields"
        raise UserError(
            f"{directory}: these checkpoints are {whose}; put those of {stage} back, or remove the folder to "
            "train it again"
        )


def first_progress(job: Job) -> Progress:
    """What every member starts from, where it is trained."""
    layout = job.program.layout
    if job.start is None:
        variables = population.init_on_host(job.program.model, job.init_keys, job.image.shape[1:])
    else:
        variables = job.start
    trained, frozen = stages.split(job.program.model, variables)
    # Spread before there is more of it: moved as a whole, all of the state would stand there twice.
    trained, keys = mesh.spread_out((trained, job.init_keys), layout)
    if not job.stage_data.frozen:  # else these are the same for all, and only their shapes are looked at
        frozen = mesh.spread_out(frozen, layout) if frozen else frozen
    variables = stages.join(trained, frozen)
    keys = _own_keys(keys)
    drawn = draw_first(job.program, variables, keys, job.stage_data)
    shapes, structure = jax.tree.flatten(drawn.student)
    told = (len(job.names), job.start is not None, not job.stage_data.frozen, drawn.num_examples)
    first = _first(job.program, *told, job.checkpoints, tuple(shapes), structure)
    return mesh.spread_out(first(variables, dict(job.hyper), keys, drawn.aux, drawn.anew), layout)


@jax.jit  # a program instead of one for every operation
def _own_keys(init_keys: Array) -> Array:
    """What members draw from while they are trained."""
    return jax.vmap(lambda key: jax.random.fold_in(key, 1))(init_keys)


@lru_cache
def _first(
    program: Program,
    num_members: int,
    is_given: bool,
    owns_frozen: bool,
    num_examples: int,
    num_checkpoints: int,
    shapes: tuple[jax.ShapeDtypeStruct, ...],
    structure: jax.tree_util.PyTreeDef,
) -> Callable:
    """(variables [M,...], hyper, keys [M], aux, anew) -> Progress: one program, not a call for every array.

    Run once: compiled without optimising. All of what comes out is donated later, so that no buffer may stand
    in it twice, nor be somebody else's: memory and best weights begin as copies, and so does what was given.
    """
    student = jax.tree.unflatten(structure, shapes)

    def first(variables: PyTree, hyper: Hyper, keys: Array, aux: PyTree, anew: PyTree | None) -> Progress:
        drawn = Drawn(num_examples, student, aux, anew)
        train = first_state(program, owns_frozen, variables, keys, drawn)
        train = dataclasses.replace(train, mem=jax.tree.map(jnp.copy, train.mem))
        if is_given:
            train = jax.tree.map(jnp.copy, train)
        best = _deployed(program, train, hyper)
        return Progress(
            train=train,
            loss=jnp.zeros(num_members, jnp.float32),
            best=jax.tree.map(jnp.copy, best),
            best_nll=jnp.full(num_members, jnp.inf, jnp.float32),  # a weak type would compile the chunk twice
            stale=jnp.zeros(num_members, jnp.int32),
            stopped=jnp.zeros(num_members, bool),
            finite=jnp.ones(num_members, bool),
            bank=_empty_bank(best, num_checkpoints),
        )

    sharding = mesh.sharding_of_members(program.layout, num_members)
    options: dict[str, Any] = {} if sharding is None else {"out_shardings": sharding}
    return jax.jit(first, compiler_options={"xla_backend_optimization_level": 0}, **options)


def _empty_bank(variables: PyTree, num_checkpoints: int) -> PyTree:
    """A bank of the variables [M,...] that has no checkpoint yet; {} where none is asked for."""
    if not num_checkpoints:
        return {}
    num_members = len(jax.tree.leaves(variables)[0])
    return {
        "variables": _repeated(variables, num_checkpoints),
        "round": jnp.zeros(num_members, jnp.int32),
    }


def _repeated(variables: PyTree, number: int) -> PyTree:
    """[M,number,...] of [M,...]."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], number, axis=1), variables)


def _result(job: Job, progress: Progress) -> dict[str, PyTree]:
    """What a stage trained, on the host: whole networks, whatever of them was frozen."""
    # What is no stage of its own a network was trained with, and is not made of.
    frozen = job.stage_data.frozen if job.program.model.frozen_stages else {}
    num_members = len(job.names)
    of_all = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (num_members, *leaf.shape)), frozen)
    # "alive", not "finite": finished stages that were saved before it was called so are still read.
    found = {
        "variables": stages.join(progress.best, of_all, progress.train.frozen),
        "val_nll": progress.best_nll,
        "alive": progress.finite,
    }
    if job.checkpoints:
        frozen_parts = (_repeated(part, job.checkpoints) for part in (of_all, progress.train.frozen))
        found["bank"] = stages.join(progress.bank["variables"], *frozen_parts)
    found = mesh.on_host(found)
    if job.program.recipes[0].sharing is not None:
        found["branched"] = found["variables"]
        found["variables"] = mesh.on_host(jax.vmap(partial(leading, job.program))(found["branched"]))
    return found


def _fitted(job: Job, result: dict[str, PyTree], seconds: float, num_steps: int) -> Fitted:
    finite = np.asarray(result["alive"])
    if not finite.any():
        raise UserError(
            f"{job.stage}: the loss of all {len(finite)} members stopped being finite; "
            f"{_explain_divergence(job)}"
        )
    trained = Population(job.model, result["variables"], job.hyper, job.names)
    fitted = as_fitted(trained, result, seconds)
    steps = num_steps * len(job.names) if _trains(job) else 0
    fitted = dataclasses.replace(fitted, network_steps=steps, network=job.network)
    if "branched" in result:
        branched = Population(job.program.model, _at_rest(result["branched"]), job.hyper, job.names)
        fitted = dataclasses.replace(fitted, branched=branched)
    return fitted


USUAL = {  # hyper-parameter -> its field, and what it hardly ever is above
    "weight_decay": ("train.weight_decay", 1.0),
    "temperature": ("students.temperatures", 1e4),
    "learning_rate": ("train.learning_rate", 1.0),
}


def _explain_divergence(job: Job) -> str:
    """The likeliest cause of a training that broke down as a whole, told from how it began."""
    variables = population.take(_result(job, first_progress(job))["variables"], 0)
    model, images = job.program.model.deployed, loading.scale(job.validation[0][:32])
    if not np.isfinite(model.apply(mesh.on_host(variables), images)[0].logits).all():
        return "not even the first outputs are: look at the images, and at the weights that it begins with"
    largest = {name: float(np.max(job.hyper[name])) for name in USUAL if name in job.hyper}
    for name, value in largest.items():
        field, most = USUAL[name]
        if value > most:
            return f"lower {field} (now {value:g})"
    return f"lower train.learning_rate (now {largest['learning_rate']:g})"


def as_fitted(trained: Population, result: dict[str, PyTree], seconds: float) -> Fitted:
    """What a finished stage's result says of its population; diverged members have no validation NLL (inf).

    Weights stand on the first device, wherever they come from: what reads them is then one program, whether
    they were trained just now, restored, or lent by another run, and its numbers are the same to the bit.
    """
    finite = np.asarray(result["alive"])
    diverged = tuple(name for name, ok in zip(trained.names, finite) if not ok)
    trained = dataclasses.replace(trained, variables=_at_rest(trained.variables))
    bank = None
    if "bank" in result:
        bank = dataclasses.replace(trained, variables=_at_rest(result["bank"]))
    return Fitted(trained, np.where(finite, result["val_nll"], np.inf), diverged, seconds, bank=bank)


def _at_rest(variables: PyTree) -> PyTree:
    return jax.tree.map(jnp.asarray, mesh.on_host(variables))


def _trains(job: Job) -> bool:
    """Whether a step changes anything, be it statistics alone, of a network."""
    variables = jax.eval_shape(job.program.model.init, job.init_keys[0], job.image)
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    paths = [path_of(path) for path, _ in leaves]
    return any(recipe.trainable(path) for recipe in job.program.recipes for path in paths)


def untrained(job: Job) -> Fitted:
    """The members as they begin, for whoever only wants to know what training them would cost."""
    result = _result(job, first_progress(job))
    return _fitted(job, {**result, "val_nll": np.zeros(len(job.names), np.float32)}, 0.0, 0)


def concatenate(parts: Sequence[Fitted]) -> Fitted:
    """What was trained part by part, as one population."""
    branched, banks = (
        [found for part in parts if (found := getattr(part, name)) is not None]
        for name in ("branched", "bank")
    )
    steps = [part.network_steps for part in parts if part.network_steps is not None]
    return Fitted(
        population.concatenate([part.population for part in parts]),
        np.concatenate([part.val_nll for part in parts]),
        tuple(name for part in parts for name in part.diverged),
        sum(part.seconds for part in parts),
        population.concatenate(branched) if branched else None,
        population.concatenate(banks) if banks else None,
        tuple(note for part in parts for note in part.notes),
        network_steps=sum(steps) if len(steps) == len(parts) else None,
        network=parts[0].network,
    )


# --- pieces -------------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """Steps that run without the host: whole rounds, or a part of one."""

    first: int  # step, counted from 0
    num_steps: int

    def whole_rounds(self, job: Job) -> bool:
        return self.first % job.steps_per_round == 0 and self.num_steps % job.steps_per_round == 0


def pieces(job: Job, step: int = 0) -> list[Piece]:
    """What is left of a stage from `step` on, in pieces of at most `job.steps_at_once` steps.

    As many as possible are of one size, so that few programs serve them all.
    """
    of_round, num_rounds = job.steps_per_round, job.num_steps // job.steps_per_round
    even = (n for n in range(1, num_rounds + 1) if num_rounds % n == 0)
    rounds_at_once = max((n for n in even if n * of_round <= job.steps_at_once), default=1)
    part = -(-of_round // -(-of_round // job.steps_at_once))  # equal parts, the last one perhaps shorter
    found = []
    while step < job.num_steps:
        into = step % of_round
        if into == 0 and of_round <= job.steps_at_once:
            num_steps = min(rounds_at_once * of_round, job.num_steps - step)
        else:
            num_steps = min(part, of_round - into)
        found.append(Piece(step, num_steps))
        step += num_steps
    return found


def indices_of(job: Job, piece: Piece) -> np.ndarray:
    """The examples of a piece's steps, [S,B], or [S,M,B] when members have their own."""
    of_epoch, end = job.steps_per_epoch, piece.first + piece.num_steps
    epochs = range(piece.first // of_epoch, -(-end // of_epoch))
    orders = np.concatenate([job.order(epoch) for epoch in epochs])
    begin = piece.first % of_epoch
    return orders[begin : begin + piece.num_steps]


def iterate_pieces(
    job: Job, ahead: Sequence[Piece]
) -> Generator[tuple[Piece, np.ndarray, StageData], None, None]:
    """Every piece with its indices, and stage data that hold the examples these point to."""
    if job.images is None:
        stage_data = mesh.everywhere(job.stage_data, job.program.layout)
        yield from ((piece, indices_of(job, piece), stage_data) for piece in ahead)
        return
    # The reader is some pieces ahead, so what it asks for is thought up twice rather than kept.
    rows = (loading.rows_of(indices_of(job, piece)) for piece in ahead)
    with contextlib.closing(streams.read_ahead(job.images, rows)) as read:
        for piece, images in zip(ahead, read):
            indices = indices_of(job, piece)
            window, local = loading.window(job.stage_data.examples, images, indices)
            stage_data = dataclasses.replace(job.stage_data, examples=window)
            yield piece, local, mesh.everywhere(stage_data, job.program.layout)


def advance(
    job: Job,
    piece: Piece,
    progress: Progress,
    hyper: Hyper,
    indices: np.ndarray,
    stage_data: StageData,
    validation: tuple[Array, Array],
) -> tuple[Progress, dict[str, Array]]:
    """Progress after a piece, and {name: [R,M]} of the R rounds that end in it."""
    program, layout = job.program, job.program.layout
    first = np.int32(piece.first)
    if piece.whole_rounds(job):
        rounds = mesh.everywhere(indices.reshape(-1, job.steps_per_round, *indices.shape[1:]), layout)
        chunk = compiled_chunk(program, job.patience, job.eval_every)
        return chunk(progress, hyper, rounds, first, stage_data, validation)
    progress = compiled_part(program)(progress, hyper, mesh.everywhere(indices, layout), first, stage_data)
    if (piece.first + piece.num_steps) % job.steps_per_round:
        return progress, {}
    return compiled_validation(program, job.patience, job.eval_every)(
        progress, hyper, np.float32(job.steps_per_round), stage_data.frozen, validation
    )


def record(job: Job, piece: Piece, metrics: dict[str, Array], logbook: Logbook) -> int:
    """Wait for a piece and write its rounds into the logbook; returns the step that training has come to."""
    for number, values in enumerate(_rows(mesh.on_host(metrics)), start=1):
        at = (piece.first // job.steps_per_round + number) * job.steps_per_round
        logbook.record(job.stage, at // job.steps_per_epoch, at, job.names, values)
    step = piece.first + piece.num_steps
    logbook.progress(job.stage, step, job.num_steps)
    return step


def _rows(metrics: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """One {name: [M]} for every round of {name: [R,M]}."""
    for number in range(len(next(iter(metrics.values()), ()))):
        yield {name: values[number] for name, values in metrics.items()}


def _deployed(program: Program, train: TrainState, hyper: Hyper) -> PyTree:
    """`step.deployed` of every member, [M,...]."""
    return jax.vmap(partial(deployed, program))(train, hyper)


# --- programs -----------------------------------------------------------------------------------------


@lru_cache
def compiled_chunk(program: Program, patience: int, eval_every: int) -> Callable:
    """(progress, hyper, rounds [R,S,...], first, stage_data, val) -> (progress, metrics {name: [R,M]})."""
    steps, layout = _steps(program), program.layout
    scan = _host_scan if layout.member_loop == "loop" else jax.lax.scan

    def chunk(
        progress: Progress,
        hyper: Hyper,
        rounds: Array,
        first_step: Array,
        stage_data: StageData,
        val: tuple[Array, Array],
    ) -> tuple[Progress, Metrics]:
        def one_round(
            carry: tuple[Progress, Array], indices: Array
        ) -> tuple[tuple[Progress, Array], Metrics]:
            progress, first = carry
            progress = steps(progress, hyper, indices, first, stage_data)
            seen = (stage_data.frozen, val)
            progress, metrics = _validate(program, progress, hyper, len(indices), seen, patience, eval_every)
            return (progress, first + len(indices)), metrics

        (progress, _), metrics = scan(one_round, (progress, first_step), rounds)
        return progress, metrics

    if layout.member_loop == "loop":
        return _in_form(chunk, layout)

    def training_chunk(
        progress: Progress, hyper: Hyper, rounds: Array, *shared: PyTree
    ) -> tuple[Progress, Metrics]:
        own_batches = 2 if rounds.ndim == 4 else None  # [R,S,M,B], or [R,S,B] for all members
        in_axes = (0, 0, own_batches, None, None, None)
        return mesh.spread(chunk, layout, in_axes, (0, 1))(progress, hyper, rounds, *shared)

    return _jit(training_chunk, layout)


@lru_cache
def compiled_part(program: Program) -> Callable:
    """(progress, hyper, indices [S,...], first step, stage_data) -> progress: steps, no validation."""
    steps, layout = _steps(program), program.layout
    if layout.member_loop == "loop":
        return _in_form(steps, layout)

    def training_part(progress: Progress, hyper: Hyper, indices: Array, *shared: PyTree) -> Progress:
        in_axes = (0, 0, 1 if indices.ndim == 3 else None, None, None)
        of_all = lambda *arguments: (steps(*arguments),)  # noqa: E731
        return mesh.spread(of_all, layout, in_axes, (0,))(progress, hyper, indices, *shared)[0]

    return _jit(training_part, layout)


@lru_cache
def compiled_validation(program: Program, patience: int, eval_every: int) -> Callable:
    """(progress, hyper, steps of the round, frozen, val) -> (progress, metrics {name: [1,M]}).

    Ends a round in parts.
    """
    layout = program.layout

    def validated(
        progress: Progress, hyper: Hyper, num_steps: Array, *seen: PyTree
    ) -> tuple[Progress, Metrics]:
        progress, metrics = _validate(program, progress, hyper, num_steps, seen, patience, eval_every)
        return progress, {name: values[None] for name, values in metrics.items()}

    if layout.member_loop == "loop":
        return _in_form(validated, layout)
    return _jit(mesh.spread(validated, layout, (0, 0, None, None, None), (0, 1)), layout)


def _jit(function: Callable, layout: Layout) -> Callable:
    """The function compiled, its first argument donated, with convolutions in the layout's form."""
    return mesh.jit(_in_form(function, layout), ynnpack=layout.form == "ynnpack", donate_argnums=0)


def _in_form(function: Callable, layout: Layout) -> Callable:
    @functools.wraps(function)
    def traced(*arguments: Any) -> Any:
        with layers.in_form(layout.form):
            return function(*arguments)

    return traced


def _steps(program: Program) -> Callable:
    """(progress, hyper, indices [S,B] or [S,M,B], first step, stage_data) -> progress after S steps."""
    step, layout = make_step(program), program.layout
    alone = make_step(program._replace(layout=layout._replace(member_loop="unroll")))
    scan = _host_scan if layout.member_loop == "loop" else jax.lax.scan

    def steps(
        progress: Progress, hyper: Hyper, indices: Array, first_step: Array, stage_data: StageData
    ) -> Progress:
        def one_step(carry: Carry, indices: Array) -> tuple[Carry, Array]:
            train, number = carry
            train, losses = step(train, hyper, indices, number, stage_data)
            return (train, number + 1), losses

        def steps_of_one(member: tuple, shared: tuple) -> tuple[TrainState, Array]:
            train, hyper, indices = jax.tree.map(lambda leaf: leaf[None], member)
            number, stage_data = shared

            def one_step(carry: Carry, indices: Array) -> tuple[Carry, Array]:
                train, number = carry
                train, losses = alone(train, hyper, indices[None], number, stage_data)
                return (train, number + 1), losses

            (train, _), losses = jax.lax.scan(one_step, (train, number), indices[0])
            return jax.tree.map(lambda leaf: leaf[0], train), losses[:, 0]

        if layout.member_loop == "map" and indices.ndim == 3:
            # Nobody shares anything: a member goes through all steps before the next one begins, and its
            # weights stay in the cache: 784-256-256-10 took 28 % less. The same numbers as step by step.
            members = (progress.train, hyper, jnp.moveaxis(indices, 1, 0))
            train, losses = population.over_members(steps_of_one, "map")(members, (first_step, stage_data))
            losses = losses.T
        else:
            (train, _), losses = scan(one_step, (progress.train, first_step), indices)
        return dataclasses.replace(progress, train=train, loss=progress.loss + losses.sum(axis=0))

    return steps


def _host_scan(body: Callable, carry: Any, xs: Array) -> tuple[Any, PyTree]:
    """`lax.scan` in Python, for `how = loop`."""
    results = []
    for x in xs:
        carry, result = body(carry, x)
        results.append(result)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def _validate(
    program: Program,
    progress: Progress,
    hyper: Hyper,
    num_steps: Array | int,
    seen: tuple[PyTree, ...],
    patience: int,
    eval_every: int,
) -> tuple[Progress, Metrics]:
    """Progress at the end of a round of `num_steps`, every member's best weights brought up to date.

    Losses are looked at here and not in every step: choosing between two whole states took a sixth of it.
    """
    train, loss = progress.train, progress.loss / num_steps
    now = _deployed(program, train, hyper)
    evaluate = population.over_members(_evaluator(program), program.layout.member_loop)
    nll, accuracy = evaluate((now, train.frozen), seen)
    finite = progress.finite & jnp.isfinite(loss) & jnp.isfinite(nll)
    better = (nll < progress.best_nll) & ~progress.stopped & finite
    stale = jnp.where(better, 0, progress.stale + eval_every)
    stopped = progress.stopped | ~finite
    if patience:
        stopped |= stale >= patience
    best = jax.tree.map(
        lambda new, old: jnp.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old),
        now,
        progress.best,
    )
    best_nll = jnp.where(better, nll, progress.best_nll)
    bank = _banked(progress.bank, best, program.epochs // eval_every)
    after = Progress(train, jnp.zeros_like(loss), best, best_nll, stale, stopped, finite, bank)
    told = {"train_loss": loss, "val_nll": nll, "val_accuracy": accuracy}
    return after, told | distances(program, train, hyper, seen)


def _banked(bank: PyTree, best: PyTree, num_rounds: int) -> PyTree:
    """The bank at the end of a round, which is one of its T where it ends one of T equal shares of them."""
    if not bank:
        return bank
    num_checkpoints, now = len(jax.tree.leaves(bank["variables"])[0][0]), bank["round"] + 1
    at = now * num_checkpoints // num_rounds  # checkpoints that there are by now
    is_new = at > bank["round"] * num_checkpoints // num_rounds

    def keep(kept: Array, best: Array, at: Array, is_new: Array) -> Array:
        return kept.at[at - 1].set(jnp.where(is_new, best, kept[at - 1]))

    variables = jax.tree.map(
        lambda kept, best: jax.vmap(keep)(kept, best, at, is_new), bank["variables"], best
    )
    return {"variables": variables, "round": now}


def _evaluator(program: Program, block: int = 512) -> Callable:
    """((variables, own frozen), (frozen, (images [V,...], labels [V]))) -> (nll, accuracy), in blocks.

    Of a dense task labels are [V,L], and both are means over the places that are there.
    """

    def evaluate(member: tuple, seen: tuple) -> tuple[Array, Array]:
        (own, own_frozen), (frozen, (images, labels)) = member, seen
        variables = leading(program, stages.join(own, own_frozen, frozen))
        num_examples, *of_places = labels.shape
        counted = (labels >= 0).sum().astype(jnp.float32) if of_places else num_examples
        size = min(max(1, block // max(1, math.prod(of_places) // 64)), num_examples)
        missing = -num_examples % size
        images = jnp.pad(images, ((0, missing), *((0, 0),) * (images.ndim - 1))).reshape(
            -1, size, *images.shape[1:]
        )
        around = ((0, missing), *((0, 0),) * len(of_places))
        labels = jnp.pad(labels, around, constant_values=-1).reshape(-1, size, *of_places)

        def totals(part: tuple[Array, Array]) -> tuple[Array, Array]:
            image, label = part
            outputs, _ = program.model.deployed.apply(variables, scale(image))
            log_probs = jax.nn.log_softmax(outputs.logits)
            of_label = jnp.take_along_axis(log_probs, jnp.maximum(label, 0)[..., None], axis=-1)[..., 0]
            is_there = label >= 0
            right = is_there & (outputs.logits.argmax(axis=-1) == label)
            return -jnp.where(is_there, of_label, 0.0).sum(), right.sum().astype(jnp.float32)

        nll, right = jax.lax.map(totals, (images, labels))
        return nll.sum() / counted, right.sum() / counted

    return evaluate
