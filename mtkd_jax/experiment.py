"""The table of contents: configuration -> data -> teachers -> students -> evaluation -> report -> export."""

from __future__ import annotations

import contextlib
import signal
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mtkd_jax import addresses, mesh, validation
from mtkd_jax import config as configuration
from mtkd_jax.data import loading
from mtkd_jax.data.loading import Split
from mtkd_jax.deploy import export
from mtkd_jax.deploy import forms as deployed_forms
from mtkd_jax.engine import forecast
from mtkd_jax.plans import checks, given, lending, plan, teachers
from mtkd_jax.plans.plan import Trained
from mtkd_jax.report import document, mistakes
from mtkd_jax.results import (
    comparisons,
    complexity,
    evaluation,
    outside,
)
from mtkd_jax.results.student import save_student
from mtkd_jax.runs import predictions, workdir
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.runs.predictions import Predictions
from mtkd_jax.system import interrupts, own_code, paths
from mtkd_jax.types import DataSet, TrackedRun, UserError

# What a pilot that is not kept goes without: no comparison rests on it.
NOT_PILOTED = {
    "report.corruptions": (),
    "report.ood": "",
    "report.complexity": 0,
    "export.forms": (),
    "export.cascade": False,
}


def run(
    config: ConfigDict, into: str | Path, quiet: bool = False, dataset: DataSet | None = None
) -> dict[str, Any]:
    """Do what `config` says in the folder `into` and return its report.

    Goes on where an interrupted run of the same configuration stopped; of a finished one it returns the
    report, which takes no lock. A `dataset` is taken in the place of `data.source`. Raises UserError, one
    line, for whatever the user can mend, and Interrupted, with all training saved, when the process is asked
    to stop (interrupts.py).
    """
    with configuration.own_files(config):
        into, config, split = _prepare(config, into, dataset)
        if len(split.dataset.test_labels) == 0:
            raise UserError(
                f"{split.dataset.name}: has no test set, and a report says how good networks are on one"
            )
        finished = workdir.finished_report(into, config)
        if finished is not None and not _is_whole(finished, config):
            finished = None
        with _checked(config, split, into, writes=finished is None):
            return _run(config, split, into, quiet) if finished is None else finished


def _is_whole(report: dict[str, Any], config: ConfigDict) -> bool:
    """Whether a finished report is of this version, and has the metrics of the user's own.

    One that was built again has none of these, because reading a run executes nothing.
    """
    if not document.can_be_shown(report):
        return False
    return {one.get("address") for one in report["metrics"]} >= set(config.report.metrics)


def train(
    config: ConfigDict, into: str | Path, quiet: bool = False, dataset: DataSet | None = None
) -> Trained:
    """The first half of `run`: train what `config` says, or restore it where it is trained; no report."""
    with configuration.own_files(config):
        into, config, split = _prepare(config, into, dataset)
        with _checked(config, split, into):
            begun = _begin(config, split, into, describes=workdir.finished_report(into, config) is None)
            with _logbook(begun, into, quiet) as logbook:
                return _train(begun, into, logbook)


def _prepare(config: ConfigDict, into: str | Path, dataset: DataSet | None) -> tuple[Path, ConfigDict, Split]:
    into = paths.parse(into, "the folder of the run")
    validation.validate(config)
    mesh.check_precision()
    deployed_forms.check_packages(config.export.forms)
    config = configuration.in_one_spelling(config)
    return into, config, load_split(config, dataset)


@contextlib.contextmanager
def _checked(config: ConfigDict, split: Split, into: Path, writes: bool = True) -> Iterator[None]:
    """Handle signals, keep the user's own code as it is, and lock and check the run's folder.

    Nothing is locked where nothing is written.
    """
    writes = writes and mesh.is_first()
    lock = workdir.lock(into) if writes else contextlib.nullcontext()
    with interrupts.handle_signals(), own_code.held(), lock:
        if mesh.is_first():
            workdir.check(into, config, split)
        mesh.wait_for_all("checked")
        yield


