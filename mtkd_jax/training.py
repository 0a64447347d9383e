"""The one training loop: a `Job` in, a trained `Population` out.

An epoch is a `lax.scan` of steps, a chunk is a scan of rounds (some epochs, then validation); the host
sees only chunks. Early stopping and best weights are kept per member inside the program, without a
branch: a member that has stopped goes on moving, but its `best` no longer changes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtkd_jax import checkpoint, mesh, population
from mtkd_jax.data.loading import scale
from mtkd_jax.jobs import Job
from mtkd_jax.logbook import Logbook
from mtkd_jax.step import Program, init_state, make_step
from mtkd_jax.types import Array, Population, PyTree, TrainState, UserError

STEPS_PER_CHUNK = 256  # enough to hide the host; few enough for the progress line and for stopping early


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """What a chunk carries, and what a checkpoint holds."""

    train: TrainState  # [M]
    best: PyTree  # variables [M] at the lowest validation NLL
    best_nll: Array  # [M]
    stale: Array  # [M] epochs since then
    stopped: Array  # [M] bool
    alive: Array  # [M] bool; False for good once a loss was not finite: `best` stays what it was


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A trained population (its best weights) and how the training went."""

    population: Population
    val_nll: np.ndarray  # [M] at the best weights
    lost: tuple[str, ...]  # members whose loss was not finite; they kept their last good weights
    seconds: float

    @property
    def sound(self) -> Population:
        """The population without its lost members."""
        if not self.lost:
            return self.population
        names = self.population.names
        return population.members(self.population, [m for m, n in enumerate(names) if n not in self.lost])


def fit(job: Job, directory: Path, logbook: Logbook, checkpoint_seconds: float = 30.0) -> Fitted:
    """Train every member of `job` and return its best weights.

    Resumes from `directory` by itself, epoch for epoch equal to a run that was never stopped; a finished
    stage is only restored. Raises UserError when no member is left with finite numbers.
    """
    progress = first_progress(job)
    done = checkpoint.restore(directory / "finished", _result(progress), logbook.warn)
    if done is not None:
        _, result, info = done
        return _fitted(job, result, info["seconds"])
    epoch, progress, seconds = _resumed(job, progress, directory, logbook)
    logbook.cut_back(job.stage, epoch)
    chunk_of = compiled_chunk(job.program, job.patience, job.eval_every)
    layout = job.program.layout
    lessons, validation, hyper = mesh.everywhere((job.lessons, job.validation, job.hyper), layout)
    progress = mesh.spread_out(progress, layout)
    epochs_per_chunk = _epochs_per_chunk(job)
    started = saved = time.perf_counter()
    while epoch < job.epochs and not mesh.on_host(progress.stopped).all():
        order = np.stack([job.order(e) for e in range(epoch, epoch + epochs_per_chunk)])
        first_step = np.int32(epoch * order.shape[1])
        rounds = order.reshape(-1, job.eval_every * order.shape[1], *order.shape[2:])
        rounds = mesh.everywhere(rounds, layout)
        progress, metrics = chunk_of(progress, hyper, rounds, first_step, lessons, validation)
        for number, values in enumerate(_rows(mesh.on_host(metrics)), start=1):
            at = epoch + number * job.eval_every
            logbook.record(job.stage, at, at * order.shape[1], job.names, values)
        epoch += epochs_per_chunk
        logbook.progress(job.stage, epoch, job.epochs)
        now = time.perf_counter()
        if epoch < job.epochs and mesh.agreed(now - saved >= checkpoint_seconds):
            checkpoint.save(directory, epoch, mesh.on_host(progress), {"seconds": seconds + now - started})
            saved = now
    result = jax.tree.map(jnp.asarray, mesh.on_host(_result(progress)))  # on one device, as if restored
    seconds += time.perf_counter() - started
    fitted = _fitted(job, result, seconds)
    checkpoint.save(directory / "finished", epoch, result, {"seconds": seconds, "members": list(job.names)})
    checkpoint.discard(directory)
    return fitted


def _resumed(job: Job, first: Progress, directory: Path, logbook: Logbook) -> tuple[int, Progress, float]:
    found = checkpoint.restore(directory, first, logbook.warn)
    if found is None:
        return 0, first, 0.0
    epoch, progress, info = found
    logbook.say(f"{job.stage}: resumed at epoch {epoch} of {job.epochs}")
    return epoch, progress, info["seconds"]


