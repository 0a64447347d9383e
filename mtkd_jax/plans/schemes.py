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
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scipy import special

from mtkd_jax.config import (
    GIVEN,
    LABELLED,
    OTHER,
    UNLABELLED,
    build_model,
    build_recipe,
    first_seeds,
    given_teachers,
    number_of_teachers,
    teacher_models,
)
from mtkd_jax.data import loading
from mtkd_jax.data.loading import Split, scale
from mtkd_jax.engine import inversion, population, teacher_cache
from mtkd_jax.engine.jobs import Job, slug
from mtkd_jax.fusion import rules
from mtkd_jax.methods.lineage import (
    DenselyGuided,
    ForOwnTeachers,
    OfOwnTeachers,
    OfUnlabelled,
    weigh_as_fitted,
)
from mtkd_jax.methods.maps import is_no_head
from mtkd_jax.methods.seams import SUPERVISED, frozen_teachers, identity_view
from mtkd_jax.models.thinned import drops, thinned
from mtkd_jax.plans import sequences, students, teachers
from mtkd_jax.plans.plan import Done, Plan, Stage, ensemble_of, train_students, train_teachers
from mtkd_jax.plans.students import Family
from mtkd_jax.types import Ensemble, Model, Population, PyTree, Recipe, Task, UserError

