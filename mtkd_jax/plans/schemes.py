"""The named plans: what is trained after what.

A plan is a function `(config, split, *, ...) -> Plan`; `config.plan` is its address, such as
"born_again(generations=5)". Each trains teachers and `students.modes` as ever, so that what it adds stands in
one table with the students that all teachers teach directly, and with the baseline. What it adds is there for
each of `students.models`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from mtkd_jax.config import build_model, build_recipe, number_of_teachers, teacher_models
from mtkd_jax.data.loading import Split
from mtkd_jax.engine import population
from mtkd_jax.engine.jobs import Job
from mtkd_jax.methods.lineage import ForOneTeacher, OfOwnTeacher
from mtkd_jax.methods.seams import frozen_teachers
from mtkd_jax.plans import students, teachers
from mtkd_jax.plans.plan import Done, Plan, Stage, ensemble_of, train_students, train_teachers
from mtkd_jax.types import Model, Population, Recipe, Task, UserError

WITH_OWN_TEACHERS = ("specialists",)  # plans that cannot take teachers of another run


def teachers_then_students(config: ConfigDict, split: Split) -> Plan:
    """Teachers of every architecture, the fused networks some modes need, then the students."""
    return (*train_teachers(config, split), *train_students(config, split))


def born_again(config: ConfigDict, split: Split, *, generations: int = 3, mode: str = "output_avg") -> Plan:
    """Students of the same network each taught by one student before it, for some generations.

    The baseline is generation 0. Seed s of generation g has one teacher, seed s of generation g - 1, and
    initial weights of its own; it is a row, "born_again g". It learns by `mode`, such as "targets.cwtm" or
    "targets.dkpp", over the alphas and temperatures of `students`; those that validation chooses teach on.
    Row "BANE" is the mean of the probabilities of generations 1, 2, ..., seed by seed. Raises UserError for
    a mode that needs more than one head or teacher.

    Source: Furlanello et al. 2018, arXiv 1805.04770; on CIFAR alpha = 0 was better than with labels.
    """
    if generations < 1:
        raise UserError(f"config.plan: born_again(generations={generations}): must be at least 1")
    recipe = _recipe("born_again", mode, num_teachers=1)
    direct = _with_baseline("born_again", config, split)
    averaged, note = "", ""
    if generations > 1:
        averaged = "BANE"
        note = f"BANE is the mean of born_again 1 to {generations}, at the cost of {generations} networks."
    stages = []
    for transfer, model in itertools.product(config.students.transfer, students.models(config)):
        before, row = _baseline_stage(direct, transfer, model), "baseline"
        for generation in range(1, generations + 1):
            stage = _taught_by_own(
                config, split, before, row, f"born_again {generation}", recipe, model, born_anew=generation
            )
            stages.append(stage._replace(averaged=averaged, note=note))
            before, row = stage, f"born_again {generation}"
    return (*direct, *stages)


def assistants(
    config: ConfigDict, split: Split, *, models: tuple[str, ...] = (), mode: str = "output_avg"
) -> Plan:
    """Teachers teach assistants of the given architectures in turn, the last of them all students.

    All teachers teach assistants `models[0]`, one a seed; seed s of each next architecture, and at the end of
    the students, has one teacher, seed s of the one before. Each learns by `mode`, over the alphas and
    temperatures of `students`; those that validation chooses teach on. Rows: "assistant 1", ..., and the
    students, "assisted". Raises UserError for no model, or a mode that needs more than one head or teacher.

    Source: teacher assistants, Mirzadeh et al. 2020, arXiv 1902.03393; one teacher.
    """
    if not models:
        raise UserError(
            "config.plan: assistants(models=()): name the networks between teachers and students, "
            "such as assistants(models=('mlp(hidden=(48,))',))"
        )
    for address in models:
        build_model(address, Task(split.dataset.num_classes, 1, (0.0,), (1.0,)), "plan")
    recipe = _recipe("assistants", mode, num_teachers=1)
    note = f"Assistants, from first to last: {', '.join(models)}; they are there to teach, and not compared."
    direct = _with_baseline("assistants", config, split)
    stages = []
    for transfer in config.students.transfer:
        family = students.grid(config, "assistant 1", recipe)
        before = Stage(
            students.stage_name(transfer, family),
            lambda done, transfer=transfer, family=family: students.job(
                config, split, transfer, family, ensemble_of(done), {}, models[0]
            ),
            family,
            transfer,
            role="assistant",
            note=note,
        )
        stages.append(before)
        for number, network in enumerate(models[1:], start=2):
            taught_by, row = before.family[0].mode, f"assistant {number}"
            before = _taught_by_own(config, split, before, taught_by, row, recipe, network=network)
            stages.append(before._replace(role="assistant"))
        taught_by = before.family[0].mode
        stages += [
            _taught_by_own(config, split, before, taught_by, "assisted", recipe, model)
            for model in students.models(config)
        ]
    return (*direct, *stages)


def hints_then_distil(
    config: ConfigDict, split: Split, *, hints: str = "features.hints_only", mode: str = "output_avg"
) -> Plan:
    """Students first learn the teachers' features, then, from these weights, what the teachers say (FitNets).

    Every seed is trained by `hints` for as many epochs as in the second stage, keeps the weights of the last
    step (its heads know nothing yet, so validation has nothing to choose by), and begins with them, without
    regressors, at every alpha and temperature of `mode`: the row "hints_then_distil". Raises UserError for
    a mode with more than one head.

    Source: Romero et al. 2015, arXiv 1412.6550; one teacher, and lambda decays in its second stage.
    """
    num_teachers = number_of_teachers(config)
    if num_teachers is None:
        raise UserError(
            "config.plan: hints_then_distil begins with features of the teachers, and of those of "
            "teachers.logits and teachers.programs logits alone are known; it needs networks, such as those "
            "of teachers.from_run or teachers.init_from"
        )
    first, second = (_recipe("hints_then_distil", address, num_teachers) for address in (hints, mode))
    direct = _with_baseline("hints_then_distil", config, split)
    stages = []
    for transfer, model in itertools.product(config.students.transfer, students.models(config)):
        seeds = students.of_model(
            students.grid(config, "hints_then_distil hints", first, (0.0,), (1.0,)), model
        )
        family = students.of_model(students.grid(config, "hints_then_distil", second), model)
        hinted = students.stage_name(transfer, seeds)

        def learn_hints(done: Done, transfer=transfer, seeds=seeds) -> Job:
            job = students.job(config, split, transfer, seeds, ensemble_of(done), {})
            return dataclasses.replace(job, eval_every=job.epochs)  # the only weights to choose: the last

        def distil(done: Done, transfer=transfer, family=family, hinted=hinted) -> Job:
            job = students.job(config, split, transfer, family, ensemble_of(done), {})
            if done[hinted].diverged:
                raise UserError(f"{hinted}: {_broke_down(done[hinted].diverged)}")
            begun = done[hinted].population.variables
            return dataclasses.replace(job, start=population.take(begun, [member.seed for member in family]))

        stages.append(Stage(hinted, learn_hints))
        stages.append(Stage(students.stage_name(transfer, family), distil, family, transfer))
    return (*direct, *stages)


def specialists(config: ConfigDict, split: Split) -> Plan:
    """Teachers that cover some classes each, trained jointly as one network (USTE), then the students.

    `teachers.num_members` specialists of each architecture, every class covered by exactly two of them (see
    `teachers.coverage`). Their logits are scaled so that the mean over all is the mean over the two, and the
    cross-entropy of that is what all are trained on: rule "mean_logits" is the teacher of the paper, and mode
    "logit_avg" distils it; with other rules and modes each speaks of classes it has never learnt. They see
    the same batches, and keep the weights of the last step. Raises UserError for fewer than three
    specialists, more than there are classes, and whatever else makes teachers differ or end one by one.

    Source: unified specialized teachers ensemble, Zaras, Passalis and Tefas 2021, as in its released code.
    """
    _check_specialists(config, split)
    note = (
        "The teachers are specialists, trained as one network whose decision is that of mean_logits. Gaps "
        "and gap shares are those of mean_probs, to which each speaks of classes it has never learnt."
    )
    trained = [
        Stage(
            teachers.specialists_stage(address),
            lambda done, address=address: teachers.specialists_job(config, split, address),
            note=note,
        )
        for address in teacher_models(config)
    ]
    return (*trained, *train_students(config, split))


# --- lineages -----------------------------------------------------------------------------------------


def _taught_by_own(
    config: ConfigDict,
    split: Split,
    before: Stage,
    taught_by: str,
    row: str,
    recipe: Recipe,
    model: str = "",
    *,
    network: str = "",
    born_anew: int = 0,
) -> Stage:
    """A stage in which every seed is taught by the same seed of the row `taught_by` of the stage `before`.

    It is of the architecture `model`, see `students.models`, or of another `network`. Its initial weights are
    those of the seed, or others for every `born_anew` above 0.
    """
    recipe = recipe._replace(
        weigh=OfOwnTeacher(recipe.weigh),
        aim=OfOwnTeacher(recipe.aim),
        term=OfOwnTeacher(recipe.term),
        init_aux=ForOneTeacher(recipe.init_aux),
        reads_student=tuple(dict.fromkeys((*recipe.reads_student, "weigh", "aim"))),
    )
    family, transfer = students.of_model(students.grid(config, row, recipe), model), before.transfer

    def make(done: Done) -> Job:
        ensemble = (_chosen(before, taught_by, done),)
        job = students.job(config, split, transfer, family, ensemble, {}, network, born_anew, routed=False)
        own = np.asarray([member.seed for member in family], np.int32)
        return dataclasses.replace(job, hyper={**job.hyper, "own_teacher": own})

    return Stage(students.stage_name(transfer, family), make, family, transfer)


def _chosen(stage: Stage, row: str, done: Done) -> Population:
    """Every seed of a row, in order, at the alpha and temperature that validation chooses."""
    fitted = done[stage.name]
    own = students.members_of(stage.family, row)
    cell, _ = students.choose([stage.family[m] for m in own], fitted.val_nll[own])
    chosen = students.members_of(stage.family, row, cell)
    diverged = [fitted.population.names[m] for m in chosen if fitted.population.names[m] in fitted.diverged]
    if diverged:
        raise UserError(f"{stage.name}: {_broke_down(diverged)}")
    return population.members(fitted.population, chosen)


def _baseline_stage(stages: Plan, transfer: str, model: str) -> Stage:
    place = ("baseline", model)
    of_transfer = (stage for stage in stages if stage.transfer == transfer)
    return next(s for s in of_transfer if any((one.mode, one.model) == place for one in s.family))


def _broke_down(names: Sequence[str]) -> str:
    return (
        f"the loss of {', '.join(names)} stopped being finite, and nobody can learn from that; "
        "look at train.learning_rate, train.weight_decay and students.temperatures"
    )


# --- what cannot be -----------------------------------------------------------------------------------


def _with_baseline(name: str, config: ConfigDict, split: Split) -> Plan:
    if not config.students.modes:
        raise UserError(
            f"config.plan: {name} is compared with the students of students.modes, which is empty; "
            "name at least one, such as 'output_avg'"
        )
    return teachers_then_students(config, split)


def _recipe(name: str, address: str, num_teachers: int) -> Recipe:
    recipe = build_recipe(address, "plan")
    fits = (
        recipe.num_heads(2) == 1
        and recipe.num_peers == 1
        and recipe.min_teachers <= num_teachers
        and recipe.teach is frozen_teachers
        and not recipe.prepare
    )
    if not fits:
        raise UserError(
            f"config.plan: {name} cannot train by {address!r}; it needs a mode with one head that learns "
            f"from {'one frozen teacher' if num_teachers == 1 else 'frozen teachers'} and nobody else, "
            "such as 'output_avg'"
        )
    return recipe


def _models_of_teachers(config: ConfigDict) -> list[Model]:
    task = Task(2, 1, (0.0,), (1.0,))
    return [build_model(address, task, "teachers.models") for address in teacher_models(config)]


def _check_specialists(config: ConfigDict, split: Split) -> None:
    options, num_classes = config.teachers, split.dataset.num_classes
    if not 3 <= options.num_members <= num_classes:
        raise UserError(
            f"config.teachers.num_members: {options.num_members} specialists cannot cover {num_classes} "
            f"classes, each by two; plan specialists needs 3 to {num_classes}"
        )
    unfit = {
        "from_run": options.from_run,
        "init_from": options.init_from,
        "logits": options.logits,
        "programs": options.programs,
        "patience": options.patience,
        "bootstrap": options.bootstrap,
        "subset_fraction": options.subset_fraction < 1,
    }
    for model in _models_of_teachers(config):
        if model.pretrained or model.trainable:
            raise UserError(
                f"config.plan: specialists cannot be {model.name}: they are drawn anew, and all of them is "
                "trained; it must be without pretrained and trainable"
            )
    if config.train.depth_decay != 1:
        raise UserError("config.train.depth_decay: plan specialists has one learning rate; must be 1 with it")
    for name, is_set in unfit.items():
        if is_set:
            raise UserError(
                f"config.teachers.{name}: {options[name]!r} does not go with plan specialists, which are "
                "trained as one network, on the same batches and to the end; leave it at its default"
            )
