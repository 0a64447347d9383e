"""Plans that make the ensemble otherwise than by training each teacher apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mtkd_jax.config import GIVEN, build_model, teacher_models
from mtkd_jax.data.loading import Split, channel_statistics, scale
from mtkd_jax.engine import population
from mtkd_jax.engine.jobs import Job, slug, word
from mtkd_jax.methods.peers import EACH_HEAD
from mtkd_jax.methods.seams import SUPERVISED, no_leaf
from mtkd_jax.models.several import ManyInputs, RankOne, many_inputs, rank_one
from mtkd_jax.models.thinned import THINNED, Thinned, drops
from mtkd_jax.plans import students, teachers
from mtkd_jax.plans.plan import Done, Plan, Stage, train_students
from mtkd_jax.plans.schemes.direct import broke_down, check_shares
from mtkd_jax.types import Model, PyTree, Task, UserError

# Plans that cannot take teachers of another run.
WITH_OWN_TEACHERS = (
    *("specialists", "snapshots", "fast_geometric", "stochastic_averages", "swag"),
    *("horizontal", "dropout_draws", "batch_ensemble", "mimo", "negative_correlation"),
    "student_friendly",
    "checkpoint_bank",  # or only those of one that had this plan
)


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
    check_shares("fast_geometric", burn_in=burn_in, low=low)
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
    cycles = _steady_end("stochastic_averages", config, burn_in, rate, moments, least=1)
    note = f"The weights of each teacher are the mean of {moments} moments of its training."
    number = config.teachers.num_members
    return (*_moments(config, split, cycles, 1, note, number, _mean), *train_students(config, split))


def swag(
    config: ConfigDict,
    split: Split,
    *,
    burn_in: float = 0.75,
    rate: float = 0.5,
    moments: int = 10,
    scale: float = 1.0,
) -> Plan:
    r"""Teachers that are draws from a normal distribution of weights about the end of one training; students.

    $$W_k = \overline{W} + \sqrt{\frac{c}{2}}\, \left(s \odot u_k
    + \frac{1}{\sqrt{R - 1}} \sum_r v_{kr}\, (W_r - \overline{W})\right), \qquad
    s^2 = \frac{1}{R} \sum_r (W_r - \overline{W})^2$$

    One network of each architecture is trained as in `stochastic_averages`; $W_r$ are its weights at the R =
    `moments`, $\overline{W}$ is their mean, $u_k$, a number a weight, and $v_{kr}$ are normal, drawn for each
    of the `teachers.num_members`, and c is `scale`: half of the covariance is that of each weight by itself,
    half that of the moments, of rank R - 1. Batch statistics begin at their mean and settle as in
    `snapshots`. Raises UserError for fewer than two moments, a negative scale, and otherwise as
    `fast_geometric` does.

    Source: SWAG, Maddox et al. 2019, arXiv 1902.02476, which takes the distance of a moment from the mean of
    those until then.
    """
    if scale < 0:
        raise UserError(f"config.plan: swag(scale={scale}): must be at least 0")
    cycles = _steady_end("swag", config, burn_in, rate, moments, least=2)
    number = config.teachers.num_members
    note = f"The teachers of each architecture are {number} draws about the mean of {moments} moments."

    def draw(address: str, ends: Sequence[PyTree]) -> PyTree:
        rng = np.random.default_rng((config.seed, word(f"swag {address}")))
        return draw_about_mean(ends, number, scale, rng)

    return (*_moments(config, split, cycles, 1, note, 1, draw), *train_students(config, split))


def _steady_end(
    plan: str, config: ConfigDict, burn_in: float, rate: float, moments: int, least: int
) -> list[tuple[int, str]]:
    """(epochs, schedule) of a beginning and of so many parts at one rate; UserError where it cannot be."""
    check_shares(plan, burn_in=burn_in, rate=rate)
    if moments < least:
        raise UserError(f"config.plan: {plan}(moments={moments}): must be at least {least}")
    first = max(1, round(burn_in * config.train.epochs))
    left = config.train.epochs - first
    _check_moments(plan, config, left >= moments, f"more: burn_in leaves {left} for {moments}")
    parts = [(left // moments, f"linear(start={rate}, end={rate})")] * moments
    return [(first, config.train.schedule), *parts]


def horizontal(config: ConfigDict, split: Split, *, burn_in: float = 0.75, rate: float = 0.5) -> Plan:
    """Teachers that are the ends of the last epochs of one training, at a rate that stays; students.

    One network of each architecture is trained for the share `burn_in` of `train.epochs` by `train.schedule`,
    and for the rest at `rate` times `train.learning_rate`: the weights at the ends of
    `teachers.num_members` equal parts of that are a teacher each; all else is as in `snapshots`. Raises
    UserError for shares that are none, for parts without an epoch, and for fields of teachers that are
    trained apart.

    Source: horizontal voting, Xie, Xu and Chuang 2013, arXiv 1306.2759: every epoch from some on.
    """
    number = config.teachers.num_members
    cycles = _steady_end("horizontal", config, burn_in, rate, number, least=1)
    note = f"The teachers of each architecture are {number} moments of the end of one training."
    return (*_moments(config, split, cycles, 1, note), *train_students(config, split))


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


def _several_in_one(
    plan: str,
    config: ConfigDict,
    split: Split,
    within: Callable[[str], Model],
    write_out: Callable[[Job, Any, PyTree], Job],
    note: str,
) -> Plan:
    """A stage of one network for each architecture that is K of them, and a stage of these, written out."""
    _check_moments(plan, config, True, "", "parts of one network")
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

        def learn(done: Done, address=address, model=model, whole=whole) -> Job:
            job = _next_cycle(config, split, address, 1, config.train.epochs, config.train.schedule, 0, None)
            program = job.program._replace(model=model, recipes=(EACH_HEAD,))
            return dataclasses.replace(job, stage=whole, program=program)

        def part(done: Done, address=address, model=model, whole=whole) -> Job:
            end = population.take(_end_of(done, whole), 0)
            return write_out(_settled(config, split, address, None), model, end)

        stages.append(Stage(whole, learn, note=note))
        stages.append(Stage(teachers.stage_name(address), part, begun_by=(whole,)))
    return (*stages, *train_students(config, split))


def _of_rank_one(job: Job, model: RankOne, end: PyTree) -> Job:
    return dataclasses.replace(job, start=model.members(end))


def _of_heads(job: Job, model: ManyInputs, end: PyTree) -> Job:
    """Networks that stay as they are, batch statistics too: nothing of them is trained."""
    program = job.program._replace(recipes=(SUPERVISED._replace(trainable=no_leaf),))
    return dataclasses.replace(job, program=program, start=model.members(end, job.image))


def _moments(
    config: ConfigDict,
    split: Split,
    cycles: Sequence[tuple[int, str]],
    skipped: int,
    note: str,
    num_networks: int = 1,
    join: Callable[[str, Sequence[PyTree]], PyTree] | None = None,
) -> Plan:
    """A stage for each (epochs, schedule), each beginning where the last one ended, and one of all teachers.

    Those have the weights [num_networks,...] at the end of every stage but the `skipped` first, one behind
    the other, or what `join` makes of an address and these.
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
            return _settled(config, split, address, (join or _one_behind_the_other)(address, ends))

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
    inner, number = job.program.model, len(job.names)
    model = Model(f"{THINNED}{inner.name}", Thinned(inner.module), inner.convolutional)
    drawn = population.init(model, job.init_keys, job.image.shape[1:])
    whole = {
        kind: {"network": jax.tree.map(lambda leaf: np.repeat(leaf, number, axis=0), of)}
        for kind, of in (job.start or {}).items()
    }
    program = job.program._replace(model=model)
    stage = teachers.thinned_stage(address)
    return dataclasses.replace(job, stage=stage, program=program, start={**whole, "masks": drawn["masks"]})