# Plans that cannot take teachers of another run.
WITH_OWN_TEACHERS = (
    *("specialists", "snapshots", "fast_geometric", "stochastic_averages"),
    *("horizontal", "dropout_draws", "negative_correlation"),
    "checkpoint_bank",  # or only those of one that had this plan
)


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
        before, row = _stage_of(direct, transfer, "baseline", model), "baseline"
        for generation in range(1, generations + 1):
            stage = _taught_by_own(
                config,
                split,
                transfer,
                [(before, row)],
                f"born_again {generation}",
                recipe,
                model,
                born_anew=generation,
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
    _check_networks("assistants", models, split)
    recipe = _recipe("assistants", mode, num_teachers=1)
    direct = _with_baseline("assistants", config, split)
    stages = []
    for transfer in config.students.transfer:
        before = _assistant(config, split, models, transfer, 1, recipe)
        stages.append(before)
        for number, network in enumerate(models[1:], start=2):
            row = f"assistant {number}"
            taught_by = [(before, before.family[0].mode)]
            before = _taught_by_own(config, split, transfer, taught_by, row, recipe, network=network)
            stages.append(before._replace(role="assistant"))
        taught_by = [(before, before.family[0].mode)]
        stages += [
            _taught_by_own(config, split, transfer, taught_by, "assisted", recipe, model)
            for model in students.models(config)
        ]
    return (*direct, *stages)


def densely_guided(
    config: ConfigDict,
    split: Split,
    *,
    models: tuple[str, ...] = (),
    mode: str = "output_avg",
    num_dropped: int = 1,
) -> Plan:
    """As `assistants`, but each network learns from all before it, of whom some are left out in every batch.

    The teachers, together, and every assistant before are those who guide. `num_dropped` of them, drawn anew
    for every student and batch, are not heard, as long as one is left; the loss is a sum over the others.
    Seed s has the assistants of seed s. Rows: "assistant 1", ..., and the students, "densely_guided". Raises
    UserError for no model, a negative number, or a mode that needs more than one head.

    Source: densely guided distillation, Son et al. 2021, arXiv 2009.08825; one teacher, and alpha = 0.
    """
    if num_dropped < 0:
        raise UserError(f"config.plan: densely_guided(num_dropped={num_dropped}): must be at least 0")
    _check_networks("densely_guided", models, split)
    recipe = _recipe("densely_guided", mode, number_of_teachers(config) or 1)
    direct = _with_baseline("densely_guided", config, split)
    stages = []
    for transfer in config.students.transfer:
        chain = [_assistant(config, split, models, transfer, 1, recipe)]
        for number, network in enumerate(models[1:], start=2):
            row = f"assistant {number}"
            stage = _guided(config, split, chain, row, recipe, num_dropped, network=network)
            chain.append(stage._replace(role="assistant"))
        stages += chain
        for model in students.models(config):
            stages.append(_guided(config, split, chain, "densely_guided", recipe, num_dropped, model))
    return (*direct, *stages)


def weighed_assistants(
    config: ConfigDict,
    split: Split,
    *,
    models: tuple[str, ...] = (),
    mode: str = "output_avg",
    rule: str = "evolved_mean",
) -> Plan:
    """Teachers teach assistants of several architectures, who teach the students as much as each is worth.

    All teachers teach an assistant of each architecture a seed. Their weights, of the assistants of one seed,
    are fitted to what these say of the validation images by a fusion `rule`: `evolved_mean` (differential
    evolution), `shapley_mean` or `weighted_mean`. Seed s of the students learns from the mixture of the
    assistants of seed s. Rows: "assistant 1", ..., and the students, "weighed_assistants". Raises UserError
    for no model, another rule, or a mode that needs more than one head or teacher.

    Source: weighted ensembles of teaching assistants, Ganta et al. 2022, arXiv 2206.12005; one teacher.
    """
    if rule not in WEIGHING:
        raise UserError(
            f"config.plan: weighed_assistants(rule={rule!r}): it must give each assistant one weight: "
            f"{', '.join(WEIGHING)}"
        )
    _check_networks("weighed_assistants", models, split)
    recipe = _recipe("weighed_assistants", mode, num_teachers=1)
    direct = _with_baseline("weighed_assistants", config, split)
    fit, stages = partial(_fitted_weights, split, rule), []
    for transfer in config.students.transfer:
        numbers = range(1, len(models) + 1)
        assistants = [_assistant(config, split, models, transfer, number, recipe) for number in numbers]
        taught_by = [(one, one.family[0].mode) for one in assistants]
        stages += assistants
        for model in students.models(config):
            weighed = recipe._replace(weigh=weigh_as_fitted)
            stages.append(
                _taught_by_own(
                    config, split, transfer, taught_by, "weighed_assistants", weighed, model, numbers=fit
                )
            )
    return (*direct, *stages)


WEIGHING = ("evolved_mean", "shapley_mean", "weighted_mean")  # rules that are fitted and give each a weight


def noisy_student(
    config: ConfigDict,
    split: Split,
    *,
    rounds: int = 3,
    soft: bool = True,
    threshold: float = 0.0,
    balanced: bool = True,
) -> Plan:
    """Teachers label the unlabelled images for students, who label them for the next students, and so on.

    In round 1 all teachers say what the unlabelled images are, which they see as they are; in round r seed s
    has one teacher, seed s of round r - 1. The students see them, and the labelled ones, with `data.augment`
    and their dropout, which are the noise: without any, little is gained. Labels are `soft` or classes; those
    of less confidence than `threshold` are left out. `balanced` lets every class count alike by weights, n /
    (C n_c) for the n_c kept images of class c, where the source repeats images of rare classes. The loss is
    alpha times that of the labelled images and 1 - alpha times that of the unlabelled ones. Students may be
    larger than their teachers (`students.model`). Rows: "noisy_student 1", ... Raises UserError without
    unlabelled images, and for numbers that cannot be.

    Source: Noisy Student, Xie et al. 2020, arXiv 1911.04252.
    """
    if rounds < 1:
        raise UserError(f"config.plan: noisy_student(rounds={rounds}): must be at least 1")
    transfers = [transfer for transfer in config.students.transfer if transfer != LABELLED]
    if not transfers:
        raise UserError(
            f"config.students.transfer: {config.students.transfer}, but plan noisy_student learns from "
            f"images without a label; it must have {UNLABELLED!r} or {OTHER!r} in it"
        )
    address = f"targets.pseudo_labels(threshold={float(threshold)}, soft={soft})"
    recipe = build_recipe(address, "plan")
    recipe = recipe._replace(aim=OfUnlabelled(recipe.aim))
    direct = _with_baseline("noisy_student", config, split)
    stages = []
    for transfer, model in itertools.product(transfers, students.models(config)):
        before: list[tuple[Stage, str]] = []
        for number in range(1, rounds + 1):
            row, is_first = f"noisy_student {number}", not before
            sure = threshold if balanced else None
            stage = _taught_by_own(
                config,
                split,
                transfer,
                before,
                row,
                recipe,
                model,
                born_anew=number - 1,
                with_teachers=is_first,
                numbers=partial(_class_weights, config, split, transfer, sure, is_first),
            )
            stages.append(stage)
            before = [(stage, row)]
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
            f"{', '.join(GIVEN)} logits alone are known; it needs networks, such as those "
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


def checkpoint_bank(
    config: ConfigDict, split: Split, *, checkpoints: int = 10, mode: str = "output_avg"
) -> Plan:
    """Students learn from what the teachers were at the same share of their own training.

    Of every teacher the best weights until then, by validation, are kept after each of `checkpoints` equal
    shares of its training. At a share s of its own the students of the row "checkpoint_bank" learn from the
    next of these by `mode`, so that targets grow with them; with one checkpoint these are the teachers at
    their end, as of every other row. The bank is in memory while students are trained: as many teachers
    as checkpoints times teachers. Raises UserError for no checkpoint, more than validations, teachers that
    stop by patience or come trained from anywhere but a run with this plan, and a mode with more than one
    head.

    Source: online distillation of Harutyunyan et al. 2023, arXiv 2301.12245, where the last weights are kept.
    """
    _check_bank(config, checkpoints)
    recipe = _recipe("checkpoint_bank", mode, number_of_teachers(config))
    direct = _with_baseline("checkpoint_bank", config, split)
    trained = [
        stage._replace(
            make=lambda done, make=stage.make: dataclasses.replace(make(done), checkpoints=checkpoints)
        )
        if stage.name.startswith(teachers.STAGE_PREFIX)
        else stage
        for stage in direct
    ]
    stages = []
    for transfer, model in itertools.product(config.students.transfer, students.models(config)):
        family = students.of_model(students.grid(config, "checkpoint_bank", recipe), model)

        def learn(done: Done, transfer=transfer, family=family) -> Job:
            job = students.job(config, split, transfer, family, ensemble_of(done), {})
            return dataclasses.replace(
                job, stage_data=dataclasses.replace(job.stage_data, bank=_bank_of(done, checkpoints))
            )

        stages.append(Stage(students.stage_name(transfer, family), learn, family, transfer))
    return (*trained, *stages)


def data_free(
    config: ConfigDict,
    split: Split,
    *,
    mode: str = "output_avg",
    num_images: int = 2000,
    num_steps: int = 500,
    statistics: float = 1.0,
    smoothness: float = 1.0,
) -> Plan:
    """Students that see no image of the data: theirs are made from the batch statistics of the teachers.

    `num_images` are made of noise in `num_steps` each, as many of every class, by `engine.inversion`, which
    weighs how far their statistics are off and how rough they are. All teachers teach the row "data_free" on
    these alone by `mode`, without labels, in as many steps as all students have. What they know of the data
    are mean and deviation of its channels, and the validation images by which their best weights are chosen.
    The images are made again when a run is gone on with. Raises UserError for teachers without BatchNorm, for
    numbers that cannot be, or a mode that needs more than one head.

    Source: DeepInversion, Yin et al. 2020, arXiv 1912.08795, without images that the student disagrees on.
    """
    for name, value in (("num_images", num_images), ("num_steps", num_steps)):
        if value < 1:
            raise UserError(f"config.plan: data_free({name}={value}): must be at least 1")
    if loading.streamed(split) is not None:
        raise UserError(
            f"config.plan: data_free makes images that are held in memory, and those of {split.dataset.name} "
            'are read as they are needed; must be with stream="never"'
        )
    recipe = _recipe("data_free", mode, number_of_teachers(config) or 1)
    direct = _with_baseline("data_free", config, split)
    own = config.copy_and_resolve_references()
    own.students.labelled_fraction = 0.0
    weights, made = {"statistics": statistics, "smoothness": smoothness}, {}
    note = f"Row data_free has seen {num_images:,} images made from the teachers, and none of the data."
    stages = []
    for model in students.models(config):
        family = students.of_model(students.grid(config, "data_free", recipe, alphas=(0.0,)), model)

        def make(done: Done, family=family, computes: bool = True) -> Job:
            ensemble = ensemble_of(done)
            if computes and "images" not in made:
                made["images"] = _images_of(config, split, ensemble, num_images, num_steps, **weights)
            blank = np.zeros((num_images, *split.dataset.train_images.shape[1:]))
            images = made["images"] if computes else blank.astype(split.dataset.train_images.dtype)
            seen = dataclasses.replace(split, other=images)
            return students.job(own, seen, OTHER, family, ensemble, {})

        name, transfer = students.stage_name(OTHER, family), config.students.transfer[0]
        outline = partial(make, computes=False)
        stages.append(Stage(name, make, family, transfer, note=note, outline=outline))
    return (*direct, *stages)


def _images_of(
    config: ConfigDict, split: Split, ensemble: Ensemble, number: int, num_steps: int, **weights: float
) -> np.ndarray:
    """Images like those of the data in shape and dtype, made from the teachers."""
    like = split.dataset.train_images
    in_bytes = like.dtype == np.uint8
    mean, std = (np.asarray(one, np.float32) for one in loading.channel_statistics(split))
    bounds = None if in_bytes else (mean, std)
    found = inversion.invert(
        ensemble, number, like.shape[1:], bounds, num_steps=num_steps, seed=config.seed, **weights
    )
    return np.round(255 * found).astype(np.uint8) if in_bytes else found


def hydra(config: ConfigDict, split: Split, *, first: str = "output_avg", mode: str = "mimic_all") -> Plan:
    """Students first match all teachers with one head, of which there is then a copy for each of them.

    Every seed is trained by `first`; in the second stage, of as many epochs, it begins with the weights that
    validation chooses, every head with those of the one there was, and learns by `mode`, which has a head for
    each teacher. Rows: "hydra with one head", which is not compared, and "hydra". Raises UserError for a mode
    of other heads.

    Source: Hydra, Tran et al. 2020, arXiv 2001.04694.
    """
    number = number_of_teachers(config) or 2
    recipe, second = _recipe("hydra", first, number), build_recipe(mode, "plan")
    if second.num_heads(number + 1) != number + 1 or second.teach is not frozen_teachers:
        raise UserError(
            f"config.plan: hydra cannot end with {mode!r}; it needs a mode with a head for each teacher, "
            "such as 'mimic_all'"
        )
    direct = _with_baseline("hydra", config, split)
    row, stages = "hydra with one head", []
    for transfer, model in itertools.product(config.students.transfer, students.models(config)):
        body = _taught(config, split, transfer, students.of_model(students.grid(config, row, recipe), model))
        family = students.of_model(students.grid(config, "hydra", second), model)

        def branch(done: Done, transfer=transfer, family=family, body=body) -> Job:
            job = students.job(config, split, transfer, family, ensemble_of(done), {})
            begun = _chosen(body, row, done).variables
            begun = population.take(begun, [member.seed for member in family])
            num_heads = family[0].recipe.num_heads(sum(own.num_members for own in ensemble_of(done)))
            return dataclasses.replace(job, start=_with_heads(begun, num_heads))

        stages.append(body._replace(role="assistant"))
        stages.append(Stage(students.stage_name(transfer, family), branch, family, transfer))
    return (*direct, *stages)


def _with_heads(variables: PyTree, number: int) -> PyTree:
    """Variables [M,...] of networks with one head, as those of networks with so many that are all alike."""

    def repeated(path, leaf):
        place = jax.tree_util.keystr(path, simple=True, separator="/")
        return leaf if is_no_head(place) else jnp.repeat(leaf, number, axis=1)

    return jax.tree_util.tree_map_with_path(repeated, variables)


def fine_tuned(
    config: ConfigDict,
    split: Split,
    *,
    mode: str = "binary.wrpn",
    begin: str = "output_avg",
    rate: float = 0.1,
) -> Plan:
    """Students learn by one mode, then, from these weights and at a lower rate, by another: few bits at last.

    Every seed of `begin`, which must be one of `students.modes`, is trained on by `mode`, such as
    "binary.dorefa(bits=2, activations=2)" or "pruned.gradual", for as many epochs again, at `rate` times the
    learning rate, over the alphas and temperatures of `students`: the row "fine_tuned". It begins with the
    weights that validation chooses. Raises UserError for a mode with more than one head.

    Source: scheme C of Apprentice, Mishra and Marr 2018, arXiv 1711.05852.
    """
    _check_shares("fine_tuned", rate=rate)
    if begin not in config.students.modes:
        raise UserError(
            f"config.plan: fine_tuned begins with the students of {begin!r}, which must be in students.modes"
        )
    first, second = (_recipe("fine_tuned", address, 2) for address in (begin, mode))
    if first.view is not identity_view:
        raise UserError(f"config.plan: fine_tuned begins with whole weights, and {begin!r} keeps other ones")
    direct, stages = _with_baseline("fine_tuned", config, split), []
    note = f"fine_tuned began with the weights of {begin} and was trained on by {mode}: twice the epochs."
    for transfer, model in itertools.product(config.students.transfer, students.models(config)):
        before = _stage_of(direct, transfer, begin, model)
        family = students.of_model(students.grid(config, "fine_tuned", second), model)

        def tune(done: Done, transfer=transfer, before=before, family=family) -> Job:
            job = students.job(config, split, transfer, family, ensemble_of(done), {})
            begun = _chosen(before, begin, done).variables
            hyper = {**job.hyper, "learning_rate": np.float32(rate) * job.hyper["learning_rate"]}
            start = population.take(begun, [member.seed for member in family])
            return dataclasses.replace(job, start=start, hyper=hyper)

        stages.append(Stage(students.stage_name(transfer, family), tune, family, transfer, note=note))
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
    more epoch at a rate of 0, in which batch statistics settle and no weight changes. `train.ema_decay` is
    the students' alone: teachers are the weights themselves. Raises UserError for more cycles than epochs,
    and for fields of teachers that are trained apart.

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
    the ends of `moments` equal parts of that. All else is as in `snapshots`, but that all networks are
    trained together: one whose loss stops being finite ends the run. Raises UserError for that, for
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
    of every token, over the alphas and temperatures of `students`. Validation is on the references. Raises
    UserError for data that is no sequences of tokens, and for a mode that has several heads.

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


def horizontal(config: ConfigDict, split: Split, *, burn_in: float = 0.75, rate: float = 0.5) -> Plan:
    """Teachers that are the ends of the last epochs of one training, at a rate that stays; students.

    One network of each architecture is trained for the share `burn_in` of `train.epochs` by `train.schedule`,
    and for the rest at `rate` times `train.learning_rate`: the weights at the ends of
    `teachers.num_members` equal parts of that are a teacher each; all else is as in `snapshots`. Raises
    UserError for shares that are none, for parts without an epoch, and for fields of teachers that are
    trained apart.

    Source: horizontal voting, Xie, Xu and Chuang 2013, arXiv 1306.2759: every epoch from some on.
    """
    _check_shares("horizontal", burn_in=burn_in, rate=rate)
    number, epochs = config.teachers.num_members, config.train.epochs
    first = max(1, round(burn_in * epochs))
    each = (epochs - first) // number
    _check_moments("horizontal", config, each > 0, f"more: burn_in leaves {epochs - first} for {number}")
    parts = [(each, f"linear(start={rate}, end={rate})")] * number
    note = f"The teachers of each architecture are {number} moments of the end of one training."
    return (
        *_moments(config, split, [(first, config.train.schedule), *parts], 1, note),
        *train_students(config, split),
    )


def dropout_draws(config: ConfigDict, split: Split) -> Plan:
    """Teachers that are draws of one network's dropout, each without units of its own; students.

    One network of each architecture is trained for `train.epochs`, and keeps its last weights. A teacher has
    these and one draw of all dropout masks, the same for every image: an image meets masks as likely as in
    Monte-Carlo dropout, and each teacher is a network that always says the same. Batch statistics settle as
    in `snapshots`. Raises UserError for a network without dropout, and for fields of teachers that are
    trained apart.

    Source: dropout as a Bayesian approximation, Gal and Ghahramani 2016, arXiv 1506.02142.
    """
    number, epochs = config.teachers.num_members, config.train.epochs
    _check_moments("dropout_draws", config, True, "")
    note = f"The teachers of each architecture are {number} draws of the dropout of one network."
    image, stages = jax.eval_shape(scale, split.dataset.train_images[:1]), []
    for address in teacher_models(config):
        if not drops(teachers.network(split, address), image):
            raise UserError(
                f"config.plan: dropout_draws leaves out units as {address} does in training, and that leaves "
                "out none; teachers.models must have dropout, such as cnn(dropout=0.3)"
            )
        whole = f"whole-{slug(address)}"

        def learn(done: Done, address=address, whole=whole) -> Job:
            job = _next_cycle(config, split, address, 1, epochs, config.train.schedule, 0, None)
            return dataclasses.replace(job, stage=whole)

        def draw(done: Done, address=address, whole=whole) -> Job:
            return _thinned(_settled(config, split, address, _end_of(done, whole)), address)

        stages.append(Stage(whole, learn, note=note))
        stages.append(Stage(teachers.thinned_stage(address), draw, begun_by=(whole,)))
    return (*stages, *train_students(config, split))


def negative_correlation(config: ConfigDict, split: Split, *, strength: float = 0.5) -> Plan:
    r"""Teachers that are trained together, each rewarded for differing from the others; students.

    $$\ell = \frac{1}{K} \sum_k \mathrm{CE}(y, z_k) - \lambda \left(\frac{1}{K} \sum_k \mathrm{CE}(y, z_k)
    - \mathrm{CE}(y, \frac{1}{K} \sum_k z_k)\right)$$

    What $\lambda$, `strength` in (0, 1), stands before is never negative, and 0 where all say the same.
    `teachers.num_members` of each architecture see the same batches and keep the weights of the last step;
    rule "mean_logits" is the ensemble of the second term. Raises UserError for another strength, and for
    whatever else makes teachers differ or end one by one.

    Source: generalised negative correlation learning, Buschjaeger et al. 2020, arXiv 2011.02952, with the
    diversity as it is and not its second-order approximation.
    """
    _check_shares("negative_correlation", strength=strength)
    for name, is_set in _of_ordinary_teachers(config.teachers).items():
        if is_set:
            raise UserError(
                f"config.teachers.{name}: {config.teachers[name]!r} does not go with plan "
                "negative_correlation, whose teachers are trained together; leave it at its default"
            )
    stages = [
        Stage(
            teachers.stage_name(address),
            lambda done, address=address: teachers.correlated_job(config, split, address, strength),
            note=f"The teachers were trained together, with {strength:g} of their diversity as a reward.",
        )
        for address in teacher_models(config)
    ]
    return (*stages, *train_students(config, split))


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
    own.train.ema_decay = 0.0
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
    own.train.ema_decay = 0.0
    job = teachers.job(own, split, address)
    still = {name: np.zeros_like(job.hyper[name]) for name in ("learning_rate", "weight_decay")}
    return dataclasses.replace(job, start=start, hyper={**job.hyper, **still})


def _thinned(job: Job, address: str) -> Job:
    """The same job of networks whose dropout is drawn once, each its own, from one network's weights."""
    model, number = thinned(job.program.model), len(job.names)
    drawn = population.init(model, job.init_keys, job.image.shape[1:])
    whole = {
        kind: {"network": jax.tree.map(lambda leaf: np.repeat(leaf, number, axis=0), of)}
        for kind, of in (job.start or {}).items()
    }
    program = job.program._replace(model=model)
    stage = teachers.thinned_stage(address)
    return dataclasses.replace(job, stage=stage, program=program, start={**whole, "masks": drawn["masks"]})


def _mean(ends: Sequence[np.ndarray]) -> np.ndarray:
    return np.mean(np.stack(ends), axis=0)


def _end_of(done: Done, name: str) -> PyTree:
    """The variables [num_networks,...] that a stage ended with; UserError where one of them broke down."""
    if done[name].diverged:
        raise UserError(f"{name}: {_broke_down(done[name].diverged)}")
    return done[name].population.variables


def _bank_of(done: Done, checkpoints: int) -> tuple[PyTree, ...]:
    """Variables [T,K,...] of the teachers of each architecture after T shares of their training."""
    found = []
    for name, fitted in done.items():
        if name.startswith(teachers.STAGE_PREFIX):
            bank = fitted.bank and fitted.without_diverged(fitted.bank)
            number = len(jax.tree.leaves(bank.variables)[0][0]) if bank else 0
            if number != checkpoints:
                raise UserError(
                    f"config.plan: checkpoint_bank(checkpoints={checkpoints}) needs what teachers were while "
                    f"they were trained, and of those of teachers.from_run {number or 'no'} checkpoints are "
                    "kept; name a run with this plan, or train them here"
                )
            found.append(jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), bank.variables))
    return tuple(found)


