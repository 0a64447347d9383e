"""Teachers, then the students that all of them teach; and what every other plan adds its rows to."""

from __future__ import annotations

from collections.abc import Sequence

from ml_collections import ConfigDict

from mtkd_jax.addresses import build_model, build_recipe
from mtkd_jax.config import GIVEN, number_of_teachers
from mtkd_jax.data.loading import Split
from mtkd_jax.engine import population
from mtkd_jax.engine.jobs import Job
from mtkd_jax.methods.seams import frozen_teachers
from mtkd_jax.plans import students
from mtkd_jax.plans.plan import Done, Plan, Stage, ensemble_of, train_students, train_teachers
from mtkd_jax.plans.students import Family
from mtkd_jax.types import Population, Recipe, Task, UserError


def teachers_then_students(config: ConfigDict, split: Split) -> Plan:
    """Teachers of every architecture, the fused networks some modes need, then the students."""
    return (*train_teachers(config, split), *train_students(config, split))


def taught(config: ConfigDict, split: Split, transfer: str, family: Family, network: str = "") -> Stage:
    """A stage of a family whom all teachers teach."""

    def make(done: Done) -> Job:
        return students.job(config, split, transfer, family, ensemble_of(done), {}, network)

    return Stage(students.stage_name(transfer, family), make, family, transfer)


def chosen_students(stage: Stage, row: str, done: Done) -> Population:
    """Every seed of a row, in order, at the alpha and temperature that validation chooses."""
    fitted = done[stage.name]
    own = students.members_of(stage.family, row)
    cell, _ = students.choose([stage.family[m] for m in own], fitted.val_nll[own])
    chosen = students.members_of(stage.family, row, cell)
    diverged = [fitted.population.names[m] for m in chosen if fitted.population.names[m] in fitted.diverged]
    if diverged:
        raise UserError(f"{stage.name}: {broke_down(diverged)}")
    return population.members(fitted.population, chosen)


def stage_of(stages: Plan, transfer: str, mode: str, model: str) -> Stage:
    """The stage that trains the students of a mode."""
    place = (mode, model)
    of_transfer = (stage for stage in stages if stage.transfer == transfer)
    return next(s for s in of_transfer if any((one.mode, one.model) == place for one in s.family))


def broke_down(names: Sequence[str]) -> str:
    """Why nobody can learn from networks of these names."""
    return (
        f"the loss of {', '.join(names)} stopped being finite, and nobody can learn from that; "
        "look at train.learning_rate, train.weight_decay and students.temperatures"
    )


def with_baseline(name: str, config: ConfigDict, split: Split) -> tuple[Stage, ...]:
    """What a plan of that name is compared with; UserError where `students.modes` names nothing."""
    if not config.students.modes:
        raise UserError(
            f"config.plan: {name} is compared with the students of students.modes, which is empty; "
            "name at least one, such as 'output_avg'"
        )
    return teachers_then_students(config, split)


def recipe_for(name: str, address: str, num_teachers: int) -> Recipe:
    """The recipe of a mode that a plan of that name trains by; UserError for what has other needs."""
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


def check_networks(plan: str, models: Sequence[str], split: Split) -> None:
    """Raise UserError where a plan has no networks between teachers and students, or one that cannot be."""
    if not models:
        raise UserError(
            f"config.plan: {plan}(models=()): name the networks between teachers and students, "
            f"such as {plan}(models=('mlp(hidden=(48,))',))"
        )
    for address in models:
        build_model(address, Task(split.dataset.num_classes, 1, (0.0,), (1.0,)), "plan")


def check_hears_all(plan: str, config: ConfigDict, split: Split) -> None:
    """Raise UserError where not every teacher teaches every image."""
    cause = "teachers.out_of_bag" if config.teachers.out_of_bag else "train_teachers of the data"
    if config.teachers.out_of_bag or split.dataset.train_teachers is not None:
        raise UserError(
            f"config.plan: {plan} hears all teachers of every image, and by {cause} some teach some images "
            "only; must be without it"
        )


def check_networks_teach(plan: str, config: ConfigDict) -> int:
    """How many teachers there are; UserError for those of whom logits alone are known."""
    number = number_of_teachers(config)
    if number is None:
        raise UserError(
            f"config.plan: {plan} begins with features of the teachers, and of those of {', '.join(GIVEN)} "
            "logits alone are known; it needs networks, such as those of teachers.from_run or "
            "teachers.init_from"
        )
    return number


def check_shares(plan: str, **shares: float) -> None:
    """Raise UserError for arguments of a plan that are no shares."""
    for name, share in shares.items():
        if not 0 < share < 1:
            raise UserError(f"config.plan: {plan}({name}={share}): must be a share, between 0 and 1")


def fields_of_teachers_apart(options: ConfigDict) -> dict[str, bool]:
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


def check_made_otherwise(plan: str, config: ConfigDict, are: str) -> None:
    """Raise UserError for fields of teachers trained apart; those of this plan are what `are` says."""
    options = config.teachers
    of_each = ("learning_rates", "weight_decays", "label_smoothings")
    unfit = fields_of_teachers_apart(options) | {name: len(options[name]) > 1 for name in of_each}
    for name, is_set in unfit.items():
        if is_set:
            raise UserError(
                f"config.teachers.{name}: {options[name]!r} does not go with plan {plan}, whose teachers are "
                f"{are}; leave it at its default"
            )