def _begin(config: ConfigDict, split: Split, into: Path, describes: bool = True) -> Trained:
    """Build the plan and load borrowed teachers.

    With `describes` it writes config.json and removes the report of an earlier run.
    """
    if configuration.further_seeds(config) and len(split.dataset.test_labels) == 0:
        raise UserError(
            'config.students.num_seeds: "auto" compares students on test images, of which '
            f"{split.dataset.name} has none; give a number"
        )
    stages, borrowed, notes = planned(config, split, into)
    if mesh.is_first():
        plan.check_max_seeds(config, stages, workdir.begun_stages(into))
        added = (plan.seeds_stage(s, seeds) for s in stages for seeds in configuration.further_seeds(config))
        workdir.check_stages(into, [*(stage.name for stage in stages), *borrowed, *added])
        if describes:
            export.check_replaceable(into / "student")  # before any work
            workdir.describe(into, config, split)
        given.keep(into, borrowed)
    mesh.wait_for_all("described")
    return Trained(config, split, stages, borrowed, notes)


def _logbook(begun: Trained, into: Path, quiet: bool) -> Logbook:
    if not mesh.is_first():
        return Logbook(into / f"process{jax.process_index()}", quiet)
    settings = configuration.fields(begun.config)
    run = TrackedRun(str(into), workdir.name_here(into), settings)
    trackers = {
        address: partial(addresses.build, "tracker", address, "runtime.trackers", run)
        for address in begun.config.runtime.trackers
    }
    return Logbook(into, quiet, trackers)


def _train(begun: Trained, into: Path, logbook: Logbook) -> Trained:
    """All stages and, where `students.num_seeds` is "auto", blocks of further seeds until all is decided."""
    trained = _train_stages(begun, begun.stages, into, logbook)
    for seeds in configuration.further_seeds(begun.config):
        if _is_decided(trained, seeds[0], logbook):
            break
        more = plan.more_seeds(begun.config, begun.split, begun.stages, trained.done, seeds)
        trained = _train_stages(trained._replace(stages=(*trained.stages, *more)), more, into, logbook)
    return trained


def _train_stages(begun: Trained, stages: plan.Plan, into: Path, logbook: Logbook) -> Trained:
    seconds = begun.config.runtime.checkpoint_seconds
    done = plan.run(stages, into, logbook, seconds, begun.done, workdir.read_run(into))
    return begun._replace(done=done)


def _is_decided(trained: Trained, num_seeds: int, logbook: Logbook) -> bool:
    """Whether every comparison of accuracies is, by intervals that bear being looked at again and again.

    The same in all processes: where one of them is in doubt, all go on.
    """
    predicted = evaluation.predict_students(trained.config, trained.split, trained.stages, trained.done)
    undecided = comparisons.undecided(predicted)
    names = ", ".join(f"{one['a']} - {one['b']}" for one in undecided[:3]) + ", ..." * (len(undecided) > 3)
    logbook.say(f"{num_seeds} seeds: {f'{len(undecided)} undecided: {names}' if names else 'all decided'}")
    return not mesh.any_asked(len(undecided))


def _run(config: ConfigDict, split: Split, into: Path, quiet: bool) -> dict[str, Any]:
    begun = _begin(config, split, into)
    with _logbook(begun, into, quiet) as logbook:
        trained = _train(begun, into, logbook)

        if not mesh.is_first():
            mesh.wait_for_all("reported")
            report = workdir.read_report(into)
            if report is None:
                raise UserError(f"{into}: holds no report; all processes must see the same folder")
            return report
        logbook.say("evaluating")
        predicted = evaluation.predict(*trained)
        predictions.save(into / workdir.PREDICTIONS, predicted)

        interrupts.check(evaluation.SAVED)
        logbook.check()
        logbook.say("writing the student and the report")
        save_student(trained, predicted, into)
        _draw_mistakes(trained.split.dataset, predicted, into)
        workdir.seal(into, workdir.PREDICTIONS)  # with what is made of them; the report alone is missing
        result = document.write(into)
        logbook.check()
        mesh.wait_for_all("reported")
        return result


def pilot(config: ConfigDict, num_seeds: int, into: Path | None = None) -> dict[str, Any]:
    """The report of a run of so many seeds; where the folder `into` holds a run, of that with its own seeds.

    Without a folder nothing of it is kept, and what no comparison rests on is left out. Raises UserError and
    Interrupted as `run` does, UserError also where nothing is compared.
    """
    if not config.students.modes:
        raise UserError("config.students.modes: is empty; name at least one to compare, such as 'output_avg'")
    config = config.copy_and_resolve_references()
    described = workdir.read_config(into) if into is not None and into.is_dir() else None
    seeds = described["students"] if described else {"num_seeds": num_seeds}
    for name in ("num_seeds", "max_seeds"):
        configuration.put(config, f"students.{name}", seeds.get(name, config.students[name]))
    if into is not None:
        run(config, into)
        return document.build(workdir.read_predictions(into))
    for field, none in NOT_PILOTED.items():
        configuration.put(config, field, none)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return run(config, folder)
    except (interrupts.Interrupted, KeyboardInterrupt) as stopped:
        number = getattr(stopped, "signal", signal.SIGINT)
        where = "without a --workdir nothing of a pilot is kept"
        raise interrupts.Interrupted(number, where, kept=False) from None