# --- lineages -----------------------------------------------------------------------------------------


def _assistant(
    config: ConfigDict,
    split: Split,
    models: tuple[str, ...],
    transfer: str,
    number: int,
    recipe: Recipe,
) -> Stage:
    """The stage of assistants of architecture `models`[number - 1], one a seed, taught by all teachers."""
    note = f"Assistants, from first to last: {', '.join(models)}; they are there to teach, and not compared."
    family = students.grid(config, f"assistant {number}", recipe)
    stage = _taught(config, split, transfer, family, models[number - 1])
    return stage._replace(role="assistant", note=note)


def _taught(config: ConfigDict, split: Split, transfer: str, family: Family, network: str = "") -> Stage:
    """A stage of a family whom all teachers teach."""

    def make(done: Done) -> Job:
        return students.job(config, split, transfer, family, ensemble_of(done), {}, network)

    return Stage(students.stage_name(transfer, family), make, family, transfer)


def _taught_by_own(
    config: ConfigDict,
    split: Split,
    transfer: str,
    before: Sequence[tuple[Stage, str]],
    row: str,
    recipe: Recipe,
    model: str = "",
    *,
    network: str = "",
    born_anew: int = 0,
    with_teachers: bool = False,
    weigh: Callable[[int], Callable] | None = None,
    numbers: Callable[[Ensemble, bool], dict[str, np.ndarray]] = lambda ensemble, computes: {},
) -> Stage:
    """A stage in which every seed is taught by the same seed of rows (of stages) `before`.

    All teachers teach it, too, if `with_teachers`. It is of the architecture `model`, see `students.models`,
    or of another `network`. Its initial weights are those of the seed, or others for every `born_anew` above
    0. `weigh` makes that seam of the number of teachers. `numbers` finds numbers of each seed [S,...] for the
    recipe, of the ensemble; where it is not to compute, only their shapes are right.
    """
    family = students.of_model(students.grid(config, row, recipe), model)
    seeds = [member.seed for member in family]

    def make(done: Done, computes: bool = True) -> Job:
        teachers_of_all = ensemble_of(done) if with_teachers else ()
        ensemble = (*teachers_of_all, *(_chosen(stage, taught_by, done) for stage, taught_by in before))
        num_shared = sum(own.num_members for own in teachers_of_all)
        counts = (1,) * num_shared + tuple(own.num_members for own in ensemble[len(teachers_of_all) :])
        weighed = recipe if weigh is None else recipe._replace(weigh=weigh(num_shared))
        own = [member._replace(recipe=_of_own_teachers(weighed, counts)) for member in family]
        job = students.job(config, split, transfer, own, ensemble, {}, network, born_anew, routed=False)
        places = np.zeros((len(family), len(counts)), np.int32)
        places[:, num_shared:] = np.array(seeds)[:, None]
        further = {name: values[seeds] for name, values in numbers(ensemble, computes).items()}
        return dataclasses.replace(job, hyper={**job.hyper, "own_teachers": places, **further})

    outline = partial(make, computes=False)
    return Stage(students.stage_name(transfer, family), make, family, transfer, outline=outline)