def first_progress(job: Job) -> Progress:
    """What every member starts from, where it is trained."""
    num_members, layout = len(job.names), job.program.layout
    if job.start is None:
        variables = population.init(job.program.model, job.init_keys, job.image.shape[1:])
    else:
        variables = jax.tree.map(jnp.copy, job.start)  # somebody else's, and what begins is donated
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(job.init_keys)
    # Spread before there is more of it: moved as a whole, all of the state would stand there twice.
    variables, keys = mesh.spread_out((variables, keys), layout)
    train = init_state(job.program, variables, keys, job.lessons)
    # All of it is donated, so no buffer may stand in it twice: memory and best weights begin as copies.
    train = dataclasses.replace(train, mem=jax.tree.map(jnp.copy, train.mem))
    first = Progress(
        train=train,
        best=jax.tree.map(jnp.copy, _deployed(job.program, train)),
        best_nll=jnp.full(num_members, jnp.inf, jnp.float32),  # a weak type would compile the chunk twice
        stale=jnp.zeros(num_members, jnp.int32),
        stopped=jnp.zeros(num_members, bool),
        alive=jnp.ones(num_members, bool),
    )
    return mesh.spread_out(first, layout)


def _result(progress: Progress) -> dict[str, PyTree]:
    return {"variables": progress.best, "val_nll": progress.best_nll, "alive": progress.alive}


def _fitted(job: Job, result: dict[str, PyTree], seconds: float) -> Fitted:
    alive = np.asarray(result["alive"])
    if not alive.any():
        raise UserError(
            f"{job.stage}: the loss of all {len(alive)} members stopped being finite; "
            f"lower train.learning_rate (now {float(np.max(job.hyper['learning_rate'])):g})"
        )
    trained = Population(job.program.model, result["variables"], job.hyper, job.names)
    return fitted_of(trained, result, seconds)


def fitted_of(trained: Population, result: dict[str, PyTree], seconds: float) -> Fitted:
    """What a finished stage's result says of its population; lost members have no validation NLL (inf)."""
    alive = np.asarray(result["alive"])
    lost = tuple(name for name, ok in zip(trained.names, alive) if not ok)
    return Fitted(trained, np.where(alive, result["val_nll"], np.inf), lost, seconds)


def untrained(job: Job) -> Fitted:
    """The members as they begin, for whoever only wants to know what training them would cost."""
    result = _result(first_progress(job))
    return _fitted(job, {**result, "val_nll": np.zeros(len(job.names), np.float32)}, 0.0)


def joined(parts: Sequence[Fitted]) -> Fitted:
    """What was trained part by part, as one population."""
    populations = [part.population for part in parts]
    concatenate = lambda *leaves: jnp.concatenate(leaves)  # noqa: E731
    return Fitted(
        Population(
            populations[0].model,
            jax.tree.map(concatenate, *(p.variables for p in populations)),
            {name: np.concatenate([p.hyper[name] for p in populations]) for name in populations[0].hyper},
            tuple(name for p in populations for name in p.names),
        ),
        np.concatenate([part.val_nll for part in parts]),
        tuple(name for part in parts for name in part.lost),
        sum(part.seconds for part in parts),
    )


