"""Plans in which a student is trained twice, or learns from teachers as they were at other times.

The second training goes on where the first one ended (`jobs.go_on`): it has the batches of later epochs, and
draws anew what is drawn.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mtkd_jax.addresses import build, build_recipe
from mtkd_jax.config import GIVEN, number_of_teachers, teacher_models
from mtkd_jax.data.loading import Split, example_image
from mtkd_jax.engine import population
from mtkd_jax.engine.jobs import Job, go_on
from mtkd_jax.methods.maps import is_no_head
from mtkd_jax.methods.seams import SUPERVISED, frozen_teachers, identity_view
from mtkd_jax.models.interactive import SWAPPED, TEACHERS, swapping
from mtkd_jax.optimizers import Schedule
from mtkd_jax.plans import students, teachers
from mtkd_jax.plans.plan import Done, Plan, Stage, ensemble_of
from mtkd_jax.plans.schemes.direct import (
    broke_down,
    check_networks_teach,
    check_shares,
    chosen_students,
    recipe_for,
    stage_of,
    taught,
    with_baseline,
)
from mtkd_jax.plans.students import Family
from mtkd_jax.types import Array, Context, Outputs, PyTree, Recipe, TrainState, UserError, path_of


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
    num_teachers = check_networks_teach("hints_then_distil", config)
    first, second = (recipe_for("hints_then_distil", address, num_teachers) for address in (hints, mode))
    direct = with_baseline("hints_then_distil", config, split)
    stages = []
    for transfer, model in itertools.product(config.students.transfer, students.models(config)):
        seeds = students.of_model(
            students.grid(config, "hints_then_distil hints", first, (0.0,), (1.0,)), model
        )
        family = students.of_model(students.grid(config, "hints_then_distil", second), model)
        hinted = students.stage_name(transfer, seeds)

        def learn_hints(done: Done, transfer: str = transfer, seeds: Family = seeds) -> Job:
            job = students.job(config, split, transfer, seeds, ensemble_of(done), {})
            return dataclasses.replace(job, eval_every=job.epochs)  # the only weights to choose: the last

        def distil(
            done: Done, transfer: str = transfer, family: Family = family, hinted: str = hinted
        ) -> Job:
            job = students.job(config, split, transfer, family, ensemble_of(done), {})
            return go_on(job, _of_seeds(done, hinted, family), begun=job.epochs)

        stages.append(Stage(hinted, learn_hints))
        stages.append(Stage(students.stage_name(transfer, family), distil, family, transfer))
    return (*direct, *stages)


def interactive(
    config: ConfigDict,
    split: Split,
    *,
    swapped: float = 0.5,
    schedule: str = "constant",
    mode: str = "output_avg",
) -> Plan:
    """Students first learn with a teacher's stages in the place of some of theirs, then alone (IAKD).

    In the first stage labels alone are learnt from, and in every step each stage of blocks of a student gives
    way to that of a teacher with probability `swapped`, times the factor of `schedule`, one of those of
    `train.schedule`, at this share of the stage: what is left of the student has to do with what the teacher
    makes of an image. With "constant" that is uniform, with "linear" the student's own share grows along a
    line to all of it, with "sawtooth" it starts again in the middle, for review. One of the K
    teachers is drawn for every step. Every seed keeps the weights of the last step, and begins with them, for
    as many epochs again, at every alpha and temperature of `mode`: the row "interactive". Raises UserError
    for a mode with more than one head, teachers of several architectures or that are no networks, and stages
    of students that do not take and give what the teachers' do.

    Source: interactive knowledge distillation, Fu et al. 2020, arXiv 2007.01476, of whose paper the abstract
    was at hand: it swaps blocks; the probability, the form of its three schedules (uniform, linear growth,
    review), and the two stages are ours. Its students learn from labels to the end, as here with
    students.alphas = (1.0,).
    """
    name = "interactive"
    check_shares(name, swapped=swapped)
    second = recipe_for(name, mode, check_networks_teach(name, config))
    share = _Share(swapped, build("schedule", schedule, "plan"))
    if len(teacher_models(config)) > 1:
        raise UserError(
            f"config.plan: {name} has stages of one architecture of teachers; teachers.models must name one"
        )
    direct = with_baseline(name, config, split)
    image, (taught_by,) = example_image(split), teacher_models(config)
    teacher, stages = teachers.own_network(config, split, taught_by), []
    note = f"{name} was trained with stages of the teachers before, for as many epochs: twice the epochs."
    for transfer, model in itertools.product(config.students.transfer, students.models(config)):
        seeds = students.of_model(students.grid(config, f"{name} swapped", SUPERVISED, (1.0,), (1.0,)), model)
        family = students.of_model(students.grid(config, name, second), model)
        before = students.stage_name(transfer, seeds)

        def swap(done: Done, transfer: str = transfer, seeds: Family = seeds) -> Job:
            job = students.job(config, split, transfer, seeds, (), {}, routed=False)
            try:
                network = swapping(job.program.model, teacher, image)
            except UserError as error:
                raise UserError(f"config.plan: {name}: {error}") from None
            known = {TEACHERS: ensemble_of(done)[0].variables}
            return dataclasses.replace(
                job,
                program=job.program._replace(
                    model=network, recipes=tuple(map(share.followed_by, job.program.recipes))
                ),
                stage_data=dataclasses.replace(job.stage_data, frozen=known),
                eval_every=job.epochs,  # the only weights to choose: the last
            )

        def distil(
            done: Done, transfer: str = transfer, family: Family = family, before: str = before
        ) -> Job:
            job = students.job(config, split, transfer, family, ensemble_of(done), {})
            return go_on(job, _of_seeds(done, before, family), begun=job.epochs)

        stages.append(Stage(before, swap))
        stages.append(Stage(students.stage_name(transfer, family), distil, family, transfer, note=note))
    return (*direct, *stages)


@dataclasses.dataclass(frozen=True)
class _Share:
    """The probability with which stages give way, at a share of the training. Comparable by value."""

    swapped: float
    schedule: Schedule

    def __call__(self, progress: Array) -> Array:
        return self.swapped * self.schedule(progress)

    def followed_by(self, recipe: Recipe) -> Recipe:
        """A recipe whose `mem` is this probability: its network computes with it."""
        return recipe._replace(init_mem=_FirstShare(self), view=_with_share, after=_NextShare(self))


@dataclasses.dataclass(frozen=True)
class _FirstShare:
    share: _Share

    def __call__(self, variables: PyTree, student: Outputs, num_examples: int) -> Array:
        return self.share(jnp.float32(0.0))


def _with_share(variables: PyTree, state: TrainState, hyper: Mapping[str, Array], key: Array) -> PyTree:
    return {**variables, SWAPPED: {"share": state.mem}}


@dataclasses.dataclass(frozen=True)
class _NextShare:
    share: _Share

    def __call__(self, state: TrainState, context: Context) -> TrainState:
        return dataclasses.replace(state, mem=self.share(context.progress))  # a step late: it is of this one


def _of_seeds(done: Done, stage: str, family: Family) -> PyTree:
    """Variables [M,...] for a family, each its seed's of an earlier stage; UserError where one broke down."""
    if done[stage].diverged:
        raise UserError(f"{stage}: {broke_down(done[stage].diverged)}")
    return population.take(done[stage].population.variables, [member.seed for member in family])


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
    recipe = recipe_for("checkpoint_bank", mode, number_of_teachers(config) or 1)
    direct = with_baseline("checkpoint_bank", config, split)
    trained = [
        _with_checkpoints(stage, checkpoints) if stage.name.startswith(teachers.STAGE_PREFIX) else stage
        for stage in direct
    ]
    stages = []
    for transfer, model in itertools.product(config.students.transfer, students.models(config)):
        family = students.of_model(students.grid(config, "checkpoint_bank", recipe), model)

        def learn(done: Done, transfer: str = transfer, family: Family = family) -> Job:
            job = students.job(config, split, transfer, family, ensemble_of(done), {})
            return dataclasses.replace(
                job, stage_data=dataclasses.replace(job.stage_data, bank=_bank_of(done, checkpoints))
            )

        stages.append(Stage(students.stage_name(transfer, family), learn, family, transfer))
    return (*trained, *stages)


