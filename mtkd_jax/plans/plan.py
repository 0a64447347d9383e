"""A plan: the list of stages a run trains, one after the other.

A stage is made from what earlier stages trained: as its teachers, as fitted helpers, or as its start.
Generations, assistant chains and hint-then-distil (schemes/) are longer lists, not other loops.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from mtkd_jax import mesh
from mtkd_jax.addresses import resolve
from mtkd_jax.config import (
    SEEDS_AT_ONCE,
    row_of,
    student_models,
    teacher_models,
    trained_models,
    trains_teachers,
)
from mtkd_jax.data import loading
from mtkd_jax.data.loading import Split
from mtkd_jax.engine import forecast, frozen, population, step, teacher_cache, tuning
from mtkd_jax.engine.jobs import Job, parts
from mtkd_jax.engine.step import StageData
from mtkd_jax.engine.teacher_cache import Cache
from mtkd_jax.engine.training import Fitted, concatenate, fit, untrained
from mtkd_jax.mesh import Layout
from mtkd_jax.plans import controls, students, teachers
from mtkd_jax.plans.students import Cell, Family, Member
from mtkd_jax.runs import checkpoint
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.system import interrupts
from mtkd_jax.types import Array, Ensemble, Model, Population, PyTree, UserError

Done = Mapping[str, Fitted]  # what finished stages trained, by name


class Stage(NamedTuple):
    """One training; `make` turns what earlier stages trained into the work to do."""

    name: str
    make: Callable[[Done], Job]
    family: Family = ()  # the students it trains, each mode of which is a row of the report
    transfer: str = ""  # the transfer set they are trained on
    role: str = "student"  # of these rows, see predictions.Group
    averaged: str = ""  # the row that their probabilities make with those of other stages, if any
    note: str = ""  # what a reader of the report must know
    outline: Callable[[Done], Job] | None = None  # work of the same shapes, where `make` computes much
    begun_by: tuple[str, ...] = ()  # stages that are a part of the same training: their time is its own


Plan = tuple[Stage, ...]


class Trained(NamedTuple):
    """A plan that has been trained, and what it was made from."""

    config: ConfigDict  # valid, in one spelling
    split: Split
    stages: Plan
    done: Done
    notes: tuple[str, ...]  # on teachers that came trained, and on what networks cannot be


def build(config: ConfigDict, split: Split) -> Plan:
    """The plan that `config.plan` names, one of schemes/; raises UserError where it cannot be.

    No two stages have one name: the second would be restored from the first one's checkpoints.
    """
    function, arguments = resolve("plan", config.plan, "plan")
    plan = function(config, split, **arguments)
    names = [stage.name for stage in plan]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"config.students.modes: several stages would be called {twice[0]!r}; leave one of the modes out"
        )
    return plan


def alone(make: Callable[..., Job], *arguments: Any) -> Callable[[Done], Job]:
    """The work of a stage that needs none before it: what `make` makes of these arguments."""
    return lambda done: make(*arguments)


def train_teachers(config: ConfigDict, split: Split) -> Plan:
    """A stage for each architecture; none when the teachers come trained, from an earlier run or files."""
    if not trains_teachers(config):
        return ()
    return tuple(
        Stage(
            teachers.stage_name(address),
            alone(teachers.job, config, split, address),
            note=teachers.beginning(config, split, address),
        )
        for address in teacher_models(config)
    )


def train_students(config: ConfigDict, split: Split) -> Plan:
    """A stage for each fused network, then one for each transfer set and family of modes."""
    families = students.families(config)
    taps = dict.fromkeys(tap for family in families for tap in students.fused_networks(family))
    fusers = []
    for tap in taps:

        def fuse(done: Done, tap: str = tap, **how: Callable) -> Job:
            return students.fuser_job(config, split, tap, ensemble_of(done), **how)

        outline = partial(fuse, ask=population.zeros_like_output)
        fusers.append(Stage(students.fuser_stage(tap), fuse, outline=outline))
    file = config.students.init_from
    begun = f"The students' bodies began with the weights of {file}, their heads anew." if file else ""
    note = " ".join(filter(None, (begun, teachers.out_of_bag(config, split))))
    stages = [
        _teach(config, split, transfer, family, note)
        for transfer in config.students.transfer
        for family in families
    ]
    return (*fusers, *stages)


def more_seeds(config: ConfigDict, split: Split, plan: Plan, done: Done, seeds: range) -> Plan:
    """Stages that add seeds to every row of students, trained at the cell that validation chose for it.

    The choice stays that of the first seeds: if it could change it would be another row, and the grid would
    have to be trained again.
    """
    cells = _chosen_cells(plan, done)
    found = []
    for stage in plan:
        own = [
            member
            for member in stage.family
            if member.seed == 0 and member.cell == cells[_row(stage, member)]
        ]
        if own:
            family = tuple(member._replace(seed=seed) for seed in seeds for member in own)
            found.append(_adding(config, split, stage, family, seeds))
    return tuple(found)


def _adding(config: ConfigDict, split: Split, stage: Stage, family: Family, seeds: range) -> Stage:
    name = seeds_stage(stage, seeds)

    same = _teach(config, split, stage.transfer, family, "")

    def make(done: Done) -> Job:
        return dataclasses.replace(same.make(done), stage=name)

    return stage._replace(name=name, make=make, family=family, outline=None)


def seeds_stage(stage: Stage, seeds: range) -> str:
    """The stage, and so the checkpoint folder, that adds seeds to those of another one."""
    return f"{stage.name}{_SEEDS}{seeds[0]}"


_SEEDS = "-seeds-"  # between the name of a stage and the first of the seeds that another one adds to it


def check_max_seeds(config: ConfigDict, plan: Plan, begun: Iterable[str]) -> None:
    """Raise UserError where `students.max_seeds` is less than the seeds of stages that were begun."""
    names = {stage.name for stage in plan}
    added = (name.rpartition(_SEEDS) for name in begun)
    most = max((int(first) + SEEDS_AT_ONCE for name, _, first in added if name in names), default=0)
    if most > config.students.max_seeds:
        raise UserError(
            f"config.students.max_seeds: {most} seeds are trained already, or begun; must be at least {most}"
        )


def _row(stage: Stage, member: Member) -> tuple[str, ...]:
    """Members of one row differ in their cell and their seed alone."""
    return stage.transfer, member.control, member.mode, member.model


def _chosen_cells(plan: Plan, done: Done) -> dict[tuple[str, ...], Cell]:
    """The cell that validation chooses for each row."""
    rows: dict[tuple[str, ...], list[tuple[Member, float]]] = {}
    for stage in plan:
        for member, nll in zip(stage.family, done[stage.name].val_nll):
            if member.is_student:
                rows.setdefault(_row(stage, member), []).append((member, nll))
    return {row: students.choose(*zip(*trained))[0] for row, trained in rows.items()}


def _teach(config: ConfigDict, split: Split, transfer: str, family: Family, note: str) -> Stage:
    """The stage of one family on one transfer set, by the teachers or by what a control has instead."""
    control = family[0].control

    def make(done: Done, computes: bool = True) -> Job:
        taught_by = controls.teachers(control, config, split, ensemble_of(done), computes)
        prepared = {**_fused_networks(done, family), **_fitted_rules(split, done, family, computes)}
        return students.job(config, split, transfer, family, taught_by, prepared)

    return Stage(
        students.stage_name(transfer, family),
        make,
        family,
        transfer,
        role="control" if control else "student",
        note=" ".join(filter(None, (note, controls.NOTES.get(control, "")))),
        outline=partial(make, computes=False),
    )


def notes(config: ConfigDict) -> tuple[str, ...]:
    """What the report says of how networks are trained.

    Of teachers by a method, networks that learning rates by depth do not reach, and those frozen as drawn.
    """
    found, decay, drawn = [], config.train.depth_decay, _begin_drawn(config)
    if config.teachers.method and trains_teachers(config):
        found.append(f"The teachers were trained by {config.teachers.method}.")
    for address, model in trained_models(config).items():
        if decay != 1 and not model.stages:
            found.append(
                f"{address} names no stages: all of it has one learning rate, train.depth_decay = {decay:g} "
                "or not."
            )
        is_drawn = address in drawn and not model.pretrained and not hasattr(model.module, "calibrate")
        if model.frozen_stages and is_drawn:
            found.append(
                f"{address}: the stages before {model.trainable} were frozen as they were drawn, knowing "
                "nothing: it is neither pretrained nor begun with the weights of a file."
            )
    return tuple(found)


def _begin_drawn(config: ConfigDict) -> set[str]:
    """The addresses of networks that no file of `init_from` is for, of teachers, students or the plan."""
    of_teachers, of_students = {*teacher_models(config)}, {*student_models(config)}
    found = {*trained_models(config)} - of_teachers - of_students
    if not (config.teachers.init_from or config.teachers.from_run):
        found |= of_teachers
    return found if config.students.init_from else found | of_students


def rehearse(plan: Plan, config: ConfigDict, done: Done) -> Done:
    """What all stages would train, as zeros; raises UserError for what a stage's first step would reveal.

    That step is traced and nothing computed, so that no run ends where its students begin.
    """
    done = dict(done)
    for stage in plan:
        try:
            done[stage.name] = trace((stage.outline or stage.make)(done))
        except UserError as error:
            if str(error).startswith("config."):  # it says itself what to mend
                raise
            modes = _modes_behind(stage, plan)
            rows = dict.fromkeys(row_of(member.mode, member.model) for member in stage.family) or modes
            field = "students.modes" if {*modes} & {*config.students.modes} else "plan"
            raise UserError(f"config.{field}: {', '.join(rows or (stage.name,))}: {error}") from None
    return done


def _modes_behind(stage: Stage, plan: Plan) -> tuple[str, ...]:
    """The modes that a stage trains, or for which it fits a network."""
    members = [member for one in plan for member in one.family]
    fitted_for = [m.mode for m in members if students.fuser_stage(m.recipe.prepare) == stage.name]
    return tuple(dict.fromkeys([*(member.mode for member in stage.family), *fitted_for]))


def trace(job: Job) -> Fitted:
    """The members of a job as zeros; its first step is traced, in whatever layout is traced soonest.

    Raises UserError where members would begin with the weights of another network.
    """
    program = job.program._replace(layout=Layout("map"))

    def first_step(variables: PyTree, keys: Array, stage_data: StageData, *arguments: PyTree) -> PyTree:
        states = step.init_state(program, variables, keys, stage_data)
        return step.make_step(program)(states, *arguments, stage_data)

    variables = _zero_variables(job, job.program.model)
    if job.start is not None and _shapes(job.start) != _shapes(variables):
        raise UserError(f"it would begin with weights that are not those of {job.program.model.name}")
    begun = job.hyper, job.order(0)[0], np.int32(0)
    jax.eval_shape(first_step, variables, job.init_keys, job.stage_data, *begun)
    return _zeros(job)


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.shape, dict(tree))


def _zeros(job: Job) -> Fitted:
    model, num_members = job.program.model.deployed, len(job.names)
    trained, bank = Population(model, _zero_variables(job, model), job.hyper, job.names), None
    if job.checkpoints:
        repeated = lambda leaf: np.repeat(leaf[:, None], job.checkpoints, axis=1)  # noqa: E731
        bank = dataclasses.replace(trained, variables=jax.tree.map(repeated, trained.variables))
    return Fitted(trained, np.zeros(num_members, np.float32), (), 0.0, bank=bank)


def _zero_variables(job: Job, model: Model) -> PyTree:
    num_members = len(job.names)
    of_one = jax.eval_shape(lambda keys, image: model.init(keys[0], image), job.init_keys, job.image)
    return jax.tree.map(lambda leaf: np.zeros((num_members, *leaf.shape), leaf.dtype), of_one)


def run(
    plan: Plan,
    workdir: Path,
    logbook: Logbook,
    checkpoint_seconds: float,
    done: Done | None = None,
    run: str = "",
) -> Done:
    """Train every stage, or restore it where it is finished; returns what all of them trained.

    `run` names it in its checkpoints: those of another run are refused with a UserError. Raises Interrupted,
    with all that was trained saved, when the process has been asked to stop.
    """
    done = dict(done or {})
    cache: Cache = {}
    for stage in plan:
        if number := mesh.any_asked(interrupts.stop_requested()):
            raise interrupts.Interrupted(number, f"all before {stage.name} is saved")
        job, directory = stage.make(done), workdir / "checkpoints" / stage.name
        job = dataclasses.replace(job, run=run)
        done[stage.name] = _train(job, directory, cache, logbook, checkpoint_seconds)
        if done[stage.name].diverged:
            logbook.warn(left_out(stage.name, done[stage.name]))
    return done


def left_out(name: str, fitted: Fitted) -> str:
    """What log and report say of the members of a stage that broke down."""
    return f"{name}: {', '.join(fitted.diverged)} left out, the loss was not finite"


def costs(plan: Plan, done: Done | None = None, timed: bool = False) -> Iterator[forecast.Cost]:
    """What every stage would cost, one after the other; nothing is trained.

    By formula, with zeros for what earlier stages train. Timed, later stages are given untrained networks.
    """
    done = dict(done or {})
    cache: Cache = {}
    for stage in plan:
        if timed:
            job = teacher_cache.fill(frozen.fill(stage.make(done), cache, lambda line: None), cache)
            yield forecast.measure(job)
            done[stage.name] = untrained(job)
        else:
            job = (stage.outline or stage.make)(done)
            outlined = teacher_cache.outline(frozen.outline(job))
            yield forecast.estimate(outlined, forecast.this_machine())
            done[stage.name] = _zeros(job)


def _train(job: Job, directory: Path, cache: Cache, logbook: Logbook, checkpoint_seconds: float) -> Fitted:
    """One stage, in the layout that is fastest and in as many parts as memory asks for."""
    if checkpoint.latest(directory / "finished"):
        return fit(job, directory, logbook, checkpoint_seconds)  # only restored
    job = tuning.choose_layout(frozen.fill(job, cache, logbook.say), directory, logbook.say)
    at_once = tuning.members_at_once(job, directory)
    several = [forecast.in_pieces(one) for one in parts(teacher_cache.fill(job, cache), at_once)]
    if len(several) == 1:
        return fit(several[0], directory, logbook, checkpoint_seconds)
    logbook.say(f"{job.stage}: {len(job.names)} members in {len(several)} parts of at most {at_once}")
    return concatenate(
        [fit(one, directory / Path(one.stage).name, logbook, checkpoint_seconds) for one in several]
    )


def ensemble_of(done: Done) -> Ensemble:
    """The teachers among what is done, without members whose training broke down."""
    return tuple(
        fitted.finite_members for stage, fitted in done.items() if stage.startswith(teachers.STAGE_PREFIX)
    )


def _fused_networks(done: Done, family: Family) -> dict[str, Callable]:
    networks: dict[str, Callable] = {}
    for tap in students.fused_networks(family):
        fitted = done[students.fuser_stage(tap)].population
        fuser = students.Fuser(fitted.model, tap)
        networks[tap] = jax.tree_util.Partial(fuser, population.take(fitted.variables, 0))
    return networks


def _fitted_rules(split: Split, done: Done, family: Family, computes: bool) -> dict[str, Callable]:
    """The rules a family reads, fitted on validation.

    Where nothing is to be computed only the shapes are right.
    """
    asked = students.fitted_rules(family)
    if not asked:
        return {}
    ensemble, num_classes = ensemble_of(done), split.dataset.num_classes
    said, labels = np.eye(num_classes)[None], np.arange(num_classes)
    if computes:
        each = [teacher_cache.logits_of(own, split, split.val) for own in ensemble]
        of_val = split.dataset.train_labels[split.val]
        said, labels = loading.flat_logits(np.concatenate(each), of_val), loading.flat(of_val, of_val)
    else:
        said = np.repeat(said, sum(own.num_members for own in ensemble), axis=0)
    return {name: students.fit_rule(name, said, labels) for name in asked}
