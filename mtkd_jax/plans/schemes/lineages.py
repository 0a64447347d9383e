"""Plans in which students teach the next ones: generations, and chains of assistants."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from ml_collections import ConfigDict

from mtkd_jax.config import number_of_teachers
from mtkd_jax.data.loading import Split, flat, flat_logits
from mtkd_jax.engine import teacher_cache
from mtkd_jax.engine.jobs import Job
from mtkd_jax.fusion import rules
from mtkd_jax.methods.lineage import (
    AfterOwnTeachers,
    DenselyGuided,
    ForOwnTeachers,
    OfOwnTeachers,
    weigh_as_fitted,
)
from mtkd_jax.methods.seams import equal_weights, nothing_after
from mtkd_jax.plans import students
from mtkd_jax.plans.plan import Done, Plan, Stage, ensemble_of
from mtkd_jax.plans.schemes.direct import (
    check_hears_all,
    check_networks,
    chosen_students,
    recipe_for,
    stage_of,
    taught,
    with_baseline,
)
from mtkd_jax.types import Ensemble, Recipe, UserError

WEIGHING = ("evolved_mean", "shapley_mean", "weighted_mean")  # rules that are fitted and give each a weight


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
    recipe = recipe_for("born_again", mode, num_teachers=1)
    direct = with_baseline("born_again", config, split)
    averaged = "BANE" if generations > 1 else ""
    stages = []
    for transfer, model in itertools.product(config.students.transfer, students.models(config)):
        before, row = stage_of(direct, transfer, "baseline", model), "baseline"
        for generation in range(1, generations + 1):
            stage = taught_by_own(
                config,
                split,
                transfer,
                [(before, row)],
                f"born_again {generation}",
                recipe,
                model,
                born_anew=generation,
            )
            stages.append(stage._replace(averaged=averaged))
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
    check_networks("assistants", models, split)
    recipe = recipe_for("assistants", mode, num_teachers=1)
    direct = with_baseline("assistants", config, split)
    stages = []
    for transfer in config.students.transfer:
        before = _assistant(config, split, models, transfer, 1, recipe)
        stages.append(before)
        for number, network in enumerate(models[1:], start=2):
            row = f"assistant {number}"
            taught_by = [(before, before.family[0].mode)]
            before = taught_by_own(config, split, transfer, taught_by, row, recipe, network=network)
            stages.append(before._replace(role="assistant"))
        taught_by = [(before, before.family[0].mode)]
        stages += [
            taught_by_own(config, split, transfer, taught_by, "assisted", recipe, model)
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
    UserError for no model, a negative number, a mode that weighs by itself or needs more than one head, and
    teachers of some images only.

    Source: densely guided distillation, Son et al. 2021, arXiv 2009.08825; one teacher, and alpha = 0.
    """
    if num_dropped < 0:
        raise UserError(f"config.plan: densely_guided(num_dropped={num_dropped}): must be at least 0")
    check_hears_all("densely_guided", config, split)
    check_networks("densely_guided", models, split)
    recipe = recipe_for("densely_guided", mode, number_of_teachers(config) or 1)
    _check_weighs_alike("densely_guided", recipe, mode)
    direct = with_baseline("densely_guided", config, split)
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
    for no model, another rule, or a mode that weighs by itself or needs more than one head or teacher.

    Source: weighted ensembles of teaching assistants, Ganta et al. 2022, arXiv 2206.12005; one teacher.
    """
    if rule not in WEIGHING:
        raise UserError(
            f"config.plan: weighed_assistants(rule={rule!r}): it must give each assistant one weight: "
            f"{', '.join(WEIGHING)}"
        )
    check_networks("weighed_assistants", models, split)
    recipe = recipe_for("weighed_assistants", mode, num_teachers=1)
    _check_weighs_alike("weighed_assistants", recipe, mode)
    direct = with_baseline("weighed_assistants", config, split)
    fit, stages = partial(_fitted_weights, split, rule), []
    for transfer in config.students.transfer:
        numbers = range(1, len(models) + 1)
        assistants = [_assistant(config, split, models, transfer, number, recipe) for number in numbers]
        taught_by = [(one, one.family[0].mode) for one in assistants]
        stages += assistants
        for model in students.models(config):
            weighed = recipe._replace(weigh=weigh_as_fitted)
            stages.append(
                taught_by_own(
                    config, split, transfer, taught_by, "weighed_assistants", weighed, model, numbers=fit
                )
            )
    return (*direct, *stages)


def _check_weighs_alike(plan: str, recipe: Recipe, mode: str) -> None:
    """Raise UserError for a mode that weighs teachers in a way of its own, where the plan does."""
    if recipe.weigh is not equal_weights:
        raise UserError(
            f"config.plan: {plan} weighs those who teach, and so does {mode!r}; it needs a mode that weighs "
            "all alike, such as 'output_avg'"
        )


def taught_by_own(
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
        ensemble = (
            *teachers_of_all,
            *(chosen_students(stage, taught_by, done) for stage, taught_by in before),
        )
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
    stage = taught(config, split, transfer, family, models[number - 1])
    return stage._replace(role="assistant", note=note)


def _of_own_teachers(recipe: Recipe, counts: tuple[int, ...]) -> Recipe:
    """The method taught by one teacher of each place; those of one place are of one architecture."""
    return recipe._replace(
        weigh=OfOwnTeachers(recipe.weigh, counts),
        aim=OfOwnTeachers(recipe.aim, counts),
        term=OfOwnTeachers(recipe.term, counts),
        after=recipe.after if recipe.after is nothing_after else AfterOwnTeachers(recipe.after, counts),
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
    return taught_by_own(
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
    of_val, fit = split.dataset.train_labels[split.val], rules.rule(rule)
    each = [flat_logits(teacher_cache.logits_of(own, split, split.val), of_val) for own in ensemble]
    said, labels = np.stack(each, axis=1), flat(of_val, of_val)  # [S,n,V,C]
    return {"own_weights": np.stack([np.asarray(fit(of_seed, labels).args[0]) for of_seed in said])}
