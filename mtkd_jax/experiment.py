"""The table of contents: configuration -> data -> teachers -> students -> evaluation -> report -> export."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mtkd_jax import config as configuration
from mtkd_jax import mesh
from mtkd_jax.data import images, loading
from mtkd_jax.data.loading import Split
from mtkd_jax.deploy import deployed, export
from mtkd_jax.engine import forecast
from mtkd_jax.plans import plan, teachers
from mtkd_jax.report import document
from mtkd_jax.results import analysis, evaluation, intervals, metrics
from mtkd_jax.runs import predictions, workdir
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.runs.predictions import Group, Predictions
from mtkd_jax.system import interrupts, paths

NUM_CHECKED = 64  # test images on which the exported student is compared with the trained one


def run(config: ConfigDict, into: str | Path, quiet: bool = False) -> dict[str, Any]:
    """Do what `config` says in the folder `into` and return its report.

    Goes on where an interrupted run of the same configuration stopped; of a finished one it returns the
    report, which takes no lock. Raises UserError, one line, for whatever the user can mend, and Interrupted,
    with all training saved, when the process is asked to stop (interrupts.py).
    """
    into = paths.parse(into, "the folder of the run")
    configuration.validate(config)
    mesh.check_precision()
    config = configuration.in_one_spelling(config)
    split = load_split(config)
    finished = workdir.finished_report(into, config)
    if finished is not None and not document.can_be_shown(finished):  # an earlier version's
        finished = None
    writes = finished is None and mesh.is_first()
    with interrupts.handle_signals(), workdir.lock(into) if writes else contextlib.nullcontext():
        if mesh.is_first():
            workdir.check(into, config, split)
        mesh.wait_for_all("checked")
        return _run(config, split, into, quiet) if finished is None else finished


def _run(config: ConfigDict, split: Split, into: Path, quiet: bool) -> dict[str, Any]:
    stages, borrowed, notes = planned(config, split)
    if mesh.is_first():
        workdir.check_stages(into, [stage.name for stage in stages])
        workdir.describe(into, config, split)
    mesh.wait_for_all("described")

    with Logbook(into if mesh.is_first() else into / f"process{jax.process_index()}", quiet) as logbook:
        run = workdir.read_run(into)
        done = plan.run(stages, into, logbook, config.runtime.checkpoint_seconds, borrowed, run)

        if not mesh.is_first():
            mesh.wait_for_all("reported")
            return workdir.read_report(into)
        logbook.say("evaluating")
        predicted = evaluation.predict(config, split, stages, done, notes)
        predictions.save(into / workdir.PREDICTIONS, predicted)

        interrupts.check(evaluation.SAVED)
        logbook.check()
        logbook.say("writing the student and the report")
        save_student(config, split, stages, done, predicted, into)
        workdir.seal(into, workdir.PREDICTIONS)  # with what is made of them; the report alone is missing
        result = document.write(into)
        logbook.check()
        mesh.wait_for_all("reported")
        return result


def costs(config: ConfigDict, timed: bool = False) -> Iterator[forecast.Cost]:
    """What `run` would cost, stage by stage: FLOPs, bytes and seconds; nothing is trained or written.

    By formula, in seconds; timed, every stage is compiled and runs a few steps. Raises UserError as `run`
    does, when the first stage is asked for.
    """
    configuration.validate(config)
    mesh.check_precision()
    config = configuration.in_one_spelling(config)
    split = load_split(config)
    stages, borrowed, _ = planned(config, split)
    yield from plan.costs(stages, borrowed, timed)


def planned(config: ConfigDict, split: Split) -> tuple[plan.Plan, plan.Done, tuple[str, ...]]:
    """What is trained, what an earlier run has trained already, and notes on that; all of it fits together.

    Raises UserError where it does not, as far as can be told without computing.
    """
    plan.check(config, split)
    stages = plan.build(config, split)
    plan.check_choice(config, stages)
    borrowed, notes = teachers.borrow(config, split)
    plan.rehearse(stages, config, borrowed)
    return stages, borrowed, notes


def load_split(config: ConfigDict) -> Split:
    """The configured data, checked and cut into training, pool, validation and test."""
    dataset = configuration.source_call(config)()
    return loading.split(
        dataset,
        num_train=config.data.num_train,
        val_fraction=config.data.val_fraction,
        seed=config.seed,
        how=config.data.split,
    )


def save_student(
    config: ConfigDict,
    split: Split,
    stages: plan.Plan,
    done: plan.Done,
    predicted: Predictions,
    into: Path,
) -> None:
    """Write the network to deploy to `into`/student, load it again and check that it says the same."""
    chosen = analysis.network_to_deploy(predicted)
    if chosen is None:
        return
    group, position = chosen
    model, variables = evaluation.network_of(stages, done, group, position)
    dataset, logits = split.dataset, group.test[position]
    measured = metrics.per_example(logits, dataset.test_labels)
    card = {
        "name": f"{dataset.name}: {group.role} {group.name}",
        "model": group.architecture,
        "task": model.module.task,
        "class_names": list(dataset.class_names),
        "input": {
            "shape": list(dataset.train_images.shape[1:]),
            "dtype": "float32",
            "range": deployed.PIXELS if dataset.train_images.dtype == np.uint8 else "as in the data",
            **({"fit": dataset.fit, "files": images.READING} if dataset.fit else {}),
        },
        "training": _training(config, predicted, group, position),
        "data": f"{dataset.name}: {json.dumps(dict(predicted.sizes))}",
        "source": f"configuration {workdir.config_hash(config.to_dict())[:12]}",
        "metrics": {
            f"test {name}": {
                "value": float(np.mean(values)),
                "ci95": intervals.bootstrap_interval(values),
                "over": "test examples",
            }
            for name, values in measured.items()
        },
    }
    checked = np.asarray(loading.scale(jnp.asarray(dataset.test_images[:NUM_CHECKED])))
    said = export.logits_of(model, variables, checked)
    export.save_student(into / "student", model, variables, card, (checked, said))
    export.verify_student(into / "student", configuration.build_model, checked, said)


def _training(config: ConfigDict, predicted: Predictions, group: Group, position: int) -> str:
    """For the card: what made a network, and why it was chosen."""
    chosen = f"{group.members[position]}; export.choose = {predicted.choose}, by validation NLL"
    if group.role == "teacher":
        trained = "on the labels alone, as a teacher"
        if config.teachers.trained:
            number = int(group.members[position].split()[-1])  # of "teacher 2"
            trained = f"elsewhere, as in {config.teachers.init_from[number]}"
        elif config.teachers.from_run:
            trained += f" of the run {config.teachers.from_run}"
        return f"{trained}: {chosen}"
    num_teachers = sum(len(teacher.members) for teacher in analysis.teachers(predicted))
    taught = {"baseline": "no teacher", "control": "no teacher"}.get(group.role, f"{num_teachers} teachers")
    return (
        f"{taught}, {config.plan}: {group.method}, alpha {group.alpha:g} (weight of the hard labels), "
        f"T {group.temperature:g}, {group.transfer} transfer set, {chosen}"
    )