def hydra(config: ConfigDict, split: Split, *, first: str = "output_avg", mode: str = "mimic_all") -> Plan:
    """Students first match all teachers with one head, of which there is then a copy for each of them.

    Every seed is trained by `first`; in the second stage, of as many epochs, it begins with the weights that
    validation chooses, every head with those of the one there was, and learns by `mode`, which has a head for
    each teacher. Rows: "hydra with one head", which is not compared, and "hydra". Raises UserError for a mode
    of other heads.

    Source: Hydra, Tran et al. 2020, arXiv 2001.04694.
    """
    number = number_of_teachers(config) or 2
    recipe, second = recipe_for("hydra", first, number), build_recipe(mode, "plan")
    if second.num_heads(number + 1) != number + 1 or second.teach is not frozen_teachers:
        raise UserError(
            f"config.plan: hydra cannot end with {mode!r}; it needs a mode with a head for each teacher, "
            "such as 'mimic_all'"
        )
    direct = with_baseline("hydra", config, split)
    row, stages = "hydra with one head", []
    for transfer, model in itertools.product(config.students.transfer, students.models(config)):
        body = taught(config, split, transfer, students.of_model(students.grid(config, row, recipe), model))
        family = students.of_model(students.grid(config, "hydra", second), model)

        def branch(done: Done, transfer: str = transfer, family: Family = family, body: Stage = body) -> Job:
            job = students.job(config, split, transfer, family, ensemble_of(done), {})
            begun = chosen_students(body, row, done).variables
            begun = population.take(begun, [member.seed for member in family])
            num_heads = family[0].recipe.num_heads(sum(own.num_members for own in ensemble_of(done)))
            return go_on(job, _with_heads(begun, num_heads), begun=job.epochs)

        stages.append(body._replace(role="assistant"))
        stages.append(Stage(students.stage_name(transfer, family), branch, family, transfer))
    return (*direct, *stages)


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
    check_shares("fine_tuned", rate=rate)
    if begin not in config.students.modes:
        raise UserError(
            f"config.plan: fine_tuned begins with the students of {begin!r}, which must be in students.modes"
        )
    first, second = (recipe_for("fine_tuned", address, 2) for address in (begin, mode))
    if first.view is not identity_view:
        raise UserError(f"config.plan: fine_tuned begins with whole weights, and {begin!r} keeps other ones")
    direct, stages = with_baseline("fine_tuned", config, split), []
    note = f"fine_tuned began with the weights of {begin} and was trained on by {mode}: twice the epochs."
    for transfer, model in itertools.product(config.students.transfer, students.models(config)):
        before = stage_of(direct, transfer, begin, model)
        family = students.of_model(students.grid(config, "fine_tuned", second), model)

        def tune(
            done: Done, transfer: str = transfer, before: Stage = before, family: Family = family
        ) -> Job:
            job = students.job(config, split, transfer, family, ensemble_of(done), {})
            begun = chosen_students(before, begin, done).variables
            hyper = {**job.hyper, "learning_rate": np.float32(rate) * job.hyper["learning_rate"]}
            start = population.take(begun, [member.seed for member in family])
            return go_on(dataclasses.replace(job, hyper=hyper), start, begun=job.epochs)

        stages.append(Stage(students.stage_name(transfer, family), tune, family, transfer, note=note))
    return (*direct, *stages)


