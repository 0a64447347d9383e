"""The named plans: what is trained after what.

A plan is a function `(config, split, *, ...) -> Plan`; `config.plan` is its address, such as
"born_again(generations=5)". Each trains teachers and `students.modes` as ever, so that what it adds stands in
one table with the students that all teachers teach directly, and with the baseline. What it adds is there for
each of `students.models`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from mtkd_jax.config import build_model, build_recipe, given_teachers, number_of_teachers, teacher_models
from mtkd_jax.data.loading import Split
from mtkd_jax.engine import population
from mtkd_jax.engine.jobs import Job, slug
from mtkd_jax.methods.lineage import ForOneTeacher, OfOwnTeacher
from mtkd_jax.methods.seams import SUPERVISED, frozen_teachers
from mtkd_jax.plans import sequences, students, teachers
from mtkd_jax.plans.plan import Done, Plan, Stage, ensemble_of, train_students, train_teachers
from mtkd_jax.types import Model, Population, PyTree, Recipe, Task, UserError

# Plans that cannot take teachers of another run.
WITH_OWN_TEACHERS = ("specialists", "snapshots", "fast_geometric", "stochastic_averages")


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


def snapshots(config: ConfigDict, split: Split) -> Plan:
    """Teachers that are moments of one training, each at the end of a cycle of its learning rate; students.

    The training of one network of each architecture is cut into `teachers.num_members` cycles of equal
    length, `train.epochs` together; in each the rate falls from `train.learning_rate` to 0 along half a
    cosine, and the weights at its end are a teacher and the start of the next cycle. The optimiser's moments
    begin anew, and epochs that do not divide are left out. Then all of them see the training images for one
    more epoch at a rate of 0, in which batch statistics settle and no weight changes. Raises UserError for
    more cycles than epochs, and for fields of teachers that are trained apart.

    Source: snapshot ensembles, Huang et al. 2017, arXiv 1704.00109.
    """
    number, epochs = config.teachers.num_members, config.train.epochs
    _check_moments("snapshots", config, number <= epochs, f"at least {number}, one for each teacher")
    cycles = [(epochs // number, "cosine")] * number
    note = f"The teachers of each architecture are moments of one training of {number} cycles."
    return (*_moments(config, split, cycles, 0, note), *train_students(config, split))


def fast_geometric(config: ConfigDict, split: Split, *, burn_in: float = 0.75, low: float = 0.05) -> Plan:
    """Teachers that are moments of the end of one training, in short cycles of its learning rate; students.

    One network of each architecture is trained for the share `burn_in` of `train.epochs` by `train.schedule`;
    the rest is cut into `teachers.num_members` cycles of equal length, in each of which the rate rises from
    `low` times `train.learning_rate` to all of it and falls again, along lines. The weights at the end of
    each cycle are a teacher; all else is as in `snapshots`. Raises UserError for shares that are none, for
    cycles without an epoch, and for fields of teachers that are trained apart.

    Source: fast geometric ensembles, Garipov et al. 2018, arXiv 1802.10026.
    """
    _check_shares("fast_geometric", burn_in=burn_in, low=low)
    number, epochs = config.teachers.num_members, config.train.epochs
    first = max(1, round(burn_in * epochs))
    each = (epochs - first) // number
    _check_moments("fast_geometric", config, each > 0, f"more: burn_in leaves {epochs - first} for {number}")
    cycle = f"triangular(peak=0.5, start={low}, end={low})"
    cycles = [(first, config.train.schedule), *[(each, cycle)] * number]
    note = f"The teachers of each architecture are moments of one training: {number} cycles at its end."
    return (*_moments(config, split, cycles, 1, note), *train_students(config, split))


def stochastic_averages(
    config: ConfigDict, split: Split, *, burn_in: float = 0.75, rate: float = 0.5, moments: int = 5
) -> Plan:
    """Teachers that are each the mean of its weights at several moments of its training; students.

    `teachers.num_members` networks of each architecture are trained for the share `burn_in` of `train.epochs`
    by `train.schedule`, and for the rest at `rate` times `train.learning_rate`: the mean is of the weights at
    the ends of `moments` equal parts of that. Batch statistics settle as in `snapshots`. All networks are
    trained together, and one whose loss stops being finite ends the run. Raises UserError for that, for
    shares that are none, for parts without an epoch, and for fields of teachers that are never cut.

    Source: averaging weights leads to wider optima (SWA), Izmailov et al. 2018, arXiv 1803.05407.
    """
    _check_shares("stochastic_averages", burn_in=burn_in, rate=rate)
    if moments < 1:
        raise UserError(f"config.plan: stochastic_averages(moments={moments}): must be at least 1")
    first = max(1, round(burn_in * config.train.epochs))
    left = config.train.epochs - first
    _check_moments(
        "stochastic_averages", config, left >= moments, f"more: burn_in leaves {left} for {moments}"
    )
    cycles = [(left // moments, f"linear(start={rate}, end={rate})")] * moments
    note = f"The weights of each teacher are the mean of {moments} moments of its training."
    cycles, number = [(first, config.train.schedule), *cycles], config.teachers.num_members
    return (*_moments(config, split, cycles, 1, note, number, _mean), *train_students(config, split))


def sequence_level(config: ConfigDict, split: Split, *, num_beams: int = 5, mode: str = "") -> Plan:
    """Students of sequences that learn what all teachers say together, in the place of the references.

    The teachers, fused by mean_probs at every token, search the most probable targets of all labelled sources
    with a beam of `num_beams`. Row "sequence_kd" is trained on the first of each beam, row "sequence_inter"
    on the one that is most like the reference (sequence-level interpolation). Their loss is that of labels
    alone or, with a `mode` such as "output_avg", what that makes of these labels and of what the teachers say
    of every token, over the alphas and temperatures of `students`. Validation is on the references; the
    seconds of these rows are without the search. Raises UserError for data that is no sequences of tokens,
    for teachers that are no networks here, and for a mode that has several heads.

    Source: Kim and Rush 2016, arXiv 1606.07947; one teacher, beam 5. Modes such as "output_avg" without this
    plan are their word-level distillation.
    """
    if num_beams < 1:
        raise UserError(f"config.plan: sequence_level(num_beams={num_beams}): must be at least 1")
    if split.dataset.task != "tokens":
        raise UserError(
            f"config.plan: sequence_level is of sequences of tokens, and {split.dataset.name} has none; must "
            "be of a source such as pairs"
        )
    if given_teachers(config):
        raise UserError(
            "config.plan: sequence_level asks teachers what they would say next, and of those of "
            "teachers.logits and teachers.programs that is not known; it needs networks"
        )
    recipe = _recipe("sequence_level", mode, num_teachers=2) if mode else SUPERVISED
    direct = _with_baseline("sequence_level", config, split)
    note = (
        "Rows sequence_kd and sequence_inter were trained on what the teachers say together, "
        f"of a beam of {num_beams}, in the place of the references."
    )
    beams, stages = sequences.Beams(split, num_beams), []
    rows = {"sequence_kd": sequences.most_probable, "sequence_inter": sequences.nearest}
    for model, (row, choose) in itertools.product(students.models(config), rows.items()):
        family = students.grid(config, row, recipe, *(() if mode else ((1.0,), (1.0,))))
        family = students.of_model(family, model)

        def learn(done: Done, family=family, choose=choose, asks: bool = True) -> Job:
            ensemble = ensemble_of(done)
            said = sequences.with_targets(split, beams.of(ensemble), choose) if asks else split
            return students.job(config, said, "labelled", family, ensemble if mode else (), {})

        name = students.stage_name("labelled", family)
        stages.append(
            Stage(name, learn, family, "labelled", note=note, outline=functools.partial(learn, asks=False))
        )
    return (*direct, *stages)


# --- moments of one training --------------------------------------------------------------------------


def _moments(
    config: ConfigDict,
    split: Split,
    cycles: Sequence[tuple[int, str]],
    skipped: int,
    note: str,
    num_networks: int = 1,
    join: Callable[[Sequence[np.ndarray]], np.ndarray] = np.concatenate,
) -> Plan:
    """A stage for each (epochs, schedule), each beginning where the last one ended, and one of all teachers.

    Those have the weights [num_networks,...] at the end of every stage but the `skipped` first, joined.
    """
    stages = []
    for address in teacher_models(config):
        names = [f"moment-{number}-{slug(address)}" for number in range(len(cycles))]
        for number, (name, (epochs, schedule)) in enumerate(zip(names, cycles)):

            def learn(done: Done, address=address, names=names, number=number, epochs=epochs, by=schedule):
                begun = sum(one for one, _ in cycles[:number])
                start = _end_of(done, names[number - 1]) if number else None
                job = _next_cycle(config, split, address, num_networks, epochs, by, begun, start)
                return dataclasses.replace(job, stage=names[number])

            stages.append(Stage(name, learn, note=note))

        def gather(done: Done, address=address, names=names[skipped:]) -> Job:
            ends = [_end_of(done, name) for name in names]
            return _settled(config, split, address, jax.tree.map(lambda *one: join(one), *ends))

        stages.append(Stage(teachers.stage_name(address), gather, begun_by=tuple(names)))
    return tuple(stages)


def _next_cycle(
    config: ConfigDict,
    split: Split,
    address: str,
    num_networks: int,
    epochs: int,
    schedule: str,
    begun: int,
    start: PyTree | None,
) -> Job:
    """Networks trained for some epochs, after `begun` others, whose last weights are kept."""
    own = config.copy_and_resolve_references()
    own.teachers.num_members, own.train.schedule = num_networks, schedule
    own.train.epochs = own.train.eval_every = epochs  # the only weights to choose: the last
    if begun:
        own.train.warmup = 0.0
    job = teachers.job(own, split, address)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, begun))(job.init_keys)
    lessons = dataclasses.replace(job.stage_data, key=jax.random.fold_in(job.stage_data.key, begun))
    further = {"start": start, "init_keys": keys, "stage_data": lessons} if start is not None else {}
    return dataclasses.replace(job, order=lambda epoch: job.order(begun + epoch), **further)


def _settled(config: ConfigDict, split: Split, address: str, start: PyTree) -> Job:
    """The teachers as they are: an epoch at a rate of 0, in which their batch statistics become their own."""
    own = config.copy_and_resolve_references()
    own.train.epochs = own.train.eval_every = 1
    job = teachers.job(own, split, address)
    still = {name: np.zeros_like(job.hyper[name]) for name in ("learning_rate", "weight_decay")}
    return dataclasses.replace(job, start=start, hyper={**job.hyper, **still})


def _mean(ends: Sequence[np.ndarray]) -> np.ndarray:
    return np.mean(np.stack(ends), axis=0)


def _end_of(done: Done, name: str) -> PyTree:
    """The variables [num_networks,...] that a stage ended with; UserError where one of them broke down."""
    if done[name].diverged:
        raise UserError(f"{name}: {_broke_down(done[name].diverged)}")
    return done[name].population.variables


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
        and recipe.sharing is None
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


def _check_shares(plan: str, **shares: float) -> None:
    for name, share in shares.items():
        if not 0 < share < 1:
            raise UserError(f"config.plan: {plan}({name}={share}): must be a share, between 0 and 1")


def _of_ordinary_teachers(options: ConfigDict) -> dict[str, bool]:
    """{field of `config.teachers` that is of teachers trained apart and whole: is it set?}."""
    return {
        **{name: bool(options[name]) for name in ("from_run", "init_from", "logits", "programs")},
        "patience": bool(options.patience),
        "bootstrap": options.bootstrap,
        "subset_fraction": options.subset_fraction < 1,
    }


def _check_moments(plan: str, config: ConfigDict, is_long_enough: bool, right: str) -> None:
    """Raise UserError for fields that are of teachers who are trained apart, and for too few epochs."""
    options = config.teachers
    of_each = ("learning_rates", "weight_decays", "label_smoothings")
    unfit = _of_ordinary_teachers(options) | {name: len(options[name]) > 1 for name in of_each}
    for name, is_set in unfit.items():
        if is_set:
            raise UserError(
                f"config.teachers.{name}: {options[name]!r} does not go with plan {plan}, whose teachers are "
                "moments of one training; leave it at its default"
            )
    if not is_long_enough:
        raise UserError(
            f"config.train.epochs: {config.train.epochs} are too few for plan {plan}; must be {right}"
        )


def _check_specialists(config: ConfigDict, split: Split) -> None:
    options, num_classes = config.teachers, split.dataset.num_classes
    if not 3 <= options.num_members <= num_classes:
        raise UserError(
            f"config.teachers.num_members: {options.num_members} specialists cannot cover {num_classes} "
            f"classes, each by two; plan specialists needs 3 to {num_classes}"
        )
    unfit = _of_ordinary_teachers(options)
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
