"""Plans whose teachers are moments, means or draws of one training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from mtkd_jax.config import teacher_models
from mtkd_jax.data.loading import Split, example_image
from mtkd_jax.engine import population
from mtkd_jax.engine.jobs import Job, go_on
from mtkd_jax.methods.seams import SUPERVISED, no_leaf
from mtkd_jax.models.thinned import THINNED, Thinned, drops
from mtkd_jax.plans import teachers
from mtkd_jax.plans.plan import Done, Plan, Stage, train_students
from mtkd_jax.plans.schemes.direct import broke_down, check_made_otherwise, check_shares
from mtkd_jax.system.text import seed_of, slug
from mtkd_jax.types import Model, Population, PyTree, UserError


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
    _check_epochs("snapshots", config, number <= epochs, f"at least {number}, one for each teacher")
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
    _check_epochs("fast_geometric", config, each > 0, f"more: burn_in leaves {epochs - first} for {number}")
    cycle = f"triangular(peak=0.5, start={low}, end={low})"
    cycles = [(first, config.train.schedule), *[(each, cycle)] * number]
    note = f"The teachers of each architecture are moments of one training: {number} cycles at its end."
    return (*_moments(config, split, cycles, 1, note), *train_students(config, split))


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
        rng = np.random.default_rng((config.seed, seed_of(f"swag {address}")))
        return draw_about_mean(ends, number, scale, rng)

    return (*_moments(config, split, cycles, 1, note, 1, draw), *train_students(config, split))


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
    check_made_otherwise("dropout_draws", config, "draws of one network")
    note = f"The teachers of each architecture are {number} draws of the dropout of one network."
    image, stages = example_image(split), []
    for address in teacher_models(config):
        if not drops(teachers.network(split, address), image):
            raise UserError(
                f"config.plan: dropout_draws leaves out units as {address} does in training, and that leaves "
                "out none; teachers.models must have dropout, such as cnn(dropout=0.3)"
            )
        whole = f"whole-{slug(address)}"

        def learn(done: Done, address: str = address, whole: str = whole) -> Job:
            job = next_cycle(config, split, address, 1, epochs, config.train.schedule, 0, None)
            return dataclasses.replace(job, stage=whole)

        def draw(done: Done, address: str = address, whole: str = whole) -> Job:
            return _thinned(settle(config, split, address, networks_after(done, whole).variables), address)

        stages.append(Stage(whole, learn, note=note))
        stages.append(Stage(teachers.thinned_stage(address), draw, begun_by=(whole,)))
    return (*stages, *train_students(config, split))


def _steady_end(
    plan: str, config: ConfigDict, burn_in: float, rate: float, moments: int, least: int
) -> list[tuple[int, str]]:
    """(epochs, schedule) of a beginning and of so many parts at one rate; UserError where it cannot be."""
    check_shares(plan, burn_in=burn_in, rate=rate)
    if moments < least:
        raise UserError(f"config.plan: {plan}(moments={moments}): must be at least {least}")
    first = max(1, round(burn_in * config.train.epochs))
    left = config.train.epochs - first
    _check_epochs(plan, config, left >= moments, f"more: burn_in leaves {left} for {moments}")
    parts = [(left // moments, f"linear(start={rate}, end={rate})")] * moments
    return [(first, config.train.schedule), *parts]


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

            def learn(
                done: Done,
                address: str = address,
                names: Sequence[str] = names,
                number: int = number,
                epochs: int = epochs,
                by: str = schedule,
            ) -> Job:
                begun = sum(one for one, _ in cycles[:number])
                start = networks_after(done, names[number - 1]).variables if number else None
                job = next_cycle(config, split, address, num_networks, epochs, by, begun, start)
                return dataclasses.replace(job, stage=names[number])

            stages.append(Stage(name, learn, note=note))

        def gather(done: Done, address: str = address, names: Sequence[str] = names[skipped:]) -> Job:
            ends = [networks_after(done, name).variables for name in names]
            return settle(config, split, address, (join or one_behind_the_other)(address, ends))

        stages.append(Stage(teachers.stage_name(address), gather, begun_by=tuple(names)))
    return tuple(stages)


def next_cycle(
    config: ConfigDict,
    split: Split,
    address: str,
    num_networks: int,
    epochs: int,
    schedule: str,
    begun: int,
    start: PyTree | None,
) -> Job:
    """Networks trained for some epochs, whose last weights are kept; from `start` on after `begun` others."""
    own = config.copy_and_resolve_references()
    own.teachers.num_members, own.train.schedule = num_networks, schedule
    own.train.epochs = own.train.eval_every = epochs  # the only weights to choose: the last
    own.train.ema_decay = 0.0
    if begun:
        own.train.warmup = 0.0
    job = teachers.job(own, split, address)
    return job if start is None else go_on(job, start, begun)


def settle(config: ConfigDict, split: Split, address: str, start: PyTree) -> Job:
    """The teachers as they are: an epoch at a rate of 0, in which their batch statistics become their own."""
    own = config.copy_and_resolve_references()
    own.train.epochs = own.train.eval_every = 1
    own.train.ema_decay = 0.0
    job = teachers.job(own, split, address)
    still = {name: np.zeros_like(job.hyper[name]) for name in ("learning_rate", "weight_decay")}
    return dataclasses.replace(job, start=start, hyper={**job.hyper, **still})


def keep(job: Job) -> Job:
    """The job with nothing to train: its networks stay as they are, batch statistics too."""
    recipe = SUPERVISED._replace(trainable=no_leaf)
    return dataclasses.replace(job, program=job.program._replace(recipes=(recipe,)))


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


def one_behind_the_other(address: str, ends: Sequence[PyTree]) -> PyTree:
    """Variables [K,...] of the networks of several stages, as `_moments` joins them; of any address."""
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


def networks_after(done: Done, name: str) -> Population:
    """The networks that a stage ended with; UserError where one of them broke down."""
    if done[name].diverged:
        raise UserError(f"{name}: {broke_down(done[name].diverged)}")
    return done[name].population


def _check_epochs(plan: str, config: ConfigDict, is_long_enough: bool, right: str) -> None:
    """Raise UserError for fields that are of teachers who are trained apart, and for too few epochs."""
    check_made_otherwise(plan, config, "moments of one training")
    if not is_long_enough:
        raise UserError(
            f"config.train.epochs: {config.train.epochs} are too few for plan {plan}; must be {right}"
        )