def _one_behind_the_other(address: str, ends: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *one: np.concatenate(one), *ends)


def _mean(address: str, ends: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *one: np.mean(np.stack(one), axis=0), *ends)


def draw_about_mean(ends: Sequence[PyTree], number: int, scale: float, rng: np.random.Generator) -> PyTree:
    """So many variables [number,...], whose parameters are drawn as `swag` says, of moments [1,...]."""
    shared = rng.standard_normal((number, len(ends))) / np.sqrt(len(ends) - 1)  # by all parameters

    def drawn(*moments: np.ndarray) -> np.ndarray:
        each = np.concatenate(moments).astype(np.float64)
        mean = each.mean(axis=0)
        apart = each - mean
        own = np.sqrt(np.mean(apart**2, axis=0)) * rng.standard_normal((number, *mean.shape))
        found = mean + np.sqrt(scale / 2) * (own + np.tensordot(shared, apart, axes=1))
        return found.astype(moments[0].dtype)

    mean = jax.tree.map(lambda leaf: np.repeat(leaf, number, axis=0), dict(_mean("", ends)))
    return {**mean, "params": jax.tree.map(drawn, *(end["params"] for end in ends))}


def _end_of(done: Done, name: str) -> PyTree:
    """The variables [num_networks,...] that a stage ended with; UserError where one of them broke down."""
    if done[name].diverged:
        raise UserError(f"{name}: {broke_down(done[name].diverged)}")
    return done[name].population.variables


def _models_of_teachers(config: ConfigDict) -> list[Model]:
    task = Task(2, 1, (0.0,), (1.0,))
    return [build_model(address, task, "teachers.models") for address in teacher_models(config)]


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


def _check_moments(
    plan: str, config: ConfigDict, is_long_enough: bool, right: str, are: str = "moments of one training"
) -> None:
    """Raise UserError for fields that are of teachers who are trained apart, and for too few epochs."""
    options = config.teachers
    of_each = ("learning_rates", "weight_decays", "label_smoothings")
    unfit = _of_ordinary_teachers(options) | {name: len(options[name]) > 1 for name in of_each}
    for name, is_set in unfit.items():
        if is_set:
            raise UserError(
                f"config.teachers.{name}: {options[name]!r} does not go with plan {plan}, whose teachers are "
                f"{are}; leave it at its default"
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
