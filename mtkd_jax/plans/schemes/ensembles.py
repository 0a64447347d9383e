"""Plans that make the ensemble otherwise than by training each teacher apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from mtkd_jax.addresses import build_model
from mtkd_jax.config import teacher_models
from mtkd_jax.data.loading import Split, channel_statistics
from mtkd_jax.engine import population
from mtkd_jax.engine.jobs import Job
from mtkd_jax.methods.peers import EACH_HEAD
from mtkd_jax.models.several import ManyInputs, RankOne, many_inputs, rank_one
from mtkd_jax.plans import students, teachers
from mtkd_jax.plans.plan import Done, Plan, Stage, alone, train_students
from mtkd_jax.plans.schemes.direct import check_made_otherwise, check_shares, fields_of_teachers_apart
from mtkd_jax.plans.schemes.moments import keep, networks_after, next_cycle, settle
from mtkd_jax.system.text import slug
from mtkd_jax.types import Model, PyTree, Task, UserError


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
            alone(teachers.specialists_job, config, split, address),
            note=note,
        )
        for address in teacher_models(config)
    ]
    return (*trained, *train_students(config, split))


def batch_ensemble(config: ConfigDict, split: Split) -> Plan:
    r"""Teachers with the same kernels but for a factor of rank one each, trained as one network; students.

    $$W_m = W \circ (r_m s_m^\top), \qquad \ell = \frac{1}{K} \sum_m \mathrm{CE}(y, z_m)$$

    `teachers.num_members` of each architecture share W [...,in,out] of every kernel; r and s, which begin
    with random signs, biases and normalisation are a teacher's own. All see the same batches and keep the
    weights of the last step, after `train.epochs`; then each is written out as an ordinary network, whose
    batch statistics settle as in `snapshots`. What is spared is memory: a step costs what K networks do.
    Weight decay and learning rate are the same for all weights. Raises UserError for networks that do not
    begin as they are drawn or have no kernel, for optimisers that go by whole layers, for images with several
    labels, and for fields of teachers that are trained apart.

    Source: BatchEnsemble, Wen, Tran and Ba 2020, arXiv 2002.06715.
    """
    number = config.teachers.num_members
    students.check_stacked(config, "teachers of batch_ensemble", "another plan")
    if config.train.depth_decay != 1:
        raise UserError(
            "config.train.depth_decay: plan batch_ensemble has one learning rate; must be 1 with it"
        )
    note = f"The {number} teachers of each architecture share their kernels but for factors of rank one."

    def within(address: str) -> RankOne:
        return rank_one(teachers.network(split, address), number)

    return _several_in_one("batch_ensemble", config, split, within, _of_rank_one, note)


def mimo(config: ConfigDict, split: Split, *, alike: float = 0.0) -> Plan:
    r"""Teachers that are the heads of one network, each of which answers for an image of its own; students.

    $$\ell = \frac{1}{K} \sum_m \mathrm{CE}(y_{\pi_m(b)}, z_m([x_{\pi_1(b)}, \dots, x_{\pi_K(b)}]))$$

    One network of each architecture, with `teachers.num_members` times the channels and as many heads, is
    trained for `train.epochs` on batches that stand K times side by side, in orders $\pi_m$ of their own; of
    the share `alike` of a batch all heads have the same image. Later it is shown K times the same image, and
    then head m is an ordinary network, whose kernel that reads images is the sum of the K parts: so the
    teachers are kept. Batch statistics are those of training. The paper's repetition of every image within a
    batch is left out. Raises UserError for a share that is none, for fewer than two teachers, for networks
    that read images by more than one kernel, and otherwise as `batch_ensemble` does.

    Source: Havasi et al. 2021, arXiv 2010.06610, MIMO.
    """
    if not 0 <= alike <= 1:
        raise UserError(f"config.plan: mimo(alike={alike}): must be a share of a batch, in [0, 1]")
    if config.teachers.num_members < 2:
        raise UserError(
            f"config.teachers.num_members: {config.teachers.num_members}, and plan mimo has several heads in "
            "one network; must be at least 2"
        )
    number, (mean, std) = config.teachers.num_members, channel_statistics(split)
    task = Task(split.dataset.num_classes, number, number * tuple(mean), number * tuple(std))
    note = f"The {number} teachers of each architecture are heads of one network."

    def within(address: str) -> ManyInputs:
        wide = build_model(address, task, "teachers.models")
        return many_inputs(teachers.network(split, address), wide, number, alike)

    return _several_in_one("mimo", config, split, within, _of_heads, note)


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
    check_shares("negative_correlation", strength=strength)
    for name, is_set in fields_of_teachers_apart(config.teachers).items():
        if is_set:
            raise UserError(
                f"config.teachers.{name}: {config.teachers[name]!r} does not go with plan "
                "negative_correlation, whose teachers are trained together; leave it at its default"
            )
    stages = [
        Stage(
            teachers.stage_name(address),
            alone(teachers.correlated_job, config, split, address, strength),
            note=f"The teachers were trained together, with {strength:g} of their diversity as a reward.",
        )
        for address in teacher_models(config)
    ]
    return (*stages, *train_students(config, split))


def _several_in_one(
    plan: str,
    config: ConfigDict,
    split: Split,
    within: Callable[[str], Model],
    write_out: Callable[[Job, Any, PyTree], Job],
    note: str,
) -> Plan:
    """A stage of one network for each architecture that is K of them, and a stage of these, written out."""
    check_made_otherwise(plan, config, "parts of one network")
    if split.dataset.is_dense:
        raise UserError(
            f"config.plan: {plan} is of networks that say one class of an image, and places of an image of "
            f"{split.dataset.name} have labels; use another plan"
        )
    stages = []
    for address in teacher_models(config):
        try:
            model = within(address)
        except UserError as error:
            raise UserError(f"config.plan: {plan}: {error}") from None
        whole = f"whole-{slug(address)}"

        def learn(done: Done, address: str = address, model: Model = model, whole: str = whole) -> Job:
            job = next_cycle(config, split, address, 1, config.train.epochs, config.train.schedule, 0, None)
            program = job.program._replace(model=model, recipes=(EACH_HEAD,))
            return dataclasses.replace(job, stage=whole, program=program)

        def part(done: Done, address: str = address, model: Model = model, whole: str = whole) -> Job:
            end = population.take(networks_after(done, whole).variables, 0)
            return write_out(settle(config, split, address, None), model, end)

        stages.append(Stage(whole, learn, note=note))
        stages.append(Stage(teachers.stage_name(address), part, begun_by=(whole,)))
    return (*stages, *train_students(config, split))


def _of_rank_one(job: Job, model: RankOne, end: PyTree) -> Job:
    return dataclasses.replace(job, start=model.members(end))


def _of_heads(job: Job, model: ManyInputs, end: PyTree) -> Job:
    return dataclasses.replace(keep(job), start=model.members(end, job.image))


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
    unfit = fields_of_teachers_apart(options)
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