def costs(config: ConfigDict, timed: bool = False) -> Iterator[forecast.Cost]:
    """What `run` would cost, stage by stage: FLOPs, bytes and seconds; nothing is trained or written.

    By formula, in seconds; timed, every stage is compiled and runs a few steps. Raises UserError as `run`
    does, when the first stage is asked for.
    """
    validation.validate(config)
    mesh.check_precision()
    config = configuration.in_one_spelling(config)
    with configuration.own_files(config):
        split = load_split(config)
        stages, borrowed, _ = planned(config, split)
        yield from plan.costs(stages, borrowed, timed)


def planned(
    config: ConfigDict, split: Split, into: Path | None = None
) -> tuple[plan.Plan, plan.Done, tuple[str, ...]]:
    """What is trained, what an earlier run has trained already, and notes on both; all of it fits together.

    Classifiers that the run of the folder `into` has kept are not fitted again. Raises UserError where it
    does not, as far as can be told without computing.
    """
    checks.check_data(config, split)
    outside.check(config, split)
    complexity.check(config, split)
    stages = plan.build(config, split)
    checks.check_choice(config, stages)
    borrowed, notes = teachers.borrow(config, split, into)
    checks.check_teachers(config, split, borrowed)
    rehearsed = plan.rehearse(stages, config, borrowed)
    students = (
        rehearsed[stage.name].population for stage in stages if stage.family and stage.role == "student"
    )
    complexity.check_students(config, split, students)
    return stages, borrowed, (*notes, *plan.notes(config))


def said_by_teachers(into: Path, dataset: DataSet | None = None) -> tuple[dict[str, np.ndarray], DataSet]:
    """What the teachers of a run say of all training and test images, and its data, see data/logit_files.py.

    {"train_logits": [K,N,C], "test_logits": [K,n,C]}, with the images' names where they have some. Data
    that was given from Python has to be given again. Raises UserError where the run has no finished teachers
    or the data is another one.
    """
    described = workdir.read_config(into) if into.is_dir() else None
    if described is None:
        raise UserError(f"{into}: holds no run; name the --workdir of one")
    config = configuration.restored(described)
    with configuration.own_files(config):
        return _said_by_teachers(config, into, dataset)


def _said_by_teachers(
    config: ConfigDict, into: Path, dataset: DataSet | None
) -> tuple[dict[str, np.ndarray], DataSet]:
    if configuration.trains_teachers(config):
        lending.borrow(config, into)
    split = load_split(config, dataset)
    try:
        teachers.check_data(into, split)
        found, _ = teachers.borrow(config, split, into)
    except UserError as error:  # nobody has set a field here
        raise UserError(str(error).removeprefix("config.teachers.from_run: ")) from None
    data = split.dataset
    arrays = {}
    for part in ("train", "test"):
        of_part = getattr(data, f"{part}_images")
        each = [evaluation.logits(one, of_part, part) for one in plan.ensemble_of(found)]
        arrays[f"{part}_logits"] = np.concatenate(each)
        if (names := getattr(data, f"{part}_names")) is not None:
            arrays[f"{part}_names"] = np.array(names)
    return arrays, data


def load_split(config: ConfigDict, dataset: DataSet | None = None) -> Split:
    """The configured data, or another, checked and cut into its parts, and the other images beside it."""
    split = loading.split(
        configuration.source_call(config)() if dataset is None else dataset,
        num_train=config.data.num_train,
        val_fraction=config.data.val_fraction,
        seed=config.seed,
        how=config.data.split,
    )
    if not config.data.other:
        return split
    found = configuration.further_source(config, "data.other")()
    return loading.with_other(split, found, f"config.data.other: {config.data.other}")


def _draw_mistakes(dataset: DataSet, predicted: Predictions, into: Path) -> None:
    """What the report shows and cannot draw: it has no images."""
    drawn = into / "plots" / f"{document.MISTAKES}.png"
    picture = mistakes.sheet(dataset, predicted)
    if picture is None:
        drawn.unlink(missing_ok=True)
    else:
        document.write_files(drawn.parent, {drawn.name: picture})