def _with_heads(variables: PyTree, number: int) -> PyTree:
    """Variables [M,...] of networks with one head, as those of networks with so many that are all alike."""

    def repeated(path: tuple[Any, ...], leaf: Array) -> Array:
        place = path_of(path)
        return leaf if is_no_head(place) else jnp.repeat(leaf, number, axis=1)

    return jax.tree_util.tree_map_with_path(repeated, variables)


def _with_checkpoints(stage: Stage, checkpoints: int) -> Stage:
    """The stage, whose best weights are kept so many times while it trains."""
    return stage._replace(make=lambda done: dataclasses.replace(stage.make(done), checkpoints=checkpoints))


def _bank_of(done: Done, checkpoints: int) -> tuple[PyTree, ...]:
    """Variables [T,K,...] of the teachers of each architecture after T shares of their training."""
    found = []
    for name, fitted in done.items():
        if name.startswith(teachers.STAGE_PREFIX):
            bank = fitted.bank and fitted.without_diverged(fitted.bank)
            number = len(jax.tree.leaves(bank.variables)[0][0]) if bank else 0
            if bank is None or number != checkpoints:
                raise UserError(
                    f"config.plan: checkpoint_bank(checkpoints={checkpoints}) needs what teachers were while "
                    f"they were trained, and of those of teachers.from_run {number or 'no'} checkpoints are "
                    "kept; name a run with this plan, or train them here"
                )
            found.append(jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), bank.variables))
    return tuple(found)


def _check_bank(config: ConfigDict, checkpoints: int) -> None:
    """Raise UserError for teachers of whom there cannot be so many checkpoints."""
    options, train = config.teachers, config.train
    elsewhere = (field.removeprefix("teachers.") for field in GIVEN)
    for name in (*elsewhere, "trained", "patience"):
        if options[name]:
            raise UserError(
                f"config.teachers.{name}: {options[name]!r} does not go with plan checkpoint_bank, a bank of "
                "what teachers were all the time while they were trained; leave it at its default"
            )
    num_rounds = train.epochs // train.eval_every
    if checkpoints < 1 or (not options.from_run and checkpoints > num_rounds):
        raise UserError(
            f"config.plan: checkpoint_bank(checkpoints={checkpoints}): must be 1 to {num_rounds}, the "
            "validations of train.epochs"
        )