def _of_own_teachers(recipe: Recipe, counts: tuple[int, ...]) -> Recipe:
    """The method taught by one teacher of each place; those of one place are of one architecture."""
    return recipe._replace(
        weigh=OfOwnTeachers(recipe.weigh, counts),
        aim=OfOwnTeachers(recipe.aim, counts),
        term=OfOwnTeachers(recipe.term, counts),
        init_aux=ForOwnTeachers(recipe.init_aux, counts),
        reads_student=tuple(dict.fromkeys((*recipe.reads_student, "weigh", "aim"))),
    )


def _guided(
    config: ConfigDict,
    split: Split,
    chain: Sequence[Stage],
    row: str,
    recipe: Recipe,
    num_dropped: int,
    model: str = "",
    *,
    network: str = "",
) -> Stage:
    """A stage in which all teachers and every seed's own assistants of a chain teach."""
    return _taught_by_own(
        config,
        split,
        chain[0].transfer,
        [(one, one.family[0].mode) for one in chain],
        row,
        recipe,
        model,
        network=network,
        with_teachers=True,
        weigh=lambda num_teachers: DenselyGuided(num_teachers, num_dropped),
    )


def _fitted_weights(split: Split, rule: str, ensemble: Ensemble, computes: bool) -> dict[str, np.ndarray]:
    """{"own_weights": [S,n]}: what a rule weighs the n members of each seed by; equal if not to compute."""
    if not computes:
        equal = np.full((ensemble[0].num_members, len(ensemble)), 1 / len(ensemble), np.float32)
        return {"own_weights": equal}
    said = np.stack([teacher_cache.said(own, split, split.val) for own in ensemble], axis=1)  # [S,n,V,C]
    fit, labels = rules.rule(rule), split.dataset.train_labels[split.val]
    return {"own_weights": np.stack([np.asarray(fit(of_seed, labels).args[0]) for of_seed in said])}


