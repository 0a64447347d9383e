"""Plans whose later teachers depend on what networks trained before them say."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict
from scipy import special

from mtkd_jax.config import teacher_models
from mtkd_jax.data import loading
from mtkd_jax.data.loading import Split
from mtkd_jax.engine import jobs, population, teacher_cache
from mtkd_jax.engine.jobs import Job
from mtkd_jax.engine.training import Fitted
from mtkd_jax.plans import teachers
from mtkd_jax.plans.plan import Done, Plan, Stage, train_students
from mtkd_jax.plans.schemes.direct import broke_down, check_made_otherwise
from mtkd_jax.plans.schemes.moments import keep, networks_after, one_behind_the_other, settle
from mtkd_jax.system.text import seed_of, slug
from mtkd_jax.types import Population, UserError

Settings = Mapping[str, np.ndarray]  # {field of `config.teachers`: [number]}


def boosted(config: ConfigDict, split: Split, *, rate: float = 1.0) -> Plan:
    r"""Teachers of whom each learns most from examples that those before it get wrong (AdaBoost); students.

    $$w_i \propto \exp\left(-\eta \sum_{j < k} \left(z_{ij y_i} - \frac{1}{C} \sum_c z_{ijc}\right)\right)$$

    `teachers.num_members` networks of each architecture are trained one after the other, as ordinary
    teachers are, but the batches of network k are drawn in every epoch anew, and example i with probability
    $w_i$, by the logits $z_j$ of the k networks before it; $\eta$ is `rate`, in (0, 1]. The ensemble of the
    paper is the sum of logits about their mean: rule "mean_logits". Networks that know their training images
    by heart leave the weight to a few of them; a smaller rate spreads it. Raises UserError for another rate,
    for places with labels, for `data.sampling` other than natural, for a network that broke down, and for
    fields of teachers that are trained apart.

    Source: SAMME.R, Zhu, Zou, Rosset and Hastie 2009, of which this is the weight written out: in
    $-\frac{C - 1}{C} y^\top \log p$ the normalisation of p cancels. Drawing anew in every epoch: Schwenk and
    Bengio 2000.
    """
    if not 0 < rate <= 1:
        raise UserError(f"config.plan: boosted(rate={rate}): must be in (0, 1]")
    check_made_otherwise("boosted", config, "trained one after the other")
    if split.dataset.is_dense:
        raise UserError(
            f"config.plan: boosted weighs an example by its label, and places of {split.dataset.name} have "
            "one each; must be another plan"
        )
    if config.data.sampling != "natural":
        raise UserError(
            f"config.data.sampling: {config.data.sampling!r}, and plan boosted draws examples by weights of "
            "its own; must be 'natural' with it"
        )
    number = config.teachers.num_members
    note = "Each teacher of an architecture was trained most on the mistakes of those before it."
    stages = []
    for address in teacher_models(config):
        names = tuple(f"boosted-{k}-{slug(address)}" for k in range(number))

        def learn(
            done: Done,
            k: int,
            computes: bool = True,
            address: str = address,
            names: Sequence[str] = names,
        ) -> Job:
            before = [networks_after(done, name) for name in names[:k]] if computes else ()
            return _boosted_job(config, split, address, names[k], k, before, rate)

        def gather(done: Done, address: str = address, names: Sequence[str] = names) -> Job:
            ends = [networks_after(done, name).variables for name in names]
            return keep(settle(config, split, address, one_behind_the_other(address, ends)))

        for k, name in enumerate(names):
            train = functools.partial(learn, k=k)
            stages.append(Stage(name, train, note=note, outline=functools.partial(train, computes=False)))
        stages.append(Stage(teachers.stage_name(address), gather, begun_by=names))
    return (*stages, *train_students(config, split))


def _boosted_job(
    config: ConfigDict,
    split: Split,
    address: str,
    name: str,
    k: int,
    before: Sequence[Population],
    rate: float,
) -> Job:
    """Teacher k, on batches drawn by what those before it say of the labelled examples."""
    job = jobs.part(teachers.job(config, split, address), [k])
    job = dataclasses.replace(job, stage=name)
    if not before:
        return job
    said = np.concatenate([teacher_cache.logits_of(one, split, split.train) for one in before])
    chances = boosting_weights(said, split.dataset.train_labels[split.train], rate)
    num_steps, batch_size = job.steps_per_epoch, config.train.batch_size

    def order(epoch: int) -> np.ndarray:
        rng = np.random.default_rng((config.seed, seed_of(name), epoch))
        drawn = rng.choice(split.train, num_steps * batch_size, p=chances)
        return drawn.reshape(num_steps, 1, batch_size)

    return dataclasses.replace(job, order=order)


def boosting_weights(logits: np.ndarray, labels: np.ndarray, rate: float) -> np.ndarray:
    """[n] of sum 1, the weights of `boosted` after networks that said `logits` [K,n,C] of `labels` [n].

    Examples:
        >>> logits = np.log(np.array([[[4.0, 1.0], [1.0, 4.0]]]))
        >>> boosting_weights(logits, np.array([0, 0]), 1.0).round(3)
        array([0.2, 0.8])
    """
    logits = np.asarray(logits, np.float64)
    right = np.take_along_axis(logits, labels[None, :, None].astype(np.int64), axis=2)[..., 0]
    margins = (right - logits.mean(axis=2)).sum(axis=0)
    return special.softmax(-rate * margins)


def hyper_deep(
    config: ConfigDict,
    split: Split,
    *,
    searched: int = 16,
    inits: int = 3,
    spread: float = 5.0,
    smoothing: float = 0.2,
) -> Plan:
    r"""Teachers that differ in hyperparameters as well as in initial weights, chosen on validation; students.

    $$k^\ast = \arg\max_{k \notin S} \frac{1}{V} \sum_i
    \log \frac{1}{|S| + 1} \sum_{j \in S \cup \{k\}} p_{ij y_i}, \qquad S \leftarrow S \cup \{k^\ast\}$$

    Of each architecture `searched` networks are trained together, each with a learning rate and a weight
    decay of its own, `train.learning_rate` and `train.weight_decay` times a factor drawn log-uniformly from
    [1 / `spread`, `spread`] (a decay of 0 stays 0), and a label smoothing drawn from [0, `smoothing`].
    `teachers.num_members` of them are chosen; each of their settings is trained from `inits` initial weights
    more, and of all these as many are chosen once more: the teachers. Chosen is one after the other, the one
    k that lowers the NLL of the mean of probabilities on validation most, each at most once. Those whose loss
    stops being finite are not chosen. Raises UserError for numbers that cannot be, for fewer finite networks
    than teachers, and for fields of teachers that are trained apart.

    Source: hyper-deep ensembles, Wenzel, Snoek, Tran and Jenatton 2020, arXiv 2006.13570, where a network
    may be chosen again and then counts twice, and which searches dropout and a decay for each layer.
    """
    number = config.teachers.num_members
    for name, value, least in (("searched", searched, number), ("inits", inits, 1), ("spread", spread, 1)):
        if value < least:
            what = f"the {least} of teachers.num_members" if name == "searched" else f"{least}"
            raise UserError(f"config.plan: hyper_deep({name}={value}): must be at least {what}")
    if not 0 <= smoothing < 1:
        raise UserError(f"config.plan: hyper_deep(smoothing={smoothing}): must be in [0, 1)")
    check_made_otherwise("hyper_deep", config, "chosen among others")
    note = (
        f"The teachers of each architecture were chosen on validation, of {number * inits} networks with the "
        f"settings of {number} that were chosen of {searched}."
    )
    stages = []
    for address in teacher_models(config):
        first, second = f"searched-{slug(address)}", f"chosen-{slug(address)}"
        tried = _drawn_settings(config, address, searched, spread, smoothing)

        def search(done: Done, address: str = address, first: str = first, tried: Settings = tried) -> Job:
            return _with_settings(config, split, address, first, tried)

        def again(
            done: Done,
            computes: bool = True,
            address: str = address,
            first: str = first,
            second: str = second,
            tried: Settings = tried,
        ) -> Job:
            chosen = choose(done[first], split, number) if computes else range(number)
            own = {name: np.repeat(of[np.asarray(chosen)], inits) for name, of in tried.items()}
            return _with_settings(config, split, address, second, own)

        def gather(done: Done, computes: bool = True, address: str = address, second: str = second) -> Job:
            chosen = choose(done[second], split, number) if computes else range(number)
            weights = population.take(done[second].population.variables, chosen)
            return keep(settle(config, split, address, weights))

        stages += [
            Stage(first, search, note=note),
            Stage(second, again, outline=functools.partial(again, computes=False)),
            Stage(
                teachers.stage_name(address),
                gather,
                outline=functools.partial(gather, computes=False),
                begun_by=(first, second),
            ),
        ]
    return (*stages, *train_students(config, split))


def _drawn_settings(
    config: ConfigDict, address: str, number: int, spread: float, smoothing: float
) -> Settings:
    """{field of `config.teachers`: [number]} as `hyper_deep` draws them."""
    rng = np.random.default_rng((config.seed, seed_of(f"hyper_deep {address}")))
    factors = spread ** rng.uniform(-1.0, 1.0, (2, number))
    return {
        "learning_rates": config.train.learning_rate * factors[0],
        "weight_decays": config.train.weight_decay * factors[1],
        "label_smoothings": rng.uniform(0.0, smoothing, number),
    }


def _with_settings(config: ConfigDict, split: Split, address: str, name: str, settings: Settings) -> Job:
    """A network for each of the settings, with initial weights, orders and a stage of their own."""
    own = config.copy_and_resolve_references()
    own.teachers.num_members = len(settings["learning_rates"])
    for field, values in settings.items():
        own.teachers[field] = tuple(values.tolist())
    return teachers.job(own, split, address, name)


def choose(trained: Fitted, split: Split, number: int) -> list[int]:
    """So many members, chosen as `hyper_deep` says; UserError where fewer have finite weights."""
    finite = [m for m, name in enumerate(trained.population.names) if name not in trained.diverged]
    if len(finite) < number:
        raise UserError(f"config.plan: hyper_deep: {broke_down(trained.diverged)}")
    labels = split.dataset.train_labels[split.val]
    logits = loading.flat_logits(teacher_cache.logits_of(trained.finite_members, split, split.val), labels)
    log_probs = special.log_softmax(logits.astype(np.float64), axis=-1)
    of_labels = np.take_along_axis(log_probs, loading.flat(labels, labels)[None, :, None], axis=-1)[..., 0]
    return [finite[m] for m in select(of_labels, number)]


def select(log_probs: np.ndarray, number: int) -> list[int]:
    """Members one after the other, each the one that lowers the NLL of the mean of probabilities most.

    `log_probs` [M,n] are those of the labels.

    Examples:
        >>> select(np.log([[0.9, 0.1], [0.6, 0.6], [0.1, 0.8]]), 2)
        [1, 0]
    """
    chosen: list[int] = []
    together = np.full(log_probs.shape[1], -np.inf)
    for _ in range(number):
        with_each = np.logaddexp(together, log_probs).mean(axis=1)
        with_each[chosen] = -np.inf
        chosen.append(int(with_each.argmax()))
        together = np.logaddexp(together, log_probs[chosen[-1]])
    return chosen