def _epochs_per_chunk(job: Job) -> int:
    """The largest number of rounds that divides the stage evenly, so that one program serves all of it."""
    steps_per_round = job.eval_every * job.order(0).shape[0]
    num_rounds = job.epochs // job.eval_every
    most = max(1, STEPS_PER_CHUNK // steps_per_round)
    return job.eval_every * max(n for n in range(1, most + 1) if num_rounds % n == 0)


def _rows(metrics: dict[str, np.ndarray]):
    """One {name: [M]} for every round of {name: [R,M]}."""
    for number in range(len(next(iter(metrics.values())))):
        yield {name: values[number] for name, values in metrics.items()}


def _deployed(program: Program, train: TrainState) -> PyTree:
    """What is validated, kept as best, and exported: [M,...]."""
    return jax.vmap(program.recipes[0].deploy)(train)


@lru_cache
def compiled_chunk(program: Program, patience: int, eval_every: int) -> Callable:
    """(progress, hyper, rounds [R,S,...], first step, lessons, val) -> (progress, metrics {name: [R,M]})."""
    step, layout = make_step(program), program.layout
    alone = make_step(program._replace(layout=layout._replace(walk="unroll")))
    scan = _host_scan if layout.walk == "loop" else jax.lax.scan

    def chunk(progress, hyper, rounds, first_step, lessons, val):
        def one_step(carry, indices):
            train, number = carry
            train, losses = step(train, hyper, indices, number, lessons)
            return (train, number + 1), losses

        def steps_of_one(member, shared):
            train, hyper, indices = jax.tree.map(lambda leaf: leaf[None], member)
            number, lessons = shared

            def one_step(carry, indices):
                train, number = carry
                train, losses = alone(train, hyper, indices[None], number, lessons)
                return (train, number + 1), losses

            (train, _), losses = jax.lax.scan(one_step, (train, number), indices[0])
            return jax.tree.map(lambda leaf: leaf[0], train), losses[:, 0]

        def one_round(carry, indices):
            progress, number = carry
            if layout.walk == "map" and indices.ndim == 3:
                # Nobody shares anything: a member goes through the round before the next one begins, and its
                # weights stay in the cache: 784-256-256-10 took 28 % less. The same numbers as step by step.
                members = (progress.train, hyper, jnp.moveaxis(indices, 1, 0))
                train, losses = population.over_members(steps_of_one, "map")(members, (number, lessons))
                losses, number = losses.T, number + len(indices)
            else:
                (train, number), losses = scan(one_step, (progress.train, number), indices)
            loss = losses.mean(axis=0)
            progress, metrics = _validated(program, progress, train, loss, val, patience, eval_every)
            return (progress, number), {"train_loss": loss, **metrics}

        (progress, _), metrics = scan(one_round, (progress, first_step), rounds)
        return progress, metrics

    if layout.walk == "loop":
        return chunk

    def training_chunk(progress, hyper, rounds, *shared):
        own_batches = 2 if rounds.ndim == 4 else None  # [R,S,M,B], or [R,S,B] for all members
        return mesh.spread(chunk, layout, (0, 0, own_batches, None, None, None), (0, 1))(
            progress, hyper, rounds, *shared
        )

    return jax.jit(training_chunk, donate_argnums=0)


def _host_scan(body: Callable, carry: Any, xs: Array) -> tuple[Any, PyTree]:
    """`lax.scan` in Python, for `how = loop`."""
    results = []
    for x in xs:
        carry, result = body(carry, x)
        results.append(result)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def _validated(program, progress: Progress, train: TrainState, loss: Array, val, patience, eval_every):
    """Progress after a round of mean loss [M], with every member's best weights brought up to date.

    Losses are looked at here and not in every step: choosing between two whole states took a sixth of it.
    """
    deployed = _deployed(program, train)
    nll, accuracy = population.over_members(_evaluator(program), program.layout.walk)(deployed, val)
    alive = progress.alive & jnp.isfinite(loss) & jnp.isfinite(nll)
    better = (nll < progress.best_nll) & ~progress.stopped & alive
    stale = jnp.where(better, 0, progress.stale + eval_every)
    stopped = progress.stopped | ~alive
    if patience:
        stopped |= stale >= patience
    best = jax.tree.map(
        lambda new, old: jnp.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old),
        deployed,
        progress.best,
    )
    best_nll = jnp.where(better, nll, progress.best_nll)
    return Progress(train, best, best_nll, stale, stopped, alive), {"val_nll": nll, "val_accuracy": accuracy}


def _evaluator(program: Program, block: int = 512) -> Callable:
    """(variables, (images [V,...], labels [V])) -> (nll, accuracy), a block of examples at a time."""

    def evaluate(variables, val):
        images, labels = val
        num_examples = labels.shape[0]
        size = min(block, num_examples)
        missing = -num_examples % size
        images = jnp.pad(images, ((0, missing), *((0, 0),) * (images.ndim - 1))).reshape(
            -1, size, *images.shape[1:]
        )
        labels = jnp.pad(labels, (0, missing), constant_values=-1).reshape(-1, size)

        def totals(part):
            image, label = part
            outputs, _ = program.model.apply(variables, scale(image))
            log_probs = jax.nn.log_softmax(outputs.logits)
            of_label = jnp.take_along_axis(log_probs, jnp.maximum(label, 0)[:, None], axis=-1)[:, 0]
            counted = label >= 0
            right = counted & (outputs.logits.argmax(axis=-1) == label)
            return -jnp.where(counted, of_label, 0.0).sum(), right.sum().astype(jnp.float32)

        nll, right = jax.lax.map(totals, (images, labels))
        return nll.sum() / num_examples, right.sum() / num_examples

    return evaluate