def _class_weights(
    config: ConfigDict,
    split: Split,
    transfer: str,
    threshold: float | None,
    shared: bool,
    ensemble: Ensemble,
    computes: bool,
) -> dict[str, np.ndarray]:
    """{"class_weights": [S,C]}: how much unlabelled images of a class count, by what their teachers say.

    Those are one of each seed, or all of them for all seeds if `shared`. Every class counts alike of those
    images that they are sure enough of; every image does where the threshold is None.
    """
    shape = len(first_seeds(config)), split.dataset.num_classes
    if threshold is None or not computes:
        return {"class_weights": np.ones(shape, np.float32)}
    if transfer == OTHER:
        said = np.concatenate([population.logits(own, split.other) for own in ensemble])
    else:
        said = np.concatenate([teacher_cache.said(own, split, split.pool) for own in ensemble])
    probs = special.softmax(said.astype(np.float64), axis=-1)
    each = probs.mean(axis=0, keepdims=True) if shared else probs
    found = np.stack([_balanced_weights(of_seed, threshold) for of_seed in each])
    return {"class_weights": np.broadcast_to(found, shape).astype(np.float32)}


def _balanced_weights(probs: np.ndarray, threshold: float) -> np.ndarray:
    """[C] n / (C' n_c) for the n_c images of class c, of n whose largest of `probs` [u,C] is at least that.

    C' is the number of classes that there are among them; others, and all where n is 0, weigh 0.

    >>> _balanced_weights(np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.1, 0.9]]), 0.5).round(3).tolist()
    [0.667, 2.0]
    """
    classes, num_classes = probs.argmax(axis=1), probs.shape[1]
    counts = np.bincount(classes[probs.max(axis=1) >= threshold], minlength=num_classes)
    is_there = counts > 0
    return np.where(is_there, counts.sum() / (max(is_there.sum(), 1) * np.maximum(counts, 1)), 0.0)


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


def _stage_of(stages: Plan, transfer: str, mode: str, model: str) -> Stage:
    """The stage that trains the students of a mode."""
    place = (mode, model)
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


def _check_networks(plan: str, models: Sequence[str], split: Split) -> None:
    """Raise UserError where a plan has no networks between teachers and students, or one that cannot be."""
    if not models:
        raise UserError(
            f"config.plan: {plan}(models=()): name the networks between teachers and students, "
            f"such as {plan}(models=('mlp(hidden=(48,))',))"
        )
    for address in models:
        build_model(address, Task(split.dataset.num_classes, 1, (0.0,), (1.0,)), "plan")


def _check_shares(plan: str, **shares: float) -> None:
    for name, share in shares.items():
        if not 0 < share < 1:
            raise UserError(f"config.plan: {plan}({name}={share}): must be a share, between 0 and 1")


def _of_ordinary_teachers(options: ConfigDict) -> dict[str, bool]:
    """{field of `config.teachers` that is of teachers trained apart and whole: is it set?}."""
    elsewhere = ("from_run", "init_from", *(field.removeprefix("teachers.") for field in GIVEN))
    return {
        **{name: bool(options[name]) for name in elsewhere},
        "patience": bool(options.patience),
        "bootstrap": options.bootstrap,
        "subset_fraction": options.subset_fraction < 1,
        "folds": options.folds,
        "method": bool(options.method),
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


def _check_bank(config: ConfigDict, checkpoints: int) -> None:
    """Raise UserError for teachers of whom there cannot be so many checkpoints."""
    options, train = config.teachers, config.train
    for name in ("logits", "programs", "trained", "patience"):
        if options[name]:
            raise UserError(
                f"config.teachers.{name}: {options[name]!r} does not go with plan checkpoint_bank, a bank of "
                "what teachers were all the time while they were trained; leave it at its default"
            )
    num_rounds = train.epochs // train.eval_every
    if not options.from_run and not 1 <= checkpoints <= num_rounds:
        raise UserError(
            f"config.plan: checkpoint_bank(checkpoints={checkpoints}): must be 1 to {num_rounds}, the "
            "validations of train.epochs"
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
